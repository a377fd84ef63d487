"""How long a loaded value is fresh, and how it is renewed before it ages."""

import asyncio
import logging
import math

import pytest

from asynccache import Cache, Policy

pytestmark = pytest.mark.usefixtures("quiet")

AHEAD = {"ttl": 10, "refresh_ahead": 0.8}


async def test_no_refresh_before_its_time(cache, sb, make_source, settle):
    """At 7.9 of 10 s nothing is refreshed; at 8.1 the old value is returned at once and one refresh starts."""
    source = make_source("old")
    await cache.get_or_set("k", source.load, **AHEAD)
    sb.travel(7.9)
    assert await cache.get_or_set("k", source.load, **AHEAD) == "old"
    await settle()
    assert source.calls == 1
    sb.travel(0.2)
    source.value = "new"
    source.gate.clear()
    assert await asyncio.wait_for(cache.get_or_set("k", source.load, **AHEAD), 1) == "old"
    await settle()
    assert source.calls == 2
    source.gate.set()
    await settle()
    assert await cache.get_or_set("k", source.load, **AHEAD) == "new"
    assert source.calls == 2
    assert await cache.ttl("k") > 9


async def test_a_thousand_reads_one_refresh(cache, sb, make_source, settle):
    """All reads in the window together start one refresh."""
    source = make_source("old")
    await cache.get_or_set("k", source.load, **AHEAD)
    sb.travel(8.5)
    source.gate.clear()
    for _ in range(1000):
        assert await cache.get_or_set("k", source.load, **AHEAD) == "old"
    await settle()
    assert source.calls == 2
    source.gate.set()
    await settle()


async def test_a_failed_refresh(cache, sb, make_source, settle, caplog):
    """A failed refresh keeps the value to the end of its ttl, logs once, and is not tried on every read."""
    source = make_source("old")
    await cache.get_or_set("k", source.load, **AHEAD)
    source.error = lambda: OSError("down")
    sb.travel(8.5)
    with caplog.at_level(logging.INFO, logger="asynccache"):
        for _ in range(100):
            assert await cache.get_or_set("k", source.load, **AHEAD) == "old"
            await settle(5)
    assert source.calls == 2
    assert len([record for record in caplog.records if record.name.startswith("asynccache")]) == 1
    sb.travel(1.4)
    assert await cache.get("k") == "old"
    sb.travel(0.2)
    with pytest.raises(OSError, match="down"):
        await cache.get_or_set("k", source.load, **AHEAD)


async def test_a_miss_joins_the_refresh(cache, sb, make_source, settle):
    """Who misses while a refresh runs waits for the refresh."""
    source = make_source("old")
    await cache.get_or_set("k", source.load, **AHEAD)
    sb.travel(9)
    source.gate.clear()
    source.value = "new"
    await cache.get_or_set("k", source.load, **AHEAD)
    await settle()
    sb.travel(5)
    waiter = asyncio.create_task(cache.get_or_set("k", source.load, **AHEAD))
    await settle()
    assert not waiter.done()
    source.gate.set()
    assert await waiter == "new"
    assert source.calls == 2


async def test_the_refreshs_starter_is_cancelled(cache, sb, make_source, settle):
    """A refresh belongs to the cache: the cancellation of who started it, or of who joined it, does not end it."""
    source = make_source("old")
    await cache.get_or_set("k", source.load, **AHEAD)
    sb.travel(9)
    source.gate.clear()
    source.value = "new"

    async def starter() -> None:
        await cache.get_or_set("k", source.load, **AHEAD)
        await asyncio.Event().wait()

    task = asyncio.create_task(starter())
    await settle()
    task.cancel()
    await settle()
    sb.travel(2)
    joiner = asyncio.create_task(cache.get_or_set("k", source.load, **AHEAD))
    await settle()
    joiner.cancel()
    await settle()
    assert source.cancelled == 0
    source.gate.set()
    await settle()
    assert await cache.get("k") == "new"
    assert task.cancelled()
    assert joiner.cancelled()


async def test_a_hung_refresh_is_ended(cache, sb, make_source, settle):
    """A refresh that hangs is cancelled after the background timeout."""
    source = make_source("old")
    options = {"ttl": 100, "refresh_ahead": 0.5, "background_timeout": 2}
    await cache.get_or_set("k", source.load, **options)
    sb.travel(60)
    source.gate.clear()
    await cache.get_or_set("k", source.load, **options)
    await settle()
    sb.travel(2.1)
    await settle()
    assert source.cancelled == 1


async def test_an_endless_ttl_is_not_refreshed(sb, make_source, settle):
    """Without an expiry there is nothing to be ahead of."""
    source = make_source()
    async with Cache(clock=sb.clock) as cache:
        for _ in range(3):
            await cache.get_or_set("k", source.load, ttl=None, refresh_ahead=0.5)
            sb.travel("365d")
        await settle()
        assert source.calls == 1
        assert await cache.ttl("k") == math.inf


async def test_jitter(cache, make_source):
    """With a jitter of 10 % the ttls are 90 to 100 % of what was asked and spread over most of that."""
    policy = Policy(ttl=100, jitter=0.1)

    async def load() -> int:
        return 1

    ttls = []
    for number in range(1000):
        await cache.get_or_set(f"k{number}", load, policy=policy)
        ttls.append(await cache.ttl(f"k{number}"))
    assert all(90 - 1e-6 <= ttl <= 100 + 1e-6 for ttl in ttls)
    assert max(ttls) - min(ttls) > 5


async def test_sliding(cache, sb, make_source):
    """A sliding entry lives as long as it is read; looking at it is not reading."""
    source = make_source()
    options = {"ttl": 10, "sliding": True}
    for _ in range(5):
        assert await cache.get_or_set("k", source.load, **options) == "value"
        sb.travel(8)
    assert source.calls == 1
    assert await cache.exists("k")
    assert await cache.entry("k") is not None
    assert await cache.ttl("k") == pytest.approx(2)
    sb.travel(2.5)
    assert await cache.get("k") is None


async def test_sliding_by_get(sb):
    """A plain ``get`` slides too, when the cache's policy says so."""
    async with Cache(clock=sb.clock, policy=Policy(ttl=10, sliding=True)) as cache:
        await cache.set("k", 1)
        for _ in range(5):
            sb.travel(8)
            assert await cache.get("k") == 1
        sb.travel(8)
        assert await cache.exists("k")
        sb.travel(3)
        assert await cache.get("k") is None


async def test_negative_ttl(cache, sb, make_source):
    """A loaded None lives for ``negative_ttl``, any other value for its ttl."""
    options = {"ttl": 100, "negative_ttl": 5}
    nothing, something = make_source(None), make_source(0)
    for _ in range(2):
        assert await cache.get_or_set("none", nothing.load, **options) is None
        assert await cache.get_or_set("some", something.load, **options) == 0
    assert (nothing.calls, something.calls) == (1, 1)
    sb.travel(6)
    await cache.get_or_set("none", nothing.load, **options)
    await cache.get_or_set("some", something.load, **options)
    assert (nothing.calls, something.calls) == (2, 1)


async def test_cache_if(cache, make_source, settle):
    """A value that ``cache_if`` declines is returned to all who waited, and not stored."""
    source = make_source("bad", gated=True)
    tasks = [
        asyncio.create_task(cache.get_or_set("k", source.load, cache_if=lambda value: value != "bad")) for _ in range(3)
    ]
    await settle()
    source.gate.set()
    assert await asyncio.gather(*tasks) == ["bad"] * 3
    assert source.calls == 1
    assert await cache.get("k") is None


async def test_a_ttl_by_the_value(cache, make_source):
    """A ttl may be a function of the loaded value; None from it means for ever."""
    await cache.get_or_set("a", make_source({"life": 7}).load, ttl=lambda value: value["life"])
    await cache.get_or_set("b", make_source({"life": "2m"}).load, ttl=lambda value: value["life"])
    await cache.get_or_set("c", make_source({"life": None}).load, ttl=lambda value: value["life"])
    assert [await cache.ttl(key) for key in "abc"] == [pytest.approx(7), pytest.approx(120), math.inf]


async def test_a_ttl_left_out_is_the_policys(cache, make_source):
    """Ten minutes are the cache's; a policy given to the call is the call's; an option of the call is above both."""
    await cache.get_or_set("a", make_source().load)
    await cache.get_or_set("b", make_source().load, policy=Policy(ttl=50))
    await cache.get_or_set("c", make_source().load, 20, policy=Policy(ttl=50))
    await cache.get_or_set("d", make_source().load, None)
    await cache.get_or_set("e", make_source().load, ...)
    ttls = [await cache.ttl(key) for key in "abcde"]
    assert ttls == [pytest.approx(600), pytest.approx(50), pytest.approx(20), math.inf, pytest.approx(600)]


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "", "5 minutes", "-5s", True, [1]])
@pytest.mark.parametrize("option", ["ttl", "grace", "soft_timeout", "hard_timeout"])
async def test_a_bad_duration(cache, make_source, option, bad):
    """A duration that is none is a ``ValueError`` before anything is loaded, and says what was given."""
    source = make_source()
    with pytest.raises(ValueError, match="duration"):
        await cache.get_or_set("k", source.load, **{option: bad})
    assert source.calls == 0


async def test_an_unknown_option(cache, make_source):
    """An option that does not exist is refused before anything is loaded."""
    source = make_source()
    with pytest.raises((TypeError, ValueError), match="gracious"):
        await cache.get_or_set("k", source.load, gracious=5)
    assert source.calls == 0


@pytest.mark.parametrize("ttl", ["0.4s", 0.4, "36500d", 10**8, "1ms"])
async def test_extreme_ttls(cache, sb, ttl):
    """Fractions and centuries are kept as they were given."""
    await cache.set("k", 1, ttl=ttl)
    wanted = {"0.4s": 0.4, "1ms": 0.001, "36500d": 36500 * 86400.0}.get(ttl, ttl)
    assert await cache.ttl("k") == pytest.approx(wanted, abs=1e-5)
    sb.travel(wanted * 0.95)
    assert await cache.get("k") == 1
    sb.travel(wanted * 0.1)
    assert await cache.get("k") is None
