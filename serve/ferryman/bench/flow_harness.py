"""Contenders under load: offline, whose clients never pause, and server, whose requests come as they like.

Definitions are MLPerf Inference's; docs/benchmarks.md says where ours differ.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ferryman.bench.disturbance import Counters, Disturbance, read_counters
from ferryman.bench.energy import Meters, joules_since, read_joules
from ferryman.bench.flow import AsyncRequest, Flood, draw_arrivals, run_closed, run_open
from ferryman.bench.harness import FEWEST_ROUNDS, Moment, Plan
from ferryman.bench.percentiles import count_needed
from ferryman.bench.samples import Run
from ferryman.bench.search import Bound, Trial, find_rate
from ferryman.bench.turns import ROUNDS
from ferryman.bench.warming import Warming
from ferryman.errors import UsageError

Advance = Callable[[Moment], None]
BOUND_TIMES = 5.0  # of one request alone: the bound, where none is given
_CYCLES = 4  # of all clients, as if one waited for the other: what a block lasts at least
_FEWEST = 200  # requests of a trial
_HOPELESS = 10.0  # times the bound that a request waits, and the trial is given up


class FlowHarness:
    """runs, disturbance: as `Harness` has them; trials: of each contender's search; bound: that was searched with"""

    def __init__(self, plan: Plan, counters: Callable[[], Counters] = read_counters, meters: Meters = ()) -> None:
        self.plan = plan
        self.runs: dict[str, Run] = {}
        self.disturbance = Disturbance()
        self.trials: dict[str, list[Trial]] = {}
        self.bound: Bound | None = None
        self._counters, self._meters = counters, meters
        self._asked = 0

    async def measure_offline(
        self, requests: Mapping[str, AsyncRequest], clients: Mapping[str, int], advance: Advance
    ) -> None:
        """Closed loops of so many clients each, in blocks of all contenders in turn. Raises what a request raises."""
        clock = asyncio.get_running_loop().time
        typical_ms = dict(zip(requests, await self._warm_up(requests, advance), strict=True))
        # A block of a burst and its end would be neither the latency nor the throughput of so many clients.
        least = {name: _CYCLES * clients[name] * typical / 1e3 for name, typical in typical_ms.items()}
        rounds = min(ROUNDS, max(FEWEST_ROUNDS, int(self.plan.seconds / max(*least.values(), 1e-9))))
        before, origin = self._counters(), clock()
        try:
            for number in range(rounds):
                for name in list(requests) if number % 2 == 0 else list(requests)[::-1]:
                    advance(Moment("measure", number / rounds, self._newest(name)))
                    blocks = self.runs[name].blocks
                    seconds = max(self.plan.seconds / rounds, least[name])
                    joules, count = read_joules(self._meters), len(blocks)
                    try:
                        await run_closed(requests[name], clients[name], seconds, origin, blocks, self._asked)
                    finally:  # an error leaves a block too
                        for index in range(count, len(blocks)):
                            blocks[index] = replace(blocks[index], joules=joules_since(joules, self._meters))
                            self._asked += len(blocks[index].latencies_ms)
        finally:
            self.disturbance = before.until(self._counters(), clock() - origin)

    async def measure_server(
        self, requests: Mapping[str, AsyncRequest], percentile: float, bound_ms: float | None, advance: Advance
    ) -> None:
        """Of each contender the highest rate of Poisson arrivals that keeps the bound; its run is what proved it.

        bound_ms: None for `BOUND_TIMES` what the first contender takes alone; it is the same for all
        Raises UsageError for a bound that no request keeps even alone, and what a request raises.
        """
        clock = asyncio.get_running_loop().time
        typical_ms = await self._warm_up(requests, advance)
        self.bound = bound = Bound(percentile=percentile, ms=bound_ms or BOUND_TIMES * typical_ms[0])
        for name, typical in zip(requests, typical_ms, strict=True):
            if typical > bound.ms:
                raise UsageError(f"a bound of {bound.ms:g} ms is below what {name} takes alone, {typical:.3g} ms")
        enough = max(_FEWEST, count_needed(percentile))
        before, origin = self._counters(), clock()
        try:
            for (name, request), typical in zip(requests.items(), typical_ms, strict=True):
                self.trials[name] = []

                async def attempt(rate: float, least: int, name: str = name, request: AsyncRequest = request) -> Trial:
                    advance(Moment(f"{name}: {rate:.4g} requests a second", 0.0, self._newest(name)))
                    least = min(least, int(rate * self.plan.patience_s) + 1)
                    arrivals = draw_arrivals(rate, self.plan.seconds, least, len(self.trials[name]))
                    flood = await run_open(request, arrivals, origin, _give_up(bound, len(arrivals)))
                    trial = judge_flood(flood, rate, bound, len(arrivals))
                    self.trials[name].append(trial)
                    if len(flood.block.latencies_ms):
                        self.runs[name].blocks = [flood.block]
                    return trial

                await find_rate(lambda rate: attempt(rate, _FEWEST), lambda rate: attempt(rate, enough), 500 / typical)
        finally:
            self.disturbance = before.until(self._counters(), clock() - origin)

    async def _warm_up(self, requests: Mapping[str, AsyncRequest], advance: Advance) -> list[float]:
        """One request after the other; what one takes, in milliseconds."""
        clock, typical = asyncio.get_running_loop().time, list[float]()
        self.runs = {name: Run() for name in requests}
        for name, request in requests.items():
            advance(Moment(f"warm up {name}", 0.0))
            warming = Warming(self.plan.warm_s, clock)
            while warming.goes_on():
                start = clock()
                await request(self._asked)
                self._asked += 1
                warming.add((clock() - start) * 1e3)
            self.runs[name].warmup = warming.end()
            typical.append(warming.typical_ms)
        return typical

    def _newest(self, name: str) -> Sequence[float]:
        blocks = self.runs[name].blocks
        return blocks[-1].latencies_ms.tolist() if blocks else ()


def judge_flood(flood: Flood, rate: float, bound: Bound, planned: int) -> Trial:
    """Kept when no more requests than the percentile allows took longer than the bound, or were missed."""
    latencies = flood.block.latencies_ms
    over = int((latencies > bound.ms).sum()) + flood.missed
    known = len(latencies) > 0 and not flood.given_up
    return Trial(
        rate=rate,
        kept=not flood.given_up and over <= _allowed(bound, planned),
        percentile_ms=float(np.percentile(latencies, bound.percentile)) if known else None,
        requests=len(latencies),
        missed=flood.missed,
        late_ms=flood.late_ms,
    )


def _allowed(bound: Bound, planned: int) -> int:
    return int(round((100 - bound.percentile) / 100 * planned, 6))


def _give_up(bound: Bound, planned: int) -> Callable[[Sequence[float], int, float], bool]:
    """As soon as nothing that may still come can keep the bound."""
    allowed, seen, over = _allowed(bound, planned), 0, 0

    def gives_up(latencies_ms: Sequence[float], missed: int, waiting_ms: float) -> bool:
        nonlocal seen, over
        over += sum(latency > bound.ms for latency in latencies_ms[seen:])
        seen = len(latencies_ms)
        return over + missed > allowed or waiting_ms > _HOPELESS * bound.ms

    return gives_up
