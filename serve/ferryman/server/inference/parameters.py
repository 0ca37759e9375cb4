"""The typed parameters of requests, inputs and outputs. All raise UsageError for a value of another type."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from ferryman.errors import UsageError
from ferryman.inference import grpc_service_pb2 as pb

Parameters = Mapping[str, pb.InferParameter]
_Key = Literal["bool_param", "int64_param", "uint64_param", "string_param", "double_param"]
_Value = TypeVar("_Value", int, bool, str)


def read_number(parameters: Parameters, name: str) -> int | None:
    """A whole number of 0 or more, None where there is none."""
    value = _read(parameters, name, int, ("int64_param", "uint64_param"))
    if value is not None and value < 0:
        raise UsageError(f"parameter {name} is {value}, expected 0 or more", "parameters")
    return value


def read_flag(parameters: Parameters, name: str) -> bool:
    """False where there is none."""
    return _read(parameters, name, bool, ("bool_param",)) or False


def read_text(parameters: Parameters, name: str) -> str | None:
    return _read(parameters, name, str, ("string_param",))


def _read(parameters: Parameters, name: str, kind: type[_Value], keys: tuple[_Key, ...]) -> _Value | None:
    if name not in parameters:  # reading it would make it, as maps of messages do
        return None
    parameter = parameters[name]
    key = parameter.WhichOneof("parameter_choice")
    if key is None or key not in keys:
        raise UsageError(f"parameter {name} must be an {keys[0]}, got {key or 'nothing'}", "parameters")
    value = getattr(parameter, key)
    assert isinstance(value, kind)
    return value
