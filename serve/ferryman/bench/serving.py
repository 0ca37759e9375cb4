"""`python -m ferryman.bench.serving --help`: a server beside a bare loop on the same session, in turn in one run."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import typer
from numpy.typing import NDArray

from ferryman.__main__ import main
from ferryman.attest import Attestation
from ferryman.bench.load import Closed, Open, Outcome
from ferryman.bench.peers import PLAIN, Peer, mlserver, plain_handler
from ferryman.bench.preprocessing import make_jpeg, measure_preprocessing
from ferryman.bench.serving_report import Block, Document, OverloadRow, PressedRow, print_document, summarise
from ferryman.bench.turns import run_in_turn
from ferryman.bundle import Bundle
from ferryman.commands.console import show_stages
from ferryman.device import read_device
from ferryman.errors import FerrymanError
from ferryman.files import write_text
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.runtimes.base import Arrays, Session
from ferryman.server.app import VisionServer
from ferryman.server.config import ServerConfig
from ferryman.server.costs import Costs
from ferryman.server.inference.tensors import DATATYPES
from ferryman.specs import Target

NAME = "python -m ferryman.bench.serving"
_BARE = "bare loop"
_IDLE_S = 5.0  # two looks at the repository at least
app = typer.Typer(add_completion=False)


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


class LoadGenerator:
    """The process of `ferryman.bench.load`; made before a server is, since gRPC and forks don't go together."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ferryman.bench.load"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def connect(self, address: str, request: bytes, ca: Path | None = None) -> None:
        """Once, before the first order. request: what all its clients ask; ca: of a server with TLS"""
        self._send(f"{address} {len(request)} {ca or ''}\n".encode() + request)

    def __call__(self, order: Closed | Open) -> Outcome:
        self._send(order.model_dump_json().encode() + b"\n")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise FerrymanError("the process that makes the load has ended")
        return Outcome.model_validate_json(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()


class MeteredSession(Session):
    """Another one, and the processor time of the threads that ran it. Closed with it."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.spec)
        self._session = session
        self.cpu_s = 0.0

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        start = time.thread_time()
        try:
            return self._session.run(inputs)
        finally:
            self.cpu_s += time.thread_time() - start

    def attest(self, inputs: Arrays) -> Attestation:
        return self._session.attest(inputs)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return self._session.run(inputs)

    def _close(self) -> None:
        self._session.close()


def make_request(bundle: Bundle, model: str) -> tuple[bytes, Arrays]:
    """A request for one picture as ready tensors, the model's first golden sample, and the inputs that it becomes."""
    inputs = bundle.golden().batch([0])
    request = pb.ModelInferRequest(model_name=model)
    for spec in bundle.spec.inputs:
        array = inputs[spec.name].astype(spec.dtype, copy=False)
        request.inputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString(), inputs


def run_bare(session: Session, inputs: Arrays, seconds: float) -> list[Block]:
    latencies: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        session.run(inputs)
        latencies.append((time.perf_counter() - now) * 1e3)
    elapsed, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return [Block(images=len(latencies), seconds=elapsed, cpu_s=cpu_s, latencies_ms=tuple(latencies))]


def run_clients(
    load: Callable[[Closed], Outcome],
    clients: int,
    seconds: float,
    cpu: Callable[[], float] = time.process_time,
    session: MeteredSession | None = None,
) -> list[Block]:
    """cpu: processor time of the server until now, in seconds; by default of this process

    session: that the server runs, one thread at a time, None where that is not known
    """
    before, run_before = cpu(), 0.0 if session is None else session.cpu_s
    found = load(Closed(clients=clients, seconds=seconds))
    cpu_s = cpu() - before
    if set(found.codes) != {"OK"}:
        raise FerrymanError(f"{clients} clients got {found.codes}; all should be answered")
    images = len(found.latencies_ms)
    return [
        Block(
            images=images,
            seconds=found.seconds,
            cpu_s=cpu_s,
            latencies_ms=tuple(found.latencies_ms),
            run_cpu_s=None if session is None else session.cpu_s - run_before,
        )
    ]


def measure_idle(seconds: float) -> float:
    """The share of one processor that this process takes while nobody asks its server."""
    cpu, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return (time.process_time() - cpu) / (time.perf_counter() - start)


def run_pressed(load: LoadGenerator, costs: Costs, seconds: float) -> PressedRow:
    """Clients in a closed loop: who is refused asks again at once."""
    clients, full_batch_s = costs.best + 2, costs.measured[costs.best]
    found = load(Closed(clients=clients, seconds=seconds, timeout=2 * full_batch_s))
    return PressedRow(
        clients=clients,
        full_batch_ms=full_batch_s * 1e3,
        seconds=seconds,
        codes=found.codes,
        p99_ms=_p99(found.latencies_ms),
    )


def run_overload(load: LoadGenerator, bare_rate: float, times: float, seconds: float, timeout: float) -> OverloadRow:
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
    model_cpus: Annotated[
        str | None, typer.Option(help="Processors for the session alone, such as 0; see `ferryman serve`.")
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="At a time, repeatable; by default 1, 4, 16.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of measuring each row.")] = 24.0,
    rounds: Annotated[int, typer.Option(min=1)] = 12,
    overload: Annotated[float, typer.Option(min=0, help="Seconds of three times the bare loop's rate; 0: none.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Of each request under overload, in seconds.")] = 0.5,
    plain: Annotated[bool, typer.Option(help="Measure plain handlers of gRPC as well.")] = True,
    mlserver_python: Annotated[
        Path | None,
        typer.Option(
            "--mlserver", metavar="PYTHON", help="Of an environment with mlserver and openvino: measure it too."
        ),
    ] = None,
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
        model_cpus=model_cpus,
        certify=True,
    )
    with show_stages() as show, ExitStack() as opened:
        show("load", 0, 1)
        count = 1 + plain * len(PLAIN) + (mlserver_python is not None)
        generators = [opened.enter_context(LoadGenerator()) for _ in range(count)]
        server = opened.enter_context(serving(config))
        engine = asyncio.run(server.models.get(server.models.names[0]))
        bundle, built = engine.model.bundle, Target.parse(engine.model.target)
        session = MeteredSession(engine.model.sessions[0])
        engine.model = replace(engine.model, sessions=(session, *engine.model.sessions[1:]))
        metered = session if threads == 1 else None  # of more than one, others compute beside the one that runs it
        show("idle", 0, 1)
        idle_cpu = measure_idle(min(seconds, _IDLE_S))
        request, inputs = make_request(bundle, engine.model.name)
        servers: list[tuple[str, str, Callable[[], float], MeteredSession | None]] = [
            ("", server.address, time.process_time, metered)
        ]
        expected = session.run(inputs)
        peers: list[Peer] = []
        for kind in PLAIN if plain else ():
            show(f"start {PLAIN[kind]}", 0, 1)
            peers.append(opened.enter_context(plain_handler(kind, bundle, built, threads, request, expected)))
        if mlserver_python is not None:
            show("start MLServer", 0, 1)
            python = mlserver_python
            peers.append(opened.enter_context(mlserver(python, bundle, built, threads, request, expected)))
        servers += [(f"{peer.name}, ", peer.address, peer.cpu_s, None) for peer in peers]
        measures: dict[str, Callable[[float], list[Block]]] = {_BARE: partial(run_bare, session, inputs)}
        for (name, address, cpu, runs), load in zip(servers, generators, strict=True):
            load.connect(address, request)
            for count in clients or (1, 4, 16):
                measures[f"{name}{count} clients"] = partial(run_clients, load, count, cpu=cpu, session=runs)
        blocks = run_in_turn(measures, seconds, rounds, partial(show, "measure"))
        flat = {what: [block for found in rows for block in found] for what, rows in blocks.items()}
        bare = flat[_BARE]
        rate = float(np.median([one.images / one.seconds for one in bare]))
        show("two clients too many", 0, 1)
        pressed = run_pressed(generators[0], engine.model.costs[0], seconds)
        floods: list[OverloadRow] = []
        if overload:
            show("overload", 0, 1)
            floods.append(run_overload(generators[0], rate, 3.0, overload, timeout))
        costs = engine.model.costs[0]
        document = Document(
            device=read_device(),
            model=engine.model.name,
            target=engine.model.target,
            threads=threads,
            rounds=rounds,
            request_bytes=len(request),
            idle_cpu=idle_cpu,
            batch_ms={size: took * 1e3 for size, took in costs.measured.items()},
            best=costs.best,
            closed=tuple(summarise(what, bare, found) for what, found in flat.items()),
            pressed=pressed,
            overload=tuple(floods),
            preprocessing=measure_preprocessing([make_jpeg()]),
        )
    print_document(document)
    if json_file is not None:
        write_text(json_file, document.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main(app, NAME)
