"""Calls as users write them, for a strict type checker: ``make check`` runs it, nobody runs this file.

What must not pass has a ``type: ignore`` with the error that it must give: the checker reports one that is not needed.
"""

from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, assert_type

from asynccache import MISSING, Cache, Caches, Entry, Ignore, Load, MemoryBackend, Policy, Stats, Telemetry
from asynccache.entry import Missing
from asynccache.testing import Sandbox, TravellingClock, sandbox


@dataclass
class User:
    """What is cached here."""

    id: int
    name: str


cache = Cache("memory://?max_entries=100", ttl="10m", namespace="shop", telemetry="off")
Cache(MemoryBackend(max_entries=None, weigher=lambda key, value: len(key)), on_error="raise")
Cache(policy=Policy(ttl=timedelta(minutes=1)), telemetry=Telemetry(keys="hash", hash_secret=b"s"))
Cache(ttl=lambda value: None if value is None else 30, on_error=print, clock=TravellingClock())
Cache(ttl=None, on_error="ignore")  # type: ignore[arg-type]
Cache("memory://", telemetry="loud")  # type: ignore[arg-type]
Cache(stor="memory://")  # type: ignore[call-arg]


# Reading and writing


async def reads() -> None:
    """A value is ``Any``: what was stored is known to the user alone."""
    assert_type(await cache.get("k"), Any | None)
    assert_type(await cache.get("k", default=b""), Any | bytes)
    if (value := await cache.get("k", MISSING)) is not MISSING:
        assert_type(value, Any)
    assert_type(await cache.get_many(["a", "b"]), dict[str, Any])
    assert_type(await cache.exists("k"), bool)
    assert_type(await cache.ttl("k"), float | None)
    assert_type(await cache.entry("k"), Entry | None)
    assert_type(cache.keys("a*"), AsyncIterator[str])
    assert_type([key async for key in cache.keys("*")], list[str])
    await cache.get(7)  # type: ignore[call-overload]
    print(cache.get("k").name)  # type: ignore[attr-defined]


async def writes() -> None:
    """A ttl is a duration in any form, or ``None``."""
    assert_type(await cache.set("k", 1), bool)
    assert_type(await cache.set("k", 1, "5m", grace="1h", tags=["a"], only_if="present"), bool)
    assert_type(await cache.set("k", 1, timedelta(minutes=5)), bool)
    assert_type(await cache.set("k", 1, None), bool)
    assert_type(await cache.add("k", 1, 0.5), bool)
    assert_type(await cache.set_many({"a": 1, "b": "x"}, 5), bool)
    assert_type(await cache.delete("k"), bool)
    assert_type(await cache.delete_many(["a", "b"]), int)
    assert_type(await cache.touch("k", "5m"), bool)
    assert_type(await cache.incr("n"), int)
    assert_type(await cache.decr("n", 2, ttl="1d"), int)
    assert_type(await cache.clear("a*"), int)
    await cache.invalidate_tags("a", "b")
    await cache.set("k", 1, only_if="sometimes")  # type: ignore[arg-type]
    await cache.set("k", 1, [5])  # type: ignore[arg-type]
    await cache.incr("n", 0.5)  # type: ignore[arg-type]
    await cache.touch("k")  # type: ignore[call-arg]


# Loading


async def find() -> User:
    """An async factory of nothing."""
    return User(1, "Ada")


async def find_with(load: Load) -> User:
    """An async factory that takes its load."""
    load.ttl = "5m"
    load.grace = None
    load.tags = ["users"]
    load.add_tags("people")
    load.skip()
    assert_type(load.key, str)
    assert_type(load.reason, str)
    assert_type(load.stale, Entry | None)
    assert_type(load.ttl, float | None)
    assert_type(load.tags, tuple[str, ...])
    return User(1, "Ada")


def find_now() -> User:
    """A sync factory of nothing."""
    return User(1, "Ada")


def find_now_with(load: Load) -> User:
    """A sync factory that takes its load, and finds that the stale value still holds."""
    kept: User = load.keep_stale()
    return kept


async def loads() -> None:
    """The result is the factory's."""
    assert_type(await cache.get_or_set("k", find), User)
    assert_type(await cache.get_or_set("k", find_with), User)
    assert_type(await cache.get_or_set("k", find_now), User)
    assert_type(await cache.get_or_set("k", find_now_with), User)
    assert_type(await cache.get_or_set("k", lambda: find()), User)
    assert_type(await cache.get_or_set("k", lambda: 5), int)
    assert_type(await cache.get_or_set("k", find, "5m", grace="1h", tags=["a"], refresh_ahead=0.8), User)
    assert_type(await cache.get_or_set("k", find, policy=Policy(hard_timeout=1)), User)
    assert_type(await cache.get_or_set_many(["a", "b"], lambda missing: dict.fromkeys(missing, 1)), dict[str, Any])
    await cache.get_or_set("k", find, gracious="1h")  # type: ignore[call-overload]
    await cache.get_or_set("k", find, sliding="yes")  # type: ignore[call-overload]
    await cache.get_or_set("k")  # type: ignore[call-overload]


# Memoizing


@cache.memoize
async def bare(user_id: int, *, deep: bool = False) -> User:
    """A function, decorated without options."""
    return User(user_id, str(deep))


@cache.memoize(ttl="5m", grace="1h", key="user:{user_id}", tags=["users", "user:{user_id}"])
async def with_options(user_id: int) -> User:
    """A function, decorated with options."""
    return User(user_id, "")


@cache.memoize(ttl=lambda user: 5, ignore=["trace"], cache_if=lambda user: True)
async def with_functions(user_id: int, trace: str, session: Annotated[object, Ignore] = None) -> User:
    """A function, decorated with functions of its result."""
    return User(user_id, trace)


@cache.memoize(key=lambda *words: ":".join(words))
async def variadic(*words: str) -> list[str]:
    """A function of any number of arguments."""
    return list(words)


async def memoized_functions() -> None:
    """Parameters and result are the function's own."""
    waiting = bare(1)
    assert_type(await assert_type(waiting, Coroutine[Any, Any, User]), User)
    assert_type(await bare(1, deep=True), User)
    assert_type(await bare.refresh(1, deep=True), User)
    assert_type(await bare.bypass(1), User)
    assert_type(await bare.invalidate(1), bool)
    assert_type(await bare.set(User(1, ""), 1), bool)
    assert_type(bare.key(1, deep=True), str)
    assert_type(await with_options(user_id=1), User)
    assert_type(await with_functions(1, "t"), User)
    assert_type(await variadic("a", "b"), list[str])
    await bare("1")  # type: ignore[arg-type]
    await bare(1, True)  # type: ignore[call-arg]
    await bare.refresh()  # type: ignore[call-arg]
    await bare.set("Ada", 1)  # type: ignore[arg-type]
    bare.key(1, shallow=True)  # type: ignore[call-arg]


@cache.memoize  # type: ignore[arg-type]
def not_a_coroutine_function(user_id: int) -> User:
    """What memoize does not take."""
    return User(user_id, "")


class Shop:
    """A class with memoized methods of every kind."""

    def __init__(self, name: str) -> None:
        """Name it."""
        self.name = name

    @cache.memoize(key="price:{self.name}:{item}")
    async def price(self, item: str) -> int:
        """A method."""
        return len(item)

    @cache.memoize
    async def size(self) -> int:
        """A method without parameters."""
        return len(self.name)

    @cache.memoize
    @staticmethod
    async def currency(country: str) -> str:
        """A static method."""
        return country

    @staticmethod
    @cache.memoize(ttl="1d")
    async def language(country: str) -> str:
        """A static method, the other way round."""
        return country

    @cache.memoize
    @classmethod
    async def catalogue(cls, year: int, page: int = 1) -> list[str]:
        """A class method."""
        return [cls.__name__] * year * page

    @cache.memoize(key="founded")
    @classmethod
    async def founded(cls) -> int:
        """A class method without parameters."""
        return 1901


async def memoized_methods(shop: Shop) -> None:
    """A method's parameters are those without the receiver."""
    assert_type(await shop.price("tea"), int)
    assert_type(await shop.price.refresh(item="tea"), int)
    assert_type(shop.price.key("tea"), str)
    assert_type(await Shop.price(shop, "tea"), int)
    assert_type(await shop.size(), int)
    assert_type(await shop.size.invalidate(), bool)
    assert_type(await Shop.currency("nl"), str)
    assert_type(await Shop.currency.refresh("nl"), str)
    assert_type(await Shop.language("nl"), str)
    await shop.price(7)  # type: ignore[arg-type]
    await shop.price()  # type: ignore[call-arg]
    await Shop.price("tea")  # type: ignore[call-arg, arg-type]
    await Shop.currency(7)  # type: ignore[arg-type]
    assert_type(await shop.currency("nl"), str)
    assert_type(await shop.language.invalidate("nl"), bool)
    assert_type(await Shop.catalogue(2024), list[str])
    assert_type(await Shop.catalogue(2024, page=2), list[str])
    assert_type(await shop.catalogue.refresh(year=2024), list[str])
    assert_type(Shop.catalogue.key(2024), str)
    assert_type(await Shop.founded(), int)
    await Shop.catalogue("now")  # type: ignore[arg-type]
    await Shop.catalogue(Shop, 2024)  # type: ignore[arg-type]


@cache.memoize_many(key="user:{user_id}")
async def users(user_ids: list[int]) -> dict[int, User]:
    """A function of many things."""
    return {user_id: User(user_id, "") for user_id in user_ids}


async def memoized_many() -> None:
    """Things and results keep their types."""
    assert_type(await users([1, 2]), dict[int, User])
    assert_type(await users.invalidate(1, 2), int)
    assert_type(users.key(1), str)
    await users(["1"])  # type: ignore[list-item]


# The rest


async def the_rest() -> None:
    """Contexts, views, records."""
    assert_type(cache.override(refresh=True), AbstractContextManager[None])
    assert_type(cache.lock("k", ttl="5s", timeout=1), AbstractAsyncContextManager[int | None])
    async with cache.lock("k", ttl=5):
        pass
    with cache.override(bypass=True):
        pass
    assert_type(cache.namespace("sessions"), Cache)
    assert_type(cache.stats(), Stats)
    assert_type(cache.stats().hit_ratio, float)
    assert_type(await cache.ping(), bool)
    async with Cache() as inside:
        assert_type(inside, Cache)
    await cache.aclose()
    cache.lock("k")  # type: ignore[call-arg]
    with cache.lock("k", ttl=5):  # type: ignore[attr-defined]
        pass


def records(entry: Entry, policy: Policy) -> None:
    """Entries and policies are frozen."""
    assert_type(entry.value, Any)
    assert_type(entry.fresh_until, float)
    assert_type(policy.but(ttl="5m"), Policy)
    entry.value = 1  # type: ignore[misc]
    policy.jitter = 0.5  # type: ignore[misc]
    Policy(lock="nobody")  # type: ignore[arg-type]
    Policy("5m")  # type: ignore[call-arg]


async def named_caches() -> None:
    """Caches by name."""
    caches = Caches.from_mapping({"sessions": {"ttl": "30m"}})
    assert_type(caches, Caches)
    assert_type(Caches.from_toml("caches.toml"), Caches)
    assert_type(Caches.from_env(prefix="SHOP"), Caches)
    assert_type(caches["sessions"], Cache)
    assert_type(list(caches), list[str])
    async with caches as entered:
        assert_type(entered, Caches)
    caches[7]  # type: ignore[index]


view = cache.typed(User)


async def of_one_type() -> None:
    """What a typed view returns and takes is of its type."""
    user = User(1, "Ada")
    assert_type(await view.get("k"), User | None)
    assert_type(await view.get("k", MISSING), User | Missing)
    assert_type(await view.get_or_set("k", lambda: user), User)
    assert_type(await view.get_many(["k"]), dict[str, User])
    assert_type(await view.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, user)), dict[str, User])
    assert_type(await view.set("k", user), bool)
    assert_type(await cache.typed(list[User]).get("k"), list[User] | None)
    await view.set("k", "Ada")  # type: ignore[arg-type]


def tests() -> None:
    """The testing kit."""
    with sandbox() as box:
        assert_type(box, Sandbox)
        box.travel("5m")
        box.travel(timedelta(hours=1))
        box.travel(None)  # type: ignore[arg-type]
