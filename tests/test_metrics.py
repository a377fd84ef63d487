"""Metrics: what is reported, in how many series, and of which caches."""

import asyncio
import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from stores import on_redis

from asynccache import Cache, Telemetry


class Metrics:
    """A provider and what it collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def telemetry(self) -> Telemetry:
        return Telemetry(meter_provider=self.provider)

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        """The data points of an instrument by their attributes."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            frozenset((point.attributes or {}).items()): point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }

    def values(self, name: str, attribute: str | None = None, cache: str = "default") -> dict[str, int]:
        """The values of an instrument for one cache, by one attribute."""
        found = {}
        for attributes, point in self.points(name).items():
            labels = dict(attributes)
            if labels["cache.name"] == cache:
                found[labels.get(attribute, "") if attribute else ""] = point.value
        return found


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.provider.shutdown()


async def test_metrics_are_the_statistics(metrics):
    """Every counter says what ``stats()`` says."""
    cache = Cache("memory://?max_entries=2&max_bytes=100000", ttl="1m", telemetry=metrics.telemetry())
    gate = asyncio.Event()

    async def load():
        await gate.wait()
        return 1

    async def fail():
        raise ZeroDivisionError

    waiting = [asyncio.create_task(cache.get_or_set("a", load)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert metrics.values("cache.load.inflight") == {"": 1}
    gate.set()
    await asyncio.gather(*waiting)
    await asyncio.gather(cache.get_or_set("b", fail), return_exceptions=True)
    await cache.get("a")
    await cache.set_many({"x": 1, "y": 2, "z": 3})
    stats = cache.stats()
    assert metrics.values("cache.operations", "cache.result") == {
        "hit": stats.hits,
        "miss": stats.misses - stats.coalesced,
        "coalesced": stats.coalesced,
        "stale": stats.stale_hits,
    }
    assert (stats.hits, stats.misses, stats.coalesced) == (1, 4, 2)
    assert metrics.values("cache.loads") == {"": stats.loads} == {"": 2}
    assert metrics.values("cache.load.failures") == {"": stats.load_failures} == {"": 1}
    assert metrics.values("cache.evictions", "cache.eviction.cause") == {"size": stats.evictions, "expired": 0}
    assert metrics.values("cache.entries") == {"": 2}
    assert metrics.values("cache.size") == {"": stats.bytes}
    assert metrics.values("cache.errors") == {"": 0}
    assert metrics.values("cache.load.inflight") == {"": 0}


async def test_the_duration_of_loads(metrics):
    """Each run of a factory is recorded in seconds under its reason, a bulk run once, a failing one too."""
    cache = Cache(name="shop", telemetry=metrics.telemetry())

    async def fail():
        raise ZeroDivisionError

    async def slow():
        await asyncio.sleep(0.01)

    memoized = cache.memoize(key="key")(slow)
    await memoized()
    await memoized.refresh()
    await asyncio.gather(cache.get_or_set("other", fail), return_exceptions=True)
    await cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1))
    points = {
        dict(attributes)["cache.load.reason"]: p for attributes, p in metrics.points("cache.load.duration").items()
    }
    assert {reason: point.count for reason, point in points.items()} == {"miss": 2, "refresh": 1, "bulk": 1}
    assert 0.005 < points["refresh"].sum < 5
    assert points["miss"].explicit_bounds[0] == 0.001


async def test_keys_and_views_make_no_series(metrics):
    """However many keys and namespaces there are, the series are those of one cache."""
    cache = Cache(telemetry=metrics.telemetry())
    await cache.get("first")
    before = len(metrics.points("cache.operations"))
    for number in range(200):
        await cache.namespace(f"n{number}").get_or_set(f"key {number}", lambda: 1)
    assert len(metrics.points("cache.operations")) == before == 4
    assert len(metrics.points("cache.load.duration")) == 1


async def test_caches_of_one_name_are_one_series(metrics):
    """Two caches that are called alike are counted together; others by themselves."""
    one, two, other = (Cache(name=name, telemetry=metrics.telemetry()) for name in ("same", "same", "other"))
    for cache in (one, two, two, other):
        await cache.get("key")
    assert metrics.values("cache.operations", "cache.result", "same")["miss"] == 3
    assert metrics.values("cache.operations", "cache.result", "other")["miss"] == 1


async def test_a_closed_or_forgotten_cache_is_not_reported(metrics):
    """Metrics keep no cache alive, and report none that is closed."""
    closed, forgotten = (Cache(name=name, telemetry=metrics.telemetry()) for name in ("closed", "forgotten"))
    await closed.get("key")
    await forgotten.get("key")
    assert metrics.values("cache.entries", cache="closed")
    assert metrics.values("cache.entries", cache="forgotten")
    await closed.aclose()
    del forgotten
    gc.collect()
    assert not metrics.points("cache.entries")


async def test_what_a_sandbox_counts_is_not_reported(metrics, cache_sandbox):
    """A cache's double in a test's world adds no series."""
    cache = Cache(telemetry=metrics.telemetry())
    await cache.get("key")
    assert cache.stats().misses == 1
    assert metrics.values("cache.operations", "cache.result")["miss"] == 0


async def test_off_reports_nothing(metrics, monkeypatch):
    """``telemetry="off"`` registers nothing, whatever provider there is."""
    made = []
    monkeypatch.setattr("asynccache._dispatcher.meters_of", made.append)
    await Cache(telemetry="off").get_or_set("key", lambda: 1)
    assert not made


def test_a_provider_that_comes_after_the_cache_is_noticed():
    """A cache made before the SDK is set up reports to it afterwards."""
    program = """
        import asyncio
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from asynccache import Cache
        cache = Cache(name="early")
        asyncio.run(cache.get_or_set("before", lambda: 1))
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        asyncio.run(cache.get_or_set("after", lambda: 1))
        found = {
            metric.name: [point for point in metric.data.data_points]
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        assert found["cache.loads"][0].value == 2, found
        assert found["cache.load.duration"][0].count == 1, found
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("local", [None, "memory://"])
async def test_questions_to_a_remote_store_are_timed(metrics, url, local):
    """Each by its kind, however short its way is; what the local store answers is no question."""
    async with Cache(url, local=local, telemetry=metrics.telemetry(), on_error="raise") as cache:
        await cache.set("a", 1, 60)
        await cache.set("b", 1, 60, tags=["tag"])
        await cache.get("a")
        await cache.get("absent")
        await cache.get_or_set("a", lambda: 2)
        await cache.delete("a")
        await cache.incr("n")
    points = metrics.points("cache.operation.duration")
    counts = {dict(attributes)["cache.operation"]: point.count for attributes, point in points.items()}
    assert counts["set"] == 2
    assert counts["get"] == (3 if local is None else 2)
    assert counts["delete"] == counts["incr"] == 1
    assert all(0 < point.sum < 5 for point in points.values())
    assert {dict(attributes)["cache.backend"] for attributes in points} == {"redis"}


@pytest.mark.parametrize("shared", [True, False], ids=["one store", "one name"])
async def test_a_server_is_not_counted_twice(metrics, url, shared):
    """Caches of one name are in one state, the worst of theirs; what a store owes is counted once."""
    address = urlsplit(url)
    with FaultProxy(str(address.hostname), address.port or 0) as proxy:
        store = on_redis(proxy.url) if shared else None
        caches = [Cache(store or each, telemetry=metrics.telemetry()) for each in (url, proxy.url)]
        for cache in caches:
            await cache.set("key", 1)
        states = {"closed": 1, "half_open": 0, "open": 0}
        assert metrics.values("cache.breaker.state", "cache.breaker.state") == states
        proxy.refuse()
        for _ in range(2):  # the connection is lost, the attempt to make another one fails
            assert not await caches[1].delete("key")
        assert metrics.values("cache.breaker.state", "cache.breaker.state") == states | {"closed": 0, "open": 1}
        assert metrics.values("cache.replay.queue") == {"": 1}
        for cache in caches:
            await cache.aclose()
        if store is not None:
            await store.aclose()
