"""The dispatcher: every call of a cache takes one path through it, from the span at the top to the two seats below.

A hit in the local seat does not come this far: the face looks through ``find``, ``until`` and ``touch``, which are
bound to the local store's own tables while nothing stands in the way, and to an empty table while something does (no
local store, deep copies, an override or a sandbox somewhere in the process, the kill switch, a closed cache). Then the
call comes here.
"""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, final

from asynccache._bulk import BulkFactory
from asynccache._detours import current_world, detours, overridden
from asynccache._failures import Failures, OnError
from asynccache._glob import compile_glob
from asynccache._keeping import as_entry, life_of
from asynccache._life import Life
from asynccache._listing import Listing, cleared
from asynccache._loading import Loader
from asynccache._locks import Locks
from asynccache._seats import Seats
from asynccache.backend import Backend, Health, OnlyIf
from asynccache.backends.memory import MemoryBackend
from asynccache.clock import Clock
from asynccache.entry import MISSING, Entry
from asynccache.errors import CacheClosed
from asynccache.load import Factory
from asynccache.metrics import Timer, meters_of
from asynccache.policy import Policy, Terms
from asynccache.shape import Shape
from asynccache.stats import Counters, Stats
from asynccache.telemetry import NO_SPAN, CallSpan, Telemetry, Tracing

__all__ = ["Dispatcher"]

_NOTHING: Final[dict[str, Any]] = {}


@final
class Dispatcher:
    """What all views of one cache share.

    Attributes:
        find: The value of a whole key in the local seat, or the default.
        until: Until when a hit on it needs no second look; ``None`` for ever.
        touch: Counts the hit for the eviction policy.
        now: Monotonic seconds.
        counters: The plain integers behind the statistics.
        short_writes: Whether a write of which a ttl says all has a short way.
        shortcut: The remote seat's, while nothing stands in the way and there is no local one.
    """

    def __init__(
        self,
        *,
        local: MemoryBackend | None,
        remote: Backend | None,
        owned: Sequence[MemoryBackend | Backend],
        clock: Clock,
        name: str,
        policy: Policy,
        on_error: OnError,
        telemetry: Telemetry | None,
        prefix: str = "",
        metered: bool = True,
    ) -> None:
        self.name = name
        self.policy = policy
        self.terms = Terms.of(policy)
        self.counters = Counters()
        self.local = local
        self.remote = remote
        self.now: Callable[[], float] = clock.monotonic
        self.disabled = os.environ.get("ASYNCCACHE_DISABLE", "").strip().lower() in ("1", "true", "yes", "on")
        self.backend_name = remote.name if remote is not None else "memory"
        self.tracing = Tracing(telemetry, cache=name, backend=self.backend_name, prefix=prefix)
        self.labels = {"cache.name": name, "cache.backend": self.backend_name}
        self.meters = None if telemetry is None or not metered else meters_of(telemetry.meter_provider)
        timer = Timer(self.meters, self.labels, "operation")
        failures = Failures(
            on_error=on_error, name=name, clock=clock, counters=self.counters, hidden=self.tracing.hidden, timer=timer
        )
        self.seats = Seats(local=local, remote=remote, clock=clock, failures=failures)
        self.loader = Loader(self.seats, self.counters, self.tracing, Timer(self.meters, self.labels, "load"))
        self.locks = Locks(self.seats)
        self.closed = False
        self._clock = clock
        self._owned = owned
        self._on_error = on_error
        self._telemetry = telemetry
        self.find: Callable[[str, Any], Any] = _NOTHING.get
        self.until: Callable[[str], float | None] = _NOTHING.get
        self.touch: Callable[[str], object] = _NOTHING.get
        self.bind()
        detours.watch(self)
        if self.meters is not None:
            self.meters.add(self)

    def bind(self) -> None:
        """Open the short way for hits, or close it."""
        local = self.local
        short = (
            local is not None
            and not local.copies
            and not self.closed
            and not self.disabled
            and not self.tracing.own_provider
            and not detours.count
        )
        if local is not None:
            self.until = local.deadlines.get
            self.touch = local.eviction_policy.touch
        self.find = local.values.get if short and local is not None else _NOTHING.get
        straight = local is None and not (self.closed or self.disabled or self.tracing.own_provider or detours.count)
        self.shortcut = None if self.remote is None or self.terms.sliding or not straight else self.remote.shortcut
        self.short_writes = self.terms.ordinary and (short if self.remote is None else self.shortcut is not None)

    def here(self) -> "Dispatcher":
        """This dispatcher, or what stands for it in the sandbox that the caller is in.

        Raises:
            CacheClosed: It was closed.
        """
        if self.closed:
            raise CacheClosed(f"the cache {self.name!r} is closed")
        if detours.count:
            world = current_world()
            if world is not None and self._clock is not world.clock:
                stand_in: Dispatcher = world.stand_in(self)
                return stand_in
        return self

    def twin(self, clock: Clock) -> "Dispatcher":
        """The same cache over an empty in-memory store."""
        return Dispatcher(
            local=MemoryBackend(max_entries=None, clock=clock),
            remote=None,
            owned=(),
            clock=clock,
            name=self.name,
            policy=self.policy,
            on_error=self._on_error,
            telemetry=self._telemetry,
            prefix=self.tracing.prefix,
            metered=False,
        )

    # Reading

    async def get(self, key: str, default: Any, shape: Shape | None = None, entry: Entry | None = None) -> Any:
        """The fresh value, or the default.

        Args:
            key: The whole key.
            default: What stands for a miss.
            shape: That of the value's type, if it is known.
            entry: What the remote store has, where it was asked already.
        """
        with self.tracing.call("cache.get", key) as span:
            value = await self._read(key, shape, span, entry)
            return default if value is MISSING else value

    async def _read(self, key: str, shape: Shape | None, span: CallSpan, entry: Entry | None) -> Any:
        counters = self.counters
        if self.disabled:
            counters.misses += 1
            span.result("bypass")
            return MISSING
        found = self.seats.look(key, self.now())
        tier = "local"
        if (found is None or self.now() >= found[1].fresh_until) and self.remote is not None:
            found = await self.seats.fetch(key, shape, entry=entry, slides=self.terms.slides)
            tier = "remote"
        now = self.now()
        if found is None or now >= found[1].fresh_until:
            counters.misses += 1
            span.result("miss")
            return MISSING
        counters.hits += 1
        self.seats.used(key, found[1], now)
        span.result("negative" if found[0] is None else "hit", tier)
        return found[0]

    async def get_many(self, keys: Mapping[str, str], shape: Shape | None = None) -> dict[str, Any]:
        """The fresh values of those found.

        Args:
            keys: The whole key of each.
            shape: That of the values' type, if it is known.
        """
        with self.tracing.call("cache.get_many", size=len(keys)):
            values: dict[str, Any] = {}
            absent: list[str] = []
            now = self.now()
            for key, full in keys.items():
                found = None if self.disabled else self.seats.look(full, now)
                if found is not None and now < found[1].fresh_until:
                    self.seats.used(full, found[1], now)
                    values[key] = found[0]
                else:
                    absent.append(key)
            if absent and self.remote is not None and not self.disabled:
                stored = await self.seats.fetch_many([keys[key] for key in absent], shape, slides=self.terms.slides)
                now = self.now()
                fresh = {key: it for key in absent if (it := stored.get(keys[key])) and now < it[1].fresh_until}
                values |= {key: found[0] for key, found in fresh.items()}
                for key in fresh if self.terms.sliding else ():
                    self.seats.used(keys[key], fresh[key][1], now)
            self.counters.hits += len(values)
            self.counters.misses += len(keys) - len(values)
            return {key: values[key] for key in keys if key in values}

    async def entry(self, key: str, prefix: str) -> Entry | None:
        """The entry, fresh or stale, with its tags' names without the prefix: a look that counts as no use."""
        with self.tracing.call("cache.entry", key):
            if self.disabled:
                return None
            if self.remote is None:
                found = self.seats.look(key, self.now())
            else:  # the local seat has a copy, with a shorter life
                found = await self.seats.fetch(key, None, copied=False)
            return None if found is None else as_entry(found, self._clock.epoch, prefix)

    async def ttl(self, key: str) -> float | None:
        """Seconds of freshness left; infinite with no expiry, ``None`` when absent."""
        with self.tracing.call("cache.ttl", key):
            life = None if self.disabled else await self.seats.life(key)
            left = -1.0 if life is None else life.fresh_until - self.now()
            return left if left > 0 else None

    async def keys(self, prefix: str, pattern: str) -> AsyncIterator[str]:
        """The keys under the prefix that match, without it."""
        listing, ended = Listing(self.seats, prefix, compile_glob(pattern)), False
        while not ended:
            with self.tracing.call("cache.keys"):  # one for each slice: what a user does in between is no part of it
                keys = [] if self.disabled else await listing.more()
            ended = self.disabled or listing.ended
            for key in keys:
                yield key

    # Writing

    def life(
        self, value: Any, ttl: Any, grace: float | None, tags: tuple[str, ...], terms: Terms, now: float
    ) -> tuple[float | None, Life | None]:
        """The ttl of a value that a caller stores, and its life where that does not say all."""
        if ttl is ...:
            ttl = terms.ttl_for(value)
        if terms.ordinary and grace is None and not tags:
            return ttl, None
        return life_of(ttl, terms.grace if grace is None else grace, tags, terms, now, self.seats.tags.latest)

    def put(self, key: str, value: Any, ttl: Any) -> bool:
        """Store a value of which a ttl says all in the local seat, the only one: what most calls of ``set`` are."""
        flights, local = self.loader.flights, self.local
        flights.supersede(key)
        stored = local is not None and local.put(key, value, self.now(), self.terms.ttl if ttl is ... else ttl)
        flights.supersede(key)  # one that another thread began meanwhile
        return stored

    async def set(
        self, key: str, value: Any, ttl: Any, grace: float | None, tags: tuple[str, ...], terms: Terms, only_if: OnlyIf
    ) -> bool:
        """Store the value, if the condition holds."""
        with self.tracing.call("cache.set", key):
            if self.disabled:
                return False
            now = self.now()
            ttl, life = self.life(value, ttl, grace, tags, terms, now)
            if only_if is None:
                self.loader.flights.supersede(key)
            stored = await self.seats.keep(key, value, now, ttl, life, terms.shape, only_if)
            if stored:
                self.loader.flights.supersede(key)
            return stored

    async def set_many(
        self, values: Mapping[str, Any], ttl: Any, grace: float | None, tags: tuple[str, ...], terms: Terms
    ) -> bool:
        """Store all."""
        with self.tracing.call("cache.set_many", size=len(values)):
            if self.disabled:
                return False
            now = self.now()
            lives = {}
            for key, value in values.items():
                self.loader.flights.supersede(key)
                each, life = self.life(value, ttl, grace, tags, terms, now)
                lives[key] = life or (Life(now) if each is None else Life(now, now + each, now + each))
            stored = await self.seats.keep_many(values, now, lives, terms.shape)
            for key in values:
                self.loader.flights.supersede(key)
            return stored

    async def delete(self, name: str, keys: Sequence[str]) -> int:
        """Remove the keys; how many were there."""
        single = len(keys) == 1 and name != "cache.delete_many"
        with self.tracing.call(name, keys[0] if single else None, size=None if single else len(keys)):
            if self.disabled or not keys:
                return 0
            for key in keys:
                self.loader.flights.supersede(key)
            count = await self.seats.drop(keys)
            if self.remote is not None:
                for key in keys:
                    self.loader.flights.supersede(key)
            return count

    async def retime(self, key: str, ttl: float | None) -> bool:
        """Give a fresh entry a new ttl from now."""
        with self.tracing.call("cache.touch", key):
            return not self.disabled and await self.seats.retime(key, self.now(), ttl)

    async def add_to(self, name: str, key: str, delta: int, ttl: float | None) -> int:
        """Add to a counter."""
        with self.tracing.call(name, key):
            if self.disabled:
                return 0
            self.loader.flights.supersede(key)
            total = await self.seats.add_to(key, delta, self.now(), ttl)
            self.loader.flights.supersede(key)
            return total

    async def clear(self, prefix: str, pattern: str) -> int:
        """Remove the keys under the prefix that match; with ``*`` those of deeper namespaces too."""
        everything = pattern == "*"
        matches_own = compile_glob(pattern)

        def matches(key: str) -> bool:
            own = key[len(prefix) :]
            return everything or ("\0" not in own and matches_own(own))

        with self.tracing.call("cache.clear"):
            if self.disabled:
                return 0
            self.loader.flights.supersede_where(lambda key: key.startswith(prefix) and matches(key))
            count = await cleared(self.seats, matches, prefix)
            if self.remote is not None:
                self.loader.flights.supersede_where(lambda key: key.startswith(prefix) and matches(key))
            return count

    async def invalidate(self, tags: Sequence[str], prefix: str) -> None:
        """Hide every entry with one of the tags."""
        with self.tracing.call("cache.invalidate_tags", size=len(tags)):
            if self.disabled or not tags:
                return
            self.loader.flights.supersede_tagged(tags, prefix)
            await self.seats.invalidate(tags)
            self.loader.flights.supersede_tagged(tags, prefix)

    # Loading

    def get_or_set(self, key: str, prefix: str, factory: Factory, terms: Terms) -> Coroutine[Any, Any, Any]:
        """The value, loaded if need be."""
        if self.disabled or detours.count or self.tracing.wanted():
            return self._get_or_set(key, prefix, factory, terms)
        return self.loader.get(key, prefix, factory, terms, NO_SPAN, self.shortcut)

    async def _get_or_set(self, key: str, prefix: str, factory: Factory, terms: Terms) -> Any:
        with self.tracing.call("cache.get_or_set", key, template=terms.template) as span:
            mode = "bypass" if self.disabled else overridden()
            if mode == "bypass":
                span.result("bypass")
                return await self.loader.bypass(key, prefix, factory)
            if mode == "refresh":
                return await self.loader.refresh(key, prefix, factory, terms, span)
            return await self.loader.get(key, prefix, factory, terms, span)

    async def refresh(self, key: str, prefix: str, factory: Factory, terms: Terms) -> Any:
        """The value of a load that begins now."""
        with self.tracing.call("cache.get_or_set", key, template=terms.template) as span:
            if self.disabled:
                span.result("bypass")
                return await self.loader.bypass(key, prefix, factory)
            return await self.loader.refresh(key, prefix, factory, terms, span)

    async def get_or_set_many(
        self, keys: Sequence[Any], full: Mapping[Any, str], prefix: str | None, factory: BulkFactory, terms: Terms
    ) -> dict[Any, Any]:
        """The values, the missing ones loaded together."""
        with self.tracing.call("cache.get_or_set_many", size=len(full)):
            mode = "bypass" if self.disabled else overridden()
            return await self.loader.bulk.get_many(keys, full, prefix, factory, terms, mode)

    def lock(self, key: str, ttl: float, timeout: float | None) -> AbstractAsyncContextManager[int | None]:
        """Hold the lock of the key, and tell its fencing number."""
        return self.locks.held(key, ttl, timeout, partial(self.tracing.call, "cache.lock", key))

    # The rest

    @property
    def loading(self) -> int:
        """How many factories run now."""
        return self.counters.loading

    @property
    def health(self) -> Health | None:
        """How it stands with the server of the remote store, if there is one."""
        return None if self.remote is None else self.remote.health

    def stats(self) -> Stats:
        """What was counted so far."""
        counters, local = self.counters, self.local
        return Stats(
            hits=counters.hits,
            misses=counters.misses,
            stale_hits=counters.stale_hits,
            loads=counters.loads,
            coalesced=counters.coalesced,
            load_failures=counters.load_failures,
            errors=counters.errors,
            evictions=0 if local is None else local.evictions,
            expirations=0 if local is None else local.expirations,
            entries=0 if local is None else len(local),
            bytes=0 if local is None else local.weight,
        )

    async def ping(self) -> bool:
        """Whether the store answers."""
        with self.tracing.call("cache.ping"):
            return await self.seats.ping()

    def end(self) -> None:
        """Take no more calls, and end the background work."""
        self.closed = True
        self.locks.close()
        self.bind()
        if self.meters is not None:
            self.meters.discard(self)
        self.loader.flights.end()

    async def aclose(self) -> None:
        """Take no more calls, end the background work and let go of what this cache opened."""
        if self.closed:
            return
        self.end()
        await self.loader.flights.aclose()
        for store in self._owned:
            if isinstance(store, MemoryBackend):
                store.aclose_now()
            else:
                await self.seats.attempt("aclose", store.aclose(), None)
