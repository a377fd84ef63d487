"""Counters: entries that the server adds to by itself where it can."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Protocol

from asynccache._offloading import decoded
from asynccache.backend import Reports
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.scripts import ADD, SWAP
from asynccache.backends.redis.times import milliseconds
from asynccache.codec import Codec
from asynccache.entry import Entry
from asynccache.errors import BackendError, DecodeError

__all__ = ["Store", "added"]

_MOST_TRIES: Final = 64


class Store(Protocol):
    """Whose counters they are."""

    codec: Codec
    reports: Reports

    def pool(self) -> Pool: ...
    def now(self) -> float: ...
    async def settle(self, pool: Pool, names: Iterable[bytes]) -> None: ...


async def added(store: Store, key: str, delta: int, ttl: float | None) -> int:
    """The sum; each addition is sent once, whether or not its reply comes.

    Raises:
        TypeError: The key holds something else than an integer.
        BackendError: The server failed.
    """
    codec, name, pool = store.codec, key.encode(), store.pool()
    if not pool.met:
        await pool.meet(name)
    await store.settle(pool, (name,))
    offset, now = pool.offset, store.now()
    until = math.inf if ttl is None else now + ttl
    new = codec.encode(key, Entry(value=delta, created_at=now, fresh_until=until, expires_at=until), offset)
    check = codec.countable(key)
    left = milliseconds(until - now)
    for _ in range(_MOST_TRIES):
        arguments: tuple[str | bytes | float, ...] = (
            now + offset, str(delta), left, new, "" if check is None else str(check),
        )  # fmt: skip
        reply = await pool.run(name, ADD, (name,), *arguments)
        if type(reply) is bytes:
            return int(reply)
        if type(reply) is not list or not reply or type(reply[0]) is not bytes:
            raise BackendError("redis: an answer of another kind")
        # The entry is sealed, tagged or no whole number of 64 bits: it is added to here, and replaced if nobody was
        # faster.
        data = reply[0]
        try:
            entry = await decoded(codec, key, data, offset)
        except DecodeError as error:
            store.reports.tell("an entry could not be read", error)
            entry = Entry(value=0, created_at=now, fresh_until=until, expires_at=until)
        if type(entry.value) is not int:
            raise TypeError(f"a counter holds an integer, this key holds {type(entry.value).__name__}")
        total = entry.value + delta
        changed = codec.encode(key, replace(entry, value=total), offset)
        if await pool.run(name, SWAP, (name,), data, changed, "keep"):
            return total
    raise BackendError("redis: too many write to this counter at once")
