"""Writes of many keys that happen, or are owed."""

from collections.abc import Sequence
from typing import Any, Protocol

from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.replies import all_told
from asynccache.backends.redis.scripts import Script
from asynccache.backends.redis.wire import KEPT

__all__ = ["Store", "change", "storing"]


class Store(Protocol):
    """Whose keys they are."""

    intents: Intents

    def owe(self, pool: Pool, names: Sequence[bytes]) -> None: ...


def storing(name: bytes, data: bytes, left: int | str) -> bytes:
    """The command that stores the bytes of an entry. By hand: that takes half of hiredis' time.

    Args:
        name: The key.
        data: The bytes.
        left: Milliseconds to live, or nothing.
    """
    if isinstance(left, str):
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(data), data)
    lasting = b"%d" % left
    parts = (len(name), name, len(data), data, len(lasting), lasting)
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % parts


async def change(
    store: Store, pool: Pool, commands: Sequence[tuple[Sequence[bytes], bytes]], script: Script | None = None
) -> list[Any]:
    """The replies to writes that leave together.

    Args:
        store: Whose keys they are.
        pool: The connections.
        commands: Each with the keys that it writes.
        script: What they call, if they call one.

    Raises:
        BackendError: One of them failed; its keys are owed.
    """
    names = [name for group, _ in commands for name in group]
    try:
        if pool.large_writes:
            await pool.large_ended(names)
        if store.intents.keys:
            store.intents.superseded(names)  # what is repaid was sent before these commands, or is not any more
        replies = await pool.ask_all([(group[0], command) for group, command in commands], script, KEPT)
    except BaseException:
        store.owe(pool, names)
        raise
    failed = [isinstance(reply, Exception) for reply in replies]
    for (group, _), owed in zip(commands, failed, strict=True):
        if owed:
            store.owe(pool, group)
    try:
        return all_told(replies)
    finally:
        del replies  # see told
