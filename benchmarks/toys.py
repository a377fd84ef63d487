"""Two stores as one would write them in an afternoon, to compare the timing wheel with: a heap, and a timer per key."""

import asyncio
import heapq
import itertools
import time
from typing import Any

__all__ = ["HeapStore", "TimerStore"]


class HeapStore:
    """A dictionary and a heap of deadlines; a task pops all that is due, once a second."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, float]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._sweeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Any, ttl: float) -> None:
        """Store it for ``ttl`` seconds."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        deadline = time.monotonic() + ttl
        self._entries[key] = (value, deadline)
        heapq.heappush(self._heap, (deadline, next(self._numbers), key))

    async def set(self, key: str, value: Any, ttl: float) -> None:
        """Store it for ``ttl`` seconds."""
        self.put(key, value, ttl)

    async def _sweep(self) -> None:
        while True:
            now = time.monotonic()
            while self._heap and self._heap[0][0] <= now:
                deadline, _, key = heapq.heappop(self._heap)
                entry = self._entries.get(key)
                if entry is not None and entry[1] == deadline:
                    del self._entries[key]
            await asyncio.sleep(1)

    async def aclose(self) -> None:
        """End the sweep."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])


class TimerStore:
    """A dictionary and one ``call_later`` per key."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, float]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Any, ttl: float) -> None:
        """Store it for ``ttl`` seconds."""
        timer = self._timers.get(key)
        if timer is not None:
            timer.cancel()
        self._entries[key] = (value, time.monotonic() + ttl)
        self._timers[key] = asyncio.get_running_loop().call_later(ttl, self._drop, key)

    async def set(self, key: str, value: Any, ttl: float) -> None:
        """Store it for ``ttl`` seconds."""
        self.put(key, value, ttl)

    def _drop(self, key: str) -> None:
        self._entries.pop(key, None)
        self._timers.pop(key, None)

    async def aclose(self) -> None:
        """Cancel what is left."""
        for timer in self._timers.values():
            timer.cancel()
