"""The Redis store as caches see it: each call one round trip on a connection that all callers share."""

import math
import os
import weakref
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Self, final

from asynccache._offloading import decoded, encoded
from asynccache.backend import OnlyIf, Reports, StoreOptions
from asynccache.backends.redis.address import Settings, settings_like, settings_of
from asynccache.backends.redis.condition import Condition
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.leases import RedisLeases
from asynccache.backends.redis.link import Link
from asynccache.backends.redis.plain import PlainValues
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.raw import RawRedis
from asynccache.backends.redis.replies import foreign, told
from asynccache.backends.redis.scripts import ADD, DELETE, LEASE_BYTES, LEASE_MAGIC, PUT_IF, SWAP, TOUCH
from asynccache.backends.redis.times import milliseconds
from asynccache.backends.redis.tracker import Tracker
from asynccache.backends.redis.wire import Wire, pack
from asynccache.clock import Clock, SystemClock
from asynccache.codec import Codec, codec_of
from asynccache.entry import Entry
from asynccache.errors import BackendError, BackendUnavailable, DecodeError

__all__ = ["RedisBackend", "open_redis"]

_CHUNK: Final = 65_536  # bytes of a value that are read at once: the rest of a large one comes beside small ones
_CHUNKS_AHEAD: Final = 4
_KEYS_AT_ONCE: Final = 500
_MOST_TRIES: Final = 64


@final
class RedisBackend:
    """A store on a Redis or Valkey server, or on several.

    Args:
        settings: How to reach it.
        codec: How values become bytes.
        clock: Where time comes from.
    """

    name: Final = "redis"

    def __init__(self, settings: Settings, *, codec: Codec | None = None, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.codec = codec or Codec()
        self.reports = Reports()
        self.coherence = Tracker(self._watched)
        self.intents = Intents()
        self._pools: dict[AbstractEventLoop, Pool] = {}
        self._latest: tuple[AbstractEventLoop | None, Pool | None] = (None, None)
        self._closed = False
        self.leases = None if self.codec.plain else RedisLeases(self)
        self.health = Condition(self)
        self.raw = RawRedis(self)
        self._plain = PlainValues(self)
        _all.add(self)

    @classmethod
    def like(cls, client: Any, *, codec: Codec | None = None, clock: Clock | None = None) -> Self:
        """A store with the address, credentials and TLS options of a ``redis.asyncio.Redis``, and its own connections.

        Raises:
            ConfigError: It is a client for several servers.
        """
        return cls(settings_like(client), codec=codec, clock=clock)

    # What caches ask

    async def get(self, key: str) -> Entry | None:
        """The entry, fresh or stale, or ``None``."""
        if self.codec.plain:
            return (await self._plain.get_many([key])).get(key)
        name = key.encode()
        pool = self.pool()
        link = pool.link(name)
        command = pack((b"GETRANGE", name, 0, _CHUNK - 1))
        data = await link.ask(command)
        if type(data) is not bytes:
            try:
                data = await pool.again(link, data, command)
            except BackendError as error:
                self.reports.tell("an entry could not be read", foreign(error))
                return None
        if not data:
            return None
        if len(data) == _CHUNK:
            return await self._large(pool, link, key, name, data)
        return await self._entry(key, data, pool.offset)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, in one round trip."""
        if not keys:
            return {}
        if self.codec.plain:
            return await self._plain.get_many(keys)
        pool = self.pool()
        names = {key: key.encode() for key in keys}
        found: Sequence[Any]
        if pool.clustered:
            found = await pool.ask_all([(name, pack((b"GET", name))) for name in names.values()])
        else:
            found = await pool.ask(names[keys[0]], b"MGET", *names.values())
        entries: dict[str, Entry] = {}
        for key, data in zip(names, found, strict=True):
            if isinstance(data, Exception):
                self.reports.tell("an entry could not be read", foreign(data))
            elif data:
                entry = await self._entry(key, data, pool.offset)
                if entry is not None:
                    entries[key] = entry
        return entries

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        """Store it, if the condition holds."""
        name = key.encode()
        pool = self.pool()
        link = pool.link(name)
        if not pool.met:
            await self._meet(pool, name)
        now = self._now()
        data = await encoded(self.codec, key, entry, pool.offset)
        left = milliseconds(entry.expires_at - now)
        if only_if is not None:
            if self.codec.plain:
                return await self._plain.put_if(name, only_if, left, data)
            return bool(await pool.run(name, PUT_IF, (name,), only_if, now + pool.offset, left, data))
        command = pack((b"SET", name, data) if left == "" else (b"SET", name, data, b"PX", left))
        if len(data) >= _CHUNK:
            link = pool.large(link)
        try:
            reply = await link.ask(command)
            if type(reply) is not bytes:
                await pool.again(link, reply, command)
        except BaseException:
            self.owe(pool, (name,))
            raise
        if self.intents:
            self.intents.done((name,))
        return True

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Store all, in one round trip."""
        if not entries:
            return
        pool = self.pool()
        if not pool.met:
            await self._meet(pool, *(key.encode() for key in entries))
        now = self._now()
        commands: list[tuple[bytes, bytes]] = []
        for key, entry in entries.items():
            name = key.encode()
            data = await encoded(self.codec, key, entry, pool.offset)
            left = milliseconds(entry.expires_at - now)
            commands.append((name, pack((b"SET", name, data) if left == "" else (b"SET", name, data, b"PX", left))))
        names = [name for name, _ in commands]
        try:
            for reply in await pool.ask_all(commands):
                told(reply)
        except BaseException:
            self.owe(pool, names)
            raise
        if self.intents:
            self.intents.done(names)

    async def delete(self, keys: Sequence[str]) -> int:
        """Remove them; how many had a fresh entry."""
        if not keys:
            return 0
        pool = self.pool()
        names = list(dict.fromkeys(key.encode() for key in keys))
        try:
            if not pool.met:
                await pool.meet(names[0])
            count = 0
            for reply in await pool.ask_all(self._deletions(pool, names), DELETE):
                count += told(reply)
        except BaseException:
            self.owe(pool, names)
            raise
        if self.intents:
            self.intents.done(names)
        return count

    def _deletions(self, pool: Pool, names: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        now = self._now()
        return [
            (
                group[0],
                pack((b"UNLINK", *group))
                if self.codec.plain
                else pack((b"EVALSHA", DELETE.sha, len(group), *group, now + pool.offset)),
            )
            for group in pool.grouped(names, _KEYS_AT_ONCE)
        ]

    async def touch(self, key: str, *, fresh_until: float, expires_at: float) -> bool:
        """Give a fresh entry new times."""
        name = key.encode()
        pool = self.pool()
        if not pool.met:
            await pool.meet(name)
        offset = pool.offset
        now = self._now()
        left = milliseconds(expires_at - now)
        if self.codec.plain:
            return await self._plain.touch(name, left)
        fresh = "" if fresh_until == math.inf else repr(fresh_until + offset)
        grace = "" if expires_at == math.inf or fresh == "" else repr(max(expires_at - fresh_until, 0.0))
        try:
            return bool(await pool.run(name, TOUCH, (name,), now + offset, fresh, grace, left))
        except BaseException:
            self.owe(pool, (name,))
            raise

    async def incr(self, key: str, delta: int, *, ttl: float | None) -> int:
        """Add to a counter; sent once, whether or not the reply comes."""
        name = key.encode()
        pool = self.pool()
        if self.codec.plain:
            return await self._plain.incr(name, delta, ttl)
        if not pool.met:
            await pool.meet(name)
        offset = pool.offset
        now = self._now()
        until = math.inf if ttl is None else now + ttl
        new = self.codec.encode(key, Entry(value=delta, created_at=now, fresh_until=until, expires_at=until), offset)
        check = self.codec.countable(key)
        left = milliseconds(until - now)
        for _ in range(_MOST_TRIES):
            arguments = (now + offset, str(delta), left, new, "" if check is None else str(check))
            reply = await pool.run(name, ADD, (name,), *arguments)
            if type(reply) is not list:
                return int(reply)
            # The entry is sealed, tagged or no whole number of 64 bits: it is added to here, and replaced if nobody
            # was faster.
            data = reply[0]
            try:
                entry = await decoded(self.codec, key, data, offset)
            except DecodeError as error:
                self.reports.tell("an entry could not be read", error)
                entry = Entry(value=0, created_at=now, fresh_until=until, expires_at=until)
            if type(entry.value) is not int:
                raise TypeError(f"a counter holds an integer, this key holds {type(entry.value).__name__}")
            total = entry.value + delta
            changed = self.codec.encode(key, replace(entry, value=total), offset)
            if await pool.run(name, SWAP, (name,), data, changed):
                return total
        raise BackendError("redis: too many write to this counter at once")

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys that start with the prefix, those of stale entries and of leases too, by SCAN."""
        seen: set[bytes] = set()
        async for name in self.raw.scan(prefix=prefix):
            if name not in seen:
                seen.add(name)
                try:
                    yield name.decode()
                except UnicodeDecodeError:
                    pass  # somebody else's

    async def ping(self) -> None:
        """Return when the server answers; every master, of a cluster."""
        pool = self.pool()
        for link in await pool.masters():
            told(await link.ask(pack(("PING",))))

    async def aclose(self) -> None:
        """Let go of all connections; who waits for one is told."""
        if self._closed:
            return
        self._closed = True
        here = get_running_loop()
        pools, self._pools, self._latest = self._pools, {}, (None, None)
        for loop, pool in pools.items():
            if loop is here:
                await pool.aclose()
            else:
                pool.call(pool.close)

    def __repr__(self) -> str:
        return f"<RedisBackend {self.settings.topology} {', '.join(map(str, self.settings.addresses))}>"

    # What its parts use

    def links(self) -> list[Link]:
        """All connections of this process."""
        return [link for pool in list(self._pools.values()) for link in pool.links()]

    def pool(self) -> Pool:
        """The connections of the running loop.

        Raises:
            BackendUnavailable: The store is closed.
        """
        loop = get_running_loop()
        latest, pool = self._latest
        if latest is loop and pool is not None:
            return pool
        if self._closed:
            raise BackendUnavailable("redis: the store is closed")
        pool = self._pools.get(loop)
        if pool is None:
            for gone in [each for each in self._pools if each.is_closed()]:
                del self._pools[gone]
                self.coherence.changed(None)  # its messages have gone with it
            pool = self._pools[loop] = Pool(self, loop)
        self._latest = (loop, pool)
        return pool

    @property
    def track_all(self) -> bool:
        """Whether a local store relies on being told of changes."""
        return self.coherence.watched

    def _watched(self) -> None:
        """Have every connection made anew: the next one asks to be told of all that is read."""
        for pool in list(self._pools.values()):
            pool.call(pool.drop)

    def pushed(self, message: Any) -> None:
        """Hand on what the server tells."""
        if message[0] == b"invalidate":
            self._changed(message[1])

    def lost(self, link: Link) -> None:
        """Take it that everything has changed: messages may have been missed."""
        self._changed(None)
        latest, pool = self._latest
        if pool is not None and latest is not None:
            pool.lost(link)

    def _changed(self, names: Sequence[bytes] | None) -> None:
        if self.leases is not None:
            self.leases.changed(names)
        self.coherence.changed(names)

    async def opening(self, link: Link, wire: Wire) -> None:
        """Delete what is to be deleted, before anybody reads."""
        pool = self.pool()
        pool.greeted(link)
        self.coherence.connected(told=link.tracking)
        if pool.clustered and not pool.mapped:
            table = await wire.urgent(pack(("CLUSTER", "SLOTS")))
            pool.learn(link, told(table))
        while names := [name for name in self.intents.some(_KEYS_AT_ONCE) if pool.link(name) is link]:
            for name, asked in [(name, wire.urgent(pack(("UNLINK", name)))) for name in names]:
                if not isinstance(await asked, Exception):
                    self.intents.done((name,))
                elif wire.lost:
                    return
            if all(name in self.intents for name in names):
                return  # the server refuses: it is tried again when there is something new

    def now(self) -> float:
        """Seconds since 1970 by the cache's clock."""
        return self._now()

    def owe(self, pool: Pool, names: Iterable[bytes]) -> None:
        """Have the keys deleted when the server takes it: what it has is not what was wanted."""
        self.intents.add(names)
        pool.repay()

    def forget(self) -> None:
        """Start anew in a forked child: the connections are the parent's, and stay untouched."""
        _inherited.append(self._pools)  # never collected: that would close them
        self._pools, self._latest = {}, (None, None)
        if self.leases is not None:
            self.leases.forget()

    def _now(self) -> float:
        return self.clock.monotonic() + self.clock.epoch

    async def _meet(self, pool: Pool, *names: bytes) -> None:
        """Know the server's clock before something is written by it."""
        try:
            await pool.meet(names[0])
        except BaseException:
            self.owe(pool, names)
            raise

    # Reading

    async def _entry(self, key: str, data: bytes, offset: float) -> Entry | None:
        """The entry that the bytes stand for; ``None`` when it is over, or cannot be read, which is told."""
        if data[0] == LEASE_MAGIC:
            data = data[LEASE_BYTES:]
            if not data:
                return None
        try:
            entry = await decoded(self.codec, key, data, offset)
        except DecodeError as error:
            self.reports.tell("an entry could not be read", error)
            return None
        return None if entry.expires_at <= self._now() else entry

    async def _large(self, pool: Pool, link: Link, key: str, name: bytes, start: bytes) -> Entry | None:
        """The entry whose first chunk this is: the others come on a connection of their own, a few at a time."""
        length = await pool.ask(name, b"STRLEN", name)
        beside = pool.large(link)
        chunks = [start]
        asked = []
        for at in range(_CHUNK, length, _CHUNK):
            asked.append(beside.ask(pack((b"GETRANGE", name, at, at + _CHUNK - 1))))
            if len(asked) == _CHUNKS_AHEAD:
                chunks.append(told(await asked.pop(0)))
        chunks += [told(await each) for each in asked]
        data = b"".join(chunks)
        whole = data[LEASE_BYTES:] if data[0] == LEASE_MAGIC else data
        try:
            entry = await decoded(self.codec, key, whole, pool.offset)
        except DecodeError:  # perhaps it was replaced between two chunks
            data = told(await beside.ask(pack((b"GET", name))))
            return await self._entry(key, data, pool.offset) if data else None
        return None if entry.expires_at <= self._now() else entry


def open_redis(options: StoreOptions) -> RedisBackend:
    """The store of a ``redis://`` URL, or of one of its relatives.

    Raises:
        ConfigError: The URL is not complete, or an option is unknown or ill-typed.
    """
    return RedisBackend(settings_of(options.url, options.query), codec=codec_of(options.codec), clock=options.clock)


_all: "weakref.WeakSet[RedisBackend]" = weakref.WeakSet()
_inherited: list[object] = []


def _forget_after_fork() -> None:
    for store in list(_all):
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
