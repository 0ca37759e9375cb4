"""What can be exported: resolves SOURCE, as it stands on the command line, to a loaded checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ferryman.errors import CheckpointError, FileAccessError, UsageError
from ferryman.specs import (
    ModelSpec,
    PreprocessSpec,
    classification_spec,
    detection_spec,
    embedding_spec,
    segmentation_spec,
    semantic_spec,
)
from ferryman_export.hub import Progress, download, is_hub_id
from ferryman_export.program import SPEC_FILE, load_program
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.checkpoints.google_npz import load_google_npz
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.lora import CONFIG_NAME as ADAPTER_CONFIG
from ferryman_models.checkpoints.lora import read_adapter
from ferryman_models.checkpoints.native import load_native
from ferryman_models.checkpoints.tensors import read_json
from ferryman_models.checkpoints.timm import is_timm, load_timm
from ferryman_models.checkpoints.transformers_models import TransformersClassifier, TransformersDetector, spec_at
from ferryman_models.checkpoints.weights_file import ARCHITECTURES, load_weights_file
from ferryman_models.detr import DETR
from ferryman_models.detr_masks import DETRForMasks, mask_grid
from ferryman_models.patch_segmenter import PatchSegmenter
from ferryman_models.vit import ViT
from ferryman_models.zoo import EMBEDDED

# Whom each option belongs to, for the error when it is given with another source.
_OWNERS = {
    "arch": "a bare weights file",
    "labels": "a bare weights file",
    "head": "the bare weights of a DINOv2",
    "adapter": "a folder, or a model on a hub as owner/name",
    "revision": "a model on a hub, given as owner/name",
    "spec": "an exported program (.pt2)",
}


@dataclass(frozen=True)
class SourceOptions:
    """What else the command line says of a source; each option belongs to some kinds of source alone.

    arch: what a bare weights file holds; labels: of its classes, a text file, one a line; head: of a DINOv2; see
    `weights_file`
    adapter: the folder of a LoRA adapter to merge into the weights; see `lora`
    revision: branch, tag or commit of a model on a hub
    spec: of an exported program; see `program.ProgramSpec`
    """

    arch: str | None = None
    labels: Path | None = None
    head: Path | None = None
    adapter: Path | None = None
    revision: str | None = None
    spec: Path | None = None

    def allow(self, source: str, *names: str) -> None:
        """Raises UsageError for an option that is given and is not among `names`, those of this source."""
        for name, owner in _OWNERS.items():
            if vars(self)[name] is not None and name not in names:
                raise UsageError(f"--{name} belongs to {owner}, got {source}")


def open_source(
    source: str,
    options: SourceOptions = SourceOptions(),
    progress: Progress = lambda stage, done, total: None,
) -> Checkpoint:
    """Loads an embedded checkpoint by name, a folder, a file, or downloads a model from a hub by `owner/name`.

    progress: of the download, see `hub`
    Raises CheckpointError, MissingExtraError, and UsageError for an option that does not belong to this source.
    """
    path = Path(source)
    if source in EMBEDDED:
        options.allow(source)
        return load_native(EMBEDDED[source], source)
    if path.is_dir():
        options.allow(source, "adapter")
        return open_folder(path, source, path.absolute().name, options.adapter)
    if options.arch is None and not path.exists() and is_hub_id(source):
        options.allow(source, "adapter", "revision")
        snapshot = download(source, options.revision, progress)
        return open_folder(snapshot.folder, f"{source}@{snapshot.commit}", path.name, options.adapter)
    return open_file(path, source, options)


def open_file(path: Path, source: str, options: SourceOptions) -> Checkpoint:
    """One of Ferryman's own files, bare weights, a ViT of Google's, or an exported program. Raises as `open_source`."""
    if path.suffix == ".npz":
        options.allow(source, "labels")
        return load_google_npz(path, source, read_labels(options.labels))
    if options.arch is not None:
        options.allow(source, "arch", "labels", "head")
        return load_weights_file(path, options.arch, source, read_labels(options.labels), options.head)
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {source!r}: give {', '.join(EMBEDDED)}, the path of a Ferryman checkpoint, a "
            "folder in Hugging Face or timm layout, or a model on a hub as owner/name"
        )
    missing = {
        ".pt2": f"does not say what its model is for; add --spec FILE with {SPEC_FILE}",
        ".onnx": "does not say what it takes and answers; write it down and export it with --onnx-spec FILE",
    } | dict.fromkeys((".pth", ".pt", ".bin"), f"does not say what it holds; add --arch: {', '.join(ARCHITECTURES)}")
    if path.suffix == ".pt2" and options.spec is not None:
        options.allow(source, "spec")
        return load_program(path, source, options.spec)
    if path.suffix in missing:
        raise UsageError(f"{source} {missing[path.suffix]}")
    options.allow(source)
    return load_native(path, source)


def open_folder(folder: Path, source: str, name: str, adapter: Path | None = None) -> Checkpoint:
    """Loads a folder in Hugging Face or timm layout with an adapter, if any, merged into it.

    source, name: of the checkpoint, to which an adapter adds its folder
    Raises CheckpointError, and UsageError for an adapter's folder in the place of its base's.
    """
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UsageError(f"{source} is an adapter (of {base}); give its base: ferryman export BASE --adapter {folder}")
    load = load_timm if is_timm(read_json(folder / "config.json")) else load_huggingface
    if adapter is None:
        return replace(load(folder, source), name=name)
    checkpoint = load(folder, f"{source} with the adapter {adapter}", read_adapter(adapter))
    return replace(checkpoint, name=f"{name}-{adapter.absolute().name}")


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """One label a line. Raises FileAccessError when the file can't be read as UTF-8."""
    if path is None:
        return None
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileAccessError(f"can't read {path}: it is not UTF-8") from error


def size_multiple(model: nn.Module) -> int:
    """What a canvas's sides are to be multiples of: a ViT's patch must divide them, a DETR's cell wastes less so."""
    if isinstance(model, ViT):
        return model.config.patch
    return model.config.backbone.stride if isinstance(model, DETR) else 32


def resize_spec(checkpoint: Checkpoint, size: tuple[int, int] | None) -> ModelSpec:
    """The checkpoint's spec for a canvas of (height, width) pixels. Raises UsageError when the model can't take it."""
    spec = checkpoint.spec
    if size is None or size == spec.preprocess.size:
        return spec
    if checkpoint.format in ("module", "program"):
        raise UsageError(
            f"{checkpoint.source} has the one canvas of its spec, {spec.preprocess.size}; leave --size out"
        )
    facts = spec.preprocess.model_dump()
    facts["size"] = size
    if spec.preprocess.shortest_edge is not None:
        # The same margin around the crop as before.
        facts["shortest_edge"] = round(spec.preprocess.shortest_edge * max(size) / max(spec.preprocess.size))
    if spec.preprocess.stretch_to is not None:
        sides = zip(spec.preprocess.stretch_to, size, spec.preprocess.size, strict=True)
        facts["stretch_to"] = tuple(round(side * new / old) for side, new, old in sides)
    module = checkpoint.module
    try:
        vit = module.backbone if isinstance(module, DETR) else module
        if isinstance(vit, ViT | PatchSegmenter):
            vit.config.grid(size)
        preprocess = PreprocessSpec.model_validate(facts)
    except ValueError as error:
        raise UsageError(f"{checkpoint.source} can't be exported at {size[0]}x{size[1]}: {error}") from error
    try:
        return spec_with(checkpoint, preprocess)
    except UsageError as error:
        raise UsageError(f"{checkpoint.source}: {error}") from error


def spec_with(checkpoint: Checkpoint, preprocess: PreprocessSpec) -> ModelSpec:
    """The checkpoint's spec with another preprocessing. Raises UsageError when the model can't take its canvas."""
    module, spec, size = checkpoint.module, checkpoint.spec, preprocess.size
    match module:
        case TransformersClassifier() | TransformersDetector():
            result = spec_at(module, preprocess, dict(enumerate(spec.labels)))
        case DETRForMasks():
            result = segmentation_spec(preprocess, spec.labels, module.config.queries, mask_grid(size), spec.stuff)
        case DETR():
            result = detection_spec(preprocess, spec.labels, module.config.queries)
        case PatchSegmenter():
            result = semantic_spec(preprocess, spec.labels)
        case ViT() if spec.task == "embedding":
            result = embedding_spec(preprocess, module.config.dim, module.config.grid(size))
        case _:
            result = classification_spec(preprocess, spec.labels)
    return result
