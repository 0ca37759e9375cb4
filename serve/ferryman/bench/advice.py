"""Which variant to use, from what was measured of each: speed, error, and whether it is within tolerance."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ferryman.bench.turns import Blocks, Ratio, compare_speed
from ferryman.parity import TOLERANCES, ParityReport
from ferryman.specs import Facts, Fraction, Target

# A lower precision costs calibration, proof and some answers: a tenth of the time is the least that pays for it.
WORTH = 1.1
LOSS = 0.01  # of accuracy, a point: more than that is not given for speed


class Proof(Facts):
    """How far a variant is from PyTorch, and where that was measured.

    error: the largest of any answer, absolute for those in [0, 1] (probabilities, boxes), relative to the scale of
    embeddings and masks, None where the reports hold none; the shares are the lowest of any size, None for the tasks
    that have none
    """

    measured: Literal["here", "at export"]
    passed: bool
    error: Annotated[float, Field(ge=0)] | None
    top1_agreement: float | None
    matched_detections: float | None


class Measured(Facts):
    """One variant on this machine. ratio: to the first variant measured; runs: that were timed; proof: None for none

    accuracy: top-1 or mAP on labelled pictures, None where there were none
    """

    target: str
    median_ms: float
    ratio: Ratio
    runs: int
    load_s: float
    size_bytes: int
    proof: Proof | None
    accuracy: Fraction | None = None

    @property
    def precision(self) -> str:
        return Target.parse(self.target).precision


class Advice(Facts):
    """front: variants to which no other within tolerance is at once as fast and as exact, fastest first

    recommended: None when no variant is proved to be within tolerance; reasons: a line each, that of the recommendation
    first
    """

    variants: tuple[Measured, ...]
    front: tuple[str, ...]
    recommended: str | None
    reasons: tuple[str, ...]


def summarize_proof(reports: Sequence[ParityReport], measured: Literal["here", "at export"]) -> Proof | None:
    """Of a target's reports, one a size; None when there are none."""
    if not reports:
        return None
    limits = TOLERANCES["fp32"]
    errors = [error for report in reports for error in report.errors]
    found = [error.max_abs for error in errors if error.output in limits.max_abs]
    found += [error.max_rel for error in errors if error.output in limits.max_rel]
    agreements = [report.top1_agreement for report in reports if report.top1_agreement is not None]
    matched = [report.matched_detections for report in reports if report.matched_detections is not None]
    return Proof(
        measured=measured,
        passed=all(report.passed for report in reports),
        error=max(found, default=None),
        top1_agreement=min(agreements, default=None),
        matched_detections=min(matched, default=None),
    )


def measure_speed(latencies: Blocks, first: Blocks) -> tuple[float, int, Ratio]:
    """Median in milliseconds, number of runs, and the ratio to the variant measured beside it."""
    runs = np.concatenate([np.asarray(block) for block in latencies])
    return float(np.median(runs)), len(runs), compare_speed(first, latencies)


def choose_front(variants: Sequence[Measured]) -> tuple[str, ...]:
    """Pareto's: the fastest, and each slower one that is more exact than all that are faster."""
    front: list[str] = []
    least = float("inf")
    for one in sorted(variants, key=lambda one: (one.median_ms, _error(one))):
        if _error(one) < least:
            least = _error(one)
            front.append(one.target)
    return tuple(front)


def advise(variants: Sequence[Measured], latencies: Mapping[str, Blocks]) -> Advice:
    """Goes from the most exact variant to the least, and takes a step only where it is faster than the noise.

    fp32 variants stand in the order of the bundle, since their errors are rounding; a step to a lower precision must
    be worth it, and must not lose accuracy where that was measured. latencies: of each target
    """
    usable = [one for one in variants if one.proof is not None and one.proof.passed]
    reasons = [_refuse(one) for one in variants if one not in usable]
    if not usable:
        return Advice(variants=tuple(variants), front=(), recommended=None, reasons=tuple(reasons))
    floats = [one for one in usable if one.precision == "fp32"]
    lower = sorted((one for one in usable if one not in floats), key=_error)
    best, *others = *floats, *lower
    for one in others:
        ratio = compare_speed(latencies[best.target], latencies[one.target])
        needed = 1.0 if one.precision == best.precision else WORTH
        if ratio.low > 1 and ratio.value >= needed and _lost(one, best) <= LOSS:
            best = one
        else:
            reasons.append(_decline(one, best, ratio))
    return Advice(
        variants=tuple(variants),
        front=choose_front(usable),
        recommended=best.target,
        reasons=(_recommend(best, variants), *reasons),
    )


def _error(one: Measured) -> float:
    return float("inf") if one.proof is None or one.proof.error is None else one.proof.error


def _lost(one: Measured, best: Measured) -> float:
    """Accuracy that a step from `best` to `one` costs; 0 where it was not measured of both."""
    return 0.0 if one.accuracy is None or best.accuracy is None else best.accuracy - one.accuracy


def describe_error(error: float | None) -> str:
    """Two digits of it, `unknown` for None."""
    return "unknown" if error is None else f"{error:.2g}"


def _recommend(best: Measured, variants: Sequence[Measured]) -> str:
    first = variants[0]
    if len(variants) == 1:
        return f"Use {best.target}: it is the only variant that was measured"
    if best is first:
        return f"Use {best.target}: nothing within tolerance is faster by enough"
    return f"Use {best.target}: within tolerance, and {best.ratio} as {first.target}"


def _refuse(one: Measured) -> str:
    if one.proof is None:
        return f"{one.target} has no proof that it answers like PyTorch: run `ferryman verify`"
    return f"{one.target} is out of tolerance {one.proof.measured}, error {describe_error(one.proof.error)}"


def _decline(one: Measured, best: Measured, ratio: Ratio) -> str:
    """Why the step from `best` to `one` is not taken."""
    precision, before = one.precision, best.precision
    text = f"{one.target} is {ratio} as {best.target}"
    if _lost(one, best) > LOSS:
        text += f", and its accuracy is {one.accuracy:.3f} against {best.accuracy:.3f}"
    elif ratio.low <= 1:
        text += ": slower" if ratio.high < 1 else ": no difference beyond the noise"
    elif precision != before:
        errors = " against ".join(describe_error(which.proof and which.proof.error) for which in (one, best))
        text += f": less than the {WORTH:g} times that pay for its error of {errors}"
    return text if precision == before else f"{precision} is not worth it here: {text}"
