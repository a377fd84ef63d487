"""The Redis backend beside the clients and the caches that speak to Redis: one call at a time, and many at once.

Every row runs under an event loop of its own (asyncio's or uvloop's, in a thread of its own) with a fresh server on
the loopback. The ways to do the work are measured in turn, several rounds of it; ratios are medians of those taken
inside each round. Values cannot be compressed and have a ttl. redis-py, coredis, glide and *bytes alone* move bytes;
ours, aiocache and cashews build the key and decode the value. *aim* is what DESIGN 6 asks the ratio to redis-py to be.

- *N at once* is a `gather` of so many calls, again and again: each has a task of its own, which takes the loop some
  3 to 4 µs, whoever is called.
- *N callers* are so many tasks that exist already and call one time after the other; a few ways only, to save time.
- In *p50* each call has a time of its own and the middle one counts; elsewhere it is the time of all by their number.
"""

import asyncio
import gc
import importlib.util
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.redis_clients import CLIENTS, Client
from benchmarks.redis_server import Server, absent, running
from benchmarks.scenarios.file import incompressible, of_its_own_garbage

_NAME = "redis_get"
_ROUNDS: Mapping[Size, int] = {"full": 5, "quick": 2, "tiny": 1}
_SECONDS: Mapping[Size, float] = {"full": 0.015, "quick": 0.01, "tiny": 0.0}
_SIZES = {"100 B": 100, "10 KB": 10_000}

Call = Callable[[str], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a row does.

    Attributes:
        aims: How many times redis-py's speed DESIGN 6 asks for, by event loop.
    """

    operation: str
    length: str
    crowd: int
    aims: Mapping[str, float]
    form: Literal["at once", "callers", "at once, p50"] = "at once"

    @property
    def name(self) -> str:
        return f"{self.operation} {self.length}, {self.crowd} {self.form}"


_WORK = (
    _Work("get", "100 B", 1, {"asyncio": 1.25, "uvloop": 1.25}, "at once, p50"),
    _Work("get", "100 B", 1, {"asyncio": 1.2, "uvloop": 1.4}),
    _Work("get", "100 B", 10, {"asyncio": 5, "uvloop": 5}),
    _Work("get", "100 B", 100, {"asyncio": 12, "uvloop": 15}),
    _Work("get", "100 B", 1_000, {"asyncio": 20, "uvloop": 24}),
    _Work("get", "100 B", 10, {"asyncio": 5, "uvloop": 5}, "callers"),
    _Work("get", "100 B", 100, {"asyncio": 12, "uvloop": 15}, "callers"),
    _Work("get", "100 B", 1_000, {"asyncio": 20, "uvloop": 24}, "callers"),
    _Work("get", "10 KB", 1, {}),
    _Work("get", "10 KB", 10, {}),
    _Work("get", "10 KB", 100, {}),
    _Work("set", "100 B", 100, {"asyncio": 9, "uvloop": 9}),
)
_FEW: Mapping[Size, Sequence[_Work]] = {
    "full": _WORK,
    "quick": [_WORK[0], _WORK[3], _WORK[6]],
    "tiny": [_WORK[2], _WORK[5]],
}
_CALLS = {10: 40, 100: 8, 1_000: 3}  # of each of so many callers
_CALLED = ("ours", "bytes alone", "redis-py", "glide")
_LOOPS = ("asyncio", "uvloop")
_ROWS = {f"{loop} {work.name}": (loop, work) for loop in _LOOPS for work in _WORK}


def _rows(size: Size) -> Sequence[tuple[str, Role] | Absent]:
    if missing := absent(_NAME):
        return missing
    few = _FEW[size]
    rows: list[tuple[str, Role] | Absent] = []
    for name, (loop, work) in _ROWS.items():
        if importlib.util.find_spec(loop) is None:
            rows += [Absent(name, f"No module named {loop!r}")] if work is few[0] else []
        elif work in few:
            rows.append((name, "ours"))
    return rows


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    loop, work = _ROWS[row]
    with running() as server:
        return await asyncio.to_thread(_in_a_loop, loop, work, size, server)


def _in_a_loop(loop: str, work: _Work, size: Size, server: Server) -> Mapping[str, float]:
    """The numbers, measured in this thread's own event loop."""
    factory = importlib.import_module(loop).new_event_loop
    with of_its_own_garbage(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_measured(loop, work, size, server))


async def _measured(loop: str, work: _Work, size: Size, server: Server) -> Mapping[str, float]:
    text = incompressible(_SIZES[work.length])
    keys = [f"user:{number}" for number in range(max(work.crowd, 200))]
    taken: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        ways: dict[str, Call] = {}
        for name in _CALLED if work.form == "callers" else CLIENTS:
            try:
                client = await stack.enter_async_context(CLIENTS[name](server))
            except ImportError:  # a peer is optional
                continue
            ways[name] = await _filled(name, client, work, text, keys)
            taken[name] = []
        for number in range(_ROUNDS[size] + 1):
            for name, call in ways.items():
                gc.collect()
                if work.form == "callers":
                    took = await _callers(call, work.crowd, keys)
                elif work.form == "at once":
                    took = await _crowds(call, work.crowd, keys, size)
                else:
                    took = await _singly(call, keys, size)
                if number > 0 or size == "tiny":  # the first round opens connections
                    taken[name].append(took * 1e6)
    numbers = {name: median(each) for name, each in taken.items()}
    numbers["x bytes"] = _paired(taken["ours"], taken["bytes alone"])
    if "redis-py" in taken:
        numbers["redis-py ÷ ours"] = _paired(taken["redis-py"], taken["ours"])
        if loop in work.aims:
            numbers["aim ÷ that"] = work.aims[loop] / numbers["redis-py ÷ ours"]
    return numbers


def _paired(these: Sequence[float], those: Sequence[float]) -> float:
    return median(this / that for this, that in zip(these, those, strict=True))


async def _filled(name: str, client: Client, work: _Work, text: str, keys: Sequence[str]) -> Call:
    """The call that is measured, once every key has its value and one has been read back."""
    value = client.value(text)
    for place in range(0, len(keys), 100):
        await asyncio.gather(*[client.set(key, value) for key in keys[place : place + 100]])
    if await client.get(keys[-1]) != value:
        raise RuntimeError(f"{name} does not give back what it was given")
    if work.operation == "get":
        return client.get
    return lambda key: client.set(key, value)


async def _crowds(call: Call, crowd: int, keys: Sequence[str], size: Size) -> float:
    """Seconds per call, so many at once."""
    calls = 0
    start = time.perf_counter()
    end = start + _SECONDS[size]
    while True:
        if crowd == 1:
            for key in keys[:20]:
                await call(key)
            calls += 20
        else:
            # A new place each time, so that a crowd of ten does not know its ten keys by heart.
            place = calls % (len(keys) - crowd + 1)
            await asyncio.gather(*[call(key) for key in keys[place : place + crowd]])
            calls += crowd
        now = time.perf_counter()
        if now >= end:
            return (now - start) / calls


async def _callers(call: Call, callers: int, keys: Sequence[str]) -> float:
    """Seconds per call of so many tasks that have begun before the clock does."""
    gate = asyncio.Event()

    async def caller(number: int) -> None:
        place = number * 7
        await gate.wait()
        for step in range(_CALLS[callers]):
            await call(keys[(place + step) % len(keys)])

    tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
    await asyncio.sleep(0)
    start = time.perf_counter()
    gate.set()
    await asyncio.gather(*tasks)
    return (time.perf_counter() - start) / (callers * _CALLS[callers])


async def _singly(call: Call, keys: Sequence[str], size: Size) -> float:
    """The median of the seconds that single calls took."""
    taken: list[float] = []
    end = time.perf_counter() + 2 * _SECONDS[size]
    while not taken or time.perf_counter() < end:
        for key in keys[:20]:
            start = time.perf_counter()
            await call(key)
            taken.append(time.perf_counter() - start)
    return median(taken)


SCENARIO = Measured(
    _NAME,
    "Redis, beside its clients and other caches over it (redis-py, coredis and glide move bytes alone)",
    lambda: [
        *(Column(name, "µs", 1) for name in CLIENTS),
        Column("x bytes", "×", 1),
        Column("redis-py ÷ ours", "×", 1),
        Column("aim ÷ that", "×", 2, at_most=1.0),
    ],
    _rows,
    _measure,
)
