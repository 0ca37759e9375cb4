"""Warming up: requests that don't count, until their latencies have come to rest."""

from statistics import median

from ferryman.bench.clock import Clock
from ferryman.bench.samples import Warmup
from ferryman.bench.steady import is_steady

_EVERY = 10  # requests between two looks at whether it is steady
_FEWEST = 2


class Warming:
    """One contender's. `while warming.goes_on(): warming.add(latency_ms)`; seconds: when to give up, two requests at
    least
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds, self._clock, self._start = seconds, clock, clock()
        self._latencies: list[float] = []
        self._steady = False

    def goes_on(self) -> bool:
        early = len(self._latencies) < _FEWEST or self._clock() - self._start < self._seconds
        return early and not self._steady

    def add(self, latency_ms: float) -> None:
        self._latencies.append(latency_ms)
        self._steady = len(self._latencies) % _EVERY == 0 and is_steady(self._latencies)

    @property
    def typical_ms(self) -> float:
        """Of the newest requests."""
        return median(self._latencies[-_EVERY:])

    def end(self) -> Warmup:
        return Warmup(
            requests=len(self._latencies),
            seconds=self._clock() - self._start,
            first_ms=self._latencies[0],
            steady=self._steady,
        )
