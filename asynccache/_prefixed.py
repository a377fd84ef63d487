"""A remote store under one prefix: those in front of it know their keys, and the names of tags, without it.

It is for a cache whose local store is its own: there a prefix in front of every key would tell nothing apart, and to
build it took a fifth of a hit (measured: 292 ns with it, 236 without).
"""

import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

from asynccache.backend import Backend, Coherence, Heads, Lease, Leases, OnlyIf
from asynccache.entry import Entry

__all__ = ["Prefixed"]


@final
class Prefixed:
    """A store in which every key is found behind a prefix.

    Args:
        store: The store.
        prefix: What its keys begin with.

    Attributes:
        store: The store.
    """

    def __init__(self, store: Backend, prefix: str) -> None:
        self.store = store
        self._prefix = prefix
        self.name = store.name
        self.reports = store.reports
        self.health = store.health
        self.shortcut = None  # it is for a cache that has no local store
        self.heads = None if store.heads is None else _PrefixedHeads(store.heads, prefix)
        self.leases = None if store.leases is None else _PrefixedLeases(store.leases, prefix)
        self.coherence = None if store.coherence is None else _PrefixedCoherence(store.coherence, prefix)

    async def get(self, key: str) -> Entry | None:
        entry = await self.store.get(self._prefix + key)
        return entry if entry is None or not entry.tags else _bared(entry, self._prefix)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        prefix = self._prefix
        return _all_bared(await self.store.get_many([prefix + key for key in keys]), prefix)

    def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> Coroutine[Any, Any, bool]:
        return self.store.set(self._prefix + key, _whole(entry, self._prefix), only_if=only_if)

    def set_many(self, entries: Mapping[str, Entry]) -> Coroutine[Any, Any, None]:
        prefix = self._prefix
        return self.store.set_many({prefix + key: _whole(entry, prefix) for key, entry in entries.items()})

    def delete(self, keys: Sequence[str]) -> Coroutine[Any, Any, int]:
        return self.store.delete([self._prefix + key for key in keys])

    def touch(self, key: str, *, fresh_until: float, expires_at: float) -> Coroutine[Any, Any, bool]:
        return self.store.touch(self._prefix + key, fresh_until=fresh_until, expires_at=expires_at)

    def incr(self, key: str, delta: int, *, ttl: float | None) -> Coroutine[Any, Any, int]:
        return self.store.incr(self._prefix + key, delta, ttl=ttl)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.store.keys(self._prefix + prefix):
            yield key.removeprefix(self._prefix)

    def ping(self) -> Coroutine[Any, Any, None]:
        return self.store.ping()

    def aclose(self) -> Coroutine[Any, Any, None]:
        return self.store.aclose()


def _whole(entry: Entry, prefix: str) -> Entry:
    """The entry with its tags as other caches on the store call them."""
    if not entry.tags:
        return entry
    return replace(entry, tags={prefix + tag: version for tag, version in entry.tags.items()})


def _bared(entry: Entry, prefix: str) -> Entry:
    """The entry with its tags as they are called in front of the store."""
    return replace(entry, tags={tag.removeprefix(prefix): version for tag, version in entry.tags.items()})


def _all_bared(entries: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    return {key.removeprefix(prefix): _bared(entry, prefix) if entry.tags else entry for key, entry in entries.items()}


@final
class _PrefixedHeads:
    def __init__(self, heads: Heads, prefix: str) -> None:
        self._heads = heads
        self._prefix = prefix

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        prefix = self._prefix
        return _all_bared(await self._heads.get_many([prefix + key for key in keys]), prefix)

    async def add(self, key: str, entry: Entry) -> Entry | None:
        there = await self._heads.add(self._prefix + key, _whole(entry, self._prefix))
        return there if there is None or not there.tags else _bared(there, self._prefix)


@final
class _PrefixedLeases:
    def __init__(self, leases: Leases, prefix: str) -> None:
        self._leases = leases
        self._prefix = prefix

    def _whole(self, lease: Lease) -> Lease:
        return replace(lease, key=self._prefix + lease.key)

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        lease = await self._leases.acquire(self._prefix + key, ttl=ttl)
        return None if lease is None else replace(lease, key=key)

    def renew(self, lease: Lease, *, ttl: float) -> Coroutine[Any, Any, bool]:
        return self._leases.renew(self._whole(lease), ttl=ttl)

    def commit(self, lease: Lease, entry: Entry) -> Coroutine[Any, Any, bool]:
        return self._leases.commit(self._whole(lease), _whole(entry, self._prefix))

    def release(self, lease: Lease) -> Coroutine[Any, Any, None]:
        return self._leases.release(self._whole(lease))

    def abandon(self, lease: Lease) -> None:
        self._leases.abandon(self._whole(lease))

    def wait(self, key: str, *, timeout: float) -> Coroutine[Any, Any, None]:
        return self._leases.wait(self._prefix + key, timeout=timeout)


@final
class _PrefixedCoherence:
    def __init__(self, coherence: Coherence, prefix: str) -> None:
        self._coherence = coherence
        self._prefix = prefix
        self._listeners: list[weakref.WeakMethod[Callable[[Sequence[str] | None], object]]] = []

    @property
    def live(self) -> bool:
        return self._coherence.live

    def watch(self, changed: Callable[[Sequence[str] | None], object]) -> None:
        if not self._listeners:
            self._coherence.watch(self._changed)
        self._listeners.append(weakref.WeakMethod(changed))

    def _changed(self, keys: Sequence[str] | None) -> None:
        prefix = self._prefix
        if keys is not None:
            keys = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        if keys != []:
            for each in self._listeners:
                listener = each()
                if listener is not None:
                    listener(keys)
