"""What a remote store has, as far as tags let it be seen: a store knows nothing of them."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, final

from asynccache._copies import Copies
from asynccache._failures import Failures
from asynccache._tags import RemoteTags, record_key
from asynccache.backend import Backend, Lease, OnlyIf
from asynccache.entry import MISSING, Entry
from asynccache.errors import BackendError

__all__ = ["Stored"]

_MOST_TRIES: Final = 5
_REPLACED_SECONDS: Final = 1.0
_FAILED: Final = Lease("", "")


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
            hidden = await self._hidden(await self._head(key))
            if hidden is not False:
                return None if hidden is None else False
        return await self._attempt("set", self._remote.set(key, entry, only_if=only_if), None)

    async def forfeit(self, keys: Sequence[str]) -> None:
        """Remove what is not what was to be stored and could not be: now, or when the store can be asked again."""
        if keys:
            with suppress(BackendError):  # the failure that led to this has been told
                await self._attempt("delete", self._remote.delete(keys), 0)

    async def _add(self, key: str, entry: Entry) -> bool | None:
        for _ in range(_MOST_TRIES):  # it is there again, or gone again, as often as others write it meanwhile
            stored, there = await self._try_to_add(key, entry)
            if there is None:
                return stored
            hidden = await self._hidden(there)
            if not hidden:
                return hidden
            replaced = await self._replace(key, entry)
            if replaced is not False:
                return replaced
        return False

    async def _replace(self, key: str, entry: Entry) -> bool | None:
        """Store an entry in place of what tags hide, and of nothing else; ``False`` when somebody else has written or
        is about to, ``None`` when the store failed.

        By a lease, which anybody's write voids: a store cannot be asked to replace what is hidden.
        """
        leases = self._remote.leases
        if leases is None:
            await self._attempt("delete", self._remote.delete([key]), 0)
            return await self._attempt("set", self._remote.set(key, entry, only_if="absent"), None)
        lease = await self._attempt("lease", leases.acquire(key, ttl=_REPLACED_SECONDS), _FAILED)
        if lease is _FAILED:
            return None
        if lease is None:
            waited = await self._attempt("wait", leases.wait(key, timeout=_REPLACED_SECONDS), _FAILED)
            return None if waited is _FAILED else False
        try:
            there = await self._head(key)
            hidden = there is None or await self._hidden(there)
            if not hidden:
                return hidden
            given, lease = lease, None
            return await self._attempt("commit", leases.commit(given, entry), None)
        finally:
            if lease is not None:
                leases.abandon(lease)

    async def _hidden(self, entry: Entry | None) -> bool | None:
        """Whether an entry that is there is hidden by its tags; ``None`` when nobody knows."""
        if entry is None or not entry.tags:
            return False
        versions = await self._asked(entry.tags)
        return None if versions is None else not _valid(entry, versions)

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
        return await self._asked(tags) or {}

    async def _asked(self, tags: Collection[str]) -> Mapping[str, str] | None:
        if not tags:
            return {}
        keys = [record_key(tag) for tag in tags]
        token = self._copies.reading(keys)
        try:
            versions: Mapping[str, str] | None = await self._attempt("get_many", self.tags.current(tags), None)
            if versions is not None:
                self._copies.read_versions(versions, token)
            return versions
        finally:
            self._copies.read(keys, token)


def _valid(entry: Entry, versions: Mapping[str, str]) -> bool:
    return all(versions.get(tag) == version for tag, version in entry.tags.items())
