"""Tags: one call makes everything that carries a tag a miss, at once and for good."""

import time

import pytest

from asynccache import Cache

pytestmark = pytest.mark.usefixtures("quiet")


async def test_an_invalidated_entry_is_absent_for_every_call(cache):
    """After an invalidation no call finds the entry."""
    await cache.set("k", 1, tags=["t"])
    await cache.invalidate_tags("t")
    assert await cache.get("k") is None
    assert await cache.get_many(["k"]) == {}
    assert not await cache.exists("k")
    assert await cache.ttl("k") is None
    assert await cache.touch("k", 5) is False
    assert await cache.set("k", 2, only_if="present") is False
    assert await cache.entry("k") is None
    assert await cache.add("k", 3) is True
    assert await cache.get("k") == 3


async def test_a_counter_starts_again(cache):
    """An invalidated counter counts from zero."""
    await cache.set("k", 41, tags=["t"])
    assert await cache.incr("k") == 42
    await cache.invalidate_tags("t")
    assert await cache.incr("k") == 1


async def test_only_what_carries_the_tag(cache):
    """An invalidation touches the entries of its tags, of any of them, and no other."""
    await cache.set("a", 1, tags=["x"])
    await cache.set("b", 2, tags=["x", "y"])
    await cache.set("c", 3, tags=["z"])
    await cache.set("d", 4)
    await cache.set("e", 5, tags=("w",))
    await cache.invalidate_tags("y", "w")
    assert await cache.get_many([*"abcde"]) == {"a": 1, "c": 3, "d": 4}


@pytest.mark.parametrize("tag", ["*", "!", "?", "[a-z]", "a,b", "a b", "\n", "t\\", "{x}", "日本", ":", "__proto__"])
async def test_strange_tags_are_ordinary(cache, tag):
    """A tag's characters mean nothing."""
    await cache.set("strange", 1, tags=[tag])
    await cache.set("plain", 2, tags=["a", "b", "x", "t"])
    await cache.invalidate_tags(tag)
    assert await cache.get_many(["strange", "plain"]) == {"plain": 2}


async def test_order_within_one_instant(cache):
    """Thousands of sets and invalidations in turn, while the clock stands still: each sees just what came before it."""
    for number in range(3000):
        await cache.set("k", number, tags=["t"])
        assert await cache.get("k") == number
        await cache.invalidate_tags("t")
        assert await cache.get("k") is None


async def test_order_within_one_instant_for_loads(cache):
    """So it is for loaded values."""
    for number in range(500):

        async def load(number=number):
            return number

        assert await cache.get_or_set("k", lambda load=load: load(), tags=["t"]) == number
        assert await cache.get("k") == number
        await cache.invalidate_tags("t")


async def test_the_cost_does_not_grow_with_the_entries(sb):
    """A tag on 30,000 entries is invalidated within a few milliseconds of work."""
    async with Cache("memory://?max_entries=100000", clock=sb.clock) as cache:
        await cache.set_many({f"k{number}": number for number in range(30_000)}, ttl="1h", tags=["t"])
        assert await cache.get("k29999") == 29_999
        began = time.thread_time()
        await cache.invalidate_tags("t")
        assert time.thread_time() - began < 0.005
        assert await cache.get("k0") is None
        assert await cache.get("k29999") is None


async def test_an_evicted_tag_brings_nothing_back(sb):
    """However many other tags and entries come and go, an invalidated value stays away."""
    async with Cache("memory://?max_entries=50", clock=sb.clock) as cache:
        await cache.set("k", "old", tags=["t"])
        await cache.invalidate_tags("t")
        for number in range(500):
            assert await cache.get("k") is None
            await cache.set(f"other{number}", number, tags=[f"tag{number}"])
            await cache.invalidate_tags(f"tag{number}")
        assert await cache.get("k") is None


async def test_a_living_value_outlives_other_tags(sb):
    """A value whose tag was never invalidated is found whatever happens to thousands of other tags."""
    async with Cache("memory://?max_entries=5000", clock=sb.clock) as cache:
        await cache.set("k", "good", tags=["t"])
        for number in range(2000):
            await cache.invalidate_tags(f"tag{number}")
        assert await cache.get("k") == "good"


async def test_a_set_without_tags_drops_them(cache):
    """A value set anew carries the new tags only."""
    await cache.set("k", 1, tags=["t"])
    await cache.set("k", 2)
    await cache.invalidate_tags("t")
    assert await cache.get("k") == 2


async def test_clear_then_set(cache):
    """After an invalidation and a clear a new value with the same tag is found."""
    await cache.set("k", 1, tags=["t"])
    await cache.invalidate_tags("t")
    await cache.clear()
    await cache.set("k", 2, tags=["t"])
    assert await cache.get("k") == 2


async def test_policy_tags(sb):
    """Tags of the cache's policy are on every entry."""
    from asynccache import Policy

    async with Cache(clock=sb.clock, policy=Policy(tags=["all"])) as cache:
        await cache.set("a", 1)
        await cache.get_or_set("b", lambda: 2)
        await cache.invalidate_tags("all")
        assert await cache.get_many([*"ab"]) == {}


async def test_one_text_is_not_a_collection(cache):
    """A forgotten pair of brackets is an error, not a tag per letter."""
    with pytest.raises((TypeError, ValueError), match="tags"):
        await cache.set("k", 1, tags="users")
    with pytest.raises((TypeError, ValueError), match="tags"):
        await cache.get_or_set("k", lambda: 1, tags="users")


async def test_an_invalidated_value_is_no_fallback(cache, sb):
    """A stale value whose tag was invalidated does not stand in for a failing load."""

    async def fail():
        raise OSError("down")

    await cache.set("k", "old", ttl=1, grace="1h", tags=["t"])
    sb.travel(2)
    await cache.invalidate_tags("t")
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", fail, ttl=1, grace="1h")
