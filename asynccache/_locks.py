"""Locks of one process, with the same words as the leases of a store."""

import asyncio
import itertools
from typing import Final, final

from asynccache._flight import Status, Waiter, wake
from asynccache.backend import Lease
from asynccache.clock import Clock
from asynccache.entry import Entry

__all__ = ["LocalLeases"]

_GIVEN_BACK: Final = (Status.VALUE, None)


@final
class LocalLeases:
    """Grants the right to one key at a time, to callers of any task, loop or thread; first come, first served."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._waiters: dict[str, dict[Waiter, None]] = {}
        self._tokens = itertools.count(1)

    def __len__(self) -> int:
        return len(self._held) + len(self._waiters)

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        """The lease, for ``ttl`` seconds; ``None`` when somebody else holds it."""
        now = self._clock.monotonic()
        held = self._held.get(key)
        if held is not None and now < held[1]:
            return None
        token = str(next(self._tokens))
        self._held[key] = (token, now + ttl)
        return Lease(key, token)

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        """Hold it for ``ttl`` seconds from now; ``False`` when it has lapsed."""
        now = self._clock.monotonic()
        held = self._held.get(lease.key)
        if held is None or held[0] != lease.token or now >= held[1]:
            return False
        self._held[lease.key] = (lease.token, now + ttl)
        return True

    async def commit(self, lease: Lease, entry: Entry) -> bool:
        """Nothing is stored here."""
        return False

    async def release(self, lease: Lease) -> None:
        """Give it back and wake the first in the queue."""
        held = self._held.get(lease.key)
        if held is not None and held[0] == lease.token:
            del self._held[lease.key]
            waiters = self._waiters.get(lease.key)
            if waiters:
                first = next(iter(waiters))
                del waiters[first]
                wake(first, _GIVEN_BACK, asyncio.get_running_loop())

    async def wait(self, key: str, *, timeout: float) -> None:
        """Return when the lease was given back or has lapsed, or after ``timeout`` seconds."""
        held = self._held.get(key)
        if held is None:
            return
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        queue = self._waiters.setdefault(key, {})
        queue[waiter] = None
        pause = max(0.0, min(timeout, held[1] - self._clock.monotonic()))
        timer = self._clock.call_later(pause, lambda: wake(waiter, _GIVEN_BACK, loop))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter not in queue and key not in self._held:
                self._wake_next(key)  # it was this caller's turn: the next one takes it
            raise
        finally:
            timer.cancel()
            queue.pop(waiter, None)
            if not queue and self._waiters.get(key) is queue:
                del self._waiters[key]

    def _wake_next(self, key: str) -> None:
        waiters = self._waiters.get(key)
        if waiters:
            first = next(iter(waiters))
            del waiters[first]
            wake(first, _GIVEN_BACK, asyncio.get_running_loop())
