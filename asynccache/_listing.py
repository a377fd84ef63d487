"""Which keys there are in the two seats, and their removal: by prefix, a slice at a time."""

import asyncio
from collections.abc import Callable
from typing import Final

from asynccache._seats import Seats
from asynccache.backend import Backend

__all__ = ["cleared", "keys_of"]

_KEYS_SLICE: Final = 2_000
_CLEAR_SLICE: Final = 500


async def keys_of(seats: Seats, prefix: str) -> list[str]:
    """The keys of fresh entries that start with the prefix, without those that the package keeps for itself."""
    keys: list[str] = []
    if seats.remote is not None and seats.stored is not None:
        # A store names what is stale too, or it could not be cleared. Deeper namespaces are not asked for.
        stored: list[str] = await seats.attempt("keys", _collect(seats.remote, prefix), [])
        own = [key for key in stored if "\0" not in key[len(prefix) :]]
        for start in range(0, len(own), _CLEAR_SLICE):
            entries = await seats.stored.entries(own[start : start + _CLEAR_SLICE])
            now = seats.clock.monotonic() + seats.clock.epoch
            keys += [key for key, entry in entries.items() if now < entry.fresh_until]
        return keys
    if seats.local is None:
        return []
    now = seats.clock.monotonic()
    for count, key in enumerate(seats.local.keys(), 1):
        if key.startswith(prefix):
            found = seats.look(key, now)
            if found is not None and now < found[1].fresh_until:
                keys.append(key)
        if count % _KEYS_SLICE == 0:
            await asyncio.sleep(0)
    return keys


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
