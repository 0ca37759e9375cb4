"""Coroutines that go on in whichever thread has what they wait for, without an event loop.

To wake an event loop, and to be woken by it, costs more than all else that the server does for a request whose pixels
are ready. Such a request begins in gRPC's thread, waits for its batch, and ends in the thread that ran it. What
needs a loop says so with `on_loop`, and goes on there for good.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

log = logging.getLogger(__name__)
T = TypeVar("T")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this code runs on, None for none."""
    return asyncio._get_running_loop()  # pyright: ignore[reportPrivateUsage]  # documented; the public one raises


class _ToLoop:
    def __await__(self) -> Generator["_ToLoop"]:
        yield self


_TO_LOOP = _ToLoop()


async def on_loop() -> None:
    """From here on the coroutine is a task of the event loop, as it may be already."""
    if running_loop() is None:
        await _TO_LOOP


class Later(Generic[T]):
    """A value that comes once, from any thread, to one coroutine that awaits it: of an event loop, or in steps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiter: Waiter | None = None

    def set(self, value: T | None = None, error: BaseException | None = None) -> "Waiter | None":
        """Returns who waits for it, to be woken with `wake`. What is set stays as it is."""
        with self._lock:
            if self._set:
                return None
            self._set, self._value, self._error = True, value, error
            return self._waiter

    def wait(self, waiter: "Waiter") -> bool:
        """False when it is there already."""
        with self._lock:
            self._waiter = waiter
            return not self._set

    def __await__(self) -> Generator[Any, None, T]:
        loop = running_loop()
        if loop is None:
            while not self._set:
                yield self
        else:
            future: asyncio.Future[None] = loop.create_future()
            if self.wait(future):
                yield from future
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback has this frame: else each would keep the other
        return cast("T", self._value)


class Step:
    """A coroutine under way, which may be driven by one thread after another.

    context: that it runs in; loop: where it goes on, if it must; spare: where it goes on when whoever wakes it has
        other things to do; ended: called once, when it has, in any thread
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        context: Context,
        loop: asyncio.AbstractEventLoop,
        spare: "SpareThread",
        ended: Callable[[], None],
    ) -> None:
        self._coroutine = coroutine
        self._context = context
        self._loop = loop
        self._spare = spare
        self._ended = ended
        self._lock = threading.Lock()  # of what follows
        self._waits: Later[Any] | None = None
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._drive()

    def cancel(self) -> None:
        """Raises CancelledError where it waits, or is going to. From any thread."""
        with self._lock:
            self._cancelled = True
            waits, self._waits = self._waits, None
        if waits is not None:
            self._drive()
        elif self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def go_on(self) -> None:
        """What it waited for is there. In the thread that drives it from now on."""
        with self._lock:
            waits, self._waits = self._waits, None
        if waits is not None:  # else it was cancelled
            self._drive()

    def hand_over(self) -> None:
        """`go_on`, in a thread that has time."""
        self._spare.run(self.go_on)

    def _drive(self) -> None:
        while True:
            try:
                if self._cancelled:
                    self._cancelled = False  # once
                    found = self._context.run(self._coroutine.throw, asyncio.CancelledError())
                else:
                    found = self._context.run(self._coroutine.send, None)
            except (StopIteration, asyncio.CancelledError):
                self._ended()
                return
            except BaseException:
                log.exception("unexpected error in a call")
                self._ended()
                return
            if found is _TO_LOOP:
                self._loop.call_soon_threadsafe(self._move)
                return
            with self._lock:
                if self._cancelled:
                    continue
                self._waits = found
            if found.wait(self):
                return
            with self._lock:
                waits, self._waits = self._waits, None
            if waits is None:  # whoever cancelled it meanwhile drives it
                return

    def _move(self) -> None:
        """On the loop. A task goes on with a coroutine where it stands."""
        self._task = self._loop.create_task(self._coroutine, context=self._context)
        self._task.add_done_callback(lambda _: self._ended())
        if self._cancelled:
            self._task.cancel()


Waiter = Step | asyncio.Future[None]  # who awaits a value that comes later


def wake(waiters: Iterable[Waiter | None], here: bool = False) -> None:
    """They go on: on their event loops, which are woken once each, or in steps, `here` for in this thread.

    waiters: as `Later.set` returns them, None for nobody
    """
    futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        if isinstance(waiter, Step):
            if here:
                waiter.go_on()
            else:
                waiter.hand_over()
        elif waiter is not None:
            futures.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, found in futures.items():
        loop.call_soon_threadsafe(_set_all, found)


def _set_all(futures: list["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class SpareThread:
    """Runs what other threads have no time for, one after the other. Starts now, in this thread's place."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._go, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def stop(self) -> None:
        """Returns once all that it was given is done."""
        self._work.put(None)
        self._thread.join()

    def _go(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work
