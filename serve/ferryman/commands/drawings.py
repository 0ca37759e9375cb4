"""Where the drawings of answers are written: a file for one picture, a folder for several."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from ferryman.errors import UsageError
from ferryman.results import Classification, Detections, Embedding, Segmentation

T = TypeVar("T", Classification, Detections, Embedding, Segmentation)


@dataclass(frozen=True)
class Drawing(Generic[T]):
    """place: a file or folder, None for no drawing; option: that gave it"""

    place: Path | None
    draw: Callable[[Image.Image, T], Image.Image]
    option: str = "--draw"


def choose_files(drawings: Sequence[Drawing[T]], images: list[Path]) -> list[list[Path]]:
    """For each drawing, which has a place, the file of each image. Raises UsageError."""
    files = [_draw_targets(drawing.place, images, drawing.option) for drawing in drawings if drawing.place]
    written = [os.path.realpath(file) for each in files for file in each]
    if len(set(written)) < len(written):
        raise UsageError(f"{' and '.join(drawing.option for drawing in drawings)} would write the same file")
    return files


def _draw_targets(draw: Path, images: list[Path], option: str) -> list[Path]:
    """Where the answer to each image is drawn. Raises UsageError, which names the option."""
    is_folder = os.path.isdir(draw)
    if not is_folder and len(images) > 1 and draw.suffix:
        raise UsageError(f"{option} {draw}: several images need a folder, not a file")
    if not is_folder and len(images) == 1 and draw.suffix.lower() != ".png":
        raise UsageError(f"{option} {draw}: give a file that ends in .png, or a folder")
    targets = [draw / f"{path.stem}.png" if is_folder or len(images) > 1 else draw for path in images]
    if len(set(targets)) < len(targets):
        raise UsageError(f"{option}: two of the images have the same name; draw them one at a time")
    originals = {os.path.realpath(path) for path in images}
    for target in targets:
        if os.path.realpath(target) in originals:
            raise UsageError(f"{option} would overwrite the picture {target}; give another file or folder")
    return targets
