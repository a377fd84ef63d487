"""A million entries with a ttl in one process: filling, memory, and the loop's pauses when all fall due at once.

Each row has a process of its own and runs two fills.

1. For the times and the bytes: every entry gets a ttl of ten minutes. Keys and values exist before; the bytes are the
   growth of the resident memory per entry: what the machine pays, with the spare room of tables and of the allocator.
   (``tracemalloc`` is exact about the objects, blind to the rest, and makes the insertion several times slower.)
   Just after it (not before: tables that were freed change how the allocator finds room for the next) a bare dictionary
   takes in the same entries, with no ttl and no await: "x dict" is what an insertion costs in units of that, which a
   slow hour of the machine changes less than the nanoseconds.
2. For the pauses: every entry gets what is left until one common deadline, a few seconds ahead: all fall due at once.
   A task asks to be woken every millisecond; how much later than that it wakes is a pause. Garbage collection is on,
   nothing is frozen; the longest collection within that time is shown beside the pauses that it may explain. "calm" is
   the longest pause of the same task before anything is due, on a loop with nothing else to do: the machine's own.
"""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import quantiles
from typing import Any

from asynccache import Cache
from asynccache.backends.memory import MemoryBackend
from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.toys import HeapStore, TimerStore

_ENTRIES: Mapping[Size, int] = {"full": 1_000_000, "quick": 100_000, "tiny": 1_000}
_LEAST_WAIT: Mapping[Size, float] = {
    "full": 1.5,
    "quick": 0.5,
    "tiny": 0.1,
}  # seconds between the end of the second fill and the common deadline, at least
_BEFORE = 0.05  # the pauses are watched from so many seconds before the deadline
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class _Store:
    """How to fill a store and how to ask how many it holds.

    Attributes:
        fill: Store all, each with its own ttl.
        count: How many are held.
        aclose: Let go.
    """

    fill: Callable[[Iterable[tuple[str, Any, float]]], Awaitable[None]]
    count: Callable[[], int]
    aclose: Callable[[], Awaitable[None]]


def _ours(policy: str) -> _Store:
    cache = Cache(f"memory://?max_entries=2000000&policy={policy}", namespace="bench", telemetry="off")

    async def fill(entries: Iterable[tuple[str, Any, float]]) -> None:
        for key, value, ttl in entries:
            await cache.set(key, value, ttl=ttl)

    return _Store(fill, lambda: cache.stats().entries, cache.aclose)


def _bare(policy: str) -> _Store:
    """The synchronous store that a cache holds, without the cache."""
    store = MemoryBackend(max_entries=2_000_000, policy=policy)
    now = time.monotonic

    async def fill(entries: Iterable[tuple[str, Any, float]]) -> None:
        for key, value, ttl in entries:
            store.put(key, value, now(), ttl)

    async def aclose() -> None:
        store.aclose_now()

    return _Store(fill, store.__len__, aclose)


def _toy(store: HeapStore | TimerStore) -> _Store:
    async def fill(entries: Iterable[tuple[str, Any, float]]) -> None:
        for key, value, ttl in entries:
            await store.set(key, value, ttl=ttl)

    return _Store(fill, store.__len__, store.aclose)


_ROWS: Mapping[str, tuple[Role, Callable[[], _Store]]] = {
    "asynccache lru": ("ours", lambda: _ours("lru")),
    "asynccache lru, bare store": ("ours", lambda: _bare("lru")),
    "asynccache s3fifo": ("ours", lambda: _ours("s3fifo")),
    "toy: heapq": ("reference", lambda: _toy(HeapStore())),
    "toy: call_later": ("reference", lambda: _toy(TimerStore())),
}


def resident_bytes() -> float:
    """The resident memory of this process; NaN where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else float("nan")


def _bare_dict(keys: list[str], values: list[float]) -> float:
    """Nanoseconds for a dictionary to take in each of the entries."""
    held: dict[str, float] = {}
    start = time.perf_counter()
    for key, value in zip(keys, values, strict=True):
        held[key] = value
    return (time.perf_counter() - start) / len(keys) * 1e9


class _Collections:
    """The longest garbage collection since `reset`."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._start = 0.0

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._start = time.perf_counter()
        else:
            self.longest = max(self.longest, time.perf_counter() - self._start)


@asynccontextmanager
async def _lags(every: float = 0.001) -> AsyncIterator[list[float]]:
    """The list to which a task writes how late the loop wakes it."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + every
            await asyncio.sleep(every)
            lags.append(time.perf_counter() - due)

    ticker = asyncio.get_running_loop().create_task(tick())
    try:
        yield lags
    finally:
        ticker.cancel()
        await asyncio.wait([ticker])


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    opened = _ROWS[row][1]
    entries = _ENTRIES[size]
    keys = [f"user:{number}" for number in range(entries)]
    values = [float(number) for number in range(entries)]
    numbers: dict[str, float] = {}

    store = opened()
    gc.collect()
    before = resident_bytes()
    start = time.perf_counter()
    await store.fill(zip(keys, values, repeat(600.0), strict=False))
    took = time.perf_counter() - start
    numbers["insert"] = took / entries * 1e9
    gc.collect()
    numbers["bytes"] = (resident_bytes() - before) / entries
    await store.aclose()
    del store
    gc.collect()
    numbers["x dict"] = numbers["insert"] / _bare_dict(keys, values)

    collections = _Collections()
    for patience in (1, 3, 10):  # a machine that is busy at times may need more of it
        store = opened()
        deadline = time.monotonic() + (took * 1.6 + _LEAST_WAIT[size]) * patience
        await store.fill((key, value, deadline - time.monotonic()) for key, value in zip(keys, values, strict=True))
        gc.collect()
        ahead = deadline - time.monotonic() - _BEFORE
        if ahead > 0:
            break
        await store.aclose()
    else:
        raise RuntimeError(f"{row}: filling took {-ahead:.1f} s too long, the entries fell due meanwhile")
    async with _lags() as lags:
        await asyncio.sleep(ahead / 2)
    numbers["calm"] = max(lags) * 1e3
    await asyncio.sleep(max(deadline - time.monotonic() - _BEFORE, 0.0))
    filled = store.count()
    gc.callbacks.append(collections)
    async with _lags() as lags:
        await asyncio.sleep(0)  # the ticker is on its way before anything is due
        until = deadline + _PATIENCE
        while True:
            await asyncio.sleep(0.01)
            if not store.count() or time.monotonic() > until:
                break
        numbers["gone"] = time.monotonic() - deadline
        await asyncio.sleep(0.05)
    gc.callbacks.remove(collections)
    if filled != entries:
        raise RuntimeError(f"{row}: {filled} of {entries} entries were there just before they fell due")
    if store.count():
        raise RuntimeError(f"{row}: {store.count()} entries are still there {_PATIENCE:g} s after they fell due")
    numbers["pause"] = max(lags) * 1e3
    numbers["p99"] = quantiles(lags, n=100, method="inclusive")[98] * 1e3
    numbers["collection"] = collections.longest * 1e3
    await store.aclose()
    return numbers


def _rows(_: Size) -> list[tuple[str, Role] | Absent]:
    return [(name, role) for name, (role, _) in _ROWS.items()]


SCENARIO = Measured(
    "million",
    "a million entries with a ttl (quick: 100,000), all due at once",
    lambda: [
        Column("insert", "ns", at_most=1_200),
        Column("x dict", "×", 1),
        Column("bytes", "B/entry", at_most=170),
        Column("pause", "ms", 2, at_most=5),
        Column("p99", "ms", 2),
        Column("calm", "ms", 2),
        Column("collection", "ms", 2),
        Column("gone", "s", 2),
    ],
    _rows,
    _measure,
    isolated=True,
)
