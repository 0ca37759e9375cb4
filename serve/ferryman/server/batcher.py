"""Continuous batching: what waits while one batch runs makes up the next one."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from queue import SimpleQueue
from typing import Generic, TypeVar

from ferryman.errors import DeadlineError, OverloadedError, UnavailableError
from ferryman.server.costs import Costs
from ferryman.server.queueing import ANYONE, Caller, FairQueue, wait_before
from ferryman.server.steps import Later, Waiter, wake

Item = TypeVar("Item")
Output = TypeVar("Output")
_LOOK_S = 0.002  # between looks whether all threads rest
_TOO_LATE = "the request's time ran out before it was answered"


@dataclass(frozen=True)
class Done(Generic[Output]):
    """One item's output. batch: the number of the batch that it was in; compute_ms: of that whole batch."""

    output: Output
    batch: int
    compute_ms: float


@dataclass(eq=False)
class _Request(Generic[Item, Output]):
    """done: by the item's index, as far as batches have ended; later: set when all are, or the first failed.

    over: it wants nothing more; set with the batcher's lock held
    """

    items: Sequence[Item]
    deadline: float | None
    later: Later[list[Done[Output]]]
    done: dict[int, Done[Output]] = field(default_factory=dict[int, Done[Output]])
    over: bool = False

    def add(self, index: int, done: Done[Output]) -> Waiter | None:
        self.done[index] = done
        if len(self.done) < len(self.items):
            return None
        return self.later.set([self.done[i] for i in range(len(self.items))])


_Place = tuple[_Request[Item, Output], int]  # with the index of the item
Waiting = _Place  # as others call what they may evict
_Result = tuple[_Place[Item, Output], Done[Output] | BaseException]


def check_deadline(deadline: float | None) -> None:
    """deadline: in seconds of `time.monotonic`, None for none. Raises DeadlineError when it has passed."""
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError(_TOO_LATE)


class Batcher(Generic[Item, Output]):
    """Runs items in batches, in threads of its own; used from one event loop.

    An item that comes while a thread is idle starts at once. While all are busy items gather, whichever requests
    they belong to, and a thread that has ended takes the next batch: whose turn it is says FairQueue, and its size
    is the smallest of what waits, the largest that helps, and the largest that ends before the earliest deadline
    of all that wait. Items whose caller has gone or whose deadline has passed are left out, and so are those that
    would end too late while others wait. The queue has no bound: `Engine` decides who may enter.

    When a batch of several fails, each of its items is run once more alone, and only those that fail alone fail.

    run: from a batch's items to one output each, in order; called in the threads
    costs: of batches of a key; key: what all items of a batch have in common
    max_batch: items in one batch, however many more help
    concurrency: batches that run side by side
    start_thread: called in each thread before all else
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Output]],
        name: str,
        costs: Callable[[int], Costs],
        key: Callable[[Item], int] = lambda item: 0,
        max_batch: int = 1,
        concurrency: int = 1,
        clock: Callable[[], float] = time.monotonic,
        start_thread: Callable[[], object] = lambda: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._costs = costs
        self._key = key
        self._concurrency = concurrency
        self._clock = clock
        self._lock = threading.Lock()  # of all that follows
        self._queue = FairQueue[_Place[Item, Output]]()
        self._timed = 0  # requests with a deadline that are inside
        self._workers = 0
        self._ends: dict[int, float] = {}  # of the batches that run, as far as can be told
        self._batches = 0
        self._paused = False
        self._closed = False
        self._calls: SimpleQueue[bool] = SimpleQueue()  # of threads: True to work, False to end
        self._threads = [
            threading.Thread(target=self._go, args=(start_thread,), name=f"batcher-{name}_{number}", daemon=True)
            for number in range(concurrency)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    async def submit(
        self, items: Sequence[Item], deadline: float | None = None, caller: Caller = ANYONE
    ) -> list[Done[Output]]:
        """The items' outputs, in order. deadline: see `check_deadline`.

        Raises DeadlineError when an item's turn comes too late, OverloadedError when it would end too late and
        others wait, UnavailableError after `close`, and what `run` raises. Cancelling the caller takes its items
        out of the queue; a batch that runs runs on.
        """
        if self._closed:
            raise UnavailableError("the engine is closed")
        if not items:
            return []
        request: _Request[Item, Output] = _Request(items, deadline, Later())  # subscripted, it takes ten calls more
        with self._lock:
            self._timed += deadline is not None
            for index, item in enumerate(items):
                self._queue.add((request, index), caller, self._key(item))
        self._start(len(items))
        try:
            return await request.later
        finally:
            with self._lock:
                self._timed -= deadline is not None
                if not request.over and len(request.done) < len(items):  # it was cancelled
                    self._drop(request)
            del request  # an error's traceback has this frame: else each would keep the other, pictures and all

    def predict(self, items: Mapping[int, int], caller: Caller, coming: Mapping[Caller, float] | None = None) -> float:
        """Seconds until items that come now have run, by what batches took so far; 0.0 when they start at once.

        items: how many of each key; coming: work in seconds that is about to come, by who sends it
        """
        with self._lock:
            if not self._queue and not coming and self._workers < self._concurrency:
                return 0.0
            loads = self._queue.loads(lambda key: self._costs(key).image_s())
            ends, now = list(self._ends.values()), self._clock()
        for one, load in (coming or {}).items():
            level = loads[one.priority]
            level[one.client] = level.get(one.client, 0.0) + load
        own = sum(self._costs(key).total(count) for key, count in items.items())
        running = sum(max(0.0, end - now) for end in ends)
        return (running + wait_before(loads, caller, own) + own) / self._concurrency

    def predict_at_most(self, items: Mapping[int, int]) -> float:
        """`predict` as if all that waits had its turn before: never less, and told sooner."""
        with self._lock:
            now, ahead = self._clock(), 0.0
            for end in self._ends.values():
                ahead += max(0.0, end - now)
            for key, count in self._queue.counts.items():
                ahead += count * self._costs(key).image_s()
        return ahead / self._concurrency + self.own(items)

    def starts_at_once(self, items: Mapping[int, int]) -> bool:
        """Whether a batcher that is idle now would run all of these in one turn."""
        with self._lock:
            idle = not self._queue.counts and self._workers < self._concurrency
        return idle and self.fits_in_one_turn(items)

    def own(self, items: Mapping[int, int]) -> float:
        """Seconds that items take by themselves: of each key in batches, as many side by side as may be.

        items: see `predict`
        """
        total = longest = 0.0
        for key, count in items.items():
            costs = self._costs(key)
            total += costs.total(count)
            longest = max(longest, costs.seconds(min(count, costs.best)))
        return max(longest, total / self._concurrency)

    def fits_in_one_turn(self, items: Mapping[int, int]) -> bool:
        """Whether an idle batcher would run all of these at once."""
        runs = 0
        for key, count in items.items():
            runs += ceil(count / self._costs(key).best)
        return runs <= self._concurrency

    def hold(self) -> None:
        """Nothing is launched any more, until `resume`; may be called in any thread."""
        with self._lock:
            self._paused = True

    async def pause(self) -> None:
        """`hold`, and returns when what runs has ended."""
        self.hold()
        await self._rest()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            waiting = len(self._queue)
        self._start(waiting)

    def refuse(self, error: Exception) -> None:
        """All that waits raises this."""
        with self._lock:
            requests = list(dict.fromkeys(request for request, _ in self._queue))
            for request in requests:
                request.over = True
            self._queue.discard(lambda place: True)
        _fail(requests, error)

    def newest(self, client: str | None, key: int | None = None) -> list["Waiting[Item, Output]"]:
        """What waits, of a client or, for None, of low priority; low before high, and then the newest first.

        key: of these items alone
        """
        with self._lock:
            return [place for place in self._queue.newest(client) if key is None or self._key_of(place) == key]

    def evict(self, waiting: Iterable["Waiting[Item, Output]"], error: Exception) -> None:
        """The requests of these items raise this, unless they have gone since."""
        with self._lock:
            requests = [one for one in dict.fromkeys(request for request, _ in waiting) if not one.over]
            for request in requests:
                self._drop(request)
        _fail(requests, error)

    async def close(self) -> None:
        """Everything that waits raises UnavailableError; returns when the batches that run have ended."""
        self._closed = True
        self.refuse(UnavailableError("the server stopped before the request's turn came"))
        await self._rest()
        for _ in self._threads:
            self._calls.put(False)

    def _start(self, count: int) -> None:
        """Threads for as many items, as far as some are idle."""
        with self._lock:
            free = 0 if self._paused else min(count, self._concurrency - self._workers)
            self._workers += free
        for _ in range(free):
            self._calls.put(True)

    async def _rest(self) -> None:
        """Returns when no thread has a batch."""
        while self._workers:
            await asyncio.sleep(_LOOK_S)

    def _drop(self, request: _Request[Item, Output]) -> None:
        request.over = True
        self._queue.discard(lambda place: place[0] is request)

    # From here on in the threads.

    def _go(self, start_thread: Callable[[], object]) -> None:
        start_thread()
        while self._calls.get():
            self._work()

    def _work(self) -> None:
        results: list[_Result[Item, Output]] = []
        while True:
            taken, late = self._take()
            results += late
            # Once a batch, whatever there is to tell: to wake an event loop costs as much as all else here.
            if results:
                # One answer is sent in this thread where it has nothing else to do.
                self._tell(results, here=taken is None and len(results) == 1)
            if taken is None:
                return
            number, batch = taken
            results = self._launch(batch, number)
            with self._lock:
                del self._ends[number]
                for (request, _), result in results:
                    if isinstance(result, BaseException) and not request.over:
                        self._drop(request)

    def _take(self) -> tuple[tuple[int, list[_Place[Item, Output]]] | None, list[_Result[Item, Output]]]:
        """The next batch and its number, None when there is none, and the thread shall end; and what is too late."""
        late: list[_Result[Item, Output]] = []
        with self._lock:
            taken = None if self._paused else self._take_locked(late)
            self._workers -= taken is None
        return taken, late

    def _take_locked(self, late: list[_Result[Item, Output]]) -> tuple[int, list[_Place[Item, Output]]] | None:
        now, earliest = self._clock(), None
        if self._timed:
            errors, earliest = self._drop_late(now)
            late += errors
        batch = self._queue.take(lambda key, count: self._choose_size(key, count, now, earliest))
        if not batch:
            return None
        self._batches += 1
        self._ends[self._batches] = now + self._costs(self._key_of(batch[0])).seconds(len(batch))
        return self._batches, batch

    def _drop_late(self, now: float) -> tuple[list[_Result[Item, Output]], float | None]:
        """Takes out what is too late, or would be with the rest of its request; and gives the earliest deadline that is
        left.

        One is kept where all would be late, though none is yet: what the costs say may be wrong, and only what runs
        can tell.
        """
        places: dict[_Request[Item, Output], _Place[Item, Output]] = {}
        left: dict[_Request[Item, Output], Counter[int]] = {}
        for place in self._queue:
            places.setdefault(place[0], place)
            if place[0].deadline is not None:
                left.setdefault(place[0], Counter())[self._key_of(place)] += 1
        errors: dict[_Request[Item, Output], Exception] = {}
        deadlines: list[tuple[float, _Request[Item, Output]]] = []
        for request in places:
            if request.deadline is None:
                continue
            own_s = self.own(left[request])
            deadlines.append((request.deadline, request))
            if now >= request.deadline:
                errors[request] = DeadlineError(_TOO_LATE)
            elif now + own_s > request.deadline:
                errors[request] = OverloadedError("the request's turn came too late for its deadline", own_s)
        if len(errors) == len(places) and deadlines:
            best, spared = max(deadlines, key=lambda one: one[0])
            if best > now:
                del errors[spared]
        for request in errors:
            request.over = True
        if errors:
            self._queue.discard(lambda place: place[0].over)
        earliest = min((deadline for deadline, request in deadlines if not request.over), default=None)
        return [(places[request], error) for request, error in errors.items()], earliest

    def _choose_size(self, key: int, waiting: int, now: float, earliest: float | None) -> int:
        costs = self._costs(key)
        size = min(waiting, costs.best, self._max_batch)
        while size > 1 and earliest is not None and now + costs.seconds(size) > earliest:
            size -= 1
        return size

    def _launch(self, batch: list[_Place[Item, Output]], number: int) -> list[_Result[Item, Output]]:
        start = time.perf_counter()
        try:
            outputs = self._run([request.items[index] for request, index in batch])
            elapsed = time.perf_counter() - start
            done = [Done(output, number, elapsed * 1e3) for output in outputs]
            results: list[_Result[Item, Output]] = list(zip(batch, done, strict=True))
        except Exception as error:  # noqa: BLE001 - for the caller to see; the thread goes on for the others
            if len(batch) == 1:
                return [(batch[0], error)]
            return [result for place in batch for result in self._launch_alone(place, number)]
        self._costs(self._key_of(batch[0])).add(len(batch), elapsed)
        return results

    def _launch_alone(self, place: _Place[Item, Output], number: int) -> list[_Result[Item, Output]]:
        request, _ = place
        if request.over:  # its caller has gone, or another item of its has failed
            return []
        if request.deadline is not None and self._clock() >= request.deadline:
            return [(place, DeadlineError(_TOO_LATE))]
        results = self._launch([place], number)
        if any(isinstance(result, BaseException) for _, result in results):
            with self._lock:
                self._drop(request)
        return results

    def _key_of(self, place: _Place[Item, Output]) -> int:
        request, index = place
        return self._key(request.items[index])

    def _tell(self, results: list[_Result[Item, Output]], here: bool) -> None:
        waiters: list[Waiter | None] = []
        for (request, index), result in results:
            failed = isinstance(result, BaseException)
            waiters.append(request.later.set(error=result) if failed else request.add(index, result))
        wake(waiters, here)


def _fail(requests: Iterable[_Request[Item, Output]], error: Exception) -> None:
    wake([request.later.set(error=error) for request in requests])
