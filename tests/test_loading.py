"""Loads store what they should, give everybody what is his, and count what happened: single, bulk and unshared."""

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from waiting import turns

from asynccache import Cache, CacheError, InvalidKeyError, Load, LoadCancelled, LoadTimeout, Policy, RecursiveLoad
from asynccache.load import wants_load
from asynccache.testing import TravellingClock


@pytest_asyncio.fixture
async def cache(clock: TravellingClock) -> AsyncIterator[Cache]:
    """A cache that is closed afterwards."""
    async with Cache(ttl="10m", clock=clock) as opened:
        yield opened


class Bulk:
    """A loader of many that counts what it is asked for, can be held, and can be told to fail."""

    def __init__(self, *, held: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.fail = False
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def load(self, keys: list[str]) -> dict[str, str]:
        self.asked.append(keys)
        await self.gate.wait()
        if self.fail:
            raise OSError("down")
        return {key: f"{key}{len(self.asked)}" for key in keys}


class TestBulk:
    """What a single load does, a bulk load does for each of its keys."""

    async def test_throttled(self, cache: Cache, clock: TravellingClock) -> None:
        """After a failure that stale values stood in for, the source is left alone for ``grace_throttle``."""
        bulk = Bulk()
        options: Any = {"ttl": 1, "grace": "1h", "grace_throttle": 10}
        await cache.get_or_set_many(["a", "b"], bulk.load, **options)
        clock.travel(2)
        bulk.fail = True
        for _ in range(3):
            assert await cache.get_or_set_many(["a", "b"], bulk.load, **options) == {"a": "a1", "b": "b1"}
        assert len(bulk.asked) == 2
        clock.travel(11)
        bulk.fail = False
        assert await cache.get_or_set_many(["a", "b"], bulk.load, **options) == {"a": "a3", "b": "b3"}
        assert cache.stats().stale_hits == 6

    async def test_some_stale_and_some_absent(self, cache: Cache, clock: TravellingClock) -> None:
        """When a bulk load fails, its error is raised if one of the keys has nothing that could stand in."""
        bulk = Bulk()
        await cache.get_or_set_many(["a"], bulk.load, ttl=1, grace="1h")
        clock.travel(2)
        bulk.fail = True
        with pytest.raises(OSError, match="down"):
            await cache.get_or_set_many(["a", "b"], bulk.load, ttl=1, grace="1h")

    async def test_refresh_ahead(self, cache: Cache, clock: TravellingClock) -> None:
        """Values past their refresh point are returned at once, and refreshed together behind, once."""
        bulk = Bulk()
        options: Any = {"ttl": 10, "refresh_ahead": 0.5}
        await cache.get_or_set_many(["a", "b", "c"], bulk.load, **options)
        clock.travel(6)
        bulk.gate.clear()
        await cache.set("c", "own")
        for _ in range(3):
            assert await cache.get_or_set_many(["a", "b", "c"], bulk.load, **options) == {
                "a": "a1", "b": "b1", "c": "own"
            }  # fmt: skip
        await turns()
        assert bulk.asked[1:] == [["a", "b"]]
        bulk.gate.set()
        await turns()
        assert await cache.get_many(["a", "b", "c"]) == {"a": "a2", "b": "b2", "c": "own"}

    async def test_a_refresh_ahead_that_fails(self, cache: Cache, clock: TravellingClock) -> None:
        """A failed refresh keeps the values, and is not tried on every read."""
        bulk = Bulk()
        options: Any = {"ttl": 10, "refresh_ahead": 0.5}
        await cache.get_or_set_many(["a"], bulk.load, **options)
        clock.travel(6)
        bulk.fail = True
        for _ in range(3):
            assert await cache.get_or_set_many(["a"], bulk.load, **options) == {"a": "a1"}
            await turns()
        assert len(bulk.asked) == 2

    async def test_timeouts(self, cache: Cache, clock: TravellingClock) -> None:
        """Past the hard timeout the callers of a bulk get `LoadTimeout` and the load goes on; past the background
        timeout it is ended and its keys are free."""
        bulk = Bulk(held=True)
        options: Any = {"hard_timeout": 1, "background_timeout": 5}
        first = asyncio.create_task(cache.get_or_set_many(["a", "b"], bulk.load, **options))
        await turns()
        clock.travel(1.5)
        with pytest.raises(LoadTimeout):
            await first
        second = asyncio.create_task(cache.get_or_set_many(["b"], bulk.load))
        await turns()
        assert bulk.asked == [["a", "b"]]
        clock.travel(6)
        with pytest.raises(LoadTimeout):
            await second
        bulk.gate.set()
        assert await cache.get_or_set_many(["a", "b"], bulk.load) == {"a": "a2", "b": "b2"}

    async def test_the_soft_timeout(self, cache: Cache, clock: TravellingClock) -> None:
        """Past the soft timeout stale values are returned; the new ones are stored when they land."""
        bulk = Bulk()
        options: Any = {"ttl": 1, "grace": "1h", "soft_timeout": 0.5}
        await cache.get_or_set_many(["a", "b"], bulk.load, **options)
        clock.travel(2)
        bulk.gate.clear()
        waiting = asyncio.create_task(cache.get_or_set_many(["a", "b"], bulk.load, **options))
        await turns()
        clock.travel(0.6)
        assert await waiting == {"a": "a1", "b": "b1"}
        late = asyncio.create_task(cache.get_or_set_many(["a"], bulk.load, **options))
        assert await late == {"a": "a1"}  # who comes when the time has passed does not wait at all
        bulk.gate.set()
        await turns()
        assert await cache.get_many(["a", "b"]) == {"a": "a2", "b": "b2"}

    async def test_keeping_by_value(self, cache: Cache) -> None:
        """``cache_if``, a ttl of the value and ``negative_ttl`` are asked for each value."""
        found = await cache.get_or_set_many(
            ["a", "b", "c"],
            lambda keys: {"a": 5, "b": None, "c": 0},
            ttl=lambda value: value,
            negative_ttl=3,
            cache_if=lambda value: value != 0,
        )
        assert found == {"a": 5, "b": None, "c": 0}
        assert [await cache.ttl(key) for key in "abc"] == [5, 3, None]

    async def test_one_that_cannot_be_stored(self) -> None:
        """One value that the store cannot keep is returned with the others, which are stored; it is counted."""
        async with Cache("memory://?copy=true") as cache:
            found = await cache.get_or_set_many(["a", "b"], lambda keys: {"a": (x for x in "a"), "b": "kept"})
            assert list(found["a"]) == ["a"]
            assert await cache.get_many(["a", "b"]) == {"b": "kept"}
            assert cache.stats().errors == 1

    async def test_invalidated_during_the_load(self, cache: Cache) -> None:
        """A tag that is invalidated while a bulk runs hides all that it brings."""
        bulk = Bulk(held=True)
        waiting = asyncio.create_task(cache.get_or_set_many(["a", "b"], bulk.load, tags=["t"]))
        await turns()
        await cache.invalidate_tags("t")
        bulk.gate.set()
        assert await waiting == {"a": "a1", "b": "b1"}
        assert await cache.get_many(["a", "b"]) == {}

    async def test_a_load_that_asks_for_many(self, cache: Cache) -> None:
        """A factory may load many others, one of which another load is bringing; its own key among them is a ring."""
        bulk = Bulk()
        gate = asyncio.Event()

        async def slow() -> str:
            await gate.wait()
            return "slow"

        async def outer() -> dict[str, str]:
            asyncio.get_running_loop().call_later(0, gate.set)
            return await cache.get_or_set_many(["a", "shared"], bulk.load)

        shared = asyncio.create_task(cache.get_or_set("shared", slow))
        await turns(2)
        assert await cache.get_or_set("outer", outer) == {"a": "a1", "shared": "slow"}
        await shared
        with pytest.raises(RecursiveLoad):
            await cache.get_or_set("ring", lambda: cache.get_or_set_many(["b", "ring"], bulk.load))
        assert await cache.get_or_set_many(["b", "ring"], bulk.load) == {"b": "b2", "ring": "ring2"}

    async def test_counted(self, cache: Cache) -> None:
        """A bulk is one load; each key counts as hit, miss or somebody else's load."""
        bulk = Bulk(held=True)
        await cache.set("there", 1)
        first = asyncio.create_task(cache.get_or_set_many(["there", "a", "b"], bulk.load))
        await turns()
        second = asyncio.create_task(cache.get_or_set_many(["a", "c"], bulk.load))
        await turns()
        bulk.gate.set()
        await asyncio.gather(first, second)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.loads, stats.coalesced) == (1, 4, 2, 1)


class TestUnshared:
    """``lock="none"``: nobody waits for anybody, and a write still wins."""

    async def test_a_write_wins_over_all_of_them(self, cache: Cache) -> None:
        """A delete voids every one of the loads under way; who comes later loads anew and stores."""
        gate = asyncio.Event()
        runs: list[int] = []

        async def load() -> int:
            runs.append(1)
            number = len(runs)
            await gate.wait()
            return number

        waiting = [asyncio.create_task(cache.get_or_set("k", load, lock="none")) for _ in range(3)]
        await turns()
        await cache.delete("k")
        gate.set()
        assert await asyncio.gather(*waiting) == [1, 2, 3]
        assert await cache.get("k") is None
        assert await cache.get_or_set("k", load, lock="none") == 4
        assert await cache.get("k") == 4

    async def test_one_of_them_is_cancelled(self, cache: Cache) -> None:
        """Only its own load ends with it; the cache's end ends the others."""
        ended: list[int] = []

        async def hang(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(number)

        waiting = [
            asyncio.create_task(cache.get_or_set("k", lambda number=number: hang(number), lock="none"))
            for number in range(3)
        ]
        await turns()
        waiting[1].cancel()
        await turns()
        assert ended == [1]
        await cache.aclose()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LoadCancelled, asyncio.CancelledError, LoadCancelled]
        assert sorted(ended) == [0, 1, 2]

    async def test_a_write_wins_over_a_load_beside_an_unshared_bulk(self, cache: Cache) -> None:
        """A bulk that shares with nobody does not hide the loads under way from a delete, nor another such bulk."""
        bulk = Bulk(held=True)
        waiting = [
            asyncio.create_task(cache.get_or_set_many(["k"], bulk.load)),
            asyncio.create_task(cache.get_or_set_many(["k"], bulk.load, lock="none")),
            asyncio.create_task(cache.get_or_set_many(["k"], bulk.load, lock="none")),
        ]
        await turns()
        assert bulk.asked == [["k"]] * 3
        await cache.delete("k")
        bulk.gate.set()
        await asyncio.gather(*waiting)
        assert await cache.get("k") is None


class TestExtras:
    """What a loader brings on top of what it was asked for."""

    @pytest.mark.parametrize("write", ["set", "delete", "clear", "delete_many", "set_many"])
    async def test_a_write_wins_over_an_extra(self, cache: Cache, write: str) -> None:
        """An extra whose key was written while the loader ran is not stored: it may be older than the write."""
        gate = asyncio.Event()

        async def load(keys: list[str]) -> dict[str, str]:
            await gate.wait()
            return {"asked": "v", "extra": "older"}

        await cache.set("extra", "old")
        waiting = asyncio.create_task(cache.get_or_set_many(["asked"], load))
        await turns()
        arguments: Any = {
            "set": ("extra", "newer"), "set_many": ({"extra": "newer"},), "delete": ("extra",),
            "delete_many": (["extra"],), "clear": ("ex*",),
        }[write]  # fmt: skip
        await getattr(cache, write)(*arguments)
        gate.set()
        await waiting
        assert await cache.get("extra") == ("newer" if write.startswith("set") else None)

    @pytest.mark.parametrize("extra", ["", "view\0k", "\ud800", "x" * 2_000])
    async def test_an_extra_that_is_no_key(self, cache: Cache, extra: str) -> None:
        """An extra whose name is no key is refused: it would be nobody's entry, or one of a view's."""
        await cache.namespace("view").set("k", "mine")
        with pytest.raises(InvalidKeyError):
            await cache.get_or_set_many(["a"], lambda keys: {"a": 1, extra: "x"})
        assert await cache.namespace("view").get("k") == "mine"


class TestContext:
    """What a factory is given."""

    async def test_what_it_set_can_be_read(self, cache: Cache) -> None:
        """The context tells what was set on it, in seconds, and nothing before."""
        seen: list[Any] = []

        def load(context: Any) -> int:
            seen.append((context.ttl, context.grace, context.tags, context.skipped))
            context.ttl, context.grace, context.tags = "1m", "2m", ["a"]
            context.add_tags("a", "b")
            seen.append((context.ttl, context.grace, context.tags, context.skipped))
            context.ttl = context.grace = None
            seen.append((context.ttl, context.grace))
            return 1

        await cache.get_or_set("k", load, grace=5)
        assert seen == [(None, None, (), False), (60, 120, ("a", "b"), False), (None, None)]
        assert await cache.ttl("k") == float("inf")

    async def test_one_text_is_no_collection_of_tags(self, cache: Cache) -> None:
        """A forgotten pair of brackets is the factory's error."""

        def load(context: Any) -> int:
            context.tags = "users"
            return 1

        with pytest.raises(ValueError, match="users"):
            await cache.get_or_set("k", load)

    async def test_keeping_nothing(self, cache: Cache) -> None:
        """``keep_stale`` on a first load is an error of its own."""
        with pytest.raises(CacheError, match="no stale value"):
            await cache.get_or_set("k", lambda load: load.keep_stale())

    @pytest.mark.parametrize(
        ("factory", "wanted"),
        [
            (lambda: 1, False),
            (lambda load: 1, True),
            (lambda load=None: 1, False),
            (lambda *args: 1, False),
            (lambda *, load=1: 1, False),
            (Bulk().load, True),
            (dict, False),
            (asyncio.Event().wait, False),
            (dict.fromkeys, True),
            (type("Opaque", (), {"__call__": lambda self: 1, "__signature__": 5})(), False),
        ],
    )
    def test_who_gets_it(self, factory: Callable[..., Any], wanted: bool) -> None:
        """A callable with a positional parameter that must be given gets the context; what cannot be known does not."""
        assert wants_load(factory) is wanted

    async def test_what_a_bypassed_factory_gets(self, cache: Cache) -> None:
        """Outside the cache it gets a context all the same, of a first load."""

        @cache.memoize(key="k")
        async def f() -> int:
            return 1

        with cache.override(bypass=True):
            found = await cache.namespace("view").get_or_set("k", lambda load: (load.key, load.stale, load.reason))
        assert found == ("k", None, "miss")


class TestErrors:
    """What waiters get when a load fails."""

    async def test_an_error_that_cannot_be_copied(self, cache: Cache) -> None:
        """An error whose class refuses to be copied reaches every waiter as it is."""

        class Stubborn(Exception):
            def __copy__(self) -> Any:
                raise RuntimeError("no copies")

        async def load() -> None:
            await turns(3)
            raise Stubborn("row")

        outcomes = await asyncio.gather(*(cache.get_or_set("k", load) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Stubborn] * 3

    async def test_an_error_that_copies_as_another(self, cache: Cache) -> None:
        """An error whose copy is something else reaches every waiter as it is."""

        class Odd(Exception):
            def __copy__(self) -> Any:
                return ValueError("something else")

        async def load() -> None:
            await turns(3)
            raise Odd("row")

        outcomes = await asyncio.gather(*(cache.get_or_set("k", load) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Odd] * 3

    async def test_a_value_shared_by_those_who_cannot_have_copies(self) -> None:
        """On a store that copies, waiters of a value that cannot be copied share it."""
        async with Cache("memory://?copy=true") as cache:
            value = (x for x in "abc")

            async def load() -> Any:
                await turns(3)
                return value

            assert await asyncio.gather(*(cache.get_or_set("k", load) for _ in range(3))) == [value] * 3

    async def test_a_cache_if_or_ttl_that_raises(self, cache: Cache) -> None:
        """An error in ``cache_if`` or in a ttl function is the load's error; nothing is stored, the key is free."""
        for options in ({"cache_if": lambda value: 1 / 0}, {"ttl": lambda value: 1 / 0}):
            with pytest.raises(ZeroDivisionError):
                await cache.get_or_set("k", lambda: 1, **options)
            with pytest.raises(ZeroDivisionError):
                await cache.get_or_set_many(["k"], lambda keys: {"k": 1}, **options)
            assert not await cache.exists("k")


async def test_a_policy_for_one_call(cache: Cache) -> None:
    """A policy given to a call stands in for the cache's as a whole; options of the call are above it."""
    policy = Policy(ttl=5, tags=["own"])
    await cache.get_or_set("a", lambda: 1, policy=policy)
    await cache.get_or_set("b", lambda: 1, 7, policy=policy)
    await cache.get_or_set_many(["c"], lambda keys: {"c": 1}, policy=policy, grace=9)
    assert [await cache.ttl(key) for key in "abc"] == [5, 7, 5]
    await cache.invalidate_tags("own")
    assert await cache.get_many(list("abc")) == {}


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_a_value_that_is_not_stored_is_freed_at_once(cache: Cache, suspends: bool, many: bool) -> None:
    """Nothing of a finished load holds on to its value: it is gone without the garbage collector."""

    class Value:
        pass

    ghosts: list[weakref.ref[Value]] = []

    async def load(*_: Any) -> Any:
        if suspends:
            await asyncio.sleep(0)
        value = Value()
        ghosts.append(weakref.ref(value))
        return {"k": value} if many else value

    def skip(value: Any) -> bool:
        return False

    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            if many:
                await cache.get_or_set_many(["k"], load, cache_if=skip)
            else:
                await cache.get_or_set("k", lambda: load(), cache_if=skip)
        await turns()
        alive = sum(ghost() is not None for ghost in ghosts)
    finally:
        gc.enable()
    assert alive == 0


async def test_what_another_bulk_left_out_is_asked_for() -> None:
    """A bulk load that joined another one asks its own loader for what that one did not have."""
    cache = Cache()
    gate = asyncio.Event()

    async def partial(keys: list[str]) -> dict[str, str]:
        await gate.wait()
        return {key: "first" for key in keys if key != "rare"}

    first = asyncio.create_task(cache.get_or_set_many(["a", "rare"], partial))
    await asyncio.sleep(0)
    second = asyncio.create_task(cache.get_or_set_many(["rare", "a"], lambda keys: dict.fromkeys(keys, "second")))
    await asyncio.sleep(0)
    gate.set()
    assert await first == {"a": "first"}
    assert list((await second).items()) == [("rare", "second"), ("a", "first")]


async def test_an_unshared_bulk_late_in_the_ttl() -> None:
    """A bulk read that shares with nobody leaves the refresh of a key alone that is being loaded."""
    clock = TravellingClock()
    cache = Cache(clock=clock, policy=Policy(ttl=10, refresh_ahead=0.5))
    await cache.get_or_set("key", lambda: "old")
    gate = asyncio.Event()

    async def load() -> str:
        await gate.wait()
        return "new"

    clock.travel(6)
    assert await cache.get_or_set("key", load) == "old"
    found = await asyncio.wait_for(
        cache.get_or_set_many(["key"], lambda keys: dict.fromkeys(keys, "bulk"), lock="none"), 5
    )
    assert found == {"key": "old"}
    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await cache.get("key") == "new"


async def test_a_value_that_was_deleted_under_a_conditional_fetch() -> None:
    """A factory that keeps the stale value returns it to who waits, also when somebody has deleted it meanwhile."""
    clock = TravellingClock()
    cache = Cache(clock=clock, policy=Policy(ttl=10, grace=60))
    await cache.set("key", "old")
    clock.travel(11)
    gate = asyncio.Event()

    async def load(context: Load) -> object:
        await gate.wait()
        return context.keep_stale()

    waiting = asyncio.create_task(cache.get_or_set("key", load))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cache.delete("key")
    gate.set()
    assert await waiting == "old"
    assert await cache.entry("key") is None


def test_loads_collected_after_their_loop() -> None:
    """Loads of every kind whose loop was closed under them end without a complaint when they are collected."""
    program = """
import asyncio, gc, logging
from asynccache import Cache
logging.disable(logging.CRITICAL)  # asyncio's own word on tasks that were pending
cache = Cache()
async def hang(*_): await asyncio.Event().wait()
async def main():
    calls = cache.get_or_set_many(["a", "b"], hang), cache.get_or_set("c", hang)
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(3): await asyncio.sleep(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
del loop, cache
gc.collect()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
