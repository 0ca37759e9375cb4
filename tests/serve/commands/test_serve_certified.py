"""`ferryman serve` and certificates, with real server processes."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ferryman.bundle import Bundle
from ferryman.client import Client

from ..toy import make_picture
from .outcome import Cli, finish, spawn


@pytest.fixture
def uncertified(copy: Path) -> Path:
    """A repository with a detector from another machine, and a classifier that is certified."""
    shutil.rmtree(copy / "toy-embedder")
    place = copy / "toy-detector" / "1" / "certificates" / "onnxruntime-cpu-fp32.json"
    facts = json.loads(place.read_text(encoding="utf-8"))
    facts["device"]["cpu"] = "Abacus 3"
    place.write_text(json.dumps(facts), encoding="utf-8")
    return copy


def start(*arguments: object) -> tuple[Any, dict[str, Any]]:
    """A server that is ready, and what it said then."""
    process = spawn("serve", *arguments, "--address", "127.0.0.1:0", "--threads", 1, "--json")
    assert process.stdout is not None
    lines: list[str] = []
    while "}" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
        lines.append(line)
    return process, json.loads("".join([*lines, line]))


def stop(process: Any) -> str:
    """What the server had logged."""
    process.send_signal(signal.SIGTERM)
    outcome = finish(process)
    assert outcome.status == 0
    return outcome.stderr


def health_of(address: str, name: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status


def test_it_refuses_what_is_not_certified_here(uncertified: Path) -> None:
    process, told = start(uncertified)
    assert told["models"] == ["toy-classifier"]
    assert health_of(told["address"], "toy-classifier") == health_pb2.HealthCheckResponse.SERVING
    assert health_of(told["address"], "toy-detector") == health_pb2.HealthCheckResponse.NOT_SERVING
    log = stop(process)
    (refused,) = (line for line in log.splitlines() if "model failed" in line)
    assert "made for another processor, Abacus 3 and not" in refused


def test_the_command_that_it_names_mends_it(uncertified: Path, cli: Cli) -> None:
    shutil.rmtree(uncertified / "toy-classifier")
    outcome = finish(spawn("serve", uncertified, "--address", "127.0.0.1:0"))
    assert outcome.status == 1
    complaint = outcome.stderr.splitlines()[-1]
    assert complaint.startswith("ferryman: nothing in ")
    assert complaint.endswith(", or serve with --certify")
    command = complaint.partition("prove it with: ferryman ")[2].partition(", or serve")[0].split()
    assert command[0] == "verify"
    assert cli(*command).status == 0
    process, told = start(uncertified)
    assert told["models"] == ["toy-detector"]
    stop(process)


def test_it_certifies_at_start(uncertified: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    proofs = tmp_path / "proofs"
    settings.write_text(f'certificates = "{proofs}"', encoding="utf-8")
    process, told = start(uncertified, "--certify", "--config", settings)
    assert told["models"] == ["toy-classifier", "toy-detector"]
    place = proofs / Bundle.open(uncertified / "toy-detector").digest[:16] / "onnxruntime-cpu-fp32.json"
    certificate = json.loads(place.read_text(encoding="utf-8"))
    with Client(told["address"]) as client:
        facts = client.model_info("toy-detector")
        assert (facts.target, facts.certified) == ("onnxruntime-cpu-fp32", certificate["created"])
        assert client.detect([make_picture((9, 9, 200))], model="toy-detector").results
    assert "being proved on this device: name=toy-detector" in stop(process)
    process, told = start(uncertified, "--config", settings)  # and needs no proof the next time
    assert told["models"] == ["toy-classifier", "toy-detector"]
    assert "being proved" not in stop(process)
