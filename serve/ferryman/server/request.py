"""The call and the request that code works for, wherever it runs: tasks that a call starts inherit them."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they know this module
    from ferryman.server.loading import LoadedModel
    from ferryman.server.observing import Call
    from ferryman.server.statistics import Stages
    from ferryman.server.tracing import RequestTrace


@dataclass(eq=False)
class Request:
    """One request to a model, or one of a stream's.

    model: that answers, None until it is known; images, total_ns, queue_ns, stages: once it is answered
    """

    model: "LoadedModel | None" = None
    images: int = 0
    total_ns: int = 0
    queue_ns: int = 0
    stages: "Stages | None" = None
    trace: "RequestTrace | None" = None


CALL: ContextVar["Call | None"] = ContextVar("call", default=None)
REQUEST: ContextVar[Request | None] = ContextVar("request", default=None)


def note_model(model: "LoadedModel") -> None:
    """The request that this code works for is answered by this model."""
    request = REQUEST.get()
    if request is not None:
        request.model = model


def current_trace() -> "RequestTrace | None":
    """Of the request that this code works for, None when it is not traced."""
    request = REQUEST.get()
    return None if request is None else request.trace
