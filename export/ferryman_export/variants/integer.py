"""The way to a graph in 8 bits that all recipes of int8 and fp8 go: calibrate, judge, give the worst blocks back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from ferryman.attest import MIN_SHARE
from ferryman.errors import ParityError
from ferryman.manifest import Tolerance
from ferryman.specs import Target
from ferryman_export.islands import BlockError, Verdict, find_unable, rank_blocks, search_islands
from ferryman_export.qdq import Numbers
from ferryman_export.quantize import Answers, Form, QuantizationPlan, Quantizer
from ferryman_export.ranges import METHODS, Method
from ferryman_export.smoothing import SMOOTHING
from ferryman_export.steps import count_steps
from ferryman_export.variants.base import BuildReport, Trial, Workpiece
from ferryman_export.variants.judge import Bench, spread

# Enough to tell a bad block from a good one, and one plan from another: the error is a mean over all numbers of the
# answers. The verdicts that count are made on all held-out pictures.
_RANKING_PICTURES, _TRIAL_PICTURES = 4, 24
_JUDGED_PLANS = 4
_FREE_WORK = 0.02  # of the multiplications: in fp32 they cost less time than a benchmark can tell


@dataclass(frozen=True)
class Style:
    """What a runtime wants of a graph in 8 bits: methods to find ranges by, of which the best is taken; the rest as in
    `QuantizationPlan`.
    """

    methods: tuple[Method, ...] = METHODS
    numbers: Numbers = "uint8"
    answers: Answers = "float"
    form: Form = "plain"

    def plan(self, method: Method) -> QuantizationPlan:
        return QuantizationPlan(
            method=method, numbers=self.numbers, answers=self.answers, form=self.form, bias="corrected"
        )


PLAIN = Style()


def quantize_within(
    piece: Workpiece,
    target: Target,
    tolerance: Tolerance,
    style: Style = PLAIN,
) -> tuple[onnx.ModelProto, BuildReport]:
    """The graph in 8 bits with as few blocks in floating point as the tolerance allows, and how it was found.

    Raises UsageError without calibration pictures, ParityError when no graph holds.
    """
    calibration = piece.need_calibration(target)
    quantizer, numbers = piece.quantizer, style.numbers
    cost, products = quantizer.costs(numbers), sum(quantizer.costs().values())
    allowed = int((1 - MIN_SHARE) * products) - (products - sum(cost.values()))
    if allowed < 0:
        raise ParityError(
            f"{target} can't be built: {products - sum(cost.values())} of the {products} matrix products with weights "
            f"are convolutions, which stay in fp32, and {MIN_SHARE:.0%} must be in {target.precision}"
        )
    bench = Bench(piece, target, tolerance)
    unable = _find_unable(piece, bench, style)
    allowed -= sum(cost.pop(block) for block in unable)
    if allowed < 0:
        raise ParityError(f"{target} can't be built: {bench.runtime.name} has no 8 bits for {', '.join(unable)}")
    room = allowed // 2
    if style.answers == "float":
        trials = _try_plans(piece, bench, style, unable)
        ranked = _rank_once(bench, cost, trials[0].plan, unable)
        free = (*unable, *choose_free(ranked, quantizer.work(), cost, room))
    else:  # an answer of the patches in 8 bits errs so much that it would drown what the plans differ in
        first = style.plan(style.methods[0]).model_copy(update={"smooth": SMOOTHING[0]})
        ranked = _rank_once(bench, cost, first, unable)
        free = (*unable, *choose_free(ranked, quantizer.work(), cost, room))
        trials = _try_plans(piece, bench, style, free)
    piece.progress(f"{target}: search what must stay in floating point", 0, 1)
    plan, verdict = _choose_plan(trials, quantizer, bench, free)
    found = search_islands(
        lambda islands: bench.judge(quantizer.quantize(plan, {*free, *islands})) if islands else verdict,
        lambda: tuple(one for one in ranked if one.block not in free),
        cost,
        allowed - sum(cost.get(block, 0) for block in free),
        str(target),
    )
    found = found.model_copy(update={"blocks": ranked, "islands": (*free, *found.islands), "free": len(free)})
    report = BuildReport(
        target=str(target),
        size=piece.spec.preprocess.size,
        calibration=calibration.facts,
        trials=tuple(trials),
        plan=plan,
        islands=found,
        notes=calibration.facts.notes(),
    )
    return quantizer.quantize(plan, frozenset(found.islands)), report


def _rank_once(
    bench: Bench, cost: Mapping[str, int], plan: QuantizationPlan, unable: Sequence[str]
) -> tuple[BlockError, ...]:
    """`_rank` of the first style or target that asks: a block that errs in one of them errs in the others.

    Not so where its answer is in 8 bits too, as convolutions' are, and where it was not when they were ranked.
    """
    ranked, answers_too = bench.piece.ranked, plan.answers != "float"
    if (plan.numbers, answers_too) not in ranked:
        known = ranked.get((plan.numbers, True))
        ranked[plan.numbers, answers_too] = _rank(bench, cost, plan, unable) if known is None else known
    return tuple(one for one in ranked[plan.numbers, answers_too] if one.block in cost)


def _rank(
    bench: Bench, cost: Mapping[str, int], plan: QuantizationPlan, unable: Sequence[str]
) -> tuple[BlockError, ...]:
    """The blocks that `cost` names, each alone in 8 bits on a few pictures, the best to give back first.

    All else in fp32 proper: bf16 throughout errs more than any one block, and would hide what they differ in.
    """
    quantizer, few = bench.piece.quantizer, spread(bench.piece.held_out, _RANKING_PICTURES)
    exact = Bench(bench.piece, bench.run_as.model_copy(update={"precision": "fp32"}), bench.tolerance)
    advance = count_steps(bench.piece.progress, f"{bench.target}: quantise block by block", len(cost))
    found = rank_blocks(
        list(cost), lambda islands: exact.measure(quantizer.quantize(plan, {*unable, *islands}), few), advance
    )
    # What a block's error would be gone for: it is squares that add up, and products that are counted.
    return tuple(sorted(found, key=lambda one: -one.error / cost[one.block] ** 0.5))


def _find_unable(piece: Workpiece, bench: Bench, style: Style) -> tuple[str, ...]:
    """Blocks that the runtime refuses in 8 bits, such as OpenVINO 2026.4 products of more than three dimensions."""
    quantizer, one = piece.quantizer, piece.held_out.first(1)
    plan, blocks = style.plan(style.methods[0]), quantizer.costs(style.numbers)
    advance = count_steps(piece.progress, f"{bench.target}: find what it can't run in 8 bits", len(blocks))
    return find_unable(
        list(blocks), lambda islands: bench.measure(quantizer.quantize(plan, islands), one) < float("inf"), advance
    )


def _try_plans(piece: Workpiece, bench: Bench, style: Style, islands: Sequence[str]) -> list[Trial]:
    """Every way to find ranges, the two best with smoothing, the best of all with weights rounded by data.

    All blocks but the islands are in 8 bits; the best comes first.
    """
    quantizer, some = piece.quantizer, spread(piece.held_out, _TRIAL_PICTURES)
    by_data = 0 if style.numbers == "fp8" else 1  # fp8 is not rounded in whole steps
    count = len(style.methods) + min(2, len(style.methods)) * len(SMOOTHING) + by_data
    advance = count_steps(piece.progress, f"{bench.target}: calibrate", count)

    def attempt(plan: QuantizationPlan) -> Trial:
        trial = Trial(plan=plan, error=bench.measure(quantizer.quantize(plan, frozenset(islands)), some))
        advance(1)
        return trial

    trials = [attempt(style.plan(method)) for method in style.methods]
    best = [trial.plan for trial in sorted(trials, key=lambda trial: trial.error)[:2]]
    trials += [attempt(plan.model_copy(update={"smooth": alpha})) for plan in best for alpha in SMOOTHING]
    for trial in sorted(trials, key=lambda trial: trial.error)[:by_data]:
        trials.append(attempt(trial.plan.model_copy(update={"rounding": "gptq"})))
    return sorted(trials, key=lambda trial: trial.error)


def choose_free(
    ranked: Sequence[BlockError], work: Mapping[str, int], cost: Mapping[str, int], allowed: int
) -> tuple[str, ...]:
    """Blocks that err more than most and that next to nothing is paid for in fp32, such as a classification head.

    ranked: the worst first; work: multiplications of each block; cost, allowed: as in `search_islands`
    """
    chosen: list[str] = []
    left, room = _FREE_WORK * sum(work.values()), allowed
    for one in ranked[: len(ranked) // 2]:
        if work[one.block] <= left and cost[one.block] <= room:
            chosen.append(one.block)
            left, room = left - work[one.block], room - cost[one.block]
    return tuple(chosen)


def _choose_plan(
    trials: list[Trial], quantizer: Quantizer, bench: Bench, free: Sequence[str]
) -> tuple[QuantizationPlan, Verdict]:
    """The best plan that holds with no island but the free ones; else the one with the least error.

    Their errors lie close together, and which pictures change sides is luck.
    """
    verdicts: list[Verdict] = []
    for trial in trials[:_JUDGED_PLANS]:
        verdicts.append(bench.judge(quantizer.quantize(trial.plan, frozenset(free))))
        if verdicts[-1].passed:
            return trial.plan, verdicts[-1]
    return trials[0].plan, verdicts[0]
