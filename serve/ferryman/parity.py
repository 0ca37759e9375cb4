"""Does a variant answer like PyTorch? Compares it with the golden samples, alone and in every slot of a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ferryman.attest import Attestation
from ferryman.diagnose import explain_failure
from ferryman.errors import ParityError
from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance
from ferryman.mask_parity import compare_all_masks
from ferryman.matching import align_detections, match_detections
from ferryman.specs import DETECTING, SEGMENTING, Facts, ModelSpec

BATCHES = (1, 2, 5)
NotNegative = Annotated[float, Field(ge=0)]

# Limits on float answers of each precision. They are absolute for probabilities, normalised boxes and attention, which
# lie in [0, 1], and relative for embeddings and masks' logits, whose scale is the model's own. Two float16 numbers on
# either side of a rounding are a thousandth apart.
# Below fp32 the limits are on what a user sees: the class, the box, the direction of a vector. Errors of single numbers
# are recorded and not limited.
_LOW = Tolerance(
    max_abs={}, top1_agreement=1, matched_detections=1, score_threshold=0.3, min_iou=1, reason="see the precision"
)
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(
        max_abs={"probabilities": 1e-4, "boxes": 1e-4, "scores": 1e-4, "confidences": 1e-3, "attention": 1e-4},
        max_rel={"cls": 1e-4, "patches": 1e-4, "masks": 2e-3},
        top1_agreement=1.0,
        matched_detections=1.0,
        score_threshold=0.3,
        min_iou=0.99,
        reason=(
            "fp32 on both sides: only the order of additions differs. 1e-4 is some hundred times the rounding of the "
            "deepest model here and a tenth of a pixel in a box of 1,000"
        ),
    ),
    "bf16": _LOW.model_copy(
        update={
            "top1_agreement": 0.995,
            "tie_margin": 0.03,
            "matched_detections": 0.995,
            "min_cosine": {"cls": 0.999, "patches": 0.998},
            "min_iou": 0.95,
            "pixel_agreement": 0.98,
            "mask_iou": 0.9,
            "reason": (
                "bf16 keeps 8 bits of a number, so probabilities move in the second digit; what a user sees, the class "
                "and the box, must not: one class in 200, a box by a twentieth of its area"
            ),
        }
    ),
    "int8": _LOW.model_copy(
        update={
            "top1_agreement": 0.98,
            "tie_margin": 0.1,
            "matched_detections": 0.98,
            "min_cosine": {"cls": 0.99, "patches": 0.98},
            "min_iou": 0.75,
            "pixel_agreement": 0.95,
            "mask_iou": 0.8,
            "reason": (
                "256 levels for every activation: pictures whose two best classes are near ties may change sides, one "
                "in 50; a box is the same one at COCO's strict IoU, since a pixel of a small object is a tenth of it"
            ),
        }
    ),
}
TOLERANCES["fp16"] = TOLERANCES["bf16"].model_copy(
    update={"reason": TOLERANCES["bf16"].reason.replace("bf16 keeps 8 bits of a number", "fp16 ends at 65,504")}
)
TOLERANCES["fp8"] = TOLERANCES["int8"].model_copy(
    update={"reason": TOLERANCES["int8"].reason.replace("256 levels for every activation", "4 bits of every number")}
)


class SampleErrors(Facts):
    """One output of one golden sample; the figures are the worst over all batches and slots.

    max_abs, max_rel: largest absolute error, and the largest relative to the reference's magnitude
    cosine: between answer and reference; worst_case: the batch and slot of `max_abs`
    limit: on max_abs, min_cosine: on cosine; None when that is only recorded
    """

    output: str
    sample: str
    max_abs: NotNegative
    max_rel: NotNegative
    cosine: float
    worst_case: str
    limit: NotNegative | None
    min_cosine: float | None = None

    @property
    def passed(self) -> bool:
        return (self.limit is None or self.max_abs <= self.limit) and self.cosine >= (self.min_cosine or -1)


class ParityReport(Facts):
    """What was measured for one variant on one device.

    size: (height, width) of the canvas
    top1_agreement, matched_detections: share over all batches, near ties counted; None for tasks that have none
    detections: reference detections above the tolerance's threshold that were to be matched
    pixel_agreement, mask_iou: the lowest of any answer, see `mask_parity`; None for the tasks that have none
    attestation: what the variant computes in which precision, None where only answers were compared
    failures: one line each, empty when everything is within tolerance
    """

    target: str
    size: tuple[int, int]
    runtime_version: str
    batches: tuple[int, ...]
    errors: tuple[SampleErrors, ...] = ()
    top1_agreement: float | None = None
    matched_detections: float | None = None
    detections: int = 0
    tolerance: Tolerance
    failures: tuple[str, ...]
    pixel_agreement: float | None = None
    mask_iou: float | None = None
    attestation: Attestation | None = None

    @property
    def passed(self) -> bool:
        return not self.failures

    def raise_for_failures(self) -> None:
        """Raises ParityError with the first failures when there are any."""
        if self.failures:
            more = f" (and {len(self.failures) - 3} more)" if len(self.failures) > 3 else ""
            height, width = self.size
            raise ParityError(
                f"{self.target} at {height}x{width} is out of tolerance: {'; '.join(self.failures[:3])}{more}"
            )


class ParityReports(Facts):
    """parity.json: a report a variant, sizes in the order of the manifest's specs."""

    reports: tuple[ParityReport, ...]


@dataclass(frozen=True)
class Answer:
    """One sample's outputs in one place: `slot` of a batch of `batch`."""

    sample: int
    batch: int
    slot: int
    outputs: Tensors

    @property
    def case(self) -> str:
        return f"batch {self.batch}, slot {self.slot}"


def check_parity(
    run: Callable[[Tensors], Tensors],
    golden: GoldenSamples,
    spec: ModelSpec,
    tolerance: Tolerance,
    target: str,
    runtime_version: str,
    batches: Sequence[int] = BATCHES,
    advance: Callable[[int], None] = lambda done: None,
) -> ParityReport:
    """Runs every golden sample alone and in every slot of every batch size, and compares with the reference.

    run: from a batch of inputs to its outputs; advance: called with the number of samples done since the last call
    """
    report = partial(
        ParityReport,
        target=target,
        size=spec.preprocess.size,
        runtime_version=runtime_version,
        batches=tuple(batches),
        tolerance=tolerance,
    )
    answers: list[Answer] = []
    # A reference of NaN would be equal to nothing and above no limit.
    problems = [f"the reference: {problem}" for problem in check_contract(golden.outputs, spec, golden.names)]
    for indices in _windows(len(golden), batches):
        outputs = run(golden.batch(indices))
        problems += check_contract(outputs, spec, [golden.names[index] for index in indices])
        if not problems:
            answers += [
                Answer(index, len(indices), slot, {name: array[slot] for name, array in outputs.items()})
                for slot, index in enumerate(indices)
            ]
        advance(len(indices))
    if spec.ranked and not problems:
        answers = [_align(answer, golden, tolerance) for answer in answers]
    if problems:
        return report(failures=tuple(dict.fromkeys(problems)))
    errors = tuple(
        _sample_errors(name, sample, golden, answers, tolerance)
        for name in spec.output_names
        for sample in range(len(golden))
    )
    failures = [_describe(error) for error in sorted(errors, key=lambda e: -_excess(e)) if not error.passed]
    top1 = matched = None
    wanted = 0
    if spec.task == "classification":
        lags = [_lag(answer, golden) for answer in answers]
        top1 = float(np.mean([lag == 0 for lag in lags]))
        right = [lag <= tolerance.tie_margin for lag in lags]
        if np.mean(right) < tolerance.top1_agreement:
            wrong = answers[right.index(False)]
            failures.append(
                f"top-1 agreement {np.mean(right):.4f} is below {tolerance.top1_agreement}: first at sample "
                f"{golden.names[wrong.sample]} ({wrong.case})"
            )
    if spec.task in DETECTING:
        matched, wanted, unmatched = _match_all(answers, golden, tolerance)
        limit = tolerance.matched_detections
        # Of a few detections one alone is more than such a share. A box that moved is one missed and one too many, each
        # time that its sample is run.
        one = 2 * len(answers) // len(golden) if limit < 1 else 0
        if round((1 - matched) * wanted) > max((1 - limit) * wanted, one):
            failures.append(f"matched detections {matched:.4f} are below {tolerance.matched_detections}: {unmatched}")
    pixels = iou = None
    if spec.task in SEGMENTING:
        pixels, iou, problems = compare_all_masks(
            [
                (f"sample {golden.names[answer.sample]} ({answer.case})", answer.sample, answer.outputs)
                for answer in answers
            ],
            golden.outputs,
            tolerance,
        )
        failures += problems
    if failures and tolerance.max_abs:  # the hints read single numbers, which mean nothing where none is limited
        hint = explain_failure([(a.sample, a.batch, a.slot, a.outputs) for a in answers], golden, spec, tolerance)
        failures = [f"{failures[0]}{f' - {hint}' if hint else ''}", *failures[1:]]
    return report(
        errors=errors,
        top1_agreement=top1,
        matched_detections=matched,
        detections=wanted,
        pixel_agreement=pixels,
        mask_iou=iou,
        failures=tuple(failures),
    )


def _lag(answer: Answer, golden: GoldenSamples) -> float:
    """How much less probable than its best the reference finds the answer's class: 0 where both name the same."""
    reference = golden.outputs["probabilities"][answer.sample]
    return float(reference.max() - reference[int(answer.outputs["probabilities"].argmax())])


def _align(answer: Answer, golden: GoldenSamples, tolerance: Tolerance) -> Answer:
    """The answer in the reference's order, which equal scores do not fix."""
    reference = {name: array[answer.sample] for name, array in golden.outputs.items()}
    limits = [tolerance.limit(name, reference[name]) or 0.0 for name in ("boxes", "scores")]
    return replace(answer, outputs=align_detections(answer.outputs, reference, *limits))


def check_contract(outputs: Tensors, spec: ModelSpec, samples: Sequence[str]) -> list[str]:
    """Breaches of the graph contract in one batch's outputs: names, types, shapes, NaN and infinity, classes.

    samples: the name of each sample in the batch
    """
    if set(outputs) != set(spec.output_names):
        return [f"the outputs are {', '.join(sorted(outputs))}, expected {', '.join(spec.output_names)}"]
    problems: list[str] = []
    batch = len(samples)
    for tensor in spec.outputs:
        array = outputs[tensor.name]
        shape = tuple(batch if size == "batch" else size for size in tensor.shape)
        if array.dtype != np.dtype(tensor.dtype) or array.shape != shape:
            problems.append(
                f"output {tensor.name} is {array.dtype} {array.shape} at batch {batch}, expected {tensor.dtype} {shape}"
            )
        elif not np.isfinite(array).all():
            wrong = ~np.isfinite(array)
            where = _first_place(wrong, samples)
            problems.append(f"output {tensor.name} holds {wrong.sum()} NaN or infinite values of {array.size}, {where}")
        elif tensor.name in ("labels", "classes") and ((array < 0) | (array >= len(spec.labels))).any():
            where = _first_place((array < 0) | (array >= len(spec.labels)), samples)
            problems.append(
                f"output {tensor.name} names classes outside 0..{len(spec.labels) - 1}, {where}: "
                'is it the best of all classes, "no object" included?'
            )
    return problems


def _first_place(wrong: NDArray[np.bool_], samples: Sequence[str]) -> str:
    slot = int(wrong.reshape(len(samples), -1).any(axis=1).argmax())
    return f"first at sample {samples[slot]} (batch {len(samples)}, slot {slot})"


def _windows(samples: int, batches: Sequence[int]) -> Iterator[list[int]]:
    """Batches of consecutive samples from every start, so that each sample stands in each slot once."""
    for batch in batches:
        for start in range(samples):
            yield [(start + offset) % samples for offset in range(batch)]


def count_runs(samples: int, batches: Sequence[int] = BATCHES) -> int:
    """Samples that `check_parity` runs in all: what its `advance` adds up to."""
    return samples * sum(batches)


def _sample_errors(
    name: str, sample: int, golden: GoldenSamples, answers: list[Answer], tolerance: Tolerance
) -> SampleErrors:
    reference = golden.outputs[name][sample].astype(np.float64)
    scale = max(float(np.abs(reference).max(initial=0.0)), 1e-12)
    worst, worst_case, cosine = -1.0, "", 1.0
    for answer in answers:
        if answer.sample == sample:
            values = answer.outputs[name].astype(np.float64)
            error = float(np.abs(values - reference).max(initial=0.0))
            cosine = min(cosine, _cosine(values, reference))
            if error > worst:
                worst, worst_case = error, answer.case
    return SampleErrors(
        output=name,
        sample=golden.names[sample],
        max_abs=worst,
        max_rel=worst / scale,
        cosine=cosine,
        worst_case=worst_case,
        # Integers are class numbers: their distance means nothing, and equal scores may swap them.
        limit=tolerance.limit(name, reference),
        min_cosine=tolerance.min_cosine.get(name),
    )


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    if norms == 0:
        return 1.0 if np.array_equal(first, second) else 0.0
    return float(first.ravel() @ second.ravel()) / norms


def _match_all(answers: list[Answer], golden: GoldenSamples, tolerance: Tolerance) -> tuple[float, int, str]:
    """Share of reference detections matched, their number, and the first that is not."""
    wanted = matched = 0
    unmatched = ""
    for answer in answers:
        reference = {name: array[answer.sample] for name, array in golden.outputs.items()}
        result = match_detections(answer.outputs, reference, tolerance.score_threshold, tolerance.min_iou)
        wanted += result.wanted
        matched += result.matched
        if not unmatched and result.matched < result.wanted:
            unmatched = f"first at sample {golden.names[answer.sample]} ({answer.case}): {result.first_unmatched}"
    return (matched / wanted if wanted else 1.0), wanted, unmatched


def _excess(error: SampleErrors) -> float:
    return error.max_abs / error.limit if error.limit else 0.0


def _describe(error: SampleErrors) -> str:
    if error.limit is None or error.max_abs <= error.limit:
        return f"output {error.output}, sample {error.sample}: cosine {error.cosine:.6f} is below {error.min_cosine}"
    return (
        f"output {error.output}, sample {error.sample} ({error.worst_case}): "
        f"max abs error {error.max_abs:.6g} is above {error.limit:.6g}"
    )
