"""From a URL to a store, by its scheme."""

import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from asynccache._options import split_url
from asynccache.backend import StoreOptions
from asynccache.clock import Clock
from asynccache.errors import ConfigError

__all__ = ["open_store"]

_GROUP: Final = "asynccache.backends"
_BUILT_IN: Final = {
    "memory": "asynccache.backends.memory:open_memory",
    "file": "asynccache.backends.file:open_file",
    **dict.fromkeys(
        (
            f"{scheme}{kind}"
            for scheme in ("redis", "rediss", "valkey", "valkeys")
            for kind in ("", "+sentinel", "+cluster")
        ),
        "asynccache.backends.redis:open_redis",
    ),
    "unix": "asynccache.backends.redis:open_redis",
}


def open_store(store: str, *, clock: Clock, codec: Any = None) -> Any:
    """The store that a URL names; nothing is connected yet.

    Raises:
        ConfigError: It is not a URL, nobody knows its scheme, or an option of it is wrong.
    """
    if not isinstance(store, str) or store.find("://") < 1:
        raise ConfigError(
            "a store is a URL such as redis://localhost:6379/0 or memory://?max_entries=1000, or a backend object"
        )
    url, query = split_url(store)
    return _opener(url.scheme)(StoreOptions(url=url, query=query, clock=clock, codec=codec))


def _opener(scheme: str) -> Callable[[StoreOptions], Any]:
    target = _BUILT_IN.get(scheme) or _installed().get(scheme)
    if target is None:
        known = sorted(_BUILT_IN.keys() | _installed().keys())
        near = difflib.get_close_matches(scheme, known, n=1)
        raise ConfigError(
            f"no backend for {scheme}://; there are {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    module, _, name = target.partition(":")
    opener: Callable[[StoreOptions], Any] = getattr(importlib.import_module(module), name)
    return opener


@functools.cache
def _installed() -> Mapping[str, str]:
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    return {point.name: point.value for point in entry_points(group=_GROUP)}
