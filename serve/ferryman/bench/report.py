"""Numbers made from timed requests."""

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from ferryman.bench.percentiles import PERCENTILES, find_percentiles
from ferryman.bench.samples import Run, Series
from ferryman.specs import Facts

# Where each is measured: docs/benchmarks.md
STAGES = ("decode", "resize", "queue", "compute", "postprocess", "encode", "transfer", "rest")


Percentile = Annotated[str, Field(pattern=r"^p\d+(\.\d+)?$")]


class LatencyReport(Facts):
    """Milliseconds. percentiles_ms: only those that the number of requests carries, by their name such as `p99`

    left_out: why the others are not there; seconds: that the requests took, what was between blocks not counted
    images_per_s: throughput of this one after the other
    stages_ms: median of each stage, in the order in which they happen; `rest` is what the caller waited beyond all
    stages_mean_ms: their means, which add up to `mean_ms`; of older records empty
    joules_per_image: of each device that tells, whoever used it meanwhile
    """

    requests: int
    seconds: float
    mean_ms: float
    min_ms: float
    max_ms: float
    images_per_s: float
    percentiles_ms: dict[Percentile, float]
    left_out: dict[Percentile, str]
    stages_ms: dict[str, float]
    stages_mean_ms: dict[str, float] = Field(default_factory=dict[str, float])
    joules_per_image: dict[str, float] = Field(default_factory=dict[str, float])


def split_stages(run: Run) -> dict[str, Series]:
    """(requests,) of each stage and of the `rest`, which add up to the latencies; empty where none is known."""
    stages = run.stages_ms()
    if not stages:
        return {}
    return {name: stages[name] for name in sort_stages(stages)} | {"rest": run.latencies_ms - sum(stages.values())}


def sort_stages(names: Iterable[str]) -> list[str]:
    """As they happen; those that this version does not know come before the rest."""
    known = {name: place for place, name in enumerate(STAGES)}
    return sorted(dict.fromkeys(names), key=lambda name: known.get(name, len(STAGES) - 1.5))


def report_latency(run: Run, percentiles: Sequence[float] = PERCENTILES) -> LatencyReport:
    """Statistics of one run; needs one request or more."""
    latencies = run.latencies_ms
    stages = split_stages(run)
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
        stages_ms={name: float(np.median(values)) for name, values in stages.items()},
        stages_mean_ms={name: float(values.mean()) for name, values in stages.items()},
        joules_per_image=run.joules_per_image(),
    )
