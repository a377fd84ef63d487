"""Waits for what comes by itself, each with a limit that even a busy machine does not reach."""

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["comes", "turns", "until"]

LIMIT_SECONDS = 15.0


async def until(holds: Callable[[], Awaitable[object]], what: str = "it", seconds: float = LIMIT_SECONDS) -> float:
    """Ask until it holds, at most so many seconds; how many it took."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def comes(holds: Callable[[], object], what: str = "it", seconds: float = LIMIT_SECONDS) -> float:
    """Look until it holds, at most so many seconds; how many it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.001)
    return time.monotonic() - began


async def turns(count: int = 30) -> None:
    """Let everybody else take some steps."""
    for _ in range(count):
        await asyncio.sleep(0)
