"""Training DETR: boxes, Hungarian matching and the set loss (Carion et al. 2020, section 3.1 and appendix A.2)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Objects(NamedTuple):
    """What one picture holds. labels: (count,) int64; boxes_cxcywh: (count, 4) float32 in [0, 1] of the valid area."""

    labels: Tensor
    boxes_cxcywh: Tensor


def box_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> (..., 4) left, top, right, bottom, in the same unit."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def generalized_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes that broadcast: (..., 4), (..., 4) -> (...) in (-1, 1]."""
    top_left = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    bottom_right = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    first_area = (first_xyxy[..., 2:] - first_xyxy[..., :2]).prod(-1)
    second_area = (second_xyxy[..., 2:] - second_xyxy[..., :2]).prod(-1)
    union = first_area + second_area - intersection
    hull_sides = torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:]) - torch.minimum(
        first_xyxy[..., :2], second_xyxy[..., :2]
    )
    hull = hull_sides.clamp(min=0).prod(-1)
    return intersection / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


@torch.no_grad()
def match_hungarian(logits: Tensor, boxes_cxcywh: Tensor, objects: list[Objects]) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest one-to-one assignment of queries to objects, picture by picture.

    The cost is -p(class) + 5 L1 - 2 generalised IoU (appendix A.4).

    logits: (batch, queries, classes + 1); boxes_cxcywh: (batch, queries, 4)
    Returns picture numbers, query numbers and numbers into all objects laid end to end, each (matches,) int64.
    """
    from scipy.optimize import linear_sum_assignment

    labels = torch.cat([o.labels for o in objects])
    boxes = torch.cat([o.boxes_cxcywh for o in objects])
    probabilities = logits.softmax(-1)[..., labels]  # (batch, queries, objects)
    l1 = torch.cdist(boxes_cxcywh.flatten(0, 1), boxes, p=1).view_as(probabilities)
    overlap = generalized_iou(box_cxcywh_to_xyxy(boxes_cxcywh)[:, :, None], box_cxcywh_to_xyxy(boxes))
    cost = (5 * l1 - probabilities - 2 * overlap).cpu().numpy()
    pictures, queries, numbers = [], [], []
    start = 0
    for picture, count in enumerate(len(o.labels) for o in objects):
        rows, columns = linear_sum_assignment(cost[picture, :, start : start + count])
        pictures.append(np.full(len(rows), picture))
        queries.append(rows)
        numbers.append(columns + start)
        start += count
    device = logits.device
    matched = [
        torch.from_numpy(np.concatenate(part).astype(np.int64)).to(device) for part in (pictures, queries, numbers)
    ]
    return matched[0], matched[1], matched[2]


def set_loss(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    objects: list[Objects],
    no_object_weight: float = 0.1,
    class_weight: float = 1.0,
) -> Tensor:
    """class_weight * cross-entropy over all queries + 5 L1 + 2 (1 - generalised IoU) over the matched ones; a scalar.

    Shapes as in `match_hungarian`; box terms are divided by the number of objects in the batch.
    """
    pictures, queries, numbers = match_hungarian(logits, boxes_cxcywh, objects)
    labels = torch.cat([o.labels for o in objects])
    boxes = torch.cat([o.boxes_cxcywh for o in objects])
    no_object = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
    wanted[pictures, queries] = labels[numbers]
    weights = torch.ones(no_object + 1, device=logits.device)
    weights[no_object] = no_object_weight
    classification = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weights)
    answered, expected = boxes_cxcywh[pictures, queries], boxes[numbers]
    count = max(1, len(labels))
    l1 = (answered - expected).abs().sum() / count
    overlap = generalized_iou(box_cxcywh_to_xyxy(answered), box_cxcywh_to_xyxy(expected))
    return class_weight * classification + 5 * l1 + 2 * (1 - overlap).sum() / count


def deep_set_loss(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    objects: list[Objects],
    groups: int = 1,
    no_object_weight: float = 0.1,
    class_weight: float = 1.0,
) -> Tensor:
    """`set_loss` of every decoder layer and group of queries: summed over layers, averaged over groups.

    logits: (layers, batch, groups * queries, classes + 1); boxes_cxcywh: (layers, batch, groups * queries, 4)
    """
    total = logits.new_zeros(())
    for layer_logits, layer_boxes in zip(logits, boxes_cxcywh, strict=True):
        for group_logits, group_boxes in zip(layer_logits.chunk(groups, 1), layer_boxes.chunk(groups, 1), strict=True):
            total = total + set_loss(group_logits, group_boxes, objects, no_object_weight, class_weight) / groups
    return total
