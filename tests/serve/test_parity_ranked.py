"""Parity of a detector whose answers are ranked: equal scores may stand in any order, and nothing else is forgiven."""

from collections.abc import Callable

import numpy as np
import pytest

from ferryman.golden import GoldenSamples, Tensors
from ferryman.parity import TOLERANCES, ParityReport, check_parity
from ferryman.specs import PreprocessSpec, detection_spec

ANSWERS, CLASSES, SAMPLES = 8, 3, 3
SPEC = detection_spec(PreprocessSpec(size=(8, 8), fit="stretch"), ("a", "b", "c"), ANSWERS, ranked=True)


def make_golden() -> GoldenSamples:
    """Scores in pairs of equal ones; the last of them equals what did not get into the list."""
    random = np.random.default_rng(1)
    corners = np.sort(random.random((SAMPLES, ANSWERS, 2, 2)).astype(np.float32), axis=2)
    scores = np.repeat(np.array([0.9, 0.7, 0.5, 0.2], dtype=np.float32), 2)
    labels = random.integers(0, CLASSES, (SAMPLES, ANSWERS))
    logits = random.normal(size=(SAMPLES, ANSWERS, CLASSES)).astype(np.float32) - 8
    chosen = np.log(scores / (1 - scores))
    np.put_along_axis(logits, labels[..., None], np.broadcast_to(chosen, labels.shape)[..., None], axis=2)
    inputs: Tensors = {
        "image": np.arange(SAMPLES, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), dtype=np.uint8),
        "valid_size": np.full((SAMPLES, 2), 8, dtype=np.int32),
    }
    outputs: Tensors = {
        "logits": logits,
        "boxes": corners.reshape(SAMPLES, ANSWERS, 4),
        "scores": np.broadcast_to(scores, (SAMPLES, ANSWERS)).copy(),
        "labels": labels.astype(np.int64),
    }
    return GoldenSamples(("x", "y", "z"), inputs, outputs)


GOLDEN = make_golden()


def prove(spoil: Callable[[Tensors], None]) -> ParityReport:
    def run(inputs: Tensors) -> Tensors:
        outputs = {name: array[inputs["image"][:, 0, 0, 0]].copy() for name, array in GOLDEN.outputs.items()}
        spoil(outputs)
        return outputs

    return check_parity(run, GOLDEN, SPEC, TOLERANCES["fp32"], "numpy-cpu-fp32", "1")


def swap_equal_scores(outputs: Tensors) -> None:
    order = np.array([1, 0, 3, 2, 4, 5, 7, 6])
    for name in outputs:
        outputs[name] = outputs[name][:, order]


def take_another_at_the_end(outputs: Tensors) -> None:
    outputs["labels"][:, -1] = (outputs["labels"][:, -1] + 1) % CLASSES
    outputs["boxes"][:, -1] = (0.1, 0.1, 0.2, 0.2)


def test_equal_scores_have_no_order() -> None:
    report = prove(swap_equal_scores)
    assert report.passed
    assert max(error.max_abs for error in report.errors if error.output != "labels") == 0
    assert report.detections == SAMPLES * 6 * 8


def test_equal_scores_at_the_end_of_the_list_have_no_order() -> None:
    assert prove(take_another_at_the_end).passed


def move_a_box(outputs: Tensors) -> None:
    swap_equal_scores(outputs)
    outputs["boxes"][:, 0, 0] += 2e-4


def swap_boxes_alone(outputs: Tensors) -> None:
    outputs["boxes"][:, [0, 1]] = outputs["boxes"][:, [1, 0]]


def take_another_in_the_middle(outputs: Tensors) -> None:
    outputs["boxes"][:, 3] = (0.1, 0.1, 0.2, 0.2)


def rotate_labels(outputs: Tensors) -> None:
    outputs["labels"] = (outputs["labels"] + 1) % CLASSES


@pytest.mark.parametrize("spoil", [move_a_box, swap_boxes_alone, take_another_in_the_middle, rotate_labels])
def test_nothing_else_is_forgiven(spoil: Callable[[Tensors], None]) -> None:
    assert not prove(spoil).passed
