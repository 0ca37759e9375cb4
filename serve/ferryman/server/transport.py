"""What gRPC lets in: limits of connections, calls and messages, and who a call comes from."""

from typing import Annotated, Literal

from pydantic import Field

from ferryman.errors import UsageError
from ferryman.server.queueing import Caller
from ferryman.server.rpc.core import Context, host_of
from ferryman.server.rpc.server import Patience
from ferryman.server.security.access import CALLER
from ferryman.specs import Facts

PRIORITY = "ferryman-priority"  # the metadata that says it
_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Seconds = Annotated[float, Field(gt=0, le=10**6)]  # in milliseconds it must fit 31 bits


class TransportLimits(Facts):
    """max_message_bytes: of one request; room for 64 photographs
    max_metadata_bytes: of what comes before a request; room for a token and a trace, not for a buffer of megabytes
    max_connections: at a time; each costs memory though it be silent, and more than 1,000 cameras need two servers
    max_streams: calls of one connection at a time, more wait at the client; queue_limit bounds what they may bring
    max_calls: of all connections at a time, health checks included; more are refused before they are read. One host, or
        one token, may have half of them
    receive_seconds: until a request must be there, from the call's begin; streams wait for theirs as long as they like
    receive_bytes: that requests may take which are not all there after a second: so many of `max_message_bytes`, one at
        the least. Of more, those are refused that the host with most of them sends
    idle_seconds: after which a connection without a call is closed; clients connect again by themselves
    connection_seconds: after which a connection takes no more calls, 0 for never: streams of cameras last for days;
        behind a balancer that spreads connections, a value spreads them again
    keepalive_seconds: of silence after which a client is asked whether it lives; one that does not answer in 20 s is
        cut off, and its calls are cancelled
    ping_seconds: at the least between a client's own such questions, else it is cut off: they cost time and no call
    handshake_seconds: until a connection must speak HTTP/2, else it is closed
    """

    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 64 * 1024 * 1024
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 16 * 1024
    max_connections: _Count = 1024
    max_streams: _Count = 256
    max_calls: _Count = 2048
    receive_seconds: _Seconds = 30.0
    receive_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024 * 1024
    idle_seconds: _Seconds = 600.0
    connection_seconds: Annotated[float, Field(ge=0, le=10**6)] = 0.0
    keepalive_seconds: _Seconds = 60.0
    ping_seconds: _Seconds = 10.0
    handshake_seconds: _Seconds = 10.0


def grpc_options(limits: TransportLimits) -> list[tuple[str, int]]:
    """The limits as channel arguments of a server."""
    options = {
        "grpc.so_reuseport": 0,  # else a second server on the port shares it, and nobody notices
        "grpc.max_receive_message_length": limits.max_message_bytes,
        "grpc.max_send_message_length": -1,  # answers to what was let in go out; the client has its own limit
        # Beyond the first some are refused, beyond the second all: one number is easier to rely on.
        "grpc.max_metadata_size": limits.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": limits.max_metadata_bytes,
        "grpc.max_allowed_incoming_connections": limits.max_connections,
        "grpc.max_concurrent_streams": limits.max_streams,
        # Else a call that begins as another ends is cut off, since the client knows of the end before the server does.
        "grpc.http.overload_protection": 0,
        "grpc.max_connection_idle_ms": _milliseconds(limits.idle_seconds),
        "grpc.keepalive_time_ms": _milliseconds(limits.keepalive_seconds),
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 1,  # a stream between two frames is as good as silent
        "grpc.http2.min_ping_interval_without_data_ms": _milliseconds(limits.ping_seconds),
        "grpc.http2.max_ping_strikes": 2,
        "grpc.server_handshake_timeout_ms": _milliseconds(limits.handshake_seconds),
    }
    if limits.connection_seconds:
        options["grpc.max_connection_age_ms"] = _milliseconds(limits.connection_seconds)
    return list(options.items())


def patience_of(limits: TransportLimits) -> Patience:
    return Patience(limits.receive_seconds, max(1, limits.receive_bytes // limits.max_message_bytes))


def caller_of(context: Context, by: Literal["connection", "host"]) -> Caller:
    """by: what tells clients apart that show no token: the connection, or the host that it comes from

    Raises UsageError for a priority that is none.
    """
    peer = context.peer()
    client = peer if by == "connection" else host_of(peer)
    token = CALLER.get()
    if token is not None:
        client = f"token {token.name}"
    for key, value in context.invocation_metadata() or ():
        if key == PRIORITY:
            match value:
                case "low":
                    return Caller(client, "low")
                case "high":
                    break
                case _:
                    raise UsageError(f"{PRIORITY} is {str(value)[:40]!r}, expected high or low", PRIORITY)
    return Caller(client)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
