"""Two loads of one key at once, and factories that end in strange ways."""

import asyncio

import pytest

from asynccache import CacheError

pytestmark = pytest.mark.usefixtures("quiet")


class Abort(BaseException):
    """Something that is not an ``Exception``."""


async def test_a_base_exception_does_not_hang_anybody(cache, settle, nobody_left):
    """A factory's ``BaseException`` ends the wait of every caller and frees the key."""
    gate = asyncio.Event()

    async def load() -> str:
        await gate.wait()
        raise Abort("stop")

    async def caller() -> type[BaseException]:
        try:
            await cache.get_or_set("k", load)
        except (Abort, CacheError) as error:
            return type(error)
        return type(None)

    tasks = [asyncio.create_task(caller()) for _ in range(3)]
    await settle()
    gate.set()
    async with asyncio.timeout(2):
        assert type(None) not in await asyncio.gather(*tasks)
    await nobody_left()
    assert await cache.get_or_set("k", lambda: 1) == 1


@pytest.mark.parametrize("order", ["old lands first", "new lands first"])
@pytest.mark.parametrize("outcome", ["returns", "raises"])
async def test_two_generations_at_once(cache, settle, nobody_left, order, outcome):
    """A deserted load that swallows its cancellation neither stores nor disturbs the load that came after it."""
    old_gate, new_gate = asyncio.Event(), asyncio.Event()

    async def old() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await old_gate.wait()
        if outcome == "raises":
            raise OSError("old")
        return "old"

    async def new() -> str:
        await new_gate.wait()
        return "new"

    deserter = asyncio.create_task(cache.get_or_set("k", old))
    await settle()
    deserter.cancel()
    await settle()
    assert deserter.cancelled()
    waiter = asyncio.create_task(cache.get_or_set("k", new))
    await settle()
    if order == "old lands first":
        old_gate.set()
        await settle()
        assert await cache.get("k") is None
        assert not waiter.done()
        joiner = asyncio.create_task(cache.get_or_set("k", lambda: "third"))
        await settle()
        new_gate.set()
        assert await joiner == "new"
        assert await waiter == "new"
    else:
        new_gate.set()
        assert await waiter == "new"
        old_gate.set()
    await nobody_left()
    assert await cache.get("k") == "new"


async def test_a_deserted_load_that_swallows_its_cancellation_stores_nothing(cache, settle, nobody_left):
    """What lands after everybody left is not stored, though the factory went on."""

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "late"

    task = asyncio.create_task(cache.get_or_set("k", stubborn))
    await settle(5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await nobody_left()
    assert await cache.get("k") is None
