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
_NAMES = ("ferryman.model", "ferryman.version", "ferryman.variant")
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
        return RequestTrace(self._tracer, self._tracer.start_span("request", _context_of(self._span)))

    def end(self, code: str) -> None:
        _end(self._span, code)


class RequestTrace:
    """The span of one request to a model."""

    def __init__(self, tracer: "Tracer", span: "Span") -> None:
        self.tracer = tracer
        self.span = span

    def end(self, request: Request, names: tuple[str, str, str], code: str) -> None:
        """names: of model, version and variant, empty where it got to none."""
        attributes: dict[str, str | float] = {key: value for key, value in zip(_NAMES, names, strict=True) if value}
        if request.stages is not None:
            stages = request.stages
            attributes |= {
                "ferryman.queue_ms": request.queue_ns / 1e6,
                "ferryman.decode_ms": stages.input_ns / 1e6,
                "ferryman.compute_ms": stages.infer_ns / 1e6,
                "ferryman.encode_ms": stages.output_ns / 1e6,
                "ferryman.images": request.images,
            }
        _end(self.span, code, attributes)


def trace_batch(traces: Iterable[RequestTrace | None], size: int, start_ns: int, end_ns: int) -> None:
    """A span for a batch that ran, inside its first request's, linked with those of the others in it, and they with it.

    traces: of its images; start_ns, end_ns: in nanoseconds since 1970
    """
    requests = list(dict.fromkeys(trace for trace in traces if trace is not None and trace.span.is_recording()))
    if not requests:
        return
    from opentelemetry.trace import Link

    first, *others = requests
    batch = first.tracer.start_span(
        "batch",
        _context_of(first.span),  # sampled as its requests are, whatever the ratio
        links=[Link(one.span.get_span_context()) for one in others],
        attributes={"ferryman.images": size},
        start_time=start_ns,
    )
    for one in others:
        one.span.add_link(batch.get_span_context())
    batch.end(end_ns)


def _context_of(span: "Span") -> "Context":
    """Of what is inside it."""
    from opentelemetry.context import Context
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span, Context())


def _end(span: "Span", code: str, attributes: Mapping[str, str | float] = {}) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attributes({**attributes, "rpc.response.status_code": code})
    if code in _ERRORS_OF_THE_SERVER:
        span.set_status(StatusCode.ERROR, code)
    span.end()
