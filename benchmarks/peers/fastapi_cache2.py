"""fastapi-cache2, ``@cache`` on the in-memory backend, called without a request: its key and its store are timed."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi_cache import FastAPICache
from fastapi_cache.backends.inmemory import InMemoryBackend
from fastapi_cache.decorator import cache

from benchmarks.contract import Peer, Run


@asynccontextmanager
async def _memoize(keys: Sequence[Any]) -> AsyncIterator[Run]:
    FastAPICache.init(InMemoryBackend(), prefix="bench")

    @cache(expire=600)
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
    await FastAPICache.clear(namespace="")
    FastAPICache.reset()


PEER = Peer("fastapi-cache2", {"memoize": _memoize}, {"memoize": "@cache, no request"})
