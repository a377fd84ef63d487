"""async-lru, ``alru_cache`` with a bound and a ttl."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from async_lru import alru_cache

from benchmarks.contract import Peer, Run


@asynccontextmanager
async def _memoize(keys: Sequence[Any]) -> AsyncIterator[Run]:
    @alru_cache(maxsize=20_000, ttl=600)
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
    await double.cache_close()


@asynccontextmanager
async def _miss(keys: Sequence[Any]) -> AsyncIterator[Run]:
    @alru_cache(maxsize=20_000, ttl=600)
    async def slow(key: str) -> str:
        await asyncio.sleep(0)
        return key

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await slow(key)
        return time.perf_counter() - start

    yield run
    await slow.cache_close()


@asynccontextmanager
async def _stampede(called: Sequence[Any]) -> AsyncIterator[Run]:
    calls = called[0]

    @alru_cache(maxsize=20_000, ttl=600)
    async def slow(key: str) -> str:
        calls.add()
        await asyncio.sleep(0.01)
        return key

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        await asyncio.gather(*map(slow, keys))
        return time.perf_counter() - start

    yield run
    await slow.cache_close()


PEER = Peer("async-lru", {"memoize": _memoize, "miss": _miss, "stampede": _stampede})
