"""The spans of the examples' servers: one for each request, kept in memory so that they can be looked at.

Made with OpenTelemetry's own API and SDK. The caller decides whether a request is recorded, by the W3C ``traceparent``
header: without one that says "sampled", nothing is recorded and next to nothing is paid.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["ShownSpan", "install", "request_span", "shown"]

_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSpan:
    """A finished span as JSON can carry it; times in nanoseconds since 1970, links as ids of the spans linked to."""

    trace: str
    span: str
    parent: str | None
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, str]
    links: list[str]


def install() -> InMemorySpanExporter:
    """Where this process's spans arrive from now on, its tracer provider being set once and for all."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(root=ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@contextmanager
def request_span(method: str, path: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
    """The span of one request, current while it is answered, in the trace that its ``traceparent`` header names."""
    with trace.get_tracer("examples").start_as_current_span(
        method,
        context=_PROPAGATOR.extract(headers),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "url.path": path},
    ) as span:
        yield span


def shown(exporter: InMemorySpanExporter | None) -> list[ShownSpan]:
    """The spans that have arrived, in the order of their ends."""
    return [] if exporter is None else [_shown(span) for span in exporter.get_finished_spans()]


def _shown(span: ReadableSpan) -> ShownSpan:
    own = span.context
    assert own is not None  # the SDK gives every finished span one
    return ShownSpan(
        trace=trace.format_trace_id(own.trace_id),
        span=trace.format_span_id(own.span_id),
        parent=None if span.parent is None else trace.format_span_id(span.parent.span_id),
        name=span.name,
        start=span.start_time or 0,
        end=span.end_time or 0,
        failed=not span.status.is_ok,
        attributes={name: str(value) for name, value in (span.attributes or {}).items()},
        links=[trace.format_span_id(link.context.span_id) for link in span.links],
    )
