"""The sandbox: a world of its own for every test."""

import asyncio
import contextvars
import gc
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest

from asynccache import Cache, LoadCancelled, LockTimeout, MemoryBackend, Policy
from asynccache.testing import FaultyBackend, TravellingClock, sandbox
from examples.custom_backend import ToyBackend

cache = Cache(ttl="5m")  # made at import, as a service's is


@cache.memoize(key="greeting:{name}")
async def greeting(name: str) -> str:
    return f"hello {name}"


async def test_a_world_is_empty_and_leaves_nothing_outside():
    """What is stored inside is not there outside, and the other way round."""
    outside = Cache()
    await outside.set("mine", 1)
    with sandbox():
        assert await outside.get("mine") is None
        await outside.set("mine", 2)
        await outside.set("theirs", 3)
    assert await outside.get("mine") == 1
    assert await outside.get("theirs") is None


async def test_worlds_nest():
    """An inner sandbox is empty again, and the outer one is as it was."""
    with sandbox() as outer:
        await cache.set("key", "outer")
        with sandbox() as inner:
            assert await cache.get("key") is None
            await cache.set("key", "inner")
            inner.travel("10m")
            assert await cache.get("key") is None
        assert await cache.get("key") == "outer"
        outer.travel("10m")
        assert await cache.get("key") is None


async def test_a_hundred_at_once():
    """Sandboxes of tasks that run at the same time, with the same keys, see nothing of each other."""

    async def one(number: int) -> list[object]:
        with sandbox() as box:
            seen = [await cache.get("key")]
            await cache.set("key", number, ttl=number + 1)
            await asyncio.sleep(0)
            seen.append(await greeting("you"))
            seen.append(await cache.get("key"))
            box.travel(number + 0.5)
            await asyncio.sleep(0)
            seen.append(await cache.get("key"))
            box.travel(1)
            seen.append(await cache.get("key"))
            seen.append(cache.stats().loads)
            return seen

    results = await asyncio.gather(*(one(number) for number in range(100)))
    assert results == [[None, "hello you", number, number, None, 1] for number in range(100)]


async def test_child_tasks_inherit_and_siblings_do_not():
    """A task begun inside lives in the world; one begun before does not."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def sibling():
        begun.set()
        await go.wait()
        return await cache.get("key")

    before = asyncio.create_task(sibling())
    await begun.wait()
    with sandbox():
        await cache.set("key", 1)
        assert await asyncio.create_task(cache.get("key")) == 1
        go.set()
        assert await before is None


async def test_whatever_it_was_configured_with():
    """Behind a cache with a remote store, or two tiers, there is an empty store in memory as well."""
    remote = FaultyBackend(ToyBackend())
    remote.fail()
    for configured in (Cache(remote), Cache(remote, local=MemoryBackend()), Cache("memory://?max_entries=1")):
        with sandbox():
            await configured.set_many({"a": 1, "b": 2}, tags=["t"])
            assert await configured.get_many(["a", "b"]) == {"a": 1, "b": 2}
            await configured.invalidate_tags("t")
            assert await configured.get_many(["a", "b"]) == {}
    assert not remote.calls


async def test_everything_obeys_the_clock(cache_sandbox):
    """Ttls, counters, locks, grace, views and memoized functions travel together."""
    view = cache.namespace("view")
    await view.set("key", 1, ttl=10)
    await cache.incr("n", ttl=10)
    await greeting("you")
    async with cache.lock("job", ttl=10):
        cache_sandbox.travel(11)
        async with cache.lock("job", ttl=10, timeout=1):
            pass
    assert await view.get("key") is None
    assert await cache.incr("n") == 1
    cache_sandbox.travel("5m")
    assert not await cache.exists("greeting:you")


async def test_a_lock_waits_on_the_clock(cache_sandbox):
    """A caller who waits for a lock gives up when the clock has travelled that far."""
    async with cache.lock("job", ttl="1h"):

        async def second():
            async with cache.lock("job", ttl="1h", timeout="10m"):
                pass

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        cache_sandbox.travel("9m")
        await asyncio.sleep(0)
        assert not waiting.done()
        cache_sandbox.travel("2m")
        with pytest.raises(LockTimeout):
            await waiting


async def test_leaving_ends_what_still_runs():
    """A load that is still under way when its world ends is cancelled, and its callers are told."""
    cancelled = asyncio.Event()

    async def endless():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with sandbox():
        waiting = asyncio.create_task(cache.get_or_set("key", endless))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(LoadCancelled):
        await waiting
    await asyncio.wait_for(cancelled.wait(), 2)


async def test_leaving_ends_a_background_refresh():
    """No refresh of a world outlives it."""
    ended = asyncio.Event()
    calls = 0

    async def load():
        nonlocal calls
        calls += 1
        if calls == 2:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    with sandbox() as box:
        policy = Policy(ttl=10, refresh_ahead=0.5)
        await cache.get_or_set("key", load, policy=policy)
        box.travel(6)
        await cache.get_or_set("key", load, policy=policy)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert calls == 2
    await asyncio.wait_for(ended.wait(), 2)


def test_leaving_without_a_loop():
    """A sandbox around several runs of event loops can be left when none runs any more."""
    with sandbox() as box:
        asyncio.run(cache.set("key", 1))
        assert asyncio.run(cache.get("key")) == 1
        box.travel("6m")
        assert asyncio.run(cache.get("key")) is None


def test_entered_and_left_in_different_contexts():
    """Frameworks that enter a fixture in one context and leave it in another leave no trace."""
    manager = sandbox()
    contextvars.copy_context().run(manager.__enter__)
    manager.__exit__(None, None, None)
    asyncio.run(cache.set("after", 1))
    assert asyncio.run(cache.get("after")) == 1
    asyncio.run(cache.delete("after"))


async def test_a_world_is_not_kept():
    """After a sandbox nothing of its values is alive."""

    class Value:
        pass

    value = Value()
    reference = weakref.ref(value)
    with sandbox():
        await cache.set("key", value)
    del value
    gc.collect()
    assert reference() is None


def test_the_fixture_in_another_project(tmp_path: Path):
    """The plugin's fixture is there without any import, also in pytest-asyncio's strict mode."""
    (tmp_path / "test_service.py").write_text(
        textwrap.dedent("""
            import pytest
            from asynccache import Cache

            cache = Cache(ttl="5m")

            @pytest.mark.asyncio
            @pytest.mark.parametrize("turn", [1, 2])
            async def test_it(cache_sandbox, turn):
                assert await cache.get("key") is None
                await cache.set("key", turn)
                cache_sandbox.travel("4m")
                assert await cache.get("key") == turn
                cache_sandbox.travel("2m")
                assert await cache.get("key") is None
        """)
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


# The clock


def test_a_clock_runs_what_falls_due_in_order():
    """Alarms run at their time and in their order, also those that an alarm sets on the way."""
    clock = TravellingClock()
    began = clock.monotonic()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, clock.monotonic() - began))
        if name == "first":
            clock.call_later(1, lambda: note("third"))

    clock.call_later(5, lambda: note("late"))
    clock.call_later(2, lambda: note("second"))
    clock.call_later(1, lambda: note("first"))
    clock.call_later(2, lambda: note("never")).cancel()
    clock.travel(3)
    assert seen == [("first", 1), ("second", 2), ("third", 2)]
    clock.travel("2s")
    assert seen[-1] == ("late", 5)
    assert clock.monotonic() - began == 5


def test_a_clock_starts_where_it_is_told():
    """Its epoch is the machine's, or what was given."""
    clock = TravellingClock(start=1_000_000.0)
    assert clock.epoch + clock.monotonic() == pytest.approx(1_000_000)
    with pytest.raises(ValueError, match="-1"):
        clock.travel(-1)
    assert "TravellingClock" in repr(clock)
