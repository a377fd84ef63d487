"""What the interpreter itself takes: the ground under every other number."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contract import Case, Run, Timed
from benchmarks.floor import floor_case
from benchmarks.stock import MANY, Shuffled

_KEYS = Shuffled([f"user:{number}" for number in range(MANY)])


@asynccontextmanager
async def _bare_await() -> AsyncIterator[Run]:
    async def nothing(key: str) -> None:
        return None

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            await nothing(key)
        return time.perf_counter() - start

    yield run


@asynccontextmanager
async def _dict_get() -> AsyncIterator[Run]:
    table = {key: (key, 0.0) for key in _KEYS.all}

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            table.get(key)
        return time.perf_counter() - start

    yield run


@asynccontextmanager
async def _clock() -> AsyncIterator[Run]:
    now = time.monotonic

    async def run(keys: Sequence[Any]) -> float:
        start = time.perf_counter()
        for _ in keys:
            now()
        return time.perf_counter() - start

    yield run


SCENARIO = Timed(
    "floor",
    "The floor: await of a coroutine that does one dict.get and one clock check, and its parts",
    lambda _: [
        floor_case(_KEYS.all),
        Case("bare await", "reference", _bare_await),
        Case("dict.get, no await", "reference", _dict_get),
        Case("monotonic(), no await", "reference", _clock),
    ],
    _KEYS,
)
