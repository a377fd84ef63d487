"""Clients of one Redis server, each set up as its documentation shows, behind the two calls that are measured.

redis-py, coredis and valkey-glide move bytes and know neither namespaces nor serializers: they are given the bytes, and
the key as it is. asynccache, aiocache and cashews put a namespace before the key (cashews has none), and make the value
bytes and back. *Bytes alone* is our own connection without what lies over it: no entries, no codec. Where a pool has a
size it is 50, and callers wait for a free connection: redis-py's own default, which aiocache takes over, raises at the
hundred and first caller. Ours raises where it would degrade, so that no failure passes for a fast answer, and has a
deadline that a busy machine keeps. Each has a database of its own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from asynccache import Cache
from asynccache.backend import StoreOptions
from asynccache.clock import SystemClock
from benchmarks.redis_server import Server

__all__ = ["CLIENTS", "Client", "ours"]

_POOL = 50
_TTL = 600


@dataclass(frozen=True, slots=True)
class Client:
    """What is called: the client's own coroutine functions, or what gives their coroutines.

    Attributes:
        get: Reads a key.
        set: Writes a key, with a ttl of ten minutes.
        value: What the client is given for a text.
    """

    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str, Any], Awaitable[Any]]
    value: Callable[[str], str | bytes]


@asynccontextmanager
async def ours(server: Server, codec: str | None = None) -> AsyncIterator[Client]:
    """A cache, of JSON texts unless told otherwise."""
    url = f"{server.url(0)}?timeout=10s"
    async with Cache(url, namespace="bench", ttl="10m", telemetry="off", codec=codec, on_error="raise") as cache:
        yield Client(cache.get, cache.set, str if codec is None else str.encode)


@asynccontextmanager
async def _bytes_alone(server: Server) -> AsyncIterator[Client]:
    from asynccache.backends.redis import open_redis
    from asynccache.backends.redis.replies import told
    from asynccache.backends.redis.wire import pack

    store = open_redis(StoreOptions(url=urlsplit(server.url(6)), query={"timeout": "10s"}, clock=SystemClock()))
    link = store.pool().link(b"")

    async def get(key: str) -> Any:
        return told(await link.ask(pack((b"GET", key))))

    async def set_(key: str, value: bytes) -> Any:
        return told(await link.ask(pack((b"SET", key, value, b"EX", _TTL))))

    yield Client(get, set_, str.encode)
    await store.aclose()


@asynccontextmanager
async def _redis_py(server: Server) -> AsyncIterator[Client]:
    from redis.asyncio import BlockingConnectionPool, Redis

    client = Redis.from_pool(BlockingConnectionPool.from_url(server.url(1), max_connections=_POOL))
    yield Client(client.get, lambda key, value: client.set(key, value, ex=_TTL), str.encode)
    await client.aclose()


@asynccontextmanager
async def _coredis(server: Server) -> AsyncIterator[Client]:
    import coredis

    async with coredis.Redis(server.host, server.port, db=2, max_connections=_POOL) as client:
        yield Client(client.get, lambda key, value: client.set(key, value, ex=_TTL), str.encode)


@asynccontextmanager
async def _glide(server: Server) -> AsyncIterator[Client]:
    from glide import ExpirySet, ExpiryType, GlideClient, GlideClientConfiguration, NodeAddress

    where = GlideClientConfiguration([NodeAddress(server.host, server.port)], database_id=3)
    client = await GlideClient.create(where)
    expiry = ExpirySet(ExpiryType.SEC, _TTL)
    yield Client(client.get, lambda key, value: client.set(key, value, expiry=expiry), str.encode)
    await client.close()


@asynccontextmanager
async def _aiocache(server: Server) -> AsyncIterator[Client]:
    from aiocache import RedisCache
    from redis.asyncio import BlockingConnectionPool

    cache = RedisCache(
        endpoint=server.host,
        port=server.port,
        db=4,
        namespace="bench",
        ttl=_TTL,
        pool_max_size=_POOL,
        connection_pool_class=BlockingConnectionPool,
    )
    yield Client(cache.get, cache.set, str)
    await cache.close()


@asynccontextmanager
async def _cashews(server: Server) -> AsyncIterator[Client]:
    import cashews

    cache = cashews.Cache()
    cache.setup(server.url(5), max_connections=_POOL)
    await cache.init()
    yield Client(cache.get, lambda key, value: cache.set(key, value, expire=_TTL), str)
    await cache.close()


CLIENTS: Mapping[str, Callable[[Server], AbstractAsyncContextManager[Client]]] = {
    "ours": ours,
    "bytes alone": _bytes_alone,
    "redis-py": _redis_py,
    "coredis": _coredis,
    "glide": _glide,
    "aiocache": _aiocache,
    "cashews": _cashews,
}
"""By the name of the column; a module is imported when its client is opened."""
