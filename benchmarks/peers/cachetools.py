"""cachetools, TTLCache: a synchronous store, called within a coroutine."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cachetools import TTLCache

from benchmarks.contract import Peer, Run


@asynccontextmanager
async def _get(keys: Sequence[Any]) -> AsyncIterator[Run]:
    cache: TTLCache[Any, Any] = TTLCache(20_000, 600)
    for key in keys:
        cache[key] = key

    async def get(key: str) -> Any:
        return cache.get(key)

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await get(key)
        return time.perf_counter() - start

    yield run


@asynccontextmanager
async def _set(keys: Sequence[Any]) -> AsyncIterator[Run]:
    cache: TTLCache[Any, Any] = TTLCache(20_000, 600)

    async def put(key: str, value: Any) -> None:
        cache[key] = value

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await put(key, key)
        return time.perf_counter() - start

    yield run


PEER = Peer("cachetools", {"get": _get, "set": _set}, {"get": "TTLCache, sync", "set": "TTLCache, sync"})
