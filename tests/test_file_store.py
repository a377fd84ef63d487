"""The file store in one process: who may use it, what it bears, what it holds, and how its threads work."""

import asyncio
import gc
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import comes

from asynccache import MISSING, BackendError, BackendTimeout, BackendUnavailable, Cache, ConfigError, Entry
from asynccache.backends.file import FileBackend, desks, place, table
from asynccache.backends.file.backend import after
from asynccache.backends.file.desks import Reader, Writer
from asynccache.codec import Codec
from asynccache.testing import TravellingClock

DATABASE = "entries-1.sqlite3"


def entry(value: Any = "value", **more: Any) -> Entry:
    return Entry(value=value, created_at=1.0, **more)


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[FileBackend]:
    """A store, closed in the end."""
    store = FileBackend(path, **options)
    try:
        yield store
    finally:
        await store.aclose()


async def fill(path: Path, count: int = 50) -> None:
    """Entries ``k0``, ``k1``, … in a store that is closed afterwards."""
    async with opened(path) as store:
        await store.set_many({f"k{number}": entry("x" * 500) for number in range(count)})


def rows(path: Path, query: str = "select count(*) from entries") -> Any:
    """What the database itself says."""
    connection = sqlite3.connect(path / DATABASE)
    try:
        return connection.execute(query).fetchone()[0]
    finally:
        connection.close()


def children(script: str, *arguments: object) -> str:
    """What a script prints that runs in a process of its own, which must end well and complain of nothing."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# Who may use it


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
async def test_everything_is_its_owners_alone(tmp_path: Path, mask: int) -> None:
    """Directory and files are 0700 and 0600 whatever the umask, the log and its index too."""
    path = tmp_path / "store"
    with umask(mask):
        async with opened(path) as store:
            await store.set("key", entry())
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert modes == dict.fromkeys(["boot", "lock", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"], 0o600)


@pytest.mark.parametrize("name", ["", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "boot", "lock"])
async def test_a_planted_link_is_refused(tmp_path: Path, name: str) -> None:
    """A symbolic link in the place of the directory or of a file is not followed; the cache misses."""
    path, target = tmp_path / "store", tmp_path / "target"
    if name:
        target.write_bytes(b"precious")
        path.mkdir(mode=0o700)
        (path / name).symlink_to(target)
    else:
        target.mkdir()
        path.symlink_to(target)
    async with opened(path) as store:
        with pytest.raises(BackendUnavailable):
            await store.set("key", entry())
        with pytest.raises(BackendUnavailable):
            await store.get("key")
    assert target.read_bytes() == b"precious" if name else not list(target.iterdir())


async def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    """A file that has another name too is not ours."""
    path = tmp_path / "store"
    await fill(path)
    os.link(path / DATABASE, tmp_path / "other")
    async with opened(path) as store:
        with pytest.raises(BackendUnavailable):
            await store.get("k1")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
async def test_a_directory_of_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Where others can write they can plant."""
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(mode)
    async with opened(path) as store:
        with pytest.raises(BackendUnavailable, match="others may write"):
            await store.get("key")


async def test_another_users_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a directory used that belongs to somebody else."""
    path = tmp_path / "store"
    path.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    async with opened(path) as store:
        with pytest.raises(BackendUnavailable, match="another user"):
            await store.get("key")


# Damage


def garbage(database: Path) -> None:
    database.write_bytes(b"this is no database" * 1_000)


def cut(database: Path) -> None:
    with database.open("r+b") as file:
        file.truncate(database.stat().st_size // 2 + 100)


def zeros(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(bytes(100))


def scrambled(database: Path) -> None:
    with database.open("r+b") as file:
        for page in range(1, database.stat().st_size // 4_096):
            file.seek(page * 4_096)
            file.write(os.urandom(512))


@pytest.mark.parametrize("harm", [garbage, cut, zeros, scrambled])
@pytest.mark.parametrize("running", [False, True])
async def test_a_damaged_database_is_set_aside(
    tmp_path: Path, harm: Callable[[Path], None], running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The service goes on with a new database; the damaged one is kept and reported, and nothing raises."""
    path = tmp_path / "store"
    await fill(path)
    heard: list[BackendError] = []
    cache = Cache(f"file://{path}", on_error=heard.append)
    if running:
        assert await cache.get("k1") == "x" * 500
        assert await cache.set("k1", "y" * 500)
        async with opened(path) as other:  # so that the database and not the log has it
            await other.write(lambda connection: None)
        connection = sqlite3.connect(path / DATABASE)
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()
        connection.close()
    harm(path / DATABASE)
    await cache.get_many([f"k{number}" for number in range(50)])
    await cache.set_many({f"k{number}": "new" for number in range(50)})
    assert await cache.set("key", {"a": 1})
    assert await cache.get("key") == {"a": 1}
    assert await cache.get_or_set("loaded", lambda: 7) == 7
    assert [each.name for each in path.glob("*.damaged-*") if "-wal" not in each.name] != []
    assert cache.stats().errors >= 1
    assert heard
    assert "damaged" in caplog.text
    assert rows(path, "pragma integrity_check") == "ok"
    await cache.aclose()


async def test_who_has_it_open_follows(tmp_path: Path) -> None:
    """When one process has replaced a damaged database, another goes on with the new one."""
    path = tmp_path / "store"
    async with opened(path) as one, opened(path) as other:
        await one.set("key", entry(1))
        assert await other.get("key") is not None
        garbage(path / DATABASE)
        await one.set("new", entry(2))
        found = await other.get("new")
        assert found is not None
        assert found.value == 2
        await other.set("newer", entry(3))
        assert await one.get("newer") is not None


async def test_few_damaged_databases_are_kept(tmp_path: Path) -> None:
    """A disk that damages again and again is not filled with what it damaged."""
    path = tmp_path / "store"
    for _ in range(6):
        await fill(path)
        garbage(path / DATABASE)
    await fill(path)
    assert len(list(path.glob(f"{DATABASE}.damaged-*"))) <= 3


async def test_a_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    """Who removes the whole store gets an empty one."""
    path = tmp_path / "store"
    async with opened(path) as store:
        await store.set("key", entry())
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
        assert await store.get("key") is None
        await store.set("key", entry("again"))
        assert await store.get("key") is not None


@pytest.mark.parametrize(("durability", "kept"), [("process", False), ("machine", True), ("power", True)])
async def test_what_a_restart_of_the_machine_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, kept: bool
) -> None:
    """Where a write does not wait for the disk nothing comes back after the machine's restart; else all does."""
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    monkeypatch.setattr(place, "_BOOT", boot)
    for _ in range(2):
        async with opened(tmp_path / "store", durability=durability) as store:
            await store.set("key", entry())
    async with opened(tmp_path / "store", durability=durability) as store:
        assert await store.get("key") is not None
    boot.write_text("second")
    async with opened(tmp_path / "store", durability=durability) as store:
        assert (await store.get("key") is not None) == kept


async def test_a_system_that_does_not_tell_of_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the entries are kept."""
    monkeypatch.setattr(place, "_BOOT", tmp_path / "nothing")
    await fill(tmp_path / "store")
    async with opened(tmp_path / "store") as store:
        assert await store.get("k1") is not None


# Failures


FULL = """
import asyncio, os, resource, signal, sys
from asynccache import Cache

async def main():
    cache = Cache(f"file://{sys.argv[1]}")
    assert await cache.set("small", 1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    stored = [await cache.set(f"big:{number}", os.urandom(50_000).hex()) for number in range(20)]
    assert not all(stored), "the disk was not full"
    assert await cache.get("small") == 1
    assert await cache.get_or_set("big:new", lambda: "y" * 100_000) == "y" * 100_000
    assert cache.stats().errors > 0
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await cache.aclose()
    print("went on")

import logging
logging.disable()
asyncio.run(main())
"""


def test_a_full_disk_is_a_miss(tmp_path: Path) -> None:
    """No write past what the disk takes raises, what is there is read, and a load's value is returned."""
    assert children(FULL, tmp_path / "store") == "went on\n"


OPEN_FILES = """
import asyncio, os, resource, sys
from asynccache import Cache

async def main():
    cache = Cache(f"file://{sys.argv[1]}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    assert await cache.get("key") is None
    assert await cache.set("key", 1) is False
    assert await cache.get_or_set("key", lambda: 2) == 2
    for descriptor in taken:
        os.close(descriptor)
    assert await cache.set("key", 3)
    assert await cache.get("key") == 3
    await cache.aclose()
    print("went on")

import logging
logging.disable()
asyncio.run(main())
"""


def test_too_many_open_files_are_a_miss(tmp_path: Path) -> None:
    """A store that cannot be opened is asked again later, and is there as soon as it can be."""
    assert children(OPEN_FILES, tmp_path / "store") == "went on\n"


async def test_a_place_where_nothing_can_be_made_is_a_miss() -> None:
    """A directory that cannot be made is a store that is away."""
    cache = Cache("file:///proc/asynccache/store")
    assert await cache.get("key") is None
    assert await cache.set("key", 1) is False
    assert await cache.get_or_set("key", lambda: 2) == 2
    assert await cache.delete("key") is False
    assert [key async for key in cache.keys("*")] == []
    await cache.aclose()
    loud = Cache("file:///proc/asynccache/store", on_error="raise")
    with pytest.raises(BackendUnavailable):
        await loud.get("key")
    await loud.aclose()


def failing(message: str, code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        error = sqlite3.OperationalError(message)
        error.sqlite_errorcode = code
        raise error

    return fail


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("disk I/O error", sqlite3.SQLITE_IOERR),
        ("database or disk is full", sqlite3.SQLITE_FULL),
        ("attempt to write a readonly database", sqlite3.SQLITE_READONLY),
        ("unable to open database file", sqlite3.SQLITE_CANTOPEN),
    ],
)
async def test_one_write_that_fails_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, code: int
) -> None:
    """When values cannot be stored, a deletion in the same batch is done."""
    async with opened(tmp_path / "store") as store:
        await store.set("old", entry())
        monkeypatch.setattr(table, "put", failing(message, code))
        results = await asyncio.gather(
            store.set("a", entry()), store.delete(["old"]), store.set("b", entry()), return_exceptions=True
        )
        assert [type(each) for each in results] == [BackendUnavailable, int, BackendUnavailable]
        assert results[0] is not results[2]
        assert isinstance(results[0].__cause__, sqlite3.OperationalError)
        monkeypatch.undo()
        assert await store.get("old") is None
        assert await store.set("a", entry())


async def test_a_read_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing read raises this package's error, for each caller his own, and the next read works."""
    async with opened(tmp_path / "store") as store:
        await store.set("key", entry())
        monkeypatch.setattr(table, "read", failing("disk I/O error", sqlite3.SQLITE_IOERR))
        failures = await asyncio.gather(*(store.get("key") for _ in range(3)), return_exceptions=True)
        assert [type(failure) for failure in failures] == [BackendUnavailable] * 3
        assert len(set(map(id, failures))) == 3
        monkeypatch.setattr(table, "page", failing("disk I/O error", sqlite3.SQLITE_IOERR))
        with pytest.raises(BackendUnavailable):
            await store.ping()
        monkeypatch.undo()
        assert await store.get("key") is not None
        await store.ping()


async def test_a_writer_that_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the database a write waits, not for ever, and a read does not wait at all."""
    monkeypatch.setattr("asynccache.backends.file.desks._WRITE_TRIES", 20)
    async with opened(tmp_path / "store") as store:
        await store.set("key", entry())
        other = sqlite3.connect(tmp_path / "store" / DATABASE, isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(BackendTimeout):
            await store.set("key", entry("new"))
        assert (await store.get("key")).value == "value"  # type: ignore[union-attr]
        other.execute("rollback")
        other.close()
        assert await store.set("key", entry("new"))


async def test_a_thread_that_fails_serves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens in a thread, its callers hear of it and the next are served."""

    def fail(*_: Any) -> None:
        raise MemoryError

    async with opened(tmp_path / "store") as store:
        await store.set("key", entry())
        monkeypatch.setattr(Reader, "serve", fail)
        monkeypatch.setattr(Writer, "serve", fail)
        with pytest.raises(BackendError) as caught:
            await store.get("key")
        assert isinstance(caught.value.__cause__, MemoryError)
        with pytest.raises(BackendError):
            await store.set("key", entry())
        monkeypatch.undo()
        assert await store.get("key") is not None


async def test_bytes_that_cannot_be_read_are_a_miss(tmp_path: Path) -> None:
    """One damaged entry hides no other, is told, and is replaced."""
    cache = Cache(FileBackend(tmp_path / "store"))
    await cache.set_many({"a": 1, "b": 2, "c": 3})
    connection = sqlite3.connect(tmp_path / "store" / DATABASE, isolation_level=None)
    connection.execute("update entries set data = x'0102' where key = 'b'")
    connection.execute("update entries set data = 'text' where key = 'c'")
    connection.close()
    assert await cache.get_many(["a", "b", "c"]) == {"a": 1}
    assert await cache.get("b") is None
    assert cache.stats().errors >= 2
    assert await cache.get_or_set("b", lambda: 20) == 20
    assert await cache.get("b") == 20
    assert await cache.incr("c") == 1


# What it holds


class Unread:
    """A serializer whose values are never to be read."""

    name = "unread"
    number = 201

    def dumps(self, value: Any) -> bytes:
        return os.urandom(value)

    def loads(self, data: bytes | memoryview) -> Any:
        raise AssertionError("nobody wants it")


@pytest.mark.parametrize("options", [{}, {"keys": ["0123456789abcdef"]}, {"plain": True}])
async def test_values_that_nobody_wants_are_not_read(tmp_path: Path, options: dict[str, Any]) -> None:
    """Who asks for times, gives others, lists keys or stores where nothing is looks at the start of an entry."""
    store = FileBackend(tmp_path, codec=Codec(Unread(), **options))
    async with Cache(store, on_error="raise") as cache:
        await cache.set("key", 100_000, 60, tags=[] if "plain" in options else ["one", "two"])
        assert await cache.exists("key") is True
        assert await cache.touch("key", 100) is True
        assert await cache.ttl("key") == pytest.approx(100, abs=5)
        assert [key async for key in cache.keys()] == ["key"]  # noqa: SIM118 - a cache is no mapping
        assert await cache.add("key", 100_000) is False
        assert await cache.set("key", 100_000, 50, only_if="present") is True
        assert await cache.ttl("key") == pytest.approx(50, abs=5)
        if "plain" not in options:
            await cache.invalidate_tags("two")
            assert await cache.exists("key") is True  # it has none any more
            await cache.set("key", 100_000, 60, tags=["two"])
            await cache.invalidate_tags("two")
            assert await cache.exists("key") is False
            assert await cache.add("key", 100_000) is True
    await store.aclose()


@pytest.mark.parametrize("size", [10, 480, 10_000])
@pytest.mark.parametrize("tags", [0, 1, 12, 400])
async def test_a_head_says_what_the_entry_does(tmp_path: Path, size: int, tags: int) -> None:
    """Times and tags are the same with and without the value, wherever they end."""
    store = FileBackend(tmp_path, codec=Codec("bytes"))
    stored = entry(os.urandom(size), tags={f"a tag of some length {number}": "1" for number in range(tags)})
    await store.set("key", stored)
    found = await store.get("key")
    assert found is not None
    assert await store.heads.get_many(["key", "other"]) == {"key": replace(found, value=MISSING)}
    assert await store.heads.get_many([]) == {}
    await store.aclose()


async def test_entries_are_bounded(tmp_path: Path) -> None:
    """Past ``max_entries`` the oldest go, by themselves; those that were read lately stay longer."""
    async with opened(tmp_path / "store", max_entries=100) as store:
        for number in range(100):
            await store.set(f"k{number:03}", entry())
        assert len([key async for key in store.keys("")]) == 100
        for number in range(10):
            assert await store.get(f"k{number:03}") is not None
        for number in range(100, 150):
            await store.set(f"k{number:03}", entry())
        await comes(lambda: rows(tmp_path / "store") <= 100)
        left = {key async for key in store.keys("")}
        assert len(left) >= 90
        assert {f"k{number:03}" for number in range(10)} <= left
        assert "k149" in left
        assert "k010" not in left


async def test_bytes_are_bounded(tmp_path: Path) -> None:
    """Past ``max_bytes`` the oldest go, and the file on the disk stays near its bound."""
    path = tmp_path / "store"
    async with opened(path, max_bytes=2_000_000, codec=Codec("bytes")) as store:
        for number in range(150):
            await store.set_many({f"k{number}:{place}": entry(os.urandom(5_000)) for place in range(10)})
        await comes(lambda: rows(path, "select sum(length(data)) from entries") < 2_000_000)
        assert await store.get("k149:9") is not None
        assert await store.get("k0:0") is None
        assert rows(path) > 200
    assert (path / DATABASE).stat().st_size < 6_000_000


async def test_what_is_over_goes_by_itself(tmp_path: Path) -> None:
    """Nobody asks for expired entries, and they leave the table."""
    clock = TravellingClock()
    now = clock.epoch + clock.monotonic()
    async with opened(tmp_path / "store", clock=clock) as store:
        await store.set_many({
            f"k{number}": entry(fresh_until=now + 10, expires_at=now + 10) for number in range(2_000)
        })  # fmt: skip
        await store.set("stays", entry())
        clock.travel(11)
        for _ in range(10):
            clock.travel(61)
            await store.set("other", entry())
        await comes(lambda: rows(tmp_path / "store") == 2)


async def test_space_is_given_back(tmp_path: Path) -> None:
    """A store that was emptied takes less of the disk again."""
    path, clock = tmp_path / "store", TravellingClock()
    now = clock.epoch + clock.monotonic()
    async with opened(path, clock=clock, codec=Codec("bytes")) as store:
        await store.set_many({
            f"k{number}": entry(os.urandom(3_000), fresh_until=now + 10, expires_at=now + 10) for number in range(3_000)
        })  # fmt: skip
        full = rows(path, "pragma page_count")
        clock.travel(11)
        for _ in range(10):
            clock.travel(61)
            await store.set("other", entry(b""))
        await comes(lambda: rows(path, "pragma page_count") < full / 2)


async def test_the_log_is_moved_into_the_database(tmp_path: Path) -> None:
    """However much is written, the log does not grow with it."""
    path = tmp_path / "store"
    async with opened(path, codec=Codec("bytes")) as store:
        for number in range(100):
            await store.set(f"k{number % 7}", entry(os.urandom(500_000)))
            await asyncio.sleep(0)
        assert (path / f"{DATABASE}-wal").stat().st_size < 40_000_000


async def test_the_log_is_moved_when_it_has_grown_and_not_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has been long, each write does not have all of it moved again."""
    moves = 0

    def counted(connection: sqlite3.Connection) -> None:
        nonlocal moves
        moves += 1
        checkpoint(connection)

    checkpoint = desks._checkpoint
    monkeypatch.setattr(desks, "_checkpoint", counted)
    async with opened(tmp_path / "store", codec=Codec("bytes")) as store:
        for number in range(40):
            await store.set(f"k{number % 7}", entry(os.urandom(500_000)))
        await comes(lambda: moves)
        await store.set("key", entry(b""))  # begins the log anew
        await store.set("key", entry(b""))
        before = moves
        for _ in range(100):
            await store.set("key", entry(b""))
        assert moves == before


@pytest.mark.parametrize("safely", [False, True])
async def test_nobody_writes_while_the_log_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safely: bool
) -> None:
    """An older SQLite may lose what is written into a log that is begun anew while it is moved."""
    kept_out: list[bool] = []

    def looking(connection: sqlite3.Connection) -> None:
        other = sqlite3.connect(path / DATABASE, timeout=0, isolation_level=None)
        try:
            other.execute("begin immediate")
            kept_out.append(False)
        except sqlite3.OperationalError:
            kept_out.append(True)
        finally:
            other.close()
        connection.execute("pragma wal_checkpoint(passive)").fetchall()

    monkeypatch.setattr(desks, "_checkpoint", looking)
    monkeypatch.setattr(desks, "_RESETS_SAFELY", safely)
    path = tmp_path / "store"
    async with opened(path, codec=Codec("bytes")) as store:
        for number in range(20):
            await store.set(f"k{number % 7}", entry(os.urandom(500_000)))
        await comes(lambda: kept_out)
        assert (await store.get("k5")) is not None
    if not safely:
        assert set(kept_out) == {True}
    else:
        assert False in kept_out


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 65_535, 65_536, 300_000, 3_000_000])
async def test_values_of_all_sizes(tmp_path: Path, size: int) -> None:
    """Small and large, alone and together with others, of any bytes."""
    codec = Codec("bytes", compress=None)
    async with opened(tmp_path / "store", codec=codec) as store:
        values = {f"k{number}\0": os.urandom(size) for number in range(3)} | {"nul": b"\0" * size, "a": b"\xff\0x"}
        await store.set_many({key: entry(value) for key, value in values.items()})
        found = await store.get_many([*values, "absent"])
        assert {key: each.value for key, each in found.items()} == values
        assert (await store.get("nul")).value == b"\0" * size  # type: ignore[union-attr]


# How its threads work


async def test_a_busy_loop_does_not_starve_it(tmp_path: Path) -> None:
    """While the loop's thread never rests, a hundred calls at once are served all the same."""
    stop = False

    async def never_rest() -> None:
        while not stop:
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            await asyncio.sleep(0)

    async with opened(tmp_path / "store") as store:
        await store.set("key", entry())
        hogs = [asyncio.ensure_future(never_rest()) for _ in range(2)]
        for _ in range(5):
            await asyncio.wait_for(asyncio.gather(*(store.get("key") for _ in range(100))), 10)
            await asyncio.wait_for(asyncio.gather(*(store.set(f"k{n}", entry()) for n in range(100))), 10)
        stop = True
        await asyncio.gather(*hogs)


def test_two_loops_in_two_threads(tmp_path: Path) -> None:
    """Each loop gets its own answers, also when one is gone while its jobs are out."""
    store = FileBackend(tmp_path / "store")
    problems: list[BaseException] = []

    async def work(name: str) -> None:
        for number in range(50):
            await store.set(f"{name}{number}", entry(name))
            found = await store.get(f"{name}{number}")
            assert found is not None
            assert found.value == name

    def run(name: str) -> None:
        try:
            asyncio.run(work(name))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []

    async def leave() -> None:
        asyncio.get_running_loop().call_soon(store.get("a1").close)
        asyncio.ensure_future(store.get("a1"))  # noqa: RUF006  # nobody waits for it
        await asyncio.sleep(0)

    asyncio.run(leave())
    asyncio.run(work("c"))
    asyncio.run(store.aclose())


async def test_after_closing(tmp_path: Path) -> None:
    """What was asked for before is done; what is asked for after is refused; who waits for a lease is woken."""
    store = FileBackend(tmp_path / "store")
    assert await store.leases.acquire("key", ttl=60) is not None
    waiting = asyncio.ensure_future(store.leases.wait("key", timeout=60))
    writing = asyncio.ensure_future(store.set("late", entry()))
    await asyncio.sleep(0.05)
    await store.aclose()
    await asyncio.wait_for(waiting, 10)
    assert await writing
    for call in (store.get("key"), store.set("key", entry()), store.ping()):
        with pytest.raises(BackendUnavailable, match="closed"):
            await call
    async with opened(tmp_path / "store") as again:
        assert await again.get("late") is not None


async def test_a_store_that_is_dropped_lets_go(tmp_path: Path) -> None:
    """A store that nobody has any more ends its threads, closed or not."""
    store = FileBackend(tmp_path / "store")
    await store.set("key", entry())
    await store.get("key")
    threads = [thread for crew in store._crews for thread in crew._threads]
    assert threads
    ghost = weakref.ref(store)
    del store
    gc.collect()
    assert ghost() is None
    await comes(lambda: not any(thread.is_alive() for thread in threads))


async def test_a_crowd_of_waiters_looks_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand who wait for leases of another process ask for little, and all are woken when they end."""
    looks: list[float] = []
    leased = table.leased

    def counted(*arguments: Any, **named: Any) -> Any:
        looks.append(time.monotonic())  # in several threads
        return leased(*arguments, **named)

    async with opened(tmp_path / "store") as mine, opened(tmp_path / "store") as other:
        lease = await other.leases.acquire("key", ttl=60)
        assert lease is not None
        monkeypatch.setattr(table, "leased", counted)
        waiting = asyncio.gather(*(mine.leases.wait("key", timeout=60) for _ in range(1_000)))
        await comes(lambda: len(looks) >= 1_000)
        await asyncio.sleep(0.1)  # the first look of each is over
        began = time.monotonic()
        await asyncio.sleep(0.5)
        ended = time.monotonic()
        assert not waiting.done()
        assert sum(began <= at <= ended for at in list(looks)) <= 60 * (ended - began)
        await other.leases.release(lease)
        await asyncio.wait_for(waiting, 10)
    assert rows(tmp_path / "store", "select count(*) from leases") == 0


async def test_a_clear_reaches_what_is_loaded_elsewhere(tmp_path: Path) -> None:
    """A clear by one cache voids a load under way in another process, whose value is not stored."""
    mine, other = Cache(f"file://{tmp_path}/store", namespace="n"), Cache(f"file://{tmp_path}/store", namespace="n")
    started, gate = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        started.set()
        await gate.wait()
        return "old"

    loading = asyncio.ensure_future(mine.get_or_set("key", load))
    await started.wait()
    await other.clear()
    gate.set()
    assert await loading == "old"
    assert await other.get("key") is None
    assert await mine.get("key") is None
    await mine.aclose()
    await other.aclose()


# Its address and its keys


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file://host/path", "three slashes"),
        ("file:///", "three slashes"),
        ("file:///x?max_bytes=5", "at least 65536"),
        ("file:///x?max_entries=0", "at least 1"),
        ("file:///x?durability=always", "process, machine, power"),
        ("file:///x?max_entires=5", "max_entries"),
    ],
)
def test_a_wrong_url_is_refused(url: str, says: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ConfigError, match=says):
        Cache(url)


async def test_a_url_says_all(tmp_path: Path) -> None:
    """Path, bounds and durability come from the URL; nothing is made before the first call."""
    url = f"file://{tmp_path}/a%20b?max_bytes=1000000&max_entries=none&durability=machine"
    cache = Cache(url, codec="str")
    assert not (tmp_path / "a b").exists()
    async with cache:
        assert await cache.set("key", "text")
        assert await cache.get("key") == "text"
    assert (tmp_path / "a b" / DATABASE).exists()


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_the_end_of_a_prefix(prefix: str, text: str) -> None:
    """What begins with a prefix sorts before its end, and what sorts between the two begins with it."""
    end = after(prefix)
    if not isinstance(end, str):
        assert prefix.strip("\U0010ffff") == ""
        return
    assert prefix.encode() <= (prefix + text).encode() < end.encode()
    if prefix.encode() <= text.encode() < end.encode():
        assert text.startswith(prefix)


async def test_plain_values_keep_their_times(tmp_path: Path) -> None:
    """For other programs to read: no header, and yet a ttl."""
    clock = TravellingClock()
    cache = Cache(FileBackend(tmp_path / "store", clock=clock, codec=Codec(plain=True)))
    assert await cache.set("key", {"a": 1}, ttl=10)
    assert rows(tmp_path / "store", "select data from entries") == b'{"a":1}'
    assert await cache.ttl("key") == pytest.approx(10, abs=1e-3)
    assert await cache.touch("key", 20)
    assert await cache.ttl("key") == pytest.approx(20, abs=1e-3)
    assert await cache.incr("n", ttl=10) == 1
    assert await cache.incr("n") == 2
    with pytest.raises(ConfigError, match="neither tags nor grace"):
        await cache.set("key", 1, ttl=10, grace=10)
    clock.travel(11)
    assert await cache.get("n") is None


async def test_failures_are_logged_without_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log record of a failure names neither key nor value nor path."""
    caplog.set_level(logging.DEBUG, logger="asynccache")
    cache = Cache("file:///proc/secret-place/store")
    await cache.set("secret-key", "secret-value")
    assert caplog.text
    assert "secret" not in caplog.text
    await cache.aclose()
