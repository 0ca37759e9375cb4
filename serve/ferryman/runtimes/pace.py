"""How far a build is, and how long it still takes: TensorRT tells its steps, but not how long they are.

Its phases nest, and nearly all of the time goes into a few of them, so the share of steps done says nothing of the time
that is left. An earlier build of the same model, at another size or for another version, says much: its steps come in
the same order.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

PARTS = 100
_SETTLED = 0.05  # of the time: before it is over a build has no rate of its own


class Pace:
    """Counts a build's steps against those of an earlier one. clock: in seconds

    marks, seconds: of the earlier one; without, nothing can be foretold
    """

    def __init__(
        self, marks: Sequence[int] = (), seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._marks, self._whole = (0, *marks), seconds if marks else 0.0
        self._clock, self._start = clock, clock()
        self._times: list[float] = []
        self.seconds = 0.0  # that the build took, once it is over

    def count(self) -> None:
        """One step more is done."""
        self._times.append(self._clock() - self._start)

    def stop(self) -> None:
        """The build is over."""
        self.seconds = round(self._clock() - self._start, 3)

    def marks(self) -> tuple[int, ...]:
        """Steps that were done by the end of each of `PARTS` equal parts of the time; empty for a build without."""
        if not self._times:
            return ()
        ends = [self.seconds * part / PARTS for part in range(1, PARTS)]
        return (*(bisect_right(self._times, end) for end in ends), len(self._times))

    def share(self) -> float | None:
        """Of the time, in [0, 1], the part that is over; None when there is nothing to tell it by."""
        return self._place()[0] if self._whole else None

    def seconds_left(self) -> float | None:
        """At this build's rate so far, once it has one, else at the earlier one's; None as in `share`."""
        if not self._whole:
            return None
        share, rate = self._place()
        return (1 - share) * self._whole * rate

    def _place(self) -> tuple[float, float]:
        """The part of the time that is over, and this build's time as a multiple of the earlier one's.

        A step may take half of the time: its start is where the earlier build was then, and the clock tells the rest,
        as far as the earlier one's next step.
        """
        steps, last = len(self._times), len(self._marks) - 1
        start = min(bisect_left(self._marks, steps), last) / last
        end = min(bisect_right(self._marks, steps), last) / last
        then = self._times[-1] if self._times else 0.0
        rate = then / (start * self._whole) if start >= _SETTLED else 1.0
        since = self._clock() - self._start - then
        return min(start + since / (self._whole * rate), end), rate


def describe_seconds(seconds: float) -> str:
    """As precise as an estimate is: `5 s`, `40 s`, `3 min`."""
    if seconds < 10:
        return f"{max(seconds, 1):.0f} s"
    return f"{round(seconds, -1):.0f} s" if seconds < 95 else f"{seconds / 60:.0f} min"
