"""A bare weights file of a published architecture, named by `--arch`: facebookresearch's and torchvision's.

A DINOv2 may bring one of its linear heads in a file of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ferryman.errors import CheckpointError, UsageError
from ferryman.specs import (
    ModelSpec,
    PreprocessSpec,
    classification_spec,
    detection_spec,
    embedding_spec,
    segmentation_spec,
    semantic_spec,
)
from ferryman_models.checkpoints import facebook_detr, timm_vit, torchvision_vit
from ferryman_models.checkpoints.base import Checkpoint, build_model
from ferryman_models.checkpoints.coco import COCO_LABELS, NO_STUFF, PANOPTIC_LABELS, PANOPTIC_STUFF
from ferryman_models.checkpoints.dinov2_heads import build_with_head
from ferryman_models.checkpoints.processors import DETECTION_CANVAS
from ferryman_models.checkpoints.tensors import digest_files, read_state
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.detr_masks import DETRForMasks, mask_grid
from ferryman_models.patch_segmenter import PatchSegmenter
from ferryman_models.vit import ViT, ViTConfig

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# facebookresearch/dinov2 dinov2/data/transforms.py: make_classification_eval_transform
DINOV2_PREPROCESS = PreprocessSpec.model_validate(
    _IMAGENET
    | {"size": (224, 224), "fit": "crop", "shortest_edge": 256, "interpolation": "bicubic", "crop_rounding": "even"}
)
# At the size that the positions were learned at. The authors keep the aspect ratio and slide a window of this size
# over the picture; one graph of one size sees it whole.
SEMANTIC_PREPROCESS = PreprocessSpec.model_validate(
    _IMAGENET | {"size": (518, 518), "fit": "stretch", "interpolation": "bilinear"}
)
# facebookresearch/detr datasets/coco.py: RandomResize([800], max_size=1333), Normalize
DETR_PREPROCESS = PreprocessSpec.model_validate(
    _IMAGENET | {"size": DETECTION_CANVAS, "fit": "pad", "interpolation": "bilinear"}
)


@dataclass(frozen=True)
class _Arch:
    """tensors: the file's under our names, with notes; config: of the model with those; preprocess: its authors'.

    build: the model; takes_head: whether a linear head may come in a file of its own
    """

    tensors: Callable[[Mapping[str, Tensor], str], tuple[dict[str, Tensor], tuple[str, ...]]]
    config: Callable[[Mapping[str, Tensor], str], ViTConfig | DETRConfig]
    preprocess: PreprocessSpec
    build: Callable[[Any], nn.Module]
    takes_head: bool = False


def _dinov2(heads: int, *, registers: bool) -> _Arch:
    def config(state: Mapping[str, Tensor], where: str) -> ViTConfig:
        if registers != ("registers" in state):
            raise CheckpointError(f"{where}: the weights have {'no' if registers else ''} registers; see --arch")
        interpolation = "antialias" if registers else "offset"
        return timm_vit.config_from_tensors(state, heads, "cls+mean", interpolation, where)

    return _Arch(timm_vit.our_tensors, config, DINOV2_PREPROCESS, ViT, takes_head=True)


def _detr(backbone: str, *, dilate: bool, masks: bool = False) -> _Arch:
    return _Arch(
        facebook_detr.our_tensors_with_masks if masks else facebook_detr.our_tensors,
        partial(facebook_detr.config_from_tensors, backbone=backbone, dilate=dilate),
        DETR_PREPROCESS,
        DETRForMasks if masks else DETR,
    )


def _torchvision(heads: int, resize: int = 256, size: int = 224) -> _Arch:
    # torchvision/transforms/_presets.py: ImageClassification, with each model's IMAGENET1K_V1 weights
    facts = {"size": (size, size), "fit": "crop", "shortest_edge": resize, "interpolation": "bilinear"}
    preprocess = PreprocessSpec.model_validate(_IMAGENET | facts | {"crop_rounding": "even"})
    config = partial(torchvision_vit.config_from_tensors, heads=heads)
    return _Arch(torchvision_vit.our_tensors, config, preprocess, ViT)


ARCHITECTURES: dict[str, _Arch] = {
    "dinov2_vits14": _dinov2(6, registers=False),
    "dinov2_vitb14": _dinov2(12, registers=False),
    "dinov2_vitl14": _dinov2(16, registers=False),
    "dinov2_vitg14": _dinov2(24, registers=False),
    "dinov2_vits14_reg": _dinov2(6, registers=True),
    "dinov2_vitb14_reg": _dinov2(12, registers=True),
    "dinov2_vitl14_reg": _dinov2(16, registers=True),
    "dinov2_vitg14_reg": _dinov2(24, registers=True),
    "detr_resnet50": _detr("resnet50", dilate=False),
    "detr_resnet50_dc5": _detr("resnet50", dilate=True),
    "detr_resnet101": _detr("resnet101", dilate=False),
    "detr_resnet101_dc5": _detr("resnet101", dilate=True),
    "detr_resnet50_panoptic": _detr("resnet50", dilate=False, masks=True),
    "detr_resnet50_dc5_panoptic": _detr("resnet50", dilate=True, masks=True),
    "detr_resnet101_panoptic": _detr("resnet101", dilate=False, masks=True),
    "vit_b_16": _torchvision(12),
    "vit_b_32": _torchvision(12),
    "vit_l_16": _torchvision(16, resize=242),
    "vit_l_32": _torchvision(16),
    "vit_h_14": _torchvision(16, resize=518, size=518),
}


def load_weights_file(
    path: Path, arch: str, source: str, labels: tuple[str, ...] | None = None, head: Path | None = None
) -> Checkpoint:
    """The weights in `path`, fp32, in `eval()` mode.

    labels: of the classes; by default COCO's where there are as many as it has, else `LABEL_0` and so on
    head: of a DINOv2, in a file of its own; see `dinov2_heads`
    Raises UsageError for an unknown `arch`, and for a head that it takes none of; CheckpointError for weights that are
    not its.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"--arch {arch} is not known; known are {', '.join(ARCHITECTURES)}")
    known = ARCHITECTURES[arch]
    if head is not None and not known.takes_head:
        raise UsageError(f"--head belongs to a DINOv2 backbone; {arch} brings its own head")
    file = read_state([path])
    state, notes = known.tensors(file.tensors, str(path))
    config = known.config(state, str(path))
    if head is not None and isinstance(config, ViTConfig):
        model = build_with_head(config, state, read_state([head]).tensors, str(head))
    else:
        model = build_model(lambda: known.build(config), state, str(path))
    spec = _spec(model, labels, known.preprocess, str(head or path))
    if spec.task == "segmentation" and not spec.stuff:
        notes = (*notes, NO_STUFF)
    sha256 = file.sha256 if head is None else digest_files([path, head])
    return Checkpoint(source, sha256, arch, model, spec, format="weights file", dtypes=file.dtypes, notes=notes)


def _spec(model: nn.Module, labels: tuple[str, ...] | None, preprocess: PreprocessSpec, where: str) -> ModelSpec:
    if isinstance(model, DETRForMasks):
        classes = model.config.classes
        labels = _labels(labels, classes, PANOPTIC_LABELS, where)
        stuff = PANOPTIC_STUFF if classes == len(PANOPTIC_LABELS) else ()
        return segmentation_spec(preprocess, labels, model.config.queries, mask_grid(preprocess.size), stuff)
    if isinstance(model, DETR):
        labels = _labels(labels, model.config.classes, COCO_LABELS, where)
        return detection_spec(preprocess, labels, model.config.queries)
    if isinstance(model, PatchSegmenter):
        return semantic_spec(SEMANTIC_PREPROCESS, _labels(labels, model.classes, (), where))
    assert isinstance(model, ViT)
    labels = _labels(labels, model.config.classes, (), where)
    if labels:
        return classification_spec(preprocess, labels)
    return embedding_spec(preprocess, model.config.dim, model.config.grid(preprocess.size))


def _labels(labels: tuple[str, ...] | None, classes: int, published: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The given labels, or the published ones where there are as many, or `LABEL_0` and so on."""
    if labels is None:
        return published if len(published) == classes else tuple(f"LABEL_{index}" for index in range(classes))
    if len(labels) != classes:
        raise CheckpointError(f"{where}: there are {len(labels)} labels, the head has {classes} classes")
    return labels
