"""`python -m ferryman.bench.scaling --help`: what a load needs in servers, queues, network, by a curve of batches."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from ferryman.__main__ import main
from ferryman.bench.fleet import Floats, Outcome, Pick, Server, cameras, least_busy, poisson, simulate, stay
from ferryman.bench.noise import STALL_TIMES
from ferryman.bench.published import Published, read_published
from ferryman.bench.record import BenchRecord, read_record
from ferryman.commands.console import make_table, out, print_table, show_stages
from ferryman.errors import UsageError
from ferryman.files import write_text
from ferryman.server.costs import Costs
from ferryman.specs import Facts, Target

NAME = "python -m ferryman.bench.scaling"
_REFUSED = 0.001  # of the requests, at the most, for a fleet that is large enough
_FEWEST = 1000  # requests of a simulation, however few a second come
_FULL = 0.95  # of what it could answer, likewise: the queue of one that is full grows for ever, slowly at first
app = typer.Typer(add_completion=False)


class Load(Facts):
    """What is asked. spread_s: of cameras' phases, None for the whole time of a frame; cameras 0: `rate` of others"""

    name: str
    rate: float
    cameras: int = 0
    fps: float = 0.0
    spread_s: float | None = None

    def arrivals(self, seconds: float, seed: int) -> tuple[Floats, NDArray[np.int64]]:
        """Times, and the source of each."""
        random = np.random.default_rng(seed)
        if self.cameras:
            return cameras(self.cameras, self.fps, seconds, random, self.spread_s)
        times = poisson(self.rate, seconds, random)
        return times, np.arange(len(times))


class Prices(Facts):
    """Of one picture, in milliseconds, and KB. own: of a server's processors beside its model; process: of that in the
    one thread that Python has at a time; hop: of the balancer's processors; picture_kb: as it is sent
    accelerated: the model runs elsewhere, so that `own` takes nothing from it
    """

    own_ms: float
    process_ms: float
    hop_ms: float
    picture_kb: float
    accelerated: bool = False


class Fleet(Facts):
    """So many servers, and what requests met there. queue: that 99.9 % of them found inside their server at most

    utilisation: of the time in which they ran: near 1 long before they are full, since batches grow only then
    """

    servers: int
    utilisation: float
    batch: float
    p50_ms: float
    p99_ms: float
    refused: float
    queue: int


class Plan(Facts):
    """floor: servers that can do it at best; fleet: the smallest that keeps the bound, by calls that each go to the
    server with the fewest; None where none does

    pinned: likewise, where each camera stays on the server that its stream began on; None without cameras
    mbit_s: of pictures, before the balancer and again behind it; balancer_cores: that it takes
    own_cores: that pictures take beside an accelerator; None where the model runs on the processors
    """

    load: Load
    floor: int
    fleet: Fleet | None
    pinned: Fleet | None
    mbit_s: float
    balancer_cores: float
    own_cores: float | None = None


class Limits(Facts):
    """Requests a second at which each part is full, whatever the others do. core_beside_it: beside an accelerator"""

    server_model: float
    core_beside_it: float | None = None
    server_process: float
    balancer_core: float
    network_10gbit: float


class Document(Facts):
    """unreliable: reasons, a line each, for which the curve is not to be relied on

    published: whose figures these are, where they were not measured by `ferryman bench`
    """

    model: str
    target: str
    unreliable: tuple[str, ...]
    published: Published | None = None
    processor: str
    threads: int | str | None
    batch_ms: dict[int, float]
    best: int
    deadline_ms: float
    bound_ms: float
    prices: Prices
    limits: Limits
    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Basis:
    """What is known of a server. costs: of batches, by the server's rule; draw: what one run takes, by its size

    unreliable, published: as in the document
    """

    model: str
    target: str
    processor: str
    costs: Costs
    draw: Callable[[int], float]
    threads: int | str | None = None
    unreliable: tuple[str, ...] = ()
    published: Published | None = None

    @property
    def accelerated(self) -> bool:
        return _is_accelerated(self.target)


def _is_accelerated(target: str) -> bool:
    return Target.parse(target).device != "cpu"


def basis_from_record(record: BenchRecord, target: str | None, own_s: float) -> Basis:
    """Runs are drawn from those that were measured.

    own_s: of a processor for each picture, beside its model: decoding, gRPC; it is added to the run, as on a server all
    of whose processors the model keeps busy, and not to that of an accelerator
    Raises UsageError for a record that holds no such curve.
    """
    if record.scenario != "batch-curve" or not record.curves:
        raise UsageError(
            "there is no curve of batches in it; make one: ferryman bench BUNDLE --scenario batch-curve --json"
        )
    name = target or next(iter(record.curves))
    if name not in record.curves:
        raise UsageError(f"the record holds no curve of {name}; it has {', '.join(record.curves)}")
    added_s = 0.0 if _is_accelerated(name) else own_s
    costs = Costs({int(one.at): one.median_ms / 1e3 + one.at * added_s for one in record.curves[name].points})
    runs = [run.unpack() for run in record.runs if run.contender == name]
    factors = np.concatenate([run.latencies_ms / np.median(run.latencies_ms) for run in runs])
    factors = factors[factors <= STALL_TIMES]  # a stall tells of what else the machine did that measured
    random = np.random.default_rng(0)

    def draw(size: int) -> float:
        return costs.seconds(size) * float(factors[random.integers(len(factors))])

    threads, processor = record.settings.get("threads"), record.machine.device.cpu
    return Basis(record.model, name, processor, costs, draw, threads, tuple(record.reasons))


def basis_from_published(curve: Published, own_s: float) -> Basis:
    """Every run takes what its batch takes, as nothing is said of how they differ. own_s: as above"""
    added_s = 0.0 if _is_accelerated(curve.target) else own_s
    costs = Costs({size: took / 1e3 + size * added_s for size, took in curve.batch_ms.items()})
    return Basis(curve.model, curve.target, curve.device, costs, costs.seconds, published=curve)


def plan(load: Load, server: Server, prices: Prices, bound_s: float, seconds: float, most: int) -> Plan:
    """The smallest fleet that refuses at most a thousandth and answers 99 % within the bound, for ever. most: tried"""
    floor = ceil(round(load.rate * image_s(server), 6))  # and no more for the last bit of a float
    times, sources = load.arrivals(max(seconds, _FEWEST / load.rate), seed=1)

    def find(pick: Callable[[int], Pick]) -> Fleet | None:
        def run(count: int) -> Outcome:
            return simulate(times, server, count, pick(count))

        def keeps(outcome: Outcome) -> bool:
            return outcome.refused <= _REFUSED and outcome.percentile_s(99) <= bound_s

        high = ceil(round(load.rate * image_s(server) / _FULL, 6))
        low = high - 1
        while high <= most and not keeps(run(high)):
            low, high = high, ceil(high * 1.25) + 1
        while high - low > 1 and high <= most:
            middle = (low + high) // 2
            low, high = (low, middle) if keeps(run(middle)) else (middle, high)
        return None if high > most else _describe(high, run(high))

    return Plan(
        load=load,
        floor=floor,
        fleet=find(lambda count: least_busy),
        pinned=find(lambda count: stay(count, sources)) if load.cameras else None,
        mbit_s=load.rate * prices.picture_kb * 8e-3,
        balancer_cores=load.rate * prices.hop_ms / 1e3,
        own_cores=load.rate * prices.own_ms / 1e3 if prices.accelerated else None,
    )


def image_s(server: Server) -> float:
    """Of a server for one picture in the best batch, on average."""
    return float(np.mean([(server.draw or server.seconds)(server.best) for _ in range(1000)])) / server.best


def _describe(servers: int, outcome: Outcome) -> Fleet:
    return Fleet(
        servers=servers,
        utilisation=outcome.utilisation,
        batch=outcome.batch,
        p50_ms=outcome.percentile_s(50) * 1e3,
        p99_ms=outcome.percentile_s(99) * 1e3,
        refused=outcome.refused,
        queue=int(np.percentile(outcome.inside, 99.9)),
    )


def print_document(document: Document) -> None:
    batches = ", ".join(f"{size}: {took:.2f}" for size, took in document.batch_ms.items())
    threads = "" if document.published else f", threads {document.threads}"
    out.print(f"{document.model}, {document.target}, on {document.processor}{threads}")
    if document.published:
        out.print(f"not measured by us: {document.published.source}, {document.published.url}", soft_wrap=True)
        for caveat in document.published.caveats:
            out.print(f"  {caveat}", soft_wrap=True)
    out.print(f"ms of a batch, all included: {batches}; the largest that helps: {document.best}")
    if document.unreliable:
        out.print(
            f"the curve is unreliable for {len(document.unreliable)} reasons, which `ferryman bench report` tells"
        )
    beside = ("cores beside",) if document.prices.accelerated else ()
    table = make_table("load", "servers", "busy", "batch", "p50 ms", "p99 ms", "refused", "queue", "Mbit/s", "balancer",
                       *beside, numbers=tuple(range(1, 10 + len(beside))))  # fmt: skip
    for one in document.plans:
        kinds = (("", one.fleet), (", a stream each", one.pinned))
        for what, fleet in kinds if one.load.cameras else kinds[:1]:
            if fleet is None:
                table.add_row(one.load.name + what, "none keeps it", *[""] * (8 + len(beside)))
                continue
            figures = (f"{fleet.servers}", f"{fleet.utilisation:.0%}", f"{fleet.batch:.1f}", f"{fleet.p50_ms:.1f}",
                       f"{fleet.p99_ms:.1f}", f"{fleet.refused:.2%}", f"{fleet.queue}")  # fmt: skip
            needs = (f"{one.mbit_s:,.0f}", f"{one.balancer_cores:.1f} cores")
            own = () if one.own_cores is None else (f"{one.own_cores:.1f}",)
            table.add_row(one.load.name + what, *figures, *needs, *own)
    print_table(table)
    table = make_table("what is full", "requests/s", numbers=(1,))
    limits = [(name, value) for name, value in document.limits if value is not None]
    for name, value in sorted(limits, key=lambda pair: pair[1]):
        table.add_row(name.replace("_", " "), f"{value:,.0f}")
    print_table(table)


@app.command()
def scale(
    curve: Annotated[
        Path,
        typer.Argument(
            help="What `ferryman bench BUNDLE --scenario batch-curve --json` wrote; or a published curve, *.toml."
        ),
    ],
    target: Annotated[str | None, typer.Option(help="By default the first that was measured.")] = None,
    deadline: Annotated[float, typer.Option(min=1, help="Milliseconds until each request's deadline.")] = 500.0,
    bound: Annotated[float, typer.Option(min=1, help="Milliseconds within which 99 % must be answered.")] = 200.0,
    own: Annotated[
        float, typer.Option(min=0, help="Milliseconds of processor for a picture beside its model: decoding, gRPC.")
    ] = 3.0,
    process: Annotated[
        float, typer.Option(min=0.001, help="Milliseconds of those in the one thread that Python has at a time.")
    ] = 0.75,
    hop: Annotated[float, typer.Option(min=0.001, help="Milliseconds of the balancer's processor for a call.")] = 0.6,
    picture: Annotated[float, typer.Option(min=0.1, help="KB of a picture as it is sent.")] = 40.0,
    camera_count: Annotated[int, typer.Option("--cameras", min=1)] = 1000,
    fps: Annotated[float, typer.Option(min=0.01)] = 5.0,
    per_minute: Annotated[float, typer.Option(min=1, help="Requests a minute of the other load.")] = 1e6,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load to simulate.")] = 20.0,
    most: Annotated[int, typer.Option(min=1, help="Servers at the most.")] = 20_000,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The figures, as JSON.")] = None,
) -> None:
    """How many servers such as the measured one keep a load within a bound, by a simulation of their batchers.

    Nothing is measured here but what the record holds. A server of another kind, a GPU say, needs a curve of its own;
    beside one the processors are busy for --own, and it is not.
    """
    basis = (
        basis_from_published(read_published(curve), own / 1e3)
        if curve.suffix == ".toml"
        else basis_from_record(read_record(curve), target, own / 1e3)
    )
    server = Server(basis.costs.seconds, basis.costs.best, deadline_s=deadline / 1e3, draw=basis.draw)
    prices = Prices(own_ms=own, process_ms=process, hop_ms=hop, picture_kb=picture, accelerated=basis.accelerated)
    loads = (
        Load(name=f"{camera_count:,} cameras at {fps:g} fps", rate=camera_count * fps, cameras=camera_count, fps=fps),
        Load(name="the same, all within 10 ms", rate=camera_count * fps, cameras=camera_count, fps=fps, spread_s=0.01),
        Load(name=f"{per_minute:,.0f} requests a minute", rate=per_minute / 60),
    )
    plans: list[Plan] = []
    with show_stages() as show:
        for load in loads:
            show(load.name, len(plans), len(loads))
            plans.append(plan(load, server, prices, bound / 1e3, seconds, most))
    document = Document(
        model=basis.model,
        target=basis.target,
        unreliable=basis.unreliable,
        published=basis.published,
        processor=basis.processor,
        threads=basis.threads,
        batch_ms={size: took * 1e3 for size, took in basis.costs.measured.items()},
        best=basis.costs.best,
        deadline_ms=deadline,
        bound_ms=bound,
        prices=prices,
        limits=Limits(
            server_model=1 / image_s(server),
            core_beside_it=1e3 / own if basis.accelerated and own else None,
            server_process=1e3 / process,
            balancer_core=1e3 / hop,
            network_10gbit=10e9 / (picture * 8e3),
        ),
        plans=tuple(plans),
    )
    print_document(document)
    if json_file is not None:
        write_text(json_file, document.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main(app, NAME)
