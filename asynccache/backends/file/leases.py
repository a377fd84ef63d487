"""The right to load, granted by a row of the store.

Who waits in this process is woken when it ends here. An end in another process is found by looking: one look for all
who wait, at growing intervals, so that a crowd of waiters costs what one costs.
"""

import uuid
from asyncio import AbstractEventLoop, Future, get_running_loop
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from sqlite3 import Connection
from typing import Any, Final, Protocol, final
from weakref import WeakKeyDictionary

from asynccache.backend import Lease
from asynccache.backends.file import table
from asynccache.backends.file.crew import Job
from asynccache.clock import Clock
from asynccache.entry import Entry

__all__ = ["FileLeases", "Store"]

_FIRST_LOOK: Final = 0.004
_LAST_LOOK: Final = 0.032


class Store(Protocol):
    """What leases need of their store."""

    clock: Clock

    def now(self) -> int: ...
    def look(self, job: Job) -> None: ...
    def tell(self, job: Job) -> None: ...
    async def row(self, key: str, entry: Entry) -> table.Row: ...
    def read(self, work: Callable[[Connection], Any]) -> Coroutine[Any, Any, Any]: ...
    def write(self, work: Callable[[Connection], Any], weight: int = 0) -> Coroutine[Any, Any, Any]: ...


@final
class FileLeases:
    """The leases of one store, whose ends are known at once in this process and soon in others."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: WeakKeyDictionary[AbstractEventLoop, _Watch] = WeakKeyDictionary()

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        """The lease, for ``ttl`` seconds; ``None`` when somebody else holds it."""
        now, token = self._store.now(), uuid.uuid4().hex
        fence = await self._store.write(partial(_grant, key, token, now, now + table.ticks(ttl)))
        return Lease(key, token, fence) if fence else None

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        """Hold it for ``ttl`` seconds from now; ``False`` when it was voided or lapsed."""
        now = self._store.now()
        held: bool = await self._store.write(partial(_extend, lease, now, now + table.ticks(ttl)))
        return held

    async def commit(self, lease: Lease, entry: Entry) -> bool:
        """Store the entry and give the lease back, if it still holds."""
        row = await self._store.row(lease.key, entry)
        held: bool = await self._store.write(partial(_commit, lease, row, self._store.now()), len(row[3]))
        if held:
            self.ended((lease.key,))
        return held

    async def release(self, lease: Lease) -> None:
        """Give it back."""
        await self._store.write(partial(_give_back, lease))
        self.ended((lease.key,))

    def abandon(self, lease: Lease) -> None:
        """Give it back, when nothing can be awaited."""
        job = Job(get_running_loop(), partial(_give_back, lease))
        job.future.add_done_callback(partial(self._abandoned, lease.key))
        self._store.tell(job)

    def _abandoned(self, key: str, future: "Future[Any]") -> None:
        if not future.cancelled() and future.exception() is None:
            self.ended((key,))

    async def wait(self, key: str, *, timeout: float) -> None:
        """Return when the lease was given back, voided or has lapsed, or after ``timeout`` seconds."""
        clock = self._store.clock
        deadline = clock.monotonic() + timeout
        loop = get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches.setdefault(loop, _Watch(self._store))
        waiter = watch.enter(key, loop)
        try:
            held = await self._store.read(partial(table.leased, now=self._store.now(), keys=(key,)))
            if key not in held or waiter.done():
                return
            left = min(deadline, table.seconds(held[key]) - clock.epoch) - clock.monotonic()
            if left <= 0:
                return
            timer = clock.call_later(left, partial(_wake, waiter))
            watch.look_soon(loop)
            try:
                await waiter
            finally:
                timer.cancel()
        finally:
            watch.leave(key, waiter)

    def ended(self, keys: Iterable[str]) -> None:
        """Wake who waits for the keys in this process."""
        if not self._watches:
            return
        here = get_running_loop()
        names = tuple(keys)
        for loop, watch in list(self._watches.items()):
            if loop is here:
                watch.wake(names)
            elif watch.waiters:
                try:
                    loop.call_soon_threadsafe(watch.wake, names)
                except RuntimeError:  # it is closed: nobody waits
                    pass

    def close(self) -> None:
        """Wake all who wait: the store is closed."""
        self.ended({key for watch in self._watches.values() for key in watch.waiters})

    def forget(self) -> None:
        """Start anew in a forked child."""
        self._watches.clear()


@final
class _Watch:
    """Who waits in one loop."""

    def __init__(self, store: Store) -> None:
        self.waiters: dict[str, set[Future[None]]] = {}
        self._store = store
        self._pause = _FIRST_LOOK
        self._looking = False

    def enter(self, key: str, loop: AbstractEventLoop) -> "Future[None]":
        waiter: Future[None] = loop.create_future()
        self.waiters.setdefault(key, set()).add(waiter)
        return waiter

    def leave(self, key: str, waiter: "Future[None]") -> None:
        waiters = self.waiters.get(key)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self.waiters[key]

    def wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            for waiter in self.waiters.get(key, ()):
                _wake(waiter)

    def look_soon(self, loop: AbstractEventLoop) -> None:
        """Begin to look, from short intervals on."""
        self._pause = _FIRST_LOOK
        if not self._looking:
            self._looking = True
            loop.call_later(self._pause, self._look, loop)

    def _look(self, loop: AbstractEventLoop) -> None:
        keys = list(self.waiters)
        if not keys:
            self._looking = False
            return
        job = Job(loop, partial(table.leased, now=0, keys=keys))  # those that lapse have their timers
        job.future.add_done_callback(partial(self._looked, loop, keys))
        self._store.look(job)

    def _looked(self, loop: AbstractEventLoop, keys: Sequence[str], future: "Future[Any]") -> None:
        if not future.cancelled() and future.exception() is None:
            held = future.result()
            self.wake([key for key in keys if key not in held])
        self._pause = min(2 * self._pause, _LAST_LOOK)
        loop.call_later(self._pause, self._look, loop)


def _wake(waiter: "Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


# What the writer does with the rows of leases


def _grant(key: str, token: str, now: int, until: int, connection: Connection) -> int:
    """The fencing number; zero when somebody holds the lease."""
    if connection.execute("select 1 from leases where key = ? and until > ?", (key, now)).fetchone() is not None:
        return 0
    connection.execute("insert or replace into leases values (?, ?, ?)", (key, token, until))
    connection.execute("insert into counts values ('fence', 1) on conflict do update set value = value + 1")
    fence: int = connection.execute("select value from counts where name = 'fence'").fetchone()[0]
    return fence


def _extend(lease: Lease, now: int, until: int, connection: Connection) -> bool:
    changed = connection.execute(
        "update leases set until = ? where key = ? and token = ? and until > ?", (until, lease.key, lease.token, now)
    )
    return changed.rowcount == 1


def _commit(lease: Lease, row: table.Row, now: int, connection: Connection) -> bool:
    ended = connection.execute(
        "delete from leases where key = ? and token = ? and until > ?", (lease.key, lease.token, now)
    )
    if ended.rowcount == 1:
        table.put(connection, (row,))
    return ended.rowcount == 1


def _give_back(lease: Lease, connection: Connection) -> None:
    connection.execute("delete from leases where key = ? and token = ?", (lease.key, lease.token))
