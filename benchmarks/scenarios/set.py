"""``await cache.set(key, value, ttl=600)`` over keys that are mostly there already."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from asynccache import Cache
from benchmarks.contract import Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.peers import peer_cases
from benchmarks.stock import MANY, Shuffled

_KEYS = Shuffled([f"user:{number}" for number in range(MANY)])


@asynccontextmanager
async def _ours(policy: str) -> AsyncIterator[Run]:
    url = f"memory://?max_entries=20000&policy={policy}"
    async with Cache(url, namespace="bench", telemetry="off") as cache:

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await cache.set(key, key, ttl=600)
            return time.perf_counter() - start

        yield run


def _lru() -> AbstractAsyncContextManager[Run]:
    return _ours("lru")


def _s3fifo() -> AbstractAsyncContextManager[Run]:
    return _ours("s3fifo")


SCENARIO = Timed(
    "set",
    "set with a ttl",
    lambda _: [
        floor_case(_KEYS.all),
        Case("asynccache lru", "ours", _lru),
        Case("asynccache s3fifo", "ours", _s3fifo),
        *peer_cases("set", _KEYS.all),
    ],
    _KEYS,
)
