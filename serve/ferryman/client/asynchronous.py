"""AsyncClient: sends and waits in asyncio's event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
import grpc.aio

from ferryman.client import calls
from ferryman.client.attempts import Pause, Send
from ferryman.client.base import BaseClient, Option, describe
from ferryman.client.calls import Call, Image, Stream
from ferryman.errors import UnavailableError
from ferryman.status import error_from_rpc

T = TypeVar("T")
P = ParamSpec("P")
Frames = Iterable[Image] | AsyncIterable[Image]


def _ask(make: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    async def method(client: "AsyncClient", *args: P.args, **kwargs: P.kwargs) -> T:
        # In a thread: pictures are read from files.
        return await client.run(await asyncio.to_thread(make, *args, **kwargs))

    return describe(method, make)


def _answer_frames(
    make: Callable[P, Stream[T]],
) -> Callable[Concatenate["AsyncClient", Frames, P], AsyncGenerator[T]]:
    def method(client: "AsyncClient", frames: Frames, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return client.run_stream(make(*args, **kwargs), frames)

    return describe(method, make, AsyncGenerator, "frames")


class AsyncClient(BaseClient[grpc.aio.Channel]):
    """The same for asyncio. Use it in an `async with` block, or `close` it, in the loop that it was made in."""

    classify = _ask(calls.classify)
    detect = _ask(calls.detect)
    embed = _ask(calls.embed)
    segment = _ask(calls.segment)
    stream_classify = _answer_frames(calls.stream_classify)
    stream_detect = _answer_frames(calls.stream_detect)
    model_info = _ask(calls.model_info)
    is_ready = _ask(calls.is_ready)
    wait_ready = _ask(calls.wait_ready)

    async def close(self) -> None:
        """Cancels what is in flight; calling it twice is fine."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _connect(
        self, address: str, options: list[Option], credentials: grpc.ChannelCredentials | None
    ) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(address, options)
        return grpc.aio.secure_channel(address, credentials, options)

    async def run(self, call: Call[T]) -> T:
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
                    await asyncio.sleep(seconds)
                    outcome = None
                case Send(timeout_s):
                    try:
                        outcome = await method(call.request, timeout=timeout_s, metadata=self._metadata)
                    except grpc.RpcError as error:
                        outcome = error
                    except grpc.aio.UsageError:  # what grpc says of a closed channel
                        outcome = UnavailableError("the client is closed")

    async def run_stream(self, stream: Stream[T], frames: Frames) -> AsyncGenerator[T]:
        """Answers to the frames of a stream of `calls`."""
        failures: list[Exception] = []

        async def requests() -> AsyncIterator[Any]:
            try:
                frame_id = 0
                async for image in _each_frame(frames):
                    yield await asyncio.to_thread(stream.request, frame_id, image)
                    frame_id += 1
            except Exception as error:  # noqa: BLE001 - raised to the caller below; grpc's task would only log it
                failures.append(error)

        try:
            call = stream.method(self._stubs)(requests(), timeout=stream.timeout_s, metadata=self._metadata)
        except grpc.aio.UsageError as error:  # see `run`
            raise UnavailableError("the client is closed") from error
        try:
            async for message in call:
                yield stream.parse(message)
        except grpc.aio.AioRpcError as error:
            if error.details() == _STATUS_LOST:
                raise UnavailableError("the server ended the stream while a frame was sent to it") from error
            raise error_from_rpc(error, self.settings.address) from error
        finally:
            call.cancel()
        if failures:
            raise failures[0]


# What grpc.aio makes of a stream that ends while it writes to it: INTERNAL, and the server's own status is gone.
_STATUS_LOST = "Internal error from Core"


async def _each_frame(frames: Frames) -> AsyncIterator[Image]:
    """The frames of either kind of source, one after the other."""
    if isinstance(frames, AsyncIterable):
        async for image in frames:
            yield image
    else:
        for image in frames:
            yield image
