"""Graph passes that leave the answers as they are but for rounding. Whoever runs one proves what comes out."""

import numpy as np
import onnx
from onnx import helper

from ferryman_export.graph_edit import GraphEditor, module_of
from ferryman_export.products import gemm_to_matmul


def fold_affine(model: onnx.ModelProto) -> onnx.ModelProto:
    """Puts the factor and the summand behind a convolution (a frozen batch norm) into its weights and bias.

    Runtimes do so themselves in floating point, but not across what quantisation puts between.
    """
    graph = GraphEditor(model)
    gone: list[onnx.NodeProto] = []
    for conv in graph.nodes:
        if conv.op_type != "Conv" or not all(graph.is_constant(name) for name in conv.input[1:]):
            continue
        weights = graph.value(conv.input[1])
        bias = graph.value(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weights), weights.dtype)
        output, last = conv.output[0], conv
        for kind in ("Mul", "Add"):
            node = graph.only_consumer(output)
            constants = [name for name in node.input if graph.is_constant(name)] if node is not None else []
            if node is None or node.op_type != kind or len(constants) != 1:
                continue
            values = graph.value(constants[0])
            if values.size != values.shape[-3] if values.ndim >= 3 else values.size != 1:
                continue  # not one number a channel
            values = np.broadcast_to(values.reshape(-1), bias.shape)
            if kind == "Mul":
                weights, bias = weights * values.reshape(-1, 1, 1, 1), bias * values
            else:
                bias = bias + values
            gone.append(node)
            output, last = node.output[0], node
        if last is not conv:
            del conv.input[1:]
            conv.input.extend([graph.put(f"{output}.weights", weights), graph.put(f"{output}.bias", bias)])
            conv.output[0] = output
    dropped = {id(node) for node in gone}
    graph.replace_nodes([node for node in graph.nodes if id(node) not in dropped])
    return graph.finish()


def free_head(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Writes the products of vectors with weights behind which only answers come, a classification head, as sums; and
    names the modules that they are of.

    OpenVINO's plugin for processors keeps in fp32 all that leads from the last product to an answer, so that these, the
    norm before them and the residual stream then are, whatever precision it is asked for.
    """
    graph = GraphEditor(gemm_to_matmul(model))
    inferred = onnx.shape_inference.infer_shapes(graph.model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}
    last, seen, names = set[str](), set[str](), list(graph.outputs)
    while names:
        node = graph.producers.get(names.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            names += node.input
        elif node.op_type == "MatMul" and graph.is_constant(node.input[1]) and ranks.get(node.input[0]) == 2:
            last.add(node.output[0])
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        output = node.output[0]
        if output not in last:
            nodes.append(node)
            continue
        # (batch, inputs) -> (batch, 1, inputs) -> (batch, outputs, inputs) -> (batch, outputs)
        rows, terms = f"{output}.rows", f"{output}.terms"
        middle, end = (graph.put(f"{output}.{axis}", np.array([axis], np.int64)) for axis in (1, 2))
        weights = graph.put(f"{output}.weights", graph.value(node.input[1]).T)
        nodes += [
            helper.make_node("Unsqueeze", [node.input[0], middle], [rows], name=rows),
            helper.make_node("Mul", [rows, weights], [terms], name=terms),
            helper.make_node("ReduceSum", [terms, end], [output], name=node.name, keepdims=0),
        ]
    modules = tuple(module_of(node) for node in graph.nodes if node.output[0] in last)
    graph.replace_nodes(nodes)
    return graph.finish(), modules
