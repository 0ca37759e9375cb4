"""Weights as colours laid over a picture."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ferryman.attention import Attention

# From dark violet over red to pale yellow in equal steps of OKLab's lightness (0.18 to 0.97; Ottosson 2020), so that
# brighter is more for every reader, also without colours.
HEAT = ("#12003c", "#3c015d", "#6f006b", "#a40d67", "#d03653", "#f36132", "#fe9935", "#ffcc69", "#fffaa8")
_SHARES = (0.5, 0.8)  # of the heat in a pixel, at no weight and at the largest; the rest is the picture in grey


def colour_levels(levels: NDArray[np.floating]) -> NDArray[np.float64]:
    """levels: any shape, in [0, 1]. Returns the same shape and 3: RGB from 0 to 255."""
    table = np.array([ImageColor.getrgb(colour)[:3] for colour in HEAT], dtype=np.float64)
    stops = np.linspace(0, 1, len(table))
    return np.stack([np.interp(levels, stops, channel) for channel in table.T], axis=-1)


def lay_heat(image: Image.Image, attention: Attention, picture: tuple[int, int]) -> Image.Image:
    """The image in grey under the colours of the weights, the largest the brightest; plain grey where there are none.

    image: at any scale; picture: (width, height) of the original, which the attention's box goes by
    """
    weights = attention.spread(image.size, picture)
    grey = np.asarray(image.convert("L")).astype(np.float64)[..., None].repeat(3, axis=-1)
    covered = ~np.isnan(weights)
    levels = np.clip(weights[covered] / max(float(attention.grid.max()), 1e-12), 0, 1)
    share = np.interp(levels, (0, 1), _SHARES)[:, None]
    grey[covered] = (1 - share) * grey[covered] + share * colour_levels(levels)
    return Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
