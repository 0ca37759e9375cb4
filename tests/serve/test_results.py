"""Typed answers from a graph's outputs: order, thresholds, empties, pixels."""

import numpy as np
import pytest

from ferryman.errors import EngineError
from ferryman.preprocess import Geometry
from ferryman.results import (
    Outputs,
    classification_from_outputs,
    detections_from_outputs,
    embedding_from_outputs,
)

from .toy import LABELS, SPECS

# A picture of 200x100 on the upper half of a canvas of 32x32.
GEOMETRY = Geometry(original_size=(100, 200), valid_size=(16, 32), region=(0, 0, 200, 100), canvas_size=(16, 32))
CLASSES: Outputs = {
    "probabilities": np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.6, 0.0, 0.3]], dtype=np.float32),
    "logits": np.zeros((2, 4), dtype=np.float32),
}


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (4, 4), (5, 4), (10**9, 4), (0, 1), (-7, 1)])
def test_top_k_is_clamped(top_k: int, count: int) -> None:
    answer = classification_from_outputs(CLASSES, 1, GEOMETRY, SPECS["toy-classifier"], top_k)
    assert answer.size == (200, 100)
    assert [p.class_id for p in answer.predictions] == [1, 3, 0, 2][:count]
    assert [p.label for p in answer.predictions] == [LABELS[i] for i in (1, 3, 0, 2)][:count]
    assert [p.score for p in answer.predictions] == pytest.approx([0.6, 0.3, 0.1, 0.0][:count])
    assert all(type(p.score) is float and type(p.class_id) is int for p in answer.predictions)


def test_equal_classes_stand_in_their_own_order() -> None:
    answer = classification_from_outputs(CLASSES, 0, GEOMETRY, SPECS["toy-classifier"])
    assert [p.class_id for p in answer.predictions] == [0, 1, 2, 3]


FOUND: Outputs = {
    "scores": np.array([[0.5, 0.9, 0.5], [0.1, 0.2, 0.3]], dtype=np.float32),
    "labels": np.array([[0, 1, 2], [3, 3, 3]], dtype=np.int64),
    "boxes": np.array(
        [[[0.1, 0.2, 0.3, 0.4], [-0.5, -0.5, 1.5, 1.5], [1, 1, 0, 0]], [[0, 0, 1, 1]] * 3], dtype=np.float32
    ),
    "logits": np.zeros((2, 3, 5), dtype=np.float32),
}


@pytest.mark.parametrize(
    ("index", "threshold", "classes"),
    [(0, 0.5, [1, 0, 2]), (0, 0.50001, [1]), (0, 0.95, []), (0, 0.0, [1, 0, 2]), (1, 0.5, []), (1, 0.2, [3, 3])],
)
def test_detections(index: int, threshold: float, classes: list[int]) -> None:
    answer = detections_from_outputs(FOUND, index, GEOMETRY, SPECS["toy-detector"], threshold)
    assert answer.size == (200, 100)
    assert [d.class_id for d in answer.detections] == classes
    assert [d.label for d in answer.detections] == [LABELS[i] for i in classes]
    scores = [d.score for d in answer.detections]
    assert scores == sorted(scores, reverse=True)


def test_boxes_are_in_pixels_of_the_picture_and_clipped() -> None:
    everything, first, turned = detections_from_outputs(FOUND, 0, GEOMETRY, SPECS["toy-detector"]).detections
    assert first.box_xyxy == pytest.approx((20, 20, 60, 40))
    assert everything.box_xyxy == (0, 0, 200, 100)
    assert turned.box_xyxy == (200, 100, 0, 0)  # what the model said; nothing is put right silently
    assert all(type(side) is float for side in first.box_xyxy)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", ["scores", "boxes"])
def test_nan_is_not_an_empty_picture(name: str, value: float) -> None:
    """A NaN score is not at least the threshold: the picture would seem to hold nothing."""
    broken = {key: array.copy() for key, array in FOUND.items()}
    broken[name][0, 1] = value
    with pytest.raises(EngineError, match=f"the model's {name} for this image are NaN or infinite; run"):
        detections_from_outputs(broken, 0, GEOMETRY, SPECS["toy-detector"])
    assert detections_from_outputs(broken, 1, GEOMETRY, SPECS["toy-detector"], 0.25).detections


def test_nan_is_no_class() -> None:
    broken = {"probabilities": np.full((1, 4), np.nan, dtype=np.float32)}
    with pytest.raises(EngineError, match="probabilities for this image are NaN"):
        classification_from_outputs(broken, 0, GEOMETRY, SPECS["toy-classifier"])


def test_embeddings() -> None:
    outputs = {"cls": np.arange(6).reshape(2, 3), "patches": np.zeros((2, 4, 4, 3))}
    answer = embedding_from_outputs(outputs, 1, GEOMETRY)
    assert (answer.size, answer.cls.tolist(), answer.patches.shape) == ((200, 100), [3, 4, 5], (4, 4, 3))
    assert answer.cls.dtype == answer.patches.dtype == np.float32
