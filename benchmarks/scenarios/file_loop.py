"""How long the file store holds up the event loop, while a hundred callers at a time read and write.

A task asks to be woken every millisecond; how much later than that it wakes is a pause. Part of it is the callers' own
work: a hundred of them that are woken together take their turn one after the other. What was there before (the runner,
its libraries) is kept from the garbage collector, whose longest collections would be all that is seen. diskcache called
directly is shown beside it: what it does to the loop is what the threads are for.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import quantiles

try:
    import diskcache
except ImportError:  # a peer like the others: optional
    diskcache = None

from asynccache import Cache
from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.scenarios.file import incompressible, of_its_own_garbage

_SECONDS: Mapping[Size, float] = {"full": 1.5, "quick": 0.5, "tiny": 0.05}
_KEYS = [f"user:{number}" for number in range(1_000)]
_ROWS: Mapping[str, tuple[Role, int]] = {
    "asynccache file, 100 B": ("ours", 100),
    "asynccache file, 10 KB": ("ours", 10_000),
    "diskcache directly, 100 B": ("peer", 100),
    "diskcache directly, 10 KB": ("peer", 10_000),
}

Call = Callable[[str], Awaitable[object]]


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    with of_its_own_garbage():
        return await _measured(row, size)


async def _measured(row: str, size: Size) -> Mapping[str, float]:
    role, length = _ROWS[row]
    value = incompressible(length)
    folder = Path(tempfile.mkdtemp(prefix="asynccache-bench-"))
    ours = Cache(f"file://{folder}/ours", namespace="bench", ttl="10m", telemetry="off")
    disk = diskcache and diskcache.Cache(str(folder / "diskcache"))
    calls = 0

    async def read(key: str) -> None:
        if role == "ours":
            await ours.get(key)
        else:
            disk.get(key)

    async def write(key: str) -> None:
        if role == "ours":
            await ours.set(key, value)
        else:
            disk.set(key, value, 600)

    lags: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - due)

    try:
        await asyncio.gather(*[write(key) for key in _KEYS])
        ticker = asyncio.get_running_loop().create_task(tick())
        start = time.perf_counter()
        while time.perf_counter() < start + _SECONDS[size]:
            place = calls % 900
            crowd = [
                write(key) if number % 10 == 0 else read(key) for number, key in enumerate(_KEYS[place : place + 100])
            ]
            await asyncio.gather(*crowd)
            calls += 100
        took = time.perf_counter() - start
        ticker.cancel()
        await asyncio.wait([ticker])
    finally:
        if disk is not None:
            disk.close()
        await ours.aclose()
        shutil.rmtree(folder)
    return {
        "calls": calls / took,
        "pause": max(lags) * 1e3,
        "p99": quantiles(lags, n=100, method="inclusive")[98] * 1e3 if len(lags) > 1 else max(lags) * 1e3,
    }


def _rows(_: Size) -> list[tuple[str, Role] | Absent]:
    return [(name, role) for name, (role, _) in _ROWS.items() if role == "ours" or diskcache is not None]


SCENARIO = Measured(
    "file_loop",
    "pauses of the loop while a hundred callers at a time read (90 %) and write the file store",
    lambda: [Column("calls", "/s"), Column("pause", "ms", 2, at_most=5), Column("p99", "ms", 2)],
    _rows,
    _measure,
)
