"""A clock that stands still until it is told to travel."""

import heapq
import itertools
from collections.abc import Callable
from typing import final

from asynccache.clock import SystemClock, Timer
from asynccache.duration import Duration, seconds

__all__ = ["TravellingClock"]


@final
class _Alarm:
    """A callback for a moment of a travelling clock."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


@final
class TravellingClock:
    """A `Clock` on which no time passes but by `travel`, which runs what falls due on the way, in order."""

    def __init__(self, start: float | None = None) -> None:
        machine = SystemClock()
        self._now = 1_000.0
        self.epoch: float = (machine.epoch + machine.monotonic() if start is None else start) - self._now
        self._alarms: list[tuple[float, int, _Alarm]] = []
        self._order = itertools.count()
        self.monotonic: Callable[[], float] = lambda: self._now

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Run the callback when the clock has travelled ``delay`` seconds."""
        alarm = _Alarm(callback)
        heapq.heappush(self._alarms, (self._now + max(delay, 0.0), next(self._order), alarm))
        return alarm

    def travel(self, duration: Duration) -> None:
        """Let time pass.

        Args:
            duration: How much, in any form of a duration.

        Raises:
            ConfigError: It is not a positive duration.
        """
        end = self._now + seconds(duration)
        while self._alarms and self._alarms[0][0] <= end:
            due, _, alarm = heapq.heappop(self._alarms)
            self._now = max(self._now, due)
            callback, alarm.callback = alarm.callback, None
            if callback is not None:
                callback()
        self._now = end

    def __repr__(self) -> str:
        return f"TravellingClock({self._now:.3f})"
