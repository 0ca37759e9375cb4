"""Static int8 and fp8: which values matrix products meet on real pictures, and the graph that computes them in 8 bits.

Only products with weights (MatMul, Gemm, Conv) are quantised, the weights per output channel. LayerNorm, softmax, GELU,
attention's own products and the residual stream stay in floating point. The graph is plain ONNX (QuantizeLinear,
DequantizeLinear), the same for every runtime.
"""

import tempfile
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from ferryman.errors import ExportError
from ferryman.golden import Tensors
from ferryman.specs import Facts
from ferryman_export.calibration import Pictures
from ferryman_export.graph_edit import GraphEditor, module_of
from ferryman_export.half import raise_opset
from ferryman_export.onnx import save_graph
from ferryman_export.passes import fold_affine

Numbers = Literal["uint8", "int8", "fp8"]
Method = Literal["minmax", "mean", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("minmax", "mean", "percentile", "entropy")
SMOOTHING = (0.5, 0.75)
_SAMPLES_A_PICTURE = 4096  # values of a tensor kept of each picture, for percentiles and entropy
_LEAST = 1e-8
_FP8_OPSET = 19  # the first in which ONNX quantises to 8-bit floating point
_FP8 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
_FP8_LARGEST = 448.0


class QuantizationPlan(Facts):
    """How ranges are found and what is done before.

    method: of an activation's range over the pictures: the extremes of all, the mean of each picture's, what 99.99 % of
    the values lie in, or what loses the least information (entropy)
    smooth: how much of the activations' range moves into the weights before (SmoothQuant's alpha), None for nothing
    numbers: of activations, uint8 with a zero point; or, as TensorRT wants them, int8 or fp8 (e4m3) around zero
    """

    method: Method
    smooth: float | None = None
    numbers: Numbers = "uint8"


@dataclass(frozen=True)
class Product:
    """A matrix product with constant weights: its node's output, the activation and the weights that it takes."""

    output: str
    activation: str
    weights: str
    convolution: bool


@dataclass
class Statistics:
    """What was seen of one activation: lows, highs (pictures, channels); values: a sample, (rows, channels)."""

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    values: NDArray[np.float32]

    def scaled(self, factors: NDArray[np.float32]) -> "Statistics":
        """Of the activation with each channel multiplied by a positive factor."""
        return Statistics(self.lows * factors, self.highs * factors, self.values * factors)


class Quantizer:
    """The fp32 graph at `path`, ready to be quantised. `collect` comes before `quantize`.

    Raises ExportError when it has no matrix product with weights.
    """

    def __init__(self, path: Path) -> None:
        self._model = gemm_to_matmul(fold_affine(onnx.load(path)))
        self._graph = GraphEditor(self._model)
        self._statistics: dict[str, Statistics] = {}
        # Products of one activation (queries, keys and values) share what it costs to quantise it: one block.
        self.blocks: dict[str, list[Product]] = {}
        names: dict[str, str] = {}
        for node in self._graph.nodes:
            if node.op_type in ("MatMul", "Conv") and self._graph.is_constant(node.input[1]):
                name = module_of(node)
                if name in self.blocks and self.blocks[name][0].activation != node.input[0]:
                    name = f"{name}, {node.output[0]}"  # a module that is called several times
                name = names.setdefault(node.input[0], name)
                product = Product(str(node.output[0]), node.input[0], node.input[1], node.op_type == "Conv")
                self.blocks.setdefault(name, []).append(product)
        if not self.blocks:
            raise ExportError("there is nothing to quantise: the graph has no matrix product with constant weights")

    @cached_property
    def _raised(self) -> onnx.ModelProto:
        """The graph in an opset that has fp8."""
        return raise_opset(self._model, _FP8_OPSET)

    def costs(self, numbers: Numbers = "uint8") -> dict[str, int]:
        """Products in each block that can be computed with these numbers: in fp8, convolutions can't."""
        able = {
            name: products for name, products in self.blocks.items() if numbers != "fp8" or not products[0].convolution
        }
        return {name: len(products) for name, products in able.items()}

    def collect(self, pictures: Pictures, advance: Callable[[int], None]) -> None:
        """Runs the pictures and keeps statistics of every product's activation. advance: called once a picture."""
        channels_last = {p.activation: not p.convolution for products in self.blocks.values() for p in products}
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        known = {value.name for value in model.graph.output}
        for name in channels_last:
            if name not in known:
                model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        with tempfile.TemporaryDirectory() as folder:
            path = save_graph(model, Path(folder) / "watched.onnx")
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found: dict[str, list[Statistics]] = {name: [] for name in channels_last}
        random = np.random.default_rng(0)
        for index in range(len(pictures)):
            arrays = session.run(list(channels_last), dict(pictures.one(index)))
            for (name, last), array in zip(channels_last.items(), arrays, strict=True):
                values = np.asarray(array, np.float32)
                values = values if last else np.moveaxis(values, 1, -1)
                rows = values.reshape(-1, values.shape[-1])
                some = rows[random.integers(len(rows), size=max(1, _SAMPLES_A_PICTURE // rows.shape[1]))]
                found[name].append(Statistics(rows.min(0)[None], rows.max(0)[None], some))
            advance(1)
        self._statistics = {
            name: Statistics(
                np.concatenate([one.lows for one in seen]),
                np.concatenate([one.highs for one in seen]),
                np.concatenate([one.values for one in seen]),
            )
            for name, seen in found.items()
        }

    def quantize(self, plan: QuantizationPlan, islands: Set[str] = frozenset()) -> onnx.ModelProto:
        """The graph with every block that `costs` names, but the islands, in 8 bits."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if plan.numbers == "fp8":
            model.CopyFrom(self._raised)
        graph = GraphEditor(model)
        blocks = {name: self.blocks[name] for name in self.costs(plan.numbers) if name not in islands}
        chosen = [product for products in blocks.values() for product in products]
        statistics = dict(self._statistics)
        if plan.smooth is not None:
            for products in blocks.values():
                activation = products[0].activation
                factors = smooth_block(graph, products, statistics[activation], plan.smooth)
                if factors is not None:
                    statistics[activation] = statistics[activation].scaled(factors)
        added: dict[str, list[onnx.NodeProto]] = {}
        nodes = {str(node.output[0]): node for node in graph.nodes}
        done: set[str] = set()
        for product in chosen:
            node, before = nodes[product.output], added.setdefault(product.output, [])
            activation = product.activation
            if activation not in done:
                low, high = find_range(statistics[activation], plan.method)
                before += quantize_activation(graph, activation, low, high, plan.numbers)
                done.add(activation)
            node.input[0] = f"{activation}.dequantized"
            before.append(quantize_weights(graph, product, plan.numbers))
            node.input[1] = before[-1].output[0]
        graph.replace_nodes([one for node in graph.nodes for one in (*added.get(str(node.output[0]), ()), node)])
        return graph.finish()


def gemm_to_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Gemm with constant weights as MatMul and Add, which runtimes run in 8 bits with a floating-point answer."""
    graph = GraphEditor(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        facts = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = facts.get("alpha", 1.0) == 1.0 and facts.get("beta", 1.0) == 1.0 and not facts.get("transA", 0)
        if node.op_type != "Gemm" or not plain or not graph.is_constant(node.input[1]) or len(node.input) != 3:
            nodes.append(node)
            continue
        weights = node.input[1]
        if facts.get("transB", 0):
            weights = graph.put(f"{weights}.transposed", graph.value(weights).T)
        product = helper.make_node("MatMul", [node.input[0], weights], [f"{node.output[0]}.product"], name=node.name)
        bias = helper.make_node("Add", [product.output[0], node.input[2]], list(node.output), name=f"{node.name}.bias")
        for one in (product, bias):
            one.metadata_props.extend(node.metadata_props)
        nodes += [product, bias]
    graph.replace_nodes(nodes)
    return graph.finish()


def smooth_block(
    graph: GraphEditor, products: list[Product], statistics: Statistics, alpha: float
) -> NDArray[np.float32] | None:
    """Moves the activation's large channels into the weights (Xiao et al. 2023, "SmoothQuant", equation 4).

    What makes the activation must be able to take up the division, so that nothing is computed twice. Returns the
    factor of each channel of the activation, None when the block stays as it is.
    """
    activation = products[0].activation
    takers = {str(node.output[0]) for node in graph.consumers.get(activation, ())}
    shared = any(len(graph.consumers[product.weights]) > 1 for product in products)
    makers = find_makers(graph, activation)
    if not makers or shared or takers != {product.output for product in products} or activation in graph.outputs:
        return None
    largest = np.maximum(np.abs(statistics.lows).max(0), np.abs(statistics.highs).max(0))
    weights = [graph.value(product.weights) for product in products]
    heaviest = np.max([np.abs(array).max(1) for array in weights], axis=0)
    strength = np.maximum(largest, _LEAST) ** alpha / np.maximum(heaviest, _LEAST) ** (1 - alpha)
    strength = np.maximum(strength, 1e-5).astype(np.float32)
    for name in makers:
        graph.put(name, graph.value(name) / strength)
    for product, array in zip(products, weights, strict=True):
        graph.put(product.weights, array * strength[:, None])
    return 1 / strength


def find_makers(graph: GraphEditor, activation: str) -> list[str]:
    """Constants whose last dimension is the activation's channels, and which it is linear in; none when there are none.

    Scale and bias of a LayerNorm, or, where the activation is what attention gives, the projection to its values:
    attention weighs positions, and each of its channels is one of the values'.
    """
    node = graph.producers.get(activation)
    if node is not None and node.op_type == "LayerNormalization":
        return _own(graph, list(node.input[1:]))
    # activation <- Reshape <- Transpose <- MatMul(weights, Transpose <- Reshape <- Add <- MatMul(tokens, projection))
    for kind in ("Reshape", "Transpose", "MatMul", "Transpose", "Reshape", "Add"):
        if node is None or node.op_type != kind or graph.only_consumer(node.output[0]) is None:
            return []
        if kind == "Add":
            break
        node = graph.producers.get(node.input[1 if kind == "MatMul" else 0])
    if node is None:
        return []
    bias = [name for name in node.input if graph.is_constant(name)]
    projection = graph.producers.get(node.input[0] if node.input[0] not in bias else node.input[1])
    if projection is None or projection.op_type != "MatMul" or len(bias) != 1:
        return []
    return _own(graph, [projection.input[1], *bias])


def _own(graph: GraphEditor, names: list[str]) -> list[str]:
    """The names, if they are constants that one node alone takes."""
    own = all(graph.is_constant(name) and len(graph.consumers[name]) == 1 for name in names)
    return names if own else []


def find_range(statistics: Statistics, method: Method) -> tuple[float, float]:
    """Low and high end of what 8 bits shall cover, zero included."""
    lows, highs = statistics.lows.min(1), statistics.highs.max(1)  # (pictures,)
    if method == "mean":
        low, high = float(lows.mean()), float(highs.mean())
    elif method == "percentile":
        low, high = (float(value) for value in np.percentile(statistics.values, (0.01, 99.99)))
    else:
        low, high = float(lows.min()), float(highs.max())
    low, high = min(low, 0.0), max(high, 0.0)
    if method == "entropy":
        share = least_divergence(statistics.values, low, high)
        low, high = low * share, high * share
    return low, max(high, low + _LEAST)


def least_divergence(values: NDArray[np.float32], low: float, high: float) -> float:
    """The share of the range, of 0.3 to 1, whose 256 levels keep the values' distribution best.

    Kullback-Leibler divergence of the histogram after clipping and rounding from the one before (Migacz 2017, "8-bit
    inference with TensorRT").
    """
    bins, levels = 2048, 256
    counts, edges = np.histogram(values, bins=bins, range=(low, max(high, low + _LEAST)))
    centres = (edges[:-1] + edges[1:]) / 2
    before = counts / max(1, counts.sum())
    filled = counts > 0
    best, least = 1.0, np.inf
    for share in np.linspace(0.3, 1.0, 36):
        bottom, top = low * share, high * share
        step = max(top - bottom, _LEAST) / (levels - 1)
        level = np.round((np.clip(centres, bottom, top) - bottom) / step).astype(int)
        # What a level holds is spread evenly over the bins that have something in them and end in it.
        mass = np.bincount(level, weights=counts, minlength=levels)
        width = np.bincount(level[filled], minlength=levels)
        after = np.where(filled, mass[level] / np.maximum(width[level], 1), 0) / max(1, counts.sum())
        divergence = float(np.sum(before[filled] * np.log(before[filled] / np.maximum(after[filled], 1e-12))))
        # Clipped values are far from where they were, which a histogram alone does not see.
        outside = float(before[(centres < bottom) | (centres > top)].sum())
        if divergence + outside < least:
            best, least = float(share), divergence + outside
    return best


def quantize_activation(
    graph: GraphEditor, name: str, low: float, high: float, numbers: Numbers
) -> list[onnx.NodeProto]:
    """`name` -> `name.dequantized` through 8 bits: uint8 with a zero point, or int8 or fp8 around zero."""
    if numbers == "uint8":
        scale = np.float32((high - low) / 255)
        zero = np.array(np.clip(np.round(-low / scale), 0, 255), np.uint8)
    else:
        largest, dtype = (127, np.int8) if numbers == "int8" else (_FP8_LARGEST, _FP8)
        scale, zero = np.float32(max(-low, high) / largest), np.array(0, dtype)
    facts = [graph.put(f"{name}.scale", np.array(scale)), graph.put(f"{name}.zero", zero)]
    return [
        helper.make_node("QuantizeLinear", [name, *facts], [f"{name}.quantized"], name=f"{name}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.quantized", *facts], [f"{name}.dequantized"], name=f"{name}.dequantize"
        ),
    ]


def quantize_weights(graph: GraphEditor, product: Product, numbers: Numbers) -> onnx.NodeProto:
    """Stores a product's weights in 8 bits and gives the node that reads them.

    As int8 with a scale each output channel; as fp8, whose levels are finer the nearer to zero, with one scale:
    TensorRT 10.3 has no products in fp8 with more.
    """
    array = graph.value(product.weights)
    name = f"{product.output}.weights"  # by the product: two may share a tensor
    if numbers == "fp8":
        scale = np.array(max(np.abs(array).max() / _FP8_LARGEST, _LEAST), np.float32)
        whole, channel = (array / scale).astype(_FP8), None
    else:
        channel = 0 if product.convolution else array.ndim - 1
        others = tuple(index for index in range(array.ndim) if index != channel)
        scale = np.maximum(np.abs(array).max(axis=others) / 127, _LEAST).astype(np.float32)
        whole = np.clip(np.round(array / np.expand_dims(scale, others)), -127, 127).astype(np.int8)
    inputs = [
        graph.put(name, whole),
        graph.put(f"{name}.scale", scale),
        graph.put(f"{name}.zero", np.zeros(scale.shape, whole.dtype)),
    ]
    output = [f"{name}.dequantized"]
    return helper.make_node("DequantizeLinear", inputs, output, name=f"{name}.dequantize", axis=channel)


def distance(answers: Iterable[Tensors], references: Iterable[Tensors]) -> float:
    """Root mean square error of all floating-point outputs, each relative to its own magnitude; infinite for NaN."""
    errors: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for answer, reference in zip(answers, references, strict=True):
        for name, wanted in reference.items():
            if wanted.dtype.kind == "f":
                difference = answer[name].astype(np.float64) - wanted.astype(np.float64)
                errors[name] = errors.get(name, 0.0) + float(np.square(difference).sum())
                sizes[name] = sizes.get(name, 0.0) + float(np.square(wanted.astype(np.float64)).sum())
    shares = [np.sqrt(errors[name] / max(sizes[name], 1e-24)) for name in errors]
    mean = float(np.mean(shares)) if shares else 0.0
    return mean if np.isfinite(mean) else float("inf")
