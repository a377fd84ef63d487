"""A cache for asyncio: one load per key, never an outage, never a lie.

The floors, top to bottom; nothing imports anything above it:

- the face: `Cache`, `Caches` (named caches from configuration), the testing kit
- the dispatcher: two seats, one path; memoization
- loading: one flight per key, grace, refresh ahead, leases
- the stores: memory; others by the entry-point group ``asynccache.backends``
- the ground: entries, policies, durations, keys, errors, the clock
"""

from asynccache.backend import Backend, Lease, Leases
from asynccache.backends.memory import MemoryBackend
from asynccache.cache import Cache
from asynccache.caches import Caches
from asynccache.clock import Clock
from asynccache.duration import Duration
from asynccache.entry import MISSING, Entry
from asynccache.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    CacheClosed,
    CacheError,
    CodecError,
    ConfigError,
    DecodeError,
    EncodeError,
    InvalidKeyError,
    LoadCancelled,
    LoadError,
    LoadTimeout,
    LockTimeout,
    NotSupported,
    RecursiveLoad,
)
from asynccache.eviction_policy import EvictionPolicy
from asynccache.keys import Ignore
from asynccache.load import Load
from asynccache.policy import Policy
from asynccache.stats import Stats
from asynccache.telemetry import Telemetry

__all__ = [
    "MISSING",
    "Backend",
    "BackendError",
    "BackendTimeout",
    "BackendUnavailable",
    "Cache",
    "CacheClosed",
    "CacheError",
    "Caches",
    "Clock",
    "CodecError",
    "ConfigError",
    "DecodeError",
    "Duration",
    "EncodeError",
    "Entry",
    "EvictionPolicy",
    "Ignore",
    "InvalidKeyError",
    "Lease",
    "Leases",
    "Load",
    "LoadCancelled",
    "LoadError",
    "LoadTimeout",
    "LockTimeout",
    "MemoryBackend",
    "NotSupported",
    "Policy",
    "RecursiveLoad",
    "Stats",
    "Telemetry",
]
