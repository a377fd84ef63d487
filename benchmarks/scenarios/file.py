"""The file store beside diskcache: values of three sizes, one call at a time and a hundred at once.

diskcache is called in two ways: in a thread for each call (`asyncio.to_thread`, the pool of the loop), which is how it
is used where the loop must not wait, and directly, which blocks the loop for as long as the disk takes. Each way is
measured in turn, several rounds of it; the ratios are medians over the rounds. Our values are JSON texts, which
diskcache keeps as they are; they cannot be compressed, and have a ttl. All is in one temporary directory, on whatever
disk that is. What was there before is kept from the garbage collector, for all alike.
"""

import asyncio
import base64
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median

try:
    import diskcache
except ImportError:  # a peer like the others: optional
    diskcache = None

from asynccache import Cache
from benchmarks.contract import Absent, Column, Measured, Role, Size

_SIZES = {"100 B": 100, "10 KB": 10_000, "1 MB": 1_000_000}
_CROWDS = (1, 100)
_ROUNDS: Mapping[Size, int] = {"full": 7, "quick": 3, "tiny": 1}
_SECONDS: Mapping[Size, float] = {"full": 0.06, "quick": 0.02, "tiny": 0.0}
_KEYS = [f"user:{number}" for number in range(200)]

_ROWS = {
    f"{operation} {size}, {crowd} at once": (operation, _SIZES[size], crowd)
    for operation in ("get", "set")
    for size in _SIZES
    for crowd in _CROWDS
}

Call = Callable[[str], Awaitable[object]]


def incompressible(length: int) -> str:
    """A text of which no compression makes less."""
    return base64.b64encode(os.urandom(length))[:length].decode("ascii")


@contextmanager
def of_its_own_garbage() -> Iterator[None]:
    """Collections look at what is made inside, not at the runner and the libraries that it has imported."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _crowd(call: Call, crowd: int, keys: Sequence[str]) -> float:
    """Seconds for one call of each key, so many at once."""
    start = time.perf_counter()
    if crowd == 1:
        for key in keys:
            await call(key)
    else:
        for place in range(0, len(keys), crowd):
            await asyncio.gather(*[call(key) for key in keys[place : place + crowd]])
    return time.perf_counter() - start


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    with of_its_own_garbage():
        return await _measured(row, size)


async def _measured(row: str, size: Size) -> Mapping[str, float]:
    operation, length, crowd = _ROWS[row]
    value = incompressible(length)
    folder = Path(tempfile.mkdtemp(prefix="asynccache-bench-"))
    disk = diskcache and diskcache.Cache(str(folder / "diskcache"), eviction_policy="none", size_limit=2**33)
    ours = Cache(f"file://{folder}/ours?max_bytes=none", namespace="bench", ttl="10m", telemetry="off")

    async def direct(key: str) -> object:
        return disk.get(key) if operation == "get" else disk.set(key, value, 600)

    async def threaded(key: str) -> object:
        return await (
            asyncio.to_thread(disk.get, key) if operation == "get" else asyncio.to_thread(disk.set, key, value, 600)
        )

    async def own(key: str) -> object:
        return await (ours.get(key) if operation == "get" else ours.set(key, value))

    ways: dict[str, Call] = {"ours": own} | ({"in threads": threaded, "directly": direct} if disk is not None else {})
    taken: dict[str, list[float]] = {way: [] for way in ways}
    try:
        keys = _KEYS if length < 1_000_000 else _KEYS[:100]
        for key in keys:
            if disk is not None:
                disk.set(key, value, 600)
            await ours.set(key, value)
        for _ in range(_ROUNDS[size]):
            for way, call in ways.items():
                calls = max(crowd, 5 if size == "tiny" else 20)
                seconds = await _crowd(call, crowd, (keys * calls)[:calls])
                while seconds < _SECONDS[size]:
                    seconds += await _crowd(call, crowd, keys[: max(crowd, 20)])
                    calls += max(crowd, 20)
                taken[way].append(seconds / calls * 1e6)
    finally:
        if disk is not None:
            disk.close()
        await ours.aclose()
        shutil.rmtree(folder)
    numbers = {way: median(each) for way, each in taken.items()}
    for way in [way for way in taken if way != "ours"]:
        ratios = [other / mine for other, mine in zip(taken[way], taken["ours"], strict=True)]
        numbers[f"{way} ÷ ours"] = median(ratios)
    return numbers


def _rows(_: Size) -> list[tuple[str, Role] | Absent]:
    return [(row, "ours") for row in _ROWS]


SCENARIO = Measured(
    "file",
    "the file store"
    + (
        f" beside diskcache {version('diskcache')}, in threads and directly (which blocks the loop)"
        if diskcache
        else ""
    ),
    lambda: [
        Column("ours", "µs", 1),
        Column("in threads", "µs", 1),
        Column("directly", "µs", 1),
        Column("in threads ÷ ours", "×", 1),
        Column("directly ÷ ours", "×", 2),
    ],
    _rows,
    _measure,
)
