"""What trouble with a server may cost: the limits that the package promises, and what fails when they are passed."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from waiting import until

from asynccache import Cache

__all__ = [
    "ATTEMPTS_A_SECOND",
    "CALL_SECONDS",
    "CROWD_SECONDS",
    "HEALED_SECONDS",
    "NOISE",
    "PAUSE_SECONDS",
    "holds_within",
    "patient",
    "well",
    "within",
]

NOISE = 1.5
"""By how much a machine that does other things as well may pass a limit."""

PAUSE_SECONDS = 0.2
"""How long such a machine may let a process wait for a core, on top."""

CALL_SECONDS = 1.0
CROWD_SECONDS = 1.5
HEALED_SECONDS = 2.0
ATTEMPTS_A_SECOND = 20


def patient(seconds: float, noise: float = NOISE) -> float:
    """The limit on a machine that does other things as well."""
    return seconds * noise + PAUSE_SECONDS


@contextmanager
def within(seconds: float, noise: float = NOISE) -> Iterator[None]:
    """Fails what takes longer."""
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    assert took < patient(seconds, noise), f"{took:.3f} s instead of {seconds}"


async def holds_within(holds: Callable[[], Awaitable[object]], seconds: float) -> float:
    """Ask until it holds, and fail when that takes longer; how many seconds it took."""
    return await until(holds, seconds=patient(seconds))


async def well(cache: Cache) -> bool:
    """Whether writes are taken, are read, and are removed."""
    return await cache.set("well", 1, ttl="1m") and await cache.get("well") == 1 and await cache.delete("well")
