"""Checkpoints in timm's layout: config.json with `architecture` and `pretrained_cfg`, and the weights."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ferryman.errors import CheckpointError
from ferryman.specs import ModelSpec, PreprocessSpec, classification_spec, embedding_spec
from ferryman_models.checkpoints.base import Checkpoint, build_model
from ferryman_models.checkpoints.lora import Adapter
from ferryman_models.checkpoints.lora_merge import labels_with_adapter, merge_adapter
from ferryman_models.checkpoints.tensors import find_weights, read_json, read_state
from ferryman_models.checkpoints.timm_vit import config_from_tensors, our_tensors
from ferryman_models.vit import ViT, ViTConfig

CONFIG_NAME = "config.json"
_NAME = re.compile(r"(vit|deit|deit3)_([a-z0-9]+)_(?:distilled_)?patch\d+\w*")
# timm's models have heads of 64 channels but for these: vision_transformer.py, `vit_huge_*` and above.
_HEADS = {"huge": 16, "giant": 16, "gigantic": 16}
_DINOV2_GIANT_HEADS = 24

Triple = tuple[float, float, float]
Positive = Annotated[int, Field(ge=1)]


class _Pretrained(BaseModel):
    """What `pretrained_cfg` says of the pictures; timm's own defaults where it says nothing."""

    model_config = ConfigDict(extra="ignore")
    input_size: tuple[Literal[3], Positive, Positive] = (3, 224, 224)
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    label_names: tuple[str, ...] | None = None


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore")
    architecture: str
    global_pool: Literal["token", "avg", ""] = "token"
    pretrained_cfg: _Pretrained = _Pretrained()
    model_args: dict[str, object] = Field(default_factory=dict)
    label_names: tuple[str, ...] | None = None


def is_timm(document: dict[str, object]) -> bool:
    """Whether a config.json is timm's."""
    return "architecture" in document


def load_timm(folder: Path, source: str, adapter: Adapter | None = None) -> Checkpoint:
    """The checkpoint in `folder`, fp32, in `eval()` mode, with the adapter in its weights.

    Raises CheckpointError that says what is wrong with it.
    """
    path = folder / CONFIG_NAME
    try:
        facts = _Config.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from error
    name = _NAME.fullmatch(facts.architecture)
    if name is None:
        raise CheckpointError(
            f"{path}: the architecture {facts.architecture!r} is not known; known are vit_*, deit_* and deit3_* with "
            "patches, vit_*_dinov2 and their reg4 models among them"
        )
    # What can't be seen in the tensors and would change every answer without an error.
    strange = [key for key in facts.model_args if key not in ("img_size", "num_classes", "num_heads")]
    if strange:
        raise CheckpointError(f"{path}: model_args has {', '.join(strange)}, which can't be followed")
    file = read_state(find_weights(folder))
    tensors = file.tensors if adapter is None else merge_adapter(file.tensors, adapter, _strip_wrapper, "head")
    state, notes = our_tensors(tensors, str(folder))
    config = _config(facts, name[2], state, str(folder), tensors)
    labels = _labels(facts, config, path, adapter)
    model = build_model(lambda: ViT(config), state, str(folder))
    return Checkpoint(
        source=source,
        sha256=file.sha256 if adapter is None else adapter.sha256_with(file.sha256),
        architecture=facts.architecture,
        module=model,
        spec=_spec(_preprocess(facts.pretrained_cfg, path), config, labels, path),
        dtypes=file.dtypes,
        format="timm",
        notes=notes if adapter is None else notes + adapter.notes(),
    )


def _strip_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's own names of tensors that may have been trained inside transformers' TimmWrapperModel."""
    return {name.removeprefix("timm_model."): tensor for name, tensor in tensors.items()}


def _config(facts: _Config, size: str, state: dict[str, Tensor], where: str, original: dict[str, Tensor]) -> ViTConfig:
    dim = len(state["patches.weight"]) if "patches.weight" in state else 64
    heads = facts.model_args.get("num_heads", _HEADS.get(size, dim // 64))
    if "dinov2" in facts.architecture and size == "giant":
        heads = _DINOV2_GIANT_HEADS
    if not isinstance(heads, int):
        raise CheckpointError(f"{where}: num_heads must be a whole number, got {heads!r}")
    pooling = {"token": "cls", "avg": "mean", "": "cls"}[facts.global_pool]
    if "head_distillation.weight" in state:
        pooling = "cls+distillation"
    return config_from_tensors(state, heads, pooling, "antialias", where, norm_pooled="fc_norm.weight" in original)


def _preprocess(facts: _Pretrained, path: Path) -> PreprocessSpec:
    _, height, width = facts.input_size
    scaled = math.floor(height / facts.crop_pct), math.floor(width / facts.crop_pct)
    # timm resizes the shorter side when the canvas is square, and to both sides otherwise or when told to squash.
    if facts.crop_mode == "center" and height == width:
        fit: dict[str, object] = {"fit": "crop", "shortest_edge": scaled[0]}
    elif facts.crop_mode == "squash":
        fit = {"fit": "stretch", "stretch_to": scaled}
    else:
        raise CheckpointError(f"{path}: a canvas of {height}x{width} with crop_mode 'center' can't be followed")
    return PreprocessSpec.model_validate(
        fit
        | {
            "size": (height, width),
            "crop_rounding": "even",
            "interpolation": facts.interpolation,
            "mean": facts.mean,
            "std": facts.std,
        }
    )


def _labels(facts: _Config, config: ViTConfig, path: Path, adapter: Adapter | None) -> tuple[str, ...]:
    labels = facts.label_names or facts.pretrained_cfg.label_names
    if adapter is not None and adapter.facts.modules_to_save:
        return labels_with_adapter(adapter, labels or (), config.classes)
    if labels is None:
        return tuple(f"LABEL_{index}" for index in range(config.classes))
    if len(labels) != config.classes:
        raise CheckpointError(f"{path}: label_names names {len(labels)} classes, the head has {config.classes}")
    return labels


def _spec(preprocess: PreprocessSpec, config: ViTConfig, labels: tuple[str, ...], path: Path) -> ModelSpec:
    try:
        grid = config.grid(preprocess.size)
    except ValueError as error:
        raise CheckpointError(f"{path}: the preprocessing does not suit the model: {error}") from error
    return classification_spec(preprocess, labels) if labels else embedding_spec(preprocess, config.dim, grid)
