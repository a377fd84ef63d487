"""How it stands with the servers of a store: what metrics show."""

from collections.abc import Sequence
from typing import Protocol, final

from asynccache._breaker import BreakerState
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.link import Link

__all__ = ["Condition", "Store"]


class Store(Protocol):
    """Whose servers they are."""

    intents: Intents

    def serving(self) -> list[Link]: ...


@final
class Condition:
    """The state of all connections together."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def breaker(self) -> BreakerState:
        """What is known last of the servers of this process: of several the worst."""
        of: dict[int, list[Link]] = {}
        for link in self._store.serving():
            of.setdefault(id(link.breaker), []).append(link)
        states = {_state(links) for links in of.values()}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    @property
    def owed(self) -> int:
        """How many keys are to be deleted, and leases to be given back, when the server takes it."""
        return len(self._store.intents)


def _state(links: Sequence[Link]) -> BreakerState:
    """What is known last of one server, by all connections to it. Not what its breaker would let through now: callers
    may try again long before anybody knows better."""
    failed_at = links[0].breaker.failed_at
    if any(link.late for link in links):
        return "open"
    if failed_at is not None and not any(link.answered_since(failed_at) for link in links):
        return "open"
    if any(link.broken for link in links) and not any(link.up for link in links):
        return "half_open"
    return "closed"
