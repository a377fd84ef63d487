"""How it stands with the servers of a store: what metrics show."""

from typing import Protocol, final

from asynccache._breaker import BreakerState
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.link import Link

__all__ = ["Condition", "Store"]


class Store(Protocol):
    """Whose servers they are."""

    intents: Intents

    def links(self) -> list[Link]: ...


@final
class Condition:
    """The state of all connections together."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def breaker(self) -> BreakerState:
        """The worst state of a breaker of this process."""
        states = {link.state for link in self._store.links()}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    @property
    def owed(self) -> int:
        """How many keys are to be deleted, and leases to be given back, when the server takes it."""
        return len(self._store.intents)
