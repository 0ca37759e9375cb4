"""`--size auto`: canvas sizes that a folder of pictures wastes little of."""

from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ferryman.errors import ImageError
from ferryman.preprocess import FORMATS, canvas_waste
from ferryman_export.samples import find_pictures

MOST_SIZES = 4
MOST_PICTURES = 2000
WORTH = 0.02  # what one more size must better the mean score by: each costs a graph, a proof and memory
_RATIOS = 8  # aspect ratios that are tried, evenly among the pictures'
_AREAS = (1.0, 0.5, 0.25)  # of the model's own; larger than that it has not learned
_ORIENTATION = 0x0112  # EXIF; 5 to 8 lie on their side


def propose_sizes(folder: Path, canvas: tuple[int, int], multiple: int) -> tuple[tuple[int, int], ...]:
    """One to four (height, width), largest first: as few as no further one would better by more than `WORTH`.

    canvas: the model's own size, whose area is the largest; multiple: of the sides
    Raises UsageError when there is no picture, ImageError for one that is none.
    """
    pictures = picture_sizes(folder)
    candidates = _candidates(pictures, canvas, multiple)
    most = canvas[0] * canvas[1]
    # (candidates, pictures)
    scores = np.array([[_score(picture, candidate, most) for picture in pictures] for candidate in candidates])
    best, score = _best(scores, 1)
    for count in range(2, min(MOST_SIZES, len(candidates)) + 1):
        more, bettered = _best(scores, count)
        if bettered - score < WORTH:
            break
        best, score = more, bettered
    return tuple(sorted((candidates[index] for index in best), key=lambda size: -size[0] * size[1]))


def picture_sizes(folder: Path) -> list[tuple[int, int]]:
    """(height, width) of the upright pictures, at most `MOST_PICTURES` of them, evenly chosen; pixels are not read."""
    sizes: list[tuple[int, int]] = []
    for path in find_pictures(folder, MOST_PICTURES):
        try:
            with Image.open(path, formats=FORMATS) as image:
                lying = image.getexif().get(_ORIENTATION, 1) >= 5
                sizes.append((image.width, image.height) if lying else (image.height, image.width))
        except (UnidentifiedImageError, OSError) as error:
            raise ImageError(f"{path} can't be read as a picture: {error}") from error
    return sizes


def _candidates(pictures: list[tuple[int, int]], canvas: tuple[int, int], multiple: int) -> list[tuple[int, int]]:
    logs = np.log([height / width for height, width in pictures])
    found: dict[tuple[int, int], None] = {}
    for share in _AREAS:
        for log in np.quantile(logs, np.linspace(0, 1, _RATIOS), method="nearest"):
            area, ratio = canvas[0] * canvas[1] * share, float(np.exp(log))
            sides = (np.sqrt(area * ratio), np.sqrt(area / ratio))
            height, width = (max(multiple, round(side / multiple) * multiple) for side in sides)
            found[height, width] = None
    return list(found)


def _score(picture: tuple[int, int], canvas: tuple[int, int], most: int) -> float:
    """Share of the canvas that the picture uses times share of its detail that the canvas keeps; 1 is the best.

    most: pixels of the model's own canvas: more detail than that is not asked for
    """
    pixels = canvas[0] * canvas[1]
    used = 1 - canvas_waste(picture, canvas)
    return used * min(1.0, used * pixels / min(most, picture[0] * picture[1]))


def _best(scores: NDArray[np.float64], count: int) -> tuple[tuple[int, ...], float]:
    """The `count` candidates whose mean score is the best, each picture on its best one; and that mean."""
    choices = list(combinations(range(len(scores)), count))
    means = [float(scores[list(choice)].max(axis=0).mean()) for choice in choices]
    index = int(np.argmax(means))
    return choices[index], means[index]
