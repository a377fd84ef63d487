"""Copies that share nothing with what they are copies of."""

import copy
from typing import Any

from asynccache.errors import EncodeError

__all__ = ["own_copy"]


def own_copy(value: Any) -> Any:
    """A deep copy.

    Raises:
        EncodeError: The value cannot be copied.
    """
    try:
        return copy.deepcopy(value)
    except Exception as error:  # a class decides by itself how it is copied, and may raise anything
        raise EncodeError(f"a {type(value).__qualname__} cannot be copied: {type(error).__name__}") from error
