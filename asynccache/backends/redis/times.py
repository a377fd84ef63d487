"""How long the server is to keep a key."""

import math
from typing import Final

__all__ = ["milliseconds"]

_LONGEST: Final = 10**14


def milliseconds(left: float) -> int | str:
    """Seconds in the server's unit, at least one; nothing for ever."""
    return "" if left == math.inf else min(max(math.ceil(left * 1_000), 1), _LONGEST)
