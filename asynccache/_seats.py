"""The two places where an entry may be.

The local seat answers at once and is always right about this process; the remote one is asked with an await and may
fail, which is taken by the failure policy.

Every change is made in the order: decide (void what is under way), local, remote, local once more where a read may
have put the old value back meanwhile.
"""

import math
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from itertools import islice
from typing import Any, Final, TypeAlias, final

from asynccache._background import Background
from asynccache._copies import Copies
from asynccache._failures import Failures
from asynccache._life import Life
from asynccache._stored import Stored
from asynccache._tags import LocalTags
from asynccache.backend import Backend, OnlyIf
from asynccache.backends.memory import MemoryBackend
from asynccache.clock import Clock
from asynccache.entry import Entry
from asynccache.errors import BackendError, DecodeError
from asynccache.policy import Terms
from asynccache.shape import Shape

__all__ = ["Found", "Seats"]

_ADOPTED_AT_ONCE: Final = 1_000

Found: TypeAlias = tuple[Any, Life]
"""A value with its times and tags."""


@final
class Seats:
    """A local store, a remote store, or both, as one.

    Attributes:
        attempt: That of the failure policy.
        background: The tasks of the cache.
    """

    def __init__(
        self,
        *,
        local: MemoryBackend | None,
        remote: Backend | None,
        clock: Clock,
        failures: Failures,
    ) -> None:
        self.local = local
        self.remote = remote
        self.clock = clock
        self.failures = failures
        self.attempt = failures.attempt
        self.background = Background()
        self._sliding: set[str] = set()
        self.tags = LocalTags()
        self.copies = Copies(local, remote)
        self.stored = None if remote is None else Stored(remote, self.copies, failures)
        self.remote_tags = None if self.stored is None else self.stored.tags
        if remote is not None and remote.reports is not None:
            remote.reports.add(failures.told)

    # Looking

    def look(self, key: str, now: float) -> Found | None:
        """What the local seat has, fresh or stale."""
        if self.local is None:
            return None
        found = self.local.look(key, now)
        if found is not None and not (self.tags.allows(found[1]) and self.copies.believes(found[1])):
            self.local.remove(key)
            return None
        return found

    async def life(self, key: str) -> Life | None:
        """The times of an entry, fresh or stale, of the remote seat where there is one: the local one has a copy, with
        a shorter life."""
        if self.stored is None:
            found = self.look(key, self.clock.monotonic())
            return None if found is None else found[1]
        entry, epoch = await self.stored.head(key), self.clock.epoch
        if entry is None:
            return None
        return Life(entry.created_at - epoch, entry.fresh_until - epoch, entry.expires_at - epoch)

    async def fetch(
        self,
        key: str,
        shape: Shape | None,
        refresh_ahead: float | None = None,
        *,
        slides: Terms | None = None,
        copied: bool = True,
        entry: Entry | None = None,
    ) -> Found | None:
        """What the remote seat has, fresh or stale; a fresh entry is kept in the local seat too.

        Args:
            key: The whole key.
            shape: That of the value's type, if it is known.
            refresh_ahead: The share of its ttl after which it is to be refreshed.
            slides: The terms by which a hit gives its whole ttl again, if it does.
            copied: Whether it is kept.
            entry: What the store has, where it was asked already.
        """
        if self.stored is None:
            return None
        if self.local is None:
            entry = await self.stored.entry(key, entry)
            stamp = self.tags.latest
            return None if entry is None else self._adopt(key, entry, stamp, shape, refresh_ahead, slides, False)
        stamp, token = self.tags.latest, self.copies.reading((key,))
        try:
            entry = await self.stored.entry(key)
            if entry is None:
                return None
            undisturbed = copied and self.copies.undisturbed(key, token)
            return self._adopt(key, entry, stamp, shape, refresh_ahead, slides, undisturbed)
        finally:
            self.copies.read((key,), token)

    async def fetch_many(
        self, keys: Sequence[str], shape: Shape | None, refresh_ahead: float | None = None, slides: Terms | None = None
    ) -> dict[str, Found]:
        """What the remote seat has of these, in one round trip (one more where entries have tags); see `fetch`."""
        if self.stored is None or not keys:
            return {}
        stamp, token = self.tags.latest, self.copies.reading(keys)
        try:
            entries = await self.stored.entries(keys)
            adopted = {}
            pairs = iter(entries.items())
            for done in range(0, len(entries), _ADOPTED_AT_ONCE):
                if done:
                    await sleep(0)  # a turn for the others
                for key, entry in islice(pairs, _ADOPTED_AT_ONCE):
                    undisturbed = self.copies.undisturbed(key, token)
                    found = self._adopt(key, entry, stamp, shape, refresh_ahead, slides, undisturbed)
                    if found is not None:
                        adopted[key] = found
            return adopted
        finally:
            self.copies.read(keys, token)

    def _adopt(
        self,
        key: str,
        entry: Entry,
        stamp: int,
        shape: Shape | None,
        refresh_ahead: float | None,
        slides: Terms | None,
        undisturbed: bool,
    ) -> Found | None:
        """The value and its life here; ``None`` when it is not of the type any more."""
        value = entry.value
        if shape is not None:
            try:
                value = shape.load(value)
            except DecodeError as error:
                self.failures.report("a stored value does not fit its type", error)
                return None
        elif entry.typed:
            undisturbed = False  # who knows the type would find plain data in the local seat
        epoch = self.clock.epoch
        ages_at = math.inf
        if refresh_ahead is not None and entry.fresh_until != math.inf:
            ages_at = entry.created_at - epoch + (entry.fresh_until - entry.created_at) * refresh_ahead
        life = Life(
            entry.created_at - epoch,
            entry.fresh_until - epoch,
            entry.expires_at - epoch,
            refresh_at=ages_at,
            tags=tuple(entry.tags),
            stamp=stamp,
            versions=entry.tags,
        )
        if slides is not None and entry.fresh_until != math.inf:
            life.sliding = slides.ttl_for(value)
            life.slide_seldom()
        if undisturbed:
            self.copies.keep(key, value, self.clock.monotonic(), life)
        return value, life

    def used(self, key: str, life: Life, now: float) -> None:
        """Count a use of an entry: for eviction, and for a ttl that slides."""
        local = self.local
        if life.sliding is not None:
            if self.remote is None:
                grace = life.expires_at - life.fresh_until
                life.fresh_until = now + life.sliding
                life.expires_at = life.fresh_until + grace
            elif now >= life.slides_at and key not in self._sliding:
                self._sliding.add(key)
                self.background.start(self._slide(self.remote, key, life, now + life.sliding), Context())
        if local is not None:
            local.used(key)

    async def _slide(self, remote: Backend, key: str, life: Life, fresh_until: float) -> None:
        """Tell the remote store of a hit, whose caller has gone on."""
        try:
            await self._touch(remote, key, life, fresh_until)
        except BackendError:
            pass  # it has been told, and nobody waits for this
        finally:
            self._sliding.discard(key)

    # Changing

    async def keep(
        self,
        key: str,
        value: Any,
        now: float,
        ttl: float | None,
        life: Life | None,
        shape: Shape | None,
        only_if: OnlyIf = None,
    ) -> bool:
        """Store a value in both seats; whether the condition held and the store took it."""
        local = self.local
        if self.stored is None:
            if local is None:
                return False
            if only_if is None:
                return local.put(key, value, now, ttl, life)
            with local.guard():
                found = self.look(key, now)
                if (found is not None and now < found[1].fresh_until) != (only_if == "present"):
                    return False
                return local.put(key, value, now, ttl, life)
        self.copies.disturb(key)
        if life is None:
            life = Life(now) if ttl is None else Life(now, now + ttl, now + ttl)
        replaced = [key] if only_if is None else []
        try:
            entry = await self.entry(value, life, shape)
        except BackendError:
            await self.stored.forfeit(replaced)
            raise
        if entry is None:
            await self.stored.forfeit(replaced)
        stored = None if entry is None else await self.stored.put(key, entry, only_if)
        self.copies.disturb(key)
        if stored:
            self.copies.written(key, value, now, ttl, life)
        elif stored is None and only_if is None:
            self.copies.unsent(key, value, now, ttl, life)
        elif stored is None and local is not None:
            local.remove(key)
        return bool(stored)

    async def entry(self, value: Any, life: Life, shape: Shape | None, since: float = math.inf) -> Entry | None:
        """The value as the remote seat keeps it; ``None`` when its tags' versions cannot be had, or are newer than the
        monotonic time when its making began.

        Raises:
            EncodeError: It is not of the type that the shape is of, or would not come back equal.
        """
        plain = value if shape is None else shape.dump(value)
        epoch = self.clock.epoch
        versions: Mapping[str, str] = life.versions or {}
        if life.tags and not life.versions and self.remote_tags is not None:
            got = await self.attempt(
                "get_many", self.remote_tags.versions(life.tags, life.created_at + epoch, since + epoch), None
            )
            if got is None:
                return None
            life.versions = versions = got
        return Entry(
            value=plain,
            created_at=life.created_at + epoch,
            fresh_until=life.fresh_until + epoch,
            expires_at=life.expires_at + epoch,
            tags=versions,
            typed=plain is not value,
        )

    async def keep_many(
        self,
        values: Mapping[str, Any],
        now: float,
        lives: Mapping[str, Life],
        shape: Shape | None,
        overtaken: Callable[[str], bool] = lambda _: False,
    ) -> bool:
        """Store all in both seats, in one round trip, but for those that a write has overtaken meanwhile."""
        taken = sent = True
        if self.remote is not None and self.stored is not None:
            entries = {}
            versions: dict[tuple[str, ...], Mapping[str, str] | None] = {}  # most have the same tags
            try:
                for key, value in values.items():
                    self.copies.disturb(key)
                    life = lives[key]
                    life.versions = life.versions or versions.get(life.tags)
                    entry = await self.entry(value, life, shape)
                    versions[life.tags] = life.versions
                    if entry is not None:
                        entries[key] = entry
            except BackendError:
                await self.stored.forfeit(list(values))
                raise
            taken = len(entries) == len(values)
            if not taken:
                await self.stored.forfeit([key for key in values if key not in entries])
            entries = {key: entry for key, entry in entries.items() if not overtaken(key)}
            sent = await self.attempt("set_many", _done(self.remote.set_many(entries)), False)
            taken = taken and sent
        if self.local is not None:
            for key, value in values.items():
                self.copies.disturb(key)
                with self.local.guard():
                    if overtaken(key):
                        taken = False
                    elif sent:
                        taken = self.copies.written(key, value, now, None, lives[key]) and taken
                    else:
                        self.copies.unsent(key, value, now, None, lives[key])
        return taken

    async def drop(self, keys: Sequence[str]) -> int:
        """Remove the keys from both seats; how many were there, fresh."""
        now = self.clock.monotonic()
        count = sum([self.drop_local(key, now) for key in keys])
        if self.remote is not None:
            count = await self.attempt("delete", self.remote.delete(keys), 0)
            for key in keys:
                self.drop_local(key, now)
        return count

    def drop_local(self, key: str, now: float) -> bool:
        """Remove the key from the local seat; whether it was there, fresh."""
        self.copies.disturb(key)
        if self.local is None:
            return False
        found = self.look(key, now)
        return self.local.remove(key) and found is not None and now < found[1].fresh_until

    async def retime(self, key: str, now: float, ttl: float | None) -> bool:
        """Give a fresh entry a new ttl, from now; its grace stays as long as it was."""
        fresh_until = math.inf if ttl is None else now + ttl
        old = await self.life(key)
        if old is None or now >= old.fresh_until:
            return False
        if self.remote is not None:
            return await self._touch(self.remote, key, old, fresh_until)
        if self.local is None:
            return False
        new = Life(
            old.created_at,
            fresh_until,
            fresh_until + _grace_of(old),
            tags=old.tags,
            stamp=old.stamp,
            sliding=old.sliding,
        )
        self.local.retime(key, new, now)
        return True

    async def _touch(self, remote: Backend, key: str, life: Life, fresh_until: float) -> bool:
        """Give an entry of the remote seat another time; its grace stays as long as it was."""
        epoch = self.clock.epoch
        times = {"fresh_until": fresh_until + epoch, "expires_at": fresh_until + _grace_of(life) + epoch}
        touched = await self.attempt("touch", remote.touch(key, **times), False)
        self.copies.disturb(key)
        if self.local is not None:
            self.local.remove(key)
        return touched

    async def add_to(self, key: str, delta: int, now: float, ttl: float | None) -> int:
        """Add to a counter, atomically; 0 when the store fails.

        Raises:
            TypeError: The key holds something else.
        """
        if self.remote is not None:
            self.copies.disturb(key)
            if self.local is not None:
                self.local.remove(key)
            total = await self.attempt("incr", self.remote.incr(key, delta, ttl=ttl), 0)
            self.copies.disturb(key)
            if self.local is not None:
                self.local.remove(key)
            return total
        if self.local is None:
            return 0
        with self.local.guard():
            found = self.look(key, now)
            if found is None or now >= found[1].fresh_until:
                self.local.put(key, delta, now, ttl)
                return delta
            value = found[0]
            if type(value) is not int:
                raise TypeError(f"a counter holds an integer, this key holds {type(value).__name__}")
            self.local.swap(key, value + delta)
            self.local.used(key)
            return value + delta

    async def invalidate(self, tags: Sequence[str]) -> bool:
        """Hide every entry with one of the tags whose making began before now."""
        self.tags.invalidate(tags)
        self.copies.disturb_all()
        if self.remote_tags is None:
            return True
        now = self.clock.monotonic() + self.clock.epoch
        stored = await self.attempt("set_many", _done(self.remote_tags.invalidate(tags, now)), False)
        self.copies.disturb_all()
        if self.local is not None:
            self.tags.invalidate(tags)  # a read that began meanwhile may have kept what it found
        return stored

    async def ping(self) -> bool:
        """Whether the remote store answers, if there is one."""
        return self.remote is None or await self.attempt("ping", _done(self.remote.ping()), False)


def _grace_of(life: Life) -> float:
    return 0.0 if life.fresh_until == math.inf else life.expires_at - life.fresh_until


async def _done(work: Awaitable[None]) -> bool:
    await work
    return True
