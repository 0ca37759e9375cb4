"""The embedded checkpoints: small, trained by the scripts beside them, each with a model card."""

from pathlib import Path

from ferryman.specs import DETECTING, SEGMENTING, Task

_HERE = Path(__file__).parent

EMBEDDED: dict[str, Path] = {name: _HERE / name / "model.safetensors" for name in ("vit-digits", "detr-digits")}


def pictures_folder(task: Task) -> Path:
    """The demo's pictures that suit a task: drawn from held-out digits, a few small PNG files."""
    return _HERE / "pictures" / ("detection" if task in (*DETECTING, *SEGMENTING) else "classification")
