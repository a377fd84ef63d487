"""A lock is for one at a time, and everybody gets his turn."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from waiting import turns

from asynccache import Cache, LockTimeout
from asynccache.testing import TravellingClock


@pytest_asyncio.fixture
async def cache(clock: TravellingClock) -> AsyncIterator[Cache]:
    """A cache that is closed afterwards."""
    async with Cache(clock=clock) as opened:
        yield opened


async def test_first_come_first_served(cache: Cache) -> None:
    """Who waits is next, in the order of coming: one who takes the lock again and again stands in line each time."""
    order: list[str] = []

    async def work(name: str, times: int) -> None:
        for _ in range(times):
            async with cache.lock("k", ttl=60):
                order.append(name)
                await turns(2)

    async with asyncio.timeout(5):
        greedy = asyncio.create_task(work("greedy", 5))
        await turns(1)
        await asyncio.gather(greedy, *(asyncio.create_task(work(name, 1)) for name in "abc"))
    assert order == ["greedy", "a", "b", "c", "greedy", "greedy", "greedy", "greedy"]


async def test_a_lapsed_lock(cache: Cache, clock: TravellingClock) -> None:
    """A lock that is held too long passes to the next in line; its late holder gives back nothing that is not his."""
    entered: list[str] = []
    gates = {name: asyncio.Event() for name in "abc"}

    async def work(name: str) -> None:
        async with cache.lock("k", ttl=10):
            entered.append(name)
            await gates[name].wait()

    tasks = [asyncio.create_task(work(name)) for name in "abc"]
    await turns()
    clock.travel(11)
    await turns()
    assert entered == ["a", "b"]
    gates["a"].set()
    await turns()
    assert entered == ["a", "b"]
    gates["b"].set()
    await turns()
    assert entered == ["a", "b", "c"]
    gates["c"].set()
    await asyncio.gather(*tasks)


async def test_those_in_line_who_leave(cache: Cache, clock: TravellingClock) -> None:
    """Whoever leaves the line, by cancellation or timeout, in the very tick of his turn too, the next one enters."""
    entered: list[str] = []

    async def work(name: str, timeout: float | None = None) -> None:
        async with cache.lock("k", ttl=60, timeout=timeout):
            entered.append(name)

    holding = cache.lock("k", ttl=60)
    await holding.__aenter__()
    a, b, c, d = [
        asyncio.create_task(work(name, timeout)) for name, timeout in (("a", None), ("b", 5), ("c", None), ("d", None))
    ]
    await turns()
    clock.travel(6)
    await turns()
    with pytest.raises(LockTimeout):
        await b
    await holding.__aexit__(None, None, None)
    a.cancel()  # it was woken a moment ago
    c.cancel()
    async with asyncio.timeout(2):
        await asyncio.wait([a, c, d])
    assert entered == ["d"]
    async with asyncio.timeout(2), cache.lock("k", ttl=60):
        pass
