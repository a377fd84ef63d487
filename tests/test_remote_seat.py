"""A remote store behind the cache: one load among processes, and what happens when the store fails."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from factories import Gated
from waiting import turns

from asynccache import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    DecodeError,
    EncodeError,
    Entry,
    LoadCancelled,
    MemoryBackend,
    Policy,
)
from asynccache._prefixed import Prefixed
from asynccache.testing import FaultyBackend, TravellingClock
from examples.custom_backend import ToyBackend, ToyServer


class Process:
    """A cache as one process of several would have it, on a server that they share."""

    def __init__(
        self, server: ToyServer, clock: TravellingClock, *, tiers: bool = False, prefix: str = "", **options: Any
    ) -> None:
        self.backend = FaultyBackend(ToyBackend(server, clock=clock))
        store = Prefixed(self.backend, prefix) if prefix else self.backend
        local = MemoryBackend(clock=clock) if tiers else None
        self.cache = Cache(store, local=local, clock=clock, **{"ttl": "10m", **options})
        self.calls = self.backend.calls


@pytest.fixture
def server() -> ToyServer:
    return ToyServer()


@pytest.fixture(
    params=[{}, {"tiers": True}, {"tiers": True, "prefix": "n:"}], ids=["remote", "two tiers", "a tier of its own"]
)
def join(request: pytest.FixtureRequest, server: ToyServer, clock: TravellingClock) -> Callable[..., Process]:
    """Starts one more process."""
    return lambda **options: Process(server, clock, **{**request.param, **options})


async def pass_time(clock: TravellingClock, seconds: float, step: float = 0.5) -> None:
    """Let time pass in steps, with turns for everybody between them."""
    while seconds > 0:
        clock.travel(min(step, seconds))
        seconds -= step
        await turns()


async def listed(cache: Cache) -> list[str]:
    """The keys of the cache."""
    keys = cache.keys()
    return [key async for key in keys]


# One load among processes


async def test_one_load_among_processes(join):
    """Of a thousand callers in two processes one loads; the others get its value, woken and not by polling."""
    one, two = join(), join()
    factory = Gated()
    callers = [
        asyncio.ensure_future((one, two)[number % 2].cache.get_or_set("key", factory)) for number in range(1_000)
    ]
    await turns()
    asked = sum(one.calls.values()) + sum(two.calls.values())
    assert factory.calls == 1
    factory.gate.set()
    assert await asyncio.gather(*callers) == ["loaded"] * 1_000
    assert factory.calls == 1
    assert sum(one.calls.values()) + sum(two.calls.values()) <= asked + 10
    assert asked < 20


async def test_a_dead_holder_is_replaced_within_its_lease(join, clock):
    """When the holder's renewals do not come any more, another process loads after three seconds."""
    dying, other = join(), join()
    first, second = Gated("first"), Gated("second")
    dying_call = asyncio.ensure_future(dying.cache.get_or_set("key", first))
    await turns()
    dying.backend.hang("renew")
    waiting = asyncio.ensure_future(other.cache.get_or_set("key", second))
    await turns()
    await pass_time(clock, 2.5)
    assert second.calls == 0
    await pass_time(clock, 1)
    assert second.calls == 1
    second.gate.set()
    assert await waiting == "second"
    # The frozen holder comes back late: its callers get its value, and what came after stays.
    first.gate.set()
    assert await dying_call == "first"
    assert await other.cache.get("key") == "second"
    dying.backend.heal()
    await turns()


async def test_a_long_load_keeps_its_lease(join, clock):
    """Work of three leases' length is renewed all along, and done once."""
    one, two = join(), join()
    factory = Gated()
    calls = [asyncio.ensure_future(process.cache.get_or_set("key", factory)) for process in (one, two)]
    await turns()
    await pass_time(clock, 10)
    assert factory.calls == 1
    factory.gate.set()
    assert await asyncio.gather(*calls) == ["loaded", "loaded"]
    assert factory.calls == 1
    assert one.calls["renew"] + two.calls["renew"] >= 9


@pytest.mark.parametrize("write", ["delete", "set", "set_many", "invalidate_tags"])
async def test_another_process_writes_during_a_load(join, write):
    """A write in another process wins over the load; who waited gets the loaded value."""
    one, two = join(), join()
    factory = Gated()
    waiting = asyncio.ensure_future(one.cache.get_or_set("key", factory, tags=["tag"]))
    await turns()
    writes: dict[str, Callable[[], Awaitable[object]]] = {
        "delete": lambda: two.cache.delete("key"),
        "set": lambda: two.cache.set("key", "newer"),
        "set_many": lambda: two.cache.set_many({"key": "newer"}),
        "invalidate_tags": lambda: two.cache.invalidate_tags("tag"),
    }
    await writes[write]()
    factory.gate.set()
    assert await waiting == "loaded"
    await turns()
    newer = "newer" if write.startswith("set") else None
    assert await two.cache.get("key") == newer


async def test_losing_the_store_during_a_load(join):
    """When the store goes away each process loads once, and no caller sees an error."""
    one, two = join(), join()
    for process in (one, two):
        process.backend.fail()
    factory = Gated()
    callers = [asyncio.ensure_future((one, two)[number % 2].cache.get_or_set("key", factory)) for number in range(100)]
    await turns()
    assert factory.calls == 2
    factory.gate.set()
    assert await asyncio.gather(*callers) == ["loaded"] * 100
    assert one.cache.stats().errors > 0


async def test_a_lost_release_is_no_matter(join, clock):
    """A lease that could not be given back lapses, and the key can be loaded again."""
    one, two = join(), join()
    one.backend.fail("release", "commit")
    assert await one.cache.get_or_set("key", lambda: 1) == 1
    await turns()
    two_call = asyncio.ensure_future(two.cache.get_or_set("key", lambda: 2))
    await pass_time(clock, 4)
    assert await two_call == 2


async def test_without_sharing_each_process_loads(join):
    """``lock="local"`` asks for no lease."""
    one, two = join(), join()
    factory = Gated()
    calls = [asyncio.ensure_future(process.cache.get_or_set("key", factory, lock="local")) for process in (one, two)]
    await turns()
    assert factory.calls == 2
    factory.gate.set()
    await asyncio.gather(*calls)
    assert one.calls["acquire"] == two.calls["acquire"] == 0


async def test_all_waiters_gone_gives_the_lease_back(join):
    """When nobody waits any more the load is cancelled, and another process may load at once."""
    one, two = join(), join()
    caller = asyncio.ensure_future(one.cache.get_or_set("key", Gated()))
    await turns()
    caller.cancel()
    await turns()
    assert await asyncio.wait_for(two.cache.get_or_set("key", lambda: 2), 5) == 2


async def test_what_another_has_stored_meanwhile_is_taken(join):
    """A flight that finds a fresh entry runs nothing; one that waited for a lease takes what its holder stored."""
    one, two = join(), join()
    await one.cache.set("key", 1)
    assert await two.cache.get_or_set("key", Gated()) == 1
    stats = two.cache.stats()
    assert (stats.hits, stats.misses, stats.loads) == (1, 0, 0)


async def test_a_stale_value_of_the_store_stands_in(join, clock):
    """While the source fails, a process that never had the value serves the stale one of the store."""
    one, two = join(), join()
    await one.cache.set("key", "old", ttl=10, grace=100)
    clock.travel(11)

    async def fail():
        raise LookupError("down")

    assert await two.cache.get_or_set("key", fail, grace=100) == "old"
    factory = Gated()
    assert await two.cache.get_or_set("key", factory, grace=100) == "old"
    assert factory.calls == 0
    assert two.cache.stats().stale_hits == 2


async def test_bulk_loads_take_what_the_store_has(join, clock):
    """A bulk read loads only what neither seat has: one read of the store, of tags' versions, and of what is absent."""
    one, two = join(), join()
    await one.cache.set_many({"a": 1, "b": 2}, tags=["tag"])
    asked = []

    def load(keys):
        asked.append(list(keys))
        return dict.fromkeys(keys, 0)

    two.calls.clear()
    assert await two.cache.get_or_set_many(["a", "x", "b"], load) == {"a": 1, "x": 0, "b": 2}
    assert asked == [["x"]]
    assert two.calls["get_many"] <= 3
    assert await one.cache.get("x") == 0
    await two.cache.invalidate_tags("tag")
    clock.travel(1.1)
    assert await one.cache.get_many(["a", "b", "x"]) == {"x": 0}


async def test_a_bulk_write_asks_for_the_versions_of_its_tags_once(join):
    """Not once for each key."""
    one = join()
    await one.cache.set_many({f"k{number}": number for number in range(100)}, tags=["tag", "other"])
    assert one.calls["get_many"] <= 2
    await one.cache.invalidate_tags("tag")
    assert await one.cache.get_many(["k0", "k99"]) == {}


async def test_a_bulk_read_sees_what_a_tag_has_hidden(join):
    """Of many entries with different tags only those are hidden whose tag was invalidated."""
    one, two = join(), join()
    await one.cache.set("a", 1, tags=["x"])
    await one.cache.set("b", 2, tags=["y"])
    await two.cache.invalidate_tags("x")
    assert await two.cache.get_many(["a", "b"]) == {"b": 2}


# Two tiers


async def test_a_local_copy_lives_a_second(server, clock):
    """What another process has written is seen within a second, and until then reads cost no round trip."""
    one, two = Process(server, clock, tiers=True), Process(server, clock, tiers=True)
    await one.cache.set("key", "old")
    assert await two.cache.get("key") == "old"
    asked = two.calls["get"]
    await one.cache.set("key", "new")
    clock.travel(0.9)
    assert await two.cache.get("key") == "old"
    assert two.calls["get"] == asked
    clock.travel(0.2)
    assert await two.cache.get("key") == "new"


async def test_a_local_ttl_is_the_users(server, clock):
    """``ttl`` of the local store says how long a copy is believed."""
    backend = ToyBackend(server, clock=clock)
    cache = Cache(backend, local="memory://?ttl=1m", clock=clock)
    await cache.set("key", "old")
    await Cache(ToyBackend(server, clock=clock), clock=clock).set("key", "new")
    clock.travel(59)
    assert await cache.get("key") == "old"
    clock.travel(2)
    assert await cache.get("key") == "new"


async def test_a_read_under_way_brings_nothing_old_back(server, clock):
    """A value that was read before a write here does not take its place in the local seat."""
    process = Process(server, clock, tiers=True)
    await process.cache.set("key", "old")
    clock.travel(2)
    process.backend.hang("get")
    reading = asyncio.ensure_future(process.cache.get("key"))
    await turns()
    await process.cache.set("key", "new")
    process.backend.heal()
    await reading
    assert await process.cache.get("key") == "new"


# When the store fails


CALLS: dict[str, tuple[Callable[[Cache], Awaitable[object]], object]] = {
    "get": (lambda cache: cache.get("key", "default"), "default"),
    "get_many": (lambda cache: cache.get_many(["key"]), {}),
    "set": (lambda cache: cache.set("key", 1), False),
    "set_tagged": (lambda cache: cache.set("key", 1, tags=["t"]), False),
    "set_many": (lambda cache: cache.set_many({"key": 1}), False),
    "set_many_tagged": (lambda cache: cache.set_many({"key": 1}, tags=["t"]), False),
    "delete": (lambda cache: cache.delete("key"), False),
    "delete_many": (lambda cache: cache.delete_many(["key"]), 0),
    "exists": (lambda cache: cache.exists("key"), False),
    "ttl": (lambda cache: cache.ttl("key"), None),
    "touch": (lambda cache: cache.touch("key", 5), False),
    "incr": (lambda cache: cache.incr("key"), 0),
    "entry": (lambda cache: cache.entry("key"), None),
    "clear": (lambda cache: cache.clear(), 0),
    "invalidate_tags": (lambda cache: cache.invalidate_tags("t"), None),
    "ping": (lambda cache: cache.ping(), False),
}


@pytest.mark.parametrize(
    "error", [BackendUnavailable("away"), BackendTimeout("slow"), OSError("a library's")], ids=repr
)
@pytest.mark.parametrize("call", CALLS)
async def test_a_failure_is_hidden(server, clock, call, error):
    """By default reads miss and writes do nothing, counted and told to the hook's owner by the statistics."""
    process = Process(server, clock)
    process.backend.fail(error=error)
    work, expected = CALLS[call]
    assert await work(process.cache) == expected
    assert process.cache.stats().errors >= 1


@pytest.mark.parametrize("call", CALLS)
async def test_a_failure_is_raised_where_asked_for(server, clock, call):
    """With ``on_error="raise"`` every call raises this package's error, with the store's as its cause."""
    process = Process(server, clock, on_error="raise")
    cause = OSError("a library's")
    process.backend.fail(error=cause)
    with pytest.raises(BackendError) as caught:
        await CALLS[call][0](process.cache)
    assert caught.value.__cause__ is cause


async def test_keys_of_a_store_that_fails(server, clock):
    """The list of keys is empty, or an error where asked for."""
    process = Process(server, clock)
    process.backend.fail("keys")
    assert await listed(process.cache) == []
    process = Process(server, clock, on_error="raise")
    process.backend.fail("keys")
    with pytest.raises(BackendUnavailable):
        await listed(process.cache)


async def test_a_lock_on_a_store_that_fails(server, clock):
    """By default the lock keeps nobody out when the store fails; with ``raise`` it is not given."""
    process = Process(server, clock)
    process.backend.fail("acquire")
    async with process.cache.lock("job", ttl=5):
        pass
    process = Process(server, clock, on_error="raise")
    process.backend.fail("acquire")
    with pytest.raises(BackendUnavailable):
        async with process.cache.lock("job", ttl=5):
            pass


async def test_a_hook_is_told(server, clock):
    """A function given as ``on_error`` gets every failure that was hidden."""
    told: list[BackendError] = []
    process = Process(server, clock, on_error=told.append)
    process.backend.fail("get", error=BackendTimeout("slow"), times=2)
    assert [await process.cache.get("key") for _ in range(3)] == [None, None, None]
    assert [type(error) for error in told] == [BackendTimeout, BackendTimeout]


async def test_logs_are_few_and_tell_no_secret(server, clock, caplog):
    """An outage is logged once a second, with what was left out, and without the text of the store's error."""
    process = Process(server, clock, name="shop")
    process.backend.fail(error=OSError("password=hunter2"))
    with caplog.at_level(logging.DEBUG, "asynccache"):
        for _ in range(50):
            await process.cache.get("user:4711")
        clock.travel(1.1)
        await process.cache.get("user:4711")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "49 more" in messages[1]
    assert "'shop'" in messages[0]
    assert not [text for text in messages if "hunter2" in text or "4711" in text]


async def test_each_kind_of_failure_is_logged_by_itself(server, clock, caplog):
    """Each kind has its own count, is logged at once, then ever more seldom while nothing changes; another reason is
    logged within a second."""
    process = Process(server, clock)
    failures = process.cache._core.seats.failures

    def lines():
        found = [record.getMessage().removeprefix("cache 'default': ") for record in caplog.records]
        caplog.clear()
        return found

    for _ in range(3):
        failures.report("get failed", OSError(), "away")
        failures.report("set failed", OSError(), "away")
    assert lines() == ["get failed: away", "set failed: away"]
    clock.travel(1.25)
    failures.report("set failed", OSError(), "full")
    failures.report("get failed", OSError(), "away")
    more = "(and 2 more since the last report)"
    assert lines() == [f"set failed: full {more}", f"get failed: away {more}"]
    for _ in range(60):
        clock.travel(1)
        failures.report("get failed", OSError(), "away")
    assert [line.split(" ")[4] for line in lines()] == ["1", "3", "7", "15", "15"]
    clock.travel(1)
    failures.report("get failed", OSError(), "full")
    assert len(lines()) == 1
    clock.travel(60)
    for _ in range(2):
        failures.report("get failed", OSError(), "full")
        clock.travel(1)
    assert len(lines()) == 2
    assert process.cache.stats().errors == 6 + 2 + 60 + 1 + 2


async def test_a_hook_that_raises_is_logged_once_a_second(server, clock, caplog):
    """A function given as ``on_error`` that fails at every failure, also at one that no call raises, fills no log."""

    def hook(error):
        raise ZeroDivisionError

    process = Process(server, clock, on_error=hook)
    process.backend.fail("get")
    with caplog.at_level(logging.DEBUG, "asynccache"):
        for _ in range(50):
            assert await process.cache.get("key", "default") == "default"
        clock.travel(1.1)
        assert await process.cache.get("key", "default") == "default"
        process.cache._core.seats.failures.told("an entry could not be read", DecodeError("foreign bytes"))
    assert len([record for record in caplog.records if "the function on_error failed" in record.message]) == 2
    assert process.cache.stats().errors == 52


async def test_a_damaged_entry_is_a_miss_that_is_replaced(server, clock):
    """Bytes that cannot be read are a miss also with ``on_error="raise"``, and the next load takes their place."""
    process = Process(server, clock, on_error="raise")
    await process.cache.set("key", "whole")
    process.backend.fail("get", "get_many", error=DecodeError("foreign bytes"))
    assert await process.cache.get("key") is None
    assert await process.cache.get_many(["key"]) == {}
    assert await process.cache.get_or_set("key", lambda: "new") == "new"
    process.backend.heal()
    assert await process.cache.get("key") == "new"


async def test_a_value_that_cannot_be_encoded(server, clock, caplog):
    """``set`` of it raises; a load's value is returned, not stored, and reported without being shown."""
    process = Process(server, clock)
    process.backend.fail("set", "set_many", "commit", error=EncodeError("a secret value"))
    with pytest.raises(EncodeError):
        await process.cache.set("key", object())
    with pytest.raises(EncodeError):
        await process.cache.set_many({"key": object()})
    assert await process.cache.get_or_set("key", lambda: 1) == 1
    assert await process.cache.get_or_set("key", lambda: 2, lock="local") == 2
    assert await process.cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 3)) == {"a": 3, "b": 3}
    assert await process.cache.get_many(["key", "a", "b"]) == {}
    assert process.cache.stats().errors == 4
    assert "a secret value" not in caplog.text


async def test_a_counter_that_is_lost_is_not_repeated(server, clock):
    """An addition whose answer is lost was made once."""
    process = Process(server, clock)
    process.backend.lose("incr", times=1)
    assert await process.cache.incr("n") == 0
    assert process.calls["incr"] == 1
    assert await process.cache.incr("n") == 2


async def test_two_tiers_serve_while_the_store_is_away(server, clock):
    """Writes go to the local seat, and are read from there, as long as it believes its copies."""
    process = Process(server, clock, tiers=True)
    process.backend.fail()
    assert await process.cache.set("key", 1) is False
    assert await process.cache.get("key") == 1
    assert await process.cache.get_or_set("other", lambda: 2) == 2
    assert await process.cache.add("third", 3) is False
    assert await process.cache.get("third") is None


async def test_a_hanging_store_and_a_cancelled_caller(server, clock):
    """A caller of a store that never answers can be cancelled, and later calls work."""
    process = Process(server, clock)
    process.backend.hang()
    for call in (process.cache.get("key"), process.cache.get_or_set("key", lambda: 1), process.cache.set("key", 1)):
        task = asyncio.ensure_future(call)
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    process.backend.heal()
    assert await process.cache.get_or_set("key", lambda: 2) == 2


async def test_closing_during_a_load(server, clock):
    """Who waits for a load when the cache is closed is told so, also while the store hangs."""
    process = Process(server, clock)
    process.backend.hang("get")
    waiting = asyncio.ensure_future(process.cache.get_or_set("key", lambda: 1))
    await turns(5)
    await asyncio.wait_for(process.cache.aclose(), 2)
    with pytest.raises(LoadCancelled):
        await waiting
    assert process.calls["aclose"] == 0, "a backend that was given is its owner's to close"


# Tags


async def test_tags_cost_one_round_trip_more(server, clock):
    """An entry with twenty tags is written and read with one more round trip each, however many tags it has."""
    process = Process(server, clock)
    tags = [f"t{number}" for number in range(20)]
    await process.cache.set("first", 1, tags=tags)
    process.calls.clear()
    await process.cache.set("key", 1, tags=tags)
    assert process.calls == {"get_many": 1, "set": 1}
    process.calls.clear()
    assert await process.cache.get("key") == 1
    assert process.calls == {"get": 1, "get_many": 1}
    process.calls.clear()
    await process.cache.invalidate_tags(*tags)
    assert process.calls == {"set_many": 1}


async def test_a_lost_tag_record_brings_nothing_back(server, clock):
    """When the store loses a tag's record, entries that had it are hidden, the invalidated ones for ever."""
    process = Process(server, clock)
    await process.cache.set("old", 1, tags=["t"])
    await process.cache.invalidate_tags("t")
    await process.cache.set("new", 2, tags=["t"])
    for key in [key for key in server.entries if key.endswith("tag")]:
        del server.entries[key]
    assert await process.cache.get_many(["old", "new"]) == {}
    await process.cache.set("newest", 3, tags=["t"])
    assert await process.cache.get_many(["old", "new", "newest"]) == {"newest": 3}


async def test_tags_of_two_processes_agree(server, clock):
    """Two processes that tag at the same time for the first time agree on the tag's version."""
    one, two = Process(server, clock), Process(server, clock)
    await asyncio.gather(one.cache.set("a", 1, tags=["t"]), two.cache.set("b", 2, tags=["t"]))
    assert await one.cache.get_many(["a", "b"]) == {"a": 1, "b": 2}
    await one.cache.invalidate_tags("t")
    assert await two.cache.get_many(["a", "b"]) == {}


async def test_records_are_nobodys_keys(server, clock):
    """Tags and locks keep records in the store which no call lists, reads or clears."""
    process = Process(server, clock, namespace="shop")
    await process.cache.set("key", 1, tags=["t"])
    async with process.cache.lock("job", ttl=30):
        assert await listed(process.cache) == ["key"]
        assert await process.cache.clear() == 1
        assert await listed(process.cache) == []


async def test_a_load_stores_the_versions_of_its_start(server, clock):
    """A tag invalidated by another process during a load hides what the load stores."""
    one, two = Process(server, clock), Process(server, clock)
    factory = Gated()
    waiting = asyncio.ensure_future(one.cache.get_or_set("key", factory, policy=Policy(tags=["t"], lock="local")))
    await turns()
    await two.cache.invalidate_tags("t")
    factory.gate.set()
    assert await waiting == "loaded"
    assert await one.cache.get("key") is None


async def test_entries_of_others_are_looked_at(server, clock):
    """``entry``, ``ttl`` and ``exists`` tell what the store has, not the local copy."""
    process = Process(server, clock, tiers=True)
    await process.cache.set("key", 1, ttl=100)
    other = ToyBackend(server, clock=clock)
    now = other.now
    await other.set("key", Entry(value=2, created_at=now, fresh_until=now + 50, expires_at=now + 50))
    assert await process.cache.ttl("key") == pytest.approx(50)
    entry = await process.cache.entry("key")
    assert entry is not None
    assert entry.value == 2


async def test_a_store_without_room_for_references(clock):
    """A backend of any class will do: also one that can neither be referred to weakly nor hashed."""

    class Bare:
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]
        name = "bare"
        leases = None
        reports = None
        shortcut = None
        coherence = None
        heads = None
        health = None

        async def get(self, key: str) -> None:
            return None

    cache = Cache(Bare(), clock=clock)  # type: ignore[arg-type]
    assert await cache.get("key") is None
    async with cache.lock("job", ttl=5, timeout=1):
        pass


async def test_a_lock_whose_store_cannot_tell_of_its_end(server, clock):
    """Where waiting for a lease fails, the lock is asked for now and then, not without a pause."""
    process = Process(server, clock)
    async with process.cache.lock("job", ttl=30):
        process.backend.fail("wait")
        waiting = asyncio.ensure_future(process.cache.lock("job", ttl=30).__aenter__())
        await turns(200)
        assert process.calls["acquire"] <= 3
    await pass_time(clock, 1)
    await asyncio.wait_for(waiting, 2)


async def test_a_load_whose_store_cannot_tell_of_a_leases_end(server, clock):
    """Where waiting for another's lease fails, the load is done here, and the store is not asked again and again."""
    one, two = Process(server, clock), Process(server, clock)
    factory = Gated("first")
    first = asyncio.ensure_future(one.cache.get_or_set("key", factory))
    await turns()
    two.backend.fail("wait")
    assert await asyncio.wait_for(two.cache.get_or_set("key", lambda: "second"), 5) == "second"
    assert two.calls["acquire"] == 1
    factory.gate.set()
    assert await first == "first"


# Loads of many keys at once


class GatedMany(Gated):
    """The same for a loader of many keys."""

    async def __call__(self, keys: list[str]) -> dict[str, object]:  # type: ignore[override]
        value = await super().__call__()
        return dict.fromkeys(keys, value)


async def no_source(keys: list[str]) -> dict[str, object]:
    raise ValueError("the source is away")


async def test_a_stale_value_of_the_store_is_loaded_anew_among_many(join, clock):
    """Past its ttl a value of the store is no hit of a bulk load; when that fails it stands in."""
    one, two = join(), join()
    await one.cache.set("key", "old", ttl=10, grace=100)
    clock.travel(11)
    assert await two.cache.get_or_set_many(["key"], no_source, grace=100) == {"key": "old"}
    loaded = dict.fromkeys(["key", "other"], "new")
    clock.travel(60)
    assert await two.cache.get_or_set_many(["key", "other"], lambda _: loaded, grace=100) == loaded
    assert await one.cache.get_many(["key", "other"]) == loaded


async def test_a_long_load_of_many_keeps_its_leases(join, clock):
    """Also when the store is away for a moment: nobody else loads the keys, and what was loaded is stored."""
    one, two = join(), join()
    loader = GatedMany()
    calls = [asyncio.ensure_future(one.cache.get_or_set_many(["a", "b"], loader))]
    await turns()
    calls += [asyncio.ensure_future(two.cache.get_or_set_many(["b", "a"], loader))]
    await pass_time(clock, 3.5, step=0.25)
    one.backend.fail("renew", times=4)
    await pass_time(clock, 6.5, step=0.25)
    assert loader.calls == 1
    loader.gate.set()
    await pass_time(clock, 1)
    assert await asyncio.gather(*calls) == [{"a": "loaded", "b": "loaded"}, {"b": "loaded", "a": "loaded"}]
    assert loader.calls == 1
    assert await two.cache.get_many(["a", "b"]) == {"a": "loaded", "b": "loaded"}


async def test_tags_that_another_process_invalidates_during_a_load_of_many(join, clock):
    """What was loaded may be older than the invalidation: its callers have it, and nobody after them."""
    one, two = join(), join()
    loader = GatedMany()
    call = asyncio.ensure_future(one.cache.get_or_set_many(["key"], loader, tags=["tag"]))
    await turns()
    await two.cache.invalidate_tags("tag")
    loader.gate.set()
    assert await call == {"key": "loaded"}
    await turns()
    assert await two.cache.get("key") is None
    clock.travel(1.1)  # a copy is believed for a second
    assert await one.cache.get("key") is None


async def test_tags_of_values_that_were_stored_in_bulk(join):
    """They are the same for all processes, whichever call has stored or reads them."""
    one, two = join(), join()
    await one.cache.set_many({"set": 1}, tags=["tag"])
    await one.cache.get_or_set_many(["many"], lambda _: {"many": 1}, tags=["tag"])
    await one.cache.get_or_set("one", lambda: 1, tags=["tag"])
    found = {"set": 1, "many": 1, "one": 1}
    for process in (one, two):
        assert await process.cache.get_many(list(found)) == found
        assert {key: await process.cache.get(key) for key in found} == found
    await two.cache.invalidate_tags("tag")
    assert await two.cache.get_many(list(found)) == {}
    assert {await join().cache.get(key) for key in found} == {None}


async def test_what_is_loaded_is_not_held_up_by_what_another_process_loads(join):
    """A bulk load that waits for some of its keys has handed on the others to all who joined it."""
    one, two = join(), join()
    theirs = Gated()
    first = asyncio.ensure_future(one.cache.get_or_set("theirs", theirs))
    await turns()
    loader = GatedMany("mine")
    both = asyncio.ensure_future(two.cache.get_or_set_many(["theirs", "mine"], loader))
    await turns()
    joined = asyncio.ensure_future(two.cache.get_or_set("mine", Gated()))
    await turns()
    loader.gate.set()
    assert await asyncio.wait_for(joined, 15) == "mine"
    assert not both.done()
    theirs.gate.set()
    assert await both == {"theirs": "loaded", "mine": "mine"}
    assert await first == "loaded"


async def test_who_waits_for_another_process_keeps_no_key_from_a_third(join):
    """What his loader had nothing for is anybody's to load, while he waits for the rest."""
    one, two, three = join(), join(), join()
    theirs = Gated()
    first = asyncio.ensure_future(one.cache.get_or_set("theirs", theirs))
    await turns()
    both = asyncio.ensure_future(two.cache.get_or_set_many(["theirs", "absent"], lambda _: {}))
    await turns()
    assert await asyncio.wait_for(three.cache.get_or_set("absent", lambda: "there"), 15) == "there"
    assert not both.done()
    theirs.gate.set()
    assert await both == {"theirs": "loaded"}
    assert await first == "loaded"


@pytest.mark.parametrize("well", [True, False])
async def test_a_load_of_many_leaves_nothing_behind(join, well):
    """When it has ended nothing runs any more, and nothing counts as being loaded."""
    process = join()
    loader = GatedMany() if well else no_source
    call = asyncio.ensure_future(process.cache.get_or_set_many(["a", "b"], loader))
    await turns()
    if isinstance(loader, GatedMany):
        assert process.cache._core.loading == 1
        loader.gate.set()
    await asyncio.wait([call])
    assert (call.exception() is None) is well
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert process.cache._core.loading == 0


async def test_a_refresh_of_many_that_failed_is_not_tried_by_each_reader(join, clock):
    """A source that fails while values of the store are still fresh is left alone for a while."""
    one, two = join(), join()
    await one.cache.set_many({"a": 1, "b": 1}, ttl=100)
    clock.travel(60)
    calls = 0

    async def fail(keys: list[str]) -> dict[str, object]:
        nonlocal calls
        calls += 1
        raise ValueError("the source is away")

    for _ in range(5):
        found = await two.cache.get_or_set_many(["a", "b"], fail, ttl=100, refresh_ahead=0.5)
        assert found == {"a": 1, "b": 1}
        await turns()
    assert calls == 1


async def test_a_refresh_of_many_is_a_load_of_its_own(join):
    """Who wants the values anew does not take what was begun before he asked, and it does not overwrite his."""
    process = join(lock="local")
    old, new = GatedMany("old"), GatedMany("new")
    first = asyncio.ensure_future(process.cache.get_or_set_many(["key"], old))
    await turns()
    with process.cache.override(refresh=True):
        second = asyncio.ensure_future(process.cache.get_or_set_many(["key"], new))
        await turns()
    assert (old.calls, new.calls) == (1, 1)
    new.gate.set()
    assert await second == {"key": "new"}
    old.gate.set()
    assert await first == {"key": "old"}
    await turns()
    assert await process.cache.get("key") == "new"
