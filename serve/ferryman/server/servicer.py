"""VisionService: checks requests, asks the model's engine, and answers. Errors leave as FerrymanError."""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from ferryman.answers import Answerer
from ferryman.convert import (
    message_from_answerer,
    message_from_classification,
    message_from_detections,
    message_from_embedding,
    message_from_frame_error,
    message_from_model_facts,
    message_from_segmentation,
    message_from_timings,
)
from ferryman.errors import FerrymanError, UnavailableError, UsageError
from ferryman.preprocess import Geometry
from ferryman.results import (
    DEFAULT_SCORE_THRESHOLD,
    DEFAULT_TOP_K,
    Classification,
    Detections,
    Embedding,
    Outputs,
    Segmentation,
    check_explains,
    classification_from_outputs,
    detections_from_outputs,
    embedding_from_outputs,
)
from ferryman.segmenting import segmentation_from_outputs
from ferryman.server.engine import Engine
from ferryman.server.guard import UNEXPECTED, CallsInFlight
from ferryman.server.observing import observed
from ferryman.server.queueing import Caller
from ferryman.server.repository import ModelRepository
from ferryman.server.request import note_model
from ferryman.server.rpc.core import Context
from ferryman.specs import DETECTING, SEGMENTING, Facts, ModelSpec, Task
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
MakeResult = Callable[[Outputs, int, Geometry, ModelSpec], R]


class RequestLimits(Facts):
    """max_images: of one request; stream_window: frames of one stream that may be inside at a time"""

    max_images: int = 64
    stream_window: int = 4


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """callers: who a call comes from"""

    def __init__(
        self,
        models: ModelRepository[Engine],
        limits: RequestLimits,
        calls: CallsInFlight,
        callers: Callable[[Context], Caller],
    ) -> None:
        self._models = models
        self._callers = callers
        self._limits = limits
        self._stopping = calls.stopping

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        return await self._classify(request, deadline_of(context), self._callers(context))

    async def Detect(self, request: pb.DetectRequest, context: Context) -> pb.DetectResponse:
        return await self._detect(request, deadline_of(context), self._callers(context))

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        def make(outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec) -> Embedding:
            del spec  # embeddings have no labels
            return embedding_from_outputs(outputs, index, geometry, request.explain)

        results, timings, answerer = await self._answer(
            ("embedding",),
            request.model,
            request.images,
            make,
            message_from_embedding,
            deadline_of(context),
            self._callers(context),
            request.explain,
        )
        return pb.EmbedResponse(results=results, timings=timings, answerer=answerer)

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
        threshold = request.score_threshold if request.HasField("score_threshold") else None
        if threshold is not None:
            check_threshold(threshold)

        def make(outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec) -> Segmentation:
            return segmentation_from_outputs(outputs, index, geometry, spec, threshold)

        results, timings, answerer = await self._answer(
            SEGMENTING,
            request.model,
            request.images,
            make,
            message_from_segmentation,
            deadline_of(context),
            self._callers(context),
        )
        return pb.SegmentResponse(results=results, timings=timings, answerer=answerer)

    async def StreamClassify(self, request_iterator: AsyncIterable[pb.StreamClassifyRequest], context: Context) -> None:
        await self._stream(request_iterator, context, self._classify, pb.StreamClassifyResponse)

    async def StreamDetect(self, request_iterator: AsyncIterable[pb.StreamDetectRequest], context: Context) -> None:
        await self._stream(request_iterator, context, self._detect, pb.StreamDetectResponse)

    async def ModelInfo(self, request: pb.ModelInfoRequest, context: Context) -> pb.ModelInfoResponse:
        engine = await self._models.get(request.model.name, request.model.version)
        return message_from_model_facts(engine.model.facts)

    async def _classify(
        self, request: pb.ClassifyRequest, deadline: float | None, caller: Caller
    ) -> pb.ClassifyResponse:
        top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}, expected 1 or more", "top_k")

        def make(outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec) -> Classification:
            return classification_from_outputs(outputs, index, geometry, spec, top_k, request.explain)

        results, timings, answerer = await self._answer(
            ("classification",),
            request.model,
            request.images,
            make,
            message_from_classification,
            deadline,
            caller,
            request.explain,
        )
        return pb.ClassifyResponse(results=results, timings=timings, answerer=answerer)

    async def _detect(self, request: pb.DetectRequest, deadline: float | None, caller: Caller) -> pb.DetectResponse:
        threshold = request.score_threshold if request.HasField("score_threshold") else DEFAULT_SCORE_THRESHOLD
        check_threshold(threshold)

        def make(outputs: Outputs, index: int, geometry: Geometry, spec: ModelSpec) -> Detections:
            return detections_from_outputs(outputs, index, geometry, spec, threshold, request.explain)

        results, timings, answerer = await self._answer(
            DETECTING,
            request.model,
            request.images,
            make,
            message_from_detections,
            deadline,
            caller,
            request.explain,
        )
        return pb.DetectResponse(results=results, timings=timings, answerer=answerer)

    @observed
    async def _answer(
        self,
        tasks: tuple[Task, ...],
        ref: pb.ModelRef,
        images: Sequence[bytes],
        make: MakeResult[R],
        encode: Callable[[R], T],
        deadline: float | None,
        caller: Caller,
        explain: bool = False,
    ) -> tuple[list[T], pb.Timings, pb.Answerer]:
        """encode: from a result to its message, in the thread that made it: a large one must not hold up the others"""
        if not images:
            raise UsageError("the request holds no image; send at least one", "images")
        if len(images) > self._limits.max_images:
            raise UsageError(
                f"the request holds {len(images)} images, more than the limit of {self._limits.max_images}; "
                "send several requests",
                "images",
            )
        engine = await self._models.get(ref.name, ref.version)
        note_model(engine.model)
        engine.check_task(*tasks)
        model = engine.model
        if explain:
            check_explains(model.bundle.spec, model.name)

        encode_ms = 0.0

        def make_one(outputs: Outputs, index: int, geometry: Geometry) -> T:
            nonlocal encode_ms
            result = make(outputs, index, geometry, model.bundle.spec)
            start = time.perf_counter()
            message = encode(result)
            encode_ms += (time.perf_counter() - start) * 1e3
            return message

        results, timings = await engine.answer(images, make_one, deadline, caller)
        timings = replace(timings, postprocess_ms=timings.postprocess_ms - encode_ms, encode_ms=encode_ms)
        answerer = Answerer(model.name, model.version, model.target, model.bundle.digest)
        return results, message_from_timings(timings), message_from_answerer(answerer)

    async def _stream(
        self,
        requests: AsyncIterable[Any],
        context: Context,
        answer: Callable[[Any, float | None, Caller], Awaitable[Any]],
        response: Callable[..., Any],
    ) -> None:
        """Answers in the order of the requests; the next frames are decoded while one is computed.

        A frame is read only when the oldest of `stream_window` frames has been sent, so a camera that is
        faster than the model, or a client that does not read, is held back by gRPC's flow control. When the
        server stops, the frames that it has read are answered first.

        requests, response: messages with a frame_id, of one of the two streams; answer: to a frame's request
        """
        caller = self._callers(context)
        places = asyncio.Semaphore(self._limits.stream_window)
        frames = asyncio.Queue[asyncio.Task[Any] | None]()
        started: set[asyncio.Task[Any]] = set()

        async def answer_frame(frame: Any) -> Any:
            try:
                found = await answer(frame.request, deadline_of(context), caller)
                return response(frame_id=frame.frame_id, response=found)
            except FerrymanError as error:
                failure = error.with_traceback(None)  # see ErrorGuard
            except Exception:
                log.exception("unexpected error in frame %d of a stream", frame.frame_id)
                failure = FerrymanError(UNEXPECTED)
            return response(frame_id=frame.frame_id, error=message_from_frame_error(failure))

        async def read() -> None:
            try:
                await places.acquire()
                async for request in requests:
                    task = asyncio.create_task(answer_frame(request))
                    started.add(task)
                    frames.put_nowait(task)
                    await places.acquire()
            finally:
                frames.put_nowait(None)

        async def stop() -> None:
            await self._stopping.wait()
            reader.cancel()

        reader, stopper = asyncio.create_task(read()), asyncio.create_task(stop())
        try:
            while (task := await frames.get()) is not None:
                await context.write(await task)
                started.discard(task)
                places.release()
            await asyncio.wait([reader])
            if reader.cancelled():
                raise UnavailableError("the server is stopping; the frames that it had read are answered")
            reader.result()
        finally:
            for task in (stopper, reader, *started):
                task.cancel()


def check_threshold(score_threshold: float) -> None:
    """Raises UsageError unless it is a score."""
    if not 0 <= score_threshold <= 1:  # NaN as well
        raise UsageError(f"score_threshold is {score_threshold:g}, expected a value in [0, 1]", "score_threshold")


def deadline_of(context: Context) -> float | None:
    """The call's deadline in seconds of `time.monotonic`, None when it has none."""
    remaining = cast("float | None", context.time_remaining())  # the stub forgets calls without a deadline
    return None if remaining is None else time.monotonic() + remaining
