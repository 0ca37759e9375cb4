"""Graph passes that leave the answers as they are but for rounding. Whoever runs one proves what comes out."""

import numpy as np
import onnx

from ferryman_export.graph_edit import GraphEditor


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
