"""Encoding and decoding by a codec: of small values here and now, of large ones in a thread."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from anyio import to_thread

from asynccache.codec import Codec
from asynccache.entry import Entry

__all__ = ["decoded", "encoded", "encoded_parts", "is_large", "joined"]

# Bytes from which a value is encoded and decoded in a thread. Below, a thread costs the loop more than it spares: JSON
# holds the interpreter's lock all the while, lz4 and hashing do not.
_LARGE: Final = 1_048_576


async def encoded(codec: Codec, key: str, entry: Entry, shift: float = 0.0) -> bytes:
    """The entry as bytes; see `Codec.encode`."""
    if is_large(entry.value):
        return await to_thread.run_sync(codec.encode, key, entry, shift, abandon_on_cancel=True)
    return codec.encode(key, entry, shift)


async def encoded_parts(codec: Codec, key: str, entry: Entry, shift: float = 0.0) -> tuple[bytes, bytes]:
    """The entry as bytes, in parts; see `Codec.encode_parts`."""
    if is_large(entry.value):
        return await to_thread.run_sync(codec.encode_parts, key, entry, shift, abandon_on_cancel=True)
    return codec.encode_parts(key, entry, shift)


async def decoded(codec: Codec, key: str, data: bytes, shift: float = 0.0, more: Sequence[bytes] = ()) -> Entry:
    """The entry that the bytes stand for; see `Codec.decode`."""
    if codec.size(data) + sum(map(len, more)) < _LARGE:
        return codec.decode(key, data, shift, more)
    return await to_thread.run_sync(codec.decode, key, data, shift, more, abandon_on_cancel=True)


async def joined(parts: Sequence[bytes]) -> bytes:
    """The parts as one; copying much memory takes milliseconds, but not the interpreter's lock."""
    if sum(map(len, parts)) < _LARGE:
        return b"".join(parts)
    return await to_thread.run_sync(b"".join, parts, abandon_on_cancel=True)


def is_large(value: Any) -> bool:
    """Whether encoding the value would hold up the loop."""
    return _weight(value) >= _LARGE


def _weight(value: Any, depth: int = 4) -> float:
    """About how many bytes a value has for a serializer: guessed from a few of its parts."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value)
    if depth == 0 or not value or not (kind is list or kind is dict or kind is tuple or kind is set):
        return 8
    sample = [_weight(part, depth - 1) for part in islice(value.values() if kind is dict else value, 3)]
    return len(value) * (8 + sum(sample) / len(sample))
