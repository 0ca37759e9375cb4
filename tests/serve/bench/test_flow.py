"""Loads played in virtual time on servers whose queue is known."""

import asyncio
import gc
from collections.abc import Callable, Mapping
from itertools import count

import numpy as np
import pytest

from ferryman.bench.curve import Point, draw_curve
from ferryman.bench.disturbance import Counters
from ferryman.bench.flow import AsyncRequest, draw_arrivals, run_closed, run_load, run_open
from ferryman.bench.flow_harness import FlowHarness
from ferryman.bench.harness import FEWEST_ROUNDS, Plan
from ferryman.bench.report import report_latency
from ferryman.bench.samples import Block
from ferryman.bench.turns import ROUNDS
from ferryman.commands.bench.workload import keep
from ferryman.errors import OverloadedError, UnavailableError

from . import virtual
from .queues import lindley, serve
from .synthetic import constant, play


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
    arrivals = np.arange(100) / 100
    for load in (run_open(die, arrivals, 1000.0, blocks=blocks), run_closed(die, 1, 1.0, 1000.0, blocks)):
        with pytest.raises(ExceptionGroup) as caught:
            virtual.run(load)
        assert caught.group_contains(UnavailableError, match="gone")
    assert [len(block.latencies_ms) for block in blocks] == [10, 10]  # what was answered before is kept


def test_a_signal_that_meets_a_task_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It is told by whoever catches it; what else nobody looks after is still told."""

    async def stopped(error: BaseException) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(raise_it(error))

    async def raise_it(error: BaseException) -> None:
        raise error

    async def forget(error: BaseException) -> None:
        asyncio.get_running_loop().create_task(raise_it(error))
        await asyncio.sleep(0.01)

    with pytest.raises(SystemExit):
        run_load(stopped(SystemExit(130)))
    gc.collect()
    assert caplog.messages == []
    run_load(forget(ValueError("lost")))
    gc.collect()
    assert "Task exception was never retrieved" in caplog.text


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


def test_what_an_error_leaves_of_a_search() -> None:
    """Of the first trial what was answered, and nothing less of the contenders before."""
    asked = 0

    async def die(number: int) -> Mapping[str, float]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.001)
        if asked > 250:  # some 200 of which warm up
            raise UnavailableError("gone")
        return {}

    harness = FlowHarness(Plan(seconds=1, warm_s=1), Counters)
    requests = {"one": serve(lambda number: 0.01), "two": die, "three": serve(lambda number: 0.01)}
    search = harness.measure_server(requests, 90.0, 50.0, lambda moment: None)
    assert isinstance(keep(harness, lambda: virtual.run(search)), UnavailableError)
    assert list(harness.runs) == ["one", "two"]
    assert "confirmed" in harness.ended["one"]
    assert "two" not in harness.ended
    assert harness.trials["two"] == []
    assert 0 < len(harness.runs["two"].latencies_ms) < 100
    nobody = FlowHarness(harness.plan).measure_offline({"two": die}, {"two": 1}, lambda moment: None)
    with pytest.raises(UnavailableError):  # of whom nothing is left
        keep(FlowHarness(harness.plan), lambda: virtual.run(nobody))
