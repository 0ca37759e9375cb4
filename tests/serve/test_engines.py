"""Engines on disk: what they are for, which one suits, and what their inspector tells."""

import hashlib
from pathlib import Path

import pytest

from ferryman.attest import attestation
from ferryman.engines import (
    PORTABLE,
    Engine,
    EngineFacts,
    EngineKey,
    Host,
    choose_engine,
    count_precisions,
    engine_path,
    find_engines,
    make_key,
    read_engine,
    write_engine,
)
from ferryman.errors import EngineError
from ferryman.specs import Target

from .toy import SPECS

TARGET = Target.parse("tensorrt-gpu-fp16")
HERE = Host(runtime="tensorrt 11.4.1", capability="8.9", machine="x86_64")


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a graph")
    return path


def key_of(onnx: Path, batch: int = 8, host: Host = HERE) -> EngineKey:
    return make_key(onnx, TARGET, SPECS["toy-detector"], batch, host)


def other(**facts: str) -> Host:
    return HERE.model_copy(update=facts)


def store(onnx: Path, key: EngineKey, created: str = "2026-01-01", data: bytes = b"engine") -> Engine:
    facts = EngineFacts(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        gpu="a GPU",
        created=created,
        seconds=1.5,
        pace=(9,),
        products={"first": "fp16"},
    )
    return write_engine(onnx, data, facts)


def test_a_key_is_of_all_that_an_engine_depends_on(onnx: Path, tmp_path: Path) -> None:
    key = key_of(onnx)
    assert key.profiles == (
        {"image": ((1, 32, 32, 3),) * 3, "valid_size": ((1, 2),) * 3},
        {"image": ((2, 32, 32, 3), (8, 32, 32, 3), (8, 32, 32, 3)), "valid_size": ((2, 2), (8, 2), (8, 2))},
    )
    assert (key.batches, key.batch) == (((1, 1), (2, 8)), 8)
    assert key_of(onnx, batch=1).batches == ((1, 1),)
    another = tmp_path / "other.onnx"
    another.write_bytes(b"another graph")
    keys = [
        key,
        key_of(another),
        key_of(onnx, batch=4),
        key_of(onnx, host=other(runtime="tensorrt 11.5.0")),
        key_of(onnx, host=other(capability="9.0")),
        key_of(onnx, host=other(machine="aarch64")),
        key.model_copy(update={"target": "tensorrt-gpu-bf16"}),
    ]
    assert len({one.digest for one in keys}) == len(keys)
    assert key_of(onnx).digest == key.digest


def test_weights_beside_the_graph_are_part_of_it(onnx: Path) -> None:
    """A graph above 2 GB keeps them there: fine-tuned again, its own bytes are the same."""
    weights = onnx.with_name("model.onnx.data")
    weights.write_bytes(b"weights")
    store(onnx, key_of(onnx))
    assert choose_engine(onnx, TARGET, HERE)
    weights.write_bytes(b"trained on")
    with pytest.raises(EngineError, match="is of another ONNX file"):
        choose_engine(onnx, TARGET, HERE)


def test_an_engine_is_kept_as_it_is_with_its_facts_beside_it(onnx: Path) -> None:
    engine = store(onnx, key_of(onnx))
    assert engine.path.read_bytes() == b"engine"
    assert sorted(path.suffix for path in engine.path.parent.iterdir()) == [".engine", ".json"]
    assert find_engines(onnx) == (engine,)
    assert choose_engine(onnx, TARGET, HERE) == engine
    assert read_engine(engine.path, engine.facts) == b"engine"


def test_the_newest_that_suits_is_chosen(onnx: Path) -> None:
    store(onnx, key_of(onnx, batch=4), created="2026-01-02")
    newest = store(onnx, key_of(onnx, batch=16), created="2026-01-03")
    store(onnx, key_of(onnx, host=other(capability="9.0")), created="2026-01-04")
    assert choose_engine(onnx, TARGET, HERE) == newest
    portable = store(onnx, key_of(onnx, host=other(capability=PORTABLE)), created="2026-01-05")
    assert choose_engine(onnx, TARGET, HERE) == portable


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "another GPU": ({"capability": "9.0"}, "for GPUs of compute capability 9.0 (a GPU) and this one has 8.9"),
    "another version": ({"runtime": "tensorrt 10.3.0"}, "of tensorrt 10.3.0 and this is tensorrt 11.4.1"),
    "another processor": ({"machine": "aarch64"}, "for aarch64 and this machine is x86_64"),
}


def test_one_that_takes_other_weights_is_chosen_for_want_of_another(onnx: Path) -> None:
    """Though it be newer: it may be slower, and has no certificate."""
    key = key_of(onnx)
    takes = store(onnx, key.model_copy(update={"refittable": True}), created="2026-02-02")
    assert choose_engine(onnx, TARGET, HERE) == takes
    plain = store(onnx, key, created="2026-01-01")
    assert choose_engine(onnx, TARGET, HERE) == plain
    assert takes.path != plain.path


@pytest.mark.parametrize(("host", "message"), REFUSED.values(), ids=REFUSED)
def test_one_for_another_machine_is_refused_with_the_command(
    tmp_path: Path, host: dict[str, str], message: str
) -> None:
    folder = tmp_path / "a name" / "1" / "variants" / str(TARGET)
    folder.mkdir(parents=True)
    onnx = folder / "model.onnx"
    onnx.write_bytes(b"a graph")
    store(onnx, key_of(onnx, host=other(**host)))
    with pytest.raises(EngineError) as caught:
        choose_engine(onnx, TARGET, HERE)
    command = f"ferryman build '{tmp_path}/a name/1' --target {TARGET}"
    assert str(caught.value).endswith(f"is {message}; build it here with: {command}")


def test_one_of_an_older_export_is_refused(onnx: Path) -> None:
    store(onnx, key_of(onnx))
    onnx.write_bytes(b"exported again")
    with pytest.raises(EngineError, match="is of another ONNX file; build it here with"):
        choose_engine(onnx, TARGET, HERE)


def test_none_half_ones_and_changed_ones(onnx: Path) -> None:
    with pytest.raises(EngineError, match="there is none; build it here with"):
        choose_engine(onnx, TARGET, HERE)
    engine = store(onnx, key_of(onnx))
    engine.path.write_bytes(b"enginf")
    with pytest.raises(EngineError, match="its SHA-256 differs; delete it and build again"):
        read_engine(engine.path, engine.facts)
    engine.path.with_suffix(".json").write_text("{")
    assert find_engines(onnx) == ()
    assert engine_path(onnx, engine.facts.key) == engine.path


def layer(name: str, kind: str, tensors: list[dict[str, str]], **more: object) -> dict[str, object]:
    return {"Name": name, "LayerType": kind, "Inputs": tensors, "Outputs": tensors, **more}


@pytest.mark.parametrize("version", [10, 11])
def test_the_inspector_is_understood(version: int) -> None:
    """Layers as TensorRT 10 and 11 write them; some stand for several of the network's, named in their metadata."""
    half, single = (
        ({"Format/Datatype": "Row major linear FP16 format"}, {"Format/Datatype": "Float"})
        if version == 10
        else ({"DataType": "Half", "Format": "kLINEAR"}, {"DataType": "Float", "Format": "kLINEAR"})
    )
    layers = [
        layer("Reformatting CopyNode", "Reformat", [single]),
        layer("conv + norm", "CaskConvolution", [half], Weights={"Type": "Half", "Count": 9}),
        layer("__myl_Mm_0", "gemm", [half], Metadata="[ONNX Layer: query]\x1e[ONNX Layer: key]"),
        layer("__myl_Mm_1", "gemm", [single], Metadata="[ONNX Layer: head]"),
        layer("__myl_Mm_2", "gemm", [half], Metadata="[ONNX Layer: twice]"),
        layer("__myl_Mm_3", "gemm", [single], Metadata="[ONNX Layer: twice]"),
        layer("scaled", "CaskConvolution", [{}], Weights={"Type": "Int8", "Count": 9}),
        layer("shape", "Constant", []),
    ]
    products = dict.fromkeys(("conv", "query", "key", "head", "twice", "scaled", "gone"), "fp16")
    told = attestation(count_precisions(layers, products))
    assert told.products == {"fp16": 3, "fp32": 2, "int8": 1, "unknown": 1}
    assert told.operators["gemm"] == {"fp16": 2, "fp32": 2}
    assert told.operators["Constant"] == {"none": 1}
    assert "43% of its matrix products" in told.find_failures("fp16")[0]
