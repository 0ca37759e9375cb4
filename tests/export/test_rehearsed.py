"""Variants for devices that are not here: proved in a stand-in on the processor, and never certified."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from ferryman.bundle import Bundle
from ferryman.errors import EngineError, ParityError
from ferryman.proof import read_reports
from ferryman.runtimes import RUNTIMES, open_session, why_not
from ferryman.runtimes.onnxruntime import PRODUCTS
from ferryman.runtimes.openvino import OpenVino
from ferryman.specs import Target
from ferryman_export import half
from ferryman_export.pipeline import ExportRequest, export
from ferryman_export.variants import GROUPS, RECIPES, choose_targets, left_out
from ferryman_export.variants.base import CANONICAL
from ferryman_export.variants.rehearsal import is_rehearsed, run_as
from ferryman_models.zoo.digits import load_digits, load_photographs
from ferryman_models.zoo.scenes import make_digit_picture

pytest.importorskip("openvino")
# Of each way to build such a variant one, with the runtime that stands for its device.
FLOATS = {
    "onnxruntime-cuda-fp32": "ONNX Runtime",
    "onnxruntime-cuda-bf16": "ONNX Runtime",
    "onnxruntime-qnn-fp16": "ONNX Runtime",
    "openvino-gpu-fp32": "OpenVINO",
    "openvino-npu-fp16": "ONNX Runtime",
}
EIGHT = {"onnxruntime-arm64-int8": "ONNX Runtime", "openvino-gpu-int8": "OpenVINO"}


def skip_where_they_run(names: dict[str, str]) -> None:
    here = [name for name in names if why_not(Target.parse(name)) is None]
    if here:
        pytest.skip(f"this machine runs {', '.join(here)}")


@pytest.fixture(scope="module")
def floats(checkpoints: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    skip_where_they_run(FLOATS)
    targets = tuple(map(Target.parse, FLOATS))
    folder = tmp_path_factory.mktemp("floats")
    return export(ExportRequest(str(checkpoints["vit"]), folder, targets=targets, samples=pictures))


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    skip_where_they_run(EIGHT)
    folder, random = tmp_path_factory.mktemp("calibration"), np.random.default_rng(4)
    digits, photographs = load_digits("train"), load_photographs("train")
    for number in range(60):
        picture, _ = make_digit_picture(random, digits, number, photographs, side=36)
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    targets = tuple(map(Target.parse, EIGHT))
    return export(ExportRequest("vit-digits", tmp_path_factory.mktemp("eight"), targets=targets, calibration=folder))


def assert_rehearsed(bundle: Bundle, runtimes: dict[str, str]) -> None:
    reports = {report.target: report for report in read_reports(bundle)}
    for name, runtime in runtimes.items():
        report, target = reports[name], Target.parse(name)
        assert report.passed
        assert report.runtime_version.startswith(f"emulated in {runtime} ")
        assert report.attestation is not None
        assert report.attestation.find_failures(target.precision) == []
        with pytest.raises(EngineError, match=f"^{name} can't run here: "):
            open_session(bundle, name)
    assert [path.stem for path in (bundle.path / "certificates").iterdir()] == [str(CANONICAL)]


@pytest.mark.nightly
@pytest.mark.slow
def test_floats(floats: Bundle) -> None:
    assert_rehearsed(floats, FLOATS)
    paths = {str(variant.target): variant.path for variant in floats.manifest.variants}
    assert paths["onnxruntime-cuda-fp32"] == paths[str(CANONICAL)] == "model.onnx"  # no second copy
    graph = onnx.load(floats.file(paths["onnxruntime-cuda-bf16"]))
    assert {tensor.data_type for tensor in graph.graph.initializer} >= {onnx.TensorProto.BFLOAT16}
    told = {one.key: one.value for one in graph.metadata_props}
    assert json.loads(told[PRODUCTS]).keys() == {"bf16"}  # for a provider that hides what it compiles
    assert told["ferryman.source_sha256"] == floats.manifest.source.sha256  # beside what was there
    # The IR of fp16 holds half the bytes of that in fp32.
    sizes = {name: floats.file(path.replace(".xml", ".bin")).stat().st_size for name, path in paths.items()}
    assert sizes["openvino-npu-fp16"] < 0.6 * sizes["openvino-gpu-fp32"]


@pytest.mark.slow
def test_eight_bits(eight: Bundle) -> None:
    assert_rehearsed(eight, EIGHT)
    (variant,) = eight.variants("onnxruntime-arm64-int8")
    graph = onnx.load(eight.file(variant.path)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    points = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert {point.data_type for point in points} == {onnx.TensorProto.INT8}  # Arm's products are of signed numbers


@pytest.mark.slow
def test_fp16_throughout_is_refused_where_it_does_not_hold(
    checkpoints: dict[str, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's devices give no island back. Numbers of three bits stand for a model that needs some."""
    target = Target.parse("openvino-npu-fp16")
    skip_where_they_run({str(target): ""})
    monkeypatch.setattr(half, "_TYPES", {"fp16": onnx.TensorProto.FLOAT8E5M2})
    request = ExportRequest(str(checkpoints["vit"]), tmp_path / "r", targets=(target,), samples=pictures)
    with pytest.raises(ParityError, match="openvino-npu-fp16 can't be built: in fp16 throughout, "):
        export(request)
    assert not (tmp_path / "r").exists()


def test_every_row_of_a_runtime_can_be_exported() -> None:
    """And no other: all that a runtime is driven as has a recipe, the canonical variant aside."""
    known = {str(target) for runtime in RUNTIMES.values() for target in runtime.targets()}
    assert set(RECIPES) | {str(CANONICAL)} == known
    assert set(GROUPS["all-cpu"]) == {name for name in RECIPES if "-cpu-" in name}


@pytest.mark.parametrize("able", [True, False])
def test_a_group_without_what_this_processor_can_not_do(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bf16 gets the others, and is told; by its own name it is an error, as for any target."""
    lacks = "this CPU has no bf16"
    monkeypatch.setattr(
        OpenVino, "_lacks", lambda _, target: lacks if target.precision == "bf16" and not able else None
    )
    group, half = list(GROUPS["all-cpu"]), "openvino-cpu-bf16"
    assert [str(one) for one in choose_targets(["all-cpu"])] == [one for one in group if able or one != half]
    assert left_out(["all-cpu"]) == ({} if able else {half: lacks})
    assert [str(one) for one in choose_targets([half])] == [half]
    assert left_out([half]) == {}


def test_what_stands_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    float16, eight = Target.parse("openvino-gpu-fp16"), Target.parse("openvino-gpu-int8")
    skip_where_they_run({str(float16): ""})
    assert (run_as(float16), str(run_as(eight))) == (CANONICAL, "openvino-cpu-int8")
    monkeypatch.setattr("ferryman_export.variants.rehearsal.why_not", lambda target: None)
    assert [(is_rehearsed(target), run_as(target)) for target in (float16, eight)] == [(False, float16), (False, eight)]
    # An engine must be built on the device first.
    assert run_as(Target.parse("tensorrt-gpu-fp16")) == CANONICAL
