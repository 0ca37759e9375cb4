"""Loads played in virtual time on servers whose queue is known."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest

from ferryman.bench.curve import Point, draw_curve
from ferryman.bench.disturbance import Counters
from ferryman.bench.flow import AsyncRequest, draw_arrivals, run_closed, run_open
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import FEWEST_ROUNDS, Plan
from ferryman.bench.report import report_latency
from ferryman.bench.samples import Block, Series
from ferryman.bench.search import PRECISION, Search, Trial, find_precision, find_rate
from ferryman.bench.turns import ROUNDS
from ferryman.errors import OverloadedError, UnavailableError

from . import virtual
from .synthetic import constant, play


def serve(service_s: Callable[[int], float], workers: int = 1) -> AsyncRequest:
    """A server with a queue: each of its workers answers one request at a time, in the order in which they came."""
    lock: list[asyncio.Semaphore] = []

    async def request(number: int) -> Mapping[str, float]:
        if not lock:
            lock.append(asyncio.Semaphore(workers))
        async with lock[0]:
            await asyncio.sleep(service_s(number))
        return {"compute": service_s(number) * 1e3}

    return request


def close(request: AsyncRequest, clients: int, seconds: float) -> Block:
    blocks: list[Block] = []
    virtual.run(run_closed(request, clients, seconds, 1000.0, blocks))
    (block,) = blocks
    return block


def test_closed_loops_know_their_throughput() -> None:
    """Two workers of 10 ms: 200 requests a second, and eight clients wait for 40 ms."""
    block = close(serve(lambda number: 0.01, workers=2), 8, 5.0)
    assert len(block.latencies_ms) / block.seconds == pytest.approx(200, rel=0.01)
    assert np.median(block.latencies_ms) == pytest.approx(40, rel=0.01)
    assert block.stages_ms["compute"].mean() == pytest.approx(10)
    assert len(close(serve(lambda number: 60.0), 3, 0.1).latencies_ms) == 3


def lindley(
    arrivals: np.ndarray[tuple[int], np.dtype[np.float64]], service_s: float
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Milliseconds in a queue with one worker, by Lindley's recursion."""
    free, found = 0.0, list[float]()
    for arrival in arrivals:
        free = max(free, float(arrival)) + service_s
        found.append((free - float(arrival)) * 1e3)
    return np.array(found)


@pytest.mark.parametrize("rate", [20, 80, 95])
def test_an_open_loop_is_the_queue_of_the_books(rate: float) -> None:
    arrivals = draw_arrivals(rate, 30, 0)
    assert len(arrivals) / arrivals[-1] == pytest.approx(rate, rel=0.08)
    flood = virtual.run(run_open(serve(lambda number: 0.01), arrivals, 1000.0))
    np.testing.assert_allclose(np.sort(flood.block.latencies_ms), np.sort(lindley(arrivals, 0.01)), atol=1e-3)
    assert (flood.missed, flood.given_up) == (0, False)
    assert flood.late_ms < 1e-3


def test_nothing_is_omitted() -> None:
    """A server of 1 ms that once stands still for 2 s: all that came meanwhile waited, and the figures say so.

    Of 10 s at 100 requests a second a fifth waited, from 0 to 2 s: the 90th percentile is 1 s. A closed loop has but
    one slow request in ten thousand.
    """

    def stuck(number: int) -> float:
        return 2.0 if number == 300 else 0.001

    flood = virtual.run(run_open(serve(stuck), np.arange(1000) / 100, 1000.0))
    assert np.percentile(flood.block.latencies_ms, 90) == pytest.approx(1000, rel=0.15)
    closed = close(serve(stuck), 1, 10.0)
    assert np.percentile(closed.latencies_ms, 99.9) == pytest.approx(1, rel=0.01)


def test_a_late_sender_hides_nothing() -> None:
    """Half a second in which nothing could be sent: the requests that were due then count from when they were."""

    async def request(number: int) -> Mapping[str, float]:
        if number == 10:
            virtual.hold(0.5)
        return {}

    flood = virtual.run(run_open(request, np.arange(1, 101) / 100, 1000.0))
    assert flood.late_ms == pytest.approx(490, abs=2)
    slow = flood.block.latencies_ms[flood.block.latencies_ms > 5]
    np.testing.assert_allclose(np.sort(slow), np.arange(10, 501, 10), atol=2)


def test_requests_that_are_refused_are_missed_and_others_end_it() -> None:
    async def refuse(number: int) -> Mapping[str, float]:
        await asyncio.sleep(0.001)
        if number % 4 == 3:
            raise OverloadedError("full")
        return {}

    flood = virtual.run(run_open(refuse, np.arange(100) / 100, 1000.0))
    assert (flood.missed, len(flood.block.latencies_ms)) == (25, 75)

    async def die(number: int) -> Mapping[str, float]:
        if number == 10:
            raise UnavailableError("gone")
        return {}

    blocks: list[Block] = []
    for load in (run_open(die, np.arange(100) / 100, 1000.0), run_closed(die, 1, 1.0, 1000.0, blocks)):
        with pytest.raises(ExceptionGroup) as caught:
            virtual.run(load)
        assert caught.group_contains(UnavailableError, match="gone")
    assert len(blocks[0].latencies_ms) == 10  # what was answered before is kept


def test_a_hopeless_load_is_given_up() -> None:
    def gives_up(latencies_ms: object, missed: int, waiting_ms: float) -> bool:
        return waiting_ms > 500

    flood = virtual.run(run_open(serve(lambda number: 1.0), np.arange(10_000) / 100, 1000.0, gives_up))
    assert flood.given_up
    assert flood.block.seconds < 1


def test_nothing_is_sent_early() -> None:
    """Not even when it looked hopeless for a moment."""
    looks = count()
    flood = virtual.run(
        run_open(serve(lambda number: 0.001), np.arange(1, 100) / 10, 1000.0, lambda *_: next(looks) == 100)
    )
    assert flood.given_up
    assert (flood.block.latencies_ms >= 1 - 1e-6).all()


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


def test_it_warms_up_as_it_is_measured() -> None:
    """By all clients, until what they wait for each other has come to rest; joules and figures have none of it."""
    inside, most = 0, list[int]()
    first = serve(lambda number: 0.01)

    async def request(number: int) -> Mapping[str, float]:
        nonlocal inside
        inside += 1
        most.append(inside)
        try:
            return await first(number)
        finally:
            inside -= 1

    harness = FlowHarness(Plan(seconds=2, warm_s=2), Counters)
    virtual.run(harness.measure_offline({"one": request}, {"one": 16}, lambda moment: None))
    warmup = harness.runs["one"].warmup
    assert warmup is not None
    assert warmup.steady
    assert max(most[: warmup.requests]) == 16
    assert 64 <= warmup.requests < 100
    # a cold start that only a crowd sees is over before anything counts
    slow = FlowHarness(Plan(seconds=2, warm_s=20), Counters)
    cold_ones = serve(lambda number: 0.01 * (1 + 5 * float(np.exp(-number / 30))))
    virtual.run(slow.measure_offline({"one": cold_ones}, {"one": 8}, lambda moment: None))
    assert np.median(slow.runs["one"].blocks[0].latencies_ms[:40]) == pytest.approx(80, rel=0.03)


def test_the_bound_is_five_times_what_one_takes_alone() -> None:
    harness = FlowHarness(Plan(seconds=1, warm_s=1), Counters)
    requests = {"one": serve(lambda number: 0.01), "two": serve(lambda number: 0.005, workers=2)}
    virtual.run(harness.measure_server(requests, 90, None, lambda moment: None))
    assert harness.bound is not None
    assert harness.bound.ms == pytest.approx(50, rel=0.01)
    one, two = (trials[-1].rate for trials in harness.trials.values())
    assert 3 < two / one < 6


def test_offline_throughput() -> None:
    harness = FlowHarness(Plan(seconds=6, warm_s=1), Counters)
    requests = {"one": serve(lambda number: 0.01, workers=4), "two": serve(lambda number: 0.02, workers=4)}
    virtual.run(harness.measure_offline(requests, dict.fromkeys(requests, 4), lambda moment: None))
    rates = [report_latency(run).images_per_s for run in harness.runs.values()]
    assert rates == [pytest.approx(400, rel=0.02), pytest.approx(200, rel=0.04)]
    assert [len(run.blocks) for run in harness.runs.values()] == [ROUNDS, ROUNDS]


CURVES: dict[str, tuple[Callable[[int], float], int, int]] = {
    "a launch that is shared": (lambda size: 9 + size, 64, 64),
    "no gain": (lambda size: 10.0 * size, 1, 1),
    "memory ends at 16": (lambda size: 4 + size if size <= 16 else 4 + size * 2, 16, 16),
    "a small launch": (lambda size: 1 + size, 32, 8),
}


def point(size: int, took_ms: float) -> Point:
    return Point(name=str(size), at=size, median_ms=took_ms, images_per_s=1e3 * size / took_ms)


@pytest.mark.parametrize(("took", "best", "knee"), CURVES.values(), ids=CURVES)
def test_sessions_that_grow_with_the_batch(took: Callable[[int], float], best: int, knee: int) -> None:
    """Through the harness, with 2 % of noise: the knee and the best exactly, throughput within 1 %."""
    sizes = (1, 2, 4, 8, 16, 32, 64)
    runs = play({str(size): constant(took(size), 0.02, size) for size in sizes}, Plan(seconds=10, warm_s=2)).runs
    medians = [float(np.median(run.latencies_ms)) for run in runs.values()]
    curve = draw_curve("batch", [point(size, median) for size, median in zip(sizes, medians, strict=True)], "")
    assert (curve.knee, curve.best) == (str(knee), str(best))
    gains = {size: size / took(size) for size in sizes}
    for one in curve.points:
        assert one.images_per_s == pytest.approx(1e3 * gains[int(one.at)], rel=0.01)


@pytest.mark.parametrize(("took", "best", "knee"), CURVES.values(), ids=CURVES)
def test_knee_and_best_batch(took: Callable[[int], float], best: int, knee: int) -> None:
    curve = draw_curve("batch", [point(size, took(size)) for size in (1, 2, 4, 8, 16, 32, 64)], "64 is the most")
    assert (curve.best, curve.knee) == (str(best), str(knee))
    assert curve.line is not None
    if curve.line.worst < 0.01:
        assert curve.line.fixed_ms + curve.line.each_ms == pytest.approx(took(1))
        assert f"{took(2) - took(1):.3g} ms a picture" in str(curve)
    else:
        assert "no line fits" in str(curve)


def test_a_curve_of_sizes_is_a_line_and_no_choice() -> None:
    points = [
        Point(name=f"{side}x{side}", at=side * side / 1e6, median_ms=3 + side * side / 1e4, images_per_s=1)
        for side in (224, 448)
    ]
    curve = draw_curve("size", points, "the bundle has no other size")
    assert (curve.best, curve.knee) == (None, None)
    assert str(curve) == "a request takes 3 ms and 100 ms a megapixel; ended: the bundle has no other size"
    assert draw_curve("size", points[:1], "").line is None


def test_a_block_is_as_long_as_many_clients_take() -> None:
    """32 clients of a session that answers one after the other: each waits for all others, in however short a block."""
    harness = FlowHarness(Plan(seconds=0.5, warm_s=1), Counters)
    requests = {"one": serve(lambda number: 0.01, workers=1)}
    virtual.run(harness.measure_offline(requests, {"one": 32}, lambda moment: None))
    run = harness.runs["one"]
    assert len(run.blocks) == FEWEST_ROUNDS
    assert np.median(run.latencies_ms) == pytest.approx(320, rel=0.05)
    assert len(run.latencies_ms) / run.seconds == pytest.approx(100, rel=0.01)


def test_joules_of_a_block_that_an_error_ends() -> None:
    """What was answered before it is kept, with what it took."""

    class Meter:
        name = "package-0"

        def joules(self) -> float:
            return 10 * asyncio.get_running_loop().time()

    async def request(number: int) -> Mapping[str, float]:
        await asyncio.sleep(0.01)
        if number > 300:
            raise UnavailableError("gone")
        return {}

    harness = FlowHarness(Plan(seconds=6, warm_s=1), Counters, [Meter()])
    with pytest.raises(ExceptionGroup):
        virtual.run(harness.measure_offline({"one": request}, {"one": 2}, lambda moment: None))
    joules = report_latency(harness.runs["one"]).joules_per_image["package-0"]
    assert joules == pytest.approx(10 * 0.01 / 2, rel=0.1)
