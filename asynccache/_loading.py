"""Loading: one run of the factory for all who want the key.

The states of a key at a `Loader.get`, and what is done:

1. fresh: returned; past its refresh point one refresh starts in the background.
2. stale, and a load failed less than ``grace_throttle`` ago: the stale value is returned.
3. stale or absent, and a flight is under way: the caller waits for it, as long as the terms allow.
4. stale or absent: a flight departs, in a task of its own and a copy of the caller's context, and the caller waits.

A write to the key, by whomever, takes its flight out of the table and marks it void: the flight's waiters still get
what it brings, nothing of it is stored, and whoever comes later starts another one.
"""

import asyncio
import inspect
import os
import random
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context, copy_context
from types import CoroutineType, FunctionType, MethodType
from typing import Any, Final, TypeAlias, final

from asynccache._background import Background
from asynccache._flight import Flight, Outcome, Status, Waiter, current_flight, own_exception, wake
from asynccache._seats import Found, Seats
from asynccache.backend import Lease, Leases
from asynccache.backends.memory import Life
from asynccache.clock import Timer
from asynccache.duration import seconds
from asynccache.entry import Entry
from asynccache.errors import CacheClosed, EncodeError, LoadCancelled, LoadTimeout, RecursiveLoad
from asynccache.load import KEPT, Load
from asynccache.policy import Terms
from asynccache.stats import Counters
from asynccache.telemetry import CallSpan, Tracing

__all__ = ["BulkFactory", "Factory", "Loader"]

Factory: TypeAlias = Callable[..., Any]
"""An async or sync callable of nothing, or of a `Load`."""

BulkFactory: TypeAlias = Callable[[list[Any]], Any]
"""An async or sync callable of the list of missing keys, that returns a mapping of those it has."""

_MOST_DETACHED: Final = 1_000  # loads that nobody waits for; past that, a timeout cancels instead of detaching
_MOST_THROTTLES: Final = 10_000  # records of failed loads, before those that are over are dropped
_LEASE_SECONDS: Final = 3.0
_RENEW_SECONDS: Final = 1.0
_CANCELLED: Final[Outcome] = (Status.CANCELLED, None)
_TIMEOUT: Final[Outcome] = (Status.TIMEOUT, None)
_ABSENT: Final[Outcome] = (Status.ABSENT, None)

_loaders: "weakref.WeakSet[Loader]" = weakref.WeakSet()


@final
class Loader:
    """The loads of one cache."""

    def __init__(self, seats: Seats, counters: Counters, tracing: Tracing) -> None:
        self.flights: dict[str, Flight] = {}
        self.background = Background()
        self._seats = seats
        self._clock = seats.clock
        self._counters = counters
        self._tracing = tracing
        self._loners: dict[str, list[Flight]] = {}
        self._retry_at: dict[str, float] = {}
        self._detached = 0
        self._closed = False
        _loaders.add(self)

    # What callers ask

    async def get(self, key: str, prefix: str, factory: Factory, terms: Terms, span: CallSpan) -> Any:
        """The value of the key, loaded if need be.

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
                self.used(key, life, now)
                self._counters.hits += 1
                span.result("negative" if value is None else "hit", "local")
                if now >= life.refresh_at and key not in self.flights and not self._throttled(key, now):
                    self._refresh_ahead(key, prefix, factory, terms, found, now)
                return value
            if self._throttled(key, now):
                self._counters.stale_hits += 1
                span.result("stale", "local")
                return value
        return await self._fetch(key, prefix, factory, terms, "miss", found, now, span)

    async def refresh(self, key: str, prefix: str, factory: Factory, terms: Terms, span: CallSpan) -> Any:
        """The value of a load that began after this call, or together with another such call."""
        now = self._clock.monotonic()
        under_way = self.flights.get(key)
        if under_way is not None and under_way.reason != "refresh":
            self.supersede(key)
        return await self._fetch(key, prefix, factory, terms, "refresh", None, now, span)

    async def bypass(self, key: str, prefix: str, factory: Factory) -> Any:
        """What the factory returns, the cache left aside."""
        self._counters.misses += 1
        self._counters.loads += 1
        value = factory(Load(key[len(prefix) :], None, "miss", ())) if wants_load(factory) else factory()
        return await value if inspect.isawaitable(value) else value

    async def get_many(
        self,
        keys: Sequence[Any],
        full: Mapping[Any, str],
        prefix: str,
        factory: BulkFactory,
        terms: Terms,
        mode: str | None = None,
    ) -> dict[Any, Any]:
        """The values of the keys, in their order; one call of the factory loads those that nobody else is loading.

        Args:
            keys: What the factory is to be called with.
            full: The whole key of each.
            prefix: What their keys begin with.
            factory: Loads the missing ones.
            terms: How.
            mode: ``"bypass"`` to leave the cache aside, ``"refresh"`` to load all anew.
        """
        if mode == "bypass":
            loaded = factory(list(dict.fromkeys(keys)))
            return _in_order(keys, await loaded if inspect.isawaitable(loaded) else loaded)
        now = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        mine = current_flight.get()
        ready: dict[Any, Outcome] = {}
        joined: dict[Any, Flight] = {}
        missing: dict[Any, Found | None] = {}
        aging: dict[Any, Found] = {}
        for key in dict.fromkeys(keys):
            if mode == "refresh":
                self.supersede(full[key])
            found = None if mode == "refresh" else self._seats.look(full[key], now)
            flight = self._under_way(full[key], terms, loop)
            if found is not None and now < found[1].fresh_until:
                self.used(full[key], found[1], now)
                ready[key] = (Status.HIT, found[0])
                if now >= found[1].refresh_at and flight is None and not self._throttled(full[key], now):
                    aging[key] = found
            elif found is not None and self._throttled(full[key], now):
                ready[key] = (Status.STALE, found[0])
            elif flight is not None:
                self._refuse_deadlock(flight, mine)
                joined[key] = flight
            else:
                missing[key] = found
        if aging:
            self._depart_many(aging, full, prefix, factory, terms, "background", now)
        flights = self._depart_many(missing, full, prefix, factory, terms, "refresh" if mode else "bulk", now, mine)
        tickets = {key: _Ticket(self, flight, terms, mine) for key, flight in (joined | flights).items()}
        try:
            for key, ticket in tickets.items():
                ready[key] = await ticket.outcome()
        finally:
            for ticket in tickets.values():
                ticket.leave()
        values = {}
        for key in dict.fromkeys(keys):
            outcome = ready[key]
            if outcome[0] is Status.ABSENT:
                self._counters.misses += 1
            else:
                values[key] = self._settle(outcome, key in flights, None)
        return values

    def supersede(self, key: str) -> None:
        """Make the key's load void, because of a write: what it brings is not stored, and later callers start
        another."""
        flight = self.flights.pop(key, None)
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
        for key in [key for key in (*self.flights, *self._loners, *self._retry_at) if matches(key)]:
            self.supersede(key)

    def supersede_tagged(self, tags: Collection[str], prefix: str) -> None:
        """The same for every load of an entry that has, or replaces one that has, one of the tags."""
        marked = set(tags)
        for key, flight in list(self.flights.items()):
            late = () if flight.load is None else (prefix + tag for tag in flight.load.tags)
            stale = () if flight.stale is None else flight.stale[1].tags
            if not marked.isdisjoint((*flight.tags, *late, *stale)):
                self.supersede(key)

    def used(self, key: str, life: Life, now: float) -> None:
        """Count a use of an entry of the local seat: for eviction, and for a ttl that slides."""
        local = self._seats.local
        if local is None:
            return
        if life.sliding is not None:
            grace = life.expires_at - life.fresh_until
            life.fresh_until = now + life.sliding
            life.expires_at = life.fresh_until + grace
        local.used(key)

    def forget(self) -> None:
        """Start anew in a forked child: what flies belongs to the parent."""
        self.flights.clear()
        self._loners.clear()
        self._detached = 0
        self.background.forget()
        if self._seats.local is not None:
            self._seats.local.renew_lock()

    async def aclose(self) -> None:
        """End every load, and return when they have ended."""
        self._closed = True
        self.supersede_where(lambda _: True)
        await self.background.aclose()

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
    ) -> Any:
        loop = asyncio.get_running_loop()
        mine = current_flight.get()
        while True:
            flight = self._under_way(key, terms, loop)
            leading = flight is None
            if flight is None:
                flight = Flight(key, reason, loop, now, self._seats.tags.latest, found)
                if mine is not None:
                    mine.waits_for[flight] = mine.waits_for.get(flight, 0) + 1
                try:
                    self._depart(flight, terms, self._fly(flight, prefix, factory, terms), copy_context())
                finally:
                    if mine is not None:
                        mine.stop_waiting(flight)
            else:
                self._refuse_deadlock(flight, mine)
            if flight.outcome is None:
                ticket = _Ticket(self, flight, terms, mine)
                try:
                    outcome = await ticket.outcome()
                finally:
                    ticket.leave()
            else:
                outcome = flight.outcome
            if not leading:
                span.link(flight.span)
            if outcome[0] is Status.ABSENT and not leading:
                continue  # a bulk load had nothing for this key: the caller's own factory may
            try:
                return self._settle(outcome, leading, span)
            finally:
                if leading and flight.detached and not flight.landed:
                    span.link(flight.span)

    def _under_way(self, key: str, terms: Terms, loop: asyncio.AbstractEventLoop) -> Flight | None:
        """The key's flight, if it can be joined."""
        flight = self.flights.get(key)
        if flight is None or terms.lock == "none":
            return None
        if flight.loop is not loop and not flight.loop.is_running():
            self.supersede(key)  # its loop has ended, it will never land
            return None
        return flight

    def _refuse_deadlock(self, flight: Flight, mine: Flight | None) -> None:
        if mine is not None and not mine.landed and flight.would_deadlock(mine):
            raise RecursiveLoad("a factory waits, directly or through others, for the key that it is loading")

    def _depart(self, flight: Flight, terms: Terms, work: Any, context: Context) -> None:
        if self._closed:
            work.close()
            raise CacheClosed("the cache is closed")
        if terms.lock == "none" and flight.reason == "miss":
            self._loners.setdefault(flight.key, []).append(flight)
        else:
            self.flights[flight.key] = flight
        flight.tags = terms.tags
        flight.task = self.background.start(work, context)

    def _refresh_ahead(self, key: str, prefix: str, factory: Factory, terms: Terms, found: Found, now: float) -> None:
        if self._detached >= _MOST_DETACHED:
            return
        flight = Flight(key, "background", asyncio.get_running_loop(), now, self._seats.tags.latest, found)
        self.detach(flight, terms)
        self._depart(flight, terms, self._fly(flight, prefix, factory, terms), copy_context())

    def _depart_many(
        self,
        missing: Mapping[Any, Found | None],
        full: Mapping[Any, str],
        prefix: str,
        factory: BulkFactory,
        terms: Terms,
        reason: str,
        now: float,
        mine: Flight | None = None,
    ) -> dict[Any, Flight]:
        if not missing:
            return {}
        if self._closed:
            raise CacheClosed("the cache is closed")
        loop = asyncio.get_running_loop()
        stamp = self._seats.tags.latest
        flights = {key: Flight(full[key], reason, loop, now, stamp, found) for key, found in missing.items()}
        group = list(flights.values())
        for flight in group:
            flight.group = group
            flight.tags = terms.tags
            self.flights[flight.key] = flight
            if reason == "background":
                self.detach(flight, terms)
            if mine is not None:
                mine.waits_for[flight] = mine.waits_for.get(flight, 0) + 1
        task = self.background.start(self._fly_many(flights, prefix, factory, terms), copy_context())
        for flight in group:
            flight.task = task
            if mine is not None:
                mine.stop_waiting(flight)
        return flights

    # Flying

    async def _fly(self, flight: Flight, prefix: str, factory: Factory, terms: Terms) -> None:
        current_flight.set(flight)
        outcome = _CANCELLED
        try:
            if self._seats.remote is None:
                outcome = (Status.VALUE, await self._run(flight, prefix, factory, terms, None))
            else:
                outcome = await self._bring(flight, prefix, factory, terms)
        except asyncio.CancelledError:
            # Either somebody cancelled this task, or the factory raised it by itself, which is no reason to end as
            # cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the program ends, or the loop is gone
        except BaseException as error:  # reaches the waiters, whatever it is
            outcome = self._failed(flight, terms, error)
        finally:
            self._land(flight, outcome)

    async def _run(self, flight: Flight, prefix: str, factory: Factory, terms: Terms, lease: Lease | None) -> Any:
        """Call the factory and store what it returns."""
        counters = self._counters
        counters.loads += 1
        load: Load | None = None
        detached = flight.reason == "background"
        name = "cache.refresh" if detached else "cache.load"
        began = self._clock.monotonic()
        with self._tracing.load(name, flight.reason, flight.key, detached=detached) as span:
            flight.span = span.context
            try:
                if wants_load(factory):
                    load = Load(
                        flight.key[len(prefix) :],
                        self._as_entry(flight.stale),
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
                self._tracing.loaded(self._clock.monotonic() - began, flight.reason)
            if value is KEPT and flight.stale is not None:
                value = flight.stale[0]
            if (
                not flight.void
                and (load is None or not load.skipped)
                and (terms.cache_if is None or terms.cache_if(value))
            ):
                await self._keep(flight, prefix, value, terms, load, lease)
        return value

    async def _keep(
        self, flight: Flight, prefix: str, value: Any, terms: Terms, load: Load | None, lease: Lease | None
    ) -> None:
        """Store a loaded value, unless a write has overtaken the load."""
        seats = self._seats
        now = self._clock.monotonic()
        if self._retry_at:
            self._retry_at.pop(flight.key, None)
        if terms.ordinary and load is None:
            ttl, life = terms.ttl, None
        else:
            ttl, life = self._terms_of(flight, prefix, value, terms, load, now)
            if life is not None and not seats.tags.valid(life.tags, flight.stamp):
                return
        if seats.remote is not None:
            if life is None:
                life = Life(now) if ttl is None else Life(now, now + ttl, now + ttl)
            if not await self._keep_remote(flight, value, life, lease):
                return
        if seats.local is not None:
            with seats.local.guard():
                if not flight.void:
                    seats.local.put(flight.key, value, now, ttl, life)

    async def _keep_remote(self, flight: Flight, value: Any, life: Life, lease: Lease | None) -> bool:
        seats = self._seats
        if seats.remote is None:
            return False
        if flight.versions is not None and set(life.tags) <= set(flight.versions):
            life.versions = {tag: flight.versions[tag] for tag in life.tags}
        try:
            entry = await seats.entry(value, life)
            if entry is None or flight.void:
                return False
            if lease is not None and seats.remote.leases is not None:
                return await seats.attempt("commit", seats.remote.leases.commit(lease, entry), False)
            return await seats.attempt("set", seats.remote.set(flight.key, entry), False)
        except EncodeError as error:
            seats.report("a loaded value could not be stored", error)
            return False

    def _terms_of(
        self, flight: Flight, prefix: str, value: Any, terms: Terms, load: Load | None, now: float
    ) -> tuple[float | None, Life | None]:
        """The ttl of a loaded value, and its life where a ttl does not say all."""
        ttl = terms.ttl
        if load is not None and load.ttl_given:
            ttl = load.ttl
        elif value is None and terms.negative_ttl is not None:
            ttl = terms.negative_ttl
        elif terms.ttl_of is not None:
            given = terms.ttl_of(value)
            ttl = None if given is None else seconds(given, name="ttl")
        grace = terms.grace if load is None or not load.grace_given else load.grace or 0.0
        names = terms.tags if load is None else tuple(prefix + tag for tag in load.tags)
        return life_of(ttl, grace, names, terms, now, flight.stamp)

    async def _bring(self, flight: Flight, prefix: str, factory: Factory, terms: Terms) -> Outcome:
        """Look in the remote store, and load if need be, as one process of all where that can be had."""
        seats = self._seats
        remote = seats.remote
        if remote is None:
            return _CANCELLED
        ready = await self._look_remote(flight, terms)
        if ready is not None:
            return ready
        leases = remote.leases
        lease: Lease | None = None
        if leases is not None and terms.lock == "shared":
            lease, ready = await self._acquire(leases, flight, terms)
            if ready is not None:
                return ready
        if terms.tags and seats.remote_tags is not None:
            now = self._clock.monotonic() + self._clock.epoch
            flight.versions = await seats.attempt("get_many", seats.remote_tags.versions(terms.tags, now), None)
        if lease is None or leases is None:
            return (Status.VALUE, await self._run(flight, prefix, factory, terms, None))
        renewing = self.background.start(self._renew(leases, lease), Context())
        try:
            return (Status.VALUE, await self._run(flight, prefix, factory, terms, lease))
        finally:
            renewing.cancel()
            self.background.start(self._release(leases, lease), Context())

    async def _look_remote(self, flight: Flight, terms: Terms) -> Outcome | None:
        found = await self._seats.fetch(flight.key, terms.refresh_ahead)
        now = self._clock.monotonic()
        if found is None or flight.reason == "refresh":
            return None
        value, life = found
        if now < life.fresh_until:
            return (Status.HIT, value) if flight.reason != "background" or now < life.refresh_at else None
        flight.stale = found
        return (Status.STALE, value) if self._throttled(flight.key, now) else None

    async def _acquire(self, leases: Leases, flight: Flight, terms: Terms) -> tuple[Lease | None, Outcome | None]:
        """The lease; or the value that its holder has stored meanwhile; or neither, when the store cannot say."""
        failed = Lease(flight.key, "")
        while True:
            lease = await self._seats.attempt("lease", leases.acquire(flight.key, ttl=_LEASE_SECONDS), failed)
            if lease is failed:
                return None, None
            if lease is None:
                await self._seats.attempt("lease", leases.wait(flight.key, timeout=_LEASE_SECONDS), None)
            ready = await self._look_remote(flight, terms)
            if ready is not None:
                if lease is not None:
                    await self._release(leases, lease)
                return None, ready
            if lease is not None:
                return lease, None

    async def _renew(self, leases: Leases, lease: Lease) -> None:
        held = True
        while held:
            await self._pause(_RENEW_SECONDS)
            held = await self._seats.attempt("lease", leases.renew(lease, ttl=_LEASE_SECONDS), True)

    async def _pause(self, duration: float) -> None:
        passed = asyncio.Event()
        timer = self._clock.call_later(duration, passed.set)
        try:
            await passed.wait()
        finally:
            timer.cancel()

    async def _release(self, leases: Leases, lease: Lease) -> None:
        await self._seats.attempt("lease", leases.release(lease), None)

    async def _fly_many(self, flights: Mapping[Any, Flight], prefix: str, factory: BulkFactory, terms: Terms) -> None:
        members = list(flights.values())
        current_flight.set(members[0])
        outcomes: dict[Flight, Outcome] = {}
        left = _CANCELLED
        try:
            wanted = await self._bring_many(flights, terms)
            if wanted:
                await self._run_many(wanted, prefix, factory, terms, outcomes)
            left = _ABSENT
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the program ends, or the loop is gone
        except BaseException as error:
            outcomes = {flight: self._failed(flight, terms, error) for flight in members}
        finally:
            for flight in members:
                self._land(flight, outcomes.get(flight, left))

    async def _bring_many(self, flights: Mapping[Any, Flight], terms: Terms) -> dict[Any, Flight]:
        """Those that the remote store does not have either."""
        if self._seats.remote is None or any(flight.reason == "refresh" for flight in flights.values()):
            return dict(flights)
        stored = await self._seats.fetch_many([flight.key for flight in flights.values()], terms.refresh_ahead)
        now = self._clock.monotonic()
        wanted = {}
        for key, flight in flights.items():
            found = stored.get(flight.key)
            if found is not None and now < found[1].fresh_until:
                self._land(flight, (Status.HIT, found[0]))
            else:
                flight.stale = found or flight.stale
                wanted[key] = flight
        return wanted

    async def _run_many(
        self,
        wanted: Mapping[Any, Flight],
        prefix: str,
        factory: BulkFactory,
        terms: Terms,
        outcomes: dict[Flight, Outcome],
    ) -> None:
        counters = self._counters
        counters.loads += 1
        first = next(iter(wanted.values()))
        detached = first.reason == "background"
        name = "cache.refresh" if detached else "cache.load"
        began = self._clock.monotonic()
        with self._tracing.load(name, first.reason, first.key, detached=detached, size=len(wanted)) as span:
            for flight in wanted.values():
                flight.span = span.context
            try:
                loaded = factory(list(wanted))
                if inspect.isawaitable(loaded):
                    loaded = await loaded
                if not isinstance(loaded, Mapping):
                    raise TypeError(
                        f"the loader returns a mapping of the keys that it has, not {type(loaded).__name__}"
                    )
            except BaseException:
                counters.load_failures += 1
                raise
            finally:
                self._tracing.loaded(self._clock.monotonic() - began, first.reason)
            for key, flight in wanted.items():
                if key in loaded:
                    outcomes[flight] = (Status.VALUE, loaded[key])
            await self._keep_many(wanted, loaded, prefix, terms)

    async def _keep_many(
        self, wanted: Mapping[Any, Flight], loaded: Mapping[Any, Any], prefix: str, terms: Terms
    ) -> None:
        """Store what a bulk load brought: what was asked for, unless overtaken, and what came on top."""
        seats = self._seats
        now = self._clock.monotonic()
        first = next(iter(wanted.values()))
        values: dict[str, Any] = {}
        lives: dict[str, Life] = {}
        for key, value in loaded.items():
            flight = wanted.get(key)
            if flight is None and not isinstance(key, str):
                continue  # an extra whose key only the caller could build
            full = prefix + key if flight is None else flight.key
            overtaken = full in self.flights if flight is None else flight.void
            if overtaken or (terms.cache_if is not None and not terms.cache_if(value)):
                continue
            ttl, life = self._terms_of(flight or first, prefix, value, terms, None, now)
            life = life or (Life(now) if ttl is None else Life(now, now + ttl, now + ttl))
            if seats.tags.valid(life.tags, first.stamp):
                values[full], lives[full] = value, life
                self._retry_at.pop(full, None)
        if values:
            await seats.keep_many(values, now, lives)

    # Landing

    def _failed(self, flight: Flight, terms: Terms, error: BaseException) -> Outcome:
        """What the waiters get when the factory failed: the stale value where there is one, else the error."""
        if flight.stale is None or not isinstance(error, Exception):
            return (Status.ERROR, error)
        now = self._clock.monotonic()
        self._throttle(flight.key, now, now + terms.grace_throttle)
        self._seats.report("a load failed and the value at hand stands in", error)
        return (Status.STALE, flight.stale[0])

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        if flight.landed:
            return
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]
        elif self._loners:
            loners = self._loners.get(flight.key)
            if loners is not None and flight in loners:
                loners.remove(flight)
                if not loners:
                    del self._loners[flight.key]
        if flight.detached:
            self._detached -= 1
        flight.land(outcome)

    def detach(self, flight: Flight, terms: Terms) -> None:
        """Let the flight go on though nobody waits, but not for ever."""
        if flight.detached or flight.landed:
            return
        flight.detached = True
        self._detached += 1
        if self._detached > _MOST_DETACHED:
            self._give_up(flight, terms)
        else:
            flight.ceiling = self._clock.call_later(terms.background_timeout, lambda: self._give_up(flight, terms))

    def abandon(self, flight: Flight) -> None:
        """Nobody waits any more: cancel it, unless it goes on in the background or for others of its bulk load."""
        if flight.landed or flight.detached or flight.waiters:
            return
        members = flight.group or [flight]
        if any(member.waiters or member.detached for member in members if not member.landed):
            return
        for member in members:
            member.void = True
            self._land(member, _CANCELLED)
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
            self._land(flight, _TIMEOUT)
        else:
            now = self._clock.monotonic()
            self._throttle(flight.key, now, now + terms.grace_throttle)
            self._land(flight, (Status.STALE, stale[0]))
        if all(member.landed for member in flight.group or ()):
            self._cancel(flight)

    def _cancel(self, flight: Flight) -> None:
        task = flight.task
        if task is None or task.done():
            return
        if flight.loop is asyncio.get_running_loop():
            task.cancel()
        elif not flight.loop.is_closed():
            flight.loop.call_soon_threadsafe(task.cancel)

    def _settle(self, outcome: Outcome, leading: bool, span: CallSpan | None) -> Any:
        """The value that the outcome brings one caller, or its exception."""
        status, payload = outcome
        counters = self._counters
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
        if span is not None:
            span.result(result)
        if status is Status.ERROR:
            raise payload if leading else own_exception(payload)
        if status is Status.TIMEOUT:
            raise LoadTimeout("the load passed its hard timeout, and there is no stale value")
        if status is Status.CANCELLED or status is Status.ABSENT:
            raise LoadCancelled("the load was cancelled before it had a value")
        return payload

    # Throttling

    def _throttled(self, key: str, now: float) -> bool:
        return bool(self._retry_at) and now < self._retry_at.get(key, now)

    def _throttle(self, key: str, now: float, until: float) -> None:
        if len(self._retry_at) >= _MOST_THROTTLES:
            self._retry_at = {key: until for key, until in self._retry_at.items() if now < until}
        self._retry_at[key] = until

    def _as_entry(self, found: Found | None) -> Entry | None:
        return None if found is None else as_entry(found, self._clock.epoch)


@final
class _Ticket:
    """One caller's wait for a flight, with its limits."""

    __slots__ = ("_flight", "_loader", "_mine", "_timers", "_waiter")

    def __init__(self, loader: Loader, flight: Flight, terms: Terms, mine: Flight | None) -> None:
        loop = asyncio.get_running_loop()
        self._loader = loader
        self._flight = flight
        self._mine = mine
        self._timers: list[Timer] | None = None
        self._waiter: Waiter = flight.join(loop)
        if mine is not None:
            mine.waits_for[flight] = mine.waits_for.get(flight, 0) + 1
        if (terms.soft_timeout is not None or terms.hard_timeout is not None) and not flight.landed:
            self._limit(terms, loop)

    def outcome(self) -> Waiter:
        """What to await."""
        return self._waiter

    def leave(self) -> None:
        """Stop waiting; a second call does nothing."""
        flight = self._flight
        if self._timers is not None:
            for timer in self._timers:
                timer.cancel()
        if self._mine is not None:
            self._mine.stop_waiting(flight)
            self._mine = None
        if flight.waiters.pop(self._waiter, flight) is None:
            self._loader.abandon(flight)

    def _limit(self, terms: Terms, loop: asyncio.AbstractEventLoop) -> None:
        flight, clock = self._flight, self._loader._clock
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
        self._loader.detach(self._flight, terms)
        wake(self._waiter, _TIMEOUT if stale is None else (Status.STALE, stale[0]), loop)


def life_of(
    ttl: float | None, grace: float, tags: tuple[str, ...], terms: Terms, now: float, stamp: int
) -> tuple[float | None, Life | None]:
    """The (jittered) ttl, and the life of an entry stored now where a ttl does not say all."""
    if ttl is None:
        return None, Life(now, tags=tags, stamp=stamp) if tags else None
    if terms.jitter:
        ttl *= 1.0 - terms.jitter * random.random()
    if not (grace or tags or terms.refresh_ahead or terms.sliding):
        return ttl, None
    fresh_until = now + ttl
    return ttl, Life(
        now,
        fresh_until,
        fresh_until + grace,
        refresh_at=now + ttl * terms.refresh_ahead if terms.refresh_ahead else fresh_until + grace,
        tags=tags,
        stamp=stamp,
        sliding=ttl if terms.sliding else None,
    )


def _in_order(keys: Sequence[Any], loaded: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: loaded[key] for key in dict.fromkeys(keys) if key in loaded}


def as_entry(found: Found, epoch: float) -> Entry:
    """A value and its life as users see it."""
    value, life = found
    return Entry(
        value=value,
        created_at=life.created_at + epoch,
        fresh_until=life.fresh_until + epoch,
        expires_at=life.expires_at + epoch,
        tags=life.versions if life.versions is not None else dict.fromkeys(life.tags, str(life.stamp)),
    )


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def wants_load(factory: Factory) -> bool:
    """Whether the factory has a positional parameter that must be given: then it gets a `Load`."""
    bound = 0
    function: object = factory
    if isinstance(function, MethodType):
        bound, function = 1, function.__func__
    if isinstance(function, FunctionType):
        return function.__code__.co_argcount - len(function.__defaults__ or ()) > bound
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(each.kind in _POSITIONAL and each.default is each.empty for each in parameters)


def _forget_after_fork() -> None:
    for loader in list(_loaders):
        loader.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
