"""The stores that a cache can sit on, each as a function that opens one on a clock."""

import uuid
from collections.abc import Callable
from pathlib import Path

from asynccache import Backend, Cache, MemoryBackend
from asynccache.backends.file import FileBackend
from asynccache.clock import Clock
from examples.custom_backend import ToyBackend, ToyServer

__all__ = ["STORES", "opened"]

Store = Backend | MemoryBackend

STORES: dict[str, Callable[[Clock, Path], tuple[Store, MemoryBackend | None]]] = {
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
}
"""A store, and a local one in front of it, by name."""


def opened(name: str, clock: Clock, folder: Path, **options: object) -> Cache:
    """A cache on an empty store of that name."""
    store, local = STORES[name](clock, folder)
    return Cache(store, local=local, clock=clock, **options)  # type: ignore[arg-type]
