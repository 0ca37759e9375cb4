"""Whether a series of latencies still goes somewhere: when warming up may end, and whether a measurement drifted."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_CLOSE = 0.02  # medians that differ by less are the same for our purpose
_SURE = 2.58  # standard deviations: one in a hundred by chance
_LEAST = 10  # latencies a side, below which a rank test tells nothing


def is_steady(latencies: Sequence[float]) -> bool:
    """Whether the newer half of a series has come to rest: its first and second part are alike.

    Alike are medians within 2 %, or parts that a rank test can't tell apart at 1 % (Mann and Whitney's U), so that
    neither a noisy machine nor pictures of different sizes warm up for ever. False for fewer than 40.
    """
    quarter = len(latencies) // 4
    if quarter < _LEAST:
        return False
    before, after = np.array(latencies[-2 * quarter : -quarter]), np.array(latencies[-quarter:])
    if abs(float(np.median(after) / np.median(before)) - 1) <= _CLOSE:
        return True
    return abs(_rank_score(before, after)) <= _SURE


def _rank_score(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """U of Mann and Whitney in standard deviations from what chance gives, ties counted as halves."""
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, side="left")
    not_above = np.searchsorted(ordered, first, side="right")
    u = float((below + not_above).sum() / 2)
    count = len(first) * len(second)
    _, ties = np.unique(np.concatenate([first, second]), return_counts=True)
    total = len(first) + len(second)
    variance = count / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return (u - count / 2) / math.sqrt(variance) if variance > 0 else 0.0


def measure_drift(values: Sequence[float]) -> tuple[float, float]:
    """How far values went from the first to the last, relative to their median, and how sure that is.

    The line is Theil and Sen's, the certainty Kendall's, in standard deviations from what chance gives.
    """
    series = np.array(values, dtype=np.float64)
    count = len(series)
    if count < 3:
        return 0.0, 0.0
    first, second = np.triu_indices(count, 1)
    differences = series[second] - series[first]
    slope = float(np.median(differences / (second - first)))
    sure = float(np.sign(differences).sum()) / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return slope * (count - 1) / float(np.median(series)), sure
