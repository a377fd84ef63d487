"""Least recently used: the entry that leaves is the one whose last use is longest ago.

Source
    The oldest policy in the book (P. Denning, 1968, for pages of memory).

Cost
    The order is that of an ``OrderedDict``, a dictionary threaded on a linked list: every step is O(1), a use is one
    call in C. A sequential scan longer than the cache empties it of everything useful; `S3FIFO` withstands that.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, final

__all__ = ["LRU"]


@final
class LRU:
    """Evicts what has not been used for longest.

    Args:
        max_entries: The store's bound, which makes no difference here; taken so that all policies are made alike.
        max_weight: Likewise.
    """

    __slots__ = ("touch", "values")

    insert_sets_values: Final = True

    def __init__(self, max_entries: int | None = None, max_weight: int | None = None) -> None:
        self.values: OrderedDict[str, Any] = OrderedDict()
        self.touch: Callable[[str], object] = self.values.move_to_end

    def insert(self, key: str, value: object, weight: int) -> None:
        self.values[key] = value

    def replace(self, key: str, value: object, weight: int) -> None:
        self.values[key] = value
        self.values.move_to_end(key)

    def remove(self, key: str) -> None:
        del self.values[key]

    def victim(self) -> str:
        return next(iter(self.values))

    def evict(self, key: str) -> None:
        del self.values[key]

    def clear(self) -> None:
        self.values.clear()
