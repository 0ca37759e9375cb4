"""How far a build is, and how long it still takes: TensorRT tells its steps, but not how long they are.

Its phases nest, and nearly all of the time goes into a few of them, so the share of steps done says nothing of the time
that is left. An earlier build of the same model, at another size or for another version, says much: its steps come in
the same order.
"""

import time
from collections.abc import Callable, Sequence

PARTS = 20


class Pace:
    """Counts a build's steps against those of an earlier one. clock: in seconds

    earlier, steps: its `marks()` and `steps`; without, nothing can be foretold
    """

    def __init__(
        self, earlier: Sequence[float] = (), steps: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._earlier = (0.0, *earlier)
        self._earlier_steps = steps if earlier else 0
        self._clock, self._start = clock, clock()
        self._times: list[float] = []
        self.seconds = 0.0  # that the build took, once it is over

    def count(self) -> None:
        """One step more is done."""
        self._times.append(self._clock() - self._start)

    def stop(self) -> None:
        """The build is over."""
        self.seconds = round(self._clock() - self._start, 3)

    @property
    def steps(self) -> int:
        return len(self._times)

    def marks(self) -> tuple[float, ...]:
        """The seconds after which each of `PARTS` equal parts of the steps was done, the last at the build's end."""
        if not self._times:
            return ()
        ends = [max(self.steps * part // PARTS - 1, 0) for part in range(1, PARTS)]
        return (*(round(self._times[end], 3) for end in ends), self.seconds)

    def share(self) -> float | None:
        """Of the time, in [0, 1), the part that is over; None when there is nothing to tell it by."""
        left = self.seconds_left()
        if left is None:
            return None
        elapsed = self._clock() - self._start
        return min(elapsed / max(elapsed + left, 1e-9), 0.99)

    def seconds_left(self) -> float | None:
        """At the rate of this build so far, where it has come far enough to have one, else at the earlier one's."""
        if not self._earlier_steps:
            return None
        done = min(self.steps / self._earlier_steps, 1.0) * (len(self._earlier) - 1)
        before = min(int(done), len(self._earlier) - 2)
        low, high = self._earlier[before], self._earlier[before + 1]
        then = low + (high - low) * (done - before)  # the earlier one's seconds when it was here
        whole = self._earlier[-1]
        elapsed = self._clock() - self._start
        rate = elapsed / then if then > whole / PARTS else 1.0
        return max((whole - then) * rate, 0.0)


def describe_seconds(seconds: float) -> str:
    """As precise as an estimate is: `5 s`, `40 s`, `3 min`."""
    if seconds < 10:
        return f"{max(seconds, 1):.0f} s"
    return f"{round(seconds, -1):.0f} s" if seconds < 95 else f"{seconds / 60:.0f} min"
