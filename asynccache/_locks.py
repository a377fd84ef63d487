"""Locks: by the leases of the remote store where it has them, else among the users of one in-process store."""

import asyncio
import itertools
import math
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Final, final

from asynccache._flight import Status, Waiter, wake
from asynccache._seats import Seats
from asynccache.backend import Lease, Leases
from asynccache.clock import Clock
from asynccache.entry import Entry
from asynccache.errors import CacheClosed, LockTimeout
from asynccache.telemetry import CallSpan

__all__ = ["LocalLeases", "Locks"]

_GIVEN_BACK: Final = (Status.VALUE, None)
_NEXT: Final = "next"  # the token of a lease that is kept for the waiter who was woken
_TURN_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5  # how soon to ask again where the store grants leases but cannot tell of their end
_NOBODY: Final = ("", 0.0)


@final
class LocalLeases:
    """Grants the right to one key at a time, to callers of any task, loop or thread; first come, first served.

    The next in the queue is woken when a lease is given back, and it is kept for him until he has it, so that nobody
    gets in between.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._waiters: dict[str, dict[Waiter, object]] = {}
        self._tokens = itertools.count(1)
        self._guard = threading.RLock()  # loops in several threads: looking and changing are one step

    def __len__(self) -> int:
        return len(self._held) + len(self._waiters)

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        """The lease, for ``ttl`` seconds; ``None`` when somebody else holds it."""
        with self._guard:
            now = self._clock.monotonic()
            held = self._held.get(key)
            if held is not None and now < held[1]:
                return None
            fence = next(self._tokens)
            self._held[key] = (str(fence), now + ttl)
            return Lease(key, str(fence), fence)

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        """Hold it for ``ttl`` seconds from now; ``False`` when it has lapsed."""
        with self._guard:
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
        self.abandon(lease)

    def abandon(self, lease: Lease) -> None:
        """The same at once."""
        self._end(lease.key, lease.token)

    async def wait(self, key: str, *, timeout: float, owner: object = None) -> None:
        """Return when the lease was given back or has lapsed, or after ``timeout`` seconds, or when the owner is
        dismissed."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        with self._guard:
            held = self._held.get(key)
            if held is None:
                return
            queue = self._waiters.setdefault(key, {})
            queue[waiter] = owner
        pause = max(0.0, min(timeout, held[1] - self._clock.monotonic()))
        timer = self._clock.call_later(pause, lambda: wake(waiter, _GIVEN_BACK, loop))
        try:
            await waiter
        except BaseException:
            if waiter not in queue:
                self._end(key, _NEXT)  # it was this caller's turn: the next one takes it
            raise
        else:
            if waiter not in queue:
                with self._guard:
                    if self._held.get(key, _NOBODY)[0] == _NEXT:
                        del self._held[key]  # for this caller, who acquires it now
        finally:
            timer.cancel()
            with self._guard:
                queue.pop(waiter, None)
                if not queue and self._waiters.get(key) is queue:
                    del self._waiters[key]

    def _end(self, key: str, token: str) -> None:
        with self._guard:
            if self._held.get(key, _NOBODY)[0] != token:
                return
            del self._held[key]
            waiters = self._waiters.get(key)
            if not waiters:
                return
            first = next(iter(waiters))
            del waiters[first]
            # It lapses too, should the loop of the one who is woken be gone.
            self._held[key] = (_NEXT, self._clock.monotonic() + _TURN_SECONDS)
        wake(first, _GIVEN_BACK, None)

    def dismiss(self, owner: object) -> None:
        """Have all who wait on somebody's behalf wait no more."""
        with self._guard:
            waiting = [each for queue in self._waiters.values() for each, whose in queue.items() if whose is owner]
        for each in waiting:
            wake(each, _GIVEN_BACK, None)

    def forget(self) -> None:
        """Start anew in a forked child: who holds and who waits is in the parent."""
        self._guard = threading.RLock()
        self._held.clear()
        self._waiters.clear()


_of_stores: "weakref.WeakKeyDictionary[object, LocalLeases]" = weakref.WeakKeyDictionary()
_all: "weakref.WeakSet[LocalLeases]" = weakref.WeakSet()
_NO_LEASE: Final = Lease("", "")


@final
class Locks:
    """The locks of one cache; caches on one in-process store share theirs."""

    def __init__(self, seats: Seats) -> None:
        self.closed = False
        self._seats = seats
        remote = seats.remote
        granted = None if remote is None else remote.leases
        self._queue = _leases_of(seats.local if remote is None else remote, seats.clock)
        self._leases: Leases = self._queue if granted is None else granted

    def close(self) -> None:
        """Let nobody have a lock any more: who waits for one is told."""
        self.closed = True
        self._queue.dismiss(self)

    @asynccontextmanager
    async def held(
        self, key: str, ttl: float, timeout: float | None, call: Callable[[], AbstractContextManager[CallSpan]]
    ) -> AsyncIterator[int | None]:
        """Hold the lock of the key, and tell its fencing number.

        Those of one process queue here, and the first in the queue asks the store: a crowd costs it what one costs.

        Args:
            key: The whole key.
            ttl: Seconds after which it lapses.
            timeout: Seconds to wait for it; ``None`` for as long as it takes.
            call: The span of the wait.

        Raises:
            LockTimeout: It was not free in time.
        """
        # Neither a key nor the name of a view has two NULs in a row: a lock is nobody's key.
        name = f"{key}\0\0lock"
        turn: Lease | None = None
        lease: Lease | None = None
        try:
            with call():
                deadline = math.inf if timeout is None else self._seats.clock.monotonic() + timeout
                if self._leases is not self._queue:
                    turn = await self._acquire(self._queue, name, ttl, deadline, None)
                lease = await self._acquire(self._leases, name, ttl, deadline, turn)
            yield None if lease is None else lease.fence
        finally:
            try:
                if lease is not None:
                    given, lease = lease, None
                    await self._seats.attempt("lock", self._leases.release(given), None)
            except BaseException:
                self._leases.abandon(given)  # who is cancelled twice gives it back all the same
                raise
            finally:
                if turn is not None:
                    self._queue.abandon(turn)

    async def _acquire(
        self, leases: Leases, name: str, ttl: float, deadline: float, turn: Lease | None
    ) -> Lease | None:
        """The lease that is the lock; ``None`` when the store failed and failures are hidden: then nobody is kept out.

        Args:
            leases: Who grants it.
            name: What is locked.
            ttl: Seconds after which it lapses.
            deadline: Until when to wait.
            turn: The place in the queue that is held meanwhile; it lapses with the lock.

        Raises:
            LockTimeout: It was not free in time.
        """
        clock, attempt = self._seats.clock, self._seats.attempt
        while True:
            if turn is not None:
                await self._queue.renew(turn, ttl=ttl * 2)
            lease = await attempt("lock", leases.acquire(name, ttl=ttl), _NO_LEASE)
            if self.closed:
                if lease is not None and lease is not _NO_LEASE:
                    leases.abandon(lease)
                raise CacheClosed("the cache was closed while its lock was waited for")
            if lease is _NO_LEASE:
                return None
            if lease is not None:
                if turn is not None:
                    await self._queue.renew(turn, ttl=ttl)
                return lease
            left = deadline - clock.monotonic()
            if left <= 0:
                raise LockTimeout("the lock was not free in time")
            if leases is self._queue:
                await self._queue.wait(name, timeout=min(left, ttl), owner=self)
            elif await attempt("wait", leases.wait(name, timeout=min(left, ttl)), _NO_LEASE) is _NO_LEASE:
                await self._pause(min(left, _RETRY_SECONDS))

    async def _pause(self, duration: float) -> None:
        passed = asyncio.Event()
        timer = self._seats.clock.call_later(duration, passed.set)
        try:
            await passed.wait()
        finally:
            timer.cancel()


def _leases_of(store: object, clock: Clock) -> LocalLeases:
    """Those of all caches on the store; a cache has its own where the store's class allows no such table."""
    leases = LocalLeases(clock)
    try:
        leases = _of_stores.setdefault(store, leases)
    except TypeError:  # it has no hash, or no room for weak references
        pass
    _all.add(leases)
    return leases


def _forget_after_fork() -> None:
    for leases in list(_all):
        leases.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
