"""Factories for caches to run, of which a test decides when they end."""

import asyncio

__all__ = ["Gated"]


class Gated:
    """A factory that waits for its gate and counts its runs."""

    def __init__(self, value: object = "loaded") -> None:
        self.gate = asyncio.Event()
        self.value = value
        self.calls = 0

    async def __call__(self) -> object:
        self.calls += 1
        await self.gate.wait()
        return self.value
