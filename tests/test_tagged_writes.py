"""Writes where tags hide what is there, or where nobody knows: on stores that several processes share."""

import asyncio
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import Server
from stores import Open
from waiting import until

from asynccache import BackendError, Cache

pytestmark = pytest.mark.slow

BUSY = b"-BUSY x\r\n"


@pytest.fixture
def through(url: str, server: Server, proxy: FaultProxy) -> str:
    """The same server by way of the proxy."""
    return url.replace(f":{server.port}", f":{proxy.port}")


async def test_one_of_several_adds_where_a_tag_hides_what_is_there(opened: Open) -> None:
    """However many there are, of one process or of two."""
    one, other = opened(), opened()
    for turn in range(30):
        key = f"key {turn}"
        await one.set(key, "old", tags=["tag"])
        await one.invalidate_tags("tag")
        added = await asyncio.gather(*[cache.add(key, number) for number, cache in enumerate((one, other) * 3)])
        assert sum(added) == 1
        assert await one.get(key) == await other.get(key) == added.index(True)


async def test_a_set_beside_an_add_is_not_undone(opened: Open) -> None:
    """It was acknowledged and read: what an add then finds is not hidden."""
    one, other = opened(), opened()
    for turn in range(30):
        key = f"key {turn}"
        await one.set(key, "old", tags=["tag"])
        await one.invalidate_tags("tag")

        async def seen(key: str = key) -> list[Any]:
            assert await other.set(key, "set")
            return [await other.get(key) for _ in range(3)]

        _, values = await asyncio.gather(one.add(key, "added"), seen())
        assert values == ["set"] * 3
        assert await other.get(key) == "set"


async def test_an_add_waits_for_a_load_of_what_is_hidden(opened: Open) -> None:
    """Whoever is first: the other finds it."""
    one, other = opened(), opened()
    await one.set("key", "old", tags=["tag"])
    await one.invalidate_tags("tag")

    async def load() -> str:
        await asyncio.sleep(0.05)
        return "loaded"

    loaded, added = await asyncio.gather(one.get_or_set("key", load), other.add("key", "added"))
    assert loaded == ("added" if added else "loaded")
    assert await one.get("key") == await other.get("key") == loaded


@pytest.mark.parametrize("write", ["add", "only if present"])
async def test_what_may_be_hidden_is_not_replaced(url: str, through: str, proxy: FaultProxy, write: str) -> None:
    """The versions of its tags cannot be had: a valid entry stays what it is."""
    async with Cache(through, ttl="1m") as cache, Cache(url, ttl="1m") as other:
        await other.set("key", "first", tags=["tag"])
        await cache.ping()
        proxy.error_replies(BUSY, only=("MGET",))
        if write == "add":
            assert await cache.add("key", "second") is False
        else:
            assert await cache.set("key", "second", only_if="present") is False
        proxy.healthy()
        assert await other.get("key") == "first"


@pytest.mark.parametrize("on_error", ["degrade", "raise"])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("away", [False, True])
async def test_a_tagged_write_that_fails_leaves_nothing_old(
    url: str, through: str, proxy: FaultProxy, on_error: Any, many: bool, away: bool
) -> None:
    """What its tags' versions are could not be asked: what is there is not what was wanted, as with any other write."""
    async with Cache(through, ttl="1m", on_error=on_error) as cache, Cache(url, ttl="1m") as other:
        await other.set_many({"key": "old", "other": "old"})
        await cache.ping()
        if away:
            proxy.refuse()
        else:
            proxy.error_replies(BUSY, only=("MGET",))
        try:
            if many:
                assert await cache.set_many({"key": "new", "other": "new"}, tags=["tag"]) is False
            else:
                assert await cache.set("key", "new", tags=["tag"]) is False
        except BackendError:
            assert on_error == "raise"
        else:
            assert on_error == "degrade"
        proxy.healthy()
        await until(lambda: _gone(other, "key"))
        assert await other.get("other") == (None if many else "old")


async def _gone(cache: Cache, key: str) -> bool:
    return await cache.get(key) is None
