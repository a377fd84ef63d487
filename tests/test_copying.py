"""A store that keeps copies: what callers share, and what cannot be copied."""

import asyncio
import logging
import threading

import pytest

from asynccache import Cache, EncodeError


async def test_every_waiter_has_a_copy_of_his_own():
    """With ``copy=true`` no two callers of one load get the same object."""
    cache = Cache("memory://?copy=true")
    gate = asyncio.Event()

    async def load():
        await gate.wait()
        return ["one"]

    callers = [asyncio.create_task(cache.get_or_set("key", load)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*callers)
    for result in results:
        result.append("mine")
    assert all(result == ["one", "mine"] for result in results)
    assert await cache.get("key") == ["one"]


async def test_waiters_of_a_bulk_load_have_copies_too():
    """A caller of one key who joined a bulk load changes nobody else's value."""
    cache = Cache("memory://?copy=true")
    gate = asyncio.Event()

    async def load(keys):
        await gate.wait()
        return {key: ["one"] for key in keys}

    bulk = asyncio.create_task(cache.get_or_set_many(["a", "b"], load))
    await asyncio.sleep(0)
    single = asyncio.create_task(cache.get_or_set("a", lambda: ["another"]))
    await asyncio.sleep(0)
    gate.set()
    (await single).append("mine")
    assert await bulk == {"a": ["one"], "b": ["one"]}


async def test_a_loaded_value_that_cannot_be_copied_is_returned(caplog):
    """It reaches all who wait, is not stored, and is reported without being shown."""
    cache = Cache("memory://?copy=true")
    lock = threading.Lock()

    async def load():
        await asyncio.sleep(0)
        return lock

    with caplog.at_level(logging.WARNING, "asynccache"):
        results = await asyncio.gather(*(cache.get_or_set("key", load) for _ in range(3)))
    assert results == [lock, lock, lock]
    assert not await cache.exists("key")
    assert cache.stats().errors == 1
    assert "could not be stored" in caplog.text
    assert repr(lock) not in caplog.text


async def test_one_that_cannot_be_copied_leaves_the_others_stored():
    """A bulk load stores every value that it can."""
    cache = Cache("memory://?copy=true")
    lock = threading.Lock()
    loaded = await cache.get_or_set_many(["a", "b", "c"], lambda keys: {"a": 1, "b": lock, "c": 3})
    assert loaded == {"a": 1, "b": lock, "c": 3}
    assert await cache.get_many(["a", "b", "c"]) == {"a": 1, "c": 3}
    assert cache.stats().errors == 1


async def test_setting_what_cannot_be_copied_raises():
    """``set`` of such a value is refused, and the key keeps what it had."""
    cache = Cache("memory://?copy=true")
    await cache.set("key", "before")
    with pytest.raises(EncodeError) as caught:
        await cache.set("key", threading.Lock())
    assert isinstance(caught.value.__cause__, TypeError)
    assert await cache.get("key") == "before"
