"""Rounding weights to 8 bits so that what they are multiplied with on real pictures gives nearly the same.

After Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers": one
input channel after the other is rounded, and those that are still to come make up for its error.
"""

import numpy as np
from numpy.typing import NDArray

from ferryman_export.ranges import LEAST

_DAMPING = 0.01  # of the mean diagonal, as in the paper: the samples need not span all channels
_TOGETHER = 128  # channels whose errors reach the rest at once: a large product instead of many small ones


def channel_scales(weights: NDArray[np.float32], others: tuple[int, ...]) -> NDArray[np.float32]:
    """The step of each output channel in 8 bits; others: the axes beside the channels'."""
    return np.maximum(np.abs(weights).max(axis=others) / 127, LEAST).astype(np.float32)


def round_by_data(weights: NDArray[np.float32], correlation: NDArray[np.float32]) -> NDArray[np.int8]:
    """Weights (inputs, outputs) in whole steps of `channel_scales`.

    correlation: samples.T @ samples (inputs, inputs) of what they meet; with fewer rows than inputs, weights are fitted
    to those rows and answer worse on others
    """
    scales = channel_scales(weights, (0,))
    together = correlation.astype(np.float64)
    # Those that weigh most come first, while there are many left to make up for them.
    order = np.argsort(-np.diag(together), kind="stable")
    together = together[order][:, order]
    mean = max(float(np.trace(together)) / len(order), LEAST)
    together[np.diag_indices(len(order))] += _DAMPING * mean
    upper = np.linalg.cholesky(np.linalg.inv(together)).T.astype(np.float32)
    left = (weights[order] / scales).astype(np.float32)  # in steps, which all outputs share
    whole = np.empty(left.shape, np.int8)
    for start in range(0, len(left), _TOGETHER):
        stop = min(start + _TOGETHER, len(left))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for index in range(start, stop):
            rounded = np.clip(np.rint(left[index]), -127, 127)
            whole[index] = rounded
            errors[index - start] = (left[index] - rounded) / upper[index, index]
            left[index + 1 : stop] -= np.outer(upper[index, index + 1 : stop], errors[index - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    found = np.empty_like(whole)
    found[order] = whole
    return found
