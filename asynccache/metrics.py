"""The one door to metrics.

What a cache counts are plain integers; observable instruments read them when they are collected, so that counting costs
a call nothing more. The instruments belong to a meter provider and are made once for it: all caches of a process that
report to it share them, one series for each name. A cache that is closed or gone is not seen any more. Attribute values
are closed sets: no number of keys makes another series.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, Protocol, TypeAlias, final

import opentelemetry.metrics as api
import opentelemetry.metrics._internal as provider_module
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from asynccache.backend import Health
from asynccache.stats import Stats

__all__ = ["Meters", "Source", "Timer", "meters_of"]

_Series: TypeAlias = Iterable[tuple[Mapping[str, str], int]]

_PARTS_OF_IT: Final = (0.000_05, 0.000_1, 0.000_2, 0.000_5)
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Boundaries of the histogram: what is worth caching takes a millisecond or more."""


class Source(Protocol):
    """A cache, as far as metrics are concerned."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Its name and that of its store, as attributes."""
        ...

    @property
    def loading(self) -> int:
        """How many of its factories run."""
        ...

    @property
    def health(self) -> Health | None:
        """How it stands with its server, if it has one."""
        ...

    def stats(self) -> Stats:
        """What it has counted."""
        ...


@final
class Meters:
    """The instruments of one meter provider.

    Attributes:
        given: Whether the provider was given: the global one may not be there yet.
        load_duration: How long factories ran, in seconds.
    """

    def __init__(self, meter: Meter, provider: MeterProvider | None) -> None:
        self.given = provider is not None
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()
        self._lock = threading.Lock()
        counter, gauge = meter.create_observable_counter, meter.create_observable_up_down_counter
        counter("cache.operations", [self._told_by(_operations)], "{operation}", "Reads by how they were answered.")
        counter("cache.loads", [self._told_by(_loads)], "{load}", "Runs of a factory.")
        counter("cache.load.failures", [self._told_by(_load_failures)], "{load}", "Runs of a factory that failed.")
        counter("cache.evictions", [self._told_by(_evictions)], "{entry}", "Entries that left the local store.")
        counter("cache.errors", [self._told_by(_errors)], "{error}", "Failures that callers did not see.")
        gauge("cache.load.inflight", [self._told_by(_inflight)], "{load}", "Factories that run now.")
        gauge("cache.entries", [self._told_by(_entries)], "{entry}", "Entries in the local store.")
        gauge("cache.size", [self._told_by(_size)], "By", "What the local store's entries weigh, where it weighs them.")
        gauge("cache.breaker.state", [self._told_by_stores(_breaker)], "{state}", "1 for what is known of the server.")
        gauge(
            "cache.replay.queue",
            [self._told_by_stores(_owed)],
            "{key}",
            "Keys to be deleted and leases to be given back when the server is back.",
        )
        self.load_duration: Histogram = meter.create_histogram(
            "cache.load.duration", "s", "How long factories ran.", explicit_bucket_boundaries_advisory=_SECONDS
        )
        self.operation_duration: Histogram = meter.create_histogram(
            "cache.operation.duration",
            "s",
            "How long questions to a remote store took.",
            explicit_bucket_boundaries_advisory=(*_PARTS_OF_IT, *_SECONDS),
        )

    def add(self, source: Source) -> None:
        """Report what it counts, as long as it lives."""
        with self._lock:
            self._sources.add(source)

    def discard(self, source: Source) -> None:
        """Report it no longer."""
        with self._lock:
            self._sources.discard(source)

    def _told_by(self, tell: Callable[[Source, Stats], _Series]) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            with self._lock:
                sources = list(self._sources)
            series: dict[tuple[tuple[str, str], ...], int] = {}
            for source in sources:
                for more, value in tell(source, source.stats()):
                    attributes = (*source.labels.items(), *more.items())
                    series[attributes] = series.get(attributes, 0) + value
            for attributes, value in series.items():
                yield Observation(value, dict(attributes))

        return observe

    def _told_by_stores(
        self, tell: Callable[[Iterable[Health]], _Series]
    ) -> Callable[[CallbackOptions], Iterator[Observation]]:
        """What stores say: each once under a name, however many of its caches have it."""

        def observe(_: CallbackOptions) -> Iterator[Observation]:
            with self._lock:
                sources = list(self._sources)
            named: dict[tuple[tuple[str, str], ...], dict[int, Health]] = {}
            for source in sources:
                health = source.health
                if health is not None:
                    named.setdefault(tuple(source.labels.items()), {})[id(health)] = health
            for labels, stores in named.items():
                for more, value in tell(stores.values()):
                    yield Observation(value, dict(labels) | dict(more))

        return observe


@final
class Timer:
    """Records how long the factories of one cache run, or its questions to a remote store take."""

    __slots__ = ("_attribute", "_histogram", "_labels", "_meters")

    def __init__(self, meters: Meters | None, labels: Mapping[str, str], of: Literal["load", "operation"]) -> None:
        self._meters = meters
        self._labels = labels
        self._attribute = "cache.load.reason" if of == "load" else "cache.operation"
        self._histogram = None
        if meters is not None:
            self._histogram = meters.load_duration if of == "load" else meters.operation_duration

    @property
    def wanted(self) -> bool:
        """Whether anybody keeps what is recorded."""
        meters = self._meters
        return meters is not None and (provider_module._METER_PROVIDER is not None or meters.given)

    def record(self, duration: float, which: str) -> None:
        """Note a run or a question.

        Args:
            duration: Seconds.
            which: Why a factory ran: ``miss``, ``refresh``, ``background`` or ``bulk``; or what was asked: ``get``,
                ``set``, ….
        """
        if self._histogram is not None:
            self._histogram.record(duration, {**self._labels, self._attribute: which})


def _operations(source: Source, stats: Stats) -> _Series:
    yield {"cache.result": "hit"}, stats.hits
    yield {"cache.result": "stale"}, stats.stale_hits
    yield {"cache.result": "coalesced"}, stats.coalesced
    yield {"cache.result": "miss"}, stats.misses - stats.coalesced


def _loads(source: Source, stats: Stats) -> _Series:
    yield {}, stats.loads


def _load_failures(source: Source, stats: Stats) -> _Series:
    yield {}, stats.load_failures


def _evictions(source: Source, stats: Stats) -> _Series:
    yield {"cache.eviction.cause": "size"}, stats.evictions
    yield {"cache.eviction.cause": "expired"}, stats.expirations


def _errors(source: Source, stats: Stats) -> _Series:
    yield {}, stats.errors


def _inflight(source: Source, stats: Stats) -> _Series:
    yield {}, source.loading


def _entries(source: Source, stats: Stats) -> _Series:
    yield {}, stats.entries


def _size(source: Source, stats: Stats) -> _Series:
    yield {}, stats.bytes


def _breaker(stores: Iterable[Health]) -> _Series:
    states = {store.breaker for store in stores}
    worst = next(state for state in ("open", "half_open", "closed") if state in states)
    for state in ("closed", "half_open", "open"):
        yield {"cache.breaker.state": state}, int(state == worst)


def _owed(stores: Iterable[Health]) -> _Series:
    yield {}, sum(store.owed for store in stores)


_lock: Final = threading.Lock()
_global: list[Meters] = []
_given: "weakref.WeakKeyDictionary[MeterProvider, Meters]" = weakref.WeakKeyDictionary()


def meters_of(provider: MeterProvider | None) -> Meters:
    """The instruments of a provider; of the global one, whichever that is or will be, when it is ``None``."""
    with _lock:
        if provider is None:
            if not _global:
                _global.append(Meters(api.get_meter("asynccache"), None))
            return _global[0]
        meters = _given.get(provider)
        if meters is None:
            meters = _given[provider] = Meters(provider.get_meter("asynccache"), provider)
        return meters
