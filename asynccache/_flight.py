"""A load that the callers of one process share.

A flight is one run of a factory for one key, in a task of its own. Callers wait on futures of their own, so that one
who is cancelled takes nothing from the others. The outcome is handed over as a pair, never by raising one exception
object in many tasks. All of it is plain synchronous bookkeeping: a change is decided before anything is awaited.

Deadlock: a flight remembers which flights the code that it runs is waiting for. Waiting for one from which a chain of
such waits leads back would never end; `would_deadlock` walks that chain (a wait-for graph, as in database lock
managers).
"""

import asyncio
import copy
from collections.abc import Mapping
from contextvars import ContextVar
from enum import Enum
from typing import Any, TypeAlias, final

from asynccache._background import running_loop
from asynccache.backend import Lease
from asynccache.clock import Timer
from asynccache.entry import MISSING, Entry, Missing

__all__ = ["Flight", "Outcome", "Status", "Waiter", "current_flight", "own_exception", "wake"]


class Status(Enum):
    """How a wait for a flight ended."""

    VALUE = "value"  # the factory's
    HIT = "hit"  # found in the remote store
    STALE = "stale"
    ABSENT = "absent"  # a bulk loader had none for this key
    ERROR = "error"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


Outcome: TypeAlias = tuple[Status, Any]
"""A status with the value (or the stale value, or the exception)."""

Waiter: TypeAlias = "asyncio.Future[Outcome]"

current_flight: ContextVar["Flight | None"] = ContextVar("asynccache_flight", default=None)
"""The flight whose factory runs in this context: the factory's own tasks inherit it."""


@final
class Flight:
    """One run of a factory.

    Attributes:
        key: The whole key.
        reason: Why it runs, a closed set: ``miss``, ``refresh`` (asked for), ``background`` (refresh ahead), ``bulk``.
        loop: The event loop that it runs in.
        started_at: Monotonic seconds.
        stamp: Where the order of tag invalidations stood at the start.
        void: Whether a write has overtaken it: its result goes to its waiters and is not stored.
        detached: Whether it goes on though nobody waits.
        landed: Whether the outcome is known.
        outcome: What it was.
        task: The task that runs it; ``None`` until it has begun.
        group: All members of the bulk load that this one belongs to, which share a task; ``None`` for a single load.
        aging: What was found in the remote store past its refresh point: a refresh is to follow.
        stale: The value and life that can stand in while it fails or takes long.
        tags: The whole names of the tags that its terms give, and ``load`` the context that may add more.
        versions: The versions on the remote store that the tags had at the start.
        ceiling: The timer that ends it when it goes on too long unattended.
        waiters: Futures of the callers.
        waits_for: The flights that its factory waits for, each with the number of its waits; ``None`` before the first.
        span: The load's span context, for those who link to it.
        glanced: What the remote store had just now, for the first look; `MISSING` when nobody has looked.
        lease: The right to load it, among all processes, while it is held.
        nested: Whether a factory asked for it.
        traced: Whether its span may be wanted: not when nobody records the call that it departs for.
    """

    # What most flights never change stays on the class: making one is on the path of every miss.
    void = False
    detached = False
    landed = False
    nested = False
    outcome: Outcome | None = None
    task: asyncio.Task[None] | None = None
    group: "list[Flight] | None" = None
    tags: tuple[str, ...] = ()
    load: Any = None
    aging: tuple[Any, Any] | None = None
    versions: Mapping[str, str] | None = None
    ceiling: Timer | None = None
    span: Any = None
    lease: "Lease | None" = None
    glanced: "Entry | Missing | None" = MISSING
    traced = True
    waits_for: "dict[Flight, int] | None" = None

    def __init__(
        self,
        key: str,
        reason: str,
        loop: asyncio.AbstractEventLoop,
        started_at: float,
        stamp: int,
        stale: tuple[Any, Any] | None,
    ) -> None:
        self.key = key
        self.reason = reason
        self.loop = loop
        self.started_at = started_at
        self.stamp = stamp
        self.stale = stale
        self.waiters: dict[Waiter, None] = {}

    def join(self, loop: asyncio.AbstractEventLoop) -> Waiter:
        """A future for one more caller, who may run in another thread's loop."""
        waiter: Waiter = loop.create_future()
        self.waiters[waiter] = None
        if self.landed and self.outcome is not None and self.waiters.pop(waiter, self) is None:
            waiter.set_result(self.outcome)  # it landed on another thread, between the look and the joining
        return waiter

    def land(self, outcome: Outcome, here: asyncio.AbstractEventLoop | None = None) -> None:
        """Hand the outcome to every waiter; only the first one counts.

        Args:
            outcome: What they get.
            here: The running loop, where it is known: perhaps another thread's, whoever writes may end a flight.
        """
        if self.landed:
            return
        self.landed = True
        self.outcome = outcome
        if self.ceiling is not None:
            self.ceiling.cancel()
        waiters = self.waiters
        if waiters:
            here = here or running_loop()
            while waiters:
                wake(waiters.popitem()[0], outcome, here)

    def start_waiting(self, flight: "Flight") -> None:
        """The factory waits for the other flight."""
        if self.waits_for is None:
            self.waits_for = {}
        self.waits_for[flight] = self.waits_for.get(flight, 0) + 1

    def stop_waiting(self, flight: "Flight") -> None:
        """The factory has stopped one of its waits for the other flight."""
        if self.waits_for is None:
            return
        left = self.waits_for.pop(flight, 1) - 1
        if left > 0:
            self.waits_for[flight] = left

    def would_deadlock(self, waiting: "Flight") -> bool:
        """Whether ``waiting`` would wait for itself if its factory waited for this flight."""
        seen: set[Flight] = set()
        ahead = [self]
        while ahead:
            flight = ahead.pop()
            if flight is waiting:
                return True
            if flight not in seen and not flight.landed:
                seen.add(flight)
                ahead.extend(flight.waits_for or ())
                if flight.group is not None:
                    ahead.extend(flight.group)
        return False


def wake(waiter: Waiter, outcome: Outcome, here: asyncio.AbstractEventLoop | None) -> None:
    """Resolve a waiter's future, in whichever loop it lives; one that is gone is left alone."""
    loop = waiter.get_loop()
    try:
        if loop is not here:
            loop.call_soon_threadsafe(wake, waiter, outcome, loop)
        elif not waiter.done():
            waiter.set_result(outcome)
    except RuntimeError:
        return  # its loop is closed: nobody waits there any more


def own_exception(error: BaseException) -> BaseException:
    """An exception for one waiter to raise: a copy where the class can be copied, so that no traceback grows by
    sharing."""
    try:
        own = copy.copy(error)
    except Exception:
        own = error
    if type(own) is not type(error) or own.args != error.args:
        own = error
    if own is not error:
        own.__cause__ = error.__cause__
        own.__context__ = error.__context__
        own.__suppress_context__ = error.__suppress_context__
    return own.with_traceback(error.__traceback__)
