"""What can be exported: resolves SOURCE, as it stands on the command line, to a loaded checkpoint."""

from pathlib import Path

from ferryman.errors import CheckpointError, UsageError
from ferryman.specs import ModelSpec, PreprocessSpec, classification_spec, detection_spec
from ferryman_models.checkpoints.native import Checkpoint, load_native
from ferryman_models.detr import DETR
from ferryman_models.vit import ViT
from ferryman_models.zoo import EMBEDDED


def open_source(source: str) -> Checkpoint:
    """Loads an embedded checkpoint by name or one of Ferryman's own files by path. Raises CheckpointError."""
    if source in EMBEDDED:
        return load_native(EMBEDDED[source], source)
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {source!r}: give {', '.join(EMBEDDED)}, or the path of a Ferryman checkpoint"
        )
    if path.is_dir():
        raise CheckpointError(f"{source} is a folder; give the path of a Ferryman checkpoint (.safetensors)")
    return load_native(path, source)


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
    try:
        if isinstance(checkpoint.module, ViT):
            checkpoint.module.config.grid(size)
        preprocess = PreprocessSpec.model_validate(facts)
    except ValueError as error:
        raise UsageError(f"{checkpoint.source} can't be exported at {size[0]}x{size[1]}: {error}") from error
    if isinstance(checkpoint.module, DETR):
        return detection_spec(preprocess, spec.labels, checkpoint.module.config.queries)
    return classification_spec(preprocess, spec.labels)
