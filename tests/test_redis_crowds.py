"""Thousands of callers on one loop: what the loop has no time for is no fault of the server's, and undoes nothing."""

import asyncio
import gc
import time
from collections import Counter

import pytest
from fault_proxy import FaultProxy
from servers import Server
from waiting import comes

from asynccache import Cache
from asynccache.backends.redis.link import Link

pytestmark = pytest.mark.slow


def link_of(cache: Cache) -> Link:
    return cache.redis._store.pool().link(b"")


def timers() -> int:
    """How many things the loop is to do later."""
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not timer.cancelled() for timer in scheduled)


@pytest.mark.parametrize("count", [3, 100])
async def test_a_stall_of_the_loop_is_no_silence_of_the_server(url: str, count: int) -> None:
    """A callback that holds up the loop past the timeout costs nobody his answer, and no connection."""
    async with Cache(f"{url}?timeout=200ms", on_error="raise") as cache:
        await cache.set("key", "value", 60)
        await asyncio.gather(*[cache.get("key") for _ in range(count)])
        await asyncio.sleep(0.25)  # so that the server has not been heard for as long either
        asked = [asyncio.ensure_future(cache.get("key")) for _ in range(count)]
        asyncio.get_running_loop().call_soon(time.sleep, 0.3)
        assert await asyncio.gather(*asked) == ["value"] * count
        assert link_of(cache).attempts == 1


_MOST_ROUNDS = 5


async def test_a_crowd_that_takes_longer_than_the_timeout(url: str) -> None:
    """Thousands of cold keys at once: they are loaded and stored, though the last is asked for long after the first.
    Some may fail, on a machine on which the server has no processor either: they are stored the next time."""
    loads: Counter[str] = Counter()
    keys = [f"k{number}" for number in range(6_000)]

    async def load(key: str) -> str:
        loads[key] += 1
        return key

    async with Cache(url) as cache:
        for _ in range(_MOST_ROUNDS):
            before = loads.total()
            loaded = [cache.get_or_set(key, lambda key=key: load(key), 600) for key in keys]
            assert await asyncio.gather(*loaded) == keys
            if loads.total() == before:
                break
        else:
            pytest.fail(f"never warm: {loads.total()} loads")
        for _ in range(_MOST_ROUNDS):
            await asyncio.gather(*[cache.delete(key) for key in keys])
            if not await cache.redis.command("DBSIZE"):
                break
        else:
            pytest.fail("never deleted")


async def test_a_server_that_knows_no_script_is_taught_once(url: str, server: Server) -> None:
    """Of a crowd on a server that was started anew nobody brings the scripts of the others again."""
    server.command("SCRIPT", "FLUSH")
    async with Cache(url, on_error="raise") as cache:
        server.command("CONFIG", "RESETSTAT")
        assert await asyncio.gather(*[cache.delete(f"k{number}") for number in range(3_000)]) == [False] * 3_000
        calls = server.calls()
        assert calls["SCRIPT|LOAD"] <= 11
        assert calls["EVALSHA"] <= 3_000 + 1_100  # those in the air when the first came back


async def test_a_loop_that_is_busy_in_every_turn_connects(url: str) -> None:
    """What takes many turns of the loop is not measured by the time that others take in each of them."""
    async with Cache(f"{url}?connect_timeout=200ms&timeout=5s") as cache:
        loop, busy = asyncio.get_running_loop(), True

        def turn() -> None:
            time.sleep(0.05)
            if busy:
                loop.call_soon(turn)

        turn()
        try:
            assert await cache.set("key", "value", 60) is True
        finally:
            busy = False
        assert link_of(cache).attempts == 1


async def test_a_busy_service_comes_back() -> None:
    """Thousands of tasks that ask and ask, and are refused for a while, have their answers soon after that."""
    with Server() as server:
        async with Cache(f"{server.url}?connect_timeout=100ms", ttl="1m") as cache:
            asking, hits = True, 0

            async def worker(number: int) -> None:
                nonlocal hits
                while asking:
                    await cache.get_or_set(f"k{number}", lambda: "loaded")
                    hit = await cache.get(f"k{number}") is not None
                    hits += hit
                    await asyncio.sleep(0.01)

            workers = [asyncio.ensure_future(worker(number)) for number in range(3_000)]
            await comes(lambda: hits > 3_000, "they are warm")
            server.kill()
            await comes(lambda: cache.redis._store.health.breaker != "closed", "they are refused")
            await asyncio.to_thread(server.start)
            hits = 0
            await comes(lambda: hits > 3_000, "they are warm again")
            asking = False
            await asyncio.gather(*workers)


async def test_a_reply_is_kept_by_nobody_else(url: str) -> None:
    """What has come before its deadline leaves no timer, and so no reply that waits for one."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("large", "x" * 100 + "".join(map(str, range(300_000))), 60)
        before = timers()
        for _ in range(20):
            assert await cache.get("large") is not None
            await cache.incr("counter")
        assert timers() <= before + 3


@pytest.mark.parametrize("on_error", ["degrade", "raise"])
async def test_what_is_refused_leaves_nothing_for_the_collector(server: Server, on_error: str) -> None:
    """A failure holds the frames that it has passed; none of them holds the failure."""
    with FaultProxy(*server.address) as proxy:
        async with Cache(proxy.url, on_error=on_error) as cache:  # type: ignore[arg-type]
            await cache.set("key", "value", 60)
            proxy.refuse()
            proxy.reset_all()
            calls = [
                lambda: cache.get("key"),
                lambda: cache.get_many(["key", "other"]),
                lambda: cache.set("key", 1),
                lambda: cache.set_many({"key": 1, "other": 2}),
                lambda: cache.delete("key"),
                lambda: cache.touch("key", 60),
                lambda: cache.incr("counter"),
                lambda: cache.invalidate_tags("tag"),
                lambda: cache.get_or_set("key", lambda: 1),
            ]
            for _ in range(20):
                await asyncio.gather(*[call() for call in calls], return_exceptions=True)
            gc.collect()
            gc.disable()
            try:
                for call in calls:
                    for _ in range(50):
                        try:
                            await call()
                        except Exception as error:
                            error.__traceback__ = None
                garbage = gc.collect()
            finally:
                gc.enable()
    assert garbage < 50 * len(calls), "of the attempts to connect there is some"
