"""The suite that a backend must pass."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from asynccache.backend import Backend, Lease, Leases
from asynccache.clock import Clock, SystemClock
from asynccache.entry import MISSING, Entry

__all__ = ["BackendConformance"]

_KEYS = (
    "plain", " ", "a b", "line\nbreak", "tab\t", "*", "?", "[a-z]", "t[1]", "back\\slash", "per%cent", "co:lon",
    "quo'te\"s", "ünïcödé", "日本語", "😀", "k" * 1_024, "é" * 512, "../up", "{braces}", "view\0key",
)  # fmt: skip


class BackendConformance:
    """What every backend keeps, as test methods for pytest.

    Subclass it in a test module, as a class whose name begins with ``Test``, and say how to open an empty backend. The
    methods are coroutines: run them by pytest-asyncio (in strict mode the subclass needs ``pytest.mark.asyncio``).
    Nothing is inherited but tests: the backend itself inherits nothing.

    A backend whose ``leases`` is ``None`` has nothing to keep of what the suite says about leases.

    Attributes:
        clock: On which entries have their times. With a clock of your own, override `pass_time` too.
        values: What the backend must bring back equal, and of the same type.
        resolution: Seconds by which an expiry may come late.
    """

    clock: Clock = SystemClock()
    values: Sequence[Any] = (
        None, True, False, 0, -1, 2**53, 1.5, "", "text", "ünïcödé", [], [1, "two", None], {}, {"a": {"b": [1]}},
    )  # fmt: skip
    resolution: float = 0.05

    async def open(self) -> Backend:
        """An empty backend, which the suite will close."""
        raise AssertionError("say how to open an empty backend: override open()")

    async def open_another(self, backend: Backend) -> Backend:
        """Another backend on the same store, as another process would have; the same one where there is no such
        thing."""
        return backend

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, on the clock and for the backend."""
        await asyncio.sleep(seconds)

    # Tools

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Backend]:
        """An empty backend, closed in the end."""
        backend = await self.open()
        try:
            yield backend
        finally:
            await backend.aclose()

    def entry(self, value: Any = "value", ttl: float = math.inf, grace: float = 0.0, **more: Any) -> Entry:
        """An entry made now."""
        now = self.clock.epoch + self.clock.monotonic()
        return Entry(value=value, created_at=now, fresh_until=now + ttl, expires_at=now + ttl + grace, **more)

    async def value(self, backend: Backend, key: str) -> Any:
        """The value under the key, or ``None``."""
        entry = await backend.get(key)
        return None if entry is None else entry.value

    # Values and keys

    async def test_its_name_is_a_short_word(self) -> None:
        """Spans and metrics call a backend by one lower-case word."""
        async with self.opened() as backend:
            assert backend.name.isidentifier()
            assert backend.name == backend.name.lower()

    async def test_an_entry_comes_back_as_it_went(self) -> None:
        """Value, times and tags are those that were stored; without its value an entry is the same."""
        async with self.opened() as backend:
            entry = self.entry(ttl=60, grace=30, tags={"blue": "1", "red:ü": "2"})
            assert await backend.set("key", entry) is True
            found = await backend.get("key")
            assert found is not None
            assert found.value == entry.value
            assert dict(found.tags) == dict(entry.tags)
            for name in ("created_at", "fresh_until", "expires_at"):
                assert abs(getattr(found, name) - getattr(entry, name)) <= self.resolution, name
            if backend.heads is not None:
                assert await backend.heads.get_many(["key", "other"]) == {"key": replace(found, value=MISSING)}

    async def test_every_value_comes_back_equal(self) -> None:
        """A value comes back equal and of its type, singly and with others."""
        async with self.opened() as backend:
            await backend.set_many({f"k{place}": self.entry(value) for place, value in enumerate(self.values)})
            together = await backend.get_many([f"k{place}" for place in range(len(self.values))])
            for place, value in enumerate(self.values):
                for found in (await self.value(backend, f"k{place}"), together[f"k{place}"].value):
                    assert found == value
                    assert type(found) is type(value)

    async def test_every_key_is_an_ordinary_key(self) -> None:
        """No character of a key means anything: each has its own entry."""
        async with self.opened() as backend:
            for key in _KEYS:
                await backend.set(key, self.entry(key))
            assert {key: await self.value(backend, key) for key in _KEYS} == {key: key for key in _KEYS}
            assert set(await backend.get_many(_KEYS)) == set(_KEYS)
            assert {key async for key in backend.keys("")} == set(_KEYS)
            for key in _KEYS:
                assert await backend.delete([key]) == 1
            assert not await backend.get_many(_KEYS)

    async def test_an_entry_without_end_stays(self) -> None:
        """``math.inf`` means never."""
        async with self.opened() as backend:
            await backend.set("key", self.entry())
            found = await backend.get("key")
            assert found is not None
            assert found.fresh_until == found.expires_at == math.inf

    # Reading and writing

    async def test_what_is_absent_is_none(self) -> None:
        """A key that nobody has stored is not found, by any call."""
        async with self.opened() as backend:
            assert await backend.get("key") is None
            assert await backend.get_many(["key", "other"]) == {}
            assert await backend.get_many([]) == {}
            assert await backend.delete(["key"]) == 0
            assert await backend.delete([]) == 0
            assert await backend.touch("key", fresh_until=math.inf, expires_at=math.inf) is False

    async def test_a_write_replaces(self) -> None:
        """The last write counts, its times and tags too."""
        async with self.opened() as backend:
            await backend.set("key", self.entry("old", ttl=60, tags={"tag": "1"}))
            await backend.set("key", self.entry("new"))
            found = await backend.get("key")
            assert found is not None
            assert (found.value, found.fresh_until, dict(found.tags)) == ("new", math.inf, {})

    async def test_many_at_once(self) -> None:
        """Bulk calls do what single ones do; a key named twice counts once."""
        async with self.opened() as backend:
            await backend.set_many({"a": self.entry(1), "b": self.entry(2)})
            found = await backend.get_many(["a", "b", "b", "c"])
            assert {key: entry.value for key, entry in found.items()} == {"a": 1, "b": 2}
            assert await backend.delete(["a", "a", "c"]) == 1
            assert await self.value(backend, "b") == 2

    async def test_conditions(self) -> None:
        """``absent`` stores where nothing fresh is, ``present`` where something is."""
        async with self.opened() as backend:
            assert await backend.set("key", self.entry(1), only_if="present") is False
            assert await backend.get("key") is None
            assert await backend.set("key", self.entry(2), only_if="absent") is True
            assert await backend.set("key", self.entry(3), only_if="absent") is False
            assert await self.value(backend, "key") == 2
            assert await backend.set("key", self.entry(4), only_if="present") is True
            assert await self.value(backend, "key") == 4
            if backend.heads is not None:
                there = await backend.heads.add("key", self.entry(5))
                assert there is not None
                assert there.value is MISSING
                assert await backend.heads.add("another", self.entry(6)) is None
                assert [await self.value(backend, key) for key in ("key", "another")] == [4, 6]

    async def test_a_condition_holds_for_one_of_many(self) -> None:
        """Of callers who store if absent, at the same time and through several backends, exactly one does."""
        async with self.opened() as backend:
            other = await self.open_another(backend)
            stored = await asyncio.gather(
                *((backend, other)[number % 2].set("key", self.entry(number), only_if="absent") for number in range(20))
            )
            assert sum(stored) == 1
            assert await self.value(other, "key") == stored.index(True)

    # Time

    async def test_a_stale_entry_is_there_until_it_expires(self) -> None:
        """Past its ttl an entry is still returned, for its grace, and then gone."""
        async with self.opened() as backend:
            await backend.set("key", self.entry(ttl=0.1, grace=0.4))
            await self.pass_time(0.2)
            assert await self.value(backend, "key") == "value"
            assert set(await backend.get_many(["key"])) == {"key"}
            assert backend.heads is None or set(await backend.heads.get_many(["key"])) == {"key"}
            await self.pass_time(0.3 + self.resolution)
            assert backend.heads is None or await backend.heads.get_many(["key"]) == {}
            assert await backend.get("key") is None
            assert await backend.get_many(["key"]) == {}

    async def test_a_short_ttl_is_no_zero(self) -> None:
        """Parts of a second count: an entry of a tenth of one is there, and then not."""
        async with self.opened() as backend:
            await backend.set("key", self.entry(ttl=0.1))
            assert await self.value(backend, "key") == "value"
            await self.pass_time(0.1 + self.resolution)
            assert await backend.get("key") is None

    async def test_a_stale_entry_counts_as_absent(self) -> None:
        """Deleting, touching and conditions look at fresh entries only; the list of keys names stale ones too."""
        async with self.opened() as backend:
            for key in ("deleted", "touched", "stored"):
                await backend.set(key, self.entry(ttl=0.1, grace=60))
            await self.pass_time(0.1 + self.resolution)
            assert {key async for key in backend.keys("")} == {"deleted", "touched", "stored"}
            assert await backend.delete(["deleted"]) == 0
            assert await backend.get("deleted") is None
            assert await backend.touch("touched", fresh_until=math.inf, expires_at=math.inf) is False
            assert await backend.set("stored", self.entry("new"), only_if="present") is False
            assert await backend.set("stored", self.entry("new"), only_if="absent") is True

    async def test_touching_gives_new_times(self) -> None:
        """A fresh entry has the times that it is given, and keeps its value and tags."""
        async with self.opened() as backend:
            await backend.set("key", self.entry(ttl=0.1, tags={"tag": "1"}))
            later = self.entry(ttl=60, grace=60)
            assert await backend.touch("key", fresh_until=later.fresh_until, expires_at=later.expires_at) is True
            await self.pass_time(0.2)
            found = await backend.get("key")
            assert found is not None
            assert (found.value, dict(found.tags)) == ("value", {"tag": "1"})
            assert abs(found.expires_at - later.expires_at) <= self.resolution

    # Counters

    async def test_counters(self) -> None:
        """A counter starts at zero, goes up and down, and is a value like others."""
        async with self.opened() as backend:
            assert await backend.incr("key", 1, ttl=None) == 1
            assert await backend.incr("key", 10, ttl=None) == 11
            assert await backend.incr("key", -20, ttl=None) == -9
            assert await self.value(backend, "key") == -9
            await backend.set("key", self.entry(5))
            assert await backend.incr("key", 1, ttl=None) == 6

    async def test_a_counter_lives_as_long_as_its_first_ttl_says(self) -> None:
        """The ttl counts when the counter is created; a counter that is over starts again."""
        async with self.opened() as backend:
            await backend.incr("key", 1, ttl=0.3)
            assert await backend.incr("key", 1, ttl=60) == 2
            await self.pass_time(0.3 + self.resolution)
            assert await backend.get("key") is None
            assert await backend.incr("key", 1, ttl=None) == 1

    async def test_no_count_is_lost(self) -> None:
        """Additions at the same time, through several backends, all count."""
        async with self.opened() as backend:
            other = await self.open_another(backend)
            totals = await asyncio.gather(
                *((backend, other)[number % 2].incr("key", 1, ttl=None) for number in range(50))
            )
            assert sorted(totals) == list(range(1, 51))

    async def test_what_is_no_number_is_not_counted(self) -> None:
        """Adding to something else is a TypeError and changes nothing."""
        async with self.opened() as backend:
            await backend.set("key", self.entry("text"))
            with suppress(TypeError):
                await backend.incr("key", 1, ttl=None)
                raise AssertionError("this is no number")
            assert await self.value(backend, "key") == "text"

    # Keys

    async def test_keys_are_those_with_the_prefix(self) -> None:
        """A prefix is text, not a pattern: neighbours that look alike are not among them."""
        async with self.opened() as backend:
            mine = {"t*:a", "t*:b"}
            for key in mine | {"t1:a", "tt:a", "T*:a", "t*", "other"}:
                await backend.set(key, self.entry())
            assert {key async for key in backend.keys("t*:")} == mine
            assert [key async for key in backend.keys("nobody:")] == []

    async def test_keys_of_a_large_store(self) -> None:
        """Each key is named, however many there are, and none twice for a store that is left alone."""
        async with self.opened() as backend:
            names = {f"p:{number}" for number in range(1_200)}
            await backend.set_many({key: self.entry() for key in names})
            found = [key async for key in backend.keys("p:")]
            assert set(found) == names
            assert len(found) == len(names)

    # Whose backend it is

    async def test_another_backend_sees_the_same(self) -> None:
        """What one writes the other reads."""
        async with self.opened() as backend:
            other = await self.open_another(backend)
            await backend.set("key", self.entry(1))
            assert await self.value(other, "key") == 1
            await other.delete(["key"])
            assert await backend.get("key") is None

    async def test_calls_at_the_same_time_get_their_own_answers(self) -> None:
        """Nobody is handed what was meant for somebody else."""
        async with self.opened() as backend:
            await backend.set_many({f"k{number}": self.entry(number) for number in range(100)})
            answers = await asyncio.gather(*(self.value(backend, f"k{number}") for number in range(100)))
            assert answers == list(range(100))

    async def test_a_cancelled_call_harms_no_other(self) -> None:
        """After calls that were cancelled, at once or half-way, others get their own answers."""
        async with self.opened() as backend:
            await backend.set_many({f"k{number}": self.entry(number) for number in range(60)})
            calls = [asyncio.ensure_future(backend.get(f"k{number}")) for number in range(60)]
            for turn in range(3):
                await asyncio.sleep(0)
                for call in calls[turn::4]:
                    call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            answers = await asyncio.gather(*(self.value(backend, f"k{number}") for number in range(60)))
            assert answers == list(range(60))

    async def test_ping_returns(self) -> None:
        """A store that is there answers."""
        async with self.opened() as backend:
            await backend.ping()

    async def test_closing_twice_is_fine(self) -> None:
        """A second ``aclose`` does nothing."""
        async with self.opened() as backend:
            await backend.set("key", self.entry())
            await backend.aclose()

    def test_one_loop_after_another(self) -> None:
        """A backend is used under one event loop, and then under the next."""

        async def first() -> Backend:
            backend = await self.open()
            await backend.set("key", self.entry(1))
            return backend

        async def then(backend: Backend) -> Any:
            found = await self.value(backend, "key")
            await backend.aclose()
            return found

        backend = asyncio.run(first())
        assert asyncio.run(then(backend)) == 1

    # Leases

    async def test_one_of_many_gets_the_lease(self) -> None:
        """Of callers who ask at the same time, through several backends, exactly one is granted."""
        async with self.opened() as backend:
            mine, others = backend.leases, (await self.open_another(backend)).leases
            if mine is not None and others is not None:
                asked = [(mine, others)[number % 2].acquire("key", ttl=5) for number in range(20)]
                granted = [lease for lease in await asyncio.gather(*asked) if lease is not None]
                assert [lease.key for lease in granted] == ["key"]
                assert await mine.acquire("another", ttl=5) is not None

    async def test_a_lease_lapses_unless_it_is_renewed(self) -> None:
        """After its ttl somebody else may have it, and its holder can neither renew nor commit."""
        async with self.opened() as backend:
            if (leases := backend.leases) is not None:
                lease = await self._acquired(leases, ttl=0.3)
                await self.pass_time(0.2)
                assert await leases.renew(lease, ttl=0.3) is True
                await self.pass_time(0.2)
                assert await leases.acquire("key", ttl=5) is None
                await self.pass_time(0.1 + self.resolution)
                assert await leases.renew(lease, ttl=5) is False
                assert await leases.acquire("key", ttl=5) is not None
                assert await leases.commit(lease, self.entry("late")) is False
                assert await backend.get("key") is None

    async def test_a_commit_stores_and_gives_back(self) -> None:
        """The holder's entry is stored and the lease is free, in one step."""
        async with self.opened() as backend:
            if (leases := backend.leases) is not None:
                lease = await self._acquired(leases)
                assert await leases.commit(lease, self.entry("loaded")) is True
                assert await self.value(backend, "key") == "loaded"
                assert await leases.commit(lease, self.entry("again")) is False
                assert await leases.acquire("key", ttl=5) is not None

    async def test_every_write_voids_the_lease(self) -> None:
        """After a ``set``, ``set_many`` or ``delete`` of its key by anybody the holder cannot store."""
        async with self.opened() as backend:
            if (leases := backend.leases) is not None:
                for write in ("set", "set_many", "delete"):
                    lease = await self._acquired(leases)
                    await self._end(write, backend, leases, lease)
                    before = await self.value(backend, "key")
                    assert await leases.renew(lease, ttl=5) is False
                    assert await leases.commit(lease, self.entry("loaded")) is False
                    assert await self.value(backend, "key") == before

    async def test_a_release_is_for_the_holder_alone(self) -> None:
        """A lease that is given back is free; giving back a void one takes nothing from its successor."""
        async with self.opened() as backend:
            if (leases := backend.leases) is not None:
                first = await self._acquired(leases)
                await leases.release(first)
                await self._acquired(leases)
                await leases.release(first)
                assert await leases.acquire("key", ttl=5) is None

    async def test_waiting_ends_with_the_lease(self) -> None:
        """Who waits is woken when the lease is given back, committed or voided."""
        async with self.opened() as backend:
            if (leases := backend.leases) is not None:
                for end in ("release", "commit", "set", "set_many", "delete"):
                    lease = await self._acquired(leases)
                    waiting = asyncio.gather(*(leases.wait("key", timeout=30) for _ in range(3)))
                    await asyncio.sleep(0.02)
                    assert not waiting.done()
                    await self._end(end, backend, leases, lease)
                    await asyncio.wait_for(waiting, 2)

    async def test_waiting_ends_in_time(self) -> None:
        """Who waits for a lease that nobody gives back waits until it lapses, or for the timeout."""
        async with self.opened() as backend:
            if (leases := backend.leases) is not None:
                await asyncio.wait_for(leases.wait("nobody has this", timeout=30), 2)
                await self._acquired(leases, ttl=0.4)
                for timeout in (0.1, 30.0):
                    waiting = asyncio.ensure_future(leases.wait("key", timeout=timeout))
                    await asyncio.sleep(0.02)
                    await self.pass_time(min(timeout, 0.4) + self.resolution)
                    await asyncio.wait_for(waiting, 2)

    async def _acquired(self, leases: Leases, ttl: float = 30) -> Lease:
        lease = await leases.acquire("key", ttl=ttl)
        assert lease is not None
        return lease

    async def _end(self, how: str, backend: Backend, leases: Leases, lease: Lease) -> None:
        if how == "release":
            await leases.release(lease)
        elif how == "commit":
            await leases.commit(lease, self.entry())
        elif how == "set":
            await backend.set("key", self.entry())
        elif how == "set_many":
            await backend.set_many({"key": self.entry()})
        else:
            await backend.delete(["key"])
