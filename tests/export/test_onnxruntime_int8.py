"""int8 as ONNX Runtime computes it: convolutions with answers in 8 bits, dynamic ranges, and which of both is kept."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ferryman.device import read_device
from ferryman.runtimes import onnxruntime as runtime
from ferryman.runtimes.onnxruntime import OnnxRuntime
from ferryman.specs import PreprocessSpec, Target, classification_spec
from ferryman_export.calibration import Pictures
from ferryman_export.islands import CurvePoint, IslandReport
from ferryman_export.onnx import save_graph
from ferryman_export.quantize import QuantizationPlan, Quantizer
from ferryman_export.variants.base import BuildReport
from ferryman_export.variants.onnxruntime import Built, choose

Array = NDArray[np.float32]
STATIC = QuantizationPlan(method="minmax", answers="sums", form="onnxruntime")
DYNAMIC = STATIC.model_copy(update={"method": "dynamic"})
TARGET = Target.parse("onnxruntime-cpu-int8")
PREPROCESS = PreprocessSpec(size=(12, 12), fit="crop", shortest_edge=12, mean=(0, 0, 0), std=(1, 1, 1))
SPEC = classification_spec(PREPROCESS, tuple("abcde"))
RANDOM = np.random.default_rng(12)


def normal(*shape: int, deviation: float = 0.3) -> Array:
    return RANDOM.normal(0, deviation, shape).astype(np.float32)


CONSTANTS = {
    "stem": normal(6, 3, 3, 3),
    "stem.bias": normal(6),
    "inner": normal(6, 6, 3, 3),
    "inner.bias": normal(6),
    "up": normal(6, 12),
    "up.bias": normal(12),
    "down": normal(12, 5),
}
CONSTANTS["inner"][2] = 0  # a channel of which only the bias is left, as training leaves some
CONSTANTS["up"][:, 7] = 0
CONSTANTS["up.bias"][7] = -1  # behind the ReLU there is never anything
PADS = [1, 1, 1, 1]


def draw(count: int, mean: float) -> NDArray[np.uint8]:
    """Pictures of noise, (count, 12, 12, 3)."""
    return np.clip(np.rint(RANDOM.normal(mean, 20, (count, 12, 12, 3))), 0, 255).astype(np.uint8)


def normalize(image: NDArray[np.uint8]) -> Array:
    return ((image.astype(np.float32) - 128) / 20).transpose(0, 3, 1, 2).astype(np.float32)


def make_resnet(path: Path) -> Path:
    """image -> Conv, ReLU, MaxPool -> Conv, Add, ReLU, a block with its residual -> mean -> MatMul, ReLU, MatMul.

    In between stands what `normalize` does.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "stem", "stem.bias"], ["a"], name="stem", pads=PADS),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "inner", "inner.bias"], ["d"], name="inner", pads=PADS),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("ReduceMean", ["f", "axes"], ["g"], keepdims=0),
        helper.make_node("MatMul", ["g", "up"], ["h"], name="up"),
        helper.make_node("Add", ["up.bias", "h"], ["i"]),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("MatMul", ["j", "down"], ["logits"], name="down"),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = CONSTANTS | {
        "axes": np.array([2, 3]),
        "mean": np.full(1, 128, np.float32),
        "deviation": np.full(1, 20, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "a small ResNet",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 12, 12, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(tuple(map(str, range(20))), {"image": draw(20, 128)})


@pytest.fixture(scope="module")
def quantizer(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    found = Quantizer(make_resnet(tmp_path_factory.mktemp("model") / "model.onnx"))
    found.collect(pictures, lambda _: None)
    return found


def run(
    model: onnx.ModelProto, image: NDArray[Any], names: tuple[str, ...] = ("logits",), optimised: bool = True
) -> list[Array]:
    inside = onnx.ModelProto()
    inside.CopyFrom(model)
    for name in set(names) - {"logits"}:
        kind = TensorProto.UINT8 if name.endswith(".quantized") else TensorProto.FLOAT
        inside.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # as `saturates` has it
    # ONNX Runtime's own products are made exact by an optimisation, where the processor would cut off their sums.
    cut_off = runtime.saturates(read_device().cpu_features) and any(node.domain for node in model.graph.node)
    if not optimised and not cut_off:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(inside.SerializeToString(), options)
    return [np.asarray(array) for array in session.run(list(names), {"image": image})]


def convolve(values: Array, weights: Array) -> Array:
    """(batch, channels, height, width) by 3x3 weights, nothing around the picture; exact in whole numbers."""
    padded = np.pad(values.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, weights.astype(np.float64))


def whole_weights(weights: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    scale = np.maximum(np.abs(weights).max(axes) / 127, 1e-8)
    return np.rint(weights / np.expand_dims(scale, axes)), scale


def pool(values: Array) -> Array:
    batch, channels, height, width = values.shape
    return values.reshape(batch, channels, height // 2, 2, width // 2, 2).max((3, 5))


def test_convolutions_compute_what_int8_arithmetic_gives(quantizer: Quantizer, pictures: Pictures) -> None:
    """Sums in whole numbers; the bias in their steps; ReLU as the lowest of 8 bits; the residual stream in 8 bits."""
    image = pictures.inputs["image"]
    reference = quantizer.quantize(STATIC, quantizer.blocks.keys())
    b, d, f = run(reference, image, ("b", "d", "f"), optimised=False)

    pixels = normalize(image)
    low, high = float(pixels.min()), float(pixels.max())
    step = (high - low) / 255
    zero = np.rint(-low / step)
    whole = np.clip(np.rint(pixels / step) + zero, 0, 255) - zero
    weights, scale = whole_weights(CONSTANTS["stem"], (1, 2, 3))
    bias = np.rint(CONSTANTS["stem.bias"] / (step * scale))
    sums = convolve(whole, weights) + bias[:, None, None]
    stem_step = float(b.max()) / 255
    stem = np.clip(np.rint(sums * (step * scale / stem_step)[:, None, None]), 0, 255)
    pooled = pool(stem)

    weights, scale = whole_weights(CONSTANTS["inner"], (1, 2, 3))
    inner_step = (float(d.max()) - float(d.min())) / 255
    inner_zero = np.rint(-float(d.min()) / inner_step)
    inner = convolve(pooled, weights) * (stem_step * scale)[:, None, None] + CONSTANTS["inner.bias"][:, None, None]
    inner = np.clip(np.rint(inner / inner_step) + inner_zero, 0, 255) - inner_zero
    block_step = float(f.max()) / 255
    block = np.clip(np.rint((inner * inner_step + pooled * stem_step) / block_step), 0, 255)

    model = quantizer.quantize(STATIC)
    onnx.checker.check_model(model)
    for optimised in (False, True):
        found = run(model, image, ("b.quantized", "f.quantized"), optimised)
        for values, expected in zip(found, (stem, block), strict=True):
            # A sum next to a rounding may fall on either side of it.
            assert np.abs(values - expected).max() <= 1
            assert np.mean(values == expected) > 0.98


def test_onnx_runtime_runs_all_of_it_in_8_bits(quantizer: Quantizer, pictures: Pictures, tmp_path: Path) -> None:
    path = save_graph(quantizer.quantize(STATIC), tmp_path / "static.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["MatMulIntegerToFloat"]) == (2, 1, 2)
    assert not kinds.keys() & {"Conv", "MatMul", "Gemm", "Add"}  # the biases went into the products


PLANS = {
    "plain": (QuantizationPlan(method="minmax"), {"fp32": 2, "int8": 2}),
    "static": (STATIC, {"int8": 4}),
    "static, sums in fp32": (STATIC.model_copy(update={"answers": "convolutions"}), {"int8": 4}),
    "dynamic": (DYNAMIC, {"int8": 4}),
}


@pytest.mark.parametrize(("plan", "products"), PLANS.values(), ids=PLANS)
def test_attestation(
    plan: QuantizationPlan, products: dict[str, int], quantizer: Quantizer, pictures: Pictures, tmp_path: Path
) -> None:
    """A convolution whose answer is in floating point is computed in floating point, whatever stands around it."""
    path = save_graph(quantizer.quantize(plan), tmp_path / "model.onnx")
    with OnnxRuntime().load(path, TARGET, SPEC) as session:
        told = session.attest(pictures.one(0))
    assert told.products == products


def test_where_sums_would_be_cut_off_weights_are_uint8(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a processor with AVX2 and without VNNI; the sums are the same on one that cuts nothing off."""
    path = save_graph(quantizer.quantize(STATIC), tmp_path / "model.onnx")
    facts, opened = read_device(), list[str]()

    def open_session(path: Path, options: Any, provider: str, own: object) -> onnxruntime.InferenceSession:
        options.optimized_model_filepath = str(tmp_path / f"{len(opened)}.onnx")
        opened.append(options.optimized_model_filepath)
        return onnxruntime.InferenceSession(path, options, providers=[provider])

    monkeypatch.setattr(runtime, "_open", open_session)
    for features in (("avx2",), ("avx2", "avx_vnni"), ("avx2", "avx512f", "avx512_vnni"), ("asimd",)):
        device = facts.model_copy(update={"cpu_features": features})
        monkeypatch.setattr(runtime, "read_device", lambda device=device: device)
        OnnxRuntime().load(path, TARGET, SPEC).close()
    stored = [{one.data_type for one in onnx.load(each).graph.initializer if len(one.dims) > 1} for each in opened]
    assert [TensorProto.INT8 in kinds for kinds in stored] == [False, True, True, True]


def test_a_bias_without_room_in_32_bits(pictures: Pictures, tmp_path: Path) -> None:
    """Of a channel whose weights are next to nothing: in their steps the bias would be a number of 40 bits."""
    path = make_resnet(tmp_path / "model.onnx")
    model = onnx.load(path)
    (stem,) = (tensor for tensor in model.graph.initializer if tensor.name == "stem")
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "stem.bias")
    weights, summands = CONSTANTS["stem"].copy(), CONSTANTS["stem.bias"].copy()
    weights[4], summands[4] = 1e-7, 3
    stem.CopyFrom(numpy_helper.from_array(weights, "stem"))
    bias.CopyFrom(numpy_helper.from_array(summands, "stem.bias"))
    onnx.save(model, path)
    quantizer = Quantizer(path)
    quantizer.collect(pictures, lambda _: None)
    (found,) = run(quantizer.quantize(STATIC), pictures.inputs["image"], ("b.dequantized",), optimised=False)
    np.testing.assert_allclose(found[:, 4], 3, atol=0.05)


def test_dynamic_computes_what_int8_arithmetic_gives(quantizer: Quantizer, pictures: Pictures) -> None:
    """Each row a share of its largest magnitude, from the low end that calibration chose to 1."""
    image = pictures.inputs["image"][:3]
    model = quantizer.quantize(DYNAMIC, {"stem", "inner"})
    onnx.checker.check_model(model)
    facts = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def multiply(values: Array, name: str, activation: str) -> Array:
        largest = np.abs(values).max(1, keepdims=True)
        step, zero = facts[f"{activation}.scale"], float(facts[f"{activation}.zero"])
        weights, scale = whole_weights(CONSTANTS[name], (0,))
        whole = np.clip(np.rint(values / largest / step) + zero, 0, 255) - zero
        return whole @ weights * (step * scale) * largest

    assert (facts["j.zero"], facts["j.scale"]) == (0, np.float32(1 / 255))  # behind a ReLU nothing is below zero
    (mean,) = run(model, image, ("g",), optimised=False)
    expected = multiply(np.maximum(multiply(mean, "up", "g") + CONSTANTS["up.bias"], 0), "down", "j")
    for optimised in (False, True):
        (found,) = run(model, image, optimised=optimised)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_row_of_nothing(quantizer: Quantizer) -> None:
    """No picture is divided by zero: behind the ReLU of one all may be zero."""
    model = quantizer.quantize(DYNAMIC, {"stem", "inner"})
    (up_bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "up.bias")
    up_bias.CopyFrom(numpy_helper.from_array(np.full(12, -1e3, np.float32), "up.bias"))
    (found,) = run(model, draw(2, 128))
    np.testing.assert_array_equal(found, np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("plan", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_a_corrected_bias_leaves_no_mean_error(
    plan: QuantizationPlan, quantizer: Quantizer, pictures: Pictures
) -> None:
    """Of the block's own answers, on the pictures that it was calibrated with."""
    islands = quantizer.blocks.keys() - {"up"}
    plan = plan.model_copy(update={"method": "percentile" if plan is STATIC else "dynamic"})

    def answer(model: onnx.ModelProto) -> Array:
        return run(model, pictures.inputs["image"], ("i",), optimised=False)[0]

    reference = answer(quantizer.quantize(plan, quantizer.blocks.keys()))
    kept, corrected = (
        np.abs((answer(quantizer.quantize(plan.model_copy(update={"bias": bias}), islands)) - reference).mean(0))
        for bias in ("kept", "corrected")
    )
    assert corrected.max() < 5e-4
    assert kept.max() > 2e-3


def test_neighbours_in_a_batch_change_no_dynamic_range(
    quantizer: Quantizer, pictures: Pictures, tmp_path: Path
) -> None:
    path = save_graph(quantizer.quantize(DYNAMIC), tmp_path / "model.onnx")
    image = np.concatenate([pictures.inputs["image"][:3], draw(1, 240), draw(1, 20)])
    with OnnxRuntime().load(path, TARGET, SPEC) as session:
        together = session.run({"image": image})
        for index in range(len(image)):
            alone = session.run({"image": image[index : index + 1]})
            for name, answer in alone.items():
                np.testing.assert_array_equal(answer[0], together[name][index])


def test_dynamic_ranges_follow_a_picture_that_calibration_has_not_seen(quantizer: Quantizer) -> None:
    bright = draw(1, 240)
    only = {"stem", "inner"}
    (reference,) = run(quantizer.quantize(STATIC, quantizer.blocks.keys()), bright)
    errors = [
        float(np.abs(run(quantizer.quantize(plan, only), bright)[0] - reference).max() / np.abs(reference).max())
        for plan in (DYNAMIC, STATIC)
    ]
    assert errors[0] < 0.02
    assert errors[1] > 0.3


def test_a_channel_that_calibration_saw_nothing_in_does_not_fill_the_range(
    quantizer: Quantizer, pictures: Pictures
) -> None:
    """Smoothed without a limit its values would be multiplied by thousands, and all others be rounded to nothing."""
    image = pictures.inputs["image"]
    plan = DYNAMIC.model_copy(update={"smooth": 0.5})
    model = quantizer.quantize(plan, {"stem", "inner"})
    names = [tensor.name for tensor in model.graph.initializer]
    factors = numpy_helper.to_array(model.graph.initializer[names.index("j.smooth.factors")])
    assert factors[7] <= 10.01 * np.median(factors)
    untouched = quantizer.quantize(STATIC, quantizer.blocks.keys())
    reference, found = (np.concatenate([run(one, each[None])[0] for each in image]) for one in (untouched, model))
    assert np.abs(found - reference).mean() < 0.02 * np.abs(reference).mean()


def test_gelu_is_one_operator(pictures: Pictures, tmp_path: Path) -> None:
    """As PyTorch writes it, in the ReLU's place; where another takes a part of it, it stays as it is."""
    model = onnx.load(make_resnet(tmp_path / "model.onnx"))
    at = next(index for index, node in enumerate(model.graph.node) if node.output[0] == "j")
    numbers = {"root": 2**0.5, "one": 1, "half": 0.5}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in numbers.items())
    parts = (("Div", "i", "root", "p"), ("Erf", "p", "", "q"), ("Add", "q", "one", "r"), ("Mul", "half", "r", "s"))
    written = [helper.make_node(kind, [name for name in names if name], [out]) for kind, *names, out in parts]
    written.append(helper.make_node("Mul", ["i", "s"], ["j"]))
    rest = [*model.graph.node[:at], *written, *model.graph.node[at + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(rest)
    for number, taken in enumerate((False, True)):
        if taken:
            model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", 12]))
        onnx.save(model, tmp_path / f"{number}.onnx")
        quantizer = Quantizer(tmp_path / f"{number}.onnx")
        quantizer.collect(pictures, lambda _: None)
        plain, own = (quantizer.quantize(plan) for plan in (QuantizationPlan(method="minmax"), STATIC))
        assert [node.op_type for node in own.graph.node].count("Gelu") == (0 if taken else 1)
        assert "Gelu" not in {node.op_type for node in plain.graph.node}
        islands = quantizer.blocks.keys() - {"up"}
        graphs = [quantizer.quantize(STATIC, kept) for kept in (islands, quantizer.blocks.keys())]
        (found,), (reference,) = (run(one, pictures.inputs["image"], ("j",), optimised=False) for one in graphs)
        np.testing.assert_allclose(found, reference, atol=0.03)


def test_the_faster_is_kept_where_it_is_clearly_faster() -> None:
    report = BuildReport(target="onnxruntime-cpu-int8", size=(12, 12))
    found = {
        name: Built(onnx.ModelProto(), report, IslandReport(curve=(CurvePoint(islands=0, error=error, passed=True),)))
        for name, error in {"a": 0.02, "b": 0.03, "c": 0.04}.items()
    }
    random = np.random.default_rng(2)

    def blocks(latency_ms: float) -> list[list[float]]:
        return [list(random.normal(latency_ms, 0.2, 5)) for _ in range(8)]

    chosen = choose(found, {"a": blocks(10), "b": blocks(10.05), "c": blocks(8)})
    assert [one.name for one in chosen] == ["c", "a", "b"]
    assert [one.latency_ms for one in chosen] == [pytest.approx(each, abs=0.3) for each in (8, 10, 10.05)]
    chosen = choose(found, {"a": blocks(10), "b": blocks(10.05), "c": blocks(12)})
    assert [(one.name, one.error) for one in chosen] == [("a", 0.02), ("b", 0.03), ("c", 0.04)]
    assert json.loads(chosen[0].model_dump_json())["why"] == ""
    (alone,) = choose({"b": found["b"]}, {})
    assert (alone.name, alone.latency_ms) == ("b", None)
