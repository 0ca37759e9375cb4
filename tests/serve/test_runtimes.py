"""What every runtime must do. One that is added to RUNTIMES is tested by this file as it is."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ferryman.attest import Attestation
from ferryman.bundle import Bundle
from ferryman.errors import EngineError, TensorError, UsageError
from ferryman.golden import FILE_NAME, GoldenSamples, load_golden
from ferryman.parity import TOLERANCES, check_parity
from ferryman.runtimes import RUNTIMES, open_sessions, why_not
from ferryman.runtimes.base import Arrays, Runtime, Session, Settings
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.runtimes.tensorrt_build import build_engine
from ferryman.specs import PreprocessSpec, Target, classification_spec

from .toy import SPECS, TARGET, toy_graph, toy_reference

# Of each runtime and device a target; all of them read the toys' ONNX files as they are.
ROWS = {
    f"{runtime.name}-{device}": Target(
        runtime=runtime.name, device=device, precision="fp32" if "fp32" in precisions else precisions[0]
    )
    for runtime in RUNTIMES.values()
    for device, precisions in runtime.known.items()
}


ABLE = [row for row, target in ROWS.items() if why_not(target) is None]


@pytest.mark.parametrize("row", ROWS)
def test_the_rows(row: str) -> None:
    """One that can't run here is skipped once, and not by each test."""
    why = why_not(ROWS[row])
    if why is not None:
        pytest.skip(f"{row}: {why}")
    assert row in ABLE


@pytest.fixture(params=ABLE)
def target(request: pytest.FixtureRequest) -> Target:
    return ROWS[request.param]


@pytest.fixture
def runtime(target: Target) -> Runtime:
    return RUNTIMES[target.runtime]


@pytest.fixture(params=SPECS)
def bundle(request: pytest.FixtureRequest, target: Target, toy_repository: Path) -> Bundle:
    return open_bundle(request.param, target, toy_repository)


def open_bundle(name: str, target: Target, repository: Path) -> Bundle:
    """A toy, with an engine where the runtime runs one."""
    bundle, runtime = Bundle.open(repository / name), RUNTIMES[target.runtime]
    if isinstance(runtime, TensorRt):
        build_engine(runtime, bundle.file("model.onnx"), target, bundle.spec)
    return bundle


@pytest.fixture
def session(runtime: Runtime, target: Target, bundle: Bundle) -> Iterator[Session]:
    with runtime.load(bundle.file("model.onnx"), target, bundle.spec, Settings(threads=1)) as loaded:
        yield loaded


@pytest.fixture
def golden(bundle: Bundle) -> GoldenSamples:
    return load_golden(bundle.file(FILE_NAME), bundle.spec)


def assert_right(outputs: Arrays, golden: GoldenSamples, indices: list[int]) -> None:
    assert set(outputs) == set(golden.outputs)
    for name, array in outputs.items():
        reference = golden.outputs[name][indices]
        assert array.dtype == reference.dtype
        assert array.shape == reference.shape
        assert np.abs(array.astype(np.float64) - reference).max() < 1e-5, name


def test_what_a_runtime_says_of_itself(runtime: Runtime, target: Target) -> None:
    assert runtime.name == target.runtime
    assert runtime.version()[0].isdigit()
    assert target.device in runtime.devices()
    assert target in runtime.targets()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches(session: Session, golden: GoldenSamples, batch: int) -> None:
    indices = list(range(batch))
    assert_right(session.run(golden.batch(indices)), golden, indices)


def test_inputs_as_they_come(session: Session, golden: GoldenSamples) -> None:
    """Views, arrays in Fortran's order and read-only arrays are inputs like others, and stay unchanged."""
    inputs = {name: np.asfortranarray(array)[::-1] for name, array in golden.inputs.items()}
    copies = {name: array.copy() for name, array in inputs.items()}
    for array in inputs.values():
        array.flags.writeable = False
    assert_right(session.run(inputs), golden, list(range(len(golden)))[::-1])
    assert all((inputs[name] == copies[name]).all() for name in inputs)


def test_answers_do_not_change_later(session: Session, golden: GoldenSamples) -> None:
    first = session.run(golden.batch([0]))
    session.run(golden.batch([1]))
    assert_right(first, golden, [0])


def _image(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.zeros(shape, dtype)


WRONG_IMAGES = {
    "float": (_image(1, 32, 32, 3, dtype="float32"), r"image must be uint8 \(batch, 32, 32, 3\), got float32"),
    "signed": (_image(1, 32, 32, 3, dtype="int8"), "got int8"),
    "no batch": (_image(32, 32, 3), r"got uint8 \(32, 32, 3\)"),
    "channels first": (_image(1, 3, 32, 32), r"got uint8 \(1, 3, 32, 32\)"),
    "another size": (_image(1, 32, 33, 3), r"got uint8 \(1, 32, 33, 3\)"),
    "empty batch": (_image(0, 32, 32, 3), r"got uint8 \(0, 32, 32, 3\)"),
    "0 x 0": (_image(1, 0, 0, 3), r"got uint8 \(1, 0, 0, 3\)"),
    "a number": (_image(), r"got uint8 \(\)"),
}


@pytest.mark.parametrize(("image", "message"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_wrong_images(session: Session, golden: GoldenSamples, image: NDArray[Any], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        session.run(golden.batch([0]) | {"image": image})
    assert_right(session.run(golden.batch([0])), golden, [0])  # and the session is none the worse


def test_wrong_names(session: Session, golden: GoldenSamples) -> None:
    inputs = golden.batch([0])
    names = ", ".join(session.spec.input_names)
    for wrong, given in {
        "nothing": {},
        "more, ": inputs | {"more": inputs["image"]},
        "pixels": {"pixels": inputs["image"]},
    }.items():
        with pytest.raises(TensorError, match=f"the model takes {names}, got .*{wrong.split(',', maxsplit=1)[0]}"):
            session.run(given)


def test_one_batch_throughout(runtime: Runtime, target: Target, toy_repository: Path) -> None:
    bundle = open_bundle("toy-detector", target, toy_repository)
    golden = load_golden(bundle.file(FILE_NAME), bundle.spec)
    with runtime.load(bundle.file("model.onnx"), target, bundle.spec) as session:
        inputs = golden.batch([0, 1]) | {"valid_size": golden.inputs["valid_size"][:1]}
        with pytest.raises(TensorError, match="batch is 2 in input image and 1 in input valid_size"):
            session.run(inputs)


def test_threads_at_once(session: Session, golden: GoldenSamples) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        try:
            for turn in range(20):
                indices = [(number + turn + slot) % len(golden) for slot in range(1 + turn % 3)]
                assert_right(session.run(golden.batch(indices)), golden, indices)
        except BaseException as error:  # noqa: BLE001 - told below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_closing(session: Session, golden: GoldenSamples) -> None:
    assert not session.closed
    session.close()
    session.close()
    assert session.closed
    with pytest.raises(EngineError, match="the session is closed"):
        session.run(golden.batch([0]))


def test_closing_while_others_run(session: Session, golden: GoldenSamples) -> None:
    """Whoever runs gets a right answer or an EngineError, nothing else, and no crash."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                assert_right(session.run(golden.batch([1])), golden, [1])
        except EngineError:
            return
        except BaseException as error:  # noqa: BLE001 - told below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    session.close()
    for thread in threads:
        thread.join()
    assert failures == []


def test_sessions_side_by_side(runtime: Runtime, target: Target, bundle: Bundle, golden: GoldenSamples) -> None:
    """Several of one file run at once, and closing one is nothing to the others."""
    path, failures = bundle.file("model.onnx"), list[BaseException]()
    sessions = [runtime.load(path, target, bundle.spec, Settings(threads=1)) for _ in range(3)]

    def work(session: Session) -> None:
        try:
            for turn in range(20):
                assert_right(session.run(golden.batch([turn % len(golden)])), golden, [turn % len(golden)])
        except BaseException as error:  # noqa: BLE001 - told below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions[1:]]
    for thread in threads:
        thread.start()
    sessions[0].close()
    for thread in threads:
        thread.join()
    assert failures == []
    sessions[1].close()
    assert_right(sessions[2].run(golden.batch([0])), golden, [0])
    sessions[2].close()


def test_two_sizes(runtime: Runtime, target: Target, toy_repository: Path, tmp_path: Path) -> None:
    """A session a size: each answers its own, and refuses the other's."""
    square = open_bundle("toy-classifier", target, toy_repository)
    wide = classification_spec(PreprocessSpec(size=(24, 40), fit="stretch"), square.spec.labels)
    graph = toy_graph("toy-classifier")
    for dimension, size in zip(graph.graph.input[0].type.tensor_type.shape.dim[1:3], (24, 40), strict=True):
        dimension.dim_value = size
    folder = tmp_path / "variants" / str(target)
    folder.mkdir(parents=True)
    onnx.save(graph, folder / "model-24x40.onnx")
    if isinstance(runtime, TensorRt):
        build_engine(runtime, folder / "model-24x40.onnx", target, wide)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)
    golden = square.golden()
    with (
        runtime.load(square.file("model.onnx"), target, square.spec) as first,
        runtime.load(folder / "model-24x40.onnx", target, wide) as second,
    ):
        for batch in (1, 3):
            inputs = {"image": pictures[:batch]}
            answers = second.run(inputs)
            for name, expected in toy_reference("toy-classifier", inputs).items():
                np.testing.assert_allclose(answers[name], expected, atol=1e-5)
            assert_right(first.run(golden.batch(list(range(batch)))), golden, list(range(batch)))
        for session, image in ((first, pictures[:1]), (second, golden.inputs["image"][:1])):
            with pytest.raises(TensorError, match=r"image must be uint8 \(batch, \d\d, \d\d, 3\), got"):
                session.run({"image": image})


def test_a_warm_up_that_is_cancelled(
    runtime: Runtime, target: Target, bundle: Bundle, session: Session, golden: GoldenSamples
) -> None:
    """Closing the session ends it at its next run; another session of the file is none the worse."""
    runs: list[int] = []

    def cancel(count: int) -> None:
        runs.append(count)
        session.close()

    with pytest.raises(EngineError, match="the session is closed"):
        check_parity(
            session.run, golden, bundle.spec, TOLERANCES["fp32"], str(target), runtime.version(), (1, 2), advance=cancel
        )
    assert len(runs) == 1
    with runtime.load(bundle.file("model.onnx"), target, bundle.spec) as again:
        assert_right(again.run(golden.batch([0])), golden, [0])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted as Linux does")
def test_out_of_memory(target: Target, toy_repository: Path) -> None:
    """A run that finds no memory is an error, and the session answers as before when there is some again."""
    bundle = open_bundle("toy-detector", target, toy_repository)
    script, onnx_file = Path(__file__).with_name("starved.py"), bundle.file("model.onnx")
    command = [sys.executable, script, onnx_file, str(target), bundle.spec.model_dump_json(), "2000"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if str(target) == str(TARGET):
        assert result.stdout.startswith("EngineError: ONNX Runtime failed on a batch of 2000: ")
    else:  # one that runs picture by picture may need no more
        assert result.stdout.startswith(("EngineError: ", "answered"))


def test_arrays_that_find_no_memory(toy_repository: Path) -> None:
    """Our own, around what the runtime does."""

    class Greedy(Session):
        def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
            return {"cls": np.empty((1 << 50,), np.float64)}

        def _close(self) -> None: ...

        def attest(self, inputs: Arrays) -> Attestation:
            raise NotImplementedError

    bundle = Bundle.open(toy_repository / "toy-embedder")
    with Greedy(bundle.spec) as session, pytest.raises(EngineError, match="no memory for a batch of 2: "):
        session.run(bundle.golden().batch([0, 1]))


def test_what_runs_when_the_session_is_closed_is_freed(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    bundle = Bundle.open(toy_repository / "toy-detector")
    session = RUNTIMES["openvino"].load(bundle.file("model.onnx"), ROWS["openvino-cpu"], bundle.spec)
    create, made = openvino.CompiledModel.create_infer_request, list[Any]()

    def create_and_close(compiled: Any) -> Any:
        request = create(compiled)
        made.append(weakref.ref(request))
        session.close()
        return request

    monkeypatch.setattr(openvino.CompiledModel, "create_infer_request", create_and_close)
    golden = bundle.golden()
    assert_right(session.run(golden.batch([0])), golden, [0])
    gc.collect()
    assert [one() for one in made] == [None]


@pytest.mark.parametrize("number", [0, -1, 1025, 10**20])
def test_settings_that_no_runtime_takes(number: int) -> None:
    with pytest.raises(UsageError, match=f"^threads must be 1 to 1024, got {number}$"):
        Settings(threads=number)
    with pytest.raises(UsageError, match=f"^streams must be 1 to 1024, got {number}$"):
        Settings(streams=number)


GARBAGE = {"empty": b"", "text": b"hello\nworld\n" * 20, "zeros": bytes(1000), "half": None}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_can_not_be_loaded(
    runtime: Runtime, target: Target, bundle: Bundle, data: bytes | None, tmp_path: Path
) -> None:
    place = tmp_path / "model.onnx"
    whole = bundle.file("model.onnx").read_bytes()
    place.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(EngineError) as caught:
        runtime.load(place, target, bundle.spec)
    assert "can't load" in str(caught.value)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_can_not_be_loaded(runtime: Runtime, target: Target, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"can't load .*nowhere"):
        runtime.load(tmp_path / "nowhere", target, bundle.spec)
    with pytest.raises(EngineError, match="fridge"):
        runtime.load(bundle.file("model.onnx"), Target.parse(f"{runtime.name}-fridge-fp32"), bundle.spec)


def test_a_graph_of_another_model(runtime: Runtime, target: Target, toy_repository: Path) -> None:
    classifier = open_bundle("toy-classifier", target, toy_repository)
    with pytest.raises(EngineError, match=r"has inputs and outputs .*probabilities.*, expected .*valid_size"):
        runtime.load(classifier.file("model.onnx"), target, SPECS["toy-detector"])


def test_open_sessions(toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(toy_repository / "toy-classifier")
    (session,) = open_sessions(bundle, str(TARGET), Settings(threads=2))
    with session:
        assert session.spec == bundle.spec
    with pytest.raises(UsageError, match="has no variant nothing; it has onnxruntime-cpu-fp32"):
        open_sessions(bundle, "nothing")
    monkeypatch.setattr(RUNTIMES["onnxruntime"], "missing", lambda: "pip install it")
    with pytest.raises(EngineError, match="onnxruntime-cpu-fp32 can't run here: pip install it"):
        open_sessions(bundle)
    monkeypatch.delitem(RUNTIMES, "onnxruntime")
    with pytest.raises(EngineError, match="upgrade it"):
        open_sessions(bundle)


def test_it_tells_what_it_computes_in(session: Session, golden: GoldenSamples) -> None:
    told = session.attest(golden.batch([0]))
    assert set(told.products) == (set() if session.spec.task == "embedding" else {"fp32"})  # that toy only averages
    assert sum(told.products.values()) <= sum(sum(counts.values()) for counts in told.operators.values())
    assert told.find_failures("fp32") == []
    assert "run in int8 (" in told.find_failures("int8")[0]
