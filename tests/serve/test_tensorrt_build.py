"""Building engines, which TensorRT-RTX does without a GPU. Running them is not tested: it was never tried."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ferryman.bundle import Bundle, seal
from ferryman.engines import FOLDER, Engine, find_engines
from ferryman.errors import EngineError, FileAccessError, ParityError
from ferryman.runtimes import RUNTIMES
from ferryman.runtimes.pace import PARTS
from ferryman.runtimes.tensorrt import TensorRt, has_gpu
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
    assert engine.facts.key.host == runtime.host()
    assert engine.facts.key.host.runtime == f"tensorrtrtx {runtime.version()}"
    again, there = build_engine(runtime, onnx, RTX, DETECTOR)
    assert there
    assert again == engine
    larger, there = build_engine(runtime, onnx, RTX, DETECTOR, batch=16)
    assert not there
    assert larger.path != engine.path
    assert len(find_engines(onnx)) == 2


def test_an_engine_that_takes_other_weights(runtime: TensorRt, onnx: Path) -> None:
    """Is asked for with the runtime's flag, which wants a GPU; and the calls that refit are there."""
    if not has_gpu():
        with pytest.raises(EngineError, match=r"CUDA.*; it wants a GPU for an engine that is refittable"):
            build_engine(runtime, onnx, RTX, DETECTOR, refittable=True)
        assert not (onnx.parent / FOLDER).exists()
    trt = runtime.open()
    assert "(self: tensorrt_rtx_bindings.tensorrt_rtx.OnnxParserRefitter, model: str)" in (
        trt.OnnxParserRefitter.refit_from_file.__doc__
    )
    for kind, call in [
        (trt.OnnxParserRefitter, "get_error"),
        (trt.Refitter, "get_missing_weights"),
        (trt.Refitter, "refit_cuda_engine"),
        (trt.ICudaEngine, "serialize"),
    ]:
        assert callable(getattr(kind, call))


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


def test_a_full_disk_is_told_before_the_work(runtime: TensorRt, onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        FileAccessError, match=r"0 MB are free, and an engine takes .* MB or more; make room and build again"
    ):
        build_engine(runtime, onnx, RTX, DETECTOR)
    assert not (onnx.parent / FOLDER).exists()


def test_a_disk_that_fills_up_leaves_nothing(onnx: Path) -> None:
    """No file may grow beyond a kilobyte in a process of its own: the engine's writing fails in the middle."""
    code = f"""
import resource
from pathlib import Path
from ferryman.errors import FileAccessError
from ferryman.runtimes import RUNTIMES
from ferryman.runtimes.tensorrt_build import build_engine
from ferryman.specs import ModelSpec, Target

spec = ModelSpec.model_validate_json({DETECTOR.model_dump_json()!r})

def fill(stage, done, total):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))

try:
    build_engine(RUNTIMES["tensorrtrtx"], Path({str(onnx)!r}), Target.parse("{RTX}"), spec, show=fill)
except FileAccessError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "File too large; check the folder's permissions and space" in result.stdout, result.stderr
    assert not (onnx.parent / FOLDER).exists()


def test_two_builds_at_once_are_one(runtime: TensorRt, onnx: Path) -> None:
    """The second waits, and takes what the first built."""
    results: list[tuple[Engine, bool]] = []
    stages: list[str] = []

    def work() -> None:
        results.append(build_engine(runtime, onnx, RTX, DETECTOR, show=lambda stage, done, total: stages.append(stage)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(there for _, there in results) == [False, True]
    assert results[0][0] == results[1][0]
    assert "wait for another build of it" in stages
    assert len(list((onnx.parent / FOLDER).iterdir())) == 2


def test_an_engine_that_is_not_what_it_is_called_is_not_built(runtime: TensorRt, onnx: Path) -> None:
    with pytest.raises(ParityError, match=r"is not what tensorrtrtx-gpu-fp16 says: .* 0% of its matrix products"):
        build_engine(runtime, onnx, Target.parse("tensorrtrtx-gpu-fp16"), DETECTOR)
    assert not (onnx.parent / FOLDER).exists()


def test_the_second_build_knows_how_long_it_takes(runtime: TensorRt, onnx: Path) -> None:
    first, _ = build_engine(runtime, onnx, RTX, DETECTOR)
    assert len(first.facts.pace) == PARTS
    assert sorted(first.facts.pace) == list(first.facts.pace)
    assert first.facts.pace[-1] > 10
    assert first.facts.seconds > 0
    told: list[tuple[str, int, int]] = []
    build_engine(runtime, onnx, RTX, DETECTOR, batch=4, show=lambda *one: told.append(one))
    assert all(re.fullmatch(r"TensorRT: \d0? %, about \d+ s left", stage) for stage, _, _ in told)
    assert len({stage for stage, _, _ in told}) <= 10


def test_an_interrupted_build_leaves_nothing(onnx: Path) -> None:
    """In a process of its own: a signal that finds the build over would end the tests'."""
    code = f"from {__name__} import interrupt_build; interrupt_build({str(onnx)!r})"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "interrupted, and no thread left\n"), result.stderr
    assert not (onnx.parent / FOLDER).exists()


def interrupt_build(path: str) -> None:
    """The signal comes in the middle of TensorRT's work, which then stops at its next step."""
    sent: list[str] = []

    def show(stage: str, done: int, total: int) -> None:
        del total
        if done and not sent:
            sent.append(stage)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5)  # the waiting thread takes it

    before, tensorrt = threading.active_count(), RUNTIMES[RTX.runtime]
    assert isinstance(tensorrt, TensorRt)
    try:
        build_engine(tensorrt, Path(path), RTX, DETECTOR, show=show)
    except KeyboardInterrupt:
        left = "no" if threading.active_count() == before else "a"
        sys.stdout.write(f"interrupted, and {left} thread left\n")


def test_the_command_builds_nothing_for_other_targets(toy_repository: Path) -> None:
    command = [sys.executable, "-m", "ferryman", "build", str(toy_repository / "toy-detector")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "has no variant that needs building; export one" in result.stderr
    result = subprocess.run([*command, "--target", str(TARGET), "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{TARGET} runs the bundle's file as it is" in json.loads(result.stdout)["error"]["message"]


def test_the_command_builds_what_it_can(toy_repository: Path, tmp_path: Path) -> None:
    """A bundle for two runtimes on a machine that has one of them."""
    bundle = Bundle.open(shutil.copytree(Bundle.open(toy_repository / "toy-detector").path, tmp_path / "1"))
    names = ("tensorrt-gpu-fp32", str(RTX))
    variants = tuple(bundle.manifest.variants[0].model_copy(update={"target": Target.parse(name)}) for name in names)
    facts = bundle.manifest.model_dump() | {"variants": (*bundle.manifest.variants, *variants)}
    seal(bundle.path, facts)
    command = [sys.executable, "-m", "ferryman", "build", str(bundle.path), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [engine["key"]["target"] for engine in document["engines"]] == [str(RTX)]
    assert document["can_not_build"] == {"tensorrt-gpu-fp32": RUNTIMES["tensorrt"].missing()}
    result = subprocess.run([*command, "--target", names[0]], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "tensorrt-gpu-fp32 can't be built here: tensorrt is not installed: pip install" in result.stderr
