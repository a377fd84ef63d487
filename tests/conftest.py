"""What holds for all tests."""

import gc

import pytest
from servers import flavours, has_tls

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
