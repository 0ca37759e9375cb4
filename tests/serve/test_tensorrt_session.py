"""The session of an engine, on a GPU that is played by this machine's memory and an engine played by ONNX Runtime.

What is real: shapes, addresses, copies, parts of batches, threads, closing. What is not: CUDA and TensorRT.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferryman.bench import alone
from ferryman.bench.alone import Load, load_alone
from ferryman.bundle import Bundle
from ferryman.engines import Engine, Host, make_key, write_engine
from ferryman.errors import EngineError
from ferryman.golden import GoldenSamples
from ferryman.runtimes import tensorrt
from ferryman.runtimes.tensorrt import TensorRt, TensorRtRtx, TensorRtSession
from ferryman.specs import Target

from .played_tensorrt import BATCH, FakeCuda, FakeTensorRt, make_facts
from .toy import SPECS

TARGET = Target.parse("tensorrt-gpu-fp32")
HOST = Host(runtime="tensorrt 11", capability="8.9", machine="x86_64")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(tensorrt, "import_module", lambda name: fake)
    return fake


@pytest.fixture(params=SPECS)
def bundle(request: pytest.FixtureRequest, toy_repository: Path) -> Bundle:
    return Bundle.open(toy_repository / request.param)


def store(bundle: Bundle, folder: Path, data: bytes | None = None) -> Engine:
    onnx = folder / "model.onnx"
    shutil.copy(bundle.file("model.onnx"), onnx)
    data = onnx.read_bytes() if data is None else data
    facts = make_facts(make_key(onnx, TARGET, bundle.spec, BATCH, HOST), data)
    return write_engine(onnx, data, facts)


@pytest.fixture
def session(bundle: Bundle, cuda: FakeCuda, tmp_path: Path) -> Iterator[TensorRtSession]:
    assert not cuda.held
    with TensorRtSession(bundle.spec, FakeTensorRt, store(bundle, tmp_path)) as loaded:
        yield loaded
    assert not cuda.held, "everything is freed"


def assert_right(session: TensorRtSession, golden: GoldenSamples, indices: list[int]) -> None:
    answers = session.run(golden.batch(indices))
    assert set(answers) == set(golden.outputs)
    for name, array in answers.items():
        np.testing.assert_allclose(array, golden.outputs[name][indices], atol=1e-5)
        assert array.dtype == golden.outputs[name].dtype


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_batches_beyond_the_engines_are_run_in_parts(session: TensorRtSession, bundle: Bundle, batch: int) -> None:
    assert_right(session, bundle.golden(), list(range(batch)))


def test_answers_are_their_own_and_threads_do_not_mix(session: TensorRtSession, bundle: Bundle) -> None:
    golden = bundle.golden()
    first = session.run(golden.batch([0]))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                assert_right(session, golden, [(number + turn + slot) % len(golden) for slot in range(1 + turn % 3)])
        except BaseException as error:  # noqa: BLE001 - told below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for name, array in first.items():
        np.testing.assert_allclose(array, golden.outputs[name][[0]], atol=1e-5)


def test_it_tells_its_precisions(session: TensorRtSession, bundle: Bundle) -> None:
    told = session.attest(bundle.golden().batch([0]))
    assert (told.products, told.operators["gemm"]) == ({"fp32": 1}, {"fp32": 1})


def test_after_closing(session: TensorRtSession, bundle: Bundle) -> None:
    session.close()
    with pytest.raises(EngineError, match="the session is closed"):
        session.run(bundle.golden().batch([0]))
    with pytest.raises(EngineError, match="the session is closed"):
        session.attest(bundle.golden().batch([0]))


def test_no_memory_leaves_none_behind(bundle: Bundle, cuda: FakeCuda, tmp_path: Path) -> None:
    cuda.free = 10_000
    with pytest.raises(EngineError, match=r"CUDA can't do cuda.*: cudaErrorMemoryAllocation"):
        TensorRtSession(bundle.spec, FakeTensorRt, store(bundle, tmp_path))
    assert (cuda.held, cuda.free) == ({}, 10_000)


def test_what_is_no_engine_of_this_model(bundle: Bundle, cuda: FakeCuda, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the runtime refuses it; delete it and build it again"):
        TensorRtSession(bundle.spec, FakeTensorRt, store(bundle, tmp_path, b"nothing"))
    other = next(spec for name, spec in SPECS.items() if name != bundle.name)
    with pytest.raises(EngineError, match="has inputs and outputs"):
        TensorRtSession(other, FakeTensorRt, store(bundle, tmp_path))
    assert not cuda.held


def test_a_certificate_is_of_the_engine(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRt, "host", lambda self: HOST)
    engine = store(bundle, tmp_path)
    assert TensorRt().loaded_digest(tmp_path / "model.onnx", TARGET, "ab" * 32) == engine.facts.sha256
    with pytest.raises(EngineError, match="there is none; build it here with: ferryman build"):
        TensorRt().loaded_digest(tmp_path / "other.onnx", TARGET, "ab" * 32)


def test_what_it_costs(bundle: Bundle, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose bytes are told as MiB: its most is what a session holds, and all of it was free before."""
    engine, used = store(bundle, tmp_path), tmp_path / "used"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nwhile cat {used}; do sleep 0.01; done\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    runtime = TensorRt()
    for name, value in {"missing": None, "open": FakeTensorRt, "devices": ("gpu",), "host": HOST}.items():
        monkeypatch.setattr(TensorRt, name, lambda self, value=value: value)
    monkeypatch.setattr(alone, "find_runtime", lambda target: runtime)
    taken: list[int] = []

    def tell() -> None:
        taken.append(sum(len(block) for block in cuda.held.values()))
        (tmp_path / "new").write_text(f"{300 + taken[-1]}\n", encoding="ascii")
        (tmp_path / "new").rename(used)

    tell()
    for name in ("_allocate", "cudaFree"):
        monkeypatch.setattr(FakeCuda, name, telling(getattr(FakeCuda, name), tell))
    cost = load_alone(Load(path=tmp_path / "model.onnx", target=TARGET, spec=bundle.spec, threads=None))
    assert cost.gpu_bytes == max(taken) * 2**20 > 0
    assert (cost.build_s, cost.weights_bytes) == (engine.facts.seconds, engine.facts.size_bytes)


def telling(call: Callable[..., Any], tell: Callable[[], None]) -> Callable[..., Any]:
    def told(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        finally:
            tell()

    return told


TOO_OLD: dict[str, tuple[TensorRt, str, tuple[int, int], str | None]] = {
    "engines for many GPUs": (TensorRtRtx(), "fp16", (7, 5), "8.0 or more, and this one has 7.5"),
    "the oldest of these": (TensorRtRtx(), "fp16", (8, 0), None),
    "bf16": (TensorRt(), "bf16", (7, 5), "8.0 or more, and this one has 7.5"),
    "fp16": (TensorRt(), "fp16", (7, 5), None),
    "fp8": (TensorRt(), "fp8", (8, 6), "8.9 or more, and this one has 8.6"),
    "fp8 on a newer one": (TensorRtRtx(), "fp8", (12, 0), None),
    "one of a data centre": (
        TensorRtRtx(),
        "fp16",
        (9, 0),
        "tensorrt_rtx knows GPUs of compute capability 7.5, 8.0, 8.9, 12.0, and this one has 9.0",
    ),
}


@pytest.mark.parametrize(("runtime", "precision", "capability", "why"), TOO_OLD.values(), ids=TOO_OLD)
def test_a_gpu_that_is_too_old(
    runtime: TensorRt,
    precision: str,
    capability: tuple[int, int],
    why: str | None,
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TensorRt, "missing", lambda self: None)
    monkeypatch.setattr(TensorRt, "devices", lambda self: ("gpu",))
    monkeypatch.setattr(TensorRt, "open", lambda self: FakeTensorRt)
    cuda.capability = capability
    told = runtime.why_not(Target.parse(f"{runtime.name}-gpu-{precision}"))
    assert told == (f"it needs a GPU of compute capability {why}" if why and why.startswith("8") else why)


def test_libraries_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name)
    monkeypatch.setattr(tensorrt, "import_module", fail)
    assert TensorRt().missing() == "tensorrt can't be loaded: libnvinfer.so.10: cannot open shared object file"
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    assert TensorRt().missing() == "tensorrt is not installed: pip install 'ferryman[tensorrt]'"
    with pytest.raises(EngineError, match="install it with: pip install cuda-bindings"):
        TensorRt().host()
