"""The server of calls: gRPC's own thread, which takes them, waits for their requests, and gives up what is slow."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from ferryman.server.rpc.call import Call
from ferryman.server.rpc.core import Handler, call_in, core, host_of, set_result
from ferryman.server.steps import SpareThread

log = logging.getLogger(__name__)
_LOOK_S = 0.5  # between looks at requests that come slowly
_SLOW_S = 1.0  # that a request may take to come before it counts as one
_AFTER_S = 0.02  # within which one learns that a call without a request was broken off


@dataclass(frozen=True)
class Patience:
    """seconds: until a request must be there, where a call has one; slow_requests: that may take more than a second at
    a time. Beyond it the oldest of the host that has most of them is refused.
    """

    seconds: float
    slow_requests: int


class RpcServer:
    """A server of handlers that are coroutines, made and used on one event loop: `grpc.aio.Server`, as far as it is
    used here.

    door: from a call and its handler, None where there is none, to the handler that answers it; called in gRPC's
        thread and the call's context, before a byte of the request is read
    wrap: from a method, `/service/name`, and its handler to the one that stands for it
    options: channel arguments
    patience: with requests that come slowly
    note: called on the event loop with the method, the code, the details and the caller's address of each call that
        ended before a handler had it; no details where its caller gave up
    in_steps: methods whose handlers begin in gRPC's thread, and say where they need the event loop, see `steps`
    """

    def __init__(
        self,
        door: "Callable[[Call, Handler | None], Handler | None]",
        wrap: Callable[[str, Handler], Handler],
        options: Sequence[tuple[str, Any]],
        patience: Patience,
        note: Callable[[str, grpc.StatusCode, str, str], None],
        in_steps: Collection[str] = (),
    ) -> None:
        self._door, self._wrap, self._patience, self._note = door, wrap, patience, note
        self._handlers: dict[str, Handler] = {}
        self._core = core.Server(tuple(options), False)
        self._queue = core.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._coming: dict[Call, float] = {}  # whose one request is not there yet, and since when, the oldest first
        self._looked = 0.0  # at those
        self._empty: dict[Call, float] = {}  # that ended without a request, and when
        self._tasks: set[Any] = set()
        self._in_steps = in_steps
        self._thread: threading.Thread | None = None
        self._stopping = False

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """What gRPC's generated code calls beside `add_registered_method_handlers`, with the same methods."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._handlers[method] = self._wrap(method, handler)

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listens there, and returns the port. Raises RuntimeError when gRPC can't."""
        inner: Any = credentials
        secret = () if inner is None else (inner._credentials,)
        port = self._core.add_http2_port(address.encode(), *secret)
        if not port:
            raise RuntimeError(f"gRPC can't listen on {address}")
        return port

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._core.start()
        self._spare = SpareThread("answers")
        self._request_call()
        self._thread = threading.Thread(target=self._poll, name="grpc", daemon=True)
        self._thread.start()

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, and ends those that are open after `grace` seconds, at once for None."""
        if self._thread is None or self._stopping:
            return
        self._stopping = True
        stopped = self._loop.create_future()
        self._core.shutdown(self._queue, lambda event: call_in(self._loop, set_result, stopped, event))
        await asyncio.wait([stopped], timeout=grace or 0)
        self._core.cancel_all_calls()
        await stopped
        while self._tasks:
            await asyncio.sleep(0.005)
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._spare.stop)
        self._core.destroy()

    def _request_call(self) -> None:
        try:  # noqa: SIM105 - once a call, and dearer
            self._core.request_call(self._queue, self._queue, self._accept)
        except ValueError:  # it has begun to stop
            pass

    # From here on in gRPC's thread.

    def _poll(self) -> None:
        while True:
            event = self._queue.poll(time.time() + (_AFTER_S if self._empty else _LOOK_S))
            if event.completion_type == core.CompletionType.queue_shutdown:
                return
            try:
                if event.completion_type != core.CompletionType.queue_timeout:
                    event.tag(event)
                if self._empty:
                    self._end_empty()
                if self._coming and time.monotonic() > self._looked + _LOOK_S:
                    self._give_up_slow()
            except Exception:  # a bug; other calls go on
                log.exception("unexpected error in gRPC's thread")
            del event  # with its call, before the next one comes

    def _accept(self, event: Any) -> None:
        if not event.success:  # the server stops
            return
        self._request_call()
        call = Call(event, self._loop)
        call.watch()
        try:
            handler = call.context.run(self._door, call, self._handlers.get(call.method))
        except Exception:
            self._refuse(call, grpc.StatusCode.UNKNOWN, "the server met an unexpected error")
            raise
        if handler is None:
            self._refuse(call, grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
        elif handler.request_streaming:
            self._start(call, handler, b"")
        else:
            self._coming[call] = time.monotonic()
            call.receive(lambda data: self._receive(call, handler, data))

    def _receive(self, call: Call, handler: Handler, data: bytes | None) -> None:
        if self._coming.pop(call, None) is None:  # it was given up
            return
        if data is None:
            self._empty[call] = time.monotonic()  # by its caller, or because it has gone: then that is told next
        else:
            self._start(call, handler, data)

    def _end_empty(self) -> None:
        now = time.monotonic()
        for call, since in list(self._empty.items()):
            if call.gone:
                del self._empty[call]
                call.leave()
                left = call.time_remaining()
                gone = grpc.StatusCode.CANCELLED if left is None or left > 0 else grpc.StatusCode.DEADLINE_EXCEEDED
                call_in(self._loop, self._note, call.method, gone, "", call.peer())
            elif now - since > _AFTER_S:
                del self._empty[call]
                self._refuse(call, grpc.StatusCode.INVALID_ARGUMENT, "the call holds no request")

    def _give_up_slow(self) -> None:
        """What is not there yet may have been sent but for its last byte, and takes that much memory."""
        self._looked = now = time.monotonic()
        for call, since in list(self._coming.items()):
            if now - since > self._patience.seconds:
                del self._coming[call]
                late = f"no request came within {self._patience.seconds:g} s"
                self._refuse(call, grpc.StatusCode.DEADLINE_EXCEEDED, late)
        slow: dict[str, list[Call]] = {}  # by host, the newest first
        for call in reversed([call for call, since in self._coming.items() if now - since > _SLOW_S]):
            slow.setdefault(host_of(call.peer()), []).append(call)
        for _ in range(sum(map(len, slow.values())) - self._patience.slow_requests):
            call = max(slow.values(), key=len).pop()
            del self._coming[call]
            self._refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests come slowly; ask again later")

    def _start(self, call: Call, handler: Handler, data: bytes) -> None:
        if call.method in self._in_steps:
            call.step(lambda: call.answer(handler, data), self._tasks, self._spare)
        else:
            call_in(self._loop, call.start, lambda: call.answer(handler, data), self._tasks)

    def _refuse(self, call: Call, code: grpc.StatusCode, details: str) -> None:
        call.end(code, details)
        call.leave()
        call_in(self._loop, self._note, call.method, code, details, call.peer())
