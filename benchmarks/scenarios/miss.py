"""A miss with single flight, of a factory that suspends once; every key is new."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asynccache import Cache
from benchmarks.contract import AtMost, Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.peers import peer_cases
from benchmarks.stock import Fresh


async def _factory() -> str:
    await asyncio.sleep(0)
    return "value"


@asynccontextmanager
async def _get_or_set() -> AsyncIterator[Run]:
    async with Cache("memory://?max_entries=20000", namespace="bench", ttl="10m", telemetry="off") as cache:

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.get_or_set(key, _factory)
            return time.perf_counter() - start

        yield run


@asynccontextmanager
async def _memoize() -> AsyncIterator[Run]:
    async with Cache("memory://?max_entries=20000", namespace="bench", ttl="10m", telemetry="off") as cache:

        @cache.memoize(ttl="10m")
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
async def _factory_alone() -> AsyncIterator[Run]:
    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for _ in keys:
            await _factory()
        return time.perf_counter() - start

    yield run


SCENARIO = Timed(
    "miss",
    "a miss with single flight, the factory suspends once",
    lambda _: [
        floor_case([]),
        Case("the factory alone", "reference", _factory_alone),
        Case("asynccache get_or_set", "ours", _get_or_set, (AtMost(12_000),)),
        Case("asynccache memoize", "ours", _memoize, (AtMost(12_000),)),
        *peer_cases("miss", []),
    ],
    Fresh(),
)
