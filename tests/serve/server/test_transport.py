"""The limits of connections, calls and metadata, on a real server that goes on serving."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .gate import Gate
from .inference.asking import status_of
from .inside import calling, running, until
from .marked import MarkedModels, marked

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and SETTINGS, of none


async def test_oversize_metadata_is_refused(toy_repository: Path) -> None:
    async with running(toy_repository, max_metadata_bytes=4096) as server, calling(server.address) as caller:
        metadata = (("padding", "x" * 3000),)
        assert (await caller.inference.ModelInfer(marked(1), metadata=metadata)).outputs
        metadata = (("padding", "x" * 6000),)
        assert (await status_of(caller.inference.ModelInfer(marked(1), metadata=metadata)))[0] == "RESOURCE_EXHAUSTED"
        assert (await caller.inference.ModelInfer(marked(1))).outputs


async def test_calls_beyond_the_streams_of_a_connection_wait_at_the_client(toy_repository: Path) -> None:
    gate = Gate()
    async with (
        running(toy_repository, gate, MarkedModels(gate), max_streams=3) as server,
        calling(server.address) as caller,
        calling(server.address) as other,
    ):
        # One that is ready knows the limit. Not by a call: the server may still count its stream, and refuse another.
        await caller.channel.channel_ready()
        calls = [asyncio.ensure_future(caller.inference.ModelInfer(marked(mark))) for mark in range(5)]
        engine = await server.models.get("toy-classifier")
        await until(lambda: engine.images_inside == 3)
        calls += [asyncio.ensure_future(other.inference.ModelInfer(marked(9)))]
        await until(lambda: engine.images_inside == 4)
        gate.open()
        assert len(await asyncio.gather(*calls)) == 6


async def test_calls_beyond_the_limit_are_refused_unread(toy_repository: Path) -> None:
    gate = Gate()
    async with (
        running(toy_repository, gate, MarkedModels(gate), max_calls=4) as server,  # of which one host may have two
        calling(server.address) as caller,
    ):
        calls = [asyncio.ensure_future(caller.inference.ModelInfer(marked(mark))) for mark in (1, 2)]
        engine = await server.models.get("toy-classifier")
        await until(lambda: engine.images_inside == 2)
        assert (await status_of(caller.inference.ModelInfer(marked(3))))[0] == "RESOURCE_EXHAUSTED"
        gate.open()
        await asyncio.gather(*calls)
        assert (await caller.inference.ModelInfer(marked(4))).outputs


async def test_connections_beyond_the_limit_are_closed(toy_repository: Path) -> None:
    async with running(toy_repository, max_connections=1) as server, calling(server.address) as caller:
        assert (await caller.inference.ModelInfer(marked(1))).outputs
        async with calling(server.address) as second:
            assert (await status_of(second.inference.ModelInfer(marked(1))))[0] == "UNAVAILABLE"
        assert (await caller.inference.ModelInfer(marked(1))).outputs


SILENT = {  # what is said before the silence, and the setting that ends it
    "nothing": (b"", "handshake_seconds"),
    "half a preface": (PREFACE[:10], "handshake_seconds"),
    "all that HTTP/2 asks for": (PREFACE, "idle_seconds"),
}


@pytest.mark.parametrize(("said", "ends"), SILENT.values(), ids=SILENT)
async def test_silent_connections_hold_their_places_for_a_time(toy_repository: Path, said: bytes, ends: str) -> None:
    """One host takes all places: who is connected is served, who comes is not until the silent ones are closed."""
    settings: dict[str, Any] = {"max_connections": 8, "admin_address": "127.0.0.1:0", ends: 3.0}
    async with running(toy_repository, **settings) as server, calling(server.address) as connected:
        watch = connected.health.Watch(health_pb2.HealthCheckRequest())  # a call, so that it is not idle
        await watch.read()
        silent = [await asyncio.open_connection(*server.address.split(":")) for _ in range(7)]
        for _, writer in silent:
            writer.write(said)
        async with calling(server.address) as late, calling(str(server.admin_address)) as admin:
            assert (await status_of(late.inference.ModelInfer(marked(1))))[0] == "UNAVAILABLE"
            for one in (connected, admin):
                assert (await one.inference.ModelInfer(marked(1))).outputs
        async with asyncio.timeout(60):
            for reader, writer in silent:
                await reader.read()  # until the server closes it
                writer.close()
        async with calling(server.address) as late:
            assert (await late.inference.ModelInfer(marked(1))).outputs


async def test_a_client_that_does_nothing_but_ping_is_cut_off(toy_repository: Path) -> None:
    """Its channel pings each 10 ms where the server allows one in 10 s; another client is served all the while."""
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    gate = Gate()
    async with (
        running(toy_repository, gate, MarkedModels(gate)) as server,
        calling(server.address) as caller,
        grpc.aio.insecure_channel(server.address, options) as pinging,
    ):
        stub: Any = health_pb2_grpc.HealthStub(pinging)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in watch:
                pass
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "Too many pings")
        gate.open()
        assert (await caller.inference.ModelInfer(marked(1))).outputs
