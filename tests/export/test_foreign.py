"""Someone else's ONNX file gets the graph contract around it; its answers are computed by hand here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.commands.inspect import run_inspect
from ferryman.errors import CheckpointError, FerrymanError, FileAccessError, UsageError
from ferryman.files import sha256_file
from ferryman.predictor import Predictor
from ferryman_export.pipeline import ExportRequest, export

CLASSIFIER: dict[str, Any] = {
    "task": "classification",
    "labels": ["a", "b", "c"],
    "preprocess": {"size": [16, 24], "fit": "stretch", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    "input": {"name": "pixel_values"},
    "outputs": {"logits": "scores"},
}
DETECTOR: dict[str, Any] = {
    "task": "detection",
    "labels": ["a", "b"],
    "preprocess": {"size": [16, 24], "fit": "pad", "pad_value": [9, 99, 199]},
    "input": {"name": "image", "layout": "NHWC", "dtype": "uint8", "normalize": False},
    "outputs": {"logits": "logits", "boxes": "boxes", "scores": "sigmoid", "box_format": "xyxy", "box_unit": "pixel"},
}
SOFTMAX = {"scores": "softmax", "no_object": 0, "box_format": "cxcywh", "box_unit": "image"}


def constant(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float32), name)


def save(path: Path, nodes: list[onnx.NodeProto], constants: list[TensorProto], image: Any, outputs: Any) -> Path:
    """image: name, type and shape of the input; outputs: names and shapes."""
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info(*image)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def save_classifier(path: Path, batch: int | str = "n") -> Path:
    """Logits: the channels' means times 3, in batches of any size."""
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "three"], ["scores"]),
    ]
    image = ("pixel_values", TensorProto.FLOAT, [batch, 3, 16, 24])
    return save(path, nodes, [constant("three", 3)], image, [("scores", [batch, 3])])


LOGITS = {
    "sigmoid": [[2.0, -1.0], [-3.0, 1.0], [-4.0, -5.0]],
    "softmax": [[0.0, 2.0, -1.0], [0.5, -3.0, 1.0], [6.0, -4.0, -5.0]],
}
BOXES = {
    "xyxy": [[0, 0, 6, 8], [6, 4, 12, 16], [0, 0, 24, 16]],
    "cxcywh": [[0.125, 0.25, 0.25, 0.5], [0.375, 0.625, 0.25, 0.75], [0.5, 0.5, 1, 1]],
}


def save_detector(path: Path, outputs: dict[str, Any]) -> Path:
    """Three queries with the same boxes and logits whatever the image; the batch is the image's."""
    shape, boxes = np.array(LOGITS[outputs["scores"]]).shape, BOXES[outputs["box_format"]]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["level"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["level", "zero"], ["nothing4"]),
        helper.make_node("Squeeze", ["nothing4", "last"], ["nothing"]),
        helper.make_node("Add", ["nothing", "logits_of_all"], ["logits"]),
        helper.make_node("Add", ["nothing", "boxes_of_all"], ["boxes"]),
    ]
    constants = [
        constant("zero", 0),
        numpy_helper.from_array(np.array([3], dtype=np.int64), "last"),
        constant("logits_of_all", LOGITS[outputs["scores"]]),
        constant("boxes_of_all", boxes),
    ]
    sizes = [("logits", ["n", *shape]), ("boxes", ["n", 3, 4])]
    return save(path, nodes, constants, ("image", TensorProto.UINT8, ["n", "h", "w", 3]), sizes)


def request(source: Path, spec: dict[str, Any], pictures: Path, folder: Path) -> ExportRequest:
    (folder / "spec.json").write_text(json.dumps(spec))
    return ExportRequest(str(source), folder / "r", samples=pictures, onnx_spec=folder / "spec.json")


def answer(bundle: Bundle, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    with Predictor(bundle) as predictor:
        return dict(predictor.sessions[0].run(inputs))


def test_classifier(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_classifier(tmp_path / "theirs.onnx")
    bundle = export(request(source, CLASSIFIER, pictures, tmp_path))
    facts = bundle.manifest.source
    assert (facts.source, facts.architecture, facts.sha256) == (str(source), "onnx", sha256_file(source))
    with Image.open(pictures / "50x50.png") as picture:
        canvas = np.asarray(picture.resize((24, 16)))
    mean = ((canvas / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.3)).mean(axis=(0, 1))
    found = answer(bundle, {"image": np.stack([canvas, canvas[::-1]])})
    np.testing.assert_allclose(found["logits"], [3 * mean, 3 * mean], atol=1e-5)
    np.testing.assert_allclose(found["probabilities"][0], np.exp(3 * mean) / np.exp(3 * mean).sum(), atol=1e-5)
    run_inspect(bundle.path, None, json_output=False)
    shown = capsys.readouterr().out
    assert "its PyTorch source was not seen" in shown
    assert "At export, against the ONNX file" in shown


# Scores and labels of the best class, "no object" left out.
SIGMOID_SCORES = [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(4))]
SOFTMAX_SCORES = [
    np.exp(best) / np.exp(all_logits).sum() for best, all_logits in zip((2, 1, -4), LOGITS["softmax"], strict=True)
]


@pytest.mark.parametrize(
    ("outputs", "logits", "scores"),
    [
        ({}, [[2, -1, 0], [-3, 1, 0], [-4, -5, 0]], SIGMOID_SCORES),
        (SOFTMAX, [[2, -1, 0], [-3, 1, 0.5], [-4, -5, 6]], SOFTMAX_SCORES),
    ],
    ids=["sigmoid, pixels, corners", "softmax, shares, centres"],
)
def test_detector(
    outputs: dict[str, Any], logits: list[list[float]], scores: list[float], pictures: Path, tmp_path: Path
) -> None:
    spec = DETECTOR | {"outputs": DETECTOR["outputs"] | outputs}
    bundle = export(request(save_detector(tmp_path / "theirs.onnx", spec["outputs"]), spec, pictures, tmp_path))
    canvas = np.zeros((1, 16, 24, 3), dtype=np.uint8)
    # Of a valid area of 16x12 pixels in the canvas of 16x24; the last box reaches over it and is clipped.
    found = answer(bundle, {"image": canvas, "valid_size": np.array([[16, 12]], dtype=np.int32)})
    boxes = [[0, 0, 0.5, 0.5], [0.5, 0.25, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_allclose(found["boxes"][0], boxes, atol=1e-6)
    np.testing.assert_allclose(found["logits"][0], logits, atol=1e-6)
    np.testing.assert_allclose(found["scores"][0], scores, atol=1e-6)
    assert found["labels"][0].tolist() == [0, 1, 0]


def change(spec: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A spec of which some parts, or the parts in them, are others."""
    return spec | {key: spec[key] | part if isinstance(part, dict) else part for key, part in parts.items()}


BAD: dict[str, tuple[dict[str, Any], type[FerrymanError], str]] = {
    "other input": (change(CLASSIFIER, input={"name": "x"}), UsageError, "has the inputs pixel_values; it must have x"),
    "other output": (
        change(CLASSIFIER, outputs={"logits": "x"}),
        UsageError,
        "has the outputs scores, its spec names x",
    ),
    "layout": (
        change(CLASSIFIER, input={"layout": "NHWC"}),
        UsageError,
        r"\['n', 3, 16, 24\], its spec says .*16, 24, 3",
    ),
    "size": (change(CLASSIFIER, preprocess={"size": [16, 16]}), UsageError, r"its spec says \('batch', 3, 16, 16\)"),
    "type": (
        change(CLASSIFIER, input={"dtype": "uint8", "normalize": False}),
        UsageError,
        r"is tensor\(float\), its spec says uint8",
    ),
    "labels": (
        change(CLASSIFIER, labels=["a"]),
        UsageError,
        r"float32 \(2, 3\) .*expected float32 \(2, 1\) with 1 labels",
    ),
    "task": (change(CLASSIFIER, task="detection"), UsageError, "the outputs are not those of detection"),
    "unknown key": (CLASSIFIER | {"mean": 1}, UsageError, "wrong at mean: Extra inputs"),
    "uint8 normalised": (change(CLASSIFIER, input={"dtype": "uint8"}), UsageError, "normalised values are no uint8"),
}


@pytest.mark.parametrize(("spec", "error", "message"), BAD.values(), ids=BAD.keys())
def test_a_spec_that_does_not_fit(
    spec: dict[str, Any], error: type[FerrymanError], message: str, pictures: Path, tmp_path: Path
) -> None:
    source = save_classifier(tmp_path / "theirs.onnx")
    with pytest.raises(error, match=message) as caught:
        export(request(source, spec, pictures, tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_bad_files(pictures: Path, tmp_path: Path) -> None:
    fixed = save_classifier(tmp_path / "fixed.onnx", batch=1)
    (tmp_path / "text.onnx").write_text("no graph")
    old = onnx.load(save_classifier(tmp_path / "old.onnx"))
    old.opset_import[0].version = 11
    onnx.save(old, tmp_path / "old.onnx")
    cases: list[tuple[Path, type[FerrymanError], str]] = [
        (fixed, UsageError, "exported for batches of 1 alone; export it with a dynamic batch"),
        (tmp_path / "text.onnx", CheckpointError, "is no valid ONNX file"),
        (tmp_path / "none.onnx", CheckpointError, "none.onnx can't be read: No such file"),
        (tmp_path / "old.onnx", UsageError, "uses operator set 11, at least 13 is needed"),
    ]
    for source, error, message in cases:
        with pytest.raises(error, match=message):
            export(request(source, CLASSIFIER, pictures, tmp_path))
    with pytest.raises(FileAccessError, match=r"can't read .*gone.json"):
        export(ExportRequest(str(fixed), tmp_path / "r", samples=pictures, onnx_spec=tmp_path / "gone.json"))
    good = request(save_classifier(tmp_path / "good.onnx"), CLASSIFIER, pictures, tmp_path)
    with pytest.raises(UsageError, match="export it with --onnx-spec FILE"):
        export(ExportRequest(good.source, good.repository))
    with pytest.raises(UsageError, match=r"--size, --bisect and --explain don't go with an ONNX file"):
        export(ExportRequest(good.source, good.repository, sizes=((8, 8),), onnx_spec=good.onnx_spec))
    assert not (tmp_path / "r").exists()
