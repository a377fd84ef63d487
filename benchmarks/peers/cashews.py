"""cashews, its mem:// store; the periodic sweep is off, so that it does not run on other libraries' time."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cashews import Cache

from benchmarks.contract import Peer, Run

_TTL = "10m"


@asynccontextmanager
async def _cache() -> AsyncIterator[Cache]:
    cache = Cache()
    cache.setup("mem://", size=20_000, check_interval=0)
    await cache.init()
    yield cache
    await cache.close()


@asynccontextmanager
async def _get(keys: Sequence[Any]) -> AsyncIterator[Run]:
    async with _cache() as cache:
        for key in keys:
            await cache.set(key, key, expire=600)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.get(key)
            return time.perf_counter() - start

        yield run


@asynccontextmanager
async def _get_or_set(keys: Sequence[Any]) -> AsyncIterator[Run]:
    async def factory() -> str:
        return "value"

    async with _cache() as cache:
        for key in keys:
            await cache.set(key, key, expire=600)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.get_or_set(key, factory, expire=600)
            return time.perf_counter() - start

        yield run


@asynccontextmanager
async def _set(keys: Sequence[Any]) -> AsyncIterator[Run]:
    async with _cache() as cache:

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.set(key, key, expire=600)
            return time.perf_counter() - start

        yield run


@asynccontextmanager
async def _memoize(keys: Sequence[Any]) -> AsyncIterator[Run]:
    async with _cache() as cache:

        @cache(ttl=_TTL, key="double:{number}")
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


@asynccontextmanager
async def _miss(keys: Sequence[Any]) -> AsyncIterator[Run]:
    async with _cache() as cache:

        @cache(ttl=_TTL, key="slow:{key}", lock=True)
        async def slow(key: str) -> str:
            await asyncio.sleep(0)
            return key

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await slow(key)
            return time.perf_counter() - start

        yield run


@asynccontextmanager
async def _stampede(called: Sequence[Any]) -> AsyncIterator[Run]:
    calls = called[0]
    async with _cache() as cache:

        @cache(ttl=_TTL, key="slow:{key}", lock=True)
        async def slow(key: str) -> str:
            calls.add()
            await asyncio.sleep(0.01)
            return key

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            await asyncio.gather(*map(slow, keys))
            return time.perf_counter() - start

        yield run


PEER = Peer(
    "cashews",
    {"get": _get, "get_or_set": _get_or_set, "set": _set, "memoize": _memoize, "miss": _miss, "stampede": _stampede},
    {"memoize": "template key", "miss": "lock=True", "stampede": "lock=True"},
)
