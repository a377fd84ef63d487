"""The upkeep of a file store: what is over goes, what is too much goes, and free space goes back to the disk.

All of it is done in small steps between the batches of the writer. A step looks at some hundred entries by their
place in the table, so no index on their times is needed (it would triple the cost of filling), and comes round to each
about once a minute.

Too much is taken from the oldest, by first storing. An entry that this process has read since gets another turn, as in
the policy CLOCK (Corbató 1968), but not more than half of those that a step looks at, so that it always makes room.
"""

import math
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Final, final

from asynccache.backends.file import table
from asynccache.clock import Clock

__all__ = ["Upkeep"]

_SWEEP_ROWS: Final = 512
_ROUND_SECONDS: Final = 60.0
_SHORTEST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 5.0
_EVICT_ROWS: Final = 128
_LOOK_BYTES: Final = 1_048_576  # written between two looks at the size
_ROOM: Final = 0.98  # of the bounds is what is left after making room
_ROW_BYTES: Final = 40  # that an entry takes beside its key and bytes, about
_FREE_PAGES: Final = 256
_VACUUM_PAGES: Final = 128

Transact = Callable[[Callable[[sqlite3.Connection], Any], sqlite3.Connection], Any]


@final
class Upkeep:
    """What one process does to keep a store small; several may do it at once.

    Args:
        clock: Where time comes from.
        max_bytes: What the database may take, its log not counted.
        max_entries: How many entries there may be.
        recent: Keys that were read lately.
    """

    def __init__(self, clock: Clock, *, max_bytes: int | None, max_entries: int | None, recent: set[str]) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._recent = recent
        self._position = 0
        self._slices = 0
        self._slices_of_a_round = 1
        self._look_bytes = _LOOK_BYTES if max_bytes is None else min(_LOOK_BYTES, max_bytes // 50)
        self._look_rows = math.inf if max_entries is None else max_entries // 100
        self._unlooked_rows = 0
        self._unlooked_bytes = _LOOK_BYTES  # a store that is opened may be too large
        self._crowded = False
        self._wasteful = True  # until it has been looked at
        self._next_sweep = 0.0

    def wrote(self, rows: int, weight: int) -> None:
        """Count what was written."""
        self._unlooked_rows += rows
        self._unlooked_bytes += weight

    def step(self, transact: Transact, connection: sqlite3.Connection) -> float:
        """Do a little; in how many seconds to come again.

        Args:
            transact: Runs a function in a transaction.
            connection: The database.
        """
        if self._crowded or self._unlooked_bytes >= self._look_bytes or self._unlooked_rows >= self._look_rows:
            self._unlooked_rows = self._unlooked_bytes = 0
            self._crowded = self._make_room(transact, connection)
        if self._wasteful:
            self._wasteful = self._give_back(transact, connection)
        now = self._clock.monotonic()
        if now >= self._next_sweep or self._next_sweep > now + _LONGEST_PAUSE:
            self._sweep(transact, connection, table.ticks(now + self._clock.epoch))
            self._unlooked_rows = self._unlooked_bytes = _LOOK_BYTES
            pause = min(max(_ROUND_SECONDS / self._slices_of_a_round, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            self._next_sweep = now + pause
        return 0.0 if self._crowded or self._wasteful else max(self._next_sweep - now, 0.001)

    # What is over

    def _sweep(self, transact: Transact, connection: sqlite3.Connection, now: int) -> None:
        last, over = connection.execute(
            "select max(id), total(expires <= ?) from "
            "(select id, expires from entries where id > ? order by id limit ?)",
            (now, self._position, _SWEEP_ROWS),
        ).fetchone()
        if over:
            transact(partial(_drop_expired, self._position, last, now), connection)
            self._wasteful = True
        self._slices += 1
        if last is not None:
            self._position = last
            return
        self._position = 0
        self._slices_of_a_round, self._slices = max(self._slices, 1), 0
        if connection.execute("select exists (select 1 from leases where until <= ?)", (now,)).fetchone()[0]:
            transact(lambda _: connection.execute("delete from leases where until <= ?", (now,)), connection)

    # What is too much

    def _make_room(self, transact: Transact, connection: sqlite3.Connection) -> bool:
        """Remove a few of the oldest if there are too many; whether there still are."""
        excess = self._excess(connection, _ROOM if self._crowded else 1.0)
        if max(excess) <= 0:
            return False
        transact(partial(self._evict, excess), connection)
        self._wasteful = True
        return max(self._excess(connection, _ROOM)) > 0

    def _excess(self, connection: sqlite3.Connection, share: float) -> tuple[float, float]:
        """By how many bytes and entries the store passes a share of its bounds."""
        size = entries = 0.0
        if self._max_bytes is not None:
            pages, free, page = (
                connection.execute(f"pragma {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            size = (pages - free) * page - self._max_bytes * share
        if self._max_entries is not None:
            count = connection.execute("select value from counts where name = 'entries'").fetchone()[0]
            entries = count - self._max_entries * share
        return size, entries

    def _evict(self, excess: tuple[float, float], connection: sqlite3.Connection) -> None:
        size, entries = excess
        oldest = connection.execute(
            "select id, key, length(data) from entries order by id limit ?", (_EVICT_ROWS,)
        ).fetchall()
        spared: list[tuple[int]] = []
        gone: list[tuple[int]] = []
        for number, key, length in oldest:
            if size <= 0 and entries <= 0:
                break
            if key in self._recent and len(spared) < _EVICT_ROWS // 2:
                self._recent.discard(key)
                spared.append((number,))
                continue
            gone.append((number,))
            size -= length + len(key) + _ROW_BYTES
            entries -= 1
        connection.executemany("update entries set id = (select max(id) from entries) + 1 where id = ?", spared)
        connection.executemany("delete from entries where id = ?", gone)

    # Free space

    def _give_back(self, transact: Transact, connection: sqlite3.Connection) -> bool:
        """Give a few free pages back to the disk if there are many; whether there still are."""
        pages, free = (connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        if free <= max(_FREE_PAGES, pages // 4):
            return False
        transact(lambda _: connection.execute(f"pragma incremental_vacuum({_VACUUM_PAGES})").fetchall(), connection)
        return True


def _drop_expired(after: int, last: int, now: int, connection: sqlite3.Connection) -> None:
    connection.execute("delete from entries where id > ? and id <= ? and expires <= ?", (after, last, now))
