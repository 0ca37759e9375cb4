"""Hugging Face's `preprocessor_config.json` as a PreprocessSpec."""

from functools import partial
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
    """What the processors have in common; None where the class's own default holds.

    pad_size: what a detector's pictures are padded to; crop_pct: of the shorter side, what the crop keeps
    include_top: EfficientNet divides by the deviation twice; rescale_offset: it takes one off what it scaled
    """

    model_config = ConfigDict(extra="ignore")
    do_resize: bool = True
    size: Positive | tuple[Positive, Positive] | _Size | None = None
    resample: int | None = None
    do_center_crop: bool | None = None
    crop_size: Positive | tuple[Positive, Positive] | _Size | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0)] = 1 / 255
    do_normalize: bool | None = None
    image_mean: Triple | None = None
    image_std: Triple | None = None
    do_pad: bool | None = None
    pad_size: _Size | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    include_top: bool = True
    rescale_offset: bool = False


class _Defaults(BaseModel):
    """Of a class of processors.

    square: an old size of one number means both sides, not the shorter one
    detects: fits pictures to a detector's canvas; unit: sides are cut to its multiples, as the model's patches would
    crop_pct: what the crop keeps, for the classes that resize the shorter side to size / crop_pct
    """

    size: _Size
    resample: int
    crop: bool = False
    crop_side: int = 224
    mean: Triple
    std: Triple
    normalize: bool = True
    square: bool = True
    detects: bool = False
    unit: int = 1
    crop_pct: float | None = None


_detr = partial(_Defaults, resample=2, mean=_MEAN, std=_STD, square=False, detects=True)
_DETR = _detr(size=_Size(shortest_edge=800, longest_edge=1333))
_IMAGENET = partial(_Defaults, mean=_MEAN, std=_STD)
_CENTRED = partial(_Defaults, mean=_HALF, std=_HALF)
# By the name without "ImageProcessor", "FeatureExtractor" and what follows: transformers' own defaults.
_FAMILIES = {
    "ViT": _CENTRED(size=_Size(height=224, width=224), resample=2),
    "DeiT": _CENTRED(size=_Size(height=256, width=256), resample=3, crop=True),
    "Bit": _Defaults(
        size=_Size(shortest_edge=224), resample=3, crop=True, mean=_CLIP_MEAN, std=_CLIP_STD, square=False
    ),
    "CLIP": _Defaults(
        size=_Size(shortest_edge=224), resample=3, crop=True, mean=_CLIP_MEAN, std=_CLIP_STD, square=False
    ),
    "Beit": _CENTRED(size=_Size(height=224, width=224), resample=3),
    "ConvNext": _CENTRED(size=_Size(shortest_edge=384), resample=3, square=False, crop_pct=224 / 256),
    "PoolFormer": _IMAGENET(size=_Size(shortest_edge=224), resample=3, crop=True, square=False, crop_pct=0.9),
    "Levit": _IMAGENET(size=_Size(shortest_edge=224), resample=3, crop=True, square=False, crop_pct=224 / 256),
    "EfficientNet": _CENTRED(size=_Size(height=346, width=346), resample=3, crop_side=289),
    "MobileViT": _CENTRED(
        size=_Size(shortest_edge=224), resample=3, crop=True, crop_side=256, normalize=False, square=False
    ),
    "MobileNetV1": _CENTRED(size=_Size(shortest_edge=256), resample=2, crop=True, square=False),
    "MobileNetV2": _CENTRED(size=_Size(shortest_edge=256), resample=2, crop=True, square=False),
    "Pvt": _IMAGENET(size=_Size(height=224, width=224), resample=3),
    "Segformer": _IMAGENET(size=_Size(height=512, width=512), resample=2),
    "Siglip": _CENTRED(size=_Size(height=224, width=224), resample=3),
    "Detr": _DETR,
    "DeformableDetr": _DETR,
    "ConditionalDetr": _DETR,
    "RfDetr": _DETR,
    "Yolos": _detr(size=_Size(shortest_edge=800, longest_edge=1333), unit=16),
    "RTDetr": _detr(size=_Size(height=640, width=640), normalize=False),
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
    if family == "EfficientNet":
        if processor.rescale_offset:
            raise ValueError("rescale_offset is true, which a mean and a deviation of pixel values can't follow")
        if processor.include_top:  # see EfficientNetImageProcessor._preprocess
            once, again = cast("Triple", facts["std"]), processor.image_std or defaults.std
            facts["std"] = tuple(one * other for one, other in zip(once, again, strict=True))
    size = _size(processor.size, defaults)
    if defaults.detects:
        return PreprocessSpec.model_validate(facts | _fit_canvas(size, processor, defaults))
    return PreprocessSpec.model_validate(facts | _fit_crop(size, processor, defaults, family))


def _fit_canvas(size: _Size, processor: _Processor, defaults: _Defaults) -> dict[str, object]:
    """How a detector's pictures are fitted: stretched where both sides are given, padded otherwise."""
    if size.height is None or size.width is None:
        height, width = _canvas(size)
        return {"size": (height // defaults.unit * defaults.unit, width // defaults.unit * defaults.unit), "fit": "pad"}
    pads = processor.pad_size
    if pads is not None and processor.do_pad and (pads.height, pads.width) != (size.height, size.width):
        raise ValueError(f"pictures stretched to {_sides(size, 'size')} and then padded can't be followed")
    return {"size": (size.height, size.width), "fit": "stretch"}


def _fit_crop(size: _Size, processor: _Processor, defaults: _Defaults, family: str) -> dict[str, object]:
    """How a classifier's pictures are fitted."""
    if family == "ConvNext":
        if size.shortest_edge is None:
            raise ValueError("size has no shortest_edge")
        sides = (size.shortest_edge, size.shortest_edge)
        if size.shortest_edge >= 384:  # stretched, not cropped, as ConvNextImageProcessor.resize has it
            return {"size": sides, "fit": "stretch"}
        kept = processor.crop_pct or 224 / 256
        return {"size": sides, "fit": "crop", "shortest_edge": int(size.shortest_edge / kept)}
    crops = defaults.crop if processor.do_center_crop is None else processor.do_center_crop
    crop = _sides(_as_size(processor.crop_size, square=True), "crop_size") if crops and processor.crop_size else None
    if crops and processor.crop_size is None:
        crop = (defaults.crop_side, defaults.crop_side)
    if size.shortest_edge is not None:
        if crop is None:
            raise ValueError("size has a shortest_edge and there is no crop, but a graph needs pictures of one size")
        kept = (processor.crop_pct if family == "PoolFormer" else None) or defaults.crop_pct or 1
        return {"size": crop, "fit": "crop", "shortest_edge": int(size.shortest_edge / kept)}
    to = _sides(size, "size")
    if crop is None or crop == to:
        return {"size": to, "fit": "stretch"}
    return {"size": crop, "fit": "stretch", "stretch_to": to}


def _scale(processor: _Processor, defaults: _Defaults) -> dict[str, object]:
    """Mean and deviation of pixel values in [0, 1], with the processor's own factor worked in."""
    mean, std = processor.image_mean or defaults.mean, processor.image_std or defaults.std
    if not (defaults.normalize if processor.do_normalize is None else processor.do_normalize):
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
    """A detector's canvas for padded pictures: the largest that is asked for, or one of 4:3 with that shorter side."""
    if size.max_height is not None and size.max_width is not None:
        return size.max_height, size.max_width
    shortest = size.shortest_edge or DETECTION_CANVAS[0]
    longest = shortest * DETECTION_CANVAS[1] // DETECTION_CANVAS[0]
    return shortest, min(longest, size.longest_edge or longest)
