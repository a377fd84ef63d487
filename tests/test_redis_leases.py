"""Leases on Redis: who waits is told, or looks again, and nothing is left of his wait."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from fault_proxy import FaultProxy
from servers import Server
from stores import on_redis
from waiting import comes, until

from asynccache import BackendError, Cache, Entry, LockTimeout
from asynccache.backend import Lease, Leases
from asynccache.backends.redis import RedisBackend
from asynccache.backends.redis import leases as module
from asynccache.backends.redis.wire import pack

LONG = 60.0
"""Seconds that no test waits."""


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisBackend]:
    """One process."""
    store = on_redis(url)
    yield store
    await store.aclose()


@pytest.fixture
async def other(url: str) -> AsyncIterator[RedisBackend]:
    """Another one."""
    store = on_redis(url)
    yield store
    await store.aclose()


def leases_of(store: RedisBackend) -> Leases:
    assert store.leases is not None
    return store.leases


async def acquired(store: RedisBackend, key: str) -> Lease:
    lease = await leases_of(store).acquire(key, ttl=LONG)
    assert lease is not None
    return lease


def waiters(store: RedisBackend) -> int:
    """How many keys somebody waits for."""
    assert store.leases is not None
    return sum(map(len, store.leases._waiters.values()))


async def waiting(store: RedisBackend, key: str) -> "asyncio.Task[None]":
    """Who waits for the key, and has looked at it."""
    await store.ping()
    link = store.pool().link(key.encode())
    task = asyncio.ensure_future(leases_of(store).wait(key, timeout=LONG))
    await comes(lambda: waiters(store))
    await comes(lambda: not link.load)
    await store.ping()  # after its answer
    return task


async def test_a_wait_leaves_no_record(store: RedisBackend, other: RedisBackend) -> None:
    """However it ends: with the lease, in time, or by a cancellation."""
    keys = [f"key{number}" for number in range(30)]
    leases = [await acquired(other, key) for key in keys]
    await store.ping()
    limits = [0.01 if number % 3 == 1 else LONG for number in range(30)]
    waits = [
        asyncio.ensure_future(leases_of(store).wait(key, timeout=limit))
        for key, limit in zip(keys, limits, strict=True)
    ]
    await comes(lambda: waiters(store) == 20, "those are left that have time")
    for task in waits[2::3]:
        task.cancel()
    for lease in leases[::3]:
        await leases_of(other).release(lease)
    done, pending = await asyncio.wait(waits, timeout=15)
    assert not pending
    assert sum(task.cancelled() for task in done) == 10
    assert waiters(store) == 0


async def test_a_wait_ends_by_the_servers_message(
    store: RedisBackend, other: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to look again to know that a lease is free: the server tells of a key that is waited for."""
    monkeypatch.setattr(module, "_MISSED_SECONDS", LONG)
    lease = await acquired(other, "key")
    task = await waiting(store, "key")
    await leases_of(other).release(lease)
    async with asyncio.timeout(15):
        await task


async def test_a_wait_ends_without_the_servers_message(store: RedisBackend, other: RedisBackend) -> None:
    """Who is not told, though he should be, looks again after a while."""
    lease = await acquired(other, "key")
    await store.ping()
    await store.pool().link(b"key").ask(pack(("CLIENT", "TRACKING", "OFF")))
    task = await waiting(store, "key")
    await leases_of(other).release(lease)
    async with asyncio.timeout(15):
        await task


async def test_a_release_that_was_refused_is_repeated(store: RedisBackend, url: str, proxy: FaultProxy) -> None:
    """The server was busy when the lease was to be given back: it is given back later, and does not have to lapse."""
    far = on_redis(f"redis://127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}")
    lease = await acquired(far, "key")
    proxy.error_replies(b"-BUSY a script\r\n", only=["EVALSHA"], times=1)
    with pytest.raises(BackendError):
        await leases_of(far).release(lease)
    await until(lambda: leases_of(store).acquire("key", ttl=LONG), "the lease")
    await far.aclose()


async def test_a_wait_ends_though_another_has_the_lease_by_then(store: RedisBackend, other: RedisBackend) -> None:
    """It was for the lease that was there when it began: what the next holder does is another matter."""
    lease = await acquired(other, "key")
    task = await waiting(store, "key")
    release = asyncio.ensure_future(leases_of(other).release(lease))
    await asyncio.gather(release, acquired(other, "key"))
    async with asyncio.timeout(15):
        await task


async def test_a_lock_that_is_held_for_long_is_nobody_elses(url: str) -> None:
    """However short the time for which somebody else wants it."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as another, one.lock("key", ttl="1h"):
        with pytest.raises(LockTimeout):
            async with another.lock("key", ttl="1s", timeout="50ms"):
                pass


def test_loops_that_have_ended_leave_no_record_of_waiters(url: str) -> None:
    """A store that is used under one loop after another knows of those who wait under the last."""
    store = on_redis(url)

    async def wait() -> None:
        lease = await acquired(store, "key")
        task = await waiting(store, "key")
        await leases_of(store).release(lease)
        async with asyncio.timeout(15):
            await task

    for _ in range(4):
        asyncio.run(wait())
    assert store.leases is not None
    assert len(store.leases._waiters) == 1
    asyncio.run(store.aclose())


@pytest.mark.parametrize("size", [100, 200_000])
async def test_a_commit_on_a_server_that_has_forgotten_its_scripts(
    store: RedisBackend, server: Server, size: int
) -> None:
    """It was started anew, or flushed, since the lease was granted: what was loaded is stored all the same."""
    value = os.urandom(size).hex()
    lease = await acquired(store, "key")
    server.command("SCRIPT", "FLUSH")
    assert await leases_of(store).commit(lease, Entry(value=value, created_at=store.now()))
    found = await store.get("key")
    assert found is not None
    assert found.value == value
