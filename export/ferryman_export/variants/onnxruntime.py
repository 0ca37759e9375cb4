"""ONNX Runtime's variants beside the canonical one, but for those that are typed graphs (`typed`)."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from ferryman.bench.turns import Blocks, compare_speed, run_in_turn, time_session
from ferryman.errors import ParityError
from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.islands import IslandReport
from ferryman_export.onnx import count_operators, save_graph
from ferryman_export.variants.base import Artefact, BuildReport, Candidate, Workpiece
from ferryman_export.variants.integer import Style, quantize_within
from ferryman_export.variants.judge import Bench
from ferryman_export.variants.typed import save_typed

# ONNX Runtime convolves in 8 bits only where the answer is in 8 bits too.
STYLES = {
    "static": Style(answers="sums", form="onnxruntime"),
    "static, sums in fp32": Style(answers="convolutions", form="onnxruntime"),
    "dynamic": Style(methods=("dynamic",), answers="sums", form="onnxruntime"),
}
_PICTURES = 4  # to time, which takes as long for one as for another
_ROUNDS = 12
_SECONDS = 6.0  # for each candidate
_CLEARLY = 1.1  # times as fast, at the lower end of the 95 % interval


@dataclass(frozen=True)
class Built:
    """A graph within tolerance, how it was found, and what stayed in floating point"""

    model: onnx.ModelProto
    report: BuildReport
    islands: IslandReport

    @property
    def error(self) -> float:
        """On the held-out pictures."""
        return self.islands.curve[-1].error


def reuse_fp32(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """The canonical graph, where it lies."""
    del tolerance, path
    operators = count_operators(onnx.load(piece.graph, load_external_data=False))
    return Artefact(piece.graph, operators, BuildReport(target=str(target), size=piece.spec.preprocess.size))


def build_plain_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """For providers that make their own of a QDQ graph."""
    model, report = quantize_within(piece, target, tolerance)
    return save_typed(model, path, report)


def build_int8(piece: Workpiece, target: Target, tolerance: Tolerance, path: Path) -> Artefact:
    """Ranges found on the calibration pictures, or dynamic, found as it runs: what is better, as measured here.

    Raises UsageError without calibration pictures, ParityError when neither is within tolerance.
    """
    piece.need_calibration(target)
    bench, found, missed = Bench(piece, target, tolerance), dict[str, Built](), list[Candidate]()
    for name, style in STYLES.items():
        if style.answers == "convolutions" and not piece.quantizer.has_sums():
            continue
        try:
            found[name] = _build(bench, style)
        except ParityError as error:
            missed.append(Candidate(name=name, why=str(error)))
    if not found:
        raise ParityError("; ".join(f"{one.name}: {one.why}" for one in missed))
    candidates = choose(found, _time(bench, found) if len(found) > 1 else {})
    best = found[candidates[0].name]
    report = best.report.model_copy(update={"candidates": (*candidates, *missed)})
    # Not `save_typed`, which counts products of plain ONNX only.
    return Artefact(save_graph(best.model, path.with_name(f"{path.name}.onnx")), count_operators(best.model), report)


def _build(bench: Bench, style: Style) -> Built:
    """Raises ParityError when it is out of tolerance, or not in 8 bits."""
    model, report = quantize_within(bench.piece, bench.target, bench.tolerance, style)
    with bench.load(model) as session:
        failures = session.attest(bench.piece.held_out.batch([0])).find_failures(bench.target.precision)
    if failures:
        raise ParityError(f"{bench.target}: {failures[0]}")
    assert report.islands is not None
    return Built(model, report, report.islands)


def _time(bench: Bench, found: Mapping[str, Built]) -> Mapping[str, Blocks]:
    """Milliseconds of single pictures, in rounds, of each graph in turn."""
    bench.piece.progress(f"{bench.target}: measure {' and '.join(found)}", 0, 1)
    pictures = bench.piece.held_out.first(_PICTURES)
    with ExitStack() as opened:
        measures = {
            name: partial(time_session, opened.enter_context(bench.load(one.model)), pictures)
            for name, one in found.items()
        }
        return run_in_turn(measures, _SECONDS, _ROUNDS)


def choose(found: Mapping[str, Built], blocks: Mapping[str, Blocks]) -> tuple[Candidate, ...]:
    """The fastest first, if it is clearly faster than those that err less; else the one that errs least.

    blocks: latencies of the same rounds, none where there is one candidate
    """
    by_error = sorted(found, key=lambda name: found[name].error)
    best = by_error[0]
    for name in by_error[1:]:
        if compare_speed(blocks[best], blocks[name]).low > _CLEARLY:
            best = name
    order = sorted(by_error, key=lambda name: name != best)
    medians = {name: float(np.median(np.concatenate(blocks[name]))) for name in blocks}
    return tuple(Candidate(name=name, error=found[name].error, latency_ms=medians.get(name)) for name in order)
