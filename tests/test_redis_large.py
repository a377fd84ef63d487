"""Large values on Redis: loaded ones are sent beside and moved to their place, and nothing is left on the way."""

import asyncio
import os

import pytest
from stores import on_redis
from waiting import comes

from asynccache import Cache, Entry
from asynccache.backends.redis.scripts import MOVE
from asynccache.codec import Codec

BYTES = Codec("bytes")


@pytest.mark.parametrize("size", [60_000, 65_535 - 24, 65_536, 200_000, 3_000_000])
@pytest.mark.parametrize("ttl", [60, None])
async def test_a_large_load_is_stored(url: str, size: int, ttl: int | None) -> None:
    """Others read it, it lives as long as it should, and the server has nothing else of it."""
    value = os.urandom(size)
    async with Cache(url, codec=BYTES, on_error="raise") as cache, Cache(url, codec=BYTES, on_error="raise") as other:
        assert await cache.get_or_set("key", lambda: value, ttl) == value
        assert await other.get("key") == value
        left = await cache.redis.command("PTTL", "key")
        assert left == -1 if ttl is None else 50_000 < left <= 60_000
        assert await cache.redis.command("DBSIZE") == 1


async def test_a_large_load_that_was_overtaken_is_not_stored(url: str) -> None:
    """Somebody has deleted the key while it was loaded: what was sent beside is deleted too."""
    async with Cache(url, codec=BYTES, on_error="raise") as cache, Cache(url, codec=BYTES, on_error="raise") as other:
        gate = asyncio.Event()

        async def load() -> bytes:
            await gate.wait()
            return os.urandom(200_000)

        loading = asyncio.ensure_future(cache.get_or_set("key", load, 60))
        await comes(lambda: cache._core.loading)
        await other.delete("key")
        gate.set()
        await loading
        assert await cache.redis.command("DBSIZE") == 0


async def test_what_was_sent_beside_may_be_gone(url: str) -> None:
    """The server has thrown it away: nothing is stored, and the lease is still held."""
    store = on_redis(url, codec=BYTES)
    assert store.leases is not None
    lease = await store.leases.acquire("key", ttl=60)
    assert lease is not None
    now = store.now() + store.pool().offset
    assert await store.pool().run(b"key", MOVE, (b"key", b"key\0\0beside"), now, lease.token, "") == 0
    assert await store.leases.renew(lease, ttl=60)
    entry = Entry(value=os.urandom(100_000), created_at=store.now())
    assert await store.leases.commit(lease, entry)
    found = await store.get("key")
    assert found is not None
    assert found.value == entry.value
    assert not await store.leases.renew(lease, ttl=60)
    await store.aclose()


async def test_a_value_is_read_from_its_parts(url: str) -> None:
    """However it was compressed, sealed or tagged."""
    for options in ({}, {"keys": ["0123456789abcdef"]}, {"compress": None}):
        codec = Codec("bytes", **options)
        async with Cache(url, codec=codec, on_error="raise") as cache:
            for number, value in enumerate((os.urandom(300_000), os.urandom(50_000) * 40, b"x" * 5_000_000)):
                for tags in ([], ["one", "two"]):
                    await cache.set(f"key{number}", value, 60, tags=tags)
                    assert await cache.get(f"key{number}") == value
                    assert await cache.get_many([f"key{number}"]) == {f"key{number}": value}
