"""The floor: the least that an asyncio cache can cost."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contract import Case, Run

__all__ = ["Floor", "floor_case"]


class Floor:
    """An object whose ``get`` is a coroutine function that does one ``dict.get`` and one clock check.

    It is called as a cache is called, ``await floor.get(key)``, and is a closure bound at construction: the cheapest
    form that was found.
    """

    __slots__ = ("get",)

    get: Callable[[Any], Awaitable[Any]]

    def __init__(self, keys: Iterable[Any], ttl: float = 600.0) -> None:
        deadline = time.monotonic() + ttl
        look = {key: (key, deadline) for key in keys}.get
        now = time.monotonic

        async def get(key: Any) -> Any:
            found = look(key)
            if found is None or found[1] <= now():
                return None
            return found[0]

        self.get = get


def floor_case(keys: Sequence[Any]) -> Case:
    """The row that the others of a scenario are compared with."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Run]:
        floor = Floor(keys)

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            for key in keys:
                await floor.get(key)
            return time.perf_counter() - start

        yield run

    return Case("floor", "floor", open_)
