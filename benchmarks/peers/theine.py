"""theine, W-TinyLFU in Rust: its store is synchronous, called within a coroutine; its Memoize takes coroutines."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from theine import Cache, Memoize

from benchmarks.contract import Peer, Run

_TTL = timedelta(minutes=10)


@asynccontextmanager
async def _get(keys: Sequence[Any]) -> AsyncIterator[Run]:
    cache: Cache[Any, Any] = Cache(20_000)
    for key in keys:
        cache.set(key, key, _TTL)

    async def get(key: str) -> Any:
        return cache.get(key)

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await get(key)
        return time.perf_counter() - start

    yield run
    cache.close()


@asynccontextmanager
async def _set(keys: Sequence[Any]) -> AsyncIterator[Run]:
    cache: Cache[Any, Any] = Cache(20_000)

    async def put(key: str, value: Any) -> None:
        cache.set(key, value, _TTL)

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await put(key, key)
        return time.perf_counter() - start

    yield run
    cache.close()


@asynccontextmanager
async def _memoize(keys: Sequence[Any]) -> AsyncIterator[Run]:
    @Memoize(20_000, _TTL)
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
    @Memoize(20_000, _TTL)
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

    @Memoize(20_000, _TTL)
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
    "theine",
    {"get": _get, "set": _set, "memoize": _memoize, "miss": _miss, "stampede": _stampede},
    {"get": "sync", "set": "sync", "memoize": "Memoize", "miss": "Memoize", "stampede": "Memoize"},
)
