"""SmoothQuant: large channels of an activation move into the weights that it meets, so that 8 bits do for both."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ferryman_export.graph_edit import GraphEditor
from ferryman_export.products import Product
from ferryman_export.ranges import LEAST, Statistics

SMOOTHING = (0.5, 0.75)
_FAINTEST = 0.1  # of the median: a channel is made so many times as large at most, as one like most
# What bends values, which no constant before it can make up for; the products are the gates of SwiGLU and its like.
# Nowhere else: after a Concat, OpenVINO 2026.4 quietly gives other answers.
_BENDING = ("Gelu", "Relu", "Mul")


@dataclass(frozen=True)
class Smoothed:
    """factors: of each channel of the activation; node: multiplies by them, None where what makes it took them up"""

    factors: NDArray[np.float32]
    node: onnx.NodeProto | None


def smooth_block(
    graph: GraphEditor, products: list[Product], statistics: Statistics, alpha: float, bounded: bool = False
) -> Smoothed | None:
    """Moves the activation's large channels into the weights (Xiao et al. 2023, "SmoothQuant", equation 4).

    Where what makes the activation is linear in some constants, these take up the division and it costs nothing; after
    GELU and its like, a node multiplies. None when the block stays as it is.

    bounded: what calibration saw next to nothing of, a channel behind a ReLU, is not made so large that it fills a
    dynamic range once a picture has something there; a static one would cut it off
    """
    activation = products[0].activation
    takers = {str(node.output[0]) for node in graph.consumers[activation]}
    alone = takers == {product.output for product in products} and activation not in graph.outputs
    makers = find_makers(graph, activation) if alone else []
    maker = graph.producers.get(activation)
    bends = maker is not None and maker.op_type in _BENDING and not products[0].convolution
    shared = any(len(graph.consumers[product.weights]) > 1 for product in products)
    if shared or not (makers or bends):
        return None
    largest = np.maximum(np.abs(statistics.lows).max(0), np.abs(statistics.highs).max(0))
    weights = [graph.value(product.weights) for product in products]
    heaviest = np.max([np.abs(array).max(1) for array in weights], axis=0)
    strength = np.maximum(largest, LEAST) ** alpha / np.maximum(heaviest, LEAST) ** (1 - alpha)
    strength = np.maximum(strength, _FAINTEST * np.median(strength) if bounded else 1e-5).astype(np.float32)
    for product, array in zip(products, weights, strict=True):
        graph.put(product.weights, array * strength[:, None])
    for name in makers:
        graph.put(name, graph.value(name) / strength)
    if makers:
        return Smoothed(1 / strength, None)
    name = f"{activation}.smooth"
    inputs = [activation, graph.put(f"{name}.factors", 1 / strength)]
    return Smoothed(1 / strength, helper.make_node("Mul", inputs, [name], name=name))


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
