"""One load per key: a crowd costs what one caller costs, whatever the load does."""

import asyncio
import functools
import traceback

import pytest

from asynccache import Cache

pytestmark = pytest.mark.usefixtures("quiet")


async def test_a_crowd_runs_the_factory_once(cache, make_source, settle):
    """Of a thousand concurrent callers one loads, and all get the very same object."""
    source = make_source(["value"], gated=True)
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(1000)]
    await settle()
    source.gate.set()
    values = await asyncio.gather(*tasks)
    assert source.calls == 1
    assert all(value is source.value for value in values)
    stats = cache.stats()
    assert (stats.loads, stats.coalesced) == (1, 999)


async def test_the_value_is_kept(cache, make_source):
    """After a load every call is a hit and the factory is left alone."""
    source = make_source()
    for _ in range(5):
        assert await cache.get_or_set("k", source.load) == "value"
    assert await cache.get("k") == "value"
    assert source.calls == 1


async def test_different_keys_do_not_wait_for_each_other(cache, make_source, settle):
    """A load of one key does not hold up another key's."""
    slow, fast = make_source("slow", gated=True), make_source("fast")
    waiting = asyncio.create_task(cache.get_or_set("slow", slow.load))
    await settle()
    assert await cache.get_or_set("fast", fast.load) == "fast"
    slow.gate.set()
    assert await waiting == "slow"


async def test_a_failure_reaches_every_waiter_and_is_not_stored(cache, make_source, settle, nobody_left):
    """A thousand waiters of a failing load all see its error; the next caller starts a new load."""
    source = make_source(gated=True)
    source.error = lambda: LookupError("no such row")
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(1000)]
    await settle()
    source.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert source.calls == 1
    assert {type(outcome) for outcome in outcomes} == {LookupError}
    assert {str(outcome) for outcome in outcomes} == {"no such row"}
    await nobody_left()
    assert not await cache.exists("k")
    source.error = None
    assert await cache.get_or_set("k", source.load) == "value"
    assert source.calls == 2


async def test_a_shared_errors_traceback_does_not_grow(cache, make_source, settle):
    """The last of 200 waiters sees a traceback no longer than a lone caller's."""

    async def depths(key: str, count: int) -> list[int]:
        source = make_source(gated=True)
        source.error = lambda: LookupError("no such row")

        async def wait() -> int:
            try:
                await cache.get_or_set(key, source.load)
            except LookupError as error:
                return len(traceback.extract_tb(error.__traceback__))
            return -1

        tasks = [asyncio.create_task(wait()) for _ in range(count)]
        await settle()
        source.gate.set()
        return await asyncio.gather(*tasks)

    (alone,) = await depths("alone", 1)
    crowd = await depths("crowd", 200)
    assert max(crowd) <= alone + 3


async def test_waiters_do_not_share_an_error_object(cache, make_source, settle):
    """What one waiter does to its exception is not seen by another."""
    source = make_source(gated=True)
    source.error = lambda: LookupError("no such row")
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(3)]
    await settle()
    source.gate.set()
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    first.add_note("mine")
    assert not getattr(second, "__notes__", [])
    assert not getattr(third, "__notes__", [])


class Awkward(Exception):
    """An error that cannot be rebuilt from its ``args``."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


async def test_an_error_keeps_its_type_attributes_notes_and_cause(cache, make_source, settle):
    """Whatever the error's constructor looks like, each waiter sees the error that was raised."""

    def build() -> Awkward:
        error = Awkward(code=7)
        error.add_note("while fetching")
        error.__cause__ = OSError("down")
        return error

    source = make_source(gated=True)
    source.error = build
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(5)]
    await settle()
    source.gate.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert type(outcome) is Awkward
        assert outcome.code == 7
        assert str(outcome) == "code 7"
        assert outcome.__notes__ == ["while fetching"]
        assert isinstance(outcome.__cause__, OSError)


async def test_an_exception_group_arrives_whole(cache, make_source, settle):
    """A group raised by the factory is the same kind of group for every waiter."""
    source = make_source(gated=True)
    source.error = lambda: ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(3)]
    await settle()
    source.gate.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, ExceptionGroup)
        assert [type(inner) for inner in outcome.exceptions] == [ValueError, KeyError]


async def test_a_factory_that_fails_before_its_first_await(cache, nobody_left):
    """A factory that raises at once leaves the key usable at once."""

    async def broken() -> str:
        raise RuntimeError("at once")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="at once"):
            await cache.get_or_set("k", broken)
    await nobody_left()
    assert await cache.get_or_set("k", lambda: "fine") == "fine"


async def test_a_sync_factory(cache):
    """A plain function is a factory too, and runs once for callers in one tick."""
    calls: list[int] = []

    def load() -> str:
        calls.append(1)
        return "sync"

    assert await asyncio.gather(*(cache.get_or_set("k", load) for _ in range(10))) == ["sync"] * 10
    assert len(calls) == 1


async def test_a_sync_factory_that_fails(cache):
    """A plain function that raises gives its error to every caller and stores nothing."""

    def load() -> str:
        raise ZeroDivisionError

    outcomes = await asyncio.gather(*(cache.get_or_set("k", load) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 3
    assert await cache.get_or_set("k", lambda: 1) == 1


async def test_a_sync_factory_out_of_items(cache):
    """``StopIteration``, which no coroutine can raise, comes out as an error and not as a hang."""
    async with asyncio.timeout(2):
        with pytest.raises((StopIteration, RuntimeError)):
            await cache.get_or_set("k", lambda: next(iter(())))
        assert await cache.get_or_set("k", lambda: 1) == 1


async def test_what_counts_as_a_factory(cache):
    """A callable object, a partial, a bound method and a function returning an awaitable are all awaited."""

    class Loader:
        async def __call__(self) -> str:
            await asyncio.sleep(0)
            return "object"

        async def method(self) -> str:
            return "method"

    async def greet(name: str) -> str:
        return f"hello {name}"

    assert await cache.get_or_set("object", Loader()) == "object"
    assert await cache.get_or_set("method", Loader().method) == "method"
    assert await cache.get_or_set("partial", functools.partial(greet, "you")) == "hello you"
    assert await cache.get_or_set("awaitable", lambda: greet("me")) == "hello me"


async def test_falsy_values_are_values(cache, make_source):
    """None, zero, False, empty text and an empty list are loaded once each."""
    for value in (None, 0, False, "", [], {}):
        source = make_source(value)
        for _ in range(2):
            assert await cache.get_or_set(f"k{value!r}", source.load) == value
        assert source.calls == 1


async def test_an_exception_returned_is_a_value(cache):
    """A factory that returns an exception object, without raising it, has made a value."""
    error = ValueError("just data")
    assert await cache.get_or_set("k", lambda: error) is error
    assert await cache.get("k") is error


async def test_the_factory_sees_a_copy_of_the_first_callers_context(cache, settle):
    """The load runs in the first caller's context; what it changes there stays there."""
    import contextvars

    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="nobody")
    gate = asyncio.Event()
    seen: list[str] = []

    async def load() -> str:
        seen.append(var.get())
        var.set("factory")
        await gate.wait()
        return "v"

    async def caller(name: str) -> str:
        var.set(name)
        await cache.get_or_set("k", load)
        return var.get()

    tasks = [asyncio.create_task(caller(name)) for name in ("first", "second")]
    await settle()
    gate.set()
    assert await asyncio.gather(*tasks) == ["first", "second"]
    assert seen == ["first"]


async def test_nobody_is_left_after_ten_thousand_keys(cache, nobody_left):
    """After many loads no task is alive and the cache holds just the values."""

    async def load() -> int:
        await asyncio.sleep(0)
        return 1

    await asyncio.gather(*(cache.get_or_set(f"k{i}", load) for i in range(2000)))
    await nobody_left()
    assert cache.stats().entries == 2000


async def test_two_caches_load_apart(sb, make_source):
    """The same key in two caches is two keys."""
    async with (
        Cache(clock=sb.clock, name="a", namespace="a") as one,
        Cache(clock=sb.clock, name="b", namespace="b") as two,
    ):
        assert await one.get_or_set("k", lambda: 1) == 1
        assert await two.get_or_set("k", lambda: 2) == 2


async def test_views_share_a_flight(cache, make_source, settle):
    """Two views of one namespace are one place: their callers share a load."""
    source = make_source(gated=True)
    tasks = [asyncio.create_task(cache.namespace("n").get_or_set("k", source.load)) for _ in range(5)]
    await settle()
    source.gate.set()
    assert await asyncio.gather(*tasks) == ["value"] * 5
    assert source.calls == 1


async def test_lock_none_lets_everybody_load(cache, make_source, settle):
    """With ``lock="none"`` nobody waits for anybody else's load."""
    source = make_source(gated=True)
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load, lock="none")) for _ in range(3)]
    await settle()
    assert source.calls == 3
    source.gate.set()
    assert await asyncio.gather(*tasks) == ["value"] * 3
