"""The encoded pictures that requests are made with."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ferryman.accuracy.image_folder import SUFFIXES
from ferryman.accuracy.truth import read_picture
from ferryman.bundle import Bundle
from ferryman.errors import FileAccessError, ImageError, UsageError
from ferryman.preprocess import decode_image

T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """images: encoded; what: they are, for people; broken: name of each file of a folder that can't be read, and why

    read_ms: what each file took to be read, empty for pictures that came from none
    """

    images: tuple[bytes, ...]
    what: str
    broken: tuple[str, ...] = ()
    read_ms: tuple[float, ...] = ()


def choose_next(images: Sequence[T], number: int, count: int) -> list[T]:
    """Those of a request, by its number: the next ones in turn."""
    return [images[(number * count + index) % len(images)] for index in range(count)]


def read_pictures(paths: Sequence[Path]) -> Pictures:
    """Files, and all pictures in folders. One in a folder that can't be decoded is left out, and told.

    Raises FileAccessError and ImageError for a file that was named itself, UsageError for a folder without pictures.
    """
    images: list[bytes] = []
    broken: list[str] = []
    read_ms: list[float] = []

    def read(path: Path) -> None:
        data, took_ms = _read(path)
        images.append(data)
        read_ms.append(took_ms)

    for path in paths:
        if not path.is_dir():
            read(path)
            continue
        for file in sorted(one for one in path.rglob("[!.]*") if one.suffix.lower() in SUFFIXES):
            try:
                read(file)
            except (FileAccessError, ImageError) as error:
                broken.append(str(error))
    if not images:
        places = ", ".join(map(str, paths))
        why = f"; {broken[0]}" if broken else f" ({', '.join(SUFFIXES)})"
        raise UsageError(f"{places} holds no picture that can be decoded{why}")
    count = f"{len(images)} picture{'s' if len(images) > 1 else ''}"
    what = f"{count}, {sum(map(len, images)) / len(images) / 1e3:.1f} kB each"
    return Pictures(tuple(images), what, tuple(broken), tuple(read_ms))


def _read(path: Path) -> tuple[bytes, float]:
    """And how long that took, in milliseconds. Raises ImageError for what can't be decoded."""
    start = time.perf_counter()
    data = read_picture(path)
    took_ms = (time.perf_counter() - start) * 1e3
    try:
        decode_image(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    return data, took_ms


def encode_golden(bundle: Bundle) -> Pictures:
    """The golden samples' canvases as PNG files, padding cut off."""
    golden = bundle.golden()
    files: list[bytes] = []
    for index in range(len(golden)):
        canvas = golden.inputs["image"][index].astype(np.uint8)
        if "valid_size" in golden.inputs:
            height, width = (int(side) for side in golden.inputs["valid_size"][index])
            canvas = canvas[:height, :width]
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return Pictures(tuple(files), f"the {len(files)} golden samples as PNG of the canvas's size")
