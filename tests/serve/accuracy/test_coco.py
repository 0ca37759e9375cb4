"""Average precision on pictures with boxes in COCO's format, against pycocotools reading the same file itself."""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ferryman.accuracy import coco_map, measure_accuracy, read_truth
from ferryman.accuracy.coco import BoxedPictures
from ferryman.accuracy.scores import BoxScores
from ferryman.bundle import Bundle
from ferryman.predictor import Predictor
from ferryman.preprocess import PreprocessSpec
from ferryman.results import Detection, Detections
from ferryman.specs import detection_spec

from ..commands.outcome import Cli
from ..toy import LABELS, TARGET, make_picture

pytest.importorskip("pycocotools")
COUNT = 40
# In another order than the model's labels and in other letters, with ids that are not counted from 0.
CATEGORIES = {70: "Dark", 3: "blue", 41: "GREEN", 5: "red", 9: "crowd of cells"}
SIZES = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "recall_100": 8}


@pytest.fixture(scope="module")
def bundle(toy_repository: Path) -> Bundle:
    return Bundle.open(toy_repository / "toy-detector")


@pytest.fixture(scope="module")
def data(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and annotations: what the model finds, moved and in part of another class; and crowds."""
    folder = tmp_path_factory.mktemp("boxes")
    random = np.random.default_rng(7)
    ids = {name.casefold(): number for number, name in CATEGORIES.items()}
    document: dict[str, Any] = {"info": {"year": 2026}, "images": [], "annotations": []}
    document["categories"] = [{"id": number, "name": name, "supercategory": "x"} for number, name in CATEGORIES.items()]
    with Predictor(bundle) as predictor:
        for number in range(COUNT):
            width, height = (int(side) for side in random.integers(40, 400, 2))
            colour = tuple(int(level) for level in random.integers(0, 256, 3))
            picture = make_picture((colour[0], colour[1], colour[2]), width, height, seed=number)
            name = f"{number}.png"
            (folder / name).write_bytes(picture)
            image = {"id": f"image-{number}", "file_name": name, "width": width, "height": height}
            document["images"].append(image)
            for found in predictor.detect([picture], 0.0)[0][0].detections:
                if number % 8 == 0:  # pictures without objects
                    continue
                x1, y1, x2, y2 = found.box_xyxy
                side = min(x2 - x1, y2 - y1) * random.uniform(0, 0.3)
                category = ids[found.label] if random.random() < 0.8 else int(random.choice(list(CATEGORIES)))
                width, height = x2 - x1 - side, y2 - y1 - side
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": image["id"],
                        "category_id": category,
                        "bbox": [x1 + side, y1 + side, width, height],
                        "area": width * height * random.uniform(0.1, 1),  # a shape's, smaller than its box
                        "iscrowd": int(random.random() < 0.15),
                        "segmentation": [],
                    }
                )
    (folder / "instances_val.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def pycocotools_stats(path: Path, bundle: Bundle) -> list[float]:
    """COCO's twelve figures, from the file as pycocotools reads it and answers as its evaluation server takes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {name.casefold(): number for number, name in CATEGORIES.items()}
    results: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(io.StringIO()), Predictor(bundle) as predictor:
        truth = COCO(str(path))
        for image in truth.dataset["images"]:
            picture = (path.parent / image["file_name"]).read_bytes()
            for found in predictor.detect([picture], 0.0)[0][0].detections:
                x1, y1, x2, y2 = found.box_xyxy
                box = [x1, y1, x2 - x1, y2 - y1]
                category = ids[found.label]
                results.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": found.score})
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.catIds = [ids[label] for label in LABELS]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def test_the_figures_are_pycocotools(bundle: Bundle, data: Path) -> None:
    truth = read_truth(data, bundle.spec)
    report = measure_accuracy(bundle, [TARGET], truth)
    (only,) = report.variants
    assert isinstance(only.scores, BoxScores)
    stats = pycocotools_stats(data / "instances_val.json", bundle)
    for name, index in SIZES.items():
        assert getattr(only.scores, name) == pytest.approx(stats[index], abs=1e-12), name
    assert 0.1 < only.scores.map < only.scores.map_50 < 1
    assert list(only.scores.per_class) == list(LABELS)
    assert np.mean(list(only.scores.per_class.values())) == pytest.approx(stats[0], abs=1e-12)
    assert (report.pictures, only.agreement) == (COUNT, 1)
    (note,) = report.notes
    assert note.endswith("objects are left out, of categories that are no class of the model: crowd of cells")


def test_verify_and_advise_tell_it(cli: Cli, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    expected = pycocotools_stats(data / "instances_val.json", bundle)[0]
    arguments = ("--accuracy", data, "--certificates", tmp_path)
    document = cli("verify", bundle.path, *arguments, "--json").document
    assert document["accuracy"]["variants"][0]["scores"]["map"] == pytest.approx(expected, abs=1e-12)
    assert f"{TARGET}  {expected:.3f}" in cli("verify", bundle.path, *arguments).stdout
    text = cli("advise", bundle.path, "--seconds", 0.1, *arguments).stdout
    assert f"mAP of the {COUNT} labelled pictures of {data.name}" in text
    assert text.splitlines()[2].split()[-4:] == [f"{expected:.3f}", "on", "the", "front"]


def show(boxes: list[tuple[int, tuple[float, float, float, float]]], size: tuple[int, int]) -> Detections:
    detections = tuple(Detection(LABELS[label], label, 0.9, box) for label, box in boxes)
    return Detections(size, size, detections)


def answer_with_truth(truth: BoxedPictures) -> list[Detections]:
    """Just what is there."""
    answers: list[Detections] = []
    for path, objects in zip(truth.paths, truth.objects, strict=True):
        with Image.open(path) as image:
            size = image.size
        boxes = [(one.class_id, one.box_xywh) for one in objects if not one.crowd]
        answers.append(show([(label, (x, y, x + w, y + h)) for label, (x, y, w, h) in boxes], size))
    return answers


def test_the_truth_itself_is_right_and_nothing_is_wrong(bundle: Bundle, data: Path) -> None:
    truth = read_truth(data, bundle.spec)
    assert isinstance(truth, BoxedPictures)
    right = answer_with_truth(truth)
    perfect = truth.score(right)
    assert (perfect.map, perfect.map_50, perfect.recall_100) == (1, 1, 1)
    nothing = [Detections(answer.size, answer.size, ()) for answer in right]
    empty = truth.score(nothing)
    assert (empty.map, empty.recall_100, empty.objects) == (0, 0, perfect.objects)
    tolerance = bundle.tolerance(TARGET)
    assert truth.compare(right, right, tolerance) == 1
    assert truth.compare(nothing, right, tolerance) == 0
    assert truth.compare(nothing, nothing, tolerance) is None


def test_real_pictures_of_blood(shared_data: Path) -> None:
    spec = detection_spec(PreprocessSpec(size=(32, 32), fit="pad"), ("wbc", "rbc", "platelets", "dark"), 3)
    truth = read_truth(shared_data / "bccd" / "test.json", spec)
    assert isinstance(truth, BoxedPictures)
    assert (len(truth.paths), sum(map(len, truth.objects)), truth.notes) == (72, 945, ())
    perfect = truth.score(answer_with_truth(truth))
    assert (perfect.map, perfect.objects, list(perfect.per_class)) == (1, 945, ["wbc", "rbc", "platelets"])
    with pytest.raises(ValueError, match=r"name one of the files itself: test\.json, train\.json, val\.json"):
        read_truth(shared_data / "bccd", spec)


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("_annotations.coco.json", ""),
        ("labels.json", ""),
        ("val.json", "val"),
        ("annotations/instances_val2017.json", "val2017"),
        ("instances_val.json", "images"),
    ],
)
def test_where_files_lie(annotations: str, pictures: str, bundle: Bundle, tmp_path: Path) -> None:
    """In the layouts of COCO itself and of those who write its format; another JSON file beside does no harm there."""
    path = write_one(tmp_path, annotations, pictures)
    truth = read_truth(tmp_path, bundle.spec)
    assert truth.paths == (tmp_path / pictures / "one.png",)
    assert read_truth(path, bundle.spec).sha256 == truth.sha256


ONE: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "one.png", "width": 48, "height": 40}],
    "categories": [{"id": 0, "name": "colours"}, {"id": 1, "name": "red"}],  # the first has no objects: a group's name
    "annotations": [{"id": 8, "image_id": 1, "category_id": 1, "bbox": [4, 5, 20, 30]}],
}


def write_one(folder: Path, annotations: str = "a.json", pictures: str = "", document: object = ONE) -> Path:
    path = folder / annotations
    for parent in (path.parent, folder / pictures):
        parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    (folder / pictures / "one.png").write_bytes(make_picture((200, 20, 20)))
    return path


def set_box(*box: float) -> Callable[[Any], None]:
    return lambda document: document["annotations"][0].update(bbox=list(box))


def set_first(part: str, **facts: object) -> Callable[[Any], None]:
    return lambda document: document[part][0].update(facts)


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "another kind of JSON": (lambda document: document.pop("images"), "holds no boxes in COCO's format: images: Field"),
    "segments without boxes": (lambda document: document["annotations"][0].pop("bbox"), "annotations.0.bbox: Field"),
    "a box of three": (set_box(1, 2, 3), "holds no boxes in COCO's format: annotations.0.bbox"),
    "a box of infinity": (set_box(1, 2, 3, float("inf")), "annotations.0.bbox.3: Input should be a finite number"),
    "an empty box": (set_box(1, 2, 0, 5), "annotation 8 has an empty box, 0x5 pixels"),
    "a box outside": (set_box(20, 2, 30, 5), "annotation 8 has a box that lies outside one.png: 20, 2, 30x5"),
    "an image that is not there": (set_first("annotations", image_id=2), "annotation 8 is of image 2, which is not"),
    "a category that is not there": (
        lambda document: document["annotations"].append(ONE["annotations"][0] | {"category_id": 2}),
        "is of category 2, which is not among the categories",
    ),
    "no class of the model": (
        lambda document: document["categories"][1].update(name="redd"),
        "has no object of a class that the model knows; its categories: redd (nearest label: red)",
    ),
    "no objects": (lambda document: document["annotations"].clear(), "has no object of a class that the model knows"),
    "crowds alone": (set_first("annotations", iscrowd=1), "has no object of a class that the model knows"),
    "ids twice": (lambda document: document["images"].append(ONE["images"][0]), "gives the same id to several images"),
    "a missing picture": (set_first("images", file_name="two.png"), "two.png of {folder}/a.json is missing, looked"),
    "one of two missing": (
        lambda document: document["images"].append({"id": 2, "file_name": "two.png"}),
        "1 of the 2 pictures of {folder}/a.json are missing, the first is {folder}/two.png",
    ),
    "another picture": (set_first("images", width=50), "has 48x40 pixels upright, its annotations are for 50x40"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_annotations_that_can_not_be_right(
    change: Callable[[Any], object], message: str, cli: Cli, bundle: Bundle, tmp_path: Path
) -> None:
    document = copy.deepcopy(ONE)
    change(document)
    write_one(tmp_path, document=document)
    outcome = cli("verify", bundle.path, "--accuracy", tmp_path)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert message.format(folder=tmp_path) in outcome.complaint


def test_folders_that_are_none(cli: Cli, bundle: Bundle, tmp_path: Path) -> None:
    outcome = cli("verify", bundle.path, "--accuracy", tmp_path)
    assert (outcome.status, outcome.complaint.rpartition("holds ")[2][:14]) == (2, "no annotations")
    (tmp_path / "a.json").write_text("[1, 2")
    outcome = cli("verify", bundle.path, "--accuracy", tmp_path)
    assert (outcome.status, "Invalid JSON" in outcome.complaint) == (2, True)
    write_one(tmp_path)
    (tmp_path / "one.png").write_bytes(b"no photo")
    outcome = cli("verify", bundle.path, "--accuracy", tmp_path)
    assert (outcome.status, f"{tmp_path / 'one.png'}: the 8 bytes are not a JPEG" in outcome.complaint) == (1, True)


def test_without_pycocotools(cli: Cli, bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is measured, with what installs it."""
    monkeypatch.setattr(coco_map, "find_spec", lambda name: None)
    outcome = cli("verify", bundle.path, "--accuracy", data)
    assert (outcome.status, outcome.stdout) == (1, "")
    assert outcome.complaint.endswith("needs an optional part; install it with: pip install 'ferryman[coco]'")
