"""A local tier that Redis keeps coherent: what a hit costs, and for how long a reader sees what somebody has replaced.

*hit* is ``await cache.get(key)`` of a value that lies in the local tier, interleaved with the floor; *x floor* is the
median of the ratios taken inside a round. For *stale* another process writes one key at random times (a Poisson
process, 4 ms on average) while the reader polls its local tier without a pause: it is the time from the acknowledgement
of a write to the reader's first sight of it or of a later one, zero where it came before; both processes read one
monotonic clock. coredis and cashews have tracking caches of their own, for as many entries. (cashews' invalidations are
messages of RESP2, so it is told to speak that: redis-py's default is RESP3 since 8.0, with which none would arrive.)
"""

import asyncio
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from asynccache import Cache
from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.floor import Floor
from benchmarks.redis_server import Server, absent, running
from benchmarks.scenarios.file import of_its_own_garbage
from benchmarks.stock import Shuffled

_NAME = "redis_local"
_ROUNDS: Mapping[Size, int] = {"full": 15, "quick": 5, "tiny": 1}
_SECONDS: Mapping[Size, float] = {"full": 0.02, "quick": 0.005, "tiny": 0.0}
_WRITES: Mapping[Size, int] = {"full": 200, "quick": 40, "tiny": 5}
_ENTRIES = 10_000
_KEYS: Mapping[Size, int] = {"full": 1_000, "quick": 300, "tiny": 50}
_PAUSE = 0.004
_PATIENCE = 5.0
_TTL = 600
_WRITTEN = "written"


@dataclass(frozen=True, slots=True)
class _Tiered:
    """A cache whose values are small integers."""

    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str, int], Awaitable[Any]]


@asynccontextmanager
async def _ours(server: Server) -> AsyncIterator[_Tiered]:
    local = f"memory://?max_entries={_ENTRIES}"
    async with Cache(server.url(), local=local, namespace="bench", ttl="10m", telemetry="off") as cache:
        yield _Tiered(cache.get, cache.set)


@asynccontextmanager
async def _coredis(server: Server) -> AsyncIterator[_Tiered]:
    import coredis
    from coredis.cache import LRUCache

    async with coredis.Redis(server.host, server.port, cache=LRUCache(_ENTRIES)) as client:
        yield _Tiered(client.get, lambda key, value: client.set(key, value, ex=_TTL))


@asynccontextmanager
async def _cashews(server: Server) -> AsyncIterator[_Tiered]:
    import cashews

    cache = cashews.Cache()
    cache.setup(server.url(), client_side=True, protocol=2)
    await cache.init()
    yield _Tiered(cache.get, lambda key, value: cache.set(key, value, expire=_TTL))
    await cache.close()


_CACHES: Mapping[str, tuple[Role, Callable[[Server], AbstractAsyncContextManager[_Tiered]]]] = {
    "asynccache": ("ours", _ours),
    "coredis": ("peer", _coredis),
    "cashews": ("peer", _cashews),
}


def _rows(_: Size) -> Sequence[tuple[str, Role] | Absent]:
    if missing := absent(_NAME):
        return missing
    rows: list[tuple[str, Role] | Absent] = []
    for name, (role, _open) in _CACHES.items():
        if importlib.util.find_spec(name) is None:  # a peer is optional
            rows.append(Absent(name, f"No module named {name!r}"))
        else:
            rows.append((name, role))
    return rows


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    _, open_ = _CACHES[row]
    with of_its_own_garbage(), running() as server:
        async with open_(server) as cache:
            return {**await _hits(cache, size), **await _staleness(row, cache, server, size)}


async def _hits(cache: _Tiered, size: Size) -> dict[str, float]:
    keys = Shuffled([f"user:{number}" for number in range(_KEYS[size])])
    floor = Floor(keys.all)
    for number, key in enumerate(keys.all):
        await cache.set(str(key), number)
    for key in keys.all:
        await cache.get(str(key))  # fills the local tier
    found: dict[str, list[float]] = {"hit": [], "floor": [], "x floor": []}
    for number in range(_ROUNDS[size] + 2):
        took = [await _each(get, keys, _SECONDS[size]) for get in (floor.get, cache.get)]
        if number >= 2:  # the first rounds warm up
            for name, value in zip(found, (took[1] * 1e9, took[0] * 1e9, took[1] / took[0]), strict=True):
                found[name].append(value)
    return {name: median(each) for name, each in found.items()}


async def _each(get: Callable[[str], Awaitable[Any]], keys: Shuffled, least: float) -> float:
    """Seconds per call."""
    seconds, calls = 0.0, 0
    while not calls or seconds < least:
        batch: list[Any] = keys(len(keys.all))
        start = time.perf_counter()
        for key in batch:
            await get(key)
        seconds += time.perf_counter() - start
        calls += len(batch)
    return seconds / calls


async def _staleness(row: str, cache: _Tiered, server: Server, size: Size) -> dict[str, float]:
    writes = _WRITES[size]
    seen = [0.0] * (writes + 1)
    await cache.set(_WRITTEN, 0)
    latest = 0
    program = f"from {__name__} import write; write({row!r}, {server.port}, {writes})"
    command = [sys.executable, "-c", program]
    writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        end = time.monotonic() + 2 * writes * _PAUSE + _PATIENCE
        while latest < writes and time.monotonic() < end:
            found = int(await cache.get(_WRITTEN) or 0)
            if found > latest:
                seen[latest + 1 : found + 1] = [time.monotonic()] * (found - latest)
                latest = found
            await asyncio.sleep(0)  # the loop looks at its sockets
        acknowledged: list[float] = json.loads((await writer.communicate())[0])
    finally:
        if writer.returncode is None:
            writer.kill()
            await writer.wait()
    late = [max(0.0, seen[number] - acknowledged[number - 1]) * 1e6 for number in range(1, latest + 1)]
    numbers = {"never seen": float(writes - latest)}
    if late:
        hundredths = quantiles(late, n=100, method="inclusive") if len(late) > 1 else late * 99
        numbers |= {"stale p50": hundredths[49], "stale p99": hundredths[98]}
    return numbers


def write(row: str, port: int, writes: int) -> None:
    """Write 1, 2, 3 … at random times and print when each was acknowledged: the other process."""

    async def run() -> list[float]:
        acknowledged: list[float] = []
        async with _CACHES[row][1](Server(port)) as cache:
            for number in range(1, writes + 1):
                await asyncio.sleep(random.expovariate(1 / _PAUSE))
                await cache.set(_WRITTEN, number)
                acknowledged.append(time.monotonic())
        return acknowledged

    print(json.dumps(asyncio.run(run())))


SCENARIO = Measured(
    _NAME,
    "a local tier that Redis keeps coherent: a hit, and how long the writes of another process stay unseen",
    lambda: [
        Column("hit", "ns"),
        Column("floor", "ns"),
        Column("x floor", "×", 2, at_most=1.8),
        Column("stale p50", "µs"),
        Column("stale p99", "µs"),
        Column("never seen", "writes"),
    ],
    _rows,
    _measure,
)
