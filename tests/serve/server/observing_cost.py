"""What observing costs: -m tests.serve.server.observing_cost [ROUNDS [REQUESTS [MODEL]]].

Servers that observe more and more stand side by side, and are asked in turn, each REQUESTS times a round by 4 askers
with a canvas, of a model that takes almost nothing, or of `vit`, that of `make bench-serving`, which takes some 10 ms.
Prints how long each server's process was busy a request, in its least disturbed round, as what else runs on the machine
only ever adds to it; and how many requests a second it answered, as a share of those of the one that observes nothing,
the median over the rounds.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc.aio
import numpy as np

from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, print_table, show_stages
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc
from ferryman_export.bench_serving import TARGET, export_vit

from ..toy import make_toy_repository

MODEL, VIT = "toy-classifier", "vit"
ASKERS = 4
_READ = {"metrics_address": "127.0.0.1:0"}
_LOGGED = _READ | {"log_requests": True, "log_format": "json"}
VARIANTS: dict[str, dict[str, object]] = {
    "nothing": {},
    "counted": {},
    "and read every second": {**_READ},
    "and logged, a line a request": {**_LOGGED},
    "and traced, sent by OTLP": {**_LOGGED, "trace_exporter": "otlp_proto_grpc"},
}
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
COLLECT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
class Collector(grpc.GenericRpcHandler):
    def service(self, details):
        def take(request, context):
            for resource in ExportTraceServiceRequest.FromString(request).resource_spans:
                for scope in resource.scope_spans:
                    sys.stdout.write(f"{sum(span.name == 'request' for span in scope.spans)}\\n")
            sys.stdout.flush()
            return b""
        return grpc.unary_unary_rpc_method_handler(take) if details.method == sys.argv[1] else None
server = grpc.server(ThreadPoolExecutor(1), [Collector()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""
SERVE = """
import asyncio, json, os, signal, sys, time
from ferryman.server import app, logs, observing, statistics
name, settings, told = json.loads(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: os.write(told, str(time.process_time()).encode()))
if name == "nothing":  # as if there were no observer and no histogram
    observing.Observer.wrap = lambda self, method, handler: handler
    statistics.Histogram.add = lambda self, ns: None
config = app.ServerConfig.from_settings(settings)
logs.configure_logs(config.log_format)
asyncio.run(app.serve(config, lambda address, models: (sys.stderr.write(f"at {address}\\n"), sys.stderr.flush())))
"""


class Collector:
    """Takes traces in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", COLLECT, TRACES]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
        }

    def stop(self) -> int:
        """Of how many requests spans have come."""
        self._process.terminate()
        told, _ = self._process.communicate()
        return sum(map(int, told.split()))


class Server:
    def __init__(self, name: str, repository: str, model: str, environment: dict[str, str]) -> None:
        settings = {"repository": repository, "models": [model], "threads": 1, "address": "127.0.0.1:0"}
        settings |= {"target": str(TARGET), "certify": True} if model == VIT else {}
        self.name = name
        self.metrics_address: str | None = None
        self._told, told = os.pipe()
        command = [sys.executable, "-c", SERVE, json.dumps([name, settings | VARIANTS[name], told])]
        with open(os.devnull, "w") as nowhere:
            self.process = subprocess.Popen(
                command,
                stdout=nowhere,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[told],
                env=os.environ | environment,
            )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "metrics: address=" in line:
                self.metrics_address = line.rpartition("=")[2].strip().strip('"}')
            if line.startswith("at "):
                self.address = line[3:].strip()
                break
        # its log goes on, and nobody reads it here
        self.reader = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def busy_s(self) -> float:
        """Of processor time, all of its threads'."""
        self.process.send_signal(signal.SIGUSR1)
        return float(os.read(self._told, 100))

    async def ask(self, request: pb.ModelInferRequest, count: int) -> tuple[float, float]:
        """Seconds of processor time a request, and requests a second."""
        async with grpc.aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*(stub.ModelInfer(request) for _ in range(ASKERS)))
            before, start = self.busy_s(), time.perf_counter()

            async def ask_on() -> None:
                for _ in range(count // ASKERS):
                    await stub.ModelInfer(request)

            tasks = [asyncio.create_task(ask_on()) for _ in range(ASKERS)]
            while self.metrics_address and not all(task.done() for task in tasks):
                await asyncio.to_thread(lambda: urlopen(f"http://{self.metrics_address}/metrics").read())
                await asyncio.wait(tasks, timeout=1.0)
            await asyncio.gather(*tasks)
            asked = count // ASKERS * ASKERS
            return (self.busy_s() - before) / asked, asked / (time.perf_counter() - start)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.reader.wait()


async def main(folder: Path, rounds: str = "25", requests: str = "400", model: str = MODEL) -> None:
    turns, count = int(rounds), int(requests)
    repository = export_vit(folder / VIT) if model == VIT else make_toy_repository(folder, [model])
    height, width = Bundle.open(repository / model).spec.preprocess.size
    canvas = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    image = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=canvas.shape)
    request = pb.ModelInferRequest(model_name=model, inputs=[image], raw_input_contents=[canvas.tobytes()])
    collector = Collector()
    servers = [Server(name, str(repository), model, collector.environment) for name in VARIANTS]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    try:
        with show_stages() as show:
            for number in range(turns):
                show("measure", number, turns)
                random.shuffle(servers)  # whoever comes twice in a row finds its memory nearer
                for server in servers:
                    found[server.name].append(await server.ask(request, count))
    finally:
        for server in servers:
            server.stop()
        came = collector.stop()
    bare = np.array(found["nothing"])
    table = make_table("observed", "us a request", "more", "requests/s, of nothing's", numbers=(1, 2, 3))
    for name, rows in found.items():
        these = np.array(rows)
        best_s, more_s = these[:, 0].min(), these[:, 0].min() - bare[:, 0].min()
        share = float(np.median(these[:, 1] / bare[:, 1]))
        table.add_row(name, f"{best_s * 1e6:.0f}", f"{more_s * 1e6:.0f}", f"{share:.1%}")
    print_table(table)
    if came != turns * (count // ASKERS * ASKERS + ASKERS):
        raise SystemExit(f"{came:,} traces of requests came: not all were sent")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place), *sys.argv[1:]))
