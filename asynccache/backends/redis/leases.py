"""The right to load, granted and checked by the server.

Who waits for another's lease reads it with tracking on: the server tells when the key changes, by whomever and for
whatever reason, and nobody polls. Where the server cannot tell (RESP2), it is asked again at growing intervals.
"""

import asyncio
import math
import secrets
from asyncio import AbstractEventLoop, Future, get_running_loop
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, final

from asynccache._offloading import encoded_parts
from asynccache.backend import Lease
from asynccache.backends.redis.large import commit
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import CHUNK
from asynccache.backends.redis.replies import told
from asynccache.backends.redis.scripts import (
    ACQUIRE,
    COMMIT,
    LEASE_BYTES,
    LEASE_MAGIC,
    RELEASE,
    RENEW,
    lease_record,
)
from asynccache.backends.redis.times import milliseconds
from asynccache.backends.redis.tracker import Waiters
from asynccache.backends.redis.wire import KEPT, pack
from asynccache.clock import Clock
from asynccache.codec import Codec
from asynccache.entry import Entry
from asynccache.errors import BackendError

__all__ = ["RedisLeases", "Store"]

_TOKEN_BYTES: Final = 8
_LONGEST_SECONDS: Final = 60.0  # that a load may hold its lease without renewing it
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 0.1
_CLOSING_SECONDS: Final = 0.5
_MISSED_SECONDS: Final = 0.4  # how soon to look again where a message may have been missed
_CACHING: Final = pack(("CLIENT", "CACHING", "YES"))


class Store(Protocol):
    """What leases need of their store."""

    clock: Clock
    codec: Codec

    @property
    def track_all(self) -> bool: ...
    def pool(self) -> Pool: ...
    def now(self) -> float: ...
    def owe(self, pool: Pool, names: Sequence[bytes]) -> None: ...
    def give_back(self, pool: Pool, name: bytes, token: str, ttl: float = math.inf) -> None: ...
    async def settle(self, pool: Pool, names: Iterable[bytes]) -> None: ...


@final
class RedisLeases:
    """The leases of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[AbstractEventLoop, Waiters] = {}
        self._asking: dict[str, tuple[Pool, bytes, float]] = {}
        self._closing: dict[Pool, Future[None]] = {}

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        """The lease, for ``ttl`` seconds; ``None`` when somebody else holds it."""
        name, pool = key.encode(), self._store.pool()
        token = secrets.token_hex(_TOKEN_BYTES)
        if not pool.met:
            await pool.meet(name)
        now = self._store.now() + pool.offset
        record, bound = lease_record(token, now + ttl), _bound(key, ttl)
        await self._store.settle(pool, (name,))
        self._asking[token] = (pool, name, ttl)
        try:
            fence = await pool.run(name, ACQUIRE, (name,), now, record, milliseconds(ttl), bound)
        except BaseException as error:
            if not isinstance(error, BackendError) or error.sent:
                self._store.give_back(pool, name, token, ttl)  # it may have been granted, and nobody knows
            raise
        finally:
            self._asking.pop(token, None)
            if self._closing and pool in self._closing and not self._asked(pool):
                _look_again(self._closing[pool])
        if type(fence) is bytes and fence.isdigit():
            return Lease(key, token, int(fence))
        if fence != 0 or type(fence) is not int:
            raise BackendError("redis: an answer of another kind")
        return None

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        """Hold it for ``ttl`` seconds from now; ``False`` when it was voided or lapsed."""
        name, pool = lease.key.encode(), self._store.pool()
        if not pool.met:
            await pool.meet(name)
        now = self._store.now() + pool.offset
        record = lease_record(lease.token, now + ttl)
        return bool(await pool.run(name, RENEW, (name,), now, lease.token, record, milliseconds(ttl)))

    async def commit(self, lease: Lease, entry: Entry) -> bool:
        """Store the entry and give the lease back, if it still holds."""
        name, pool = lease.key.encode(), self._store.pool()
        if not pool.met:
            await pool.meet(name)
        offset = pool.offset
        data = await encoded_parts(self._store.codec, lease.key, entry, offset)
        now = self._store.now()
        left = milliseconds(entry.expires_at - now)
        try:
            if sum(map(len, data)) >= CHUNK:
                return await commit(pool, name, lease.token, now + offset, left, data)
            return bool(await pool.run(name, COMMIT, (name,), now + offset, lease.token, left, b"".join(data)))
        except BaseException:
            self._store.owe(pool, (name,))
            raise

    async def release(self, lease: Lease) -> None:
        """Give it back."""
        name, pool = lease.key.encode(), self._store.pool()
        try:
            await pool.run(name, RELEASE, (name,), lease.token, extra=KEPT)
        except BaseException:
            self._store.give_back(pool, name, lease.token)
            raise

    def abandon(self, lease: Lease) -> None:
        """Give it back, when nothing can be awaited."""
        with suppress(BackendError):  # the store is closed
            self._store.give_back(self._store.pool(), lease.key.encode(), lease.token)

    async def wait(self, key: str, *, timeout: float) -> None:
        """Return when the lease was given back, voided or has lapsed, or after ``timeout`` seconds."""
        store, loop, name = self._store, get_running_loop(), key.encode()
        clock, pool = store.clock, store.pool()
        waiters = self._waiters.get(loop)
        if waiters is None:
            for gone in [each for each in self._waiters if each.is_closed()]:
                del self._waiters[gone]
            waiters = self._waiters[loop] = Waiters(loop)
        deadline = clock.monotonic() + timeout
        token, pause = b"", _FIRST_LOOK
        while True:
            waiter = waiters.enter(name)
            try:
                told = pool.link(name).tracking  # when it is asked: a connection that is not open yet tells of nothing
                record = await self._record(pool, name)
                if len(record) < LEASE_BYTES or record[0] != LEASE_MAGIC or not record[17:].isdigit():
                    return
                token, previous = record[1:17], token
                until = int(record[17:32]) / 1_000 - pool.offset
                left = min(deadline, until - clock.epoch) - clock.monotonic()
                if left <= 0 or previous not in (b"", token):
                    return
                pause = _MISSED_SECONDS if told else min(2 * pause, _LAST_LOOK)
                lapse = clock.call_later(left, partial(_look_again, waiter))
                look = loop.call_later(pause, _look_again, waiter)  # in real time, whatever the clock
                try:
                    await waiter
                finally:
                    lapse.cancel()
                    look.cancel()
                if clock.monotonic() >= deadline:
                    return
            finally:
                waiters.leave(name, waiter)

    async def _record(self, pool: Pool, name: bytes) -> bytes:
        """The start of what is under the key, of whose next change the server will tell."""
        command = pack((b"GETRANGE", name, 0, LEASE_BYTES - 1))
        link = pool.link(name)
        asking = link.tracking and not self._store.track_all
        reply = await (link.ask(_CACHING + command, 1, wanted=command) if asking else link.ask(command))
        if isinstance(reply, Exception):
            reply = await pool.again(link, reply, command)
        data: bytes = told(reply)
        return data

    async def aclose(self, pool: Pool) -> None:
        """Return when who asks has his answer, and has given back what nobody will hold; what has none in time is given
        back unseen."""
        if self._asked(pool):
            self._closing[pool] = get_running_loop().create_future()
            await asyncio.wait([self._closing[pool]], timeout=_CLOSING_SECONDS)
            del self._closing[pool]
        for token, (name, ttl) in self._asked(pool).items():
            self._store.give_back(pool, name, token, ttl)

    def _asked(self, pool: Pool) -> dict[str, tuple[bytes, float]]:
        return {token: (name, ttl) for token, (asked, name, ttl) in self._asking.items() if asked is pool}

    def changed(self, names: Sequence[bytes] | None) -> None:
        """Wake who waits for the keys on the running loop, or everybody."""
        try:
            waiters = self._waiters.get(get_running_loop())
        except RuntimeError:
            return
        if waiters is not None:
            waiters.wake(names)

    def forget(self) -> None:
        """Start anew in a forked child."""
        self._waiters.clear()
        self._asking.clear()


def _bound(key: str, ttl: float) -> float:
    """How many seconds of a lease are believed: a load's ends sooner, unless a clock was set back."""
    return math.inf if key.endswith("\0\0lock") else max(ttl, _LONGEST_SECONDS)


def _look_again(waiter: "Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
