"""Contenders under load: offline, whose clients never pause, and server, whose requests come as they like.

Definitions are MLPerf Inference's; docs/benchmarks.md says where ours differ.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import ceil

import numpy as np

from ferryman.bench.disturbance import Counters, Disturbance, read_counters
from ferryman.bench.energy import Meters, joules_since, read_joules
from ferryman.bench.flow import AsyncRequest, Flood, draw_arrivals, run_closed, run_open
from ferryman.bench.harness import FEWEST_ROUNDS, Moment, Plan
from ferryman.bench.percentiles import count_beyond, count_needed
from ferryman.bench.samples import Block, Run
from ferryman.bench.search import Bound, Search, Trial, find_precision, find_rate, guess_rate
from ferryman.bench.turns import ROUNDS
from ferryman.bench.warming import Warming
from ferryman.errors import DeadlineError, OverloadedError, UsageError

Advance = Callable[[Moment], None]
BOUND_TIMES = 5.0  # of one request alone: the bound, where none is given
_TURNS = 4  # of each client: what a block lasts at least
_FEWEST = 200  # requests of a trial
_HOPELESS = 10.0  # times the bound that a request waits, and the trial is given up
_CROWD = 32  # clients, at most, that warm up what is then asked by nobody in particular
_TRIALS, _FEWEST_TRIALS = 60, 8  # of the plan's seconds: how long a search takes at most, and is allowed to in any case
_LONGEST = 1 / _FEWEST_TRIALS  # of that time: a trial; a confirmation gets what is left, at least twice as much


class FlowHarness:
    """runs, disturbance: as `Harness` has them; bound: that was searched with

    trials: of each contender's search so far; ended: how each search ended that did
    """

    def __init__(self, plan: Plan, counters: Callable[[], Counters] = read_counters, meters: Meters = ()) -> None:
        self.plan = plan
        self.runs: dict[str, Run] = {}
        self.disturbance = Disturbance()
        self.trials: dict[str, list[Trial]] = {}
        self.ended: dict[str, str] = {}
        self.bound: Bound | None = None
        self._counters, self._meters = counters, meters
        self._asked = 0

    async def measure_offline(
        self, requests: Mapping[str, AsyncRequest], clients: Mapping[str, int], advance: Advance
    ) -> None:
        """Closed loops of so many clients each, in blocks of all contenders in turn. Raises what a request raises."""
        clock = asyncio.get_running_loop().time
        typical_ms = await self._warm_up(requests, clients, advance)
        # A block of a burst and its end would be neither the latency nor the throughput of so many clients.
        least = {name: _TURNS * typical / 1e3 for name, typical in typical_ms.items()}
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
        typical_ms = await self._warm_up(requests, dict.fromkeys(requests, 1), advance)
        self.bound = bound = Bound(percentile=percentile, ms=bound_ms or BOUND_TIMES * next(iter(typical_ms.values())))
        for name, typical in typical_ms.items():
            if typical > bound.ms:
                raise UsageError(f"a bound of {bound.ms:g} ms is below what {name} takes alone, {typical:.3g} ms")
        clock = asyncio.get_running_loop().time
        before, origin = self._counters(), clock()
        try:
            for name, request in requests.items():
                advance(Moment(f"warm up {name}", 0.0))
                start = await self._warm_crowd(name, request, bound, typical_ms[name])
                self.ended[name] = (await self._search(name, request, bound, start, origin, advance)).ended
        finally:
            self.disturbance = before.until(self._counters(), clock() - origin)

    async def _search(
        self, name: str, request: AsyncRequest, bound: Bound, start: float, origin: float, advance: Advance
    ) -> Search:
        """start: the first rate; origin: when the measuring began"""
        plan, clock = self.plan, asyncio.get_running_loop().time
        enough = max(_FEWEST, count_needed(bound.percentile))
        whole_s = max(_FEWEST_TRIALS * plan.seconds, min(plan.patience_s, _TRIALS * plan.seconds + 2 * enough / start))
        began = clock()
        self.trials[name] = []

        def spent() -> float:
            return (clock() - began) / whole_s

        def count(rate: float, least: int, share: float) -> int:
            """Requests of a trial that takes a share of the time at most."""
            return min(max(least, round(rate * plan.seconds)), int(rate * share * whole_s) + 1)

        async def attempt(rate: float, least: int, share: float) -> Trial:
            advance(Moment(f"{name}: {rate:.4g} requests a second", min(1.0, spent()), self._newest(name)))
            planned = count(rate, least, share)
            arrivals = draw_arrivals(rate, 0, planned, len(self.trials[name]))
            joules = read_joules(self._meters)
            blocks: list[Block] = []
            try:
                flood = await run_open(request, arrivals, origin, _give_up(bound, planned), blocks)
            finally:  # an error leaves a block too, where no trial before it did
                self.runs[name].blocks = self.runs[name].blocks or blocks
            trial = judge_flood(flood, rate, bound, planned)
            self.trials[name].append(trial)
            if flood.given_up:
                await self._let_settle(request)
            if len(flood.block.latencies_ms):
                self.runs[name].blocks = [replace(flood.block, joules=joules_since(joules, self._meters))]
            return trial

        return await find_rate(
            partial(attempt, least=_FEWEST, share=_LONGEST),
            lambda rate: attempt(rate, enough, max(2 * _LONGEST, 1 - spent())),
            start,
            lambda rate: find_precision(bound.percentile, count(rate, _FEWEST, _LONGEST)),
            spent,
        )

    async def _let_settle(self, request: AsyncRequest) -> None:
        """What a server still has of a load that was given up is done when one more request is."""
        number, self._asked = self._asked, self._asked + 1
        with suppress(OverloadedError, DeadlineError):
            await request(number)

    async def _warm_up(
        self, requests: Mapping[str, AsyncRequest], clients: Mapping[str, int], advance: Advance
    ) -> dict[str, float]:
        """By as many clients as are measured then; what a request takes among them, in milliseconds."""
        self.runs = {name: Run() for name in requests}
        typical_ms: dict[str, float] = {}
        for name, request in requests.items():
            advance(Moment(f"warm up {name}", 0.0))
            warming = await self._ask_until_steady(request, clients[name])
            self.runs[name].warmup, typical_ms[name] = warming.end(), warming.typical_ms
        return typical_ms

    async def _warm_crowd(self, name: str, request: AsyncRequest, bound: Bound, typical_ms: float) -> float:
        """By as many clients as can wait for each other within the bound: batches that only a crowd makes are new to
        what has answered one request at a time. A first rate to try, made from what they got.
        """
        clients = min(_CROWD, max(2, ceil(bound.ms / typical_ms)))
        warming = await self._ask_until_steady(request, clients, refused=True)
        alone, crowded = self.runs[name].warmup, warming.end() if warming.typical_ms else None
        if alone is None or crowded is None:  # all were refused
            return guess_rate(bound, typical_ms, 1e3 / typical_ms)
        self.runs[name].warmup = alone.then(crowded)
        return guess_rate(bound, typical_ms, crowded.requests / crowded.seconds)

    async def _ask_until_steady(self, request: AsyncRequest, clients: int, refused: bool = False) -> Warming:
        """refused: whether a client that is refused leaves, instead of ending it all. Raises what a request raises."""
        clock = asyncio.get_running_loop().time
        warming = Warming(self.plan.warm_s, clock, clients)

        async def go_on() -> None:
            while warming.goes_on():
                number, self._asked = self._asked, self._asked + 1
                start = clock()
                try:
                    await request(number)
                except (OverloadedError, DeadlineError):
                    if not refused:
                        raise
                    return
                warming.add((clock() - start) * 1e3)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(go_on())
        return warming

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
        kept=not flood.given_up and over <= count_beyond(bound.percentile, planned),
        percentile_ms=float(np.percentile(latencies, bound.percentile)) if known else None,
        requests=len(latencies),
        missed=flood.missed,
        late_ms=flood.late_ms,
    )


def _give_up(bound: Bound, planned: int) -> Callable[[Sequence[float], int, float], bool]:
    """As soon as nothing that may still come can keep the bound."""
    allowed, seen, over = count_beyond(bound.percentile, planned), 0, 0

    def gives_up(latencies_ms: Sequence[float], missed: int, waiting_ms: float) -> bool:
        nonlocal seen, over
        over += sum(latency > bound.ms for latency in latencies_ms[seen:])
        seen = len(latencies_ms)
        return over + missed > allowed or waiting_ms > _HOPELESS * bound.ms

    return gives_up
