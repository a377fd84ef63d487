"""Very many keys at once on Redis: some at a time, each part with the time of a call; others are served between."""

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import Server
from stores import on_redis
from waiting import until

from asynccache import Cache
from asynccache.codec import Codec
from asynccache.serializers.plain import StrSerializer

pytestmark = pytest.mark.slow

NAMES = [f"{number:06}" for number in range(25_000)]


class Counting:
    """A serializer that counts what it has read."""

    name = "counting"
    number = 200
    read = 0

    def dumps(self, value: Any) -> bytes:
        return StrSerializer().dumps(value)

    def loads(self, data: bytes | memoryview) -> Any:
        self.read += 1
        return StrSerializer().loads(data)


async def test_all_are_found_and_removed(url: str) -> None:
    """However many there are, named once or twice, there or not."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set_many({name: number for number, name in enumerate(NAMES)})
        asked = [*NAMES, *NAMES[:10], "none"]
        assert await cache.get_many(asked) == {name: number for number, name in enumerate(NAMES)}
        await cache.delete(NAMES[7])
        assert await cache.delete_many(asked) == len(NAMES) - 1
        assert await cache.redis.command("DBSIZE") == 0


CALLS: dict[str, Callable[[Cache, list[str]], Any]] = {
    "get_many": lambda cache, names: cache.get_many(names),
    "delete_many": lambda cache, names: cache.delete_many(names),
}


@pytest.mark.parametrize("name", CALLS)
async def test_more_than_a_call_has_time_for(server: Server, url: str, proxy: FaultProxy, name: str) -> None:
    """A line that brings each part in time brings all of them, however long that takes together."""
    names = [each * 10 for each in NAMES]  # 60 bytes each
    async with Cache(f"{url.replace(f':{server.port}', f':{proxy.port}')}?timeout=1s", on_error="raise") as cache:
        await cache.set_many(dict.fromkeys(names, 1), 600)
        await CALLS[name](cache, ["none", "nobody"])  # the scripts are known
        proxy.bandwidth(1_300_000)
        found = await CALLS[name](cache, names)
        assert (found if type(found) is int else len(found)) == len(names)
        proxy.bandwidth(None)


async def test_the_loop_has_turns_while_many_are_read(url: str) -> None:
    """Between two thousand values at most everybody else has a turn."""
    counting = Counting()
    async with Cache(url, codec=Codec(counting), on_error="raise") as cache:
        await cache.set_many(dict.fromkeys(NAMES, "x"))
        seen = [0]

        async def look() -> None:
            while True:
                await asyncio.sleep(0)
                seen.append(counting.read)

        looking = asyncio.ensure_future(look())
        assert len(await cache.get_many(NAMES)) == len(NAMES)
        looking.cancel()
        assert seen[-1] >= len(NAMES) - 1_000
        assert max(after - before for before, after in pairwise(seen)) <= 2_000


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_was_not_removed_is_owed(
    server: Server, url: str, proxy: FaultProxy, cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the keys that were not asked for yet, when a part fails or the caller is cancelled."""
    caplog.set_level(logging.CRITICAL)
    store = on_redis(url.replace(f":{server.port}", f":{proxy.port}"))
    async with Cache(store) as cache, Cache(url, on_error="raise") as other:
        await other.set_many(dict.fromkeys(NAMES, 1))
        await cache.ping()
        proxy.stall()
        deleting = asyncio.ensure_future(cache.delete_many(NAMES))
        if cancelled:
            await asyncio.sleep(0.05)
            deleting.cancel()
        await asyncio.wait([deleting])
        assert len(store.intents) == len(NAMES)
        proxy.healthy()

        async def settled() -> bool:
            return await cache.get(NAMES[-1]) is None and len(store.intents) == 0

        await until(settled)
        assert await other.get_many(NAMES) == {}
    await store.aclose()
