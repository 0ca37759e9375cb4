"""One call: what its handler may ask about it, and how it ends."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import copy_context
from inspect import isasyncgen
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from ferryman.server.rpc.core import Metadata, behaviour_of, call_in, core, set_result
from ferryman.server.steps import SpareThread, Step

log = logging.getLogger(__name__)
_LONGEST_S = 1e12  # of gRPC's clock: a deadline beyond is none


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
        self._step: Step | None = None
        self.gone = False  # the client has given up, or its deadline has passed
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
            sent = await self._do(*self._beginning(), core.SendMessageOperation(self._serialize(message), 0))
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
            operations.append(core.SendMessageOperation(answer, 0))
        operations.append(core.SendStatusFromServerOperation(tuple(trailing), code.value[0], details.encode(), 0))
        self._ended, self._code = True, code
        self._call.start_server_batch(tuple(operations), _ignore)

    async def requests(self, deserialize: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        """A stream's messages."""
        while True:
            received = await self._do(core.ReceiveMessageOperation(0))
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
            behave = behaviour_of(handler)
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
        self._call.start_server_batch((core.ReceiveCloseOnServerOperation(0),), self._close)

    def receive(self, then: Callable[[bytes | None], None]) -> None:
        """Its one request, None for none; then is called in gRPC's thread. In gRPC's thread."""
        self._call.start_server_batch(
            (core.ReceiveMessageOperation(0),), lambda event: then(event.batch_operations[0].message())
        )

    def start(self, answering: Callable[[], Any], tasks: set[Any]) -> None:
        if self.gone:
            self.leave()
            return
        task = self._loop.create_task(answering(), context=self.context)
        self._task = task
        tasks.add(task)

        def finish(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self.leave()

        task.add_done_callback(finish)

    def step(self, answering: Callable[[], Coroutine[Any, Any, None]], tasks: set[Any], spare: SpareThread) -> None:
        """Lets the handler answer without an event loop, as far as it needs none. In gRPC's thread."""
        if self.gone:
            self.leave()
            return

        def finish() -> None:
            tasks.discard(step)
            self.leave()

        self._step = step = Step(answering(), self.context, self._loop, spare, finish)
        tasks.add(step)
        step.begin()

    def leave(self) -> None:
        """Gone with the handler, or that there is none. From any thread."""
        if self._ends.pop() == "last":
            for callback in self._callbacks:
                callback(self)

    def _close(self, event: Any) -> None:
        if event.batch_operations[0].cancelled() and not self._ended:
            self.gone = True
            if self._step is not None:
                self._step.cancel()
            else:
                call_in(self._loop, self._cancel)
        self.leave()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _beginning(self) -> tuple[Any, ...]:
        if self._begun:
            return ()
        self._begun = True
        return (core.SendInitialMetadataOperation((), 0),)

    def _do(self, *operations: Any) -> asyncio.Future[Any]:
        """The event of gRPC's that tells what became of them."""
        done = self._loop.create_future()

        def tell(event: Any) -> None:
            call_in(self._loop, set_result, done, event)

        self._call.start_server_batch(operations, tell)
        return done


def _ignore(_event: Any) -> None:
    pass
