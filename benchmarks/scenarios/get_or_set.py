"""A hit of ``await cache.get_or_set(key, factory)``."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asynccache import Cache
from benchmarks.contract import AtMost, Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.peers import peer_cases
from benchmarks.stock import MANY, Shuffled

_KEYS = Shuffled([f"user:{number}" for number in range(MANY)])


@asynccontextmanager
async def _ours() -> AsyncIterator[Run]:
    async def factory() -> str:
        return "value"

    async with Cache("memory://?max_entries=20000", namespace="bench", ttl="10m", telemetry="off") as cache:
        for key in _KEYS.all:
            await cache.set(key, key)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.get_or_set(key, factory)
            return time.perf_counter() - start

        yield run


SCENARIO = Timed(
    "get_or_set",
    "get_or_set, hit",
    lambda _: [
        floor_case(_KEYS.all),
        Case("asynccache lru, ttl", "ours", _ours, (AtMost(2.0, to="floor"),)),
        *peer_cases("get_or_set", _KEYS.all),
    ],
    _KEYS,
)
