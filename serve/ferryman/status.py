"""Ferryman's errors as gRPC statuses with details, and back. The only place that knows both.

On the wire an error is a google.rpc.Status: its code comes from the class, its message is one line, and its
details hold an ErrorInfo (reason: the class's name, domain: "ferryman"), a RetryInfo where asking again later
may help, and a BadRequest where one field of the request is wrong.
"""

import re

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from ferryman import errors
from ferryman.errors import FerrymanError, OverloadedError, UsageError

DOMAIN = "ferryman"
_MAX_MESSAGE = 1000  # statuses travel in HTTP/2 headers, which peers limit to 8 KiB in all

# Absolute, of two folders or more; in quotes, as a shell takes them, with spaces.
_PATH = re.compile(r"'/[^'/]+/[^']*'|(?<![\w./-])/[^\s/:;,'\"()]+/[^\s:;,'\"()]*")

_CLASSES: dict[str, type[FerrymanError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, FerrymanError)
}
# What gRPC says when it is us who cancel. Else it is a server that closes: calls that come meanwhile are CANCELLED.
_OUR_OWN = frozenset({"Locally cancelled by application!", "Channel closed!"})
_DEAD_REPLICA = "The actor died"  # what Ray Serve says, as INTERNAL, where a server's connection would have broken
_FALLBACKS: dict[grpc.StatusCode, type[FerrymanError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.UsageError,
    grpc.StatusCode.OUT_OF_RANGE: errors.UsageError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UsageError,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.BundleError,
    grpc.StatusCode.DATA_LOSS: errors.BundleCorruptError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
    grpc.StatusCode.CANCELLED: errors.CancelledError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.ForbiddenError,
}


def one_line(text: object) -> str:
    """`text` without line breaks, shortened to what fits a status."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MAX_MESSAGE else f"{line[: _MAX_MESSAGE - 1]}…"


def public_line(text: object) -> str:
    """`one_line` for callers, who learn the names of a server's files and not where they lie."""
    return one_line(_PATH.sub(lambda path: path[0].rstrip("'/").rpartition("/")[2], str(text)))


def code_from_error(error: FerrymanError) -> grpc.StatusCode:
    return grpc.StatusCode[error.grpc_status]


def number_from_code(code: grpc.StatusCode) -> int:
    """The number that stands for a code on the wire."""
    number: int = code.value[0]
    return number


def status_from_error(error: FerrymanError) -> Status:
    """The status with details that a server answers."""
    details: list[Message] = [ErrorInfo(reason=type(error).__name__, domain=DOMAIN)]
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(retry)
    if isinstance(error, UsageError) and error.field is not None:
        violation = BadRequest.FieldViolation(field=error.field, description=public_line(error))
        details.append(BadRequest(field_violations=[violation]))
    status = Status(code=number_from_code(code_from_error(error)), message=public_line(error))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def error_from_rpc(call: grpc.RpcError, address: str) -> FerrymanError:
    """The error that a failed call means. address: whom the client asked."""
    # Errors of both of grpc's clients are calls as well, which their types do not tell.
    assert isinstance(call, grpc.Call | grpc.aio.AioRpcError)
    code, details = call.code(), one_line(call.details() or "")
    try:
        found = rpc_status.from_call(call)  # pyright: ignore[reportArgumentType]
    except (ValueError, DecodeError):  # details that contradict the status, or are none: the code must do
        found = None
    status: Status = found or Status()
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return _add_details(error_from_reason(code, info.reason, details), status)
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return errors.UnavailableError(
                f"no server answers at {address} ({details}); is `ferryman serve` running there?"
            )
        case grpc.StatusCode.CANCELLED | grpc.StatusCode.INTERNAL if _went(code, details):
            return errors.UnavailableError(f"the server at {address} went before it answered ({details})")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineError(f"{address} did not answer in time; allow it more with timeout=")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return UsageError(f"a message is too large for {address}: {details}; send fewer or smaller images")
        case _:
            return error_from_reason(code, "", f"{address} answered {code.name}: {details}")


def _went(code: grpc.StatusCode, details: str) -> bool:
    return details not in _OUR_OWN if code is grpc.StatusCode.CANCELLED else details.startswith(_DEAD_REPLICA)


def error_from_reason(code: grpc.StatusCode, reason: str, message: str) -> FerrymanError:
    """The error of the class `reason`; one that fits `code` when there is no such class."""
    kind = _CLASSES.get(reason) or _FALLBACKS.get(code, FerrymanError)
    error = kind.__new__(kind, message)  # constructors differ; what they add comes from the details
    assert isinstance(error, FerrymanError)
    return error


def error_from_number(number: int, reason: str, message: str) -> FerrymanError:
    """`error_from_reason` for a code's number."""
    known = {number_from_code(code): code for code in grpc.StatusCode}
    return error_from_reason(known.get(number, grpc.StatusCode.UNKNOWN), reason, message)


def _add_details(error: FerrymanError, status: Status) -> FerrymanError:
    retry, bad = RetryInfo(), BadRequest()
    for detail in status.details:
        if isinstance(error, OverloadedError) and detail.Unpack(retry):
            error.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        if isinstance(error, UsageError) and detail.Unpack(bad) and bad.field_violations:
            error.field = bad.field_violations[0].field
    return error
