"""Large values, on connections beside the one for small ones, so that these do not wait for them.

They are read in chunks on one and written on another: a chunk that had to wait for a whole write each time would come
too late.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from asynccache.backends.redis.link import Link
from asynccache.backends.redis.pieces import Command, Pieces
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import CHUNK
from asynccache.backends.redis.replies import ErrorReply, code_of, told
from asynccache.backends.redis.scripts import COMMIT, LEASE_BYTES, LEASE_MAGIC, MOVE, Script
from asynccache.backends.redis.slots import slot_of
from asynccache.backends.redis.wire import KEPT, Asked, pack
from asynccache.clock import stopwatch
from asynccache.errors import BackendError

__all__ = ["Store", "commit", "put", "whole"]

_AHEAD: Final = 4
_ELSEWHERE: Final = frozenset(("MOVED", "ASK", "TRYAGAIN"))
_STAGED_MILLISECONDS: Final = 60_000  # of what is never moved to its place
_HEAD: Final = 96  # the lease and the header, with its time and checksum: another value has another one


class Store(Protocol):
    """Whose values they are."""

    def owe(self, pool: Pool, names: Sequence[bytes]) -> None: ...
    async def settle(self, pool: Pool, names: Iterable[bytes]) -> None: ...


async def put(store: Store, pool: Pool, name: bytes, data: Sequence[bytes], left: int | str) -> None:
    """Send a large value; one that is given up must not come later, after what others have written.

    Raises:
        BackendError: The server failed.
    """
    command = Pieces.of((b"SET", name), data, () if left == "" else (b"PX", left))
    await store.settle(pool, (name,))
    await pool.repayment.over(name)
    while name in pool.large_writes:  # several may have waited for the same one
        await store.settle(pool, (name,))
        await pool.repayment.over(name)
    link = pool.large(pool.link(name), out=True)
    try:
        asked = link.ask(command, KEPT)
    except BackendError:
        store.owe(pool, (name,))
        raise
    pool.large_writes[name] = asked

    def ended(asked: Asked) -> None:
        if pool.large_writes.get(name) is asked:
            del pool.large_writes[name]
        if isinstance(asked.result(), BackendError):
            link.drop()
            store.owe(pool, (name,))

    asked.add_done_callback(ended)
    reply = await _unbound(pool, asked)
    if type(reply) is not bytes:
        try:
            await pool.again(link, reply, command)
        except BaseException:
            store.owe(pool, (name,))
            raise


async def commit(pool: Pool, name: bytes, token: str, now: float, left: int | str, data: Sequence[bytes]) -> bool:
    """Store a large entry and give its lease back, if that still holds: sent beside, then moved to its place.

    A script that takes 10 MB holds up a server for 20 ms, with everybody who asks it; to rename takes 1 ms.

    Args:
        pool: The connections.
        name: The key.
        token: The lease's.
        now: Seconds since 1970 by the server's clock.
        left: Milliseconds to live, or nothing.
        data: The entry, in parts.

    Raises:
        BackendError: The server failed.
    """
    staged = name + b"\0\0" + token.encode("ascii")  # nobody's key; with the same prefix, as rights may be by it
    link = pool.large(pool.link(name), out=True)
    deadline = stopwatch() + pool.timeout
    at_once = Pieces.of((b"EVALSHA", COMMIT.sha, 1, name, now, token, left), data)
    script: Script = COMMIT
    command: Command = at_once
    if pool.clustered and slot_of(staged) != slot_of(name):
        reply = await link.ask(command)
    else:
        script, command = MOVE, pack((b"EVALSHA", MOVE.sha, 2, name, staged, now, token, left))
        sent = link.ask(Pieces.of((b"SET", staged), data, (b"PX", _STAGED_MILLISECONDS)))
        moved = link.ask(command)
        failure = await sent
        reply = await moved
        if isinstance(failure, Exception):
            if code_of(failure) not in _ELSEWHERE:
                raise link.refused(failure)
            script, command = COMMIT, at_once
            reply = await link.ask(command)
    if isinstance(reply, Exception):
        reply = await pool.again(link, reply, command, script.source, deadline)
    return bool(reply)


def _unbound(pool: Pool, asked: Asked) -> Asked:
    """What can be cancelled, when a caller is, without the write: what comes after it has to wait for it."""
    waiter: Asked = pool.loop.create_future()

    def tell(asked: Asked) -> None:
        if not waiter.done():
            waiter.set_result(asked.result())

    asked.add_done_callback(tell)
    return waiter


async def whole(pool: Pool, link: Link, name: bytes, start: bytes) -> list[bytes]:
    """The value whose first chunk this is, in parts; a part that is empty when it is gone.

    Raises:
        BackendError: The server failed.
    """
    deadline = stopwatch() + pool.timeout
    try:
        return await _in_chunks(pool.large(link, out=False), name, start, deadline)
    except BackendError as error:
        elsewhere = error.__cause__
        if not isinstance(elsewhere, ErrorReply) or code_of(elsewhere) not in _ELSEWHERE:
            raise
        # Its slot is on the move: it is asked for at once, wherever it is.
        data: Any = await pool.again(link, elsewhere, pack((b"GET", name)), deadline=deadline)
        return [data or b""]


async def _in_chunks(beside: Link, name: bytes, start: bytes, deadline: float) -> list[bytes]:
    length: int = told(await beside.ask(pack((b"STRLEN", name)), deadline=deadline))
    chunks = [start]
    asked: deque[Asked] = deque()
    for at in range(CHUNK, length, CHUNK):
        asked.append(beside.ask(pack((b"GETRANGE", name, at, at + CHUNK - 1)), deadline=deadline))
        if len(asked) == _AHEAD:
            chunks.append(told(await asked.popleft()))
    asked.append(beside.ask(pack((b"GETRANGE", name, 0, _HEAD - 1)), deadline=deadline))
    chunks += [told(await each) for each in asked]
    head: bytes = chunks.pop()
    if _identity(head) == _identity(start[:_HEAD]):
        return chunks
    data: Any = told(
        await beside.ask(pack((b"GET", name)), deadline=deadline)
    )  # it was replaced meanwhile, or a lease was put before it
    return [data or b""]


def _identity(head: bytes) -> tuple[bool, bytes]:
    leased = head[:1] == bytes((LEASE_MAGIC,))
    return leased, head[LEASE_BYTES:] if leased else head[: _HEAD - LEASE_BYTES]
