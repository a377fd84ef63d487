"""A stored value with its times and tags."""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

__all__ = ["MISSING", "Entry", "Missing"]


class Missing(enum.Enum):
    """The type of `MISSING`, so that a type checker can narrow it away."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
"""What stands for "no value": a stored ``None`` is a value."""

MissingType: TypeAlias = Literal[Missing.MISSING]

_NO_TAGS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A value as a backend keeps it.

    Times are seconds since 1970 on the cache's own clock, which never goes back and does not follow a wall clock that
    is set; ``math.inf`` means never.

    Attributes:
        value: What was stored.
        created_at: When the work that made the value *began*: an invalidation after that moment hides the entry.
        fresh_until: Until when the value is returned without a load: ``created_at`` plus the (jittered) ttl.
        expires_at: Until when it can stand in for a failing load: ``fresh_until`` plus the grace. Then it is gone.
        tags: The version that each of its tags had at ``created_at``; the entry is valid while they still have it.
        typed: Whether the value is plain data that stands for one of a type, which only those who know the type can
            make of it.
    """

    value: Any
    created_at: float
    fresh_until: float = math.inf
    expires_at: float = math.inf
    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS)
    typed: bool = False
