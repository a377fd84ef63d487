"""From a URL to a store."""

import importlib.metadata
from collections.abc import Iterator

import pytest

from asynccache import Cache, ConfigError, MemoryBackend
from asynccache import _urls as urls
from asynccache.clock import SystemClock
from asynccache.testing import TravellingClock
from examples.custom_backend import ToyBackend


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What other packages have registered, by scheme."""
    points: dict[str, str] = {}

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "asynccache.backends"
        return [importlib.metadata.EntryPoint(name, value, group) for name, value in points.items()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    urls._installed.cache_clear()
    yield points
    urls._installed.cache_clear()


def open_store(url: str) -> object:
    return urls.open_store(url, clock=SystemClock())


async def test_an_installed_backend_is_found_by_its_scheme(installed):
    """A package's entry point makes its scheme known."""
    installed["toy"] = "examples.custom_backend:open_toy"
    assert isinstance(open_store("toy://"), ToyBackend)
    cache = Cache("toy://", local="memory://?max_entries=5", ttl="1m")
    await cache.set("key", 1)
    assert await cache.get("key") == 1
    await cache.aclose()


def test_the_built_in_ones_use_the_same_door():
    """The memory store is registered as others are."""
    points = importlib.metadata.entry_points(group="asynccache.backends")
    assert {point.name for point in points} >= {"memory"}
    assert all(callable(point.load()) for point in points)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "a store is a URL"),
        ("memory", "a store is a URL"),
        ("memory:", "a store is a URL"),
        ("memry://", r"no backend for memry://.*did you mean memory\?"),
        ("zzz://", "no backend for zzz://; there are file, memory"),
        ("memory://?max_entries=1&max_entries=2", "given twice"),
        ("memory://host", "no host and no path"),
        ("memory:///path", "no host and no path"),
        ("memory://?max_entries=0", "max_entries is a whole number"),
        ("memory://?max_entries=many", "max_entries is a whole number"),
        ("memory://?max_bytes=", "max_bytes"),
        ("memory://?policy=fifo", "policy is one of lru, s3fifo"),
        ("memory://?copy=perhaps", "copy is true or false"),
        ("memory://?ttl=soon", "ttl"),
        ("memory://?max_entry=5", "did you mean 'max_entries'"),
        ("memory://?q=5", "there are copy, max_bytes"),
    ],
)
def test_a_wrong_url_is_refused(installed, url, words):
    """The error says what is wrong, and where it can what would be right."""
    with pytest.raises(ConfigError, match=words):
        open_store(url)


def test_options_are_read_by_type():
    """What a URL says of the memory store holds."""
    store = open_store("memory://?max_entries=none&max_bytes=1000&policy=s3fifo&copy=yes&ttl=90")
    assert isinstance(store, MemoryBackend)
    assert (store.max_entries, store.max_bytes, store.copies, store.max_ttl) == (None, 1_000, True, 90.0)
    plain = open_store("memory://?copy=off&ttl=none")
    assert isinstance(plain, MemoryBackend)
    assert (plain.max_entries, plain.max_bytes, plain.copies, plain.max_ttl) == (100_000, None, False, None)


def test_two_seats_that_do_not_go_together():
    """Local is in-process and in front of a remote store; the memory store takes no codec."""
    toy = ToyBackend()
    for make in (
        lambda: Cache("memory://", local="memory://"),
        lambda: Cache(toy, local=ToyBackend()),  # type: ignore[arg-type]
        lambda: Cache("memory://", codec=object()),
    ):
        with pytest.raises(ConfigError):
            make()


async def test_a_cache_takes_its_stores_clock():
    """A store with a clock of its own gives it to the cache."""
    clock = TravellingClock()
    cache = Cache(MemoryBackend(clock=clock), ttl=5)
    await cache.set("key", 1)
    clock.travel(6)
    assert await cache.get("key") is None
