"""A million entries in the file store: filling, starting, memory, and listing keys.

Filled by `set_many` of a thousand. *start* is what a new store object on the directory takes to its first answer, as
after a restart of the process; *memory* is by how much the resident memory of the process has grown at the end of all;
*some* lists the thousand keys of one prefix in the store, *all* every key by `cache.keys()`, which leaves
out what is stale and so reads the entries.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from asynccache import Cache
from asynccache.backends.file import FileBackend
from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.scenarios.million import resident_bytes

_ENTRIES: Mapping[Size, int] = {"full": 1_000_000, "quick": 100_000, "tiny": 5_000}


async def _measure(_: str, size: Size) -> Mapping[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="asynccache-bench-"))
    url = f"file://{folder}/store?max_bytes=none"
    before = resident_bytes()
    try:
        async with Cache(url, namespace="bench", ttl="1h", telemetry="off", on_error="raise") as cache:
            start = time.perf_counter()
            for place in range(0, _ENTRIES[size], 1_000):
                await cache.set_many({f"user:{place}:{number}": number for number in range(1_000)})
            filled = time.perf_counter() - start
        start = time.perf_counter()
        store = FileBackend(folder / "store", max_bytes=None)
        cache = Cache(store, namespace="bench", telemetry="off", on_error="raise")
        if await cache.get("user:0:7") != 7:
            raise RuntimeError("an entry is missing")
        started = time.perf_counter() - start
        start = time.perf_counter()
        some = len([key async for key in store.keys("bench:user:0:")])
        listed_some = time.perf_counter() - start
        start = time.perf_counter()
        every = len([key async for key in cache.keys("*")])
        listed_all = time.perf_counter() - start
        await cache.aclose()
        await store.aclose()
        if (some, every) != (1_000, _ENTRIES[size]):
            raise RuntimeError(f"{some} and {every} keys were listed")
        taken = sum(path.stat().st_size for path in (folder / "store").iterdir())
    finally:
        shutil.rmtree(folder)
    return {
        "insert": filled / _ENTRIES[size] * 1e6,
        "disk": taken / _ENTRIES[size],
        "start": started * 1e3,
        "memory": (resident_bytes() - before) / 1e6,
        "some": listed_some * 1e3,
        "all": listed_all,
    }


def _rows(_: Size) -> list[tuple[str, Role] | Absent]:
    return [("asynccache file", "ours")]


SCENARIO = Measured(
    "file_million",
    "a million entries in the file store (quick: 100,000)",
    lambda: [
        Column("insert", "µs", 2),
        Column("disk", "B/entry"),
        Column("start", "ms", 1),
        Column("memory", "MB"),
        Column("some", "ms", 1),
        Column("all", "s", 2),
    ],
    _rows,
    _measure,
    isolated=True,
)
