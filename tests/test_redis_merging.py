"""Reads of one turn of the loop as one command, where the user asks for that."""

import asyncio
import os

import pytest
from fault_proxy import FaultProxy
from servers import Server
from test_redis_shortcut import cost

from asynccache import BackendError, Cache, ConfigError
from asynccache.codec import Codec

MERGED = "merge_reads=true"


@pytest.mark.parametrize("local", [None, "memory://"])
async def test_what_is_read_together_is_one_command(url: str, local: str | None) -> None:
    """Each gets his own value; who asks for what is not there gets nothing."""
    async with Cache(f"{url}?{MERGED}", local=local, on_error="raise") as cache, Cache(url) as other:
        await other.set_many({f"k{number}": number for number in range(300)}, 60)
        await cache.ping()
        found: list[object] = []

        async def crowd() -> None:
            found.extend(await asyncio.gather(*[cache.get(f"k{number}") for number in range(310)]))

        assert (await cost(cache, crowd()))["mget"] == 3  # of at most 128 keys each
        assert found == [*range(300), *[None] * 10]
        assert await asyncio.gather(*[cache.get_or_set(f"k{number}", lambda: "loaded", 60) for number in (0, 999)]) == [
            0,
            "loaded",
        ]


async def test_large_and_strange_values_among_small_ones(url: str) -> None:
    """What is large comes as it is; a key of another type is absent."""
    large = os.urandom(300_000)
    async with Cache(f"{url}?{MERGED}", codec=Codec("bytes"), on_error="raise") as cache:
        await cache.set("large", large, 60)
        await cache.set("chunk", large[: 65_536 - 24], 60)
        await cache.set("small", b"value", 60)
        await cache.redis.command("RPUSH", "list", "one")
        keys = ("large", "small", "list", "chunk")
        found = await asyncio.gather(*map(cache.get, keys))
        assert found == [large, b"value", None, large[: 65_536 - 24]]


async def test_who_is_cancelled_takes_nobody_along(url: str) -> None:
    """The others of the turn get their values."""
    async with Cache(f"{url}?{MERGED}", on_error="raise") as cache:
        await cache.set_many({f"k{number}": number for number in range(30)}, 60)
        for turns in range(4):
            tasks = [asyncio.ensure_future(cache.get(f"k{number}")) for number in range(30)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            await asyncio.wait(tasks)
            assert [task.result() for task in tasks if not task.cancelled()] == [n for n in range(30) if n % 3]


async def test_a_failure_is_each_ones_own(server: Server, url: str, proxy: FaultProxy) -> None:
    """All of a turn are told, each by an exception of his own, and later ones are served again."""
    through = url.replace(f":{server.port}", f":{proxy.port}")
    async with Cache(f"{through}?{MERGED}", on_error="raise") as cache:
        await cache.set("key", "value", 60)
        proxy.reset_at("MGET")
        failures = await asyncio.gather(*[cache.get("key") for _ in range(10)], return_exceptions=True)
        assert all(isinstance(each, BackendError) for each in failures)
        assert len(set(map(id, failures))) == 10
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await cache.get("key") == "value"
                    break
                except BackendError:
                    await asyncio.sleep(0.02)


def test_a_cluster_has_nothing_to_merge() -> None:
    """Its keys are on several servers: this is said at once."""
    with pytest.raises(ConfigError, match="cannot be merged"):
        Cache(f"redis+cluster://localhost?{MERGED}")
