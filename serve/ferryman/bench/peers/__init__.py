"""Other servers with the same variant, each a process of its own, that `bench-serving` measures in turn with ours."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from ferryman.bundle import Bundle
from ferryman.errors import FerrymanError, UsageError
from ferryman.files import temporary_folder
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.runtimes.base import Arrays
from ferryman.specs import Target

_START_S = 120.0
_STOP_S = 20.0
# Of probabilities and boxes. A server that gives other answers is not compared.
_NEAR = 1e-2


@dataclass(frozen=True)
class Peer:
    """A server that runs and answers as the model does. pid: of a process that leads a session with all of its own"""

    name: str
    address: str
    pid: int

    def cpu_s(self) -> float:
        """Processor time of all its processes until now."""
        ticks = 0
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
                if int(fields[3]) == self.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


PLAIN = {"aio": "plain handler", "threads": "plain threads"}  # what they are called


@contextmanager
def plain_handler(
    kind: str, bundle: Bundle, target: Target, threads: int, request: bytes, expected: Arrays
) -> Generator[Peer]:
    """A handler on the same kind of session, one run at a time, with nothing around it.

    kind: `aio`, of grpc.aio, or `threads`, of gRPC's synchronous server
    """
    port = _free_ports(1)[0]
    command = [
        sys.executable,
        "-m",
        "ferryman.bench.peers.plain",
        kind,
        str(bundle.path),
        str(target),
        str(threads),
        str(port),
    ]
    with _running(PLAIN[kind], command, port, Path.cwd(), request, expected) as peer:
        yield peer


@contextmanager
def mlserver(
    python: Path, bundle: Bundle, target: Target, threads: int, request: bytes, expected: Arrays
) -> Generator[Peer]:
    """Seldon's MLServer as it comes, one worker process; the model in it asks OpenVINO as we do.

    python: of a virtual environment that holds `mlserver` and `openvino`
    Raises UsageError for a variant that is not OpenVINO's.
    """
    if (target.runtime, target.device) != ("openvino", "cpu"):
        raise UsageError(f"MLServer is compared on variants of OpenVINO on the processor, and not on {target}")
    [variant, *_] = bundle.variants(str(target))
    port, http, metrics = _free_ports(3)
    server = {"host": "127.0.0.1", "grpc_port": port, "http_port": http, "metrics_port": metrics, "debug": False}
    facts = {"file": str(bundle.path / variant.path), "threads": threads, "exact": target.precision == "fp32"}
    model = {"name": bundle.name, "implementation": "mlserver_model.Model", "parameters": {"extra": facts}}
    with temporary_folder(Path(tempfile.gettempdir()), "mlserver") as folder:
        shutil.copyfile(Path(__file__).with_name("mlserver_model.txt"), folder / "mlserver_model.py")
        (folder / "settings.json").write_text(json.dumps(server), encoding="utf-8")
        (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        command = [str(python.absolute().with_name("mlserver")), "start", "."]
        with _running("MLServer", command, port, folder, request, expected) as peer:
            yield peer


@contextmanager
def _running(
    name: str, command: list[str], port: int, folder: Path, request: bytes, expected: Arrays
) -> Generator[Peer]:
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise FerrymanError(f"{name} can't be started with {command[0]}: {error.strerror}") from error
        try:
            peer = Peer(name, f"127.0.0.1:{port}", process.pid)
            try:
                check_answer(name, _first_answer(peer, process, request), expected)
            except FerrymanError as error:
                log.seek(0)
                last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                raise FerrymanError(f"{error}: {''.join(last)[:300]}") from error
            yield peer
        finally:
            _stop(process)


def _first_answer(peer: Peer, process: "subprocess.Popen[bytes]", request: bytes) -> pb.ModelInferResponse:
    end = time.monotonic() + _START_S
    with grpc.insecure_channel(peer.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        ask: Callable[..., bytes] = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while True:
            try:
                return pb.ModelInferResponse.FromString(ask(request, timeout=10))
            except grpc.RpcError as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise FerrymanError(f"{peer.name} does not answer") from error
            time.sleep(0.2)


def check_answer(name: str, answer: pb.ModelInferResponse, expected: Arrays) -> None:
    """Raises FerrymanError unless every output is there, near what the model gives."""
    if {output.name for output in answer.outputs} != set(expected):
        raise FerrymanError(f"{name} does not answer {', '.join(expected)}")
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        wanted = expected[output.name]
        found = np.frombuffer(data, wanted.dtype)
        scale = max(1.0, float(np.abs(wanted).max()))
        if found.size != wanted.size or float(np.abs(found - wanted.ravel()).max()) > _NEAR * scale:
            raise FerrymanError(f"{name} answers otherwise than the model, in {output.name}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
