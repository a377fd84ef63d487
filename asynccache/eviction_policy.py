"""What decides which entry leaves a full store."""

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["EvictionPolicy"]


class EvictionPolicy(Protocol):
    """The values of a store, in the order in which they will be evicted.

    A policy owns the mapping of values, so that order costs no second look-up. It knows neither times nor bounds: its
    store asks for a victim when it is too full. Weights are whole numbers, at least 0; a policy that is not bounded by
    weight ignores them. Nothing here waits, calls back or raises, except where it says so.
    """

    @property
    def values(self) -> dict[str, Any]:
        """The values by key: the same object for ever, so that a hit can have it bound. Others only read it, or put
        another value of the same weight in an existing key's place."""
        ...

    @property
    def touch(self) -> Callable[[str], object]:
        """A function, the same for ever, to call with the key of a hit: one call in C.

        The key may have left since it was looked up, on another thread: then a ``KeyError`` is raised, or nothing
        happens.
        """
        ...

    @property
    def insert_sets_values(self) -> bool:
        """Whether ``insert`` is nothing but ``values[key] = value``: then the store may do that and spare the call,
        70 ns of a microsecond."""
        ...

    def insert(self, key: str, value: object, weight: int) -> None:
        """Take in a key that is not in ``values``."""
        ...

    def replace(self, key: str, value: object, weight: int) -> None:
        """Give a key in ``values`` another value; that counts as a use."""
        ...

    def remove(self, key: str) -> None:
        """Take a key out of ``values`` because it was deleted or has expired."""
        ...

    def victim(self) -> str:
        """The key to evict next; ``values`` must not be empty, and loses nothing by this."""
        ...

    def evict(self, key: str) -> None:
        """Take a key out of ``values`` because room is needed: a victim, as a rule, whose return may be remembered."""
        ...

    def clear(self) -> None:
        """Empty ``values`` in place and forget everything."""
        ...
