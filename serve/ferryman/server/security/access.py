"""The door: who asks is found out before a byte of the request is read.

`Door` stands outermost: it knows the caller's token, and refuses what needs another one. `Permissions` stand innermost,
where requests are messages and errors become statuses: they hold the token to its models and limits.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from threading import Lock
from typing import Any

import grpc
from grpc_status import rpc_status

from ferryman.errors import (
    DeadlineError,
    FerrymanError,
    ForbiddenError,
    OverloadedError,
    UnauthenticatedError,
    UsageError,
)
from ferryman.server.guard import abort
from ferryman.server.rpc.call import Call
from ferryman.server.rpc.core import Behaviour, Context, Handler, Metadata, behaviour_of, host_of, with_behaviour
from ferryman.server.security.limiter import Limiter
from ferryman.server.security.tokens import Token, TokenFile
from ferryman.status import status_from_error

log = logging.getLogger(__name__)
_INFERENCE, _VISION = "/inference.GRPCInferenceService/", "/ferryman.v1.VisionService/"
# What changes the server, or tells of more than a model that is asked for.
ADMIN = frozenset(
    _INFERENCE + name
    for name in (
        "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
        "TraceSetting", "LogSettings",
    )
)  # fmt: skip
# Not grpc.health.v1.Health/List, which names all models.
HEALTH = frozenset(
    {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", f"{_INFERENCE}ServerLive"}
    | {f"{_INFERENCE}ServerReady"}
)
# Where a request says which model it is about. A method of the services that stands nowhere in this file is refused to
# tokens of some models alone.
MODEL_OF: dict[str, Callable[[Any], str]] = {
    **{
        f"{_VISION}{name}": attrgetter("model.name") for name in ("Classify", "Detect", "Embed", "Segment", "ModelInfo")
    },
    **{f"{_VISION}{name}": attrgetter("request.model.name") for name in ("StreamClassify", "StreamDetect")},
    **{f"{_INFERENCE}{name}": attrgetter("model_name") for name in ("ModelInfer", "ModelStreamInfer")},
    **{
        f"{_INFERENCE}{name}": attrgetter("name")
        for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
    },
}
NO_MODEL = frozenset(f"{_INFERENCE}{name}" for name in ("ServerLive", "ServerReady", "ServerMetadata"))
_METHODS = ADMIN | HEALTH | NO_MODEL | frozenset(MODEL_OF) | {f"{_VISION}ListModels"}
CALLER: ContextVar[Token | None] = ContextVar("caller", default=None)  # of the call under way
ADMINISTRATORS = "administrators"  # who owns what is registered at their address
_QUIET_S = 10.0
_SOON_S = 5.0
_MOST_READ = 8  # strangers' requests at a time that are not there yet, of one host half as many


class Access:
    """Who may call what.

    tokens: None lets everybody in; open_health: health checks need no token
    admin: everything is allowed, for an address that only administrators reach
    """

    def __init__(self, tokens: TokenFile | None, open_health: bool, admin: bool = False) -> None:
        self.tokens, self._open_health, self._admin = tokens, open_health, admin

    def admit(self, method: str, metadata: Metadata) -> Token | None:
        """The caller's token, None where none is asked for. Raises UnauthenticatedError and ForbiddenError."""
        if self._admin or (self._open_health and method in HEALTH):
            return None
        token = None if self.tokens is None else _identify(self.tokens, metadata)
        if method in ADMIN and not (token and token.admin):
            raise ForbiddenError(
                f"{method.rpartition('/')[2]} is for administrators: ask with a token that has admin=true, or at the "
                "server's admin_address"
            )
        return token

    def is_open(self, method: str) -> bool:
        """Whether strangers may call it where others need a token."""
        return self.tokens is not None and self._open_health and not self._admin and method in HEALTH

    def owner(self) -> str:
        """Whose shared memory the call under way reaches: its token's, or that of all at the address for
        administrators, whom nothing tells apart; empty for those who may register none.
        """
        token = CALLER.get()
        if token is not None:
            return owner_of(token.name)
        return ADMINISTRATORS if self._admin else ""


class Door:
    """Refuses calls that `access` does not admit, and remembers the token of those that it does.

    count: counts a refusal, by method and code
    max_calls: of the server at a time. A quarter of them may need no token where others do, half of these may be
    watches, which never end; and half of all may have the same token, or come from the same host without one: places
    are left for others, whatever becomes of a call whose request never comes
    """

    def __init__(self, access: Access, count: Callable[[str, str], None], max_calls: int) -> None:
        self._access, self._count_call = access, count
        self._max_strangers, self._strangers = max(1, max_calls // 4), 0
        self._watches, self._read = 0, Counter[str]()  # of strangers; these by host, whose request is not there yet
        self._max_calls, self._max_same = max_calls, max(1, max_calls // 2)
        self._open, self._by_caller = 0, Counter[str]()
        self.passed = 0  # times that a call came in or went out
        self._lock = Lock()  # of those two: calls end in threads of gRPC's
        self._refused = 0  # since the last line in the log, which strangers must not fill
        self._silent_until = 0.0

    def open(self, call: Call, handler: "Handler | None") -> "Handler | None":
        """What answers the call. In gRPC's thread, and the call's context.

        handler: None where there is no such method, which only those are told who may come in
        """
        try:
            token = self._access.admit(call.method, call.invocation_metadata())
            self._take_place(host_of(call.peer()) if token is None else owner_of(token.name), call)
            CALLER.set(token)
        except FerrymanError as error:
            return self._refusal(error, call.method)
        return self._hurry(handler) if handler is not None and self._access.is_open(call.method) else handler

    @property
    def calls_inside(self) -> int:
        """Calls that were let in and have not ended, whether their request is there or not."""
        return self._open

    def _take_place(self, caller: str, call: Call) -> None:
        """Until the call ends, which it does even when no request came and nothing else hears of it.

        Raises OverloadedError.
        """
        with self._lock:
            if self._open >= self._max_calls:
                raise OverloadedError("the server has too many calls at a time; ask again later", 1.0)
            if self._by_caller[caller] >= self._max_same:
                raise OverloadedError("too many calls of this client at a time; ask again later", 1.0)
            self._open += 1
            self.passed += 1
            self._by_caller[caller] += 1
        call.add_done_callback(lambda _: self._leave_place(caller))

    def _leave_place(self, caller: str) -> None:
        with self._lock:
            self._open -= 1
            self.passed += 1
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:  # they come and go
                del self._by_caller[caller]

    def _hurry(self, handler: Any) -> "Handler":
        """A handler of one request, which must come soon: grpc would wait for it as long as the caller likes."""

        async def answer(requests: AsyncIterable[Any], context: Context) -> None:
            watches = handler.response_streaming
            if self._strangers >= self._max_strangers or (watches and self._watches >= self._max_strangers // 2):
                await abort(context, OverloadedError("too many health checks at a time; ask again later", 1.0))
            self._strangers += 1
            self._watches += watches
            try:
                with self._reading(host_of(context.peer())):
                    request = await asyncio.wait_for(anext(aiter(requests), None), _SOON_S)
                if request is None:
                    await abort(context, UsageError("the call holds no request"))
                elif handler.response_streaming:
                    await handler.unary_stream(request, context)
                else:
                    await context.write(await handler.unary_unary(request, context))
            except TimeoutError:
                await abort(context, DeadlineError(f"the request did not come within {_SOON_S:g} s"))
            except FerrymanError as error:
                await abort(context, error)
            finally:
                self._strangers -= 1
                self._watches -= watches

        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _reading(self, host: str) -> Generator[None]:
        """While a stranger's request comes, which is a few bytes, and may be sent as any number of them.

        Raises OverloadedError.
        """
        if sum(self._read.values()) >= _MOST_READ or self._read[host] >= _MOST_READ // 2:
            raise OverloadedError("too many health checks come slowly; ask again later", 1.0)
        self._read[host] += 1
        try:
            yield
        finally:
            self._read[host] -= 1
            if not self._read[host]:
                del self._read[host]

    def _refusal(self, error: FerrymanError, method: str) -> "Handler":
        async def refuse(_requests: Any, context: Context) -> None:
            self._count(method, error.grpc_status, str(error), context.peer())
            await context.abort_with_status(rpc_status.to_status(status_from_error(error)))

        return grpc.stream_stream_rpc_method_handler(refuse)  # of any call: it does not wait for the request

    def note(self, method: str, code: grpc.StatusCode, details: str, peer: str) -> None:
        """A call has ended before its request was there. details: why it was refused, none where its client gave up"""
        self._count(method, code.name, details, peer)

    def _count(self, method: str, code: str, reason: str, peer: str) -> None:
        # Strangers choose the names of methods that there are not.
        self._count_call(method[1:] if method in _METHODS else "unknown", code)
        if not reason:
            return
        self._refused += 1
        if time.monotonic() >= self._silent_until:
            log.warning(
                "refused: calls=%d last_method=%r last_peer=%s reason=%s", self._refused, method[:100], peer, reason
            )
            self._refused, self._silent_until = 0, time.monotonic() + _QUIET_S


class Permissions:
    """Hold calls with a token to its models and limits. A stream counts as one call, and each of its requests waits
    until the rate allows it: gRPC's flow control then holds back the client.

    model_of: the model that a name stands for now, which is another one where the name is an alias
    tokens: as they are now, for streams, which may be open when theirs is changed or taken away
    """

    def __init__(self, model_of: Callable[[str], str], tokens: TokenFile | None) -> None:
        self._model_of = model_of
        self._tokens = tokens
        self._limiters: dict[tuple[str, float | None, int | None], Limiter] = {}

    def wrap(self, method: str, handler: Handler) -> Handler:
        hold = self._hold_stream if handler.request_streaming else self._hold_call
        return with_behaviour(handler, hold(behaviour_of(handler), method))

    def _hold_call(self, behaviour: Behaviour, method: str) -> Behaviour:
        async def held(request: Any, context: Context) -> Any:
            token = CALLER.get()
            if token is None:
                return await behaviour(request, context)
            check_model(token, method, request, self._model_of)
            limiter = self._limiter_of(token)
            with limiter.inside():
                limiter.take_or_refuse()
                return await behaviour(request, context)

        return held

    def _hold_stream(self, behaviour: Behaviour, method: str) -> Behaviour:
        async def requests_of(token: Token, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                token = self._now(token)
                limiter = self._limiter_of(token)
                while wait := limiter.take():
                    await asyncio.sleep(wait)
                check_model(token, method, request, self._model_of)
                yield request

        async def held(requests: Any, context: Context) -> Any:
            token = CALLER.get()
            if token is None:
                return await behaviour(requests, context)
            with self._limiter_of(token).inside():
                return await behaviour(requests_of(token, requests), context)

        return held

    def _now(self, token: Token) -> Token:
        found = None if self._tokens is None else self._tokens.now(token)
        if found is None:
            raise UnauthenticatedError("the token of this stream is not known any more")
        return found

    def _limiter_of(self, token: Token) -> Limiter:
        key = token.name, token.rate, token.in_flight  # other limits in the file begin anew
        # Two threads may each make one; they get the same.
        return self._limiters.get(key) or self._limiters.setdefault(key, Limiter(token.rate, token.in_flight))


def owner_of(token: str) -> str:
    """Who owns what was registered with the token of that name."""
    return f"token {token}"


def check_model(token: Token, method: str, request: Any, model_of: Callable[[str], str]) -> None:
    """A token of a model may ask each version and by each alias, one of an alias what that stands for, by it alone.

    Raises ForbiddenError when a token of some models alone asks about another one, or about all of them; whether there
    is another one it is not told.
    """
    if not token.models or method in NO_MODEL:
        return
    read = MODEL_OF.get(method)
    name = "" if read is None else read(request)
    if name not in token.models and model_of(name) not in token.models:
        raise ForbiddenError(
            f"this token may ask {', '.join(token.models)} alone, and not {repr(name[:100]) if name else 'all models'}"
        )


def may_be_told(name: str) -> bool:
    """Whether the call under way may learn that there is a model of that name."""
    token = CALLER.get()
    return token is None or not token.models or name in token.models


def _identify(tokens: TokenFile, metadata: Metadata) -> Token:
    given = [value for key, value in metadata if key == "authorization"]
    if len(given) != 1:
        raise UnauthenticatedError("send one token, as metadata `authorization: Bearer TOKEN`")
    scheme, _, secret = str(given[0]).partition(" ")
    token = tokens.find(secret.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise UnauthenticatedError("the authorization is no `Bearer TOKEN` that this server knows")
    return token
