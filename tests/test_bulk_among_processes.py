"""Loads of many keys by several processes on one store: one of them loads each key, and nobody waits for ever."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import Server
from stores import Open
from waiting import comes, until

from asynccache import BackendError, Cache
from asynccache.backend import Lease
from examples.custom_backend import ToyBackend


class Source:
    """What is loaded, by whom, and when it is let go."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.gate = asyncio.Event()

    def of(self, who: str, waits: bool = False, fails: bool = False, without: str = "") -> Callable[[list[str]], Any]:
        """A loader."""

        async def load(keys: list[str]) -> dict[str, str]:
            self.calls.append((who, sorted(keys)))
            if waits:
                await self.gate.wait()
            if fails:
                raise ValueError("no")
            return {key: f"{key} by {who}" for key in keys if key != without}

        return load

    @property
    def loads(self) -> Counter[str]:
        """How often each key was."""
        return Counter(key for _, keys in self.calls for key in keys)


@pytest.fixture
def source() -> Source:
    return Source()


async def test_what_another_process_loads_is_waited_for(opened: Open, source: Source) -> None:
    """Of overlapping loads each loads what nobody else does, at once, and all have all."""
    one, other = opened(), opened()
    first = asyncio.create_task(one.get_or_set_many(["a", "b", "c"], source.of("one", waits=True)))
    await comes(lambda: source.calls)
    second = asyncio.create_task(other.get_or_set_many(["b", "c", "d"], source.of("other")))
    await comes(lambda: len(source.calls) == 2)
    assert source.calls == [("one", ["a", "b", "c"]), ("other", ["d"])]
    await until(lambda: other.exists("d"))  # stored, and nothing is held while one waits
    source.gate.set()
    assert await first == {"a": "a by one", "b": "b by one", "c": "c by one"}
    assert await second == {"b": "b by one", "c": "c by one", "d": "d by other"}
    assert source.loads == Counter("abcd")


async def test_a_single_load_and_one_of_many(opened: Open, source: Source) -> None:
    """It makes no difference whether the other one loads one key or many."""
    one, other = opened(), opened()

    async def load() -> str:
        return (await source.of("one", waits=True)(["a"]))["a"]

    first = asyncio.create_task(one.get_or_set("a", load))
    await comes(lambda: source.calls)
    second = asyncio.create_task(other.get_or_set_many(["a"], source.of("other")))
    await asyncio.sleep(0.05)
    source.gate.set()
    assert (await first, await second) == ("a by one", {"a": "a by one"})
    assert source.calls == [("one", ["a"])]


@pytest.mark.parametrize("reason", ["fails", "without"])
async def test_what_the_other_does_not_bring_is_loaded(opened: Open, source: Source, reason: str) -> None:
    """Its failure is no failure of this one, nor is what it has not: a second call loads the rest, and stores it."""
    one, other = opened(), opened()
    loader = source.of("one", waits=True, fails=reason == "fails", without="b" if reason == "without" else "")
    first = asyncio.create_task(one.get_or_set_many(["a", "b"], loader))
    await comes(lambda: source.calls)
    second = asyncio.create_task(other.get_or_set_many(["b", "c"], source.of("other")))
    await comes(lambda: len(source.calls) == 2)
    source.gate.set()
    assert await second == {"b": "b by other", "c": "c by other"}
    assert source.calls[1:] == [("other", ["c"]), ("other", ["b"])]
    assert await one.get("b") == "b by other"
    assert isinstance(
        (await asyncio.gather(first, return_exceptions=True))[0], ValueError if reason == "fails" else dict
    )


async def test_crowds_that_want_each_others_keys(opened: Open) -> None:
    """Four processes ask for the same keys in different orders, again and again: each key is loaded once."""
    caches = [opened() for _ in range(4)]
    loads: Counter[str] = Counter()

    async def load(keys: list[str]) -> dict[str, str]:
        loads.update(keys)
        await asyncio.sleep(0.002)
        return dict.fromkeys(keys, "value")

    for number in range(10):
        keys = [f"{number}:{each}" for each in range(8)]
        asked = [
            cache.get_or_set_many(keys[turn:] + keys[:turn], load)
            for cache, turn in zip(caches, (0, 2, 4, 6), strict=True)
        ]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*asked) == [dict.fromkeys(keys, "value")] * 4
    assert set(loads.values()) == {1}
    assert len(loads) == 80


async def test_a_write_ends_the_wait(opened: Open, source: Source) -> None:
    """Who waits has what somebody stores meanwhile, and the load does not overwrite it."""
    one, other = opened(), opened()
    first = asyncio.create_task(one.get_or_set_many(["a"], source.of("one", waits=True)))
    await comes(lambda: source.calls)
    second = asyncio.create_task(other.get_or_set_many(["a"], source.of("other")))
    await asyncio.sleep(0.05)
    await opened().set("a", "stored")
    async with asyncio.timeout(2):
        assert await second == {"a": "stored"}
    source.gate.set()
    await first
    assert await other.get("a") == "stored"
    assert source.calls == [("one", ["a"])]


async def test_a_refresh_is_a_load_of_its_own(opened: Open, source: Source) -> None:
    """Who wants it anew does not take what was begun before he asked; he waits for his turn."""
    one, other = opened(), opened()
    first = asyncio.create_task(one.get_or_set_many(["a"], source.of("one", waits=True)))
    await comes(lambda: source.calls)

    async def refreshed() -> dict[str, Any]:
        with other.override(refresh=True):
            return await other.get_or_set_many(["a"], source.of("other"))

    second = asyncio.create_task(refreshed())
    await asyncio.sleep(0.05)
    source.gate.set()
    assert await second == {"a": "a by other"}
    await first
    assert await one.get("a") == "a by other"


async def test_loads_within_loads_do_not_wait_for_each_other(
    opened: Open, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds what the other one wants within its load: after one wait both load it themselves."""
    monkeypatch.setattr("asynccache._claims.LEASE_SECONDS", 0.2)
    one, other = opened(), opened()
    both = asyncio.Barrier(2)

    async def nested(cache: Cache, key: str, who: str) -> str:
        async with asyncio.timeout(5):
            await both.wait()
            return (await cache.get_or_set_many([key], source.of(who)))[key]

    results = await asyncio.gather(
        one.get_or_set("a", lambda: nested(one, "b", "one")), other.get_or_set("b", lambda: nested(other, "a", "other"))
    )
    assert results[0] in ("b by one", "a by other")
    assert results[1] in ("a by other", "b by one")


async def test_who_waits_is_cancelled_alone(opened: Open, source: Source) -> None:
    """Nothing of it is left: neither a lease, nor a wait, nor any harm to the one who loads."""
    one, other = opened(), opened()
    first = asyncio.create_task(one.get_or_set_many(["a"], source.of("one", waits=True)))
    await comes(lambda: source.calls)
    second = asyncio.create_task(other.get_or_set_many(["a", "b"], source.of("other", waits=True)))
    await comes(lambda: len(source.calls) == 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    async with asyncio.timeout(2):
        assert await opened().get_or_set_many(["b"], source.of("third")) == {"b": "b by third"}
    source.gate.set()
    assert await first == {"a": "a by one"}


async def test_a_store_that_goes_away_ends_the_wait(url: str, proxy: FaultProxy, source: Source) -> None:
    """Who waited loads it himself, and stores nothing: nobody knows what others have written."""
    away = f"redis://127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}"
    async with Cache(url, namespace="n", ttl="1m") as one, Cache(away, namespace="n", ttl="1m") as other:
        first = asyncio.create_task(one.get_or_set_many(["a"], source.of("one", waits=True)))
        await comes(lambda: source.calls)
        second = asyncio.create_task(other.get_or_set_many(["a"], source.of("other")))
        await asyncio.sleep(0.05)
        proxy.refuse()
        proxy.reset_all()
        async with asyncio.timeout(5):
            assert await second == {"a": "a by other"}
        source.gate.set()
        await first
        assert await one.get("a") == "a by one"


async def test_a_store_that_contradicts_itself(source: Source) -> None:
    """Of leases that are held when one asks for them, and never when one waits, there is enough after ten times."""
    backend = ToyBackend()
    waits = 0

    class Contradictory:
        async def acquire(self, key: str, *, ttl: float) -> Lease | None:
            return None

        async def wait(self, key: str, *, timeout: float) -> None:
            nonlocal waits
            waits += 1

    backend.leases = Contradictory()  # type: ignore[assignment]
    async with Cache(backend, ttl="1m", on_error="raise") as cache:
        assert await cache.get_or_set_many(["a"], source.of("one")) == {"a": "a by one"}
        assert (waits, await cache.get("a")) == (11, None)


async def test_a_wait_that_fails_is_hidden_or_raised(source: Source) -> None:
    """As every failure of the store."""
    backend = ToyBackend()

    class Failing:
        async def acquire(self, key: str, *, ttl: float) -> Lease | None:
            return None

        async def wait(self, key: str, *, timeout: float) -> None:
            raise BackendError("away")

    backend.leases = Failing()  # type: ignore[assignment]
    async with Cache(backend, ttl="1m") as hiding, Cache(backend, ttl="1m", on_error="raise") as raising:
        assert await hiding.get_or_set_many(["a"], source.of("one")) == {"a": "a by one"}
        with pytest.raises(BackendError, match="away"):
            await raising.get_or_set_many(["a"], source.of("two"))


@pytest.mark.parametrize("local", [None, "memory://"])
async def test_an_invalidation_is_not_lost_with_the_look_at_the_versions(
    url: str, server: Server, proxy: FaultProxy, local: str | None
) -> None:
    """The server had refused to tell them when the load began: what was loaded then is not stored as if it were of
    now."""
    began, gate = asyncio.Event(), asyncio.Event()
    value = "old"

    async def load(keys: list[str]) -> dict[str, str]:
        loaded = dict.fromkeys(keys, value)
        proxy.healthy()
        began.set()
        await gate.wait()
        return loaded

    async with (
        Cache(url.replace(f":{server.port}", f":{proxy.port}"), namespace="n", ttl="1m", local=local) as one,
        Cache(url, namespace="n", ttl="1m") as other,
    ):
        await one.set("warm", 1)
        proxy.error_replies(b"-BUSY x\r\n", only=("MGET",))
        loading = asyncio.create_task(one.get_or_set_many(["key"], load, tags=["tag"]))
        await began.wait()
        value = "new"
        await other.invalidate_tags("tag")
        gate.set()
        assert await loading == {"key": "old"}
        for cache in (one, other):
            assert await cache.get("key") is None
        assert await one.get_or_set_many(["key"], load, tags=["tag"]) == {"key": "new"}
        assert await other.get("key") == "new"
