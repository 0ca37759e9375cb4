"""OpenTelemetry's spans of calls, requests and batches. The packages come with the extra `tracing`."""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ferryman.errors import MissingExtraError, UsageError
from ferryman.server.request import Request

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

_EXPORTERS = "opentelemetry_traces_exporter"  # the group that OpenTelemetry's exporters register themselves in
_ERRORS_OF_THE_SERVER = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class Tracing:
    """A server's spans, sent in the background. Other servers and libraries of the process have their own."""

    def __init__(self, exporter: str, ratio: float) -> None:
        """See ObservingSettings. Raises MissingExtraError without OpenTelemetry, UsageError for no such exporter."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"tracing ({error.name} is missing)", "tracing") from error
        found = find_exporters(exporter)
        resource = Resource.create({"service.name": "ferryman"})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(found[exporter].load()()))
        self._tracer = self._provider.get_tracer("ferryman")
        self._propagator = TraceContextTextMapPropagator()

    def start_call(self, method: str, metadata: Mapping[str, Any]) -> "CallTrace":
        """metadata: the client's, whose `traceparent` and `tracestate` are gone on with."""
        carrier = {key: value for key, value in metadata.items() if key in {"traceparent", "tracestate"}}
        return CallTrace(self._tracer, method, self._propagator.extract(carrier))

    def close(self) -> None:
        self._provider.shutdown()


def find_exporters(exporter: str) -> Mapping[str, EntryPoint]:
    """By name. Raises UsageError unless this one is among them."""
    found = {one.name: one for one in entry_points(group=_EXPORTERS)}
    if exporter not in found:
        raise UsageError(f"trace_exporter: {exporter} is not installed; there is {', '.join(sorted(found)) or 'none'}")
    return found


class CallTrace:
    """The span of one call."""

    def __init__(self, tracer: "Tracer", method: str, parent: "Context") -> None:
        from opentelemetry.trace import SpanKind

        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        self._tracer = tracer
        self._span = tracer.start_span(method, parent, SpanKind.SERVER, attributes)

    @property
    def id(self) -> str:
        """Of its trace, 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def start_request(self) -> "RequestTrace":
        from opentelemetry.trace import set_span_in_context

        return RequestTrace(self._tracer, self._tracer.start_span("request", set_span_in_context(self._span)))

    def end(self, code: str) -> None:
        _end(self._span, code)


class RequestTrace:
    """The span of one request to a model."""

    def __init__(self, tracer: "Tracer", span: "Span") -> None:
        self.tracer = tracer
        self.span = span

    def end(self, request: Request, names: tuple[str, str, str], code: str) -> None:
        """names: of model, version and variant, empty where it got to none."""
        attributes = dict(zip(("ferryman.model", "ferryman.version", "ferryman.variant"), names, strict=True))
        self.span.set_attributes({key: value for key, value in attributes.items() if value})
        if request.stages is not None:
            stages = request.stages
            durations = {
                "queue": request.queue_ns,
                "decode": stages.input_ns,
                "compute": stages.infer_ns,
                "encode": stages.output_ns,
            }
            self.span.set_attributes({f"ferryman.{stage}_ms": ns / 1e6 for stage, ns in durations.items()})
            self.span.set_attribute("ferryman.images", request.images)
        _end(self.span, code)


def trace_batch(traces: Iterable[RequestTrace | None], size: int, start_ns: int, end_ns: int) -> None:
    """A span for a batch that ran, inside its first request's, linked with those of all in it, and they with it.

    traces: of its images; start_ns, end_ns: in nanoseconds since 1970
    """
    requests = list(dict.fromkeys(trace for trace in traces if trace is not None and trace.span.is_recording()))
    if not requests:
        return
    from opentelemetry.trace import Link, set_span_in_context

    batch = requests[0].tracer.start_span(
        "batch",
        set_span_in_context(requests[0].span),  # sampled as its requests are, whatever the ratio
        links=[Link(one.span.get_span_context()) for one in requests],
        attributes={"ferryman.images": size},
        start_time=start_ns,
    )
    for one in requests:
        one.span.add_link(batch.get_span_context())
    batch.end(end_ns)


def _end(span: "Span", code: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("rpc.response.status_code", code)
    if code in _ERRORS_OF_THE_SERVER:
        span.set_status(StatusCode.ERROR, code)
    span.end()
