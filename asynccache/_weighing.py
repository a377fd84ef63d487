"""What a value weighs in memory: exact where that is cheap, else an estimate from a sample."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["estimated_bytes"]

_SAMPLE: Final = 16


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
