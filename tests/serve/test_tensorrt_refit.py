"""Another bundle's weights put into an engine, on a TensorRT that is played: what is asked of it, kept and refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ferryman.bundle import Bundle, new_version, seal
from ferryman.certificates import check_certificate, make_certificate, write_certificate
from ferryman.commands.build import run_build
from ferryman.engines import FOLDER, Engine, Host, choose_engine, find_engines, make_key, write_engine
from ferryman.errors import CertificateError, EngineError, UsageError
from ferryman.golden import FILE_NAME as GOLDEN
from ferryman.golden import GoldenSamples, save_golden
from ferryman.proof import prove_session, prove_sessions
from ferryman.runtimes import RUNTIMES, open_sessions, tensorrt, tensorrt_build, tensorrt_refit, why_not
from ferryman.runtimes.base import Settings
from ferryman.runtimes.tensorrt import TensorRt
from ferryman.specs import Target

from .played_tensorrt import BATCH, FakeCuda, FakeTensorRt, make_facts
from .toy import add_toy_bundle, toy_graph

TARGET = Target.parse("tensorrt-gpu-fp32")
FILE = f"variants/{TARGET}/model.onnx"
HOST = Host(runtime="tensorrt 11", capability="8.9", machine="x86_64")
STRUCTURE = "cd" * 32


@pytest.fixture(autouse=True)
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    if "real" in request.fixturenames:
        return FakeCuda()
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


def add_bundle(
    repository: Path, model: onnx.ModelProto, structure: str | None = STRUCTURE, typed: onnx.ModelProto | None = None
) -> Bundle:
    """A classifier with a variant for TensorRT, whose golden samples are answered by its own weights."""
    toy = add_toy_bundle(repository / "toys", "toy-classifier")
    facts = toy.manifest
    (canonical,) = facts.variants
    variant = canonical.model_copy(update={"target": TARGET, "path": FILE, "structure": structure})
    with new_version(repository, "tuned") as new:
        (new.folder / FILE).parent.mkdir(parents=True)
        onnx.save(model, new.folder / canonical.path)
        onnx.save(typed or model, new.folder / FILE)
        runtime, inputs = RUNTIMES["onnxruntime"], toy.golden().inputs
        with runtime.load(new.folder / canonical.path, canonical.target, toy.spec, Settings(threads=1)) as session:
            save_golden(new.folder / GOLDEN, GoldenSamples(toy.golden().names, inputs, session.run(inputs)))
        seal(new.folder, facts.model_dump() | {"name": "tuned", "variants": (canonical, variant)})
    return Bundle.open(repository / "tuned")


def add_engine(bundle: Bundle, refittable: bool = True, changed: bool = False) -> Engine:
    """As `build --refittable` would leave it on a GPU; `changed`: with other weights than the file's."""
    path = bundle.file(FILE)
    data = tune(onnx.load(path)).SerializeToString() if changed else path.read_bytes()
    facts = make_facts(make_key(path, TARGET, bundle.spec, BATCH, HOST, refittable), data)
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


@pytest.fixture(params=["tensorrt-gpu-fp32", "tensorrtrtx-gpu-fp32"])
def real(request: pytest.FixtureRequest) -> Target:
    """A target whose engines run here."""
    target = Target.parse(request.param)
    if why := why_not(target):
        pytest.skip(why)
    return target


def test_on_a_gpu(real: Target, first: Bundle, second: Bundle) -> None:
    """Nothing is played; never ran, for want of a GPU."""
    runtime = RUNTIMES[real.runtime]
    assert isinstance(runtime, TensorRt)
    places = {bundle: bundle.file(FILE) for bundle in (first, second)}
    tensorrt_build.build_engine(runtime, places[first], real, first.spec, BATCH, refittable=True)
    tensorrt_refit.refit_engine(runtime, places[second], real, second.spec, places[first], BATCH)
    for bundle, place in places.items():
        with runtime.load(place, real, bundle.spec, Settings()) as session:
            report = prove_session(session, bundle.golden(), real, bundle.manifest.tolerances["fp32"], "")
            report.raise_for_failures()


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


def test_what_came_out_wrong_is_made_anew(first: Bundle, second: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a build, by another donor, and where its file is no longer what was written."""
    add_engine(first)
    with monkeypatch.context() as patch:  # weights that are lost without a word
        patch.setattr(FakeTensorRt.Refitter, "refit_cuda_engine", lambda self: True)
        refit(second, first)
    path = second.file(FILE)
    plan = tensorrt_build.Plan(path.read_bytes(), {"weigh": "fp32"}, b"")
    monkeypatch.setattr(tensorrt_build, "_build", lambda *_: plan)
    run_build(second.path, [], BATCH, refittable=False, refit=None, json_output=False)
    (engine,) = find_engines(path)
    assert (engine.facts.refitted, engine.path.read_bytes()) == (None, path.read_bytes())
    refit(second, first)
    (engine,) = find_engines(path)
    assert engine.facts.refitted is not None
    whole = engine.path.read_bytes()
    engine.path.write_bytes(whole[:100])
    refit(second, first)
    assert engine.path.read_bytes() == whole


def test_a_certificate_is_of_the_engine_that_was_proved(first: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one that is built while it is proved."""
    monkeypatch.setattr(TensorRt, "version", lambda self: "11")
    monkeypatch.setattr(TensorRt, "accelerator", lambda self, device: "a GPU")
    monkeypatch.setattr(TensorRt, "why_not", lambda self, target: None)
    proved = add_engine(first)
    sessions = open_sessions(first, str(TARGET))
    other = add_engine(first, refittable=False, changed=True)
    assert choose_engine(first.file(FILE), TARGET, HOST) == other != proved
    reports = prove_sessions(first, TARGET, sessions)
    sessions[0].close()
    write_certificate(first, make_certificate(first, reports, sessions))
    with pytest.raises(CertificateError, match="made for another variant"):
        check_certificate(first, TARGET)


def test_an_engine_that_takes_no_weights(first: Bundle, second: Bundle) -> None:
    add_engine(first, refittable=False)
    with pytest.raises(EngineError, match=r"no engine for this machine.*build .*/1 --target .* --batch 3 --refittable"):
        refit(second, first)
    assert not (second.file(FILE).parent / FOLDER).exists()


def test_an_engine_for_other_batches(first: Bundle, second: Bundle) -> None:
    add_engine(first)
    with pytest.raises(EngineError, match=r"batches to 8 .*; model-\w+.engine is for batches to 3; build it with"):
        run_build(second.path, [], 8, refittable=False, refit=first.path, json_output=False)


def test_another_graph(first: Bundle, tmp_path: Path) -> None:
    add_engine(first)
    other = add_bundle(tmp_path, toy_graph("toy-classifier"), structure="ef" * 32)
    with pytest.raises(EngineError, match=r"is not that of .* with other weights: its engine can't take them"):
        refit(other, first)
    older = add_bundle(tmp_path, toy_graph("toy-classifier"), structure=None)
    with pytest.raises(EngineError, match="/3 does not tell the structure of its tensorrt-gpu-fp32: export it again"):
        refit(older, first)
    with pytest.raises(UsageError, match="leave out --refittable"):
        run_build(other.path, [], BATCH, refittable=True, refit=first.path, json_output=False)


@pytest.mark.parametrize("change", ["renamed", "another size"])
def test_what_the_runtime_refuses(first: Bundle, tmp_path: Path, change: str) -> None:
    """Whatever the structures said."""
    add_engine(first)
    model = toy_graph("toy-classifier")
    odd = next(one for one in model.graph.initializer if one.dims)
    if change == "renamed":
        for node in model.graph.node:
            node.input[:] = [f"other-{name}" if name == odd.name else name for name in node.input]
        odd.name = f"other-{odd.name}"
    else:
        odd.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(odd)[None], odd.name))
    other = add_bundle(tmp_path, toy_graph("toy-classifier"), typed=model)
    with pytest.raises(EngineError, match=r"can't put the weights of .* into another engine: \d weights of \d were "):
        refit(other, first)
    assert not (other.file(FILE).parent / FOLDER).exists()


def fail(*_: object) -> None:
    raise TypeError("factory function returned nullptr")


@pytest.mark.parametrize(
    ("name", "does"), [("Refitter.__init__", fail), ("Runtime.deserialize_cuda_engine", lambda *_: None)]
)
def test_a_runtime_that_fails(
    first: Bundle, second: Bundle, name: str, does: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(first)
    kind, _, call = name.partition(".")
    monkeypatch.setattr(getattr(FakeTensorRt, kind), call, does)
    with pytest.raises(EngineError, match=r"into another engine: (factory.*|it does not say why); build it"):
        refit(second, first)
    assert find_engines(second.file(FILE)) == ()
