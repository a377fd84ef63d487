"""The file store between processes: killed, forked, racing for a key, waiting for each other."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asynccache import Cache

DATABASE = "entries-1.sqlite3"


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process that runs a script, and is asked what it printed by `ended`."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> str:
    """What a process printed, that must end well and complain of nothing."""
    printed, complained = process.communicate(timeout=100)
    assert process.returncode == 0, complained
    assert complained == ""
    return printed


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def wait_for(holds: Callable[[], Any]) -> None:
    """Wait for what other processes do."""
    for _ in range(3_000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


# Killed

# One process that has everything imported forks the writers, so that a round takes as long as the writers live.
KILLED = """
import asyncio, hashlib, json, os, random, signal, sys, time
from asynccache import Cache

folder, rounds, writers = sys.argv[1], int(sys.argv[2]), 4

def value_of(writer, number):
    payload = random.Random(writer * 1_000_003 + number).randbytes(random.randrange(25, 10_000)).hex()
    return {"number": number, "payload": payload, "sum": hashlib.sha256(payload.encode()).hexdigest()}

async def write(writer, start):
    # Acknowledged by appending to a file: a pipe would fill up, and test nothing.
    said = os.open(f"{folder}/said-{writer}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    counted = os.open(f"{folder}/counted-{writer}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    cache = Cache(f"file://{folder}/store?max_bytes=none", namespace="n", on_error="raise")

    async def values(lane):
        number = start
        while True:
            number += 1
            key = f"{writer}:{lane}:{number % 7}"
            await cache.set(key, value_of(writer, number))
            os.write(said, f"{key} {number}\\n".encode())

    async def count():
        while True:
            await cache.incr("counter")
            os.write(counted, b"+")

    await asyncio.gather(values("a"), values("b"), count(), count())

def said():
    return [os.path.getsize(path) if os.path.exists(path) else 0
            for path in (f"{folder}/said-{writer}" for writer in range(writers))]

for turn in range(rounds):
    children, before = [], said()
    for writer in range(writers):
        child = os.fork()
        if not child:
            asyncio.run(write(writer, turn * 1_000_000))
            os._exit(1)
        children.append(child)
    if turn % 2:  # killed while they write, however slow the machine; else whatever they do, opening too
        for _ in range(10_000):
            if all(now > then for now, then in zip(said(), before)):
                break
            time.sleep(0.001)
    for child in children:
        time.sleep(random.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
    for child in children:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""

CHECKED = """
import asyncio, hashlib, json, sys
from asynccache import Cache

async def main():
    cache = Cache(f"file://{sys.argv[1]}/store?max_bytes=none", namespace="n", on_error="raise")
    found = {key: await cache.get(key) async for key in cache.keys()}
    counter = found.pop("counter")
    torn = [key for key, value in found.items() if hashlib.sha256(value["payload"].encode()).hexdigest() != value["sum"]
            or len(value["payload"]) < 50]
    numbers = {key: value["number"] for key, value in found.items()}
    print(json.dumps({"counter": counter, "torn": torn, "numbers": numbers, "errors": cache.stats().errors}))
    await cache.aclose()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost_to_200_kills(tmp_path: Path) -> None:
    """Four writing processes, killed at 200 random points: no acknowledged write is lost, none is torn, counts are
    exact, and the database is whole."""
    rounds, writers = 50, 4
    ended(start(KILLED, tmp_path, rounds))
    found = json.loads(ended(start(CHECKED, tmp_path)))
    assert found["torn"] == []
    assert found["errors"] == 0
    acknowledged: dict[str, int] = {}
    for writer in range(writers):
        for line in lines(tmp_path / f"said-{writer}"):
            key, number = line.split()
            acknowledged[key] = int(number)
    assert len(acknowledged) > 20
    lost = {key: (number, found["numbers"].get(key)) for key, number in acknowledged.items()
            if found["numbers"].get(key, -1) < number}  # fmt: skip
    assert lost == {}
    counted = sum((tmp_path / f"counted-{writer}").stat().st_size for writer in range(writers))
    assert counted > 100
    assert counted <= found["counter"] <= counted + 2 * rounds * writers  # each had two on their way when it was killed
    connection = sqlite3.connect(tmp_path / "store" / DATABASE)
    assert connection.execute("pragma integrity_check").fetchone()[0] == "ok"
    connection.close()
    assert not list((tmp_path / "store").glob("*.damaged-*"))


# Racing

RACING = """
import asyncio, sys
from asynccache import Cache

async def main():
    cache = Cache(f"file://{sys.argv[1]}/store", namespace="n", on_error="raise")
    await asyncio.gather(*(cache.incr("counter") for _ in range(500)))
    won = await asyncio.gather(*(cache.add(f"key{number}", sys.argv[2]) for number in range(50)))
    print(sum(won))
    await cache.aclose()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_counts_and_conditions_are_exact_between_processes(tmp_path: Path) -> None:
    """Of four processes none loses a count, and each key is added by exactly one."""
    won = [int(ended(process)) for process in [start(RACING, tmp_path, number) for number in range(4)]]
    assert sum(won) == 50

    async def read() -> tuple[int, dict[str, str]]:
        async with Cache(f"file://{tmp_path}/store", namespace="n") as cache:
            counter = await cache.get("counter")
            return counter, await cache.get_many([f"key{number}" for number in range(50)])

    counter, keys = asyncio.run(read())
    assert counter == 2_000
    assert [sum(value == str(number) for value in keys.values()) for number in range(4)] == won


# Loading

LOADING = """
import asyncio, os, sys, time
from asynccache import Cache

folder, callers, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

async def load():
    with open(f"{folder}/loads", "a") as file:
        file.write(f"{os.getpid()}\\n")
    await asyncio.sleep(seconds)
    return f"loaded by {os.getpid()}"

async def main():
    cache = Cache(f"file://{folder}/store", namespace="n", on_error="raise")
    await cache.ping()
    open(f"{folder}/ready-{os.getpid()}", "w").close()
    while not os.path.exists(f"{folder}/go"):
        await asyncio.sleep(0.005)
    values = await asyncio.gather(*(cache.get_or_set("key", load) for _ in range(callers)))
    print(*set(values), sep="|")
    await cache.aclose()

asyncio.run(main())
"""


def together(folder: Path, count: int, *arguments: object) -> "list[subprocess.Popen[str]]":
    """Processes that begin to load at the same moment."""
    processes = [start(LOADING, folder, *arguments) for _ in range(count)]
    wait_for(lambda: len(list(folder.glob("ready-*"))) == count)
    (folder / "go").touch()
    return processes


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_one_process_of_many_loads(tmp_path: Path) -> None:
    """Of four processes with 250 callers each one loads, once, and all have its value."""
    values = {ended(process) for process in together(tmp_path, 4, 250, 0.5)}
    loads = lines(tmp_path / "loads")
    assert len(loads) == 1
    assert values == {f"loaded by {loads[0]}\n"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_work_that_is_longer_than_the_lease_is_done_once(tmp_path: Path) -> None:
    """The lease is renewed while the load runs."""
    values = {ended(process) for process in together(tmp_path, 2, 5, 5.0)}
    assert len(values) == 1
    assert len(lines(tmp_path / "loads")) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_holder_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """When the process that loads is killed, one other loads, within the lease."""
    processes = together(tmp_path, 4, 50, 1.0)
    wait_for(lambda: lines(tmp_path / "loads"))
    holder = int(lines(tmp_path / "loads")[0])
    os.kill(holder, signal.SIGKILL)
    began = time.monotonic()
    for process in processes:
        if process.pid == holder:
            process.communicate()
        else:
            assert ended(process) == f"loaded by {lines(tmp_path / 'loads')[1]}\n"
    assert len(lines(tmp_path / "loads")) == 2
    assert time.monotonic() - began < 3.0 + 1.0 + 10.0  # the lease, the load, and what a busy machine may take


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_holder_that_is_frozen_cannot_overwrite(tmp_path: Path) -> None:
    """A process that sleeps through its lease comes back too late to store what it loaded."""
    frozen = together(tmp_path, 1, 1, 0.5)[0]
    wait_for(lambda: lines(tmp_path / "loads"))
    os.kill(frozen.pid, signal.SIGSTOP)

    async def load_newer() -> None:
        async with Cache(f"file://{tmp_path}/store", namespace="n", on_error="raise") as cache:
            assert await cache.get_or_set("key", lambda: "newer") == "newer"

    asyncio.run(load_newer())
    os.kill(frozen.pid, signal.SIGCONT)
    assert ended(frozen) == f"loaded by {frozen.pid}\n"

    async def read() -> Any:
        async with Cache(f"file://{tmp_path}/store", namespace="n") as cache:
            return await cache.get("key")

    assert asyncio.run(read()) == "newer"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("write", ["set", "delete", "clear", "invalidate"])
def test_newer_wins_between_processes(tmp_path: Path, write: str) -> None:
    """A write in one process during a load in another: the load's callers get its value, and it is not stored."""
    process = together(tmp_path, 1, 3, 1.0)[0]
    wait_for(lambda: lines(tmp_path / "loads"))

    async def change() -> None:
        async with Cache(f"file://{tmp_path}/store", namespace="n", on_error="raise") as cache:
            if write == "set":
                await cache.set("key", "newer")
            elif write == "delete":
                await cache.delete("key")
            elif write == "clear":
                await cache.clear()
            else:
                await cache.delete_many(["key", "other"])

    asyncio.run(change())
    assert ended(process) == f"loaded by {process.pid}\n"

    async def read() -> Any:
        async with Cache(f"file://{tmp_path}/store", namespace="n") as cache:
            return await cache.get("key")

    assert asyncio.run(read()) == ("newer" if write == "set" else None)


# Forked, and left

FORKED = """
import asyncio, os, sys
from asynccache import Cache

cache = Cache(f"file://{sys.argv[1]}/store", namespace="n", on_error="raise")

async def work(name):
    for number in range(50):
        await cache.set(f"{name}{number}", name)
        assert await cache.get(f"{name}{number}") == name
        assert await cache.incr("counter") > 0
        assert await cache.get_or_set(f"loaded:{name}:{number}", lambda: number) == number

async def read():
    return await cache.get("counter")

asyncio.run(work("before"))
child = os.fork()
asyncio.run(work("child" if not child else "parent"))
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert asyncio.run(read()) == 150
asyncio.run(cache.aclose())
print("both")
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_forked_child_has_connections_of_its_own(tmp_path: Path) -> None:
    """One cache object is used before a fork, and by parent and child at once after it."""
    # A child of a process with threads has only the one that forked: Python 3.12 warns of it, and that is the point.
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr


LEAVING = """
import asyncio, os, sys
from asynccache import Cache

cache = Cache(f"file://{sys.argv[1]}/store", namespace="n", on_error="raise")

async def main():
    assert await cache.set(sys.argv[2], "kept")
    await cache.get("other")
    if sys.argv[2] == "hurried":
        os._exit(0)
    if sys.argv[2] == "exited":
        sys.exit()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["plain", "exited", "hurried"])
def test_leaving_without_closing_prints_nothing(tmp_path: Path, how: str) -> None:
    """A process that ends without closing says nothing, and what it stored is there."""
    assert ended(start(LEAVING, tmp_path, how)) == ""

    async def read() -> Any:
        async with Cache(f"file://{tmp_path}/store", namespace="n") as cache:
            return await cache.get(how)

    assert asyncio.run(read()) == "kept"
