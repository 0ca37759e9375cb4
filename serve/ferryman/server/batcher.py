"""Continuous batching: what waits while one batch runs makes up the next one."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from ferryman.errors import DeadlineError, UnavailableError

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Done(Generic[Output]):
    """One item's output. batch: the number of the batch that it was in; compute_ms: of that whole batch."""

    output: Output
    batch: int
    compute_ms: float


@dataclass(frozen=True, eq=False)
class _Request(Generic[Item, Output]):
    """done: by the item's index, as far as batches have ended; future: done when all are, or the first failed."""

    items: Sequence[Item]
    deadline: float | None
    done: dict[int, Done[Output]]
    future: asyncio.Future[list[Done[Output]]]

    def add(self, index: int, done: Done[Output]) -> None:
        self.done[index] = done
        if len(self.done) == len(self.items) and not self.future.done():
            self.future.set_result([self.done[i] for i in range(len(self.items))])

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def check_deadline(deadline: float | None) -> None:
    """deadline: in seconds of `time.monotonic`, None for none. Raises DeadlineError when it has passed."""
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError("the request's time ran out before it was answered")


class Batcher(Generic[Item, Output]):
    """Runs items in batches, one batch at a time, in a thread of its own; used from one event loop.

    A request that comes while nothing runs starts at once. While a batch runs items gather, and the next
    batch takes the first `max_batch` of them, whichever requests they belong to. Items whose caller has gone
    or whose deadline has passed are left out. The queue has no bound: `Engine` decides who may enter.
    Items of another key than the first one's keep their places for a later batch.

    run: from a batch's items to one output each, in order; called in the thread; what it raises reaches the
        callers of all items of the batch
    key: what all items of a batch have in common
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Output]],
        max_batch: int,
        name: str,
        key: Callable[[Item], object] = lambda item: None,
    ) -> None:
        self._run = run
        self._key = key
        self._max_batch = max_batch
        self._name = name
        self._queue: deque[tuple[_Request[Item, Output], int]] = deque()  # with the index of the item
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"batcher-{name}")
        self._worker: asyncio.Task[None] | None = None  # there while batches run
        self._batches = 0
        self._closed = False
        self.last_item_s = 0.0  # of the last batch: its duration divided by its items

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    async def submit(self, items: Sequence[Item], deadline: float | None = None) -> list[Done[Output]]:
        """The items' outputs, in order. deadline: see `check_deadline`.

        Raises DeadlineError when an item's turn comes too late, UnavailableError after `close`, and what
        `run` raises. Cancelling the caller takes its items out of the queue; a batch that runs runs on.
        """
        if self._closed:
            raise UnavailableError("the engine is closed")
        if not items:
            return []
        loop = asyncio.get_running_loop()
        request = _Request[Item, Output](items, deadline, {}, loop.create_future())
        self._queue.extend((request, index) for index in range(len(items)))
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return await request.future

    async def _work(self) -> None:
        while batch := self._take():
            await self._launch(batch)
        self._worker = None

    def _take(self) -> list[tuple[_Request[Item, Output], int]]:
        batch: list[tuple[_Request[Item, Output], int]] = []
        others: list[tuple[_Request[Item, Output], int]] = []
        key: object = None
        while self._queue and len(batch) < self._max_batch:
            request, index = self._queue.popleft()
            if request.future.done():  # its caller has left, or another of its items has failed
                continue
            found = self._key(request.items[index])
            if batch and found != key:
                others.append((request, index))
                continue
            try:
                check_deadline(request.deadline)
            except DeadlineError as error:
                request.fail(error)
            else:
                key = found
                batch.append((request, index))
        self._queue.extendleft(reversed(others))
        return batch

    async def _launch(self, batch: list[tuple[_Request[Item, Output], int]]) -> None:
        self._batches += 1
        number = self._batches
        items = [request.items[index] for request, index in batch]
        start = time.perf_counter()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)
        await asyncio.wait([running])
        elapsed = time.perf_counter() - start
        self.last_item_s = elapsed / len(batch)
        error = running.exception()
        if error is not None:
            log.error("batch failed: model=%s batch=%d size=%d error=%r", self._name, number, len(batch), error)
            for request, _ in batch:
                request.fail(error)
            return
        for (request, index), output in zip(batch, running.result(), strict=True):
            request.add(index, Done(output, number, elapsed * 1e3))

    async def close(self) -> None:
        """Everything that waits raises UnavailableError; returns when the batch that runs has ended."""
        self._closed = True
        for request, _ in self._queue:
            request.fail(UnavailableError("the server stopped before the request's turn came"))
        self._queue.clear()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown(wait=False)
