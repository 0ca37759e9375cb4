"""Client and AsyncClient: ask a server about pictures, with deadlines, safe retries and typed answers.

Both have the same methods. A method that asks raises the FerrymanError that the server's status means:
UsageError and ImageError for what was sent, ModelNotFoundError, TaskError, BundleError for a model that can't
be served, OverloadedError, DeadlineError, UnavailableError when no server answers, EngineError; and
FileAccessError for a picture that can't be read. `images` are encoded JPEG, PNG, WebP or BMP pictures, or
paths of such files.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from ferryman import calls
from ferryman.answers import Answer, Answerer, Frame, ModelFacts, OutputParity
from ferryman.calls import Call, Image, Pause, RetryPolicy, Send, Steps, Stream
from ferryman.errors import FerrymanError, UnavailableError
from ferryman.results import Classification, Detections, Embedding, Segmentation
from ferryman.status import error_from_rpc

__all__ = [
    "Answer",
    "Answerer",
    "AsyncClient",
    "Client",
    "Frame",
    "ModelFacts",
    "OutputParity",
    "RetryPolicy",
]

T = TypeVar("T")
ChannelT = TypeVar("ChannelT", grpc.Channel, grpc.aio.Channel)
_ONCE = RetryPolicy(attempts=1)


class _Base(ABC, Generic[ChannelT]):
    """What a client of either kind is told, and its channel."""

    def __init__(
        self,
        address: str = calls.DEFAULT_ADDRESS,
        *,
        timeout: float = calls.DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        max_message_bytes: int = calls.DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """Connects when it is first asked something.

        address: HOST:PORT; timeout: seconds for a call unless it is told otherwise, retries included
        max_message_bytes: largest request and answer
        """
        self.address = address
        self.timeout = calls.check_timeout(timeout)
        self.retry = retry or RetryPolicy()
        self.max_message_bytes = max_message_bytes
        self._channel = self._connect(address, calls.channel_options(max_message_bytes))
        self._stubs = calls.Stubs(self._channel)

    @abstractmethod
    def _connect(self, address: str, options: list[tuple[str, int]]) -> ChannelT: ...

    def _attempts(self, call: Call[T], timeout: float | None, retry: RetryPolicy | None = None) -> Steps[T]:
        timeout = self.timeout if timeout is None else calls.check_timeout(timeout)
        return calls.attempts(call, timeout, retry or self.retry, self.address, self.max_message_bytes)


class Client(_Base[grpc.Channel]):
    """Blocking client; safe to share between threads. Use it in a `with` block, or `close` it."""

    def _connect(self, address: str, options: list[tuple[str, int]]) -> grpc.Channel:
        return grpc.insecure_channel(address, options)

    def classify(
        self,
        images: Sequence[Image],
        *,
        model: str,
        version: int = 0,
        top_k: int | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Answer[Classification]:
        """The best `top_k` classes of each picture, by default 5. version: 0 for the newest.

        explain: and where the model looked; UsageError when it was exported without `--explain`
        """
        return self._do(calls.classify_call(images, model, version, top_k, explain), timeout)

    def detect(
        self,
        images: Sequence[Image],
        *,
        model: str,
        version: int = 0,
        score_threshold: float | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Answer[Detections]:
        """The objects in each picture whose score is at least `score_threshold`, by default 0.5.

        explain: as of `classify`, for each object
        """
        return self._do(calls.detect_call(images, model, version, score_threshold, explain), timeout)

    def embed(
        self, images: Sequence[Image], *, model: str, version: int = 0, timeout: float | None = None
    ) -> Answer[Embedding]:
        """The embeddings of each picture."""
        return self._do(calls.embed_call(images, model, version), timeout)

    def segment(
        self,
        images: Sequence[Image],
        *,
        model: str,
        version: int = 0,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> Answer[Segmentation]:
        """The segments of each picture whose score is at least `score_threshold`, by default the task's own."""
        return self._do(calls.segment_call(images, model, version, score_threshold), timeout)

    def stream_classify(
        self,
        frames: Iterable[Image],
        *,
        model: str,
        version: int = 0,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> Generator[Frame[Classification]]:
        """`stream_detect` for classes."""
        return self._stream(calls.classify_stream(model, version, top_k), frames, timeout)

    def stream_detect(
        self,
        frames: Iterable[Image],
        *,
        model: str,
        version: int = 0,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> Generator[Frame[Detections]]:
        """An answer for each frame, in order, while later ones are still being taken from `frames`, in a thread.

        A frame that can't be answered comes back with its error, and the stream goes on. Nothing is retried:
        only the caller knows whether an old frame still matters. timeout: of the whole stream, None for none.
        Raises what `frames` raises, after the answers to the frames before it.
        """
        return self._stream(calls.detect_stream(model, version, score_threshold), frames, timeout)

    def model_info(self, model: str, *, version: int = 0, timeout: float | None = None) -> ModelFacts:
        """What the model is, where it comes from, and how closely it follows its source."""
        return self._do(calls.model_info_call(model, version), timeout)

    def is_ready(self, model: str = "", *, timeout: float = 5.0) -> bool:
        """Whether a model, or with "" the server, answers requests now; False when nothing is there."""
        try:
            return self._run(calls.health_call(model), self._attempts(calls.health_call(model), timeout, _ONCE))
        except FerrymanError:
            return False

    def wait_ready(self, model: str = "", *, timeout: float = 30.0) -> None:
        """Returns once a model, or with "" the server, answers requests. Raises DeadlineError, ModelNotFoundError."""
        steps = calls.readiness(model, calls.check_timeout(timeout), self.address)
        self._run(calls.health_call(model), steps)

    def close(self) -> None:
        """Cancels what is in flight; calling it twice is fine."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, call: Call[T], timeout: float | None) -> T:
        return self._run(call, self._attempts(call, timeout))

    def _run(self, call: Call[Any], steps: Steps[T]) -> T:
        method = call.method(self._stubs)
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
                        outcome = method(call.request, timeout=timeout_s)
                    except grpc.RpcError as error:
                        outcome = error
                    except ValueError as error:  # what grpc says of a closed channel
                        raise UnavailableError("the client is closed") from error

    def _stream(self, stream: Stream[T], frames: Iterable[Image], timeout: float | None) -> Generator[Frame[T]]:
        failures: list[Exception] = []

        def requests() -> Iterator[Any]:
            try:
                for frame_id, image in enumerate(frames):
                    yield stream.request(frame_id, image)
            # It is raised to the caller below; in grpc's thread it would only be logged.
            except Exception as error:  # noqa: BLE001
                failures.append(error)

        if timeout is not None:
            calls.check_timeout(timeout)
        try:
            call = stream.method(self._stubs)(requests(), timeout=timeout)
        except ValueError as error:  # see _run
            raise UnavailableError("the client is closed") from error
        try:
            for message in call:
                yield stream.parse(message)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from error
        finally:
            call.cancel()  # nothing, when it has ended
        if failures:
            raise failures[0]


class AsyncClient(_Base[grpc.aio.Channel]):
    """The same for asyncio. Use it in an `async with` block, or `close` it, in the loop that it was made in."""

    def _connect(self, address: str, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address, options)

    async def classify(
        self,
        images: Sequence[Image],
        *,
        model: str,
        version: int = 0,
        top_k: int | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Answer[Classification]:
        """See Client.classify."""
        # In a thread, as all calls with pictures: files are read.
        call = await asyncio.to_thread(calls.classify_call, images, model, version, top_k, explain)
        return await self._do(call, timeout)

    async def detect(
        self,
        images: Sequence[Image],
        *,
        model: str,
        version: int = 0,
        score_threshold: float | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Answer[Detections]:
        """See Client.detect."""
        call = await asyncio.to_thread(calls.detect_call, images, model, version, score_threshold, explain)
        return await self._do(call, timeout)

    async def embed(
        self, images: Sequence[Image], *, model: str, version: int = 0, timeout: float | None = None
    ) -> Answer[Embedding]:
        """See Client.embed."""
        return await self._do(await asyncio.to_thread(calls.embed_call, images, model, version), timeout)

    async def segment(
        self,
        images: Sequence[Image],
        *,
        model: str,
        version: int = 0,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> Answer[Segmentation]:
        """See Client.segment."""
        call = await asyncio.to_thread(calls.segment_call, images, model, version, score_threshold)
        return await self._do(call, timeout)

    def stream_classify(
        self,
        frames: Iterable[Image] | AsyncIterable[Image],
        *,
        model: str,
        version: int = 0,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Frame[Classification]]:
        """See Client.stream_detect."""
        return self._stream(calls.classify_stream(model, version, top_k), frames, timeout)

    def stream_detect(
        self,
        frames: Iterable[Image] | AsyncIterable[Image],
        *,
        model: str,
        version: int = 0,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Frame[Detections]]:
        """See Client.stream_detect; `frames` is taken in the event loop."""
        return self._stream(calls.detect_stream(model, version, score_threshold), frames, timeout)

    async def model_info(self, model: str, *, version: int = 0, timeout: float | None = None) -> ModelFacts:
        """See Client.model_info."""
        return await self._do(calls.model_info_call(model, version), timeout)

    async def is_ready(self, model: str = "", *, timeout: float = 5.0) -> bool:
        """See Client.is_ready."""
        call = calls.health_call(model)
        try:
            return await self._run(call, self._attempts(call, timeout, _ONCE))
        except FerrymanError:
            return False

    async def wait_ready(self, model: str = "", *, timeout: float = 30.0) -> None:
        """See Client.wait_ready."""
        steps = calls.readiness(model, calls.check_timeout(timeout), self.address)
        await self._run(calls.health_call(model), steps)

    async def close(self) -> None:
        """Cancels what is in flight; calling it twice is fine."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, call: Call[T], timeout: float | None) -> T:
        return await self._run(call, self._attempts(call, timeout))

    async def _run(self, call: Call[Any], steps: Steps[T]) -> T:
        method = call.method(self._stubs)
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
                        outcome = await method(call.request, timeout=timeout_s)
                    except grpc.RpcError as error:
                        outcome = error
                    except grpc.aio.UsageError as error:  # what grpc says of a closed channel
                        raise UnavailableError("the client is closed") from error

    async def _stream(
        self, stream: Stream[T], frames: Iterable[Image] | AsyncIterable[Image], timeout: float | None
    ) -> AsyncGenerator[Frame[T]]:
        failures: list[Exception] = []

        async def requests() -> AsyncIterator[Any]:
            try:
                frame_id = 0
                async for image in calls.each_frame(frames):
                    yield await asyncio.to_thread(stream.request, frame_id, image)
                    frame_id += 1
            # It is raised to the caller below; in grpc's task it would only be logged.
            except Exception as error:  # noqa: BLE001
                failures.append(error)

        if timeout is not None:
            calls.check_timeout(timeout)
        try:
            call = stream.method(self._stubs)(requests(), timeout=timeout)
        except grpc.aio.UsageError as error:  # see _run
            raise UnavailableError("the client is closed") from error
        try:
            async for message in call:
                yield stream.parse(message)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from error
        finally:
            call.cancel()
        if failures:
            raise failures[0]
