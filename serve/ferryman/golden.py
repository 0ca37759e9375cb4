"""Golden samples: real inputs and the PyTorch reference's outputs for them, stored in the bundle."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import BundleCorruptError
from ferryman.specs import ModelSpec

FILE_NAME = "golden.npz"
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class GoldenSamples:
    """names: a sample each; inputs, outputs: per tensor of the spec one array, whose first dimension counts samples.

    The outputs are those of PyTorch fp32 eager for each sample alone.
    """

    names: tuple[str, ...]
    inputs: Tensors
    outputs: Tensors

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int) -> Self:
        """At most `count` of them."""
        arrays = [{name: array[:count] for name, array in tensors.items()} for tensors in (self.inputs, self.outputs)]
        return type(self)(self.names[:count], *arrays)

    def batch(self, indices: Sequence[int]) -> Tensors:
        """The inputs of these samples as one batch."""
        return {name: array[list(indices)] for name, array in self.inputs.items()}


def save_golden(path: Path, golden: GoldenSamples) -> None:
    """Writes golden.npz."""
    arrays: Tensors = {"names": np.array(golden.names)}
    arrays |= {f"input.{name}": array for name, array in golden.inputs.items()}
    arrays |= {f"output.{name}": array for name, array in golden.outputs.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_golden(path: Path, spec: ModelSpec) -> GoldenSamples:
    """Reads golden.npz. Raises BundleCorruptError when it can't be read or does not fit `spec`."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            names = tuple(str(name) for name in file["names"])
            inputs: Tensors = {name: file[f"input.{name}"] for name in spec.input_names}
            outputs: Tensors = {name: file[f"output.{name}"] for name in spec.output_names}
    # What NumPy and zipfile raise on files of other kinds; a lone array is no context manager: TypeError.
    except (OSError, KeyError, ValueError, EOFError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise BundleCorruptError(f"{path} does not hold this model's golden samples: {error}") from error
    if not names:
        raise BundleCorruptError(f"{path} holds no sample; export the bundle again")
    for kind, tensors, arrays in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        for tensor in tensors:
            array = arrays[tensor.name]
            shape = tuple(len(names) if size == "batch" else size for size in tensor.shape)
            if array.dtype != np.dtype(tensor.dtype) or array.shape != shape:
                raise BundleCorruptError(
                    f"{path}: {kind} {tensor.name} is {array.dtype} {array.shape}, expected {tensor.dtype} {shape}; "
                    "export the bundle again"
                )
    return GoldenSamples(names, inputs, outputs)
