"""Where a model looked: its last attention's weights on a grid, and what that grid covers of the original."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ferryman.masks import Sampler
from ferryman.preprocess import Geometry


@dataclass(frozen=True)
class Attention:
    """Weights of the last attention, the mean over its heads, as the graph answered them.

    grid: (rows, columns) float32, in [0, 1], at most 1 in all
    covers_xyxy: left, top, right, bottom of the grid in pixels of the upright original. It reaches beyond the picture
    where that was padded, and not to its edges where they were cut off. The cells are laid evenly over the canvas, as
    DETR itself does; a ResNet's last ones may see a little more.
    Raises ValueError for a grid without cells.
    """

    grid: NDArray[np.float32] = field(compare=False)
    covers_xyxy: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if self.grid.ndim != 2 or not self.grid.size:
            raise ValueError(f"an attention map has rows and columns, got shape {self.grid.shape}")

    @classmethod
    def of(cls, grid: NDArray[np.float32], geometry: Geometry) -> Self:
        """grid: (rows, columns), laid over the geometry's canvas"""
        left, top, right, bottom = geometry.region
        height, width = geometry.valid_size
        canvas_height, canvas_width = geometry.canvas_size
        # The region lies on the valid area, from the canvas's top left on.
        right, bottom = left + (right - left) * canvas_width / width, top + (bottom - top) * canvas_height / height
        return cls(grid.astype(np.float32), (left, top, right, bottom))

    def spread(self, size: tuple[int, int], picture: tuple[int, int]) -> NDArray[np.float32]:
        """The weights on `size`, (width, height), a copy at any scale of the original of `picture`, (width, height).

        Returns (height, width), between the cells' centres interpolated, NaN where the grid does not reach.
        """
        left, top, right, bottom = self.covers_xyxy
        x = ((np.arange(size[0]) + 0.5) * picture[0] / size[0] - left) / (right - left)
        y = ((np.arange(size[1]) + 0.5) * picture[1] / size[1] - top) / (bottom - top)
        weights = Sampler(np.clip(y, 0, 1), np.clip(x, 0, 1)).bilinear(self.grid)
        weights[(y < 0) | (y > 1)] = np.nan
        weights[:, (x < 0) | (x > 1)] = np.nan
        return weights
