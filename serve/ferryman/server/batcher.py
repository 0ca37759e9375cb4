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
    """One item's output. batch: the running number of the batch that it was in; compute_ms: of that whole batch."""

    output: Output
    batch: int
    compute_ms: float


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Item, Output]):
    item: Item
    deadline: float | None
    future: asyncio.Future[Done[Output]]


def check_deadline(deadline: float | None) -> None:
    """deadline: in seconds of `time.monotonic`, None for none. Raises DeadlineError when it has passed."""
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError("the request's time ran out before it was answered")


class Batcher(Generic[Item, Output]):
    """Runs items in batches, one batch at a time, in a thread of its own; used from one event loop.

    An item that comes while nothing runs starts at once, with whatever else is there. While a batch runs items
    gather, and the next batch takes the first `max_batch` of them, whichever requests they belong to. Items whose
    caller has gone or whose deadline has passed are left out. The queue has no bound of its own: `Engine` admits.

    run: from a batch's items to one output each, in order; called in the thread; what it raises reaches every caller
    """

    def __init__(self, run: Callable[[list[Item]], list[Output]], max_batch: int, name: str) -> None:
        self._run = run
        self._name = name
        self._max_batch = max_batch
        self._queue: deque[_Waiting[Item, Output]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"batcher-{name}")
        self._worker: asyncio.Task[None] | None = None  # there while batches run
        self._batches = 0
        self._closed = False
        self.last_item_s = 0.0  # of the last batch: its duration divided by its items

    async def submit(self, items: Sequence[Item], deadline: float | None = None) -> list[Done[Output]]:
        """The items' outputs, in order. deadline: see `check_deadline`.

        Raises DeadlineError when an item's turn comes too late, UnavailableError after `close`, and what `run` raises.
        Cancelling the caller takes its items out of the queue; a batch that runs already runs to its end.
        """
        if self._closed:
            raise UnavailableError("the engine is closed")
        loop = asyncio.get_running_loop()
        waiting = [_Waiting[Item, Output](item, deadline, loop.create_future()) for item in items]
        self._queue.extend(waiting)
        if self._worker is None:
            # It starts after this function has let go, so all items of this request are in its first batch.
            self._worker = loop.create_task(self._work())
        try:
            return await asyncio.gather(*(one.future for one in waiting))
        finally:
            for one in waiting:  # when one failed, or the caller left, the others need not run
                one.future.cancel()

    async def _work(self) -> None:
        while batch := self._take():
            await self._launch(batch)
        self._worker = None

    def _take(self) -> list[_Waiting[Item, Output]]:
        batch: list[_Waiting[Item, Output]] = []
        while self._queue and len(batch) < self._max_batch:
            one = self._queue.popleft()
            if one.future.done():
                continue
            try:
                check_deadline(one.deadline)
            except DeadlineError as error:
                one.future.set_exception(error)
            else:
                batch.append(one)
        return batch

    async def _launch(self, batch: list[_Waiting[Item, Output]]) -> None:
        self._batches += 1
        number = self._batches
        start = time.perf_counter()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, [one.item for one in batch])
        await asyncio.wait([running])
        elapsed = time.perf_counter() - start
        self.last_item_s = elapsed / len(batch)
        error = running.exception()
        if error is not None:
            log.error("batch failed: batch=%s-%d items=%d error=%r", self._name, number, len(batch), error)
        for index, one in enumerate(batch):
            if one.future.done():
                continue
            if error is not None:
                one.future.set_exception(error)
            else:
                one.future.set_result(Done(running.result()[index], number, elapsed * 1e3))

    async def close(self) -> None:
        """Everything that waits raises UnavailableError; returns when the batch that runs has ended."""
        self._closed = True
        for one in self._queue:
            if not one.future.done():
                one.future.set_exception(UnavailableError("the server stopped before the request's turn came"))
        self._queue.clear()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown(wait=False)
