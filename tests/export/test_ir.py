"""What is taken out of an OpenVINO IR changes no bit of its answers."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from ferryman.runtimes.openvino import open_core
from ferryman.specs import ModelSpec, PreprocessSpec, TensorSpec
from ferryman_export.variants.ir import save_ir

openvino = pytest.importorskip("openvino")
SPEC = ModelSpec(
    task="classification",
    inputs=(TensorSpec(name="image", dtype="uint8", shape=("batch", 4, 4, 3)),),
    outputs=(
        TensorSpec(name="logits", dtype="float32", shape=("batch", 5)),
        TensorSpec(name="probabilities", dtype="float32", shape=("batch", 5)),
    ),
    preprocess=PreprocessSpec(size=(4, 4), fit="stretch", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)),
    labels=tuple("abcde"),
)


def save_nodes(path: Path, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, ArrayLike]) -> Path:
    """As a graph with the inputs and outputs of `SPEC`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5]) for name in SPEC.output_names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_graph(path: Path, weight_zero: int) -> Path:
    """A product of quantised weights, one scale a channel, whose input is quantised around 7."""
    random = np.random.default_rng(1)
    constants = {
        "weights": random.integers(-90, 90, (48, 5), dtype=np.int8),
        "scales": random.uniform(0.01, 0.02, 5).astype(np.float32),
        "zeros": np.full(5, weight_zero, np.int8),
        "scale": np.float32(0.9),
        "zero": np.uint8(7),
        "flat": np.array([-1, 48], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["float", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Reshape", ["d", "flat"], ["rows"]),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["rows", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return save_nodes(path, nodes, constants)


@pytest.mark.parametrize("weight_zero", [0, 3])
def test_answers_stay_what_they_are(weight_zero: int, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.onnx", weight_zero)
    written = save_ir(graph, SPEC, tmp_path / "model.xml")
    core = open_core()
    whole, slim = core.read_model(graph), core.read_model(tmp_path / "model.xml")
    kinds = [[node.get_type_name() for node in model.get_ops()] for model in (whole, slim)]
    assert len(kinds[1]) == len(written.get_ops())
    # What stands on constants alone is worked out; the zero points of weights are gone where they are zero.
    assert kinds[0].count("Subtract") == 2
    assert kinds[1].count("Subtract") == (2 if weight_zero else 1)
    assert kinds[0].count("Reshape") > kinds[1].count("Reshape")
    assert [node.get_data().dtype for node in slim.get_ops() if node.get_friendly_name() == "weights"] == [np.int8]
    image = np.random.default_rng(2).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    whole.reshape([1, 4, 4, 3])
    expected, found = (core.compile_model(model, "CPU", settings)(image) for model in (whole, slim))
    for name in SPEC.output_names:
        np.testing.assert_array_equal(found[name], expected[name])
    assert np.ptp(found["logits"]) > 1


def write_convolutions(path: Path) -> Path:
    """Three: one that is scaled by channel, one whose answer is used unscaled too, one that is scaled by column."""
    random = np.random.default_rng(3)
    constants = {f"weights {number}": random.normal(size=(5, 3, 1, 1)).astype(np.float32) for number in range(3)}
    constants |= {
        "by channel": random.uniform(1, 3, (5, 1, 1)).astype(np.float32),
        "by column": random.uniform(1, 3, (1, 4)).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        *(helper.make_node("Conv", ["planes", f"weights {number}"], [f"product {number}"]) for number in range(3)),
        helper.make_node("Mul", ["product 0", "by channel"], ["scaled 0"]),
        helper.make_node("Mul", ["product 1", "by channel"], ["scaled 1"]),
        helper.make_node("Mul", ["product 2", "by column"], ["scaled 2"]),
        helper.make_node("Sum", ["scaled 0", "product 1", "scaled 1", "scaled 2"], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return save_nodes(path, nodes, constants)


def test_scales_are_multiplied_into_the_weights_before_them(tmp_path: Path) -> None:
    graph = write_convolutions(tmp_path / "graph.onnx")
    save_ir(graph, SPEC, tmp_path / "model.xml")
    core = open_core()
    whole, slim = core.read_model(graph), core.read_model(tmp_path / "model.xml")
    whole.reshape([1, 4, 4, 3])
    assert [[node.get_type_name() for node in model.get_ops()].count("Multiply") for model in (whole, slim)] == [3, 2]
    image = np.random.default_rng(4).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    expected, found = (
        core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image) for model in (whole, slim)
    )
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_a_disk_that_fills_up_is_told(tmp_path: Path) -> None:
    """In a process of its own, in which no file may grow beyond a kilobyte."""
    path = write_graph(tmp_path / "graph.onnx", 0)
    code = f"""
import resource
from pathlib import Path
from ferryman.errors import FileAccessError
from ferryman.specs import ModelSpec
from ferryman_export.variants.ir import save_ir
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    spec = ModelSpec.model_validate_json({SPEC.model_dump_json()!r})
    save_ir(Path({str(path)!r}), spec, Path({str(tmp_path)!r}, "m.xml"))
except FileAccessError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"can't write {tmp_path / 'm.xml'}; check the folder's permissions and space\n", done.stderr
