"""Checkpoints that `save_pretrained` of `transformers` wrote: config.json, weights, preprocessor_config.json.

The tensors' names are those of the published files, which `save_pretrained` still writes, and those that the modules
of transformers 5 have. A class that is not among `FAMILIES` loads by transformers itself, see `transformers_models`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from ferryman.errors import CheckpointError
from ferryman.specs import (
    ModelSpec,
    PreprocessSpec,
    Task,
    classification_spec,
    detection_spec,
    embedding_spec,
    segmentation_spec,
)
from ferryman_models.checkpoints import hf_detr, hf_vit
from ferryman_models.checkpoints.base import Checkpoint, build_model
from ferryman_models.checkpoints.coco import NO_STUFF, PANOPTIC_CLASSES, PANOPTIC_STUFF
from ferryman_models.checkpoints.fused import split_gate
from ferryman_models.checkpoints.hf_config import HFConfig
from ferryman_models.checkpoints.lora import Adapter
from ferryman_models.checkpoints.lora_merge import labels_with_adapter, merge_adapter
from ferryman_models.checkpoints.processors import FILE_NAME as PROCESSOR_NAME
from ferryman_models.checkpoints.processors import load_processor
from ferryman_models.checkpoints.renames import Renames, drop_tensors, rename_tensors
from ferryman_models.checkpoints.tensors import find_weights, read_json, read_state
from ferryman_models.checkpoints.transformers_models import load_transformers
from ferryman_models.detr import DETR, DETRConfig
from ferryman_models.detr_masks import DETRForMasks, mask_grid
from ferryman_models.vit import ViT, ViTConfig

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class _Family:
    """How a class of transformers becomes ours.

    facts: what is read of its configuration; config: makes ours of them and the number of classes
    head: the tensor whose rows are the classes, and how many of those are "no object"; none for an encoder
    dropped: patterns of tensors that answer nothing here, each with the reason
    """

    task: Task
    facts: type[HFConfig]
    config: Callable[[Any, int], ViTConfig | DETRConfig]
    renames: Renames = hf_vit.RENAMES
    head: tuple[str, int] | None = None
    dropped: Sequence[tuple[str, str]] = field(default=(hf_vit.MASK_TOKEN, hf_vit.POOLER))


_classifier = partial(_Family, "classification", head=("head.weight", 0))
_encoder = partial(_Family, "embedding")
FAMILIES: dict[str, _Family] = {
    "ViTForImageClassification": _classifier(hf_vit.ViTFacts, hf_vit.vit_config_from_hf),
    "ViTModel": _encoder(hf_vit.ViTFacts, hf_vit.vit_config_from_hf),
    "DeiTForImageClassification": _classifier(hf_vit.ViTFacts, hf_vit.deit_config_from_hf),
    "DeiTModel": _encoder(hf_vit.ViTFacts, hf_vit.deit_config_from_hf),
    "Dinov2ForImageClassification": _classifier(hf_vit.DINOv2Facts, hf_vit.dinov2_config_from_hf),
    "Dinov2Model": _encoder(hf_vit.DINOv2Facts, hf_vit.dinov2_config_from_hf),
    "Dinov2WithRegistersForImageClassification": _classifier(hf_vit.RegistersFacts, hf_vit.dinov2_config_from_hf),
    "Dinov2WithRegistersModel": _encoder(hf_vit.RegistersFacts, hf_vit.dinov2_config_from_hf),
    "DetrForObjectDetection": _Family(
        "detection",
        hf_detr.DETRFacts,
        hf_detr.detr_config_from_hf,
        hf_detr.RENAMES,
        head=("class_head.weight", 1),
        dropped=(hf_detr.COUNTER,),
    ),
    "DetrForSegmentation": _Family(
        "segmentation",
        hf_detr.DETRFacts,
        hf_detr.detr_config_from_hf,
        hf_detr.add_mask_head(hf_detr.RENAMES),
        head=("detr.class_head.weight", 1),
        dropped=(hf_detr.COUNTER,),
    ),
}


def load_huggingface(folder: Path, source: str, adapter: Adapter | None = None) -> Checkpoint:
    """The checkpoint in `folder`, fp32, in `eval()` mode, with the adapter in its weights.

    Raises CheckpointError that says what is wrong with it.
    """
    path = folder / CONFIG_NAME
    document = read_json(path)
    name = _architecture(document, path)
    family = FAMILIES.get(name)
    if family is None:
        if adapter is not None:
            raise CheckpointError(f"{path}: an adapter can't be merged into a {name}, only into {', '.join(FAMILIES)}")
        return load_transformers(folder, source, name)
    if adapter is not None:
        name, family = _give_head(name, family, adapter)
    try:
        facts = family.facts.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from error
    own_processor = adapter is not None and (adapter.folder / PROCESSOR_NAME).exists()
    preprocess = load_processor(adapter.folder if adapter is not None and own_processor else folder)
    file = read_state(find_weights(folder))
    state, notes = _our_tensors(file.tensors, family, str(folder))
    if adapter is not None:
        head = family.head[0].removesuffix("weight") if family.head else "no head"
        state = merge_adapter(state, adapter, lambda part: _our_tensors(part, family, str(adapter.folder))[0], head)
        notes += adapter.notes()
    labels = _labels(facts, state, family, path, adapter)
    try:
        config = family.config(facts, len(labels))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model = build_model(lambda: _module(config, family.task), state, str(folder))
    spec = _spec(config, preprocess, labels, family.task, path)
    if family.task == "segmentation" and not spec.stuff:
        notes = (*notes, NO_STUFF)
    return Checkpoint(
        source=source,
        sha256=file.sha256 if adapter is None else adapter.sha256_with(file.sha256),
        architecture=name,
        module=model,
        spec=spec,
        dtypes=file.dtypes,
        format="Hugging Face",
        notes=notes,
    )


def _architecture(document: dict[str, object], path: Path) -> str:
    names = document.get("architectures")
    if not isinstance(names, list) or not names:
        raise CheckpointError(f"{path}: it names no architecture; Ferryman's own are {', '.join(FAMILIES)}")
    return str(names[0])


def _our_tensors(
    tensors: Mapping[str, Tensor], family: _Family, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under our names, and notes on those left out. Raises CheckpointError; where: opens its message."""
    kept, notes = drop_tensors(tensors, family.dropped)
    return rename_tensors(split_gate(kept, "weights_in", "gate_proj", "up_proj"), family.renames, where), notes


def _give_head(name: str, family: _Family, adapter: Adapter) -> tuple[str, _Family]:
    """The class with a head, when an adapter brings one to an encoder that was published without."""
    headed = name.removesuffix("Model") + "ForImageClassification"
    if family.head is None and headed in FAMILIES and "classifier.weight" in adapter.saved:
        return headed, FAMILIES[headed]
    return name, family


def _labels(
    facts: HFConfig, state: dict[str, Tensor], family: _Family, path: Path, adapter: Adapter | None
) -> tuple[str, ...]:
    """One label a class; `LABEL_0` and so on where the configuration has none, as transformers names them."""
    if family.head is None:
        return ()
    tensor, no_object = family.head
    if tensor not in state:
        raise CheckpointError(f"{path.parent}: the head is missing ({tensor}); is this an encoder without one?")
    classes = len(state[tensor]) - no_object
    names = facts.id2label
    if adapter is not None and adapter.facts.modules_to_save:
        return labels_with_adapter(adapter, tuple(name for _, name in sorted((names or {}).items())), classes)
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(classes))
    if sorted(names) != list(range(classes)):
        raise CheckpointError(f"{path}: id2label names {len(names)} classes, the head has {classes}")
    return tuple(names[index] for index in range(classes))


def _module(config: ViTConfig | DETRConfig, task: Task) -> nn.Module:
    if isinstance(config, ViTConfig):
        return ViT(config)
    return DETRForMasks(config) if task == "segmentation" else DETR(config)


def _spec(
    config: ViTConfig | DETRConfig, preprocess: PreprocessSpec, labels: tuple[str, ...], task: Task, path: Path
) -> ModelSpec:
    try:
        if isinstance(config, DETRConfig) and task == "segmentation":
            stuff = PANOPTIC_STUFF if config.classes == PANOPTIC_CLASSES else ()
            return segmentation_spec(preprocess, labels, config.queries, mask_grid(preprocess.size), stuff)
        if isinstance(config, DETRConfig):
            return detection_spec(preprocess, labels, config.queries)
        grid = config.grid(preprocess.size)
        return classification_spec(preprocess, labels) if labels else embedding_spec(preprocess, config.dim, grid)
    except ValueError as error:
        raise CheckpointError(f"{path.parent}: the preprocessing does not suit the model: {error}") from error
