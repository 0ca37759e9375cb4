"""A server process: how it starts, how it ends, and what it leaves."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ferryman.client import Client, RetryPolicy
from ferryman.errors import FerrymanError, UnavailableError
from ferryman.v1 import vision_pb2 as pb
from ferryman.v1 import vision_pb2_grpc

from ..toy import make_pictures
from .process import ServerProcess, open_gate

ONCE = RetryPolicy(attempts=1)


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls, for what another process does soon."""
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered(toy_repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    settings = {"repository": str(toy_repository), "threads": 1}
    with (
        ServerProcess(settings, tmp_path) as server,
        Client(server.address, retry=ONCE, timeout=240) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        vision: Any = vision_pb2_grpc.VisionServiceStub(channel)
        asked = [
            vision.Classify.future(
                pb.ClassifyRequest(model=pb.ModelRef(name="toy-classifier"), images=make_pictures(2))
            ),
            vision.Detect.future(pb.DetectRequest(model=pb.ModelRef(name="toy-detector"), images=make_pictures(2))),
        ]
        # One of each model: both have reached their sessions when both have left a file at the gate.
        for number_of_batch in range(len(asked)):
            wait_until((tmp_path / f"batch-{number_of_batch}").exists)
        server.signal(number)
        wait_until(lambda: not client.is_ready())
        with pytest.raises(UnavailableError):
            client.classify(make_pictures(1), model="toy-classifier")
        # What tells a balancer that another server may be asked: docker/compose/envoy.yaml.
        refused = vision.Classify.future(pb.ClassifyRequest(model=pb.ModelRef(name="toy-classifier")))
        assert ("ferryman-untouched", "true") in list(refused.trailing_metadata())
        open_gate(tmp_path)
        assert [len(call.result().results) for call in asked] == [2, 2]
        assert server.wait() == 0
    assert "server stopped" in server.stderr
    assert "in_flight=2 cancelled=0" in server.stderr
    assert "Traceback" not in server.stderr


def test_a_second_signal_does_not_wait(toy_repository: Path, tmp_path: Path) -> None:
    settings = {"repository": str(toy_repository), "threads": 1}
    with (
        ServerProcess(settings, tmp_path) as server,
        Client(server.address, retry=ONCE, timeout=240) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.classify, make_pictures(1), model="toy-classifier")
        wait_until((tmp_path / "batch-0").exists)
        server.signal(signal.SIGINT)
        wait_until(lambda: not client.is_ready())
        assert not asked.done()
        server.signal(signal.SIGINT)
        with pytest.raises(FerrymanError):
            asked.result(timeout=240)
        open_gate(tmp_path)
        assert server.wait() == 0
    assert "cancelled=1" in server.stderr
    assert "Traceback" not in server.stderr


def test_a_server_that_cannot_start_says_why_in_one_line(toy_server: str, toy_repository: Path, tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, object], str]] = {
        "port taken": (
            {"repository": str(toy_repository), "address": toy_server},
            f"AddressError: can't listen on {toy_server}: Address already in use",
        ),
        "empty repository": ({"repository": str(tmp_path)}, "BundleNotFoundError: "),
    }
    for settings, message in cases.values():
        with pytest.raises(RuntimeError) as caught:
            ServerProcess(settings)
        lines = str(caught.value).splitlines()
        assert len(lines) == 1
        assert message in lines[0]
