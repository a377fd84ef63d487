"""The eviction policies that a memory store can have, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from asynccache.eviction_policies.lru import LRU
from asynccache.eviction_policies.s3fifo import S3FIFO
from asynccache.eviction_policy import EvictionPolicy

__all__ = ["EVICTION_POLICIES", "LRU", "S3FIFO"]

EVICTION_POLICIES: Final[Mapping[str, Callable[[int | None, int | None], EvictionPolicy]]] = MappingProxyType(
    {"lru": LRU, "s3fifo": S3FIFO}
)
"""What makes a policy, by name: called with the most entries and the most weight to keep, each perhaps ``None``."""
