"""Ways round the cache: for a context, and for the whole process."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from asynccache import Cache, ConfigError


class Counting:
    """A cache with things that count their runs."""

    def __init__(self) -> None:
        self.cache = Cache(ttl="10m")
        self.runs = 0

        @self.cache.memoize(key="f:{x}")
        async def f(x: int) -> int:
            return self.run()

        @self.cache.memoize_many(key="m:{x}")
        async def many(xs: list[int]) -> dict[int, int]:
            return dict.fromkeys(xs, self.run())

        self.f = f
        self.many = many

    def run(self) -> int:
        self.runs += 1
        return self.runs


@pytest_asyncio.fixture
async def counting() -> AsyncIterator[Counting]:
    """Counting things, closed afterwards."""
    opened = Counting()
    yield opened
    await opened.cache.aclose()


@pytest.mark.parametrize("modes", [{}, {"refresh": True, "bypass": True}, {"refresh": False, "bypass": False}])
def test_exactly_one_mode(modes: Any) -> None:
    """An override says one thing; none and both are refused."""
    with pytest.raises(ConfigError, match="refresh=True or bypass=True"):
        Cache().override(**modes)


async def test_refresh(counting: Counting) -> None:
    """Inside, every kind of load runs anew, and what it brings is what is found afterwards."""
    cache = counting.cache
    assert await counting.f(1) == await cache.get_or_set("g", counting.run) - 1 == 1
    assert await counting.many([1, 2]) == {1: 3, 2: 3}
    with cache.override(refresh=True):
        assert await counting.f(1) == 4
        assert await cache.get_or_set("g", counting.run) == 5
        assert await counting.many([1, 2]) == {1: 6, 2: 6}
        assert await cache.get_or_set_many(["m:1"], lambda keys: {"m:1": counting.run()}) == {"m:1": 7}
        assert await cache.get("f:1") == 4  # a read is a read
    assert (await counting.f(1), await cache.get("g"), await counting.many([1, 2])) == (4, 5, {1: 7, 2: 6})


async def test_bypass(counting: Counting) -> None:
    """Inside, every kind of load runs, nothing of it is kept, and what was kept stays."""
    cache = counting.cache
    assert await counting.f(1) == 1
    with cache.override(bypass=True):
        assert [await counting.f(1), await counting.f(1)] == [2, 3]
        assert await cache.get_or_set("g", counting.run) == 4
        assert await counting.many(iter([1, 2, 1])) == {1: 5, 2: 5}

        async def load_many(keys: list[str]) -> dict[str, int]:
            return {"j": counting.run(), "extra": 0}

        assert await cache.get_or_set_many(["i", "j"], load_many) == {"j": 6}
        assert await cache.get("f:1") == 1
        await cache.set("written", 1)
    assert await cache.get_many(["f:1", "g", "m:1", "i", "j", "extra", "written"]) == {"f:1": 1, "written": 1}


async def test_nested(counting: Counting) -> None:
    """The innermost override holds; at its end the outer one does again."""
    override = counting.cache.override
    assert await counting.f(1) == 1
    with override(refresh=True):
        assert await counting.f(1) == 2
        with override(bypass=True):
            assert await counting.f(1) == 3
            with override(refresh=True):
                assert await counting.f(1) == 4
            assert await counting.f(1) == 5
        assert await counting.f(1) == 6
    assert await counting.f(1) == 6


async def test_ends_with_an_error(counting: Counting) -> None:
    """An override ends however its block ends."""
    assert await counting.f(1) == 1
    for error in (KeyError, asyncio.CancelledError):
        with pytest.raises(error), counting.cache.override(bypass=True):
            raise error
    assert await counting.f(1) == 1


async def test_in_child_tasks(counting: Counting) -> None:
    """Tasks begun inside have the override, and their own tasks; tasks begun before have none; it ends with its
    block."""
    gate, ended = asyncio.Event(), asyncio.Event()
    await counting.f(1)

    async def later() -> list[int]:
        await gate.wait()
        return [await counting.f(1), await asyncio.create_task(counting.f(1))]

    async def afterwards() -> int:
        await ended.wait()
        return await counting.f(1)

    before = asyncio.create_task(later())
    await asyncio.sleep(0)
    with counting.cache.override(bypass=True):
        inside, outliving = asyncio.create_task(later()), asyncio.create_task(afterwards())
        gate.set()
        assert await before == [1, 1]
        assert await inside == [2, 3]
    ended.set()
    assert await outliving == 1


async def test_an_ended_override_stays_ended(counting: Counting) -> None:
    """A task that outlives the block that it was begun in has no override, whoever else has one by then."""
    ended = asyncio.Event()
    await counting.f(1)

    async def outliving() -> int:
        await ended.wait()
        return await counting.f(1)

    with counting.cache.override(bypass=True):
        task = asyncio.create_task(outliving())
    with counting.cache.override(refresh=True):
        ended.set()
        assert await task == 1


async def test_a_bypassed_bulk_of_nothing(counting: Counting) -> None:
    """No keys, no call of the loader, inside an override too."""
    for mode in ({"bypass": True}, {"refresh": True}):
        with counting.cache.override(**mode):
            assert await counting.many([]) == {}
            assert await counting.cache.get_or_set_many(iter(()), lambda keys: counting.run()) == {}
    assert counting.runs == 0


async def test_in_threads(counting: Counting) -> None:
    """A thread has the override when it is begun with the context, and not otherwise."""
    await counting.f(1)
    found: dict[str, int] = {}

    def run(name: str) -> None:
        found[name] = asyncio.run(counting.f(1))

    with counting.cache.override(bypass=True):
        begin_empty = contextvars.Context().run  # from Python 3.14 a thread begins with its starter's context
        thread = threading.Thread(target=begin_empty, args=(run, "thread"))
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        await asyncio.to_thread(run, "to_thread")
    assert found == {"thread": 1, "to_thread": 2}


async def test_inside_a_load(counting: Counting) -> None:
    """What a factory overrides holds for what it asks for; its own load is kept as ever."""
    cache = counting.cache
    await counting.f(1)

    async def outer() -> int:
        with cache.override(refresh=True):
            return await counting.f(1)

    assert await cache.get_or_set("outer", outer) == 2
    assert await cache.get_or_set("outer", outer) == 2
    assert await counting.f(1) == 2


async def test_reaches_what_a_load_asks_for(counting: Counting) -> None:
    """A refreshed function that calls another memoized one has that one refreshed too."""

    @counting.cache.memoize()
    async def outer() -> int:
        return await counting.f(1)

    assert await outer() == 1
    with counting.cache.override(refresh=True):
        assert await outer() == 2
    assert await counting.f(1) == 2


async def test_a_crowd_that_refreshes(counting: Counting) -> None:
    """Callers who refresh one key at once share one run, single or in bulk."""
    cache = counting.cache
    gate = asyncio.Event()

    async def load() -> int:
        number = counting.run()
        await gate.wait()
        return number

    await cache.set("k", 0)
    with cache.override(refresh=True):
        tasks = [asyncio.create_task(cache.get_or_set("k", load)) for _ in range(20)]
        for _ in range(3):
            await asyncio.sleep(0)
    assert await cache.get_or_set("k", load) == 0  # others do not wait
    gate.set()
    assert await asyncio.gather(*tasks) == [1] * 20
    assert await cache.get("k") == 1


async def test_a_bypassing_caller_joins_nobody(counting: Counting) -> None:
    """A load under way is neither joined nor disturbed by one that leaves the cache aside."""
    cache = counting.cache
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "shared"

    shared = asyncio.create_task(cache.get_or_set("k", slow))
    await asyncio.sleep(0)
    with cache.override(bypass=True):
        assert await cache.get_or_set("k", lambda load: (load.key, load.stale)) == ("k", None)
    gate.set()
    assert await shared == "shared"
    assert await cache.get("k") == "shared"


async def test_a_bypassing_failure(counting: Counting) -> None:
    """The factory's error comes out as it is, stale value or not."""

    async def fail() -> None:
        raise LookupError("row")

    await counting.cache.set("k", 1, ttl=0.001, grace=60)
    with counting.cache.override(bypass=True):
        with pytest.raises(LookupError, match="row"):
            await counting.cache.get_or_set("k", fail)
        with pytest.raises(LookupError, match="row"):
            await counting.cache.get_or_set_many(["k"], lambda keys: fail())


DISABLED = """
import asyncio, math
from asynccache import Cache
cache = Cache(ttl="10m")
view = cache.namespace("v")
runs = 0
def run(*_):
    global runs
    runs += 1
    return runs
@cache.memoize(tags=["t{x}"])
async def f(x): return run()
@cache.memoize_many(key="m:{x}")
async def many(xs): return {x: run() for x in xs}
async def main():
    for c in (cache, view):
        assert await c.set("k", 1) is False
        assert await c.set("k", 1, ttl=5, grace=5, tags=["t"]) is False
        assert await c.add("k", 1) is False
        assert await c.set("k", 1, only_if="present") is False
        assert await c.set_many({"k": 1, "l": 2}) is False
        assert await c.get("k") is None and await c.get("k", 5) == 5
        assert await c.get_many(["k", "l"]) == {}
        assert await c.exists("k") is False and await c.ttl("k") is None and await c.entry("k") is None
        assert await c.touch("k", 5) is False
        assert await c.incr("n") == 0 and await c.decr("n", 5, ttl=5) == 0 and await c.get("n") is None
        assert await c.delete("k") is False and await c.delete_many(["k", "l"]) == 0
        assert [key async for key in c.keys()] == [] and await c.clear() == 0
        await c.invalidate_tags("t")
        before = runs
        assert await c.get_or_set("k", run) == before + 1 and await c.get_or_set("k", lambda load: run()) == before + 2
        assert await c.get_or_set_many(["a", "b"], lambda keys: {key: run() for key in keys}) \\
            == {"a": before + 3, "b": before + 4}
        assert await c.ping() is True
        assert await c.get("k") is None
        async with c.lock("k", ttl=60):
            try:
                async with c.lock("k", ttl=60, timeout=0.01):
                    raise AssertionError
            except TimeoutError:
                pass
    before = runs
    assert await asyncio.gather(f(1), f(1)) == [before + 1, before + 2]
    assert await f.refresh(1) == before + 3 and await f.bypass(1) == before + 4
    assert await f.set(9, 1) is False and await f.invalidate(1) is False and await f(1) == before + 5
    assert await many([1, 2]) == {1: before + 6, 2: before + 7} and await many([1]) == {1: before + 8}
    assert await many.invalidate(1) == 0
    with cache.override(refresh=True):
        assert await f(1) == before + 9
    for bad in ("", "a\\0b", 5):
        try:
            await cache.get(bad)
        except ValueError:
            continue
        raise AssertionError(bad)
    stats = cache.stats()
    assert (stats.hits, stats.entries, stats.coalesced) == (0, 0, 0)
    await cache.aclose()
    print("disabled")
asyncio.run(main())
"""


@pytest.mark.parametrize("switch", ["1", "true", "ON", " yes "])
def test_the_kill_switch(switch: str) -> None:
    """With ``ASYNCCACHE_DISABLE`` set every call answers as an empty cache that keeps nothing; locks and errors work
    on."""
    environment = os.environ | {"ASYNCCACHE_DISABLE": switch}
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", DISABLED],
        env=environment, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert (run.stdout.strip(), run.stderr) == ("disabled", "")


@pytest.mark.parametrize("switch", ["0", "", "false", "no"])
def test_the_kill_switch_off(monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    """Set to no, it leaves the cache as it is."""
    monkeypatch.setenv("ASYNCCACHE_DISABLE", switch)
    counting = Counting()

    async def main() -> list[int]:
        return [await counting.f(1), await counting.f(1)]

    assert asyncio.run(main()) == [1, 1]
