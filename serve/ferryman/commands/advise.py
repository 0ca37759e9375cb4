"""`ferryman advise`: which variant to use on this machine, from measuring them in turn."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ferryman import __version__
from ferryman.accuracy import AccuracyReport, measure_accuracy, read_truth
from ferryman.bench.advice import Advice, Measured, Proof, advise, describe_error, measure_speed, summarize_proof
from ferryman.bench.advice_plot import check_plot, plot_advice
from ferryman.bench.turns import ROUNDS, Blocks, run_in_turn, time_session
from ferryman.bundle import Bundle
from ferryman.certificates import read_certificate
from ferryman.commands.accuracy import print_pictures
from ferryman.commands.console import StageProgress, make_table, out, print_json, print_table, show_stages
from ferryman.commands.verify import choose_targets, none_can_run
from ferryman.device import read_device
from ferryman.errors import CertificateError, EngineError, FileAccessError
from ferryman.proof import read_reports
from ferryman.runtimes import open_session
from ferryman.runtimes.base import Session, Settings
from ferryman.specs import Target


def run_advise(
    path: Path,
    names: Sequence[str],
    seconds: float,
    folder: Path | None,
    accuracy: Path | None,
    plot: Path | None,
    settings: Settings,
    json_output: bool,
) -> None:
    """Measures the targets named, or every one that can run here, and prints what they are good for.

    seconds: of each target; folder: of the certificates; plot: a PNG file to draw
    accuracy: labelled pictures to count right answers on
    Raises EngineError when none can run here, or one that is named can't, UsageError for a target that the bundle has
    not; and, with the advice printed, FileAccessError when the plot can't be written.
    """
    if plot is not None:
        check_plot(plot)
    bundle = Bundle.open(path)
    targets, reasons = choose_targets(bundle, names)
    with show_stages() as show:
        truth = None if accuracy is None else read_truth(accuracy, bundle.spec, show)
        left_out = None if names else reasons
        measured, latencies, reasons = measure_targets(bundle, targets, seconds, folder, settings, show, left_out)
        able = [one for one in targets if one not in reasons]
        counted = None if truth is None else measure_accuracy(bundle, able, truth, settings, show)
    if counted is not None:
        measured = [one.model_copy(update={"accuracy": counted.value(one.target)}) for one in measured]
    advice = advise(measured, latencies)
    height, width = bundle.spec.preprocess.size
    device = read_device()
    if json_output:
        facts = {"ferryman": __version__, "bundle": f"{bundle.name}/{bundle.version}", "bundle_digest": bundle.digest}
        facts |= {"device": device.model_dump(mode="json"), "settings": vars(settings)}
        facts |= {"size": [height, width], "seconds": seconds, "rounds": ROUNDS}
        facts |= advice.model_dump(mode="json")
        if counted is not None:
            facts |= {"accuracy": counted.model_dump(mode="json")}
        print_json(facts | {"can_not_run": {str(one): why for one, why in reasons.items()}})
    else:
        out.print(f"{bundle.name} at {height}x{width}, one picture at a time, {ROUNDS} rounds in turn, on {device.cpu}")
        print_advice(advice, counted)
        for one, why in reasons.items():
            out.print(f"{one} can't run here: {why}")
    if plot is None:
        return
    # Last: what took minutes to measure must not be lost to a folder that can't be written.
    drawn = advice.recommended is not None
    if drawn:
        try:
            plot_advice(
                advice, f"{bundle.name} at {height}x{width}, one picture at a time\n{device.cpu}", plot, counted
            )
        except FileAccessError as error:
            error.answered = json_output
            raise
    if not json_output:
        out.print(f"drawn: {plot}" if drawn else "nothing is drawn: no variant may be used")


def measure_targets(
    bundle: Bundle,
    targets: Sequence[Target],
    seconds: float,
    folder: Path | None,
    settings: Settings,
    show: StageProgress,
    left_out: Mapping[Target, str] | None = None,
) -> tuple[list[Measured], Mapping[str, Blocks], dict[Target, str]]:
    """Those that can be loaded, with their latencies, and why the others can't. Of several sizes the first is measured.

    left_out: why others were not tried; None when those in `targets` were named, and none may be left out
    Raises EngineError when none can be loaded, or one that was named can't.
    """
    failed = dict(left_out or {})
    sessions: dict[str, tuple[Target, Session, float]] = {}
    golden = bundle.golden()
    with ExitStack() as opened:
        for target in targets:
            show(f"load {target}", 0, 1)
            start = time.perf_counter()
            try:
                session = opened.enter_context(open_session(bundle, str(target), settings=settings))
            except EngineError as error:
                if left_out is None:
                    raise
                failed[target] = str(error)
                continue
            sessions[str(target)] = target, session, time.perf_counter() - start
        if not sessions:
            raise none_can_run(bundle, failed)
        measures = {name: partial(time_session, session, golden) for name, (_, session, _) in sessions.items()}
        latencies = run_in_turn(measures, seconds, advance=partial(show, "measure in turn"))
    first = next(iter(latencies.values()))
    measured: list[Measured] = []
    for name, (target, _, load_s) in sessions.items():
        median, runs, ratio = measure_speed(latencies[name], first)
        size = bundle.size_bytes(bundle.variants(name)[0])
        proof = find_proof(bundle, target, folder)
        measured.append(
            Measured(target=name, median_ms=median, ratio=ratio, runs=runs, load_s=load_s, size_bytes=size, proof=proof)
        )
    return measured, latencies, failed


def find_proof(bundle: Bundle, target: Target, folder: Path | None) -> Proof | None:
    """From the certificate of this device where there is one, else what the export measured."""
    try:
        return summarize_proof(read_certificate(bundle, target, folder).reports, "here")
    except CertificateError:
        return summarize_proof(read_reports(bundle, target), "at export")


def print_advice(advice: Advice, counted: AccuracyReport | None = None) -> None:
    """A row a variant, then the recommendation and why. counted: the accuracy of each, where it was measured"""
    first = advice.variants[0].target
    table = make_table(
        "variant", "median ms", f"times as fast as {first}", "worst error", "agreement", "measured", "MB", "load s",
        "" if counted is None else counted.figure, "",
        numbers=(1, 2, 3, 4, 6, 7, 8),
    )  # fmt: skip
    for one in advice.variants:
        table.add_row(
            one.target,
            f"{one.median_ms:.2f}",
            f"{one.ratio.value:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})",
            *_describe_proof(one.proof),
            f"{one.size_bytes / 1e6:.1f}",
            f"{one.load_s:.2f}",
            "" if counted is None else f"{counted.value(one.target):.3f}",
            "on the front" if one.target in advice.front else "",
        )
    print_table(table)
    if counted is not None:
        print_pictures(counted)
    out.print()
    for reason in advice.reasons:
        out.print(reason)


def _describe_proof(proof: Proof | None) -> tuple[str, str, str]:
    if proof is None:
        return "-", "-", "never"
    shares = [share for share in (proof.top1_agreement, proof.matched_detections) if share is not None]
    return describe_error(proof.error), ", ".join(f"{share:.2%}" for share in shares) or "-", proof.measured
