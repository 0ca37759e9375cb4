"""Building engines, which TensorRT-RTX does without a GPU. Running them is not tested: it was never tried."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ferryman.bundle import Bundle
from ferryman.engines import FOLDER, Engine, find_engines
from ferryman.errors import EngineError, FileAccessError
from ferryman.runtimes import RUNTIMES
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.runtimes.tensorrt_build import build_engine
from ferryman.specs import Target

from .toy import SPECS, TARGET

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ferryman[tensorrt-rtx]'")
RTX = Target.parse("tensorrtrtx-gpu-fp32")
DETECTOR = SPECS["toy-detector"]


@pytest.fixture
def runtime() -> TensorRt:
    found = RUNTIMES[RTX.runtime]
    assert isinstance(found, TensorRt)
    return found


@pytest.fixture
def onnx(toy_repository: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    shutil.copy(Bundle.open(toy_repository / "toy-detector").file("model.onnx"), path)
    return path


def test_an_engine_is_built_once(runtime: TensorRt, onnx: Path) -> None:
    stages: list[str] = []
    engine, there = build_engine(runtime, onnx, RTX, DETECTOR, show=lambda stage, done, total: stages.append(stage))
    assert not there
    assert stages[0] == "TensorRT: Building engine"
    assert engine.path.stat().st_size == engine.facts.size_bytes > 1000
    assert set(engine.facts.products.values()) == {"fp32"}
    assert engine.facts.key.runtime == f"tensorrtrtx {runtime.version()}"
    again, there = build_engine(runtime, onnx, RTX, DETECTOR)
    assert there
    assert again == engine
    larger, there = build_engine(runtime, onnx, RTX, DETECTOR, batch=16)
    assert not there
    assert larger.path != engine.path
    assert len(find_engines(onnx)) == 2


def test_what_is_no_graph_is_refused(runtime: TensorRt, onnx: Path) -> None:
    onnx.write_bytes(onnx.read_bytes()[:500])
    with pytest.raises(EngineError, match="TensorRT can't read") as caught:
        build_engine(runtime, onnx, RTX, DETECTOR)
    assert str(onnx) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (onnx.parent / FOLDER).exists()


def test_a_graph_of_other_inputs_is_refused(runtime: TensorRt, toy_repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(Bundle.open(toy_repository / "toy-classifier").file("model.onnx"), path)
    with pytest.raises(EngineError, match="takes image, expected image, valid_size"):
        build_engine(runtime, path, RTX, DETECTOR)


def test_where_nothing_can_be_written(runtime: TensorRt, onnx: Path) -> None:
    (onnx.parent / FOLDER).write_text("in the way")
    with pytest.raises(FileAccessError, match="can't write"):
        build_engine(runtime, onnx, RTX, DETECTOR)


def test_two_builds_at_once(runtime: TensorRt, onnx: Path) -> None:
    engines: list[Engine] = []
    threads = [
        threading.Thread(target=lambda: engines.append(build_engine(runtime, onnx, RTX, DETECTOR)[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {engine.path for engine in engines} == {find_engines(onnx)[0].path}
    assert len(list((onnx.parent / FOLDER).iterdir())) == 2


def test_an_interrupted_build_leaves_nothing(runtime: TensorRt, onnx: Path) -> None:
    """The signal comes in the middle of TensorRT's work, which then stops at its next step."""

    def show(stage: str, done: int, total: int) -> None:
        del total
        if stage == "TensorRT: Optimizing graph" and done == 1:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5)  # the waiting thread takes it

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        build_engine(runtime, onnx, RTX, DETECTOR, show=show)
    assert threading.active_count() == before
    assert not (onnx.parent / FOLDER).exists()


def test_the_command_builds_nothing_for_other_targets(toy_repository: Path) -> None:
    command = [sys.executable, "-m", "ferryman", "build", str(toy_repository / "toy-detector")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "has no variant that needs building; export one" in result.stderr
    result = subprocess.run([*command, "--target", str(TARGET), "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{TARGET} runs the bundle's file as it is" in json.loads(result.stdout)["error"]["message"]
