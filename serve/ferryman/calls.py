"""What both clients share: requests, their answers, errors and retries. Nothing here sends or waits.

`attempts` is a call's life as a generator: it yields what is to be done next (Send, Pause) and is sent what
came of it. Client and AsyncClient only do those things, one blocking and one awaiting.
"""

import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ferryman import convert
from ferryman.answers import Answer, Frame, ModelFacts
from ferryman.errors import (
    DeadlineError,
    FerrymanError,
    FileAccessError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    UsageError,
)
from ferryman.results import Classification, Detections, Embedding, Segmentation
from ferryman.status import error_from_rpc
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

T = TypeVar("T")
Image = bytes | str | Path
DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Stubs:
    """The services' stubs on a channel of either kind. The generated code has no types: its edge is here."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        self.vision: Any = vision_pb2_grpc.VisionServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One unary call. method: picks it from the stubs; parse: from the response to what the caller gets."""

    method: Callable[[Stubs], Any]
    request: Message
    parse: Callable[[Any], T]


@dataclass(frozen=True)
class Stream(Generic[T]):
    """One stream of frames. request: from a frame's number and picture to its message."""

    method: Callable[[Stubs], Any]
    request: Callable[[int, Image], Message]
    parse: Callable[[Any], Frame[T]]


@dataclass(frozen=True)
class Send:
    """To do: send the call with this timeout. What came of it, a response or a grpc.RpcError, is sent back."""

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


def attempts(call: Call[T], timeout_s: float, retry: RetryPolicy, address: str, max_bytes: int) -> Steps[T]:
    """The life of a call. Raises the FerrymanError that the last failure means."""
    size = call.request.ByteSize()
    if size > max_bytes:
        raise UsageError(
            f"the request has {size:,} bytes, more than the limit of {max_bytes:,}; send fewer or smaller images"
        )
    deadline = time.monotonic() + timeout_s
    attempt = 0
    while True:
        attempt += 1
        outcome = yield Send(max(0.0, deadline - time.monotonic()))
        if not isinstance(outcome, grpc.RpcError):
            return call.parse(outcome)
        error = error_from_rpc(outcome, address)
        pause = retry.pause_after(attempt, error)
        if pause is None or time.monotonic() + pause >= deadline:
            raise error from outcome
        yield Pause(pause)


def readiness(model: str, timeout_s: float, address: str) -> Steps[None]:
    """Asks until the model, or with "" the server, serves. Raises ModelNotFoundError, or DeadlineError in the end."""
    deadline = time.monotonic() + timeout_s
    why = "it is still loading, or failed to"
    while (left := deadline - time.monotonic()) > 0:
        # One try never takes all the time: a server that comes up late may leave a first connection hanging.
        outcome = yield Send(min(left, 5.0))
        if isinstance(outcome, grpc.RpcError):
            error = error_from_rpc(outcome, address)
            if isinstance(error, ModelNotFoundError):
                raise ModelNotFoundError(f"{address} has no model {model!r}") from outcome
            why = str(error)
        elif outcome.status == health_pb2.HealthCheckResponse.SERVING:
            return
        yield Pause(max(0.0, min(0.1, deadline - time.monotonic())))
    raise DeadlineError(f"{model or 'the server'} at {address} was not ready within {timeout_s:g} s: {why}")


def check_timeout(timeout_s: float) -> float:
    """Raises UsageError unless it is above 0."""
    if not timeout_s > 0:
        raise UsageError(f"timeout is {timeout_s}, expected seconds above 0")
    return timeout_s


def classify_call(
    images: Sequence[Image], model: str, version: int, top_k: int | None, explain: bool
) -> Call[Answer[Classification]]:
    request = _classify_request(_read_all(images), model, version, top_k, explain)
    return Call(lambda stubs: stubs.vision.Classify, request, convert.classifications_from_response)


def detect_call(
    images: Sequence[Image], model: str, version: int, score_threshold: float | None, explain: bool
) -> Call[Answer[Detections]]:
    request = _detect_request(_read_all(images), model, version, score_threshold, explain)
    return Call(lambda stubs: stubs.vision.Detect, request, convert.detections_from_response)


def embed_call(images: Sequence[Image], model: str, version: int) -> Call[Answer[Embedding]]:
    request = pb.EmbedRequest(model=_model_ref(model, version), images=_read_all(images))
    return Call(lambda stubs: stubs.vision.Embed, request, convert.embeddings_from_response)


def segment_call(
    images: Sequence[Image], model: str, version: int, score_threshold: float | None
) -> Call[Answer[Segmentation]]:
    request = pb.SegmentRequest(
        model=_model_ref(model, version), images=_read_all(images), score_threshold=score_threshold
    )
    return Call(lambda stubs: stubs.vision.Segment, request, convert.segmentations_from_response)


def model_info_call(model: str, version: int) -> Call[ModelFacts]:
    request = pb.ModelInfoRequest(model=_model_ref(model, version))
    return Call(lambda stubs: stubs.vision.ModelInfo, request, convert.model_facts_from_message)


def health_call(model: str) -> Call[bool]:
    """model: "" for the server as a whole."""
    serving = health_pb2.HealthCheckResponse.SERVING
    request = health_pb2.HealthCheckRequest(service=model)
    return Call(lambda stubs: stubs.health.Check, request, lambda response: response.status == serving)


def classify_stream(model: str, version: int, top_k: int | None) -> Stream[Classification]:
    def request(frame_id: int, image: Image) -> pb.StreamClassifyRequest:
        inner = _classify_request([read_image(image)], model, version, top_k)
        return pb.StreamClassifyRequest(frame_id=frame_id, request=inner)

    return Stream(lambda stubs: stubs.vision.StreamClassify, request, convert.classification_frame_from_message)


def detect_stream(model: str, version: int, score_threshold: float | None) -> Stream[Detections]:
    def request(frame_id: int, image: Image) -> pb.StreamDetectRequest:
        inner = _detect_request([read_image(image)], model, version, score_threshold)
        return pb.StreamDetectRequest(frame_id=frame_id, request=inner)

    return Stream(lambda stubs: stubs.vision.StreamDetect, request, convert.detection_frame_from_message)


async def each_frame(frames: Iterable[Image] | AsyncIterable[Image]) -> AsyncIterator[Image]:
    """The frames of either kind of source, one after the other."""
    if isinstance(frames, AsyncIterable):
        async for image in frames:
            yield image
    else:
        for image in frames:
            yield image


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options of a channel of either kind."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Retries are ours: gRPC waits up to two minutes before it tries to connect again, and all calls fail till then.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def read_image(image: Image) -> bytes:
    """The encoded picture, or that in a file. Raises FileAccessError when it can't be read, UsageError for others."""
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise FileAccessError(f"can't read {image}: {error.strerror}") from error
    return _check_bytes(image)


def _check_bytes(image: object) -> bytes:
    if not isinstance(image, bytes | bytearray | memoryview):
        raise UsageError(f"an image is bytes or the path of a file, got {type(image).__name__}")
    return bytes(image)


def _read_all(images: Sequence[Image]) -> list[bytes]:
    if isinstance(images, bytes | bytearray | memoryview | str | Path):
        raise UsageError(f"images is a list of pictures, got {type(images).__name__}; write [image]")
    return [read_image(image) for image in images]


def _classify_request(
    images: list[bytes], model: str, version: int, top_k: int | None, explain: bool = False
) -> pb.ClassifyRequest:
    _check_number("top_k", top_k, 32)
    return pb.ClassifyRequest(model=_model_ref(model, version), images=images, top_k=top_k, explain=explain)


def _detect_request(
    images: list[bytes], model: str, version: int, score_threshold: float | None, explain: bool = False
) -> pb.DetectRequest:
    ref = _model_ref(model, version)
    return pb.DetectRequest(model=ref, images=images, score_threshold=score_threshold, explain=explain)


def _model_ref(model: str, version: int) -> pb.ModelRef:
    _check_number("version", version, 64)
    return pb.ModelRef(name=model, version=version)


def _check_number(name: str, value: int | None, bits: int) -> None:
    """Raises UsageError for a number that the message can't carry."""
    if value is not None and not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise UsageError(f"{name} is {value}, which is out of range", name)
