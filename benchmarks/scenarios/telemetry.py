"""What spans add to a ``get`` hit, in the three situations that a process can be in.

The span alone is ``start_as_current_span`` around nothing. A tracer provider can be set once per process, so each
situation has a process of its own.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from asynccache import Cache
from benchmarks.contract import AtMost, Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.stock import MANY, Shuffled

_KEYS = Shuffled([f"user:{number}" for number in range(MANY)])
_NO_SDK, _UNSAMPLED, _RECORDING = "no SDK", "SDK, unsampled parent", "SDK, recording"
_OFF, _AUTO, _ALONE = "telemetry off", "telemetry auto", "span alone"


class _Nowhere(SpanExporter):
    """Drops what it is given: the cost of a span is measured, not that of its way out."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@asynccontextmanager
async def _within(situation: str) -> AsyncIterator[None]:
    if situation == _NO_SDK:
        yield
        return
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_Nowhere()))
    trace.set_tracer_provider(provider)
    if situation == _UNSAMPLED:
        parent = NonRecordingSpan(SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.DEFAULT)))
        with trace.use_span(parent):
            yield
    else:
        with trace.get_tracer("bench").start_as_current_span("request"):
            yield


@asynccontextmanager
async def _get(telemetry: str) -> AsyncIterator[Run]:
    async with Cache("memory://?max_entries=20000", namespace="bench", ttl="10m", telemetry=telemetry) as cache:
        for key in _KEYS.all:
            await cache.set(key, key)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.get(key)
            return time.perf_counter() - start

        yield run


def _off() -> AbstractAsyncContextManager[Run]:
    return _get("off")


def _auto() -> AbstractAsyncContextManager[Run]:
    return _get("auto")


@asynccontextmanager
async def _alone() -> AsyncIterator[Run]:
    tracer = trace.get_tracer("bench")

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for _ in keys:
            with tracer.start_as_current_span("cache.get"):
                pass
        return time.perf_counter() - start

    yield run


@asynccontextmanager
async def _alone_with_attributes() -> AsyncIterator[Run]:
    tracer = trace.get_tracer("bench")

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for _ in keys:
            with tracer.start_as_current_span("cache.get") as span:
                span.set_attributes(
                    {"cache.name": "default", "cache.backend": "memory", "cache.hit": True, "cache.result": "hit"}
                )
        return time.perf_counter() - start

    yield run


def _cases(situation: str) -> list[Case]:
    added = {
        _NO_SDK: AtMost(30, minus=_OFF),
        _UNSAMPLED: AtMost(350, minus=_OFF),
        _RECORDING: AtMost(1.0, to=_ALONE, minus=_OFF),
    }
    cases = [
        floor_case(_KEYS.all),
        Case(_OFF, "ours", _off),
        Case(_AUTO, "ours", _auto, (added[situation],)),
        Case(_ALONE, "reference", _alone),
    ]
    if situation == _RECORDING:
        cases.append(Case("span alone, 4 attributes", "reference", _alone_with_attributes))
    return cases


SCENARIO = Timed(
    "telemetry",
    "get, hit, with spans beside start_as_current_span alone",
    _cases,
    _KEYS,
    situations=(_NO_SDK, _UNSAMPLED, _RECORDING),
    within=_within,
)
