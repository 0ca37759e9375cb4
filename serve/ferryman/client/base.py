"""What the two clients share: how they are made, and how a method comes from `calls`."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, Generic, TypeVar, get_args

import grpc
import grpc.aio

from ferryman.client.attempts import RetryPolicy, Settings
from ferryman.client.calls import Stubs
from ferryman.client.security import Security

Option = tuple[str, int | str]
ChannelT = TypeVar("ChannelT", grpc.Channel, grpc.aio.Channel)
Method = TypeVar("Method", bound=Callable[..., Any])
_SEVERAL = re.compile("(dns|ipv4|ipv6):")  # what gRPC's own names begin with, which may have many addresses


class BaseClient(ABC, Generic[ChannelT]):
    """What a client of either kind is told, and its channel."""

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        max_message_bytes: int = 64 * 1024 * 1024,
        security: Security | None = None,
    ) -> None:
        """Connects when it is first asked something.

        address: HOST:PORT; dns:///HOST:PORT for all addresses that the name has, in turn
        timeout: seconds for a call unless it is told otherwise, retries included
        max_message_bytes: largest request and answer; security: TLS and token, by default neither
        Raises UsageError and FileAccessError for a `security` that can't be used.
        """
        self.settings = Settings(address, timeout, retry or RetryPolicy(), max_message_bytes)
        security = security or Security()
        self._metadata = security.metadata
        options = channel_options(address, max_message_bytes)
        self._channel = self._connect(address, options, security.credentials(address))
        self._stubs = Stubs(self._channel)

    @abstractmethod
    def _connect(
        self, address: str, options: list[Option], credentials: grpc.ChannelCredentials | None
    ) -> ChannelT: ...


def describe(method: Method, made_from: Callable[..., Any], returns: Any = None, *first: str) -> Method:
    """Gives a method the name, words and arguments of the function in `calls` that makes its Call or Stream.

    returns: of what the answer is an argument, None for the answer itself; first: parameters before the function's own
    """
    facts = signature(made_from)
    (answer,) = get_args(facts.return_annotation)
    added = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in ("self", *first)]
    described: Any = method
    described.__name__, described.__doc__ = made_from.__name__, made_from.__doc__
    described.__signature__ = facts.replace(
        parameters=[*added, *facts.parameters.values()],
        return_annotation=answer if returns is None else returns[answer],
    )
    return method


def channel_options(address: str, max_message_bytes: int) -> list[Option]:
    """Options of a channel of either kind."""
    # gRPC would send everything to the first address that a name has. In turn, a call that a server refuses as it stops
    # goes to another one when it is repeated. For one address that is nothing but a connection that is never idle.
    several: list[Option] = [("grpc.lb_policy_name", "round_robin")] if _SEVERAL.match(address) else []
    return [
        *several,
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Retries are ours: gRPC waits up to two minutes before it tries to connect again, and all calls fail till then.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
