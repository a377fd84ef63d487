"""Loading of many keys by one run of a factory.

Each key has a flight of its own, so that single callers join it; the flights of one run are a group and share its task.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, final

from asynccache._claims import Claims
from asynccache._flight import Flight, Outcome, Status, current_flight
from asynccache._flights import CANCELLED, Flights, Journal, Ticket
from asynccache._keeping import Keeper
from asynccache._seats import Found, Seats
from asynccache.clock import stopwatch
from asynccache.metrics import Timer
from asynccache.policy import Terms
from asynccache.stats import Counters
from asynccache.telemetry import Tracing

__all__ = ["BulkFactory", "BulkLoader"]

BulkFactory: TypeAlias = Callable[[list[Any]], Any]
"""An async or sync callable of the list of missing keys, that returns a mapping of those it has."""

_ABSENT: Final[Outcome] = (Status.ABSENT, None)


@final
class BulkLoader:
    """The loads of many keys at once, of one cache."""

    def __init__(
        self, seats: Seats, flights: Flights, keeper: Keeper, counters: Counters, tracing: Tracing, timer: Timer
    ) -> None:
        self._seats = seats
        self._flights = flights
        self._keeper = keeper
        self._counters = counters
        self._tracing = tracing
        self._timer = timer
        self._clock = seats.clock

    async def get_many(
        self,
        keys: Sequence[Any],
        full: Mapping[Any, str],
        prefix: str | None,
        factory: BulkFactory,
        terms: Terms,
        mode: str | None = None,
    ) -> dict[Any, Any]:
        """The values of the keys, in their order; one call of the factory loads those that nobody else is loading.

        Args:
            keys: What the factory is to be called with.
            full: The whole key of each.
            prefix: What the keys begin with of what is loaded on top, which is stored too; ``None``: it is not.
            factory: Loads the missing ones.
            terms: How.
            mode: ``"bypass"`` to leave the cache aside, ``"refresh"`` to load all anew.
        """
        if not keys:
            return {}
        if mode == "bypass":
            self._counters.misses += len(keys)
            self._counters.loads += 1
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
                self._flights.supersede(full[key])
            found = None if mode == "refresh" else self._seats.look(full[key], now)
            flight = self._flights.under_way(full[key], terms, loop)
            if found is not None and now < found[1].fresh_until:
                self._seats.used(full[key], found[1], now)
                ready[key] = (Status.HIT, found[0])
                if now >= found[1].refresh_at and flight is None and not self._flights.throttled(full[key], now):
                    aging[key] = found
            elif found is not None and self._flights.throttled(full[key], now):
                ready[key] = (Status.STALE, found[0])
            elif flight is not None:
                self._flights.refuse_deadlock(flight, mine)
                joined[key] = flight
            else:
                missing[key] = found
        if aging:
            self._depart_many(aging, {}, full, prefix, factory, terms, "background", now)
        reason = "refresh" if mode else "bulk"
        flights = self._depart_many(missing, joined, full, prefix, factory, terms, reason, now, mine)
        tickets = {key: Ticket(self._flights, flight, terms, loop, mine) for key, flight in (joined | flights).items()}
        try:
            for key, ticket in tickets.items():
                ready[key] = await ticket.waiter
        finally:
            for ticket in tickets.values():
                ticket.leave()
        # A load of somebody else's that had nothing for a key says nothing of what this caller's own would have.
        left_out = [key for key in joined if ready[key][0] is Status.ABSENT]
        values = await self.get_many(left_out, full, prefix, factory, terms, mode)
        for key, outcome in ready.items():
            if outcome[0] is not Status.ABSENT:
                values[key] = self._flights.settle(outcome, key in flights)
            elif key in flights:
                self._counters.misses += 1
        return _in_order(keys, values)

    def _depart_many(
        self,
        missing: Mapping[Any, Found | None],
        joined: dict[Any, Flight],
        full: Mapping[Any, str],
        prefix: str | None,
        factory: BulkFactory,
        terms: Terms,
        reason: str,
        now: float,
        mine: Flight | None = None,
    ) -> dict[Any, Flight]:
        if not missing:
            return {}
        self._flights.check_open()
        loop = asyncio.get_running_loop()
        stamp = self._seats.tags.latest
        flights: dict[Any, Flight] = {}
        for key, found in missing.items():
            flight = Flight(full[key], reason, loop, now, stamp, found)
            while not self._flights.enter(flight, terms):  # two of the keys are one, or another thread was earlier
                other = self._flights.under_way(flight.key, terms, loop)
                if reason == "background":
                    break
                if other is not None:
                    joined[key] = other
                    break
            else:
                flights[key] = flight
        if not flights:
            return {}
        group = list(flights.values())
        for flight in group:
            flight.group = group
            flight.tags = terms.tags
            if reason == "background":
                self._flights.detach(flight, terms)
            if mine is not None:
                flight.nested = True
                mine.start_waiting(flight)
        self._flights.depart_together(group, self._fly_many(flights, prefix, factory, terms))
        if mine is not None:
            for flight in group:
                mine.stop_waiting(flight)
        return flights

    async def _fly_many(
        self, flights: Mapping[Any, Flight], prefix: str | None, factory: BulkFactory, terms: Terms
    ) -> None:
        members = list(flights.values())
        current_flight.set(members[0])
        outcomes: dict[Flight, Outcome] = {}
        left = CANCELLED
        leases = None if self._seats.remote is None or terms.lock != "shared" else self._seats.remote.leases
        claims = None if leases is None else Claims(self._seats, leases, self._flights.background)
        try:
            wanted, patient = await self._bring_many(flights, terms), True
            while wanted:
                mine, wanted = await self._claim(wanted, terms, claims)
                if not patient:
                    mine, wanted = mine | wanted, {}
                if mine:
                    with self._flights.journal() as journal:
                        await self._run_many(mine, prefix, factory, terms, outcomes, journal, claims)
                if wanted and claims is not None:
                    claims.abandon()
                    for flight in mine.values():
                        self._flights.land(flight, outcomes.get(flight, _ABSENT))
                    # Who loads for another load waits once: that one may be what the others wait for.
                    patient = await claims.wait([flight.key for flight in wanted.values()]) and not members[0].nested
                    wanted = await self._bring_many(wanted, terms)
            left = _ABSENT
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self._flights.background.watch_current()
            raise  # the program ends, or the loop is gone
        except BaseException as error:
            outcomes = {flight: self._flights.failed(flight, terms, error) for flight in members}
        finally:
            if claims is not None:
                claims.abandon()
            task = members[0].task
            for flight in members:
                self._flights.land(flight, outcomes.get(flight, left))
                flight.task = flight.group = None  # they would hold each other, and the values
            if task is not None:
                self._flights.background.landed(task)
            self._refresh_ahead(flights, prefix, factory, terms)

    def _refresh_ahead(
        self, flights: Mapping[Any, Flight], prefix: str | None, factory: BulkFactory, terms: Terms
    ) -> None:
        """Have those refreshed that were found in the remote store past their refresh point."""
        now = self._clock.monotonic()
        aging = {
            key: flight.aging
            for key, flight in flights.items()
            if flight.aging is not None and not flight.void and not self._flights.throttled(flight.key, now)
        }
        if aging and not self._flights.full:
            full = {key: flights[key].key for key in aging}
            self._depart_many(aging, {}, full, prefix, factory, terms, "background", now)

    async def _bring_many(self, flights: Mapping[Any, Flight], terms: Terms) -> dict[Any, Flight]:
        """Those that the remote store does not have either."""
        if self._seats.remote is None or any(flight.reason == "refresh" for flight in flights.values()):
            return dict(flights)
        stored = await self._seats.fetch_many(
            [flight.key for flight in flights.values()], terms.shape, terms.refresh_ahead, terms.slides
        )
        now = self._clock.monotonic()
        wanted = {}
        for key, flight in flights.items():
            found = stored.get(flight.key)
            if found is not None and now < found[1].fresh_until:
                if now >= found[1].refresh_at:
                    if flight.reason == "background":
                        wanted[key] = flight
                        continue
                    flight.aging = found
                if terms.sliding:
                    self._seats.used(flight.key, found[1], now)
                self._flights.land(flight, (Status.HIT, found[0]))
            else:
                flight.stale = found or flight.stale
                wanted[key] = flight
        return wanted

    async def _claim(
        self, wanted: Mapping[Any, Flight], terms: Terms, claims: Claims | None
    ) -> tuple[dict[Any, Flight], dict[Any, Flight]]:
        """Have other processes' writes seen from now on: by leases, and by the versions of tags; those that are to be
        loaded here, and those that somebody else is loading."""
        mine = dict(wanted)
        others: dict[Any, Flight] = {}
        if claims is not None:
            held = await claims.acquire([flight.key for flight in wanted.values()])
            others = {key: flight for key, flight in wanted.items() if flight.key in held}
            # Somebody may have stored what he had loaded between the look and the lease.
            mine = await self._bring_many({key: each for key, each in wanted.items() if key not in others}, terms)
        seats = self._seats
        if terms.tags and seats.remote_tags is not None:
            now = self._clock.monotonic() + self._clock.epoch
            versions = await seats.attempt("get_many", seats.remote_tags.versions(terms.tags, now), None)
            for flight in mine.values():
                flight.versions = versions
        return mine, others

    async def _run_many(
        self,
        wanted: Mapping[Any, Flight],
        prefix: str | None,
        factory: BulkFactory,
        terms: Terms,
        outcomes: dict[Flight, Outcome],
        journal: Journal,
        claims: Claims | None,
    ) -> None:
        counters = self._counters
        counters.loads += 1
        counters.loading += 1
        first = next(iter(wanted.values()))
        began = stopwatch() if self._timer.wanted else None
        with self._tracing.load(first.reason, first.key, size=len(wanted)) as span:
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
                counters.loading -= 1
                if began is not None:
                    self._timer.record(stopwatch() - began, first.reason)
            for key, flight in wanted.items():
                if key in loaded:
                    outcomes[flight] = (Status.VALUE, loaded[key])
            await self._keeper.keep_many(wanted, loaded, prefix, terms, journal, claims)


def _in_order(keys: Sequence[Any], loaded: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: loaded[key] for key in dict.fromkeys(keys) if key in loaded}
