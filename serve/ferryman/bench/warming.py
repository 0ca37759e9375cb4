"""Warming up: requests that don't count, until their latencies have come to rest."""

from statistics import median

from ferryman.bench.clock import Clock
from ferryman.bench.samples import Warmup
from ferryman.bench.steady import is_steady

_EVERY = 10  # requests between two looks at whether it is steady
_FEWEST = 2
_TURNS = 4  # of each client, before which it is not looked at: the newer half of them met all the others


class Warming:
    """One contender's. `while warming.goes_on(): warming.add(latency_ms)`; clients: that do so at a time

    seconds: when to give up; two requests at least, of several clients eight each
    """

    def __init__(self, seconds: float, clock: Clock, clients: int = 1) -> None:
        self._seconds, self._clock, self._start, self._clients = seconds, clock, clock(), clients
        self._fewest = _FEWEST if clients == 1 else 2 * _TURNS * clients
        self._latencies: list[float] = []
        self._steady = False

    def goes_on(self) -> bool:
        early = len(self._latencies) < self._fewest or self._clock() - self._start < self._seconds
        return early and not self._steady

    def add(self, latency_ms: float) -> None:
        self._latencies.append(latency_ms)
        count = len(self._latencies)
        # once it is, it stays: requests of other clients are still under way
        self._steady |= count % _EVERY == 0 and count >= _TURNS * self._clients and is_steady(self._latencies)

    @property
    def typical_ms(self) -> float:
        """Of the newest requests; 0 where none was answered."""
        return median(self._latencies[-max(_EVERY, self._clients) :]) if self._latencies else 0.0

    def end(self) -> Warmup:
        """Needs one request."""
        return Warmup(
            requests=len(self._latencies),
            seconds=self._clock() - self._start,
            first_ms=self._latencies[0],
            steady=self._steady,
        )
