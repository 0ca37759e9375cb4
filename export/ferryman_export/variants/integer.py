"""The way to a graph in 8 bits that all recipes of int8 and fp8 go: calibrate, judge, give the worst blocks back."""

from collections.abc import Set

import onnx

from ferryman.attest import MIN_SHARE
from ferryman.errors import ParityError
from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.islands import BlockError, Verdict, rank_blocks, search_islands
from ferryman_export.quantize import METHODS, SMOOTHING, Method, Numbers, QuantizationPlan, Quantizer
from ferryman_export.steps import count_steps
from ferryman_export.variants.base import BuildReport, Trial, Workpiece
from ferryman_export.variants.judge import Bench

# Enough to tell a bad block from a good one; the verdicts that count are made on all held-out pictures.
_RANKING_PICTURES = 16
_JUDGED_PLANS = 4


def quantize_within(
    piece: Workpiece, target: Target, tolerance: Tolerance, *, numbers: Numbers = "uint8"
) -> tuple[onnx.ModelProto, BuildReport]:
    """The graph in 8 bits with as few blocks in floating point as the tolerance allows, and how it was found.

    numbers: see QuantizationPlan. Raises UsageError without calibration pictures, ParityError when no graph holds.
    """
    calibration = piece.need_calibration(target)
    quantizer = piece.quantizer
    cost, products = quantizer.costs(numbers), sum(quantizer.costs().values())
    allowed = int((1 - MIN_SHARE) * products) - (products - sum(cost.values()))
    if allowed < 0:
        raise ParityError(
            f"{target} can't be built: {products - sum(cost.values())} of the {products} matrix products with weights "
            f"are convolutions, which stay in fp32, and {MIN_SHARE:.0%} must be in {target.precision}"
        )
    bench = Bench(piece, target, tolerance)
    trials = _try_plans(piece, bench, numbers)
    plan, verdict = _choose_plan(trials, quantizer, bench)
    few = piece.held_out.first(_RANKING_PICTURES)

    def rank() -> tuple[BlockError, ...]:
        advance = count_steps(piece.progress, f"{target}: quantise block by block", len(cost))

        def alone(islands: Set[str]) -> float:
            return bench.measure(quantizer.quantize(plan, islands), few)

        return rank_blocks(list(cost), alone, advance)

    piece.progress(f"{target}: search what must stay in floating point", 0, 1)
    found = search_islands(
        lambda islands: bench.judge(quantizer.quantize(plan, islands)) if islands else verdict,
        rank,
        cost,
        allowed,
        str(target),
    )
    report = BuildReport(
        target=str(target),
        size=piece.spec.preprocess.size,
        calibration=calibration.facts,
        trials=tuple(trials),
        islands=found,
        notes=calibration.facts.notes(),
    )
    return quantizer.quantize(plan, frozenset(found.islands)), report


def _try_plans(piece: Workpiece, bench: Bench, numbers: Numbers) -> list[Trial]:
    """Every way to find ranges, then the two best with smoothing; all blocks in 8 bits; the best first."""
    quantizer = piece.quantizer
    advance = count_steps(piece.progress, f"{bench.target}: calibrate", len(METHODS) + 2 * len(SMOOTHING))

    def attempt(plan: QuantizationPlan) -> Trial:
        trial = Trial(plan=plan, error=bench.measure(quantizer.quantize(plan), piece.held_out))
        advance(1)
        return trial

    trials = [attempt(QuantizationPlan(method=method, numbers=numbers)) for method in METHODS]
    best: list[Method] = [trial.plan.method for trial in sorted(trials, key=lambda trial: trial.error)[:2]]
    trials += [
        attempt(QuantizationPlan(method=method, smooth=alpha, numbers=numbers))
        for method in best
        for alpha in SMOOTHING
    ]
    return sorted(trials, key=lambda trial: trial.error)


def _choose_plan(trials: list[Trial], quantizer: Quantizer, bench: Bench) -> tuple[QuantizationPlan, Verdict]:
    """The best plan that holds without any island, which costs nothing; else the one with the least error.

    Their errors lie close together, and which pictures change sides is luck.
    """
    verdicts: list[Verdict] = []
    for trial in trials[:_JUDGED_PLANS]:
        verdicts.append(bench.judge(quantizer.quantize(trial.plan)))
        if verdicts[-1].passed:
            return trial.plan, verdicts[-1]
    return trials[0].plan, verdicts[0]
