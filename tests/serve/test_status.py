"""Every error crosses the wire as itself; what is foreign becomes the nearest of ours."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status

from ferryman import errors
from ferryman.errors import FerrymanError, ForbiddenError, OverloadedError, UsageError
from ferryman.status import error_from_number, error_from_rpc, one_line, public_line, status_from_error

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FerrymanError)]


def rpc_error(code: grpc.StatusCode, details: str | None, trailing: Any = ()) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*trailing)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def cross(error: FerrymanError) -> FerrymanError:
    """What a client makes of an error that a server answers."""
    status: Any = rpc_status.to_status(status_from_error(error))
    return error_from_rpc(rpc_error(status.code, status.details, status.trailing_metadata), "there:1")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind: type[FerrymanError]) -> None:
    error = kind.__new__(kind, "what was given, what to do")
    found = cross(error)
    assert type(found) is kind
    assert str(found) == "what was given, what to do"
    assert found.grpc_status == error.grpc_status


def test_what_an_error_carries_comes_along() -> None:
    found = cross(OverloadedError("full", 1.25))
    assert isinstance(found, OverloadedError)
    assert found.retry_after_s == pytest.approx(1.25)
    found = cross(OverloadedError("full"))
    assert isinstance(found, OverloadedError)
    assert found.retry_after_s is None
    found = cross(UsageError("wrong", "top_k"))
    assert isinstance(found, UsageError)
    assert found.field == "top_k"
    found = cross(UsageError("wrong"))
    assert isinstance(found, UsageError)
    assert found.field is None


def test_messages_are_one_short_line() -> None:
    assert str(cross(FerrymanError("one\n  two\tthree"))) == "one two three"
    assert str(cross(FerrymanError("é…\u2028漢字"))) == "é… 漢字"
    assert len(one_line("x" * 9999)) == 1000
    assert one_line(None) == "None"


FOREIGN = {
    "refused": (grpc.StatusCode.UNAVAILABLE, "refused", errors.UnavailableError, "no server answers at there:1"),
    "late": (grpc.StatusCode.DEADLINE_EXCEEDED, "x", errors.DeadlineError, "there:1 did not answer in time"),
    "too large": (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max (9 vs. 8)", UsageError, "too large for there:1"),
    "full": (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", OverloadedError, "RESOURCE_EXHAUSTED: quota"),
    "older server": (grpc.StatusCode.UNIMPLEMENTED, "no such method", UsageError, "UNIMPLEMENTED: no such method"),
    "proxy": (grpc.StatusCode.PERMISSION_DENIED, "no", ForbiddenError, "there:1 answered PERMISSION_DENIED: no"),
    "Ray's dead": (
        grpc.StatusCode.INTERNAL,
        "The actor died unexpectedly",
        errors.UnavailableError,
        "there:1 went before it answered",
    ),
    "a server that closes": (
        grpc.StatusCode.CANCELLED,
        "CANCELLED",
        errors.UnavailableError,
        "there:1 went before it answered",
    ),
    "our own end": (grpc.StatusCode.CANCELLED, "Channel closed!", errors.CancelledError, "there:1 answered CANCELLED"),
    "no words": (grpc.StatusCode.UNKNOWN, None, FerrymanError, "there:1 answered UNKNOWN: "),
}


@pytest.mark.parametrize(("code", "details", "kind", "message"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_statuses(code: grpc.StatusCode, details: str | None, kind: type[FerrymanError], message: str) -> None:
    found = error_from_rpc(rpc_error(code, details), "there:1")
    assert type(found) is kind
    assert message in str(found)


@pytest.mark.parametrize("packed", [b"\xff\xff", b""], ids=["no status", "another code"])
def test_details_that_cannot_be_read_are_passed_over(packed: bytes) -> None:
    error = rpc_error(grpc.StatusCode.NOT_FOUND, "gone", [("grpc-status-details-bin", packed)])
    assert isinstance(error_from_rpc(error, "there:1"), errors.ModelNotFoundError)


def test_reasons_that_are_unknown_fall_back_to_the_code() -> None:
    assert type(error_from_number(3, "NewError", "x")) is UsageError
    assert type(error_from_number(3, "ImageError", "x")) is errors.ImageError
    assert type(error_from_number(999, "", "x")) is FerrymanError
    assert type(error_from_number(1, "", "x")) is errors.CancelledError
    assert asyncio.CancelledError not in CLASSES


PATHS = {
    "can't read /srv/models/vit/1/model.onnx: No such file": "can't read model.onnx: No such file",
    "'/srv/my models/vit/1' is broken": "1 is broken",
    "prove it with: ferryman verify '/srv/my models/vit/1' --target x": "prove it with: ferryman verify 1 --target x",
    "at:/srv/a/b.cc:17 (/srv/c/d.cc)": "at:b.cc:17 (d.cc)",
    "a key such as /frames, 3/4 of image/jpeg, [1, 2]/[3], http://a.b/c/d": (
        "a key such as /frames, 3/4 of image/jpeg, [1, 2]/[3], http://a.b/c/d"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "told"), PATHS.items())
def test_callers_are_told_no_paths(given: str, told: str) -> None:
    assert public_line(given) == told
    assert status_from_error(errors.BundleError(given)).message == told
