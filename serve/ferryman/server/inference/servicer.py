"""GRPCInferenceService: each call checks its request and asks who knows. Errors leave as FerrymanError."""

import asyncio
from collections.abc import AsyncIterable, Callable

from ferryman.errors import UnservedError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc
from ferryman.server.engine import Engine
from ferryman.server.health import Health
from ferryman.server.inference.cuda import CudaRegion
from ferryman.server.inference.infer import Inferer, InferLimits, version_from_text
from ferryman.server.inference.metadata import model_config, model_metadata, model_statistics, server_metadata
from ferryman.server.inference.posix import SystemRegion
from ferryman.server.inference.shared_memory import Regions
from ferryman.server.inference.stream import answer_stream
from ferryman.server.queueing import Caller
from ferryman.server.repository import ModelRepository
from ferryman.server.rpc.core import Context
from ferryman.server.servicer import deadline_of
from ferryman.status import public_line

IN_STEPS = frozenset({"/inference.GRPCInferenceService/ModelInfer"})  # see RpcServer


class InferenceServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """callers: who a call comes from. Who may call which of these is decided before: see `security.access`."""

    def __init__(
        self,
        models: ModelRepository[Engine],
        regions: Regions,
        limits: InferLimits,
        health: Health,
        stopping: asyncio.Event,
        callers: Callable[[Context], Caller],
    ) -> None:
        self._models = models
        self._regions = regions
        self._limits = limits
        self._health = health
        self._stopping = stopping
        self._callers = callers
        self._inferer = Inferer(models, regions, limits)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._health.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=self._models.is_ready(request.name, version_from_text(request.version)))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return server_metadata(self._regions.kinds)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        engine = await self._models.get(request.name, version_from_text(request.version))
        return model_metadata(engine, self._models.versions(request.name))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        engine = await self._models.get(request.name, version_from_text(request.version))
        max_batch = min(engine.limits.max_batch, self._limits.max_images)
        return pb.ModelConfigResponse(config=model_config(engine, self._models.versions(request.name), max_batch))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await self._inferer.infer(request, deadline_of(context), self._callers(context))

    async def ModelStreamInfer(self, request_iterator: AsyncIterable[pb.ModelInferRequest], context: Context) -> None:
        caller = self._callers(context)

        async def answer(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
            return await self._inferer.infer(request, deadline_of(context), caller)

        await answer_stream(request_iterator, context, answer, self._limits.stream_window, self._stopping)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        version, name = version_from_text(request.version), request.name
        versions = self._models.versions(name) if name else ()  # raises for an unknown name
        if version and not name:
            raise UsageError("a version without a model's name", "version")
        found = [
            engine
            for engine in self._models.loaded()
            if not name or (engine.model.name == self._models.model_of(name) and engine.model.version in versions)
            if version in {0, engine.model.version}
        ]
        return pb.ModelStatisticsResponse(model_stats=map(model_statistics, found))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        states = (one for one in self._models.index() if one.state == "READY" or not request.ready)
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=s.name, version=str(s.version), state=s.state, reason=public_line(s.reason)) for s in states
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        if request.parameters:
            raise UsageError("a bundle brings all that it needs: loading takes no parameters", "parameters")
        await self._models.load(request.model_name)
        await self._health.follow(self._models)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        name = request.model_name
        if name in self._models.names:  # at once, and not when what is inside is answered
            aliases = (alias for alias in self._models.aliases if self._models.model_of(alias) == name)
            await self._health.leave((name, *aliases))
        await self._models.unload(name)
        await self._health.follow(self._models)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        status = pb.SystemSharedMemoryStatusResponse.RegionStatus
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                name: status(name=name, key=region.key, offset=region.offset, byte_size=region.size_bytes)
                for name, region in self._regions.find(SystemRegion, request.name).items()
            }
        )

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._regions.unregister(SystemRegion, request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        status = pb.CudaSharedMemoryStatusResponse.RegionStatus
        return pb.CudaSharedMemoryStatusResponse(
            regions={
                name: status(name=name, device_id=region.device, byte_size=region.size_bytes)
                for name, region in self._regions.find(CudaRegion, request.name).items()
            }
        )

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        await self._regions.register_cuda(request.name, request.raw_handle, request.device_id, request.byte_size)
        return pb.CudaSharedMemoryRegisterResponse()

    # Where it is not served this succeeds all the same, as status does: clients ask for both kinds.
    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        self._regions.unregister(CudaRegion, request.name)
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        raise UnservedError("this server has no trace settings")

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        raise UnservedError("this server's log can't be set by clients")


def _check_repository(name: str) -> None:
    if name:
        raise UsageError("there is one repository, and it has no name", "repository_name")
