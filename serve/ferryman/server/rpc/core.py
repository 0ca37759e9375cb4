"""gRPC's core as it looks in Python, and what calls and the server both need of it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import grpc
import grpc.aio

log = logging.getLogger(__name__)
core: Any = import_module("grpc._cython.cygrpc")
# It repeats each header that is not UTF-8 as it came, with a traceback: a token, or what a stranger likes.
logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not str(record.msg).startswith("Invalid encoding on"))
# grpc has no types for the handlers of any method: requests and responses of all kinds.
Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not subscriptable when it runs
Behaviour = Callable[[Any, Any], Any]  # from a request, or an iterator of them, and its context
Metadata = Sequence[tuple[str, str | bytes]]


def behaviour_of(handler: Any) -> Behaviour:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def with_behaviour(handler: Any, behaviour: Behaviour, deserialize: Callable[[bytes], Any] | None = None) -> Handler:
    """A handler, of one request and one answer or of streams of both, that behaves otherwise.

    deserialize: instead of its own
    """
    make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(behaviour, deserialize or handler.request_deserializer, handler.response_serializer)


def host_of(peer: str) -> str:
    """Of a connection, `ipv4:127.0.0.1:5000`."""
    return peer.rpartition(":")[0] or peer


def call_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop is closed: whoever ran it did not stop the server
        log.warning("a call came to an end after its event loop did")


def set_result(future: asyncio.Future[Any], event: Any) -> None:
    if not future.done():  # its handler may have been cancelled
        future.set_result(event)
