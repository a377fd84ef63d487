"""What the promises are tested with: a clock that travels, a source that counts, and a watch on what is left behind."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from asynccache import Cache
from asynccache.testing import sandbox

TASK_FACTORIES = ["lazy"] + (["eager"] if sys.version_info >= (3, 12) else [])

HANG = 10.0  # seconds of real time after which a test that waits for ever is failed by cancelling all that it runs


class Source:
    """A slow thing to fetch: counts its runs, can be held at a gate, can be told to fail."""

    def __init__(self, value: Any = "value", *, gated: bool = False) -> None:
        self.value = value
        self.error: Callable[[], BaseException] | None = None
        self.calls = 0
        self.finished = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()

    async def load(self) -> Any:
        self.calls += 1
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        if self.error is not None:
            raise self.error()
        return self.value


@pytest.fixture
def make_source() -> type[Source]:
    """The class of counting sources."""
    return Source


@pytest.fixture
def settle() -> Callable[..., Awaitable[None]]:
    """A function that gives the loop a number of turns."""

    async def turns(count: int = 30) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    return turns


@pytest.fixture
def sb() -> Iterator[Any]:
    """An empty world whose clock stands still until it is told to travel."""
    with sandbox() as world:
        yield world


def others() -> set["asyncio.Task[Any]"]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()}


@pytest.fixture
def nobody_left(settle: Callable[..., Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A function that fails when a task besides the test's own is still alive."""

    async def check() -> None:
        await settle()
        assert others() == set()

    return check


@pytest_asyncio.fixture(params=TASK_FACTORIES)
async def quiet(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Watches the loop under each task factory: nothing reported to it, no task left when the caches are closed."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12) and request.param == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    before = others()
    watchdog = loop.call_later(HANG, lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    yield
    watchdog.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    left = others() - before
    loop.set_exception_handler(None)
    loop.set_task_factory(None)
    assert reports == []
    assert left == set()


@pytest_asyncio.fixture
async def cache(quiet: None, sb: Any) -> AsyncIterator[Cache]:
    """A cache in an empty world, closed afterwards."""
    async with Cache(ttl="10m", clock=sb.clock) as opened:
        yield opened
