"""Values that other programs read: the serializer's bytes alone, whose times are the server's."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, final

from asynccache._offloading import decoded
from asynccache.backend import OnlyIf, Reports
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.reading import HEAD, first_bytes
from asynccache.backends.redis.replies import code_of, foreign, told
from asynccache.backends.redis.scripts import DROP
from asynccache.backends.redis.times import milliseconds
from asynccache.backends.redis.wire import pack
from asynccache.codec import Codec
from asynccache.entry import MISSING, Entry
from asynccache.errors import BackendError, DecodeError, EncodeError

__all__ = ["PlainValues", "Store"]

_GONE: Final = -2  # PTTL's answer for a key that is not there


class Store(Protocol):
    """What plain values need of their store."""

    codec: Codec
    reports: Reports

    def pool(self) -> Pool: ...
    def now(self) -> float: ...
    async def settle(self, pool: Pool, names: Iterable[bytes]) -> None: ...


@final
class PlainValues:
    """What a store does otherwise when its codec is plain."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get_many(self, keys: Sequence[str], *, heads: bool = False) -> dict[str, Entry]:
        """Those found; as heads without their values, of which the first bytes alone are read: whether a longer one
        can be decoded is not seen."""
        store = self._store
        names = {key: key.encode() for key in keys}
        commands = [
            (name, command)
            for name in names.values()
            for command in (first_bytes(name) if heads else pack((b"GET", name)), pack((b"PTTL", name)))
        ]
        pool = store.pool()
        await store.settle(pool, names.values())
        replies = await pool.ask_all(commands)
        entries: dict[str, Entry] = {}
        now = store.now()
        for key, data, left in zip(names, replies[::2], replies[1::2], strict=True):
            if isinstance(data, Exception):
                store.reports.tell("an entry could not be read", foreign(data))
            elif data is not None and told(left) != _GONE:
                try:
                    long = heads and len(data) == HEAD
                    value = MISSING if long else (await decoded(store.codec, key, data)).value
                except DecodeError as error:
                    store.reports.tell("an entry could not be read", error)
                    continue
                until = math.inf if left < 0 else now + left / 1_000
                value = MISSING if heads else value
                entries[key] = Entry(value=value, created_at=now, fresh_until=until, expires_at=until)
        return entries

    async def put_if(self, name: bytes, only_if: OnlyIf, left: int | str, data: bytes) -> bool:
        """Store it, if the condition holds."""
        await self._store.settle(self._store.pool(), (name,))
        condition = b"NX" if only_if == "absent" else b"XX"
        lasting: tuple[Any, ...] = () if left == "" else (b"PX", left)
        pool = self._store.pool()
        if only_if == "present" and not await self.get_many([name.decode()], heads=True):
            return False  # what cannot be read is as good as absent
        command = (b"SET", name, data, condition, *lasting)
        stored = await pool.ask(name, *command) is not None
        if stored or only_if == "present" or await self.get_many([name.decode()], heads=True):
            return stored
        if await self._dropped(pool, name):
            stored = await pool.ask(name, *command) is not None
        return stored

    async def touch(self, name: bytes, left: int | str) -> bool:
        """Give a key new times."""
        last = (b"PERSIST", name) if left == "" else (b"PEXPIRE", name, left)
        there, changed = await self._store.pool().ask_all([(name, pack((b"EXISTS", name))), (name, pack(last))])
        told(changed)
        return bool(told(there))

    async def incr(self, name: bytes, delta: int, ttl: float | None) -> int:
        """Add to a number."""
        if not -(2**63) <= delta < 2**63:
            raise EncodeError("a plain counter has 64 bits")
        store = self._store
        pool = store.pool()
        await store.settle(pool, (name,))
        commands = [(name, pack((b"INCRBY", name, delta)))]
        if ttl is not None:
            commands.insert(0, (name, pack((b"SET", name, 0, b"NX", b"PX", milliseconds(ttl)))))
        reply = (await pool.ask_all(commands))[-1]
        if isinstance(reply, BackendError) and reply.__cause__ is not None:
            code = code_of(reply.__cause__)
            if code in ("WRONGTYPE", "NOTINT"):
                if await self.get_many([name.decode()]):
                    raise TypeError("a counter holds an integer, this key holds something else")
                await self._dropped(pool, name)  # by us or by others; nothing was added yet
                reply = (await pool.ask_all(commands))[-1]
        total: int = told(reply)
        return total

    async def _dropped(self, pool: Pool, name: bytes) -> bool:
        """Whether what is there cannot be read, and was removed: it is as good as absent."""
        (data,) = await pool.ask_all([(name, pack((b"GET", name)))])
        if isinstance(data, Exception):
            foreign(data)
            data = b""
        elif data is None:
            return True
        elif await self.get_many([name.decode()]):
            return False
        return bool(await pool.run(name, DROP, (name,), data))
