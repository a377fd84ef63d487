"""The face refuses what is wrong, in words, and keeps its word at the corners of each call."""

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from asynccache import (
    MISSING,
    BackendError,
    Cache,
    ConfigError,
    EncodeError,
    InvalidKeyError,
    MemoryBackend,
    Policy,
    Stats,
)
from asynccache.clock import SystemClock
from asynccache.testing import TravellingClock


@pytest_asyncio.fixture(params=["root", "view"])
async def cache(request: pytest.FixtureRequest, clock: TravellingClock) -> AsyncIterator[Cache]:
    """A cache, and a view of one: every call means the same on both."""
    async with Cache(ttl="10m", clock=clock) as opened:
        yield opened if request.param == "root" else opened.namespace("view")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"name": ""}, "name is a non-empty text"),
        ({"name": 5}, "name is a non-empty text, not 5"),
        ({"policy": {"ttl": 5}}, "policy is a Policy"),
        ({"on_error": None}, "on_error"),
        ({"telemetry": True}, "telemetry"),
        ({"local": "memory://"}, "local already"),
        ({"store": MemoryBackend(), "local": MemoryBackend()}, "local already"),
        ({"namespace": 5}, "namespace is a str"),
        ({"ttl": "soon"}, "soon"),
        ({"ttl": 0}, "0"),
    ],
)
def test_wrong_options(options: Any, hint: str) -> None:
    """A wrong option is a ``ValueError`` that names it and shows what was given."""
    with pytest.raises(ValueError, match=hint):
        Cache(**options)


def test_the_ttl_is_above_the_policys() -> None:
    """A cache's own ttl replaces its policy's, ``None`` included; the policy itself is not changed."""
    policy = Policy(ttl=5, grace=7)

    async def ttl_of(**options: Any) -> float | None:
        async with Cache(policy=policy, **options) as cache:
            await cache.set("k", 1)
            return await cache.ttl("k")

    assert asyncio.run(ttl_of()) == pytest.approx(5, abs=1)
    assert asyncio.run(ttl_of(ttl="1h")) == pytest.approx(3600, abs=1)
    assert asyncio.run(ttl_of(ttl=None)) == math.inf
    assert policy == Policy(ttl=5, grace=7)


@pytest.mark.parametrize("key", [5, None, b"k", ["k"], {}, "", "a\0b"])
async def test_what_is_no_key(cache: Cache, key: Any) -> None:
    """What is no key is refused by every call that takes one, also what cannot be hashed or added to a text."""
    for call in (
        lambda: cache.get(key),
        lambda: cache.get_or_set(key, lambda: 1),
        lambda: cache.set(key, 1),
        lambda: cache.exists(key),
        lambda: cache.entry(key),
        lambda: cache.touch(key, 5),
        lambda: cache.incr(key),
        lambda: cache.delete(key),
    ):
        with pytest.raises(InvalidKeyError):
            await call()


async def test_one_text_is_no_collection_of_keys(cache: Cache) -> None:
    """A text where keys are asked for is refused, not taken letter by letter."""
    for call in (
        lambda: cache.get_many("abc"),
        lambda: cache.delete_many("abc"),
        lambda: cache.get_or_set_many("abc", lambda keys: {}),
    ):
        with pytest.raises(InvalidKeyError, match="not one text"):
            await call()


@pytest.mark.parametrize("factory", [None, 5, "f"])
async def test_what_is_no_factory(cache: Cache, factory: Any) -> None:
    """A factory or loader that cannot be called is a ``TypeError`` that says what it is; so is a coroutine."""
    with pytest.raises(TypeError, match=type(factory).__name__):
        await cache.get_or_set("k", factory)
    with pytest.raises(TypeError, match=type(factory).__name__):
        await cache.get_or_set_many(["k"], factory)


@pytest.mark.parametrize("delta", [1.0, True, "1", None])
async def test_what_is_no_count(cache: Cache, delta: Any) -> None:
    """Counters go by whole numbers: anything else is a ``TypeError``, and nothing is counted."""
    with pytest.raises(TypeError):
        await cache.incr("n", delta)
    with pytest.raises(TypeError):
        await cache.decr("n", delta)
    assert await cache.get("n") is None


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, "", "5 minutes ago", timedelta(0), True, []])
async def test_what_is_no_duration(cache: Cache, ttl: Any) -> None:
    """Every call that takes a duration refuses nonsense, and changes nothing."""
    await cache.set("there", 1)
    for call in (
        lambda: cache.set("k", 1, ttl),
        lambda: cache.set("k", 1, grace=ttl),
        lambda: cache.set_many({"k": 1}, ttl),
        lambda: cache.set_many({"k": 1}, grace=ttl),
        lambda: cache.add("k", 1, ttl),
        lambda: cache.touch("there", ttl),
        lambda: cache.incr("k", ttl=ttl),
        lambda: cache.get_or_set("k", lambda: 1, ttl),
        lambda: cache.get_or_set_many(["k"], lambda keys: {"k": 1}, ttl),
        lambda: cache.lock("k", ttl=ttl).__aenter__(),
    ):
        with pytest.raises((ValueError, TypeError)):
            await call()
    assert await cache.get_many(["k", "there"]) == {"there": 1}
    assert await cache.ttl("there") == 600


async def test_bad_tags_write_nothing(cache: Cache) -> None:
    """A tag that could not be a key is refused, and so is one text for many; nothing is written or hidden."""
    for tags in ([""], ["a\0"], [5], "abc"):
        with pytest.raises(ValueError, match=r".+"):
            await cache.set("k", 1, tags=tags)
        with pytest.raises(ValueError, match=r".+"):
            await cache.get_or_set("k", lambda: 1, tags=tags)
    with pytest.raises(InvalidKeyError):
        await cache.invalidate_tags("fine", "")
    assert not await cache.exists("k")


async def test_writes_with_everything(cache: Cache, clock: TravellingClock) -> None:
    """``set``, ``add`` and ``set_many`` take ttl, grace and tags alike, and the entry shows them."""
    await cache.set("a", 1, ttl=5, grace=7, tags=["t", "t"])
    assert await cache.add("b", 1, ttl="5s", grace="7s", tags=("t",))
    assert await cache.set_many({"c": 1}, ttl=timedelta(seconds=5), grace=7, tags={"t"})
    for key in "abc":
        entry = await cache.entry(key)
        assert entry is not None
        assert entry.fresh_until - entry.created_at == pytest.approx(5)
        assert entry.expires_at - entry.fresh_until == pytest.approx(7)
        assert len(entry.tags) == 1
    clock.travel(6)
    assert await cache.get_many(list("abc")) == {}
    assert [await cache.get_or_set(key, lambda: 1 / 0) for key in "abc"] == [1, 1, 1]
    await cache.invalidate_tags("t")
    assert [await cache.entry(key) for key in "abc"] == [None] * 3


async def test_a_negative_value_that_is_set(clock: TravellingClock) -> None:
    """A ``None`` that is set lives for the policy's ``negative_ttl``, alone or among many, unless the call says."""
    async with Cache(clock=clock, policy=Policy(ttl=100, negative_ttl=5)) as cache:
        await cache.set("a", None)
        await cache.set_many({"b": None, "c": 0})
        await cache.set("d", None, ttl=50)
        assert [await cache.ttl(key) for key in "abcd"] == [5, 5, 100, 50]


async def test_a_ttl_by_the_value_that_is_set(clock: TravellingClock) -> None:
    """A policy's ttl of the value holds for what is set too; what it answers is checked."""
    async with Cache(clock=clock, ttl=lambda value: value) as cache:
        await cache.set("a", 5)
        await cache.set_many({"b": "1m", "c": None})
        assert [await cache.ttl(key) for key in "abc"] == [5, 60, math.inf]
        with pytest.raises(ValueError, match="-1"):
            await cache.set("d", -1)
        assert not await cache.exists("d")


async def test_touch_keeps_the_grace(cache: Cache, clock: TravellingClock) -> None:
    """A touched entry keeps its grace, from its new end; one without expiry gets a grace with its first."""
    await cache.set("k", 1, ttl=5, grace=7)
    clock.travel(3)
    assert await cache.touch("k", 10)
    entry = await cache.entry("k")
    assert entry.expires_at - entry.fresh_until == pytest.approx(7)
    assert await cache.ttl("k") == 10


async def test_a_hit_on_what_cannot_be_copied(clock: TravellingClock) -> None:
    """With ``copy=true`` a value that cannot be copied is refused loudly when it is set, and the old one is gone."""
    async with Cache("memory://?copy=true", clock=clock) as cache:
        generator = (letter for letter in "abc")
        with pytest.raises(EncodeError):
            await cache.set("k", generator)
        with pytest.raises(EncodeError):
            await cache.set_many({"k": generator})
        assert not await cache.exists("k")


async def test_a_view_of_a_closed_cache(clock: TravellingClock) -> None:
    """A view is closed with its cache, and the other way round; statistics can be read afterwards."""
    cache = Cache(clock=clock)
    view = cache.namespace("view")
    await view.set("k", 1)
    assert await view.get("k") == 1
    await view.aclose()
    assert cache.stats().hits == 1
    assert "closed" not in repr(cache)


def test_looks() -> None:
    """A cache shows its store and name, and no more; the missing value and the clock show what they are."""
    assert repr(Cache(name="users", namespace="secret")) == "Cache('memory', name='users')"
    assert repr(MISSING) == "MISSING"
    assert repr(SystemClock()) == "SystemClock()"
    assert Cache().get.__qualname__ == "Cache.get"
    assert "default" in (Cache().get.__doc__ or "")


@pytest.mark.parametrize(
    ("counted", "ratio"),
    [({}, 0.0), ({"misses": 3}, 0.0), ({"hits": 2, "stale_hits": 1, "misses": 1}, 0.75), ({"hits": 1}, 1.0)],
)
def test_hit_ratio(counted: Any, ratio: float) -> None:
    """The hit ratio is what was answered from the cache, fresh or stale, of all reads; 0 before the first."""
    assert Stats(**counted).hit_ratio == ratio


async def test_a_handed_in_store_gives_its_clock(clock: TravellingClock) -> None:
    """A cache on a store with a clock of its own goes by that clock, and leaves the store open."""
    store = MemoryBackend(clock=clock)
    async with Cache(store, ttl=5) as cache:
        await cache.set("k", 1)
        clock.travel(6)
        assert await cache.get("k") is None
        await cache.set("k", 2)
    async with Cache(store) as other:
        assert await other.get("k") == 2


async def test_a_listing_that_is_given_up(cache: Cache) -> None:
    """A listing may be left in the middle; what was listed so far is right."""
    await cache.set_many({f"k{number}": number for number in range(10)})
    listing = cache.keys("k*")
    first = await anext(listing)
    await listing.aclose()
    assert first.startswith("k")
    assert [key async for key in cache.keys("nothing*")] == []


async def test_a_bad_name_of_a_view() -> None:
    """A view's name is a key: empty and NUL are refused."""
    for name in ("", "a\0b", 5):
        with pytest.raises(InvalidKeyError):
            Cache().namespace(name)


def test_a_cache_takes_the_options_of_its_policy() -> None:
    """Beside ``ttl``; what is no option is told with what was perhaps meant."""
    cache = Cache(ttl="5m", grace="1h", policy=Policy(jitter=0.1))
    assert cache._core.policy == Policy(ttl="5m", grace="1h", jitter=0.1)
    with pytest.raises(ConfigError, match="did you mean 'ttl'"):
        Cache(tll="5m")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="'ten' is not a duration"):
        Cache(ttl="ten")


@pytest.mark.parametrize(
    "store", [5, None, Path("/tmp"), Redis(), MemoryBackend], ids=["5", "None", "Path", "Redis", "class"]
)
def test_what_is_no_store_is_refused(store: Any) -> None:
    """By a sentence that says what would be one."""
    with pytest.raises(ConfigError, match="a store is a URL"):
        Cache(store)


def test_a_codec_beside_a_store_object_is_refused() -> None:
    """It would be left aside: values that were to be encrypted would lie there as they are."""
    with pytest.raises(ConfigError, match="codec goes with"):
        Cache(MemoryBackend(), codec="json")


async def test_an_async_on_error_is_refused() -> None:
    """Nobody would await it."""

    async def told(error: BackendError) -> None: ...

    with pytest.raises(ConfigError, match="plain function"):
        Cache(on_error=told)
