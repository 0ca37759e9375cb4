"""Pictures of digits: one on its background (`vit-digits`), or a scene of none to six (`detr-digits`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferryman_models.zoo.digits import Digits, ink_colour, make_background, render_digit


@dataclass(frozen=True)
class Scene:
    """image: (height, width, 3) uint8 RGB; boxes: (count, 4) float32 xyxy in pixels; labels: (count,) int64."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def _finish(random: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Adds the sensor noise of half of the pictures and rounds to uint8."""
    if random.random() < 0.5:
        noise = random.standard_normal(canvas.shape, dtype=np.float32)
        return np.clip(np.round(canvas + noise * np.float32(random.uniform(1, 12))), 0, 255).astype(np.uint8)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def _paint(
    random: np.random.Generator, canvas: NDArray[np.float32], coverage: NDArray[np.float32], y: int, x: int
) -> None:
    region = canvas[y : y + coverage.shape[0], x : x + coverage.shape[1]]
    opacity = coverage[..., None] * np.float32(random.uniform(0.85, 1.0))
    region += opacity * (ink_colour(random, region) - region)


def _random_coverage(random: np.random.Generator, digit: NDArray[np.uint8], height: float) -> NDArray[np.float32]:
    return render_digit(
        digit,
        height,
        angle_degrees=random.uniform(-15, 15),
        stretch=random.uniform(0.8, 1.25),
        shear=random.uniform(-0.15, 0.15),
        weight=random.uniform(0.5, 0.65),
    )


def make_digit_picture(
    random: np.random.Generator,
    digits: Digits,
    index: int,
    photographs: list[NDArray[np.uint8]],
    side: int = 64,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Digit `index` of `digits`, 55 to 90 % of the picture high, about in the middle.

    Returns the picture (side, side, 3) uint8 and where its ink is, (side, side) float32 in [0, 1].
    """
    canvas = make_background(random, side, side, photographs)
    while True:
        coverage = _random_coverage(random, digits.images[index], random.uniform(0.55, 0.9) * side)
        if max(coverage.shape) < side:
            break
    # The middle third of the places where it fits.
    y, x = (round((side - length) * random.uniform(1 / 3, 2 / 3)) for length in coverage.shape)
    _paint(random, canvas, coverage, y, x)
    ink = np.zeros((side, side), dtype=np.float32)
    ink[y : y + coverage.shape[0], x : x + coverage.shape[1]] = coverage
    return _finish(random, canvas), ink


def make_scene(
    random: np.random.Generator,
    digits: Digits,
    photographs: list[NDArray[np.uint8]],
    size: tuple[int, int],
    most: int = 6,
) -> Scene:
    """None to `most` digits, each 12 to 45 % of the shorter side high, apart from each other.

    size: (height, width) in pixels. Boxes touch the strokes. A digit that finds no free place in 20 tries is
    left out.
    """
    height, width = size
    canvas = make_background(random, height, width, photographs)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(int(random.integers(most + 1))):
        index = int(random.integers(len(digits.labels)))
        fraction = random.uniform(0.12, 0.45)
        coverage = _random_coverage(random, digits.images[index], fraction * min(height, width))
        rows, columns = coverage.shape
        if rows >= height or columns >= width:
            continue
        for _ in range(20):
            y = int(random.integers(height - rows + 1))
            x = int(random.integers(width - columns + 1))
            if all(x >= b[2] or x + columns <= b[0] or y >= b[3] or y + rows <= b[1] for b in boxes):
                _paint(random, canvas, coverage, y, x)
                boxes.append((x, y, x + columns, y + rows))
                labels.append(int(digits.labels[index]))
                break
    return Scene(
        _finish(random, canvas),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
    )


def random_size(random: np.random.Generator, shorter: int, longer: int) -> tuple[int, int]:
    """(height, width) with a longer side from `shorter` to `longer` pixels and an aspect ratio from 1:2 to 2:1."""
    longest = int(random.integers(shorter, longer + 1))
    shortest = round(longest * 2 ** -random.uniform(0, 1))
    return (shortest, longest) if random.random() < 0.5 else (longest, shortest)
