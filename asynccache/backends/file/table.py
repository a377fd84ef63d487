"""The tables of a file store, and the statements on them.

Every statement does a whole batch in one step. The interpreter's lock is let go and taken back at each step, and under
a busy loop that is what a batch waits for, not the work: so rows are read as one row of everything put together, and
written by one statement of many rows.

Times are whole ticks, 65,536 a second; ``FOREVER`` stands for no end.
"""

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson

__all__ = [
    "FOREVER",
    "Row",
    "connect",
    "drop",
    "fresh_among",
    "leased",
    "page",
    "prepare",
    "put",
    "read",
    "seconds",
    "starts",
    "ticks",
]

FOREVER: Final = 2**62
Row = tuple[str, int, int, bytes]
"""Key, ends of freshness and of life in ticks, and the entry as the codec has it."""

_TICKS: Final = 65_536.0
_SCHEMA: Final = """
    create table if not exists entries (
        id integer primary key,
        key text not null unique,
        fresh integer not null,
        expires integer not null,
        data blob not null
    );
    create table if not exists leases (key text primary key, token text not null, until integer not null) without rowid;
    create table if not exists counts (name text primary key, value integer not null) without rowid;
"""
# `entries` is counted only for those who bound it: the count costs every write.
_COUNTED: Final = """
    create trigger if not exists entry_made after insert on entries
        begin update counts set value = value + 1 where name = 'entries'; end;
    create trigger if not exists entry_gone after delete on entries
        begin update counts set value = value - 1 where name = 'entries'; end;
    insert or ignore into counts values ('entries', (select count(*) from entries));
"""
_VERSION, _COUNTED_VERSION = 1, 2
_AT_ONCE: Final = 256  # keys of one statement
_TOGETHER: Final = 65_536  # bytes of an entry that is read by itself, not put together with others
_ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of one statement: few statements are ever prepared
_TOGETHER_WRITTEN: Final = 16_384
_LOG_BYTES: Final = 1_048_576  # that the log keeps when it begins anew: what it has grown by is what is not moved yet


def ticks(seconds: float) -> int:
    """A time in ticks."""
    return FOREVER if seconds == math.inf else int(seconds * _TICKS)


def seconds(time: int) -> float:
    """Ticks as a time."""
    return math.inf if time >= FOREVER else time / _TICKS


def connect(database: Path) -> sqlite3.Connection:
    """A connection to a database that is there, for one thread at a time."""
    return sqlite3.connect(
        f"file:{quote(str(database))}?mode=rw",
        uri=True,
        timeout=1.0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=128,
    )


def prepare(connection: sqlite3.Connection, *, synchronous: str, counted: bool) -> None:
    """Set the connection up, and make the tables where they are missing.

    Args:
        connection: A new one.
        synchronous: ``off``, ``normal`` or ``full``: what a commit waits for.
        counted: Whether entries are counted.
    """
    connection.execute(f"pragma synchronous = {synchronous}")
    connection.execute("pragma wal_autocheckpoint = 0")
    connection.execute(f"pragma journal_size_limit = {_LOG_BYTES}")
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma cache_size = -8000")
    made = connection.execute("pragma user_version").fetchone()[0]
    if not made:  # both are kept in the database, and to set them again would wait for whoever writes
        connection.execute("pragma auto_vacuum = incremental")
        connection.execute("pragma journal_mode = wal")
    wanted = _COUNTED_VERSION if counted else _VERSION
    if made < wanted:
        script = _SCHEMA + (_COUNTED if counted else "")
        connection.executescript(f"begin immediate; {script} pragma user_version = {wanted}; commit;")


def read(connection: sqlite3.Connection, keys: Iterable[str], now: int) -> dict[str, Any]:
    """The entries that are there, by key: their bytes, with the ends of their freshness and life."""
    wanted = list(dict.fromkeys(keys))
    found: dict[str, Any] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        _read_some(connection, wanted[start : start + _AT_ONCE], now, found)
    return found


def _read_some(connection: sqlite3.Connection, keys: Sequence[str], now: int, found: dict[str, Any]) -> None:
    room = 1 << (len(keys) - 1).bit_length()  # few sizes, few statements
    names, fresh, expires, lengths, joined = connection.execute(
        # What is put together is text to SQLite, of any bytes and with its length: a test holds it to that.
        "select json_group_array(key), group_concat(fresh), group_concat(expires), group_concat(length(data)), "
        f"cast(group_concat(iif(length(data) < {_TOGETHER}, data, x''), '') as blob) "
        f"from entries where key in ({','.join('?' * room)}) and expires > ?",
        (*keys, *[keys[-1]] * (room - len(keys)), now),
    ).fetchone()
    if fresh is None:
        return
    at = 0
    for key, fresh_until, expires_at, length in zip(
        orjson.loads(names), fresh.split(","), expires.split(","), map(int, lengths.split(",")), strict=True
    ):
        if length < _TOGETHER:
            found[key] = (joined[at : at + length], int(fresh_until), int(expires_at))
            at += length
            continue
        alone = connection.execute(
            "select cast(data as blob), fresh, expires from entries where key = ?", (key,)
        ).fetchone()
        if alone is not None:
            found[key] = alone


def starts(connection: sqlite3.Connection, keys: Sequence[str], now: int, most: int) -> dict[str, Any]:
    """As `read`, with so many bytes of each entry at most."""
    found = {}
    for some in _slices(keys):
        rows = connection.execute(
            # A part of no bytes is null to SQLite.
            "select key, coalesce(substr(cast(data as blob), 1, ?), x''), fresh, expires from entries "
            f"where key in ({','.join('?' * len(some))}) and expires > ?",
            (most, *some, now),
        )
        found.update({key: (data, fresh, expires) for key, data, fresh, expires in rows})
    return found


def put(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Store the rows, the later ones over the earlier. In a transaction; leases are the caller's to end."""
    small: list[Row] = []
    for row in rows:
        if len(row[3]) < _TOGETHER_WRITTEN:
            small.append(row)
            continue
        _put_some(connection, small)
        small = []
        connection.execute(_insertion(1), row)
    _put_some(connection, small)


def _put_some(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), _ROWS[-1]):
        some = rows[start : start + _ROWS[-1]]
        room = next(size for size in _ROWS if size >= len(some))
        # The last row again and again: it costs less than a statement for each number of rows.
        some = [*some, *[some[-1]] * (room - len(some))]
        connection.execute(_insertion(room), [field for row in some for field in row])


_insertions: Final[dict[int, str]] = {}


def _insertion(rows: int) -> str:
    text = _insertions.get(rows)
    if text is None:
        text = _insertions[rows] = (
            f"insert into entries (key, fresh, expires, data) values {','.join(['(?,?,?,?)'] * rows)} "
            "on conflict (key) do update set fresh = excluded.fresh, expires = excluded.expires, data = excluded.data"
        )
    return text


def drop(connection: sqlite3.Connection, table: str, keys: Sequence[str]) -> None:
    """Remove the keys from a table."""
    for some in _slices(keys):
        connection.execute(f"delete from {table} where key in ({','.join('?' * len(some))})", some)


def fresh_among(connection: sqlite3.Connection, keys: Sequence[str], now: int) -> int:
    """How many of the keys have a fresh entry."""
    count = 0
    for some in _slices(keys):
        marks = ",".join("?" * len(some))
        count += connection.execute(
            f"select count(*) from entries where key in ({marks}) and fresh > ?", (*some, now)
        ).fetchone()[0]
    return count


def _slices(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """The keys, each once, in slices of few different sizes."""
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), _AT_ONCE):
        some = distinct[start : start + _AT_ONCE]
        yield [*some, *[some[-1]] * ((1 << (len(some) - 1).bit_length()) - len(some))]


def page(connection: sqlite3.Connection, low: str, high: str | bytes, now: int, most: int) -> list[str]:
    """The first keys from ``low`` up to, not including, ``high``, in order; a ``high`` of bytes is above all text."""
    names = connection.execute(
        "select json_group_array(key) from "
        "(select key from entries where key >= ? and key < ? and expires > ? order by key limit ?)",
        (low, high, now, most),
    ).fetchone()[0]
    keys: list[str] = orjson.loads(names)
    return keys


def leased(connection: sqlite3.Connection, now: int, keys: Sequence[str] | None = None) -> Mapping[str, int]:
    """The leases that hold, each with its end in ticks: of these keys, or all."""
    if keys is None:
        ends, names = connection.execute(
            "select group_concat(until), json_group_array(key) from leases where until > ?", (now,)
        ).fetchone()
        return dict(zip(orjson.loads(names), map(int, ends.split(",")), strict=True)) if ends else {}
    held: dict[str, int] = {}
    for some in _slices(keys):
        marks = ",".join("?" * len(some))
        ends, names = connection.execute(
            f"select group_concat(until), json_group_array(key) from leases where until > ? and key in ({marks})",
            (now, *some),
        ).fetchone()
        if ends:
            held.update(zip(orjson.loads(names), map(int, ends.split(",")), strict=True))
    return held
