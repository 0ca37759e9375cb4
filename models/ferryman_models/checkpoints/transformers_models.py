"""Models of `transformers` that Ferryman has no module of its own for: theirs, inside our calls.

Classes come from transformers' own tables, never from a checkpoint (`auto_map` is not followed); weights are read by
`tensors.read_state` and must be those of the configuration, all of them and no other.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ferryman.errors import CheckpointError, MissingExtraError, UsageError
from ferryman.specs import ModelSpec, PreprocessSpec, classification_spec, detection_spec
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.checkpoints.processors import FILE_NAME, load_processor
from ferryman_models.checkpoints.tensors import StateFile, find_weights, read_json, read_state


@dataclass(frozen=True)
class _Detector:
    """What a detector's outputs mean, after its processor's `post_process_object_detection`.

    ranked: sigmoid scores, of which the best pairs of a query and a class are answers, at most `best` of them or as
    many as there are queries; otherwise a softmax with "no object" last
    takes_mask: knows padding by `pixel_mask`; without, it sees padding as black
    strict: its forward takes `len` of a tensor, which freezes the batch unless torch.export reads the bytecode
    """

    ranked: bool
    best: int | None = None
    takes_mask: bool = False
    strict: bool = False


_STRETCHED = _Detector(ranked=True, strict=True)
_PADDED = _Detector(ranked=True, best=100, takes_mask=True)
DETECTORS: dict[str, _Detector] = {
    "YolosForObjectDetection": _Detector(ranked=False),
    "TableTransformerForObjectDetection": _Detector(ranked=False, takes_mask=True),
    "ConditionalDetrForObjectDetection": _PADDED,
    "DabDetrForObjectDetection": _PADDED,
    "DeformableDetrForObjectDetection": _PADDED,
    "LwDetrForObjectDetection": _PADDED,
    "RTDetrForObjectDetection": _STRETCHED,
    "RTDetrV2ForObjectDetection": _STRETCHED,
    "DFineForObjectDetection": _STRETCHED,
    "Deimv2ForObjectDetection": _STRETCHED,
    "RfDetrForObjectDetection": _Detector(ranked=True, takes_mask=True),
}
# Classifiers of transformers that are no function from a picture of one size to logits.
_NO_CLASSIFIERS = {
    "ImageGPTForImageClassification": "it takes clusters of colours, not pixels",
    "ShieldGemma2ForImageClassification": "it takes a text beside the picture",
    "Siglip2ForImageClassification": "it takes patches, not pictures",
    "TimmWrapperForImageClassification": "it is built by timm; load the checkpoint in timm's own layout",
    "PPLCNetForImageClassification": "it answers without logits",
}
_PERCEIVER = "Perceiver"


class Detected(NamedTuple):
    """Answers as of a DETR of one layer, to be called as ours is.

    logits: (1, batch, queries, classes), with one more for "no object" where scores are a softmax
    boxes_cxcywh: (1, batch, queries, 4) in [0, 1] of the valid area
    """

    logits: Tensor
    boxes_cxcywh: Tensor


class TransformersClassifier(nn.Module):
    """model: a class of transformers; bgr: it learned from pictures whose channels are blue, green, red"""

    def __init__(self, model: nn.Module, *, bgr: bool = False) -> None:
        super().__init__()
        self.model, self.bgr = model, bgr

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 3, height, width) float32, normalised, RGB. Returns logits (batch, classes)."""
        return self.model(pixel_values=image.flip(1) if self.bgr else image).logits


class TransformersDetector(nn.Module):
    """model: a class of transformers; facts: what its outputs mean"""

    def __init__(self, model: nn.Module, facts: _Detector) -> None:
        super().__init__()
        self.model, self.facts, self.strict = model, facts, facts.strict

    def forward(self, image: Tensor, valid: Tensor) -> Detected:
        """image: (batch, 3, height, width) float32, normalised, padding zero; valid: (batch, height, width) bool"""
        mask = {"pixel_mask": valid} if self.facts.takes_mask else {}
        output = self.model(pixel_values=image, **mask)
        return Detected(output.logits[None], output.pred_boxes[None])

    def count_answers(self, queries: int, classes: int) -> int:
        """How many answers a picture gets: one a query, or the best pairs of a query and a class."""
        return min(self.facts.best or queries, queries * classes) if self.facts.ranked else queries


def load_transformers(folder: Path, source: str, name: str) -> Checkpoint:
    """The checkpoint in `folder`, of the class `name`, fp32, in `eval()` mode.

    Raises CheckpointError that says what is wrong with it, MissingExtraError where transformers is not installed.
    """
    document = read_json(folder / "config.json")
    model_class = _find_class(name, folder)
    config = _read_config(model_class, document, name, folder)
    preprocess = load_processor(folder)
    file = read_state(find_weights(folder))
    model = _load_model(model_class, config, file, folder)
    module: TransformersClassifier | TransformersDetector
    if name in DETECTORS:
        module = TransformersDetector(model, DETECTORS[name])
    else:
        module = TransformersClassifier(model, bgr=_is_bgr(folder))
    try:
        spec = spec_at(module.eval(), preprocess, config.id2label)
    except UsageError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(source, file.sha256, name, module, spec, "Hugging Face, by transformers", file.dtypes)


def spec_at(
    module: TransformersClassifier | TransformersDetector, preprocess: PreprocessSpec, names: dict[int, str] | None
) -> ModelSpec:
    """The spec of what the module answers to a canvas, found by asking it once.

    names: of the classes by their number, `LABEL_0` and so on where there are none
    Raises UsageError when the module can't take that canvas.
    """
    height, width = preprocess.size
    image = torch.zeros(1, 3, height, width)
    try:
        with torch.inference_mode():
            if isinstance(module, TransformersClassifier):
                return classification_spec(preprocess, _labels(names, module(image).shape[-1]))
            logits = module(image, torch.ones(1, height, width, dtype=torch.bool)).logits
    # transformers and PyTorch raise whatever the first layer that doesn't fit raises.
    except Exception as error:
        raise UsageError(f"the model can't answer a canvas of {height}x{width}: {_first_line(error)}") from error
    queries, classes = logits.shape[-2], logits.shape[-1] - (not module.facts.ranked)
    labels = _labels(names, classes)
    return detection_spec(preprocess, labels, module.count_answers(queries, classes), ranked=module.facts.ranked)


def _labels(names: dict[int, str] | None, classes: int) -> tuple[str, ...]:
    if names is None:  # as PVT's configuration leaves them
        return tuple(f"LABEL_{index}" for index in range(classes))
    if sorted(names) != list(range(classes)):
        raise UsageError(f"id2label names {len(names)} classes, the head has {classes}")
    return tuple(str(names[index]) for index in range(classes))


def _find_class(name: str, folder: Path) -> Any:
    """The class of that name among transformers' classifiers and the detectors that we know."""
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{name}, which is none of Ferryman's own models,", "transformers") from error
    reason = _NO_CLASSIFIERS.get(name, "it takes inputs of its own" if name.startswith(_PERCEIVER) else "")
    if reason:
        raise CheckpointError(f"{folder}: {name} can't be exported: {reason}")
    classifiers: set[str] = set()
    for names in CLASSIFIERS.values():
        classifiers |= {names} if isinstance(names, str) else set(names)
    if name not in classifiers and name not in DETECTORS:
        raise CheckpointError(
            f"{folder}: the architecture {name!r} is not known; beside Ferryman's own, the classes "
            f"*ForImageClassification of transformers {transformers.__version__} and {', '.join(DETECTORS)} are"
        )
    found = getattr(transformers, name, None)
    if found is None:
        raise CheckpointError(f"{folder}: transformers {transformers.__version__} has no {name}; upgrade it")
    return found


def _read_config(model_class: Any, document: dict[str, object], name: str, folder: Path) -> Any:
    path = folder / "config.json"
    config_class = model_class.config_class
    if document.get("model_type") != config_class.model_type:
        raise CheckpointError(
            f"{path}: model_type {document.get('model_type')!r} is not that of {name}, {config_class.model_type!r}"
        )
    if "quantization_config" in document:
        raise CheckpointError(f"{path}: the weights are quantised; give the checkpoint that they were made from")
    if document.get("use_timm_backbone") is False and document.get("backbone_config") is None:
        # transformers would look its configuration up in the hub.
        raise CheckpointError(
            f"{path}: the backbone {document.get('backbone')!r} is only named; save the model again with transformers "
            "5, which writes its configuration (backbone_config) too"
        )
    try:
        return config_class.from_dict(document)
    # Validation in there has errors of its own kind, and older configurations raise whatever they stumble over.
    except Exception as error:
        raise CheckpointError(f"{path}: transformers can't read it: {_first_line(error)}") from error


def _load_model(model_class: Any, config: Any, file: StateFile, folder: Path) -> nn.Module:
    try:
        with _quiet():
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(file.tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed below, with everything else
                attn_implementation="eager",
                dtype=torch.float32,
            )
    except ImportError as error:
        if "timm" in str(error):
            raise CheckpointError(
                f"{folder}: its backbone is one of timm's, which transformers builds only where timm is installed; "
                "install it with: pip install timm"
            ) from error
        raise CheckpointError(f"{folder}: transformers can't build the model: {_first_line(error)}") from error
    # What transformers raises on a configuration that contradicts itself is not listed anywhere.
    except Exception as error:
        raise CheckpointError(f"{folder}: transformers can't build the model: {_first_line(error)}") from error
    problems = [
        *(f"{key} is missing" for key in sorted(found["missing_keys"])),
        *(f"{key} is unknown" for key in sorted(found["unexpected_keys"])),
        *(
            f"{key} has shape {tuple(given)}, expected {tuple(wanted)}"
            for key, given, wanted in sorted(found["mismatched_keys"])
        ),
        *(str(message) for message in found["error_msgs"]),
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(
            f"{folder}: the weights are not those of its configuration: {'; '.join(problems[:8])}{more}"
        )
    return model.eval().requires_grad_(False)


def _is_bgr(folder: Path) -> bool:
    """Whether the processor turns channels around, as MobileViT's does unless told otherwise."""
    document = read_json(folder / FILE_NAME)
    default = str(document.get("image_processor_type") or document.get("feature_extractor_type")).startswith(
        "MobileViT"
    )
    return bool(document.get("do_flip_channel_order", default))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Generator[None]:
    """No report and no progress of transformers: what it would only warn of is an error here."""
    from transformers.utils import logging as progress

    logger, shown = logging.getLogger("transformers"), progress.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    progress.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            progress.enable_progress_bar()
