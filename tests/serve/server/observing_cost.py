"""What observing costs, in processor time a request: -m tests.serve.server.observing_cost [ROUNDS [REQUESTS]].

Servers that observe more and more stand side by side, and are asked in turn, each REQUESTS times a round by 4 askers
with a canvas, of a model that takes almost nothing; prints how long each server's process was busy a request, in its
least disturbed round: what else runs on the machine only ever adds to it.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc.aio
import numpy as np

from ferryman.bundle import Bundle
from ferryman.commands.console import make_table, print_table, show_stages
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.inference import grpc_service_pb2_grpc

from ..toy import make_toy_repository

MODEL = "toy-classifier"
ASKERS = 4
VARIANTS: dict[str, dict[str, object]] = {
    "nothing": {},
    "counted": {},
    "and read every second": {"metrics_address": "127.0.0.1:0"},
    "and logged, a line a request": {"log_requests": True, "log_format": "json"},
    "and traced, written to a file": {"trace_exporter": "console"},
}
SERVE = """
import asyncio, json, os, signal, sys, time
from ferryman.server import app, logs, observing, statistics
name, settings, told = json.loads(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: os.write(told, str(time.process_time()).encode()))
if name == "nothing":  # as if there were no interceptor and no histogram
    async def skip(self, continuation, details):
        return await continuation(details)
    observing.Observer.intercept_service = skip
    statistics.Histogram.add = lambda self, ns: None
config = app.ServerConfig.from_settings(settings)
logs.configure_logs(config.log_format)
asyncio.run(app.serve(config, lambda address, models: (sys.stderr.write(f"at {address}\\n"), sys.stderr.flush())))
"""


class Server:
    def __init__(self, name: str, repository: str, model: str) -> None:
        settings = {"repository": repository, "models": [model], "threads": 1, "address": "127.0.0.1:0"}
        self.name = name
        self.metrics_address: str | None = None
        self._told, told = os.pipe()
        command = [sys.executable, "-c", SERVE, json.dumps([name, settings | VARIANTS[name], told])]
        with open(os.devnull, "w") as nowhere:
            self.process = subprocess.Popen(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, pass_fds=[told])
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

    async def ask(self, request: pb.ModelInferRequest, count: int) -> float:
        """Seconds of processor time a request."""
        async with grpc.aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*(stub.ModelInfer(request) for _ in range(ASKERS)))
            before = self.busy_s()

            async def ask_on() -> None:
                for _ in range(count // ASKERS):
                    await stub.ModelInfer(request)

            tasks = [asyncio.create_task(ask_on()) for _ in range(ASKERS)]
            while self.metrics_address and not all(task.done() for task in tasks):
                await asyncio.to_thread(lambda: urlopen(f"http://{self.metrics_address}/metrics").read())
                await asyncio.wait(tasks, timeout=1.0)
            await asyncio.gather(*tasks)
            return (self.busy_s() - before) / (count // ASKERS * ASKERS)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.reader.wait()


async def main(folder: Path, rounds: int = 25, count: int = 400) -> None:
    repository, model = str(make_toy_repository(folder, [MODEL])), MODEL
    height, width = Bundle.open(folder / model).spec.preprocess.size
    canvas = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    image = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=canvas.shape)
    request = pb.ModelInferRequest(model_name=model, inputs=[image], raw_input_contents=[canvas.tobytes()])
    servers = [Server(name, repository, model) for name in VARIANTS]
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    try:
        with show_stages() as show:
            for number in range(rounds):
                show("measure", number, rounds)
                random.shuffle(servers)  # whoever comes twice in a row finds its memory nearer
                for server in servers:
                    found[server.name].append(await server.ask(request, count))
    finally:
        for server in servers:
            server.stop()
    bare = min(found["nothing"])
    table = make_table("observed", "us a request", "more", numbers=(1, 2))
    for name, seconds in found.items():
        more = f"{(min(seconds) - bare) * 1e6:.0f}" if name != "nothing" else ""
        table.add_row(name, f"{min(seconds) * 1e6:.0f}", more)
    print_table(table)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place), *map(int, sys.argv[1:])))
