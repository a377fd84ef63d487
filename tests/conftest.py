"""What holds for all tests."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import Server, flavours, has_tls
from stores import FLAVOURS, Open, emptied, server_of

from asynccache import Cache
from asynccache.testing import TravellingClock

_DEBIAN = "redis" in flavours() and has_tls("redis")


def pytest_report_header() -> str:
    """Which servers there are."""
    missing = "" if _DEBIAN else " (none speaks TLS: Debian's redis-server would, and those tests would run)"
    return f"redis servers: {', '.join(flavours())}{missing}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count as deselected, what no server here can do: the wheel's has no TLS."""
    if not _DEBIAN:
        out = [item for item in items if item.get_closest_marker("debian_redis")]
        items[:] = [item for item in items if not item.get_closest_marker("debian_redis")]
        config.hook.pytest_deselected(items=out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported from the garbage collector: many tests collect, to see that nothing is left behind, and
    would look through all libraries each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> TravellingClock:
    """A clock that stands still."""
    return TravellingClock()


@pytest.fixture
def url() -> str:
    """An empty database of the server that this process of the suite uses."""
    return emptied()


@pytest.fixture
def server(url: str) -> Server:
    """The server of `url`."""
    return server_of(FLAVOURS[0])


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A way to the test's server that can be made bad."""
    with FaultProxy(*server.address) as proxy:
        yield proxy


@pytest.fixture(params=["redis", "file"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the cache of one more process, on a store that all of them share."""
    place = request.getfixturevalue("url") if request.param == "redis" else f"file://{tmp_path / 'store'}"
    caches: list[Cache] = []

    def another() -> Cache:
        caches.append(Cache(place, namespace="n", ttl="1m", on_error="raise"))
        return caches[-1]

    yield another
    for cache in caches:
        await cache.aclose()


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fails a test that leaves a task, or of which the loop has something to report."""
    loop = asyncio.get_running_loop()
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
    assert left == []
    assert reports == []
