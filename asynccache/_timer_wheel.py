"""A timing wheel: it says which keys are past their deadline, without anybody asking for them.

Terms
    *tick*: a moment at a multiple of the resolution. *bucket*: the references that fire at one tick. *reference*: a
    key in a bucket; *stale* when the key is gone, has moved to a later deadline, or has an earlier reference.

A deadline goes to the first tick at or after it: exactly while it is less than 64 ticks away, then rounded up to one
of 32 buckets per octave of the distance. So a reference never fires early, and fires late by at most a tick plus 1/32
of the time that was left. A bucket is not spread over finer ones when its time comes near (no cascading). Buckets are
kept by tick in a dictionary, their ticks in a heap: a clock that leaps costs the occupied buckets, not the ticks.

Moving a deadline away or deleting a key does not touch the wheel: the reference asks for the key's deadline when it
fires, and then leaves, expires the key, or goes to the bucket of the new deadline.

Source
    G. Varghese and T. Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987); the logarithmic buckets without
    cascading are those of the Linux kernel since 4.8 (T. Gleixner, 2016). The layout was chosen by measurement among
    eight.

Cost
    To schedule: a division by shifting, a dictionary look-up, an append; amortised O(1), since a bucket is made once
    for all its references. To expire: O(1) each, O(log buckets) per bucket. About nine bytes a reference.
"""

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Final, final

__all__ = ["TimerWheel"]

_EXACT_TICKS: Final = 64
_BITS: Final = _EXACT_TICKS.bit_length() - 1  # a distance of n bits keeps its upper six: 32 buckets per octave
_NEVER: Final = 2.0**50  # 35 million years in seconds: past this, arithmetic on ticks would round


@final
class TimerWheel:
    """Finds the keys whose deadline has passed, in bounded steps.

    A key is never expired before its deadline. It is expired by the first `advance` with enough budget after the
    deadline plus a tick plus 1/32 of the time that was left when it was scheduled.

    Args:
        deadline_of: The deadline that a key has now, or ``None`` when it is gone or lives for ever.
        expire: Called once with each key that is past its deadline; from then on ``deadline_of`` gives ``None`` for it
            (or a new deadline). It may schedule and remove any keys, must call neither `advance` nor raise.
        now: The time, in the seconds that deadlines are given in.
        resolution: The length of a tick in seconds, a power of two so that ticks are exact in floating point.

    Raises:
        ValueError: The resolution is not a power of two.
    """

    __slots__ = (
        "_buckets",
        "_deadline_of",
        "_expire",
        "_firing",
        "_firing_at",
        "_latest",
        "_per_second",
        "_references",
        "_resolution",
        "_ticks",
    )

    def __init__(
        self,
        deadline_of: Callable[[str], float | None],
        expire: Callable[[str], object],
        *,
        now: float,
        resolution: float = 0.0625,
    ) -> None:
        if math.frexp(resolution)[0] != 0.5:
            raise ValueError(f"the resolution is a power of two, not {resolution!r}")
        self._deadline_of = deadline_of
        self._expire = expire
        self._resolution = resolution
        self._per_second = 1.0 / resolution
        self._latest = int(now * self._per_second)  # the last tick that the wheel was told of
        self._buckets: dict[int, list[str]] = {}
        self._ticks: list[int] = []  # a heap of the keys of _buckets
        self._firing: list[str] = []  # what is left of the bucket whose time has come; the same list until it is empty
        self._firing_at = 0
        self._references = 0

    @property
    def references(self) -> int:
        """How many references there are, stale ones included."""
        return self._references

    def schedule(self, key: str, deadline: float, now: float | None = None) -> None:
        """Add a reference: for a key that has none, or whose deadline has become an earlier one.

        Args:
            key: The key.
            deadline: When it expires; one that is infinite, or millions of years away, needs no reference and gets
                none.
            now: The time. Without it, the time left, which decides how late the key may fire, counts from the last
                `advance`.
        """
        if deadline > _NEVER:
            return
        tick = int(deadline * self._per_second) + 1
        distance = tick - self._latest if now is None else int((deadline - now) * self._per_second)
        if distance >= _EXACT_TICKS:
            shift = distance.bit_length() - _BITS
            tick = -(-tick >> shift) << shift  # rounded up
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [key]
            heappush(self._ticks, tick)
        else:
            bucket.append(key)
        self._references += 1

    def due(self, now: float) -> bool:
        """Whether `advance` has something to do."""
        return bool(self._firing or (self._ticks and self._ticks[0] * self._resolution <= now))

    def next_due(self) -> float | None:
        """When `advance` will have something to do, or ``None`` when there are no references."""
        if self._firing:
            return self._firing_at * self._resolution
        if self._ticks:
            return self._ticks[0] * self._resolution
        return None

    def advance(self, now: float, budget: int) -> int:
        """Expire what is due and return how many references were looked at.

        Args:
            now: The time.
            budget: How many references to look at, at most. When it does not suffice, `due` stays true and the next
                call goes on where this one stopped.
        """
        latest = int(now * self._per_second)
        if latest > self._latest:
            self._latest = latest
        deadline_of, expire = self._deadline_of, self._expire
        left = budget
        while left > 0:
            if not self._firing:
                if not self._ticks or self._ticks[0] > latest:
                    break
                self._firing_at = heappop(self._ticks)
                self._firing = self._buckets.pop(self._firing_at)
            firing = self._firing
            while firing and left > 0:
                key = firing.pop()
                left -= 1
                self._references -= 1
                deadline = deadline_of(key)
                if deadline is None:
                    continue
                if deadline > now:
                    self.schedule(key, deadline, now)
                else:
                    expire(key)
        return budget - left

    def rebuild(self, keys: Iterable[str]) -> None:
        """Drop all references, and have one for each of these keys.

        The keys are taken in at once and find their buckets in the next calls of `advance`, within its budget: `due`
        is true until they have.

        Args:
            keys: At least every key that has a deadline, each once; those that have none fall out by themselves.
        """
        self._ticks.clear()
        self._buckets.clear()
        self._firing.clear()  # in place: an advance that called expire, which called this, holds the list
        self._firing.extend(keys)
        self._firing_at = self._latest
        self._references = len(self._firing)
