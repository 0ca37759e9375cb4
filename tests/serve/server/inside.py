"""A server in the test's own process, and stubs that ask it, without any of our client."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from ferryman.inference import grpc_service_pb2_grpc
from ferryman.server.app import ServerConfig, VisionServer
from ferryman.server.loading import LoadedModel
from ferryman.v1 import vision_pb2_grpc

from .gate import Gate, load_gated


class Caller:
    """The stubs of a server, without any of our client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.vision: Any = vision_pb2_grpc.VisionServiceStub(channel)
        self.inference: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        # Its stub is typed for the blocking channel alone.
        self.reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # pyright: ignore[reportArgumentType]

    async def status_of(self, name: str) -> int:
        return (await self.health.Check(health_pb2.HealthCheckRequest(service=name))).status


@asynccontextmanager
async def calling(address: str) -> AsyncGenerator[Caller]:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        yield Caller(channel)


@asynccontextmanager
async def running(
    repository: Path,
    gate: Gate | None = None,
    load: Callable[[Path], LoadedModel] | None = None,
    **settings: Any,
) -> AsyncGenerator[VisionServer]:
    """gate: of all sessions, unless they come from `load`; it is opened in the end"""
    config = ServerConfig(repository=repository, address="127.0.0.1:0", threads=1, **settings)
    server = VisionServer(config, load or (partial(load_gated, gate=gate) if gate else None))
    try:
        await server.start()
        yield server
    finally:
        if gate:
            gate.open()
        await server.stop()


@asynccontextmanager
async def administering(repository: Path, gate: Gate | None = None, **settings: Any) -> AsyncGenerator[Caller]:
    """A server of which everything may be asked, and stubs at its admin_address."""
    admin = running(repository, gate, admin_address="127.0.0.1:0", **settings)
    async with admin as server, calling(str(server.admin_address)) as caller:
        yield caller


async def until(condition: Callable[[], bool]) -> None:
    """Polls, for what another task or thread does soon."""
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.005)
