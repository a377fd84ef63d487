"""The tasks of a cache's own: how many go on at the same time, and how they end."""

import asyncio
import inspect

import pytest
from waiting import turns

from asynccache import Cache, CacheError
from asynccache._background import Background

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize("count", [0, 1, 3, 2_500])
async def test_the_results_of_works_are_in_their_order(count: int) -> None:
    """However many there are, and in whatever order they end."""

    async def work(number: int) -> int:
        for _ in range(number % 3):
            await asyncio.sleep(0)
        return number

    assert await Background().together([work(number) for number in range(count)]) == list(range(count))


@pytest.mark.parametrize("ending", [ValueError, asyncio.CancelledError])
async def test_works_that_never_begin_are_closed(ending: type[BaseException]) -> None:
    """When one of very many fails, or all are given up, those whose turn would have come are not left lying about."""

    async def fails() -> None:
        raise ending

    async def works() -> None:
        await asyncio.sleep(0)

    later = [works() for _ in range(1_500)]
    with pytest.raises(ending):
        await Background().together([fails(), *later])
    await turns()
    assert {inspect.getcoroutinestate(each) for each in later} == {inspect.CORO_CLOSED}


async def test_a_factory_that_will_not_end_does_not_hold_up_the_closing() -> None:
    """One that swallows its cancellation is left alone after a second."""
    gate = asyncio.Event()

    async def stubborn() -> str:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                pass
        return "value"

    cache = Cache()
    call = asyncio.ensure_future(cache.get_or_set("key", stubborn))
    await turns()
    try:
        async with asyncio.timeout(10):
            await cache.aclose()
    finally:
        gate.set()
    await asyncio.wait([call])
    assert isinstance(call.exception(), CacheError)


async def test_a_factory_may_close_its_cache() -> None:
    """It is not cancelled by its own hand."""
    cache = Cache()
    closed = False

    async def load() -> str:
        nonlocal closed
        await cache.aclose()
        await asyncio.sleep(0)
        closed = True
        return "value"

    await asyncio.gather(cache.get_or_set("key", load), return_exceptions=True)
    await turns()
    assert closed
