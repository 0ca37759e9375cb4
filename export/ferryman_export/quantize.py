"""Static int8 and fp8: which values matrix products meet on real pictures, and the graph that computes them in 8 bits.

Only products with weights (MatMul, Gemm, Conv) are quantised, the weights per output channel. LayerNorm, softmax, GELU,
attention's own products and the residual stream stay in floating point. The graph is plain ONNX (QuantizeLinear,
DequantizeLinear), the same for every runtime.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Set
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
from ferryman_export.bias import correct_bias, round_rows, round_values
from ferryman_export.calibration import Pictures
from ferryman_export.graph_edit import GraphEditor
from ferryman_export.half import raise_opset
from ferryman_export.onnx import save_graph
from ferryman_export.passes import fold_affine
from ferryman_export.products import Product, find_answers, find_products, gemm_to_matmul
from ferryman_export.qdq import (
    Numbers,
    finish_with,
    multiply_rows,
    multiply_whole,
    quantize_activation,
    quantize_answers,
    quantize_bias,
    quantize_rows,
    quantize_weights,
)
from ferryman_export.ranges import Method, Statistics, find_range, find_row_low
from ferryman_export.rounding import round_by_data
from ferryman_export.smoothing import smooth_block

Answers = Literal["float", "convolutions", "sums"]
Form = Literal["plain", "onnxruntime"]
_SAMPLES_A_PICTURE = 4096  # values of a tensor kept of each picture, for percentiles and entropy
_ROWS_A_PICTURE = 64  # what weights are rounded by: 190 pictures have eight times as many as the widest of a ViT-S
_FP8_OPSET = 19  # the first in which ONNX quantises to 8-bit floating point


class QuantizationPlan(Facts):
    """How ranges are found and what is done before.

    method: of an activation's range over the pictures: the extremes of all, the mean of each picture's, what 99.99 % of
    the values lie in, or what loses the least information (entropy); dynamic: of each row, a position of a picture, the
    largest magnitude, found as it runs, where a product is written in ONNX Runtime's form
    smooth: how much of the activations' range moves into the weights before (SmoothQuant's alpha), None for nothing
    rounding: of weights, to the nearest, or so that the products on the calibration pictures change least (GPTQ)
    numbers: of activations, uint8 with a zero point; or, as TensorRT wants them, int8 or fp8 (e4m3) around zero
    answers: of convolutions: in floating point, or in 8 bits too, those alone or also the sums of two (`find_answers`)
    form: of products: plain ONNX for every runtime, or ONNX Runtime's own operator, which takes the bias with it
    bias: kept, or corrected by what 8 bits add to the answers on average
    """

    method: Method
    smooth: float | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    numbers: Numbers = "uint8"
    answers: Answers = "float"
    form: Form = "plain"
    bias: Literal["kept", "corrected"] = "kept"


class Quantizer:
    """The fp32 graph at `path`, ready to be quantised. `collect` comes before `quantize`.

    Raises ExportError when it has no matrix product with weights.
    """

    def __init__(self, path: Path) -> None:
        self._model = gemm_to_matmul(fold_affine(onnx.load(path)))
        self._graph = GraphEditor(self._model)
        self._statistics: dict[str, Statistics] = {}
        self._rows: dict[str, int] = {}  # of each activation, in one picture
        self._rounded: dict[tuple[str, float | None], dict[str, NDArray[np.int8]]] = {}
        self.blocks = find_products(self._graph)
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

    def has_sums(self) -> bool:
        """Whether convolutions' answers are added up to what further ones take, as in a ResNet."""
        convolutions = [p.output for products in self.blocks.values() for p in products if p.convolution]
        return find_answers(self._graph, convolutions, True) != find_answers(self._graph, convolutions, False)

    def work(self) -> dict[str, int]:
        """Multiplications in each block, for one picture. Comes after `collect`."""
        found: dict[str, int] = {}
        for name, products in self.blocks.items():
            sizes = [self._graph.value(product.weights).size for product in products]
            node = self._graph.producers[products[0].output]
            steps = next((fact.ints for fact in node.attribute if fact.name == "strides"), [1])
            found[name] = self._rows[products[0].activation] * sum(sizes) // math.prod(steps)
        return found

    def collect(self, pictures: Pictures, advance: Callable[[int], None]) -> None:
        """Runs the pictures and keeps statistics of every product's activation. advance: called once a picture."""
        every = [product for products in self.blocks.values() for product in products]
        answers = find_answers(self._graph, (product.output for product in every if product.convolution), sums=True)
        activations = {product.activation: not product.convolution for product in every}
        channels_last = activations | {name: False for name in answers.values() if name not in activations}
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
        together: dict[str, NDArray[np.float32]] = {}
        random, other = np.random.default_rng(0), np.random.default_rng(1)  # answers change no activation's sample
        for index in range(len(pictures)):
            arrays = session.run(list(channels_last), dict(pictures.one(index)))
            for (name, last), array in zip(channels_last.items(), arrays, strict=True):
                values = np.asarray(array, np.float32)
                values = values if last else np.moveaxis(values, 1, -1)
                rows = values.reshape(-1, values.shape[-1])
                self._rows[name] = len(rows)
                draw = random if name in activations else other
                some = rows[draw.integers(len(rows), size=max(1, _SAMPLES_A_PICTURE // rows.shape[1]))]
                found[name].append(Statistics(rows.min(0)[None], rows.max(0)[None], some))
                if last:
                    many = rows[other.integers(len(rows), size=_ROWS_A_PICTURE)]
                    together[name] = together.get(name, np.float32(0)) + many.T @ many
            advance(1)
        self._statistics = {
            name: Statistics(
                np.concatenate([one.lows for one in seen]),
                np.concatenate([one.highs for one in seen]),
                np.concatenate([one.values for one in seen]),
                together.get(name),
            )
            for name, seen in found.items()
        }

    def quantize(self, plan: QuantizationPlan, islands: Set[str] = frozenset()) -> onnx.ModelProto:
        """The graph with every block that `costs` names, but the islands, in 8 bits."""
        model = onnx.ModelProto()
        model.CopyFrom(self._raised if plan.numbers == "fp8" else self._model)
        graph = GraphEditor(model)
        blocks = {name: self.blocks[name] for name in self.costs(plan.numbers) if name not in islands}
        chosen = [product for products in blocks.values() for product in products]
        added: dict[str, list[onnx.NodeProto]] = {product.output: [] for product in chosen}
        statistics, smoothed = self._smooth(graph, blocks, plan, added)
        rounded: dict[str, NDArray[np.int8]] = {}
        if plan.rounding == "gptq":
            for name, products in blocks.items():
                rounded |= self._round(name, products, plan.smooth, graph, statistics[products[0].activation])
        nodes = {str(node.output[0]): node for node in graph.nodes}
        gone: set[str] = set()
        convolutions = [product.output for product in chosen if product.convolution]
        answers: dict[str, list[onnx.NodeProto]] = {}
        if plan.answers != "float":
            for name, like in find_answers(graph, convolutions, plan.answers == "sums").items():
                answers[name] = quantize_answers(graph, name, *find_range(statistics[like], plan.method))
        convolved = {product.activation for product in chosen if product.convolution}
        done = set(answers)
        for product in chosen:
            node, before, activation = nodes[product.output], added[product.output], product.activation
            own = plan.form == "onnxruntime" and not product.convolution and graph.value(product.weights).ndim == 2
            by_row = own and plan.method == "dynamic" and activation not in convolved
            seen = statistics[activation]
            if activation not in done:
                source = smoothed.get(activation, activation)
                before += self._quantize_activation(graph, activation, source, seen, plan, by_row)
                done.add(activation)
            weights = quantize_weights(graph, product, plan.numbers, rounded.get(product.output))
            if plan.bias == "corrected":
                correct_bias(graph, product, seen.values, _as_stored(seen.values, graph, activation, by_row))
            if by_row:
                answers[product.output] = [node, multiply_rows(node, product)]
            elif own:
                gone |= multiply_whole(graph, node, product)
            else:
                before.append(weights)
                node.input[0], node.input[1] = f"{activation}.dequantized", weights.output[0]
                if plan.answers != "float" and product.convolution and len(node.input) > 2:
                    before.append(quantize_bias(graph, product, node.input[2]))
                    node.input[2] = before[-1].output[0]
        kept = {name: node for name, node in nodes.items() if name not in gone}
        order = [(*added.get(name, ()), *answers.get(name, (node,))) for name, node in kept.items()]
        return finish_with(graph, [one for several in order for one in several])

    @staticmethod
    def _quantize_activation(
        graph: GraphEditor, name: str, source: str, seen: Statistics, plan: QuantizationPlan, by_row: bool
    ) -> list[onnx.NodeProto]:
        if by_row:
            return quantize_rows(graph, name, source, find_row_low(seen.values))
        low, high = find_range(seen, plan.method)
        return quantize_activation(graph, name, source, low, high, plan.numbers)

    def _smooth(
        self,
        graph: GraphEditor,
        blocks: Mapping[str, list[Product]],
        plan: QuantizationPlan,
        added: dict[str, list[onnx.NodeProto]],
    ) -> tuple[dict[str, Statistics], dict[str, str]]:
        """Statistics of every activation after smoothing, and what stands in its place where a node was `added`."""
        statistics, smoothed = dict(self._statistics), dict[str, str]()
        for products in blocks.values() if plan.smooth is not None else ():
            activation = products[0].activation
            bounded = plan.form == "onnxruntime"
            found = smooth_block(graph, products, statistics[activation], plan.smooth or 0, bounded)
            if found is not None:
                statistics[activation] = statistics[activation].scaled(found.factors)
            if found is not None and found.node is not None:
                smoothed[activation] = found.node.output[0]
                added[products[0].output].append(found.node)
        return statistics, smoothed

    def _round(
        self, block: str, products: list[Product], smooth: float | None, graph: GraphEditor, statistics: Statistics
    ) -> dict[str, NDArray[np.int8]]:
        """A block's weights in whole numbers, by product. Computed once: islands elsewhere don't change them.

        Nor does it matter that smoothing the block after attention divides the weights of the values: it is by channel.
        """
        correlation = statistics.correlation
        if products[0].convolution or correlation is None:
            return {}
        if (block, smooth) not in self._rounded:
            weights = [graph.value(product.weights) for product in products]
            whole = round_by_data(np.concatenate(weights, axis=1), correlation)
            parts = np.split(whole, np.cumsum([array.shape[1] for array in weights])[:-1], axis=1)
            self._rounded[block, smooth] = {p.output: part for p, part in zip(products, parts, strict=True)}
        return self._rounded[block, smooth]


def _as_stored(values: NDArray[np.float32], graph: GraphEditor, activation: str, by_row: bool) -> NDArray[np.float32]:
    """Values (rows, channels) of an activation as the 8 bits that it was given hold them."""
    scale, zero = (graph.value(f"{activation}.{fact}") for fact in ("scale", "zero"))
    return round_rows(values, scale, zero) if by_row else round_values(values, scale, zero)


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
