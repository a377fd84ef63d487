"""Many values at once: small ones in one round trip, large ones beside it, so that nobody waits for them.

One ``MGET`` brings every value whole, on the connection that all callers share: on a line of a gigabit, ten megabytes
hold up what is behind them for 80 ms. Which keys have large values is not known before; but who has read such keys
reads such keys again. So for a minute the start of each is asked for instead, which takes three times as long for small
values, and what is longer is read as `large.whole` does.
"""

from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol

from asynccache.backends.redis.large import Store as LargeStore
from asynccache.backends.redis.large import put, whole
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import CHUNK, first_chunk
from asynccache.backends.redis.replies import all_told
from asynccache.backends.redis.scripts import DELETE
from asynccache.backends.redis.wire import pack
from asynccache.backends.redis.writing import Store as WritingStore
from asynccache.backends.redis.writing import change
from asynccache.clock import stopwatch
from asynccache.codec import Codec
from asynccache.errors import BackendError

__all__ = ["Large", "Small", "read_many", "remove_many", "write_many"]

_KEYS_AT_ONCE: Final = 500  # of one script, which holds up the server
_REMOVED_AT_ONCE: Final = 10_000
_BULKY_BYTES: Final = 1_000_000
_BULKY_SECONDS: Final = 60.0

Small = tuple[Sequence[bytes], bytes]
"""The keys that a command writes, and the command."""

Large = tuple[bytes, Sequence[bytes], int | str]
"""A key, its entry in parts, and the milliseconds that it lives, or nothing."""


class Store(LargeStore, WritingStore, Protocol):
    """Whose values they are."""

    codec: Codec

    def now(self) -> float: ...


async def read_many(pool: Pool, names: Sequence[bytes]) -> list[Any]:
    """What is under each key: its bytes, a large value's in parts, nothing, or why it cannot be read.

    Raises:
        BackendError: The server could not be asked.
    """
    if pool.clustered or stopwatch() < pool.bulky_until:
        found = await pool.ask_all([(name, first_chunk(name)) for name in names])
        large = [place for place, data in enumerate(found) if type(data) is bytes and len(data) == CHUNK]
        if large:
            _expect_more(pool)
            await pool.together([_complete(pool, names[place], found, place) for place in large])
        return found
    together: list[Any] = await pool.ask(names[0], b"MGET", *names)
    if sum(map(len, filter(None, together))) >= _BULKY_BYTES:
        _expect_more(pool)
    return together


async def write_many(store: Store, pool: Pool, small: Sequence[Small], large: Sequence[Large]) -> None:
    """Store all; return when each was, or has failed.

    Raises:
        BackendError: One of them failed; its keys are owed.
    """
    if not large:
        await change(store, pool, small)
        return
    works: list[Coroutine[Any, Any, object]] = [change(store, pool, small)] if small else []
    works += [put(store, pool, name, parts, left) for name, parts, left in large]
    all_told(await pool.together([_outcome(work) for work in works]))


async def remove_many(store: Store, pool: Pool, names: Sequence[bytes]) -> int:
    """Remove the keys; how many had a fresh entry. Of very many, some at a time: each part has the time of a call.

    Raises:
        BackendError: One of them failed; its keys are owed, and those that were to come after them.
    """
    count = 0
    for start in range(0, len(names), _REMOVED_AT_ONCE):
        try:
            count += await _remove(store, pool, names[start : start + _REMOVED_AT_ONCE])
        except BaseException:
            if rest := names[start + _REMOVED_AT_ONCE :]:
                store.owe(pool, rest)
            raise
    return count


async def _remove(store: Store, pool: Pool, names: Sequence[bytes]) -> int:
    groups = pool.grouped(names, _KEYS_AT_ONCE)
    if store.codec.plain:
        return sum(await change(store, pool, [(group, pack((b"UNLINK", *group))) for group in groups]))
    now = store.now() + pool.offset
    commands = [(group, pack((b"EVALSHA", DELETE.sha, len(group), *group, now))) for group in groups]
    return sum(await change(store, pool, commands, DELETE))


def _expect_more(pool: Pool) -> None:
    pool.bulky_until = stopwatch() + _BULKY_SECONDS


async def _complete(pool: Pool, name: bytes, found: list[Any], place: int) -> None:
    """Put the parts of a large value in the place of its first one."""
    try:
        found[place] = await whole(pool, pool.link(name), name, found[place])
    except BackendError as error:
        found[place] = error.with_traceback(None)


async def _outcome(work: Coroutine[Any, Any, object]) -> Exception | None:
    try:
        await work
    except BackendError as error:
        return error.with_traceback(None)
    return None
