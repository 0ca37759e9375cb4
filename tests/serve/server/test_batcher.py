"""Batches: who is in which, and what happens to those that leave, are late, fail, or wait when it closes."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from ferryman.errors import DeadlineError, EngineError, UnavailableError
from ferryman.server.batcher import Batcher

from .gate import Gate


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
    return Batcher(Doubler(gate), max_batch=4, name="doubler")


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


async def test_a_failure_reaches_its_batch_and_no_other(gate: Gate, batcher: Batcher[int, int]) -> None:
    running = asyncio.create_task(outputs(batcher, 1))
    await gate.wait_for_batches(1)
    together = [asyncio.create_task(outputs(batcher, *items)) for items in ((2, 13), (3,), (4, 5))]
    await asyncio.sleep(0)
    gate.open()
    assert await running == [2]
    failed, neighbour, split = await asyncio.gather(*together, return_exceptions=True)
    assert isinstance(failed, EngineError)
    assert isinstance(neighbour, EngineError)
    assert isinstance(split, EngineError)  # 4 was in the batch, and 5 need not run for a request that has failed
    assert await outputs(batcher, 6) == [12]
    assert gate.batches == [1, 4, 1]
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
    batcher = Batcher(Doubler(gate), max_batch=3, name="doubler", key=lambda item: item % 2)
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
