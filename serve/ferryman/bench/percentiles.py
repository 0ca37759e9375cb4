"""Percentiles, and how many requests each of them needs."""

import math
from collections.abc import Sequence

import numpy as np

from ferryman.errors import UsageError

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# A percentile is worth printing when at least ten requests lie beyond it.
_BEYOND = 10


def name_percentile(percentile: float) -> str:
    return f"p{percentile:g}"


def count_needed(percentile: float) -> int:
    """Requests that carry a percentile; the median is worth something of any number."""
    if percentile <= 50:
        return 1
    return math.ceil(round(_BEYOND * 100 / (100 - percentile), 6))


def count_beyond(percentile: float, requests: int) -> int:
    """How many of so many requests may lie beyond it."""
    return int(round((100 - percentile) / 100 * requests, 6))


def check_percentiles(percentiles: Sequence[float]) -> tuple[float, ...]:
    """Ascending, each once. Raises UsageError for one that is none."""
    for percentile in percentiles:
        if not 50 <= percentile < 100:
            raise UsageError(f"--percentile must be 50 or more and below 100, got {percentile:g}")
    return tuple(sorted(set(percentiles)))


def find_percentiles(
    latencies_ms: "np.typing.ArrayLike", percentiles: Sequence[float] = PERCENTILES
) -> tuple[dict[str, float], dict[str, str]]:
    """Those that the requests carry, by name such as `p99`, and why the others are left out.

    Between two requests the percentile is interpolated linearly. latencies_ms: (requests,), one or more
    """
    latencies = np.asarray(latencies_ms)
    found: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for percentile in percentiles:
        name, needed = name_percentile(percentile), count_needed(percentile)
        if len(latencies) >= needed:
            found[name] = float(np.percentile(latencies, percentile))
        else:
            left_out[name] = f"{name} needs {needed:,} requests, and there were {len(latencies):,}"
    return found, left_out
