"""Entries without their values: of each row the times and the first bytes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from sqlite3 import Connection
from typing import Any, Final, Protocol, final

from asynccache.backend import OnlyIf, Reports
from asynccache.backends.file import table
from asynccache.codec import Codec
from asynccache.entry import MISSING, Entry
from asynccache.errors import DecodeError

__all__ = ["FileHeads", "Store"]

_HEAD: Final = 512  # bytes: the header, and ten tags or so


class Store(Protocol):
    """Whose entries they are."""

    codec: Codec
    reports: Reports

    def now(self) -> int: ...
    async def read(self, work: Callable[[Connection], Any]) -> Any: ...
    async def get(self, key: str) -> Entry | None: ...
    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool: ...
    async def entry(self, key: str, row: tuple[bytes, int, int]) -> Entry | None: ...


@final
class FileHeads:
    """Those of one store.

    An entry that ends within the first bytes is decoded as ever, and dropped when it cannot be. A longer one is taken
    for readable when its header is: checksum and seal cover the value.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, in one batch."""
        store = self._store
        rows = await store.read(partial(table.starts, keys=keys, now=store.now(), most=_HEAD)) if keys else {}
        entries = {key: await self._entry(key, row) for key, row in rows.items()}
        return {key: replace(entry, value=MISSING) for key, entry in entries.items() if entry is not None}

    async def add(self, key: str, entry: Entry) -> Entry | None:
        """Store it if nothing fresh is there; else what is."""
        if await self._store.set(key, entry, only_if="absent"):
            return None
        there = await self.get_many([key])
        return there.get(key, Entry(value=MISSING, created_at=entry.created_at))  # it cannot be read, or has just gone

    async def _entry(self, key: str, row: tuple[bytes, int, int]) -> Entry | None:
        store = self._store
        if len(row[0]) < _HEAD:
            return await store.entry(key, row)
        if store.codec.plain:
            until = table.seconds(row[1])  # a plain entry has no grace
            return Entry(value=MISSING, created_at=0.0, fresh_until=until, expires_at=until)
        try:
            head = store.codec.head(key, row[0])
        except DecodeError as error:
            store.reports.tell("an entry could not be read", error)
            return None
        return head or await store.get(key)  # it has more tags than most
