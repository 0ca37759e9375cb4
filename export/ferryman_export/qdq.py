"""The nodes and constants of products in 8 bits: plain ONNX's, and those of ONNX Runtime's own."""

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ferryman_export.graph_edit import GraphEditor
from ferryman_export.products import Product
from ferryman_export.ranges import LEAST
from ferryman_export.rounding import channel_scales

Numbers = Literal["uint8", "int8", "fp8"]
_FP8 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
_FP8_LARGEST = 448.0
OWN = "com.microsoft"  # of operators that only ONNX Runtime has
_BIAS_LARGEST = 2**30  # half of what 32 bits hold: the rest is for the sum that it is added to


def quantize_activation(
    graph: GraphEditor, name: str, source: str, low: float, high: float, numbers: Numbers
) -> list[onnx.NodeProto]:
    """`source` -> `name.dequantized` through 8 bits: uint8 with a zero point, or int8 or fp8 around zero."""
    if numbers == "uint8":
        scale = np.float32((high - low) / 255)
        zero = np.array(np.clip(np.round(-low / scale), 0, 255), np.uint8)
    else:
        largest, dtype = (127, np.int8) if numbers == "int8" else (_FP8_LARGEST, _FP8)
        scale, zero = np.float32(max(-low, high) / largest), np.array(0, dtype)
    facts = [graph.put(f"{name}.scale", np.array(scale)), graph.put(f"{name}.zero", zero)]
    return [
        helper.make_node("QuantizeLinear", [source, *facts], [f"{name}.quantized"], name=f"{name}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.quantized", *facts], [f"{name}.dequantized"], name=f"{name}.dequantize"
        ),
    ]


def measure_activation(name: str, source: str) -> onnx.NodeProto:
    """`source` -> `name.quantized`, in uint8 between the extremes of the values at hand, whose scale it gives too."""
    outputs = [f"{name}.quantized", f"{name}.scale", f"{name}.zero"]
    return helper.make_node("DynamicQuantizeLinear", [source], outputs, name=f"{name}.quantize")


def multiply_whole(graph: GraphEditor, node: onnx.NodeProto, product: Product) -> set[str]:
    """Makes a MatMul ONNX Runtime's product of whole numbers. Gives the outputs of nodes that it took in: the bias.

    Comes after the activation and the weights.
    """
    activation, weights = product.activation, f"{product.output}.weights"
    inputs = [f"{activation}.quantized", weights, f"{activation}.scale", f"{weights}.scale"]
    inputs += [f"{activation}.zero", f"{weights}.zero"]
    taken, taker = set[str](), graph.only_consumer(product.output)
    if taker is not None and taker.op_type == "Add":
        constants = [name for name in taker.input if graph.is_constant(name) and graph.value(name).ndim == 1]
        if constants and graph.value(constants[0]).shape == graph.value(f"{weights}.scale").shape:
            inputs.append(constants[0])
            taken = {str(taker.output[0])}
    del node.input[:]
    node.input.extend(inputs)
    node.output[0] = next(iter(taken), product.output)
    node.op_type, node.domain = "MatMulIntegerToFloat", OWN
    return taken


def quantize_answers(graph: GraphEditor, name: str, low: float, high: float) -> list[onnx.NodeProto]:
    """The nodes in the place of the one that gives a convolution's answer: whoever takes it gets it through 8 bits.

    A ReLU goes: its answers end at zero, the least of 8 bits, which cut off the rest as well.
    """
    maker = graph.producers[name]
    bends = maker.op_type == "Relu"
    nodes = quantize_activation(graph, name, maker.input[0] if bends else name, low, high, "uint8")
    for taker in graph.consumers.get(name, []):
        for index, taken in enumerate(taker.input):
            if taken == name:
                taker.input[index] = nodes[-1].output[0]
    return nodes if bends else [maker, *nodes]


def quantize_weights(
    graph: GraphEditor, product: Product, numbers: Numbers, rounded: NDArray[np.int8] | None
) -> onnx.NodeProto:
    """Stores a product's weights in 8 bits and gives the node that reads them. rounded: None for to the nearest.

    As int8 with a scale each output channel; as fp8, whose levels are finer the nearer to zero, with one scale:
    TensorRT 10.3 has no products in fp8 with more.
    """
    array = graph.value(product.weights)
    name = f"{product.output}.weights"  # by the product: two may share a tensor
    if numbers == "fp8":
        scale = np.array(max(np.abs(array).max() / _FP8_LARGEST, LEAST), np.float32)
        whole, channel = (array / scale).astype(_FP8), None
    else:
        channel = 0 if product.convolution else array.ndim - 1
        others = tuple(index for index in range(array.ndim) if index != channel)
        scale = channel_scales(array, others)
        whole = rounded
        if whole is None:
            whole = np.clip(np.round(array / np.expand_dims(scale, others)), -127, 127).astype(np.int8)
    inputs = [
        graph.put(name, whole),
        graph.put(f"{name}.scale", scale),
        graph.put(f"{name}.zero", np.zeros(scale.shape, whole.dtype)),
    ]
    output = [f"{name}.dequantized"]
    return helper.make_node("DequantizeLinear", inputs, output, name=f"{name}.dequantize", axis=channel)


def quantize_bias(graph: GraphEditor, product: Product, bias: str) -> onnx.NodeProto:
    """Stores a product's bias in steps of activation times weight, as its sums are, and gives the node that reads it.

    Comes after the activation and the weights. Where weights are so small that the bias has no room in 32 bits, they
    are stored in larger steps.
    """
    array, name = graph.value(bias), f"{product.output}.bias"
    weights = f"{product.output}.weights"
    step, scale = graph.value(f"{product.activation}.scale"), graph.value(f"{weights}.scale")
    least = np.abs(array) / (step * _BIAS_LARGEST)
    if (scale < least).any():
        wider = np.maximum(scale, least).astype(np.float32)
        whole = graph.value(weights) * (scale / wider).reshape(-1, *[1] * (graph.value(weights).ndim - 1))
        graph.put(weights, np.rint(whole).astype(np.int8))
        scale = graph.value(graph.put(f"{weights}.scale", wider))
    steps = (step * scale).astype(np.float32)
    inputs = [graph.put(name, np.rint(array / steps).astype(np.int32)), graph.put(f"{name}.scale", steps)]
    output = [f"{name}.dequantized"]
    return helper.make_node("DequantizeLinear", inputs, output, name=f"{name}.dequantize", axis=0)


def finish_with(graph: GraphEditor, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The graph of these nodes, without dequantised values that nobody takes."""
    taken = {name for node in nodes for name in node.input} | graph.outputs
    graph.replace_nodes([one for one in nodes if one.op_type != "DequantizeLinear" or one.output[0] in taken])
    domains = {one.domain for one in graph.model.opset_import}
    if OWN not in domains and any(node.domain == OWN for node in nodes):
        graph.model.opset_import.append(helper.make_opsetid(OWN, 1))
    return graph.finish()
