"""The in-process store: the local seat of every cache.

Layout (chosen by measurement; a million entries cost about 145 bytes each beyond key and value, none of it visited by
the garbage collector):

- the eviction policy owns ``values``, a mapping in the order that it likes;
- ``deadlines`` says until when a hit needs no second look: the end of freshness of an ordinary entry, the refresh
  point of one that refreshes ahead, ``-inf`` for one with tags or a sliding ttl. An entry that lives for ever has none;
- ``lives`` holds the whole story of the entries for which that one number is not enough;
- an ordinary entry's ttl is remembered only where it is not the usual one, the first that this store was given.

Reading is ``values[key]``, ``deadlines.get(key)``, a comparison, ``policy.touch(key)``: the dispatcher binds these
once and calls nothing else on a hit. Writing takes a lock, because loops of several threads may share a store.
"""

import copy
import logging
import math
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final

from asynccache._life import Life
from asynccache._options import Options
from asynccache._timer_wheel import TimerWheel
from asynccache._weighing import estimated_bytes
from asynccache.backend import StoreOptions
from asynccache.clock import Clock, SystemClock, stopwatch
from asynccache.errors import ConfigError
from asynccache.eviction_policies import EVICTION_POLICIES
from asynccache.eviction_policy import EvictionPolicy

__all__ = ["Cause", "MemoryBackend", "Removal", "Weigher", "open_memory"]

Cause: TypeAlias = Literal["explicit", "replaced", "size", "expired"]
"""Why an entry left: deleted, overwritten, evicted to keep a bound, or past its time."""

Weigher: TypeAlias = Callable[[str, Any], int]
"""The size in bytes that an entry counts for: a function of key and value."""

_DEFAULT_MAX_ENTRIES: Final = 100_000
_SWEEP_SLICE: Final = 64  # references between two looks at the stopwatch
_SWEEP_SECONDS: Final = 0.000_5  # how long a sweep may hold the loop
_OVERDUE_SECONDS: Final = 1.0  # a timer this late has lost its loop: writes sweep instead
_ABSENT: Final = object()

_log = logging.getLogger(__name__)


class Removal(NamedTuple):
    """What a listener is told about an entry that left."""

    key: str
    value: Any
    cause: Cause


@final
class MemoryBackend:
    """An in-process store with an eviction policy, bounds, and a timing wheel that expires entries by itself.

    Values are kept by reference unless ``copy`` is set. A bound holds whenever control returns to the caller. One
    store may serve several caches, under one event loop after another or from several threads.

    Args:
        max_entries: How many entries it keeps at most; ``None`` for no bound.
        max_bytes: How much they may weigh together; ``None`` for no bound, and then nothing is weighed.
        policy: ``"lru"`` or ``"s3fifo"``.
        copy: Whether to keep and return deep copies, so that a caller who changes a value changes nobody else's.
        weigher: What an entry weighs in bytes; by default an estimate of the memory that key and value take.
        on_removal: Called with a `Removal` after each entry has left; what it raises is logged and harms nobody.
        ttl: The longest time in seconds that an entry is kept, whatever it was stored with: for the local copy of a
            remote store's entries.
        clock: Where time comes from.

    Raises:
        ConfigError: A bound is not positive, or there is no such policy.
    """

    name: Final = "memory"

    def __init__(
        self,
        *,
        max_entries: int | None = _DEFAULT_MAX_ENTRIES,
        max_bytes: int | None = None,
        policy: str = "lru",
        copy: bool = False,
        weigher: Weigher | None = None,
        on_removal: Callable[[Removal], object] | None = None,
        ttl: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        for option, bound in (("max_entries", max_entries), ("max_bytes", max_bytes)):
            if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool) or bound < 1):
                raise ConfigError(f"{option} is a positive whole number or None, not {bound!r}")
        if policy not in EVICTION_POLICIES:
            raise ConfigError(f"policy is one of {', '.join(sorted(EVICTION_POLICIES))}, not {policy!r}")
        self.clock: Clock = SystemClock() if clock is None else clock
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_ttl = ttl
        self.copies = copy
        self.on_removal = on_removal
        self.eviction_policy: EvictionPolicy = EVICTION_POLICIES[policy](max_entries, max_bytes)
        self.values: dict[str, Any] = self.eviction_policy.values
        self.deadlines: dict[str, float] = {}
        self.lives: dict[str, Life] = {}
        self.weight = 0
        self.evictions = 0
        self.expirations = 0
        self._most_entries = sys.maxsize if max_entries is None else max_entries
        self._weigher: Weigher | None = None if max_bytes is None else (weigher or estimated_bytes)
        self._weights: dict[str, int] = {}
        self._usual_ttl: float | None = None
        self._other_ttls: dict[str, float] = {}
        self._born: dict[str, float] = {}  # when the entries without a deadline were stored
        self._lock = threading.RLock()
        self._removals: list[Removal] = []
        self._wheel = TimerWheel(self._expires_at, self._expire, now=self.clock.monotonic())
        self._sweep_at = math.inf  # when the armed timer fires

    def __repr__(self) -> str:
        return f"MemoryBackend(max_entries={self.max_entries}, max_bytes={self.max_bytes}, entries={len(self.values)})"

    def __len__(self) -> int:
        return len(self.values)

    # Reading

    def look(self, key: str, now: float) -> tuple[Any, Life] | None:
        """The value and its life, fresh or stale, or ``None``; a thing to look at, which counts as no use."""
        value = self.values.get(key, _ABSENT)
        if value is _ABSENT:
            return None
        life = self.lives.get(key)
        if life is None:
            until = self.deadlines.get(key)
            if until is None:
                life = Life(self._born.get(key, now))
            else:
                life = Life(until - self._other_ttls.get(key, self._usual_ttl or 0.0), until, until)
        if now >= life.expires_at:
            with self._lock:
                if (self._expires_at(key) or math.inf) <= now:
                    self._expire(key)
            self._tell()
            return None
        return (copy.deepcopy(value) if self.copies else value), life

    def used(self, key: str) -> None:
        """Count a use of the key for the eviction policy."""
        try:
            self.eviction_policy.touch(key)
        except KeyError:
            pass  # it left on another thread, between the look and this

    def keys(self) -> list[str]:
        """A snapshot of the keys."""
        return list(self.values)

    # Writing

    def put(self, key: str, value: Any, now: float, ttl: float | None, life: Life | None = None) -> bool:
        """Store a value; ``False`` when it alone outweighs ``max_bytes`` (what the key held before is gone all the
        same).

        Args:
            key: The whole key.
            value: The value.
            now: The monotonic time.
            ttl: How long it is fresh, in seconds, when there is no more to say about it.
            life: All there is to say about it, when that is more than a ttl.
        """
        if self.copies:
            value = copy.deepcopy(value)
        if self.max_ttl is not None:
            ttl, life = self._shortened(now, ttl, life)
        weight = 1
        with self._lock:
            policy = self.eviction_policy
            values = self.values
            if self._weigher is not None:
                weight = self._weigher(key, value)
                if weight > (self.max_bytes or 0):
                    if key in values:
                        self._leave(key, "size")
                    self._tell()
                    return False
                self.weight += weight - self._weights.get(key, 0)
                self._weights[key] = weight
            if key in values:
                scheduled = self._expires_at(key)
                if self.on_removal is not None:
                    self._removals.append(Removal(key, values[key], "replaced"))
                self._forget_times(key)
                policy.replace(key, value, weight)
            else:
                scheduled = None
                policy.insert(key, value, weight)
            if life is not None:
                expires_at = life.expires_at
                quick_until = life.quick_until
                self.lives[key] = life
                if quick_until != math.inf:
                    self.deadlines[key] = quick_until
            elif ttl is not None:
                expires_at = now + ttl
                self.deadlines[key] = expires_at
                if ttl != self._usual_ttl:
                    if self._usual_ttl is None:
                        self._usual_ttl = ttl
                    else:
                        self._other_ttls[key] = ttl
            else:
                expires_at = math.inf
                self._born[key] = now
            if expires_at != math.inf and (scheduled is None or expires_at < scheduled):
                self._wheel.schedule(key, expires_at)
                if expires_at < self._sweep_at:
                    self._arm(now)
            if len(values) > self._most_entries or (self.max_bytes is not None and self.weight > self.max_bytes):
                self._evict(key)
        if now > self._sweep_at + _OVERDUE_SECONDS:
            self._sweep()
        if self._removals:
            self._tell()
        return True

    def retime(self, key: str, life: Life, now: float) -> None:
        """Give an entry that is there a new life."""
        with self._lock:
            if key not in self.values:
                return
            scheduled = self._expires_at(key)
            self._forget_times(key)
            self.lives[key] = life
            if life.quick_until != math.inf:
                self.deadlines[key] = life.quick_until
            if life.expires_at != math.inf and (scheduled is None or life.expires_at < scheduled):
                self._wheel.schedule(key, life.expires_at)
                if life.expires_at < self._sweep_at:
                    self._arm(now)

    def swap(self, key: str, value: Any) -> None:
        """Replace the value of an entry that is there, and nothing else about it."""
        with self._lock:
            self.values[key] = value

    def remove(self, key: str) -> bool:
        """Remove the key; whether it was there."""
        with self._lock:
            if key not in self.values:
                return False
            self._leave(key, "explicit")
        self._tell()
        return True

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            if self.on_removal is not None:
                self._removals.extend(Removal(key, value, "explicit") for key, value in self.values.items())
            self.eviction_policy.clear()
            for table in (self.deadlines, self.lives, self._weights, self._other_ttls, self._born):
                table.clear()
            self.weight = 0
            self._wheel.rebuild(())
        self._tell()

    def guard(self) -> threading.RLock:
        """The lock that makes several steps one."""
        return self._lock

    def renew_lock(self) -> None:
        """Replace the lock: in a forked child, the thread that held it is not there any more."""
        self._lock = threading.RLock()

    def aclose_now(self) -> None:
        """Let go of every entry."""
        self.clear()

    # Leaving

    def _leave(self, key: str, cause: Cause) -> None:
        if self.on_removal is not None:
            self._removals.append(Removal(key, self.values[key], cause))
        if cause == "size":
            self.eviction_policy.evict(key)
            self.evictions += 1
        else:
            self.eviction_policy.remove(key)
        self._forget_times(key)
        if self._weigher is not None:
            self.weight -= self._weights.pop(key, 0)

    def _forget_times(self, key: str) -> None:
        self.deadlines.pop(key, None)
        if self.lives:
            self.lives.pop(key, None)
        if self._other_ttls:
            self._other_ttls.pop(key, None)
        if self._born:
            self._born.pop(key, None)

    def _evict(self, newest: str) -> None:
        victim_of = self.eviction_policy.victim
        while len(self.values) > self._most_entries or (self.max_bytes is not None and self.weight > self.max_bytes):
            self._leave(victim_of(), "size")

    def _tell(self) -> None:
        listener = self.on_removal
        if listener is None or not self._removals:
            return
        removals, self._removals = self._removals, []
        for removal in removals:
            try:
                listener(removal)
            except Exception:
                _log.exception("the listener on_removal failed")

    # Expiring: the wheel turns by itself

    def _expires_at(self, key: str) -> float | None:
        life = self.lives.get(key)
        if life is not None:
            return life.expires_at
        return self.deadlines.get(key)

    def _expire(self, key: str) -> None:
        self.expirations += 1
        self._leave(key, "expired")

    def _arm(self, now: float) -> None:
        """Have the sweep run when the wheel next has something to do."""
        due = self._wheel.next_due()
        if due is None:
            self._sweep_at = math.inf
            return
        if due >= self._sweep_at:
            return  # the armed timer comes first, and arms the next
        try:
            self.clock.call_later(max(due - now, 0.0), self._sweep)
        except RuntimeError:
            return  # no loop runs here: the next write under one arms
        self._sweep_at = due

    def _sweep(self) -> None:
        """Expire what is due, as far as the budget goes, and come again."""
        now = self.clock.monotonic()
        with self._lock:
            self._sweep_at = math.inf
            stop = stopwatch() + _SWEEP_SECONDS
            while self._wheel.due(now):
                self._wheel.advance(now, _SWEEP_SLICE)
                if stopwatch() > stop:
                    break
            self._arm(now)
        self._tell()

    def _shortened(self, now: float, ttl: float | None, life: Life | None) -> tuple[float | None, Life | None]:
        limit = self.max_ttl
        if limit is None:
            return ttl, life
        if life is None:
            return (limit if ttl is None else min(ttl, limit)), None
        until = min(life.fresh_until, now + limit)
        return None, Life(
            life.created_at, until, until, tags=life.tags, stamp=life.stamp, sliding=None, versions=life.versions
        )


def open_memory(options: StoreOptions) -> MemoryBackend:
    """The store of a ``memory://`` URL.

    Raises:
        ConfigError: The URL has a host or path, or an option is unknown or ill-typed.
    """
    if options.url.netloc or options.url.path.strip("/"):
        raise ConfigError(
            "memory:// has no host and no path: options follow a question mark, as in memory://?max_entries=1000"
        )
    if options.codec is not None:
        raise ConfigError("memory:// keeps the values themselves: it takes no codec")
    query = Options("memory://", options.query)
    store = MemoryBackend(
        max_entries=query.integer("max_entries", minimum=1, default=_DEFAULT_MAX_ENTRIES),
        max_bytes=query.integer("max_bytes", minimum=1, default=None),
        policy=query.choice("policy", tuple(sorted(EVICTION_POLICIES)), default="lru"),
        copy=query.boolean("copy", default=False),
        ttl=query.duration("ttl", default=None),
        clock=options.clock,
    )
    query.done()
    return store
