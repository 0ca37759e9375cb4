"""A bare weights file of a published architecture, named by `--arch`: facebookresearch's and torchvision's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ferryman.errors import CheckpointError, UsageError
from ferryman.specs import PreprocessSpec, classification_spec, detection_spec, embedding_spec
from ferryman_models.checkpoints import facebook_detr, timm_vit, torchvision_vit
from ferryman_models.checkpoints.base import Checkpoint, build_model
from ferryman_models.checkpoints.coco import COCO_LABELS
from ferryman_models.checkpoints.processors import DETECTION_CANVAS
from ferryman_models.checkpoints.tensors import read_state
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.vit import ViT, ViTConfig

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# facebookresearch/dinov2 dinov2/data/transforms.py: make_classification_eval_transform
DINOV2_PREPROCESS = PreprocessSpec.model_validate(
    _IMAGENET
    | {"size": (224, 224), "fit": "crop", "shortest_edge": 256, "interpolation": "bicubic", "crop_rounding": "even"}
)
# facebookresearch/detr datasets/coco.py: RandomResize([800], max_size=1333), Normalize
DETR_PREPROCESS = PreprocessSpec.model_validate(
    _IMAGENET | {"size": DETECTION_CANVAS, "fit": "pad", "interpolation": "bilinear"}
)


@dataclass(frozen=True)
class _Arch:
    """tensors: the file's under our names, with notes; config: of the model with those; preprocess: its authors'."""

    tensors: Callable[[Mapping[str, Tensor], str], tuple[dict[str, Tensor], tuple[str, ...]]]
    config: Callable[[Mapping[str, Tensor], str], ViTConfig | DETRConfig]
    preprocess: PreprocessSpec


def _dinov2(heads: int, *, registers: bool) -> _Arch:
    def config(state: Mapping[str, Tensor], where: str) -> ViTConfig:
        if registers != ("registers" in state):
            raise CheckpointError(f"{where}: the weights have {'no' if registers else ''} registers; see --arch")
        interpolation = "antialias" if registers else "offset"
        return timm_vit.config_from_tensors(state, heads, "cls+mean", interpolation, where)

    return _Arch(timm_vit.our_tensors, config, DINOV2_PREPROCESS)


def _detr(backbone: str, *, dilate: bool) -> _Arch:
    return _Arch(
        facebook_detr.our_tensors,
        partial(facebook_detr.config_from_tensors, backbone=backbone, dilate=dilate),
        DETR_PREPROCESS,
    )


def _torchvision(heads: int, resize: int = 256, size: int = 224) -> _Arch:
    # torchvision/transforms/_presets.py: ImageClassification, with each model's IMAGENET1K_V1 weights
    facts = {"size": (size, size), "fit": "crop", "shortest_edge": resize, "interpolation": "bilinear"}
    preprocess = PreprocessSpec.model_validate(_IMAGENET | facts | {"crop_rounding": "even"})
    return _Arch(torchvision_vit.our_tensors, partial(torchvision_vit.config_from_tensors, heads=heads), preprocess)


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
    "vit_b_16": _torchvision(12),
    "vit_b_32": _torchvision(12),
    "vit_l_16": _torchvision(16, resize=242),
    "vit_l_32": _torchvision(16),
    "vit_h_14": _torchvision(16, resize=518, size=518),
}


def load_weights_file(path: Path, arch: str, source: str, labels: tuple[str, ...] | None = None) -> Checkpoint:
    """The weights in `path`, fp32, in `eval()` mode.

    labels: of the classes; by default COCO's where there are 91, else `LABEL_0` and so on
    Raises UsageError for an unknown `arch`, CheckpointError for weights that are not its.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"--arch {arch} is not known; known are {', '.join(ARCHITECTURES)}")
    known = ARCHITECTURES[arch]
    file = read_state([path])
    state, notes = known.tensors(file.tensors, str(path))
    config = known.config(state, str(path))
    model = build_model(lambda: ViT(config) if isinstance(config, ViTConfig) else DETR(config), state, str(path))
    if labels is None:
        coco = isinstance(config, DETRConfig) and config.classes == len(COCO_LABELS)
        labels = COCO_LABELS if coco else tuple(f"LABEL_{index}" for index in range(config.classes))
    if len(labels) != config.classes:
        raise CheckpointError(f"{path}: there are {len(labels)} labels, the head has {config.classes} classes")
    if isinstance(config, DETRConfig):
        spec = detection_spec(known.preprocess, labels, config.queries)
    elif labels:
        spec = classification_spec(known.preprocess, labels)
    else:
        spec = embedding_spec(known.preprocess, config.dim, config.grid(known.preprocess.size))
    return Checkpoint(source, file.sha256, arch, model, spec, format="weights file", notes=notes)
