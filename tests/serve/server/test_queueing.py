"""Whose turn it is: clients, priorities and keys, and that nothing is lost or left behind."""

import random
from collections import Counter

import pytest

from ferryman.server.queueing import HIGH_BEFORE_LOW, Caller, FairQueue, wait_before


def queue_of(*places: tuple[str, str, int]) -> FairQueue[str]:
    """Places: what waits, a letter for its client (upper case is low) and a number; its key is given."""
    queue = FairQueue[str]()
    for name, client, key in places:
        queue.add(name, Caller(client.lower(), "low" if client.isupper() else "high"), key)
    return queue


def drain(queue: FairQueue[str], size: int) -> list[list[str]]:
    batches: list[list[str]] = []
    while len(queue):
        batches.append(queue.take(lambda key, waiting: min(size, waiting)))
    return batches


def test_clients_take_turns() -> None:
    queue = queue_of(*((f"a{i}", "a", 0) for i in range(6)), ("b0", "b", 0), ("c0", "c", 0), ("b1", "b", 0))
    assert drain(queue, 2) == [["a0", "b0"], ["c0", "a1"], ["b1", "a2"], ["a3", "a4"], ["a5"]]


def test_a_batch_is_of_one_key_and_the_oldest_begins() -> None:
    queue = queue_of(("a0", "a", 0), ("a1", "a", 1), ("b0", "b", 1), ("a2", "a", 0), ("c0", "c", 0))
    # b's turn comes second, so that its key does; a2 is no older than a1, and comes before it as c0 is of its key
    assert drain(queue, 3) == [["a0", "c0", "a2"], ["b0", "a1"]]


def test_one_key_does_not_starve_another() -> None:
    """However many of one key one client brings, another client's single item of another key is second."""
    queue = queue_of(*((f"a{i}", "a", 0) for i in range(100)), ("b0", "b", 1))
    assert queue.take(lambda key, waiting: 8)[0] == "a0"
    assert queue.take(lambda key, waiting: 8) == ["b0"]
    # and the same client's comes when it is the oldest
    queue = queue_of(("a0", "a", 0), ("a1", "a", 1), *((f"a{i}", "a", 0) for i in range(2, 50)))
    assert queue.take(lambda key, waiting: 2) == ["a0", "a2"]
    assert queue.take(lambda key, waiting: 2) == ["a1"]


def test_low_comes_after_high_and_still_comes() -> None:
    queue = queue_of(*((f"low{i}", "A", 0) for i in range(3)), *((f"high{i}", "b", 0) for i in range(12)))
    began = [batch[0] for batch in drain(queue, 1)]
    turns = [f"high{i}" for i in range(12)]
    assert began == [*turns[:4], "low0", *turns[4:8], "low1", *turns[8:], "low2"]
    assert HIGH_BEFORE_LOW == 4


def test_low_fills_what_high_leaves() -> None:
    queue = queue_of(("low0", "A", 0), ("high0", "b", 0), ("low1", "A", 1))
    assert drain(queue, 4) == [["high0", "low0"], ["low1"]]


def test_the_size_is_asked_for_with_all_that_wait() -> None:
    queue = queue_of(("a0", "a", 3), ("b0", "b", 3), ("c0", "C", 3), ("d0", "d", 4))
    asked: list[tuple[int, int]] = []

    def choose(key: int, waiting: int) -> int:
        asked.append((key, waiting))
        return 1

    for _ in range(4):
        queue.take(choose)
    assert asked == [(3, 3), (3, 2), (4, 1), (3, 1)]
    assert queue.take(choose) == []


def test_what_is_discarded_is_gone_and_all_else_keeps_its_place() -> None:
    queue = queue_of(*((f"a{i}", "a", i % 2) for i in range(6)), ("b0", "b", 0))
    queue.discard(lambda name: name in {"a0", "a3", "b0"})
    assert sorted(queue) == ["a1", "a2", "a4", "a5"]
    assert len(queue) == 4
    assert drain(queue, 8) == [["a1", "a5"], ["a2", "a4"]]


def test_the_newest_of_a_client() -> None:
    queue = queue_of(("a0", "a", 0), ("a1", "a", 1), ("A2", "A", 0), ("b0", "b", 0), ("a3", "a", 0))
    assert queue.newest("a") == ["A2", "a3", "a1", "a0"]
    assert queue.newest("c") == []


def test_nothing_is_lost_and_each_client_keeps_its_order() -> None:
    chosen = random.Random(5)
    queue, added, taken = FairQueue[tuple[Caller, int, int]](), 0, list[tuple[Caller, int, int]]()
    callers = [Caller(client, priority) for client in "abc" for priority in ("high", "low")]
    for _ in range(3000):
        if chosen.random() < 0.6:
            caller, key = chosen.choice(callers), chosen.randrange(3)
            queue.add((caller, key, added), caller, key)
            added += 1
        else:
            batch = queue.take(lambda key, waiting: min(waiting, 4))
            assert len({key for _, key, _ in batch}) <= 1
            taken += batch
    while len(queue):
        taken += queue.take(lambda key, waiting: min(waiting, 4))
    assert sorted(number for _, _, number in taken) == list(range(added))
    for caller in callers:
        for key in range(3):
            numbers = [number for one, its_key, number in taken if (one, its_key) == (caller, key)]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("asker", ["b", "B"])
def test_the_wait_that_is_foretold_is_the_wait(asker: str) -> None:
    """By the queue itself: what it takes out before the asker's last item, within a batch that low may begin."""
    places = [*((f"a{i}", "a", 0) for i in range(30)), *((f"A{i}", "A", 0) for i in range(10)), ("b0", asker, 0)]
    places += [(f"c{i}", "c", 0) for i in range(3)]
    queue = queue_of(*places)
    caller = Caller("b", "low" if asker.isupper() else "high")
    foretold = wait_before(queue.loads(lambda key: 1.0), caller, own=2)
    queue.add("b1", caller, 0)
    queue.add("b2", caller, 0)
    order = [name for batch in drain(queue, 1) for name in batch]
    assert order.index("b2") == pytest.approx(foretold, abs=2)
    assert Counter(order) == Counter([*(name for name, _, _ in places), "b1", "b2"])
