"""What a cache counts."""

from dataclasses import dataclass
from typing import final

__all__ = ["Counters", "Stats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a cache has counted since it was made, or since it was last asked to start over.

    Attributes:
        hits: Reads answered by a fresh value.
        misses: Reads that found none.
        stale_hits: Reads answered by a value past its ttl, within its grace.
        loads: Runs of a factory.
        coalesced: Callers who got the value of somebody else's load.
        load_failures: Runs of a factory that raised or were given up.
        errors: Failures of the store that were hidden from the callers, values that could not be stored among them.
        evictions: Entries removed to keep a bound of the local store.
        expirations: Entries removed from the local store because their time was over.
        entries: Entries in the local store now.
        bytes: What they weigh; 0 when the store has no ``max_bytes`` and so weighs nothing.
    """

    hits: int = 0
    misses: int = 0
    stale_hits: int = 0
    loads: int = 0
    coalesced: int = 0
    load_failures: int = 0
    errors: int = 0
    evictions: int = 0
    expirations: int = 0
    entries: int = 0
    bytes: int = 0

    @property
    def hit_ratio(self) -> float:
        """Reads answered from the cache, fresh or stale, as a part of all: 0 to 1, and 0 before the first."""
        answered = self.hits + self.stale_hits
        reads = answered + self.misses
        return answered / reads if reads else 0.0


@final
class Counters:
    """The plain integers behind `Stats`: counting costs the hot path an addition."""

    __slots__ = (
        "coalesced",
        "errors",
        "hits",
        "load_failures",
        "loading",
        "loads",
        "misses",
        "stale_hits",
    )

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.stale_hits = 0
        self.loads = 0
        self.coalesced = 0
        self.load_failures = 0
        self.errors = 0
        self.loading = 0
