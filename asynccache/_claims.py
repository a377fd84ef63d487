"""The rights to load many keys at once: what a bulk load holds while it runs.

A key whose lease somebody else has is left to him. Who waits for it holds nothing meanwhile, so that no two loads wait
for each other; who cannot wait loads it all the same, and only the holder stores what he has loaded.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextvars import Context
from typing import Final, final

from asynccache._background import Background
from asynccache._seats import Seats
from asynccache.backend import Lease, Leases
from asynccache.clock import stopwatch
from asynccache.entry import Entry
from asynccache.errors import BackendError, EncodeError

__all__ = ["LEASE_SECONDS", "MOST_IN_VAIN", "NO_TIME", "RENEW_SECONDS", "RETRY_SECONDS", "Claims", "lease_seconds"]

LEASE_SECONDS: Final = 3.0
"""How long the right to load lasts, unless it is renewed."""

RENEW_SECONDS: Final = 1.0
"""How often it is renewed."""

RETRY_SECONDS: Final = 0.25
"""How soon again after that has failed."""

NO_TIME: Final = 0.002
"""Seconds: less than a lease is held that somebody waits for."""

MOST_IN_VAIN: Final = 10
"""How often a store may say that a lease is held, and that it is not."""

_CROWD: Final = 2_000

_FAILED: Final = Lease("", "")


def lease_seconds(count: int) -> float:
    """How long the right to load lasts where so many keys are being loaded: the more, the later each has its turn."""
    return LEASE_SECONDS * max(1.0, count / _CROWD)


@final
class Claims:
    """The leases of one bulk load.

    Args:
        seats: Where they are granted.
        leases: By whom.
        background: Where they are renewed.

    Attributes:
        refused: The keys for which the store could not be asked.
    """

    def __init__(self, seats: Seats, leases: Leases, background: Background) -> None:
        self._seats = seats
        self._leases = leases
        self._background = background
        self.refused: set[str] = set()
        self._held: dict[str, Lease] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._in_vain = 0
        self._seconds = LEASE_SECONDS

    async def acquire(self, keys: Sequence[str]) -> set[str]:
        """Claim the keys, as far as they are free; which ones somebody else has."""
        self._seconds = lease_seconds(len(keys))
        leases = await self._background.together([self._acquire(key) for key in keys])
        if self._held:
            self._renewing = self._background.start(self._renew(), Context())
        return {key for key, lease in zip(keys, leases, strict=True) if lease is None}

    async def _acquire(self, key: str) -> Lease | None:
        lease = await self._seats.attempt("lease", self._leases.acquire(key, ttl=self._seconds), _FAILED)
        if lease is _FAILED:
            self.refused.add(key)
        elif lease is not None:
            self._held[key] = lease
        return lease

    async def wait(self, keys: Sequence[str]) -> bool:
        """Return when somebody else's load of one of the keys may have ended; ``False`` when there is no waiting for
        it.

        It is one key that is waited for, not all: those of one load come together, and each would cost the store a
        question.
        """
        began = stopwatch()
        ended = await self._seats.attempt("wait", self._leases.wait(keys[0], timeout=LEASE_SECONDS), _FAILED)
        self._in_vain = self._in_vain + 1 if stopwatch() - began < NO_TIME else 0
        return ended is not _FAILED and self._in_vain <= MOST_IN_VAIN

    async def _renew(self) -> None:
        usual = pause = RENEW_SECONDS * self._seconds / LEASE_SECONDS
        while self._held:
            await self._pause(pause)
            replies = await self._background.together([self._renewed(lease) for lease in list(self._held.values())])
            pause = usual if all(replies) else RETRY_SECONDS

    async def _renewed(self, lease: Lease) -> bool:
        """Whether the store has answered; a lease that is void is not renewed again."""
        try:
            held = await self._seats.attempt("lease", self._leases.renew(lease, ttl=self._seconds), None)
        except BackendError:  # nobody waits for this
            return False
        if held is False:
            self._held.pop(lease.key, None)
        return held is not None

    async def _pause(self, duration: float) -> None:
        passed = asyncio.Event()
        timer = self._seats.clock.call_later(duration, passed.set)
        try:
            await passed.wait()
        finally:
            timer.cancel()

    async def commit(self, entries: Iterable[tuple[str, Entry]]) -> set[str]:
        """Store those whose leases still hold; which these are."""
        entries = list(entries)
        stored = await self._background.together([self._commit(key, entry) for key, entry in entries])
        return {key for (key, _), each in zip(entries, stored, strict=True) if each}

    async def _commit(self, key: str, entry: Entry) -> bool:
        lease = self._held.pop(key, None)
        if lease is None:
            return False
        try:
            return await self._seats.attempt("commit", self._leases.commit(lease, entry), False)
        except EncodeError as error:
            self._seats.failures.not_stored(entry.value, error)
            return False

    def abandon(self) -> None:
        """Give back what is still held."""
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
        for lease in self._held.values():
            self._leases.abandon(lease)
        self._held.clear()
