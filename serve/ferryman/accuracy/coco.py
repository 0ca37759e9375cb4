"""Pictures with boxes, in COCO's format: annotations in one JSON file, pictures beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ferryman.accuracy.coco_map import TrueBox, check_evaluator, score_boxes
from ferryman.accuracy.names import LabelFinder
from ferryman.accuracy.scores import BoxScores
from ferryman.accuracy.truth import Progress, Truth, check_pictures, read_picture
from ferryman.errors import UsageError
from ferryman.manifest import Tolerance
from ferryman.matching import match_detections
from ferryman.predictor import Predictor
from ferryman.results import Detections

_SLACK = 1.0  # pixels that a box may reach over the picture's edge: annotators' tools round
Id = int | str
Pixels = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Picture(_Part):
    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class _Category(_Part):
    id: Id
    name: str


class _Annotation(_Part):
    id: Id = "without an id"
    image_id: Id
    category_id: Id
    bbox: tuple[Pixels, Pixels, Pixels, Pixels]
    area: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    iscrowd: bool = False


class _Document(_Part):
    images: list[_Picture]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class BoxedPictures(Truth[Detections]):
    """labels: the model's; class_ids: of those that were looked for; objects: of each picture"""

    labels: tuple[str, ...]
    class_ids: tuple[int, ...]
    objects: tuple[tuple[TrueBox, ...], ...]

    def ask_one(self, predictor: Predictor, image: bytes) -> Detections:
        """Average precision ranks every detection: the threshold of serving would cut off its tail."""
        return predictor.detect([image], 0.0)[0][0]

    def score(self, answers: Sequence[Detections]) -> BoxScores:
        return score_boxes(self.objects, answers, self.labels, self.class_ids)

    def compare(
        self, answers: Sequence[Detections], reference: Sequence[Detections], tolerance: Tolerance
    ) -> float | None:
        """Of the detections that parity looks at, matched one to one as it does."""
        wanted = matched = 0
        for answer, other in zip(answers, reference, strict=True):
            found = match_detections(_arrays(answer), _arrays(other), tolerance.score_threshold, tolerance.min_iou)
            wanted, matched = wanted + found.wanted, matched + found.matched
        return matched / wanted if wanted else None


def _arrays(answer: Detections) -> dict[str, np.ndarray]:
    """boxes: (count, 4) float64 xyxy in [0, 1] of the picture; scores, labels: (count,)"""
    boxes = np.array([one.box_xyxy for one in answer.detections], dtype=np.float64).reshape(-1, 4)
    return {
        "boxes": boxes / np.array([*answer.size, *answer.size]),
        "scores": np.array([one.score for one in answer.detections], dtype=np.float64),
        "labels": np.array([one.class_id for one in answer.detections], dtype=np.int64),
    }


def read_coco(place: Path, labels: tuple[str, ...], progress: Progress) -> BoxedPictures:
    """The pictures that a JSON file, or the one that lies in a folder, tells of.

    Raises UsageError, FileAccessError, ImageError, MissingExtraError.
    """
    check_evaluator()
    path = find_annotations(place)
    raw = read_picture(path)
    try:
        document = _Document.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path} holds no boxes in COCO's format: {where or 'its root'}: {first['msg']}") from error
    classes, notes = match_categories(path, document, labels)
    objects = sort_objects(path, document, classes)
    paths = find_pictures(path, document.images)
    sizes = [(one.width, one.height) if one.width and one.height else None for one in document.images]
    digest = check_pictures(paths, [one.file_name for one in document.images], sizes, raw, progress)
    known = tuple(sorted(set(classes.values())))
    return BoxedPictures(place, tuple(paths), digest, tuple(notes), labels, known, objects)


def find_annotations(place: Path) -> Path:
    """The JSON file that `place` is, or holds, itself or in `annotations`. Raises UsageError for none and several."""
    if place.is_file():
        return place
    folders = (place, place / "annotations")
    for pattern in ("_annotations.coco.json", "instances*.json", "*.json"):
        found = sorted(path for folder in folders for path in folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.relative_to(place).as_posix() for path in found)
            raise UsageError(f"{place} holds several annotations: name one of the files itself: {names}")
    raise UsageError(f"{place} holds no annotations in COCO's format (*.json), which a detector is measured with")


def match_categories(path: Path, document: _Document, labels: tuple[str, ...]) -> tuple[dict[Id, int], list[str]]:
    """The class of each category that the model knows, and what is left out. Raises UsageError when it knows none."""
    finder = LabelFinder(labels)
    used = {one.category_id for one in document.annotations if not one.iscrowd}
    classes = {one.id: found for one in document.categories if (found := finder.find(one.name)) is not None}
    unknown = [one for one in document.categories if one.id not in classes and one.id in used]
    described = finder.describe_unknown([one.name for one in unknown])
    if not used & classes.keys():
        raise UsageError(f"{path} has no object of a class that the model knows; its categories: {described or 'none'}")
    if not unknown:
        return classes, []
    left = sum(one.category_id not in classes for one in document.annotations)
    return classes, [f"{left} objects are left out, of categories that are no class of the model: {described}"]


def sort_objects(path: Path, document: _Document, classes: dict[Id, int]) -> tuple[tuple[TrueBox, ...], ...]:
    """The objects of each picture whose category is known. Raises UsageError for any that can't be right."""
    pictures = {one.id: one for one in document.images}
    if len(pictures) < len(document.images):
        raise UsageError(f"{path} gives the same id to several images")
    categories = {one.id for one in document.categories}
    objects: dict[Id, list[TrueBox]] = {one.id: [] for one in document.images}
    for one in document.annotations:
        what = f"{path}: annotation {one.id}"
        if one.image_id not in pictures:
            raise UsageError(f"{what} is of image {one.image_id}, which is not among the images")
        if one.category_id not in categories:
            raise UsageError(f"{what} is of category {one.category_id}, which is not among the categories")
        x, y, width, height = one.bbox
        if width <= 0 or height <= 0:
            raise UsageError(f"{what} has an empty box, {width:g}x{height:g} pixels")
        picture = pictures[one.image_id]
        right, bottom = picture.width or float("inf"), picture.height or float("inf")
        if min(x, y) < -_SLACK or x + width > right + _SLACK or y + height > bottom + _SLACK:
            box = f"{x:g}, {y:g}, {width:g}x{height:g}"
            raise UsageError(f"{what} has a box that lies outside {picture.file_name}: {box}")
        if one.category_id in classes:
            area = width * height if one.area is None else one.area
            objects[one.image_id].append(TrueBox(classes[one.category_id], one.bbox, area, one.iscrowd))
    return tuple(tuple(found) for found in objects.values())


def find_pictures(path: Path, pictures: Sequence[_Picture]) -> list[Path]:
    """Where a JSON file's pictures lie. Raises UsageError for the first that is missing."""
    folders = list(_folders(path))
    first = pictures[0].file_name
    folder = next((one for one in folders if (one / first).is_file()), None)
    if folder is None:
        tried = ", ".join(map(str, dict.fromkeys(folders)))
        raise UsageError(f"{first} of {path} is missing, looked for in {tried}")
    paths = [folder / one.file_name for one in pictures]
    missing = [one for one in paths if not one.is_file()]
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(paths)} pictures of {path} are missing, the first is {missing[0]}"
        )
    return paths


def _folders(path: Path) -> Iterator[Path]:
    """Beside the file, or beside its folder `annotations`; there too in a folder of its name, `images` or `data`."""
    for folder in (path.parent, path.parent.parent) if path.parent.name == "annotations" else (path.parent,):
        yield folder
        for name in (path.stem, path.stem.removeprefix("instances_"), "images", "data"):
            yield folder / name
