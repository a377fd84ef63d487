"""Where the threads of a file store work: one that writes, a few that read, one that moves the log into the database.

What they share is the place, and which database they have open: when one finds it damaged, it is set aside and all
open the new one.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, final

from asynccache.backends.file import table
from asynccache.backends.file.crew import Job
from asynccache.backends.file.place import Identity, Place
from asynccache.backends.file.upkeep import Upkeep
from asynccache.errors import BackendError, BackendTimeout, BackendUnavailable

__all__ = ["Checkpoints", "Lookup", "Put", "Reader", "Shop", "Writer"]

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_WRITE_TRIES: Final = 8_000
_WRITE_PAUSE: Final = 0.000_5
_REOPEN_SECONDS: Final = 0.25
_CHECKPOINT_BYTES: Final = 8 * 1_024 * 1_024
_RESETS_SAFELY: Final = sqlite3.sqlite_version_info >= (3, 51, 3)

Report = Callable[[str, BaseException], object]


@final
class Shop:
    """What all threads of a store share.

    Args:
        place: Where the database is.
        synchronous: What a commit waits for.
        counted: Whether entries are counted.
        report: Told of what no caller hears.
    """

    def __init__(self, place: Place, *, synchronous: str, counted: bool, report: Report) -> None:
        self.place = place
        self.synchronous = synchronous
        self.counted = counted
        self.report = report
        self.recent: set[str] = set()

    def open(self) -> tuple[sqlite3.Connection, Identity]:
        """A connection to the database, made if it is missing, and which file that is.

        Raises:
            OSError: The directory or a file cannot be made, or is not safe.
            sqlite3.Error: The database cannot be opened.
        """
        with self.place.prepared() as identity:
            connection = table.connect(self.place.database)
            try:
                table.prepare(connection, synchronous=self.synchronous, counted=self.counted)
            except BaseException:
                connection.close()
                raise
        return connection, identity

    def damaged(self, identity: Identity | None, error: sqlite3.Error) -> None:
        """Set the database aside, unless another thread or process has done so."""
        if identity is None:
            identity = self.place.identity()
        if self.place.set_aside(identity):
            self.report("a damaged database was set aside", error)


class _Desk:
    """A connection that is opened when it is needed, and again when the database is another file."""

    def __init__(self, shop: Shop, busy_milliseconds: int = 1_000) -> None:
        self.shop = shop
        self._busy_milliseconds = busy_milliseconds
        self.connection: sqlite3.Connection | None = None
        self.identity: Identity | None = None

    def opened(self) -> sqlite3.Connection:
        """The connection to what is the database now."""
        if self.connection is not None:
            try:
                if self.shop.place.identity() == self.identity:
                    return self.connection
            except FileNotFoundError:
                pass
            self.close()
        try:
            self.connection, self.identity = self.shop.open()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self.shop.damaged(None, error)
            self.connection, self.identity = self.shop.open()
        self.connection.execute(f"pragma busy_timeout = {self._busy_milliseconds}")
        return self.connection

    def guarded(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """The work's result on an open database; on a new one when the old is damaged.

        Raises:
            OSError: No database can be had.
            sqlite3.Error: The work failed.
        """
        try:
            return work(self.opened())
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            damaged, self.identity = self.identity, None
            self.close()
            self.shop.damaged(damaged, error)
            return work(self.opened())

    def close(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@final
class Lookup:
    """Keys to be read: what most jobs of a reader are.

    Attributes:
        keys: The keys.
        now: The time in ticks.
    """

    __slots__ = ("keys", "now")

    def __init__(self, keys: Sequence[str], now: int) -> None:
        self.keys = keys
        self.now = now


@final
class Reader(_Desk):
    """Reads: the keys of all who wait in one statement."""

    def serve(self, jobs: Sequence[Job]) -> None:
        """Do the jobs."""
        lookups = [job for job in jobs if type(job.work) is Lookup]
        if lookups:
            try:
                self.guarded(partial(self._look_up, lookups))
            except (sqlite3.Error, OSError) as error:
                fail(lookups, error)
        for job in jobs:
            if type(job.work) is not Lookup:
                try:
                    job.result = self.guarded(job.work)
                except (sqlite3.Error, OSError) as error:
                    fail([job], error)

    def _look_up(self, jobs: Sequence[Job], connection: sqlite3.Connection) -> None:
        now = min([job.work.now for job in jobs])
        found = table.read(connection, [key for job in jobs for key in job.work.keys], now)
        recent = self.shop.recent
        recent.update(found)
        if len(recent) > _MOST_RECENT:
            recent.clear()
        for job in jobs:
            own, at = job.work.keys, job.work.now
            job.result = {key: found[key] for key in own if key in found and found[key][2] > at}

    def rest(self) -> float | None:
        """Nothing is done between batches."""
        return None


_MOST_RECENT: Final = 100_000


@final
class Put:
    """Rows to be stored unconditionally: what most jobs of the writer are.

    Attributes:
        rows: The rows.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[table.Row]) -> None:
        self.rows = rows


@final
class Writer(_Desk):
    """Writes: all that waits in one transaction, in the order in which it was asked for."""

    def __init__(self, shop: Shop, upkeep: Upkeep, checkpoint: Callable[[], object]) -> None:
        super().__init__(shop, busy_milliseconds=0)  # SQLite sleeps longer than a transaction takes
        self._upkeep = upkeep
        self._checkpoint = checkpoint

    def serve(self, jobs: Sequence[Job]) -> None:
        """Do the jobs. What fails with one of them is tried with each alone: a full disk takes a deletion."""
        try:
            self.guarded(partial(_transact, partial(self._work, jobs)))
        except (sqlite3.Error, OSError) as error:
            if len(jobs) == 1 or not isinstance(error, sqlite3.Error) or _code(error) in _BUSY:
                fail(jobs, error)
                return
            for job in jobs:
                job.failure = None
                self.serve([job])
            return
        self._upkeep.wrote(len(jobs), sum([job.weight for job in jobs]))

    def _work(self, jobs: Sequence[Job], connection: sqlite3.Connection) -> None:
        leased = connection.execute("select exists (select 1 from leases)").fetchone()[0]
        rows: list[table.Row] = []
        for job in jobs:
            if type(job.work) is Put:
                rows += job.work.rows
                continue
            if rows:
                self._put(connection, rows, leased)
                rows = []
            try:
                job.result = job.work(connection)
            except TypeError as error:  # what is no number is not counted: nothing was changed
                job.failure = partial(TypeError, *error.args)
            leased = True
        if rows:
            self._put(connection, rows, leased)

    def _put(self, connection: sqlite3.Connection, rows: Sequence[table.Row], leased: bool) -> None:
        table.put(connection, rows)
        if leased:
            table.drop(connection, "leases", [row[0] for row in rows])

    def rest(self) -> float | None:
        """A little upkeep: what is over and what is too much goes, free space is given back."""
        try:
            if self.connection is None:
                return None
            pause: float = self.guarded(partial(self._upkeep.step, _transact))
            if self.shop.place.written() > _CHECKPOINT_BYTES:
                self._checkpoint()
            return pause
        except (sqlite3.Error, OSError) as error:
            if not isinstance(error, TimeoutError):
                self.shop.report("the upkeep of the store failed", translated(error))
            return _REOPEN_SECONDS


@final
class Checkpoints(_Desk):
    """Moves what was written from the log into the database, in a thread of its own: the disk may take its time.

    Before 3.51.3 SQLite may take a log that somebody begins anew while it is moved for one that has been moved, and
    lose what is in it (its "WAL-reset bug"). There another connection keeps writers out meanwhile.
    """

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop)
        self._keeping_out = None if _RESETS_SAFELY else _Desk(shop, busy_milliseconds=0)

    def serve(self, jobs: Sequence[Job]) -> None:
        """Once for all who ask."""
        try:
            if self._keeping_out is None:
                self.guarded(_checkpoint)
            else:
                self._keeping_out.guarded(partial(_transact, lambda _: self.guarded(_checkpoint)))
        except (sqlite3.Error, OSError) as error:
            self.shop.report("the log could not be moved into the database", translated(error))

    def close(self) -> None:
        """Close the connections."""
        super().close()
        if self._keeping_out is not None:
            self._keeping_out.close()

    def rest(self) -> float | None:
        """Nothing is done between batches."""
        return None


def _checkpoint(connection: sqlite3.Connection) -> None:
    connection.execute("pragma wal_checkpoint(passive)").fetchall()


def _transact(work: Callable[[sqlite3.Connection], Any], connection: sqlite3.Connection) -> Any:
    """The work's result, in a transaction that may write."""
    for _ in range(_WRITE_TRIES):
        try:
            connection.execute("begin immediate")
            break
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY:
                raise
        time.sleep(_WRITE_PAUSE)
    else:
        raise TimeoutError("the database is held by another process")
    try:
        result = work(connection)
        connection.execute("commit")
        return result
    finally:
        if connection.in_transaction:
            connection.execute("rollback")


def fail(jobs: Sequence[Job], error: sqlite3.Error | OSError) -> None:
    """Have each job fail by an exception of its own."""
    for job in jobs:
        job.failure = partial(translated, error)


def translated(error: sqlite3.Error | OSError) -> BackendError:
    """A failure of SQLite or the system in this package's words."""
    if isinstance(error, TimeoutError) or _code(error) in _BUSY:
        kind: type[BackendError] = BackendTimeout
    elif isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        kind = BackendError
    else:
        kind = BackendUnavailable
    failure = kind(f"the file store failed: {error}")
    why = error.strerror if isinstance(error, OSError) else str(error)  # SQLite names tables, and no path
    failure.reason = f"the file store failed: {why}" if why else ""
    failure.__cause__ = error
    return failure


def _code(error: BaseException) -> int:
    """The primary result code of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in _DAMAGED
