"""A call's life: how often it is sent, and for how long. Nothing here sends or waits.

It is a generator: it yields what is to be done next (Send, Pause) and is sent what came of it. Client and AsyncClient
only do those things, one blocking and one awaiting.
"""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from ferryman.errors import (
    DeadlineError,
    FerrymanError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    UsageError,
)
from ferryman.status import error_from_rpc

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """To do: send the call with this timeout. What came of it is sent back: a response, a grpc.RpcError, or the
    FerrymanError that kept it from being sent.
    """

    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """To do: wait, then send None back."""

    seconds: float


Steps = Generator[Send | Pause, Any, T]


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed call is sent again: within its deadline, and only where that is safe.

    Answers change nothing on the server, so repeating a call does no harm. It is repeated when no server was
    there or it was stopping (UnavailableError), and when the server said when to ask again (OverloadedError
    with retry_after_s, which is then the least to wait). Nothing else is: another try would fail in the same
    way, and a deadline that has passed leaves no time.

    attempts: at most so many in all, 1 for no retries
    first_pause_s, max_pause_s: pauses double from the one up to the other, and each is shortened by a random part
        of up to a half, lest many clients come back at the same moment
    """

    attempts: int = 5
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_pause_s < 0 or self.max_pause_s < 0:
            raise UsageError(f"{self} needs at least one attempt, and no pause below 0")

    def pause_after(self, attempt: int, error: FerrymanError) -> float | None:
        """Seconds to wait after the `attempt`-th try, from 1, failed with `error`; None to give up."""
        if attempt >= self.attempts:
            return None
        pause = min(self.max_pause_s, self.first_pause_s * 2 ** min(attempt - 1, 30)) * random.uniform(0.5, 1.0)
        match error:
            case UnavailableError():
                return pause
            case OverloadedError(retry_after_s=float(least)):
                return least + pause
            case _:
                return None


@dataclass(frozen=True)
class Settings:
    """What a client is told of all its calls.

    address: HOST:PORT; timeout_s: of a call that is not told otherwise, retries included
    max_message_bytes: largest request and answer
    """

    address: str
    timeout_s: float
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        check_timeout(self.timeout_s)


def attempts(
    settings: Settings, request: Message, parse: Callable[[Any], T], timeout_s: float | None = None
) -> Steps[T]:
    """The life of a call that is answered with `parse` of the response.

    timeout_s: None for the settings'. Raises the FerrymanError that the last failure means.
    """
    size, most = request.ByteSize(), settings.max_message_bytes
    if size > most:
        raise UsageError(
            f"the request has {size:,} bytes, more than the limit of {most:,}; send fewer or smaller images"
        )
    deadline = time.monotonic() + (settings.timeout_s if timeout_s is None else timeout_s)
    attempt = 0
    while True:
        attempt += 1
        outcome = yield Send(max(0.0, deadline - time.monotonic()))
        if isinstance(outcome, FerrymanError):
            raise outcome
        if not isinstance(outcome, grpc.RpcError):
            return parse(outcome)
        error = error_from_rpc(outcome, settings.address)
        pause = settings.retry.pause_after(attempt, error)
        if pause is None or time.monotonic() + pause >= deadline:
            raise error from outcome
        yield Pause(pause)


def ask_once_whether_ready(settings: Settings, request: Message, timeout_s: float) -> Steps[bool]:
    """Whether what the health request names serves; False when nothing is there."""
    once = replace(settings, retry=RetryPolicy(attempts=1))
    try:
        return (yield from attempts(once, request, _serves, timeout_s))
    except FerrymanError:
        return False


def ask_until_ready(settings: Settings, request: health_pb2.HealthCheckRequest, timeout_s: float) -> Steps[None]:
    """Asks until what the health request names serves. Raises ModelNotFoundError, or DeadlineError in the end."""
    model, address = request.service, settings.address
    deadline = time.monotonic() + timeout_s
    why = "it is still loading, or failed to"
    while (left := deadline - time.monotonic()) > 0:
        # One try never takes all the time: a server that comes up late may leave a first connection hanging.
        outcome = yield Send(min(left, 5.0))
        if isinstance(outcome, FerrymanError):
            raise outcome
        if isinstance(outcome, grpc.RpcError):
            error = error_from_rpc(outcome, address)
            if isinstance(error, ModelNotFoundError):
                raise ModelNotFoundError(f"{address} has no model {model!r}") from outcome
            why = str(error)
        elif _serves(outcome):
            return
        yield Pause(max(0.0, min(0.1, deadline - time.monotonic())))
    raise DeadlineError(f"{model or 'the server'} at {address} was not ready within {timeout_s:g} s: {why}")


def _serves(response: Any) -> bool:
    return response.status == health_pb2.HealthCheckResponse.SERVING


def check_timeout(timeout_s: float) -> float:
    """Raises UsageError unless it is above 0."""
    if not timeout_s > 0:
        raise UsageError(f"timeout is {timeout_s}, expected seconds above 0")
    return timeout_s
