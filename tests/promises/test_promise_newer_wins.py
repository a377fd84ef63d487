"""A write that happens while a load runs is not overwritten by the load's result."""

import asyncio

import pytest

pytestmark = pytest.mark.usefixtures("quiet")


async def by_delete(cache):
    await cache.delete("k")


async def by_delete_many(cache):
    await cache.delete_many(["other", "k"])


async def by_clear(cache):
    await cache.clear()


async def by_clear_match(cache):
    await cache.clear("k*")


async def by_tag(cache):
    await cache.invalidate_tags("unrelated", "t")


REMOVALS = [by_delete, by_delete_many, by_clear, by_clear_match, by_tag]


async def by_set(cache):
    assert await cache.set("k", "v2", tags=["t"]) is True


async def by_set_many(cache):
    await cache.set_many({"other": 1, "k": "v2"})


async def by_add(cache):
    assert await cache.add("k", "v2") is True


async def by_set_absent(cache):
    assert await cache.set("k", "v2", only_if="absent") is True


WRITES = [by_set, by_set_many, by_add, by_set_absent]


@pytest.mark.parametrize("remove", REMOVALS)
async def test_removed_during_a_load(cache, make_source, settle, remove):
    """The waiters get the loaded value; nothing is stored; who comes after the removal starts a second load."""
    first, second = make_source("v1", gated=True), make_source("v2", gated=True)
    waiter = asyncio.create_task(cache.get_or_set("k", first.load, tags=["t"]))
    await settle()
    await remove(cache)
    newcomer = asyncio.create_task(cache.get_or_set("k", second.load, tags=["t"]))
    await settle()
    assert second.calls == 1
    first.gate.set()
    assert await waiter == "v1"
    await settle()
    assert await cache.get("k") is None
    assert not newcomer.done()
    second.gate.set()
    assert await newcomer == "v2"
    assert await cache.get("k") == "v2"


@pytest.mark.parametrize("remove", REMOVALS)
async def test_removed_and_nobody_came(cache, make_source, settle, nobody_left, remove):
    """Afterwards the key is a miss."""
    source = make_source("v1", gated=True)
    waiter = asyncio.create_task(cache.get_or_set("k", source.load, tags=["t"]))
    await settle()
    await remove(cache)
    source.gate.set()
    assert await waiter == "v1"
    await nobody_left()
    assert await cache.get("k") is None
    assert not await cache.exists("k")


@pytest.mark.parametrize("remove", REMOVALS)
async def test_the_old_load_lands_after_the_new_one(cache, make_source, settle, remove):
    """A load that lands late does not replace the value of the load that began after the removal."""
    old, new = make_source("old", gated=True), make_source("new")
    waiter = asyncio.create_task(cache.get_or_set("k", old.load, tags=["t"]))
    await settle()
    await remove(cache)
    assert await cache.get_or_set("k", new.load, tags=["t"]) == "new"
    old.gate.set()
    assert await waiter == "old"
    await settle()
    assert await cache.get("k") == "new"


@pytest.mark.parametrize("write", WRITES)
async def test_set_during_a_load(cache, make_source, settle, write):
    """The load's waiters get v1, readers after the write get v2 at once, and v2 stays."""
    source = make_source("v1", gated=True)
    waiter = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle()
    await write(cache)
    assert await cache.get("k") == "v2"
    assert await cache.get_or_set("k", make_source("v3").load) == "v2"
    source.gate.set()
    assert await waiter == "v1"
    await settle()
    assert await cache.get("k") == "v2"


async def test_counted_during_a_load(cache, make_source, settle):
    """A counter made while a load runs is not overwritten by it."""
    source = make_source(100, gated=True)
    waiter = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle()
    assert await cache.incr("k") == 1
    source.gate.set()
    assert await waiter == 100
    await settle()
    assert await cache.get("k") == 1


@pytest.mark.parametrize("turns", range(8))
async def test_deleted_at_any_moment(cache, make_source, settle, turns):
    """Whichever turn of the loop a delete falls in, after it no value of a load begun before it is found."""
    source = make_source("v1")
    waiter = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(turns)
    started = source.calls
    await cache.delete("k")
    assert await waiter == "v1"
    await settle()
    if started:
        assert await cache.get("k") is None


async def test_a_factory_that_writes_its_own_key(cache):
    """What the factory itself sets under its key stays; its return value goes to the callers."""

    async def load() -> str:
        await cache.set("k", "written")
        return "returned"

    assert await cache.get_or_set("k", load) == "returned"
    assert await cache.get("k") == "written"


async def test_a_tag_added_by_the_factory_counts_from_the_loads_start(cache, settle):
    """An invalidation during the load hides its result also when the factory names the tag only later."""
    gate = asyncio.Event()

    async def load(context) -> str:
        await gate.wait()
        context.add_tags("late")
        return "v1"

    waiter = asyncio.create_task(cache.get_or_set("k", load))
    await settle()
    await cache.invalidate_tags("late")
    gate.set()
    assert await waiter == "v1"
    assert await cache.get("k") is None


async def test_an_invalidation_before_the_load_hides_nothing(cache, make_source):
    """Tags invalidated in the same instant, but before the load, do not touch its value."""
    await cache.invalidate_tags("t", "late")

    async def load(context) -> str:
        context.add_tags("late")
        return "v1"

    assert await cache.get_or_set("k", load, tags=["t"]) == "v1"
    assert await cache.get("k") == "v1"


async def test_another_keys_delete_voids_nothing(cache, make_source, settle):
    """Only the key that was written loses its load."""
    source = make_source("v1", gated=True)
    waiter = asyncio.create_task(cache.get_or_set("k", source.load, tags=["t"]))
    await settle()
    await cache.delete("kk")
    await cache.clear("x*")
    await cache.invalidate_tags("tt")
    await cache.namespace("n").delete("k")
    await cache.namespace("n").clear()
    source.gate.set()
    assert await waiter == "v1"
    assert await cache.get("k") == "v1"


@pytest.mark.parametrize("remove", REMOVALS)
async def test_no_stale_value_after_a_removal(cache, sb, make_source, settle, remove):
    """A stale value that was removed while a load runs does not stand in when that load fails, then or later."""
    assert await cache.get_or_set("k", make_source("stale").load, ttl=1, grace="1h", tags=["t"]) == "stale"
    sb.travel(2)
    broken = make_source(gated=True)
    broken.error = lambda: OSError("down")
    waiter = asyncio.create_task(cache.get_or_set("k", broken.load, ttl=1, grace="1h", tags=["t"]))
    await settle()
    await remove(cache)
    broken.gate.set()
    with pytest.raises(OSError, match="down"):
        await waiter
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", broken.load, ttl=1, grace="1h", tags=["t"])


@pytest.mark.parametrize("remove", REMOVALS)
async def test_removed_during_a_refresh_ahead(cache, sb, make_source, settle, remove):
    """A refresh that was under way at the removal brings nothing back."""
    options = {"ttl": 10, "refresh_ahead": 0.5, "tags": ["t"]}
    await cache.get_or_set("k", make_source("old").load, **options)
    sb.travel(6)
    refresh = make_source("refreshed", gated=True)
    assert await cache.get_or_set("k", refresh.load, **options) == "old"
    await settle()
    assert refresh.calls == 1
    await remove(cache)
    refresh.gate.set()
    await settle()
    assert await cache.get("k") is None


async def test_set_during_a_refresh_ahead(cache, sb, make_source, settle):
    """A value set during a refresh stays."""
    options = {"ttl": 10, "refresh_ahead": 0.5}
    await cache.get_or_set("k", make_source("old").load, **options)
    sb.travel(6)
    refresh = make_source("refreshed", gated=True)
    await cache.get_or_set("k", refresh.load, **options)
    await settle()
    await cache.set("k", "v2")
    refresh.gate.set()
    await settle()
    assert await cache.get("k") == "v2"


@pytest.mark.parametrize("remove", REMOVALS)
async def test_removed_during_a_detached_load(cache, sb, make_source, settle, remove):
    """A load that went on behind a soft timeout stores nothing after a removal."""
    options = {"ttl": 1, "grace": "1h", "soft_timeout": "100ms", "tags": ["t"]}
    await cache.get_or_set("k", make_source("stale").load, **options)
    sb.travel(2)
    slow = make_source("late", gated=True)
    caller = asyncio.create_task(cache.get_or_set("k", slow.load, **options))
    await settle()
    sb.travel("200ms")
    assert await caller == "stale"
    await remove(cache)
    slow.gate.set()
    await settle()
    assert await cache.get("k") is None
    broken = make_source()
    broken.error = lambda: OSError("down")
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", broken.load, **options)


async def test_set_during_a_detached_load(cache, sb, make_source, settle):
    """A value set after a hard timeout stays, whatever the late load brings."""
    slow = make_source("late", gated=True)
    caller = asyncio.create_task(cache.get_or_set("k", slow.load, hard_timeout="100ms"))
    await settle()
    sb.travel("200ms")
    with pytest.raises(TimeoutError):
        await caller
    await cache.set("k", "v2")
    slow.gate.set()
    await settle()
    assert slow.finished == 1
    assert await cache.get("k") == "v2"


@pytest.mark.parametrize("remove", REMOVALS)
async def test_removed_during_a_bulk_load(cache, settle, remove):
    """One key removed while a bulk load runs is not stored; its callers still get all the values."""
    gate = asyncio.Event()

    async def loader(missing):
        await gate.wait()
        return {key: f"v-{key}" for key in missing}

    caller = asyncio.create_task(cache.get_or_set_many(["j", "k"], loader, tags=["t"]))
    await settle()
    await remove(cache)
    gate.set()
    assert await caller == {"j": "v-j", "k": "v-k"}
    await settle()
    assert await cache.get("k") is None
    if remove in (by_delete, by_delete_many, by_clear_match):
        assert await cache.get("j") == "v-j"
    else:
        assert await cache.get("j") is None


async def test_set_during_a_bulk_load(cache, settle):
    """A key set while a bulk load runs keeps what was set."""
    gate = asyncio.Event()

    async def loader(missing):
        await gate.wait()
        return dict.fromkeys(missing, "loaded")

    caller = asyncio.create_task(cache.get_or_set_many(["j", "k"], loader))
    await settle()
    await cache.set("k", "v2")
    gate.set()
    await caller
    assert await cache.get_many(["j", "k"]) == {"j": "loaded", "k": "v2"}
