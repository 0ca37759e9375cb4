"""Batches: who is in which, and what happens to those that leave, are late, fail, or wait when it closes."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from ferryman.errors import DeadlineError, EngineError, OverloadedError, UnavailableError
from ferryman.server.batcher import Batcher
from ferryman.server.costs import Costs
from ferryman.server.queueing import Caller

from .gate import Gate, any_batch_helps


class Doubler:
    """Doubles numbers behind a gate; 13 breaks the batch that it is in."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __call__(self, items: list[int]) -> list[int]:
        self._gate(len(items))
        if 13 in items:
            raise EngineError("13 is bad luck")
        return [2 * item for item in items]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()  # whatever the test did, no thread is left behind


@pytest.fixture
def batcher(gate: Gate) -> Batcher[int, int]:
    costs = any_batch_helps()
    return Batcher(Doubler(gate), "doubler", lambda key: costs, max_batch=4)


async def outputs(batcher: Batcher[int, int], *items: int, deadline: float | None = None) -> list[int]:
    return [done.output for done in await batcher.submit(items, deadline)]


async def test_an_idle_batcher_starts_at_once_and_a_busy_one_gathers(gate: Gate, batcher: Batcher[int, int]) -> None:
    first = asyncio.create_task(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    others = [asyncio.create_task(outputs(batcher, item)) for item in range(2, 8)]
    await asyncio.sleep(0)  # they queue
    gate.open()
    assert await asyncio.gather(first, *others) == [[2], [4], [6], [8], [10], [12], [14]]
    assert gate.batches == [1, 4, 2]
    await batcher.close()


async def test_a_request_is_split_and_comes_back_in_order(gate: Gate, batcher: Batcher[int, int]) -> None:
    gate.open()
    done = await batcher.submit(range(10))
    assert [one.output for one in done] == list(range(0, 20, 2))
    assert [one.batch for one in done] == [1] * 4 + [2] * 4 + [3] * 2
    assert gate.batches == [4, 4, 2]
    assert await outputs(batcher) == []
    await batcher.close()


async def test_who_has_left_is_left_out(gate: Gate, batcher: Batcher[int, int]) -> None:
    running = asyncio.create_task(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    leaver, stayer = asyncio.create_task(outputs(batcher, 2, 3, 4)), asyncio.create_task(outputs(batcher, 5))
    await asyncio.sleep(0)
    leaver.cancel()
    running.cancel()  # its batch runs already
    await asyncio.sleep(0)  # they hear of it
    gate.open()
    assert await stayer == [10]
    assert gate.batches == [1, 1]
    assert leaver.cancelled()
    assert running.cancelled()
    await batcher.close()


async def test_who_is_late_is_not_run(gate: Gate, batcher: Batcher[int, int]) -> None:
    running = asyncio.create_task(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    late = asyncio.create_task(outputs(batcher, 2, 3, deadline=time.monotonic()))
    punctual = asyncio.create_task(outputs(batcher, 4, deadline=time.monotonic() + 60))
    await asyncio.sleep(0)
    gate.open()
    assert await running == [2]
    with pytest.raises(DeadlineError):
        await late
    assert await punctual == [8]
    assert gate.batches == [1, 1]
    await batcher.close()


async def test_a_failed_batch_is_run_again_one_by_one(gate: Gate, batcher: Batcher[int, int]) -> None:
    running = asyncio.create_task(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    together = [asyncio.create_task(outputs(batcher, *items)) for items in ((13, 2), (3,), (4, 5))]
    await asyncio.sleep(0)
    gate.open()
    assert await running == [2]
    failed, *others = await asyncio.gather(*together, return_exceptions=True)
    assert isinstance(failed, EngineError)
    assert others == [[6], [8, 10]]
    # 2 is not run again: another image of its request has failed. 5 was not in the batch.
    assert gate.batches == [1, 4, 1, 1, 1, 1]
    with pytest.raises(EngineError, match="bad luck"):
        await outputs(batcher, 13)  # once: it was alone
    assert gate.batches == [1, 4, 1, 1, 1, 1, 1]
    assert await outputs(batcher, 6) == [12]
    await batcher.close()


async def test_a_run_that_answers_too_few_fails_for_its_callers_alone() -> None:
    costs = any_batch_helps()
    batcher = Batcher[int, int](lambda items: items if items == [1] else [], "short", lambda key: costs)
    with pytest.raises(ValueError, match="shorter"):
        await outputs(batcher, 2)
    assert await outputs(batcher, 1) == [1]
    await batcher.close()


async def test_closing_ends_what_runs_and_refuses_what_waits(gate: Gate, batcher: Batcher[int, int]) -> None:
    running = asyncio.create_task(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    waiting = asyncio.create_task(outputs(batcher, 2))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(UnavailableError):
        await waiting
    gate.open()
    assert await running == [2]
    await closing
    with pytest.raises(UnavailableError):
        await outputs(batcher, 3)


async def test_a_batch_is_of_one_key_and_the_others_keep_their_places(gate: Gate) -> None:
    costs = any_batch_helps()
    batcher = Batcher(Doubler(gate), "doubler", lambda key: costs, key=lambda item: item % 2, max_batch=3)
    first = asyncio.create_task(outputs(batcher, 0))
    await gate.wait_for_batches(1)
    mixed = asyncio.create_task(batcher.submit([1, 2, 3, 4, 5, 7, 6]))
    await asyncio.sleep(0)  # it queues
    gate.open()
    done = await mixed
    assert await first == [0]
    assert [one.output for one in done] == [2, 4, 6, 8, 10, 14, 12]
    assert [one.batch for one in done] == [2, 3, 2, 3, 2, 4, 3]
    assert gate.batches == [1, 3, 3, 1]
    await batcher.close()


async def queue_up(*asked: Coroutine[Any, Any, list[int]]) -> list[asyncio.Task[list[int]]]:
    tasks = [asyncio.create_task(one) for one in asked]
    await asyncio.sleep(0)
    return tasks


class Recorder:
    """Doubles numbers behind a gate, and remembers the batches."""

    def __init__(self, gate: Gate) -> None:
        self.batches: list[list[int]] = []
        self._gate = gate

    def __call__(self, items: list[int]) -> list[int]:
        self._gate(len(items))
        self.batches.append(items)
        return [2 * item for item in items]


async def test_a_single_request_does_not_wait_for_all_of_another_client(gate: Gate) -> None:
    costs, recorder = Costs({1: 0.01, 4: 0.01}), Recorder(gate)
    batcher = Batcher(recorder, "fair", lambda key: costs, max_batch=4)
    tasks = await queue_up(outputs(batcher, 0))
    await gate.wait_for_batches(1)
    many, one, low = Caller("many"), Caller("one"), Caller("one", "low")
    tasks += await queue_up(
        batcher_outputs(batcher, low, 900),
        batcher_outputs(batcher, many, *range(100, 110)),
        batcher_outputs(batcher, one, 500, 501),
    )
    gate.open()
    await asyncio.gather(*tasks)
    assert recorder.batches == [[0], [100, 500, 101, 501], [102, 103, 104, 105], [106, 107, 108, 109], [900]]
    await batcher.close()


async def batcher_outputs(batcher: Batcher[int, int], caller: Caller, *items: int) -> list[int]:
    return [done.output for done in await batcher.submit(items, None, caller)]


async def test_a_batch_that_does_not_help_is_not_made(gate: Gate) -> None:
    """Of sizes that were timed the largest that pays; a session that runs images one by one gets them one by one."""
    cases = {
        (1, 1, 1, 1): Costs({1: 0.010, 2: 0.020, 4: 0.040}),
        (2, 2): Costs({1: 0.010, 2: 0.012, 4: 0.024}),
        (4,): Costs({1: 0.010, 2: 0.012, 4: 0.020, 8: 0.040}),
    }
    for sizes, costs in cases.items():
        gate.shut()
        gate.batches.clear()
        batcher = Batcher(Doubler(gate), "doubler", lambda key, costs=costs: costs, max_batch=8)
        tasks = await queue_up(outputs(batcher, 0))
        await gate.wait_for_batches(1)
        tasks += await queue_up(outputs(batcher, 1, 2), outputs(batcher, 3, 4))
        gate.open()
        await asyncio.gather(*tasks)
        assert tuple(gate.batches[1:]) == sizes
        await batcher.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_no_batch_breaks_the_earliest_deadline_in_the_queue(gate: Gate) -> None:
    """Of 4 that wait, one must be answered in 0.22 s, which a batch of 2 takes less than and one of 3 more."""
    costs, clock, recorder = Costs({1: 0.15, 2: 0.2, 4: 0.3, 8: 0.4}), Clock(), Recorder(gate)
    batcher = Batcher(recorder, "timed", lambda key: costs, max_batch=8, clock=clock)
    tasks = await queue_up(outputs(batcher, 0))
    await gate.wait_for_batches(1)
    tasks += await queue_up(
        outputs(batcher, 1, deadline=clock.now + 0.22),
        outputs(batcher, 2),
        outputs(batcher, 3, deadline=clock.now + 60),
        outputs(batcher, 4),
    )
    costs.add = lambda size, seconds: None  # the pace stays
    gate.open()
    assert await asyncio.gather(*tasks) == [[0], [2], [4], [6], [8]]
    assert recorder.batches == [[0], [1, 2], [3, 4]]
    await batcher.close()


async def test_what_would_end_too_late_leaves_its_place_to_others_but_the_last_one_is_tried(gate: Gate) -> None:
    costs, clock, recorder = Costs({1: 0.2}), Clock(), Recorder(gate)
    batcher = Batcher(recorder, "timed", lambda key: costs, clock=clock)
    costs.add = lambda size, seconds: None
    tasks = await queue_up(outputs(batcher, 0))
    await gate.wait_for_batches(1)
    soon, passed, later = await queue_up(
        outputs(batcher, 1, 2, deadline=clock.now + 1.1),
        outputs(batcher, 3, deadline=clock.now + 0.5),
        outputs(batcher, 4, deadline=clock.now + 9),
    )
    clock.now += 1
    gate.open()
    with pytest.raises(OverloadedError, match="too late for its deadline") as caught:
        await soon
    assert caught.value.retry_after_s == pytest.approx(0.4)  # for both of its items
    with pytest.raises(DeadlineError):
        await passed
    assert await later == [8]
    assert await outputs(batcher, 5, deadline=clock.now + 0.1) == [10]  # what is measured may be wrong
    assert recorder.batches == [[0], [4], [5]]
    await asyncio.gather(*tasks)
    await batcher.close()


async def test_batches_run_side_by_side(gate: Gate) -> None:
    costs = Costs({1: 0.01})
    batcher = Batcher(Doubler(gate), "wide", lambda key: costs, concurrency=3)
    tasks = await queue_up(outputs(batcher, 1, 2, 3, 4))
    await gate.wait_for_batches(3)
    assert batcher.predict({0: 1}, Caller()) > 0
    gate.open()
    assert await tasks[0] == [2, 4, 6, 8]
    assert gate.batches == [1] * 4
    await batcher.close()


async def test_the_wait_is_foretold_from_what_waits(gate: Gate) -> None:
    clock = Clock()
    costs = Costs({1: 1.0, 4: 2.0})
    batcher = Batcher(Doubler(gate), "timed", lambda key: costs, max_batch=4, clock=clock)
    assert batcher.predict({0: 9}, Caller()) == 0.0  # it would start at once
    tasks = await queue_up(outputs(batcher, 0))
    await gate.wait_for_batches(1)
    assert batcher.predict({0: 1}, Caller()) == pytest.approx(1 + 1)
    clock.now += 0.25
    tasks += await queue_up(outputs(batcher, *range(40)))
    assert batcher.waiting == 40
    assert batcher.predict({0: 4}, Caller()) == pytest.approx(0.75 + 20 + 2)  # its own 40 are before it
    assert batcher.predict({0: 4}, Caller("other")) == pytest.approx(0.75 + 2 + 2)  # of another's it waits for as many
    assert batcher.predict({0: 1}, Caller(), {Caller(): 5.0}) == pytest.approx(0.75 + 25 + 1)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks[1:])
    assert batcher.predict({0: 1}, Caller()) == pytest.approx(0.75 + 1)
    gate.open()
    await tasks[0]
    await batcher.close()


async def test_what_is_told_sooner_is_never_less(gate: Gate) -> None:
    """Whoever is let in by the sooner answer would have been by the slower one."""
    chance, clock = random.Random(0), Clock()
    costs = {0: Costs({1: 1.0, 4: 2.0}), 1: Costs({1: 3.0})}
    options: dict[str, Any] = {"key": lambda item: item % 2, "max_batch": 4, "concurrency": 2, "clock": clock}
    batcher = Batcher(Doubler(gate), "timed", costs.__getitem__, **options)
    assert batcher.starts_at_once({0: 8})
    assert not batcher.starts_at_once({0: 9})
    callers = [Caller(client, priority) for client in "abc" for priority in ("high", "low")]
    tasks: list[asyncio.Task[Any]] = []
    told: set[bool] = set()
    for _ in range(60):
        items = [chance.randrange(100) for _ in range(chance.randrange(1, 7))]
        tasks += await queue_up(batcher_outputs(batcher, chance.choice(callers), *items))
        clock.now += chance.random() * 0.5
        wanted = {key: count for key in (0, 1) if (count := chance.randrange(6))}
        if wanted:
            assert not batcher.starts_at_once(wanted)
            sooner, slower = batcher.predict_at_most(wanted), batcher.predict(wanted, chance.choice(callers))
            assert sooner >= slower - 1e-9
            told.add(sooner > 1.5 * slower)
    assert told == {True, False}
    gate.open()
    await asyncio.wait(tasks)
    assert batcher.predict_at_most({0: 1}) == batcher.own({0: 1})
    await batcher.close()


async def test_a_paused_batcher_keeps_what_waits(gate: Gate, batcher: Batcher[int, int]) -> None:
    running = await queue_up(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    pausing = asyncio.create_task(batcher.pause())
    waiting = await queue_up(outputs(batcher, 2), outputs(batcher, 3))
    gate.open()
    assert await running[0] == [2]
    await pausing
    assert gate.batches == [1]
    batcher.resume()
    assert await asyncio.gather(*waiting) == [[4], [6]]
    assert gate.batches == [1, 2]
    await batcher.pause()
    [refused] = await queue_up(outputs(batcher, 4))
    batcher.refuse(UnavailableError("no session"))
    with pytest.raises(UnavailableError, match="no session"):
        await refused
    await batcher.close()


async def test_every_request_has_one_outcome() -> None:
    """Three threads, clients of both priorities, images that fail, callers that leave, deadlines that pass."""
    chosen = random.Random(7)
    costs = {key: Costs({1: 0.0005, 8: 0.001}) for key in (0, 1)}

    def run(items: list[int]) -> list[int]:
        time.sleep(0.0005)
        assert len({item % 2 for item in items}) == 1
        if any(item % 17 == 0 for item in items):
            raise EngineError("17 is bad luck")
        return [2 * item for item in items]

    batcher = Batcher(run, "busy", costs.__getitem__, key=lambda item: item % 2, max_batch=8, concurrency=3)

    async def ask(items: list[int]) -> str:
        caller = Caller(chosen.choice("abc"), chosen.choice(["high", "low"]))
        deadline = time.monotonic() + chosen.choice([0.001, 0.05, 60]) if chosen.random() < 0.5 else None
        await asyncio.sleep(chosen.random() * 0.5)
        try:
            async with asyncio.timeout(chosen.choice([0.002, 60])):
                found = [done.output for done in await batcher.submit(items, deadline, caller)]
        except EngineError:
            assert any(item % 17 == 0 for item in items)
            return "failed"
        except (DeadlineError, OverloadedError):
            assert deadline is not None
            return "late"
        except TimeoutError:
            return "left"
        assert found == [2 * item for item in items]
        assert all(item % 17 for item in items)
        return "answered"

    asked = [[chosen.randrange(1000) for _ in range(chosen.randint(1, 6))] for _ in range(600)]
    outcomes = Counter(await asyncio.gather(*map(ask, asked)))
    assert outcomes.total() == 600
    assert set(outcomes) == {"answered", "failed", "late", "left"}
    await batcher.pause()  # what is left of those that left ends
    assert batcher.predict({0: 1}, Caller()) == 0.0
    await batcher.close()
