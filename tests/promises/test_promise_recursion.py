"""A factory that waits for the key that it is loading gets an error, not a hang."""

import asyncio

import pytest

from asynccache import Cache, RecursiveLoad

pytestmark = pytest.mark.usefixtures("quiet")


async def test_directly(cache, nobody_left):
    """A factory that asks for its own key gets `RecursiveLoad`, and so does its caller."""

    async def load() -> str:
        return await cache.get_or_set("k", load)

    async with asyncio.timeout(2):
        with pytest.raises(RecursiveLoad):
            await cache.get_or_set("k", load)
    await nobody_left()
    assert await cache.get_or_set("k", lambda: 1) == 1


async def test_the_error_can_be_caught_inside(cache):
    """A factory may catch the error and go on."""

    async def load() -> str:
        try:
            await cache.get_or_set("k", load)
        except RecursiveLoad:
            return "caught"
        return "hm"

    async with asyncio.timeout(2):
        assert await cache.get_or_set("k", load) == "caught"


async def test_through_other_keys(cache, nobody_left):
    """A asks B, B asks C, C asks A: an error for all three."""

    async def load_a() -> str:
        return await cache.get_or_set("b", load_b)

    async def load_b() -> str:
        return await cache.get_or_set("c", load_c)

    async def load_c() -> str:
        return await cache.get_or_set("a", load_a)

    async with asyncio.timeout(2):
        with pytest.raises(RecursiveLoad):
            await cache.get_or_set("a", load_a)
    await nobody_left()


@pytest.mark.parametrize("nesting", ["task", "gather", "group", "deep"])
async def test_through_nested_tasks(cache, nobody_left, nesting):
    """Asking in a child task of the factory is asking too."""

    async def ask() -> str:
        await asyncio.sleep(0)
        return await cache.get_or_set("k", load)

    async def load() -> str:
        if nesting == "task":
            return await asyncio.create_task(ask())
        if nesting == "gather":
            return (await asyncio.gather(asyncio.sleep(0), ask()))[1]
        if nesting == "group":
            try:
                async with asyncio.TaskGroup() as group:
                    return await group.create_task(ask())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return await asyncio.create_task(asyncio.wait_for(ask(), 1))

    async with asyncio.timeout(2):
        with pytest.raises(RecursiveLoad):
            await cache.get_or_set("k", load)
    await nobody_left()


async def test_two_tasks_that_wait_for_each_other(cache, settle, nobody_left):
    """A's load asks for B while B's load, of another task, asks for A: an error, not a hang."""
    gate = asyncio.Event()

    async def load_a() -> str:
        await gate.wait()
        return "a" + await cache.get_or_set("b", load_b)

    async def load_b() -> str:
        await gate.wait()
        return "b" + await cache.get_or_set("a", load_a)

    tasks = [
        asyncio.create_task(cache.get_or_set("a", load_a)),
        asyncio.create_task(cache.get_or_set("b", load_b)),
    ]
    await settle()
    gate.set()
    async with asyncio.timeout(2):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(outcome, RecursiveLoad) for outcome in outcomes)
    await nobody_left()
    assert await cache.get_or_set("a", lambda: 1) == 1


async def test_three_tasks_that_wait_in_a_ring_through_children(cache, settle, nobody_left):
    """The ring is found also when each load asks in a gathered child task."""
    gate = asyncio.Event()
    ring = {"a": "b", "b": "c", "c": "a"}

    def loader(key):
        async def load() -> str:
            await gate.wait()
            (inner,) = await asyncio.gather(cache.get_or_set(ring[key], loader(ring[key])))
            return key + inner

        return load

    tasks = [asyncio.create_task(cache.get_or_set(key, loader(key))) for key in ring]
    await settle()
    gate.set()
    async with asyncio.timeout(2):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(outcome, RecursiveLoad) for outcome in outcomes)
    await nobody_left()


async def test_a_ring_survived_by_the_one_who_catches(cache, settle):
    """Who catches the error breaks the ring; the other one gets its value."""
    gate = asyncio.Event()

    async def load_a() -> str:
        await gate.wait()
        try:
            return "a+" + await cache.get_or_set("b", load_b)
        except RecursiveLoad:
            return "a"

    async def load_b() -> str:
        await gate.wait()
        try:
            return "b+" + await cache.get_or_set("a", load_a)
        except RecursiveLoad:
            return "b"

    tasks = [
        asyncio.create_task(cache.get_or_set("a", load_a)),
        asyncio.create_task(cache.get_or_set("b", load_b)),
    ]
    await settle()
    gate.set()
    async with asyncio.timeout(2):
        assert sorted(await asyncio.gather(*tasks)) in (["a", "b+a"], ["a+b", "b"])


async def test_in_bulk(cache):
    """A bulk loader that asks for one of its keys gets the error."""

    async def loader(missing):
        return {key: await cache.get_or_set("b", lambda: 1) for key in missing}

    async with asyncio.timeout(2):
        with pytest.raises(RecursiveLoad):
            await cache.get_or_set_many(["a", "b"], loader)


async def test_through_a_memoized_function(cache):
    """A memoized function that calls itself with the same arguments gets the error; with others it works."""

    @cache.memoize(key="fib:{n}")
    async def fib(n: int) -> int:
        return n if n < 2 else await fib(n - 1) + await fib(n - 2)

    @cache.memoize(key="loop:{n}")
    async def loop(n: int) -> int:
        return await loop(n)

    async with asyncio.timeout(2):
        assert await fib(20) == 6765
        with pytest.raises(RecursiveLoad):
            await loop(1)


async def test_through_another_cache(cache, sb):
    """A ring through two caches is a ring."""
    async with Cache(clock=sb.clock, name="other", namespace="other") as other:

        async def load_here() -> str:
            return await other.get_or_set("x", load_there)

        async def load_there() -> str:
            return await cache.get_or_set("k", load_here)

        async with asyncio.timeout(2):
            with pytest.raises(RecursiveLoad):
                await cache.get_or_set("k", load_here)


async def test_the_same_key_elsewhere_is_another_key(cache, sb):
    """The same name in another namespace or another cache is no recursion."""
    async with Cache(clock=sb.clock, name="other", namespace="other") as other:

        async def load() -> str:
            inner = await cache.namespace("n").get_or_set("k", lambda: "view")
            return inner + await other.get_or_set("k", lambda: "-other")

        async with asyncio.timeout(2):
            assert await cache.get_or_set("k", load) == "view-other"


async def test_a_diamond_is_no_ring(cache, make_source):
    """A asks B and C at once, which both ask D: fine, and D is loaded once."""
    bottom = make_source("d")

    async def side() -> str:
        await asyncio.sleep(0)
        return await cache.get_or_set("d", bottom.load)

    async def top() -> list[str]:
        return await asyncio.gather(cache.get_or_set("b", side), cache.get_or_set("c", side))

    async with asyncio.timeout(2):
        assert await cache.get_or_set("a", top) == ["d", "d"]
    assert bottom.calls == 1


async def test_reading_and_writing_ones_own_key_is_no_recursion(cache):
    """``get``, ``set``, ``delete`` and ``exists`` of the key being loaded do not wait for the load."""

    async def load() -> str:
        assert await cache.get("k") is None
        assert not await cache.exists("k")
        await cache.set("k", 1)
        await cache.delete("k")
        return "fine"

    async with asyncio.timeout(2):
        assert await cache.get_or_set("k", load) == "fine"


async def test_a_child_that_outlives_the_load_may_ask_for_its_key(cache, settle):
    """A task spawned by a factory asks for the key after the load is over: a hit or a new load, no error."""
    children: list[asyncio.Task[str]] = []
    gate = asyncio.Event()

    async def later() -> str:
        await gate.wait()
        return await cache.get_or_set("k", lambda: "second")

    async def load() -> str:
        children.append(asyncio.create_task(later()))
        return "first"

    assert await cache.get_or_set("k", load) == "first"
    await cache.delete("k")
    await settle()
    gate.set()
    async with asyncio.timeout(2):
        assert await children[0] == "second"


async def test_joining_a_strangers_load_is_no_ring(cache, settle):
    """A load that waits for a load begun by another task, which waits for nobody, is fine."""
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "b"

    async def load_a() -> str:
        return "a" + await cache.get_or_set("b", slow)

    b = asyncio.create_task(cache.get_or_set("b", slow))
    await settle()
    a = asyncio.create_task(cache.get_or_set("a", load_a))
    await settle()
    gate.set()
    async with asyncio.timeout(2):
        assert await a == "ab"
        assert await b == "b"
