"""The flights in the air: which there are, who waits for them, and how they end.

A write to a key, by whomever, takes its flight out of the table and marks it void: the flight's waiters still get what
it brings, nothing of it is stored, and whoever comes later starts another one.

A flight that nobody waits for is cancelled, unless it is *detached*: after a timeout, or from the start when it
refreshes ahead. A detached flight ends by itself or is given up when its ceiling is reached, whether or not it heeds
its cancellation.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Final, final

from asynccache._copying import own_copy
from asynccache._flight import Flight, Outcome, Status, Waiter, own_exception, wake
from asynccache._seats import Seats
from asynccache.clock import Clock, Timer
from asynccache.errors import CacheClosed, EncodeError, LoadCancelled, LoadTimeout, RecursiveLoad
from asynccache.policy import Terms
from asynccache.stats import Counters
from asynccache.telemetry import NO_SPAN, CallSpan

__all__ = ["CANCELLED", "Flights", "Journal", "Ticket"]

CANCELLED: Final[Outcome] = (Status.CANCELLED, None)
_TIMEOUT: Final[Outcome] = (Status.TIMEOUT, None)
_MOST_DETACHED: Final = 1_000  # past that, a timeout cancels the load instead of detaching it
_MOST_JOURNALED: Final = 10_000  # keys written during one bulk load, before all are taken for written
_MOST_THROTTLES: Final = 10_000  # records of failed loads, before those that are over are dropped


@final
class Flights:
    """The flights of one cache.

    Attributes:
        table: Those that a later caller of the key joins.
        background: Their tasks.
        clock: Where their limits come from.
    """

    def __init__(self, seats: Seats, counters: Counters) -> None:
        self.table: dict[str, Flight] = {}
        self.background = seats.background
        self.clock: Clock = seats.clock
        self._seats = seats
        self._counters = counters
        self._loners: dict[str, list[Flight]] = {}  # of callers who share with nobody
        self._retry_at: dict[str, float] = {}
        self._journals: list[Journal] = []
        self._detached = 0
        self._closed = False

    def forget(self) -> None:
        """Start anew in a forked child: what flies belongs to the parent."""
        self.table.clear()
        self._loners.clear()
        self._detached = 0
        self.background.forget()

    def end(self) -> None:
        """End every flight: those who wait are told, nothing is stored."""
        self._closed = True
        flights = [*self.table.values(), *(loner for loners in self._loners.values() for loner in loners)]
        self.supersede_where(lambda _: True)
        self.background.end()
        for flight in flights:
            self.land(flight, CANCELLED)

    async def aclose(self) -> None:
        """End every flight, and return when they have ended."""
        self.end()
        await self.background.aclose()

    # Departing and joining

    def under_way(self, key: str, terms: Terms, loop: asyncio.AbstractEventLoop) -> Flight | None:
        """The key's flight, if it can be joined."""
        flight = self.table.get(key)
        if flight is None or terms.lock == "none":
            return None
        if (flight.loop is not loop and not flight.loop.is_running()) or (flight.task and flight.task.done()):
            self.supersede(key)  # its loop has ended, or its task before it began: it will never land
            return None
        return flight

    def refuse_deadlock(self, flight: Flight, mine: Flight | None) -> None:
        """Refuse to wait for a flight that waits for the caller's own.

        Raises:
            RecursiveLoad: It would never end.
        """
        if mine is not None and not mine.landed and flight.would_deadlock(mine):
            raise RecursiveLoad("a factory waits, directly or through others, for the key that it is loading")

    def check_open(self) -> None:
        """Refuse to start anything for a closed cache.

        Raises:
            CacheClosed: It is closed.
        """
        if self._closed:
            raise CacheClosed("the cache is closed")

    def enter(self, flight: Flight, terms: Terms) -> bool:
        """Put the flight into the table; ``False`` when a flight from another thread was there a moment earlier."""
        if terms.tags:
            flight.tags = terms.tags
        if terms.lock == "none" and flight.reason != "background":
            self._loners.setdefault(flight.key, []).append(flight)
            return True
        return self.table.setdefault(flight.key, flight) is flight

    def depart(self, flight: Flight, work: Coroutine[Any, Any, None]) -> None:
        """Start the work of a flight, which lands it, in a copy of the caller's context."""
        task = self.background.launch(work, copy_context(), flight.loop, lambda task: self._gone([flight], task))
        if not flight.landed:  # a landed flight and the context of its task would hold each other
            flight.task = task

    def depart_together(self, flights: list[Flight], work: Coroutine[Any, Any, None]) -> None:
        """The same for the flights of one bulk load."""
        loop = flights[0].loop
        task = self.background.launch(work, copy_context(), loop, lambda task: self._gone(flights, task))
        for flight in flights:
            if not flight.landed:
                flight.task = task

    def _gone(self, flights: list[Flight], task: asyncio.Task[None]) -> None:
        """Their task has ended, perhaps before it had begun: then nobody has told those who wait."""
        self.background.landed(task)
        for flight in flights:
            flight.task = None
            self.land(flight, CANCELLED)

    @property
    def full(self) -> bool:
        """Whether no refresh may start: so many flights are detached already, or the cache is closed."""
        return self._closed or self._detached >= _MOST_DETACHED

    # Overtaking

    def supersede(self, key: str) -> None:
        """Make the key's load void, because of a write: what it brings is not stored, and later callers start
        another."""
        for journal in self._journals:
            journal.note(key)
        flight = self.table.pop(key, None)
        if flight is not None:
            flight.void = True
            flight.stale = None  # what was removed or replaced cannot stand in either
        if self._loners:
            for loner in self._loners.pop(key, ()):
                loner.void = True
                loner.stale = None
        if self._retry_at:
            self._retry_at.pop(key, None)

    def supersede_where(self, matches: Callable[[str], bool]) -> None:
        """The same for every load of a key that matches."""
        for journal in self._journals:
            journal.cleared.append(matches)
        for key in [key for key in (*self.table, *self._loners, *self._retry_at) if matches(key)]:
            self.supersede(key)

    @contextmanager
    def journal(self) -> Iterator["Journal"]:
        """What is written meanwhile: a bulk load may bring values of keys that have no flight."""
        journal = Journal()
        self._journals.append(journal)
        try:
            yield journal
        finally:
            self._journals.remove(journal)

    def supersede_tagged(self, tags: Collection[str], prefix: str) -> None:
        """The same for every load of an entry that has, or replaces one that has, one of the tags."""
        marked = set(tags)
        for key, flight in list(self.table.items()):
            late = () if flight.load is None else (prefix + tag for tag in flight.load.tags)
            stale = () if flight.stale is None else flight.stale[1].tags
            if not marked.isdisjoint((*flight.tags, *late, *stale)):
                self.supersede(key)

    # Landing

    def failed(self, flight: Flight, terms: Terms, error: BaseException) -> Outcome:
        """What the waiters get when the factory failed: the stale value where there is one, else the error."""
        if flight.stale is None or not isinstance(error, Exception):
            return (Status.ERROR, error)
        now = self.clock.monotonic()
        self.throttle(flight.key, now, now + terms.grace_throttle)
        self._seats.failures.report("a load failed and the value at hand stands in", error)
        return (Status.STALE, flight.stale[0])

    def land(self, flight: Flight, outcome: Outcome, here: asyncio.AbstractEventLoop | None = None) -> None:
        """Take the flight out of the table and hand its outcome to all who wait; a second call does nothing."""
        if flight.landed:
            return
        if self.table.get(flight.key) is flight:
            del self.table[flight.key]
        elif self._loners:
            loners = self._loners.get(flight.key)
            if loners is not None and flight in loners:
                loners.remove(flight)
                if not loners:
                    del self._loners[flight.key]
        if flight.detached:
            self._detached -= 1
        flight.land(outcome, here)

    def detach(self, flight: Flight, terms: Terms) -> None:
        """Let the flight go on though nobody waits, but not for ever."""
        if flight.detached or flight.landed:
            return
        flight.detached = True
        self._detached += 1
        if self._detached > _MOST_DETACHED:
            self._give_up(flight, terms)
        else:
            flight.ceiling = self.clock.call_later(terms.background_timeout, lambda: self._give_up(flight, terms))

    def leave(self, flight: Flight, waiter: Waiter) -> None:
        """A caller stops waiting. When nobody is left the flight is cancelled, unless it goes on in the background or
        for others of its bulk load."""
        if flight.waiters.pop(waiter, flight) is not None or flight.landed or flight.detached or flight.waiters:
            return
        members = flight.group or [flight]
        if any(member.waiters or member.detached for member in members if not member.landed):
            return
        for member in members:
            member.void = True
            self.land(member, CANCELLED)
        self._cancel(flight)

    def _give_up(self, flight: Flight, terms: Terms) -> None:
        """End a flight that went on too long: its key is free at once, whether or not the factory heeds its
        cancellation."""
        if flight.landed:
            return
        flight.void = True
        self._counters.load_failures += 1
        stale = flight.stale
        if stale is None:
            self.land(flight, _TIMEOUT)
        else:
            now = self.clock.monotonic()
            self.throttle(flight.key, now, now + terms.grace_throttle)
            self.land(flight, (Status.STALE, stale[0]))
        if all(member.landed for member in flight.group or ()):
            self._cancel(flight)

    def _cancel(self, flight: Flight) -> None:
        if flight.task is not None:
            self.background.cancel(flight.task)

    def settle(self, outcome: Outcome, leading: bool, span: CallSpan = NO_SPAN) -> Any:
        """The value that the outcome brings one caller, or its exception."""
        status, payload = outcome
        counters = self._counters
        if status is Status.VALUE and leading and span is NO_SPAN:  # most misses
            counters.misses += 1
            return payload
        if status is Status.HIT:
            counters.hits += 1
            result = "negative" if payload is None else "hit"
        elif status is Status.STALE:
            counters.stale_hits += 1
            result = "stale"
        else:
            counters.misses += 1
            if not leading:
                counters.coalesced += 1
            result = "error" if status is not Status.VALUE else "miss" if leading else "coalesced"
        span.result(result, "remote" if status is Status.HIT else None)  # a local hit has no flight
        if status is Status.ERROR:
            raise payload if leading else own_exception(payload)
        if status is Status.TIMEOUT:
            raise LoadTimeout("the load passed its hard timeout, and there is no stale value")
        if status is Status.CANCELLED or status is Status.ABSENT:
            raise LoadCancelled("the load was cancelled before it had a value")
        return payload if leading else self._own(payload)

    def _own(self, value: Any) -> Any:
        """The value for one of several callers: a copy of his own where the store keeps copies."""
        if self._seats.local is None or not self._seats.local.copies:
            return value
        try:
            return own_copy(value)
        except EncodeError:
            return value  # it was not stored either

    # Throttling

    def throttled(self, key: str, now: float) -> bool:
        """Whether the key's last load failed so lately that a stale value is returned without another try."""
        return bool(self._retry_at) and now < self._retry_at.get(key, now)

    def throttle(self, key: str, now: float, until: float) -> None:
        """Note that a load failed."""
        if len(self._retry_at) >= _MOST_THROTTLES:
            self._retry_at = {key: until for key, until in self._retry_at.items() if now < until}
        self._retry_at[key] = until

    def unthrottle(self, key: str) -> None:
        """Note that a load succeeded."""
        if self._retry_at:
            self._retry_at.pop(key, None)


@final
class Journal:
    """The keys that were written since it was begun.

    Attributes:
        cleared: What tells the keys that were cleared.
    """

    __slots__ = ("_keys", "cleared")

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self.cleared: list[Callable[[str], bool]] = []

    def note(self, key: str) -> None:
        """Note a write; past a bound, of every key."""
        if len(self._keys) < _MOST_JOURNALED:
            self._keys.add(key)
        elif not self.cleared:
            self.cleared.append(lambda _: True)

    def has(self, key: str) -> bool:
        """Whether the key may have been written."""
        return key in self._keys or any(matches(key) for matches in self.cleared)


@final
class Ticket:
    """One caller's wait for a flight, with its limits.

    Attributes:
        waiter: What to await; it gives the outcome.
    """

    __slots__ = ("_flight", "_flights", "_mine", "_timers", "waiter")

    def __init__(
        self, flights: Flights, flight: Flight, terms: Terms, loop: asyncio.AbstractEventLoop, mine: Flight | None
    ) -> None:
        self._flights = flights
        self._flight = flight
        self._mine = mine
        self._timers: list[Timer] | None = None
        self.waiter: Waiter = flight.join(loop)
        if mine is not None:
            mine.start_waiting(flight)
        if (terms.soft_timeout is not None or terms.hard_timeout is not None) and not flight.landed:
            self._limit(terms, loop)

    def leave(self) -> None:
        """Stop waiting; a second call does nothing."""
        flight = self._flight
        if self._timers is not None:
            for timer in self._timers:
                timer.cancel()
        if self._mine is not None:
            self._mine.stop_waiting(flight)
            self._mine = None
        self._flights.leave(flight, self.waiter)

    def _limit(self, terms: Terms, loop: asyncio.AbstractEventLoop) -> None:
        flight, clock = self._flight, self._flights.clock
        self._timers = []
        if terms.soft_timeout is not None:
            left = flight.started_at + terms.soft_timeout - clock.monotonic()
            if left > 0:
                self._timers.append(clock.call_later(left, lambda: self._pass(terms, loop, hard=False)))
            else:
                self._pass(terms, loop, hard=False)
        if terms.hard_timeout is not None:
            self._timers.append(clock.call_later(terms.hard_timeout, lambda: self._pass(terms, loop, hard=True)))

    def _pass(self, terms: Terms, loop: asyncio.AbstractEventLoop, *, hard: bool) -> None:
        """The caller has waited long enough: the stale value, if there is one, else after the hard timeout an error."""
        stale = self._flight.stale
        if stale is None and not hard:
            return
        self._flights.detach(self._flight, terms)
        wake(self.waiter, _TIMEOUT if stale is None else (Status.STALE, stale[0]), loop)
