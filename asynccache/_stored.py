"""What a remote store has, as far as tags let it be seen: a store knows nothing of them."""

from collections.abc import Collection, Mapping, Sequence
from typing import final

from asynccache._copies import Copies
from asynccache._failures import Failures
from asynccache._tags import RemoteTags, record_key
from asynccache.backend import Backend, OnlyIf
from asynccache.entry import MISSING, Entry

__all__ = ["Stored"]


@final
class Stored:
    """The valid entries of a remote store; of none a copy is kept here.

    Args:
        remote: The store.
        copies: What the local seat has of it.
        failures: The failure policy.
    """

    def __init__(self, remote: Backend, copies: Copies, failures: Failures) -> None:
        self.tags = RemoteTags(remote)
        self._remote = remote
        self._heads = remote.heads
        self._copies = copies
        self._attempt = failures.attempt

    async def entry(self, key: str, entry: Entry | None = None) -> Entry | None:
        """The entry, fresh or stale.

        Args:
            key: The whole key.
            entry: What the store has, where it was asked already.
        """
        if entry is None:
            entry = await self._attempt("get", self._remote.get(key), None)
        return None if entry is None or (entry.tags and not _valid(entry, await self._versions(entry.tags))) else entry

    async def entries(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, fresh or stale, in one round trip (one more where entries have tags)."""
        return await self._valid_of(await self._attempt("get_many", self._remote.get_many(keys), {}))

    async def head(self, key: str) -> Entry | None:
        """The entry, fresh or stale; its value is left where it is, if the store can do that."""
        found = await self._head(key)
        return None if found is None else await self.entry(key, found)

    async def heads(self, keys: Sequence[str]) -> dict[str, Entry]:
        """As `entries`, with the values left where they are, if the store can do that."""
        ask = self._remote.get_many if self._heads is None else self._heads.get_many
        return await self._valid_of(await self._attempt("keys", ask(keys), {}))

    async def put(self, key: str, entry: Entry, only_if: OnlyIf) -> bool | None:
        """Store an entry; whether the condition held, ``None`` when the store failed.

        What tags hide is absent to users and present to the store.
        """
        if only_if == "absent":
            return await self._add(key, entry)
        if only_if == "present":
            found = await self._head(key)
            if found is not None and await self.entry(key, found) is None:
                return False
        return await self._attempt("set", self._remote.set(key, entry, only_if=only_if), None)

    async def _add(self, key: str, entry: Entry) -> bool | None:
        stored, there = await self._try_to_add(key, entry)
        if there is not None and await self.entry(key, there) is None:
            await self._attempt("delete", self._remote.delete([key]), 0)
            stored, _ = await self._try_to_add(key, entry)
        return stored

    async def _try_to_add(self, key: str, entry: Entry) -> tuple[bool | None, Entry | None]:
        """As `put`, by the store's notion of what is absent; and what is there instead."""
        if self._heads is None:
            stored = await self._attempt("set", self._remote.set(key, entry, only_if="absent"), None)
            return stored, await self._head(key) if stored is False else None
        there = await self._attempt("set", self._heads.add(key, entry), MISSING)
        return (None, None) if there is MISSING else (there is None, there)

    async def _valid_of(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        versions = await self._versions({tag for entry in entries.values() for tag in entry.tags})
        return {key: entry for key, entry in entries.items() if _valid(entry, versions)}

    async def _head(self, key: str) -> Entry | None:
        """What the store has, valid or not."""
        if self._heads is None:
            return await self._attempt("get", self._remote.get(key), None)
        found: Mapping[str, Entry] = await self._attempt("get", self._heads.get_many([key]), {})
        return found.get(key)

    async def _versions(self, tags: Collection[str]) -> Mapping[str, str]:
        """The versions that the tags have now; none when the store fails: then no entry that has one is believed."""
        if not tags:
            return {}
        keys = [record_key(tag) for tag in tags]
        token = self._copies.reading(keys)
        try:
            versions: Mapping[str, str] = await self._attempt("get_many", self.tags.current(tags), {})
            self._copies.read_versions(versions, token)
            return versions
        finally:
            self._copies.read(keys, token)


def _valid(entry: Entry, versions: Mapping[str, str]) -> bool:
    return all(versions.get(tag) == version for tag, version in entry.tags.items())
