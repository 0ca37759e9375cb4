"""Numbers made from timed requests."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from ferryman.bench.scenarios import Sample
from ferryman.predictor import Timings
from ferryman.specs import Facts

# A percentile is worth printing when at least ten requests lie beyond it.
_BEYOND = 10
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class LatencyReport(Facts):
    """Milliseconds. percentiles_ms: only those that the number of requests carries, by their name such as `p99`

    stages_ms: median of each stage; `rest` is what the caller waited beyond all stages (transfer, encoding)
    """

    requests: int
    seconds: float
    mean_ms: float
    min_ms: float
    max_ms: float
    percentiles_ms: dict[str, float]
    stages_ms: dict[str, float]


def report_latency(samples: Sequence[Sample]) -> LatencyReport:
    """Statistics of one run; needs one sample or more."""
    latencies = np.array([sample.latency_ms for sample in samples])
    names = [field.name for field in fields(Timings) if field.name != "total_ms"]
    stages = {name: np.array([getattr(sample.stages, name) for sample in samples], dtype=np.float64) for name in names}
    rest = latencies - sum(stages.values())
    medians = {name.removesuffix("_ms"): float(np.median(values)) for name, values in stages.items()}
    return LatencyReport(
        requests=len(samples),
        seconds=float(latencies.sum() / 1e3),
        mean_ms=float(latencies.mean()),
        min_ms=float(latencies.min()),
        max_ms=float(latencies.max()),
        percentiles_ms={
            f"p{percentile:g}": float(np.percentile(latencies, percentile))
            for percentile in PERCENTILES
            # rounded: 100 - 99.9 is a little less than 0.1
            if percentile == PERCENTILES[0] or round(len(samples) * (100 - percentile) / 100, 6) >= _BEYOND
        },
        stages_ms=medians | {"rest": float(np.median(rest))},
    )
