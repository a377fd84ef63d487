"""The store in the process: bounded, exact about time, and quick to forget."""

import asyncio
import gc
import random
import time
import weakref

import pytest

from asynccache import Cache

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
async def test_the_bound_by_entries(sb, policy):
    """At no time more than ``max_entries``; what is over is counted as evicted, exactly."""
    async with Cache(f"memory://?max_entries=100&policy={policy}", clock=sb.clock) as cache:
        for number in range(1000):
            await cache.set(f"k{number}", number)
            assert cache.stats().entries <= 100
        assert cache.stats().entries == 100
        assert cache.stats().evictions == 900
        assert cache.stats().expirations == 0


async def test_lru_keeps_what_is_used(sb):
    """The least recently used goes first; a get is a use, a look is not."""
    async with Cache("memory://?max_entries=3&policy=lru", clock=sb.clock) as cache:
        await cache.set_many({"a": 1, "b": 2, "c": 3})
        await cache.get("a")
        await cache.exists("b")
        await cache.entry("b")
        await cache.set("d", 4)
        assert sorted([key async for key in cache.keys("*")]) == ["a", "c", "d"]


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
async def test_the_bound_by_bytes(sb, policy):
    """At no time more than ``max_bytes``."""
    async with Cache(f"memory://?max_bytes=50000&policy={policy}", clock=sb.clock) as cache:
        rng = random.Random(1)
        for number in range(500):
            await cache.set(f"k{rng.randrange(100)}", b"x" * rng.randrange(3000))
            stats = cache.stats()
            assert 0 <= stats.bytes <= 50_000
            assert number < 20 or stats.entries > 5
        await cache.clear()
        assert (cache.stats().bytes, cache.stats().entries) == (0, 0)


async def test_an_oversized_entry(sb):
    """A value over the bound is not kept, the old value under its key is gone, and the others stay."""
    async with Cache("memory://?max_bytes=20000", clock=sb.clock) as cache:
        await cache.set("other", b"y" * 100)
        await cache.set("k", b"small")
        await cache.set("k", b"x" * 40_000)
        assert await cache.get("k") is None
        assert await cache.get("other") == b"y" * 100
        assert await cache.get_or_set("big", lambda: b"z" * 40_000) == b"z" * 40_000


async def test_causes_are_counted_apart(sb, settle):
    """A replaced or deleted entry is neither evicted nor expired."""
    async with Cache("memory://?max_entries=10", clock=sb.clock) as cache:
        for number in range(5):
            await cache.set("k", number, ttl=5)
        await cache.delete("k")
        await cache.set("j", 1, ttl=5)
        await cache.clear()
        sb.travel(10)
        await settle()
        stats = cache.stats()
        assert (stats.evictions, stats.expirations) == (0, 0)


async def test_copies(sb):
    """With ``copy=true`` nobody can change what is kept: neither who stored, nor who loaded, nor who read."""
    async with Cache("memory://?copy=true", clock=sb.clock) as cache:
        given = {"list": [1]}
        await cache.set("k", given)
        given["list"].append("by the giver")
        (await cache.get("k"))["list"].append("by a reader")
        (await cache.get_many(["k"]))["k"]["list"].append("by a reader")
        (await cache.get_or_set("k", lambda: {}))["list"].append("by a hit")
        assert await cache.get("k") == {"list": [1]}
        loaded = await cache.get_or_set("l", lambda: [1])
        loaded.append("by the loader")
        assert await cache.get("l") == [1]


async def test_an_expired_value_is_never_returned(cache, sb):
    """As soon as its deadline has passed a value is gone, swept or not."""
    await cache.set("k", 1, ttl=5)
    sb.travel(4.999)
    assert await cache.get("k") == 1
    sb.travel(0.002)
    assert await cache.get("k") is None


async def test_expired_memory_is_freed(sb, settle):
    """Nobody asks, yet two seconds after its time a value is freed."""

    class Value:
        pass

    async with Cache(clock=sb.clock) as cache:
        values = [Value() for _ in range(100)]
        ghosts = [weakref.ref(value) for value in values]
        for number, value in enumerate(values):
            await cache.set(f"k{number}", value, ttl=1 + number / 5)
        del value
        values.clear()
        sb.travel(21)
        await settle(5)
        sb.travel(2)
        await settle(50)
        gc.collect()
        assert cache.stats().entries == 0
        assert cache.stats().expirations == 100
        assert [ghost() for ghost in ghosts if ghost() is not None] == []


async def test_a_deleted_value_is_freed(cache, settle):
    """Deleted, replaced and loaded values are freed at once, also while their ttl runs on."""

    class Value:
        pass

    ghosts = []

    async def load():
        value = Value()
        ghosts.append(weakref.ref(value))
        return value

    for number in range(5):
        await cache.get_or_set(f"k{number}", load, ttl="10d")
    await cache.delete("k0")
    await cache.delete_many(["k1"])
    await cache.set("k2", None)
    await cache.clear("k[34]")
    await settle()
    gc.collect()
    assert [ghost() for ghost in ghosts] == [None] * 5


@pytest.mark.parametrize("seed", range(3))
async def test_against_a_model(sb, settle, seed):
    """Thousands of random operations and leaps of time agree with a dictionary of deadlines."""
    rng = random.Random(seed)
    model: dict[str, tuple[int, float]] = {}
    now = 0.0
    async with Cache(clock=sb.clock) as cache:
        for step in range(2500):
            key = f"k{rng.randrange(40)}"
            alive = key in model and now < model[key][1]
            action = rng.randrange(8)
            if action < 2:
                ttl = rng.choice([0.09375, 0.53125, 1.03125, 7.03125, 60.03125, 3600.03125, 86_400 * 30])
                await cache.set(key, step, ttl=ttl)
                model[key] = (step, now + ttl)
            elif action == 2:
                assert await cache.delete(key) is alive
                model.pop(key, None)
            elif action == 3:
                ttl = rng.choice([1.03125, 30.03125, 900.03125])
                assert await cache.touch(key, ttl) is alive
                if alive:
                    model[key] = (model[key][0], now + ttl)
            elif action == 4:
                leap = rng.choice([0.0625, 0.25, 1, 5, 50, 2000])
                sb.travel(leap)
                now += leap
                if rng.random() < 0.5:
                    await settle(3)
            else:
                assert await cache.get(key) == (model[key][0] if alive else None)
        listed = {key async for key in cache.keys("*")}
        assert listed == {key for key, (_, deadline) in model.items() if now < deadline}


async def test_a_hundred_thousand_at_once(sb):
    """100,000 entries due together are gone within two seconds of their time, in slices that leave the loop free."""
    async with Cache("memory://?max_entries=200000", clock=sb.clock) as cache:
        await cache.set_many({f"k{number}": number for number in range(100_000)}, ttl=60)
        await cache.set("stays", 1, ttl=600)
        assert cache.stats().entries == 100_001
        sb.travel(60)
        await asyncio.sleep(0)
        sb.travel(2)
        pauses = []
        gc.disable()
        try:
            for _ in range(50_000):
                began = time.thread_time()
                await asyncio.sleep(0)
                pauses.append(time.thread_time() - began)
                if cache.stats().entries == 1:
                    break
        finally:
            gc.enable()
        stats = cache.stats()
        assert (stats.entries, stats.expirations) == (1, 100_000)
        assert max(pauses) < 0.02
        assert await cache.get("stays") == 1


async def test_churn_does_not_pile_up(sb, settle):
    """Keys set anew over and over, with long ttls, keep entries bounded and every deadline exact."""
    async with Cache(clock=sb.clock) as cache:
        for number in range(20_000):
            await cache.set(f"k{number % 10}", number, ttl=3600 + number % 7)
        assert cache.stats().entries == 10
        sb.travel(3700)
        await settle(100)
        sb.travel(30)
        await settle(100)
        assert cache.stats().entries == 0


async def test_the_wall_clock_jumps(monkeypatch):
    """The machine's wall clock an hour off, either way, moves no ttl."""
    async with Cache() as cache:
        await cache.set("k", 1, ttl=60)
        real = time.time
        for jump in (3600, -3600):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            assert await cache.get("k") == 1
            assert 59 < await cache.ttl("k") <= 60
            await cache.set("j", 2, ttl=60)
            assert 59 < await cache.ttl("j") <= 60
