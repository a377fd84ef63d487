"""Locks in one process."""

import asyncio
import threading

import pytest
from waiting import turns

from asynccache import Cache, LockTimeout, MemoryBackend
from asynccache._locks import LocalLeases
from asynccache.backend import Lease
from asynccache.clock import SystemClock
from asynccache.testing import TravellingClock


@pytest.fixture
def cache(clock: TravellingClock) -> Cache:
    return Cache(clock=clock)


async def test_one_at_a_time(cache):
    """Of many who want the lock one is inside at any moment, in the order in which they asked."""
    inside, order = 0, []

    async def work(number: int) -> None:
        nonlocal inside
        async with cache.lock("job", ttl="1h"):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            order.append(number)
            inside -= 1

    await asyncio.gather(*(work(number) for number in range(20)))
    assert order == list(range(20))
    assert not len(cache._core.locks._leases)  # type: ignore[arg-type]


async def test_an_error_inside_gives_it_back(cache):
    """What the work raises goes through, and the lock is free."""
    with pytest.raises(ZeroDivisionError):
        async with cache.lock("job", ttl="1h"):
            raise ZeroDivisionError
    async with cache.lock("job", ttl="1h", timeout=1):
        pass


async def test_no_time_to_wait(cache, clock):
    """A caller who has waited for its timeout gets ``LockTimeout``, and the others keep their place."""

    async def take(timeout: float | None) -> str:
        async with cache.lock("job", ttl="1h", timeout=timeout):
            return "taken"

    async with cache.lock("job", ttl="1h"):
        short, long = asyncio.create_task(take(5)), asyncio.create_task(take(None))
        await turns()
        clock.travel(6)
        with pytest.raises(LockTimeout):
            await short
        assert not long.done()
    assert await long == "taken"


async def test_a_cancelled_waiter_passes_its_turn_on(cache):
    """Whoever is cancelled in the moment of being woken does not keep the lock from the next one."""

    async def take() -> str:
        async with cache.lock("job", ttl="1h"):
            return "taken"

    async with cache.lock("job", ttl="1h"):
        first, second = asyncio.create_task(take()), asyncio.create_task(take())
        await turns()
    first.cancel()
    assert await asyncio.wait_for(second, 2) == "taken"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_it_lapses(cache, clock):
    """After its ttl somebody else may have it; the late holder's giving it back takes nothing from him."""
    late = cache.lock("job", ttl=5)
    await late.__aenter__()
    clock.travel(6)
    async with cache.lock("job", ttl=30, timeout=1):
        await late.__aexit__(None, None, None)
        waiting = asyncio.create_task(cache.lock("job", ttl=30, timeout=1).__aenter__())
        await turns()
        clock.travel(2)
        with pytest.raises(LockTimeout):
            await waiting


async def test_caches_on_one_store_exclude_each_other():
    """Two caches on the same store and namespace share its locks; another namespace has its own."""
    store = MemoryBackend()
    one, two, other = Cache(store), Cache(store), Cache(store, namespace="other")
    async with one.lock("job", ttl="1h"):
        async with other.lock("job", ttl="1h", timeout=1):
            pass
        with pytest.raises(LockTimeout):
            async with two.lock("job", ttl="1h", timeout=0.01):
                pass


def test_two_threads():
    """A lock keeps out callers under the loop of another thread, and wakes them."""
    cache = Cache()
    held, order = threading.Event(), []

    async def holder() -> None:
        async with cache.lock("job", ttl="1h"):
            held.set()
            await asyncio.sleep(0.05)
            order.append("holder")

    async def waiter() -> None:
        await asyncio.to_thread(held.wait)
        async with cache.lock("job", ttl="1h", timeout="10s"):
            order.append("waiter")

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for work in (holder, waiter)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order == ["holder", "waiter"]


async def test_the_leases_of_a_process(clock):
    """Renewing holds a lease on; one that has lapsed or is another's can neither be renewed nor given back."""
    leases = LocalLeases(clock)
    lease = await leases.acquire("key", ttl=5)
    assert lease is not None
    clock.travel(4)
    assert await leases.renew(lease, ttl=5) is True
    clock.travel(4)
    assert await leases.acquire("key", ttl=5) is None
    clock.travel(2)
    assert await leases.renew(lease, ttl=5) is False
    assert await leases.renew(Lease("key", "forged"), ttl=5) is False
    await leases.release(Lease("key", "forged"))
    await leases.wait("nobody has this", timeout=30)


async def test_nothing_is_stored_by_them():
    """Leases of a process store no entries."""
    leases = LocalLeases(SystemClock())
    lease = await leases.acquire("key", ttl=5)
    assert lease is not None
    assert await leases.commit(lease, None) is False  # type: ignore[arg-type]
