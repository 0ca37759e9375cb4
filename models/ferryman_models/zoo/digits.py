"""Handwritten digits as material: the splits, one rendered digit, and what stands behind it.

Source of the digits: scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
(Alpaydin and Kaynak 1998): 1,797 pictures of 8 x 8 pixels with values from 0 to 16.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "validation", "test"]

# The last 300 are by other writers than most of the rest and are never seen in training.
_SPLITS: dict[Split, slice] = {
    "train": slice(0, 1497),
    "validation": slice(1497, 1597),
    "test": slice(1597, 1797),
}
LABELS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Digits:
    """images: (count, 8, 8) uint8 in [0, 255], bright on dark; labels: (count,) int64 in [0, 9]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_digits(split: Split) -> Digits:
    """The digits of one split; needs scikit-learn (extra `train`)."""
    from sklearn.datasets import load_digits as sklearn_digits

    data: Any = sklearn_digits()
    part = _SPLITS[split]
    images = np.round(data.images[part] * (255 / 16)).astype(np.uint8)
    return Digits(images, data.target[part].astype(np.int64))


def load_photographs(split: Split) -> list[NDArray[np.uint8]]:
    """Photographs that ship with scikit-learn: the left two thirds for training, the rest for the other splits."""
    from sklearn.datasets import load_sample_images

    photographs: list[NDArray[np.uint8]] = []
    for photograph in cast("list[NDArray[np.uint8]]", load_sample_images().images):
        cut = photograph.shape[1] * 2 // 3
        photographs.append(photograph[:, :cut] if split == "train" else photograph[:, cut:])
    return photographs


def render_digit(
    digit: NDArray[np.uint8],
    height: float,
    *,
    angle_degrees: float = 0.0,
    stretch: float = 1.0,
    shear: float = 0.0,
    weight: float = 0.5,
) -> NDArray[np.float32]:
    """One digit as a coverage map, cut to its strokes.

    digit: (8, 8) uint8; height: of the unrotated strokes in pixels; stretch: width over height relative to
    the original; weight: the grey level in (0.2, 0.8) that becomes half covered, smaller is bolder
    Returns (rows, columns) float32 in [0, 1]; at least one pixel of every edge row and column is above 0.5.
    """
    inked_rows = np.flatnonzero((digit > 100).any(axis=1))
    scale = height / max(1, inked_rows[-1] - inked_rows[0] + 1)  # pixels of the picture per pixel of the digit
    cosine, sine = np.cos(np.deg2rad(angle_degrees)), np.sin(np.deg2rad(angle_degrees))
    # source = inverse @ (target - target_centre) + source_centre
    forward = scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[stretch, shear], [0, 1]])
    inverse = np.linalg.inv(forward)
    side = int(np.ceil(scale * 8 * max(1.0, stretch) * (abs(cosine) + abs(sine) + abs(shear)))) + 2
    offset = np.array([6.0, 6.0]) - inverse @ np.array([side / 2, side / 2])
    # Two empty pixels around the digit: the resampling must not repeat its edge.
    padded = Image.fromarray(np.pad(digit, 2))
    data = (inverse[0, 0], inverse[0, 1], offset[0], inverse[1, 0], inverse[1, 1], offset[1])
    enlarged = padded.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    ink = np.asarray(enlarged, dtype=np.float32) / 255
    # Grey stays grey: at 8 x 8 pixels it alone tells the hole of a 6 or an 8 from its strokes.
    coverage = np.clip((ink - weight) / 0.6 + 0.5, 0, 1).astype(np.float32)
    rows = np.flatnonzero((coverage > 0.5).any(axis=1))
    columns = np.flatnonzero((coverage > 0.5).any(axis=0))
    if not len(rows):  # a thin digit at a heavy weight: take it as bold as it comes
        return render_digit(digit, height, angle_degrees=angle_degrees, stretch=stretch, weight=weight / 2)
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def make_background(
    random: np.random.Generator, height: int, width: int, photographs: list[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """A plain, graded, noisy or photographic background: (height, width, 3) float32 in [0, 255]."""
    kind = random.integers(4)
    first, second = random.uniform(0, 255, (2, 3)).astype(np.float32)
    if kind == 0:
        return np.broadcast_to(first, (height, width, 3)).copy()
    if kind == 1:
        angle = random.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
        ramp = np.cos(angle) * x + np.sin(angle) * y
        ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
        return first + (second - first) * ramp[..., None]
    if kind == 2:
        # Noise on a random coarse grid, so that it is fine in one picture and cloudy in the next.
        cell = int(random.integers(1, 17))
        coarse = random.normal(0, random.uniform(5, 40), (height // cell + 2, width // cell + 2, 3))
        cloudy = Image.fromarray(np.clip(coarse + first, 0, 255).astype(np.uint8))
        return np.asarray(cloudy.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    photograph = photographs[random.integers(len(photographs))]
    crop_height = int(random.integers(60, photograph.shape[0] + 1))
    crop_width = int(np.clip(crop_height * width / height, 32, photograph.shape[1]))
    top = int(random.integers(photograph.shape[0] - crop_height + 1))
    left = int(random.integers(photograph.shape[1] - crop_width + 1))
    crop = Image.fromarray(np.ascontiguousarray(photograph[top : top + crop_height, left : left + crop_width]))
    return np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)


def ink_colour(random: np.random.Generator, behind: NDArray[np.float32]) -> NDArray[np.float32]:
    """A random stroke colour at least 70 levels of luma away from the mean of `behind`: (3,) in [0, 255]."""
    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    there = float(behind.reshape(-1, 3).mean(axis=0) @ luma)
    while True:
        colour = random.uniform(0, 255, 3).astype(np.float32)
        if abs(float(colour @ luma) - there) >= 70:
            return colour
