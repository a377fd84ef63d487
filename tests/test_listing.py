"""Lists of keys: a slice at a time, and never short without a word."""

import logging
from collections.abc import AsyncIterator

import pytest

from asynccache import BackendUnavailable, Cache
from asynccache.testing import FaultyBackend
from examples.custom_backend import ToyBackend

NAMES = [f"k{number:04}" for number in range(1_000)]


class Slow(ToyBackend):
    """A store that counts the names it was asked for, and stops after so many."""

    stops_at = len(NAMES)
    named = 0

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        async for key in super().keys(prefix):
            if self.named == self.stops_at:
                raise BackendUnavailable("gone")
            self.named += 1
            yield key


async def filled(store: ToyBackend, **options: object) -> Cache:
    """A cache on a store that has all names."""
    await Cache(store).set_many(dict.fromkeys(NAMES, 1))
    return Cache(store, **options)  # type: ignore[arg-type]


async def listed(cache: Cache) -> list[str]:
    """All keys."""
    return [key async for key in cache.keys()]  # noqa: SIM118 - a cache is no mapping


async def test_keys_come_before_all_are_known() -> None:
    """Who wants a few keys waits for one slice of them."""
    store = Slow()
    cache = await filled(store)
    async for _ in cache.keys():
        break
    assert 0 < store.named < 500
    assert sorted(await listed(await filled(ToyBackend()))) == NAMES


async def test_a_slice_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Its keys are missing, which is logged and counted; the others are listed."""
    store = FaultyBackend(inner := ToyBackend())
    await filled(inner)
    cache = Cache(store)
    store.fail("get_many", times=1)
    with caplog.at_level(logging.WARNING, "asynccache"):
        found = await listed(cache)
    assert 0 < len(found) < len(NAMES)
    assert cache.stats().errors == 1
    assert "keys failed" in caplog.text


async def test_a_slice_that_fails_is_raised() -> None:
    """Where failures are to be raised, no list is short."""
    store = FaultyBackend(inner := ToyBackend())
    await filled(inner)
    cache = Cache(store, on_error="raise")
    store.fail("get_many", times=1)
    with pytest.raises(BackendUnavailable):
        await listed(cache)


async def test_a_store_that_goes_away_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    """What it has named before is listed, and that there may be more is told, or raised."""
    store = Slow()
    store.stops_at = 600
    cache = await filled(store)
    assert len(await listed(cache)) == 600
    assert cache.stats().errors == 1
    assert "keys failed" in caplog.text
    store.named = 0
    with pytest.raises(BackendUnavailable):
        await listed(await filled(store, on_error="raise"))


async def test_keys_may_be_removed_while_they_are_listed() -> None:
    """Each is listed that was there all the time, once."""
    for cache in (await filled(ToyBackend()), Cache()):
        await cache.set_many(dict.fromkeys(NAMES, 1))
        found = []
        async for key in cache.keys():
            found.append(key)
            await cache.delete(key)
        assert sorted(found) == NAMES
        assert await listed(cache) == []
