"""What a Redis cache does on uvloop, whose transports are not asyncio's: the main ways, and what is hard on them."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import uvloop
from fault_proxy import FaultProxy
from servers import Server
from waiting import comes, until

from asynccache import Cache
from asynccache.codec import Codec

pytestmark = pytest.mark.slow

Scene = Callable[[str, Server], Awaitable[None]]


async def one_load_for_many_callers(url: str, server: Server) -> None:
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.05)
        return "value"

    async with Cache(url, on_error="raise") as cache, Cache(url, on_error="raise") as other:
        calls = [each.get_or_set("key", load, 60) for each in (cache, other) for _ in range(500)]
        assert await asyncio.gather(*calls) == ["value"] * 1_000
        assert loads == 1
        await cache.set_many({f"k{number}": number for number in range(1_000)}, 60)
        assert await asyncio.gather(*[other.get(f"k{number}") for number in range(1_000)]) == [*range(1_000)]


async def copies_of_a_local_store(url: str, server: Server) -> None:
    async with Cache(url, local="memory://", on_error="raise") as cache, Cache(url, on_error="raise") as other:
        for turn in range(20):
            await other.set("key", turn, 60)
            await until(partial(_is, cache, "key", turn))
            assert await cache.get("key") == turn


async def large_values(url: str, server: Server) -> None:
    values = {f"key{number}": os.urandom(3_000_000) for number in range(3)}
    async with Cache(url + "?timeout=10s", codec=Codec("bytes"), on_error="raise") as cache:
        await cache.set_many(values, 60)
        assert await cache.get_many(list(values)) == values
        assert await cache.get_many(list(values)) == values
        reading = [asyncio.ensure_future(cache.get(key)) for key in values]
        await asyncio.sleep(0)
        reading[0].cancel()
        assert await asyncio.gather(*reading[1:]) == list(values.values())[1:]


async def a_server_that_goes_and_comes_back(url: str, server: Server) -> None:
    with FaultProxy(*server.address) as proxy:
        through = url.replace(f":{server.port}", f":{proxy.port}")
        async with Cache(through, ttl=60) as cache:
            assert await cache.set("key", "old")
            proxy.black_hole()
            assert await cache.get("key") is None
            assert await cache.get_or_set("key", lambda: "loaded") == "loaded"
            assert not await cache.delete("key")
            proxy.healthy()
            await until(cache.ping)
            assert await cache.get("key") is None
            assert await cache.set("key", "new")
            for _ in range(5):
                proxy.reset_all()
                await until(partial(_is, cache, "key", "new"))


async def callers_that_are_cancelled(url: str, server: Server) -> None:
    async with Cache(url, on_error="raise") as cache:
        await cache.set("key", "value", 60)
        for turns in range(8):
            calls = [asyncio.ensure_future(cache.get("key")) for _ in range(100)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[1::2] == ["value"] * 50
        async with cache.lock("lock", ttl=60) as fence:
            assert fence is not None
        await comes(lambda: not len(cache._core.loader.flights.background))


async def _is(cache: Cache, key: str, value: Any) -> bool:
    return bool(await cache.get(key) == value)


@pytest.mark.parametrize(
    "scene",
    [
        one_load_for_many_callers,
        copies_of_a_local_store,
        large_values,
        a_server_that_goes_and_comes_back,
        callers_that_are_cancelled,
    ],
)
def test_on_uvloop(scene: Scene, url: str, server: Server) -> None:
    """As on asyncio's own loop, and nothing is left when it closes."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop, debug=True) as runner:
        runner.run(scene(url, server))
