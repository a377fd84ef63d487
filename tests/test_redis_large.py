"""Large values on Redis: loaded ones are sent beside and moved to their place, and nothing is left on the way."""

import asyncio
import logging
import os
import tracemalloc
from functools import partial

import pytest
from fault_proxy import FaultProxy
from servers import Server
from stores import on_redis
from waiting import comes, turns, until

from asynccache import BackendError, Cache, Entry
from asynccache.backends.redis.reading import CHUNK
from asynccache.backends.redis.scripts import MOVE
from asynccache.backends.redis.wire import pack
from asynccache.codec import Codec

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("keys", [(), ["a secret for the signing of it"]])
async def test_a_large_value_is_not_copied_to_be_sent(url: str, keys: list[str]) -> None:
    """Neither when it is set nor when it is loaded; and what arrives is the value."""
    value = os.urandom(10_000_000)
    async with Cache(url, codec=Codec("bytes", keys=keys), on_error="raise") as cache:
        for ask in (partial(cache.set, "set", value, 60), partial(cache.get_or_set, "loaded", lambda: value, 60)):
            await cache.ping()
            tracemalloc.start()
            try:
                await ask()
                assert tracemalloc.get_traced_memory()[1] < 5_000_000
            finally:
                tracemalloc.stop()
        assert await cache.get("set") == await cache.get("loaded") == value


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
    """The server has thrown it away: nothing is stored, and the lease is given back, so that nobody waits for it."""
    store = on_redis(url, codec=BYTES)
    assert store.leases is not None
    lease = await store.leases.acquire("key", ttl=60)
    assert lease is not None
    now = store.now() + store.pool().offset
    assert await store.pool().run(b"key", MOVE, (b"key", b"key\0\0beside"), now, lease.token, "") == 0
    assert not await store.leases.renew(lease, ttl=60)
    lease = await store.leases.acquire("key", ttl=60)
    assert lease is not None
    entry = Entry(value=os.urandom(100_000), created_at=store.now())
    assert await store.leases.commit(lease, entry)
    found = await store.get("key")
    assert found is not None
    assert found.value == entry.value
    assert not await store.leases.renew(lease, ttl=60)
    await store.aclose()


async def test_a_large_load_that_the_server_refuses_is_a_failure(server: Server, url: str, proxy: FaultProxy) -> None:
    """The value could not be sent beside, as the server is full: that is told, and the lease is given back."""
    store = on_redis(f"redis://127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}", codec=BYTES)
    assert store.leases is not None
    lease = await store.leases.acquire("key", ttl=60)
    assert lease is not None
    proxy.error_replies(b"-OOM command not allowed when used memory > 'maxmemory'\r\n", only=["SET"])
    with pytest.raises(BackendError, match="OOM"):
        await store.leases.commit(lease, Entry(value=os.urandom(100_000), created_at=store.now()))
    assert await store.leases.acquire("key", ttl=60) is not None
    await store.aclose()


@pytest.mark.parametrize("size", [100, 200_000])
async def test_a_write_that_the_server_refuses_leaves_no_older_value(
    server: Server, url: str, proxy: FaultProxy, size: int
) -> None:
    """What is under the key is not what was wanted: it is deleted, also when the value is large."""
    async with Cache(f"redis://127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}", codec=BYTES) as cache:
        assert await cache.set("key", b"old", 60)
        proxy.error_replies(b"-OOM command not allowed when used memory > 'maxmemory'\r\n", only=["SET"])
        assert not await cache.set("key", os.urandom(size), 60)
        proxy.healthy()
        assert await cache.get("key") is None


async def test_a_large_write_that_was_given_up_and_lost_leaves_no_older_value(
    server: Server, url: str, proxy: FaultProxy
) -> None:
    """Its caller is gone when its connection is lost: nobody knows whether it has arrived, or will."""
    async with Cache(f"redis://127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}?timeout=10s", codec=BYTES) as cache:
        assert await cache.set("key", b"old", 60)
        assert await cache.set("another", os.urandom(100_000), 60)
        proxy.stall()
        writing = asyncio.ensure_future(cache.set("key", os.urandom(1_000_000), 60))
        await turns()
        writing.cancel()
        await asyncio.wait([writing])
        proxy.reset_all()
        proxy.healthy()

        async def gone() -> bool:
            return await cache.ping() and await cache.get("key") is None

        await until(gone, "the older value")


async def test_what_was_sent_beside_does_not_stay(server: Server, url: str, proxy: FaultProxy) -> None:
    """What nobody moved to its place, since the one who had sent it came to nothing, goes by itself."""
    store = on_redis(f"redis://127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}", codec=BYTES)
    assert store.leases is not None
    lease = await store.leases.acquire("key", ttl=60)
    assert lease is not None
    proxy.error_replies(b"-ERR no\r\n", only=["EVALSHA"])
    with pytest.raises(BackendError):
        await store.leases.commit(lease, Entry(value=os.urandom(100_000), created_at=store.now()))
    async with Cache(url) as other:
        [beside] = [key for key in await other.redis.command("KEYS", "*") if key != b"key"]
        assert await other.redis.command("STRLEN", beside) > 100_000
        assert 0 < await other.redis.command("PTTL", beside) <= 60_000
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


@pytest.mark.parametrize("put", [True, False], ids=["put before it", "taken away"])
async def test_a_lease_that_comes_or_goes_while_a_value_is_read(url: str, put: bool) -> None:
    """The parts of the value are then elsewhere: it is read whole all the same."""
    store, other = on_redis(url, codec=BYTES), on_redis(url, codec=BYTES)
    assert store.leases is not None
    value = os.urandom(300_000)
    await store.set("key", Entry(value=value, created_at=store.now()))
    lease = None if put else await store.leases.acquire("key", ttl=60)
    pool = other.pool()
    start = await pool.ask(b"key", "GETRANGE", b"key", 0, CHUNK - 1)
    if lease is None:
        assert await store.leases.acquire("key", ttl=60) is not None
    else:
        await store.leases.release(lease)
    found = await other.found(pool, pool.link(b"key"), "key", b"key", start)
    assert found is not None
    assert found.value == value
    await store.aclose()
    await other.aclose()


async def test_tags_that_are_longer_than_the_first_part(url: str) -> None:
    """A thousand long names are read with the value."""
    tags = [f"{number:04}" * 20 for number in range(1_000)]
    async with Cache(url, on_error="raise") as cache:
        await cache.set("key", "value", 60, tags=tags)
        assert await cache.get("key") == "value"
        assert await cache.get_or_set("key", lambda: "loaded") == "value"
        await cache.invalidate_tags(tags[-1])
        assert await cache.get("key") is None


async def test_large_loads_are_stored_after_a_failover(caplog: pytest.LogCaptureFixture) -> None:
    """The server becomes a replica and the address another one's: the connection beside goes there too."""
    caplog.set_level(logging.CRITICAL)
    with Server() as old, Server() as new, FaultProxy(*old.address) as proxy:
        async with Cache(f"redis://127.0.0.1:{proxy.port}", codec=BYTES) as cache:
            value = os.urandom(300_000)
            assert await cache.get_or_set("before", lambda: value, 60) == value
            assert await cache.get("before") == value
            proxy.upstream = new.address
            old.command("REPLICAOF", *new.address)
            number = 0

            async def stored() -> bool:
                nonlocal number
                number += 1
                await cache.get_or_set(f"after{number}", lambda: value, 60)
                return await cache.get(f"after{number}") == value

            async with asyncio.timeout(20):
                while not await stored():
                    await cache.ping()


async def test_of_two_large_writes_each_is_waited_for(server: Server, url: str, proxy: FaultProxy) -> None:
    """The one that was given up does not come after a deletion that was acknowledged."""
    async with Cache(f"{url.replace(f':{server.port}', f':{proxy.port}')}?timeout=10s", codec=BYTES) as cache:
        await cache.ping()
        for _ in range(3):
            proxy.bandwidth(12_000_000)
            one, two = (asyncio.ensure_future(cache.set("key", os.urandom(1_500_000), 60)) for _ in range(2))
            await asyncio.wait([one, two], return_when=asyncio.FIRST_COMPLETED)
            for task in (one, two):
                task.cancel()
            await cache.delete("key")
            assert await cache.get("key") is None
            await asyncio.sleep(0.3)
            assert await cache.get("key") is None
            proxy.bandwidth(None)


async def test_a_large_value_is_read_beside_large_writes(server: Server, url: str, proxy: FaultProxy) -> None:
    """Its chunks do not wait for a whole write each: on a narrow line it would never come in time."""
    value = os.urandom(4_000_000)
    async with Cache(f"{url.replace(f':{server.port}', f':{proxy.port}')}?timeout=2s", codec=BYTES) as cache:
        assert await cache.set("read", value, 60)

        async def write(key: str) -> None:
            while True:
                await cache.set(key, value, 60)

        proxy.bandwidth(20_000_000)
        writers = [asyncio.ensure_future(write(f"written {number}")) for number in range(3)]
        try:
            for _ in range(3):
                assert await cache.get("read") == value
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)


async def test_a_large_write_is_not_overtaken_by_a_repaid_deletion(server: Server, url: str) -> None:
    """It goes by another connection than the deletion, of which a second one may be on its way when the first has been
    answered."""
    value = os.urandom(200_000)
    async with Cache(url + "?timeout=10s", codec=BYTES, on_error="raise") as cache:
        await cache.set("key", b"old", 60)
        store = cache.redis._store
        pool = store.pool()
        gates = [pool.link(b"key").ask(pack(("BLPOP", "gate 0", 0)))]
        store.intents.add([b"key"])
        writing = asyncio.ensure_future(cache.set("key", value, 60))
        await turns()
        gates.append(pool.link(b"key").ask(pack(("BLPOP", "gate 1", 0))))
        paying = asyncio.ensure_future(pool.repayment._pay(store.intents.some()))
        await turns()
        server.command("EVAL", PUSH, 1, "gate 0", url.rpartition("/")[2])
        await gates[0]
        await asyncio.sleep(0.1)
        server.command("EVAL", PUSH, 1, "gate 1", url.rpartition("/")[2])
        await asyncio.gather(gates[1], paying)
        assert await writing
        assert await cache.get("key") == value


PUSH = "redis.call('SELECT', ARGV[1]) redis.call('RPUSH', KEYS[1], 1)"
