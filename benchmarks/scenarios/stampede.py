"""A thousand callers who want one cold key at once, whose factory takes 10 ms.

The time is per caller, all thousand of them being one run: 10,000 ns is the factory's own 10 ms.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asynccache import Cache
from benchmarks.contract import Ability, Case, Role, Run, Timed
from benchmarks.peers import peer_abilities
from benchmarks.stock import Fresh

_CALLERS = 1_000
_FRESH = Fresh()


class Calls:
    """Counts how often a library ran the factory."""

    def __init__(self) -> None:
        self.factory = 0
        self.runs = 0

    def add(self) -> None:
        """Count one run of the factory."""
        self.factory += 1

    def said(self) -> str:
        """The count per stampede."""
        return f"the factory ran {self.factory / max(self.runs, 1):g} times per stampede"


def _keys(count: int) -> Sequence[str]:
    return _FRESH(1) * count


def _case(name: str, role: Role, ability: Ability) -> Case:
    calls = Calls()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Run]:
        async with ability([calls]) as crowd:

            async def run(keys: Sequence[Any]) -> float:
                calls.runs += 1
                return await crowd(keys)

            yield run

    return Case(name, role, opened, notes=calls.said)


@asynccontextmanager
async def _ours(called: Sequence[Any]) -> AsyncIterator[Run]:
    calls = called[0]
    async with Cache("memory://?max_entries=20000", namespace="bench", ttl="10m", telemetry="off") as cache:

        async def factory() -> str:
            calls.add()
            await asyncio.sleep(0.01)
            return "value"

        async def run(keys: Sequence[Any]) -> float:
            start = time.perf_counter()
            await asyncio.gather(*[cache.get_or_set(key, factory) for key in keys])
            return time.perf_counter() - start

        yield run


def _cases(_: str) -> list[Case]:
    peers = [_case(name, "peer", ability) for name, ability in peer_abilities("stampede").items()]
    return [_case("asynccache get_or_set", "ours", _ours), *peers]


SCENARIO = Timed(
    "stampede",
    "1,000 callers at once on one cold key, the factory takes 10 ms; per caller",
    _cases,
    _keys,
    operations=_CALLERS,
)
