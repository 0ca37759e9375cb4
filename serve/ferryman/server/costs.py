"""What batches of a session take, measured when it is loaded, and which of them are worth making."""

import time
from collections.abc import Callable, Iterator, Mapping

from ferryman.errors import EngineError
from ferryman.golden import GoldenSamples
from ferryman.runtimes.base import Session

_RUNS = 5  # of each size; the shortest counts, since whatever else the machine does only adds
_BUDGET_S = 2.0  # for all sizes of one session, so that a slow model is not held up at its start
# What a batch costs beside its session: to be taken from the queue, put together, taken apart, and told.
_LAUNCH_S = 0.0002
# A batch twice as large must give so many times the answers a second: less is noise, and bought with latency.
_GAIN = 1.05
_WEIGHT = 0.1  # of the last batch in `pace`


class Costs:
    """Seconds of a batch by its size; one thread at a time may add to it, any may read.

    measured: seconds by size, of 1 at least; sizes between are interpolated
    best: the largest batch that helps: each size up to it gives more answers a second than the one before
    pace: how many times as long batches take now as when they were measured
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self.measured = dict(sorted(measured.items()))
        self.best = 1
        self.pace = 1.0
        for size in list(self.measured)[1:]:
            if not self._helps(size):
                break
            self.best = size
        self._image_s = self.measured[self.best] / self.best

    def _helps(self, size: int) -> bool:
        rate, before = (one / (self.measured[one] + _LAUNCH_S) for one in (size, self.best))
        return rate >= before * _GAIN

    def seconds(self, size: int) -> float:
        """What a batch takes at today's pace."""
        known = self.measured.get(size)
        return self.pace * (self._interpolate(size) if known is None else known)

    def image_s(self) -> float:
        """What one image takes in the best batch."""
        return self.pace * self._image_s

    def total(self, count: int) -> float:
        """What so many images take in batches as large as helps."""
        full, rest = divmod(count, self.best)
        return full * self.seconds(self.best) + (self.seconds(rest) if rest else 0.0)

    def add(self, size: int, seconds: float) -> None:
        """A batch has taken so long. One that was held up counts as twice the pace at most: the next ones tell."""
        found = self.pace * seconds / max(self.seconds(size), 1e-9)
        self.pace += _WEIGHT * (min(found, 2 * self.pace) - self.pace)

    def _interpolate(self, size: int) -> float:
        below = max((one for one in self.measured if one <= size), default=1)
        above = min((one for one in self.measured if one >= size), default=None)
        low = self.measured[below]
        if above is None:
            return low * size / below
        return low + (self.measured[above] - low) * (size - below) / (above - below)


def measure_costs(
    session: Session, golden: GoldenSamples, max_batch: int, clock: Callable[[], float] = time.perf_counter
) -> Costs:
    """Times a warm session on batches of its golden samples, of 1, 2, 4 ... `max_batch`.

    Each size is timed in turn with the best so far, so that what else the machine does falls on both. Ends with the
    first size that does not help, or that the session fails on, or when `_BUDGET_S` is over.
    Raises EngineError when it fails on one image.
    """
    limit = min(max_batch, session.largest_useful_batch or max_batch)
    end = clock() + _BUDGET_S

    def time_batch(size: int) -> float:
        inputs = golden.batch([index % len(golden) for index in range(size)])
        start = clock()
        session.run(inputs)
        return clock() - start

    time_batch(1)  # the first run of a size is the slowest: memory is taken for it
    measured = {1: min(time_batch(1) for _ in _rounds(clock, end))}
    size = 1
    while (costs := Costs(measured)).best == size < limit and clock() < end:
        size = min(2 * size, limit)
        try:
            time_batch(size)
            times = [(time_batch(costs.best), time_batch(size)) for _ in _rounds(clock, end)]
        except EngineError:
            break
        measured[costs.best] = min(measured[costs.best], *(best for best, _ in times))
        measured[size] = min(new for _, new in times)
    return Costs(measured)


def _rounds(clock: Callable[[], float], end: float) -> Iterator[int]:
    """One at least, `_RUNS` at most, none begun after the end."""
    for number in range(_RUNS):
        if number and clock() >= end:
            return
        yield number
