"""Detections compared as sets: one to one, by class and overlap, never by position in the answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EMPTY, _EMPTY_SIDES = 1e-6, 1e-4  # a pixel of a picture of 1000x1000; what parity allows a side in fp32


@dataclass(frozen=True)
class Matches:
    """wanted: reference detections; matched: of them; first_unmatched: in words, empty when all are matched."""

    wanted: int
    matched: int
    first_unmatched: str


def pairwise_iou(first_xyxy: NDArray[np.floating], second_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of all pairs: (n, 4), (m, 4) xyxy in [0, 1] -> (n, m) in [0, 1].

    Two boxes that are next to empty, as those are that lie behind the picture's edge and were clipped there, give 1
    when their sides are equal but for rounding, which decides what is left of them.
    """
    first, second = first_xyxy.astype(np.float64)[:, None], second_xyxy.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.clip(sides, 0, None).prod(-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - intersection
    empty = np.maximum(*areas) <= _EMPTY
    same = np.abs(first - second).max(-1, initial=0.0) <= _EMPTY_SIDES
    return np.where(empty & same, 1.0, intersection / np.where(union > 0, union, 1))


def match_detections(
    answer: Mapping[str, NDArray[Any]],
    reference: Mapping[str, NDArray[Any]],
    score_threshold: float,
    min_iou: float,
) -> Matches:
    """Pairs the reference's detections above the threshold with the answer's of the same class, best overlap first.

    answer, reference: `boxes` (queries, 4) xyxy, `scores` (queries,), `labels` (queries,) of one image.
    A detection of the answer may fall just below the threshold; one above it that the reference knows nothing of
    counts as wanted and unmatched.
    """
    slack = 0.01  # of the score: a pair must not be lost because one side of it rounds below the threshold
    wanted = np.flatnonzero(reference["scores"] > score_threshold)
    offered = np.flatnonzero(answer["scores"] > score_threshold - slack)
    iou = pairwise_iou(reference["boxes"][wanted].astype(np.float64), answer["boxes"][offered].astype(np.float64))
    iou = np.where(reference["labels"][wanted][:, None] == answer["labels"][offered][None], iou, -1.0)
    free_wanted, free_offered = set(range(len(wanted))), set(range(len(offered)))
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(offered))
        if iou[row, column] < min_iou:
            break
        if row in free_wanted and column in free_offered:
            free_wanted.remove(row)
            free_offered.remove(column)
    extra = [c for c in sorted(free_offered) if answer["scores"][offered[c]] > score_threshold + slack]
    first = ""
    if free_wanted:
        row = min(free_wanted)
        best = iou[row].max(initial=-1.0)
        there = f"best IoU in its class {best:.4f}, wanted {min_iou}" if best >= 0 else "nothing of its class there"
        query = wanted[row]
        score = float(reference["scores"][query])
        first = f"class {reference['labels'][query]} with score {score:.3f} has no match, {there}"
    elif extra:
        query = offered[extra[0]]
        first = (
            f"class {answer['labels'][query]} with score {float(answer['scores'][query]):.3f} is not in the reference"
        )
    count = len(wanted) + len(extra)
    return Matches(count, len(wanted) - len(free_wanted), first)


def align_detections(
    answer: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]], max_box: float, max_score: float
) -> dict[str, NDArray[Any]]:
    """A ranked detector's answer with its rows in the reference's order.

    Rows of nearly equal scores swap places from runtime to runtime. So do those on either side of the list's end: where
    the answer has another row there than the reference, both scored within `max_score` of the reference's last, it
    takes the reference's values but for the score, which is as right an answer.

    answer, reference: all outputs of one image, each (answers, ...); max_box, max_score: errors that are rounding
    """
    last = float(reference["scores"].min(initial=np.inf))
    same = answer["labels"] == reference["labels"]
    same &= np.abs(answer["boxes"] - reference["boxes"]).max(axis=1, initial=0) <= max_box
    same &= np.abs(answer["scores"] - reference["scores"]) <= max_score
    order = np.arange(len(same))
    rows = np.flatnonzero(~same)  # most rows are where they belong; the rest is paired with the nearest of its class
    distance = np.abs(reference["boxes"][rows, None].astype(np.float64) - answer["boxes"][None, rows]).max(
        -1, initial=0
    )
    apart = np.abs(reference["scores"][rows, None].astype(np.float64) - answer["scores"][None, rows])
    distance = np.maximum(distance, apart)
    distance[reference["labels"][rows, None] != answer["labels"][None, rows]] = np.inf
    wanted, offered = set(range(len(rows))), set(range(len(rows)))
    ends: list[int] = []
    for flat in np.argsort(distance, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(rows))
        if row in wanted and column in offered and distance[row, column] <= max(max_box, max_score):
            order[rows[row]] = rows[column]
            wanted.remove(row)
            offered.remove(column)
    for row, column in zip(sorted(wanted), sorted(offered), strict=True):
        order[rows[row]] = rows[column]
        scores = reference["scores"][rows[row]], answer["scores"][rows[column]]
        if all(abs(float(score) - last) <= max_score for score in scores):
            ends.append(int(rows[row]))
    aligned = {name: array[order] for name, array in answer.items()}
    for name in aligned.keys() - {"scores"}:
        aligned[name][ends] = reference[name][ends]
    return aligned
