"""A limit of time for what takes many turns of a loop that may be busy with other things."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["patience"]

_STEPS: Final = 40


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """End what is done here by `TimeoutError` after so many seconds, or more turns of the loop than it takes.

    A loop that is busy for 0.2 s in each of its turns, because it serves thousands of callers, would never come to the
    end of a greeting within a second: what it had no time for does not count.
    """
    loop = asyncio.get_running_loop()
    step = seconds / _STEPS
    timers: list[asyncio.TimerHandle] = []

    def look(left: int) -> None:
        if left > 0:
            timers[:] = [loop.call_later(step, look, left - 1)]
        else:
            limit.reschedule(0.0)  # now

    async with asyncio.timeout(None) as limit:
        look(_STEPS)
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
