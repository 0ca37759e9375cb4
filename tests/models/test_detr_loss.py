"""Matching against brute force, the loss and its gradient against `transformers`', overlap by hand."""

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import (
    ForObjectDetectionLoss,
    HungarianMatcher,
    ImageLoss,
    generalized_box_iou,
)

from ferryman_models.detr_loss import (
    Objects,
    box_cxcywh_to_xyxy,
    deep_set_loss,
    generalized_iou,
    match_hungarian,
    set_loss,
)

from .weights import HFDetrConfig

# Sums of a few dozen float32 terms near one.
TOLERANCE = 1e-5

CLASSES = 4
# objects in each picture of a batch, for pictures of five queries
COUNTS = [
    pytest.param([3], id="one-picture"),
    pytest.param([2, 0, 4], id="one-empty"),
    pytest.param([0, 0], id="all-empty"),
    pytest.param([5, 5], id="as-many-as-queries"),
    pytest.param([7, 1], id="more-than-queries"),
]
QUERIES = 5


def draw(counts: list[int], queries: int = QUERIES, seed: int = 0) -> tuple[Tensor, Tensor, list[Objects]]:
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        centre = torch.rand(*shape, 2, generator=generator)
        return torch.cat((centre, torch.rand(*shape, 2, generator=generator) * 0.5 + 0.05), dim=-1)

    logits = torch.randn(len(counts), queries, CLASSES + 1, generator=generator) * 2
    objects = [Objects(torch.randint(CLASSES, (n,), generator=generator), boxes(n)) for n in counts]
    return logits, boxes(len(counts), queries), objects


def pair_cost(probabilities: list[float], box: list[float], label: int, wanted: list[float]) -> float:
    """-p(class) + 5 L1 - 2 generalised IoU in plain Python, from the definitions."""
    sides: list[tuple[float, float, float, float]] = []
    for axis in (0, 1):
        (a, a_size), (b, b_size) = (box[axis], box[axis + 2]), (wanted[axis], wanted[axis + 2])
        low, high = (a - a_size / 2, b - b_size / 2), (a + a_size / 2, b + b_size / 2)
        sides.append((max(0.0, min(high) - max(low)), max(high) - min(low), a_size, b_size))
    (ix, hx, ax, bx), (iy, hy, ay, by) = sides
    union = ax * ay + bx * by - ix * iy
    overlap = ix * iy / union - (hx * hy - union) / (hx * hy)
    return -probabilities[label] + 5 * sum(abs(p - q) for p, q in zip(box, wanted, strict=True)) - 2 * overlap


def cheapest_pairs(logits: Tensor, boxes: Tensor, objects: Objects) -> set[tuple[int, int]]:
    """(query, object) of the cheapest of all assignments of one picture."""
    wanted = list(zip(objects.labels.tolist(), objects.boxes_cxcywh.tolist(), strict=True))
    costs = [
        [pair_cost(p, box, label, wanted_box) for label, wanted_box in wanted]
        for p, box in zip(logits.softmax(-1).tolist(), boxes.tolist(), strict=True)
    ]
    queries, count = range(len(costs)), range(len(wanted))
    matches = min(len(queries), len(count))
    # Every query once where there are more objects, every object once where there are more queries.
    assignments = (
        set(zip(some_queries, some_objects, strict=True))
        for some_queries in (permutations(queries, matches) if len(queries) > len(count) else [queries])
        for some_objects in (permutations(count, matches) if len(queries) <= len(count) else [count])
    )
    return min(assignments, key=lambda pairs: sum(costs[query][number] for query, number in pairs))


@pytest.mark.parametrize("counts", COUNTS)
def test_matching_is_the_cheapest_of_all(counts: list[int]) -> None:
    logits, boxes, objects = draw(counts)

    pictures, queries, numbers = match_hungarian(logits, boxes, objects)

    assert {part.dtype for part in (pictures, queries, numbers)} == {torch.int64}
    start = 0
    for picture, count in enumerate(counts):
        mine = pictures == picture
        matched = set(zip(queries[mine].tolist(), (numbers[mine] - start).tolist(), strict=True))
        assert len(matched) == min(count, QUERIES)
        assert matched == cheapest_pairs(logits[picture], boxes[picture], objects[picture])
        start += count
    assert len(pictures) == sum(min(count, QUERIES) for count in counts)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param((0, 0, 2, 3), (0, 0, 2, 3), 1.0, id="identical"),
        # union 1 + 1, hull 3 x 1
        pytest.param((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3, id="disjoint"),
        # union 1 + 1, hull 3 x 3
        pytest.param((0, 0, 1, 1), (2, 2, 3, 3), -7 / 9, id="disjoint-corner"),
        pytest.param((0, 0, 1, 1), (1, 0, 2, 1), 0.0, id="touching"),
        # the hull is the larger box: 2 of 12
        pytest.param((0, 0, 4, 3), (1, 1, 2, 3), 1 / 6, id="nested"),
        # intersection 1, union 4 + 4 - 1, hull 3 x 3
        pytest.param((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9, id="overlapping"),
        # union 1, hull 3 x 1
        pytest.param((0, 0, 1, 1), (3, 0, 3, 1), -2 / 3, id="one-without-area"),
        pytest.param((1, 1, 1, 1), (1, 1, 1, 1), 0.0, id="both-without-area"),
    ],
)
def test_generalized_iou_by_hand(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    a, b = torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32)

    assert generalized_iou(a, b).item() == pytest.approx(expected, abs=1e-6)  # a few float32 roundings
    assert generalized_iou(b, a).item() == pytest.approx(expected, abs=1e-6)


def test_generalized_iou_broadcasts_as_hf_pairs() -> None:
    _, boxes, objects = draw([6], queries=9)
    a, b = box_cxcywh_to_xyxy(boxes[0]), box_cxcywh_to_xyxy(objects[0].boxes_cxcywh)

    torch.testing.assert_close(generalized_iou(a[:, None], b), generalized_box_iou(a, b), atol=1e-6, rtol=0)


def test_box_cxcywh_to_xyxy() -> None:
    # centre 10 right and 20 down, 4 wide and 6 high
    assert box_cxcywh_to_xyxy(torch.tensor([[10.0, 20.0, 4.0, 6.0]])).tolist() == [[8, 17, 12, 23]]
    assert box_cxcywh_to_xyxy(torch.empty(2, 0, 4)).shape == (2, 0, 4)


def hf_loss(
    logits: Tensor,
    boxes: Tensor,
    objects: list[Objects],
    no_object_weight: float = 0.1,
    class_weight: float = 1.0,
) -> Tensor:
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = ImageLoss(matcher, CLASSES, no_object_weight, ["labels", "boxes"])
    targets = [{"class_labels": o.labels, "boxes": o.boxes_cxcywh} for o in objects]
    parts: dict[str, Any] = criterion({"logits": logits, "pred_boxes": boxes}, targets)
    return class_weight * parts["loss_ce"] + 5 * parts["loss_bbox"] + 2 * parts["loss_giou"]


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({}, id="published"),
        pytest.param({"no_object_weight": 0.7, "class_weight": 2.5}, id="weighted"),
    ],
)
@pytest.mark.parametrize("counts", COUNTS)
def test_set_loss_and_gradient_equal_hf(counts: list[int], weights: dict[str, float]) -> None:
    logits, boxes, objects = draw(counts, seed=1)
    logits.requires_grad_()
    boxes.requires_grad_()

    actual = set_loss(logits, boxes, objects, **weights)
    expected = hf_loss(logits, boxes, objects, **weights)

    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)
    # Generalised IoU divides by areas down to 0.0025, which the gradient's rounding is multiplied by.
    torch.testing.assert_close(
        torch.autograd.grad(actual, (logits, boxes)),
        torch.autograd.grad(expected, (logits, boxes)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_deep_set_loss_equals_hf() -> None:
    """Three decoder layers; transformers weighs the parts by the defaults of its configuration."""
    logits, boxes, objects = draw([2, 0, 3], queries=3 * QUERIES, seed=3)
    # (batch, layers * queries, ...) -> (layers, batch, queries, ...)
    logits, boxes = torch.stack(logits.chunk(3, dim=1)), torch.stack(boxes.chunk(3, dim=1))
    labels = [{"class_labels": o.labels, "boxes": o.boxes_cxcywh} for o in objects]
    config = HFDetrConfig(use_timm_backbone=False, num_labels=CLASSES, decoder_layers=3, auxiliary_loss=True)

    expected, _, _ = ForObjectDetectionLoss(
        logits[-1], labels, logits.device, boxes[-1], config, outputs_class=logits, outputs_coord=boxes
    )

    actual = deep_set_loss(logits, boxes, objects)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_deep_set_loss_sums_layers_and_averages_groups() -> None:
    """Two layers of two groups, each matched by itself."""
    logits, boxes, objects = draw([2, 3], queries=4 * QUERIES, seed=2)
    # (batch, layers * groups * queries, ...) -> (layers, batch, groups * queries, ...)
    logits, boxes = torch.stack(logits.chunk(2, dim=1)), torch.stack(boxes.chunk(2, dim=1))

    actual = deep_set_loss(logits, boxes, objects, groups=2, no_object_weight=0.2, class_weight=2.5)

    expected = sum(
        hf_loss(logits[layer][:, group], boxes[layer][:, group], objects, 0.2, 2.5) / 2
        for layer in (0, 1)
        for group in (slice(0, QUERIES), slice(QUERIES, 2 * QUERIES))
    )
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)
