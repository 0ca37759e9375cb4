"""`ferryman bench`: how fast a model answers, in this process or through a server, so that it can be believed."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ferryman import __version__
from ferryman.accuracy import Truth, measure_accuracy, read_truth
from ferryman.bench.clock import ClockFacts, measure_clock
from ferryman.bench.compare import check_scenarios
from ferryman.bench.energy import Meters, open_meters
from ferryman.bench.harness import Plan
from ferryman.bench.machine import read_machine, read_state
from ferryman.bench.noise import find_disturbance, find_noise, find_throttling
from ferryman.bench.page import check_page, write_page
from ferryman.bench.percentiles import PERCENTILES, check_percentiles
from ferryman.bench.pictures import Pictures, encode_golden, read_pictures
from ferryman.bench.record import BenchRecord, BlockRecord, RunRecord, read_record
from ferryman.bench.report import report_latency
from ferryman.bench.samples import Block
from ferryman.bench.tools import Compared
from ferryman.bench.turns import Ratio, compare_speed
from ferryman.bundle import Bundle
from ferryman.commands.bench.compare import check_jobs, check_tools, compare_tools
from ferryman.commands.bench.contenders import Contender
from ferryman.commands.bench.diff import check_baseline, parse_share
from ferryman.commands.bench.open import open_contenders
from ferryman.commands.bench.options import BenchOptions, Places
from ferryman.commands.bench.progress import show_measuring
from ferryman.commands.bench.ready import Ready, make_ready
from ferryman.commands.bench.report import Show, show_records
from ferryman.commands.bench.scenarios import measure
from ferryman.commands.bench.workload import Found, Workload
from ferryman.commands.console import out, print_json
from ferryman.errors import FerrymanError, FileAccessError, ParityError, UsageError
from ferryman.runtimes.base import Settings


def run_bench(places: Places, images: Sequence[Path], options: BenchOptions, show: Show) -> None:
    """Times the pictures in `images`, or the bundle's golden samples, and prints what was found.

    What was measured before an error or Ctrl-C is printed before that is raised. Raises ParityError (exit status 3)
    for wrong answers, SystemExit 1 for what is unreliable when `strict`, RegressionError.
    """
    baseline = read_baseline(options)
    if options.html is not None:
        check_page()
    bundle = None if places.bundle is None else Bundle.open(places.bundle)
    truth = read_labelled(bundle, options.accuracy)
    workload, clock = options.workload(), measure_clock()
    if workload.axis not in (None, "clients") and bundle is None:
        raise UsageError(f"{workload.scenario} is of a bundle's own sessions: give a bundle instead of --address")
    check_settings(workload, places.settings)
    comparing = check_tools(options.compare, places)
    if workload.tensors and bundle is not None and images:
        raise UsageError(f"--image belongs to other scenarios: {workload.scenario} runs the golden samples as tensors")
    pictures = choose_pictures(bundle, images)
    percentiles = check_percentiles(options.percentiles)
    plan = Plan(options.seconds, len(pictures.images), percentiles, options.at_most, max(2.0, options.seconds))
    opening = open_contenders(places, bundle)
    with show_measuring() as (progress, advance), opening as opened, choose_meters(opened.contenders) as meters:
        check_jobs(comparing, opened.contenders, pictures.images)
        ready = make_ready(opened.contenders, progress)
        before = read_state()
        found = measure(workload, plan, ready.contenders, pictures.images, advance, meters)
        distant = {one.name for one in ready.contenders if not one.nearby}
        found.forget_joules(distant)
        after, counted, compared = read_state(), None, list[Compared]()
        try:
            if found.error is None:
                ready.check("after")
            if found.error is None and bundle is not None and truth is not None:
                counted = measure_accuracy(bundle, ready.targets, truth, places.settings, progress, ready.others)
            if found.error is None:
                for one in compare_tools(comparing, ready.contenders, pictures.images, options.seconds, progress):
                    compared.append(one)
        except (FerrymanError, SystemExit) as late:  # what was measured is not lost with it
            found.error = late
        shown = percentiles or (PERCENTILES if workload.axis is None else (50.0,))
        runs = make_runs(ready, found, clock, shown)
    machine = read_machine()
    reasons = find_disturbance(
        found.disturbance, machine.device.cores, alone=places.server is None or bool(distant), crowded=workload.crowded
    )
    record = BenchRecord(
        ferryman=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["ferryman", *sys.argv[1:]]),
        scenario=workload.scenario,
        model=opened.contenders[0].model,
        bundle_digest=opened.bundle_digest,
        address=None if places.server is None else places.server.address,
        images=describe_images(pictures, workload, places),
        broken=pictures.broken,
        seconds=options.seconds,
        settings=record_settings(workload, places.settings),
        machine=machine,
        before=before,
        after=after,
        clock=clock,
        disturbance=found.disturbance,
        unreliable=(*opened.notes, *reasons, *find_throttling(before, after)),
        runs=runs,
        ratios=compare_runs(runs, workload),
        refused=ready.refused,
        ended=None if found.error is None else describe_end(found.error),
        clients=workload.clients if workload.scenario in ("server", "offline") else None,
        bound=found.bound,
        curves=found.curves,
        accuracy=counted,
        compared=tuple(compared),
        notes=describe_place(places, bool(distant)),
        read_ms=median(pictures.read_ms) if pictures.read_ms else None,
    )
    show_record(record, options.html, show)
    try:
        if found.error is not None:
            raise found.error
        judge(record, options.strict)
        if baseline is not None:
            check_baseline(baseline, record, parse_share(options.max_regression), show == "json")
    except FerrymanError as error:
        error.answered = show == "json"  # by the record, which is the only document
        raise


def read_baseline(options: BenchOptions) -> BenchRecord | None:
    """Before anything is measured. Raises UsageError for what is no record, or one of another scenario."""
    if options.baseline is None:
        return None
    baseline = read_record(options.baseline)
    check_scenarios(baseline.scenario, options.scenario)
    return baseline


def read_labelled(bundle: Bundle | None, place: Path | None) -> Truth[Any] | None:
    """Raises UsageError for a server, and what `read_truth` raises."""
    if place is None:
        return None
    if bundle is None:
        raise UsageError("--accuracy belongs to a bundle: give it instead of --address")
    return read_truth(place, bundle.spec)


def choose_pictures(bundle: Bundle | None, paths: Sequence[Path]) -> Pictures:
    """Raises UsageError where there are none, and what `read_pictures` raises."""
    if paths:
        return read_pictures(paths)
    if bundle is None:
        raise UsageError("--address needs --image: a server does not hand out its golden samples")
    return encode_golden(bundle)


def choose_meters(contenders: Sequence[Contender]) -> AbstractContextManager[Meters]:
    """This machine's, unless all that answer are on another one."""
    return open_meters() if any(one.nearby for one in contenders) else nullcontext(())


def describe_place(places: Places, distant: bool) -> tuple[str, ...]:
    """What a reader must know of a server on another machine; empty for others."""
    if places.server is None or not distant:
        return ()
    return (
        f"{places.server.address} is not this machine: joules of what it answers are left out, and the machine that is "
        "described is the one that asked",
    )


def check_settings(workload: Workload, settings: Settings) -> None:
    """Raises UsageError for what a curve is over, or chooses itself."""
    given = {"--threads": settings.threads, "--streams": settings.streams}
    wrong = [name for name, number in given.items() if number is not None and name == f"--{workload.axis}"]
    if workload.axis == "streams" and settings.hint != "latency":
        wrong.append("--hint")
    if wrong:
        raise UsageError(f"{workload.scenario} sets {', '.join(wrong)} itself: leave it out")


def record_settings(workload: Workload, settings: Settings) -> dict[str, int | str | None]:
    """Of the sessions that were measured; what differs between points stands in their names."""
    return dict(vars(replace(settings, hint="throughput") if workload.axis == "streams" else settings))


def describe_images(pictures: Pictures, workload: Workload, places: Places) -> str:
    if workload.tensors:
        return "the golden samples as tensors"
    return f"{pictures.what}, as tensors made beforehand" if places.tensors else pictures.what


def make_runs(ready: Ready, found: Found, clock: ClockFacts, percentiles: Sequence[float]) -> tuple[RunRecord, ...]:
    return tuple(
        RunRecord(
            name=name,
            contender=run.contender,
            images=run.images,
            warmup=run.warmup,
            blocks=tuple(map(BlockRecord.pack, run.blocks)),
            figures=report_latency(run, percentiles),
            unreliable=tuple(find_noise(run, clock, found.bound)),
            checks=tuple(ready.checks[run.contender]),
            cost=ready.costs[run.contender],
            proven=ready.proven[run.contender],
            trials=tuple(found.trials.get(name, ())),
            ended=found.ended.get(name),
        )
        for name, run in found.runs.items()
    )


def compare_runs(runs: Sequence[RunRecord], workload: Workload) -> dict[str, Ratio]:
    """Each but the first against it, over the rounds that both had; wrong answers are compared with nothing.

    By latency, or where several clients wait side by side by the time a request of each block. Empty for scenarios in
    which contenders take no turns.
    """
    if workload.scenario == "server" or workload.axis is not None or not runs[0].right:
        return {}
    offline = workload.scenario == "offline"
    blocks = {run.name: [_list_times(block, offline) for block in run.unpack().blocks] for run in runs if run.right}
    first, *others = blocks
    rounds = min(map(len, blocks.values()))
    return {name: compare_speed(blocks[first][:rounds], blocks[name][:rounds]) for name in others}


def _list_times(block: Block, throughput: bool) -> list[float]:
    return [block.seconds / len(block.latencies_ms)] if throughput else block.latencies_ms.tolist()


def describe_end(error: FerrymanError | SystemExit) -> str:
    return str(error) if isinstance(error, FerrymanError) else "it was told to stop"


def show_record(record: BenchRecord, html: Path | None, show: Show) -> None:
    """html: a page to write after all is shown: what took minutes must not be lost to a folder that can't be written

    Raises FileAccessError.
    """
    if show == "json":
        print_json(record.model_dump(mode="json"))
    else:
        show_records([record], show)
    if html is None:
        return
    try:
        write_page([record], html)
    except FileAccessError as error:
        error.answered = show == "json"
        raise
    if show == "text":
        out.print(f"written: {html}")


def judge(record: BenchRecord, strict: bool) -> None:
    """Raises ParityError for wrong answers, SystemExit 1 for what is unreliable when `strict`."""
    wrong = [*record.refused, *(run.name for run in record.runs if not run.right)]
    if wrong:
        raise ParityError(f"wrong answers are no result: {', '.join(wrong)}")
    if strict and record.reasons:
        raise SystemExit(FerrymanError.exit_status)
