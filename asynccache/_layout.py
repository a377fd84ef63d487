"""The times, tags and binding of an entry in bytes; see `asynccache.codec` for where they lie."""

import math
from collections.abc import Collection, Mapping
from typing import Final

from asynccache.errors import DecodeError, EncodeError

__all__ = [
    "FOREVER", "LATEST", "LONGEST", "SPAN_TICKS", "TAG_RECORD", "TICKS", "binding", "spans", "tags_bytes",
    "tags_from", "times_from", "utf8",
]  # fmt: skip

TICKS: Final = 65_536.0
SPAN_TICKS: Final = 1_024.0
LATEST: Final = 2**48 - 1
LONGEST: Final = 2**40 - 2  # 34 years
FOREVER: Final = 2**40 - 1
TAG_RECORD: Final = "\0\0tag"
"""The end of the key of a tag's record. Neither a key nor the name of a view has two NULs in a row: it is nobody's."""


def binding(head: bytes, tags: bytes, key: str) -> bytes:
    """What a checksum or a seal covers besides the body: the first four bytes, the tags and the whole key."""
    whole = utf8(key)
    return b"".join((head, tags, len(whole).to_bytes(4, "big"), whole))


def spans(made: int, fresh_until: float, expires_at: float) -> tuple[int, int]:
    """How long an entry is fresh, and its grace after that, never more than it should."""
    if fresh_until == math.inf:
        return FOREVER, FOREVER
    created_at = made / TICKS
    fresh = min(max(int((fresh_until - created_at) * SPAN_TICKS), 0), LONGEST)
    if expires_at == math.inf:
        return fresh, FOREVER
    return fresh, min(max(int((expires_at - created_at) * SPAN_TICKS) - fresh, 0), LONGEST)


def times_from(data: bytes, shift: float) -> dict[str, float]:
    """The three times of the header with which the bytes begin, less the shift."""
    created_at = int.from_bytes(data[4:10], "big") / TICKS - shift
    fresh, grace = int.from_bytes(data[10:15], "big"), int.from_bytes(data[15:20], "big")
    return {
        "created_at": created_at,
        "fresh_until": math.inf if fresh == FOREVER else created_at + fresh / SPAN_TICKS,
        "expires_at": math.inf if FOREVER in (fresh, grace) else created_at + (fresh + grace) / SPAN_TICKS,
    }


def tags_bytes(tags: Mapping[str, str]) -> bytes:
    """The tags in bytes.

    Raises:
        EncodeError: They have no UTF-8, or are too many, or too long.
    """
    texts: Collection[bytes] = [utf8(text) for pair in tags.items() for text in pair]
    if len(tags) > 0xFFFF or max(map(len, texts)) > 0xFFFF:
        raise EncodeError("an entry has too many tags, or too long ones")
    return len(tags).to_bytes(2, "big") + b"".join([len(text).to_bytes(2, "big") + text for text in texts])


def tags_from(data: bytes, start: int) -> tuple[Mapping[str, str], int]:
    """The tags, and where they end.

    Raises:
        DecodeError: They are damaged.
    """
    count = int.from_bytes(data[start : start + 2], "big")
    start += 2
    texts = []
    for _ in range(2 * count):
        end = start + 2 + int.from_bytes(data[start : start + 2], "big")
        if end > len(data):
            raise DecodeError("the tags of an entry are damaged")
        try:
            texts.append(data[start + 2 : end].decode())
        except UnicodeDecodeError as error:
            raise DecodeError("the tags of an entry are damaged") from error
        start = end
    return dict(zip(texts[::2], texts[1::2], strict=True)), start


def utf8(text: str) -> bytes:
    """A key or a tag in bytes.

    Raises:
        EncodeError: It has a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EncodeError("a key or a tag with a lone surrogate has no UTF-8") from None
