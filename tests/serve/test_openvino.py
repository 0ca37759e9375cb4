"""OpenVINO on devices that are not here, played by the processor: what it is asked to compute in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.bundle import Bundle
from ferryman.runtimes import RUNTIMES, why_not
from ferryman.runtimes.base import Settings
from ferryman.runtimes.openvino import name_device, open_core
from ferryman.specs import Target

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
from ferryman.specs import Target

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
