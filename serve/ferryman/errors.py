"""Every error that Ferryman raises on purpose.

    FerrymanError
    ├── UsageError               a call or a command was given something that can't be right
    ├── ImageError               a picture can't be decoded or is too large
    ├── TensorError              a tensor of the wrong name, type, shape or size
    ├── BundleError              a bundle can't be used
    │   ├── BundleNotFoundError      there is none at that place
    │   ├── BundleCorruptError       a file is missing or its digest differs
    │   ├── BundlePathError          a file lies outside the bundle (`..`, an absolute path, a link)
    │   ├── BundleSchemaError        the manifest is unreadable or of a newer schema
    │   └── CertificateError         a variant is not proved on this device
    ├── CheckpointError          a checkpoint can't be loaded
    │   └── HubError                 it can't be downloaded
    ├── ExportError              the graph can't be built or breaks the graph contract
    ├── ParityError              an answer is out of tolerance
    ├── RegressionError          it is slower than a baseline
    ├── ModelNotFoundError       the server has no such model or version
    ├── TaskError                the model exists but answers another task
    ├── UnauthenticatedError     the server does not know who asks
    ├── ForbiddenError           it knows, and that one may not
    ├── UnservedError            the server does not do that, or not as it is configured
    ├── OverloadedError          too much is waiting already
    ├── DeadlineError            the time ran out
    ├── CancelledError           the caller gave up
    ├── UnavailableError         no server answers, or it is stopping
    ├── AddressError             a server can't listen there
    ├── EngineError              a runtime failed while loading or running
    ├── MissingExtraError        an optional part is not installed
    └── FileAccessError          a file or folder can't be read or written

Each class carries the name of its gRPC status and the exit status of the command line.
"""

import difflib
from collections.abc import Iterable


def propose(given: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: `; did you mean X?`, nothing when none is near."""
    near = difflib.get_close_matches(given, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


class FerrymanError(Exception):
    """Root of the tree. Messages are one line: what was given, what was expected, what to do.

    answered: the command had printed its JSON document before it failed, so that no second one may follow
    """

    grpc_status = "INTERNAL"
    exit_status = 1
    answered = False


class UsageError(FerrymanError, ValueError):
    """field: the request's field that is wrong, where one is, in the words of the protobuf."""

    grpc_status = "INVALID_ARGUMENT"
    exit_status = 2
    field: str | None = None

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ImageError(FerrymanError, ValueError):
    grpc_status = "INVALID_ARGUMENT"


class TensorError(FerrymanError, ValueError):
    grpc_status = "INVALID_ARGUMENT"


class BundleError(FerrymanError):
    grpc_status = "FAILED_PRECONDITION"


class BundleNotFoundError(BundleError):
    grpc_status = "NOT_FOUND"


class BundleCorruptError(BundleError):
    grpc_status = "DATA_LOSS"


class BundlePathError(BundleError):
    grpc_status = "DATA_LOSS"


class BundleSchemaError(BundleError):
    grpc_status = "FAILED_PRECONDITION"


class CertificateError(BundleError):
    """A FAILED_PRECONDITION, as its base's."""


class CheckpointError(FerrymanError):
    grpc_status = "FAILED_PRECONDITION"


class HubError(CheckpointError):
    grpc_status = "UNAVAILABLE"


class ExportError(FerrymanError):
    grpc_status = "FAILED_PRECONDITION"


class ParityError(FerrymanError):
    grpc_status = "FAILED_PRECONDITION"
    exit_status = 3


class RegressionError(FerrymanError):
    grpc_status = "FAILED_PRECONDITION"


class ModelNotFoundError(FerrymanError):
    grpc_status = "NOT_FOUND"


class TaskError(FerrymanError):
    grpc_status = "INVALID_ARGUMENT"


class UnservedError(FerrymanError):
    grpc_status = "UNIMPLEMENTED"


class UnauthenticatedError(FerrymanError):
    grpc_status = "UNAUTHENTICATED"


class ForbiddenError(FerrymanError):
    grpc_status = "PERMISSION_DENIED"


class OverloadedError(FerrymanError):
    """retry_after_s: when asking again may help, None where the one who refused did not say."""

    grpc_status = "RESOURCE_EXHAUSTED"
    retry_after_s: float | None = None

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(FerrymanError):
    grpc_status = "DEADLINE_EXCEEDED"


class CancelledError(FerrymanError):
    grpc_status = "CANCELLED"


class UnavailableError(FerrymanError):
    grpc_status = "UNAVAILABLE"


class AddressError(FerrymanError):
    grpc_status = "UNAVAILABLE"


class EngineError(FerrymanError):
    grpc_status = "INTERNAL"


class MissingExtraError(FerrymanError):
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part; install it with: pip install 'ferryman[{extra}]'")


class FileAccessError(FerrymanError):
    grpc_status = "INTERNAL"
