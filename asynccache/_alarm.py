"""The alarms of a store: timers on whatever event loop runs when one is needed, which are missed when their loop goes.

A store outlives the loops that use it, and a loop that is closed drops its timers without a word. So nobody but the
loop holds an alarm, and the store is told when one is gone that has not rung.
"""

import math
import weakref
from collections.abc import Callable
from typing import Final, final

from asynccache.clock import Clock

__all__ = ["OVERDUE_SECONDS", "Alarm", "Alarms"]

OVERDUE_SECONDS: Final = 1.0
"""An alarm this late has a loop that does not turn any more."""


@final
class Alarms:
    """Rings at the times that were asked for, as long as the loops turn on which it was asked.

    A time later than that of a pending alarm makes no timer: the one that rings first asks for the next. So there are
    few, each rings once, and none is cancelled, which another thread's loop could not bear. None of this is safe
    between threads but the ringing and the loss; callers hold a lock.

    Args:
        clock: What makes the timers.
        ring: Called on the loop when an alarm's time has come, with the alarm, to be given to `rung`; not called when
            the object whose method it is has been dropped.

    Attributes:
        at: When the next alarm rings; infinite when none is set, or when they were lost with their loop.
        lost: Whether they were.
    """

    __slots__ = ("__weakref__", "_clock", "_pending", "_ring", "at", "lost")

    def __init__(self, clock: Clock, ring: "Callable[[Alarm], object]") -> None:
        self.at = math.inf
        self.lost = False
        self._clock = clock
        self._ring = weakref.WeakMethod(ring)
        self._pending: list[weakref.ref[Alarm]] = []  # the next to ring is the last

    def ensure(self, at: float, now: float) -> bool:
        """Have an alarm ring at a time or before it; ``False`` when there is no loop to ring on."""
        pending = self._pending
        while pending:
            first = pending[-1]()
            if first is not None:
                if first.at <= at:
                    self.at, self.lost = first.at, False
                    return True
                break
            pending.pop()
        alarm = Alarm(at, self._ring)
        try:
            self._clock.call_later(max(at - now, 0.0), alarm)
        except RuntimeError:
            self.lost = True  # until somebody comes with a loop
            return False
        self.at, self.lost = at, False
        pending.append(weakref.ref(alarm, self._lose))
        return True

    def rung(self, alarm: "Alarm") -> None:
        """Strike out an alarm that has rung."""
        self._pending = [reference for reference in self._pending if reference() not in (alarm, None)]
        first = self._pending[-1]() if self._pending else None
        self.at = math.inf if first is None else first.at

    def overdue(self, now: float) -> bool:
        """Whether alarms were lost, or should have rung long ago."""
        return self.lost or now > self.at + OVERDUE_SECONDS

    def abandon(self) -> None:
        """Expect nothing more of those that are pending."""
        self._pending.clear()
        self.at, self.lost = math.inf, False

    def _lose(self, reference: "weakref.ref[Alarm]") -> None:
        # On whatever thread dropped the loop, at any point of what it does: two assignments and nothing else.
        self.lost = True
        self.at = math.inf


@final
class Alarm:
    """What one timer calls."""

    __slots__ = ("__weakref__", "_ring", "at")

    def __init__(self, at: float, ring: "weakref.WeakMethod[Callable[[Alarm], object]]") -> None:
        self.at = at
        self._ring = ring

    def __call__(self) -> None:
        ring = self._ring()
        if ring is not None:
            ring(self)
