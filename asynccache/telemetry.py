"""The one door to OpenTelemetry.

Spans are made only when a tracer provider is installed (or given), and not under a parent that is not sampled. Whether
one is installed is asked at each call, because an SDK may be set up after the cache was made: `provider_module` holds
the variable that ``opentelemetry.trace.set_tracer_provider`` sets, which costs a few nanoseconds to look at.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias, final

import opentelemetry.trace as provider_module
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
    use_span,
)

__all__ = ["NO_SPAN", "CallSpan", "Telemetry", "Tracing", "provider_module"]

KeyDetail: TypeAlias = Literal["off", "raw", "hash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """How a cache shows itself, where the global providers and the defaults are not what is wanted.

    Attributes:
        tracer_provider: Whose spans; ``None`` for the global one.
        meter_provider: Whose metrics; ``None`` for the global one.
        keys: What spans say about keys: ``"off"``, nothing; ``"raw"``, the key; ``"hash"``, a keyed digest of it.
        hash_secret: The key of that digest.
    """

    tracer_provider: TracerProvider | None = None
    meter_provider: Any = None
    keys: KeyDetail = "off"
    hash_secret: bytes = b""


@final
class CallSpan:
    """The span of one call, or nothing in its place."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None) -> None:
        self._span = span

    @property
    def context(self) -> SpanContext | None:
        """What others link to."""
        return None if self._span is None else self._span.get_span_context()

    def set(self, attribute: str, value: str | bool | int | float) -> None:
        """Set an attribute."""
        if self._span is not None:
            self._span.set_attribute(attribute, value)

    def result(self, result: str, tier: str | None = None) -> None:
        """Say how a read ended: hit, miss, stale, coalesced, negative, bypass or error."""
        if self._span is not None:
            self._span.set_attribute("cache.result", result)
            self._span.set_attribute("cache.hit", result in ("hit", "stale", "negative"))
            if tier is not None:
                self._span.set_attribute("cache.tier", tier)

    def link(self, other: SpanContext | None) -> None:
        """Link to another span."""
        if self._span is not None and other is not None:
            self._span.add_link(other)

    def failed(self, error: BaseException) -> None:
        """Mark as failed; only the error's class is told, its text may hold a key or a value."""
        if self._span is not None:
            self._span.set_attribute("error.type", _error_type(error))
            self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))


NO_SPAN: Final = CallSpan(None)


class _NoSpan(AbstractContextManager[CallSpan]):
    """The context manager that stands where nobody records."""

    __slots__ = ()

    def __enter__(self) -> CallSpan:
        return NO_SPAN

    def __exit__(self, *_: object) -> None:
        return None


_NO_SPAN_MANAGER: Final = _NoSpan()


@final
class Tracing:
    """The spans of one cache."""

    __slots__ = ("_attributes", "_keys", "_of_provider", "_provider", "_secret", "_tracer", "off")

    def __init__(self, telemetry: Telemetry | None, *, cache: str, backend: str) -> None:
        """Spans as ``telemetry`` says, or none at all when it is ``None``."""
        self.off = telemetry is None
        settings = telemetry or Telemetry()
        self._provider = settings.tracer_provider
        self._keys = settings.keys
        self._secret = settings.hash_secret
        self._attributes = {"cache.name": cache, "cache.backend": backend}
        self._of_provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    @property
    def own_provider(self) -> bool:
        """Whether a provider was given: then there is one, whatever the global one is."""
        return self._provider is not None

    def wanted(self) -> bool:
        """Whether a span begun now would be recorded by anybody."""
        if self.off or (self._provider is None and provider_module._TRACER_PROVIDER is None):
            return False
        parent = get_current_span()
        if parent is INVALID_SPAN or parent.is_recording():
            return True
        context = parent.get_span_context()
        return not context.is_valid or context.trace_flags.sampled

    def call(self, name: str, key: str | None = None, size: int | None = None) -> AbstractContextManager[CallSpan]:
        """The span of one call of the cache, current while it lasts."""
        if (provider_module._TRACER_PROVIDER is None and self._provider is None) or not self.wanted():
            return _NO_SPAN_MANAGER
        return self._record(name, key, size)

    def load(
        self, name: str, reason: str, key: str, *, detached: bool, size: int | None = None
    ) -> AbstractContextManager[CallSpan]:
        """The span of one run of a factory: a child of the first caller's, or linked to it when nobody waits for it."""
        if (provider_module._TRACER_PROVIDER is None and self._provider is None) or not self.wanted():
            return _NO_SPAN_MANAGER
        return self._record(name, key, size, reason=reason, detached=detached)

    def loaded(self, duration: float, reason: str) -> None:
        """Record how long a factory ran, in seconds."""

    @contextmanager
    def _record(
        self, name: str, key: str | None, size: int | None, *, reason: str | None = None, detached: bool = False
    ) -> Iterator[CallSpan]:
        attributes: dict[str, str | bool | int | float] = dict(self._attributes)
        if reason is not None:
            attributes["cache.load.reason"] = reason
        if size is not None:
            attributes["cache.batch.size"] = size
        if key is not None and self._keys != "off":
            attributes["cache.key"] = self._shown(key)
        links: Sequence[Link] = ()
        context: Context | None = None
        if detached:
            trigger = get_current_span().get_span_context()
            links = (Link(trigger),) if trigger.is_valid else ()
            context = Context()
        span = self._get_tracer().start_span(
            name, context=context, kind=SpanKind.INTERNAL, attributes=attributes, links=links,
            record_exception=False, set_status_on_exception=False,
        )  # fmt: skip
        shown = CallSpan(span)
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield shown
            except Exception as error:
                shown.failed(error)
                raise

    def _get_tracer(self) -> Tracer:
        provider = self._provider or provider_module.get_tracer_provider()
        if self._tracer is None or provider is not self._of_provider:
            self._tracer = provider.get_tracer("asynccache")
            self._of_provider = provider
        return self._tracer

    def _shown(self, key: str) -> str:
        if self._keys == "raw":
            return key
        return blake2b(key.encode(), key=self._secret[:64], digest_size=12).hexdigest()


def _error_type(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
