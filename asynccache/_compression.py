"""Values as lz4 blocks, each behind the length of what it is made of."""

from typing import Final

import lz4.block  # type: ignore[import-untyped]

from asynccache.errors import DecodeError

__all__ = ["compressed", "expanded"]

_MOST_EXPANSION: Final = 255  # of an lz4 block: a longer run than this takes another byte
_MOST_UNPACKED: Final = 0x7E000000  # LZ4_MAX_INPUT_SIZE
_SAMPLE: Final = 65_536


def compressed(body: bytes) -> bytes | None:
    """The length and the block; ``None`` when they would not be shorter."""
    if len(body) > _MOST_UNPACKED or not _shrinks(body):
        return None
    packed: bytes = lz4.block.compress(body, store_size=False)
    return len(body).to_bytes(4, "big") + packed if len(packed) + 4 < len(body) else None


def expanded(body: bytes | memoryview, most: int) -> bytes:
    """What a block is made of. What it claims to be is compared with what it can be before memory is taken.

    Args:
        body: The length and the block.
        most: How many bytes it may be.

    Raises:
        DecodeError: It claims to be more, or is damaged.
    """
    claimed = int.from_bytes(body[:4], "big")
    if claimed > min(most, _MOST_UNPACKED) or claimed > (len(body) - 4) * _MOST_EXPANSION:
        raise DecodeError("compressed bytes claim to be more than they may or can be")
    try:
        unpacked: bytes = lz4.block.decompress(body[4:], uncompressed_size=claimed)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise DecodeError("compressed bytes are damaged") from error
    if len(unpacked) != claimed:
        raise DecodeError("compressed bytes are damaged")
    return unpacked


def _shrinks(body: bytes) -> bool:
    """Whether it is worth a try to compress all: of much, a few parts say it, and nothing waits for a copy in vain."""
    if len(body) < 16 * _SAMPLE:
        return True
    sample = b"".join([body[at : at + _SAMPLE] for at in range(0, len(body), len(body) // 4)])
    return len(lz4.block.compress(sample, store_size=False)) < 0.95 * len(sample)
