"""Locks, closing, configuration errors: what is opened is closed, and what is wrong says so."""

import asyncio

import pytest

from asynccache import Cache, CacheClosed, ConfigError, LockTimeout, Policy

pytestmark = pytest.mark.usefixtures("quiet")


async def test_a_lock_excludes(cache, settle):
    """Of many tasks one at a time is inside, and all get their turn."""
    inside = []
    done = []

    async def work(number):
        async with cache.lock("k", ttl=60):
            inside.append(number)
            assert len(inside) == 1
            await asyncio.sleep(0)
            inside.remove(number)
        done.append(number)

    async with asyncio.timeout(5):
        await asyncio.gather(*(work(number) for number in range(20)))
    assert sorted(done) == list(range(20))


async def test_a_lock_is_no_entry(cache):
    """A lock and a value of the same key do not see each other."""
    async with cache.lock("k", ttl=60):
        assert [key async for key in cache.keys("*")] == []
        assert not await cache.exists("k")
        await cache.set("k", 1)
        await cache.get_or_set("l", lambda: 2)
        assert await cache.clear() == 2
    async with asyncio.timeout(2), cache.lock("k", ttl=60):
        pass


async def test_a_lock_per_key(cache):
    """Locks of other keys and namespaces are free."""
    async with (
        asyncio.timeout(2),
        cache.lock("a", ttl=60),
        cache.lock("b", ttl=60),
        cache.namespace("n").lock("a", ttl=60),
    ):
        pass


async def test_a_lock_that_is_not_obtained(cache, sb, settle):
    """Past its timeout the waiter gets `LockTimeout`, and the holder keeps the lock."""
    async with cache.lock("k", ttl=60):

        async def second():
            async with cache.lock("k", ttl=60, timeout="50ms"):
                pass

        task = asyncio.create_task(second())
        await settle()
        assert not task.done()
        sb.travel("60ms")
        with pytest.raises(LockTimeout):
            await asyncio.wait_for(task, 2)
    async with asyncio.timeout(2), cache.lock("k", ttl=60, timeout="50ms"):
        pass


async def test_a_lock_released_by_an_error_or_a_cancellation(cache, settle):
    """However the holder leaves, the next one enters; a cancelled waiter leaves no hole in the queue."""
    with pytest.raises(ZeroDivisionError):
        async with cache.lock("k", ttl=60):
            raise ZeroDivisionError

    async def hold():
        async with cache.lock("k", ttl=60):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(hold()) for _ in range(3)]
    await settle()
    tasks[1].cancel()
    await settle()
    tasks[0].cancel()
    await settle()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    async with asyncio.timeout(2), cache.lock("k", ttl=60):
        pass


async def test_use_after_closing(sb):
    """After ``aclose`` every call raises `CacheClosed`; closing again is fine."""
    cache = Cache(clock=sb.clock)
    await cache.set("k", 1)
    await cache.aclose()
    await cache.aclose()
    for call in (
        lambda: cache.get("k"),
        lambda: cache.get_many(["k"]),
        lambda: cache.set("k", 1),
        lambda: cache.set_many({"k": 1}),
        lambda: cache.add("k", 1),
        lambda: cache.delete("k"),
        lambda: cache.delete_many(["k"]),
        lambda: cache.exists("k"),
        lambda: cache.touch("k", 5),
        lambda: cache.ttl("k"),
        lambda: cache.incr("k"),
        lambda: cache.clear(),
        lambda: cache.invalidate_tags("t"),
        lambda: cache.entry("k"),
        lambda: cache.ping(),
        lambda: cache.get_or_set("k", lambda: 1),
        lambda: cache.get_or_set_many(["k"], lambda keys: {}),
        lambda: cache.namespace("n").get("k"),
    ):
        with pytest.raises(CacheClosed):
            await call()
    with pytest.raises(CacheClosed):
        async with cache.lock("k", ttl=5):
            pass
    with pytest.raises(CacheClosed):
        [key async for key in cache.keys("*")]


async def test_closing_ends_the_background(sb, make_source, settle, nobody_left):
    """``aclose`` ends detached loads and refreshes, and nobody complains."""
    cache = Cache(clock=sb.clock)
    refreshed, detached = make_source(), make_source(gated=True)
    await cache.get_or_set("a", refreshed.load, ttl=10, refresh_ahead=0.5)
    sb.travel(6)
    refreshed.gate.clear()
    await cache.get_or_set("a", refreshed.load, ttl=10, refresh_ahead=0.5)
    task = asyncio.create_task(cache.get_or_set("b", detached.load, hard_timeout=1))
    await settle()
    sb.travel(1.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 2)
    async with asyncio.timeout(2):
        await cache.aclose()
    await nobody_left()
    assert (refreshed.cancelled, detached.cancelled) == (1, 1)


async def test_closing_while_somebody_waits(sb, make_source, settle, nobody_left):
    """A caller who waits for a load when the cache is closed gets an answer, not a hang."""
    cache = Cache(clock=sb.clock)
    source = make_source(gated=True)
    task = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle()
    async with asyncio.timeout(2):
        await cache.aclose()
        source.gate.set()
        await asyncio.wait([task])
    assert not task.cancelled()
    task.exception()
    await nobody_left()


async def test_leaving_by_an_error_closes(sb):
    """``async with`` closes whatever happens, and lets the error through."""
    with pytest.raises(KeyError):
        async with Cache(clock=sb.clock) as cache:
            raise KeyError
    with pytest.raises(CacheClosed):
        await cache.get("k")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("memory://?max_entires=5", "max_entries"),
        ("memory://?max_entries=many", "max_entries"),
        ("memory://?max_entries=0", "max_entries"),
        ("memory://?max_entries=-1", "max_entries"),
        ("memory://?max_bytes=x", "max_bytes"),
        ("memory://?policy=lur", "lru"),
        ("memory://?copy=perhaps", "copy"),
        ("memroy://", "memory"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_a_wrong_store(url, named):
    """A wrong option is a `ConfigError` that names it, or the nearest right one."""
    with pytest.raises(ConfigError) as caught:
        Cache(url)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"on_error": "ignore"},
        {"telemetry": "maybe"},
        {"ttl": -1},
        {"ttl": "soon"},
        {"namespace": "a\0b"},
    ],
)
def test_a_wrong_option(options):
    """A wrong option of the constructor is a ``ValueError``."""
    with pytest.raises(ValueError, match=r".+"):
        Cache(**options)


def test_made_without_a_loop():
    """A cache and a memoized function are made where no loop runs, and work in the first that comes."""
    cache = Cache("memory://?max_entries=10&policy=s3fifo", ttl="10m", policy=Policy(grace="1h"), name="early")

    @cache.memoize(key="f:{x}")
    async def f(x):
        return x + 1

    async def main():
        return await f(1), await cache.get("f:1")

    assert asyncio.run(main()) == (2, 2)
