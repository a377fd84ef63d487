"""Which keys there are in the two seats, and their removal: by prefix, a slice at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Final, final

from asynccache._seats import Seats
from asynccache.backend import Backend

__all__ = ["Listing", "cleared"]

_KEYS_SLICE: Final = 2_000
_STORED_SLICE: Final = 250
_CLEAR_SLICE: Final = 500


@final
class Listing:
    """The keys of fresh entries that start with a prefix and match, without those that the package keeps for itself.

    Args:
        seats: Where the entries are.
        prefix: What their whole keys start with.
        matches: Whether a key without the prefix is wanted.

    Attributes:
        ended: Whether there are no more.
    """

    def __init__(self, seats: Seats, prefix: str, matches: Callable[[str], bool]) -> None:
        self.ended = False
        self._seats = seats
        self._prefix = prefix
        self._matches = matches
        # A store names what is stale too, or it could not be cleared.
        self._names = None if seats.remote is None else seats.remote.keys(prefix)
        self._here = iter(() if seats.local is None else seats.local.keys())

    async def more(self) -> list[str]:
        """The keys of the next slice, without the prefix; perhaps none.

        Raises:
            BackendError: The store failed, and failures are to be raised; hidden ones are told of, and what the slice
                has is missing.
        """
        seats, stored = self._seats, self._seats.stored
        if stored is None or self._names is None:
            return await self._next_here()
        keys: list[str] = []
        self.ended = not await seats.attempt("keys", self._fill(keys, self._names), False)
        heads = await stored.heads(keys) if keys else {}
        now = seats.clock.monotonic() + seats.clock.epoch
        return [key[len(self._prefix) :] for key, head in heads.items() if now < head.fresh_until]

    async def _next_here(self) -> list[str]:
        names = list(islice(self._here, _KEYS_SLICE))
        self.ended = len(names) < _KEYS_SLICE
        keys = []
        now = self._seats.clock.monotonic()
        for name in names:
            if self._wanted(name):
                found = self._seats.look(name, now)
                if found is not None and now < found[1].fresh_until:
                    keys.append(name[len(self._prefix) :])
        if not self.ended:
            await asyncio.sleep(0)
        return keys

    async def _fill(self, keys: list[str], names: AsyncIterator[str]) -> bool:
        """Add the next names that are wanted; whether there may be more."""
        async for name in names:
            if self._wanted(name):
                keys.append(name)
                if len(keys) == _STORED_SLICE:
                    return True
        return False

    def _wanted(self, name: str) -> bool:
        own = name[len(self._prefix) :]
        return name.startswith(self._prefix) and "\0" not in own and self._matches(own)  # no deeper namespace's


async def cleared(seats: Seats, matches: Callable[[str], bool], prefix: str) -> int:
    """Remove every key that starts with the prefix and matches; how many were there."""
    seats.copies.disturb_all()
    count = await _clear_local(seats, matches, prefix)
    if seats.remote is not None:
        keys: list[str] = await seats.attempt("keys", _collect(seats.remote, prefix), [])
        matching = [key for key in keys if matches(key)]
        count = 0
        for start in range(0, len(matching), _CLEAR_SLICE):
            batch = matching[start : start + _CLEAR_SLICE]
            count += await seats.attempt("delete", seats.remote.delete(batch), 0)
        seats.copies.disturb_all()
        await _clear_local(seats, matches, prefix)
    return count


async def _clear_local(seats: Seats, matches: Callable[[str], bool], prefix: str) -> int:
    if seats.local is None:
        return 0
    now = seats.clock.monotonic()
    count = 0
    for position, key in enumerate(seats.local.keys(), 1):
        if key.startswith(prefix) and matches(key):
            count += seats.drop_local(key, now)
        if position % _KEYS_SLICE == 0:
            await asyncio.sleep(0)
    return count


async def _collect(remote: Backend, prefix: str) -> list[str]:
    return [key async for key in remote.keys(prefix) if "\0\0" not in key]
