"""The standard health service: "" and the services for the server as a whole, and one name a model."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ferryman.inference import grpc_service_pb2
from ferryman.v1 import vision_pb2

if TYPE_CHECKING:
    from ferryman.server.repository import ModelRepository

_SERVICES = (
    vision_pb2.DESCRIPTOR.services_by_name["VisionService"],
    grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
SERVICES = tuple(service.full_name for service in _SERVICES)
METHODS = {f"/{service.full_name}/{method.name}": method for service in _SERVICES for method in service.methods}
_OVERALL = ("", *SERVICES)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Servicer(health.aio.HealthServicer):
    """The base leaves List to an exception, of which each call would write a traceback into the log."""

    async def List(self, request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server lists no names; ask for one with Check")


class Health:
    """What is ready. A model is known, and not serving, from the start until its newest version is warm."""

    def __init__(self) -> None:
        self._servicer = _Servicer()
        self._names: set[str] = set()  # of models and aliases that were told of
        self._started = False
        self._sound = True

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answers at its addresses too."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    @property
    def ready(self) -> bool:
        """Whether the server has loaded all it could, does not stop, and not all of its models mend themselves."""
        return self._started and self._sound

    async def register(self, models: Iterable[str]) -> None:
        """Makes the server and these models known; none of them serves yet."""
        for name in (*_OVERALL, *models):
            await self._set(name, False)

    async def follow(self, models: "ModelRepository[Any]") -> None:
        """Says of each model and alias whether it can be asked now, and so of the server as a whole."""
        names = {*models.names, *models.aliases}
        for name in sorted(names | self._names):
            await self._set(name, name in names and models.is_ready(name))
        self._names = names
        loaded = models.loaded()
        self._sound = not loaded or any(one.ready for one in loaded)
        await self._tell()

    async def leave(self, models: Iterable[str]) -> None:
        """These are about to be taken out of service."""
        for name in models:
            await self._set(name, False)

    async def set_ready(self) -> None:
        """The server has loaded all it could, and takes requests."""
        self._started = True
        await self._tell()

    async def stop(self) -> None:
        """Nothing serves any more; later changes are ignored."""
        self._started = False
        await self._servicer.enter_graceful_shutdown()

    async def _tell(self) -> None:
        for name in _OVERALL:
            await self._set(name, self.ready)

    async def _set(self, name: str, serving: bool) -> None:
        await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)
