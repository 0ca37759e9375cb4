"""ONNX Runtime's providers: rows that are not there, played on those that are."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ferryman.bundle import Bundle
from ferryman.errors import EngineError
from ferryman.runtimes import RUNTIMES, why_not
from ferryman.runtimes import onnxruntime as ours
from ferryman.runtimes.base import Session
from ferryman.runtimes.hardware import name_hardware
from ferryman.runtimes.onnxruntime import PRODUCTS, OnnxRuntime
from ferryman.runtimes.providers import PROVIDERS, Provider, tune_tensorrt
from ferryman.specs import Target

from .toy import SPECS

PLAYED = Target.parse("onnxruntime-played-fp32")


@pytest.fixture(params=SPECS)
def bundle(request: pytest.FixtureRequest, toy_repository: Path) -> Bundle:
    return Bundle.open(toy_repository / request.param)


def load(bundle: Bundle, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setitem(PROVIDERS, PLAYED.device, provider)
    monkeypatch.setattr(OnnxRuntime, "known", {PLAYED.device: provider.precisions})
    return RUNTIMES["onnxruntime"].load(bundle.file("model.onnx"), PLAYED, bundle.spec)


ROWS = {
    "bound memory": Provider("CPUExecutionProvider", ("fp32",), memory="cpu"),
    "static shape": Provider("CPUExecutionProvider", ("fp32",), batch=1),
    "parts": Provider("CPUExecutionProvider", ("fp32",), batch=2, memory="cpu"),
}


@pytest.mark.parametrize("provider", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_rows_answer_alike(provider: Provider, batch: int, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = bundle.golden()
    with load(bundle, provider, monkeypatch) as session:
        answers = session.run(golden.batch(list(range(batch))))
        assert set(answers) == set(golden.outputs)
        for name, array in answers.items():
            np.testing.assert_allclose(array, golden.outputs[name][:batch], atol=1e-5)
            assert array.dtype == golden.outputs[name].dtype


def test_a_large_graph_runs_in_pairs_and_one_of_large_pictures_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = bundle.golden()
    size, wide = bundle.file("model.onnx").stat().st_size, 32 * 32
    for large, pixels, most in ((size + 1, 0, None), (size + 1, wide, None), (0, wide, 2), (0, wide - 1, 1)):
        monkeypatch.setattr("ferryman.runtimes.onnxruntime._LARGE_BYTES", large)
        monkeypatch.setattr("ferryman.runtimes.onnxruntime._LARGE_PIXELS", pixels)
        with load(bundle, PROVIDERS["cpu"], monkeypatch) as session:
            assert session.largest_useful_batch == most
            answers = session.run(golden.batch(list(range(5))))
        for name, array in answers.items():
            np.testing.assert_allclose(array, golden.outputs[name][:5], atol=1e-5)


@pytest.mark.parametrize("compiles", [False, True])
def test_what_the_provider_leaves_to_another_is_attested(
    compiles: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's takes no node of any graph, and ONNX Runtime runs all of it on the processor without a word."""
    nobody = Provider("AzureExecutionProvider", ("fp32",), compiles=compiles)
    if nobody.name not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {nobody.name}")
    with load(bundle, nobody, monkeypatch) as session:
        told = session.attest(bundle.golden().batch([0]))
    assert told.operators["Cast"].keys() <= {"int8 on CPU", "int32 on CPU"}
    if bundle.spec.task != "embedding":  # which has no products
        assert set(told.products) == {"fp32 on CPU"} | ({"fp32"} if compiles else set())
        for precision in ("fp32", "int8"):
            (line,) = told.find_failures(precision)
            assert "fell back from the device" in line


def test_one_that_can_must_take_the_whole_graph(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Provider("AzureExecutionProvider", ("fp32",), whole=True)
    if nobody.name not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {nobody.name}")
    with pytest.raises(EngineError, match=r"can't load .*fallback to CPU EP has been explicitly disabled"):
        load(bundle, nobody, monkeypatch)


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> Target:
    """A provider that ONNX Runtime says it has, and then leaves out without a word: CUDA's without its libraries."""
    target = Target.parse("onnxruntime-cuda-fp32")
    name, available = PROVIDERS[target.device].name, onnxruntime.get_available_providers()
    if name in available:
        pytest.skip(f"this ONNX Runtime has {name}")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*available, name])
    monkeypatch.setattr(ours, "has_gpu", lambda: True)
    monkeypatch.setattr(ours, "why_not_started", ours.why_not_started.__wrapped__)
    return target


# ONNX Runtime's own, of a provider that it does not know.
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_is_left_out(claimed: Target, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with the processor; here it is found out before, and once more as a session is opened."""
    why = why_not(claimed)
    assert why is not None
    assert why.startswith("ONNX Runtime can't start CUDAExecutionProvider: ")
    assert "pip install 'ferryman[gpu]' && pip uninstall -y onnxruntime && " in why
    monkeypatch.setattr(ours, "why_not_started", lambda name: None)
    assert why_not(claimed) is None
    with pytest.raises(EngineError, match="it left out CUDAExecutionProvider, for the reason that it gave above"):
        RUNTIMES["onnxruntime"].load(bundle.file("model.onnx"), claimed, bundle.spec)


def test_what_a_provider_is_tried_with() -> None:
    model = onnx.load_from_string(ours.PROBE)
    onnx.checker.check_model(model, full_check=True)
    assert ours.why_not_started("CPUExecutionProvider") is None


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.parse("onnxruntime-tensorrt-fp16")
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        assert "has no TensorrtExecutionProvider: pip install" in (why_not(target) or "")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(ours, "has_gpu", lambda: False)
    assert why_not(target) == "CUDA finds no NVIDIA GPU; is there one, and cuda-bindings (pip install 'ferryman[gpu]')?"


def test_a_row_of_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.parse("onnxruntime-arm64-int8")
    monkeypatch.setattr(ours.platform, "machine", lambda: "aarch64")
    assert why_not(target) is None
    monkeypatch.setattr(ours.platform, "machine", lambda: "x86_64")
    assert why_not(target) == "it is for processors called aarch64, and this one is x86_64"


def test_engines_of_tensorrt_are_kept_by_weights(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Path(shutil.copy(bundle.file("model.onnx"), tmp_path))
    half, full = Target.parse("onnxruntime-tensorrt-fp16"), Target.parse("onnxruntime-tensorrt-fp32")
    options = tune_tensorrt(path, half, bundle.spec)
    assert options["trt_profile_min_shapes"].startswith("image:1x32x32x3")
    assert options["trt_profile_max_shapes"].startswith("image:8x32x32x3")
    assert ("valid_size:8x2" in options["trt_profile_opt_shapes"]) == (bundle.spec.task == "detection")
    asked = {name: value for name, value in PROVIDERS["tensorrt"].options.items() if not name.endswith("cache_enable")}
    assert set(asked.values()) == {"0"}  # a precision that is asked for would leave the types to TensorRT
    model = onnx.load(path)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[-1])
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(weights + 1, model.graph.initializer[-1].name))
    places = {options["trt_engine_cache_path"], tune_tensorrt(path, full, bundle.spec)["trt_engine_cache_path"]}
    onnx.save(model, path)
    places.add(tune_tensorrt(path, half, bundle.spec)["trt_engine_cache_path"])
    assert len(places) == 3
    assert all(Path(place).parent == tmp_path / "ferryman" / "engines" for place in places)


def test_a_compiled_graph_tells_its_products(bundle: Bundle, tmp_path: Path) -> None:
    """What the file says of itself, where the export has written it."""
    target = Target.parse("onnxruntime-openvino-fp32")
    why = why_not(target)
    if why is not None:
        pytest.skip(why)
    model = onnx.load(bundle.file("model.onnx"))
    model.metadata_props.add(key=PRODUCTS, value=json.dumps({"int8": 9, "fp32": 1}))
    onnx.save(model, tmp_path / "model.onnx")
    with RUNTIMES["onnxruntime"].load(tmp_path / "model.onnx", target, bundle.spec) as session:
        told = session.attest(bundle.golden().batch([0]))
    assert told.products == {"int8": 9, "fp32": 1}
    assert told.find_failures("int8") == []


@dataclass
class PlayedHardware:
    type: str
    vendor: str
    vendor_id: int
    device_id: int
    metadata: dict[str, str]


@dataclass
class PlayedDevice:
    """What ONNX Runtime's `get_ep_devices` gives."""

    ep_name: str
    ep_vendor: str
    device: PlayedHardware
    ep_metadata: dict[str, str] = field(default_factory=dict[str, str])


ADRENO = PlayedHardware("OrtHardwareDeviceType.GPU", "Qualcomm", 0x5143, 0x43, {"Description": "Adreno X1"})
BARE = PlayedHardware("OrtHardwareDeviceType.NPU", "", 0x4D4F, 0x41, {"driver_version": "30.0.1"})
DEVICES = [
    PlayedDevice("WebGpuExecutionProvider", "Microsoft", ADRENO),
    PlayedDevice("QNNExecutionProvider", "Qualcomm", BARE),
    PlayedDevice("CPUExecutionProvider", "Microsoft", BARE),
]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("webgpu", "Adreno X1, GPU 5143:0043"),
        ("qnn", "Qualcomm, NPU 4d4f:0041, driver 30.0.1"),
        ("coreml", "unknown: ONNX Runtime names no device of its CoreMLExecutionProvider"),
        ("cpu", ""),  # which the certificate names anyhow
        ("openvino", ""),
    ],
)
def test_a_device_is_named(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: DEVICES)
    assert RUNTIMES["onnxruntime"].accelerator(device) == name


def test_the_processor_as_onnxruntime_names_it() -> None:
    """Of what runs here, the one real answer."""
    assert re.fullmatch(r"\S.*, CPU [0-9a-f]{4}:[0-9a-f]{4}", name_hardware("CPUExecutionProvider"))


def test_an_onnxruntime_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "get_ep_devices")
    assert name_hardware("QNNExecutionProvider").startswith("unknown: this ONNX Runtime is older than 1.22")
