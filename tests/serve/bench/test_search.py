"""The search for the highest rate that keeps a bound: where it ends, and how right it is on queues of the books."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest

from ferryman.bench.disturbance import Counters
from ferryman.bench.flow import draw_arrivals
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import Plan
from ferryman.bench.samples import Series
from ferryman.bench.search import PRECISION, Bound, Search, Trial, find_precision, find_rate, guess_rate
from ferryman.errors import OverloadedError

from . import virtual
from .queues import lindley, serve


def search(limit: float, start: float, luck: Callable[[float], bool] = lambda rate: False, **how: Any) -> Search:
    """On a server that keeps its bound up to `limit`; luck: when a short trial keeps it beyond that"""

    async def attempt(rate: float) -> Trial:
        return Trial(rate=rate, kept=rate <= limit or luck(rate), percentile_ms=1, requests=1, missed=0, late_ms=0)

    async def confirm(rate: float) -> Trial:
        return (await attempt(rate)).model_copy(update={"kept": rate <= limit})

    return virtual.run(find_rate(attempt, confirm, start, **how))


@pytest.mark.parametrize(("start", "most"), [(0.1, 20), (1, 17), (75, 9), (90, 7), (100, 6), (2000, 14)])
def test_the_highest_rate_is_found(start: float, most: int) -> None:
    """Wherever it begins; from near the answer, in few trials."""
    found = search(100, start)
    assert found.trial is not None
    assert 100 / (1 + PRECISION) <= found.trial.rate <= 100
    assert len(found.trials) <= most
    assert found.ended.startswith("confirmed by 1 requests, and 10")


@pytest.mark.parametrize(
    ("percentile", "bound_ms", "share"), [(99, 50, 0.53), (90, 50, 0.74), (99, 10, 0.05), (99, 1e6, 1.0)]
)
def test_the_first_guess(percentile: float, bound_ms: float, share: float) -> None:
    """10 ms a request: shares of 100 a second, also for bounds that leave no time to wait, or all of it."""
    assert guess_rate(Bound(percentile=percentile, ms=bound_ms), 10, 100) == pytest.approx(100 * share, rel=0.01)


def test_it_goes_no_further_than_its_trials_can_tell() -> None:
    """200 requests, of which two may be too slow, don't tell rates apart that 2,000 do."""
    assert [find_precision(*one) for one in ((99, 4000), (99, 2000), (99, 200), (99.9, 200))] == [
        PRECISION, pytest.approx(0.067, abs=0.001), pytest.approx(0.212, abs=0.001), 0.3,
    ]  # fmt: skip
    coarse, fine = search(100, 40, precision=lambda rate: 0.15), search(100, 40)
    assert coarse.trial is not None
    assert 100 / 1.15 <= coarse.trial.rate <= 100
    assert len(coarse.trials) < len(fine.trials)


def test_a_bound_that_nothing_keeps() -> None:
    found = search(0, 10)
    assert (found.trial, len(found.trials)) == (None, 8)
    assert found.ended == "0.3207 requests a second, the fewest that were tried, broke it"


def test_what_was_luck_does_not_stand() -> None:
    """A rate that kept the bound by chance, in a short trial, does not when it is confirmed."""
    found = search(100, 10, lambda rate: rate < 120)
    assert found.trial is not None
    assert 80 < found.trial.rate <= 100
    lost = search(0, 10, lambda rate: True)
    assert (lost.trial, lost.ended) == (None, "none of 8 longer trials confirmed what shorter ones had found")


def test_a_search_ends_when_its_time_is_over() -> None:
    """What was found by then is confirmed; what that breaks is not replaced when there is no time for another one."""
    clock = count()
    found = search(100, 10, spent=lambda: next(clock) / 8)
    assert found.trial is not None
    assert (len(found.trials), found.trial.rate < 100) == (6, True)
    clock = count()
    late = search(0, 10, spent=lambda: next(clock) / 5)
    assert (late.trial, late.ended.endswith("requests a second broke it, and fewer are untried")) == (None, True)
    clock = count()
    lost = search(0, 10, lambda rate: True, spent=lambda: next(clock) / 5)
    assert lost.ended.endswith(", before what it had found was confirmed")


def test_the_server_scenario_finds_the_rate_that_its_queue_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 ms a request, and 50 ms for 99 of 100 of them: the rate of the books, by Lindley's recursion.

    Of 6 searches with trials of 60 s at least 4 find it within 10 %, and all within 20 %.
    """

    def percentile(rate: float) -> float:
        return float(np.percentile(lindley(draw_arrivals(rate, 2000, 0, seed=5), 0.01), 99))

    true = bisect_left(range(100), True, lo=20, key=lambda rate: percentile(rate) > 50)
    rates: list[float] = []
    for number in range(6):
        draw = partial(_draw_others, number)
        monkeypatch.setattr("ferryman.bench.flow_harness.draw_arrivals", draw)
        harness = FlowHarness(Plan(seconds=60, warm_s=1), Counters)
        virtual.run(harness.measure_server({"one": serve(lambda number: 0.01)}, 99, 50.0, lambda moment: None))
        last = harness.trials["one"][-1]
        assert last.kept
        assert last.requests >= 1000
        (block,) = harness.runs["one"].blocks
        assert len(block.latencies_ms) == last.requests
        assert np.percentile(block.latencies_ms, 99) <= 50
        assert any(not trial.kept for trial in harness.trials["one"])
        assert len(harness.trials["one"]) <= 9
        assert harness.ended["one"].startswith(f"confirmed by {last.requests:,} requests, and ")
        rates.append(last.rate)
    assert sum(abs(rate / true - 1) <= 0.1 for rate in rates) >= 4, rates
    assert max(abs(rate / true - 1) for rate in rates) <= 0.2, rates


def _draw_others(number: int, rate: float, seconds: float, least: int, seed: int) -> Series:
    """Arrivals of a search of its own."""
    return draw_arrivals(rate, seconds, least, 1000 * number + seed)


def test_a_slow_model_does_not_take_for_ever() -> None:
    """Half a second a request, 10 s: the search takes no longer than its bound, the percentile's requests included."""
    harness = FlowHarness(Plan(seconds=10, warm_s=10, patience_s=900), Counters)

    async def main() -> float:
        start = asyncio.get_running_loop().time()
        await harness.measure_server({"one": serve(lambda number: 0.5)}, 99, None, lambda moment: None)
        return asyncio.get_running_loop().time() - start

    took = virtual.run(main())
    last = harness.trials["one"][-1]
    assert last.kept
    assert last.rate == pytest.approx(1.5, rel=0.15)
    assert last.requests > 300
    assert took < 900 + 60  # warming up, and what waits when the last trial has sent all


def test_the_search_begins_near_what_a_crowd_gets() -> None:
    """A server whose batches of up to 16 take as long as one picture: what one client gets says little of it.

    It goes on with what nobody waits for any more, which no later trial meets.
    """
    batch: list[asyncio.Future[None]] = []

    async def run_batches() -> None:
        while True:
            taken = [batch.pop(0) for _ in range(min(16, len(batch)))]
            await asyncio.sleep(0.01)
            for one in taken:
                if not one.cancelled():
                    one.set_result(None)

    async def request(number: int) -> Mapping[str, float]:
        mine = asyncio.get_running_loop().create_future()
        batch.append(mine)
        await mine
        return {}

    harness = FlowHarness(Plan(seconds=2, warm_s=2), Counters)

    async def main() -> None:
        running = asyncio.create_task(run_batches())
        await harness.measure_server({"one": request}, 99, 200.0, lambda moment: None)
        running.cancel()

    virtual.run(main())
    first, *_, last = harness.trials["one"]
    assert last.kept
    assert first.rate > 300  # one alone gets 100
    assert last.rate == pytest.approx(1600, rel=0.15)


def test_who_is_refused_while_it_warms_up_leaves() -> None:
    """A server that lets in two requests at a time is searched all the same: those it refuses are missed."""
    inside = 0

    async def request(number: int) -> Mapping[str, float]:
        nonlocal inside
        if inside == 2:
            raise OverloadedError("full")
        inside += 1
        try:
            await asyncio.sleep(0.01)
        finally:
            inside -= 1
        return {}

    harness = FlowHarness(Plan(seconds=5, warm_s=1), Counters)
    virtual.run(harness.measure_server({"one": request}, 90, 50.0, lambda moment: None))
    last = harness.trials["one"][-1]
    assert last.kept
    assert 40 < last.rate < 120
    with pytest.raises(ExceptionGroup) as caught:  # offline such a server can't be measured, and that is said
        virtual.run(harness.measure_offline({"one": request}, {"one": 3}, lambda moment: None))
    assert caught.group_contains(OverloadedError)


def test_the_bound_is_five_times_what_one_takes_alone() -> None:
    harness = FlowHarness(Plan(seconds=1, warm_s=1), Counters)
    requests = {"one": serve(lambda number: 0.01), "two": serve(lambda number: 0.005, workers=2)}
    virtual.run(harness.measure_server(requests, 90, None, lambda moment: None))
    assert harness.bound is not None
    assert harness.bound.ms == pytest.approx(50, rel=0.01)
    one, two = (trials[-1].rate for trials in harness.trials.values())
    assert 3 < two / one < 6
