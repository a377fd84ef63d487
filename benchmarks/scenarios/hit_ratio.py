"""How many accesses of a trace an eviction policy answers, at several sizes of the cache.

Each access is a ``get``, and a ``set`` when it missed. The last column is Belady's bound, which knows the future: no
policy can do better.
"""

import heapq
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import cache

from asynccache import Cache
from benchmarks.contract import Absent, Column, Measured, Role, Size
from benchmarks.trace_set import TRACES

_ENTRIES = (100, 400, 1_600)
_LENGTHS: Mapping[Size, int] = {"full": 75_000, "quick": 10_000, "tiny": 2_000}

_Policy = Callable[[Sequence[int], int], Awaitable[int]]


async def _ours(policy: str, trace: Sequence[int], size: int) -> int:
    hits = 0
    async with Cache(f"memory://?max_entries={size}&policy={policy}", namespace="bench", telemetry="off") as store:
        for number in trace:
            key = str(number)
            if await store.get(key) is None:
                await store.set(key, number + 1)
            else:
                hits += 1
    return hits


async def _lru(trace: Sequence[int], size: int) -> int:
    return await _ours("lru", trace, size)


async def _s3fifo(trace: Sequence[int], size: int) -> int:
    return await _ours("s3fifo", trace, size)


def _mapping_hits(store: MutableMapping[int, int], trace: Sequence[int]) -> int:
    hits = 0
    for key in trace:
        if store.get(key) is None:
            store[key] = key + 1
        else:
            hits += 1
    return hits


async def _belady(trace: Sequence[int], size: int) -> int:
    following = [0] * len(trace)
    seen: dict[int, int] = {}
    for position in range(len(trace) - 1, -1, -1):
        following[position] = seen.get(trace[position], len(trace) + position)
        seen[trace[position]] = position
    held: dict[int, int] = {}  # key: when it is asked for next
    furthest: list[tuple[int, int]] = []
    hits = 0
    for key, then in zip(trace, following, strict=True):
        hits += key in held
        held[key] = then
        heapq.heappush(furthest, (-then, key))
        while len(held) > size:
            when, victim = heapq.heappop(furthest)
            if held.get(victim) == -when:
                del held[victim]
    return hits


@cache
def _policies() -> Mapping[str, _Policy]:
    """The columns, those of peers only where the peer is installed."""
    policies: dict[str, _Policy] = {"lru": _lru, "s3fifo": _s3fifo}
    try:
        import cachetools
    except ImportError:
        pass
    else:

        async def cachetools_lru(trace: Sequence[int], size: int) -> int:
            return _mapping_hits(cachetools.LRUCache(size), trace)

        async def cachetools_lfu(trace: Sequence[int], size: int) -> int:
            return _mapping_hits(cachetools.LFUCache(size), trace)

        policies |= {"cachetools LRU": cachetools_lru, "cachetools LFU": cachetools_lfu}
    try:
        import theine
    except ImportError:
        pass
    else:

        async def theine_hits(trace: Sequence[int], size: int) -> int:
            store: theine.Cache[int, int] = theine.Cache(size)
            hits = 0
            for key in trace:
                _, hit = store.get(key)
                if hit:
                    hits += 1
                else:
                    store.set(key, key + 1)
            store.close()
            return hits

        policies["theine"] = theine_hits
    policies["Belady"] = _belady
    return policies


def _columns() -> list[Column]:
    return [Column(name, "%", 1) for name in _policies()]


def _rows(size: Size) -> list[tuple[str, Role] | Absent]:
    chosen = _ENTRIES if size == "full" else _ENTRIES[1:2]
    return [(f"{trace} · {entries}", "ours") for trace in TRACES for entries in chosen]


async def _measure(row: str, size: Size) -> Mapping[str, float]:
    name, entries = row.rsplit(" · ", 1)
    trace = TRACES[name](_LENGTHS[size])
    return {policy: await hits(trace, int(entries)) / len(trace) * 100 for policy, hits in _policies().items()}


SCENARIO = Measured(
    "hit_ratio",
    "hit ratio of the eviction policies, by trace and entries of the cache",
    _columns,
    _rows,
    _measure,
    best="highest",
)
