"""Every call means the same on every store."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import STORES, opened

from asynccache import MISSING, Cache, Load, LockTimeout, Policy
from asynccache.testing import TravellingClock

IN_PROCESS = {"lru", "s3fifo", "copy", "weighed"}


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, clock: TravellingClock, tmp_path: Path) -> Callable[..., Cache]:
    """Opens a cache on each store in turn."""
    return lambda **options: opened(request.param, clock, tmp_path, **options)


@pytest.fixture
def cache(make: Callable[..., Cache]) -> Cache:
    return make(namespace="shop", ttl="10m")


async def names(cache: Cache, match: str = "*") -> set[str]:
    """The keys, by name."""
    return {key async for key in cache.keys(match)}


async def until(cache: Cache, key: str, value: object) -> None:
    """Wait for a refresh in the background to store the value."""
    for _ in range(5_000):
        if await cache.get(key) == value:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the refresh stored nothing")


class Counted:
    """A factory that counts its runs."""

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.calls = 0

    async def __call__(self) -> object:
        self.calls += 1
        await asyncio.sleep(0)
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result


# The table of calls


async def test_set_and_get(cache):
    """What was set is got; what was not is the default; ``None`` is a value."""
    assert await cache.set("key", {"a": [1]}) is True
    assert await cache.get("key") == {"a": [1]}
    assert await cache.get("absent") is None
    assert await cache.get("absent", 5) == 5
    await cache.set("none", None)
    assert await cache.get("none", MISSING) is None


async def test_ttls(cache, clock):
    """A value is there for its ttl, the cache's when it is left out, for ever without one, and not a moment longer."""
    await cache.set("usual", 1)
    await cache.set("short", 1, ttl=0.4)
    await cache.set("eternal", 1, ttl=None)
    assert await cache.ttl("usual") == pytest.approx(600)
    assert await cache.ttl("short") == pytest.approx(0.4, abs=2e-3)
    assert await cache.ttl("eternal") == math.inf
    assert await cache.ttl("absent") is None
    clock.travel(0.39)
    assert await cache.exists("short")
    clock.travel(0.02)
    assert not await cache.exists("short")
    assert await cache.get("short") is None
    clock.travel("1d")
    assert await cache.get_many(["usual", "short", "eternal"]) == {"eternal": 1}


async def test_many(cache):
    """Bulk calls keep the order of the keys and count what was there."""
    assert await cache.set_many({"a": 1, "b": 2, "c": 3}) is True
    assert list((await cache.get_many(["c", "x", "a"])).items()) == [("c", 3), ("a", 1)]
    assert await cache.delete_many(["a", "b", "x"]) == 2
    assert await names(cache) == {"c"}


async def test_conditions(cache, clock):
    """``absent`` and ``present`` look at fresh values."""
    assert await cache.set("key", 1, only_if="present") is False
    assert await cache.add("key", 2, ttl=5) is True
    assert await cache.add("key", 3) is False
    assert await cache.set("key", 4, ttl=5, only_if="present") is True
    assert await cache.get("key") == 4
    clock.travel(6)
    assert await cache.add("key", 5) is True


async def test_delete(cache, clock):
    """Deleting says whether there was a fresh value."""
    await cache.set("key", 1, ttl=5, grace=60)
    assert await cache.delete("key") is True
    assert await cache.delete("key") is False
    await cache.set("key", 1, ttl=5, grace=60)
    clock.travel(6)
    assert await cache.delete("key") is False
    assert await cache.entry("key") is None


async def test_touch(cache, clock):
    """A fresh value gets a new ttl and keeps its grace and tags; one that is not there gets none."""
    await cache.set("key", 1, ttl=5, grace=5, tags=["tag"])
    assert await cache.touch("key", "1m") is True
    clock.travel(50)
    assert await cache.get("key") == 1
    entry = await cache.entry("key")
    assert entry is not None
    assert entry.expires_at - entry.fresh_until == pytest.approx(5)
    assert await cache.touch("key", None) is True
    assert await cache.ttl("key") == math.inf
    await cache.invalidate_tags("tag")
    assert await cache.get("key") is None
    assert await cache.touch("absent", 5) is False


async def test_counters(cache, clock):
    """Counters are atomic integers with the ttl of their first addition."""
    assert await cache.incr("n", ttl=5) == 1
    assert await cache.incr("n", 10, ttl=500) == 11
    assert await cache.decr("n") == 10
    assert await cache.get("n") == 10
    totals = await asyncio.gather(*(cache.incr("m") for _ in range(20)))
    assert sorted(totals) == list(range(1, 21))
    clock.travel(6)
    assert await cache.incr("n") == 1
    await cache.set("text", "a")
    with pytest.raises(TypeError):
        await cache.incr("text")


async def test_entry(cache):
    """The entry has its times and tags."""
    await cache.set("key", 1, ttl=5, grace=6, tags=["a", "b"])
    entry = await cache.entry("key")
    assert entry is not None
    assert (entry.value, len(entry.tags)) == (1, 2)
    assert entry.fresh_until - entry.created_at == pytest.approx(5)
    assert entry.expires_at - entry.created_at == pytest.approx(11)
    assert await cache.entry("absent") is None


async def test_keys_and_clear(make):
    """Patterns and namespaces touch exactly their own."""
    cache = make(namespace="t[1]")
    view = cache.namespace("deep")
    await cache.set_many({"user:1": 1, "user:2": 2, "page:1": 3, "*": 4})
    await view.set("user:3", 5)
    assert await names(cache) == {"user:1", "user:2", "page:1", "*"}
    assert await names(cache, "user:*") == {"user:1", "user:2"}
    assert await names(cache, "\\*") == {"*"}
    assert await names(view) == {"user:3"}
    assert await cache.clear("user:*") == 2
    assert await names(cache) == {"page:1", "*"}
    assert await view.get("user:3") == 5
    assert await view.clear() == 1
    await view.set("user:3", 5)
    assert await cache.clear() == 3
    assert await view.get("user:3") is None


async def test_neighbours_on_one_store(clock, tmp_path):
    """Namespaces that look alike on one store do not see each other."""
    for store, _ in (build(clock, tmp_path) for build in STORES.values()):
        caches = [Cache(store, namespace=name, clock=clock) for name in ("t[1]", "t*", "t?", "t", "t:x", "")]
        for number, cache in enumerate(caches):
            await cache.set("key", number)
        assert [await cache.get("key") for cache in caches] == list(range(len(caches)))
        assert await caches[1].clear() == 1
        assert [await cache.exists("key") for cache in caches] == [True, False, True, True, True, True]


async def test_locks(cache, clock):
    """A lock keeps others out until it is given back or lapses, and has no part in the keys."""
    async with cache.lock("job", ttl=30):
        with pytest.raises(LockTimeout):
            await travelling(clock, 2, enter(cache.lock("job", ttl=30, timeout=1)))
        assert await names(cache) == set()
        async with cache.lock("other", ttl=30, timeout=1):
            pass
    async with cache.lock("job", ttl=30, timeout=1):
        assert await travelling(clock, 31, enter(cache.lock("job", ttl=5, timeout=60)))


async def enter(lock) -> bool:
    async with lock:
        return True


async def travelling(clock: TravellingClock, seconds: float, work) -> object:
    """Do the work while time passes."""
    task = asyncio.ensure_future(work)
    for _ in range(10):
        await asyncio.sleep(0)
    clock.travel(seconds)
    return await asyncio.wait_for(task, 5)


async def test_statistics(make):
    """Hits, misses and loads are counted once each."""
    cache = make(ttl="10m")
    await cache.get("key")
    await cache.get_or_set("key", lambda: 1)
    await cache.get("key")
    await cache.get_many(["key", "absent"])
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.errors) == (2, 3, 1, 0)


async def test_ping(cache):
    """A store that is there answers."""
    assert await cache.ping() is True


# Loading


async def test_one_load_for_all(cache):
    """Of many callers at once one loads."""
    factory = Counted({"a": 1})
    results = await asyncio.gather(*(cache.get_or_set("key", factory) for _ in range(100)))
    assert results == [{"a": 1}] * 100
    assert factory.calls == 1
    assert await cache.get_or_set("key", factory) == {"a": 1}
    assert factory.calls == 1


async def test_a_failing_load_stores_nothing(cache):
    """Every waiter gets the error, and the next call loads again."""
    factory = Counted(LookupError("no"), 2)
    errors = await asyncio.gather(*(cache.get_or_set("key", factory) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [LookupError] * 3
    assert factory.calls == 1
    assert await cache.get_or_set("key", factory) == 2


@pytest.mark.parametrize("write", ["delete", "set", "clear", "invalidate_tags", "set_many", "delete_many", "incr"])
async def test_newer_wins(cache, write):
    """A write during a load is not overwritten by it; who waited gets the loaded value."""
    gate = asyncio.Event()

    async def load():
        started.set()
        await gate.wait()
        return "loaded"

    started = asyncio.Event()
    waiting = asyncio.ensure_future(cache.get_or_set("key", load, tags=["tag"]))
    await started.wait()
    writes = {
        "delete": lambda: cache.delete("key"),
        "set": lambda: cache.set("key", "newer"),
        "clear": cache.clear,
        "invalidate_tags": lambda: cache.invalidate_tags("tag"),
        "set_many": lambda: cache.set_many({"key": "newer"}),
        "delete_many": lambda: cache.delete_many(["key"]),
        "incr": lambda: cache.incr("key"),
    }
    await writes[write]()
    gate.set()
    assert await waiting == "loaded"
    assert await cache.get("key") == {"set": "newer", "set_many": "newer", "incr": 1}.get(write)


async def test_grace(cache, clock):
    """While the source fails the stale value stands in, is not tried again for a while, and ends with its grace."""
    factory = Counted("old", LookupError("down"))
    policy = Policy(ttl=10, grace=60, grace_throttle=5)
    assert await cache.get_or_set("key", factory, policy=policy) == "old"
    clock.travel(11)
    for _ in range(3):
        assert await cache.get_or_set("key", factory, policy=policy) == "old"
    assert factory.calls == 2
    clock.travel(6)
    assert await cache.get_or_set("key", factory, policy=policy) == "old"
    assert factory.calls == 3
    assert await cache.get("key") is None
    clock.travel(60)
    with pytest.raises(LookupError):
        await cache.get_or_set("key", factory, policy=policy)


async def test_refresh_ahead(cache, clock):
    """A hit late in the ttl is answered at once and starts one refresh."""
    factory = Counted("old", "new")
    policy = Policy(ttl=10, refresh_ahead=0.5)
    await cache.get_or_set("key", factory, policy=policy)
    clock.travel(6)
    assert await cache.get_or_set("key", factory, policy=policy) == "old"
    await cache.get_or_set("key", factory, policy=policy)
    await until(cache, "key", "new")
    assert factory.calls == 2
    assert await cache.ttl("key") == pytest.approx(10, abs=2e-3)


async def test_refresh_ahead_of_many(cache, clock):
    """A bulk read late in the ttl is answered at once and starts one refresh of those that age."""
    asked = []

    async def load(keys):
        asked.append(sorted(keys))
        return dict.fromkeys(keys, len(asked))

    policy = Policy(ttl=10, refresh_ahead=0.5)
    await cache.get_or_set_many(["a", "b"], load, policy=policy)
    clock.travel(6)
    assert await cache.get_or_set_many(["a", "b"], load, policy=policy) == {"a": 1, "b": 1}
    await cache.get_or_set_many(["b"], load, policy=policy)
    await until(cache, "b", 2)
    assert asked == [["a", "b"], ["a", "b"]]
    assert await cache.get_many(["a", "b"]) == {"a": 2, "b": 2}


async def test_a_conditional_fetch(cache, clock):
    """A factory that says the stale value still holds gives it a new ttl."""
    seen = []

    def load(load: Load):
        seen.append(None if load.stale is None else load.stale.value)
        return load.keep_stale() if load.stale else "first"

    for _ in range(3):
        assert await cache.get_or_set("key", load, ttl=10, grace=60) == "first"
        clock.travel(11)
    assert seen == [None, "first", "first"]
    assert await cache.get_or_set("key", load, ttl=10, grace=60) == "first"
    assert await cache.ttl("key") == pytest.approx(10, abs=2e-3)


async def test_a_load_decides(cache):
    """A factory sets the ttl and tags of what it returns, or declines to store."""

    def tagged(load: Load):
        load.ttl = "1m"
        load.add_tags("late")
        return 1

    def skipped(load: Load):
        load.skip()
        return 2

    assert await cache.get_or_set("a", tagged) == 1
    assert await cache.ttl("a") == pytest.approx(60)
    await cache.invalidate_tags("late")
    assert await cache.get("a") is None
    assert await cache.get_or_set("b", skipped) == 2
    assert not await cache.exists("b")


async def test_bulk(cache):
    """Only missing keys are loaded, each once; extras are stored; what is left out is left out."""
    asked = []

    async def load(keys):
        asked.append(sorted(keys))
        await asyncio.sleep(0)
        return {**{key: key.upper() for key in keys if key != "nobody"}, "extra": "EXTRA"}

    await cache.set("a", "old")
    assert await cache.get_or_set_many(["b", "a", "nobody"], load) == {"b": "B", "a": "old"}
    assert asked == [["b", "nobody"]]
    assert await cache.get("extra") == "EXTRA"
    both = await asyncio.gather(
        cache.get_or_set_many(["c", "d"], load),
        cache.get_or_set_many(["d", "e"], load),
        cache.get_or_set("c", Counted("another")),
    )
    assert both == [{"c": "C", "d": "D"}, {"d": "D", "e": "E"}, "C"]
    assert sorted(key for keys in asked[1:] for key in keys) == ["c", "d", "e"]


# Tags


async def test_tags(cache):
    """A tag hides every entry that has it, and none that is made afterwards."""
    await cache.set("a", 1, tags=["x"])
    await cache.set_many({"b": 2, "c": 3}, tags=["x", "y"])
    await cache.set("d", 4, tags=["z"])
    await cache.invalidate_tags("x")
    assert await cache.get_many(["a", "b", "c", "d"]) == {"d": 4}
    await cache.set("a", 5, tags=["x"])
    assert await cache.get("a") == 5
    assert await names(cache) == {"a", "d"}


async def test_a_cleared_value_does_not_stand_in(cache, clock):
    """A stale value that was cleared is gone: it serves nobody while the source fails."""
    await cache.set("key", "old", ttl=10, grace=60)
    clock.travel(11)
    assert await names(cache) == set()
    await cache.clear()
    with pytest.raises(LookupError):
        await cache.get_or_set("key", Counted(LookupError("down")), grace=60)


async def test_an_invalidated_value_does_not_stand_in(cache, clock):
    """A value hidden by its tag is no stale value either."""
    await cache.set("key", "old", ttl=10, grace=60, tags=["x"])
    clock.travel(11)
    await cache.invalidate_tags("x")
    with pytest.raises(LookupError):
        await cache.get_or_set("key", Counted(LookupError("down")))


async def test_views_have_tags_of_their_own(cache):
    """Invalidating in one namespace leaves the tags of another."""
    view = cache.namespace("view")
    await cache.set("key", 1, tags=["x"])
    await view.set("key", 2, tags=["x"])
    await view.invalidate_tags("x")
    assert await cache.get("key") == 1
    assert await view.get("key") is None


async def test_memoize(cache):
    """A memoized function has one entry per arguments, to be refreshed and removed."""
    calls = []

    @cache.memoize(key="double:{number}", tags=["n:{number}"])
    async def double(number: int) -> int:
        calls.append(number)
        return number * 2

    assert [await double(2), await double(2), await double(3)] == [4, 4, 6]
    assert calls == [2, 3]
    assert await double.refresh(2) == 4
    assert await double.invalidate(3) is True
    assert await cache.get("double:2") == 4
    await cache.invalidate_tags("n:2")
    assert await cache.get("double:2") is None
    assert await double.set(5, 2) is True
    assert await double(2) == 5
    assert calls == [2, 3, 2]


async def test_what_a_tag_hides_is_absent_to_conditions(cache):
    """After an invalidation a key can be added, and is not there to be replaced."""
    await cache.set("a", 1, tags=["tag"])
    await cache.set("b", 1, tags=["tag"])
    await cache.invalidate_tags("tag")
    assert await cache.set("a", 2, only_if="present") is False
    assert await cache.add("a", 2) is True
    assert await cache.add("b", 3, tags=["tag"]) is True
    assert await cache.add("b", 4) is False
    assert await cache.get_many(["a", "b"]) == {"a": 2, "b": 3}


# A ttl that slides


async def one_by_one(cache: Cache) -> object:
    return await cache.get("key")


async def with_others(cache: Cache) -> object:
    return (await cache.get_many(["key", "absent"])).get("key")


async def or_loaded(cache: Cache) -> object:
    return await cache.get_or_set("key", lambda: "loaded")


async def or_loaded_with_others(cache: Cache) -> object:
    return (await cache.get_or_set_many(["key"], lambda keys: dict.fromkeys(keys, "loaded")))["key"]


@pytest.mark.parametrize("hit", [one_by_one, with_others, or_loaded, or_loaded_with_others])
async def test_a_hit_gives_the_whole_ttl_again(make, clock, hit):
    """Where the policy says so, by whatever call; the grace stays behind it; looking at an entry is no use of it."""
    cache = make(policy=Policy(ttl=10, grace=5, sliding=True))
    await cache.set("key", "value")
    for _ in range(4):
        clock.travel(8)
        assert await hit(cache) == "value"
        for _ in range(5_000):  # a store outside of the process is told behind the hit
            if await cache.ttl("key") == pytest.approx(10, abs=0.01) and not cache._core.seats._sliding:
                break
            await asyncio.sleep(0.001)
        assert await cache.ttl("key") == pytest.approx(10, abs=0.01)
        entry = await cache.entry("key")
        assert entry is not None
        assert entry.expires_at - entry.fresh_until == pytest.approx(5, abs=0.01)
    clock.travel(8)
    assert await cache.exists("key")
    clock.travel(2.1)
    assert await cache.get("key") is None


@pytest.mark.parametrize("make", [name for name in STORES if name not in IN_PROCESS], indirect=True)
async def test_a_crowd_of_hits_slides_once(make, clock):
    """A store outside of the process is told once, however many hits there are at the same time; and not at all while
    nine tenths are left."""
    cache = make(policy=Policy(ttl=10, sliding=True))
    touched = 0
    store = cache._core.remote
    usual = store.touch

    async def touch(*args, **options):
        nonlocal touched
        touched += 1
        return await usual(*args, **options)

    store.touch = touch
    await cache.set("key", "value")
    for travelled, expected in ((0.5, 0), (2.0, 1), (0.5, 1)):
        clock.travel(travelled)
        assert await asyncio.gather(*[cache.get("key") for _ in range(100)]) == ["value"] * 100
        await asyncio.sleep(0.05)
        assert touched == expected
