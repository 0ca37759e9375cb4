"""Real pictures for the golden samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import nn

from ferryman.errors import FileAccessError, ImageError, UsageError
from ferryman.golden import Tensors
from ferryman.preprocess import SUFFIXES, decode_image, fit_image, stack_inputs
from ferryman.specs import ModelSpec

Item = TypeVar("Item")
MAX_SAMPLES = 16
MIN_SAMPLES = 6  # one more than the largest batch that parity runs, so that every batch has other neighbours
# Of MAX_SAMPLES, on a canvas that is padded: one that fills it, a wide and a tall one. See `add_crops`.
PADDING_CROPS = 3


def choose_count(model: nn.Module, canvas: tuple[int, int]) -> int:
    """How many pictures to compare on: fewer where a model is large, lest the proof takes longer than anyone waits.

    A ViT multiplies every parameter with every patch, a convolution with more or less every position: in all about
    parameters * pixels / 256 multiplications a picture (ViT-B/16 at 224: 17e9; DETR-R50 at 800x1066: 137e9). The
    pictures together have 2e11, and each of them is answered nine times by each variant.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    each = parameters * canvas[0] * canvas[1] / 256
    return int(min(MAX_SAMPLES, max(MIN_SAMPLES, 2e11 / max(each, 1.0))))


def find_pictures(folder: Path, most: int) -> list[Path]:
    """Pictures in a folder and below it, evenly chosen when there are more than `most`. Raises UsageError for none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give one with pictures ({', '.join(SUFFIXES)})")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return choose_evenly(paths, most)


def choose_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """All items when there are at most `most`, else so many of them at equal distances."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).astype(int))]


def read_picture(path: Path) -> Image.Image:
    """Decoded. Raises FileAccessError, ImageError."""
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise FileAccessError(f"can't read {path}: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_pictures(folder: Path, most: int = MAX_SAMPLES) -> dict[str, Image.Image]:
    """The decoded pictures that `find_pictures` finds, by their path in the folder.

    Raises UsageError when there is none, FileAccessError and ImageError for one that can't be read.
    """
    return {path.relative_to(folder).as_posix(): read_picture(path) for path in find_pictures(folder, most)}


# Name, share of the width and of the height that is kept, from the left and the top.
_CROPS = (
    ("wide", 1.0, 0.5),
    ("tall", 0.5, 1.0),
    ("corner", 0.6, 0.7),
    ("strip", 0.9, 0.3),
    ("column", 0.4, 0.9),
)


def add_crops(
    pictures: dict[str, Image.Image], least: int, canvas: tuple[int, int] | None = None
) -> dict[str, Image.Image]:
    """The pictures, and crops of them until there are `least`.

    canvas: (height, width) of a canvas that is padded; then a crop of the first picture that fills it, a wide one
    and a tall one are added in any case, so that some samples have padding on either side and one has none
    """
    result = dict(pictures)
    padded = canvas is not None
    if canvas is not None:
        name, picture = next(iter(pictures.items()))
        scale = min(picture.height / canvas[0], picture.width / canvas[1])
        size = max(1, round(canvas[1] * scale)), max(1, round(canvas[0] * scale))
        result[f"{name} (canvas)"] = picture.crop((0, 0, *size))
    crops = [(*crop, name, picture) for crop in _CROPS for name, picture in pictures.items()]
    if padded:  # a wide and a tall one first
        crops = [*crops[: 2 * len(pictures) : len(pictures)], *crops]
    for number, (kind, x_part, y_part, name, picture) in enumerate(crops):
        if len(result) < least or (padded and number < 2):
            width, height = max(1, int(picture.width * x_part)), max(1, int(picture.height * y_part))
            result[f"{name} ({kind})"] = picture.crop((0, 0, width, height))
    return result


def make_inputs(pictures: dict[str, Image.Image], spec: ModelSpec) -> tuple[tuple[str, ...], Tensors]:
    """Names and the graph's inputs, a sample a picture."""
    fitted = [fit_image(picture, spec.preprocess) for picture in pictures.values()]
    inputs = stack_inputs([canvas for canvas, _ in fitted], [geometry for _, geometry in fitted], spec.input_names)
    return tuple(pictures), inputs
