"""The int8 graph: against arithmetic done by hand in NumPy, and passes that must change nothing."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ferryman.errors import ExportError
from ferryman_export.calibration import Pictures
from ferryman_export.graph_edit import GraphEditor
from ferryman_export.passes import fold_affine
from ferryman_export.quantize import QuantizationPlan, Quantizer
from ferryman_export.ranges import METHODS, Method, Statistics, find_range
from ferryman_export.rounding import channel_scales, round_by_data
from ferryman_export.smoothing import smooth_block
from ferryman_export.variants.rehearsal import attest_graph

Array = NDArray[np.float32]
RANDOM = np.random.default_rng(5)
GAMMA, BETA = (RANDOM.normal(1, 0.3, 16).astype(np.float32), RANDOM.normal(0, 0.3, 16).astype(np.float32))
UP, DOWN = (RANDOM.normal(0, 0.2, shape).astype(np.float32) for shape in ((16, 24), (24, 10)))
SQUARE = np.random.default_rng(8).normal(0, 0.3, (16, 16)).astype(np.float32)
FP8 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
BIAS = RANDOM.normal(0, 0.1, 10).astype(np.float32)


def make_model(path: Path) -> Path:
    """image -> LayerNormalization -> MatMul -> Relu -> Gemm; the norm's third channel is twenty times the others."""
    gamma = GAMMA.copy()
    gamma[3] *= 20
    constants = {"gamma": gamma, "beta": BETA, "up": UP, "down": DOWN.T, "bias": BIAS}
    nodes = [
        helper.make_node("LayerNormalization", ["image", "gamma", "beta"], ["normal"], name="norm"),
        helper.make_node("MatMul", ["normal", "up"], ["hidden"], name="up"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
        helper.make_node("Gemm", ["positive", "down", "bias"], ["logits"], name="down", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "two products",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def run(model: onnx.ModelProto, inputs: Array, *names: str) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(array) for array in session.run(list(names) or ["logits"], {"image": inputs})]


def make_chain(path: Path, *nodes: tuple[str, list[str], str]) -> Path:
    """image -> logits through nodes without names; `square` is a constant of 16 x 16."""
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "no names",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(SQUARE, "square")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    inputs = np.random.default_rng(1).normal(0, 1, (20, 16)).astype(np.float32)
    return Pictures(tuple(map(str, range(20))), {"image": inputs})


@pytest.fixture
def quantizer(path: Path, pictures: Pictures) -> Quantizer:
    found, seen = Quantizer(path), list[int]()
    found.collect(pictures, seen.append)
    assert sum(seen) == len(pictures)
    return found


def round_weights(weights: Array) -> Array:
    scale = (np.abs(weights).max(0) / 127).astype(np.float32)
    return (np.clip(np.rint(weights / scale), -127, 127) * scale).astype(np.float32)


def round_activation(values: Array, low: float, high: float, symmetric: bool) -> Array:
    if symmetric:
        scale = max(-low, high) / 127
        return (np.clip(np.rint(values / scale), -128, 127) * scale).astype(np.float32)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("symmetric", [False, True], ids=["with a zero point", "around zero"])
def test_it_computes_what_int8_arithmetic_gives(
    quantizer: Quantizer, path: Path, pictures: Pictures, symmetric: bool
) -> None:
    model = quantizer.quantize(QuantizationPlan(method="minmax", numbers="int8" if symmetric else "uint8"))
    onnx.checker.check_model(model, full_check=True)
    image = pictures.inputs["image"]
    normal, positive = (run_inside(onnx.load(path), pictures, name) for name in ("normal", "positive"))
    low, high = float(normal.min()), float(normal.max())
    hidden = np.maximum(round_activation(normal, low, high, symmetric) @ round_weights(UP), 0)
    # The second range was seen in the fp32 graph.
    expected = round_activation(hidden, 0, float(positive.max()), symmetric) @ round_weights(DOWN) + BIAS
    (found,) = run(model, image)
    # A hidden value next to a rounding may fall on either side of it: one level of the second product.
    level = float(positive.max()) / (127 if symmetric else 255) * float(np.abs(DOWN).max())
    np.testing.assert_allclose(found, expected, atol=1.01 * level)
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.9


def test_it_computes_what_fp8_arithmetic_gives(quantizer: Quantizer, path: Path, pictures: Pictures) -> None:
    model = quantizer.quantize(QuantizationPlan(method="minmax", numbers="fp8"))
    onnx.checker.check_model(model, full_check=True)
    image = pictures.inputs["image"]
    normal, positive = (run_inside(onnx.load(path), pictures, name) for name in ("normal", "positive"))

    def round_fp8(values: Array, largest: float) -> Array:
        scale = np.float32(largest / 448)
        return (values / scale).astype(FP8).astype(np.float32) * scale

    hidden = round_fp8(normal, float(np.abs(normal).max())) @ round_fp8(UP, float(np.abs(UP).max()))
    positive = round_fp8(np.clip(hidden, 0, float(positive.max())), float(positive.max()))
    expected = positive @ round_fp8(DOWN, float(np.abs(DOWN).max())) + BIAS
    (found,) = run(model, image)
    # A hidden value next to a rounding may fall on either side of it: a sixteenth of itself, in the second product.
    np.testing.assert_allclose(found, expected, atol=float(positive.max()) / 16 * float(np.abs(DOWN).max()))
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.9


def test_in_fp8_convolutions_stay_as_they_are(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(RANDOM.normal(0, 1, (4, 3, 2, 2)).astype(np.float32), "weights")
    up = numpy_helper.from_array(RANDOM.normal(0, 1, (1, 5)).astype(np.float32), "up")
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["patches"], name="conv"),
        helper.make_node("MatMul", ["patches", "up"], ["logits"], name="up"),
    ]
    graph = helper.make_graph(
        nodes,
        "a convolution and a product",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 1, 5])],
        [weights, up],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    quantizer = Quantizer(tmp_path / "m.onnx")
    assert (quantizer.costs(), quantizer.costs("fp8")) == ({"conv": 1, "up": 1}, {"up": 1})
    image = RANDOM.normal(0, 1, (9, 3, 2, 2)).astype(np.float32)
    quantizer.collect(Pictures(tuple(map(str, range(9))), {"image": image}), lambda _: None)
    model = quantizer.quantize(QuantizationPlan(method="minmax", numbers="fp8"))
    told = attest_graph(model)
    assert told.products == {"fp32": 1, "fp8": 1}


def test_islands_stay_as_they_were(quantizer: Quantizer, path: Path, pictures: Pictures) -> None:
    assert quantizer.costs() == {"up": 1, "down": 1}
    plan = QuantizationPlan(method="minmax")
    (same,) = run(quantizer.quantize(plan, {"up", "down"}), pictures.inputs["image"])
    (reference,) = run(onnx.load(path), pictures.inputs["image"])
    np.testing.assert_allclose(same, reference, atol=1e-5)
    kinds = [node.op_type for node in quantizer.quantize(plan, {"up"}).graph.node]
    assert kinds.count("QuantizeLinear") == 1


@pytest.mark.parametrize("smooth", [None, 0.5], ids=["plain", "smooth"])
def test_products_without_names_that_share_their_weights(
    smooth: float | None, pictures: Pictures, tmp_path: Path
) -> None:
    """Each is a block by its output; one may be an island, and the weights of the other are still in 8 bits."""
    path = make_chain(
        tmp_path / "model.onnx",
        ("MatMul", ["image", "square"], "hidden"),
        ("Relu", ["hidden"], "positive"),
        ("MatMul", ["positive", "square"], "logits"),
    )
    quantizer = Quantizer(path)
    quantizer.collect(pictures, lambda done: None)
    assert quantizer.costs() == {"hidden": 1, "logits": 1}
    image, rounded = pictures.inputs["image"], round_weights(SQUARE)
    positive = np.maximum(image @ SQUARE, 0)
    whole = round_activation(image, float(image.min()), float(image.max()), False)
    low = round_activation(positive, 0, float(positive.max()), False)
    for island, expected in (("logits", np.maximum(whole @ rounded, 0) @ SQUARE), ("hidden", low @ rounded)):
        model = quantizer.quantize(QuantizationPlan(method="minmax", smooth=smooth), {island})
        onnx.checker.check_model(model, full_check=True)
        found = run(model, image)[0]
        assert np.mean(np.abs(found - expected) < 1e-4) > 0.9  # else a value next to a rounding fell to its other side
    both = quantizer.quantize(QuantizationPlan(method="minmax", smooth=smooth))
    onnx.checker.check_model(both, full_check=True)
    assert "square" not in {tensor.name for tensor in both.graph.initializer}
    reference = positive @ SQUARE
    assert np.abs(run(both, image)[0] - reference).mean() < 0.02 * np.abs(reference).mean()


def test_nothing_to_quantise(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "model.onnx", ("Add", ["image", "image"], "sum"), ("Relu", ["sum"], "logits"))
    with pytest.raises(ExportError, match="the graph has no matrix product with constant weights"):
        Quantizer(path)


def test_smoothing_only_makes_channels_alike(quantizer: Quantizer, path: Path, pictures: Pictures) -> None:
    model = onnx.load(path)
    graph = GraphEditor(model)
    normal = run_inside(model, pictures, "normal")
    seen = Statistics(normal.min(0)[None], normal.max(0)[None], normal)
    smoothed = smooth_block(graph, quantizer.blocks["up"], seen, 0.5)
    assert smoothed is not None
    assert smoothed.node is None  # the norm took the factors up
    smooth = run_inside(model, pictures, "normal")
    np.testing.assert_allclose(smooth, normal * smoothed.factors, rtol=1e-4, atol=1e-6)
    (before,), (after,) = (run(one, pictures.inputs["image"]) for one in (onnx.load(path), model))
    np.testing.assert_allclose(after, before, atol=1e-4)
    spread = [np.abs(values).max(0).max() / np.median(np.abs(values).max(0)) for values in (normal, smooth)]
    assert spread[1] < spread[0] / 3
    # And with 8 bits it answers better, which is what it is for.
    errors = [
        float(np.abs(run(quantizer.quantize(plan, {"down"}), pictures.inputs["image"])[0] - before).mean())
        for plan in (QuantizationPlan(method="minmax"), QuantizationPlan(method="minmax", smooth=0.5))
    ]
    assert errors[1] < errors[0] / 2


def test_after_what_bends_a_node_smooths(quantizer: Quantizer, pictures: Pictures) -> None:
    """ReLU is followed by a multiplication, whose factors the weights make up for."""
    image = pictures.inputs["image"]
    plan = QuantizationPlan(method="minmax", smooth=0.5)
    model = quantizer.quantize(plan, {"up"})
    onnx.checker.check_model(model, full_check=True)
    (node,) = (node for node in model.graph.node if node.op_type == "Mul")
    positive, smooth = (run_inside(model, pictures, name) for name in ("positive", node.output[0]))
    factors = numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == node.input[1]))
    np.testing.assert_allclose(smooth, positive * factors, rtol=1e-6)
    low, high = float(smooth.min()), float(smooth.max())
    weights = np.asarray(DOWN / factors[:, None], np.float32)
    expected = round_activation(smooth, low, high, False) @ round_weights(weights) + BIAS
    found = run(model, image)[0]
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.9  # else a value next to a rounding fell to its other side


# --- rounding by data


def test_channels_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest() -> None:
    weights = RANDOM.normal(0, 1, (32, 7)).astype(np.float32)
    samples = np.linalg.qr(RANDOM.normal(size=(32, 32)))[0].astype(np.float32)
    scales = channel_scales(weights, (0,))
    np.testing.assert_array_equal(round_by_data(weights, samples.T @ samples), np.rint(weights / scales))


@pytest.mark.parametrize("inputs", [24, 200], ids=["at once", "in parts"])
def test_what_is_rounded_by_data_answers_better(inputs: int) -> None:
    """On samples that it has not seen, of channels that go together, as those of images do."""
    random = np.random.default_rng(6)
    mix = random.normal(size=(8, inputs)) + 0.1 * random.normal(size=(8, inputs))
    seen, others = ((random.normal(size=(500, 8)) @ mix).astype(np.float32) for _ in range(2))
    weights = random.normal(0, 1, (inputs, 12)).astype(np.float32)
    scales = channel_scales(weights, (0,))
    whole = round_by_data(weights, seen.T @ seen)
    assert np.abs(whole).max() <= 127
    errors = [np.square(others @ (steps * scales - weights)).mean() for steps in (whole, np.rint(weights / scales))]
    assert errors[0] < errors[1] / 4


def test_weights_of_channels_that_are_never_on(quantizer: Quantizer) -> None:
    samples = np.zeros((10, 16), np.float32)
    np.testing.assert_array_equal(round_by_data(UP, samples.T @ samples), np.rint(UP / channel_scales(UP, (0,))))
    samples[:, :4] = 1
    assert np.isfinite(round_by_data(UP, samples.T @ samples)).all()


def test_rounded_by_data_the_graph_answers_better(quantizer: Quantizer, path: Path, pictures: Pictures) -> None:
    (reference,) = run(onnx.load(path), pictures.inputs["image"])
    plans = [QuantizationPlan(method="minmax", smooth=0.5, rounding=rounding) for rounding in ("gptq", "nearest")]
    errors = [np.abs(run(quantizer.quantize(plan), pictures.inputs["image"])[0] - reference).mean() for plan in plans]
    assert errors[0] < errors[1]
    islands = quantizer.quantize(plans[0], {"down"})
    assert [node.op_type for node in islands.graph.node].count("QuantizeLinear") == 1


def run_inside(model: onnx.ModelProto, pictures: Pictures, name: str) -> Array:
    inside = onnx.ModelProto()
    inside.CopyFrom(model)
    inside.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return run(inside, pictures.inputs["image"], name)[0]


def test_ranges() -> None:
    """Values about in [-1, 1], and one of 50 in a single picture of 40."""
    values = np.random.default_rng(2).normal(0, 0.25, (4000, 10)).astype(np.float32)
    lows, highs = np.full((40, 10), -1, np.float32), np.full((40, 10), 1, np.float32)
    values[7, 2] = highs[3, 2] = 50
    seen = Statistics(lows, highs, values)
    found = {method: find_range(seen, method) for method in METHODS}
    assert found["minmax"] == (-1, 50)
    assert found["mean"] == pytest.approx((-1, 1 + 49 / 40))
    assert found["percentile"] == pytest.approx((-0.93, 0.93), abs=0.1)  # of a normal distribution, 3.7 deviations
    assert found["entropy"][1] < 40  # it clips what is alone out there
    # Zero belongs to every range: padding must stay nothing.
    positive = Statistics(lows + 3, highs + 3, values[:, :1] * 0 + 3)
    assert all(find_range(positive, method)[0] == 0 for method in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_range(method: Method) -> None:
    nothing = np.zeros((3, 4), np.float32)
    low, high = find_range(Statistics(nothing, nothing, nothing), method)
    assert low == 0
    assert high > 0


def test_batch_norm_goes_into_the_convolution() -> None:
    random = np.random.default_rng(3)
    constants = {
        "weights": random.normal(size=(6, 3, 3, 3)),
        "factor": random.uniform(0.5, 2, (6, 1, 1)),
        "summand": random.normal(size=(1, 6, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["a"], name="conv"),
        helper.make_node("Mul", ["a", "factor"], ["b"], name="mul"),
        helper.make_node("Add", ["summand", "b"], ["c"], name="add"),
        helper.make_node("Relu", ["c"], ["logits"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "a convolution and its norm",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 6, 6, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    image = random.normal(size=(2, 3, 8, 8)).astype(np.float32)
    (before,) = run(model, image)
    folded = fold_affine(model)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu"]
    np.testing.assert_allclose(run(folded, image)[0], before, atol=1e-5)


def test_weights_are_rounded_by_more_positions_than_they_have_inputs(tmp_path: Path) -> None:
    """On other pictures of the same kind: fitted to a few positions, weights would err more than plain ones."""
    random = np.random.default_rng(12)
    inputs, outputs = 512, 8
    mix = random.normal(size=(300, inputs)) / 17
    weights = numpy_helper.from_array(random.normal(0, 1, (inputs, outputs)).astype(np.float32), "weights")
    shapes = {"image": ["batch", 100, inputs], "logits": ["batch", 100, outputs]}
    given, answered = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    product = helper.make_node("MatMul", ["image", "weights"], ["logits"], name="wide")
    graph = helper.make_graph([product], "wide", [given], [answered], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "wide.onnx"
    onnx.save(model, path)
    seen, others = ((random.normal(size=(12, 100, 300)) @ mix).astype(np.float32) for _ in range(2))
    quantizer = Quantizer(path)
    quantizer.collect(Pictures(tuple(map(str, range(12))), {"image": seen}), lambda done: None)

    def weights_error(rounding: Literal["nearest", "gptq"]) -> float:
        graph = GraphEditor(quantizer.quantize(QuantizationPlan(method="minmax", rounding=rounding)))
        stored = graph.value("logits.weights").astype(np.float32) * graph.value("logits.weights.scale")
        return float(np.square(others @ (stored - numpy_helper.to_array(weights))).mean())

    assert weights_error("gptq") < weights_error("nearest") / 1.5
