"""Entries without their values: the start of each is read, where its times and tags are."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Literal, Protocol, final

from asynccache.backend import Reports
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.plain import PlainValues
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import HEAD, first_bytes
from asynccache.backends.redis.replies import foreign
from asynccache.backends.redis.scripts import LEASE_BYTES, LEASE_MAGIC
from asynccache.codec import Codec
from asynccache.entry import MISSING, Entry
from asynccache.errors import DecodeError

__all__ = ["RedisHeads", "Store"]

_GROWTH: Final = 16


class Store(Protocol):
    """Whose entries they are."""

    codec: Codec
    reports: Reports
    intents: Intents
    plain: PlainValues

    def pool(self) -> Pool: ...
    def now(self) -> float: ...
    async def settle(self, pool: Pool, names: Iterable[bytes]) -> None: ...
    async def put_if(self, key: str, entry: Entry, only_if: Literal["absent", "present"]) -> Entry | None: ...
    async def entry(self, key: str, data: bytes, offset: float, more: Sequence[bytes] = ()) -> Entry | None: ...


@final
class RedisHeads:
    """Those of one store.

    An entry that ends within the first `HEAD` bytes is decoded as ever, and dropped when it cannot be. Of a longer one
    neither checksum nor seal can be tested, as both cover the value: it is taken for readable when its header is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, in one round trip, but for those with many tags."""
        store = self._store
        if not keys:
            return {}
        if store.codec.plain:
            return await store.plain.get_many(keys, heads=True)
        pool = store.pool()
        names = {key: key.encode() for key in keys}
        if store.intents.keys or pool.large_writes:
            await store.settle(pool, names.values())
        found = await pool.ask_all([(name, first_bytes(name)) for name in names.values()])
        entries: dict[str, Entry] = {}
        for key, data in zip(names, found, strict=True):
            if isinstance(data, Exception):
                store.reports.tell("an entry could not be read", foreign(data))
            elif data:
                entry = await self.entry(pool, key, data)
                if entry is not None:
                    entries[key] = entry
        return entries

    async def add(self, key: str, entry: Entry) -> Entry | None:
        """Store it if nothing fresh is there; else what is."""
        return await self._store.put_if(key, entry, "absent")

    async def entry(self, pool: Pool, key: str, data: bytes) -> Entry | None:
        """The entry without its value; ``None`` when it is over, or cannot be read, which is told.

        Args:
            pool: The connections.
            key: The key.
            data: What is under it, or the first `HEAD` bytes of that.
        """
        store, most, name = self._store, HEAD, key.encode()
        while len(data) == most:
            start = data[LEASE_BYTES:] if data[0] == LEASE_MAGIC else data
            try:
                head = store.codec.head(key, start, pool.offset)
            except DecodeError as error:
                store.reports.tell("an entry could not be read", error)
                return None
            if head is not None:
                return None if head.expires_at <= store.now() else head
            most *= _GROWTH  # it has more tags than most
            data = await pool.ask(name, b"GETRANGE", name, 0, most - 1)
        entry = await store.entry(key, data, pool.offset) if data else None
        return None if entry is None else replace(entry, value=MISSING)
