"""Ray Serve: a model repository as an application, whose gRPC ingress speaks `ferryman.v1`; docs/deploy.md.

Ray places replicas, watches them, and adds and takes away some as requests come; Ferryman checks bundles, batches and
answers in each. ferryman.Client asks it as it asks a server.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from pydantic import Field

from ferryman.errors import FerrymanError, MissingExtraError, ModelNotFoundError
from ferryman.server.config import ServerConfig
from ferryman.server.engine import Engine
from ferryman.server.engines import Engines
from ferryman.server.guard import UNEXPECTED, CallsInFlight
from ferryman.server.repository import ModelRepository
from ferryman.server.servicer import RequestLimits, VisionServicer
from ferryman.server.transport import caller_of
from ferryman.specs import Facts
from ferryman.status import status_from_error
from ferryman.v1 import vision_pb2 as pb

log = logging.getLogger(__name__)
# Times `target_requests` that a replica lets in. A proxy fills the replica of its own node before it asks another, so
# that with room for all in the first one those that come later would stay idle.
_ROOM = 1.5
# The functions by which grpc's generated code registers the services that Ray's proxies are to pass on.
SERVICES = (
    "ferryman.v1.vision_pb2_grpc.add_VisionServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)


class Options(Facts):
    """What `app` is told.

    repository: as of `ferryman serve`, on every node; settings: more of a server's, those of its ports aside
    max_models: that a replica holds at a time; of others the one that was not asked for the longest makes room
    timeout_s: until each request's deadline: Ray does not hand on the client's own
    min_replicas, max_replicas: equal for a fixed number
    target_requests: inside each, which Ray aims at; half as many again are let in, and what comes beyond waits before
        all replicas, as many as the setting `queue_limit` for each proxy. A stream counts as one as long as it is open
    upscale_delay_s, downscale_delay_s: that they must be too many or too few before Ray adds a replica or takes one
    cpus: of each replica, by which Ray places them; nothing holds a replica to it but its setting `threads`
    """

    repository: Path
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    max_models: Annotated[int, Field(ge=1)] = 4
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_requests: Annotated[float, Field(gt=0)] = 16.0
    upscale_delay_s: Annotated[float, Field(ge=0)] = 30.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 600.0
    cpus: Annotated[float, Field(gt=0)] = 1.0


def start(port: int = 9000) -> None:
    """Ray Serve with a gRPC proxy on each node that has a replica, unless it runs already. Raises MissingExtraError."""
    serve = _import_serve()
    gRPCOptions = import_module("ray.serve.config").gRPCOptions
    serve.start(proxy_location="EveryNode", grpc_options=gRPCOptions(port=port, grpc_servicer_functions=list(SERVICES)))


def app(options: Options) -> Any:
    """The application: for `serve.run`, and by its import path for `serve deploy`.

    Raises MissingExtraError without Ray, and UsageError for settings that no server takes.
    """
    serve = _import_serve()
    given = {"certify": True, "threads": max(1, int(options.cpus)), **options.settings}
    config = ServerConfig.from_settings({**given, "repository": options.repository})
    deployment = serve.deployment(
        name="ferryman",
        max_ongoing_requests=min(ceil(_ROOM * options.target_requests), config.queue_limit),
        max_queued_requests=config.queue_limit,
        graceful_shutdown_timeout_s=config.grace_seconds,
        ray_actor_options={"num_cpus": options.cpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_requests,
            "upscale_delay_s": options.upscale_delay_s,
            "downscale_delay_s": options.downscale_delay_s,
        },
    )
    replica = _make_replica(options.max_models)
    return deployment(replica).bind(config.model_dump(mode="json"), options.timeout_s)


def _import_serve() -> Any:
    """By name, lest a type checker takes this file for it."""
    try:
        return import_module("ray.serve")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"Ray Serve ({error.name} is missing)", "ray") from error


class _Held:
    """A model that is loaded, until Ray takes it out: what it has inside is answered first."""

    def __init__(self, models: ModelRepository[Engine], name: str) -> None:
        self._models, self._name = models, name
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._over = False

    def __del__(self) -> None:
        """Ray calls it, in a thread that may wait; Python too, later, anywhere."""
        if not self._over and self._loop.is_running() and threading.get_ident() != self._thread:
            self._over = True
            asyncio.run_coroutine_threadsafe(self._models.unload(self._name), self._loop).result()


class _Context:
    """What the servicer asks of a call, out of what Ray hands on of it. write: each answer of a stream"""

    def __init__(self, context: Any, deadline: float | None, write: Callable[[Any], Any] | None = None) -> None:
        self._context = context
        self._deadline = deadline
        self.write = write

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def peer(self) -> str:
        return self._context.peer()

    def invocation_metadata(self) -> Any:
        return self._context.invocation_metadata()


def _make_replica(max_models: int) -> type:
    """The class of replicas that hold so many models, which Ray wants to know before there is one."""
    serve = _import_serve()

    class Replica:
        def __init__(self, settings: dict[str, Any], timeout_s: float) -> None:
            config = ServerConfig.from_settings(settings)
            self._engines = Engines(config)
            self._models = self._engines.models
            self._timeout_s = timeout_s
            self._servicer = VisionServicer(
                self._models,
                RequestLimits(max_images=config.max_images_per_request, stream_window=config.stream_window),
                CallsInFlight(),
                lambda context: caller_of(context, config.client_by),
            )

        @serve.multiplexed(max_num_models_per_replica=max_models)
        async def hold(self, name: str) -> _Held:
            await self._models.load(name)
            return _Held(self._models, name)

        async def Classify(self, request: pb.ClassifyRequest, grpc_context: Any) -> Message:
            return await self._answer(self._servicer.Classify, request, grpc_context, pb.ClassifyResponse)

        async def Detect(self, request: pb.DetectRequest, grpc_context: Any) -> Message:
            return await self._answer(self._servicer.Detect, request, grpc_context, pb.DetectResponse)

        async def Embed(self, request: pb.EmbedRequest, grpc_context: Any) -> Message:
            return await self._answer(self._servicer.Embed, request, grpc_context, pb.EmbedResponse)

        async def Segment(self, request: pb.SegmentRequest, grpc_context: Any) -> Message:
            return await self._answer(self._servicer.Segment, request, grpc_context, pb.SegmentResponse)

        async def StreamClassify(self, requests: AsyncIterator[Any], grpc_context: Any) -> AsyncIterator[Message]:
            async for answer in self._stream(self._servicer.StreamClassify, requests, grpc_context):
                yield answer

        async def StreamDetect(self, requests: AsyncIterator[Any], grpc_context: Any) -> AsyncIterator[Message]:
            async for answer in self._stream(self._servicer.StreamDetect, requests, grpc_context):
                yield answer

        async def ModelInfo(self, request: pb.ModelInfoRequest, grpc_context: Any) -> Message:
            return await self._answer(self._servicer.ModelInfo, request, grpc_context, pb.ModelInfoResponse)

        async def Check(self, request: health_pb2.HealthCheckRequest, grpc_context: Any) -> Message:
            """A model serves when a replica could load it: which of them are loaded changes with what is asked."""
            if request.service and request.service not in self._models.names:
                _refuse(grpc_context, ModelNotFoundError(f"there is no model {request.service[:100]!r}"))
                return health_pb2.HealthCheckResponse()
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

        async def loaded(self) -> list[str]:
            """The models that it holds; for handles, not for gRPC."""
            return [engine.model.name for engine in self._models.loaded()]

        async def _answer(
            self, method: Callable[..., Any], request: Any, grpc_context: Any, empty: type[Message]
        ) -> Message:
            """An error travels as its status with an empty answer, which gRPC leaves out."""
            context = _Context(grpc_context, time.monotonic() + self._timeout_s)
            try:
                await self._load(request.model.name)
                return await method(request, context)
            except FerrymanError as error:
                failure = error
            except Exception:
                log.exception("unexpected error in %s", method.__name__)
                failure = FerrymanError(UNEXPECTED)
            _refuse(grpc_context, failure)
            return empty()

        async def _stream(
            self, method: Callable[..., Any], requests: AsyncIterator[Any], grpc_context: Any
        ) -> AsyncIterator[Message]:
            """What the servicer writes, one answer at a time: the next frame is read when one was taken."""
            answers = asyncio.Queue[Message](maxsize=1)

            async def loaded() -> AsyncIterator[Any]:
                async for frame in requests:
                    with suppress(FerrymanError):  # the frame's own answer tells
                        await self._load(frame.request.model.name)
                    yield frame

            running = asyncio.create_task(method(loaded(), _Context(grpc_context, None, answers.put)))
            try:
                while not (running.done() and answers.empty()):
                    answer = asyncio.create_task(answers.get())
                    await asyncio.wait((answer, running), return_when=asyncio.FIRST_COMPLETED)
                    if answer.done():
                        yield answer.result()
                    else:
                        answer.cancel()
                await running
            except FerrymanError as error:
                _refuse(grpc_context, error)
                raise
            finally:
                running.cancel()

        async def _load(self, name: str) -> None:
            """Before anything is awaited after it, the model must be asked: until then it may be taken out again."""
            model = self._models.model_of(name)
            if model not in self._models.names:
                return  # the servicer says so
            await self.hold(model)

    return Replica


def _refuse(grpc_context: Any, error: FerrymanError) -> None:
    status = rpc_status.to_status(status_from_error(error))
    grpc_context.set_code(status.code)
    grpc_context.set_details(status.details or "")
    grpc_context.set_trailing_metadata(list(status.trailing_metadata))
