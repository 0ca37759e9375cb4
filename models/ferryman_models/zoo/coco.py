"""COCO mean average precision through pycocotools."""

import contextlib
import io
from typing import Any

import numpy as np

from ferryman_models.zoo.scenes import Scene


def coco_map(scenes: list[Scene], answers: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """mAP over IoU 0.50 to 0.95, and mAP at IoU 0.50.

    answers: a scene each: boxes (count, 4) xyxy in pixels, scores (count,), labels (count,)
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def to_xywh(box: np.ndarray) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations: list[dict[str, object]] = []
    for image, scene in enumerate(scenes):
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            xywh = to_xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": xywh,
                    "area": xywh[2] * xywh[3],
                    "iscrowd": 0,
                }
            )
    results = [
        {"image_id": image, "category_id": int(label), "bbox": to_xywh(box), "score": float(score)}
        for image, answer in enumerate(answers)
        for box, score, label in zip(*answer, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables as it goes
        truth: Any = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(scenes))],
            "categories": [{"id": category} for category in range(10)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])
