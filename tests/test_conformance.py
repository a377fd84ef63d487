"""The suites that stores and caches must pass, run on those that there are."""

from pathlib import Path

import pytest
from stores import FLAVOURS, emptied, on_redis

from asynccache import Backend, Clock, Entry
from asynccache._prefixed import Prefixed
from asynccache.backends.file import FileBackend
from asynccache.testing import BackendConformance, FaultyBackend, TravellingClock
from examples.custom_backend import ToyBackend, ToyServer, main


class TravellingConformance(BackendConformance):
    """The suite on a clock that travels."""

    def setup_method(self) -> None:
        self.clock: Clock = TravellingClock()

    async def pass_time(self, seconds: float) -> None:
        assert isinstance(self.clock, TravellingClock)
        self.clock.travel(seconds)


class TestToyBackend(TravellingConformance):
    """The example of a backend of one's own, leases included."""

    async def open(self) -> Backend:
        return ToyBackend(clock=self.clock)

    async def open_another(self, backend: Backend) -> Backend:
        assert isinstance(backend, ToyBackend)
        return ToyBackend(backend.server, clock=self.clock)


class TestFaultyBackend(TravellingConformance):
    """A backend that may fail, and is not told to, is as good as the one inside."""

    async def open(self) -> Backend:
        return FaultyBackend(ToyBackend(clock=self.clock))


class TestToyBackendInRealTime(BackendConformance):
    """The suite as most will run it: on the machine's clock."""

    async def open(self) -> Backend:
        return ToyBackend()


class OnRedis(TravellingConformance):
    """A Redis store; another process has connections of its own."""

    flavour = FLAVOURS[0]
    options = ""

    async def open(self) -> Backend:
        self.url = emptied(self.flavour) + self.options
        return on_redis(self.url, self.clock)

    async def open_another(self, backend: Backend) -> Backend:
        return on_redis(self.url, self.clock)


class TestRedisBackend(OnRedis):
    """On the first kind of server that is here."""


class TestRedisBackendOfOldProtocol(OnRedis):
    """By RESP2, where the server tells of nothing by itself."""

    options = "?protocol=2"


class TestRedisBackendOnAnotherServer(OnRedis):
    """On the other kind, where there are two."""

    flavour = FLAVOURS[-1]


class TestRedisBackendInRealTime(BackendConformance):
    """By the machine's clock, which is the server's too."""

    async def open(self) -> Backend:
        self.url = emptied()
        return on_redis(self.url)

    async def open_another(self, backend: Backend) -> Backend:
        return on_redis(self.url)


class TestPrefixedBackend(TravellingConformance):
    """A store behind a prefix, among a neighbour's keys."""

    async def open(self) -> Backend:
        self.server = ToyServer()
        beside = ToyBackend(self.server, clock=self.clock)
        for key in ("key", "a", "b", "prefix"):
            await beside.set(key, Entry(value="a neighbour's", created_at=0.0))
        return await self.open_another(beside)

    async def open_another(self, backend: Backend) -> Backend:
        return Prefixed(ToyBackend(self.server, clock=self.clock), "prefix:")


class TestPrefixedBackendOnRedis(OnRedis):
    """The same on a server that has leases and tells of changes."""

    async def open(self) -> Backend:
        return Prefixed(await super().open(), "prefix:")

    async def open_another(self, backend: Backend) -> Backend:
        return Prefixed(await super().open_another(backend), "prefix:")


class TestFileBackend(TravellingConformance):
    """The file store; another process has a backend of its own on the same directory."""

    @pytest.fixture(autouse=True)
    def _in_a_directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store"

    async def open(self) -> Backend:
        return FileBackend(self.path, clock=self.clock)

    async def open_another(self, backend: Backend) -> Backend:
        return await self.open()


class TestFileBackendInRealTime(BackendConformance):
    """The file store on the machine's clock, where every write waits for the disk."""

    @pytest.fixture(autouse=True)
    def _in_a_directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store"

    async def open(self) -> Backend:
        return FileBackend(self.path, durability="power", max_entries=100_000)


class ToyWithoutLeases(ToyBackend):
    leases = None  # type: ignore[assignment]

    def __init__(self, *, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.leases = None


class TestWithoutLeases(TravellingConformance):
    """A store that cannot grant leases passes by what it has."""

    async def open(self) -> Backend:
        return ToyWithoutLeases(clock=self.clock)


async def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The example shows two caches on one server: the second finds what the first has loaded."""
    await main()
    assert capsys.readouterr().out == "42\n42 True None\n"
