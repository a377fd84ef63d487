"""The local store in front of Redis: copies that are right, or gone, whatever happens to the server and the way."""

import asyncio
import contextlib
import gc
import json
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from fault_proxy import FaultProxy
from owing import repaid
from promised_times import patient
from servers import Server
from stores import on_redis
from waiting import comes, until

from asynccache import Cache, MemoryBackend, Policy
from asynccache.backends.redis.wire import pack
from asynccache.testing import TravellingClock

SEEN_SECONDS = 0.05
"""Within how many seconds a write is seen, 99 times in a hundred."""

SOON_SECONDS = 0.5
"""Within how many it is seen even when the machine has other things to do."""


class Copying:
    """A cache with a local store, whose reads are counted."""

    def __init__(self, url: str, **options: Any) -> None:
        self.cache = Cache(url, local="memory://", **{"namespace": "n", "on_error": "raise", **options})
        self.local: MemoryBackend = self.cache._core.local  # type: ignore[assignment]

    def copies(self, *keys: str) -> list[bool]:
        """Whether the local store has the keys."""
        return [key in self.local.values for key in keys]

    async def copy(self, *keys: str) -> None:
        """Have copies of the keys."""
        deadline = time.monotonic() + 1.0
        for key in keys:
            while self.copies(key) != [True]:
                assert await self.cache.get(key) is not None
                assert time.monotonic() < deadline, "no copy is made"

    async def told(self) -> None:
        """Return when all is known that the servers have told so far: they do so before they answer what comes then."""
        for link in self.cache.redis._store.links():
            if link.up:
                await link.ask(pack(("PING",)))


@pytest.fixture
async def near(url: str) -> AsyncIterator[Copying]:
    """One process, with a local store."""
    copying = Copying(url)
    async with copying.cache:
        yield copying


@pytest.fixture
async def other(url: str) -> AsyncIterator[Cache]:
    """Another process, without."""
    async with Cache(url, namespace="n", on_error="raise") as cache:
        yield cache


async def seen(cache: Cache, key: str, value: Any, seconds: float = 5.0) -> float:
    """Read the key until it has the value; how long it took."""
    began = time.monotonic()
    while await cache.get(key) != value:
        assert time.monotonic() - began < seconds, "it was never seen"
        await asyncio.sleep(0.001)
    return time.monotonic() - began


async def stored(cache: Cache, key: str, value: Any, seconds: float = 1.0) -> None:
    """Store the value as soon as the server takes it."""
    began = time.monotonic()
    while not await cache.set(key, value):
        assert time.monotonic() - began < seconds, "it was never stored"
        await asyncio.sleep(0.005)


# Copies


async def test_a_copy_is_read_without_the_server(near: Copying, other: Cache, server: Server) -> None:
    """What was read once is read again, a thousand times, without a command."""
    await other.set("key", "value")
    await near.copy("key")
    server.command("CONFIG", "RESETSTAT")
    assert {await near.cache.get("key") for _ in range(1_000)} == {"value"}
    assert {value for _ in range(100) for value in (await near.cache.get_many(["key"])).values()} == {"value"}
    assert await near.cache.get_or_set("key", lambda: "loaded") == "value"
    calls = server.calls()
    assert sum(calls[name] for name in ("GET", "GETRANGE", "MGET", "EVALSHA")) == 0


async def test_a_cancelled_look_at_tags_leaves_no_note(
    near: Copying, other: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is remembered of a read that was given up while the versions of its tags were asked for."""
    await other.set("key", "value", tags=["tag"])
    seats, asked = near.cache._core.seats, asyncio.Event()

    async def current(tags: object) -> dict[str, str]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(type(seats.remote_tags), "current", lambda self, tags: current(tags))
    reading = asyncio.ensure_future(near.cache.get("key"))
    await asked.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert seats.copies._reading == {}


WRITES: dict[str, tuple[Callable[[Cache], Awaitable[Any]], Any]] = {
    "set": (lambda cache: cache.set("key", "newer"), "newer"),
    "set_many": (lambda cache: cache.set_many({"key": "newer", "third": "newer"}), "newer"),
    "set present": (lambda cache: cache.set("key", "newer", only_if="present"), "newer"),
    "delete": (lambda cache: cache.delete("key"), None),
    "delete_many": (lambda cache: cache.delete_many(["key", "third"]), None),
    "clear": (lambda cache: cache.clear(), None),
    "clear some": (lambda cache: cache.clear("k*"), None),
    "invalidate_tags": (lambda cache: cache.invalidate_tags("tag", "another"), None),
}


@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "tagged"])
@pytest.mark.parametrize("write", WRITES)
async def test_a_write_of_another_process_is_seen(near: Copying, other: Cache, write: str, tagged: bool) -> None:
    """The copy goes within 50 ms, and the next read has what was written."""
    work, expected = WRITES[write]
    if write == "invalidate_tags" and not tagged:
        expected = "old"
    took = []
    for _ in range(5):
        await other.set("key", "old", 60, tags=["tag"] if tagged else [])
        await seen(near.cache, "key", "old")
        await near.copy("key")
        await work(other)
        took.append(await seen(near.cache, "key", expected))
    assert sorted(took)[2] < SEEN_SECONDS * 1.5
    assert max(took) < SOON_SECONDS


async def test_a_count_of_another_process_is_seen(near: Copying, other: Cache) -> None:
    """A counter that others add to is behind by no more than 50 ms."""
    took = []
    for number in range(1, 20):
        assert await other.incr("key") == number
        took.append(await seen(near.cache, "key", number))
        await near.copy("key")
    assert sorted(took)[15] < SEEN_SECONDS * 1.5
    assert max(took) < SOON_SECONDS
    assert await near.cache.incr("key") == 20
    assert await near.cache.get("key") == 20


async def test_a_new_ttl_of_another_process_is_seen(near: Copying, other: Cache) -> None:
    """A copy ends when its entry now ends: earlier or later than it did when it was copied."""
    await other.set_many({"shorter": "value", "longer": "value"}, 0.8)
    await other.touch("shorter", 60)
    await near.copy("shorter", "longer")
    touched = time.monotonic()
    await other.touch("shorter", 0.2)
    await other.touch("longer", 60)
    await comes(lambda: near.copies("shorter", "longer") == [False, False], seconds=SOON_SECONDS)
    await near.copy("shorter", "longer")
    await asyncio.sleep(touched + 0.25 - time.monotonic())
    assert await near.cache.get("shorter") is None
    await asyncio.sleep(touched + 0.85 - time.monotonic())
    assert await near.cache.get("longer") == "value"


async def test_a_load_of_another_process_is_seen(near: Copying, other: Cache) -> None:
    """What another process has loaded is copied, and loaded anew here when another process has deleted it."""
    assert await other.get_or_set("key", lambda: "theirs", tags=["tag"]) == "theirs"
    assert await near.cache.get_or_set("key", lambda: "mine", tags=["tag"]) == "theirs"
    await near.copy("key")
    for hide in (lambda: other.delete("key"), lambda: other.invalidate_tags("tag")):
        await hide()
        assert await seen(near.cache, "key", None) < SOON_SECONDS
        mine = f"mine {hide}"
        assert await near.cache.get_or_set("key", lambda mine=mine: mine, tags=["tag"]) == mine
        assert await other.get("key") == mine
        await near.copy("key")


FOREIGN = {
    "DEL": ("DEL", "n:key"),
    "UNLINK": ("UNLINK", "n:key"),
    "RENAME": ("RENAME", "n:key", "n:gone"),
    "GETDEL": ("GETDEL", "n:key"),
    "MOVE": ("MOVE", "n:key", "15"),
    "PEXPIRE": ("PEXPIRE", "n:key", "1"),
    "FLUSHDB": ("FLUSHDB",),
    "FLUSHALL": ("FLUSHALL",),
}


@pytest.mark.parametrize("command", FOREIGN)
async def test_what_other_programs_do_is_seen(command: str) -> None:
    """A key that is removed by whatever command is not served any more."""
    with Server() as own:
        near = Copying(own.url)
        async with near.cache, Cache(own.url, namespace="n") as other:
            await other.set("key", "value")
            await near.copy("key")
            own.command(*FOREIGN[command])
            # The server tells of an expiry when it comes to it, which takes some of its rounds.
            assert await seen(near.cache, "key", None) < (1.5 if command == "PEXPIRE" else SOON_SECONDS)


async def test_a_copy_lives_no_longer_than_its_entry(near: Copying, other: Cache) -> None:
    """It ends with the entry's ttl, whenever it was made."""
    await other.set("key", "value", 0.6, grace=60)
    ends = time.monotonic() + 0.6
    await asyncio.sleep(0.15)
    await near.copy("key")
    await asyncio.sleep(ends - 0.25 - time.monotonic())
    assert await near.cache.get("key") == "value"
    await asyncio.sleep(ends + 0.03 - time.monotonic())
    assert await near.cache.get("key") is None


async def test_a_copy_lives_no_longer_than_the_local_store_says(url: str, other: Cache, server: Server) -> None:
    """After the local store's own ttl the remote one is read again, and nothing is loaded."""
    clock = TravellingClock()
    async with Cache(url, local="memory://?ttl=200ms", namespace="n", on_error="raise", clock=clock) as cache:
        await other.set("key", "value", 60)
        assert await cache.get_or_set("key", lambda: "loaded") == "value"
        server.command("CONFIG", "RESETSTAT")
        assert await cache.get_or_set("key", lambda: "loaded") == "value"
        assert server.calls()["GETRANGE"] == 0
        clock.travel(0.25)
        assert await cache.get_or_set("key", lambda: "loaded") == "value"
        assert server.calls()["GETRANGE"] == 1


async def test_a_stale_copy_gives_way_to_what_another_process_stored(near: Copying, other: Cache) -> None:
    """A value past its ttl, in grace, is not loaded anew when another process has a newer one."""
    await near.cache.set("key", "stale", 0.1, grace=60)
    await near.copy("key")
    await asyncio.sleep(0.12)
    await other.set("key", "newer", 60)
    assert await near.cache.get_or_set("key", lambda: "loaded", grace=60) == "newer"
    assert near.cache.stats().loads == 0


async def test_a_refresh_ahead_takes_what_another_process_has_refreshed(url: str, other: Cache) -> None:
    """An ageing copy is replaced by the newer entry of the remote store: nothing is loaded."""
    near = Copying(f"{url}?protocol=2")
    async with near.cache:
        loads = 0

        def load() -> str:
            nonlocal loads
            loads += 1
            return "loaded"

        await other.set("key", "old", 20)
        assert await near.cache.get_or_set("key", load, refresh_ahead=0.01) == "old"
        await asyncio.sleep(0.1)
        await other.set("key", "newer", 20)
        await asyncio.sleep(0.12)
        assert await near.cache.get_or_set("key", load, refresh_ahead=0.01) == "old"
        await seen(near.cache, "key", "newer", 0.5)
        assert loads == 0


# Own writes


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_own_writes_are_seen_at_once(near: Copying) -> None:
    """Who has written reads what he wrote, however many others read the key meanwhile: two thousand times."""
    cache, over = near.cache, False

    async def read_on(key: str) -> None:
        while not over:
            await cache.get(key)
            await cache.get_many([key, "other"])
            await asyncio.sleep(random.choice((0, 0, 0.001)))

    readers = [asyncio.ensure_future(read_on(f"key{number}")) for number in range(4) for _ in range(3)]

    async def write(key: str) -> None:
        for number in range(500):
            match number % 6:
                case 0 | 1:
                    expected: Any = number
                    await cache.set(key, number)
                case 2:
                    expected = number
                    await cache.set_many({key: number, f"{key} too": number})
                case 3:
                    expected = number - 1 + 5
                    assert await cache.incr(key, 5) == expected
                case 4:
                    expected = None
                    await cache.delete(key)
                case _:
                    expected = "loaded"
                    assert await cache.get_or_set(key, lambda: "loaded") == "loaded"
            for _ in range(2):
                assert await cache.get(key) == expected, number
                assert await cache.get_many([key]) == ({} if expected is None else {key: expected})

    try:
        await asyncio.gather(*(write(f"key{number}") for number in range(4)))
    finally:
        over = True
        await asyncio.gather(*readers)
    assert near.cache._core.seats.copies._reading == {}


async def test_the_own_message_drops_no_newer_copy(near: Copying, server: Server) -> None:
    """What was written here and read again stays: the server's message about that write came before."""
    await near.cache.set("key", 0)
    for number in range(1, 50):
        await near.copy("key")
        await near.cache.set("key", number)
        assert await near.cache.get("key") == number
        assert near.copies("key") == [True]
        await asyncio.sleep(0.002)
        assert near.copies("key") == [True]


# Races

WRITER = """
import asyncio, json, random, sys
from asynccache import Cache

url, name, rounds, keys = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

async def main():
    cache = Cache(url, namespace="n", on_error="raise")
    await cache.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(1, rounds + 1):
        key = f"{name}{random.randrange(keys)}"
        if random.random() < 0.1:
            await cache.set_many({key: number, f"{name}{random.randrange(keys)}": number})
        else:
            await cache.set(key, number, tags=["tag"] if random.random() < 0.2 else [])
        if random.random() < 0.05:
            await asyncio.sleep(0.001)
    last = {key: await cache.get(key) async for key in cache.keys(f"{name}*")}
    print(json.dumps(last), flush=True)
    await cache.aclose()

asyncio.run(main())
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process that runs a script, and has said that it is ready."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True)
    _started.append(process)
    return process


_started: "list[subprocess.Popen[str]]" = []


@pytest.fixture(autouse=True)
def _nobody_left() -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    """The next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline()


def go(process: "subprocess.Popen[str]") -> None:
    """Let a process begin that waits for it."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_no_key_is_stale_after_a_race_of_writers_and_readers(near: Copying, url: str, other: Cache) -> None:
    """Two processes write five thousand times while twenty tasks read: no reader sees a key go back to what it was,
    and in the end each copy is what the server has."""
    rounds, count = 2_500, 12
    writers = [start(WRITER, url, name, rounds, count) for name in "ab"]
    for writer in writers:
        assert await asyncio.to_thread(said, writer) == "ready\n"
    over, reads = False, 0

    async def read_on() -> None:
        nonlocal reads
        latest: dict[str, int] = {}
        while not over:
            keys = [random.choice("ab") + str(random.randrange(count)) for _ in range(random.choice((1, 1, 1, 4)))]
            found = {keys[0]: await near.cache.get(keys[0])} if len(keys) == 1 else await near.cache.get_many(keys)
            for key, value in found.items():
                assert (value or 0) >= latest.get(key, 0), key
                latest[key] = value or 0
            reads += 1
            if reads % 7 == 0:
                await asyncio.sleep(0)
            if reads % 1_000 == 0:
                await asyncio.sleep(0.002)

    readers = [asyncio.ensure_future(read_on()) for _ in range(20)]
    for writer in writers:
        go(writer)
    last: dict[str, int] = {}
    for writer in writers:
        last |= json.loads(await asyncio.to_thread(said, writer))
    over = True
    await asyncio.gather(*readers)
    await near.told()
    assert len(last) == 2 * count
    assert {key: await near.cache.get(key) for key in last} == last
    assert {key: await near.cache.get(key) for key in last} == last
    assert all(near.copies(*last))
    assert near.cache._core.seats.copies._reading == {}
    assert reads > 2_000


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_no_key_is_stale_when_everybody_writes_and_forgets(url: str) -> None:
    """Three processes with local stores set, delete, count, load, tag and clear the same few keys, some of them
    cancelled on the way: in the end each has what the server has."""
    async with AsyncExitStack() as stack:
        three = [Copying(url, on_error="degrade") for _ in range(3)]
        for each in three:
            await stack.enter_async_context(each.cache)
        plain = await stack.enter_async_context(Cache(url, namespace="n", on_error="raise"))
        keys = [f"key{number}" for number in range(6)]

        async def load() -> int:
            await asyncio.sleep(random.random() * 0.002)
            return random.randrange(1_000)

        async def step(cache: Cache) -> None:
            key, number = random.choice(keys), random.randrange(1_000)
            match random.randrange(12):
                case 0:
                    await cache.set(key, number)
                case 1:
                    await cache.set(key, number, tags=["tag"])
                case 2:
                    await cache.delete(key)
                case 3:
                    await cache.set_many({key: number, random.choice(keys): number})
                case 4:
                    await cache.incr(key)
                case 5:
                    await cache.get_or_set(key, load, tags=["tag"])
                case 6:
                    await cache.get_or_set_many(keys[:3], lambda asked: dict.fromkeys(asked, number))
                case 7 if number < 100:
                    await cache.clear()
                case 8 if number < 200:
                    await cache.invalidate_tags("tag")
                case 9:
                    await cache.touch(key, 60)
                case 10:
                    await cache.get_many(keys)
                case _:
                    await cache.get(key)

        async def work(cache: Cache) -> None:
            for _ in range(150):
                try:
                    async with asyncio.timeout(random.choice((None, None, random.random() * 0.01))):
                        await step(cache)
                except TimeoutError:
                    pass

        for _ in range(3):
            await asyncio.gather(*(work(each.cache) for each in three for _ in range(8)))
            for each in three:
                await repaid(each.cache)
            for each in three:
                await each.cache.get_many(keys)
            for each in three:
                await each.told()
            expected = await plain.get_many(keys)
            for each in three:
                assert await each.cache.get_many(keys) == expected
                assert {key: value for key in keys if (value := await each.cache.get(key)) is not None} == expected
        for each in three:
            assert each.cache.stats().errors == 0
            assert each.cache._core.seats.copies._reading == {}


TICKING = """
import asyncio, sys, time
from asynccache import Cache

async def main():
    cache = Cache(sys.argv[1], namespace="n", on_error="raise")
    await cache.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        await cache.set("key", time.monotonic())
        await asyncio.sleep(0.006)
    await cache.set("key", "over")
    await cache.aclose()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_write_is_seen_within_50_ms(near: Copying, url: str) -> None:
    """Of four hundred writes of another process 99 in a hundred are seen so soon, by who reads copies only."""
    writer = start(TICKING, url, 400)
    assert await asyncio.to_thread(said, writer) == "ready\n"
    go(writer)
    late: dict[float, float] = {}
    while (value := await near.cache.get("key")) != "over":
        if value is not None:
            late.setdefault(value, time.monotonic() - value)
        await asyncio.sleep(0.001)
    assert len(late) > 300
    assert sorted(late.values())[int(len(late) * 0.99) - 1] < SEEN_SECONDS * 1.5
    assert near.cache.stats().hits > len(late) * 2


async def test_large_values_are_copied_whole_and_seen(near: Copying, other: Cache) -> None:
    """A value that comes in several pieces is that of one write, and gives way to the next one."""
    values = [letter * size for letter, size in zip("abcd", (70_000, 300_000, 300_000, 600_000), strict=True)]
    over = False

    async def write_on() -> None:
        number = 0
        while not over:
            number += 1
            await other.set("key", values[number % 4])
            await asyncio.sleep(0)

    writing = asyncio.ensure_future(write_on())
    reads = [await near.cache.get("key") for _ in range(200)]
    over = True
    await writing
    assert sum(value is not None for value in reads) > 100
    assert set(reads) <= {*values, None}
    await near.told()
    assert await near.cache.get("key") == await other.get("key")


async def test_cancelled_reads_leave_no_copy_behind_the_writes(near: Copying, other: Cache) -> None:
    """Thousands of reads, cancelled at any moment while the keys are written: in the end none is stale."""
    keys = [f"key{number}" for number in range(10)]

    async def read(key: str) -> None:
        task = asyncio.ensure_future(near.cache.get(key))
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        if random.random() < 0.7:
            task.cancel()
        await asyncio.wait([task])

    for turn in range(100):
        await asyncio.gather(
            *(read(key) for key in keys * 3), *(other.set(key, turn) for key in random.sample(keys, 3))
        )
    await near.told()
    expected = await other.get_many(keys)
    assert len(expected) == 10
    assert await near.cache.get_many(keys) == expected
    assert near.cache._core.seats.copies._reading == {}


# The way to the server


def connection_of(server: Server, name: str) -> str:
    """The number of the connection that has this name."""
    [line] = [line for line in server.command("CLIENT", "LIST").decode().splitlines() if f" name={name} " in line]
    return line.split()[0].removeprefix("id=")


async def test_a_killed_connection_empties_the_local_store(url: str, server: Server, other: Cache) -> None:
    """What was copied may have changed unheard: it goes at once, and is right again with the next connection."""
    near = Copying(f"{url}?client_name=killed", on_error="degrade")
    async with near.cache:
        keys = [f"key{number}" for number in range(100)]
        for turn in range(3):
            await other.set_many(dict.fromkeys(keys, turn))
            for key in keys:
                await seen(near.cache, key, turn)
            await near.copy(*keys)
            server.command("CLIENT", "KILL", "ID", connection_of(server, "killed"))
            await comes(lambda: not any(near.copies(*keys)), seconds=SOON_SECONDS)
            await other.set("key0", "written meanwhile")
            assert await near.cache.get("key0") in (None, "written meanwhile")
            await seen(near.cache, "key0", "written meanwhile", 1.0)
            await near.copy("key0")
            await other.set("key0", "written since")
            assert await seen(near.cache, "key0", "written since") < SOON_SECONDS


@pytest.mark.slow
async def test_no_key_is_stale_after_connections_were_killed_all_along(
    url: str, server: Server, other: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys are written and read while the reader's connection is killed forty times: in the end none is stale."""
    caplog.set_level(logging.CRITICAL)
    near = Copying(f"{url}?client_name=killed", on_error="degrade")
    async with near.cache:
        keys, over, written = [f"key{number}" for number in range(10)], False, 0

        async def read_on() -> None:
            while not over:
                await near.cache.get(random.choice(keys))
                await asyncio.sleep(random.choice((0, 0, 0, 0.001)))

        async def write_on() -> None:
            nonlocal written
            while not over:
                written += 1
                await other.set(random.choice(keys), written)
                await asyncio.sleep(random.choice((0, 0, 0.001)))

        tasks = [asyncio.ensure_future(work()) for work in (*[read_on] * 8, write_on, write_on)]
        for _ in range(40):
            await asyncio.sleep(random.random() * 0.05)
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", "ID", _id_or_none(server, "killed"))
        over = True
        await asyncio.gather(*tasks)
        await near.told()
        expected = await other.get_many(keys)
        for key in keys:
            assert await near.cache.get(key) in (None, expected[key])
            await seen(near.cache, key, expected[key], 1.0)
        await near.copy(*keys)
        assert await near.cache.get_many(keys) == expected
        assert written > 100


def _id_or_none(server: Server, name: str) -> str:
    listed = server.command("CLIENT", "LIST").decode().splitlines()
    return next((line.split()[0][3:] for line in listed if f" name={name} " in line), "999999999")


@pytest.mark.slow
async def test_a_server_that_was_restarted_has_left_no_copies(caplog: pytest.LogCaptureFixture) -> None:
    """Its memory is gone, and so are the copies of it."""
    caplog.set_level(logging.CRITICAL)
    with Server() as own:
        near = Copying(own.url, on_error="degrade")
        async with near.cache:
            await near.cache.set("key", "value")
            await near.copy("key")
            own.kill()
            await comes(lambda: near.copies("key") == [False], seconds=SOON_SECONDS)
            assert await near.cache.get("key") is None
            own.start()
            await stored(near.cache, "key", "again", 2.0)
            assert await near.cache.get("key") == "again"


def through(url: str, server: Server, proxy: FaultProxy) -> str:
    return url.replace(f":{server.port}/", f":{proxy.port}/")


@pytest.mark.slow
async def test_a_dead_way_is_noticed_in_two_seconds(
    url: str, server: Server, other: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody says that the way to the server is gone, or the way back: a copy is believed for two seconds, whether or
    not anybody reads, and then no more; when the way is there again copies are right."""
    caplog.set_level(logging.CRITICAL)
    ways = {
        f"{fault} {reads}": fault
        for fault in ("black hole", "deaf", "one is silent")
        for reads in ("idle", "local", "remote")
    }
    last_old = dict.fromkeys(ways, 0.0)

    async def watch(name: str, fault: str, proxy: FaultProxy) -> None:
        near = Copying(through(url, server, proxy), on_error="degrade")
        async with near.cache:
            await other.set(name, "old")
            await near.copy(name)
            await asyncio.sleep(random.random())
            if fault == "black hole":
                proxy.black_hole()
            elif fault == "deaf":
                proxy.drop_replies()
            else:
                proxy.stall()
            await other.set(name, "newer")
            cut = time.monotonic()
            while time.monotonic() - cut < 3.2:
                if name.endswith("idle"):
                    old = near.copies(name) == [True]
                else:
                    old = await near.cache.get(name) == "old"
                    if name.endswith("remote"):
                        await near.cache.get("absent")
                if old:
                    last_old[name] = time.monotonic() - cut
                await asyncio.sleep(0.01)
            proxy.healthy()
            await seen(near.cache, name, "newer", 2.0)
            await near.copy(name)
            await other.set(name, "newest")
            assert await seen(near.cache, name, "newest") < SOON_SECONDS

    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(*server.address)) for _ in ways]
        await asyncio.gather(*(watch(*way, proxy) for way, proxy in zip(ways.items(), proxies, strict=True)))
    assert max(last_old.values()) < patient(2.0), last_old


@pytest.mark.slow
async def test_a_hundred_writes_during_a_cut_are_seen_after_it(
    url: str, server: Server, proxy: FaultProxy, other: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """The way is refused for two seconds: when it is there again, copies equal what the server has within a second
    more, and nothing older than the cut is served."""
    caplog.set_level(logging.CRITICAL)
    near = Copying(through(url, server, proxy), on_error="degrade")
    async with near.cache:
        keys = [f"key{number}" for number in range(100)]
        await other.set_many(dict.fromkeys(keys, "old"))
        await near.copy(*keys)
        proxy.refuse()
        for key in keys:
            await other.set(key, "newer")
            await asyncio.sleep(0.02)
            assert await near.cache.get(key) is None
        proxy.healthy()
        healed = time.monotonic()
        left = set(keys)
        while left:
            found = await near.cache.get_many(sorted(left))
            assert set(found.values()) <= {"newer"}
            left -= found.keys()
            assert time.monotonic() - healed < 2.0
            await asyncio.sleep(0.01)
        assert await near.cache.get_many(keys) == dict.fromkeys(keys, "newer")


@pytest.mark.slow
async def test_a_server_that_was_frozen_tells_when_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """It stood still for a moment, and then others wrote: they are seen."""
    caplog.set_level(logging.CRITICAL)
    with Server() as own:
        near = Copying(own.url, on_error="degrade")
        async with near.cache, Cache(own.url, namespace="n", on_error="degrade") as other:
            for pause in (0.2, 1.2):
                assert await other.set("key", f"old {pause}")
                await seen(near.cache, "key", f"old {pause}")
                await near.copy("key")
                own.freeze()
                await asyncio.sleep(pause)
                own.thaw()
                await stored(other, "key", f"newer {pause}", 2.0)
                assert await seen(near.cache, "key", f"newer {pause}") < 1.0


# Servers that do not tell


@pytest.mark.slow
@pytest.mark.parametrize("why", ["protocol", "rights"])
async def test_where_the_server_cannot_tell_a_copy_is_believed_for_a_second(
    why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With RESP2, or without the right to be told: others' writes are seen within a second, own ones at once, and it
    is logged once, however many connections come and go."""
    caplog.set_level(logging.WARNING)
    with Server() as own:
        own.command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", "-client|tracking")
        url = f"{own.url}?protocol=2" if why == "protocol" else f"redis://poor:secret@{own.host}:{own.port}"
        near = Copying(url, on_error="degrade")
        async with near.cache, Cache(own.url, namespace="n", on_error="raise") as other:
            await other.set("key", "old", 60)
            await near.copy("key")
            assert await near.cache.get("key") == "old"
            await other.set("key", "newer", 60)
            assert 0.3 < await seen(near.cache, "key", "newer") < patient(1.0)
            await near.cache.set("key", "mine")
            assert await near.cache.get("key") == "mine"
            assert await near.cache.delete("key")
            assert await near.cache.get("key") is None
            for turn in range(3):
                own.command("CLIENT", "KILL", "TYPE", "normal")
                await stored(near.cache, "key", turn)
                assert await near.cache.get("key") == turn
        assert [record.levelname for record in caplog.records if "believed for a second" in record.message] == [
            "WARNING"
        ]


@pytest.mark.slow
async def test_a_key_that_the_server_evicts_has_no_copy(caplog: pytest.LogCaptureFixture) -> None:
    """A full server drops keys as it likes: what it has dropped is not served."""
    with Server(options={"maxmemory": "6mb", "maxmemory-policy": "allkeys-random"}) as own:
        near = Copying(own.url, codec="bytes")
        async with near.cache, Cache(own.url, namespace="n", codec="bytes", on_error="raise") as other:
            keys = [f"key{number}" for number in range(50)]
            await other.set_many(dict.fromkeys(keys, b"value"))
            await near.copy(*keys)
            for number in range(3_000):
                await other.set(f"filler{number}", random.randbytes(5_000))
            own.command("CONFIG", "SET", "maxmemory", "0")  # a full server drops keys before it answers a read, too
            there = await other.get_many(keys)
            assert len(there) < 50
            await near.told()
            assert {key for key in keys if near.copies(key) == [True]} <= there.keys()
            assert (await near.cache.get_many(keys)).keys() == there.keys()


async def test_a_server_that_forgets_who_read_what_says_so() -> None:
    """Its table of readers is bounded: copies that it can watch no more go, and writes are seen as ever."""
    with Server(options={"tracking-table-max-keys": 20}) as own:
        near = Copying(own.url)
        async with near.cache, Cache(own.url, namespace="n", on_error="raise") as other:
            keys = [f"key{number}" for number in range(200)]
            await other.set_many(dict.fromkeys(keys, "old"))
            assert await near.cache.get_many(keys) == dict.fromkeys(keys, "old")
            for key in keys:
                assert await near.cache.get(key) == "old"
            await comes(lambda: sum(near.copies(*keys)) <= 40, seconds=2.0)
            await other.set_many(dict.fromkeys(keys, "newer"))
            await near.told()
            assert await near.cache.get_many(keys) == dict.fromkeys(keys, "newer")


async def test_a_tag_whose_record_is_lost_hides_its_copies(near: Copying, other: Cache, server: Server) -> None:
    """The server dropped the version of a tag: no copy that carries it is served."""
    await other.set("key", "value", 60, tags=["tag"])
    await near.copy("key")
    await other.redis.command("DEL", "n:tag\0\0tag")
    assert await seen(near.cache, "key", None) < SOON_SECONDS


# A server that is away


async def one(cache: Cache, key: str, load: Callable[[], str]) -> object:
    return await cache.get_or_set(key, load, 60)


async def many(cache: Cache, key: str, load: Callable[[], str]) -> object:
    return (await cache.get_or_set_many([key], lambda keys: dict.fromkeys(keys, load()), 60))[key]


@pytest.mark.parametrize("ask", [one, many])
@pytest.mark.parametrize("tags", [(), ("tag",)])
async def test_what_is_loaded_while_the_server_is_away_is_held_for_a_second(
    ask: Callable[[Cache, str, Callable[[], str]], Awaitable[object]], tags: tuple[str, ...], clock: TravellingClock
) -> None:
    """By the local store: without it each request would reach the source. A write of this process takes it away."""
    with Server() as own:
        cache = Cache(
            own.url, local=MemoryBackend(clock=clock), clock=clock, policy=Policy(ttl=60, tags=tags), on_error="degrade"
        )
        async with cache:
            assert await cache.set("key", "stored")
            assert await ask(cache, "key", lambda: "loaded") == "stored"
            own.kill()
            await until(lambda: _missed(cache), seconds=5.0)
            values = iter(range(100))

            async def asked() -> object:
                return await ask(cache, "key", lambda: f"loaded {next(values)}")

            if tags and ask is many:  # what the versions are is not known
                assert [await asked(), await asked()] == ["loaded 0", "loaded 1"]
                return
            assert {await asked() for _ in range(10)} == {"loaded 0"}
            clock.travel(1.1)
            assert {await asked() for _ in range(10)} == {"loaded 1"}
            await cache.delete("key")
            assert await asked() == "loaded 2"
            if tags:
                await cache.invalidate_tags("tag")
                assert await asked() == "loaded 3"


async def _missed(cache: Cache) -> bool:
    return await cache.get("key") is None


# Caches that share


async def test_caches_that_share_a_store_are_told_each(url: str, other: Cache) -> None:
    """Two caches with local stores, and one without, on one backend: both see the writes of others and of each."""
    backend = on_redis(url)
    locals_ = MemoryBackend(), MemoryBackend()
    one, two = (Cache(backend, local=local, namespace="n", on_error="raise") for local in locals_)
    plain = Cache(backend, namespace="n", on_error="raise")
    for number, writer in enumerate((other, one, two, plain)):
        await writer.set("key", number)
        for reader in (one, two):
            assert await seen(reader, "key", number) < SOON_SECONDS
        assert all("n:key" in local.values for local in locals_)
    for cache in (one, two, plain):
        await cache.aclose()
    await backend.aclose()


@pytest.mark.parametrize("local", [False, True], ids=["first", "another"])
async def test_a_local_store_that_comes_late_disturbs_nobody(url: str, other: Cache, local: bool) -> None:
    """A cache with a local store is made on a store in full use: no call of anybody fails, and its copies are right."""
    backend = on_redis(url)
    first = Cache(backend, local=MemoryBackend() if local else None, namespace="n", on_error="raise")
    await other.set_many({f"key{number}": "old" for number in range(10)})
    over = False

    async def use(number: int) -> int:
        count = 0
        while not over:
            assert await first.get(f"key{number}") == "old"
            count += 1
            assert await first.incr(f"counter{number}") == count
        return count

    users = [asyncio.ensure_future(use(number)) for number in range(10)]
    await asyncio.sleep(0.05)
    late = [Cache(backend, local=MemoryBackend(), namespace="n", on_error="raise") for _ in range(2)]
    for cache in late:
        assert await cache.get("key0") == "old"
    await asyncio.sleep(0.05)
    over = True
    counts = await asyncio.gather(*users)
    assert min(counts) > 0
    await other.set("key0", "newer")
    for cache in late:
        assert await seen(cache, "key0", "newer") < SOON_SECONDS
    for cache in (first, *late):
        await cache.aclose()
    await backend.aclose()


async def test_a_copy_that_is_made_while_tracking_begins_is_right(url: str, other: Cache) -> None:
    """What is read at the moment when the first local store comes is told of too, or believed for a second at most."""
    for turn in range(6):
        backend = on_redis(url)
        plain = Cache(backend, namespace="n", on_error="degrade", name=f"plain {turn}")
        await plain.ping()
        await other.set("key", f"old {turn}")
        cache = Cache(backend, local=MemoryBackend(), namespace="n", on_error="degrade")
        reads = [asyncio.ensure_future(cache.get("key")) for _ in range(3)]
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        await other.set("key", f"newer {turn}")
        await asyncio.gather(*reads)
        assert await seen(cache, "key", f"newer {turn}") < patient(1.0)
        await cache.aclose()
        await plain.aclose()
        await backend.aclose()


@pytest.mark.slow
async def test_a_local_store_that_comes_while_connecting_is_told(
    url: str, server: Server, proxy: FaultProxy, other: Cache
) -> None:
    """It comes at any moment of the first connection, which another cache has begun: its copies are right."""
    proxy.latency(0.01)

    async def come(turn: int) -> None:
        key = f"key{turn}"
        await other.set(key, "old")
        backend = on_redis(through(url, server, proxy))
        plain = Cache(backend, namespace="n", on_error="raise")
        connecting = asyncio.ensure_future(plain.ping())
        await asyncio.sleep(0.005 * turn)
        local = MemoryBackend()
        cache = Cache(backend, local=local, namespace="n", on_error="raise")
        assert await cache.get(key) == "old"
        await connecting
        await asyncio.sleep(0.1)
        while f"n:{key}" not in local.values:
            assert await cache.get(key) == "old"
        await other.set(key, "newer")
        assert await seen(cache, key, "newer", 2.0) < SOON_SECONDS
        await backend.aclose()

    for turn in range(20):
        await come(turn)


@pytest.mark.parametrize("connections", [1, 4])
async def test_copies_are_right_over_several_connections(url: str, other: Cache, connections: int) -> None:
    """Whichever connection a key was read on: its change is told of, and the loss of any one empties the store."""
    near = Copying(f"{url}?connections={connections}")
    async with near.cache:
        keys = [f"key{number}" for number in range(40)]
        for turn in range(5):
            await other.set_many(dict.fromkeys(keys, turn))
            await near.told()
            await near.copy(*keys)
            assert await near.cache.get_many(keys) == dict.fromkeys(keys, turn)


# Loops


@pytest.mark.slow
def test_copies_are_right_in_loops_of_two_threads(url: str) -> None:
    """Two loops share one cache with a local store: both see what another process writes."""
    near = Copying(url)
    turn, failures = threading.Barrier(3), []

    def read_in_thread() -> None:
        async def read(number: int) -> None:
            assert await seen(near.cache, "key", number) < SOON_SECONDS
            for _ in range(20):
                assert await near.cache.get("key") == number
                await asyncio.sleep(0.001)

        with asyncio.Runner() as runner:
            try:
                for number in range(10):
                    turn.wait(10)  # written
                    runner.run(read(number))
                    turn.wait(10)  # read
            except BaseException as error:
                failures.append(error)
                turn.abort()

    async def write() -> None:
        async with Cache(url, namespace="n", on_error="raise") as other:
            for number in range(10):
                await other.set("key", number)
                await asyncio.to_thread(turn.wait, 10)
                await asyncio.to_thread(turn.wait, 10)

    threads = [threading.Thread(target=read_in_thread) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with contextlib.suppress(threading.BrokenBarrierError):
            asyncio.run(write())
    finally:
        for thread in threads:
            thread.join()
    assert failures == []
    asyncio.run(near.cache.aclose())


@pytest.mark.parametrize("left", ["run", "closed"])
def test_copies_of_a_loop_that_has_ended_are_not_believed(url: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop in another thread made a copy, and ended, well or badly: nobody hears of the key's changes any more, and
    nothing says that the loop is closed."""
    near = Copying(url)
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda message: unraisable.append(message.exc_value))

    async def write(value: str) -> None:
        async with Cache(url, namespace="n", on_error="raise") as other:
            await other.set("key", value)

    def make_a_copy() -> None:
        if left == "run":
            asyncio.run(near.copy("key"))
        else:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(near.copy("key"))
            loop.close()

    with asyncio.Runner() as runner:
        runner.run(write("old"))
        runner.run(near.cache.ping())
        thread = threading.Thread(target=make_a_copy)
        thread.start()
        thread.join()
        runner.run(write("newer"))
        assert runner.run(seen(near.cache, "key", "newer", 2.0)) < patient(1.0)
        runner.run(near.cache.aclose())
    gc.collect()
    # Who closes a loop with tasks on it hears of the tasks and sockets from asyncio itself.
    assert [each for each in unraisable if left == "run" or not isinstance(each, ResourceWarning)] == []
