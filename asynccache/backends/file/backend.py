"""The file store as caches see it: what is asked for goes to threads in batches, and values are bytes by the codec."""

import os
import threading
import weakref
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, Literal, final
from urllib.parse import unquote

from anyio import to_thread

from asynccache._offloading import decoded, encoded
from asynccache._options import Options
from asynccache.backend import OnlyIf, Reports, StoreOptions
from asynccache.backends.file import table
from asynccache.backends.file.crew import Crew, Job, done
from asynccache.backends.file.desks import Checkpoints, Lookup, Put, Reader, Shop, Writer
from asynccache.backends.file.heads import FileHeads
from asynccache.backends.file.leases import FileLeases
from asynccache.backends.file.place import Place
from asynccache.backends.file.upkeep import Upkeep
from asynccache.clock import Clock, SystemClock
from asynccache.codec import Codec, codec_of
from asynccache.entry import Entry
from asynccache.errors import BackendUnavailable, ConfigError, DecodeError

__all__ = ["Durability", "FileBackend", "after", "open_file"]

Durability = Literal["process", "machine", "power"]
"""What acknowledged writes survive: the end of the process, a restart of the machine, a power loss."""

_SYNCHRONOUS: Final[Mapping[str, str]] = {"process": "off", "machine": "normal", "power": "full"}
_READERS: Final = 2
_PAGE: Final = 1_000
_DEFAULT_MAX_BYTES: Final = 1_073_741_824


@final
class FileBackend:
    """A store in a directory of this machine, shared by processes.

    What was acknowledged survives the end of the process, however it ends. ``durability`` says what becomes of it when
    the *machine* goes down:

    - ``"process"``: after a restart of the machine the store begins empty, so that nothing old or deleted comes back.
    - ``"machine"``: it is kept; a power loss or crash of the system may take the last seconds, and so bring back what
      was replaced or deleted in them.
    - ``"power"``: a write is acknowledged when the disk has it: nothing is lost, and a write takes as long as the disk.

    Args:
        path: The directory; made, for this user alone, when it is missing. Not on a network.
        max_bytes: What the database may take on the disk, or ``None``; some megabytes of log come on top.
        max_entries: How many entries there may be, or ``None``.
        durability: What acknowledged writes survive.
        codec: How values become bytes.
        clock: Where time comes from.
    """

    name: Final = "file"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int | None = _DEFAULT_MAX_BYTES,
        max_entries: int | None = None,
        durability: Durability = "process",
        codec: Codec | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self.clock = clock or SystemClock()
        self.codec = codec_of(codec)
        self.reports = Reports()
        self.coherence = None
        self.shortcut = None
        self.heads = FileHeads(self)
        self.health = None
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._durability = durability
        self._closed = False
        self._hire()
        self.leases = FileLeases(self)
        _all.add(self)

    def _hire(self) -> None:
        """Have a crew, which starts with the first job."""
        shop = Shop(
            Place(self.path, forgetful=self._durability == "process"),
            synchronous=_SYNCHRONOUS[self._durability],
            counted=self._max_entries is not None,
            report=self.reports.tell,
        )
        upkeep = Upkeep(self.clock, max_bytes=self._max_bytes, max_entries=self._max_entries, recent=shop.recent)
        keepers = Crew("asynccache-file-log", partial(Checkpoints, shop))
        checkpoint = partial(_ask_for_checkpoint, keepers)
        writers = Crew("asynccache-file-write", partial(Writer, shop, upkeep, checkpoint))
        readers = Crew("asynccache-file-read", partial(Reader, shop), _READERS)
        self._crews = (writers, keepers, readers)
        self._readers, self._writers = readers, writers
        self._dismissal = weakref.finalize(self, _dismiss, self._crews)
        self._dismissal.atexit = False  # the threads end with the process by themselves

    def halt(self) -> None:
        """Close every connection before a fork.

        What SQLite knows of locks is kept for the whole process. A child that inherited an open connection would take
        the parent's locks for its own, and one of the two would end the other's log.
        """
        for crew in self._crews:
            crew.halt()

    def go_on(self) -> None:
        """Work on in the parent: connections are opened again when they are needed."""
        for crew in self._crews:
            crew.go_on()

    def forget(self) -> None:
        """Start anew in the child: the threads are the parent's."""
        self._dismissal.detach()
        if not self._closed:
            self._hire()
        self.leases.forget()

    # What caches ask

    async def get(self, key: str) -> Entry | None:
        """The entry, fresh or stale, or ``None``."""
        found = await self.read(Lookup((key,), self.now()))
        return await self.entry(key, found[key]) if found else None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, in one batch."""
        if not keys:
            return {}
        found = await self.read(Lookup(keys, self.now()))
        entries = {key: await self.entry(key, row) for key, row in found.items()}
        return {key: entry for key, entry in entries.items() if entry is not None}

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        """Store it, if the condition holds."""
        row = await self.row(key, entry)
        if only_if is None:
            await self.write(Put((row,)), len(row[3]))
            stored = True
        else:
            stored = await self.write(partial(_put_if, row, only_if, self.now()), len(row[3]))
        if stored:
            self.leases.ended((key,))
        return stored

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Store all, in one transaction."""
        if entries:
            rows = [await self.row(key, entry) for key, entry in entries.items()]
            await self.write(Put(rows), sum([len(row[3]) for row in rows]))
            self.leases.ended(entries)

    async def delete(self, keys: Sequence[str]) -> int:
        """Remove them; how many had a fresh entry."""
        if not keys:
            return 0
        count: int = await self.write(partial(_delete, keys, self.now()))
        self.leases.ended(keys)
        return count

    async def touch(self, key: str, *, fresh_until: float, expires_at: float) -> bool:
        """Give a fresh entry new times."""
        touched: bool = await self.write(partial(_touch, self.codec, key, fresh_until, expires_at, self.now()))
        return touched

    async def incr(self, key: str, delta: int, *, ttl: float | None) -> int:
        """Add to a counter."""
        now = self.clock.monotonic() + self.clock.epoch
        until = float("inf") if ttl is None else now + ttl
        new = Entry(value=0, created_at=now, fresh_until=until, expires_at=until)
        total: int = await self.write(partial(self._add, key, delta, new, table.ticks(now)))
        self.leases.ended((key,))
        return total

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys that start with the prefix, those of stale entries and of leases too: a page at a time."""
        low, high = prefix, after(prefix)
        held: Mapping[str, int] = await self.read(partial(table.leased, now=self.now()))
        for key in held:
            if key.startswith(prefix):
                yield key
        while True:
            keys: list[str] = await self.read(partial(table.page, low=low, high=high, now=self.now(), most=_PAGE))
            for key in keys:
                if key not in held:
                    yield key
            if len(keys) < _PAGE:
                return
            low = max(keys) + "\0"

    async def ping(self) -> None:
        """Return when the store answers."""
        await self.read(partial(table.page, low="", high="", now=0, most=1))

    async def aclose(self) -> None:
        """Let the threads finish what waits, and end."""
        if self._closed:
            return
        self._closed = True
        self._dismissal.detach()
        self.leases.close()
        threads = [thread for crew in self._crews for thread in crew.stop()]
        await to_thread.run_sync(_join, threads, abandon_on_cancel=True)

    def __repr__(self) -> str:
        return f"<FileBackend {str(self.path)!r}>"

    # What its leases use too

    def now(self) -> int:
        """The time in ticks."""
        return table.ticks(self.clock.monotonic() + self.clock.epoch)

    async def read(self, work: Lookup | Callable[[Connection], Any]) -> Any:
        """What a reader finds.

        Raises:
            BackendError: The store failed.
        """
        return await self._done(self._readers, work, 0)

    def look(self, job: Job) -> None:
        """Have a reader do a job that nobody awaits."""
        self._readers.put(job)

    def tell(self, job: Job) -> None:
        """Have the writer do a job that nobody awaits."""
        self._writers.put(job)

    async def write(self, work: Put | Callable[[Connection], Any], weight: int = 0) -> Any:
        """What comes of a change; it is in the log when this returns.

        Raises:
            BackendError: The store failed.
        """
        return await self._done(self._writers, work, weight)

    async def row(self, key: str, entry: Entry) -> table.Row:
        """The row of an entry; a large one is encoded in a thread."""
        return _row(key, entry, await encoded(self.codec, key, entry))

    async def _done(self, crew: Crew, work: Any, weight: int) -> Any:
        loop = get_running_loop()
        job = Job(loop, work, weight)
        if not crew.put(job):
            raise BackendUnavailable("the file store is closed")
        return await done(loop, job)

    async def entry(self, key: str, row: tuple[bytes, int, int]) -> Entry | None:
        """The entry of a row; ``None`` when its bytes cannot be read, which is told."""
        data = row[0]
        try:
            entry = await decoded(self.codec, key, data)
        except DecodeError as error:
            self.reports.tell("an entry could not be read", error)
            return None
        return _timed(entry, row) if self.codec.plain else entry

    def _add(self, key: str, delta: int, new: Entry, now: int, connection: Connection) -> int:
        entry = new
        row = connection.execute(
            "select cast(data as blob), fresh, expires from entries where key = ?", (key,)
        ).fetchone()
        if row is not None and row[1] > now:
            try:
                entry = self.codec.decode(key, row[0])
            except DecodeError as error:  # as good as absent
                self.reports.tell("an entry could not be read", error)
            else:
                entry = _timed(entry, row) if self.codec.plain else entry
        if type(entry.value) is not int:
            raise TypeError(f"a counter holds an integer, this key holds {type(entry.value).__name__}")
        total = entry.value + delta
        total_entry = replace(entry, value=total)
        _put(_row(key, total_entry, self.codec.encode(key, total_entry)), connection)
        return total


def open_file(options: StoreOptions) -> FileBackend:
    """The store of a ``file://`` URL.

    Raises:
        ConfigError: The URL has a host or no path, or an option is unknown or ill-typed.
    """
    path = unquote(options.url.path)
    if options.url.netloc or path in ("", "/"):
        raise ConfigError("file:// has three slashes and a directory, as in file:///var/cache/shop?max_entries=1000")
    query = Options("file://", options.query)
    durability: Any = query.choice("durability", tuple(_SYNCHRONOUS), default="process")
    store = FileBackend(
        path,
        max_bytes=query.integer("max_bytes", minimum=65_536, default=_DEFAULT_MAX_BYTES),
        max_entries=query.integer("max_entries", minimum=1, default=None),
        durability=durability,
        codec=codec_of(options.codec),
        clock=options.clock,
    )
    query.done()
    return store


# What the writer does with single rows


def _row(key: str, entry: Entry, data: bytes) -> table.Row:
    return key, table.ticks(entry.fresh_until), table.ticks(entry.expires_at), data


def _put(row: table.Row, connection: Connection) -> None:
    table.put(connection, (row,))
    table.drop(connection, "leases", (row[0],))


def _put_if(row: table.Row, only_if: OnlyIf, now: int, connection: Connection) -> bool:
    present = table.fresh_among(connection, (row[0],), now) > 0
    if present != (only_if == "present"):
        return False
    _put(row, connection)
    return True


def _delete(keys: Sequence[str], now: int, connection: Connection) -> int:
    count = table.fresh_among(connection, keys, now)
    table.drop(connection, "entries", keys)
    table.drop(connection, "leases", keys)
    return count


def _touch(codec: Codec, key: str, fresh_until: float, expires_at: float, now: int, connection: Connection) -> bool:
    row = connection.execute("select cast(data as blob), fresh from entries where key = ?", (key,)).fetchone()
    if row is None or row[1] <= now:
        return False
    data = codec.retimed(row[0], fresh_until, expires_at)
    times = table.ticks(fresh_until), table.ticks(expires_at)
    connection.execute("update entries set data = ?, fresh = ?, expires = ? where key = ?", (data, *times, key))
    return True


def _timed(entry: Entry, row: tuple[bytes, int, int]) -> Entry:
    return replace(entry, fresh_until=table.seconds(row[1]), expires_at=table.seconds(row[2]))


def after(prefix: str) -> str | bytes:
    """What sorts right after every key with the prefix."""
    for place in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[place])
        if code < 0x10FFFF:
            return prefix[:place] + chr(0xE000 if code == 0xD7FF else code + 1)
    return b""


def _ask_for_checkpoint(crew: Crew) -> None:
    crew.put(Job(None, None))


def _dismiss(crews: Sequence[Crew]) -> None:
    for crew in crews:
        crew.stop()


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(2.0)


_all: "weakref.WeakSet[FileBackend]" = weakref.WeakSet()
_halted: list[FileBackend] = []


def _halt_before_fork() -> None:
    _halted[:] = list(_all)
    for backend in _halted:
        backend.halt()


def _go_on_after_fork() -> None:
    while _halted:
        _halted.pop().go_on()


def _forget_after_fork() -> None:
    while _halted:
        _halted.pop().forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_halt_before_fork, after_in_parent=_go_on_after_fork, after_in_child=_forget_after_fork)
