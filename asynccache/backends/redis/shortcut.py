"""The shortest way to a small value on a server and back: one question, one answer, and nothing made in between."""

import math
from asyncio import Future
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, final

from asynccache._offloading import is_large
from asynccache.backend import Asking
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.link import Link
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import CHUNK
from asynccache.backends.redis.times import milliseconds
from asynccache.backends.redis.wire import KEPT
from asynccache.backends.redis.writing import storing
from asynccache.clock import Clock
from asynccache.codec import Codec
from asynccache.entry import Entry
from asynccache.telemetry import recording

__all__ = ["RedisShortcut", "Store", "store_small"]


class Store(Protocol):
    """Whose shortcut it is."""

    clock: Clock
    codec: Codec
    intents: Intents

    def pool(self) -> Pool: ...
    def owe(self, pool: Pool, names: Sequence[bytes]) -> None: ...
    async def found(self, pool: Pool, link: Link, key: str, name: bytes, data: Any) -> Entry | None: ...


async def store_small(store: Store, pool: Pool, name: bytes, data: bytes, left: int | str) -> bool:
    """Send an entry that is not large; one that may not have come is owed.

    Args:
        store: Whose it is.
        pool: The connections.
        name: The key.
        data: The entry.
        left: Milliseconds to live, or nothing.

    Raises:
        BackendError: The server failed.
    """
    if store.intents.keys:
        store.intents.superseded((name,))  # what is repaid was sent before this command, or is not any more
    command = storing(name, data, left)
    try:
        link = pool.link(name)
        reply = await (link.ask if recording() else link.send)(command, KEPT)
        if type(reply) is not bytes:
            await pool.again(link, reply, command)
    except BaseException:
        store.owe(pool, (name,))
        raise
    return True


@final
class RedisShortcut:
    """That of one store.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clock = store.clock
        self._codec = store.codec

    def ask(self, key: str) -> tuple[Future[Any], bytes, Pool] | None:
        """Ask for what is under the key; ``None`` when something else is to be done first."""
        store = self._store
        pool = store.pool()
        if store.intents.keys or pool.large_writes:
            return None
        name = key.encode()
        return pool.read(name), name, pool

    def value(self, asking: Asking, reply: Any) -> tuple[Any] | None:
        """The value that the reply has, if it says all."""
        if type(reply) is not bytes:
            return None
        clock = self._clock
        return self._codec.plain_value(asking[1], reply, clock.monotonic() + clock.epoch + asking[2].offset)

    async def rest(self, key: str, asking: Asking, reply: Any) -> Entry | None:
        """The entry that the reply has, or leads to."""
        name, pool = asking[1:]
        return await self._store.found(pool, pool.link(name), key, name, reply)

    def put(self, key: str, value: Any, ttl: float | None) -> Coroutine[Any, Any, bool] | None:
        """What stores the value; ``None`` when the server's clock is not known yet, the value is large or cannot be."""
        store = self._store
        pool = store.pool()
        if not pool.met or pool.large_writes or is_large(value):
            return None
        clock, name = self._clock, key.encode()
        data = self._codec.encode_fresh(name, value, clock.monotonic() + clock.epoch + pool.offset, ttl)
        if data is None or len(data) >= CHUNK:
            return None
        return store_small(store, pool, name, data, milliseconds(math.inf if ttl is None else ttl))
