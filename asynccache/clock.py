"""The one door to time."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, final

__all__ = ["Clock", "SystemClock", "Timer", "processor_time", "stopwatch"]

stopwatch: Callable[[], float] = time.perf_counter
"""Seconds for measuring how long something took: real time even when the cache's clock is a traveller's."""

processor_time: Callable[[], float] = getattr(time, "thread_time", time.perf_counter)
"""Seconds for which this thread has worked: while it waits they stand still."""


class Timer(Protocol):
    """A callback that will run later, unless cancelled."""

    def cancel(self) -> None:
        """Make sure that the callback does not run any more; harmless when it already did."""
        ...


class Clock(Protocol):
    """Where a cache takes time from, so that a test can travel."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """A function that returns seconds which never go back; bound once, called on every hit."""
        ...

    @property
    def epoch(self) -> float:
        """What to add to ``monotonic()`` for seconds since 1970: constant, so a wall clock that jumps changes
        nothing."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` on the running loop in ``delay`` seconds of this clock.

        Raises:
            RuntimeError: No event loop is running.
        """
        ...


_LONGEST_DELAY = 10 * 365 * 86_400.0  # some loops count milliseconds in a word: ten years stay far from its end


@final
class SystemClock:
    """The machine's monotonic clock."""

    __slots__ = ("epoch", "monotonic")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic
        self.epoch: float = time.time() - time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(min(delay, _LONGEST_DELAY), callback)

    def __repr__(self) -> str:
        return "SystemClock()"
