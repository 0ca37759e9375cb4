"""gRPC's calls, each brought from a thread of gRPC's to a coroutine on the event loop, and its answer back.

`grpc.aio` does the same, but a call whose path is not UTF-8 ends its server for good, and it can't say which requests
it waits for: a stranger may leave any number of large ones unfinished. It also wakes the event loop for every step of
a call, where this does when the request is there.

`grpc.server` and `grpc.aio` are both written on `cygrpc`, gRPC's core as it looks in Python, and so is this. It is no
public interface: what of it is used stands in this file alone. Handlers meet what grpc.aio would show them.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from importlib import import_module
from inspect import isasyncgen
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

log = logging.getLogger(__name__)
_core: Any = import_module("grpc._cython.cygrpc")
# grpc has no types for the handlers of any method: requests and responses of all kinds.
Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not subscriptable when it runs
Metadata = Sequence[tuple[str, str | bytes]]
# cygrpc repeats each header that is not UTF-8 as it came, with a traceback: a token, or what a stranger likes.
logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not str(record.msg).startswith("Invalid encoding on"))
_LONGEST_S = 1e12  # of gRPC's clock: a deadline beyond is none
_LOOK_S = 0.5  # between looks at requests that come slowly
_SLOW_S = 1.0  # that a request may take to come before it counts as one


@dataclass(frozen=True)
class Patience:
    """seconds: until a request must be there, where a call has one; slow_requests: that may take more than a second at
    a time. Beyond it the oldest of the host that has most of them is refused.
    """

    seconds: float
    slow_requests: int


class Call:
    """One call, and what its handler may ask about it: `grpc.aio.ServicerContext`, as far as it is used here.

    For the event loop, but for what says otherwise.
    """

    def __init__(self, event: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.method: str = event.call_details.method.decode(errors="replace")
        self.context = copy_context()  # that its handler runs in
        self._metadata: Metadata = event.invocation_metadata
        self._deadline: float = event.call_details.deadline  # as `time.time` counts
        self._call = event.call
        self._loop = loop
        self._serialize: Callable[[Any], bytes] = bytes
        self._task: asyncio.Task[None] | None = None
        self._gone = False  # the client has given up, or its deadline has passed
        self._begun = False  # gRPC has the initial metadata
        self._code: grpc.StatusCode | None = None
        self._ended = False  # gRPC has the status
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[Any], object]] = []
        self._ends = ["last", "first"]  # of two: gRPC has no more to do for it, and its handler

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        return self._call.peer().decode()

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._deadline > _LONGEST_S else max(0.0, self._deadline - time.time())

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def trailing_metadata(self) -> Metadata:
        return self._trailing

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self._trailing = tuple(metadata)

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Called with the call once its status has gone, or it was broken off, and its handler has ended; in any
        thread. From any thread.
        """
        self._callbacks.append(callback)

    async def write(self, message: Any) -> None:
        """One message of an answer. Raises grpc.aio.InternalError when the caller has gone."""
        if not self._ended:
            sent = await self._do(*self._beginning(), _core.SendMessageOperation(self._serialize(message), 0))
            if sent.success:
                return
        raise grpc.aio.InternalError("the call has ended")

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """Ends the call with a status, and raises grpc.aio.AbortError."""
        self.end(code, details, trailing_metadata or self._trailing)
        raise grpc.aio.AbortError("the call was ended with a status")

    async def abort_with_status(self, status: grpc.Status) -> None:
        await self.abort(status.code, status.details or "", status.trailing_metadata or ())

    def end(
        self, code: grpc.StatusCode, details: str = "", trailing: Metadata = (), answer: bytes | None = None
    ) -> None:
        """Hands gRPC the status, after an answer where there is one. What has ended stays as it is.

        From gRPC's thread as long as there is no handler.
        """
        if self._ended:
            return
        operations = [*self._beginning()]
        if answer is not None:
            operations.append(_core.SendMessageOperation(answer, 0))
        operations.append(_core.SendStatusFromServerOperation(tuple(trailing), code.value[0], details.encode(), 0))
        self._ended, self._code = True, code
        self._call.start_server_batch(tuple(operations), _ignore)

    async def requests(self, deserialize: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        """A stream's messages."""
        while True:
            received = await self._do(_core.ReceiveMessageOperation(0))
            data = received.batch_operations[0].message()
            if data is None:
                return
            yield deserialize(data)

    async def answer(self, handler: Any, data: bytes) -> None:
        """Lets a handler answer, and ends the call. data: the request, of a handler of one"""
        self._serialize = handler.response_serializer or bytes
        try:
            if handler.request_streaming:
                request: Any = self.requests(handler.request_deserializer or bytes)
            else:
                request = handler.request_deserializer(data)
            del data  # while it waits, one copy is enough
            behave = _behaviour_of(handler)
            if not handler.response_streaming:
                message = self._serialize(await behave(request, self))
                self.end(self._code or grpc.StatusCode.OK, trailing=self._trailing, answer=message)
                return
            answers = behave(request, self)
            if isasyncgen(answers):
                async for message in answers:
                    await self.write(message)
            else:
                await answers
            self.end(self._code or grpc.StatusCode.OK, trailing=self._trailing)
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            pass  # it was ended, or its caller has gone while a message was written
        except asyncio.CancelledError:
            if not self._ended:
                self._call.cancel()  # by its client as a rule: then this does nothing
            raise
        except DecodeError:
            self.end(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")
        except Exception:
            log.exception("unexpected error in %s", self.method)
            self.end(grpc.StatusCode.UNKNOWN, "the server met an unexpected error", self._trailing)

    # What follows is the server's.

    def watch(self) -> None:
        """Learns when the call is over. In gRPC's thread."""
        self._call.start_server_batch((_core.ReceiveCloseOnServerOperation(0),), self._close)

    def receive(self, then: Callable[[bytes | None], None]) -> None:
        """Its one request, None for none; then is called in gRPC's thread. In gRPC's thread."""
        self._call.start_server_batch(
            (_core.ReceiveMessageOperation(0),), lambda event: then(event.batch_operations[0].message())
        )

    def start(self, answering: Callable[[], Any], tasks: set[asyncio.Task[None]]) -> None:
        if self._gone:
            self.leave()
            return
        task = self._loop.create_task(answering(), context=self.context)
        self._task = task
        tasks.add(task)

        def finish(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self.leave()

        task.add_done_callback(finish)

    def leave(self) -> None:
        """Gone with the handler, or that there is none. From any thread."""
        if self._ends.pop() == "last":
            for callback in self._callbacks:
                callback(self)

    def _close(self, event: Any) -> None:
        if event.batch_operations[0].cancelled() and not self._ended:
            self._gone = True
            _call_in(self._loop, self._cancel)
        self.leave()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _beginning(self) -> tuple[Any, ...]:
        if self._begun:
            return ()
        self._begun = True
        return (_core.SendInitialMetadataOperation((), 0),)

    def _do(self, *operations: Any) -> asyncio.Future[Any]:
        """The event of gRPC's that tells what became of them."""
        done = self._loop.create_future()

        def tell(event: Any) -> None:
            _call_in(self._loop, _set, done, event)

        self._call.start_server_batch(operations, tell)
        return done


class RpcServer:
    """A server of handlers that are coroutines, made and used on one event loop: `grpc.aio.Server`, as far as it is
    used here.

    door: from a call and its handler, None where there is none, to the handler that answers it; called in gRPC's
        thread and the call's context, before a byte of the request is read
    wrap: from a method, `/service/name`, and its handler to the one that stands for it
    options: channel arguments
    patience: with requests that come slowly
    note: called on the event loop with the method, the code, the details and the caller's address of each call that
        ended before a handler had it
    """

    def __init__(
        self,
        door: "Callable[[Call, Handler | None], Handler | None]",
        wrap: Callable[[str, Handler], Handler],
        options: Sequence[tuple[str, Any]],
        patience: Patience,
        note: Callable[[str, grpc.StatusCode, str, str], None],
    ) -> None:
        self._door, self._wrap, self._patience, self._note = door, wrap, patience, note
        self._handlers: dict[str, Handler] = {}
        self._core = _core.Server(tuple(options), False)
        self._queue = _core.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._coming: dict[Call, float] = {}  # whose one request is not there yet, and since when, the oldest first
        self._looked = 0.0  # at those
        self._tasks: set[asyncio.Task[None]] = set()
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
        self._request_call()
        self._thread = threading.Thread(target=self._poll, name="grpc", daemon=True)
        self._thread.start()

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, and ends those that are open after `grace` seconds, at once for None."""
        if self._thread is None or self._stopping:
            return
        self._stopping = True
        stopped = self._loop.create_future()
        self._core.shutdown(self._queue, lambda event: _call_in(self._loop, _set, stopped, event))
        await asyncio.wait([stopped], timeout=grace or 0)
        self._core.cancel_all_calls()
        await stopped
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join)
        self._core.destroy()

    def _request_call(self) -> None:
        with suppress(ValueError):  # it has begun to stop
            self._core.request_call(self._queue, self._queue, self._accept)

    # From here on in gRPC's thread.

    def _poll(self) -> None:
        while True:
            event = self._queue.poll(time.time() + _LOOK_S)
            if event.completion_type == _core.CompletionType.queue_shutdown:
                return
            try:
                if event.completion_type != _core.CompletionType.queue_timeout:
                    event.tag(event)
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
            self._refuse(call, grpc.StatusCode.INVALID_ARGUMENT, "the call holds no request")
        else:
            self._start(call, handler, data)

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
        _call_in(self._loop, call.start, lambda: call.answer(handler, data), self._tasks)

    def _refuse(self, call: Call, code: grpc.StatusCode, details: str) -> None:
        call.end(code, details)
        call.leave()
        _call_in(self._loop, self._note, call.method, code, details, call.peer())


def host_of(peer: str) -> str:
    """Of a connection, `ipv4:127.0.0.1:5000`."""
    return peer.rpartition(":")[0] or peer


def _behaviour_of(handler: Any) -> Callable[[Any, Any], Any]:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def _call_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop is closed: whoever ran it did not stop the server
        log.warning("a call came to an end after its event loop did")


def _set(future: asyncio.Future[Any], event: Any) -> None:
    if not future.done():  # its handler may have been cancelled
        future.set_result(event)


def _ignore(_event: Any) -> None:
    pass
