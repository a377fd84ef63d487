"""A local store of the cache's own has keys without the namespace; in the remote one they are where all find them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from waiting import until

from asynccache import Cache, MemoryBackend, NotSupported, Telemetry
from asynccache.testing import sandbox

pytestmark = pytest.mark.slow

Open = Callable[..., Cache]


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL."""
    url: str = request.getfixturevalue("url") if request.param == "redis" else f"file://{tmp_path / 'store'}"
    return url


@pytest.fixture
async def near(place: str) -> AsyncIterator[Cache]:
    """A cache with a local store of its own."""
    async with Cache(place, local="memory://", namespace="n", ttl="1m", on_error="raise") as cache:
        yield cache


@pytest.fixture
async def plain(place: str) -> AsyncIterator[Cache]:
    """Another process of the same service, without one."""
    async with Cache(place, namespace="n", ttl="1m", on_error="raise") as cache:
        yield cache


@pytest.fixture
async def neighbour(place: str) -> AsyncIterator[Cache]:
    """Another service on the same store."""
    async with Cache(place, local="memory://", namespace="m", ttl="1m", on_error="raise") as cache:
        yield cache


def local_keys(cache: Cache) -> set[str]:
    local = cache._core.local
    assert local is not None
    return set(local.values)


async def names(cache: Cache) -> set[str]:
    return {key async for key in cache.keys()}  # noqa: SIM118 - a cache is no mapping


async def test_the_local_store_knows_no_namespace(near: Cache, plain: Cache) -> None:
    """A hit builds no key; views have theirs in front all the same."""
    await plain.set("key", 1)
    await plain.namespace("view").set("key", 2)
    assert (await near.get("key"), await near.namespace("view").get("key")) == (1, 2)
    assert local_keys(near) == {"key", "view\0key"}


async def test_a_store_that_others_use_too_has_the_namespace_in_it(place: str) -> None:
    """Two caches on one local store, or with a remote store of somebody else's, keep their keys apart."""
    local = MemoryBackend()
    async with Cache(place, local=local, namespace="a") as one, Cache(place, local=local, namespace="b") as other:
        await one.set("key", 1)
        await other.set("key", 2)
        assert (await one.get("key"), await other.get("key")) == (1, 2)
        assert set(local.values) == {"a:key", "b:key"}


async def test_each_finds_what_the_other_wrote(near: Cache, plain: Cache, neighbour: Cache) -> None:
    """Entries, counters and times are the same from either side, and none of the neighbour's."""
    await neighbour.set("one", "the neighbour's")
    await near.set("one", 1)
    await plain.set("two", 2)
    await near.set_many({"three": 3})
    assert await near.incr("four", 4) == await plain.incr("four", 0)
    await near.touch("three", "1h")
    assert await plain.get_many(["one", "two", "three", "four"]) == {"one": 1, "two": 2, "three": 3, "four": 4}
    assert await near.get_many(["one", "two", "three", "four"]) == {"one": 1, "two": 2, "three": 3, "four": 4}
    left = await plain.ttl("three")
    assert left is not None
    assert left > 3_000
    assert await names(near) == await names(plain) == {"one", "two", "three", "four"}
    assert await near.add("two", "newer") is False
    assert await near.delete("one") is True
    assert await plain.get("one") is None
    assert await near.delete_many(["two", "none"]) == 1
    assert await near.clear() == 2
    assert await names(plain) == set()
    assert await neighbour.get("one") == "the neighbour's"


async def test_tags_have_one_name_for_all(near: Cache, plain: Cache, neighbour: Cache) -> None:
    """What one invalidates is hidden from the other, in views as well; a neighbour's tag is another one."""
    for cache in (near, plain, neighbour):
        await cache.set(f"of {id(cache)}", 1, tags=["tag"])
        await cache.namespace("view").set(f"of {id(cache)}", 1, tags=["tag"])
    for reader in (near, plain, near.namespace("view"), plain.namespace("view")):
        entry = await reader.entry(f"of {id(near)}")
        assert entry is not None
        assert list(entry.tags) == ["tag"]
    for reader in (near, plain):
        assert await reader.get(f"of {id(near)}") == await reader.get(f"of {id(plain)}") == 1
    await near.invalidate_tags("tag")
    assert await plain.get_many([f"of {id(near)}", f"of {id(plain)}"]) == {}
    assert await near.get_many([f"of {id(near)}", f"of {id(plain)}"]) == {}
    assert await plain.namespace("view").get(f"of {id(near)}") == 1
    await plain.namespace("view").invalidate_tags("tag")

    async def hidden() -> bool:
        return await near.namespace("view").get(f"of {id(near)}") is None

    await until(hidden)
    assert await neighbour.get(f"of {id(neighbour)}") == 1


async def test_tags_of_what_was_stored_by_any_call(near: Cache, plain: Cache) -> None:
    """Each finds what the other has stored or loaded with a tag, and hides it."""
    caches = (near, plain)
    for number, cache in enumerate(caches):
        await cache.set(f"set {number}", 1, tags=["tag"])
        await cache.set_many({f"set_many {number}": 1}, tags=["tag"])
        await cache.get_or_set(f"load {number}", lambda: 1, tags=["tag"])
        await cache.get_or_set_many([f"load_many {number}"], lambda keys: dict.fromkeys(keys, 1), tags=["tag"])
    keys = [f"{how} {number}" for number in (0, 1) for how in ("set", "set_many", "load", "load_many")]
    for cache in caches:
        assert await cache.get_many(keys) == dict.fromkeys(keys, 1)
        assert [await cache.get(key) for key in keys] == [1] * len(keys)
    await plain.invalidate_tags("tag")
    assert await plain.get_many(keys) == {}

    async def hidden() -> bool:
        return await near.get_many(keys) == {}

    await until(hidden)


async def test_the_state_of_the_store_is_told(near: Cache, plain: Cache) -> None:
    """A local store in front of it hides from nobody whether the server is away, and what is owed to it."""
    assert (near._core.health is None) is (plain._core.health is None)


async def test_a_load_holds_the_lease_for_both(near: Cache, plain: Cache) -> None:
    """Ten callers of each, one load; of many keys, too."""
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.1)
        return "loaded"

    both = [cache.get_or_set("key", load) for _ in range(10) for cache in (near, plain)]
    assert set(await asyncio.gather(*both)) == {"loaded"}
    assert loads == 1

    async def load_many(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, "many")

    assert await near.get_or_set_many(["a", "b"], load_many) == {"a": "many", "b": "many"}
    assert await plain.get_many(["a", "b"]) == {"a": "many", "b": "many"}


async def test_a_lock_keeps_both_out(near: Cache, plain: Cache, neighbour: Cache) -> None:
    """One name, one holder, numbers that grow; the neighbour's lock is another one."""
    inside = 0
    numbers: list[int | None] = []

    async def work(cache: Cache) -> None:
        nonlocal inside
        async with cache.lock("key", ttl="5s") as number:
            inside += 1
            assert inside == 1
            numbers.append(number)
            await asyncio.sleep(0.01)
            inside -= 1

    async with neighbour.lock("key", ttl="5s"):
        await asyncio.gather(*[work(cache) for _ in range(3) for cache in (near, plain)])
    assert None not in numbers
    assert numbers == sorted(set(numbers), key=lambda number: number or 0)


async def test_spans_show_the_key_that_the_store_has(place: str) -> None:
    """Whoever looks for a key of a span finds it in the store, and the same digest from every process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    shown: dict[object, list[object]] = {}
    for detail in ({"keys": "raw"}, {"keys": "hash", "hash_secret": b"secret"}):
        for local in (None, "memory://"):
            telemetry = Telemetry(tracer_provider=provider, **detail)  # type: ignore[arg-type]
            async with Cache(place, local=local, namespace="n", telemetry=telemetry) as cache:
                await cache.delete("other")
                exporter.clear()
                await cache.set("key", 1)
                await cache.get_or_set("other", lambda: 1)
                with sandbox():
                    await cache.set("key", 1)
                named = [span for span in exporter.get_finished_spans() if span.name.startswith("cache.")]
                keys = [(span.attributes or {}).get("cache.key") for span in named]
                shown.setdefault(detail["keys"], []).append(keys)
    assert shown["raw"] == [["n:key", "n:other", "n:other", "n:key"]] * 2
    assert shown["hash"][0] == shown["hash"][1]


async def test_raw_access_is_that_of_the_store(near: Cache, place: str) -> None:
    """The prefix is not in the way of who asks Redis itself, and of nobody's else."""
    await near.set("key", 1)
    if place.startswith("file:"):
        with pytest.raises(NotSupported):
            _ = near.redis
    else:
        assert await near.redis.command("EXISTS", "n:key") == 1
