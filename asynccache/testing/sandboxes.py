"""A world of its own for the caches of one test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from asynccache._detours import World, worlds
from asynccache.duration import Duration
from asynccache.testing.clock import TravellingClock

__all__ = ["Sandbox", "sandbox"]


@final
class Sandbox:
    """What a test may do to its world.

    Attributes:
        clock: The clock of every cache in it.
    """

    def __init__(self) -> None:
        self.clock = TravellingClock()
        self.world = World(self.clock)

    def travel(self, duration: Duration) -> None:
        """Let time pass for every cache in the sandbox; timers that fall due on the way run."""
        self.clock.travel(duration)


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Put an empty in-memory store behind every cache that is used inside, whatever it was configured with.

    It holds for this context and for tasks begun in it; other tests that run at the same time, and sandboxes inside
    this one, have worlds of their own.
    """
    box = Sandbox()
    with worlds(box.world):
        yield box
