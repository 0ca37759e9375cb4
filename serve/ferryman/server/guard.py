"""What every call to a model goes through: errors become statuses here, and calls in flight are counted."""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from threading import Lock
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from ferryman.errors import FerrymanError, UnavailableError, UsageError
from ferryman.server.health import METHODS
from ferryman.server.rpc.core import Behaviour, Context, Handler, behaviour_of, with_behaviour
from ferryman.server.security.wire import check_fields, inner_fields
from ferryman.status import status_from_error

log = logging.getLogger(__name__)
UNEXPECTED = "the server met an unexpected error; its log says more"
# With a refusal that came before anything was done for the call: whoever stands between may send it to another server.
# The code alone does not say so, as UNAVAILABLE is also what becomes of a call whose connection breaks off.
UNTOUCHED = ("ferryman-untouched", "true")
_LOOK_S = 0.005  # between looks at what is in flight, when the server stops


class CallsInFlight:
    """Counts calls from their start until their status is sent, and refuses new ones once stopping."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._lock = Lock()  # of what follows: calls end in threads of gRPC's
        self._count = 0
        self._last = 0.0  # when a call came or went, in seconds of `time.monotonic`

    @property
    def count(self) -> int:
        return self._count

    def enter(self, context: Context) -> None:
        """Counts this call. Raises UnavailableError when the server is stopping."""
        with self._lock:
            self._last = time.monotonic()
            if self.stopping.is_set():
                raise UnavailableError("the server is stopping; ask another one, or again later")
            self._count += 1
        context.add_done_callback(self._leave)  # pyright: ignore[reportArgumentType]  # its stub wants a keyword

    def _leave(self, _context: Context) -> None:
        with self._lock:
            self._count -= 1
            self._last = time.monotonic()

    async def wait_for_none(self) -> None:
        while self._count:
            await asyncio.sleep(_LOOK_S)

    async def wait_for_quiet(self, quiet_s: float, limit_s: float) -> None:
        """Returns once no call has come or gone for `quiet_s`, or after `limit_s`.

        For whoever was answered and asks again at once: a server that is shut down at that moment breaks off calls
        that it has not looked at yet, and so they get their refusal.
        """
        end = time.monotonic() + limit_s
        while (now := time.monotonic()) < min(end, self._last + quiet_s):
            await asyncio.sleep(min(end, self._last + quiet_s) - now)


async def abort(context: Context, error: FerrymanError, *metadata: tuple[str, str]) -> None:
    """Ends the call with the error's status and details, beside what interceptors further out have to say; raises.

    metadata: more of what comes with it
    """
    status = rpc_status.to_status(status_from_error(error))
    context.set_code(status.code)  # which aborting does not, and those interceptors ask for
    await context.abort(
        status.code, status.details or "", (*(context.trailing_metadata() or ()), *status.trailing_metadata, *metadata)
    )


class ErrorGuard:
    """Maps FerrymanError to its status with details; any other exception to INTERNAL, with its traceback in the log."""

    def __init__(self, calls: CallsInFlight) -> None:
        self._calls = calls

    def wrap(self, method: str, handler: Any) -> Handler:
        """handler: of a method of METHODS"""
        check = _check_messages if handler.request_streaming else _check_message
        inner = inner_fields(METHODS[method].input_type)

        def read(data: bytes) -> Any:  # grpc would answer UNKNOWN to what is raised here, with the error's text
            try:
                check_fields(data, inner)
                return handler.request_deserializer(data)
            except DecodeError:
                return UsageError("the request is no message of this method")
            except UsageError as error:
                return error

        return with_behaviour(handler, self._guard(behaviour_of(handler), check, method), read)

    def _guard(self, behaviour: Behaviour, check: Callable[[Any], Any], method: str) -> Behaviour:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                self._calls.enter(context)
            except UnavailableError as error:
                await abort(context, error, UNTOUCHED)
            try:
                return await behaviour(check(request), context)
            except FerrymanError as error:
                # Of its traceback this frame is a part: else each would keep the other, and what the request brought.
                failure = error.with_traceback(None)
            except grpc.aio.InternalError as error:  # of a write to a caller who has gone
                raise asyncio.CancelledError from error
            except Exception:
                log.exception("unexpected error in %s", method)
                failure = FerrymanError(UNEXPECTED)
            await abort(context, failure)

        return guarded


def _check_message(request: Any) -> Any:
    if isinstance(request, UsageError):  # what stands for bytes that are no message, or not one that is parsed
        raise request
    return request


async def _check_messages(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _check_message(request)
