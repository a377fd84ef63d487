"""Which part of a cluster a key belongs to, and what a node says of where that is.

A slot is the CRC-16 (XMODEM) of the key, or of its hash tag, modulo 16,384. The source is the Redis cluster
specification. `redis.crc.key_slot` does the same; this one is several times as fast.
"""

import re
from binascii import crc_hqx
from typing import Final

__all__ = ["SLOTS", "redirection", "slot_of"]

SLOTS: Final = 16_384

_REDIRECTION: Final = re.compile(r"(?:MOVED|ASK) (\d{1,5}) ([^ ]*):(\d{1,5})")


def slot_of(key: bytes) -> int:
    """The key's slot."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def redirection(text: str, host: str) -> tuple[int, tuple[str, int]] | None:
    """The slot and the address that an error reply names; ``None`` when it names none.

    Args:
        text: The reply.
        host: Whose it is: a node may name its own by nothing.
    """
    found = _REDIRECTION.fullmatch(text)
    if found is None or int(found[1]) >= SLOTS or not 0 < int(found[3]) < 65_536:
        return None
    return int(found[1]), (found[2].strip("[]") or host, int(found[3]))
