"""Binary masks as run lengths, and maps of the canvas at the original picture's pixels."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ferryman.preprocess import Geometry


@dataclass(frozen=True)
class Mask:
    """Which pixels of a picture belong to something, as COCO's uncompressed run-length encoding.

    size: (height, width) in pixels
    counts: lengths of the runs, in turn outside and inside, outside first (0 when there is none), down each column
    and then along the columns
    Raises ValueError when the runs are not as long as the picture.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.counts) != self.size[0] * self.size[1] or min(self.counts, default=0) < 0:
            raise ValueError(f"runs of {sum(self.counts)} pixels in all are no mask of {self.size[0]}x{self.size[1]}")

    @classmethod
    def of(cls, inside: NDArray[np.bool_]) -> Self:
        """inside: (height, width) bool"""
        flat = np.asarray(inside, dtype=np.bool_).ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        ends = np.concatenate((changes, [flat.size]))
        counts = np.diff(ends, prepend=0).tolist()
        height, width = inside.shape
        return cls((height, width), (0, *counts) if flat.size and flat[0] else tuple(counts))

    def to_array(self) -> NDArray[np.bool_]:
        """(height, width) bool, True inside."""
        turns = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(turns, self.counts).reshape(self.size, order="F")

    @property
    def area(self) -> int:
        """Pixels inside."""
        return sum(self.counts[1::2])


def find_box(inside: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of what is inside, in pixels; inside: (height, width), not empty."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@dataclass(frozen=True)
class Sampler:
    """Reads maps that cover a canvas at the centres of the original picture's pixels.

    y: (height,), x: (width,) float64, where those lie on the canvas, from 0 to 1 along each of its sides
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]

    @classmethod
    def of(cls, geometry: Geometry, canvas: tuple[int, int]) -> Self:
        """canvas: (height, width) in pixels, on which the whole picture lies (no crop)."""
        left, top, right, bottom = geometry.region
        height, width = geometry.original_size
        valid_height, valid_width = geometry.valid_size
        y = (np.arange(height) + 0.5 - top) / (bottom - top) * valid_height
        x = (np.arange(width) + 0.5 - left) / (right - left) * valid_width
        return cls(np.clip(y, 0, valid_height) / canvas[0], np.clip(x, 0, valid_width) / canvas[1])

    def nearest(self, cells: NDArray[Any]) -> NDArray[Any]:
        """cells: (rows, columns). Returns (height, width) of the same type: the cell that each pixel lies in."""
        rows, columns = cells.shape
        y = np.minimum((self.y * rows).astype(np.intp), rows - 1)
        x = np.minimum((self.x * columns).astype(np.intp), columns - 1)
        return cells[y[:, None], x[None]]

    def bilinear(self, cells: NDArray[np.floating]) -> NDArray[np.float32]:
        """cells: (rows, columns), values at the cells' centres. Returns (height, width).

        Constant beyond the outer centres: PyTorch's bilinear `interpolate` with `align_corners=False`.
        """
        rows, columns = cells.shape
        y, x = np.clip(self.y * rows - 0.5, 0, rows - 1), np.clip(self.x * columns - 0.5, 0, columns - 1)
        above, before = y.astype(np.intp), x.astype(np.intp)
        below, behind = np.minimum(above + 1, rows - 1), np.minimum(before + 1, columns - 1)
        down, along = (y - above).astype(np.float32)[:, None], (x - before).astype(np.float32)[None]
        values = cells.astype(np.float32)
        # Along the columns first, on the few rows that there are.
        wide = values[:, before] * (1 - along) + values[:, behind] * along
        return wide[above] * (1 - down) + wide[below] * down
