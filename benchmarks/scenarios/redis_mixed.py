"""Small reads beside values of 10 MB, through the same cache or client: what the big ones cost the small ones.

One reader asks for 100 bytes about once a millisecond, first alone, then while two other coroutines set and read the
big values as fast as they can; the two situations take turns, and the ratio is the median of those taken inside a
round. *p99* is from the call to the answer. A loop that is busy with a big value does not even call: how much later
than planned the reader woke is *late*, the p99 of that beside the big values. orjson holds the interpreter's lock for
5 to 7 ms to write or read 10 MB of text, in whatever thread it does so; the row of *bytes* has no such part.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from statistics import median, quantiles

from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.redis_clients import CLIENTS, Client, ours
from benchmarks.redis_server import Server, absent, running
from benchmarks.scenarios.file import incompressible, of_its_own_garbage

_NAME = "redis_mixed"
_ROUNDS: Mapping[Size, int] = {"full": 3, "quick": 1, "tiny": 1}
_SECONDS: Mapping[Size, float] = {"full": 0.5, "quick": 0.3, "tiny": 0.05}
_BIG: Mapping[Size, int] = {"full": 10_000_000, "quick": 10_000_000, "tiny": 1_000_000}
_PACE = 0.001
_SMALL = [f"user:{number}" for number in range(100)]
_ROWS: Mapping[str, tuple[Role, Callable[[Server], AbstractAsyncContextManager[Client]]]] = {
    "asynccache, JSON texts": ("ours", ours),
    "asynccache, bytes": ("ours", partial(ours, codec="bytes")),
    "redis-py": ("peer", CLIENTS["redis-py"]),
}


def _rows(_: Size) -> Sequence[tuple[str, Role] | Absent]:
    return absent(_NAME) or [(name, role) for name, (role, _) in _ROWS.items()]


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    with of_its_own_garbage(), running() as server:
        async with _ROWS[row][1](server) as client:
            return await _measured(client, size)


async def _measured(client: Client, size: Size) -> Mapping[str, float]:
    big, small = client.value(incompressible(_BIG[size])), client.value(incompressible(100))
    moved, busy = 0, False

    async def write() -> None:
        nonlocal moved
        while busy:
            await client.set("big:written", big)
            moved += len(big)

    async def read() -> None:
        nonlocal moved
        while busy:
            if await client.get("big:read") is None:
                raise RuntimeError("the big value is not there")
            moved += len(big)

    for key in _SMALL:
        await client.set(key, small)
    await client.set("big:read", big)
    await _paced(client, _SECONDS[size] / 4)  # opens connections

    found: dict[str, list[float]] = {name: [] for name in ("alone", "beside", "beside ÷ alone", "late", "moved")}
    for _ in range(_ROUNDS[size]):
        alone, _late = await _paced(client, _SECONDS[size])
        moved, busy, start = 0, True, time.perf_counter()
        others = [asyncio.create_task(write()), asyncio.create_task(read())]
        beside, late = await _paced(client, 2 * _SECONDS[size])
        found["moved"].append(moved / (time.perf_counter() - start) / 1e6)
        busy = False  # not cancelled: redis-py now and then forgets that it was, and would go on for ever
        await asyncio.gather(*others)
        found["alone"].append(_p99(alone) * 1e3)
        found["beside"].append(_p99(beside) * 1e3)
        found["beside ÷ alone"].append(_p99(beside) / _p99(alone))
        found["late"].append(_p99(late) * 1e3)
    return {name: median(each) for name, each in found.items()}


async def _paced(client: Client, seconds: float) -> tuple[list[float], list[float]]:
    """The seconds that each small read took, and how late each began."""
    taken: list[float] = []
    late: list[float] = []
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        key = _SMALL[len(taken) % len(_SMALL)]
        start = time.perf_counter()
        late.append(start - due)
        await client.get(key)
        now = time.perf_counter()
        taken.append(now - start)
        due = max(due, now - _PACE) + _PACE  # what was missed is not made up for: the pace stays the pace
        await asyncio.sleep(max(0.0, due - now))
    return taken, late


def _p99(taken: Sequence[float]) -> float:
    return quantiles(taken, n=100, method="inclusive")[98] if len(taken) > 1 else taken[0]


SCENARIO = Measured(
    _NAME,
    "Redis: p99 of a small read every millisecond, alone and beside 10 MB values set and read all the time",
    lambda: [
        Column("alone", "ms", 2),
        Column("beside", "ms", 2),
        Column("beside ÷ alone", "×", 1, at_most=2.0),
        Column("late", "ms", 1),
        Column("moved", "MB/s"),
    ],
    _rows,
    _measure,
)
