"""Requests of the Open Inference Protocol as a plain stub makes them, and what comes back, in numpy."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc.aio
import numpy as np
import pytest
from numpy.typing import NDArray

from ferryman.inference import grpc_service_pb2 as pb

DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def infer(
    model: str, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = (), **fields: Any
) -> pb.ModelInferRequest:
    """A request with raw contents. fields: others of it"""
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[tensor(name, NAMES[array.dtype], array.shape) for name, array in arrays.items()],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[array.tobytes() for array in arrays.values()],
        **fields,
    )


def infer_pictures(model: str, pictures: Sequence[bytes], **fields: Any) -> pb.ModelInferRequest:
    """A request with encoded pictures."""
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[tensor("image_bytes", "BYTES", (len(pictures),))],
        raw_input_contents=[prefixed(pictures)],
        **fields,
    )


def tensor(
    name: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents | None = None, **parameters: Any
) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=contents, parameters=as_parameters(parameters)
    )


def as_parameters(values: Mapping[str, Any]) -> dict[str, pb.InferParameter]:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return {name: pb.InferParameter(**{kinds[type(value)]: value}) for name, value in values.items()}


def prefixed(elements: Sequence[bytes]) -> bytes:
    """Raw contents of BYTES."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def arrays_of(response: pb.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """The outputs of an answer, which all have raw contents."""
    assert len(response.raw_output_contents) == len(response.outputs)
    return {
        output.name: np.frombuffer(raw, DTYPES[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def bearer(secret: str) -> Sequence[tuple[str, str]]:
    """The metadata of who shows a token."""
    return (("authorization", f"Bearer {secret}"),)


async def status_of(call: Any) -> tuple[str, str]:
    """Code and message of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""
