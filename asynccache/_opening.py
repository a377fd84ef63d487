"""From what a user says about stores to the two seats of a cache; nothing is connected yet."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asynccache._prefixed import Prefixed
from asynccache._urls import open_store
from asynccache.backend import Backend
from asynccache.backends.memory import MemoryBackend
from asynccache.clock import Clock, SystemClock
from asynccache.errors import ConfigError, NotSupported
from asynccache.keys import check_namespace
from asynccache.policy import Policy, PolicyOptions
from asynccache.telemetry import Telemetry

if TYPE_CHECKING:
    from asynccache.backends.redis.raw import RawRedis

__all__ = ["Opened", "check_options", "checked_policy", "open_seats", "raw_of"]


@dataclass(frozen=True, slots=True)
class Opened:
    """The stores of one cache.

    Attributes:
        local: The in-process one, if any.
        remote: The other one, if any.
        owned: Those that were made here, and so are the cache's to close.
        clock: Where time comes from.
        prefix: What every key begins with in either.
        added: What every key in the remote one has in front of that.
    """

    local: MemoryBackend | None
    remote: Backend | None
    owned: list[MemoryBackend | Backend]
    clock: Clock
    prefix: str
    added: str = ""


def open_seats(
    store: str | Backend | MemoryBackend,
    local: str | MemoryBackend | None,
    clock: Clock | None,
    codec: Any,
    prefix: str = "",
) -> Opened:
    """The stores that URLs name, and those that were given.

    A local store that was made here holds nobody else's keys, so they need no prefix (see `Prefixed`).

    Raises:
        ConfigError: A URL is wrong, or the two do not go together.
    """
    clock = clock or _clock_of(store) or _clock_of(local) or SystemClock()
    owned: list[MemoryBackend | Backend] = []
    main = _opened(store, clock, codec, owned)
    if local is None:
        if isinstance(main, MemoryBackend):
            return Opened(main, None, owned, clock, "" if owned else prefix)
        return Opened(None, main, owned, clock, prefix)
    if isinstance(main, MemoryBackend):
        raise ConfigError("local goes in front of a remote store; memory:// is local already")
    near = _opened(local, clock, None, owned)
    if not isinstance(near, MemoryBackend):
        raise ConfigError("local is an in-process store: a memory:// URL or a MemoryBackend")
    if prefix and len(owned) == 2:  # a remote store that was given has other users perhaps, and they share its locks
        return Opened(near, Prefixed(main, prefix), owned, clock, "", prefix)
    return Opened(near, main, owned, clock, prefix)


def _clock_of(store: Any) -> Clock | None:
    return None if isinstance(store, str) else getattr(store, "clock", None)


def _opened(
    store: str | Backend | MemoryBackend, clock: Clock, codec: Any, owned: list[MemoryBackend | Backend]
) -> Backend | MemoryBackend:
    if not isinstance(store, str):
        if not (isinstance(store, MemoryBackend) or _is_backend(store)):
            like = "; take RedisBackend.like(client)" if hasattr(store, "connection_pool") else ""
            kind = type(store).__name__
            raise ConfigError(f"a store is a URL such as redis://localhost:6379/0 or a backend, not a {kind}{like}")
        if codec is not None:
            raise ConfigError("codec goes with a store's URL; a store that is given has its own already")
        return store
    opened: Backend | MemoryBackend = open_store(store, clock=clock, codec=codec)
    owned.append(opened)
    return opened


def _is_backend(store: object) -> bool:
    return not isinstance(store, type) and hasattr(store, "name") and hasattr(store, "get")


def check_options(*, on_error: Any, telemetry: Any, name: Any, namespace: str) -> None:
    """See to it that they are what they must be.

    Raises:
        ConfigError: One of them is not.
        InvalidKeyError: The namespace is not.
    """
    if (on_error not in ("degrade", "raise") and not callable(on_error)) or inspect.iscoroutinefunction(on_error):
        raise ConfigError(f'on_error is "degrade", "raise" or a plain function, not {on_error!r}')
    if telemetry not in ("auto", "off") and not isinstance(telemetry, Telemetry):
        raise ConfigError(f'telemetry is "auto", "off" or a Telemetry, not {telemetry!r}')
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name is a non-empty text, not {name!r}")
    check_namespace(namespace)


def checked_policy(ttl: Any, policy: Policy | None, options: PolicyOptions) -> Policy:
    """The policy of a cache.

    Raises:
        ConfigError: An option is wrong.
    """
    if policy is not None and not isinstance(policy, Policy):
        raise ConfigError(f"policy is a Policy, not {policy!r}")
    terms = (policy or Policy()).but(**options)
    return terms if ttl is ... else terms.but(ttl=ttl)


def raw_of(remote: Backend | None) -> "RawRedis":
    """The raw access that a Redis store has.

    Raises:
        NotSupported: It is another store.
    """
    if isinstance(remote, Prefixed):
        remote = remote.store
    if remote is not None and remote.name == "redis":
        from asynccache.backends.redis import RedisBackend  # who has no Redis never imports it

        if isinstance(remote, RedisBackend):
            return remote.raw
    raise NotSupported("cache.redis is there for a store on Redis only")
