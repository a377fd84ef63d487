"""The one door to spans.

Spans are made only when a tracer provider is installed (or given), and not under a parent that is not sampled. Whether
one is installed is asked at each call, because an SDK may be set up after the cache was made: `provider_module` holds
the variable that ``opentelemetry.trace.set_tracer_provider`` sets, which costs a few nanoseconds to look at.

A call that raises marks its span as failed, and so does a failure of the store that the caller never sees. A caller who
is cancelled has not failed: its span ends without a status.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import Final, Literal, Protocol, Self, TypeAlias, final

import opentelemetry.trace as provider_module
from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)

from asynccache.errors import ConfigError

__all__ = ["NO_SPAN", "CallSpan", "RoundTrip", "Telemetry", "Tracing", "provider_module", "recording", "round_trip"]

KeyDetail: TypeAlias = Literal["off", "raw", "template", "hash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """How a cache shows itself, where the global providers and the defaults are not what is wanted.

    Attributes:
        tracer_provider: Whose spans; ``None`` for the global one.
        meter_provider: Whose metrics; ``None`` for the global one.
        keys: What spans say about keys: ``"off"``, nothing; ``"raw"``, the key; ``"template"``, that of a memoized
            function, such as ``user:{user_id}``; ``"hash"``, a keyed digest of the key.
        hash_secret: The key of that digest: 1 to 64 bytes, the same in every process whose spans are to be compared.
    """

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    keys: KeyDetail = "off"
    hash_secret: bytes = b""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: One of them is wrong, or ``hash`` has no secret: anybody could guess the keys then.
        """
        if self.keys not in ("off", "raw", "template", "hash"):
            raise ConfigError(f'keys is "off", "raw", "template" or "hash", not {self.keys!r}')
        if not isinstance(self.hash_secret, bytes) or len(self.hash_secret) > _LONGEST_SECRET:
            raise ConfigError(f"hash_secret is a bytes object of at most {_LONGEST_SECRET} bytes: b'...'")
        if self.keys == "hash" and not self.hash_secret:
            raise ConfigError('keys="hash" needs a hash_secret')


_LONGEST_SECRET: Final = 64  # what BLAKE2b takes for a key

_RESULTS: Final[Mapping[tuple[str, str | None], Mapping[str, str | bool]]] = {
    (result, tier): {"cache.result": result, "cache.hit": result in ("hit", "stale", "negative")}
    | ({} if tier is None else {"cache.tier": tier})
    for result in ("hit", "miss", "stale", "coalesced", "negative", "bypass", "error")
    for tier in (None, "local", "remote")
}


class CallSpan(Protocol):
    """The span of one call, or what stands in its place where nobody records."""

    @property
    def context(self) -> SpanContext | None:
        """What others link to."""
        ...

    def result(self, result: str, tier: str | None = None) -> None:
        """Say how a read ended: hit, miss, stale, coalesced, negative, bypass or error."""
        ...

    def link(self, other: SpanContext | None) -> None:
        """Link to another span."""
        ...

    def __enter__(self) -> "CallSpan": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@final
class _NoSpan:
    """Nobody records."""

    __slots__ = ()

    context: Final = None

    def result(self, result: str, tier: str | None = None) -> None:
        return None

    def link(self, other: SpanContext | None) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


NO_SPAN: Final[CallSpan] = _NoSpan()

_current: ContextVar["_Recorded | None"] = ContextVar("asynccache_span", default=None)
"""The span of ours that is open here: a failure that is hidden from the caller shows in it."""


@final
class _Recorded:
    """A span that is current while it is entered."""

    __slots__ = ("_mark", "_span", "_token", "tracer")

    _token: Token[Context]
    _mark: Token["_Recorded | None"]

    def __init__(self, span: Span, tracer: Tracer) -> None:
        self._span = span
        self.tracer = tracer

    @property
    def context(self) -> SpanContext:
        return self._span.get_span_context()

    @property
    def open(self) -> bool:
        """Whether it has not ended yet: the context of a load's task has that of a caller who may be gone."""
        return self._span.is_recording()

    def result(self, result: str, tier: str | None = None) -> None:
        self._span.set_attributes(_RESULTS[result, tier])

    def link(self, other: SpanContext | None) -> None:
        if other is not None:
            self._span.add_link(other)

    def failed(self, error: BaseException) -> None:
        """Mark as failed; only the error's class is told, its text may hold a key or a value."""
        self._span.set_attribute("error.type", _error_type(error))
        self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))

    def __enter__(self) -> Self:
        self._token = attach(set_span_in_context(self._span))
        self._mark = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.failed(error)
        if not isinstance(error, GeneratorExit):  # a coroutine that is thrown away, perhaps by another context
            _current.reset(self._mark)
            detach(self._token)
        self._span.end()


@final
class RoundTrip:
    """The span of one question to a server; it ends with the answer."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(
        self, error: BaseException | None, code: str | None = None, peer: Mapping[str, str | int] | None = None
    ) -> None:
        """End it.

        Args:
            error: What came instead of an answer.
            code: What the server calls that.
            peer: The attributes that say which server it was.
        """
        if peer:
            self._span.set_attributes(peer)
        if code is not None:
            self._span.set_attribute("db.response.status_code", code)
        if error is not None:
            self._span.set_attribute("error.type", code or _error_type(error))
            self._span.set_status(Status(StatusCode.ERROR, code or type(error).__name__))
        self._span.end()


def recording() -> bool:
    """Whether a call of a cache is being recorded here."""
    return _current.get() is not None


def round_trip(
    command: str, where: Mapping[str, str | int], size: int | None = None, script: str | None = None
) -> RoundTrip | None:
    """The span of a question to a server, by the conventions for databases; ``None`` where nobody records.

    Args:
        command: What the server calls it.
        where: The attributes that say which servers.
        size: How many commands, where several make one.
        script: What is called of what the server has stored.
    """
    call = _current.get()
    if call is None or not call.open:
        return None
    attributes: dict[str, str | int] = {**where, "db.operation.name": command}
    if size is not None:
        attributes["db.operation.batch.size"] = size
    if script is not None:
        attributes["db.stored_procedure.name"] = script
    return RoundTrip(call.tracer.start_span(command, kind=SpanKind.CLIENT, attributes=attributes))


@final
class Tracing:
    """The spans of one cache."""

    __slots__ = (
        "_attributes",
        "_hit",
        "_keys",
        "_negative",
        "_of_provider",
        "_provider",
        "_secret",
        "_tracer",
        "_unsampled",
        "off",
        "prefix",
    )

    def __init__(self, telemetry: Telemetry | None, *, cache: str, backend: str, prefix: str = "") -> None:
        """Spans as ``telemetry`` says, or none at all when it is ``None``; of keys that the store has with a prefix."""
        self.off = telemetry is None
        self.prefix = prefix
        settings = telemetry or Telemetry()
        self._provider = settings.tracer_provider
        self._keys = settings.keys
        self._secret = settings.hash_secret
        self._attributes = {"cache.name": cache, "cache.backend": backend}
        self._hit: dict[str, str | bool | int] = {**self._attributes, **_RESULTS["hit", "local"]}
        self._negative: dict[str, str | bool | int] = {**self._attributes, **_RESULTS["negative", "local"]}
        self._of_provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._unsampled: Span | None = None

    @property
    def own_provider(self) -> bool:
        """Whether a provider was given: then there is one, whatever the global one is."""
        return self._provider is not None

    def wanted(self) -> bool:
        """Whether a span begun now would be recorded by anybody."""
        if self.off or (self._provider is None and provider_module._TRACER_PROVIDER is None):
            return False
        parent = get_current_span()
        if parent is self._unsampled:
            return False
        if parent is INVALID_SPAN or parent.is_recording():
            return True
        context = parent.get_span_context()
        if context.trace_flags & TraceFlags.SAMPLED or not context.is_valid:
            return True
        self._unsampled = parent  # it stays so, and is often asked for again: by the next call of the same request
        return False

    def hit(self, name: str, key: str, value: object, template: str | None = None) -> None:
        """The span of a read that was answered by the local seat, when it is over: nothing happened within it.

        Args:
            name: The span's name.
            key: The whole key.
            value: What was found.
            template: What the key was made from.
        """
        attributes = self._negative if value is None else self._hit
        if self._keys != "off":
            attributes = {**attributes}
            self._show(attributes, key, template)
        self._get_tracer().start_span(name, attributes=attributes).end()

    def call(
        self, name: str, key: str | None = None, size: int | None = None, template: str | None = None
    ) -> AbstractContextManager[CallSpan]:
        """The span of one call of the cache, current while it lasts.

        Args:
            name: The span's name.
            key: The whole key, where the call has one.
            size: How many keys, where the call has several.
            template: What the key was made from.
        """
        if (provider_module._TRACER_PROVIDER is None and self._provider is None) or not self.wanted():
            return NO_SPAN
        attributes: dict[str, str | bool | int] = {**self._attributes}
        if size is not None:
            attributes["cache.batch.size"] = size
        if key is not None and self._keys != "off":
            self._show(attributes, key, template)
        tracer = self._get_tracer()
        return _Recorded(tracer.start_span(name, attributes=attributes), tracer)

    def load(
        self, reason: str, key: str, template: str | None = None, size: int | None = None
    ) -> AbstractContextManager[CallSpan]:
        """The span of one run of a factory: a child of the first caller's, or linked to it when nobody waits for it.

        Args:
            reason: Why the factory runs; ``"background"`` when nobody waits for it.
            key: The whole key, or the first of several.
            template: What the key was made from.
            size: How many keys, where the factory loads several.
        """
        if (provider_module._TRACER_PROVIDER is None and self._provider is None) or not self.wanted():
            return NO_SPAN
        attributes: dict[str, str | bool | int] = {**self._attributes, "cache.load.reason": reason}
        if size is not None:
            attributes["cache.batch.size"] = size
        elif self._keys != "off":
            self._show(attributes, key, template)
        context: Context | None = None
        links: tuple[Link, ...] = ()
        name = "cache.load"
        if reason == "background":
            name = "cache.refresh"
            trigger = get_current_span().get_span_context()
            links = (Link(trigger),) if trigger.is_valid else ()
            context = Context()
        tracer = self._get_tracer()
        return _Recorded(tracer.start_span(name, context=context, attributes=attributes, links=links), tracer)

    def hidden(self, error: BaseException) -> None:
        """Mark the span that is open here as failed, because of a failure that its caller does not see."""
        span = _current.get()
        if span is not None and span.open:
            span.failed(error)

    def _show(self, attributes: dict[str, str | bool | int], key: str, template: str | None) -> None:
        if self._keys == "raw":
            attributes["cache.key"] = self.prefix + key
        elif self._keys == "hash":
            whole = (self.prefix + key).encode()
            attributes["cache.key"] = blake2b(whole, key=self._secret, digest_size=12).hexdigest()
        elif template is not None:
            attributes["cache.key"] = template

    def _get_tracer(self) -> Tracer:
        provider = self._provider or provider_module.get_tracer_provider()
        if self._tracer is None or provider is not self._of_provider:
            self._tracer = provider.get_tracer("asynccache")
            self._of_provider = provider
        return self._tracer


def _error_type(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
