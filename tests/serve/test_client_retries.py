"""Retries, deadlines and servers that are not there, against a server whose failures the tests choose."""

import asyncio
import socket
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from ferryman.client import AsyncClient, Client, RetryPolicy
from ferryman.errors import (
    DeadlineError,
    FerrymanError,
    OverloadedError,
    UnavailableError,
    UsageError,
)
from ferryman.status import status_from_error
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

from .both import PATIENCE_S, Both
from .server.process import ServerProcess
from .toy import make_picture

ONCE = RetryPolicy(attempts=1)
FAST = RetryPolicy(attempts=4, first_pause_s=0.001, max_pause_s=0.002)
PICTURE = make_picture((1, 2, 3))


class Moody(vision_pb2_grpc.VisionServiceServicer):
    """Fails as told, one error a call; then answers. None stands for an answer that never comes."""

    def __init__(self, errors: list[FerrymanError | None]) -> None:
        self.errors = errors
        self.calls: list[float] = []
        self.released = threading.Event()

    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.calls.append(time.monotonic())
        if self.errors:
            error = self.errors.pop(0)
            if error is None:
                self.released.wait(PATIENCE_S)
            else:
                context.abort_with_status(rpc_status.to_status(status_from_error(error)))
        return pb.ClassifyResponse(answerer=pb.Answerer(model=request.model))


@contextmanager
def moody(*errors: FerrymanError | None) -> Generator[tuple[Moody, str]]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        servicer = Moody(list(errors))
        vision_pb2_grpc.add_VisionServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield servicer, f"127.0.0.1:{port}"
        finally:
            servicer.released.set()
            server.stop(None).wait()


def overloaded(seconds: float | None) -> OverloadedError:
    return OverloadedError("too much", seconds)


RETRIES: dict[str, tuple[list[FerrymanError | None], type[FerrymanError] | None, int]] = {
    "stopping, then another server": ([UnavailableError("stopping")], None, 2),
    "full, then room": ([overloaded(0.001)] * 3, None, 4),
    "full for too long": ([overloaded(0.001)] * 4, OverloadedError, 4),
    "full, and no word of when to come back": ([overloaded(None)], OverloadedError, 1),
    "full for longer than the deadline": ([overloaded(60)], OverloadedError, 1),
    "a wrong request": ([UsageError("wrong")], UsageError, 1),
    "a failed engine": ([FerrymanError("broken")], FerrymanError, 1),
    "no time left": ([DeadlineError("late")], DeadlineError, 1),
}


@pytest.mark.parametrize(("errors", "raised", "calls"), RETRIES.values(), ids=RETRIES)
def test_retries_only_where_they_are_safe(
    errors: list[FerrymanError | None], raised: type[FerrymanError] | None, calls: int
) -> None:
    with moody(*errors) as (servicer, address), Client(address, retry=FAST) as client:
        if raised is None:
            assert client.classify([PICTURE], model="toy").answerer.name == "toy"
        else:
            with pytest.raises(raised):
                client.classify([PICTURE], model="toy")
        assert len(servicer.calls) == calls


async def test_retries_of_the_async_client() -> None:
    with moody(UnavailableError("stopping"), overloaded(0.05)) as (servicer, address):
        async with AsyncClient(address, retry=FAST) as client:
            assert (await client.classify([PICTURE], model="toy")).answerer.name == "toy"
        assert len(servicer.calls) == 3
        assert servicer.calls[2] - servicer.calls[1] >= 0.05  # the server's word on when to come back


def test_a_deadline_ends_a_call_that_is_not_repeated() -> None:
    with moody(None) as (servicer, address), Client(address, retry=FAST) as client:
        with pytest.raises(DeadlineError, match="did not answer in time"):
            client.classify([PICTURE], model="toy", timeout=0.1)
        assert len(servicer.calls) <= 1  # none, where the machine was too busy to bring it there in time


async def test_cancelling_the_caller_cancels_the_call() -> None:
    with moody(None) as (servicer, address):
        async with AsyncClient(address) as client:
            asked = asyncio.create_task(client.classify([PICTURE], model="toy"))
            async with asyncio.timeout(PATIENCE_S):
                while not servicer.calls:
                    await asyncio.sleep(0.005)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_there() -> None:
    address = f"127.0.0.1:{free_port()}"
    both = Both(address, retry=ONCE)
    assert not both.is_ready(timeout=1)
    with pytest.raises(UnavailableError, match=f"no server answers at {address} .*is `ferryman serve` running there"):
        both.classify([PICTURE], model="toy")
    with pytest.raises(DeadlineError, match=r"the server at .* was not ready within 0.2 s: no server answers"):
        both.wait_ready(timeout=0.2)


def test_a_server_that_starts_late(toy_repository: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    patient = RetryPolicy(attempts=1000, first_pause_s=0.01, max_pause_s=0.1)
    with Client(address, retry=patient, timeout=PATIENCE_S) as client, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(client.wait_ready, "toy-classifier", timeout=PATIENCE_S)
        answer = pool.submit(client.classify, [PICTURE], model="toy-classifier")
        with ServerProcess({"repository": str(toy_repository), "address": address, "threads": 1}):
            assert answer.result().answerer.name == "toy-classifier"
            waiting.result()


@pytest.mark.parametrize("policy", [{"attempts": 0}, {"first_pause_s": -1.0}, {"max_pause_s": -1.0}])
def test_a_retry_policy_is_checked(policy: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RetryPolicy(**policy)


def test_pauses_grow_and_differ() -> None:
    policy = RetryPolicy(attempts=100, first_pause_s=0.1, max_pause_s=2.0)
    error = UnavailableError("gone")
    for attempt, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (10, 2.0), (99, 2.0)):
        pauses = [policy.pause_after(attempt, error) or 0.0 for _ in range(200)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert policy.pause_after(100, error) is None


def test_a_stream_without_a_server() -> None:
    with Client(f"127.0.0.1:{free_port()}") as client, pytest.raises(UnavailableError):
        list(client.stream_detect([PICTURE], model="toy-detector"))
