"""Deletions that did not reach the server, to be repeated before anybody reads there again.

Whatever a caller wanted to be stored under a key when the server failed, what is there is not it: the key is deleted
as soon as the server is back. So a later write that fails too needs no more than the same, the number of keys is what
is bounded, and repeating it twice does no harm. What was to be cleared is not remembered: nobody knows its keys.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Final, final

__all__ = ["Intents"]

_MOST_KEYS: Final = 100_000


@final
class Intents:
    """The keys of one store that must go.

    Attributes:
        keys: The keys.
        lost: How many were dropped because there were too many.
    """

    def __init__(self) -> None:
        self.keys: dict[bytes, object] = {}
        self.lost = 0

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, keys: Iterable[bytes]) -> None:
        """Have the keys deleted when that can be."""
        self.keys.update(dict.fromkeys(keys, object()))
        while len(self.keys) > _MOST_KEYS:
            try:
                del self.keys[next(iter(self.keys))]
            except (StopIteration, KeyError, RuntimeError):  # another thread's loop did
                return
            self.lost += 1

    def some(self, count: int) -> dict[bytes, object]:
        """The oldest of them, each with what stands for its latest failure."""
        return dict(islice(list(self.keys.items()), count))

    def paid(self, key: bytes, failure: object) -> None:
        """Forget a key that was deleted, unless it has failed again meanwhile."""
        if self.keys.get(key) is failure:
            self.keys.pop(key, None)

    def superseded(self, keys: Iterable[bytes]) -> None:
        """Forget keys whose newest write is on its way."""
        for key in keys:
            self.keys.pop(key, None)
