"""Calls on Redis that want no value: they read the start of an entry, and mean what they meant."""

import asyncio
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
from servers import Server
from stores import on_redis
from test_redis_shortcut import cost

from asynccache import MISSING, Cache
from asynccache.codec import Codec

pytestmark = pytest.mark.slow

BYTES = Codec("bytes")
SECRET = "0123456789abcdef"
CODECS: dict[str, Any] = {
    "bytes": Codec("bytes"),
    "signed": Codec("bytes", keys=[SECRET]),
    "encrypted": Codec("bytes", keys=[SECRET], encrypt=True),
    "plain": Codec("bytes", plain=True),
    "json": Codec("json"),
}


def sent(server: Server) -> int:
    """How many bytes the server has sent."""
    return int(server.info("stats")["total_net_output_bytes"])


def value_for(name: str, size: int) -> Any:
    """A value of so many bytes that a codec can keep, and cannot make shorter."""
    return os.urandom(size // 2).hex() if name == "json" else os.urandom(size)


@pytest.mark.parametrize("local", [None, "memory://"])
@pytest.mark.parametrize("name", CODECS)
async def test_no_value_is_moved(url: str, server: Server, name: str, local: str | None) -> None:
    """Who asks whether an entry is there, how long it is, or gives it another ttl, is not sent a large value."""
    async with Cache(url, local=local, codec=CODECS[name], on_error="raise") as cache:
        await cache.set("key", value_for(name, 2_000_000), 60)
        before = sent(server)
        assert await cache.exists("key") is True
        assert await cache.ttl("key") == pytest.approx(60, abs=5)
        assert await cache.touch("key", 100) is True
        assert await cache.ttl("key") == pytest.approx(100, abs=5)
        assert await cache.touch("key", None) is True
        assert await cache.ttl("key") == math.inf
        assert sent(server) - before < 100_000


@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_round_trips(url: str, size: int) -> None:
    """A look is one command, whatever the size of the value; another ttl is a look and a script."""
    async with Cache(url, codec=BYTES, on_error="raise") as cache:
        await cache.set("key", os.urandom(size), 60)
        await cache.touch("key", 60)
        assert await cost(cache, cache.exists("key")) == {"getrange": 1}
        assert await cost(cache, cache.ttl("key")) == {"getrange": 1}
        assert (await cost(cache, cache.touch("key", 60)))["evalsha"] == 1


@pytest.mark.parametrize("name", [each for each in CODECS if each != "plain"])
@pytest.mark.parametrize("size", [0, 10, 400, 488, 500, 5_000, 200_000])
@pytest.mark.parametrize("tags", [0, 1, 12, 400])
async def test_a_head_says_what_the_entry_does(url: str, name: str, size: int, tags: int) -> None:
    """Times and tags are the same with and without the value, wherever they end; with a lease in front too."""
    value = value_for(name, size)
    store = on_redis(url, codec=CODECS[name])
    async with Cache(store, on_error="raise") as cache:
        await cache.set("key", value, 60, grace=30, tags=[f"a tag of some length {number}" for number in range(tags)])
        entry = await store.get("key")
        assert entry is not None
        for leased in (False, True):
            if leased:
                assert store.leases is not None
                assert await store.leases.acquire("key", ttl=30) is not None
            (head,) = (await store.heads.get_many(["key", "another"])).values()
            assert head.value is MISSING
            assert (head.created_at, head.fresh_until) == (entry.created_at, entry.fresh_until)
            assert head.expires_at == entry.expires_at
            assert dict(head.tags) == dict(entry.tags)
            assert len(head.tags) == tags
        assert await cache.exists("key")
        if tags:
            await cache.invalidate_tags(f"a tag of some length {tags - 1}")
            assert not await cache.exists("key")
            assert not await cache.touch("key", 100)
    await store.aclose()


async def test_a_lease_alone_is_no_entry(url: str) -> None:
    """Nor is what is over, or was never there."""
    store = on_redis(url)
    assert store.leases is not None
    assert await store.leases.acquire("key", ttl=30) is not None
    assert await store.heads.get_many(["key", "another"]) == {}
    assert await store.heads.get_many([]) == {}
    await store.aclose()


@pytest.mark.parametrize("size", [10, 200_000])
async def test_what_another_codec_wrote_is_not_there(url: str, size: int) -> None:
    """Another serializer, or one with keys of its own where there are none, is seen by the header, and told."""
    told: list[BaseException] = []
    async with Cache(url, codec=Codec("bytes"), on_error=told.append) as cache:
        for number, codec in enumerate((Codec("str"), Codec("bytes", keys=[SECRET])), 1):
            async with Cache(url, codec=codec, on_error="raise") as other:
                await other.set("key", "x" * size if number == 1 else os.urandom(size), 60)
            assert not await cache.exists("key")
            assert len(told) == 2 * number - 1
            assert not await cache.touch("key", 100)
            assert len(told) == 2 * number


@pytest.mark.parametrize("encrypt", [False, True])
async def test_a_seal_that_cannot_be_tested(url: str, encrypt: bool) -> None:
    """A small entry that another key has sealed is absent; a large one is there for who does not want its value."""
    async with Cache(url, codec=Codec("bytes", keys=[SECRET[::-1]], encrypt=encrypt), on_error="raise") as other:
        await other.set("small", os.urandom(10), 60)
        await other.set("large", os.urandom(10_000), 60)
    async with Cache(url, codec=Codec("bytes", keys=[SECRET], encrypt=encrypt)) as cache:
        assert [await cache.exists(key) for key in ("small", "large")] == [False, True]
        assert await cache.get("large") is None
        assert await cache.get_or_set("large", lambda: b"new") == b"new"
        assert await cache.get("large") == b"new"


async def test_plain_values_that_are_no_texts(url: str) -> None:
    """An empty plain value is there; another type is not; a small value that cannot be decoded is not, a large one
    is."""
    plain = [Codec(name, plain=True) for name in ("json", "str")]
    async with Cache(url, codec=plain[0]) as cache, Cache(url, codec=plain[1]) as texts:
        await texts.set("empty", "", 60)
        assert await texts.exists("empty")
        await cache.redis.command("RPUSH", "list", "x")
        await texts.set("small", "no JSON", 60)
        await texts.set("large", "no JSON" * 1_000, 60)
        assert [await cache.exists(key) for key in ("list", "small", "large", "none")] == [False, False, True, False]


@pytest.mark.parametrize("call", [lambda cache: cache.exists("key"), lambda cache: cache.touch("key", 60)])
async def test_what_is_owed_is_not_looked_at(url: str, call: Callable[[Cache], Any]) -> None:
    """A deletion that has failed comes first."""
    store = on_redis(url)
    async with Cache(store, on_error="raise") as cache:
        await cache.set("key", 1, 60)
        store.owe(store.pool(), [b"key"])
        assert not await call(cache)
    await store.aclose()


async def test_a_large_write_comes_first(url: str) -> None:
    """Who asks for an entry that is being written hears of the new one."""
    store = on_redis(url, codec=BYTES)
    async with Cache(store, on_error="raise") as cache:
        await cache.ping()
        writing = asyncio.ensure_future(cache.set("key", os.urandom(900_000), 60))
        await asyncio.sleep(0)
        assert store.pool().large_writes
        assert await cache.exists("key")
        await writing
    await store.aclose()


@pytest.mark.parametrize("name", CODECS)
async def test_a_condition_moves_no_value(url: str, server: Server, name: str) -> None:
    """Who stores where nothing is, or where something is, is not sent what is there."""
    async with Cache(url, codec=CODECS[name], on_error="raise") as cache:
        value = value_for(name, 2_000_000)
        await cache.set("key", value, 60)
        before = sent(server)
        assert await cache.add("key", value[:10], 60) is False
        assert await cache.set("key", value[:20], 60, only_if="present") is True
        assert sent(server) - before < 100_000
        assert await cache.get("key") == value[:20]


@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_a_key_that_is_taken_is_one_round_trip(url: str, size: int) -> None:
    """The script that does not store says what it has found: nobody asks again."""
    async with Cache(url, codec=BYTES, on_error="raise") as cache:
        await cache.set("key", os.urandom(size), 60)
        await cache.add("key", b"new", 60)
        assert await cost(cache, cache.add("key", b"new", 60)) == {"evalsha": 1, "getrange": 1}


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("local", [None, "memory://"])
async def test_what_is_as_good_as_absent(url: str, size: int, local: str | None) -> None:
    """A stale entry, one that a tag hides and one of another codec give way to one that is added."""
    async with Cache(url, local=local, namespace="own", codec=BYTES, on_error="raise") as cache:
        value = os.urandom(size)
        await cache.set("stale", value, 0.01, grace=60)
        await cache.set("hidden", value, 60, tags=["gone"])
        await cache.set("valid", value, 60, tags=["kept"])
        await cache.invalidate_tags("gone")
        async with Cache(url, namespace="own", codec=Codec("str"), on_error="raise") as other:
            await other.set("foreign", "x" * size, 60)
        await asyncio.sleep(0.02)
        assert await cache.set("hidden", b"new", 60, only_if="present") is False
        for key, wanted in {"stale": True, "hidden": True, "foreign": True, "valid": False}.items():
            assert await cache.add(key, b"new", 60) is wanted
            assert await cache.get(key) == (b"new" if wanted else value)


async def test_a_damaged_large_entry_is_there_for_who_adds(url: str) -> None:
    """Its head is sound, and no more is looked at; a load replaces it, as ever."""
    async with Cache(url, codec=BYTES, on_error="raise") as cache:
        await cache.set("key", os.urandom(10_000), 60)
        await cache.redis.command("APPEND", "key", b"x")
        assert await cache.add("key", b"new") is False
        assert await cache.get("key") is None
        assert await cache.get_or_set("key", lambda: b"new") == b"new"
        assert await cache.get("key") == b"new"


@pytest.mark.parametrize("name", CODECS)
async def test_a_list_of_keys_moves_no_values(url: str, server: Server, name: str) -> None:
    """Each key is listed, however large the values are, and none of these is sent."""
    value = value_for(name, 40_000)
    async with Cache(url, namespace="large", codec=CODECS[name], on_error="raise") as cache:
        names = {f"k{number}" for number in range(300)}
        await cache.set_many(dict.fromkeys(names, value), 60)
        before = sent(server)
        found = [key async for key in cache.keys()]  # noqa: SIM118 - a cache is no mapping
        assert set(found) == names
        assert len(found) == len(names)
        assert sent(server) - before < 1_000_000


async def test_large_entries_that_are_not_listed(url: str) -> None:
    """A stale one, and one that a tag hides: what is listed is fresh and valid, by its head alone."""
    async with Cache(url, codec=BYTES, on_error="raise") as cache:
        value = os.urandom(10_000)
        await cache.set("fresh", value, 60, tags=["kept"])
        await cache.set("stale", value, 0.01, grace=60, tags=["kept"])
        await cache.set("hidden", value, 60, tags=["kept", "gone"])
        await cache.set("many tags", value, 60, tags=[f"tag {number}" for number in range(200)])
        await cache.invalidate_tags("gone")
        await asyncio.sleep(0.02)
        assert {key async for key in cache.keys()} == {"fresh", "many tags"}  # noqa: SIM118


async def test_the_pattern_comes_first(url: str) -> None:
    """Of a thousand keys the one that matches is looked at."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set_many({f"k{number}": number for number in range(1_000)})

        async def listed() -> list[str]:
            return [key async for key in cache.keys("k[1]")]

        spent = await cost(cache, listed())
        assert await listed() == ["k1"]
        assert spent.pop("scan") >= 1
        assert spent == {"getrange": 1}


async def test_others_are_served_while_keys_are_listed(url: str) -> None:
    """A slice at a time: who reads beside it gets an answer between two of them."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set_many({f"k{number}": number for number in range(3_000)})
        answers = 0

        async def read() -> None:
            nonlocal answers
            while True:
                await cache.get("k1")
                answers += 1

        reading = asyncio.ensure_future(read())
        seen = [answers async for _ in cache.keys()]  # noqa: SIM118
        reading.cancel()
        assert len(seen) == 3_000
        assert len(set(seen)) >= 5
