"""What a load stores: its value with the times and tags that the terms give it, unless a write has overtaken it."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from asynccache._claims import Claims
from asynccache._flight import Flight
from asynccache._flights import Flights, Journal
from asynccache._life import Life
from asynccache._seats import Found, Seats
from asynccache.entry import Entry
from asynccache.errors import EncodeError
from asynccache.keys import check_key
from asynccache.load import Load
from asynccache.policy import Terms

__all__ = ["NO_TOKEN", "UNASKED", "Keeper", "as_entry", "life_of"]

NO_TOKEN: Final = ""
"""That of a lease that somebody else has, and that is not waited for."""

UNASKED: Final = "unasked"
"""That of a lease for which the store could not be asked."""


@final
class Keeper:
    """Stores what the loads of one cache bring."""

    def __init__(self, seats: Seats, flights: Flights) -> None:
        self._seats = seats
        self._flights = flights

    def keep_local(self, flight: Flight, prefix: str, value: Any, terms: Terms, load: Load | None) -> None:
        """Store a loaded value in the local seat, the only one, unless a write has overtaken the load."""
        local = self._seats.local
        if local is None:
            return
        now = self._seats.clock.monotonic()
        self._flights.unthrottle(flight.key)
        ttl, life = terms.ttl, None
        if load is not None or not terms.ordinary:
            ttl, life = self._terms_of(flight, prefix, value, terms, load, now)
            if life is not None and not self._seats.tags.valid(life.tags, flight.stamp):
                return
        try:
            with local.guard():  # another thread's write comes before the look at `void`, or after the value is stored
                if not flight.void:
                    local.put(flight.key, value, now, ttl, life)
        except EncodeError as error:
            self._seats.failures.not_stored(value, error, terms.template)

    async def keep_remote(self, flight: Flight, prefix: str, value: Any, terms: Terms, load: Load | None) -> None:
        """Store a loaded value in the remote seat, and a copy in the local one, unless a write has overtaken it."""
        seats = self._seats
        now = seats.clock.monotonic()
        self._flights.unthrottle(flight.key)
        ttl, life = self._terms_of(flight, prefix, value, terms, load, now)
        if life is None:
            life = Life(now) if ttl is None else Life(now, now + ttl, now + ttl)
        if not seats.tags.valid(life.tags, flight.stamp):
            return
        sent = await self._send(flight, value, life, terms)
        if seats.local is None or sent is False:
            return
        with seats.local.guard():
            if not flight.void and sent:
                seats.copies.written(flight.key, value, now, ttl, life)
            elif not flight.void:
                seats.copies.unsent(flight.key, value, now, ttl, life)

    async def _send(self, flight: Flight, value: Any, life: Life, terms: Terms) -> bool | None:
        """Whether the remote seat was to have it and took it; ``None`` when it could not be given."""
        seats, lease = self._seats, flight.lease
        if seats.remote is None:
            return False
        if lease is not None and lease.token == UNASKED:
            return None
        if flight.versions is not None and set(life.tags) <= set(flight.versions):
            life.versions = {tag: flight.versions[tag] for tag in life.tags}
        try:
            entry = await seats.entry(value, life, terms.shape, flight.started_at)
            if entry is None or flight.void or (lease is not None and lease.token == NO_TOKEN):
                return False
            if lease is not None and seats.remote.leases is not None:
                stored = await seats.attempt("commit", seats.remote.leases.commit(lease, entry), None)
                if stored is not None:
                    flight.lease = None  # given back, or somebody else's
                return stored
            return await seats.attempt("set", seats.remote.set(flight.key, entry), None)
        except EncodeError as error:
            seats.failures.not_stored(value, error, terms.template)
            return False

    async def keep_many(
        self,
        wanted: Mapping[Any, Flight],
        loaded: Mapping[Any, Any],
        prefix: str | None,
        terms: Terms,
        journal: Journal,
        claims: Claims | None,
    ) -> None:
        """Store what a bulk load brought: what was asked for, unless overtaken, and what came on top."""
        seats = self._seats
        now = seats.clock.monotonic()
        first = next(iter(wanted.values()))
        if terms.tags and first.versions is None and seats.remote_tags is not None:
            return  # what the tags' versions were when it began is not known: they may have been invalidated since
        mine = {flight.key: flight for flight in wanted.values()}
        values: dict[str, Any] = {}
        lives: dict[str, Life] = {}

        def overtaken(full: str) -> bool:
            flight = mine.get(full)
            if flight is None:
                return full in self._flights.table or journal.has(full)
            return flight.void

        for key, value in loaded.items():
            flight = wanted.get(key)
            if flight is not None:
                full = flight.key
            elif prefix is not None and isinstance(key, str):
                full = prefix + check_key(key)
            else:
                continue  # loaded on top, and its key is not known
            if overtaken(full) or (terms.cache_if is not None and not terms.cache_if(value)):
                continue
            ttl, life = self._terms_of(flight or first, "", value, terms, None, now)
            life = life or (Life(now) if ttl is None else Life(now, now + ttl, now + ttl))
            if seats.tags.valid(life.tags, first.stamp):
                values[full], lives[full] = value, life
                self._flights.unthrottle(full)
                if first.versions is not None and set(life.tags) <= set(first.versions):
                    life.versions = {tag: first.versions[tag] for tag in life.tags}
        if claims is not None:
            claimed = {full: values.pop(full) for full in list(values) if full in mine}
            await self._commit_many(claims, claimed, lives, now, terms, overtaken)
        try:
            if values:
                await seats.keep_many(values, now, lives, terms.shape, overtaken)
        except EncodeError:
            for key, value in values.items():  # one of them: the others can be stored
                try:
                    await seats.keep_many({key: value}, now, lives, terms.shape, overtaken)
                except EncodeError as error:
                    seats.failures.not_stored(value, error, terms.template)

    async def _commit_many(
        self,
        claims: Claims,
        values: Mapping[str, Any],
        lives: Mapping[str, Life],
        now: float,
        terms: Terms,
        overtaken: Callable[[str], bool],
    ) -> None:
        """Store what was loaded under leases, unless anybody's write has overtaken it."""
        seats = self._seats
        entries: list[tuple[str, Entry]] = []
        for key, value in values.items():
            try:
                entry = await seats.entry(value, lives[key], terms.shape)
            except EncodeError as error:
                seats.failures.not_stored(value, error, terms.template)
                continue
            if entry is not None and not overtaken(key):
                entries.append((key, entry))
        stored = await claims.commit(entries)
        if seats.local is None:
            return
        for key in stored | (claims.refused & values.keys()):
            with seats.local.guard():
                if not overtaken(key):
                    keep = seats.copies.written if key in stored else seats.copies.unsent
                    keep(key, values[key], now, None, lives[key])

    def _terms_of(
        self, flight: Flight, prefix: str, value: Any, terms: Terms, load: Load | None, now: float
    ) -> tuple[float | None, Life | None]:
        """The ttl of a loaded value, and its life where a ttl does not say all."""
        ttl = load.ttl if load is not None and load.ttl_given else terms.ttl_for(value)
        grace = terms.grace if load is None or not load.grace_given else load.grace or 0.0
        names = terms.tags if load is None else tuple(prefix + tag for tag in load.tags)
        return life_of(ttl, grace, names, terms, now, flight.stamp)


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
        refresh_at=now + ttl * terms.refresh_ahead if terms.refresh_ahead else math.inf,
        tags=tags,
        stamp=stamp,
        sliding=ttl if terms.sliding else None,
    )


def as_entry(found: Found, epoch: float, prefix: str) -> Entry:
    """A value and its life as users see it: with tags as they call them."""
    value, life = found
    tags = life.versions if life.versions is not None else dict.fromkeys(life.tags, str(life.stamp))
    return Entry(
        value=value,
        created_at=life.created_at + epoch,
        fresh_until=life.fresh_until + epoch,
        expires_at=life.expires_at + epoch,
        tags={tag.removeprefix(prefix): version for tag, version in tags.items()},
    )
