"""What a clock can tell: its resolution, and what reading it costs. Clocks are functions that give seconds."""

import time
from collections.abc import Callable

import numpy as np

from ferryman.specs import Facts

Clock = Callable[[], float]
CLOCK: Clock = time.perf_counter  # monotonic
_READS = 2000


class ClockFacts(Facts):
    """resolution_ns: the smallest step that was seen; overhead_ns: median time from one reading to the next

    A request is timed by two readings, so `overhead_ns` is in every latency.
    """

    resolution_ns: float
    overhead_ns: float

    def __str__(self) -> str:
        return f"clock: steps of {self.resolution_ns:.0f} ns, a reading takes {self.overhead_ns:.0f} ns"


def measure_clock(clock: Clock = CLOCK, reads: int = _READS) -> ClockFacts:
    """Reads it so many times, and on until it has moved. A clock that stands still for a second is refused."""
    times = [clock() for _ in range(reads)]
    limit = time.monotonic() + 1
    while times[-1] == times[0] and time.monotonic() < limit:
        times.append(clock())
    steps = np.diff(times)
    if not (steps > 0).any():
        raise ValueError("the clock stands still")
    return ClockFacts(
        resolution_ns=float(steps[steps > 0].min() * 1e9),
        # of a coarse clock most readings are the same: the mean is what one takes
        overhead_ns=float((np.median(steps) if np.median(steps) > 0 else steps.mean()) * 1e9),
    )
