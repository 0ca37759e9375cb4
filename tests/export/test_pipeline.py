"""From a checkpoint to a bundle: what is in it, what the graph is, and what fails without leaving anything."""

import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.errors import BundleCorruptError, CheckpointError, FerrymanError, ImageError, ParityError, UsageError
from ferryman.golden import load_golden
from ferryman.parity import ParityReports
from ferryman.predictor import Predictor
from ferryman.specs import PreprocessSpec, classification_spec
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.samples import MIN_SAMPLES, add_crops
from ferryman_models.checkpoints.native import load_native, save_native
from ferryman_models.vit import ViT

from .tiny import VIT


@pytest.fixture(scope="module")
def bundles(
    checkpoints: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    repository = tmp_path_factory.mktemp("repository")
    return {kind: export(ExportRequest(str(path), repository, samples=pictures)) for kind, path in checkpoints.items()}


@pytest.mark.parametrize("kind", ["vit", "detr"])
def test_bundle_is_whole_and_proved(kind: str, bundles: dict[str, Bundle], checkpoints: dict[str, Path]) -> None:
    bundle = bundles[kind]
    assert bundle.path.parts[-2:] == (f"tiny-{kind}", "1")
    assert set(bundle.manifest.files) == {
        "model.onnx",
        "golden.npz",
        "labels.txt",
        "parity.json",
        "parity.html",
    }
    assert bundle.manifest.source.sha256 == load_native(checkpoints[kind], kind).sha256
    (report,) = ParityReports.model_validate_json(bundle.file("parity.json").read_bytes()).reports
    assert report.passed
    limited = [error for error in report.errors if error.limit is not None]
    assert limited
    assert max(error.max_abs for error in limited) <= 1e-4
    # In tiny models nothing but rounding may differ: real errors must not hide below the limit.
    assert max(error.max_abs for error in limited) <= 1e-5
    assert report.batches == (1, 2, 5)
    if kind == "detr":
        assert report.detections > 0, "nothing was matched, so the comparison of detections proved nothing"


def test_weights_beside_the_graph(
    bundles: dict[str, Bundle],
    checkpoints: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of every model above the 2 GB that one file of protocol buffers holds; this one is made to do the same."""
    monkeypatch.setattr("ferryman_export.onnx.EXTERNAL_DATA_BYTES", 0)
    found: list[str] = []
    made, whole = (
        export(ExportRequest(str(checkpoints["vit"]), tmp_path / "r", samples=pictures, bisect=found.append)),
        bundles["vit"],
    )
    assert set(made.manifest.files) == {*whole.manifest.files, "model.onnx.data"}
    assert made.file("model.onnx.data").stat().st_size > 40_000
    assert found[0].startswith("no module diverges")
    sizes = [bundle.size_bytes(*bundle.variants()) for bundle in (made, whole)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)

    moved = Bundle.open(made.path.rename(tmp_path / "elsewhere"))

    with Predictor(moved) as predictor, Predictor(whole) as other:
        for path in sorted(pictures.iterdir()):
            assert predictor.classify([path.read_bytes()])[0] == other.classify([path.read_bytes()])[0]
    with moved.file("model.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    with pytest.raises(BundleCorruptError, match=r"model\.onnx\.data is not the file that was exported"):
        Bundle.open(moved.path)


@pytest.mark.parametrize("kind", ["vit", "detr"])
def test_graph_keeps_the_contract(kind: str, bundles: dict[str, Bundle]) -> None:
    bundle = bundles[kind]
    graph = onnx.load(bundle.file("model.onnx"))
    assert graph.opset_import[0].version >= 18
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert metadata["ferryman.task"] == bundle.spec.task
    assert json.loads(metadata["ferryman.labels"]) == list(bundle.spec.labels)
    assert json.loads(metadata["ferryman.preprocess"])["mean"] == [0.485, 0.456, 0.406]
    assert metadata["ferryman.source_sha256"] == bundle.manifest.source.sha256
    assert metadata["ferryman.tool.torch"] == version("torch")
    operators = bundle.manifest.variants[0].operators
    # The plain attention exports as such: no masks, no IsNaN of the fused operator.
    assert "IsNaN" not in operators
    blocks = 2 if kind == "vit" else 1 + 2 * 2
    assert operators["Softmax"] == blocks + 1
    assert {value.name for value in graph.graph.input} == set(bundle.spec.input_names)


@pytest.mark.parametrize("kind", ["vit", "detr"])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_plain_onnxruntime_answers_like_pytorch(kind: str, batch: int, bundles: dict[str, Bundle]) -> None:
    bundle = bundles[kind]
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    session = onnxruntime.InferenceSession(bundle.file("model.onnx"), providers=["CPUExecutionProvider"])
    indices = [index % len(golden) for index in range(batch)]
    for name, answer in zip(
        bundle.spec.output_names,
        session.run(list(bundle.spec.output_names), golden.batch(indices)),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(answer), golden.outputs[name][indices], rtol=0, atol=1e-4)


def test_padding_pixels_do_not_matter(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["detr"]
    golden = load_golden(bundle.file("golden.npz"), bundle.spec)
    with Predictor(bundle) as predictor:
        for index in range(len(golden)):
            inputs = golden.batch([index])
            height, width = inputs["valid_size"][0]
            first = predictor.sessions[0].run(inputs)
            painted = inputs["image"].copy()
            painted[:, height:], painted[:, :, width:] = 17, 201
            second = predictor.sessions[0].run({**inputs, "image": painted})
            for name in bundle.spec.output_names:
                np.testing.assert_array_equal(first[name], second[name])


def test_golden_samples_are_padded_on_either_side(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["detr"]
    valid = load_golden(bundle.file("golden.npz"), bundle.spec).inputs["valid_size"]
    height, width = bundle.spec.preprocess.size
    assert (valid[:, 0] < height).any()
    assert (valid[:, 1] < width).any()
    assert (valid == (height, width)).all(1).any()


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_crops_that_prove_padding_come_first(pictures: int) -> None:
    """A large detector is proved on six samples, every one of which costs seconds."""
    image = Image.new("RGB", (100, 80))
    samples = add_crops({f"{index}": image for index in range(pictures)}, MIN_SAMPLES, (64, 96))
    assert len(samples) == MIN_SAMPLES
    assert {"0 (canvas)", "0 (wide)", "0 (tall)"} <= set(samples)
    assert samples["0 (canvas)"].size == (100, 67)


def test_page_is_self_contained(bundles: dict[str, Bundle]) -> None:
    page = bundles["detr"].file("parity.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert page.count("<img") >= 4 + 2 * 6
    assert "within tolerance" in page
    assert "onnxruntime-cpu-fp32" in page


def test_versions_are_never_overwritten(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    first = export(ExportRequest(str(checkpoints["vit"]), tmp_path, name="mine", samples=pictures))
    before = first.digest
    second = export(ExportRequest(str(checkpoints["vit"]), tmp_path, name="mine", samples=pictures))
    assert [first.path.name, second.path.name] == ["1", "2"]
    assert Bundle.open(tmp_path / "mine" / "1").digest == before
    assert [child.name for child in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("kind", "size"), [("vit", (24, 40)), ("detr", (80, 48))], ids=["vit 24x40", "detr 80x48"])
def test_other_sizes(
    kind: str, size: tuple[int, int], checkpoints: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    bundle = export(ExportRequest(str(checkpoints[kind]), tmp_path, samples=pictures, sizes=(size,)))
    assert bundle.spec.inputs[0].shape == ("batch", *size, 3)


def test_position_embeddings_are_constants(pictures: Path, tmp_path: Path) -> None:
    """However many: the exporter itself folds small ones alone, and runtimes differ in bicubic Resize."""
    torch.manual_seed(4)
    model = ViT(replace(VIT, image_size=(96, 96), dim=64, depth=1))
    preprocess = PreprocessSpec(size=(96, 96), fit="stretch")
    save_native(tmp_path / "many.safetensors", model, classification_spec(preprocess, tuple("abcdefg")))
    source = str(tmp_path / "many.safetensors")
    bundle = export(ExportRequest(source, tmp_path / "r", samples=pictures, sizes=((64, 112),)))
    operators = bundle.manifest.variants[0].operators
    assert "Resize" not in operators
    assert operators["MatMul"] + operators.get("Gemm", 0) >= 6


def test_one_picture_is_enough(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(pictures / "50x50.png", tmp_path / "one")
    bundle = export(ExportRequest(str(checkpoints["detr"]), tmp_path / "r", samples=tmp_path / "one"))
    assert len(load_golden(bundle.file("golden.npz"), bundle.spec)) >= 6


def test_out_of_tolerance_leaves_no_bundle(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    request = ExportRequest(str(checkpoints["detr"]), tmp_path / "r", samples=pictures, tolerance=1e-12)
    with pytest.raises(ParityError, match=r"output \w+, sample .*: max abs error .* is above 1e-12"):
        export(request)
    assert not (tmp_path / "r").exists()


def make_source(case: str, good: Path, folder: Path) -> str:
    path = folder / f"{case}.safetensors"
    if case == "empty":
        path.touch()
    elif case == "text":
        path.write_text("these are no weights")
    elif case == "truncated":
        path.write_bytes(good.read_bytes()[:-100])
    elif case == "pickle":
        torch.save({"weights": torch.zeros(3)}, path)
    elif case == "folder":
        path.mkdir()
    elif case == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, path)
    return str(path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "there is no checkpoint"),
        ("empty", "can't be read as safetensors"),
        ("text", "can't be read as safetensors"),
        ("truncated", "can't be read as safetensors"),
        ("pickle", "can't be read as safetensors"),
        ("folder", "config.json is missing"),
        ("foreign", "is not a Ferryman checkpoint"),
    ],
)
def test_bad_sources(case: str, message: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = make_source(case, checkpoints["vit"], tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        export(ExportRequest(source, tmp_path / "r"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_bad_requests(checkpoints: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    vit = str(checkpoints["vit"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    cases: list[tuple[ExportRequest, type[FerrymanError], str]] = [
        (
            ExportRequest(vit, tmp_path / "r", name="../up", samples=pictures),
            UsageError,
            "can't be a model's name",
        ),
        (
            ExportRequest(vit, tmp_path / "r", sizes=((33, 32),), samples=pictures),
            UsageError,
            "33x32.*multiple of the patch",
        ),
        (
            ExportRequest(vit, tmp_path / "r", tolerance=0.0, samples=pictures),
            UsageError,
            "tolerance must be above 0",
        ),
        (ExportRequest(vit, tmp_path / "r", samples=tmp_path / "empty"), UsageError, "holds no picture"),
        (ExportRequest(vit, tmp_path / "r", samples=tmp_path / "none"), UsageError, "is not a folder"),
        (ExportRequest(vit, tmp_path / "r", samples=tmp_path / "broken"), ImageError, "a.png"),
    ]
    for request, error, message in cases:
        with pytest.raises(error, match=message):
            export(request)
    assert not (tmp_path / "r").exists()
