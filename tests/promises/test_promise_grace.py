"""The last good value stands in while the source fails or is slow, for as long as its grace lasts."""

import asyncio

import pytest

from asynccache import LoadTimeout

pytestmark = pytest.mark.usefixtures("quiet")


def broken(make_source, **options):
    source = make_source(**options)
    source.error = lambda: OSError("down")
    return source


async def test_a_failing_load_is_answered_with_the_stale_value(cache, sb, make_source):
    """Within the grace a failure is answered with the last good value; the statistics tell."""
    options = {"ttl": 10, "grace": "1h"}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(11)
    source = broken(make_source)
    assert await cache.get_or_set("k", source.load, **options) == "good"
    assert source.calls == 1
    stats = cache.stats()
    assert (stats.stale_hits, stats.load_failures) == (1, 1)


async def test_a_stale_value_is_not_a_value_elsewhere(cache, sb):
    """Only `get_or_set` sees past the ttl: for all other calls a stale key is absent."""
    await cache.set("k", 1, ttl=10, grace="1h")
    sb.travel(11)
    assert await cache.get("k") is None
    assert await cache.get_many(["k"]) == {}
    assert not await cache.exists("k")
    assert await cache.ttl("k") is None
    assert await cache.touch("k", 10) is False
    assert await cache.set("k", 2, only_if="present") is False
    assert await cache.incr("k") == 1


async def test_adding_over_a_stale_value(cache, sb):
    """A stale key is absent for ``add``."""
    await cache.set("k", 1, ttl=10, grace="1h")
    sb.travel(11)
    assert await cache.add("k", 2) is True
    assert await cache.get("k") == 2


async def test_a_working_load_replaces_the_stale_value(cache, sb, make_source):
    """A stale key is loaded again, and the caller gets the new value."""
    await cache.get_or_set("k", make_source("old").load, ttl=10, grace="1h")
    sb.travel(11)
    source = make_source("new")
    assert await cache.get_or_set("k", source.load, ttl=10, grace="1h") == "new"
    assert await cache.get("k") == "new"


async def test_the_throttle(cache, sb, make_source):
    """Ttl 1 s, grace 4 s, throttle 1 s, a source that fails for 4 s of reads: at most four tries; then its error."""
    options = {"ttl": 1, "grace": 4, "grace_throttle": 1}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(1.05)
    source = broken(make_source)
    for _ in range(39):
        assert await cache.get_or_set("k", source.load, **options) == "good"
        sb.travel(0.1)
    assert 2 <= source.calls <= 4
    sb.travel(0.5)
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", source.load, **options)


async def test_the_throttle_counts_from_the_failure(cache, sb, make_source):
    """A value that is stale for long is throttled all the same."""
    options = {"ttl": 1, "grace": "1h", "grace_throttle": 5}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(600)
    source = broken(make_source)
    for _ in range(10):
        assert await cache.get_or_set("k", source.load, **options) == "good"
    assert source.calls == 1
    sb.travel(5.1)
    assert await cache.get_or_set("k", source.load, **options) == "good"
    assert source.calls == 2


async def test_the_throttle_is_half_a_minute_unless_told(cache, sb, make_source):
    """Without ``grace_throttle`` the next try is 30 s after the failure."""
    options = {"ttl": 1, "grace": "1h"}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(2)
    source = broken(make_source)
    await cache.get_or_set("k", source.load, **options)
    sb.travel(29)
    await cache.get_or_set("k", source.load, **options)
    assert source.calls == 1
    sb.travel(2)
    await cache.get_or_set("k", source.load, **options)
    assert source.calls == 2


async def test_recovery(cache, sb, make_source):
    """When the source works again its value is fresh for a whole ttl."""
    options = {"ttl": 10, "grace": "1h", "grace_throttle": 1}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(11)
    await cache.get_or_set("k", broken(make_source).load, **options)
    sb.travel(2)
    assert await cache.get_or_set("k", make_source("new").load, **options) == "new"
    assert await cache.ttl("k") == pytest.approx(10)


async def test_without_grace_the_error_comes_at_once(cache, sb, make_source):
    """No grace, no stale value."""
    await cache.get_or_set("k", make_source("good").load, ttl=10)
    sb.travel(10.5)
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", broken(make_source).load, ttl=10)


async def test_the_end_of_the_grace(cache, sb, make_source):
    """Up to ttl + grace the stale value stands in, then it is gone; a short grace shortens no ttl."""
    options = {"ttl": 10, "grace": 2, "grace_throttle": 0.1}
    await cache.get_or_set("k", make_source("good").load, **options)
    source = broken(make_source)
    sb.travel(9.9)
    assert await cache.get_or_set("k", source.load, **options) == "good"
    assert source.calls == 0
    sb.travel(2)
    assert await cache.get_or_set("k", source.load, **options) == "good"
    sb.travel(0.2)
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", source.load, **options)


async def test_a_crowd_on_a_stale_key(cache, sb, make_source, settle):
    """Callers of a stale key share one load too, and one failure gives all of them the stale value."""
    options = {"ttl": 10, "grace": "1h"}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(11)
    source = broken(make_source, gated=True)
    tasks = [asyncio.create_task(cache.get_or_set("k", source.load, **options)) for _ in range(50)]
    await settle()
    source.gate.set()
    assert await asyncio.gather(*tasks) == ["good"] * 50
    assert source.calls == 1


async def test_the_callers_cancellation_is_no_failure(cache, sb, make_source, settle, nobody_left):
    """A cancelled caller is cancelled, stale value or not; and its going does not count as a failed load."""
    options = {"ttl": 10, "grace": "1h"}
    await cache.get_or_set("k", make_source("good").load, **options)
    sb.travel(11)
    source = make_source("new", gated=True)
    task = asyncio.create_task(cache.get_or_set("k", source.load, **options))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nobody_left()
    assert source.cancelled == 1
    assert cache.stats().load_failures == 0
    source.gate.set()
    assert await cache.get_or_set("k", source.load, **options) == "new"


async def test_the_soft_timeout(cache, sb, make_source, settle):
    """Past the soft timeout the stale value is returned; the load lands behind and stores."""
    options = {"ttl": 1, "grace": "1h", "soft_timeout": "100ms"}
    await cache.get_or_set("k", make_source("stale").load, **options)
    sb.travel(2)
    slow = make_source("new", gated=True)
    task = asyncio.create_task(cache.get_or_set("k", slow.load, **options))
    await settle()
    sb.travel("90ms")
    await settle()
    assert not task.done()
    sb.travel("20ms")
    assert await asyncio.wait_for(task, 2) == "stale"
    slow.gate.set()
    await settle()
    assert (slow.calls, slow.cancelled) == (1, 0)
    assert await cache.get("k") == "new"


async def test_the_soft_timeout_without_a_stale_value(cache, sb, make_source, settle):
    """Who has nothing to fall back on waits for the load."""
    slow = make_source("new", gated=True)
    task = asyncio.create_task(cache.get_or_set("k", slow.load, ttl=1, grace="1h", soft_timeout="100ms"))
    await settle()
    sb.travel(1)
    await settle()
    assert not task.done()
    slow.gate.set()
    assert await task == "new"


async def test_a_soft_timeouts_load_is_not_doubled(cache, sb, make_source, settle):
    """Ten callers past the soft timeout and ten more a second later: one load."""
    options = {"ttl": 1, "grace": "1h", "soft_timeout": 1}
    await cache.get_or_set("k", make_source("stale").load, **options)
    sb.travel(2)
    slow = make_source("new", gated=True)
    for _ in range(2):
        tasks = [asyncio.create_task(cache.get_or_set("k", slow.load, **options)) for _ in range(10)]
        await settle()
        sb.travel(1.1)
        assert await asyncio.wait_for(asyncio.gather(*tasks), 2) == ["stale"] * 10
    assert slow.calls == 1
    slow.gate.set()
    await settle()
    assert await cache.get("k") == "new"


async def test_the_hard_timeout(cache, sb, make_source, settle):
    """Past the hard timeout the caller gets `LoadTimeout`, a ``TimeoutError``; the value appears when it lands."""
    slow = make_source("late", gated=True)
    task = asyncio.create_task(cache.get_or_set("k", slow.load, hard_timeout="100ms"))
    await settle()
    sb.travel("90ms")
    await settle()
    assert not task.done()
    sb.travel("20ms")
    with pytest.raises(LoadTimeout):
        await asyncio.wait_for(task, 2)
    assert task.cancelling() == 0
    assert await cache.get("k") is None
    slow.gate.set()
    await settle()
    assert await cache.get("k") == "late"
    assert (slow.calls, slow.cancelled) == (1, 0)


async def test_the_hard_timeout_with_a_stale_value(cache, sb, make_source, settle):
    """Past the hard timeout the stale value is returned where there is one."""
    options = {"ttl": 1, "grace": "1h", "hard_timeout": "100ms"}
    await cache.get_or_set("k", make_source("stale").load, **options)
    sb.travel(2)
    slow = make_source("new", gated=True)
    task = asyncio.create_task(cache.get_or_set("k", slow.load, **options))
    await settle()
    sb.travel("110ms")
    assert await asyncio.wait_for(task, 2) == "stale"
    slow.gate.set()
    await settle()
    assert await cache.get("k") == "new"


async def test_who_comes_after_a_hard_timeout_joins(cache, sb, make_source, settle):
    """A detached load is still the load of its key: the next caller waits for it instead of running another."""
    slow = make_source("late", gated=True)
    first = asyncio.create_task(cache.get_or_set("k", slow.load, hard_timeout="100ms"))
    await settle()
    sb.travel("110ms")
    with pytest.raises(LoadTimeout):
        await asyncio.wait_for(first, 2)
    second = asyncio.create_task(cache.get_or_set("k", slow.load))
    await settle()
    slow.gate.set()
    assert await second == "late"
    assert slow.calls == 1


async def test_a_detached_load_survives_its_joiners(cache, sb, make_source, settle):
    """A caller who joins a detached load and is cancelled does not take the load along."""
    slow = make_source("late", gated=True)
    first = asyncio.create_task(cache.get_or_set("k", slow.load, hard_timeout="100ms"))
    await settle()
    sb.travel("110ms")
    with pytest.raises(LoadTimeout):
        await asyncio.wait_for(first, 2)
    second = asyncio.create_task(cache.get_or_set("k", slow.load))
    await settle()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await settle()
    assert slow.cancelled == 0
    slow.gate.set()
    await settle()
    assert await cache.get("k") == "late"


@pytest.mark.parametrize("stubborn", [False, True])
async def test_the_background_timeout(cache, sb, make_source, settle, nobody_left, stubborn):
    """A detached load that hangs is cancelled after the background timeout; its key is free even if it stays."""
    release = asyncio.Event()
    cancelled: list[bool] = []

    async def hung() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            if not stubborn:
                raise
            await release.wait()
        return "too late"

    task = asyncio.create_task(cache.get_or_set("k", hung, hard_timeout="100ms", background_timeout=2))
    await settle()
    sb.travel("110ms")
    with pytest.raises(LoadTimeout):
        await asyncio.wait_for(task, 2)
    await settle()
    assert cancelled == []
    sb.travel(2.1)
    await settle()
    assert cancelled == [True]
    assert await asyncio.wait_for(cache.get_or_set("k", make_source("next").load), 2) == "next"
    release.set()
    await nobody_left()
    assert await cache.get("k") == "next"


async def test_a_late_failure_is_not_reported(cache, sb, make_source, settle, nobody_left):
    """A detached load that fails does so without a complaint of the loop's, and counts as a failed load."""
    slow = broken(make_source, gated=True)
    task = asyncio.create_task(cache.get_or_set("k", slow.load, hard_timeout="100ms"))
    await settle()
    sb.travel("110ms")
    with pytest.raises(LoadTimeout):
        await asyncio.wait_for(task, 2)
    slow.gate.set()
    await nobody_left()
    assert cache.stats().load_failures >= 1


async def test_a_load_in_time_leaves_no_timer_behind(cache, sb, make_source, nobody_left):
    """A load within its limits is done when it is done: travelling far afterwards changes nothing."""
    options = {"ttl": "1h", "grace": "1h", "soft_timeout": "100ms", "hard_timeout": "1s", "background_timeout": 2}
    source = make_source("v")
    assert await cache.get_or_set("k", source.load, **options) == "v"
    sb.travel(60)
    await nobody_left()
    assert await cache.get("k") == "v"
    assert source.cancelled == 0


async def test_the_factorys_own_timeout_is_its_own_error(cache):
    """A ``TimeoutError`` raised by the factory is not dressed as `LoadTimeout`."""

    async def load() -> str:
        raise TimeoutError("database")

    with pytest.raises(TimeoutError, match="database") as caught:
        await cache.get_or_set("k", load)
    assert not isinstance(caught.value, LoadTimeout)


async def test_a_failure_at_once_with_a_stale_value(cache, sb):
    """A factory that raises before its first await is answered with the stale value too, also a plain function."""

    async def load() -> str:
        raise OSError("at once")

    def plain() -> str:
        raise OSError("at once")

    for number, factory in enumerate((load, plain)):
        await cache.set(f"k{number}", "good", ttl=1, grace="1h")
        sb.travel(2)
        assert await cache.get_or_set(f"k{number}", factory, ttl=1, grace="1h") == "good"


async def test_grace_of_the_policy(sb, make_source):
    """What the cache's policy says holds for every call that says nothing."""
    from asynccache import Cache, Policy

    async with Cache(clock=sb.clock, policy=Policy(ttl=5, grace="1m")) as cache:
        await cache.get_or_set("k", make_source("good").load)
        await cache.set("j", "also")
        sb.travel(6)
        assert await cache.get_or_set("k", broken(make_source).load) == "good"
        assert await cache.get_or_set("j", broken(make_source).load) == "also"
        assert await cache.get_or_set("k", make_source("mine").load, policy=Policy(ttl=1)) in ("good", "mine")
