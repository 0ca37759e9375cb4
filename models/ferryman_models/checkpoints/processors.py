"""Hugging Face's `preprocessor_config.json` as a PreprocessSpec."""

from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ferryman.errors import CheckpointError
from ferryman.specs import PreprocessSpec
from ferryman_models.checkpoints.tensors import read_json

FILE_NAME = "preprocessor_config.json"
# Where a detector's configuration leaves the canvas open: pictures of 4:3 as COCO has most, at DETR's own scale.
DETECTION_CANVAS = (800, 1066)

Positive = Annotated[int, Field(ge=1)]
Triple = tuple[float, float, float]
_KERNELS: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
_HALF = (0.5, 0.5, 0.5)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Size(BaseModel):
    model_config = ConfigDict(extra="ignore")
    height: Positive | None = None
    width: Positive | None = None
    shortest_edge: Positive | None = None
    longest_edge: Positive | None = None
    max_height: Positive | None = None
    max_width: Positive | None = None


class _Processor(BaseModel):
    """What the processors of ViT, DeiT, BiT and DETR have in common; None where the class's own default holds."""

    model_config = ConfigDict(extra="ignore")
    do_resize: bool = True
    size: Positive | tuple[Positive, Positive] | _Size | None = None
    resample: int | None = None
    do_center_crop: bool | None = None
    crop_size: Positive | tuple[Positive, Positive] | _Size | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0)] = 1 / 255
    do_normalize: bool = True
    image_mean: Triple | None = None
    image_std: Triple | None = None


class _Defaults(BaseModel):
    size: _Size
    resample: int
    crop: bool = False
    mean: Triple
    std: Triple
    square: bool = True  # an old size of one number means both sides, not the shorter one


# By the name without "ImageProcessor", "FeatureExtractor" and what follows: transformers' own defaults.
_FAMILIES = {
    "ViT": _Defaults(size=_Size(height=224, width=224), resample=2, mean=_HALF, std=_HALF),
    "DeiT": _Defaults(size=_Size(height=256, width=256), resample=3, crop=True, mean=_HALF, std=_HALF),
    "Bit": _Defaults(
        size=_Size(shortest_edge=224), resample=3, crop=True, mean=_CLIP_MEAN, std=_CLIP_STD, square=False
    ),
    "Detr": _Defaults(size=_Size(shortest_edge=800, longest_edge=1333), resample=2, mean=_MEAN, std=_STD, square=False),
}


def load_processor(folder: Path) -> PreprocessSpec:
    """The preprocessing that `folder` describes. Raises CheckpointError when it is missing or can't be reproduced."""
    path = folder / FILE_NAME
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {FILE_NAME}, so it is not known how pictures reach this model; "
            "save the image processor beside it (processor.save_pretrained)"
        )
    document = read_json(path)
    name = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "")
    family = name.partition("ImageProcessor")[0].partition("FeatureExtractor")[0]
    defaults = _FAMILIES.get(family)
    if defaults is None:
        known = ", ".join(f"{known}ImageProcessor" for known in _FAMILIES)
        raise CheckpointError(f"{path}: the processor {name!r} is not known; known are {known}")
    try:
        processor = _Processor.model_validate(document)
        return _spec(processor, defaults, family)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where or 'the preprocessing'}: {first['msg']}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _spec(processor: _Processor, defaults: _Defaults, family: str) -> PreprocessSpec:
    if not processor.do_resize:
        raise ValueError("do_resize is false, but a graph needs pictures of one size")
    resample = defaults.resample if processor.resample is None else processor.resample
    if resample not in _KERNELS:
        raise ValueError(f"the kernel {resample} (resample) is not known; known are {sorted(_KERNELS)}")
    facts: dict[str, object] = {"interpolation": _KERNELS[resample]} | _scale(processor, defaults)
    size = _size(processor.size, defaults)
    if family == "Detr":
        return PreprocessSpec.model_validate(facts | {"size": _canvas(size), "fit": "pad"})
    crops = defaults.crop if processor.do_center_crop is None else processor.do_center_crop
    crop = _sides(_as_size(processor.crop_size, square=True), "crop_size") if crops else None
    if crops and processor.crop_size is None:
        crop = (224, 224)
    if size.shortest_edge is not None:
        if crop is None:
            raise ValueError("size has a shortest_edge and there is no crop, but a graph needs pictures of one size")
        return PreprocessSpec.model_validate(facts | {"size": crop, "fit": "crop", "shortest_edge": size.shortest_edge})
    to = _sides(size, "size")
    if crop is None or crop == to:
        return PreprocessSpec.model_validate(facts | {"size": to, "fit": "stretch"})
    return PreprocessSpec.model_validate(facts | {"size": crop, "fit": "stretch", "stretch_to": to})


def _scale(processor: _Processor, defaults: _Defaults) -> dict[str, object]:
    """Mean and deviation of pixel values in [0, 1], with the processor's own factor worked in."""
    mean, std = processor.image_mean or defaults.mean, processor.image_std or defaults.std
    if not processor.do_normalize:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if abs(factor * 255 - 1) > 1e-9:
        # (x * factor - mean) / std is (x / 255 - mean / (255 factor)) / (std / (255 factor))
        mean = cast("Triple", tuple(value / (255 * factor) for value in mean))
        std = cast("Triple", tuple(value / (255 * factor) for value in std))
    return {"mean": mean, "std": std}


def _as_size(size: "int | tuple[int, int] | _Size | None", *, square: bool) -> _Size:
    if size is None or isinstance(size, _Size):
        return size or _Size()
    if isinstance(size, tuple):
        return _Size(height=size[0], width=size[1])
    return _Size(height=size, width=size) if square else _Size(shortest_edge=size)


def _size(size: "int | tuple[int, int] | _Size | None", defaults: _Defaults) -> _Size:
    return defaults.size if size is None else _as_size(size, square=defaults.square)


def _sides(size: _Size, name: str) -> tuple[int, int]:
    if size.height is None or size.width is None:
        raise ValueError(f"{name} has no height and width")
    return size.height, size.width


def _canvas(size: _Size) -> tuple[int, int]:
    """A detector's canvas: its fixed size, or one of 4:3 with the shorter side that it asks for."""
    if size.height is not None and size.width is not None:
        return size.height, size.width
    if size.max_height is not None and size.max_width is not None:
        return size.max_height, size.max_width
    shortest = size.shortest_edge or DETECTION_CANVAS[0]
    longest = shortest * DETECTION_CANVAS[1] // DETECTION_CANVAS[0]
    return shortest, min(longest, size.longest_edge or longest)
