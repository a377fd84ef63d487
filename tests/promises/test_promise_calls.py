"""Each call of the face, with every form of its arguments."""

import math
from datetime import timedelta

import pytest

from asynccache import MISSING, Cache, Entry

pytestmark = pytest.mark.usefixtures("quiet")


async def test_get(cache):
    """The value, or the default, by position or name; a stored None is a value."""
    assert await cache.get("k") is None
    assert await cache.get("k", 5) == 5
    assert await cache.get("k", default=MISSING) is MISSING
    await cache.set("k", None)
    assert await cache.get("k", 5) is None
    assert await cache.get("k", default=MISSING) is None


async def test_missing_is_falsy_and_prints_its_name():
    """`MISSING` reads well in a condition and in a message."""
    assert not MISSING
    assert repr(MISSING) == "MISSING"


async def test_set(cache):
    """A set is True, replaces, and keeps the very object."""
    value = ["list"]
    assert await cache.set("k", value) is True
    assert await cache.get("k") is value
    assert await cache.set("k", 2) is True
    assert await cache.get("k") == 2


async def test_set_only_if(cache):
    """``only_if`` decides whether it is written, and the answer says so."""
    assert await cache.set("k", 1, only_if="present") is False
    assert await cache.get("k") is None
    assert await cache.set("k", 1, only_if="absent") is True
    assert await cache.set("k", 2, only_if="absent") is False
    assert await cache.get("k") == 1
    assert await cache.set("k", 3, only_if="present") is True
    assert await cache.get("k") == 3
    assert await cache.set("k", 4, only_if=None) is True


async def test_a_refused_set_changes_nothing(cache):
    """A set whose condition does not hold leaves value, ttl and tags as they were."""
    await cache.set("k", 1, ttl=50, tags=["t"])
    assert await cache.add("k", 2, ttl=500) is False
    assert await cache.get("k") == 1
    assert await cache.ttl("k") == pytest.approx(50)
    await cache.invalidate_tags("t")
    assert await cache.get("k") is None


@pytest.mark.parametrize("junk", ["Absent", "exists", True, 1])
async def test_set_only_if_nonsense(cache, junk):
    """An unknown condition is an error that names it, and nothing is written."""
    with pytest.raises((ValueError, TypeError), match="only_if"):
        await cache.set("k", 1, only_if=junk)
    assert not await cache.exists("k")


async def test_add(cache, sb):
    """``add`` writes only what is absent; an expired key is absent."""
    assert await cache.add("k", 1, ttl=5) is True
    assert await cache.add("k", 2) is False
    assert await cache.get("k") == 1
    sb.travel(6)
    assert await cache.add("k", 3) is True


async def test_add_over_none(cache):
    """A stored None is present."""
    await cache.set("k", None)
    assert await cache.add("k", 1) is False
    assert await cache.exists("k") is True


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (5, 5),
        (0.25, 0.25),
        (timedelta(minutes=2), 120),
        ("250ms", 0.25),
        ("90s", 90),
        ("1h30m", 5400),
        ("2d", 172_800),
        (None, math.inf),
        (..., 600),
    ],
)
async def test_every_form_of_a_duration(cache, given, seconds):
    """Numbers, timedeltas and texts are ttls, None is for ever, and a ttl left out is the cache's."""
    await cache.set("a", 1, given)
    await cache.set("b", 1, ttl=given)
    await cache.set_many({"c": 1}, ttl=given)
    await cache.add("d", 1, ttl=given)
    assert [await cache.ttl(key) for key in "abcd"] == [pytest.approx(seconds)] * 4


@pytest.mark.parametrize(
    "bad", [0, -1, 0.0, float("nan"), math.inf, "", "abc", "1", "-1s", timedelta(0), False, b"1s", [1]]
)
async def test_a_bad_duration(cache, bad):
    """Nonsense is a ``ValueError``, and nothing is written."""
    await cache.set("there", 1)
    for call in (
        lambda: cache.set("k", 1, ttl=bad),
        lambda: cache.set_many({"k": 1}, ttl=bad),
        lambda: cache.add("k", 1, ttl=bad),
        lambda: cache.set("k", 1, ttl=5, grace=bad),
        lambda: cache.touch("there", bad),
        lambda: cache.incr("k", ttl=bad),
    ):
        with pytest.raises(ValueError, match="duration"):
            await call()
    assert not await cache.exists("k")
    assert await cache.ttl("there") == pytest.approx(600)


async def test_a_bad_duration_says_what_was_given(cache):
    """The message shows the nonsense."""
    with pytest.raises(ValueError, match="five minutes"):
        await cache.set("k", 1, ttl="five minutes")


async def test_many(cache):
    """Several keys at once, found ones only; counted when deleted."""
    await cache.set_many({"a": 1, "b": None, "c": 3})
    assert await cache.get_many(["a", "b", "nope", "c"]) == {"a": 1, "b": None, "c": 3}
    assert await cache.get_many(key for key in "ac") == {"a": 1, "c": 3}
    assert await cache.delete_many(["a", "nope", "b"]) == 2
    assert await cache.get_many([*"abc"]) == {"c": 3}


async def test_many_of_nothing(cache):
    """Empty collections do nothing."""
    assert await cache.get_many([]) == {}
    await cache.set_many({})
    assert await cache.delete_many([]) == 0
    await cache.invalidate_tags()


async def test_deleting_a_key_named_twice(cache):
    """A key counts once."""
    await cache.set("a", 1)
    assert await cache.delete_many(["a", "a"]) == 1


async def test_delete(cache, sb):
    """Was it there? An expired key was not."""
    assert await cache.delete("k") is False
    await cache.set("k", 1, ttl=5)
    assert await cache.delete("k") is True
    assert await cache.delete("k") is False
    await cache.set("k", 1, ttl=5)
    sb.travel(6)
    assert await cache.delete("k") is False


async def test_exists(cache, sb):
    """True while fresh."""
    assert await cache.exists("k") is False
    await cache.set("k", None, ttl=5)
    assert await cache.exists("k") is True
    sb.travel(5.001)
    assert await cache.exists("k") is False


async def test_touch(cache, sb):
    """A new ttl from now for a key that is there."""
    assert await cache.touch("k", 5) is False
    await cache.set("k", 1, ttl=10)
    sb.travel(8)
    assert await cache.touch("k", "1m") is True
    assert await cache.ttl("k") == pytest.approx(60)
    assert await cache.touch("k", 5) is True
    sb.travel(4.9)
    assert await cache.get("k") == 1
    sb.travel(0.2)
    assert await cache.get("k") is None
    assert await cache.touch("k", 5) is False


async def test_touch_for_ever(cache, sb):
    """None takes the expiry away."""
    await cache.set("k", 1, ttl=10)
    assert await cache.touch("k", None) is True
    assert await cache.ttl("k") == math.inf
    sb.travel("1000d")
    assert await cache.get("k") == 1


async def test_touch_keeps_the_tags(cache):
    """A touched entry is still invalidated by its tags."""
    await cache.set("k", 1, ttl=10, tags=["t"])
    await cache.touch("k", 60)
    await cache.invalidate_tags("t")
    assert await cache.get("k") is None


async def test_ttl(cache, sb):
    """Seconds left as a float, infinity without expiry, None when absent."""
    assert await cache.ttl("k") is None
    await cache.set("k", 1, ttl=10)
    assert type(await cache.ttl("k")) is float
    sb.travel(4)
    assert await cache.ttl("k") == pytest.approx(6)
    await cache.set("k", 1, ttl=None)
    assert await cache.ttl("k") == math.inf


async def test_counting(cache, sb):
    """Counters start at zero, go both ways, and keep the ttl that they were created with."""
    assert await cache.incr("n") == 1
    assert await cache.incr("n", 5) == 6
    assert await cache.incr("n", delta=-2) == 4
    assert await cache.decr("n") == 3
    assert await cache.decr("n", 10) == -7
    assert await cache.get("n") == -7
    assert await cache.decr("m", ttl=5) == -1
    sb.travel(3)
    assert await cache.incr("m", ttl=100) == 0
    assert await cache.ttl("m") == pytest.approx(2)
    sb.travel(3)
    assert await cache.incr("m", ttl=100) == 1
    assert await cache.ttl("m") == pytest.approx(100)


async def test_counting_by_nothing_and_by_much(cache):
    """A delta of zero reads; big numbers are exact."""
    assert await cache.incr("n", 0) == 0
    assert await cache.incr("n", 2**62) == 2**62


@pytest.mark.parametrize("value", ["1", 1.5, None, [1]])
async def test_counting_what_is_no_number(cache, value):
    """A key that holds something else is a ``TypeError`` and keeps its value."""
    await cache.set("k", value)
    with pytest.raises(TypeError):
        await cache.incr("k")
    assert await cache.get("k") == value


async def test_counting_what_was_set(cache):
    """An integer that was set counts on, with its ttl."""
    await cache.set("n", 41, ttl=50)
    assert await cache.incr("n", ttl=5) == 42
    assert await cache.ttl("n") == pytest.approx(50)


async def test_entry(cache, sb):
    """The entry tells value, times and tags; looking changes nothing."""
    assert await cache.entry("k") is None
    await cache.set("k", "v", ttl=10, grace=20, tags=["a", "b"])
    entry = await cache.entry("k")
    assert isinstance(entry, Entry)
    assert entry.value == "v"
    assert set(entry.tags) == {"a", "b"}
    assert entry.fresh_until - entry.created_at == pytest.approx(10)
    assert entry.expires_at - entry.fresh_until == pytest.approx(20)
    sb.travel(31)
    assert await cache.entry("k") is None


async def test_entry_without_expiry(cache):
    """No expiry reads as infinity."""
    await cache.set("k", 1, ttl=None)
    assert (await cache.entry("k")).fresh_until == math.inf


async def test_stats(cache, sb, settle):
    """Hits, misses, loads and entries are counted exactly."""
    before = cache.stats()
    assert (before.hits, before.misses, before.entries) == (0, 0, 0)
    await cache.set("a", 1, ttl=5)
    await cache.get("a")
    await cache.get("nope")
    await cache.get_or_set("b", lambda: 2, ttl=5)
    await cache.get_or_set("b", lambda: 2, ttl=5)
    await cache.get_many(["a", "b", "c"])
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.entries) == (4, 3, 1, 2)
    assert (stats.stale_hits, stats.coalesced, stats.load_failures, stats.errors, stats.evictions) == (0, 0, 0, 0, 0)
    sb.travel(10)
    await settle(100)
    stats = cache.stats()
    assert (stats.expirations, stats.entries) == (2, 0)


async def test_ping(cache):
    """The memory always answers."""
    await cache.ping()


async def test_two_caches_on_one_url_count_apart(sb):
    """Statistics belong to a cache."""
    async with Cache(clock=sb.clock, name="one") as one, Cache(clock=sb.clock, name="two", namespace="x") as two:
        await one.get("k")
        assert two.stats().misses == 0
