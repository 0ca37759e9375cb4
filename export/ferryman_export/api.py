"""`ferryman_export.export`: the crossing from Python, for a module of your own."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps
from torch import nn

from ferryman.bundle import Bundle
from ferryman.errors import FileAccessError, ImageError, UsageError
from ferryman.preprocess import decode_image
from ferryman.specs import ModelSpec
from ferryman_export.own import checkpoint_from_module
from ferryman_export.pipeline import ExportRequest, Progress, export_checkpoint


def export(
    module: nn.Module,
    spec: ModelSpec,
    samples: Path | str | Sequence[Image.Image | Path | str],
    repository: Path | str,
    *,
    name: str | None = None,
    tolerance: float | None = None,
    bisect: Callable[[str], None] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Exports a module of your own to `repository`/NAME/VERSION, proved against PyTorch, or leaves nothing behind.

    module: in `eval()` mode, keeps the contract in `own`; an attention of Ferryman's inside it becomes the plain one
    spec: see `ferryman.specs`: `classification_spec`, `detection_spec` and `embedding_spec` build it
    samples: real pictures to compare on: a folder, or pictures, opened or by their paths
    name: of the model, by default the module's class; tolerance: largest absolute error of every limited output
    bisect, progress: as in `pipeline.ExportRequest` and `pipeline.export`
    Raises UsageError for a module that breaks the contract and for wrong arguments, ParityError when an answer is out
    of tolerance, ExportError when PyTorch can't export the module, ImageError, FileAccessError.
    """
    name = name or type(module).__name__
    checkpoint = checkpoint_from_module(module, spec, name)
    pictures = Path(samples) if isinstance(samples, str | Path) else open_pictures(samples)
    request = ExportRequest(name, Path(repository), name, pictures, tolerance=tolerance, bisect=bisect)
    return export_checkpoint(checkpoint, request, progress)


def open_pictures(pictures: Sequence[Image.Image | Path | str]) -> Mapping[str, Image.Image]:
    """Upright RGB pictures, by their paths' names or their numbers. Raises UsageError, ImageError, FileAccessError."""
    if not pictures:
        raise UsageError("there is no picture to compare on: give at least one real one")
    result: dict[str, Image.Image] = {}
    for index, picture in enumerate(pictures):
        if isinstance(picture, Image.Image):
            result[f"picture {index}"] = _copy_picture(picture, index)
            continue
        path = Path(picture)
        try:
            result[f"{index} {path.name}"] = decode_image(path.read_bytes())
        except OSError as error:
            raise FileAccessError(f"can't read {path}: {error.strerror}") from error
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    return result


def _copy_picture(picture: Image.Image, index: int) -> Image.Image:
    """Through the one decoder, so that transparency and 16 bits end up as they will in service."""
    buffer = io.BytesIO()
    try:
        ImageOps.exif_transpose(picture).save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise ImageError(f"picture {index} is of mode {picture.mode}; convert it to RGB first") from error
    return decode_image(buffer.getvalue())
