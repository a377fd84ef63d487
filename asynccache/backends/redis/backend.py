"""The Redis store as caches see it: each call one round trip on a connection that all callers share."""

import math
from asyncio import AbstractEventLoop, get_running_loop, sleep
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from ssl import SSLContext
from typing import Any, Final, Literal, Self, final

from asynccache._offloading import decoded, encoded_parts, is_large, joined
from asynccache.backend import OnlyIf, Reports
from asynccache.backends.redis.address import Settings, settings_at, settings_like
from asynccache.backends.redis.condition import Condition
from asynccache.backends.redis.conditional import put_if
from asynccache.backends.redis.counters import added
from asynccache.backends.redis.forks import leave, remember
from asynccache.backends.redis.heads import RedisHeads
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.large import put, whole
from asynccache.backends.redis.leases import RedisLeases
from asynccache.backends.redis.link import Link, answered
from asynccache.backends.redis.many import Large, Small, read_many, remove_many, write_many
from asynccache.backends.redis.plain import PlainValues
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.raw import RawRedis
from asynccache.backends.redis.reading import CHUNK, first_chunk
from asynccache.backends.redis.replies import ErrorReply, code_of, foreign, place_of, told
from asynccache.backends.redis.scripts import LEASE_BYTES, LEASE_MAGIC, TOUCH
from asynccache.backends.redis.shortcut import RedisShortcut, store_small
from asynccache.backends.redis.times import milliseconds
from asynccache.backends.redis.tracker import Tracker
from asynccache.backends.redis.wire import Wire, pack
from asynccache.backends.redis.writing import storing
from asynccache.clock import Clock, SystemClock
from asynccache.codec import Codec, codec_of
from asynccache.duration import Duration
from asynccache.entry import Entry
from asynccache.errors import BackendError, BackendUnavailable, ConfigError, DecodeError

__all__ = ["RedisBackend"]

_READ_AT_ONCE: Final = 5_000
_CODED_AT_ONCE: Final = 1_000
_LAST_TURNS: Final = 3


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
        if not isinstance(settings, Settings):
            raise ConfigError("RedisBackend.from_url takes a URL, RedisBackend.like a client of redis-py")
        self.settings = settings
        self.clock = clock or SystemClock()
        self.codec = codec_of(codec)
        self.reports = Reports()
        self.coherence = Tracker(self._watched)
        self.intents = Intents(f"redis at {place_of(*settings.addresses)}")
        self._pools: dict[AbstractEventLoop, Pool] = {}
        self._latest: tuple[AbstractEventLoop | None, Pool | None] = (None, None)
        self._closed = False
        self.leases = None if self.codec.plain else RedisLeases(self)
        self.heads = RedisHeads(self)
        self.shortcut = None if self.codec.plain else RedisShortcut(self)
        self.health = Condition(self)
        self.raw = RawRedis(self)
        self.plain = PlainValues(self)
        remember(self)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        codec: Any = None,
        clock: Clock | None = None,
        credentials: Any = None,
        ssl_context: SSLContext | None = None,
    ) -> Self:
        """A store by its URL, for several caches to share, or with what no URL can say: a ``CredentialProvider`` of
        redis-py, asked for name and password at each connection, and what TLS checks and shows.

        Raises:
            ConfigError: The URL is wrong or of another store, or says what an argument says.
        """
        return cls(settings_at(url, credentials, ssl_context), codec=codec_of(codec), clock=clock)

    @classmethod
    def like(
        cls,
        client: Any,
        *,
        codec: Codec | None = None,
        clock: Clock | None = None,
        timeout: Duration = "500ms",
        connect_timeout: Duration = "1s",
    ) -> Self:
        """A store with the address, credentials, TLS options and protocol of a ``redis.asyncio.Redis``, and with its
        own connections and timeouts, which mean what they mean in a URL.

        Raises:
            ConfigError: It is a client for several servers, or a timeout is none.
        """
        return cls(settings_like(client, timeout, connect_timeout), codec=codec, clock=clock)

    # What caches ask

    async def get(self, key: str) -> Entry | None:
        """The entry, fresh or stale, or ``None``."""
        if self.codec.plain:
            return (await self.plain.get_many([key])).get(key)
        name = key.encode()
        pool = self.pool()
        if self.intents.keys or pool.large_writes:
            await self.settle(pool, (name,))
        return await self.found(pool, pool.link(name), key, name, await pool.read(name))

    async def found(self, pool: Pool, link: Link, key: str, name: bytes, data: Any) -> Entry | None:
        """What has been found under a key, by the reply to the question for its first chunk."""
        if type(data) is not bytes:
            try:
                data = await pool.again(link, data, first_chunk(name))
                link = pool.link(name)  # another one, where its slot has moved
            except BackendError as error:
                self.reports.tell("an entry could not be read", foreign(error))
                return None
        if type(data) is not bytes:
            raise BackendError("redis: an answer of another kind")
        more: Sequence[bytes] = ()
        if len(data) == CHUNK:
            try:
                data, *more = await whole(pool, link, name, data)
            except BackendError as error:
                self.reports.tell("an entry could not be read", foreign(error))
                return None
        return await self.entry(key, data, pool.offset, more) if data else None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, in one round trip; of very many, some at a time."""
        if len(keys) > _READ_AT_ONCE:
            parts = [keys[start : start + _READ_AT_ONCE] for start in range(0, len(keys), _READ_AT_ONCE)]
            return {key: entry for part in parts for key, entry in (await self.get_many(part)).items()}
        if not keys:
            return {}
        if self.codec.plain:
            return await self.plain.get_many(keys)
        pool = self.pool()
        names = {key: key.encode() for key in keys}
        if self.intents.keys or pool.large_writes:
            try:
                await self.settle(pool, names.values())
            except BackendError:
                # What is still owed is not read; the others may have other servers.
                names = {key: name for key, name in names.items() if name not in self.intents.keys}
                if not names:
                    raise
        found = await read_many(pool, list(names.values()))
        entries: dict[str, Entry] = {}
        answered = any(not isinstance(data, Exception) for data in found)  # one node away is no reason to miss all
        pairs = zip(names, found, strict=True)
        for done in range(0, len(found), _CODED_AT_ONCE):
            if done:
                await sleep(0)  # a turn for the others
            for key, data in islice(pairs, _CODED_AT_ONCE):
                if isinstance(data, Exception):
                    self.reports.tell("an entry could not be read", foreign(data, away=answered))
                elif data:
                    start, *more = data if type(data) is list else (data,)
                    entry = await self.entry(key, start, pool.offset, more) if start else None
                    if entry is not None:
                        entries[key] = entry
        return entries

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        """Store it, if the condition holds."""
        if only_if is not None:
            return await self.put_if(key, entry, only_if) is None
        name = key.encode()
        pool = self.pool()
        if not pool.met:
            await self.meet(pool, name)
        if pool.large_writes:
            await self.settle(pool, (name,))
        if is_large(entry.value):
            parts = await encoded_parts(self.codec, key, entry, pool.offset)
            if sum(map(len, parts)) >= CHUNK:
                await put(self, pool, name, parts, milliseconds(entry.expires_at - self.now()))
                return True
            data = await joined(parts)
        else:
            data = self.codec.encode(key, entry, pool.offset)
        left = milliseconds(entry.expires_at - self.now())
        if len(data) >= CHUNK:
            await put(self, pool, name, (data,), left)
            return True
        return await store_small(self, pool, name, data, left)

    async def put_if(self, key: str, entry: Entry, only_if: Literal["absent", "present"]) -> Entry | None:
        """Store it if the condition holds; else the head of what is there."""
        return await put_if(self, key, entry, only_if)

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Store all, in one round trip."""
        if not entries:
            return
        pool = self.pool()
        if not pool.met:
            await self.meet(pool, *(key.encode() for key in entries))
        now = self.now()
        small: list[Small] = []
        large: list[Large] = []
        for done, (key, entry) in enumerate(entries.items(), 1):
            name = key.encode()
            left = milliseconds(entry.expires_at - now)
            if is_large(entry.value):
                large.append((name, await encoded_parts(self.codec, key, entry, pool.offset), left))
            elif len(data := self.codec.encode(key, entry, pool.offset)) >= CHUNK:
                large.append((name, (data,), left))
            else:
                small.append(((name,), storing(name, data, left)))
            if done % _CODED_AT_ONCE == 0:
                await sleep(0)  # a turn for the others
        await write_many(self, pool, small, large)

    async def delete(self, keys: Sequence[str]) -> int:
        """Remove them; how many had a fresh entry."""
        if not keys:
            return 0
        pool = self.pool()
        names = list(dict.fromkeys(key.encode() for key in keys))
        if not pool.met:
            await self.meet(pool, *names)
        return await remove_many(self, pool, names)

    async def touch(self, key: str, *, fresh_until: float, expires_at: float) -> bool:
        """Give a fresh entry new times."""
        name = key.encode()
        pool = self.pool()
        if not pool.met:
            await pool.meet(name)
        if self.intents.keys or pool.large_writes:
            await self.settle(pool, (name,))
        offset = pool.offset
        now = self.now()
        left = milliseconds(expires_at - now)
        if self.codec.plain:
            return await self.plain.touch(name, left)
        fresh = "" if fresh_until == math.inf else repr(fresh_until + offset)
        grace = "" if expires_at == math.inf or fresh == "" else repr(max(expires_at - fresh_until, 0.0))
        # When it fails nothing is owed: the value is what it was, and good for the time that it had.
        return bool(await pool.run(name, TOUCH, (name,), now + offset, fresh, grace, left))

    async def incr(self, key: str, delta: int, *, ttl: float | None) -> int:
        """Add to a counter; sent once, whether or not the reply comes."""
        if self.codec.plain:
            return await self.plain.incr(key.encode(), delta, ttl)
        return await added(self, key, delta, ttl)

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
        if here in self._pools:
            for _ in range(_LAST_TURNS):  # who was cancelled together with the closing gives back what he holds
                await sleep(0)
            if self.leases is not None:
                await self.leases.aclose(self._pools[here])
            await self._pools[here].repayment.at_closing()
            await answered(self._pools[here].links())
        self.intents.tell(last=True)  # who is cut off from now on is told by his exception
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

    def serving(self) -> list[Link]:
        """The connections of loops that run to servers that are needed."""
        return [link for loop, pool in list(self._pools.items()) if loop.is_running() for link in pool.serving()]

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
            self.look_around()
            pool = self._pools[loop] = Pool(self, loop)
        self._latest = (loop, pool)
        return pool

    def look_around(self) -> None:
        """See after other loops: what comes for one that does not run, nobody reads."""
        for loop in list(self._pools):
            if not loop.is_running():
                self.coherence.changed(None)
                if loop.is_closed():
                    self._pools.pop(loop, None)

    @property
    def track_all(self) -> bool:
        """Whether a local store relies on being told of changes."""
        return self.coherence.watched

    def _watched(self) -> None:
        """Have the servers tell of all that is read from now on."""
        for pool in list(self._pools.values()):
            pool.call(pool.track)

    def pushed(self, message: Any) -> None:
        """Hand on what the server tells."""
        if message[0] == b"invalidate":
            self._changed(message[1])

    def lost(self, link: Link) -> None:
        """Take it that everything has changed: messages may have been missed."""
        self._changed(None)

    def _changed(self, names: Sequence[bytes] | None) -> None:
        if self.leases is not None:
            self.leases.changed(names)
        self.coherence.changed(names)

    async def opening(self, link: Link, wire: Wire) -> int:
        """Delete what is to be deleted, before anybody reads; how many of it."""
        pool = self.pool()
        pool.greeted(link)
        self.told(link)
        if pool.clustered and not pool.mapped:
            [asked] = wire.urgent(pack(("CLUSTER", "SLOTS")))
            table = await asked
            if isinstance(table, ErrorReply) and code_of(table) == "ERR":
                raise BackendUnavailable("redis: the server is no part of a cluster")
            pool.learn(link, told(table))
        return await pool.repayment.at_opening(link, wire)

    def told(self, *opening: Link, log: bool = True) -> None:
        """Take note of whether all servers tell of what is read."""
        links = [link for link in self.links() if link.up]
        self.coherence.connected(told=all(link.tracking for link in (*opening, *links)), log=log)

    def now(self) -> float:
        """Seconds since 1970 by the cache's clock."""
        return self.clock.monotonic() + self.clock.epoch

    def owe(self, pool: Pool, names: Sequence[bytes]) -> None:
        """Have keys deleted when the server takes it, whose writing has failed or was given up: what it has may not be
        what was wanted."""
        self.intents.add(names)
        pool.repayment.later()

    def give_back(self, pool: Pool, name: bytes, token: str, ttl: float = math.inf) -> None:
        """Have a lease given back when the server takes it: for ``ttl`` seconds it may be held, and nobody wants it."""
        pool.repayment.at_once(self.intents.give_back(name, token, ttl))

    async def settle(self, pool: Pool, names: Iterable[bytes]) -> None:
        """Before anything else is done with these keys: wait for large writes of them, delete what is owed.

        Raises:
            BackendError: The server does not take it.
        """
        if pool.large_writes:
            await pool.large_ended(names)
        await pool.repayment.before(names)

    def forget(self) -> None:
        """Start anew in a forked child: the connections are the parent's, and stay untouched."""
        leave(self._pools)
        self._pools, self._latest = {}, (None, None)
        if self.leases is not None:
            self.leases.forget()
        self.coherence.changed(None)  # the parent is told of what it has read, the child is not

    async def meet(self, pool: Pool, *names: bytes) -> None:
        """Know the server's clock before something is written by it."""
        try:
            await pool.meet(names[0])
        except BaseException:
            self.owe(pool, names)
            raise

    # Reading

    async def entry(self, key: str, data: bytes, offset: float, more: Sequence[bytes] = ()) -> Entry | None:
        """The entry that the bytes stand for; ``None`` when it is over, or cannot be read, which is told."""
        if data[0] == LEASE_MAGIC:
            data = data[LEASE_BYTES:]
            if not data:
                return None
        try:
            entry = await decoded(self.codec, key, data, offset, more)
        except DecodeError as error:
            self.reports.tell("an entry could not be read", error)
            return None
        return None if entry.expires_at <= self.now() else entry
