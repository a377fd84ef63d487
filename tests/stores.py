"""The stores that a cache can sit on, each as a function that opens one on a clock."""

import atexit
import functools
import itertools
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from servers import Server, flavours

from asynccache import Backend, Cache, MemoryBackend
from asynccache.backend import StoreOptions
from asynccache.backends.file import FileBackend
from asynccache.backends.redis import RedisBackend, open_redis
from asynccache.clock import Clock, SystemClock
from examples.custom_backend import ToyBackend, ToyServer

__all__ = ["FLAVOURS", "STORES", "Open", "emptied", "on_redis", "opened", "server_of"]

FLAVOURS = flavours()
"""The kinds of Redis servers that there are here: at least one, or the suite cannot run."""

Store = Backend | MemoryBackend

Open = Callable[[], Cache]
"""Opens the cache of one more process."""

_DATABASES = itertools.cycle(range(16))


@functools.cache
def server_of(flavour: str) -> Server:
    """The server of that kind which this process of the suite uses."""
    server = Server(flavour)
    server.start()
    atexit.register(server.close)
    return server


def emptied(flavour: str = FLAVOURS[0]) -> str:
    """The URL of an empty database, other than the last few."""
    server, number = server_of(flavour), next(_DATABASES)
    server.command("EVAL", "redis.call('SELECT', ARGV[1]) return redis.call('FLUSHDB')", 0, number)
    return f"{server.url}/{number}"


def on_redis(url: str, clock: Clock | None = None, **more: object) -> RedisBackend:
    """A store on the server of a URL."""
    split = urlsplit(url)
    query = dict(parse_qsl(split.query))
    return open_redis(StoreOptions(url=split, query=query, clock=clock or SystemClock(), **more))  # type: ignore[arg-type]


STORES: dict[str, Callable[[Clock, Path], tuple[Store | str, MemoryBackend | str | None]]] = {
    "lru": lambda clock, _: (MemoryBackend(clock=clock), None),
    "s3fifo": lambda clock, _: (MemoryBackend(clock=clock, policy="s3fifo"), None),
    "copy": lambda clock, _: (MemoryBackend(clock=clock, copy=True), None),
    "weighed": lambda clock, _: (MemoryBackend(clock=clock, max_bytes=10**9, max_entries=None), None),
    "remote": lambda clock, _: (ToyBackend(ToyServer(), clock=clock), None),
    "two tiers": lambda clock, _: (ToyBackend(ToyServer(), clock=clock), MemoryBackend(clock=clock)),
    "file": lambda clock, folder: (FileBackend(folder / uuid.uuid4().hex, clock=clock), None),
    "file, two tiers": lambda clock, folder: (
        FileBackend(folder / uuid.uuid4().hex, clock=clock),
        MemoryBackend(clock=clock),
    ),
    "file, a tier of its own": lambda clock, folder: (f"file://{folder / uuid.uuid4().hex}", "memory://"),
    "redis": lambda clock, _: (on_redis(emptied(), clock), None),
    "redis, two tiers": lambda clock, _: (on_redis(emptied(), clock), MemoryBackend(clock=clock)),
}
"""A store, and a local one in front of it, by name."""


def opened(name: str, clock: Clock, folder: Path, **options: object) -> Cache:
    """A cache on an empty store of that name."""
    store, local = STORES[name](clock, folder)
    if isinstance(local, str):
        options = {"namespace": "of one's own", **options}
    return Cache(store, local=local, clock=clock, **options)  # type: ignore[arg-type]
