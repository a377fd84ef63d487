"""A hit of a memoized coroutine function of one integer."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from asynccache import Cache
from benchmarks.contract import AtMost, Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.peers import peer_cases
from benchmarks.stock import MANY, Shuffled

_KEYS = Shuffled(range(MANY))


@asynccontextmanager
async def _ours(template: str | None) -> AsyncIterator[Run]:
    async with Cache("memory://?max_entries=20000", namespace="bench", ttl="10m", telemetry="off") as cache:

        @cache.memoize(ttl="10m", key=template)
        async def double(number: int) -> int:
            return number * 2

        for key in _KEYS.all:
            await double(key)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await double(key)
            return time.perf_counter() - start

        yield run


def _default_key() -> AbstractAsyncContextManager[Run]:
    return _ours(None)


def _template_key() -> AbstractAsyncContextManager[Run]:
    return _ours("double:{number}")


SCENARIO = Timed(
    "memoize",
    "a memoized coroutine function, hit",
    lambda _: [
        floor_case(_KEYS.all),
        Case("asynccache default key", "ours", _default_key, (AtMost(1 / 1.3, to="async-lru"),)),
        Case("asynccache template key", "ours", _template_key, (AtMost(1.0, to="async-lru"),)),
        *peer_cases("memoize", _KEYS.all),
    ],
    _KEYS,
)
