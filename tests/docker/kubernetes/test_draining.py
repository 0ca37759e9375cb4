"""Servers as the Deployment runs them, while one of them is told to go and while one has no place left."""

import asyncio
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from urllib.error import HTTPError

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from ferryman.client import AsyncClient
from ferryman.inference import grpc_service_pb2 as oip

from ...serve.server.inside import calling, running
from ...serve.server.process import ServerProcess, free_address
from ...serve.toy import make_picture
from .settings import servers

MODEL = "toy-detector"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# Of all callers together; the first is told to go after so many. The log's line a request must fit a pipe of 64 KiB.
CALLERS, CALLS, GOES_AFTER = 6, 240, 60


@pytest.fixture
def two(toy_repository: Path) -> Iterator[list[ServerProcess]]:
    """At one port of two addresses, as a headless Service gives them."""
    config = servers()["cpu"].config
    port = free_address().rpartition(":")[2]
    settings = {
        "repository": str(toy_repository),
        "threads": 1,
        "log_requests": True,
        "grace_seconds": config.grace_seconds,
        "connection_seconds": config.connection_seconds,
    }
    with ExitStack() as stack:
        yield [stack.enter_context(ServerProcess(settings | {"address": f"127.0.0.{last}:{port}"})) for last in (1, 2)]


async def watch(address: str, seen: list[int]) -> grpc.StatusCode:
    """What the health service says of the server, until its listener is closed; and how that ends the call."""
    async with calling(address) as caller:
        try:
            async for answer in caller.health.Watch(health_pb2.HealthCheckRequest()):
                seen.append(answer.status)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def count_answers(address: str) -> int:
    async with calling(address) as caller:
        found = await caller.inference.ModelStatistics(oip.ModelStatisticsRequest(name=MODEL))
        return found.model_stats[0].inference_count


async def test_a_server_that_goes_loses_no_call(two: list[ServerProcess]) -> None:
    """Behind a name of two addresses: what one refuses as it stops, the client asks of the other, once."""
    first, second = two
    picture, numbers, seen = make_picture((240, 20, 10)), count(1), list[int]()
    answered: list[int] = []
    shares: list[int] = []

    async def call(client: AsyncClient) -> None:
        while (number := next(numbers)) <= CALLS:
            answer = await client.detect([picture], model=MODEL)
            assert answer.results[0].detections
            answered.append(number)
            if len(answered) == GOES_AFTER:
                shares.extend([await count_answers(one.address) for one in two])
                first.signal(signal.SIGTERM)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        watching = group.create_task(watch(first.address, seen))
        while not seen:
            await asyncio.sleep(0.01)
        async with AsyncClient(f"ipv4:{first.address},{second.address}") as client:
            await asyncio.gather(*(call(client) for _ in range(CALLERS)))
        ended = await watching
    assert sorted(answered) == list(range(1, CALLS + 1))
    assert ended in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    # It was out of service before its listener closed.
    assert seen == [SERVING, NOT_SERVING]
    assert await asyncio.to_thread(first.wait) == 0
    second.signal(signal.SIGTERM)
    assert await asyncio.to_thread(second.wait) == 0
    # By the servers' own account: nothing was answered twice, and both had a share from the beginning.
    assert sum(one.stderr.count(" code=OK ") for one in two) == CALLS
    assert min(shares) > 0
    assert "cancelled=0" in first.stderr


async def test_the_probe_of_liveness_needs_no_place(toy_repository: Path) -> None:
    """With every connection taken the gRPC port answers no probe, which must not get the server killed."""
    async with running(toy_repository, max_connections=2, metrics_address="127.0.0.1:0") as server:
        async with calling(server.address) as one, calling(server.address) as two, calling(server.address) as three:
            assert [await one.status_of(""), await two.status_of("")] == [SERVING, SERVING]
            with pytest.raises(grpc.aio.AioRpcError):
                await three.health.Check(health_pb2.HealthCheckRequest(), timeout=1)
            assert await asyncio.to_thread(_page, f"{server.metrics_address}/livez") == 200
        server.calls.stopping.set()
        await server.health.stop()
        assert await asyncio.to_thread(_page, f"{server.metrics_address}/livez") == 200
        assert await asyncio.to_thread(_page, f"{server.metrics_address}/readyz") == 503
        server.calls.stopping.clear()


def _page(url: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{url}", timeout=5) as page:
            return page.status
    except HTTPError as error:
        error.close()
        return error.code
