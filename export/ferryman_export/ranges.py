"""What values a tensor took on real pictures, and which of them 8 bits shall cover."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["minmax", "mean", "percentile", "entropy", "dynamic"]
METHODS: tuple[Method, ...] = ("minmax", "mean", "percentile", "entropy")
LEAST = 1e-8


@dataclass
class Statistics:
    """What was seen of one activation: lows, highs (pictures, channels); values: a sample, (rows, channels).

    correlation: (channels, channels), sums over many more rows of what two channels' values multiply to; None where
    nothing is rounded by it
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    values: NDArray[np.float32]
    correlation: NDArray[np.float32] | None = None

    def scaled(self, factors: NDArray[np.float32]) -> "Statistics":
        """Of the activation with each channel multiplied by a positive factor."""
        together = self.correlation
        if together is not None:
            together = together * factors * factors[:, None]
        return Statistics(self.lows * factors, self.highs * factors, self.values * factors, together)


def find_range(statistics: Statistics, method: Method) -> tuple[float, float]:
    """Low and high end of what 8 bits shall cover, zero included; of "dynamic", which needs none, the extremes."""
    lows, highs = statistics.lows.min(1), statistics.highs.max(1)  # (pictures,)
    if method == "mean":
        low, high = float(lows.mean()), float(highs.mean())
    elif method == "percentile":
        low, high = (float(value) for value in np.percentile(statistics.values, (0.01, 99.99)))
    else:
        low, high = float(lows.min()), float(highs.max())
    low, high = min(low, 0.0), max(high, 0.0)
    if method == "entropy":
        share = least_divergence(statistics.values, low, high)
        low, high = low * share, high * share
    return low, max(high, low + LEAST)


def row_magnitudes(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, channels) -> the largest magnitude of each, (rows, 1)."""
    return np.maximum(np.abs(values).max(1, keepdims=True), LEAST)


def find_row_low(values: NDArray[np.float32]) -> float:
    """The low end of what 8 bits shall cover of rows that end at 1, of those at hand the one that loses least.

    Behind a GELU nothing is below -0.17, which is much of a row of small values, and little of the others.
    """
    largest = row_magnitudes(values)
    shares = values / largest
    lows = np.minimum(np.quantile(shares.min(1), (0.0, 0.005, 0.02, 0.1)), 0.0)

    def lose(low: float) -> float:
        step = (1 - low) / 255
        rounded = np.clip(np.round((shares - low) / step), 0, 255) * step + low
        return float(np.square((rounded - shares) * largest).mean())

    return min(map(float, lows), key=lose)


def least_divergence(values: NDArray[np.float32], low: float, high: float) -> float:
    """The share of the range, of 0.3 to 1, whose 256 levels keep the values' distribution best.

    Kullback-Leibler divergence of the histogram after clipping and rounding from the one before (Migacz 2017, "8-bit
    inference with TensorRT").
    """
    bins, levels = 2048, 256
    counts, edges = np.histogram(values, bins=bins, range=(low, max(high, low + LEAST)))
    centres = (edges[:-1] + edges[1:]) / 2
    before = counts / max(1, counts.sum())
    filled = counts > 0
    best, least = 1.0, np.inf
    for share in np.linspace(0.3, 1.0, 36):
        bottom, top = low * share, high * share
        step = max(top - bottom, LEAST) / (levels - 1)
        level = np.round((np.clip(centres, bottom, top) - bottom) / step).astype(int)
        # What a level holds is spread evenly over the bins that have something in them and end in it.
        mass = np.bincount(level, weights=counts, minlength=levels)
        width = np.bincount(level[filled], minlength=levels)
        after = np.where(filled, mass[level] / np.maximum(width[level], 1), 0) / max(1, counts.sum())
        divergence = float(np.sum(before[filled] * np.log(before[filled] / np.maximum(after[filled], 1e-12))))
        # Clipped values are far from where they were, which a histogram alone does not see.
        outside = float(before[(centres < bottom) | (centres > top)].sum())
        if divergence + outside < least:
            best, least = float(share), divergence + outside
    return best
