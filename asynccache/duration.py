"""Spans of time as users write them, turned into seconds."""

import math
import re
from datetime import timedelta
from typing import TypeAlias

from asynccache.errors import ConfigError

__all__ = ["Duration", "seconds"]

Duration: TypeAlias = int | float | timedelta | str
"""Seconds as a number, a ``timedelta``, or text such as ``"250ms"``, ``"90s"``, ``"1h30m"``, ``"2d"``."""

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_LONGEST_TEXT = 64


def seconds(duration: Duration, *, name: str = "duration") -> float:
    """The duration in seconds, positive and finite.

    Args:
        duration: What the user gave.
        name: What to call it in the error.

    Raises:
        ConfigError: It is zero, negative, NaN, infinite, not a duration at all; the message says what was given.
    """
    value: float
    if isinstance(duration, bool):
        raise ConfigError(f"{name}: {duration!r} is not a duration")
    if isinstance(duration, int | float):
        try:
            value = float(duration)
        except OverflowError:
            value = math.inf
    elif isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str) and len(duration) <= _LONGEST_TEXT and _WHOLE.fullmatch(duration):
        value = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(duration))
    else:
        shown = repr(duration)
        raise ConfigError(
            f"{name}: {shown if len(shown) <= 80 else shown[:77] + '...'} is not a duration; "
            'write seconds, a timedelta, or text such as "250ms", "90s", "1h30m", "2d"'
        )
    if not 0 < value < math.inf:
        hint = " (None means no expiry)" if name == "ttl" else ""
        raise ConfigError(f"{name}: {duration!r} is not a positive, finite duration{hint}")
    return value
