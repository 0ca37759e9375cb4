"""Client: sends and waits in the caller's thread."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from ferryman.client import calls
from ferryman.client.attempts import Pause, Send
from ferryman.client.base import BaseClient, Option, describe
from ferryman.client.calls import Call, Image, Stream
from ferryman.errors import UnavailableError
from ferryman.status import error_from_rpc

T = TypeVar("T")
P = ParamSpec("P")


def _ask(make: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    def method(client: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        return client.run(make(*args, **kwargs))

    return describe(method, make)


def _answer_frames(
    make: Callable[P, Stream[T]],
) -> Callable[Concatenate["Client", Iterable[Image], P], Generator[T]]:
    def method(client: "Client", frames: Iterable[Image], *args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        return client.run_stream(make(*args, **kwargs), frames)

    return describe(method, make, Generator, "frames")


class Client(BaseClient[grpc.Channel]):
    """Blocking client; safe to share between threads. Use it in a `with` block, or `close` it."""

    classify = _ask(calls.classify)
    detect = _ask(calls.detect)
    embed = _ask(calls.embed)
    segment = _ask(calls.segment)
    stream_classify = _answer_frames(calls.stream_classify)
    stream_detect = _answer_frames(calls.stream_detect)
    model_info = _ask(calls.model_info)
    is_ready = _ask(calls.is_ready)
    wait_ready = _ask(calls.wait_ready)

    def close(self) -> None:
        """Cancels what is in flight; calling it twice is fine."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(
        self, address: str, options: list[Option], credentials: grpc.ChannelCredentials | None
    ) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, credentials, options)

    def run(self, call: Call[T]) -> T:
        """Sends a call of `calls` until it is answered."""
        method, steps = call.method(self._stubs), call.live(self.settings)
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value
            match step:
                case Pause(seconds):
                    time.sleep(seconds)
                    outcome = None
                case Send(timeout_s):
                    try:
                        outcome = method(call.request, timeout=timeout_s, metadata=self._metadata)
                    except grpc.RpcError as error:
                        outcome = error
                    except ValueError:  # what grpc says of a closed channel
                        outcome = UnavailableError("the client is closed")

    def run_stream(self, stream: Stream[T], frames: Iterable[Image]) -> Generator[T]:
        """Answers to the frames of a stream of `calls`."""
        failures: list[Exception] = []

        def requests() -> Iterator[Any]:
            try:
                for frame_id, image in enumerate(frames):
                    yield stream.request(frame_id, image)
            except Exception as error:  # noqa: BLE001 - raised to the caller below; grpc's thread would only log it
                failures.append(error)

        try:
            call = stream.method(self._stubs)(requests(), timeout=stream.timeout_s, metadata=self._metadata)
        except ValueError as error:  # see `run`
            raise UnavailableError("the client is closed") from error
        try:
            for message in call:
                yield stream.parse(message)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.settings.address) from error
        finally:
            call.cancel()  # nothing, when it has ended
        if failures:
            raise failures[0]
