"""Every call and every request to a model, counted, traced and logged under an id; see docs/monitoring.md."""

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from threading import Lock
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, cast

import grpc
from pydantic import Field

from ferryman.errors import FerrymanError
from ferryman.server.request import CALL, REQUEST, Request
from ferryman.server.rpc.core import Context, Handler, behaviour_of, with_behaviour
from ferryman.server.tracing import CallTrace, Tracing
from ferryman.specs import Facts

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
REQUEST_ID = "x-request-id"
_AHEAD_S = 0.05
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class ObservingSettings(Facts):
    """metrics_address: HOST:PORT of /metrics, /livez and /readyz over plain HTTP, None for none

    log_format: `json` for an object a line; log_requests: a line for each request, its pictures aside
    trace_exporter: where OpenTelemetry's spans go, by the name of an installed exporter, such as otlp_proto_grpc or
        console; None traces nothing; trace_ratio: of the requests whose client has not decided whether they are traced
    """

    metrics_address: str | None = None
    log_format: Literal["text", "json"] = "text"
    log_requests: bool = False
    trace_exporter: str | None = None
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0


class Counts:
    """Since the server started; from any thread.

    requests: to models, by model, version, variant and code; the first three are empty where a request got to none
    calls: by method and code; a stream is one
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.requests = Counter[tuple[str, str, str, str]]()
        self.calls = Counter[tuple[str, str]]()

    def add_call(self, method: str, code: str) -> None:
        with self._lock:
            self.calls[method, code] += 1

    def add_request(self, model: str, version: str, variant: str, code: str) -> None:
        with self._lock:
            self.requests[model, version, variant, code] += 1

    def now(self) -> "Counts":
        """As they are now, and stay."""
        found = Counts()
        with self._lock:
            found.requests.update(self.requests)
            found.calls.update(self.calls)
        return found


class Call:
    """One call of a client. id: the client's own, or made here"""

    def __init__(self, observer: "Observer", context: Context, id: str, trace: CallTrace | None) -> None:
        self.id = id
        self.trace = trace
        self._observer = observer
        self._context = context

    async def answer(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits the work for one request to a model."""
        request = Request(trace=None if self.trace is None else self.trace.start_request())
        token = REQUEST.set(request)
        code = "OK"
        try:
            return await method(*args, **kwargs)
        except FerrymanError as error:
            code = error.grpc_status
            raise
        except asyncio.CancelledError:
            code = self.code_when_cancelled()
            raise
        except BaseException:
            code = "INTERNAL"
            raise
        finally:
            self._observer.note_request(request, code)
            REQUEST.reset(token)

    def code_when_cancelled(self) -> str:
        """What a client is told whose call was cancelled: by itself, or by its deadline."""
        left = cast("float | None", self._context.time_remaining())  # the stub forgets calls without a deadline
        # A client's clock began before ours did, and its cancelling may be here before our own deadline is.
        return "CANCELLED" if left is None or left > _AHEAD_S else "DEADLINE_EXCEEDED"


def observed(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Of a coroutine that answers one request to a model."""

    @wraps(method)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        call = CALL.get()
        answering = method(*args, **kwargs) if call is None else call.answer(method, *args, **kwargs)
        return await answering

    return wrapper


class Observer:
    """Stands behind the door alone (`security.access`), which tells what it refuses: what others refuse is seen too."""

    def __init__(self, settings: ObservingSettings) -> None:
        """Raises MissingExtraError and UsageError, see Tracing."""
        self.counts = Counts()
        self._log_requests = settings.log_requests
        exporter = settings.trace_exporter
        self._tracing = None if exporter is None else Tracing(exporter, settings.trace_ratio)

    def close(self) -> None:
        """Sends what spans there are left; blocks."""
        if self._tracing is not None:
            self._tracing.close()

    def wrap(self, method: str, handler: Handler) -> Handler:
        return with_behaviour(handler, self._observe(behaviour_of(handler), method))

    def _observe(self, behaviour: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
        name = method[1:]

        async def observed_call(request: Any, context: Context) -> Any:
            metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
            call = Call(self, context, _request_id(metadata), self._start_trace(name, metadata))
            CALL.set(call)  # for this call's task, and those that it starts
            context.set_trailing_metadata(((REQUEST_ID, call.id),))
            code = "UNKNOWN"
            try:
                answer = await behaviour(request, context)
                code = "OK"
            except asyncio.CancelledError:
                code = call.code_when_cancelled()
                raise
            except BaseException:  # the handler has set the status
                found = cast("Any", context.code())  # a number where none was set, whatever the stub says
                code = found.name if isinstance(found, grpc.StatusCode) else code
                raise
            else:
                return answer
            finally:
                self.counts.add_call(name, code)
                if call.trace is not None:
                    call.trace.end(code)

        return observed_call

    def _start_trace(self, name: str, metadata: dict[str, Any]) -> CallTrace | None:
        return None if self._tracing is None else self._tracing.start_call(name, metadata)

    def note_request(self, request: Request, code: str) -> None:
        """Counts one that has ended, and tells of it."""
        model = request.model
        names = ("", "", "") if model is None else (model.name, str(model.version), model.target)
        self.counts.add_request(*names, code)
        if request.trace is not None:
            request.trace.end(request, names, code)
        if self._log_requests:
            total_ms = request.total_ns / 1e6
            facts = dict(zip(("model", "version", "variant"), names, strict=True))
            facts |= {"code": code, "images": str(request.images), "total_ms": f"{total_ms:.2f}"}
            log.info("request: %s", " ".join(f"{key}={value}" for key, value in facts.items()))


def _request_id(metadata: dict[str, Any]) -> str:
    given = metadata.get(REQUEST_ID)
    if isinstance(given, str) and _ID.fullmatch(given):
        return given
    return f"{random.getrandbits(128):032x}"  # a name, and no secret
