"""Contenders measured in turn: each warmed up until it is steady, then blocks of all of them, to and fro."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ferryman.bench.clock import CLOCK, Clock
from ferryman.bench.disturbance import Counters, Disturbance, read_counters
from ferryman.bench.energy import Meters, joules_since, read_joules
from ferryman.bench.percentiles import count_needed
from ferryman.bench.samples import Block, Run
from ferryman.bench.turns import ROUNDS
from ferryman.bench.warming import Warming

# Makes a request, by its number from 0, and gives the milliseconds of its stages.
Request = Callable[[int], Mapping[str, float]]
FEWEST_ROUNDS = 6  # an interval over fewer blocks says nothing
_AGAIN = 2  # requests before each block that don't count: what ran before has left its own weights in the caches


@dataclass(frozen=True)
class Plan:
    """How long to measure each contender.

    seconds: at least; least: requests, at least; percentiles: that must have enough requests beyond them
    patience_s: when to give up on requests that are still missing, or on a search; warm_s: on steadiness
    """

    seconds: float
    least: int = 1
    percentiles: tuple[float, ...] = ()
    patience_s: float = 600.0
    warm_s: float = 10.0

    @property
    def requests(self) -> int:
        return max([self.least, *map(count_needed, self.percentiles)])


@dataclass(frozen=True)
class Moment:
    """How far the measuring is. share: of it, in [0, 1]; latencies_ms: of the newest requests"""

    stage: str
    share: float
    latencies_ms: Sequence[float] = ()


class Harness:
    """runs: of each contender by name; what is in them stays when a request fails, or Ctrl-C ends it all.

    disturbance: of the machine while it measured
    """

    def __init__(
        self, plan: Plan, clock: Clock = CLOCK, counters: Callable[[], Counters] = read_counters, meters: Meters = ()
    ) -> None:
        self.plan = plan
        self.runs: dict[str, Run] = {}
        self.disturbance = Disturbance()
        self._clock, self._counters, self._meters = clock, counters, meters

    def measure(self, requests: Mapping[str, Request], advance: Callable[[Moment], None] = lambda moment: None) -> None:
        """Warms up, then measures. Raises what a request raises."""
        contenders = [_Contender(request, Run(), self._clock) for request in requests.values()]
        self.runs = {name: one.run for name, one in zip(requests, contenders, strict=True)}
        for name, one in zip(requests, contenders, strict=True):
            advance(Moment(f"warm up {name}", 0.0))
            one.warm_up(self.plan.warm_s)
        before, start = self._counters(), self._clock()
        try:
            self._go_round(contenders, start, advance)
        finally:
            self.disturbance = before.until(self._counters(), self._clock() - start)

    def _go_round(self, contenders: list["_Contender"], start: float, advance: Callable[[Moment], None]) -> None:
        """Every second round goes backwards, so that what changes slowly meets all alike."""
        plan = self.plan
        # A block of one slow request would be all luck, but slow ones must not take hours.
        slowest = max(one.typical_ms for one in contenders) / 1e3
        rounds = min(ROUNDS, max(FEWEST_ROUNDS, int(plan.seconds / slowest))) if slowest > 0 else ROUNDS
        number = 0
        while number < rounds or self._goes_on():
            for one in contenders if number % 2 == 0 else contenders[::-1]:
                advance(Moment("measure", self._share(number / rounds), one.newest()))
                one.measure_block(plan.seconds / rounds, start, _AGAIN if len(contenders) > 1 else 0, self._meters)
            number += 1

    def _goes_on(self) -> bool:
        """Whether requests are missing, and there is patience left to make them."""
        short = any(len(run.latencies_ms) < self.plan.requests for run in self.runs.values())
        return short and all(run.seconds < self.plan.patience_s for run in self.runs.values())

    def _share(self, rounds: float) -> float:
        """By the rounds or by the requests that are needed, whichever takes longer."""
        least = min(len(run.latencies_ms) for run in self.runs.values())
        return min(1.0, rounds, least / self.plan.requests)


class _Contender:
    def __init__(self, request: Request, run: Run, clock: Clock) -> None:
        self.run, self.typical_ms = run, 0.0
        self._request, self._clock, self._asked = request, clock, 0

    def warm_up(self, seconds: float) -> None:
        """Until it is steady, or for so many seconds, but two requests at least."""
        warming = Warming(seconds, self._clock)
        while warming.goes_on():
            warming.add(self._ask()[1])
        self.typical_ms, self.run.warmup = warming.typical_ms, warming.end()

    def measure_block(self, seconds: float, origin: float, again: int, meters: Meters) -> None:
        """Requests for so long, one at least; those before an error or Ctrl-C are kept."""
        for _ in range(again):
            self._ask()
        latencies: list[float] = []
        stages: list[Mapping[str, float]] = []
        joules = read_joules(meters)
        start = end = self._clock()
        try:
            while end - start < seconds or not latencies:
                end, latency, parts = self._ask()
                latencies.append(latency)
                stages.append(parts)
        finally:
            if stages:  # a signal may come between the two lists
                series = {name: np.array([parts[name] for parts in stages]) for name in stages[0]}
                kept = np.array(latencies[: len(stages)])
                self.run.blocks.append(Block(start - origin, end - start, kept, series, joules_since(joules, meters)))

    def newest(self) -> Sequence[float]:
        return self.run.blocks[-1].latencies_ms.tolist() if self.run.blocks else ()

    def _ask(self) -> tuple[float, float, Mapping[str, float]]:
        """One request: when it was answered, the milliseconds that it took, and those of its stages."""
        number, self._asked = self._asked, self._asked + 1
        start = self._clock()
        stages = self._request(number)
        end = self._clock()
        return end, (end - start) * 1e3, stages
