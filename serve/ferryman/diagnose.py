"""What a failed parity looks like: hypotheses about the usual mistakes, each tested on the answers themselves."""

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferryman.golden import GoldenSamples, Tensors
from ferryman.manifest import Tolerance
from ferryman.specs import ModelSpec

Placed = tuple[int, int, int, Tensors]  # sample, batch, slot, outputs


def explain_failure(answers: list[Placed], golden: GoldenSamples, spec: ModelSpec, tolerance: Tolerance) -> str:
    """The first hypothesis that the answers bear out, in words; empty when none does.

    answers: sample, batch size, slot and outputs of every run
    """
    alone = [answer for answer in answers if answer[1] == 1]
    limited = [name for name in spec.output_names if name in tolerance.max_abs or name in tolerance.max_rel]

    def is_right(answer: Placed, name: str) -> bool:
        reference = golden.outputs[name][answer[0]]
        return _error(answer[3][name], reference) <= (tolerance.limit(name, reference) or 0)

    def all_right(some: list[Placed]) -> bool:
        return all(is_right(answer, name) for answer in some for name in limited)

    if alone and all_right(alone) and not all_right(answers):
        return "every sample is right alone and wrong in a batch: an output depends on its neighbours in the batch"
    if alone and "boxes" in limited:
        order = _box_order(alone, golden, tolerance.max_abs["boxes"])
        if order and all(is_right(answer, name) for answer in alone for name in limited if name != "boxes"):
            return order
    if "valid_size" in spec.input_names:
        canvas = np.array(spec.preprocess.size)
        padded = [bool((golden.inputs["valid_size"][answer[0]] < canvas).any()) for answer in alone]
        right = [all(is_right(answer, name) for name in limited) for answer in alone]
        if any(padded) and not all(padded) and all(r != p for r, p in zip(right, padded, strict=True)):
            return (
                "samples that fill the canvas are right and padded ones are wrong: the padding mask is dropped or wrong"
            )
    if "logits" in spec.output_names and alone:
        errors = [_error(answer[3]["logits"], golden.outputs["logits"][answer[0]]) for answer in alone]
        if np.median(errors) > 1e-2:  # not every one: a grey picture hides swapped channels
            return (
                "the logits differ on most samples already alone: look at what comes first, "
                "mean, deviation and layout of the input, then at the model"
            )
        if max(errors) <= 1e-3:
            wrong = [name for name in limited if not all(is_right(answer, name) for answer in alone)]
            where = "the mask head, and its attention's padding" if wrong == ["masks"] else "the postprocessing"
            return f"the logits agree and what is made of them does not: look at {where}"
    return ""


def _error(answer: NDArray[Any], reference: NDArray[Any]) -> float:
    return float(np.abs(answer.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))


def _box_order(alone: list[Placed], golden: GoldenSamples, limit: float) -> str:
    """Says how the boxes' columns are swapped, when they are."""
    names = ("x1", "y1", "x2", "y2")
    for order in permutations(range(4)):
        if order != (0, 1, 2, 3) and all(
            _error(outputs["boxes"], golden.outputs["boxes"][sample][:, order]) <= limit
            for sample, _, _, outputs in alone
        ):
            return f"the boxes' columns are swapped: {', '.join(names[i] for i in order)} where x1, y1, x2, y2 belong"
    for sample, _, _, outputs in alone:
        boxes = golden.outputs["boxes"][sample].astype(np.float64)
        centres = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)
        if _error(outputs["boxes"], centres) > max(limit, 1e-3):
            return ""
    return "the boxes are centre and size where x1, y1, x2, y2 belong"
