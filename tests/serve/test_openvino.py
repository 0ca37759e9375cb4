"""OpenVINO on devices that are not here, played by the processor: what it is asked to compute in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.bundle import Bundle
from ferryman.runtimes import RUNTIMES, why_not
from ferryman.runtimes.base import Settings
from ferryman.specs import Target

openvino = pytest.importorskip("openvino")
ABLE = {"CPU": ["FP32", "INT8", "BF16"], "GPU": ["FP32", "FP16", "INT8"], "NPU": ["FP16", "INT8"]}


class PlayedCore:
    """A core with a GPU and an NPU; it compiles for the processor, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.available_devices = ["CPU", "GPU.0", "GPU.1", "NPU"]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._core = openvino.Core()

    def get_property(self, device: str, name: str) -> list[str]:
        assert name == "OPTIMIZATION_CAPABILITIES"
        return ABLE[device]

    def read_model(self, path: Path) -> Any:
        return self._core.read_model(path)

    def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
        self.asked.append((device, config))
        return self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> PlayedCore:
    played = PlayedCore()
    monkeypatch.setattr(RUNTIMES["openvino"], "_core", played)
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
