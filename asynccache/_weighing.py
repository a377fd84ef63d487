"""What a value weighs in memory: exact where that is cheap, else an estimate from a sample."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

__all__ = ["Weigher", "estimated_bytes", "weighed"]

Weigher: TypeAlias = Callable[[str, Any], int]
"""The size in bytes that an entry counts for: a function of key and value."""

_SAMPLE: Final = 16


def weighed(weigher: Weigher, key: str, value: Any) -> int:
    """What the weigher says.

    Raises:
        TypeError: That is not a whole number.
        ValueError: It is negative.
    """
    weight: object = weigher(key, value)
    if not isinstance(weight, int):
        raise TypeError(f"a weigher gives a whole number of bytes, not {type(weight).__name__}")
    if weight < 0:
        raise ValueError(f"a weigher gives at least 0 bytes, not {weight}")
    return weight


def estimated_bytes(key: str, value: Any) -> int:
    """About how much memory key and value take: exact for text and bytes, an estimate from a sample for containers."""
    return sys.getsizeof(key) + _estimate(value, depth=3)


def _estimate(value: Any, *, depth: int) -> int:
    size = sys.getsizeof(value, 64)
    if depth == 0:
        return size
    items: Iterator[Any]
    if isinstance(value, dict):
        items, count = itertools.chain.from_iterable(itertools.islice(value.items(), _SAMPLE)), 2 * len(value)
    elif isinstance(value, list | tuple | set | frozenset):
        items, count = itertools.islice(iter(value), 2 * _SAMPLE), len(value)
    elif hasattr(value, "__dict__"):
        return size + _estimate(vars(value), depth=depth)
    else:
        return size
    sampled = [_estimate(item, depth=depth - 1) for item in items]
    return size + (sum(sampled) * count // len(sampled) if sampled else 0)
