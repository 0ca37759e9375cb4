"""TensorRT's variants: typed ONNX files, rehearsed on the CPU, of which engines are built without a GPU."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from ferryman.bundle import Bundle
from ferryman.errors import ParityError
from ferryman.proof import read_reports
from ferryman.specs import PreprocessSpec, Target, classification_spec
from ferryman_export.onnx import check_graph, digest_structure
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.variants.base import BuildReport
from ferryman_export.variants.rehearsal import attest_graph
from ferryman_models.checkpoints.native import save_native
from ferryman_models.vit import ViT
from ferryman_models.zoo import pictures_folder

from .digit_pictures import save_digit_pictures
from .tiny import VIT

FLOATS = ("tensorrtrtx-gpu-fp32", "tensorrtrtx-gpu-fp16", "tensorrtrtx-gpu-bf16")
INT8, FP8 = "tensorrtrtx-gpu-int8", "tensorrtrtx-gpu-fp8"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration") / "digits"
    save_digit_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def vit(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    labelled = tmp_path_factory.mktemp("labelled")
    for path in pictures_folder("classification").iterdir():
        folder = labelled / path.stem.removeprefix("digit-")
        folder.mkdir()
        shutil.copy(path, folder)
    request = ExportRequest(
        "vit-digits",
        tmp_path_factory.mktemp("v"),
        targets=tuple(map(Target.parse, (*FLOATS, INT8, FP8))),
        calibration=calibration,
        accuracy=labelled,
    )
    return export(request)


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    targets = tuple(map(Target.parse, FLOATS[:2]))  # in bf16 its small boxes lie at the limit of the tolerance
    return export(ExportRequest("detr-digits", tmp_path_factory.mktemp("d"), targets=targets))


def assert_built(bundle: Bundle) -> None:
    """Every variant holds the tolerance and is what its name says, in the typed graph and in TensorRT's network."""
    reports = {report.target: report for report in read_reports(bundle)}
    for target in bundle.targets[1:]:
        report = reports[str(target)]
        assert report.passed
        assert report.runtime_version.startswith("emulated in ONNX Runtime")
        (variant,) = bundle.variants(str(target))
        path = bundle.file(variant.path)
        check_graph(path, bundle.spec)
        told = attest_graph(onnx.load(path))
        assert told == report.attestation
        assert told.share(target.precision) >= 0.9
    assert [path.stem for path in (bundle.path / "certificates").iterdir()] == ["onnxruntime-cpu-fp32"]

    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ferryman[tensorrt-rtx]'")
    command = [sys.executable, "-m", "ferryman", "build", str(bundle.path), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "TensorRT: Building engine" in result.stderr
    engines = json.loads(result.stdout)["engines"]
    assert [engine["key"]["target"] for engine in engines] == [str(target) for target in bundle.targets[1:]]
    for engine in engines:
        counts = reports[engine["key"]["target"]].attestation
        assert counts is not None
        network = list(engine["products"].values())
        assert {name: network.count(name) for name in set(network)} == counts.products
    assert Bundle.open(bundle.path).digest == bundle.digest  # engines lie outside the digests
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert all(engine["there_already"] for engine in json.loads(again.stdout)["engines"])


@pytest.mark.slow
def test_vit_digits(vit: Bundle) -> None:
    assert_built(vit)
    # Accuracy is counted of what runs here.
    counted = json.loads((vit.path / "accuracy.json").read_bytes())
    assert [variant["target"] for variant in counted["variants"]] == ["onnxruntime-cpu-fp32"]


def test_what_two_trainings_of_a_model_share(tmp_path: Path) -> None:
    """An engine of the one can take the weights of the other, which the structure in the manifest says."""
    targets = tuple(map(Target.parse, ("tensorrt-gpu-fp32", "tensorrt-gpu-fp16")))
    bundles: list[Bundle] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        preprocess = PreprocessSpec(size=(32, 32), fit="stretch")
        save_native(tmp_path / f"{seed}", ViT(VIT), classification_spec(preprocess, tuple("abcdefg")))
        bundles.append(export(ExportRequest(str(tmp_path / f"{seed}"), tmp_path / "models", "vit", targets=targets)))
    for target in targets:
        ((first,), (second,)) = (bundle.variants(str(target)) for bundle in bundles)
        assert first.structure == second.structure is not None
        graphs = [onnx.load(bundle.file(one.path)) for bundle, one in zip(bundles, (first, second), strict=True)]
        assert digest_structure(graphs[1]) == first.structure
        assert len({graph.SerializeToString() for graph in graphs}) == 2
        norm = next(node for node in graphs[1].graph.node if node.op_type == "LayerNormalization")
        next(one for one in norm.attribute if one.name == "epsilon").f *= 2
        assert digest_structure(graphs[1]) != first.structure
    assert [bundle.variants()[0].structure for bundle in bundles] == [None, None]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_model_of_convolutions_is_refused_in_fp8(calibration: Path, tmp_path: Path) -> None:
    request = ExportRequest("detr-digits", tmp_path / "r", targets=(Target.parse(FP8),), calibration=calibration)
    with pytest.raises(ParityError, match="14 of the 60 matrix products with weights are convolutions, which stay in"):
        export(request)
    assert not (tmp_path / "r").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_an_engine_a_size_and_the_second_knows_how_long_it_takes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ferryman[tensorrt-rtx]'")
    target = "tensorrtrtx-gpu-fp32"
    bundle = export(ExportRequest("vit-digits", tmp_path, sizes=((24, 24), (24, 32)), targets=(Target.parse(target),)))
    command = [sys.executable, "-m", "ferryman", "build", str(bundle.path), "--batch", "4", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    small, wide = (engine["key"]["profiles"] for engine in json.loads(result.stdout)["engines"])
    assert [profile["image"] for profile in small] == [[[1, 24, 24, 3]] * 3, [[2, 24, 24, 3], *[[4, 24, 24, 3]] * 2]]
    assert [profile["image"][2] for profile in wide] == [[1, 24, 32, 3], [4, 24, 32, 3]]
    assert f"{target} at 24x24: TensorRT: Building engine" in result.stderr
    assert re.search(rf"{target} at 24x32: TensorRT: \d0? %, about \d+ s left", result.stderr)


@pytest.mark.slow
def test_ctrl_c_ends_a_build(vit: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ferryman[tensorrt-rtx]'")
    command = [sys.executable, "-m", "ferryman", "build", str(vit.path), "--target", INT8, "--batch", "3"]
    before = sorted(vit.path.rglob("*"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"{INT8} at 24x24: TensorRT: " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
    assert rest.endswith("ferryman: interrupted\n")
    assert "Traceback" not in rest
    assert sorted(vit.path.rglob("*")) == before


@pytest.mark.nightly
@pytest.mark.slow
def test_detr_digits(detr: Bundle) -> None:
    assert_built(detr)
    report = BuildReport.model_validate_json(
        (detr.path / "variants" / "tensorrtrtx-gpu-fp16" / "build.json").read_bytes()
    )
    assert report.islands is not None
    assert report.islands.curve[-1].passed
    # The padding mask and what it is added to.
    assert report.notes[0].startswith("in fp32 for the numbers they meet: ")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype"), [(INT8, "INT8"), (FP8, "FLOAT8E4M3FN")])
def test_the_graph_in_8_bits_has_zero_in_the_middle(vit: Bundle, target: str, dtype: str) -> None:
    (variant,) = vit.variants(target)
    model = onnx.load(vit.file(variant.path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    points = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(not onnx.numpy_helper.to_array(point).any() for point in points)
    assert {point.data_type for point in points} == {onnx.TensorProto.DataType.Value(dtype)}
