"""OpenVINO on devices that are not here, played by the processor: what it is asked to compute in."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ferryman.bundle import Bundle
from ferryman.device import count_usable, read_device
from ferryman.runtimes import RUNTIMES, why_not
from ferryman.runtimes.base import Settings
from ferryman.runtimes.openvino import name_device, open_core
from ferryman.runtimes.seven_bits import narrow_weights
from ferryman.specs import PreprocessSpec, Target, classification_spec

openvino = pytest.importorskip("openvino")
ABLE = {"CPU": ["FP32", "INT8", "BF16"], "GPU": ["FP32", "FP16", "INT8"], "NPU": ["FP16", "INT8"]}

# As OpenVINO's plugins answer; an NPU's tells its driver's version, the graphics' does not.
FACTS: dict[str, dict[str, Any]] = {
    "GPU": {"SUPPORTED_PROPERTIES": ["FULL_DEVICE_NAME"], "FULL_DEVICE_NAME": "Intel(R) Arc(TM) Graphics (iGPU)"},
    "NPU": {
        "SUPPORTED_PROPERTIES": ["FULL_DEVICE_NAME", "NPU_DRIVER_VERSION"],
        "FULL_DEVICE_NAME": "Intel(R) AI Boost",
        "NPU_DRIVER_VERSION": 1688,
    },
}


class PlayedCore:
    """A core with a GPU and an NPU; it compiles for the processor, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.available_devices = ["CPU", "GPU.0", "GPU.1", "NPU"]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._core = open_core()

    def get_property(self, device: str, name: str) -> Any:
        return ABLE[device] if name == "OPTIMIZATION_CAPABILITIES" else FACTS[device][name]

    def read_model(self, path: Path) -> Any:
        return self._core.read_model(path)

    def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
        self.asked.append((device, config))
        return self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> PlayedCore:
    played = PlayedCore()
    monkeypatch.setattr("ferryman.runtimes.openvino.open_core", lambda: played)
    return played


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("openvino-cpu-fp32", "f32"),
        ("openvino-cpu-int8", "bf16"),  # what int8 leaves in floating point
        ("openvino-gpu-fp32", "f32"),
        ("openvino-gpu-fp16", "f16"),
        ("openvino-gpu-int8", "f16"),
        ("openvino-npu-fp16", "f16"),
        ("openvino-npu-int8", "f16"),  # an NPU has no fp32
    ],
)
def test_what_a_device_is_asked_for(core: PlayedCore, target: str, hint: str, toy_repository: Path) -> None:
    bundle = Bundle.open(toy_repository / "toy-classifier")
    golden, settings = bundle.golden(), Settings(threads=1, hint="throughput")
    asked = Target.parse(target)
    with RUNTIMES["openvino"].load(bundle.file("model.onnx"), asked, bundle.spec, settings) as session:
        answers = session.run(golden.batch([0, 1]))
    np.testing.assert_allclose(answers["probabilities"], golden.outputs["probabilities"][:2], atol=1e-5)
    ((device, config),) = core.asked
    assert device == asked.device.upper()
    assert config["INFERENCE_PRECISION_HINT"] == hint
    assert config["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert ("INFERENCE_NUM_THREADS" in config) == (device == "CPU")
    # Fewer threads than processors are held to none of them: those of all models would be held to the same.
    assert config.get("ENABLE_CPU_PINNING") == (count_usable() == 1 if device == "CPU" else None)


def test_pixels_are_read_where_they_lie(
    core: PlayedCore, monkeypatch: pytest.MonkeyPatch, toy_repository: Path
) -> None:
    """Those of a request as well, which nobody may write to."""
    bundle = Bundle.open(toy_repository / "toy-classifier")
    requests: list[Any] = []
    make = openvino.CompiledModel.create_infer_request
    monkeypatch.setattr(
        openvino.CompiledModel, "create_infer_request", lambda self: requests.append(make(self)) or requests[-1]
    )
    golden, target = bundle.golden(), Target.parse("openvino-cpu-fp32")
    with RUNTIMES["openvino"].load(bundle.file("model.onnx"), target, bundle.spec, Settings(threads=1)) as session:
        for index in range(3):
            image = golden.batch([index])["image"]
            pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
            answers = session.run({"image": pixels})
            [request] = requests
            assert request.get_input_tensor(0).data.ctypes.data == pixels.ctypes.data
            np.testing.assert_allclose(answers["logits"], golden.outputs["logits"][[index]], atol=1e-4)


def test_what_a_device_can_not_do(core: PlayedCore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RUNTIMES["openvino"].devices() == ("cpu", "gpu", "npu")
    assert why_not(Target.parse("openvino-gpu-fp16")) is None
    monkeypatch.setitem(ABLE, "GPU", ["FP32", "INT8"])
    assert (why_not(Target.parse("openvino-gpu-fp16")) or "").startswith("this GPU has no fp16; OpenVINO would run it")
    core.available_devices.remove("NPU")
    assert why_not(Target.parse("openvino-npu-int8")) == "openvino finds no such device here, only cpu, gpu"


SIGNALLED = """
import gc, signal, sys
import subprocess
import sys
from pathlib import Path

from ferryman.bundle import Bundle
from ferryman.runtimes.base import Settings
from ferryman.runtimes.openvino import OpenVino
from ferryman.runtimes.seven_bits import narrow_weights
from ferryman.specs import PreprocessSpec, Target, classification_spec

bundle, told = Bundle.open(Path(sys.argv[1])), []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
runtimes = [OpenVino(), OpenVino()]
target = Target.parse("openvino-cpu-fp32")
for runtime in runtimes:
    runtime.load(bundle.file("model.onnx"), target, bundle.spec, Settings(threads=1)).close()
del runtime
while runtimes:
    runtimes.pop(0)
    gc.collect()
    signal.raise_signal(signal.SIGTERM)
print(*told)
"""


def test_a_signal_after_a_device_was_given_up_is_heard(toy_repository: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(toy_repository / "toy-classifier")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "15 15\n"), done.stderr


@pytest.mark.parametrize(
    ("device", "name"),
    [("gpu", "Intel(R) Arc(TM) Graphics (iGPU)"), ("npu", "Intel(R) AI Boost, 1688"), ("cpu", "")],
)
def test_a_device_is_named(core: PlayedCore, device: str, name: str) -> None:
    assert RUNTIMES["openvino"].accelerator(device) == name


def test_the_processor_as_openvino_names_it() -> None:
    """Of what runs here, the one real answer to what other devices are asked."""
    assert name_device(open_core(), "CPU")


def make_wide(path: Path) -> None:
    """Pictures of 4x4 times int8 weights of nearly 127: two products of a white pixel are more than 16 bits hold."""
    weights = np.random.default_rng(0).integers(100, 128, (48, 5)).astype(np.int8)
    constants = {
        "weights": weights,
        "scales": np.linspace(0.9, 1.1, 5, dtype=np.float32),
        "zeros": np.zeros(5, np.int8),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "shape": np.array([-1, 48]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "one", "zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["wide"], axis=1),
        helper.make_node("MatMul", ["values", "wide"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize("features", [None, ("avx2",)], ids=["this processor", "AVX2 without VNNI"])
def test_sums_of_int8_are_whole(
    features: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone a processor with AVX2 and no VNNI answers a third less, and OpenVINO says nothing."""
    make_wide(tmp_path / "wide.onnx")
    if features is not None:
        device = read_device().model_copy(update={"cpu_features": features})
        monkeypatch.setattr("ferryman.runtimes.openvino.read_device", lambda: device)
    preprocess = PreprocessSpec(size=(4, 4), fit="crop", shortest_edge=4, mean=(0, 0, 0), std=(1, 1, 1))
    spec, image = classification_spec(preprocess, tuple("abcde")), np.full((1, 4, 4, 3), 255, np.uint8)
    weights = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "wide.onnx").graph.initializer}
    exact = 255 * weights["weights"].astype(float).sum(0) * weights["scales"]
    target = Target.parse("openvino-cpu-int8")
    with RUNTIMES["openvino"].load(tmp_path / "wide.onnx", target, spec) as session:
        inputs = {"image": image}
        np.testing.assert_allclose(session.run(inputs)["logits"][0], exact, rtol=0.01)
        assert session.attest(inputs).products == {"int8": 1}


def test_a_zero_point_that_is_not_zero_stays(tmp_path: Path) -> None:
    """Halving weights around another number would move them."""
    make_wide(tmp_path / "wide.onnx")
    model = onnx.load(tmp_path / "wide.onnx")
    (zeros,) = (tensor for tensor in model.graph.initializer if tensor.name == "zeros")
    zeros.CopyFrom(numpy_helper.from_array(np.full(5, 3, np.int8), "zeros"))
    onnx.save(model, tmp_path / "off.onnx")
    for name, largest in (("wide.onnx", 64), ("off.onnx", 127)):
        read = open_core().read_model(tmp_path / name)
        narrow_weights(read)
        stored = [node.get_data() for node in read.get_ops() if node.get_type_name() == "Constant"]
        assert max(int(each.max()) for each in stored if each.dtype == np.int8 and each.ndim == 2) == largest


def test_nobody_is_told_of_openvino_and_nothing_is_forked(tmp_path: Path) -> None:
    """OpenVINO's own import forks the process to tell of it, and writes into the home directory."""
    code = (
        "import os, time\n"
        "os.register_at_fork(before=lambda: print('forked', flush=True))\n"
        "from ferryman.runtimes.openvino import open_core\n"
        "open_core().available_devices\n"
        "import openvino\n"
        "time.sleep(1)\n"  # it forks in a thread
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert list(tmp_path.iterdir()) == []
