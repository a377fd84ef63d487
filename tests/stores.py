"""The stores that a cache can sit on, each as a function that opens one on a clock."""

from collections.abc import Callable

from asynccache import Backend, Cache, MemoryBackend
from asynccache.clock import Clock
from examples.custom_backend import ToyBackend, ToyServer

__all__ = ["STORES", "opened"]

Store = Backend | MemoryBackend

STORES: dict[str, Callable[[Clock], tuple[Store, MemoryBackend | None]]] = {
    "lru": lambda clock: (MemoryBackend(clock=clock), None),
    "s3fifo": lambda clock: (MemoryBackend(clock=clock, policy="s3fifo"), None),
    "copy": lambda clock: (MemoryBackend(clock=clock, copy=True), None),
    "weighed": lambda clock: (MemoryBackend(clock=clock, max_bytes=10**9, max_entries=None), None),
    "remote": lambda clock: (ToyBackend(ToyServer(), clock=clock), None),
    "two tiers": lambda clock: (ToyBackend(ToyServer(), clock=clock), MemoryBackend(clock=clock)),
}
"""A store, and a local one in front of it, by name."""


def opened(name: str, clock: Clock, **options: object) -> Cache:
    """A cache on an empty store of that name."""
    store, local = STORES[name](clock)
    return Cache(store, local=local, clock=clock, **options)  # type: ignore[arg-type]
