"""`python -m ferryman.bench.serving --help`: a server beside a bare loop on the same session, in turn in one run."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ferryman.__main__ import main
from ferryman.bench.load import Closed, Open, Outcome
from ferryman.bench.preprocessing import PreprocessingRow, make_jpeg, measure_preprocessing, print_preprocessing
from ferryman.bench.turns import run_in_turn
from ferryman.commands.console import make_table, out, print_table, show_stages
from ferryman.device import DeviceFacts, read_device
from ferryman.errors import FerrymanError
from ferryman.files import replace_file
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.runtimes.base import Arrays, Session
from ferryman.server.app import ServerConfig, VisionServer
from ferryman.server.engine import Engine
from ferryman.specs import Facts

NAME = "python -m ferryman.bench.serving"
_BARE = "bare loop"
app = typer.Typer(add_completion=False)


class Block(Facts):
    """What one block of measuring gave: images, in how many seconds, of how much time of the server's processors."""

    images: int
    seconds: float
    cpu_s: float
    latencies_ms: tuple[float, ...]


class ClosedRow(Facts):
    """So many clients that each ask again once they are answered, or the bare loop.

    ratio: of the bare loop's images a second, the median over the rounds
    extra_cpu_ms: processor time of the server for one request, beyond what the bare loop takes for one
    """

    what: str
    images_per_s: float
    ratio: float
    extra_cpu_ms: float
    p50_ms: float
    p99_ms: float


class OverloadRow(Facts):
    """times: of the bare loop's rate; goodput: answers in time, as a share of that rate

    refused_p99_ms: until one is refused; recovery_ms: the slowest answer of one client in the second after the flood
    """

    times: float
    seconds: float
    timeout_s: float
    codes: dict[str, int]
    goodput: float
    p99_ms: float
    refused_p99_ms: float
    recovery_ms: float
    sender_late_s: float


class Document(Facts):
    """What `--json` writes. batch_ms: what batches took when the model was loaded; best: the largest that helps"""

    device: DeviceFacts
    model: str
    target: str
    threads: int
    rounds: int
    request_bytes: int
    batch_ms: dict[int, float]
    best: int
    closed: tuple[ClosedRow, ...]
    overload: tuple[OverloadRow, ...]
    preprocessing: tuple[PreprocessingRow, ...]


@contextmanager
def serving(config: ServerConfig) -> Generator[VisionServer]:
    """A server on an event loop in a thread of its own, as `ferryman serve` has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event loop")
    thread.start()

    async def start() -> VisionServer:
        server = VisionServer(config)
        await server.start()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Load:
    """The process of `ferryman.bench.load`; made before a server is, since gRPC and forks don't go together."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ferryman.bench.load"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def connect(self, address: str, request: bytes) -> None:
        """Once, before the first order. request: what all its clients ask"""
        self._send(f"{address} {len(request)}\n".encode() + request)

    def __call__(self, order: Closed | Open) -> Outcome:
        self._send(order.model_dump_json().encode() + b"\n")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise FerrymanError("the process that makes the load has ended")
        return Outcome.model_validate_json(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()


def make_request(engine: Engine) -> tuple[bytes, Arrays]:
    """A request for one picture as a ready tensor, the model's first golden sample, and the inputs that it becomes."""
    inputs = engine.model.bundle.golden().batch([0])
    image = inputs["image"]
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=image.shape)
    request = pb.ModelInferRequest(model_name=engine.model.name, inputs=[tensor], raw_input_contents=[image.tobytes()])
    return request.SerializeToString(), inputs


def run_bare(session: Session, inputs: Arrays, seconds: float) -> list[Block]:
    latencies: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        session.run(inputs)
        latencies.append((time.perf_counter() - now) * 1e3)
    elapsed, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return [Block(images=len(latencies), seconds=elapsed, cpu_s=cpu_s, latencies_ms=tuple(latencies))]


def run_clients(load: Callable[[Closed], Outcome], clients: int, seconds: float) -> list[Block]:
    cpu = time.process_time()
    found = load(Closed(clients=clients, seconds=seconds))
    cpu_s = time.process_time() - cpu
    if set(found.codes) != {"OK"}:
        raise FerrymanError(f"{clients} clients got {found.codes}; all should be answered")
    images = len(found.latencies_ms)
    return [Block(images=images, seconds=found.seconds, cpu_s=cpu_s, latencies_ms=tuple(found.latencies_ms))]


def summarise(what: str, bare: Sequence[Block], blocks: Sequence[Block]) -> ClosedRow:
    """Blocks of the same rounds."""
    rates = [[one.images / one.seconds for one in side] for side in (bare, blocks)]
    cpus = [sum(one.cpu_s for one in side) / sum(one.images for one in side) for side in (bare, blocks)]
    latencies = [latency for one in blocks for latency in one.latencies_ms]
    return ClosedRow(
        what=what,
        images_per_s=float(np.median(rates[1])),
        ratio=float(np.median(np.divide(rates[1], rates[0]))),
        extra_cpu_ms=(cpus[1] - cpus[0]) * 1e3,
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
    )


def run_overload(load: Load, bare_rate: float, times: float, seconds: float, timeout: float) -> OverloadRow:
    found = load(Open(clients=16, seconds=seconds, rate=times * bare_rate, timeout=timeout))
    after = load(Closed(clients=1, seconds=1.0))
    return OverloadRow(
        times=times,
        seconds=seconds,
        timeout_s=timeout,
        codes=found.codes,
        goodput=found.codes.get("OK", 0) / found.seconds / bare_rate,
        p99_ms=_p99(found.latencies_ms),
        refused_p99_ms=_p99(found.refused_ms),
        recovery_ms=max(after.latencies_ms, default=float("nan")),
        sender_late_s=found.late,
    )


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99)) if values else 0.0


@app.command()
def bench_serving(
    repository: Annotated[Path, typer.Argument(help="Folder of NAME/VERSION bundles.")],
    model: Annotated[str | None, typer.Option(help="By default the first.")] = None,
    target: Annotated[str | None, typer.Option(help="By default the bundle's first.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of the engine; the clients need a core of their own.")] = 1,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="At a time, repeatable; by default 1, 4, 16.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of measuring each row.")] = 24.0,
    rounds: Annotated[int, typer.Option(min=1)] = 12,
    overload: Annotated[float, typer.Option(min=0, help="Seconds of three times the bare loop's rate; 0: none.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Of each request under overload, in seconds.")] = 0.5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The figures, as JSON.")] = None,
) -> None:
    """Measures what a server adds to the session that it serves: throughput of clients beside that of a bare loop.

    All in turn in one run: the loop and the server use the very same session in this process, the clients are another
    process. Requests are ModelInfer with one picture as a ready tensor.
    """
    config = ServerConfig(
        repository=repository,
        models=(model,) if model else (),
        address="127.0.0.1:0",
        target=target,
        threads=threads,
        certify=True,
    )
    with show_stages() as show, ExitStack() as opened:
        show("load", 0, 1)
        load = Load()
        opened.callback(load.close)
        server = opened.enter_context(serving(config))
        engine = asyncio.run(server.models.get(server.models.names[0]))
        request, inputs = make_request(engine)
        load.connect(server.address, request)
        session = engine.model.sessions[0]
        measures: dict[str, Callable[[float], list[Block]]] = {_BARE: partial(run_bare, session, inputs)}
        for count in clients or (1, 4, 16):
            measures[f"{count} clients"] = partial(run_clients, load, count)
        blocks = run_in_turn(measures, seconds, rounds, partial(show, "measure"))
        flat = {what: [block for found in rows for block in found] for what, rows in blocks.items()}
        bare = flat[_BARE]
        rate = float(np.median([one.images / one.seconds for one in bare]))
        floods: list[OverloadRow] = []
        if overload:
            show("overload", 0, 1)
            floods.append(run_overload(load, rate, 3.0, overload, timeout))
        costs = engine.model.costs[0]
        document = Document(
            device=read_device(),
            model=engine.model.name,
            target=engine.model.target,
            threads=threads,
            rounds=rounds,
            request_bytes=len(request),
            batch_ms={size: took * 1e3 for size, took in costs.measured.items()},
            best=costs.best,
            closed=tuple(summarise(what, bare, found) for what, found in flat.items()),
            overload=tuple(floods),
            preprocessing=measure_preprocessing([make_jpeg()]),
        )
    print_document(document)
    if json_file is not None:
        with replace_file(json_file) as temporary:
            temporary.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")


def print_document(document: Document) -> None:
    out.print(
        f"{document.model}, {document.target}, {document.threads} threads, {document.request_bytes:,} bytes a request"
    )
    batches = ", ".join(f"{size}: {took:.2f}" for size, took in document.batch_ms.items())
    out.print(f"ms of a batch when loaded: {batches}; the largest that helps: {document.best}")
    table = make_table("", "images/s", "of the loop", "CPU ms more", "p50 ms", "p99 ms", numbers=(1, 2, 3, 4, 5))
    for row in document.closed:
        figures = (f"{row.images_per_s:.1f}", f"{row.ratio:.1%}", f"{row.extra_cpu_ms:.2f}")
        table.add_row(row.what, *figures, f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}")
    print_table(table)
    print_preprocessing(document.preprocessing)
    for flood in document.overload:
        codes = ", ".join(f"{count:,} {code}" for code, count in sorted(flood.codes.items()))
        out.print(
            f"{flood.times:g} times the loop's rate for {flood.seconds:g} s, timeout {flood.timeout_s:g} s: {codes}; "
            f"goodput {flood.goodput:.1%}, p99 {flood.p99_ms:.0f} ms, p99 of refusals {flood.refused_p99_ms:.0f} ms, "
            f"sender late {flood.sender_late_s:.2f} s; slowest in the second after: {flood.recovery_ms:.1f} ms"
        )


if __name__ == "__main__":
    main(app, NAME)
