"""`export --accuracy`: what each variant gets right, against the runtimes and PyTorch asked without Ferryman."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from ferryman.accuracy import AccuracyReport, read_accuracy
from ferryman.accuracy.scores import BoxScores, TopScores
from ferryman.bundle import Bundle
from ferryman.device import read_device, saturates
from ferryman.specs import Target
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.variants.base import BuildReport
from ferryman_models.checkpoints.native import load_native
from ferryman_models.detr import DETR
from ferryman_models.zoo import EMBEDDED, pictures_folder
from ferryman_models.zoo.detr_digits import evaluate_map, held_out_scenes
from ferryman_models.zoo.digits import load_digits, load_photographs
from ferryman_models.zoo.scenes import make_digit_picture

from ..serve.commands.outcome import Cli
from .digit_scenes import save_scenes

CANVAS = (24, 24)  # of vit-digits, whose shorter side is the picture's: a square picture is only resized


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of digits that training never saw, by what they show."""
    folder = tmp_path_factory.mktemp("digits")
    digits, photographs = load_digits("test"), load_photographs("test")
    random = np.random.default_rng(11)
    for number in range(150):
        picture, _ = make_digit_picture(random, digits, number, photographs)
        place = folder / str(digits.labels[number]) / f"{number:03}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place)
    return folder


def test_digits_in_two_precisions(digits: Path, cli: Cli, tmp_path: Path) -> None:
    command = ["export", "vit-digits", "-o", tmp_path, "--target", "onnxruntime-cpu-int8"]
    document = cli(*command, "--calibration", digits, "--accuracy", digits, "--json").document
    bundle = Bundle.open(document["bundle"])  # the digest of accuracy.json is right
    report = read_accuracy(bundle)
    assert report is not None
    assert report.model_dump(mode="json") == document["accuracy"]
    paths = sorted(digits.glob("*/*.png"))
    images = np.stack([np.asarray(Image.open(path).resize(CANVAS, Image.Resampling.BILINEAR)) for path in paths])
    wanted = np.array([int(path.parent.name) for path in paths])
    classes: list[np.ndarray] = []
    for variant, found in zip(bundle.manifest.variants, report.variants, strict=True):
        options = onnxruntime.SessionOptions()
        if saturates(read_device().cpu_features):
            options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(bundle.path / variant.path, options, ["CPUExecutionProvider"])
        logits = np.concatenate([np.asarray(session.run(["logits"], {"image": image[None]})[0]) for image in images])
        order = np.argsort(-logits, axis=1)
        classes.append(order[:, 0])
        assert isinstance(found.scores, TopScores)
        assert (found.target, found.scores.right) == (str(variant.target), int((order[:, 0] == wanted).sum()))
        assert found.scores.top5 == pytest.approx((order[:, :5] == wanted[:, None]).any(axis=1).mean())
        assert found.agreement == pytest.approx((classes[0] == order[:, 0]).mean())
        assert 0.9 < found.scores.top1 < 1
    build = BuildReport.model_validate_json(
        (bundle.path / "variants" / "onnxruntime-cpu-int8" / "build.json").read_bytes()
    )
    assert {one.name for one in build.candidates} == {"static", "dynamic"}  # there are no sums of convolutions
    kept, other = build.candidates
    assert None not in (kept.latency_ms, other.latency_ms, kept.error, other.error)
    assert (kept.error or 1) < (other.error or 1) or (kept.latency_ms or 1) < (other.latency_ms or 1)
    assert {trial.plan.method == "dynamic" for trial in build.trials} == {kept.name == "dynamic"}
    text = cli("inspect", bundle.path).stdout
    assert f"top-1 of the 150 labelled pictures of {digits.name}" in text
    assert cli("inspect", bundle.path, "--json").document["accuracy"] == document["accuracy"]


@pytest.mark.nightly
def test_scenes_against_the_model_in_pytorch(tmp_path: Path) -> None:
    """The whole crossing: mAP of the bundle on files is the mAP of the PyTorch model on arrays."""
    pytest.importorskip("pycocotools")
    pytest.importorskip("openvino")
    scenes = held_out_scenes("test", 60)
    objects = save_scenes(tmp_path / "data", scenes)
    targets = (Target.parse("openvino-cpu-fp32"),)
    bundle = export(ExportRequest("detr-digits", tmp_path / "r", targets=targets, accuracy=tmp_path / "data"))
    report = AccuracyReport.model_validate_json(bundle.file("accuracy.json").read_bytes())
    model = load_native(EMBEDDED["detr-digits"], "detr-digits")
    assert isinstance(model.module, DETR)
    expected = evaluate_map(model.module, scenes, model.spec.preprocess)
    assert [one.target for one in report.variants] == ["onnxruntime-cpu-fp32", "openvino-cpu-fp32"]
    for one in report.variants:
        assert isinstance(one.scores, BoxScores)
        assert (one.scores.map, one.scores.map_50) == pytest.approx(expected, abs=1e-3)
        assert one.scores.objects == objects
        assert one.agreement == 1


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_int8_loses_next_to_nothing(tmp_path: Path) -> None:
    """Of the embedded detector, on scenes that training never saw."""
    pytest.importorskip("pycocotools")
    pytest.importorskip("openvino")
    save_scenes(tmp_path / "train", held_out_scenes("train", 300, seed=11))
    save_scenes(tmp_path / "test", held_out_scenes("test", 300))
    targets = tuple(map(Target.parse, ("openvino-cpu-int8", "onnxruntime-cpu-int8")))
    request = ExportRequest(
        "detr-digits", tmp_path / "r", targets=targets, calibration=tmp_path / "train", accuracy=tmp_path / "test"
    )
    report = AccuracyReport.model_validate_json(export(request).file("accuracy.json").read_bytes())
    exact, *others = [one.scores for one in report.variants]
    assert isinstance(exact, BoxScores)
    assert len(others) == len(targets)
    for one in others:
        assert isinstance(one, BoxScores)
        assert one.map_50 >= exact.map_50 - 0.01
        assert one.map >= exact.map - 0.02


def test_labelled_pictures_that_are_wrong_are_found_first(cli: Cli, tmp_path: Path) -> None:
    """Before PyTorch answers anything, and nothing is left."""
    outcome = cli("export", "vit-digits", "-o", tmp_path / "r", "--accuracy", pictures_folder("classification"))
    assert outcome.status == 2
    assert "holds no folders; pictures belong in one a class" in outcome.complaint
    assert outcome.stderr.count("- ") == 2  # loading PyTorch, loading the checkpoint
    assert not (tmp_path / "r").exists()
