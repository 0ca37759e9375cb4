"""What can be exported: resolves SOURCE, as it stands on the command line, to a loaded checkpoint."""

from dataclasses import replace
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


def open_source(
    source: str,
    arch: str | None = None,
    labels: Path | None = None,
    head: Path | None = None,
    adapter: Path | None = None,
    revision: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Checkpoint:
    """Loads an embedded checkpoint by name, a folder, one of Ferryman's own files, a bare weights file, or downloads
    a model from a hub by `owner/name`.

    arch, labels, head: of a bare weights file; see `weights_file`; labels: a text file, one a line; a `.npz` file is
    Google's and says itself what it is
    adapter: the folder of a LoRA adapter for this folder's or hub's model; see `lora`
    revision: branch, tag or commit of a hub's model; progress: of its download, see `hub`
    Raises CheckpointError, MissingExtraError, and UsageError for an option that does not belong to this source.
    """
    path = Path(source)
    on_hub = arch is None and source not in EMBEDDED and not path.exists() and is_hub_id(source)
    if revision is not None and not on_hub:
        raise UsageError(f"--revision belongs to a model on a hub, given as owner/name, got {source}")
    if adapter is not None and not (on_hub or path.is_dir()):
        raise UsageError(f"--adapter needs a base that is a folder or on a hub, as owner/name, got {source}")
    bare = not path.is_dir() and source not in EMBEDDED
    if bare and path.suffix == ".npz":
        if arch is not None or head is not None:
            raise UsageError(
                f"{source} is a ViT of Google's, which says itself what it is: leave out --arch and --head"
            )
        return load_google_npz(path, source, read_labels(labels))
    if arch is not None and bare:
        return load_weights_file(path, arch, source, read_labels(labels), head)
    if arch is not None or labels is not None or head is not None:
        raise UsageError("--arch, --labels and --head belong to a weights file; this source names its own")
    if source in EMBEDDED:
        return load_native(EMBEDDED[source], source)
    if on_hub:
        snapshot = download(source, revision, progress)
        return open_folder(snapshot.folder, f"{source}@{snapshot.commit}", path.name, adapter)
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {source!r}: give {', '.join(EMBEDDED)}, the path of a Ferryman checkpoint, a "
            "folder in Hugging Face or timm layout, or a model on a hub as owner/name"
        )
    if not path.is_dir():
        if path.suffix in (".pth", ".pt", ".bin"):
            raise UsageError(f"{source} does not say what it holds; add --arch: {', '.join(ARCHITECTURES)}")
        return load_native(path, source)
    return open_folder(path, source, path.absolute().name, adapter)


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
