"""A backend of one's own: what a store has to do to sit behind a cache.

The store is a dictionary in this process that pretends to be a server: every operation waits for the event loop once,
as for a round trip. It shows every part of `asynccache.Backend`, leases included, and passes the conformance suite
(``tests/test_conformance.py``):

    class TestToy(BackendConformance):
        async def open(self) -> Backend:
            return ToyBackend()

Given as an object it works at once: ``Cache(ToyBackend())``. An entry point makes it known for URLs, ``Cache("toy://")``:

    [project.entry-points."asynccache.backends"]
    toy = "custom_backend:open_toy"
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from math import inf

from asynccache import Cache, Clock, Entry, Lease
from asynccache.backend import OnlyIf, StoreOptions
from asynccache.clock import SystemClock


class ToyServer:
    """What several backends, and so several processes, would share: entries, leases, and who waits for them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.leases: dict[str, tuple[str, float]] = {}  # each with its token and its end
        self.waiters: dict[str, set[asyncio.Event]] = {}
        self.tokens = itertools.count(1)

    def entry(self, key: str, now: float, *, stale: bool = False) -> Entry | None:
        """The fresh entry; with ``stale`` also one past its ttl and within its grace. Past that it is gone."""
        entry = self.entries.get(key)
        if entry is None or now < (entry.expires_at if stale else entry.fresh_until):
            return entry
        if now >= entry.expires_at:
            del self.entries[key]
        return None

    def store(self, key: str, entry: Entry) -> None:
        """Keep the entry. Every write voids the key's lease, so that a load that runs now does not overwrite it."""
        self.entries[key] = entry
        self.void(key)

    def void(self, key: str) -> None:
        """Take the key's lease away, and wake all who wait for it."""
        self.leases.pop(key, None)
        for ended in self.waiters.pop(key, ()):
            ended.set()


class ToyBackend:
    """A `Backend`; it inherits nothing.

    Args:
        server: What it talks to; left out, one of its own.
        clock: Where time comes from. An entry's times are seconds since 1970 on it.
    """

    name = "toy"
    reports = None  # nothing fails here that no call raises
    shortcut = None  # there is no shorter way than get
    heads = None  # an entry's times come with its value
    coherence = None  # it tells nobody of changes
    health = None  # its server is never away

    def __init__(self, server: ToyServer | None = None, *, clock: Clock | None = None) -> None:
        self.server = server or ToyServer()
        self.clock = clock or SystemClock()
        self.leases = ToyLeases(self)

    @property
    def now(self) -> float:
        return self.clock.epoch + self.clock.monotonic()

    async def get(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        return self.server.entry(key, self.now, stale=True)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        await asyncio.sleep(0)  # one round trip, however many keys
        found = {key: self.server.entry(key, self.now, stale=True) for key in keys}
        return {key: entry for key, entry in found.items() if entry is not None}

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        await asyncio.sleep(0)
        there = self.server.entry(key, self.now) is not None
        if only_if is not None and there != (only_if == "present"):
            return False
        self.server.store(key, entry)
        return True

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        await asyncio.sleep(0)
        for key, entry in entries.items():
            self.server.store(key, entry)

    async def delete(self, keys: Sequence[str]) -> int:
        await asyncio.sleep(0)
        count = sum([self.server.entry(key, self.now) is not None for key in dict.fromkeys(keys)])
        for key in keys:
            self.server.entries.pop(key, None)
            self.server.void(key)
        return count

    async def touch(self, key: str, *, fresh_until: float, expires_at: float) -> bool:
        await asyncio.sleep(0)
        if (entry := self.server.entry(key, self.now)) is not None:
            self.server.entries[key] = replace(entry, fresh_until=fresh_until, expires_at=expires_at)
        return entry is not None

    async def incr(self, key: str, delta: int, *, ttl: float | None) -> int:
        await asyncio.sleep(0)
        until = inf if ttl is None else self.now + ttl
        created = Entry(value=0, created_at=self.now, fresh_until=until, expires_at=until)
        entry = self.server.entry(key, self.now) or created
        if type(entry.value) is not int:
            raise TypeError("the key holds something else than an integer")
        self.server.store(key, replace(entry, value=entry.value + delta))
        return int(entry.value) + delta

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        for key in self.server.entries.keys() | self.server.leases.keys():  # what is loaded just now can be cleared
            if key.startswith(prefix) and (key in self.server.leases or self.server.entry(key, self.now, stale=True)):
                yield key

    async def ping(self) -> None:
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        return None  # nothing was opened


class ToyLeases:
    """The right to load a key, granted to one of all who ask."""

    def __init__(self, backend: ToyBackend) -> None:
        self._backend = backend
        self._server = backend.server

    def _left(self, key: str, token: str | None = None) -> float:
        """Seconds that the key's lease has left; with a token, that one's."""
        holder, until = self._server.leases.get(key, ("", -inf))
        return until - self._backend.now if token in (None, holder) else -inf

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        await asyncio.sleep(0)
        if self._left(key) > 0:
            return None
        lease = Lease(key, str(next(self._server.tokens)))
        self._server.leases[key] = (lease.token, self._backend.now + ttl)
        return lease

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        await asyncio.sleep(0)
        if held := self._left(lease.key, lease.token) > 0:
            self._server.leases[lease.key] = (lease.token, self._backend.now + ttl)
        return held

    async def commit(self, lease: Lease, entry: Entry) -> bool:
        await asyncio.sleep(0)
        if held := self._left(lease.key, lease.token) > 0:
            self._server.store(lease.key, entry)
        return held

    async def release(self, lease: Lease) -> None:
        await asyncio.sleep(0)
        self.abandon(lease)

    def abandon(self, lease: Lease) -> None:
        if self._left(lease.key, lease.token) > 0:
            self._server.void(lease.key)

    async def wait(self, key: str, *, timeout: float) -> None:
        await asyncio.sleep(0)
        if (left := self._left(key)) > 0:
            ended = asyncio.Event()
            waiters = self._server.waiters.setdefault(key, set())
            waiters.add(ended)
            timer = self._backend.clock.call_later(min(left, timeout), ended.set)
            try:
                await ended.wait()
            finally:
                timer.cancel()
                waiters.discard(ended)


def open_toy(options: StoreOptions) -> ToyBackend:
    """The backend of a ``toy://`` URL: what the entry point names."""
    return ToyBackend(clock=options.clock)


async def main() -> None:
    server = ToyServer()  # two caches on it, as two processes would have: the second finds what the first has loaded
    first, second = Cache(ToyBackend(server), ttl="1m"), Cache(ToyBackend(server), ttl="1m")
    print(await first.get_or_set("answer", lambda: 42))
    print(await second.get("answer"), await second.delete("answer"), await first.get("answer"))


if __name__ == "__main__":
    asyncio.run(main())
