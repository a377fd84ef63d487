"""aiocache, its SimpleMemoryCache."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiocache import SimpleMemoryCache, cached, cached_stampede

from benchmarks.contract import Peer, Run

_TTL = 600


@asynccontextmanager
async def _get(keys: Sequence[Any]) -> AsyncIterator[Run]:
    cache = SimpleMemoryCache(namespace="bench")
    for key in keys:
        await cache.set(key, key, ttl=_TTL)

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await cache.get(key)
        return time.perf_counter() - start

    yield run
    await cache.clear()


@asynccontextmanager
async def _set(keys: Sequence[Any]) -> AsyncIterator[Run]:
    cache = SimpleMemoryCache(namespace="bench")

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await cache.set(key, key, ttl=_TTL)
        return time.perf_counter() - start

    yield run
    await cache.clear()


@asynccontextmanager
async def _memoize(keys: Sequence[Any]) -> AsyncIterator[Run]:
    @cached(ttl=_TTL)
    async def double(number: int) -> int:
        return number * 2

    for key in keys:
        await double(key)

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await double(key)
        return time.perf_counter() - start

    yield run
    await SimpleMemoryCache().clear()


@asynccontextmanager
async def _miss(keys: Sequence[Any]) -> AsyncIterator[Run]:
    @cached_stampede(ttl=_TTL, lease=10)
    async def slow(key: str) -> str:
        await asyncio.sleep(0)
        return key

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await slow(key)
        return time.perf_counter() - start

    yield run
    await SimpleMemoryCache().clear()


@asynccontextmanager
async def _stampede(called: Sequence[Any]) -> AsyncIterator[Run]:
    calls = called[0]

    @cached_stampede(ttl=_TTL, lease=10)
    async def slow(key: str) -> str:
        calls.add()
        await asyncio.sleep(0.01)
        return key

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        await asyncio.gather(*map(slow, keys))
        return time.perf_counter() - start

    yield run
    await SimpleMemoryCache().clear()


PEER = Peer(
    "aiocache",
    {"get": _get, "set": _set, "memoize": _memoize, "miss": _miss, "stampede": _stampede},
    {"memoize": "@cached", "miss": "@cached_stampede", "stampede": "@cached_stampede"},
)
