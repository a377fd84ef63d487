"""Deletions that did not reach the server, and leases that are to be given back: to be done when it can be reached.

Whatever a caller wanted to be stored under a key when the server failed, what is there is not it: the key is deleted
as soon as the server is back, before anybody reads it. So a later write that fails too needs no more than the same, the
number of keys is what is bounded, and repeating it twice does no harm. What was to be cleared is not remembered: nobody
knows its keys. A lease is given back by its token, which is nobody else's: that can be repeated too, and comes to
nothing when the lease has lapsed.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar, final

from asynccache.backends.redis.scripts import RELEASE
from asynccache.backends.redis.wire import pack
from asynccache.clock import stopwatch

__all__ = ["Debt", "Intents"]

K = TypeVar("K")
V = TypeVar("V")

_MOST_KEYS: Final = 100_000
_MOST_LEASES: Final = 10_000
_LOG_SECONDS: Final = 1.0
_log: Final = logging.getLogger("asynccache")


class Debt(NamedTuple):
    """Something to be done at the server.

    Attributes:
        name: The key.
        token: Of the lease that is to be given back; ``None`` when the key is to be deleted.
        failure: What stands for its latest failure.
    """

    name: bytes
    token: str | None
    failure: object

    @property
    def command(self) -> bytes:
        """What pays it; the script that it may call is `RELEASE`."""
        if self.token is None:
            return pack((b"UNLINK", self.name))
        return pack((b"EVALSHA", RELEASE.sha, 1, self.name, self.token))


@final
class Intents:
    """What one store owes its servers.

    Args:
        where: What the log calls the servers.

    Attributes:
        keys: The keys that must go.
        lost: How many deletions were dropped because there were too many.
    """

    def __init__(self, where: str = "redis") -> None:
        self.keys: OrderedDict[bytes, object] = OrderedDict()  # the oldest of a dict is dear where many were removed
        self.lost = 0
        self._where = where
        self._told = 0
        self._quiet_until = -math.inf
        self._leases: OrderedDict[tuple[bytes, str], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self.keys) + len(self._leases)

    def add(self, keys: Iterable[bytes]) -> None:
        """Have the keys deleted when that can be."""
        self.keys.update(dict.fromkeys(keys, object()))
        if len(self.keys) > _MOST_KEYS:
            self.lost += _shorten(self.keys, _MOST_KEYS)
            self.tell()

    def give_back(self, name: bytes, token: str, ttl: float) -> Debt:
        """Have a lease given back when that can be.

        Args:
            name: The key.
            token: The lease's.
            ttl: Seconds after which it has lapsed at the latest.
        """
        until = stopwatch() + ttl
        self._leases[name, token] = until
        _shorten(self._leases, _MOST_LEASES)  # which lapse by themselves
        return Debt(name, token, until)

    def some(self, count: int | None = None) -> list[Debt]:
        """The oldest of them, or all."""
        now = stopwatch()
        for lease in [lease for lease, until in _first(self._leases, None) if until <= now]:
            self._leases.pop(lease, None)
        keys = [Debt(name, None, failure) for name, failure in _first(self.keys, count)]
        leases = [Debt(name, token, until) for (name, token), until in _first(self._leases, count)]
        return keys + leases

    def of(self, names: Iterable[bytes]) -> list[Debt]:
        """The keys among these that must go."""
        return [Debt(name, None, self.keys[name]) for name in names if name in self.keys]

    def paid(self, debt: Debt) -> None:
        """Forget what was done, unless it has failed again meanwhile."""
        if debt.token is not None:
            self._leases.pop((debt.name, debt.token), None)
        elif self.keys.get(debt.name) is debt.failure:
            self.keys.pop(debt.name, None)

    def tell(self, *, last: bool = False) -> None:
        """Log how many deletions were dropped, if any were since it was logged: at most once a second.

        Args:
            last: Whether nothing will be paid any more: what is owed is dropped, too.
        """
        now = stopwatch()
        if self.lost > self._told and (last or now >= self._quiet_until):
            dropped, self._told = self.lost - self._told, self.lost
            self._quiet_until = now + _LOG_SECONDS
            _log.warning(
                "%s: deletions dropped: %d, as more than %d were owed; old values may be read until their ttl",
                self._where, dropped, _MOST_KEYS,
            )  # fmt: skip
        if last and self.keys:
            _log.warning(
                "%s: deletions still owed at closing: %d; old values may be read until their ttl",
                self._where, len(self.keys),
            )  # fmt: skip

    def superseded(self, keys: Iterable[bytes]) -> None:
        """Forget keys whose newest write is on its way."""
        for key in keys:
            self.keys.pop(key, None)


def _first(debts: OrderedDict[K, V], count: int | None) -> list[tuple[K, V]]:
    """The oldest so many, or all."""
    while True:
        try:
            return list(islice(debts.items(), count))
        except RuntimeError:  # another thread's loop has changed them meanwhile
            continue


def _shorten(debts: OrderedDict[Any, Any], most: int) -> int:
    """Drop the oldest of too many; how many."""
    dropped = 0
    while len(debts) > most:
        try:
            debts.popitem(last=False)
        except KeyError:  # another thread's loop did
            break
        dropped += 1
    return dropped
