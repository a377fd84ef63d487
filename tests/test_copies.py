"""Copies of what a store tells of: no change between a question and its answer is forgotten.

The store is a toy of which the test says when it answers, and what it tells. What it had when it was asked is what it
answers, however late.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from waiting import comes

from asynccache import Cache, Entry, MemoryBackend
from asynccache import _copies as module
from asynccache._tags import record_key
from asynccache.backend import OnlyIf
from asynccache.errors import BackendUnavailable
from asynccache.testing import TravellingClock
from examples.custom_backend import ToyBackend, ToyServer


class Telling:
    """The coherence of a store, by the hand of the test."""

    def __init__(self) -> None:
        self.live = True
        self._listeners: list[Callable[[Sequence[str] | None], object]] = []

    def watch(self, changed: Callable[[Sequence[str] | None], object]) -> None:
        self._listeners.append(changed)

    def tell(self, *keys: str) -> None:
        for listener in self._listeners:
            listener(keys)

    def lose(self) -> None:
        """Messages may have been missed."""
        for listener in self._listeners:
            listener(None)


class SlowBackend(ToyBackend):
    """A store of which the answers to reads can be held back; it can be away for writes."""

    def __init__(self, server: ToyServer, clock: TravellingClock) -> None:
        super().__init__(server, clock=clock)
        self.coherence: Telling = Telling()  # type: ignore[assignment]
        self.reads: Counter[str] = Counter()
        self.held = ""
        self.gate = asyncio.Event()
        self.away = False

    async def _answered(self, keys: Sequence[str]) -> None:
        self.reads.update(keys)
        if self.held in keys:
            self.held = ""
            await self.gate.wait()

    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key)
        await self._answered([key])
        return entry

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        entries = await super().get_many(keys)
        await self._answered(keys)
        return entries

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        if self.away:
            raise BackendUnavailable("away")
        return await super().set(key, entry, only_if=only_if)


class Near:
    """A cache with a local store, and another process without one."""

    def __init__(self, clock: TravellingClock) -> None:
        server = ToyServer()
        self.backend = SlowBackend(server, clock)
        self.local = MemoryBackend(clock=clock)
        self.cache = Cache(self.backend, local=self.local, clock=clock, ttl="10m", on_error=lambda _: None)
        self.other = Cache(ToyBackend(server, clock=clock), clock=clock, ttl="10m", on_error="raise")
        self.telling = self.backend.coherence

    async def asked(self, read: Awaitable[Any], held: str = "key") -> "asyncio.Future[Any]":
        """A read whose answer is under way."""
        self.backend.held = held
        reading = asyncio.ensure_future(read)
        await comes(lambda: self.backend.held == "", "the store was asked")
        return reading

    async def copied(self, key: str = "key") -> bool:
        """Whether the key is answered without the store."""
        before = self.backend.reads.total()
        await self.cache.get(key)
        return self.backend.reads.total() == before


@pytest.fixture
def near(clock: TravellingClock) -> Near:
    return Near(clock)


READS: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "get": lambda cache: cache.get("key"),
    "get_many": lambda cache: cache.get_many(["key"]),
    "get_or_set": lambda cache: cache.get_or_set("key", lambda: "loaded"),
    "get_or_set_many": lambda cache: cache.get_or_set_many(["key"], lambda keys: dict.fromkeys(keys, "loaded")),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("told", ["of the key", "of others", "of a loss"])
async def test_what_is_told_before_the_answer(near: Near, read: str, told: str) -> None:
    """The answer may be older than the change: it is handed on, and is no copy; changes of other keys are no reason."""
    await near.other.set("key", "old")
    reading = await near.asked(READS[read](near.cache))
    if told == "of the key":
        await near.other.set("key", "newer")
        near.telling.tell("key")
    elif told == "of a loss":
        await near.other.set("key", "newer")
        near.telling.lose()
    else:
        near.telling.tell("another", "key:")
    near.backend.gate.set()
    assert await reading in ("old", {"key": "old"})
    assert await near.cache.get("key") == ("old" if told == "of others" else "newer")
    assert await near.copied()


WRITES: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "set": lambda cache: cache.set("key", 7),
    "set_many": lambda cache: cache.set_many({"key": 7}),
    "delete": lambda cache: cache.delete("key"),
    "incr": lambda cache: cache.incr("key"),
    "touch": lambda cache: cache.touch("key", "1h"),
    "invalidate_tags": lambda cache: cache.invalidate_tags("tag"),
    "clear": lambda cache: cache.clear(),
}


@pytest.mark.parametrize("tags", [[], ["tag"]], ids=["untagged", "tagged"])
@pytest.mark.parametrize("write", WRITES)
async def test_what_is_written_here_before_the_answer(
    near: Near, clock: TravellingClock, write: str, tags: list[str]
) -> None:
    """One's own write counts at once, though no message of it has come: a read that was under way leaves no copy."""
    await near.other.set("key", 1, tags=tags)
    reading = await near.asked(near.cache.get("key"))
    await WRITES[write](near.cache)
    near.backend.gate.set()
    await reading
    clock.travel(599)
    assert await near.cache.get("key") == await near.other.get("key")
    clock.travel(2)
    assert await near.cache.get("key") == await near.other.get("key")


@pytest.mark.parametrize("told", ["of the tag", "of a loss"])
async def test_a_tag_that_is_invalidated_before_its_version_is_answered(near: Near, told: str) -> None:
    """The version that was asked for may be the old one: no copy is believed for it."""
    await near.other.set("key", "value", tags=["tag"])
    reading = await near.asked(near.cache.get("key"), held=record_key("tag"))
    await near.other.invalidate_tags("tag")
    if told == "of the tag":
        near.telling.tell(record_key("tag"))
    else:
        near.telling.lose()
    near.backend.gate.set()
    assert await reading == "value"
    assert await near.cache.get("key") is None


async def test_a_tag_that_is_invalidated_while_there_are_copies(near: Near) -> None:
    """Those that carry it are not served any more; those with other tags are."""
    await near.other.set("key", "value", tags=["tag", "both"])
    await near.other.set("another", "value", tags=["both"])
    assert await near.cache.get_many(["key", "another"]) == {"key": "value", "another": "value"}
    assert await near.copied("key")
    await near.other.invalidate_tags("tag")
    near.telling.tell(record_key("tag"))
    assert await near.cache.get("key") is None
    assert await near.copied("another")


async def test_so_many_versions_of_tags_are_known(near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded: what is forgotten is read again, and is as right as before."""
    monkeypatch.setattr(module, "_MOST_VERSIONS", 3)
    keys = [f"key{number}" for number in range(4)]
    for key in keys:
        await near.other.set(key, "value", tags=[f"tag of {key}"])
    for key in keys[:3]:
        assert await near.cache.get(key) == "value"
    assert [await near.copied(key) for key in keys[:3]] == [True] * 3
    assert await near.cache.get(keys[3]) == "value"
    assert not await near.copied(keys[0])
    assert await near.copied(keys[0])
    assert await near.copied(keys[3])


async def test_what_could_not_be_stored_is_believed_for_a_moment(near: Near, clock: TravellingClock) -> None:
    """While the store is away a cache has what it wrote, for a second: nobody tells it of what comes then."""
    near.backend.away = True
    assert not await near.cache.set("key", "mine")
    assert await near.cache.get("key") == "mine"
    await near.other.set("key", "of another")
    clock.travel(0.9)
    assert await near.cache.get("key") == "mine"
    clock.travel(0.2)
    assert await near.cache.get("key") == "of another"


@pytest.mark.parametrize("live", [True, False])
async def test_a_store_that_cannot_tell_just_now(near: Near, clock: TravellingClock, live: bool) -> None:
    """What is read from it then is believed for a second, and not for as long as it lives."""
    near.telling.live = live
    await near.other.set("key", "old")
    assert await near.cache.get("key") == "old"
    assert await near.copied()
    clock.travel(1.1)
    assert await near.copied() is live
