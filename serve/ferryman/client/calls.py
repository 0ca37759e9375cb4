"""What can be asked: each function here is a method of both clients, with its arguments and what it says of itself.

It makes a Call or a Stream, which says which message goes to which method of the server and what becomes of the
response. Nothing here sends or waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ferryman import convert
from ferryman.answers import Answer, Frame, ModelFacts
from ferryman.client.attempts import (
    Settings,
    Steps,
    ask_once_whether_ready,
    ask_until_ready,
    attempts,
    check_timeout,
)
from ferryman.errors import FileAccessError, UsageError
from ferryman.results import Classification, Detections, Embedding, Segmentation
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

T = TypeVar("T")
Image = bytes | str | Path


class Stubs:
    """The services' stubs on a channel of either kind. The generated code has no types: its edge is here.

    The Open Inference Protocol is none of them: others bring definitions of it of their own, and one process takes one.
    """

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        self.channel = channel
        self.vision: Any = vision_pb2_grpc.VisionServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One unary call. method: picks it from the stubs; live: its life, see `attempts`"""

    method: Callable[[Stubs], Any]
    request: Message
    live: Callable[[Settings], Steps[T]]


@dataclass(frozen=True)
class Stream(Generic[T]):
    """One stream of frames. request: from a frame's number and picture to its message; parse: from each response

    timeout_s: of the whole stream, None for none
    """

    method: Callable[[Stubs], Any]
    request: Callable[[int, Image], Message]
    parse: Callable[[Any], T]
    timeout_s: float | None


def classify(
    images: Sequence[Image],
    *,
    model: str,
    version: int = 0,
    top_k: int | None = None,
    explain: bool = False,
    timeout: float | None = None,
) -> Call[Answer[Classification]]:
    """The best `top_k` classes of each picture, by default 5. version: 0 for the newest.

    explain: and where the model looked; UsageError when it was exported without `--explain`
    """
    request = _classify_request(_read_all(images), model, version, top_k, explain)
    return _call(lambda stubs: stubs.vision.Classify, request, convert.classifications_from_response, timeout)


def detect(
    images: Sequence[Image],
    *,
    model: str,
    version: int = 0,
    score_threshold: float | None = None,
    explain: bool = False,
    timeout: float | None = None,
) -> Call[Answer[Detections]]:
    """The objects in each picture whose score is at least `score_threshold`, by default 0.5.

    explain: as of `classify`, for each object
    """
    request = _detect_request(_read_all(images), model, version, score_threshold, explain)
    return _call(lambda stubs: stubs.vision.Detect, request, convert.detections_from_response, timeout)


def embed(
    images: Sequence[Image],
    *,
    model: str,
    version: int = 0,
    explain: bool = False,
    timeout: float | None = None,
) -> Call[Answer[Embedding]]:
    """The embeddings of each picture. explain: as of `classify`"""
    request = pb.EmbedRequest(model=_model_ref(model, version), images=_read_all(images), explain=explain)
    return _call(lambda stubs: stubs.vision.Embed, request, convert.embeddings_from_response, timeout)


def segment(
    images: Sequence[Image],
    *,
    model: str,
    version: int = 0,
    score_threshold: float | None = None,
    timeout: float | None = None,
) -> Call[Answer[Segmentation]]:
    """The segments of each picture whose score is at least `score_threshold`, by default the task's own."""
    ref = _model_ref(model, version)
    request = pb.SegmentRequest(model=ref, images=_read_all(images), score_threshold=score_threshold)
    return _call(lambda stubs: stubs.vision.Segment, request, convert.segmentations_from_response, timeout)


def stream_classify(
    *, model: str, version: int = 0, top_k: int | None = None, explain: bool = False, timeout: float | None = None
) -> Stream[Frame[Classification]]:
    """`stream_detect` for classes."""

    def request(frame_id: int, image: Image) -> pb.StreamClassifyRequest:
        inner = _classify_request([read_image(image)], model, version, top_k, explain)
        return pb.StreamClassifyRequest(frame_id=frame_id, request=inner)

    parse = convert.classification_frame_from_message
    return _stream(lambda stubs: stubs.vision.StreamClassify, request, parse, timeout)


def stream_detect(
    *,
    model: str,
    version: int = 0,
    score_threshold: float | None = None,
    explain: bool = False,
    timeout: float | None = None,
) -> Stream[Frame[Detections]]:
    """An answer for each frame, in order, while later ones are still being taken from `frames`.

    Client takes them in a thread; AsyncClient in the event loop, from an iterable of either kind.
    A frame that can't be answered comes back with its error, and the stream goes on. Nothing is retried:
    only the caller knows whether an old frame still matters. timeout: of the whole stream, None for none.
    Raises what `frames` raises, after the answers to the frames before it.
    """

    def request(frame_id: int, image: Image) -> pb.StreamDetectRequest:
        inner = _detect_request([read_image(image)], model, version, score_threshold, explain)
        return pb.StreamDetectRequest(frame_id=frame_id, request=inner)

    return _stream(lambda stubs: stubs.vision.StreamDetect, request, convert.detection_frame_from_message, timeout)


def model_info(model: str, *, version: int = 0, timeout: float | None = None) -> Call[ModelFacts]:
    """What the model is, where it comes from, and how closely it follows its source."""
    request = pb.ModelInfoRequest(model=_model_ref(model, version))
    return _call(lambda stubs: stubs.vision.ModelInfo, request, convert.model_facts_from_message, timeout)


def is_ready(model: str = "", *, timeout: float = 5.0) -> Call[bool]:
    """Whether a model, or with "" the server, answers requests now; False when nothing is there."""
    request = health_pb2.HealthCheckRequest(service=model)
    live = partial(ask_once_whether_ready, request=request, timeout_s=check_timeout(timeout))
    return Call(lambda stubs: stubs.health.Check, request, live)


def wait_ready(model: str = "", *, timeout: float = 30.0) -> Call[None]:
    """Returns once a model, or with "" the server, answers requests. Raises DeadlineError, ModelNotFoundError."""
    request = health_pb2.HealthCheckRequest(service=model)
    live = partial(ask_until_ready, request=request, timeout_s=check_timeout(timeout))
    return Call(lambda stubs: stubs.health.Check, request, live)


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


def _call(
    method: Callable[[Stubs], Any], request: Message, parse: Callable[[Any], T], timeout: float | None
) -> Call[T]:
    if timeout is not None:
        check_timeout(timeout)
    return Call(method, request, partial(attempts, request=request, parse=parse, timeout_s=timeout))


def _stream(
    method: Callable[[Stubs], Any],
    request: Callable[[int, Image], Message],
    parse: Callable[[Any], T],
    timeout: float | None,
) -> Stream[T]:
    if timeout is not None:
        check_timeout(timeout)
    return Stream(method, request, parse, timeout)


def _classify_request(
    images: list[bytes], model: str, version: int, top_k: int | None, explain: bool
) -> pb.ClassifyRequest:
    _check_number("top_k", top_k, 32)
    return pb.ClassifyRequest(model=_model_ref(model, version), images=images, top_k=top_k, explain=explain)


def _detect_request(
    images: list[bytes], model: str, version: int, score_threshold: float | None, explain: bool
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
