"""From pictures to answers: bundles of models that transformers builds, against its own processors and models.

Every family of `families` is tried by `make test-all`, by `make test` one of each kind.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.golden import load_golden
from ferryman.parity import ParityReports
from ferryman.predictor import Predictor
from ferryman_export.pipeline import ExportRequest, export

from .families import CANVAS, CLASSIFIERS, DETECTORS, Family

# Of pictures whose size on the canvas is a whole number of pixels: the rest is rounded by transformers in ways that
# differ from class to class, and by us to the nearest.
SIZES = ((64, 96), (128, 192), (32, 96), (64, 40), (160, 120), (50, 75))
CHOSEN = [
    pytest.param(
        name,
        id=name,
        marks=() if family.default else pytest.mark.nightly,
    )
    for name, family in (CLASSIFIERS | DETECTORS).items()
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    random = np.random.default_rng(3)
    for height, width in SIZES:
        noise = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height)).save(folder / f"{height}x{width}.png")
    return folder


def export_family(family: Family, model: Any, samples: Path, folder: Path) -> Bundle:
    model.save_pretrained(folder / "model")
    family.build_processor().save_pretrained(folder / "model")
    return export(ExportRequest(str(folder / "model"), folder / "repository", samples=samples))


def prepare(family: Family, image: Image.Image) -> dict[str, Any]:
    """What transformers' processor gives the model, on the same canvas as ours."""
    padding: dict[str, Any] = {}
    if "max_height" in family.options["size"]:
        padding = {"do_pad": True, "pad_size": {"height": CANVAS[0], "width": CANVAS[1]}}
    inputs = family.build_processor()(image, return_tensors="pt", **padding)
    wanted = ("pixel_values", "pixel_mask") if family.takes_mask else ("pixel_values",)
    return {name: inputs[name] for name in wanted}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_answers_equal_transformers(name: str, samples: Path, tmp_path: Path) -> None:
    family = (CLASSIFIERS | DETECTORS)[name]
    model = family.build()
    bundle = export_family(family, model, samples, tmp_path)
    assert bundle.manifest.source.architecture == family.model
    (report,) = ParityReports.model_validate_json(bundle.file("parity.json").read_bytes()).reports
    # In tiny models nothing but rounding may differ.
    assert max(error.max_abs for error in report.errors if error.limit is not None) <= family.tolerance
    opset = onnx.load(bundle.file("model.onnx")).opset_import
    assert [(entry.domain, entry.version) for entry in opset] == [("", 18)]
    if name.startswith(("deformable", "lw", "rt", "rf")):
        assert bundle.manifest.variants[0].operators["GridSample"] >= 1
    logits = load_golden(bundle.file("golden.npz"), bundle.spec).outputs["logits"]
    assert logits.std(axis=0).max() > 1e-3, "the pictures are all answered alike, which proves nothing"
    compare = compare_detections if name in DETECTORS else compare_classes
    with Predictor(bundle) as predictor:
        for path in sorted(samples.iterdir()):
            compare(predictor, path, family, model)


def compare_classes(predictor: Predictor, path: Path, family: Family, model: Any) -> None:
    inputs = prepare(family, Image.open(path))
    expected = model(**inputs).logits[0].softmax(-1)
    assert expected.std() > 1e-3, "the classes are all alike, so that the comparison proves nothing"
    (found,), _ = predictor.classify([path.read_bytes()], top_k=len(expected))
    for prediction in found.predictions:
        assert prediction.score == pytest.approx(expected[prediction.class_id].item(), abs=family.tolerance)


def compare_detections(predictor: Predictor, path: Path, family: Family, model: Any) -> None:
    image = Image.open(path)
    output = model(**prepare(family, image))
    reader = family.build_processor() if family.post is None else Family("", dict, family.post).build_processor()
    sizes = [(image.height, image.width)]
    expected = reader.post_process_object_detection(output, threshold=-1.0, target_sizes=sizes)[0]
    (found,), _ = predictor.detect([path.read_bytes()], score_threshold=0.0)
    assert len(found.detections) == len(expected["scores"])
    ranking = expected["scores"].argsort(descending=True, stable=True)
    for rank, detection in enumerate(found.detections):
        # A label that stands elsewhere than in transformers' order is a near tie, never another answer.
        here, labels = expected["scores"][ranking[rank]], expected["labels"]
        alike = (labels == detection.class_id) & ((expected["scores"] - here).abs() <= 2 * family.tolerance)
        assert abs(detection.score - here.item()) <= family.tolerance
        assert alike.any(), f"rank {rank} is {detection}, transformers has another of score {here}"
    boxes = expected["boxes"].clamp(torch.zeros(4), torch.tensor([image.width, image.height] * 2))
    assert boxes.std(dim=0).max() > 0.01 * max(image.size), "the boxes are all alike"
    free = set(range(len(boxes)))
    for detection in found.detections:
        # As a set: equal scores have no order.
        errors = {
            index: max(
                abs(detection.score - expected["scores"][index].item()),
                (torch.tensor(detection.box_xyxy) - boxes[index]).abs().max().item() / max(image.size),
            )
            for index in free
            if detection.class_id == expected["labels"][index].item()
        }
        best = min(errors, key=errors.__getitem__)
        assert errors[best] <= family.tolerance, f"{detection} is {errors[best]:.3g} away"
        free.remove(best)


def test_boxes_of_a_stretched_picture_are_in_its_own_pixels(samples: Path, tmp_path: Path) -> None:
    """And another canvas than the processor's is answered, with the queries that it has."""
    family = DETECTORS["yolos"]
    folder = tmp_path / "model"
    family.build().save_pretrained(folder)
    Family("", dict, "Yolos", {"size": {"height": 64, "width": 96}}).build_processor().save_pretrained(folder)
    bundle = export(ExportRequest(str(folder), tmp_path / "repository", samples=samples, sizes=((96, 80),)))
    assert bundle.spec.preprocess.size == (96, 80)
    assert bundle.spec.preprocess.fit == "stretch"
    with Predictor(bundle) as predictor:
        (tall,), _ = predictor.detect([(samples / "160x120.png").read_bytes()], score_threshold=0)
    corners = np.array([detection.box_xyxy for detection in tall.detections])
    assert corners[:, 3].max() > 120 or corners[:, 2].max() > 96
    assert (corners <= [120, 160, 120, 160]).all()
