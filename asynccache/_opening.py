"""From what a user says about stores to the two seats of a cache; nothing is connected yet."""

from dataclasses import dataclass
from typing import Any

from asynccache._urls import open_store
from asynccache.backend import Backend
from asynccache.backends.memory import MemoryBackend
from asynccache.clock import Clock, SystemClock
from asynccache.errors import ConfigError

__all__ = ["Opened", "open_seats"]


@dataclass(frozen=True, slots=True)
class Opened:
    """The stores of one cache.

    Attributes:
        local: The in-process one, if any.
        remote: The other one, if any.
        owned: Those that were made here, and so are the cache's to close.
        clock: Where time comes from.
    """

    local: MemoryBackend | None
    remote: Backend | None
    owned: list[MemoryBackend | Backend]
    clock: Clock

    @property
    def private(self) -> bool:
        """Whether nobody else has keys in there."""
        return self.remote is None and bool(self.owned)


def open_seats(
    store: str | Backend | MemoryBackend, local: str | MemoryBackend | None, clock: Clock | None, codec: Any
) -> Opened:
    """The stores that URLs name, and those that were given.

    Raises:
        ConfigError: A URL is wrong, or the two do not go together.
    """
    clock = clock or _clock_of(store) or _clock_of(local) or SystemClock()
    owned: list[MemoryBackend | Backend] = []
    main = _opened(store, clock, codec, owned)
    if local is None:
        return Opened(main, None, owned, clock) if isinstance(main, MemoryBackend) else Opened(None, main, owned, clock)
    if isinstance(main, MemoryBackend):
        raise ConfigError("local goes in front of a remote store; memory:// is local already")
    near = _opened(local, clock, None, owned)
    if not isinstance(near, MemoryBackend):
        raise ConfigError("local is an in-process store: a memory:// URL or a MemoryBackend")
    return Opened(near, main, owned, clock)


def _clock_of(store: Any) -> Clock | None:
    return None if isinstance(store, str) else getattr(store, "clock", None)


def _opened(
    store: str | Backend | MemoryBackend, clock: Clock, codec: Any, owned: list[MemoryBackend | Backend]
) -> Backend | MemoryBackend:
    if not isinstance(store, str):
        return store
    opened: Backend | MemoryBackend = open_store(store, clock=clock, codec=codec)
    owned.append(opened)
    return opened
