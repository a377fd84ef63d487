"""The short way to Redis: the usual reads and writes are one command, and mean what the long way means."""

import asyncio
import logging
import math
from collections import Counter
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import Server

from asynccache import Cache, CacheError
from asynccache.codec import Codec
from asynccache.entry import Entry

KEYS = ["key", "schlüssel", "k" * 1_000]


async def commands(cache: Cache) -> Counter[str]:
    """How often the server has run each command, those of scripts included."""
    text = (await cache.redis.command("INFO", "commandstats")).decode()
    lines = [line.split(":", 1) for line in text.splitlines() if line.startswith("cmdstat_")]
    return Counter({name[8:]: int(rest.partition("calls=")[2].split(",")[0]) for name, rest in lines})


async def cost(cache: Cache, call: Any) -> dict[str, int]:
    """The commands that a call takes, and what it leaves to be done."""
    before = await commands(cache)
    await call
    await cache.ping()  # leaves after everything that the call has sent
    spent = await commands(cache) - before
    return {name: count for name, count in spent.items() if name not in ("info", "ping")}


async def test_a_hit_is_one_command(url: str) -> None:
    """However the value is asked for; and none of them begins a task."""
    async with Cache(url, on_error="raise") as cache:

        @cache.memoize(key="key")
        async def load() -> str:
            return "another"

        await cache.set("key", "value", 60)
        tasks = len(asyncio.all_tasks())
        for call in (cache.get("key"), cache.get_or_set("key", load), load()):
            assert await cost(cache, call) == {"getrange": 1}
        assert (await cache.get("key"), await load()) == ("value", "value")
        assert len(asyncio.all_tasks()) == tasks
        assert cache.stats().hits == 5
        assert cache.stats().loads == 0


async def test_a_write_is_one_command(url: str) -> None:
    """The value, and how long the server keeps it."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("first", 1)
        assert await cost(cache, cache.set("key", "value", 60)) == {"set": 1}
        assert 59_000 < await cache.redis.command("PTTL", "key") <= 60_000
        await cache.set("key", "value", None)
        assert await cache.redis.command("PTTL", "key") == -1


async def test_a_load_asks_once_whether_there_is_a_value(url: str) -> None:
    """A miss is a look, a lease, a look under the lease, and what stores the value and gives the lease back."""
    async with Cache(url, on_error="raise") as cache:
        await cache.get_or_set("first", lambda: 1, 60)
        spent = await cost(cache, cache.get_or_set("key", lambda: "value", 60))
        assert spent["evalsha"] == 2
        assert spent["getrange"] == 2 + 2  # two of them in the scripts
        assert "script|load" not in spent


async def test_a_crowd_shares_the_look(url: str) -> None:
    """Of a thousand that want one key, two ask the server; when there is nothing, one loads."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("warm", "value", 60)
        loads = 0

        async def load() -> str:
            nonlocal loads
            loads += 1
            return "loaded"

        async def crowd(key: str) -> set[str]:
            return set(await asyncio.gather(*[cache.get_or_set(key, load, 60) for _ in range(1_000)]))

        assert await crowd("warm") == {"value"}
        spent = await cost(cache, crowd("warm"))
        assert spent["getrange"] <= 2
        assert await crowd("cold") == {"loaded"}
        assert loads == 1


@pytest.mark.parametrize("value", [None, "", "value", 1.5, "x" * 5_000, [{"a": (1, 2)}], "x" * 200_000])
async def test_both_ways_store_the_same(url: str, value: Any) -> None:
    """What was written by the short way is read by the long one, and the other way round."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("first", 1)
        await cache.set("short", value, 60)
        await cache.set("long", value, 60, tags=["tag"])
        short, long = await cache.entry("short"), await cache.entry("long")
        assert short is not None
        assert long is not None
        assert short.value == long.value == value
        assert short.fresh_until - short.created_at == pytest.approx(60, abs=0.01)
        assert short.expires_at == pytest.approx(short.fresh_until, abs=0.01)
        assert await cache.get("short", "none") == await cache.get("long", "none") == value


@pytest.mark.parametrize("options", [{}, {"compress": None}, {"keys": ["0123456789abcdef"]}, {"compress": 0}])
@pytest.mark.parametrize("key", KEYS)
def test_a_fresh_entry_is_encoded_as_any_other(key: str, options: dict[str, Any]) -> None:
    """The codec's short way writes what its long one does."""
    codec = Codec(**options)
    now = 1_900_000_000.123
    for value in ("", "value", None, {"a": [1, 2.5]}, (1, 2), "x" * 3_000):
        for ttl in (None, 0.0001, 0.5, 60, 1e9, 1e12):
            until = math.inf if ttl is None else now + ttl
            entry = Entry(value=value, created_at=now, fresh_until=until, expires_at=until)
            mine, usual = codec.encode_fresh(key.encode(), value, now, ttl), codec.encode(key, entry)
            for one, other in zip(_decoded(codec, key, mine), _decoded(codec, key, usual), strict=True):
                assert one == other or one == pytest.approx(other, abs=0.002)


def _decoded(codec: Codec, key: str, data: bytes) -> tuple[Any, ...]:
    entry = codec.decode(key, data)
    return entry.value, entry.created_at, entry.fresh_until, entry.expires_at, dict(entry.tags)


class Picky:
    """A serializer that has come to refuse what it has written."""

    name, number = "picky", 200

    def __init__(self) -> None:
        self.error: type[Exception] | None = None

    def dumps(self, value: Any) -> bytes:
        if self.error:
            raise self.error
        return str(value).encode()

    def loads(self, data: bytes | memoryview) -> Any:
        if self.error:
            raise self.error
        return str(bytes(data), "utf-8")


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError, KeyError])
async def test_a_serializer_that_fails_makes_misses(
    url: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """What it raises is hidden from callers, by whatever call it comes: a miss, or nothing that is stored."""
    caplog.set_level(logging.CRITICAL)
    picky = Picky()
    async with Cache(url, codec=picky) as cache:
        await cache.set("key", "value", 60)
        assert await cache.get("key") == "value"
        picky.error = error
        assert await cache.get("key", "absent") == "absent"
        assert await cache.set("key", "other", 60) is False
        assert await cache.get_or_set("key", lambda: "loaded", 60) == "loaded"
        assert cache.stats().errors >= 3
    async with Cache(url, codec=picky, on_error="raise") as cache:
        await cache.ping()
        for call in (cache.get("key"), cache.set("key", 1), cache.get_or_set("key", lambda: 1)):
            with pytest.raises(CacheError):
                await call


async def test_closing_while_it_looks_is_no_failure(
    server: Server, url: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for an answer when the cache is closed is told that, and nothing is logged or counted."""
    for call in ("get", "set", "get_or_set"):
        cache = Cache(url.replace(f":{server.port}", f":{proxy.port}"))
        await cache.set("key", 1, 60)
        proxy.black_hole()
        waiting = asyncio.ensure_future(
            {"get": cache.get, "set": cache.set, "get_or_set": cache.get_or_set}[call](
                "key", *{"get": (), "set": (2,), "get_or_set": (lambda: 2,)}[call]
            )
        )
        await asyncio.sleep(0.05)
        await cache.aclose()
        with pytest.raises(CacheError):
            await waiting
        assert cache.stats().errors == 0
        proxy.healthy()
    assert not caplog.records
