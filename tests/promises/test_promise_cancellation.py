"""A cancelled caller harms nobody else, at whatever moment it is cancelled."""

import asyncio
from functools import partial

import pytest

from asynccache import LoadCancelled

pytestmark = pytest.mark.usefixtures("quiet")

TURNS = range(10)


async def test_all_but_one_cancelled(cache, make_source, settle):
    """While one of a thousand still waits the load goes on, and its value is stored."""
    source = make_source(gated=True)
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(1000)]
    await settle()
    for task in tasks[:-1]:
        task.cancel()
    await settle()
    source.gate.set()
    assert await tasks[-1] == "value"
    assert all(task.cancelled() for task in tasks[:-1])
    assert (source.calls, source.cancelled) == (1, 0)
    assert await cache.get("k") == "value"


async def test_all_cancelled(cache, make_source, settle, nobody_left):
    """When the last waiter is gone the factory is cancelled, and nothing is left of the load."""
    source = make_source(gated=True)
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load)) for _ in range(1000)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await nobody_left()
    assert all(task.cancelled() for task in tasks)
    assert (source.calls, source.cancelled, source.finished) == (1, 1, 0)
    assert not await cache.exists("k")
    source.gate.set()
    assert await cache.get_or_set("k", source.load) == "value"


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("victim", ["leader", "follower"])
async def test_one_of_two_cancelled_at_any_moment(cache, make_source, settle, nobody_left, turns, victim):
    """Whenever one of two callers is cancelled, the other gets the value of one run of the factory."""
    source = make_source(gated=True)
    leader = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(turns)
    follower = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(turns)
    dying, living = (leader, follower) if victim == "leader" else (follower, leader)
    dying.cancel()
    await settle()
    source.gate.set()
    assert await living == "value"
    with pytest.raises(asyncio.CancelledError):
        await dying
    assert source.finished == 1
    assert source.calls == 1
    assert await cache.get("k") == "value"
    await nobody_left()


@pytest.mark.parametrize("turns", TURNS)
async def test_the_only_caller_cancelled_at_any_moment(cache, make_source, settle, nobody_left, turns):
    """Whenever a lone caller is cancelled, its task ends cancelled and the key is free."""
    source = make_source()
    task = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(turns)
    was_done = task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() is not was_done
    await nobody_left()
    fresh = make_source("fresh")
    value = await cache.get_or_set("k", fresh.load)
    assert value == ("value" if source.finished and not fresh.calls else "fresh")


@pytest.mark.parametrize("turns", TURNS[1:])
async def test_a_newcomer_at_any_moment_after_the_last_cancellation(cache, make_source, settle, turns):
    """Who comes while a deserted load is being cancelled gets a value of a load of its own."""
    first, second = make_source("first", gated=True), make_source("second")
    task = asyncio.create_task(cache.get_or_set("k", first.load))
    await settle(5)
    task.cancel()
    await settle(turns)
    async with asyncio.timeout(2):
        value = await cache.get_or_set("k", second.load)
    assert value == "second"
    assert await cache.get("k") == "second"
    assert first.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_newcomer_in_the_tick_of_the_last_cancellation(cache, make_source, settle):
    """A caller created in the tick in which the last waiter is cancelled gets a right value, not an error."""
    source = make_source(gated=True)
    old = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(5)
    old.cancel()
    new = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle()
    source.gate.set()
    async with asyncio.timeout(2):
        assert await new == "value"
    assert old.cancelled()
    assert await cache.get("k") == "value"


@pytest.mark.parametrize("order", ["finish first", "cancel first"])
@pytest.mark.parametrize("between", range(4))
async def test_the_factory_ends_as_the_last_waiter_is_cancelled(
    cache, make_source, settle, nobody_left, order, between
):
    """Finish and cancellation in the same few turns: the caller is cancelled or served, and nothing is left."""
    source = make_source(gated=True)
    task = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(5)
    if order == "finish first":
        source.gate.set()
        await settle(between)
        was_done = task.done()
        task.cancel()
    else:
        was_done = task.done()
        task.cancel()
        await settle(between)
        source.gate.set()
    await asyncio.wait([task])
    assert task.cancelled() is not was_done
    await nobody_left()
    assert await cache.get("k") in (None, "value")
    assert await cache.get_or_set("k", make_source("again").load) in ("value", "again")


async def test_the_factory_fails_as_the_last_waiter_is_cancelled(cache, make_source, settle, nobody_left):
    """An error that nobody waits for any more is not reported as never retrieved."""
    source = make_source(gated=True)
    source.error = lambda: OSError("too late")
    task = asyncio.create_task(cache.get_or_set("k", source.load))
    await settle(5)
    source.gate.set()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await nobody_left()


async def test_a_factory_that_raises_cancelled_error(cache, nobody_left):
    """A ``CancelledError`` of the factory's own is `LoadCancelled` for its callers, who are not cancelled."""

    async def load() -> str:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def caller() -> int:
        with pytest.raises(LoadCancelled):
            await cache.get_or_set("k", load)
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    assert await asyncio.gather(*(caller() for _ in range(5))) == [0] * 5
    await nobody_left()
    assert await cache.get_or_set("k", lambda: 1) == 1


async def test_a_factory_that_raises_cancelled_error_at_once(cache):
    """So it is before the first await, and in a plain function."""

    async def soon() -> str:
        raise asyncio.CancelledError

    def sooner() -> str:
        raise asyncio.CancelledError

    for load in (soon, sooner):
        with pytest.raises(LoadCancelled):
            await cache.get_or_set("k", load)
    assert await cache.get_or_set("k", lambda: 1) == 1


async def test_a_factory_whose_task_is_cancelled_from_outside(cache, settle):
    """Cancelling the task that the factory runs in gives its waiters `LoadCancelled`."""
    tasks: list[asyncio.Task[str]] = []

    async def load() -> str:
        tasks.append(asyncio.current_task())
        await asyncio.Event().wait()
        return "never"

    callers = [asyncio.create_task(cache.get_or_set("k", load)) for _ in range(3)]
    await settle()
    assert tasks[0] not in callers
    tasks[0].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LoadCancelled] * 3


async def test_a_factory_that_awaits_a_cancelled_task(cache):
    """A child task's cancellation inside the factory is the load's trouble, not the caller's."""

    async def load() -> str:
        child = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        child.cancel()
        await child
        return "never"

    with pytest.raises(LoadCancelled):
        await cache.get_or_set("k", load)
    assert asyncio.current_task().cancelling() == 0


async def test_a_callers_deadline_is_its_own(cache, make_source, settle):
    """``asyncio.timeout`` around the first caller ends its wait only, and leaves no cancellation counted."""
    source = make_source(gated=True)

    async def hasty() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await cache.get_or_set("k", source.load)
        return asyncio.current_task().cancelling()

    first = asyncio.create_task(hasty())
    await settle(3)
    second = asyncio.create_task(cache.get_or_set("k", source.load))
    assert await first == 0
    source.gate.set()
    assert await second == "value"
    assert (source.calls, source.cancelled) == (1, 0)


async def test_a_lone_callers_deadline_cancels_the_load(cache, make_source, nobody_left):
    """When the timeout of the only caller passes, the factory is cancelled."""
    source = make_source(gated=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await cache.get_or_set("k", source.load)
    assert asyncio.current_task().cancelling() == 0
    await nobody_left()
    assert source.cancelled == 1


async def test_wait_for_around_a_caller(cache, make_source):
    """``wait_for`` cancels just the caller that it wraps."""
    source = make_source(gated=True)
    patient = asyncio.create_task(cache.get_or_set("k", source.load))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cache.get_or_set("k", source.load), 0.01)
    source.gate.set()
    assert await patient == "value"


async def test_a_task_group_that_falls_takes_only_its_own(cache, make_source, settle):
    """A load started in a task group outlives the group while somebody outside waits for it."""
    source = make_source(gated=True)

    async def failing() -> None:
        await settle()
        raise ValueError("group falls")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cache.get_or_set("k", source.load))
            tasks.create_task(failing())

    falling = asyncio.create_task(group())
    await settle(5)
    outside = asyncio.create_task(cache.get_or_set("k", source.load))
    with pytest.raises(ExceptionGroup):
        await falling
    source.gate.set()
    assert await outside == "value"
    assert source.calls == 1


@pytest.mark.parametrize("how", ["close", "throw"])
async def test_a_waiter_stepped_by_hand(cache, make_source, nobody_left, how):
    """A waiting coroutine that is closed or thrown into has stopped waiting: the load is cancelled."""
    source = make_source(gated=True)
    waiting = cache.get_or_set("k", source.load)
    waiting.send(None)
    await asyncio.sleep(0)
    if how == "close":
        waiting.close()
    else:
        with pytest.raises(asyncio.CancelledError):
            waiting.throw(asyncio.CancelledError())
    await nobody_left()
    assert source.calls == source.cancelled
    source.gate.set()
    assert await cache.get_or_set("k", source.load) == "value"


async def test_a_storm_of_cancellations(cache, settle, nobody_left):
    """Thousands of callers cancelled at many moments: nobody gets another key's value, no later call fails."""

    async def load(key: int) -> int:
        for _ in range(key % 5):
            await asyncio.sleep(0)
        return key

    tasks = []
    for i in range(1500):
        key = i % 50
        tasks.append((key, asyncio.create_task(cache.get_or_set(f"k{key}", partial(load, key)))))
    for number, (_, task) in enumerate(tasks):
        if number % 3 != 1:
            task.cancel()
        if number % 7 == 0:
            await asyncio.sleep(0)
    outcomes = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    for (key, _), outcome in zip(tasks, outcomes, strict=True):
        assert outcome == key or isinstance(outcome, asyncio.CancelledError)
    await nobody_left()
    for key in range(50):
        assert await cache.get_or_set(f"k{key}", partial(load, key)) == key
