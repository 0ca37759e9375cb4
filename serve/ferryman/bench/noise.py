"""Why a measurement can't be relied on, found in its own figures and in what else the machine did."""

from collections.abc import Iterator

import numpy as np

from ferryman.bench.clock import ClockFacts
from ferryman.bench.disturbance import Disturbance
from ferryman.bench.machine import MachineState
from ferryman.bench.samples import Run
from ferryman.bench.search import Bound
from ferryman.bench.steady import measure_drift

FEW = 30  # requests, below which nothing is said of their distribution
DRIFT = 0.05  # from the first block to the last, of the median
SPREAD = 0.05  # standard deviation of the blocks' means, beyond what their requests' own spread explains
STALL_TIMES = 5.0  # a request that takes so many times the median, and twice the 90th percentile, stalled
STALLS = 0.002  # of the requests
_FEWEST_STALLS = 3
_SURE = 2.58  # standard deviations: one in a hundred by chance
STEAL, WAITING, THROTTLED = 0.02, 0.05, 0.01  # shares of the time
SLOWER = 0.1  # of the frequency that was there before
OTHERS = 0.1  # processors that others keep busy, for each that this process may use
CLOCK_SHARE = 0.02  # of the median that reading the clock takes, or that its steps are


def find_noise(run: Run, clock: ClockFacts, bound: Bound | None = None) -> list[str]:
    """Of one contender: a line for each reason, empty for a measurement that is sound. Needs one request.

    bound: of an open loop, in which requests queue: there the latencies' own shape says nothing of noise
    """
    return [*_find_noise(run, clock, bound)]


def _find_noise(run: Run, clock: ClockFacts, bound: Bound | None) -> Iterator[str]:
    latencies = run.latencies_ms
    median = float(np.median(latencies))
    if run.warmup is not None and not run.warmup.steady:
        yield f"it was not steady after {run.warmup.requests} requests in {run.warmup.seconds:.1f} s of warming up"
    if len(latencies) < FEW:
        yield f"only {len(latencies)} requests were measured"
        return
    reading = max(clock.overhead_ns, clock.resolution_ns) / 1e6
    if reading > CLOCK_SHARE * median:
        yield f"the clock is too coarse: {reading / median:.1%} of the median"
    if bound is not None:
        return
    drift = find_drift(run)
    if drift:
        yield f"it drifted: {drift:+.1%} from the first block to the last"
    stalls = latencies[latencies > max(STALL_TIMES * median, 2 * float(np.percentile(latencies, 90)))]
    if len(stalls) >= max(_FEWEST_STALLS, STALLS * len(latencies)):
        yield (
            f"{len(stalls) / len(latencies):.2%} of the requests stalled: over {STALL_TIMES:g} times the median, "
            f"up to {stalls.max():.3g} ms"
        )
    spread = measure_spread(run)
    if spread > SPREAD and not drift:
        yield f"its blocks differ: their means spread by {spread:.1%} beyond what their requests explain"


def find_drift(run: Run) -> float:
    """From the first block to the last, relative to the median; 0 where it is small or may be chance."""
    means = [float(block.latencies_ms.mean()) for block in run.blocks if len(block.latencies_ms)]
    drift, sure = measure_drift(means)
    return drift if abs(drift) > DRIFT and abs(sure) > _SURE else 0.0


def measure_spread(run: Run) -> float:
    """Standard deviation between blocks, without the part that requests within them explain; of the mean.

    The variance component of a one-way analysis with random effects.
    """
    blocks = [block.latencies_ms for block in run.blocks if len(block.latencies_ms) > 1]
    if len(blocks) < 3:
        return 0.0
    means = np.array([block.mean() for block in blocks])
    explained = float(np.mean([block.var(ddof=1) / len(block) for block in blocks]))
    return float(np.sqrt(max(0.0, float(means.var(ddof=1)) - explained)) / means.mean())


def find_throttling(before: MachineState, after: MachineState) -> list[str]:
    """Of the processors' frequency and of GPUs: what was slower at the end than the machine can be."""
    reasons: list[str] = []
    first, last = before.frequency_mhz, after.frequency_mhz
    if first and last and last < (1 - SLOWER) * first:
        reasons.append(f"the processors' frequency fell from {first:.0f} to {last:.0f} MHz")
    for gpu in after.gpus:
        if gpu.throttled:
            reasons.append(f"{gpu.name} was held down: {', '.join(gpu.throttled)}")
    return reasons


def find_disturbance(found: Disturbance, processors: int, alone: bool, crowded: bool = False) -> list[str]:
    """Of the whole measurement. processors: that this process may use; alone: whether nothing else ought to run

    crowded: whether its own threads may be more than processors, and wait for each other
    """
    reasons: list[str] = []
    if found.steal is not None and found.steal > STEAL:
        reasons.append(f"other guests of the host took {found.steal:.1%} of the processors' time")
    if alone and found.others is not None and found.others > OTHERS * processors:
        reasons.append(f"other processes kept {found.others:.2f} of {processors} processors busy")
    if not crowded and found.waiting is not None and found.waiting > WAITING:
        reasons.append(f"this process waited for a processor {found.waiting:.1%} of the time that it wanted one")
    if found.throttled is not None and found.throttled > THROTTLED:
        reasons.append(f"the limit of its control group held it back {found.throttled:.1%} of the time")
    return reasons
