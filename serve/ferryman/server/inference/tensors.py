"""From a request's inputs to arrays and pictures: names, types, shapes and sizes are checked before a byte is read."""

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferryman.errors import TensorError, UsageError
from ferryman.inference import grpc_service_pb2 as pb
from ferryman.server.inference.shared_memory import Place, Regions, place_from_parameters
from ferryman.specs import DType

DATATYPES: dict[DType, str] = {
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
}
BYTES = "BYTES"
_KINDS = {dtype: np.dtype(dtype).newbyteorder("<") for dtype in DATATYPES}
_Contents = bytes | pb.InferTensorContents | Place
# Where the values of the datatypes that are taken travel, when they travel typed.
_FIELDS = {"UINT8": "uint_contents", "INT32": "int_contents", BYTES: "bytes_contents"}


class Input(NamedTuple):
    """One input of a request. contents: its values, raw or typed, or where they lie"""

    name: str
    datatype: str
    shape: tuple[int, ...]
    contents: _Contents

    def check(self, datatype: str, *shapes: tuple[int, ...]) -> None:
        """Raises TensorError unless it is of that datatype and one of the shapes; -1 stands for any batch."""
        if self.datatype == datatype:
            for shape in shapes:
                if self._fits(shape):
                    return
        wanted = " or ".join(_text(shape).replace("-1", "batch") for shape in shapes)
        given = f"{self.datatype[:20] or 'no datatype'} {_text(self.shape)}"
        raise TensorError(f"input {self.name} must be {datatype} {wanted}, got {given}")

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(self.shape) != len(shape):
            return False
        for size, wanted in zip(self.shape, shape, strict=True):  # noqa: SIM110 - a generator is five calls more
            if size < 1 or wanted not in (size, -1):
                return False
        return True


def inputs_from_request(request: pb.ModelInferRequest) -> dict[str, Input]:
    """A request's inputs by name, unread. Raises UsageError when inputs and contents don't belong together."""
    contents_apart = request.raw_input_contents
    raw = iter(contents_apart)
    expected = 0
    inputs: dict[str, Input] = {}
    for tensor in request.inputs:
        name = tensor.name
        if name in inputs:
            raise UsageError(f"input {name[:100]!r} is there twice", "inputs")
        contents: _Contents | None = place_from_parameters(tensor.parameters) if tensor.parameters else None
        if contents is None:
            if not contents_apart:
                contents = tensor.contents
            else:
                expected += 1
                if tensor.HasField("contents") and tensor.contents.ByteSize():
                    raise UsageError(
                        f"input {name[:100]!r} has contents of its own beside raw_input_contents", "inputs"
                    )
                contents = next(raw, b"")
        elif tensor.HasField("contents") and tensor.contents.ByteSize():
            raise UsageError(f"input {name[:100]!r} has contents beside its shared memory", "inputs")
        inputs[name] = Input(name, tensor.datatype, tuple(tensor.shape), contents)
    if len(contents_apart) != expected:
        raise UsageError(
            f"raw_input_contents has {len(contents_apart)} entries for {expected} inputs",
            "raw_input_contents",
        )
    return inputs


def read_array(given: Input, dtype: DType, regions: Regions) -> NDArray[Any]:
    """The input's array, of a shape and datatype that were checked; raw contents are not copied, and read-only.

    Raises TensorError for another number of values, or one that the type can't hold, UsageError for shared memory.
    """
    count, kind = math.prod(given.shape), _KINDS[dtype]
    size = count * kind.itemsize
    match given.contents:
        case bytes(data):
            _check_size(given, len(data), size)
        case Place() as place:
            _check_size(given, place.size_bytes, size)
            data = regions.read(place)
        case contents:
            return _array_from_values(given, _values(given, contents, count), kind)
    return np.frombuffer(data, kind).reshape(given.shape)


def read_elements(given: Input, regions: Regions, limit_bytes: int) -> list[bytes]:
    """The elements of an input of BYTES, whose shape was checked.

    limit_bytes: of what is read from shared memory
    Raises TensorError for another number of elements, UsageError for shared memory.
    """
    count = math.prod(given.shape)
    match given.contents:
        case bytes(data):
            return _split(given, data, count)
        case Place() as place:
            if place.size_bytes > limit_bytes:
                raise UsageError(f"input {given.name} has {place.size_bytes} bytes, the limit is {limit_bytes}")
            return _split(given, regions.read(place), count)
        case contents:
            return list(_values(given, contents, count))


def _check_size(given: Input, size: int, expected: int) -> None:
    if size != expected:
        raise TensorError(f"input {given.name} {_text(given.shape)} takes {expected} bytes, got {size}")


def _values(given: Input, contents: pb.InferTensorContents, count: int) -> Sequence[Any]:
    key = _FIELDS[given.datatype]
    others = [field.name for field, _ in contents.ListFields() if field.name != key]
    if others:
        raise TensorError(f"input {given.name} of {given.datatype} must be in {key}, got {', '.join(others)}")
    values: Sequence[Any] = getattr(contents, key)
    if len(values) != count:
        raise TensorError(f"input {given.name} {_text(given.shape)} takes {count} values in {key}, got {len(values)}")
    return values


def _array_from_values(given: Input, values: Sequence[int], kind: np.dtype[Any]) -> NDArray[Any]:
    array = np.array(values)  # as fast as a copy: protobuf lays the values side by side
    bounds = np.iinfo(kind)
    if not (bounds.min <= array.min() and array.max() <= bounds.max):
        raise TensorError(f"input {given.name} has values that {given.datatype} can't hold")
    return array.astype(kind).reshape(given.shape)


def _split(given: Input, data: bytes, count: int) -> list[bytes]:
    """Elements that each follow their length in four bytes."""
    elements: list[bytes] = []
    start = 0
    while start < len(data) and len(elements) < count:
        if len(data) - start < 4:
            break
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if len(data) - start < length:
            raise TensorError(
                f"element {len(elements) + 1} of input {given.name} says that it has {length} bytes, and "
                f"{len(data) - start} are there"
            )
        elements.append(data[start : start + length])
        start += length
    if len(elements) != count or start != len(data):
        raise TensorError(
            f"input {given.name} {_text(given.shape)} takes {count} elements, each after its length in 4 bytes; got "
            f"{len(elements)} and {len(data) - start} bytes more"
        )
    return elements


def _text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape[:8]))}{', ...' if len(shape) > 8 else ''}]"
