"""Writes that depend on whether something fresh is there: one script, which says what it has found."""

from typing import Literal, Protocol

from asynccache._offloading import encoded
from asynccache.backends.redis.heads import RedisHeads
from asynccache.backends.redis.heads import Store as HeadsStore
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import HEAD
from asynccache.backends.redis.scripts import PUT_IF, SWAP
from asynccache.backends.redis.times import milliseconds
from asynccache.entry import MISSING, Entry

__all__ = ["Store", "put_if"]


class Store(HeadsStore, Protocol):
    """Whose entries they are."""

    heads: RedisHeads

    async def meet(self, pool: Pool, *names: bytes) -> None: ...


async def put_if(store: Store, key: str, entry: Entry, only_if: Literal["absent", "present"]) -> Entry | None:
    """Store an entry and return ``None``; or, where the condition does not hold, what is there, without its value.

    What cannot be read is as good as absent. Of an entry that is absent where it should be present, nothing is told but
    that.

    Raises:
        BackendError: The server failed.
    """
    name, pool = key.encode(), store.pool()
    if not pool.met:
        await store.meet(pool, name)
    if store.intents.keys or pool.large_writes:
        await store.settle(pool, (name,))
    data = await encoded(store.codec, key, entry, pool.offset)
    left = milliseconds(entry.expires_at - store.now())
    something = Entry(value=MISSING, created_at=store.now())
    if store.codec.plain:
        return None if await store.plain.put_if(name, only_if, left, data) else something
    found = await pool.run(name, PUT_IF, (name,), only_if, store.now() + pool.offset, left, data)
    if type(found) is not bytes:
        return None
    if only_if == "present":
        return something
    there = await store.heads.entry(pool, key, found)
    if there is not None:
        return there
    return None if await _swapped(pool, name, found, data, left) else something


async def _swapped(pool: Pool, name: bytes, head: bytes, data: bytes, left: int | str) -> bool:
    """Whether what begins with these bytes is still there and was replaced."""
    old = head if len(head) < HEAD else await pool.ask(name, b"GET", name)
    if not old or not old.startswith(head):
        return False
    return bool(await pool.run(name, SWAP, (name,), old, data, left))
