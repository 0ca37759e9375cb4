"""Bias correction: what rounding to 8 bits adds to a product's answers on average is taken off its bias.

After Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with the
means measured: values behind a GELU crowd into its shallow negative side, which few levels hold, and rounding them
errs to one side.
"""

import numpy as np
from numpy.typing import NDArray

from ferryman_export.graph_edit import GraphEditor
from ferryman_export.products import Product
from ferryman_export.ranges import row_magnitudes


def find_bias(graph: GraphEditor, product: Product) -> str | None:
    """The constant that alone is added to a matrix product's answer, a number an output; None where there is none."""
    adding = graph.only_consumer(product.output)
    if product.convolution or adding is None or adding.op_type != "Add":
        return None
    outputs = graph.value(product.weights).shape[-1]
    names = [name for name in adding.input if graph.is_constant(name)]
    return names[0] if names and graph.value(names[0]).shape == (outputs,) else None


def correct_bias(
    graph: GraphEditor, product: Product, values: NDArray[np.float32], stored: NDArray[np.float32]
) -> None:
    """Takes the mean error of a product's answers off its bias; one without a bias of its own stays as it is.

    Comes after the weights are stored in 8 bits, and before the product's node takes the bias up.
    values, stored: what the activation held on calibration pictures, (rows, channels), and what 8 bits keep of it
    """
    bias = find_bias(graph, product)
    if bias is None or len(graph.consumers[bias]) > 1:
        return
    name = f"{product.output}.weights"
    weights = graph.value(name).astype(np.float32) * graph.value(f"{name}.scale")
    error = stored.mean(0) @ weights - values.mean(0) @ graph.value(product.weights)
    graph.put(bias, (graph.value(bias) - error).astype(np.float32))


def round_values(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.generic]
) -> NDArray[np.float32]:
    """Values as whole numbers of the zero point's type hold them, or as 8-bit floating point does."""
    if zero.dtype.kind in "ui":
        ends = np.iinfo(zero.dtype)
        whole = np.clip(np.round(values / scale) + float(zero), ends.min, ends.max) - float(zero)
        return (whole * scale).astype(np.float32)
    return (values / scale).astype(zero.dtype).astype(np.float32) * scale


def round_rows(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.generic]
) -> NDArray[np.float32]:
    """`round_values` of each row (rows, channels) as a share of its largest magnitude."""
    largest = row_magnitudes(values)
    return round_values(values / largest, scale, zero) * largest
