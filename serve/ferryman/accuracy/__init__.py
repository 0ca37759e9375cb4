"""Real accuracy on labelled pictures: top-1 and top-5 of a classifier, COCO's mean average precision of a detector."""

from pathlib import Path
from typing import Any

from ferryman.accuracy.coco import read_coco
from ferryman.accuracy.image_folder import read_image_folder
from ferryman.accuracy.report import ACCURACY, Accuracy, AccuracyReport, measure_accuracy, read_accuracy
from ferryman.accuracy.truth import Progress, Truth
from ferryman.errors import TaskError, UsageError
from ferryman.specs import DETECTING, ModelSpec

__all__ = ["ACCURACY", "Accuracy", "AccuracyReport", "Truth", "measure_accuracy", "read_accuracy", "read_truth"]


def read_truth(place: Path, spec: ModelSpec, progress: Progress = lambda stage, done, total: None) -> Truth[Any]:
    """Labelled pictures for a model: a folder a class, or COCO's annotations; every picture was decoded once.

    Raises UsageError, FileAccessError, ImageError for what is wrong with them, TaskError for a model of another task,
    MissingExtraError.
    """
    if spec.task != "classification" and spec.task not in DETECTING:
        raise TaskError(f"accuracy is measured of classifiers and detectors, not of {spec.task} models")
    if not place.exists():
        raise UsageError(f"there is no {place}; --accuracy takes a folder of labelled pictures")
    if spec.task in DETECTING:
        return read_coco(place, spec.labels, progress)
    if not place.is_dir():
        raise UsageError(f"{place} is not a folder; a classifier is measured with pictures in a folder a class")
    return read_image_folder(place, spec.labels, progress)
