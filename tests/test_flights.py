"""No way of cancelling a caller harms another one, or leaves anything behind."""

import asyncio
import contextlib
import gc
import inspect
import random
import sys
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest
import pytest_asyncio
from waiting import turns

from asynccache import Cache, LoadCancelled, LoadTimeout, RecursiveLoad
from asynccache.testing import TravellingClock

FACTORIES = ["lazy"] + (["eager"] if sys.version_info >= (3, 12) else [])
LATER = range(5)  # turns of the loop between a suspension and the cancellation


@pytest_asyncio.fixture(params=FACTORIES, autouse=True)
async def watched(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fails a test that lets anything be reported to the loop, or leaves a task, under each task factory."""
    loop = asyncio.get_running_loop()
    if request.param == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    yield
    gc.collect()
    await turns(5)
    loop.set_exception_handler(None)
    loop.set_task_factory(None)
    assert reports == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest_asyncio.fixture
async def cache(clock: TravellingClock) -> AsyncIterator[Cache]:
    """A cache that is closed afterwards."""
    async with Cache(ttl="10m", clock=clock) as opened:
        yield opened


def left_in(cache: Cache) -> dict[str, int]:
    """What a cache keeps for loads and locks, where it is not nothing."""
    flights = cache._core.loader.flights
    kept = {
        "flights": len(flights.table),
        "loners": len(flights._loners),
        "detached": flights._detached,
        "tasks": len(flights.background),
    }
    return {name: count for name, count in kept.items() if count}


class Cancelling:
    """Awaits a coroutine, and cancels the task that does at a chosen one of its suspensions, some turns later."""

    def __init__(self, at: int, later: int) -> None:
        self.at = at
        self.later = later
        self.suspensions = 0

    @types.coroutine
    def run(self, coroutine: Any) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
            except StopIteration as end:
                return end.value
            if self.suspensions == self.at:
                self._cancel_in(task, self.later)
            self.suspensions += 1
            try:
                yield waited_for
            except BaseException as error:
                thrown = error
            else:
                thrown = None

    def _cancel_in(self, task: "asyncio.Task[Any]", later: int) -> None:
        if later:
            asyncio.get_running_loop().call_soon(self._cancel_in, task, later - 1)
        elif not task.done():
            task.cancel()


class Stage:
    """A cache, a slow source behind it, and the ways of asking."""

    def __init__(self) -> None:
        self.clock = TravellingClock()
        self.cache = Cache("memory://?max_entries=5000", ttl="10m", clock=self.clock)
        self.running = 0

        @self.cache.memoize(key="k")
        async def memoized() -> str:
            return await self.load()

        @self.cache.memoize_many(key="{key}")
        async def memoized_many(keys: list[str]) -> dict[str, str]:
            return await self.load_many(keys)

        self.memoized = memoized
        self.memoized_many = memoized_many

    async def load(self) -> str:
        self.running += 1
        try:
            await turns(2)
        finally:
            self.running -= 1
        return "v"

    async def load_many(self, keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, await self.load())

    # What is done, and what is there before it.

    async def cold(self) -> Any:
        return await self.cache.get_or_set("k", self.load)

    async def limited(self) -> Any:
        return await self.cache.get_or_set("k", self.load, soft_timeout=1, hard_timeout=2, grace=60)

    async def alone(self) -> Any:
        return await self.cache.get_or_set("k", self.load, lock="none")

    async def call(self) -> Any:
        return await self.memoized()

    async def call_many(self) -> Any:
        return (await self.memoized_many(["k", "l"]))["k"]

    async def refresh(self) -> Any:
        return await self.memoized.refresh()

    async def many(self) -> Any:
        return (await self.cache.get_or_set_many(["j", "k", "l"], self.load_many))["k"]

    async def nested(self) -> Any:
        return await self.cache.get_or_set("outer", lambda: self.cache.get_or_set("k", self.load))

    async def locked(self) -> Any:
        async with self.cache.lock("k", ttl=60):
            return await self.load()

    async def written(self) -> Any:
        await self.cache.set("k", "v", tags=["t"])
        return await self.cache.get("k")

    async def cleared(self) -> Any:
        await self.cache.set_many({f"filler{number}": 0 for number in range(2_500)})
        found = [key async for key in self.cache.keys("filler*")]
        await self.cache.clear("filler*")
        await self.cache.invalidate_tags("t")
        return "v" if len(found) == 2_500 else found


CALLS = [
    "cold", "limited", "alone", "call", "call_many", "refresh", "many", "nested", "locked", "written", "cleared"
]  # fmt: skip


@pytest.mark.parametrize("neighbour", ["nobody", "one before", "one after"])
@pytest.mark.parametrize("name", CALLS)
async def test_cancelled_at_every_await(name: str, neighbour: str) -> None:
    """Wherever a call is cancelled, and whenever after that: it ends cancelled or done, other callers get their value,
    and nothing is left."""
    at, reached = 0, True
    while reached:
        reached = False
        for later in LATER:
            stage = Stage()
            await stage.cache.set("k", "old", ttl=1, grace=60)
            stage.clock.travel(2)
            others = []
            same = "cold" if name == "cleared" else name  # two that clear would see each other's work
            if neighbour == "one before":
                others.append(asyncio.create_task(getattr(stage, same)()))
                await turns(1)
            cancelling = Cancelling(at, later)

            async def run(cancelling: Cancelling = cancelling, stage: Stage = stage) -> Any:
                return await cancelling.run(getattr(stage, name)())

            task = asyncio.create_task(run())
            if neighbour == "one after":
                await turns(1)
                others.append(asyncio.create_task(getattr(stage, same)()))
            await asyncio.wait([task])
            reached = reached or cancelling.suspensions > at
            if task.cancelled():
                assert cancelling.suspensions > at
            else:
                assert task.result() == "v"
            assert await asyncio.gather(*others) == ["v"] * len(others)
            await turns()
            where = (name, at, later)
            assert left_in(stage.cache) == {}, where
            assert stage.running == 0, where
            assert asyncio.all_tasks() == {asyncio.current_task()}, where
            async with asyncio.timeout(2):
                assert await getattr(stage, name)() == "v"
            await stage.cache.aclose()
        at += 1
    assert at >= 2 or name == "written"  # it was suspended somewhere


@pytest.mark.parametrize("name", CALLS)
async def test_cancelled_before_the_first_step(name: str) -> None:
    """A task that is cancelled before it has begun has asked for nothing."""
    stage = Stage()
    loop = asyncio.get_running_loop()
    task = asyncio.Task(getattr(stage, name)(), loop=loop)  # never eager
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert left_in(stage.cache) == {}
    assert stage.cache.stats().loads == 0
    await stage.cache.aclose()


@pytest.mark.parametrize("name", ["cold", "limited", "call", "many", "call_many"])
async def test_cancelled_in_the_tick_in_which_the_load_lands(name: str) -> None:
    """A caller who is cancelled in the very turn that brings the value is cancelled; the value is kept for others."""
    stage = Stage()
    gate = asyncio.get_running_loop().create_future()

    async def load() -> str:
        await gate
        caller.cancel()  # the load ends in this turn
        return "v"

    stage.load = load
    caller = asyncio.create_task(getattr(stage, name)())
    bystander = asyncio.create_task(getattr(stage, name)())
    await turns()
    gate.set_result(None)
    assert await bystander == "v"
    await asyncio.wait([caller])
    assert caller.cancelled()
    assert await stage.cache.get("k") == "v"
    assert left_in(stage.cache) == {}
    await stage.cache.aclose()


@pytest.mark.parametrize("name", CALLS)
async def test_a_deadline_leaves_no_cancellation_counted(name: str) -> None:
    """``asyncio.timeout`` around any call, passing at any of its awaits, ends as `TimeoutError`; ``cancelling()`` is 0
    afterwards, and the same task goes on to get its value."""
    loop = asyncio.get_running_loop()

    def expire(limit: asyncio.Timeout, left: int) -> None:
        if left:
            loop.call_soon(expire, limit, left - 1)
        elif limit.when() is None:
            limit.reschedule(loop.time() - 1)

    for wait in range(8):
        stage = Stage()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                loop.call_soon(expire, limit, wait)
                await getattr(stage, name)()
                limit.reschedule(loop.time() + 60)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await getattr(stage, name)() == "v"
        await turns()
        assert left_in(stage.cache) == {}
        await stage.cache.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm(seed: int) -> None:
    """Thousands of calls of every kind, cancelled or out of time at random moments among writes: each that ends has
    the value of its own key, the others end as cancelled, nothing is left, and every key works afterwards."""
    choose = random.Random(seed)
    cache = Cache("memory://?max_entries=25", ttl="10m")  # fewer than there are keys: some leave in the middle

    async def load(number: int) -> str:
        await turns(choose.randrange(4))
        if choose.random() < 0.1:
            raise LookupError(number)
        return f"v{number}"

    async def load_many(keys: list[str]) -> dict[str, str]:
        await turns(choose.randrange(4))
        return {key: f"v{key[1:]}" for key in keys}

    @cache.memoize(key="k{number}", tags=["odd{number}"])
    async def memoized(number: int) -> str:
        return await load(number)

    async def right(number: int, ask: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with contextlib.suppress(LookupError):
            assert await ask(*args) == f"v{number}"

    async def right_many(numbers: list[int]) -> None:
        with contextlib.suppress(LookupError):
            found = await cache.get_or_set_many([f"k{number}" for number in numbers], load_many)
            assert found == {f"k{number}": f"v{number}" for number in numbers}

    async def hasty(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await right(number, memoized, number)
        assert asyncio.current_task().cancelling() == 0

    async def inside(number: int) -> None:
        async with cache.lock(f"k{number}", ttl=60):
            await turns(1)

    def call(number: int) -> Any:
        match choose.randrange(10):
            case 0 | 1 | 2:
                return right(number, cache.get_or_set, f"k{number}", lambda: load(number))
            case 3 | 4:
                return right(number, memoized, number)
            case 5:
                return right(number, memoized.refresh, number)
            case 6:
                return right_many(choose.sample(range(40), 5))
            case 7:
                return hasty(number)
            case 8:
                return inside(number)
            case _:
                return cache.delete(f"k{number}") if number % 2 else cache.invalidate_tags(f"odd{number}")

    tasks: list[asyncio.Task[Any]] = []
    doomed: set[asyncio.Task[Any]] = set()
    for _ in range(1_500):
        tasks.append(asyncio.create_task(call(choose.randrange(40))))
        if choose.random() < 0.5:
            victim = choose.choice(tasks[-30:])
            if victim.cancel():
                doomed.add(victim)
        if choose.random() < 0.3:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.wait(tasks)
    assert all(task.cancelled() for task in doomed)
    for task in set(tasks) - doomed:
        task.result()
    await turns()
    assert left_in(cache) == {}
    for number in range(40):
        async with asyncio.timeout(2):
            assert await cache.get_or_set(f"k{number}", lambda number=number: f"v{number}") == f"v{number}"
    await cache.aclose()


async def test_a_cancelled_wait_ends_at_once(cache: Cache) -> None:
    """A cancelled caller is gone within a few turns of the loop, though the factory holds on to life."""
    release = asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return "late"

    task = asyncio.create_task(cache.get_or_set("k", stubborn))
    await turns()
    task.cancel()
    await turns(5)
    assert task.cancelled()
    async with asyncio.timeout(2):
        assert await cache.get_or_set("k", lambda: "new") == "new"
    release.set()
    await turns()
    assert await cache.get("k") == "new"


async def test_a_task_group_that_fails_with_a_load_inside(cache: Cache) -> None:
    """The group ends with the one error that it has, and the load that only it waited for is cancelled."""
    ended: list[str] = []

    async def load() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fail() -> None:
        await turns(3)
        raise KeyError("group")

    async def fall() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(cache.get_or_set("k", load))
            group.create_task(cache.get_or_set_many(["k", "j"], lambda keys: dict.fromkeys(keys, 1)))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await fall()
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
    await turns()
    assert ended == ["cancelled"]
    assert left_in(cache) == {}


async def test_three_generations_at_once(cache: Cache) -> None:
    """Loads of one key that a delete parted each serve their own callers, whatever order they land in; what the last
    one brings stays."""
    gates = [asyncio.Event() for _ in range(3)]

    async def load(number: int) -> int:
        await gates[number].wait()
        return number

    waiting = []
    for number in range(3):
        waiting += [asyncio.create_task(cache.get_or_set("k", lambda number=number: load(number))) for _ in range(2)]
        await turns()
        if number < 2:
            await cache.delete("k")
    waiting[2].cancel()  # one of the second generation
    for number in (2, 0, 1):
        gates[number].set()
        await turns()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [0, 0, 1, 2, 2]
    assert await cache.get("k") == 2
    assert left_in(cache) == {}


async def test_an_old_generation_is_cancelled_alone(cache: Cache) -> None:
    """When the callers of an overtaken load leave, it is cancelled, and its successor goes on."""
    gate = asyncio.Event()
    ended: list[str] = []

    async def old() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            ended.append("old")
            raise

    async def new() -> str:
        await gate.wait()
        return "new"

    first = asyncio.create_task(cache.get_or_set("k", old))
    await turns()
    await cache.delete("k")
    second = asyncio.create_task(cache.get_or_set("k", new))
    await turns()
    first.cancel()
    await turns()
    assert ended == ["old"]
    gate.set()
    assert await second == "new"
    with pytest.raises(asyncio.CancelledError):
        await first


class Halt(BaseException):
    """Neither an ``Exception`` nor one of those that end the program."""


@pytest.mark.parametrize("many", [False, True])
async def test_a_base_exception(cache: Cache, clock: TravellingClock, many: bool) -> None:
    """It reaches every waiter of a single or a bulk load, no stale value hides it, and the key is free."""
    await cache.set("k", "stale", ttl=1, grace=60)
    clock.travel(2)

    async def load(*_: Any) -> Any:
        await turns(3)
        raise Halt

    def ask() -> Any:
        return cache.get_or_set_many(["k"], load) if many else cache.get_or_set("k", lambda: load())

    async def asking() -> str:
        try:
            await ask()
        except Halt:
            return "halted"
        return "answered"

    assert await asyncio.gather(*(asking() for _ in range(3))) == ["halted"] * 3
    assert await cache.get_or_set("k", lambda: 1) == 1
    await turns(2)
    assert left_in(cache) == {}


async def test_a_bulk_loader_that_raises_cancelled_error(cache: Cache) -> None:
    """Its callers, of one key and of many, get `LoadCancelled`, and none of their tasks is cancelled."""

    async def load(keys: list[str]) -> dict[str, int]:
        await turns(3)
        raise asyncio.CancelledError

    async def asking(asked: Any) -> int:
        with pytest.raises(LoadCancelled):
            await asked
        return asyncio.current_task().cancelling()

    asked = [cache.get_or_set_many(["a", "b"], load), cache.get_or_set_many(["a"], load)]
    assert await asyncio.gather(*map(asking, asked)) == [0, 0]
    await turns(2)
    assert left_in(cache) == {}


@pytest.mark.parametrize("many", [False, True])
async def test_after_ten_thousand_loads_nothing_is_alive(cache: Cache, many: bool) -> None:
    """Factories and values of loads that were not stored are collected, and so are failed and cancelled ones."""

    class Value:
        pass

    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def factory(number: int) -> Any:
        async def load(*_: Any) -> Any:
            await asyncio.sleep(0)
            if number % 10 == 0:
                raise LookupError
            value = Value()
            alive.add(value)
            return {f"k{number}": value} if many else value

        alive.add(load)
        return load if many else lambda: load()

    async def ask(number: int) -> None:
        options = {"cache_if": lambda value: False}
        if many:
            await cache.get_or_set_many([f"k{number}"], factory(number), **options)
        else:
            await cache.get_or_set(f"k{number}", factory(number), **options)

    for start in range(0, 10_000, 500):
        tasks = [asyncio.create_task(ask(number)) for number in range(start, start + 500)]
        await asyncio.sleep(0)
        for task in tasks[3::7]:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()
        del tasks, task
    await turns()
    gc.collect()
    assert len(alive) == 0
    assert left_in(cache) == {}
    assert cache.stats().entries == 0


async def test_a_dropped_cache_is_collected(clock: TravellingClock) -> None:
    """A cache that nobody holds any more goes, with its entries and their timers, closed or not."""

    class Value:
        pass

    async def use() -> list[Any]:
        cache = Cache(ttl="10m", clock=clock)
        values = [Value(), Value()]
        await cache.set("k", values[0])
        await cache.get_or_set("l", lambda: values[1], grace="1h", refresh_ahead=0.5)

        @cache.memoize()
        async def f(x: int) -> int:
            return x

        await f(1)
        async with cache.lock("k", ttl=60):
            pass
        return [weakref.ref(cache), weakref.ref(f), *map(weakref.ref, values)]

    references = await use()
    await turns()
    gc.collect()
    assert [reference() for reference in references] == [None] * 4


async def test_so_many_loads_go_on_unattended(clock: TravellingClock) -> None:
    """Past a thousand loads that hang behind their hard timeouts, one more is cancelled with its last caller; all of
    them are gone after the background timeout, and their keys are free."""
    cache = Cache(clock=clock)
    running = 0

    async def hang() -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    async def asking(number: int) -> None:
        with pytest.raises(LoadTimeout):
            await cache.get_or_set(f"k{number}", hang, hard_timeout=1, background_timeout=30)

    tasks = [asyncio.create_task(asking(number)) for number in range(1_010)]
    await turns()
    assert running == 1_010
    clock.travel(1.5)
    await asyncio.gather(*tasks)
    await turns()
    assert running == 1_000
    clock.travel(31)
    await turns()
    assert running == 0
    assert left_in(cache) == {}
    assert await cache.get_or_set("k0", lambda: 1) == 1
    await cache.aclose()


async def test_no_refresh_ahead_when_too_many_loads_hang(clock: TravellingClock) -> None:
    """While a thousand loads hang unattended a value past its refresh point is returned, and no refresh is added."""
    cache = Cache(clock=clock)
    refreshed: list[int] = []
    await cache.get_or_set("aging", lambda: 1, ttl=100, refresh_ahead=0.5)

    async def asking(number: int) -> None:
        with pytest.raises(LoadTimeout):
            await cache.get_or_set(f"k{number}", asyncio.Event().wait, hard_timeout=1, background_timeout="1h")

    tasks = [asyncio.create_task(asking(number)) for number in range(1_000)]
    await turns()
    clock.travel(60)
    await asyncio.gather(*tasks)
    for _ in range(3):
        assert await cache.get_or_set("aging", lambda: refreshed.append(1) or 2, ttl=100, refresh_ahead=0.5) == 1
    await turns()
    assert refreshed == []
    await cache.aclose()
    await turns()


async def test_records_of_failures_are_bounded(clock: TravellingClock) -> None:
    """Of ten thousand keys that failed long ago no record is kept; those that failed lately are throttled still."""
    cache = Cache(clock=clock)
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise OSError

    await cache.set_many({f"k{number}": number for number in range(10_001)}, ttl=1, grace="10h")
    clock.travel(2)
    for number in range(10_000):
        assert await cache.get_or_set(f"k{number}", fail, grace="10h") == number
    clock.travel("1h")
    assert await cache.get_or_set("k10000", fail, grace="10h") == 10_000
    assert len(cache._core.loader.flights._retry_at) == 1
    assert await cache.get_or_set("k10000", fail, grace="10h") == 10_000
    assert calls == 10_001
    await cache.aclose()


async def test_a_bulk_that_waits_for_itself_through_another_key(cache: Cache) -> None:
    """A bulk loader that asks for a key whose load asks for one of the bulk's gets `RecursiveLoad`, not a hang."""

    async def load_many(keys: list[str]) -> dict[str, Any]:
        return {"a": await cache.get_or_set("b", lambda: cache.get_or_set_many(["a"], load_many))}

    async with asyncio.timeout(2):
        with pytest.raises(RecursiveLoad):
            await cache.get_or_set_many(["a"], load_many)
    await turns(2)
    assert left_in(cache) == {}


async def test_a_factory_may_wait_twice_for_one_key(cache: Cache) -> None:
    """A factory whose two child tasks wait for one other load is not taken for a ring when one of them leaves."""
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "inner"

    async def outer() -> list[str]:
        children = [asyncio.create_task(cache.get_or_set("inner", slow)) for _ in range(3)]
        await turns()
        children[0].cancel()
        await turns()
        gate.set()
        return await asyncio.gather(*children[1:])

    assert await cache.get_or_set("outer", outer) == ["inner", "inner"]
    assert left_in(cache) == {}


async def test_a_wait_that_was_given_up_is_no_part_of_a_ring(cache: Cache) -> None:
    """A factory that has stopped waiting for another load may be waited for by that one."""
    asks, answers = asyncio.Event(), asyncio.Event()

    async def inner() -> str:
        await asks.wait()
        return "inner of " + await cache.get_or_set("outer", outer)

    async def outer() -> str:
        giving_up = asyncio.create_task(cache.get_or_set("inner", inner))
        await turns()
        giving_up.cancel()
        await turns()
        asks.set()
        await answers.wait()
        return "outer"

    others = asyncio.create_task(cache.get_or_set("inner", inner))
    await turns()
    waiting = asyncio.create_task(cache.get_or_set("outer", outer))
    await turns(60)
    answers.set()
    async with asyncio.timeout(2):
        assert await asyncio.gather(waiting, others) == ["outer", "inner of outer"]


async def test_a_call_that_is_never_awaited_asks_for_nothing(cache: Cache) -> None:
    """Making the coroutine and closing it runs no factory and leaves no trace."""
    waiting = cache.get_or_set("k", lambda: 1 / 0)
    assert inspect.iscoroutine(waiting)
    waiting.close()
    assert left_in(cache) == {}
    assert cache.stats().loads == 0
