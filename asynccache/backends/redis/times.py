"""How long the server is to keep a key."""

import math
from typing import Final

__all__ = ["milliseconds"]

_LONGEST: Final = 10**14


def milliseconds(left: float) -> int | str:
    """Seconds in the server's unit, at least one; nothing for ever."""
    if left == math.inf:
        return ""
    count = math.ceil(left * 1_000)
    return count if 0 < count <= _LONGEST else 1 if count <= 0 else _LONGEST
