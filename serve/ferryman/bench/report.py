"""Numbers made from timed requests."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ferryman.bench.percentiles import PERCENTILES, find_percentiles
from ferryman.bench.samples import Run
from ferryman.specs import Facts


class LatencyReport(Facts):
    """Milliseconds. percentiles_ms: only those that the number of requests carries, by their name such as `p99`

    left_out: why the others are not there; seconds: that the requests took, what was between blocks not counted
    images_per_s: throughput of this one after the other
    stages_ms: median of each stage; `rest` is what the caller waited beyond all stages (transfer, encoding)
    joules_per_image: of each device that tells, whoever used it meanwhile
    """

    requests: int
    seconds: float
    mean_ms: float
    min_ms: float
    max_ms: float
    images_per_s: float
    percentiles_ms: dict[str, float]
    left_out: dict[str, str]
    stages_ms: dict[str, float]
    joules_per_image: dict[str, float] = Field(default_factory=dict[str, float])


def report_latency(run: Run, percentiles: Sequence[float] = PERCENTILES) -> LatencyReport:
    """Statistics of one run; needs one request or more."""
    latencies = run.latencies_ms
    stages = run.stages_ms()
    rest = latencies - sum(stages.values())
    medians = {name: float(np.median(values)) for name, values in stages.items()}
    found, left_out = find_percentiles(latencies, percentiles)
    return LatencyReport(
        requests=len(latencies),
        seconds=run.seconds,
        mean_ms=float(latencies.mean()),
        min_ms=float(latencies.min()),
        max_ms=float(latencies.max()),
        images_per_s=len(latencies) * run.images / run.seconds,
        percentiles_ms=found,
        left_out=left_out,
        stages_ms=medians | ({"rest": float(np.median(rest))} if stages else {}),
        joules_per_image=run.joules_per_image(),
    )
