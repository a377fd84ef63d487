"""Which part of a cluster a key belongs to: CRC-16 (XMODEM) of the key, or of its hash tag, modulo 16,384.

The source is the Redis cluster specification. `redis.crc.key_slot` does the same; this one is several times as fast.
"""

from binascii import crc_hqx
from typing import Final

__all__ = ["SLOTS", "slot_of"]

SLOTS: Final = 16_384


def slot_of(key: bytes) -> int:
    """The key's slot."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS
