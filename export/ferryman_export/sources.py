"""What can be exported: resolves SOURCE, as it stands on the command line, to a loaded checkpoint."""

from pathlib import Path

from torch import nn

from ferryman.errors import CheckpointError, FileAccessError, UsageError
from ferryman.specs import ModelSpec, PreprocessSpec, classification_spec, detection_spec, embedding_spec
from ferryman_export.program import SPEC_FILE, load_program
from ferryman_models.checkpoints.base import Checkpoint
from ferryman_models.checkpoints.huggingface import load_huggingface
from ferryman_models.checkpoints.native import load_native
from ferryman_models.checkpoints.tensors import read_json
from ferryman_models.checkpoints.timm import is_timm, load_timm
from ferryman_models.checkpoints.weights_file import ARCHITECTURES, load_weights_file
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT
from ferryman_models.zoo import EMBEDDED


def open_source(
    source: str, arch: str | None = None, labels: Path | None = None, spec: Path | None = None
) -> Checkpoint:
    """Loads an embedded checkpoint by name, a folder, one of Ferryman's own files, an exported program, bare weights.

    arch, labels: of a bare weights file; see `weights_file`; labels: a text file, one a line
    spec: of an exported program; see `program.ProgramSpec`
    Raises CheckpointError, and UsageError for an option that does not belong to this source.
    """
    path = Path(source)
    if path.suffix == ".pt2" and arch is None and labels is None:
        if spec is None:
            raise UsageError(f"{source} does not say what its model is for; add --spec FILE with {SPEC_FILE}")
        return load_program(path, source, spec)
    if spec is not None:
        raise UsageError("--spec belongs to an exported program (.pt2); this source says itself what it is for")
    if arch is not None and not path.is_dir() and source not in EMBEDDED:
        return load_weights_file(path, arch, source, read_labels(labels))
    if arch is not None or labels is not None:
        raise UsageError("--arch and --labels belong to a weights file; this source names its own")
    if source in EMBEDDED:
        return load_native(EMBEDDED[source], source)
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {source!r}: give {', '.join(EMBEDDED)}, the path of a Ferryman checkpoint, or a "
            "folder in Hugging Face or timm layout"
        )
    if not path.is_dir():
        if path.suffix == ".onnx":
            raise UsageError(f"{source} does not say what it takes and answers; add --onnx-spec FILE")
        if path.suffix in (".pth", ".pt", ".bin"):
            raise UsageError(f"{source} does not say what it holds; add --arch: {', '.join(ARCHITECTURES)}")
        return load_native(path, source)
    return load_timm(path, source) if is_timm(read_json(path / "config.json")) else load_huggingface(path, source)


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
    try:
        if isinstance(checkpoint.module, ViT):
            checkpoint.module.config.grid(size)
        preprocess = PreprocessSpec.model_validate(facts)
    except ValueError as error:
        raise UsageError(f"{checkpoint.source} can't be exported at {size[0]}x{size[1]}: {error}") from error
    if isinstance(checkpoint.module, DETR):
        return detection_spec(preprocess, spec.labels, checkpoint.module.config.queries)
    if isinstance(checkpoint.module, ViT) and spec.task == "embedding":
        config = checkpoint.module.config
        return embedding_spec(preprocess, config.dim, config.grid(size))
    return classification_spec(preprocess, spec.labels)
