"""S3-FIFO: three first-in-first-out queues that let most keys leave quickly.

Terms
    *small*: the queue of new keys, a tenth of the store. *main*: the queue of proven keys. *ghost*: a memory of the
    keys that small has evicted, until it has evicted as much again as the store holds. A key is *visited* when it has
    been used since it last came to the end of its queue.

    A new key enters small, one that the ghost remembers enters main. At the end of small a visited key moves on to
    main, any other leaves; at the end of main a visited key starts again, any other leaves. So keys that are used
    once, most keys of most workloads and all keys of a scan, pass through a tenth of the store and leave the rest
    alone.

Source
    J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak, "FIFO queues are all you need for cache eviction" (SOSP 2023). What
    differs: one bit of use instead of two; one use is enough for main; the key that came last is not the victim; in
    a store with room to spare new keys go to both queues, in proportion; the search for a victim ends after 128
    visited keys, so that a store in which all are visited does not stop to look at each. The ghost is a table of
    hashes that keeps no key alive: where two collide, the later one stays.

Cost
    A hit adds the key to a set. Everything else is amortised O(1): each turn of the loop for a victim uses up one
    visit. About 30 bytes an entry beyond the mapping: a slot in a queue, one in the ghost, the set of visited keys.
"""

import math
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

__all__ = ["S3FIFO"]

_SMALL: Final = 10  # the small queue is this part of the whole
_AGES: Final = 16  # the ghost tells this many ages apart
_AGE_BITS: Final = 16  # of a remembered hash, overwritten by its age
_AGE_MASK: Final = (1 << _AGE_BITS) - 1
_MOST_TURNS: Final = 128
_SWEPT: Final = 4  # slots that each strike sweeps
_MARKS_TO_SPARE: Final = 64
_TABLES: Final = 64


@final
class S3FIFO:
    """Evicts what was not used while it passed a small queue, then what was not used while it went round a large one.

    Args:
        max_entries: How many entries the store keeps at most.
        max_weight: How much they weigh at most. With this bound the queues and the ghost are measured by weight,
            without it by the number of entries.
    """

    __slots__ = (
        "_age",
        "_age_weight",
        "_ample",
        "_ghost",
        "_main",
        "_newest",
        "_small",
        "_small_keys",
        "_small_weight",
        "_visited",
        "_weight",
        "_weights",
        "touch",
        "values",
    )

    insert_sets_values: Final = False

    def __init__(self, max_entries: int | None = None, max_weight: int | None = None) -> None:
        self.values: dict[str, Any] = {}
        self._visited: set[str] = set()
        self.touch: Callable[[str], object] = self._visited.add
        self._weights: dict[str, int] | None = None if max_weight is None else {}
        room = max_entries if max_weight is None else max_weight
        self._ample = math.inf if room is None else room * 0.9  # while there is less, new keys fill main too
        self._small = _Queue()
        self._main = _Queue()
        self.clear()

    def insert(self, key: str, value: object, weight: int) -> None:
        self.values[key] = value
        if self._weights is None:
            weight = 1
        else:
            self._weights[key] = weight
        self._visited.discard(key)  # a use of its former self may have come too late
        self._newest = key
        ample = self._small_weight * _SMALL > self._weight < self._ample
        if ample or (len(self.values) > 2 and self._recalls(key)):
            self._main.newer.append(key)
        else:
            self._small.newer.append(key)
            self._small_keys.add(key)
            self._small_weight += weight
        self._weight += weight

    def replace(self, key: str, value: object, weight: int) -> None:
        self.values[key] = value
        self._visited.add(key)
        self._newest = key
        if self._weights is not None:
            more = weight - self._weights[key]
            self._weights[key] = weight
            self._weight += more
            if key in self._small_keys:
                self._small_weight += more

    def remove(self, key: str) -> None:
        self._take_out(key)
        if not self.values:
            self._small.clear()
            self._main.clear()
        self._forget_late_uses()

    def victim(self) -> str:
        visited, small_keys = self._visited, self._small_keys
        newest = self._newest if len(self.values) > 1 and self._newest in self.values else None
        turns = 0
        while True:
            new = len(small_keys)  # in small; those in main are proven; the newest, which has to stay, is neither
            proven = len(self.values) - new
            if newest is not None:
                if newest in small_keys:
                    new -= 1
                else:
                    proven -= 1
            from_small = new and (not proven or self._small_weight * _SMALL >= self._weight)
            queue = self._small if from_small else self._main
            key = queue.first()
            if key not in visited and key != newest:
                return key
            visited.discard(key)
            if turns == _MOST_TURNS:
                return key
            turns += 1
            queue.drop_first()
            self._main.newer.append(key)
            if from_small:
                small_keys.remove(key)
                self._small_weight -= 1 if self._weights is None else self._weights[key]

    def evict(self, key: str) -> None:
        if key in self._small_keys:
            self._remember(key, 1 if self._weights is None else self._weights[key])
        self._take_out(key)

    def clear(self) -> None:
        self.values.clear()
        self._visited.clear()
        if self._weights is not None:
            self._weights.clear()
        self._small.clear()
        self._main.clear()
        self._small_keys: set[str] = set()
        self._small_weight = 0
        self._weight = 0
        self._ghost = array("q", [0])
        self._age = 0
        self._age_weight = 0
        self._newest = ""

    def _take_out(self, key: str) -> None:
        del self.values[key]
        self._visited.discard(key)
        weight = 1 if self._weights is None else self._weights.pop(key)
        self._weight -= weight
        if key in self._small_keys:
            self._small_keys.remove(key)
            self._small_weight -= weight
            self._small.strike(key)
        else:
            self._main.strike(key)

    def _forget_late_uses(self) -> None:
        """Drop the marks of keys that had left when they were touched, once there must be many."""
        if len(self._visited) > len(self.values) + len(self.values) // 4 + _MARKS_TO_SPARE:
            self._visited.intersection_update(self.values)

    # The ghost: at the place that a hash's middle bits give, its upper bits and the age in which it was evicted.

    def _remember(self, key: str, weight: int) -> None:
        if len(self.values) > len(self._ghost):
            self._ghost = array("q", bytes(8 << len(self.values).bit_length()))
        self._age_weight += weight
        if self._age_weight * _AGES > self._weight:
            self._age_weight = 0
            self._age += 1
            self._forget_late_uses()
        mark = hash(key) >> _AGE_BITS
        self._ghost[mark & (len(self._ghost) - 1)] = mark << _AGE_BITS | self._age & _AGE_MASK

    def _recalls(self, key: str) -> bool:
        ghost = self._ghost
        mark = hash(key) >> _AGE_BITS
        found = ghost[mark & (len(ghost) - 1)]
        return found >> _AGE_BITS == mark and (self._age - found) & _AGE_MASK <= _AGES


@final
class _Queue:
    """Keys, first in, first out, of which any can be struck out.

    A key struck out behind the first leaves its slot where it is: ``struck`` says how many dead slots a key has. They
    all lie before the slot of its living successor, if it has one, so the first ones met are the dead ones. Each
    strike also moves four slots from the front of ``newer`` to the end of ``older``, which keeps the order and drops
    the dead on the way; when all have moved, the two change places. So there are about as many dead slots as living
    ones at most, and no strike waits for a long sweep.

    Attributes:
        older: The first part of the queue, swept.
        newer: The rest; keys are added at its end.
        dead: The number of dead slots.
        struck: The number of dead slots by key: many small tables, by hash, since one that grows past hundreds of
            thousands of keys, as when all of a million expire, stops the world for 20 ms.
    """

    __slots__ = ("dead", "newer", "older", "struck")

    def __init__(self) -> None:
        self.older: deque[str] = deque()
        self.newer: deque[str] = deque()
        self.dead = 0
        self.struck: list[dict[str, int]] = [{} for _ in range(_TABLES)]

    def __len__(self) -> int:
        """The number of slots, dead ones included."""
        return len(self.older) + len(self.newer)

    def first(self) -> str:
        """The first living key."""
        while True:
            part = self.older or self.newer
            key = part[0]
            if not self.dead or not self._buried(key):
                return key
            part.popleft()

    def drop_first(self) -> None:
        """Take out the key that `first` has just given."""
        (self.older or self.newer).popleft()

    def strike(self, key: str) -> None:
        """Take out a living key, wherever it is."""
        part = self.older or self.newer
        if part[0] == key:
            part.popleft()
            return
        table = self.struck[hash(key) % _TABLES]
        table[key] = table.get(key, 0) + 1
        self.dead += 1
        for _ in range(min(_SWEPT, len(self.newer))):
            moved = self.newer.popleft()
            if not self._buried(moved):
                self.older.append(moved)
        if not self.newer:  # swept to the end; now, before a new key comes and makes it look unfinished for ever
            self.older, self.newer = self.newer, self.older

    def clear(self) -> None:
        """Empty the queue."""
        self.older.clear()
        self.newer.clear()
        self.dead = 0
        for table in self.struck:
            table.clear()

    def _buried(self, key: str) -> bool:
        """Whether the key's first slot is dead; if so, it counts no longer."""
        table = self.struck[hash(key) % _TABLES]
        dead = table.get(key)
        if dead is None:
            return False
        self.dead -= 1
        if dead == 1:
            del table[key]
        else:
            table[key] = dead - 1
        return True
