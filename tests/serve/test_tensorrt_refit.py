"""Another bundle's weights put into an engine, on a TensorRT that is played: what is asked of it, kept and refused."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ferryman.bundle import Bundle, new_version, seal
from ferryman.commands.build import run_build
from ferryman.engines import FOLDER, Engine, EngineFacts, Host, find_engines, make_key, write_engine
from ferryman.errors import EngineError, UsageError
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, save_golden
from ferryman.proof import prove_session
from ferryman.runtimes import RUNTIMES, tensorrt, tensorrt_build
from ferryman.runtimes.base import Settings
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.specs import Target

from .played_tensorrt import BATCH, FakeCuda, FakeTensorRt
from .toy import add_toy_bundle, toy_graph

TARGET = Target.parse("tensorrt-gpu-fp32")
FILE = f"variants/{TARGET}/model.onnx"
HOST = Host(runtime="tensorrt 11", capability="8.9", machine="x86_64")
STRUCTURE = "cd" * 32


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(tensorrt, "import_module", lambda name: fake)
    monkeypatch.setattr(tensorrt_build.Cuda, "name", lambda self: "a GPU")
    answers = {"missing": None, "open": FakeTensorRt, "devices": ("gpu",), "host": HOST, "why_not_build": None}
    for name, value in answers.items():
        monkeypatch.setattr(TensorRt, name, lambda self, value=value: value)
    return fake


def tune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Other weights, as a fine-tuning leaves them."""
    for tensor in model.graph.initializer:
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            noise = np.random.default_rng(4).normal(size=array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array + noise, tensor.name))
    return model


def add_bundle(repository: Path, model: onnx.ModelProto, structure: str = STRUCTURE) -> Bundle:
    """A classifier with a variant for TensorRT, whose golden samples are answered by its own weights."""
    toy = add_toy_bundle(repository / "toys", "toy-classifier")
    facts = toy.manifest
    (canonical,) = facts.variants
    variant = canonical.model_copy(update={"target": TARGET, "path": FILE, "structure": structure})
    with new_version(repository, "tuned") as new:
        (new.folder / FILE).parent.mkdir(parents=True)
        for path in (canonical.path, FILE):
            onnx.save(model, new.folder / path)
        runtime, inputs = RUNTIMES["onnxruntime"], toy.golden().inputs
        with runtime.load(new.folder / canonical.path, canonical.target, toy.spec, Settings(threads=1)) as session:
            save_golden(new.folder / GOLDEN, GoldenSamples(toy.golden().names, inputs, session.run(inputs)))
        seal(new.folder, facts.model_dump() | {"name": "tuned", "variants": (canonical, variant)})
    return Bundle.open(repository / "tuned")


def add_engine(bundle: Bundle, refittable: bool = True) -> Engine:
    """As `build --refittable` would leave it on a GPU."""
    path = bundle.file(FILE)
    data = path.read_bytes()
    facts = EngineFacts(
        key=make_key(path, TARGET, bundle.spec, BATCH, HOST, refittable),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        gpu="a GPU",
        created="2026-01-01",
        seconds=60,
        pace=(9,),
        products={"weigh": "fp32"},
    )
    return write_engine(path, data, facts)


@pytest.fixture
def first(tmp_path: Path) -> Bundle:
    return add_bundle(tmp_path, toy_graph("toy-classifier"))


@pytest.fixture
def second(first: Bundle, tmp_path: Path) -> Bundle:
    bundle = add_bundle(tmp_path, tune(toy_graph("toy-classifier")))
    assert (first.version, bundle.version) == (1, 2)
    return bundle


def refit(bundle: Bundle, donor: Bundle) -> None:
    run_build(bundle.path, [], BATCH, refittable=False, refit=donor.path, json_output=False)


def test_the_new_weights_answer(first: Bundle, second: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """And are proved by `verify`'s own means, which tell them from the old ones."""
    donor = add_engine(first)
    refit(second, first)
    assert "refitted, to be proved by ferryman verify, in 0.0 s" in capsys.readouterr().out
    (engine,) = find_engines(second.file(FILE))
    assert engine.facts.refitted == donor.facts.sha256 != engine.facts.sha256
    assert (engine.facts.products, engine.facts.key.refittable) == ({"weigh": "fp32"}, False)
    tolerance = second.manifest.tolerances["fp32"]
    for bundle, passes in [(second, True), (first, False)]:
        with TensorRt().load(second.file(FILE), TARGET, second.spec, Settings()) as session:
            assert prove_session(session, bundle.golden(), TARGET, tolerance, "11").passed is passes
    refit(second, first)
    assert "was there already" in capsys.readouterr().out


def test_an_engine_that_takes_no_weights(first: Bundle, second: Bundle) -> None:
    add_engine(first, refittable=False)
    with pytest.raises(EngineError, match=r"no engine for this machine.*build .*/1 --target .* --batch 3 --refittable"):
        refit(second, first)
    assert not (second.file(FILE).parent / FOLDER).exists()


def test_another_graph(first: Bundle, tmp_path: Path) -> None:
    add_engine(first)
    other = add_bundle(tmp_path, toy_graph("toy-classifier"), structure="ef" * 32)
    with pytest.raises(EngineError, match=r"is not that of .* with other weights: its engine can't take them"):
        refit(other, first)
    with pytest.raises(UsageError, match="leave out --refittable"):
        run_build(other.path, [], BATCH, refittable=True, refit=first.path, json_output=False)


def test_what_the_runtime_refuses(first: Bundle, tmp_path: Path) -> None:
    """Weights of another size, and one that has no counterpart, whatever the structures said."""
    add_engine(first)
    renamed = toy_graph("toy-classifier")
    gone = next(one for one in renamed.graph.initializer if one.dims)
    for node in renamed.graph.node:
        node.input[:] = [f"other-{name}" if name == gone.name else name for name in node.input]
    name, gone.name = gone.name, f"other-{gone.name}"
    other = add_bundle(tmp_path, renamed)
    with pytest.raises(EngineError, match=f"can't put the weights of .* no weights for {name}; build it"):
        refit(other, first)
    assert not (other.file(FILE).parent / FOLDER).exists()
