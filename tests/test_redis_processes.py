"""The Redis store between processes, forks, loops and threads, and under storms of cancellations."""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from factories import Gated
from fault_proxy import FaultProxy
from promised_times import patient
from servers import Server
from stores import FLAVOURS, server_of
from waiting import comes, turns, until

from asynccache import BackendError, Cache, CacheError, LoadTimeout, LockTimeout, RecursiveLoad
from asynccache.backends.redis.scripts import lease_record
from asynccache.clock import SystemClock

pytestmark = pytest.mark.slow

LEASE_SECONDS = 3.0

PREAMBLE = """
import asyncio, os, sys, time
import asynccache.backends.redis
from asynccache import Cache

folder, url = sys.argv[1], sys.argv[2]

def note(name, *words):
    # One write to the end of a file is whole, whoever else writes.
    with open(f"{folder}/{name}", "ab", buffering=0) as file:
        file.write((" ".join(map(str, words)) + "\\n").encode())

async def told(name):
    while not os.path.exists(f"{folder}/{name}"):
        await asyncio.sleep(0.005)

def in_processes(count, main):
    # Forks of one that has everything imported begin sooner than as many that import.
    children = []
    for _ in range(count):
        child = os.fork()
        if not child:
            asyncio.run(main())
            os._exit(0)
        children.append(child)
    for child in children:
        status = os.waitpid(child, 0)[1]
        note("ended", child, os.waitstatus_to_exitcode(status))
"""


_started: "list[subprocess.Popen[str]]" = []


@pytest.fixture(autouse=True)
def _nobody_left() -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    while _started:
        process = _started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(script: str, folder: Path, url: str, *arguments: object, warnings: str = "error") -> "subprocess.Popen[str]":
    """A process that runs a script, and is asked what it printed by `ended`."""
    command = [sys.executable, "-W", warnings, "-c", PREAMBLE + script, str(folder), url, *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    _started.append(process)
    return process


def ended(process: "subprocess.Popen[str]") -> str:
    """What a process printed, that must end well and complain of nothing."""
    printed, complained = process.communicate(timeout=30)
    assert process.returncode == 0, complained
    assert complained == ""
    return printed.removesuffix("\n")


def lines(path: Path) -> list[list[str]]:
    """The words of each line of a file that may not be there yet."""
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def wait_for(holds: Callable[[], Any], seconds: float = 15.0) -> None:
    """Wait for what other processes do."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


async def cancelled_after(work: Awaitable[Any], count: int) -> None:
    """Begin the work, and cancel it after so many turns of the loop, unless it is done by then."""
    task = asyncio.ensure_future(work)
    await turns(count)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def clients(server: Server, name: str) -> dict[str, dict[str, str]]:
    """The connections that have this name, by their address."""
    each = [
        dict(word.partition("=")[::2] for word in line.split())
        for line in server.command("CLIENT", "LIST").decode().splitlines()
    ]
    return {client["addr"]: client for client in each if client["name"] == name}


class Skewed:
    """The clock of a machine whose wall clock is off by so many seconds."""

    def __init__(self, by: float) -> None:
        system = SystemClock()
        self.monotonic = system.monotonic
        self.epoch = system.epoch + by
        self.call_later = system.call_later


# Cancellations


WITHIN = (0.002, 0.03, 10.0)
"""Seconds within which callers are cancelled: most of them, some of them, none."""


async def at_random(work: Callable[[], Awaitable[Any]], within: float, done: Counter[str], kind: str) -> Any:
    """What the work brings, or ``None`` when it was cancelled before, at a random moment."""
    task = asyncio.ensure_future(work())
    timer = asyncio.get_running_loop().call_later(random.random() * within, task.cancel)
    try:
        value = await task
    except asyncio.CancelledError:
        done[f"{kind} cancelled"] += 1
        return None
    timer.cancel()
    done[kind] += 1
    return value


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_ten_thousand_cancelled_calls_cross_no_replies(url: str) -> None:
    """Calls of every kind, cancelled at any moment: each that ends has its own value, and so have later calls."""
    async with Cache(url, namespace="n", on_error="raise") as cache:
        values = {f"key{number}": f"value{number}" for number in range(100)}
        await cache.set_many(values)
        done: Counter[str] = Counter()

        async def call(number: int) -> None:
            key, own, within = f"key{number % 100}", f"own{number}", WITHIN[number % 3]
            match number % 5:
                case 0:
                    value = await at_random(lambda: cache.get(key), within, done, "get")
                    assert value in (None, values[key])
                case 1:
                    asked = [f"key{(number + step) % 100}" for step in range(5)]
                    found = await at_random(lambda: cache.get_many(asked), within, done, "get_many")
                    assert found in (None, {key: values[key] for key in asked})
                case 2:
                    assert await at_random(lambda: cache.set(own, own), within, done, "set") in (None, True)
                    assert await cache.get(own) in (None, own)
                case 3:
                    assert await at_random(lambda: cache.delete(own), within, done, "delete") in (None, False)
                case 4:
                    value = await at_random(
                        lambda: cache.get_or_set(own, lambda: own.upper()), within, done, "get_or_set"
                    )
                    assert value in (None, own.upper())

        for turn in range(25):
            await asyncio.gather(*(call(turn * 400 + number) for number in range(400)))
        for kind in ("get", "get_many", "set", "delete", "get_or_set"):
            assert done[kind] > 100, done
            assert done[f"{kind} cancelled"] > 100, done
        assert await cache.get_many(values) == values
        assert cache.stats().errors == 0
        flights = cache._core.loader.flights
        assert flights.table == {}
        await comes(lambda: not len(flights.background))


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_ten_thousand_reads_cancelled_between_question_and_answer(url: str, server: Server) -> None:
    """Each is cancelled once it was sent: no reply goes to another one, and no connection is left or made anew."""
    async with Cache(f"{url}?client_name=storm", on_error="raise") as cache:
        await cache.set_many({f"key{number}": number for number in range(50)})
        before = clients(server, "storm")
        for turn in range(100):
            tasks = [asyncio.ensure_future(cache.get(f"key{number % 50}")) for number in range(110)]
            await turns(2)
            for task in tasks[:100]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert answers[100:] == [number % 50 for number in range(100, 110)], turn
        assert clients(server, "storm").keys() == before.keys()
        assert await cache.get_many([f"key{number}" for number in range(50)]) == {
            f"key{number}": number for number in range(50)
        }


async def test_callers_cancelled_while_connecting_harm_nobody(url: str) -> None:
    """A thousand, cancelled at any moment of the first connection: those that are left have their values."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("key", "value")
    for count in range(12):
        async with Cache(url, on_error="raise") as cache:
            tasks = [asyncio.ensure_future(cache.get("key")) for _ in range(110)]
            await turns(count)
            for task in tasks[:100]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert answers[100:] == ["value"] * 10
            assert await cache.get("key") == "value"


async def test_a_cancelled_wait_ends_at_once_while_nothing_answers(url: str, server: Server) -> None:
    """A hundred callers of each kind who wait for a silent server end within 50 ms of their cancellation."""
    with FaultProxy(*server.address) as proxy:
        through = url.replace(f":{server.port}", f":{proxy.port}") + "?timeout=10s&connect_timeout=10s"
        for connected in (True, False):
            cache = Cache(through)
            if connected:
                assert await cache.ping()
            with silent(proxy):
                tasks = [asyncio.ensure_future(cache.get(f"key{number}")) for number in range(100)]
                tasks += [asyncio.ensure_future(cache.get_or_set(f"k{n}", lambda: "v")) for n in range(100)]
                tasks += [asyncio.ensure_future(held(cache, f"lock{number}")) for number in range(100)]
                await asyncio.sleep(0.1)
                began = time.monotonic()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                assert time.monotonic() - began < patient(0.05)
                assert all(task.cancelled() for task in tasks)
            await cache.aclose()


@contextlib.contextmanager
def silent(proxy: FaultProxy) -> Iterator[None]:
    """Let nothing through."""
    proxy.black_hole()
    try:
        yield
    finally:
        proxy.healthy()


async def held(cache: Cache, key: str, seconds: float = 0.0, **options: Any) -> None:
    """Hold a lock for a moment."""
    async with cache.lock(key, **{"ttl": 60, **options}):
        await asyncio.sleep(seconds)


async def test_a_timeout_leaves_no_cancellation_behind(url: str, server: Server) -> None:
    """After `asyncio.timeout` around any call the task counts no cancellation, and goes on."""
    with FaultProxy(*server.address) as proxy:
        async with Cache(url.replace(f":{server.port}", f":{proxy.port}"), on_error="raise") as cache:
            await cache.set("key", 1)
            proxy.latency(0.05)
            for call in (
                lambda: cache.get("key"),
                lambda: cache.get_many(["key"]),
                lambda: cache.set("other", 1),
                lambda: cache.get_or_set("third", asyncio.Event().wait),
                lambda: held(cache, "lock"),
            ):
                task = asyncio.current_task()
                assert task is not None
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await call()
                assert task.cancelling() == 0
            proxy.healthy()
            assert await cache.get("key") == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["load", "bulk", "lock"])
async def test_one_who_is_cancelled_while_acquiring_leaves_no_lease(url: str, what: str) -> None:
    """Wherever a caller is cancelled on his way to a lease: it is free at once for another process."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        await one.ping()
        await other.ping()

        def work(cache: Cache, key: str) -> Awaitable[Any]:
            if what == "bulk":
                return cache.get_or_set_many([key, f"{key} too"], lambda keys: dict.fromkeys(keys, "value"))
            return cache.get_or_set(key, lambda: "value") if what == "load" else held(cache, key)

        for count in range(25):
            key = f"key{count}"
            await cancelled_after(work(one, key), count)
            async with asyncio.timeout(1.0):
                if what == "bulk":
                    assert await other.get_or_set(key, lambda: "value") == "value"
                    assert await other.get_or_set(f"{key} too", lambda: "value") == "value"
                else:
                    await work(other, key)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["load", "lock"])
async def test_a_storm_on_one_lease_leaves_it_free(url: str, what: str) -> None:
    """A thousand callers of two processes, cancelled at random while they wait for a lease or have it: none is left."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        done: Counter[str] = Counter()
        at_once = 0

        async def load() -> str:
            await asyncio.sleep(0.02 + random.random() * 0.03)
            return "value"

        async def work(cache: Cache, key: str) -> Any:
            nonlocal at_once
            if what == "load":
                return await cache.get_or_set(key, load, ttl=0.01)
            async with cache.lock(key, ttl=60):
                at_once += 1
                assert at_once == 1
                try:
                    await asyncio.sleep(random.random() * 0.002)
                finally:
                    at_once -= 1
            return "value"

        for _ in range(5):
            await asyncio.gather(
                *(
                    at_random(lambda each=each: work((one, other)[each % 2], "key"), WITHIN[each % 3], done, "")
                    for each in range(200)
                )
            )
            async with asyncio.timeout(1.0):
                assert await work(other, "key") == "value"
        assert done[" cancelled"] > 100
        for cache in (one, other):
            assert cache._core.loader.flights.table == {}
            await comes(lambda cache=cache: not len(cache._core.loader.flights.background))


@pytest.mark.slow
async def test_a_lock_is_given_back_by_one_who_is_cancelled_twice(url: str) -> None:
    """The second cancellation comes while the lock is being given back, with other calls under way."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        for count in range(8):
            holder = asyncio.ensure_future(held(one, f"lock{count}", 60))
            await comes(lambda count=count: holder_of(url, f"lock{count}"))
            calls = [asyncio.ensure_future(one.get(f"key{number}")) for number in range(20)]
            holder.cancel()
            await turns(count)
            holder.cancel()
            await asyncio.gather(*calls)
            async with asyncio.timeout(1.0):
                await held(other, f"lock{count}")
            assert (await asyncio.wait([holder], timeout=1.0))[1] == set()


def holder_of(url: str, name: str) -> bool:
    """Whether anybody has a lock."""
    number = url.rpartition("/")[2]
    script = "redis.call('SELECT', ARGV[1]) return redis.call('EXISTS', KEYS[1])"
    return bool(server_of(FLAVOURS[0]).command("EVAL", script, 1, f"{name}\0\0lock", number))


@pytest.mark.slow
async def test_what_comes_after_a_cancelled_write_stays(url: str) -> None:
    """Whatever became of a cancelled `set`, a later write is the newest, and is still there when all has settled."""
    async with Cache(url, on_error="raise") as cache:
        expected: dict[str, int] = {}
        for count in range(8):
            for then in ("incr", "get_or_set", "add", "set", "touch"):
                key = f"{then} {count}"
                await cancelled_after(cache.set(key, 1), count)
                match then:
                    case "incr":
                        expected[key] = await cache.incr(key)
                    case "get_or_set":
                        expected[key] = await cache.get_or_set(key, lambda: 5)
                    case "add":
                        expected[key] = 6 if await cache.add(key, 6) else 1
                    case "set":
                        expected[key] = 7
                        await cache.set(key, 7)
                    case "touch":
                        if await cache.touch(key, 60):
                            expected[key] = 1
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            assert await cache.get_many(expected) == expected
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["set", "delete", "set_many"])
async def test_a_cancelled_write_of_a_large_value_does_not_come_late(url: str, then: str) -> None:
    """A small write that was acknowledged after a large one was given up is not overwritten by it."""
    large = os.urandom(6_000_000)
    async with Cache(url, on_error="raise", codec="bytes") as cache:
        await cache.ping()
        for count in range(8):
            task = asyncio.ensure_future(cache.set("key", large))
            await asyncio.sleep(count * 0.003)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            expected: bytes | None = b"small"
            if then == "set":
                await cache.set("key", b"small")
            elif then == "set_many":
                await cache.set_many({"key": b"small", "other": b"small"})
            else:
                await cache.delete("key")
                expected = None
            deadline = time.monotonic() + 0.1
            while time.monotonic() < deadline:
                assert await cache.get("key") == expected, count
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_cancelled_large_values_harm_nobody(url: str) -> None:
    """Reads and writes of large values, most of them cancelled: the others succeed, with whole values of their own."""
    async with Cache(url, on_error="raise", codec="bytes") as cache:
        values = {f"key{number}": os.urandom(100_000 + 50_000 * number) for number in range(6)}
        await cache.set_many(values)
        done: Counter[str] = Counter()

        async def work(number: int) -> None:
            key = f"key{number % 6}"
            within = WITHIN[number % 2]
            if number % 3:
                assert await at_random(lambda: cache.get(key), within, done, "get") in (None, values[key])
            else:
                stored = await at_random(lambda: cache.set(f"own{number}", values[key]), within, done, "set")
                assert stored in (None, True)
            assert await cache.get("small") == b"small"

        async def undisturbed(number: int) -> None:
            key, own = f"key{number % 6}", f"mine{number}"
            assert await cache.set(own, values[key])
            assert await cache.get(own) == values[key]

        await cache.set("small", b"small")
        for _ in range(6):
            await asyncio.gather(*map(work, range(60)), *map(undisturbed, range(3)))
        assert done["get cancelled"] > 20
        assert done["set cancelled"] > 20
        assert await cache.get_many(values) == values
        assert cache.stats().errors == 0


# Loops and threads


def test_one_cache_in_three_runs(url: str) -> None:
    """Each `asyncio.run` has connections of its own, and none says that its loop is closed."""
    cache = Cache(url, namespace="n", on_error="raise")

    async def run(number: int) -> None:
        await asyncio.gather(*(cache.incr("counter") for _ in range(50)))
        assert await cache.get("counter") == 50 * (number + 1)
        assert await cache.get_or_set(f"key{number}", lambda: number) == number
        async with cache.lock("lock", ttl=10, timeout=1):
            await cache.set("last", number)
        assert await cache.get_many(["last", f"key{number}"]) == {"last": number, f"key{number}": number}

    for number in range(3):
        asyncio.run(run(number))
    asyncio.run(cache.aclose())
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("local", [None, "memory://"])
def test_one_cache_in_loops_of_several_threads(url: str, local: str | None) -> None:
    """Four threads, each with one loop after another, at once: right values, exact counts, no exception."""
    cache = Cache(url, local=local, namespace="n", on_error="raise")
    failures: list[BaseException] = []
    loads: list[int] = []

    async def work(thread: int, turn: int) -> None:
        async def load() -> str:
            loads.append(1)
            await asyncio.sleep(0.005)
            return "shared"

        for number in range(10):
            own = f"{thread}:{number}"
            await cache.set(own, f"{turn}:{own}")
            assert await cache.get(own) == f"{turn}:{own}"
            assert await cache.get(own) == f"{turn}:{own}"
            assert await cache.incr("counter") > 0
            assert await cache.get_or_set(f"loaded:{turn}:{number}", load) == "shared"
        async with cache.lock("lock", ttl=10, timeout=10):
            total = await cache.get("total", 0)
            await cache.set("total", total + 1)

    def run(thread: int) -> None:
        try:
            for turn in range(8):
                asyncio.run(work(thread, turn))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

    async def look() -> tuple[int, int]:
        counts = await cache.get("counter"), await cache.get("total")
        await cache.aclose()
        return counts

    assert asyncio.run(look()) == (4 * 8 * 10, 4 * 8)
    assert len(loads) == 8 * 10
    gc.collect()


# Forks

FORKED = """
cache = Cache(url + "?client_name=forked", local=sys.argv[3] or None, namespace="n", on_error="raise")

async def work(name):
    for number in range(50):
        key = f"{name}{number}"
        await cache.set(key, name)
        assert await cache.get(key) == name
        assert await cache.get(key) == name
        assert await cache.incr("counter") > 0
        assert await cache.get_or_set(f"loaded:{key}", lambda: key) == key
        async with cache.lock("lock", ttl=10, timeout=10):
            await cache.set("total", await cache.get("total", 0) + 1)
    assert await cache.get_many([f"{name}{number}" for number in range(50)]) == {
        f"{name}{number}": name for number in range(50)}

async def as_parent():
    await work("before")
    child = os.fork()
    if not child:
        os._exit(in_child())
    await asyncio.gather(work("parent"), *(work(f"parent{number}-") for number in range(3)))
    note("worked", "parent")
    await told("listed")
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        await asyncio.sleep(0.005)
    assert done[1] == 0
    assert await cache.get("counter") == 50 * 9
    assert await cache.get("total") == 50 * 9
    await cache.aclose()
    print("both")

def in_child():
    async def main():
        await asyncio.gather(work("child"), *(work(f"child{number}-") for number in range(3)))
        note("worked", "child")
        await told("listed")
        await cache.aclose()
    try:
        asyncio.run(main())
        return 0
    except BaseException as error:
        note("failed", repr(error))
        return 1

asyncio.run(as_parent())
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("local", ["", "memory://"])
def test_a_forked_child_has_connections_of_its_own(tmp_path: Path, url: str, server: Server, local: str) -> None:
    """A process forks in the middle of its work: both go on with right values, each by a connection of its own."""
    # A child of a process with threads has only the one that forked: Python 3.12 warns of it, and that is the point.
    process = start(FORKED, tmp_path, url, local, warnings="ignore")
    wait_for(lambda: len(lines(tmp_path / "worked")) == 2 or process.poll() is not None or lines(tmp_path / "failed"))
    assert lines(tmp_path / "failed") == []
    connected = clients(server, "forked")
    (tmp_path / "listed").touch()
    assert ended(process) == "both"
    assert len(connected) == 2


PRELOADED = """
cache = Cache(url + "?client_name=worker", local=sys.argv[4] or None, namespace="n", on_error="raise")

async def warm_up():
    await cache.set("warm", "value")
    return await cache.get("warm"), await cache.get("warm")

async def main():
    assert await cache.get("warm") == "value"
    for number in range(100):
        assert await cache.incr("counter") > 0
        assert await cache.get_or_set(f"loaded{number}", lambda: number) == number
        assert await cache.get(f"loaded{number}") == number
    note("worked", os.getpid())
    await told("listed")
    await cache.aclose()

assert asyncio.run(warm_up()) == ("value", "value")
in_processes(int(sys.argv[3]), main)
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("local", ["", "memory://"])
def test_a_cache_that_was_made_and_used_before_the_workers(
    tmp_path: Path, url: str, server: Server, local: str
) -> None:
    """Three workers of a server that loads the application first: exact counts, and a connection each."""
    process = start(PRELOADED, tmp_path, url, 3, local)
    wait_for(lambda: len(lines(tmp_path / "worked")) == 3 or process.poll() is not None)
    connected = clients(server, "worker")
    (tmp_path / "listed").touch()
    ended(process)
    assert [status for _, status in lines(tmp_path / "ended")] == ["0"] * 3
    assert len(connected) == 3
    assert read(url, "counter") == 300


FORKED_COPIES = """
cache = Cache(url, local="memory://", on_error="raise")

async def read(key):
    return await cache.get(key)

async def write(key, value):
    async with Cache(url, on_error="raise") as writer:
        await writer.set(key, value)

loop = asyncio.new_event_loop()
loop.run_until_complete(write("key", "old"))
assert [loop.run_until_complete(read("key")) for _ in range(2)] == ["old", "old"]
child = os.fork()
if not child:
    asyncio.run(write("key", "new"))
    deadline = time.monotonic() + 1.0
    while asyncio.run(read("key")) != "new" and time.monotonic() < deadline:
        time.sleep(0.01)
    note("child", asyncio.run(read("key")))
    os._exit(0)
os.waitpid(child, 0)
loop.run_until_complete(asyncio.sleep(0.05))
note("parent", loop.run_until_complete(read("key")))
loop.run_until_complete(cache.aclose())
loop.close()
"""


@pytest.mark.slow
def test_a_forked_child_believes_no_copy_that_nobody_keeps_right(tmp_path: Path, url: str) -> None:
    """Copies in the local store from before the fork are the parent's: the child hears of no change of them."""
    ended(start(FORKED_COPIES, tmp_path, url, warnings="ignore"))
    assert (lines(tmp_path / "child"), lines(tmp_path / "parent")) == ([["new"]], [["new"]])


FORKED_LOAD = """
cache = Cache(url, local=sys.argv[3] or None, namespace="n", on_error="raise")

async def load():
    note("loads", os.getpid())
    await told("asking")
    await asyncio.sleep(0.1)
    return "parent"

async def in_child():
    async def load():
        note("loads", os.getpid())
        return "child"
    note("asking")
    return await cache.get_or_set("key", load), await cache.get_or_set("other", lambda: "own")

async def main():
    call = asyncio.ensure_future(cache.get_or_set("key", load))
    while not cache._core.loading:
        await asyncio.sleep(0.001)
    child = os.fork()
    if not child:
        note("child", *asyncio.run(in_child()))
        os._exit(0)
    assert await call == "parent"
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        await asyncio.sleep(0.005)
    assert done[1] == 0
    assert await cache.get("key") == "parent"
    await cache.aclose()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("local", ["", "memory://"])
def test_a_child_that_was_forked_during_a_load_waits_for_it(tmp_path: Path, url: str, local: str) -> None:
    """The load goes on in the parent, once; the child gets its value, and loads other keys by itself."""
    ended(start(FORKED_LOAD, tmp_path, url, local, warnings="ignore"))
    assert len(lines(tmp_path / "loads")) == 1
    assert lines(tmp_path / "child") == [["parent", "own"]]


# One load among processes

LOADING = """
callers, seconds = int(sys.argv[4]), float(sys.argv[5])

async def load():
    note("loads", os.getpid(), time.monotonic())
    await asyncio.sleep(seconds)
    return f"loaded-by-{os.getpid()}"

async def main():
    cache = Cache(url, namespace="n", on_error="raise")
    await cache.ping()
    note("ready", os.getpid())
    await told("go")
    values = await asyncio.gather(*(cache.get_or_set("key", load) for _ in range(callers)))
    note("done", os.getpid(), time.monotonic(), *set(values))
    await cache.aclose()

in_processes(int(sys.argv[3]), main)
"""


def together(script: str, folder: Path, url: str, count: int, *arguments: object) -> "subprocess.Popen[str]":
    """Processes that begin at the same moment, and the one that they are forks of."""
    process = start(script, folder, url, count, *arguments)
    wait_for(lambda: len(lines(folder / "ready")) == count or process.poll() is not None)
    (folder / "go").touch()
    return process


def read(url: str, key: str = "key") -> Any:
    """What the key has, to a process that has just come."""

    async def look() -> Any:
        async with Cache(url, namespace="n", on_error="raise") as cache:
            return await cache.get(key)

    return asyncio.run(look())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_one_process_of_many_loads(tmp_path: Path, url: str) -> None:
    """Of four processes with 250 callers each one loads, once, and all have its value soon after."""
    ended(together(LOADING, tmp_path, url, 4, 250, 0.5))
    [[loader, began]] = lines(tmp_path / "loads")
    done = lines(tmp_path / "done")
    assert [values for _, _, *values in done] == [[f"loaded-by-{loader}"]] * 4
    assert max(float(at) for _, at, *_ in done) - float(began) < patient(0.5 + 0.2)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_work_that_is_longer_than_the_lease_is_done_once(tmp_path: Path, url: str) -> None:
    """The lease is renewed while the load runs; so are those of a load of many keys, whose result is stored but for
    what was deleted meanwhile."""
    process = together(LOADING, tmp_path, url, 2, 5, LEASE_SECONDS + 1.0)

    async def load_many() -> None:
        async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:

            async def load(keys: list[str]) -> dict[str, str]:
                await asyncio.sleep(LEASE_SECONDS + 0.5)
                await other.delete("many1")
                await asyncio.sleep(0.05)
                return dict.fromkeys(keys, "value")

            keys = [f"many{number}" for number in range(3)]
            assert await one.get_or_set_many(keys, load) == dict.fromkeys(keys, "value")
            assert await other.get_many(keys) == {"many0": "value", "many2": "value"}

    asyncio.run(load_many())
    ended(process)
    [[loader, _]] = lines(tmp_path / "loads")
    assert [values for _, _, *values in lines(tmp_path / "done")] == [[f"loaded-by-{loader}"]] * 2


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_holder_that_is_killed_is_replaced(tmp_path: Path, url: str) -> None:
    """When the process that loads is killed, one other loads, within the lease and a second."""
    process = together(LOADING, tmp_path, url, 4, 50, 0.8)
    wait_for(lambda: lines(tmp_path / "loads"))
    os.kill(int(lines(tmp_path / "loads")[0][0]), signal.SIGKILL)
    killed = time.monotonic()
    ended(process)
    (_, (second, began)) = lines(tmp_path / "loads")
    assert [values for _, _, *values in lines(tmp_path / "done")] == [[f"loaded-by-{second}"]] * 3
    assert float(began) - killed < LEASE_SECONDS + 1.0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_holder_that_is_frozen_cannot_overwrite(tmp_path: Path, url: str) -> None:
    """A process that sleeps through its lease comes back too late to store what it loaded."""
    process = together(LOADING, tmp_path, url, 1, 1, 0.5)
    wait_for(lambda: lines(tmp_path / "loads"))
    frozen = lines(tmp_path / "loads")[0][0]
    os.kill(int(frozen), signal.SIGSTOP)

    async def load_newer() -> None:
        async with Cache(url, namespace="n", on_error="raise") as cache:
            assert await cache.get_or_set("key", lambda: "newer") == "newer"

    asyncio.run(load_newer())
    os.kill(int(frozen), signal.SIGCONT)
    ended(process)
    assert [values for _, _, *values in lines(tmp_path / "done")] == [[f"loaded-by-{frozen}"]]
    assert read(url) == "newer"


@pytest.mark.slow
async def test_a_late_holder_cannot_give_back_the_lease_of_another(url: str, server: Server) -> None:
    """Nor renew it: its token has lapsed."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        leases, others = one._core.remote.leases, other._core.remote.leases  # type: ignore[union-attr]
        assert leases is not None
        assert others is not None
        first = await leases.acquire("key", ttl=0.1)
        assert first is not None
        assert await others.acquire("key", ttl=0.1) is None
        await asyncio.sleep(0.15)
        second = await others.acquire("key", ttl=10)
        assert second is not None
        await leases.release(first)
        assert await leases.renew(first, ttl=10) is False
        assert await others.acquire("key", ttl=10) is None
        assert await others.renew(second, ttl=10) is True


# Newer wins

CHANGED = ["set", "set_many", "add", "delete", "delete_many", "clear", "clear some", "incr", "tags"]


async def change(cache: Cache, write: str) -> Any:
    """Change "key" in some way, and return what it has then."""
    match write:
        case "set":
            await cache.set("key", "newer")
            return "newer"
        case "set_many":
            await cache.set_many({"key": "newer", "other": "newer"})
            return "newer"
        case "add":
            await cache.add("key", "newer")
            return "newer"
        case "delete":
            await cache.delete("key")
        case "delete_many":
            await cache.delete_many(["key", "other"])
        case "clear":
            await cache.clear()
        case "clear some":
            await cache.clear("k?y")
        case "incr":
            await cache.incr("key", 7)
            return 7
        case "tags":
            await cache.invalidate_tags("tag")
    return None


@pytest.mark.parametrize("local", [None, "memory://"], ids=["remote", "two tiers"])
@pytest.mark.parametrize("how", ["get_or_set", "get_or_set_many", "tags of the load"])
@pytest.mark.parametrize("write", CHANGED)
async def test_newer_wins_between_processes(url: str, write: str, how: str, local: str | None) -> None:
    """A write in one process during a load in another: the load's callers get its value, and it is not stored."""
    async with (
        Cache(url, local=local, namespace="n", on_error="raise") as one,
        Cache(url, local=local, namespace="n", on_error="raise") as other,
    ):
        gate, loads = asyncio.Event(), 0

        async def load(*_: Any) -> Any:
            nonlocal loads
            loads += 1
            await gate.wait()
            return {"key": "old", "third": "old"} if how == "get_or_set_many" else "old"

        async def load_with_tags(load_: Any) -> Any:
            load_.add_tags("tag")
            return await load()

        if how == "get_or_set_many":
            call = asyncio.ensure_future(one.get_or_set_many(["key", "third"], load, tags=["tag"]))
        elif how == "get_or_set":
            call = asyncio.ensure_future(one.get_or_set("key", lambda: load(), tags=["tag"]))
        else:
            call = asyncio.ensure_future(one.get_or_set("key", load_with_tags))
        await comes(lambda: loads)
        expected = await change(other, write)
        gate.set()
        assert await call == ({"key": "old", "third": "old"} if how == "get_or_set_many" else "old")
        assert await other.get("key") == expected
        assert await one.get("key") == expected
        if expected is None:
            assert await one.get_or_set("key", lambda: "second") == "second"


@pytest.mark.parametrize("write", ["set", "delete", "clear", "tags"])
async def test_newer_wins_over_a_refresh_ahead_in_another_process(url: str, write: str) -> None:
    """A refresh in the background stores nothing over what another process has written since it began."""
    async with Cache(url, namespace="n", on_error="raise") as one, Cache(url, namespace="n") as other:
        options: dict[str, Any] = {"refresh_ahead": 0.01, "tags": ["tag"]}
        assert await one.get_or_set("key", lambda: "first", 5, **options) == "first"
        await asyncio.sleep(0.1)
        refresh = Gated("old")
        assert await one.get_or_set("key", refresh, 5, **options) == "first"
        await comes(lambda: refresh.calls)
        expected = await change(other, write)
        refresh.gate.set()
        await comes(lambda: not one._core.loading)
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            assert await other.get("key") == expected
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("local", [None, "memory://"], ids=["remote", "two tiers"])
async def test_a_refresh_ahead_runs_in_one_process_of_two(url: str, local: str | None) -> None:
    """A thousand reads of an ageing entry, in two processes: one refresh, and all are answered at once."""
    options: dict[str, Any] = {"local": local, "namespace": "n", "on_error": "raise"}
    async with Cache(url, **options) as one, Cache(url, **options) as two:
        assert await one.get_or_set("key", lambda: "first", 20, refresh_ahead=0.005) == "first"
        await asyncio.sleep(0.15)  # more than the 0.1 s after which it is refreshed
        refresh = Gated("second")
        calls = ((one, two)[number % 2].get_or_set("key", refresh, 20, refresh_ahead=0.005) for number in range(1_000))
        assert set(await asyncio.gather(*calls)) == {"first"}
        await comes(lambda: refresh.calls)
        await asyncio.sleep(0.1)
        refresh.gate.set()
        for _ in range(100):
            if await two.get("key") == "second":
                break
            await asyncio.sleep(0.01)
        assert await two.get("key") == "second"
        assert refresh.calls == 1


@pytest.mark.parametrize("by", [-3_600.0, 0.0, 5.0])
async def test_tags_hold_between_clocks_that_differ(url: str, by: float) -> None:
    """An invalidation by a process whose clock is off hides what was begun before it, and nothing that was begun
    after it, whoever loads and whether the tags were known before."""
    apart = 0.05  # seconds: by less, two clocks cannot be compared over a network

    async def check(loader: Cache, other: Cache, key: str, *, known: bool) -> None:
        loads, hide = 0, False
        options: dict[str, Any] = {"tags": [key]} if known else {}

        async def load(load: Any) -> str:
            nonlocal loads
            loads += 1
            number = loads
            if not known:
                load.add_tags(key)
            if hide:
                await asyncio.sleep(apart)
                await other.invalidate_tags(key)
            return f"loaded {number}"

        await other.invalidate_tags(key)
        await asyncio.sleep(apart)
        for cache in (loader, loader, other):
            assert await cache.get_or_set(key, load, **options) == "loaded 1"
        await loader.delete(key)
        hide = True
        assert await loader.get_or_set(key, load, **options) == "loaded 2"
        hide = False
        await asyncio.sleep(apart)
        for cache in (loader, loader, other):
            assert await cache.get_or_set(key, load, **options) == "loaded 3"

    async with (
        Cache(url, namespace="n", clock=Skewed(by), on_error="raise") as odd,
        Cache(url, namespace="n", on_error="raise") as right,
    ):
        await asyncio.gather(
            *(
                check(loader, other, f"{number} {known}", known=known)
                for number, (loader, other) in enumerate(((odd, right), (right, odd)))
                for known in (True, False)
            )
        )


async def test_limits_hold_while_another_process_loads(url: str) -> None:
    """Who waits for another's load gets the stale value after the soft timeout, or `LoadTimeout` after the hard one."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        await one.set("stale", "stale", 0.01, grace=60)
        await asyncio.sleep(0.02)
        factory = Gated("newer")
        calls = [asyncio.ensure_future(one.get_or_set(key, factory)) for key in ("stale", "absent")]
        await comes(lambda: factory.calls == 2)
        began = time.monotonic()
        assert await other.get_or_set("stale", factory, soft_timeout=0.1) == "stale"
        assert time.monotonic() - began < patient(0.15)
        began = time.monotonic()
        with pytest.raises(LoadTimeout):
            await other.get_or_set("absent", factory, hard_timeout=0.1)
        assert time.monotonic() - began < patient(0.15)
        factory.gate.set()
        assert await asyncio.gather(*calls) == ["newer"] * 2
        assert factory.calls == 2
        flights = other._core.loader.flights
        await comes(lambda: not flights.table and not len(flights.background))
        assert await other.get_many(["stale", "absent"]) == {"stale": "newer", "absent": "newer"}


@pytest.mark.slow
async def test_loads_of_two_processes_that_wait_for_each_other_end(url: str) -> None:
    """One loads A, which needs B, the other B, which needs A: both have an answer or an error after a few leases."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:

        async def load(cache: Cache, needed: str) -> str:
            await asyncio.sleep(0.1)
            return str(await cache.get_or_set(needed, lambda: needed))

        calls = [
            asyncio.ensure_future(one.get_or_set("A", lambda: load(one, "B"))),
            asyncio.ensure_future(other.get_or_set("B", lambda: load(other, "A"))),
        ]
        ended, _ = await asyncio.wait(calls, timeout=patient(2 * LEASE_SECONDS + 1.0))
        assert len(ended) == 2
        for call in calls:
            assert isinstance(call.exception(), RecursiveLoad | None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["reset", "late"])
async def test_calls_cancelled_while_the_way_is_bad_cross_no_replies(
    url: str, server: Server, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections are reset, or answers come after their time, under a storm of cancelled calls: each that ends has
    its own value or none, and when the way is good again all is well."""
    caplog.set_level(logging.CRITICAL)
    with FaultProxy(*server.address) as proxy:
        async with Cache(url.replace(f":{server.port}", f":{proxy.port}"), namespace="n") as cache:
            values = {f"key{number}": f"value{number}" for number in range(50)}
            await cache.set_many(values)
            done: Counter[str] = Counter()
            over = False

            async def call_on(number: int) -> None:
                while not over:
                    key = f"key{random.randrange(50)}"
                    if number % 2:
                        value = await at_random(lambda key=key: cache.get(key), 0.02, done, "get")
                        assert value in (None, values[key])
                    else:
                        own = f"own{number}"
                        value = await at_random(lambda own=own: cache.get_or_set(own, lambda: own), 0.02, done, "load")
                        assert value in (None, own)
                    done["value"] += value is not None
                    await asyncio.sleep(0.001)

            callers = [asyncio.ensure_future(call_on(number)) for number in range(40)]
            for _ in range(8):
                await asyncio.sleep(0.1)
                if fault == "reset":
                    proxy.reset_all()
                else:
                    proxy.latency(0.55)
                    await asyncio.sleep(0.1)
                    proxy.latency(0.0)
            over = True
            await asyncio.gather(*callers)
            assert done["value"] > 20
            proxy.healthy()
            healed = time.monotonic()
            while await cache.get_many(values) != values:
                assert time.monotonic() - healed < 2.0
                await asyncio.sleep(0.01)


# What it costs, and what is left


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_thousand_waiters_cost_the_server_little(tmp_path: Path, url: str, server: Server) -> None:
    """Four processes with 250 callers each wait two seconds for one load: at most 200 commands."""
    process = start(LOADING, tmp_path, url, 4, 250, 2.0)
    wait_for(lambda: len(lines(tmp_path / "ready")) == 4)
    server.command("CONFIG", "RESETSTAT")
    (tmp_path / "go").touch()
    wait_for(lambda: len(lines(tmp_path / "done")) == 4)
    calls = server.calls()
    ended(process)
    assert len(lines(tmp_path / "loads")) == 1
    assert calls["EVALSHA"] > 0
    assert sum(calls.values()) <= 200, calls


@pytest.mark.slow
async def test_a_thousand_of_one_process_cost_the_server_little() -> None:
    """They wait two seconds, for a load (over RESP2, in four caches) or for a lock: at most 200 commands, whether or
    not the server can tell."""

    async def load(server: Server) -> None:
        async with AsyncExitStack() as stack:
            caches = [Cache(f"{server.url}?protocol=2", on_error="raise") for _ in range(4)]
            for cache in caches:
                await stack.enter_async_context(cache)
                await cache.ping()
            factory = Gated()
            server.command("CONFIG", "RESETSTAT")
            calls = [asyncio.ensure_future(cache.get_or_set("key", factory)) for cache in caches for _ in range(250)]
            await asyncio.sleep(2.0)
            factory.gate.set()
            landed = time.monotonic()
            assert set(await asyncio.gather(*calls)) == {"loaded"}
            assert time.monotonic() - landed < patient(0.1 + 0.05)
            assert factory.calls == 1
            assert sum(server.calls().values()) <= 200

    async def lock(server: Server, protocol: int) -> None:
        url = f"{server.url}?protocol={protocol}"
        async with Cache(server.url, on_error="raise") as holder, Cache(url, on_error="raise") as cache:
            await cache.ping()
            async with holder.lock("lock", ttl=60):
                server.command("CONFIG", "RESETSTAT")
                waiting = [asyncio.ensure_future(held(cache, "lock")) for _ in range(1_000)]
                await asyncio.sleep(2.0)
                calls = server.calls()
                for task in waiting[100:]:
                    task.cancel()
            async with asyncio.timeout(5.0):
                await asyncio.gather(*waiting, return_exceptions=True)
            assert not any(task.cancelled() for task in waiting[:100])
            assert sum(calls.values()) <= 200, calls

    with Server() as one, Server() as two, Server() as three:
        await asyncio.gather(load(one), lock(two, 2), lock(three, 3))


@pytest.mark.slow
async def test_nothing_is_left_of_ten_thousand_loads(url: str, server: Server) -> None:
    """Stored, failed, skipped or not stored, alone or many at once: no lease, no record of a waiter, no flight is
    left."""
    async with Cache(f"{url}?timeout=10s", namespace="n", on_error="raise") as cache:

        async def load(number: int) -> None:
            def factory(load: Any) -> str:
                if number % 4 == 1:
                    load.skip()
                if number % 4 == 2:
                    raise KeyError(number)
                return "value"

            with contextlib.suppress(KeyError):
                await cache.get_or_set(f"key{number}", factory, cache_if=lambda _: number % 4 != 3)

        for start_at in range(0, 10_000, 500):
            await asyncio.gather(*(load(number) for number in range(start_at, start_at + 500)))

        def load_many(keys: list[str]) -> dict[str, str]:
            if "bulk1" in keys:
                raise KeyError
            return {key: "value" for key in keys if not key.endswith("0")}

        for start_at in range(0, 1_000, 100):
            with contextlib.suppress(KeyError):
                await cache.get_or_set_many([f"bulk{number}" for number in range(start_at, start_at + 100)], load_many)
        stored = 2_500 + 9 * 90
        for _ in range(200):
            left = {name async for name in cache.redis.scan()}
            if len(left) == stored:
                break
            await asyncio.sleep(0.01)
        assert len(left) == stored
        await cache.clear()
        assert [name async for name in cache.redis.scan()] == []
        core = cache._core
        assert len(core.loader.flights.table) == 0
        await comes(lambda: not len(core.loader.flights.background))
        assert core.remote.leases._waiters == {} or not any(map(len, core.remote.leases._waiters.values()))


async def test_nothing_is_left_of_a_thousand_locks(url: str) -> None:
    """No key of a lock that was given back is left on the server."""
    async with Cache(f"{url}?timeout=10s", on_error="raise") as cache:
        await asyncio.gather(*(held(cache, f"lock{number}") for number in range(1_000)))
        assert [name async for name in cache.redis.scan()] == []


@pytest.mark.parametrize("how", ["single", "bulk"])
@pytest.mark.parametrize("scripts", ["known", "unknown"])
async def test_closing_gives_back_the_lease_of_a_load(url: str, server: Server, scripts: str, how: str) -> None:
    """A process that ends while it loads keeps nobody waiting for its lease."""
    one = Cache(url, on_error="raise")
    async with Cache(url, on_error="raise") as other:
        assert await other.get_or_set("first", lambda: "other") == "other"
        if scripts == "unknown":
            server.command("SCRIPT", "FLUSH")
        factory = Gated()
        if how == "single":
            call = asyncio.ensure_future(one.get_or_set("key", factory))
        else:
            call = asyncio.ensure_future(one.get_or_set_many(["key"], lambda _: factory()))
        await comes(lambda: factory.calls)
        await asyncio.sleep(0.05)
        await one.aclose()
        async with asyncio.timeout(1.0):
            assert await other.get_or_set("key", lambda: "other") == "other"
        await asyncio.wait([call])
        assert call.exception() is not None


@pytest.mark.parametrize("latency", [0.0, 0.02])
@pytest.mark.parametrize(("state", "cancelled"), [("asked for", False), ("asked for", True), ("held", True)])
async def test_a_closed_cache_leaves_no_lock_behind(
    url: str, server: Server, proxy: FaultProxy, latency: float, state: str, cancelled: bool
) -> None:
    """Neither of one who was cancelled together with the closing, as a shutdown does it, nor one that was granted to
    nobody."""
    cache = Cache(url.replace(f":{server.port}", f":{proxy.port}"), namespace="n")
    entered = asyncio.Event()

    async def hold() -> None:
        async with cache.lock("lock", ttl=20):
            entered.set()
            await asyncio.sleep(30)

    async with Cache(url, namespace="n") as other:
        assert await cache.ping()
        proxy.latency(latency)
        task = asyncio.ensure_future(hold())
        if state == "held":
            await entered.wait()
        else:
            await turns(3)
        if cancelled:
            task.cancel()
        await cache.aclose()
        async with asyncio.timeout(5), other.lock("lock", ttl=20):
            pass
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("on_error", ["degrade", "raise"])
async def test_closing_lets_nobody_into_a_lock(url: str, on_error: Any) -> None:
    """Who waits for a lock that another process has, when his cache is closed, gets an exception at once."""
    async with Cache(url, on_error="raise") as other:
        cache = Cache(url, on_error=on_error)
        async with other.lock("lock", ttl=60):
            waiting = [asyncio.ensure_future(held(cache, "lock")) for _ in range(5)]
            await asyncio.sleep(0.1)
            await cache.aclose()
            ended, _ = await asyncio.wait(waiting, timeout=1.0)
            assert len(ended) == 5
            assert all(isinstance(task.exception(), CacheError) for task in waiting)


LEAVING = """
async def main():
    cache = Cache(url, namespace="n", on_error=sys.argv[4])
    entered = asyncio.Event()

    async def hold(name):
        async with cache.lock(name, ttl=60):
            entered.set()
            await asyncio.sleep(60)

    holding = asyncio.ensure_future(hold("lock"))
    await entered.wait()
    if sys.argv[3] == "exited":
        async with cache.lock("other", ttl=60):
            sys.exit()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["degrade", "raise"])
@pytest.mark.parametrize("how", ["returned", "exited"])
async def test_leaving_gives_back_a_lock(tmp_path: Path, url: str, how: str, on_error: str) -> None:
    """A process that ends while one of its tasks has a lock says nothing, and others have the lock at once."""
    process = start(LEAVING, tmp_path, url, how, on_error)
    assert await asyncio.to_thread(ended, process) == ""
    async with Cache(url, namespace="n", on_error="raise") as cache, asyncio.timeout(10):
        await held(cache, "other")
        await held(cache, "lock")


def test_a_loop_that_goes_on_when_all_was_cancelled_has_its_cache_still(url: str) -> None:
    """What was cancelled with everything else, as at the end of a program, is there again for who goes on."""

    async def cancelled() -> None:
        async with cache.lock("lock", ttl=60):
            entered.set()
            await asyncio.sleep(60)

    async def main() -> list[Any]:
        holding = asyncio.ensure_future(cancelled())
        await entered.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(tasks) > 1  # that of the connection too
        for task in tasks:
            task.cancel()
        await asyncio.wait([holding])
        await held(cache, "lock")
        await cache.set("key", "value")
        value = await cache.get("key")
        await cache.aclose()
        return [value, holding.cancelled(), asyncio.all_tasks() - {asyncio.current_task()}]

    entered = asyncio.Event()
    cache = Cache(url, on_error="raise")
    assert asyncio.run(main()) == ["value", True, set()]


@pytest.mark.slow
async def test_the_last_cancelled_caller_frees_the_lease(url: str) -> None:
    """The load is cancelled within 50 ms when nobody waits for it any more, and another process loads at once."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        seen: list[float] = []

        async def load() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(time.monotonic())
                raise

        calls = [asyncio.ensure_future(one.get_or_set("key", load)) for _ in range(10)]
        await comes(lambda: one._core.loading)
        began = time.monotonic()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await comes(lambda: seen)
        assert seen[0] - began < patient(0.05)
        async with asyncio.timeout(0.5):
            assert await other.get_or_set("key", lambda: "other") == "other"


# When the server is away for a moment


async def answers(cache: Cache) -> bool:
    """Whether its server does."""
    try:
        return await cache.ping()
    except CacheError:
        return False


@pytest.mark.slow
async def test_a_moment_without_the_server_costs_no_second_load(caplog: pytest.LogCaptureFixture) -> None:
    """A renewal that fails is repeated in time, whether or not failures are raised: a load that outlives its lease is
    still the only one."""
    caplog.set_level(logging.CRITICAL)
    with Server() as server:

        async def watch(on_error: Any) -> None:
            async with Cache(server.url, on_error=on_error) as one, Cache(server.url, on_error=on_error) as other:
                await one.ping()
                await other.ping()
                loads = 0

                async def load() -> str:
                    nonlocal loads
                    loads += 1
                    await asyncio.sleep(4.5)
                    return "value"

                first = asyncio.ensure_future(one.get_or_set(on_error, load))
                await comes(lambda: loads)
                began.release()
                await thawed.wait()
                for cache in (one, other):
                    await until(partial(answers, cache))
                second = asyncio.ensure_future(other.get_or_set(on_error, load))
                assert await asyncio.gather(first, second) == ["value", "value"]
                assert loads == 1

        began, thawed = asyncio.Semaphore(0), asyncio.Event()
        both = [asyncio.ensure_future(watch(on_error)) for on_error in ("degrade", "raise")]
        for _ in both:
            await began.acquire()
        await asyncio.sleep(0.5)
        server.freeze()
        await asyncio.sleep(1.0)  # the first renewal falls into this second
        server.thaw()
        thawed.set()
        await asyncio.gather(*both)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["acquire", "acquired", "release", "released"])
async def test_a_lock_is_free_soon_after_its_connection_was_lost(
    url: str, server: Server, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is reset as a lock is taken or given back, before or after the server has done it:
    another process has the lock long before its ttl is over."""
    caplog.set_level(logging.CRITICAL)
    with FaultProxy(*server.address) as proxy:
        cache = Cache(url.replace(f":{server.port}", f":{proxy.port}"), on_error="raise")
        async with cache, Cache(url, on_error="raise") as other:
            await held(cache, "first")
            if at.startswith("acquire"):
                proxy.reset_at("EVALSHA", answered=at == "acquired")
                with pytest.raises(BackendError):
                    await held(cache, "lock")
            else:
                with contextlib.suppress(BackendError):
                    async with cache.lock("lock", ttl=60):
                        proxy.reset_at("EVALSHA", answered=at == "released")
            async with asyncio.timeout(10):
                await held(other, "lock")


@pytest.mark.slow
async def test_a_server_that_dies_costs_each_process_one_load(caplog: pytest.LogCaptureFixture) -> None:
    """Two processes of a hundred callers, and the server is killed while one loads: at most one load each, no error."""
    caplog.set_level(logging.CRITICAL)
    with Server() as server:
        async with Cache(server.url) as one, Cache(server.url) as other:
            loads: Counter[str] = Counter()

            async def call(cache: Cache, name: str) -> str:
                async def load() -> str:
                    loads[name] += 1
                    await asyncio.sleep(0.5)
                    return name

                return await cache.get_or_set("key", load)

            calls = [asyncio.ensure_future(call(one, "one")) for _ in range(100)]
            await comes(lambda: loads["one"])
            calls += [asyncio.ensure_future(call(other, "other")) for _ in range(100)]
            await asyncio.sleep(0.1)
            server.kill()
            async with asyncio.timeout(2.5):
                values = await asyncio.gather(*calls)
            assert values == ["one"] * 100 + ["other"] * 100
            assert loads == {"one": 1, "other": 1}


# Clocks


@pytest.mark.slow
async def test_a_wall_clock_that_is_off_changes_no_ttl(url: str) -> None:
    """A process whose wall clock is off, and others: each sees the other's entries as long as they live, no longer."""

    async def check(by: float) -> None:
        options: dict[str, Any] = {"namespace": f"n{by}", "on_error": "raise"}
        async with (
            Cache(url, clock=Skewed(by), **options) as odd,
            Cache(url, **options) as right,
            Cache(url, local="memory://", clock=Skewed(-by), **options) as tiers,
        ):
            everybody = (odd, right, tiers)
            for number, writer in enumerate(everybody):
                key, hour, counter = f"key{number}", f"hour{number}", f"counter{number}"
                began = time.monotonic()
                await writer.set(key, "value", 1.0, grace=60)
                await writer.set(hour, "value", "1h")
                await writer.incr(counter, ttl=1.0)
                written = time.monotonic()
                for reader in everybody:
                    assert await reader.ttl(hour) == pytest.approx(3_600, abs=1.0)
                    left, now = await reader.ttl(key), time.monotonic()
                    assert left is not None
                    assert began + 1.0 - now - 0.05 < left < written + 1.0 - now + 0.05
                    assert await reader.get(key) == "value"
                    entry = await reader.entry(key)
                    assert entry is not None
                    assert entry.expires_at - entry.fresh_until == pytest.approx(60, abs=0.01)
                    assert await reader.touch(hour, "1h")
                    assert await reader.incr(counter) > 1
            assert await right.touch("key0", 60)
            await asyncio.sleep(began + 0.7 - time.monotonic())
            for reader in everybody:
                assert await reader.get("key2") == "value"
            await asyncio.sleep(written + 1.05 - time.monotonic())
            for reader in everybody:
                assert await reader.get("key0") == "value"
                assert await reader.get("key1") is None
                assert await reader.get("key2") is None
                assert await reader.get("counter2") is None
                stale = await reader.entry("key2")
                assert stale is not None
                assert stale.value == "value"
            assert [await reader.add("key2", "again", 60) for reader in everybody] == [True, False, False]

    await asyncio.gather(*map(check, (-3_600.0, 3_600.0, -5.0, 5.0)))


@pytest.mark.slow
async def test_leases_hold_between_clocks_that_differ(url: str) -> None:
    """One whose wall clock is an hour off takes nobody's lease too early, nor waits longer for it than others do."""

    async def wait(by: float, key: str, *, late: bool) -> None:
        async with Cache(url, clock=Skewed(by), on_error="raise") as odd, Cache(url, on_error="raise") as right:
            holder, other = (odd, right) if late else (right, odd)
            if "stale" in key:
                await holder.set(key, "old", 0.01, grace=60)
                await asyncio.sleep(0.02)
            await other.ping()
            leases = holder._core.remote.leases
            assert await leases.acquire(key, ttl=0.7) is not None
            began = time.monotonic()
            assert await other.get_or_set(key, lambda: "new") == "new"
            assert 0.6 < time.monotonic() - began < 0.7 + patient(0.2)

    await asyncio.gather(
        *(
            wait(by, f"{key} {by} {late}", late=late)
            for by in (-3_600.0, 3_600.0)
            for key in ("stale", "absent")
            for late in (False, True)
        )
    )


@pytest.mark.slow
@pytest.mark.timeout(30)
async def test_a_lease_from_the_future_is_not_waited_for_without_bound(url: str, server: Server) -> None:
    """The holder died and the server's clock was set back by an hour: another process loads within seconds."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("key", "stale", 0.01, grace="2h")
        await asyncio.sleep(0.02)
        stored = await cache.redis.command("GETRANGE", "key", 0, -1)
        record = lease_record("0123456789abcdef", time.time() + 3_600)
        await cache.redis.command("SET", "key", record + stored, "PX", 7_200_000)
        began = time.monotonic()
        async with asyncio.timeout(LEASE_SECONDS * 3):
            assert await cache.get_or_set("key", lambda: "new") == "new"
        assert time.monotonic() - began < patient(2 * LEASE_SECONDS + 1.0)
        assert await cache.get("key") == "new"


# Locks between processes

LOCKING = """
count = int(sys.argv[4])

async def main():
    cache = Cache(url, namespace="n", on_error="raise")
    await cache.ping()
    note("ready", os.getpid())
    await told("go")

    async def work():
        for _ in range(count):
            async with cache.lock("lock", ttl=20, timeout=20) as number:
                entered = time.monotonic()
                total = await cache.get("total", 0)
                await asyncio.sleep(0.001)
                await cache.set("total", total + 1)
                note("held", entered, time.monotonic(), number)

    await asyncio.gather(*(work() for _ in range(5)))
    await cache.aclose()

in_processes(int(sys.argv[3]), main)
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_lock_keeps_four_processes_apart(tmp_path: Path, url: str) -> None:
    """Twenty tasks in four processes count by reading and writing, under the lock: none is lost, no two overlap, and
    the number of each holder is greater than those before."""
    ended(together(LOCKING, tmp_path, url, 4, 10))
    assert [status for _, status in lines(tmp_path / "ended")] == ["0"] * 4
    spans = sorted((float(entered), float(left), int(number)) for entered, left, number in lines(tmp_path / "held"))
    assert len(spans) == 200
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert all(first[2] < second[2] for first, second in itertools.pairwise(spans))
    assert read(url, "total") == 200


HOLDING = """
async def main():
    cache = Cache(url, namespace="n", on_error="raise")
    async with cache.lock("lock", ttl=float(sys.argv[3])):
        note("holds", time.monotonic())
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_lock_lapses_when_its_holder_is_killed(tmp_path: Path, url: str) -> None:
    """Not before its ttl, and soon after it."""
    process = start(HOLDING, tmp_path, url, 1.0)
    wait_for(lambda: lines(tmp_path / "holds"))
    process.kill()
    held_since = float(lines(tmp_path / "holds")[0][0])

    async def take() -> float:
        async with Cache(url, namespace="n", on_error="raise") as cache:
            with pytest.raises(LockTimeout):
                await held(cache, "lock", timeout=0.2)
            async with cache.lock("lock", ttl=5, timeout=10):
                return time.monotonic()

    assert 1.0 - 0.05 < asyncio.run(take()) - held_since < 1.0 + patient(0.5)


async def test_a_lock_is_handed_on_at_once(url: str) -> None:
    """Who waits in another process is woken when it is given back, not on a poll: within 50 ms."""
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        waits = []
        for number in range(10):
            async with one.lock("lock", ttl=60):
                waiting = asyncio.ensure_future(held(other, "lock"))
                await asyncio.sleep(0.03 + 0.01 * number)
                assert not waiting.done()
            left = time.monotonic()
            await waiting
            waits.append(time.monotonic() - left)
        assert sorted(waits)[8] < patient(0.05), waits
