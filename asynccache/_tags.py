"""Invalidation of many entries at once, by the versions of their tags.

Invalidating a tag changes one record, whatever the number of entries that carry it.

In the process the record is the tag's place in one strictly increasing order of invalidations. An entry keeps where
that order stood when the work that made it *began*: it is valid while none of its tags was invalidated after that. The
table is bounded; a record that is dropped raises the floor under all tags without a record, so it can hide an entry
too many, never bring one back.

On a remote store the record is an entry of its own, whose value is a version that is never used twice. An entry keeps
the versions that its tags had when its load began: it is valid while all of them are still there and the same. A
record that was evicted or lost is a version that no entry has.
"""

import math
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, final

from asynccache._layout import TAG_RECORD
from asynccache._life import Life
from asynccache.backend import Backend
from asynccache.entry import Entry

__all__ = ["LocalTags", "RemoteTags", "record_key", "tag_of"]

_MOST_RECORDS: Final = 100_000
_CLOCKS_SECONDS: Final = 0.005  # by which clocks differ that are taken for the same


@final
class LocalTags:
    """The order of invalidations in this process.

    Attributes:
        latest: The place of the latest invalidation: an entry stamped with it is valid without looking further.
    """

    __slots__ = ("_floor", "_records", "latest")

    def __init__(self) -> None:
        self.latest = 0
        self._floor = 0
        self._records: OrderedDict[str, int] = OrderedDict()

    def invalidate(self, tags: Iterable[str]) -> None:
        """Hide every entry whose making began before now and that carries one of the tags."""
        for tag in tags:
            self.latest += 1
            self._records[tag] = self.latest
            self._records.move_to_end(tag)
            if len(self._records) > _MOST_RECORDS:
                self._floor = self._records.popitem(last=False)[1]

    def valid(self, tags: Iterable[str], stamp: int) -> bool:
        """Whether none of the tags was invalidated after the stamp."""
        if self.latest <= stamp:
            return True
        return all(self._records.get(tag, self._floor) <= stamp for tag in tags)

    def allows(self, life: Life) -> bool:
        """Whether an entry of this life is valid."""
        return not life.tags or self.latest <= life.stamp or self.valid(life.tags, life.stamp)


@final
class RemoteTags:
    """The versions of tags that a remote store keeps."""

    __slots__ = ("_backend",)

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def versions(self, tags: Sequence[str], now: float, since: float = math.inf) -> dict[str, str] | None:
        """The tags' versions, made where there are none; ``None`` when one of them is newer than it may be.

        Args:
            tags: Whole tag names.
            now: Seconds since 1970 on the cache's clock.
            since: When the work began that they are to be the versions of: what was invalidated after that is newer.
        """
        records = {record_key(tag): tag for tag in tags}
        found = await self._backend.get_many(list(records))
        if any(record.created_at > since - _CLOCKS_SECONDS for record in found.values()):
            return None
        versions = {tag: str(found[key].value) for key, tag in records.items() if key in found}
        for key, tag in records.items():
            if tag in versions:
                continue
            fresh = _version()
            if await self._backend.set(key, Entry(value=fresh, created_at=now), only_if="absent"):
                versions[tag] = fresh
            else:
                other = await self._backend.get(key)
                if other is None:  # gone again, or not to be read
                    await self._backend.set(key, Entry(value=fresh, created_at=now))
                versions[tag] = fresh if other is None else str(other.value)
        return versions

    async def current(self, tags: Iterable[str]) -> dict[str, str]:
        """The versions that the tags have now, without those that have none: one round trip."""
        records = {record_key(tag): tag for tag in tags}
        found = await self._backend.get_many(list(records))
        return {records[key]: str(record.value) for key, record in found.items()}

    async def invalidate(self, tags: Iterable[str], now: float) -> None:
        """Give each tag a version that no entry has: one round trip."""
        await self._backend.set_many({record_key(tag): Entry(value=_version(), created_at=now) for tag in tags})


def _version() -> str:
    return uuid.uuid4().hex


def tag_of(key: str) -> str | None:
    """The tag whose record the key is, if it is one."""
    return key.removesuffix(TAG_RECORD) if key.endswith(TAG_RECORD) else None


def record_key(tag: str) -> str:
    """The key of a tag's record on a remote store."""
    return tag + TAG_RECORD
