"""Loading: one run of the factory for all who want the key.

The states of a key at a `Loader.get`, and what is done:

1. fresh: returned; past its refresh point one refresh starts in the background.
2. stale, and a load failed less than ``grace_throttle`` ago: the stale value is returned.
3. stale or absent, and a flight is under way: the caller waits for it, as long as the terms allow.
4. stale or absent: a flight departs, in a task of its own and a copy of the caller's context, and the caller waits.
"""

import asyncio
import inspect
import os
import weakref
from contextvars import Context
from types import CoroutineType
from typing import Any, final

from asynccache._bulk import BulkLoader
from asynccache._claims import LEASE_SECONDS, MOST_IN_VAIN, NO_TIME, RENEW_SECONDS, RETRY_SECONDS, lease_seconds
from asynccache._flight import Flight, Outcome, Status, current_flight
from asynccache._flights import CANCELLED, Flights, Ticket
from asynccache._keeping import NO_TOKEN, UNASKED, Keeper, as_entry
from asynccache._seats import Found, Seats
from asynccache.backend import Lease, Leases, Shortcut
from asynccache.clock import stopwatch
from asynccache.entry import MISSING, Entry, Missing
from asynccache.errors import BackendError
from asynccache.load import KEPT, Factory, Load, wants_load
from asynccache.metrics import Timer
from asynccache.policy import Terms
from asynccache.stats import Counters
from asynccache.telemetry import NO_SPAN, CallSpan, Tracing

__all__ = ["Loader"]

_loaders: "weakref.WeakSet[Loader]" = weakref.WeakSet()


@final
class Loader:
    """The loads of one cache.

    Attributes:
        flights: Those under way.
        bulk: Loads many keys at once.
    """

    def __init__(self, seats: Seats, counters: Counters, tracing: Tracing, timer: Timer) -> None:
        self.flights = Flights(seats, counters)
        self._seats = seats
        self._clock = seats.clock
        self._counters = counters
        self._tracing = tracing
        self._timer = timer
        self._keeper = Keeper(seats, self.flights)
        self._glances: set[str] = set()
        self.bulk = BulkLoader(seats, self.flights, self._keeper, counters, tracing, timer)
        _loaders.add(self)

    # What callers ask

    async def get(
        self, key: str, prefix: str, factory: Factory, terms: Terms, span: CallSpan, shortcut: Shortcut | None = None
    ) -> Any:
        """The value of the key, loaded if need be.

        Args:
            key: The whole key.
            prefix: What its namespace puts in front.
            factory: What loads it.
            terms: How.
            span: That of the call.
            shortcut: The remote store's, where it may be asked without a flight: most calls are hits.

        Raises:
            LoadTimeout: The load passed the hard timeout and there is no stale value.
            LoadCancelled: The factory was cancelled.
            RecursiveLoad: The caller is itself part of loading this key.
        """
        seats = self._seats
        now = self._clock.monotonic()
        found = seats.look(key, now)
        if found is not None:
            value, life = found
            if now < life.fresh_until:
                seats.used(key, life, now)
                self._counters.hits += 1
                span.result("negative" if value is None else "hit", "local")
                if now >= life.refresh_at and key not in self.flights.table:
                    self._refresh_ahead(key, prefix, factory, terms, found, now)
                return value
            if self.flights.throttled(key, now):
                self._counters.stale_hits += 1
                span.result("stale", "local")
                return value
        glanced: Entry | Missing | None = MISSING
        if shortcut is not None and terms.plain and not (key in self._glances or key in self.flights.table):
            self._glances.add(key)
            timer, asking = seats.failures.timer, None
            began = stopwatch() if timer.wanted else 0.0
            try:
                asking = shortcut.ask(key)
                if asking is not None:
                    reply = await asking[0]
                    got = shortcut.value(asking, reply)
                    if got is not None:
                        self._counters.hits += 1
                        return got[0]
                    self.flights.check_open()  # the reply of a store that was closed meanwhile is that it is
                    rest, asking = shortcut.rest(key, asking, reply), None
                    glanced = await seats.attempt("get", rest, None, began)
            except BackendError as error:
                self.flights.check_open()
                await seats.failures.taken("get", error)
                glanced = None
            finally:
                self._glances.discard(key)
                if began and asking is not None:
                    timer.record(stopwatch() - began, "get")
            now = self._clock.monotonic()
        return await self._fetch(key, prefix, factory, terms, "miss", found, now, span, glanced)

    async def refresh(self, key: str, prefix: str, factory: Factory, terms: Terms, span: CallSpan) -> Any:
        """The value of a load that began after this call, or together with another such call."""
        now = self._clock.monotonic()
        under_way = self.flights.table.get(key)
        if under_way is not None and under_way.reason != "refresh":
            self.flights.supersede(key)
        return await self._fetch(key, prefix, factory, terms, "refresh", None, now, span)

    async def bypass(self, key: str, prefix: str, factory: Factory) -> Any:
        """What the factory returns, the cache left aside."""
        self._counters.misses += 1
        self._counters.loads += 1
        value = factory(Load(key[len(prefix) :], None, "miss", ())) if wants_load(factory) else factory()
        return await value if inspect.isawaitable(value) else value

    def forget(self) -> None:
        """Start anew in a forked child."""
        self.flights.forget()
        self._glances.clear()
        self._counters.loading = 0
        if self._seats.local is not None:
            self._seats.local.renew_lock()

    # Departing

    async def _fetch(
        self,
        key: str,
        prefix: str,
        factory: Factory,
        terms: Terms,
        reason: str,
        found: Found | None,
        now: float,
        span: CallSpan,
        glanced: Entry | Missing | None = MISSING,
    ) -> Any:
        """Join the key's flight, or have one depart, and wait for what it brings."""
        flights = self.flights
        loop = asyncio.get_running_loop()
        mine = current_flight.get()
        while True:
            flight = flights.under_way(key, terms, loop) if key in flights.table else None
            leading = flight is None
            if flight is None:
                flights.check_open()
                flight = Flight(key, reason, loop, now, self._seats.tags.latest, found)
                flight.traced = span is not NO_SPAN
                if glanced is not MISSING:
                    flight.glanced = glanced
                if not flights.enter(flight, terms):
                    continue
                if mine is None:
                    flights.depart(flight, self._fly(flight, prefix, factory, terms))
                else:
                    flight.nested = True
                    mine.start_waiting(flight)  # its first steps are taken here and now where tasks are eager
                    try:
                        flights.depart(flight, self._fly(flight, prefix, factory, terms))
                    finally:
                        mine.stop_waiting(flight)
            elif mine is not None:
                flights.refuse_deadlock(flight, mine)
            outcome = flight.outcome
            if outcome is None:
                if mine is None and terms.patient:
                    waiter = flight.join(loop)
                    try:
                        outcome = await waiter
                    finally:
                        if waiter in flight.waiters:
                            flights.leave(flight, waiter)
                else:
                    ticket = Ticket(flights, flight, terms, loop, mine)
                    try:
                        outcome = await ticket.waiter
                    finally:
                        ticket.leave()
            if not leading:
                span.link(flight.span)
                if outcome[0] is Status.ABSENT:
                    continue  # a bulk load had nothing for this key: the caller's own factory may
            elif flight.detached and not flight.landed:
                span.link(flight.span)
            return flights.settle(outcome, leading, span)

    def _refresh_ahead(self, key: str, prefix: str, factory: Factory, terms: Terms, found: Found, now: float) -> None:
        if self.flights.full or self.flights.throttled(key, now):
            return
        flight = Flight(key, "background", asyncio.get_running_loop(), now, self._seats.tags.latest, found)
        if self.flights.enter(flight, terms):
            self.flights.detach(flight, terms)
            self.flights.depart(flight, self._fly(flight, prefix, factory, terms))

    # Flying

    async def _fly(self, flight: Flight, prefix: str, factory: Factory, terms: Terms) -> None:
        current_flight.set(flight)
        outcome = CANCELLED
        try:
            if self._seats.remote is None:
                outcome = (Status.VALUE, await self._run(flight, prefix, factory, terms))
            else:
                outcome = await self._bring(flight, prefix, factory, terms)
        except asyncio.CancelledError:
            # Either somebody cancelled this task, or the factory raised it by itself, which is no reason to end as
            # cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self.flights.background.watch_current()
            raise  # the program ends, or the loop is gone
        except BaseException as error:  # reaches the waiters, whatever it is
            outcome = self.flights.failed(flight, terms, error)
        finally:
            self.flights.land(flight, outcome, flight.loop)
            if flight.aging is not None and not flight.void:
                self._refresh_ahead(flight.key, prefix, factory, terms, flight.aging, self._clock.monotonic())
            if flight.task is not None:
                self.flights.background.landed(flight.task)
                flight.task = None  # its context holds the flight: together they would live until the collector runs

    async def _run(self, flight: Flight, prefix: str, factory: Factory, terms: Terms) -> Any:
        """Call the factory and store what it returns."""
        counters = self._counters
        counters.loads += 1
        counters.loading += 1
        load: Load | None = None
        began = stopwatch() if self._timer.wanted else None
        with self._tracing.load(flight.reason, flight.key, terms.template) if flight.traced else NO_SPAN as span:
            if span is not NO_SPAN:
                flight.span = span.context
            try:
                if wants_load(factory):
                    load = Load(
                        flight.key[len(prefix) :],
                        None if flight.stale is None else as_entry(flight.stale, self._clock.epoch, prefix),
                        flight.reason,
                        tuple(tag[len(prefix) :] for tag in terms.tags),
                    )
                    flight.load = load
                    value = factory(load)
                else:
                    value = factory()
                if type(value) is CoroutineType or inspect.isawaitable(value):
                    value = await value
            except BaseException as error:
                if not (flight.landed and isinstance(error, asyncio.CancelledError)):
                    counters.load_failures += 1  # a load that was given up is no failure, or counted as one already
                raise
            finally:
                counters.loading -= 1
                if began is not None:
                    self._timer.record(stopwatch() - began, flight.reason)
            if value is KEPT and load is not None and load.stale is not None:
                value = load.stale.value  # also when a write has taken it from the flight meanwhile
            if (
                not flight.void
                and (load is None or not load.skipped)
                and (terms.cache_if is None or terms.cache_if(value))
            ):
                if self._seats.remote is None:
                    self._keeper.keep_local(flight, prefix, value, terms, load)
                else:
                    await self._keeper.keep_remote(flight, prefix, value, terms, load)
        return value

    # One load among all processes

    async def _bring(self, flight: Flight, prefix: str, factory: Factory, terms: Terms) -> Outcome:
        """Look in the remote store, and load if need be, as one process of all where that can be had."""
        seats = self._seats
        remote = seats.remote
        if remote is None:
            return CANCELLED
        ready = await self._look_remote(flight, terms)
        if ready is not None:
            return ready
        leases = remote.leases
        lease: Lease | None = None
        seconds = lease_seconds(len(self.flights.table))
        if leases is not None and terms.lock == "shared":
            lease, ready = await self._acquire(leases, flight, terms, seconds)
            if ready is not None:
                return ready
        if terms.tags and seats.remote_tags is not None:
            now = self._clock.monotonic() + self._clock.epoch
            flight.versions = await seats.attempt("get_many", seats.remote_tags.versions(terms.tags, now), None)
        flight.lease = lease
        if lease is None or leases is None or lease.token in (NO_TOKEN, UNASKED):
            return (Status.VALUE, await self._run(flight, prefix, factory, terms))
        renewing = self.flights.background.start(self._renew(leases, lease, seconds), Context())
        try:
            return (Status.VALUE, await self._run(flight, prefix, factory, terms))
        finally:
            renewing.cancel()
            if flight.lease is not None:
                leases.abandon(lease)

    async def _look_remote(self, flight: Flight, terms: Terms) -> Outcome | None:
        entry, flight.glanced = flight.glanced, MISSING
        if entry is None:
            return None
        seen = None if entry is MISSING else entry
        found = await self._seats.fetch(flight.key, terms.shape, terms.refresh_ahead, slides=terms.slides, entry=seen)
        now = self._clock.monotonic()
        if found is None or flight.reason == "refresh":
            return None
        value, life = found
        if now < life.fresh_until:
            if now >= life.refresh_at:
                if flight.reason == "background":
                    return None
                flight.aging = found
            if terms.sliding:
                self._seats.used(flight.key, life, now)
            return (Status.HIT, value)
        flight.stale = found
        return (Status.STALE, value) if self.flights.throttled(flight.key, now) else None

    async def _acquire(
        self, leases: Leases, flight: Flight, terms: Terms, seconds: float
    ) -> tuple[Lease | None, Outcome | None]:
        """The lease, or the value that its holder has stored meanwhile; when there is none to be had, one that proves
        nothing: what is loaded is not stored, as nobody knows what others write meanwhile."""
        failed, elsewhere = Lease(flight.key, UNASKED), Lease(flight.key, NO_TOKEN)
        waited, in_vain = False, 0
        while True:
            lease = await self._seats.attempt("lease", leases.acquire(flight.key, ttl=seconds), failed)
            if lease is failed:
                return failed, None
            if lease is None and flight.nested and waited:
                # What waits for this load holds a lease of its own, which its holder may be waiting for: one more load
                # is better than two that wait for each other.
                return elsewhere, None
            if lease is None:
                waited, began = True, stopwatch()
                ended = await self._seats.attempt("wait", leases.wait(flight.key, timeout=LEASE_SECONDS), failed)
                in_vain = in_vain + 1 if stopwatch() - began < NO_TIME else 0
                if ended is failed:
                    return failed, None
                if in_vain > MOST_IN_VAIN:  # a store that says both that it is held and that not
                    return elsewhere, None
            try:
                ready = await self._look_remote(flight, terms)
            except BaseException:
                if lease is not None:
                    leases.abandon(lease)
                raise
            if ready is not None:
                if lease is not None:
                    leases.abandon(lease)
                return None, ready
            if lease is not None:
                return lease, None

    async def _renew(self, leases: Leases, lease: Lease, seconds: float) -> None:
        """Hold the lease until it is void; a store that fails is asked again soon, before the lease lapses."""
        held: bool | None = True
        while held is not False:
            await self._pause(RENEW_SECONDS * seconds / LEASE_SECONDS if held else RETRY_SECONDS)
            try:
                held = await self._seats.attempt("lease", leases.renew(lease, ttl=seconds), None)
            except BackendError:  # nobody waits for this
                held = None

    async def _pause(self, duration: float) -> None:
        passed = asyncio.Event()
        timer = self._clock.call_later(duration, passed.set)
        try:
            await passed.wait()
        finally:
            timer.cancel()


def _forget_after_fork() -> None:
    for loader in list(_loaders):
        loader.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
