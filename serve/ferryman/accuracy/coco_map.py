"""COCO's mean average precision, as pycocotools computes it."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import StringIO
from typing import Any

import numpy as np

from ferryman.accuracy.scores import BoxScores
from ferryman.errors import MissingExtraError
from ferryman.results import Detections


@dataclass(frozen=True)
class TrueBox:
    """One object. box_xywh: left, top, width, height in pixels; area: of its shape, in pixels

    crowd: stands for many, of which any number may be found and none need be
    """

    class_id: int
    box_xywh: tuple[float, float, float, float]
    area: float
    crowd: bool


def check_evaluator() -> None:
    """Raises MissingExtraError."""
    if find_spec("pycocotools") is None:
        raise MissingExtraError("COCO's mean average precision", "coco")


def score_boxes(
    truth: Sequence[Sequence[TrueBox]], answers: Sequence[Detections], labels: Sequence[str], class_ids: Sequence[int]
) -> BoxScores:
    """truth: the objects of each picture; answers: one a picture, with every detection, whatever its score

    class_ids: of the classes that were looked for; detections of others count neither way
    """
    from pycocotools.cocoeval import COCOeval

    wanted = [
        _annotation(picture, box.class_id, box.box_xywh, area=box.area, iscrowd=int(box.crowd))
        for picture, boxes in enumerate(truth)
        for box in boxes
    ]
    found: list[dict[str, Any]] = []
    for picture, answer in enumerate(answers):
        for one in answer.detections:
            x1, y1, x2, y2 = one.box_xyxy
            area = (x2 - x1) * (y2 - y1)
            xywh = (x1, y1, x2 - x1, y2 - y1)
            found.append(_annotation(picture, one.class_id, xywh, area=area, iscrowd=0, score=one.score))
    with redirect_stdout(StringIO()):  # pycocotools prints as it goes
        index = partial(_index, len(truth), class_ids)
        evaluation = COCOeval(index(wanted), index(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (IoUs, recalls, classes, sizes, limits) of precision, -1 where a class has no objects; all sizes, 100 detections
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    means = {
        labels[class_id]: float(precision[:, :, index].mean())
        for index, class_id in enumerate(evaluation.params.catIds)
        if precision[:, :, index].max() > -1
    }
    stats = [None if value < 0 else float(value) for value in evaluation.stats]
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    facts = dict(zip(names, stats, strict=False)) | {"recall_100": stats[8], "per_class": means}
    objects = sum(not box.crowd for boxes in truth for box in boxes)
    return BoxScores.model_validate(facts | {"pictures": len(truth), "objects": objects})


def _annotation(picture: int, class_id: int, box_xywh: Sequence[float], **facts: float) -> dict[str, Any]:
    return {"image_id": picture, "category_id": class_id, "bbox": list(box_xywh), **facts}


def _index(pictures: int, class_ids: Sequence[int], annotations: list[dict[str, Any]]) -> Any:
    """What COCOeval takes. `COCO.loadRes` makes the same of answers, but fails where there are none."""
    from pycocotools.coco import COCO

    index: Any = COCO()
    index.dataset = {
        "images": [{"id": picture} for picture in range(pictures)],
        "categories": [{"id": class_id} for class_id in class_ids],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],  # 0 means unmatched
    }
    index.createIndex()
    return index
