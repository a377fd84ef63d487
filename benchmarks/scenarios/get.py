"""A hit of ``await cache.get(key)``: 10,000 keys in random order, with a namespace and statistics."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from asynccache import Cache
from benchmarks.contract import AtMost, Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.peers import peer_cases
from benchmarks.stock import MANY, Shuffled

_KEYS = Shuffled([f"user:{number}" for number in range(MANY)])


@asynccontextmanager
async def _filled(policy: str, ttl: str | None) -> AsyncIterator[Run]:
    url = f"memory://?max_entries=20000&policy={policy}"
    async with Cache(url, namespace="bench", ttl=ttl, telemetry="off") as cache:
        for key in _KEYS.all:
            await cache.set(key, key)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.get(key)
            return time.perf_counter() - start

        yield run


def _lru_ttl() -> AbstractAsyncContextManager[Run]:
    return _filled("lru", "10m")


def _lru() -> AbstractAsyncContextManager[Run]:
    return _filled("lru", None)


def _s3fifo_ttl() -> AbstractAsyncContextManager[Run]:
    return _filled("s3fifo", "10m")


SCENARIO = Timed(
    "get",
    "get, hit",
    lambda _: [
        floor_case(_KEYS.all),
        Case(
            "asynccache lru, ttl",
            "ours",
            _lru_ttl,
            (AtMost(1.5, to="floor"), AtMost(1 / 12, to="cashews"), AtMost(1 / 30, to="aiocache")),
        ),
        Case("asynccache lru, no ttl", "ours", _lru, (AtMost(1.3, to="floor"),)),
        Case("asynccache s3fifo, ttl", "ours", _s3fifo_ttl),
        *peer_cases("get", _KEYS.all),
    ],
    _KEYS,
)
