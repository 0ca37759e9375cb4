"""Whose turn it is. No time, no threads: who uses it holds a lock."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Priority = Literal["high", "low"]
HIGH_BEFORE_LOW = 4


@dataclass(frozen=True)
class Caller:
    """Who asks. client: what tells clients apart; priority: `low` for work that may wait behind all other."""

    client: str = ""
    priority: Priority = "high"


ANYONE = Caller()
# by client, in the order of their turns; of each by key, oldest first, with the number that says how old
_Ring = dict[str, dict[int, deque[tuple[int, T]]]]


class FairQueue(Generic[T]):
    """What waits, of several clients, two priorities, and keys that can't share a batch.

    The rules, in this order:
    - High before low; but while both wait, low begins one batch after `HIGH_BEFORE_LOW` that high has begun.
    - Clients take turns, one item a turn, however many they have.
    - A batch begins with the oldest item of the client whose turn it is, and takes items of its key alone, in turns
      from the clients that have such; then likewise of the other priority, rather than go with room to spare.
    """

    def __init__(self) -> None:
        self._rings: dict[Priority, _Ring[T]] = {"high": {}, "low": {}}
        self._number = 0
        self._high_run = 0  # batches that high has begun since low began one or was empty
        self._count = 0
        self.counts: dict[int, int] = {}  # of what waits, by key

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for ring in self._rings.values():
            for queues in ring.values():
                for queue in queues.values():
                    yield from (value for _, value in queue)

    def add(self, value: T, caller: Caller, key: int) -> None:
        queues = self._rings[caller.priority].setdefault(caller.client, {})
        queues.setdefault(key, deque()).append((self._number, value))
        self._number += 1
        self._count += 1
        self.counts[key] = self.counts.get(key, 0) + 1

    def discard(self, unwanted: Callable[[T], bool]) -> None:
        """Takes out what is unwanted; all else keeps its place."""
        for ring in self._rings.values():
            for client, queues in list(ring.items()):
                for key, queue in list(queues.items()):
                    kept = deque(entry for entry in queue if not unwanted(entry[1]))
                    self._forget(key, len(queue) - len(kept))
                    queues[key] = kept
                    self._forget_empty(ring, client, key)

    def take(self, choose_size: Callable[[int, int], int]) -> list[T]:
        """The next batch, none when nothing waits.

        choose_size: from a key and how many items of it wait to how many of them to take, 1 or more
        """
        if not self._count:
            return []
        first, second = self._order_levels()
        queues = next(iter(self._rings[first].values()))
        key = min(queues, key=lambda one: queues[one][0][0])
        size = choose_size(key, self.counts[key])
        batch: list[T] = []
        for level in (first, second):
            self._fill(batch, size, self._rings[level], key)
        self._forget(key, len(batch))
        return batch

    def newest(self, client: str | None) -> list[T]:
        """What waits of a client, or, for None, of all of low priority: low before high, and then the newest first."""
        found: list[T] = []
        for level in ("low", "high") if client is not None else ("low",):
            rings = self._rings[level].values() if client is None else [self._rings[level].get(client, {})]
            queues = [queue for ring in rings for queue in ring.values()]
            entries = sorted((entry for queue in queues for entry in queue), key=lambda entry: entry[0], reverse=True)
            found += [value for _, value in entries]
        return found

    def loads(self, weight: Callable[[int], float]) -> dict[Priority, dict[str, float]]:
        """The sum of the weights of what waits, by priority and client. weight: of one item of a key"""
        return {
            level: {
                client: sum(len(queue) * weight(key) for key, queue in queues.items())
                for client, queues in ring.items()
            }
            for level, ring in self._rings.items()
        }

    def _order_levels(self) -> tuple[Priority, Priority]:
        high, low = bool(self._rings["high"]), bool(self._rings["low"])
        if high and not (low and self._high_run == HIGH_BEFORE_LOW):
            self._high_run = self._high_run + 1 if low else 0
            return "high", "low"
        self._high_run = 0
        return "low", "high"

    def _forget(self, key: int, count: int) -> None:
        self._count -= count
        left = self.counts[key] - count
        if left:
            self.counts[key] = left
        else:
            del self.counts[key]

    def _fill(self, batch: list[T], size: int, ring: _Ring[T], key: int) -> None:
        """Appends items of a key, in turns, up to the size; who has given one goes to the ring's end."""
        found = True
        while found:
            found = False
            for client in list(ring):
                if len(batch) == size:
                    return
                queue = ring[client].get(key)
                if queue is None:
                    continue
                batch.append(queue.popleft()[1])
                self._forget_empty(ring, client, key)
                if client in ring:
                    ring[client] = ring.pop(client)
                    found = True

    @staticmethod
    def _forget_empty(ring: _Ring[T], client: str, key: int) -> None:
        if not ring[client][key]:
            del ring[client][key]
        if not ring[client]:
            del ring[client]


def wait_before(loads: Mapping[Priority, Mapping[str, float]], caller: Caller, own: float) -> float:
    """How much of what waits has its turn before the last of `own` more work of a caller, by the rules of FairQueue.

    loads: see `FairQueue.loads`
    """
    mine = loads[caller.priority].get(caller.client, 0.0)
    ahead = sum(min(load, mine + own) for client, load in loads[caller.priority].items() if client != caller.client)
    before, other = mine + ahead, sum(loads["low" if caller.priority == "high" else "high"].values())
    if caller.priority == "high":
        return before + min(other, (before + own) / HIGH_BEFORE_LOW)
    return before + min(other, (before + own) * HIGH_BEFORE_LOW)
