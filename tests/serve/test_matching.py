"""Boxes compared as sets: overlaps computed by hand, pairs one to one."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferryman.matching import align_detections, match_detections, pairwise_iou

Boxes = NDArray[np.float32]
UNIT = (0.0, 0.0, 1.0, 1.0)
IOUS = {
    "the same": (UNIT, UNIT, 1.0),
    "half": (UNIT, (0, 0, 0.5, 1), 0.5),
    "a quarter each": ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
    "inside": ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),
    "side by side": (UNIT, (1, 0, 2, 1), 0.0),
    "corner to corner": (UNIT, (1, 1, 2, 2), 0.0),
    "apart on one axis": (UNIT, (0, 5, 1, 6), 0.0),
    "apart on both axes": (UNIT, (5, 5, 6, 6), 0.0),
    "empty and full": ((0.5, 0.5, 0.5, 0.5), UNIT, 0.0),
    "the same empty": ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 1.0),
    "nearly the same empty": ((1, 0.2, 1, 0.5), (1, 0.2, 1, 0.5000001), 1.0),
    "nearly the same, next to empty": ((1, 0.2, 1, 0.5), (0.9999999, 0.2, 1, 0.5), 1.0),
    "two empty": ((0.5, 0.5, 0.5, 0.5), (0.2, 0.2, 0.2, 0.2), 0.0),
    "turned inside out": ((1, 1, 0, 0), UNIT, 0.0),
}


@pytest.mark.parametrize(("first", "second", "iou"), IOUS.values(), ids=IOUS)
def test_iou(first: tuple[float, ...], second: tuple[float, ...], iou: float) -> None:
    one, other = np.array([first], dtype=np.float32), np.array([second], dtype=np.float32)
    assert pairwise_iou(one, other) == pytest.approx(np.array([[iou]]), abs=1e-12)
    assert pairwise_iou(other, one) == pytest.approx(np.array([[iou]]), abs=1e-12)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0), (2, 3)], ids=str)
def test_iou_of_all_pairs(shape: tuple[int, int]) -> None:
    first, second = (np.random.default_rng(1).random((count, 4)).astype(np.float32) for count in shape)
    assert pairwise_iou(first, second).shape == shape


def answer(*detections: tuple[int, float, tuple[float, ...]]) -> dict[str, NDArray[Any]]:
    return {
        "labels": np.array([label for label, _, _ in detections], dtype=np.int64),
        "scores": np.array([score for _, score, _ in detections], dtype=np.float32),
        "boxes": np.array([box for _, _, box in detections], dtype=np.float32).reshape(-1, 4),
    }


LEFT, RIGHT, NEAR_LEFT = (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9), (0.1, 0.1, 0.3, 0.2999)
CASES = {
    "nothing": (answer(), answer(), 0, 0, ""),
    "nothing above the threshold": (answer((1, 0.3, LEFT)), answer((1, 0.2, RIGHT)), 0, 0, ""),
    "the same": (answer((1, 0.9, LEFT), (2, 0.8, RIGHT)), answer((1, 0.9, LEFT), (2, 0.8, RIGHT)), 2, 2, ""),
    "in another order": (answer((2, 0.8, RIGHT), (1, 0.9, LEFT)), answer((1, 0.9, LEFT), (2, 0.8, RIGHT)), 2, 2, ""),
    "nearly the same": (answer((1, 0.9, NEAR_LEFT)), answer((1, 0.9, LEFT)), 1, 1, ""),
    "missing": (answer((1, 0.1, LEFT)), answer((1, 0.9, LEFT)), 1, 0, "class 1 with score 0.900 has no match, nothing"),
    "no answer at all": (answer(), answer((1, 0.9, LEFT)), 1, 0, "nothing of its class there"),
    "another class": (answer((2, 0.9, LEFT)), answer((1, 0.9, LEFT)), 2, 0, "nothing of its class there"),
    "elsewhere": (answer((1, 0.9, RIGHT)), answer((1, 0.9, LEFT)), 2, 0, "best IoU in its class 0.0000, wanted 0.99"),
    "one too many": (
        answer((1, 0.9, LEFT), (3, 0.5, RIGHT)),
        answer((1, 0.9, LEFT)),
        2,
        1,
        "class 3 with score 0.500 is not in the reference",
    ),
    "twice for once": (answer((1, 0.9, LEFT), (1, 0.8, LEFT)), answer((1, 0.9, LEFT)), 2, 1, "is not in the reference"),
    "once for twice": (answer((1, 0.9, LEFT)), answer((1, 0.9, LEFT), (1, 0.8, LEFT)), 2, 1, "has no match, best IoU"),
    "twice for two": (
        answer((1, 0.9, LEFT), (1, 0.8, LEFT)),
        answer((1, 0.9, LEFT), (1, 0.8, RIGHT)),
        3,
        1,
        "class 1 with score 0.800 has no match",
    ),
    "twins": (answer((1, 0.9, LEFT), (1, 0.8, LEFT)), answer((1, 0.8, LEFT), (1, 0.9, LEFT)), 2, 2, ""),
    "near twins": (
        answer((1, 0.9, NEAR_LEFT), (1, 0.8, LEFT)),
        answer((1, 0.8, LEFT), (1, 0.9, NEAR_LEFT)),
        2,
        2,
        "",
    ),
    "rounded below the threshold": (answer((1, 0.2999, LEFT)), answer((1, 0.3001, LEFT)), 1, 1, ""),
    "rounded above the threshold": (answer((1, 0.3001, LEFT)), answer((1, 0.2999, LEFT)), 0, 0, ""),
    "an empty box": (answer((1, 0.9, (0.5,) * 4)), answer((1, 0.9, (0.5,) * 4)), 1, 1, ""),
}


@pytest.mark.parametrize(("given", "reference", "wanted", "matched", "message"), CASES.values(), ids=CASES)
def test_matching(
    given: dict[str, NDArray[Any]],
    reference: dict[str, NDArray[Any]],
    wanted: int,
    matched: int,
    message: str,
) -> None:
    matches = match_detections(given, reference, score_threshold=0.3, min_iou=0.99)
    assert (matches.wanted, matches.matched) == (wanted, matched)
    assert message in matches.first_unmatched
    assert bool(matches.first_unmatched) == (matched < wanted)


def test_order_never_matters() -> None:
    """Equal scores come in another order from another runtime."""
    random = np.random.default_rng(3)
    corners = random.random((40, 2, 2)).astype(np.float32)
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    boxes[20:] = boxes[:20]  # each of them twice
    reference = {
        "boxes": boxes,
        "scores": np.full(40, 0.75, dtype=np.float32),
        "labels": np.arange(40) % 3,
    }
    order = random.permutation(40)
    shuffled = {name: array[order] for name, array in reference.items()}
    matches = match_detections(shuffled, reference, score_threshold=0.3, min_iou=0.99)
    assert (matches.wanted, matches.matched) == (40, 40)


TOP, LOW = (0.0, 0.0, 0.2, 0.2), (0.4, 0.4, 0.8, 0.8)
RANKED = answer((1, 0.9, LEFT), (2, 0.9, RIGHT), (1, 0.5, TOP), (0, 0.2, LOW))
ALIGNED: dict[str, tuple[dict[str, NDArray[Any]], float, float]] = {
    # What a runtime answers, and how far its boxes and scores are from the reference once they are aligned.
    "the same": (RANKED, 0, 0),
    "equal scores swapped": (answer((2, 0.9, RIGHT), (1, 0.9, LEFT), (1, 0.5, TOP), (0, 0.2, LOW)), 0, 0),
    "all turned around": (answer((0, 0.2, LOW), (1, 0.5, TOP), (2, 0.9, RIGHT), (1, 0.9, LEFT)), 0, 0),
    "another one at the end": (answer((1, 0.9, LEFT), (2, 0.9, RIGHT), (1, 0.5, TOP), (3, 0.2, TOP)), 0, 0),
    "another one, scored below": (answer((1, 0.9, LEFT), (2, 0.9, RIGHT), (1, 0.5, TOP), (3, 0.1, TOP)), 0.6, 0.1),
    "another one in the middle": (answer((1, 0.9, LEFT), (2, 0.9, RIGHT), (1, 0.5, LOW), (0, 0.2, LOW)), 0.6, 0),
    "a box that is off": (answer((2, 0.9, RIGHT), (1, 0.9, NEAR_LEFT), (1, 0.5, TOP), (0, 0.2, LOW)), 1e-4, 0),
    "a score that is off": (answer((1, 0.9, LEFT), (2, 0.8, RIGHT), (1, 0.5, TOP), (0, 0.2, LOW)), 0, 0.1),
}


@pytest.mark.parametrize(("given", "box_error", "score_error"), ALIGNED.values(), ids=ALIGNED)
def test_alignment(given: dict[str, NDArray[Any]], box_error: float, score_error: float) -> None:
    aligned = align_detections(given, RANKED, max_box=1e-5, max_score=1e-5)
    assert np.abs(aligned["boxes"] - RANKED["boxes"]).max() == pytest.approx(box_error, abs=1e-7)
    assert np.abs(aligned["scores"] - RANKED["scores"]).max() == pytest.approx(score_error, abs=1e-7)


def test_alignment_of_twins_and_of_nothing() -> None:
    twins = answer((1, 0.9, LEFT), (1, 0.9, LEFT), (1, 0.9, NEAR_LEFT))
    aligned = align_detections({name: array[::-1] for name, array in twins.items()}, twins, 1e-6, 1e-6)
    np.testing.assert_array_equal(aligned["boxes"], twins["boxes"])
    assert align_detections(answer(), answer(), 0, 0)["boxes"].shape == (0, 4)
