"""The decorator: a function that remembers, with the handles to steer it."""

import asyncio
import inspect
import os
import subprocess
import sys
from typing import Annotated

import pytest

from asynccache import CacheError, Ignore

pytestmark = pytest.mark.usefixtures("quiet")


async def test_a_function(cache):
    """Called again with the same arguments it is not run again."""
    calls = []

    @cache.memoize(ttl="5m", key="user:{user_id}")
    async def get_user(user_id: int, verbose: bool = False):
        """Doc."""
        calls.append(user_id)
        return {"id": user_id}

    assert await get_user(7) == {"id": 7}
    assert await get_user(user_id=7) == {"id": 7}
    assert calls == [7]
    assert get_user.key(7) == "user:7"
    assert await cache.get("user:7") == {"id": 7}
    assert await cache.ttl("user:7") == pytest.approx(300)
    assert get_user.__name__ == "get_user"
    assert get_user.__doc__ == "Doc."
    assert inspect.iscoroutinefunction(get_user)
    assert list(inspect.signature(get_user).parameters) == ["user_id", "verbose"]


async def test_the_handles(cache):
    """``refresh`` runs anew and stores, ``bypass`` runs and touches nothing, ``invalidate`` forgets, ``set`` stores."""
    calls = []

    @cache.memoize()
    async def f(x, *, y=0):
        calls.append((x, y))
        return len(calls)

    assert await f(1) == 1
    assert await f.refresh(1) == 2
    assert await f(1) == 2
    assert await f.bypass(1) == 3
    assert await f(1) == 2
    await f.invalidate(x=1, y=0)
    assert await f(1) == 4
    await f.set("given", 1)
    assert await f(1) == "given"
    await f.set("other", 1, y=5)
    assert await f(1, y=5) == "other"
    assert await f(1) == "given"
    assert await cache.get(f.key(1)) == "given"
    assert isinstance(f.key(1), str)
    await f.cache.delete(f.key(1))
    assert await f(1) == 5


async def test_invalidate_is_exact(cache):
    """Just the call with these arguments is forgotten."""
    calls = []

    @cache.memoize()
    async def f(x):
        calls.append(x)
        return x

    for x in (1, 2, "1"):
        await f(x)
    await f.invalidate(1)
    for x in (1, 2, "1"):
        await f(x)
    assert calls == [1, 2, "1", 1]


async def test_a_crowd(cache, make_source, settle):
    """Concurrent calls with equal arguments share one run."""
    source = make_source(gated=True)

    @cache.memoize()
    async def f(x):
        return await source.load()

    tasks = [asyncio.create_task(f(1)) for _ in range(100)]
    await settle()
    source.gate.set()
    assert await asyncio.gather(*tasks) == ["value"] * 100
    assert source.calls == 1


async def test_an_error_is_not_remembered(cache):
    """The function's error comes out as it is, and the next call runs again."""
    calls = []

    @cache.memoize()
    async def f():
        calls.append(1)
        raise LookupError("row")

    for _ in range(2):
        with pytest.raises(LookupError, match="row"):
            await f()
    assert len(calls) == 2


async def test_override(cache):
    """``override`` steers the calls inside it, in this context only, and ends with it."""
    calls = []

    @cache.memoize()
    async def f(x):
        calls.append(x)
        return len(calls)

    assert await f(1) == 1
    with cache.override(refresh=True):
        assert await f(1) == 2
        stranger = asyncio.create_task(f(2))
    assert await f(1) == 2
    await stranger
    with cache.override(bypass=True):
        assert await f(1) == 4
    assert await f(1) == 2


async def test_override_is_local_to_its_context(cache, settle):
    """A task that was there before does not see another task's override."""
    calls = []
    gate = asyncio.Event()

    @cache.memoize()
    async def f():
        calls.append(1)
        return len(calls)

    await f()

    async def elsewhere():
        await gate.wait()
        return await f()

    task = asyncio.create_task(elsewhere())
    await settle()
    with cache.override(refresh=True):
        gate.set()
        assert await task == 1


async def test_tags_by_template(cache):
    """Tags are filled from the arguments."""
    calls = []

    @cache.memoize(key="u:{user_id}", tags=["users", "user:{user_id}"])
    async def f(user_id):
        calls.append(user_id)
        return user_id

    for tag, wanted in (("user:1", [1]), ("users", [1, 2]), ("user:{user_id}", []), ("user:3", [])):
        await f(1)
        await f(2)
        calls.clear()
        await cache.invalidate_tags(tag)
        await f(1)
        await f(2)
        assert calls == wanted


async def test_a_template_reaches_into_attributes(cache):
    """``{user.id}`` is the attribute; a name that is no parameter is refused where the function is decorated."""

    class User:
        def __init__(self, number):
            self.id = number

    @cache.memoize(key="u:{user.id}")
    async def f(user):
        return user.id

    assert f.key(User(5)) == "u:5"
    assert await f(User(5)) == 5
    with pytest.raises((CacheError, ValueError, TypeError), match="nobody"):

        @cache.memoize(key="u:{nobody}")
        async def g(user):
            return 1


async def test_a_key_function(cache):
    """A key may be a function of the arguments."""

    @cache.memoize(key=lambda x, y=2: f"k:{x + y}")
    async def f(x, y=2):
        return x + y

    assert f.key(1) == "k:3"
    assert await f(1) == 3
    assert await cache.get("k:3") == 3


async def test_arguments_left_out(cache):
    """What is ignored does not count, whether by name or by annotation."""
    calls = []

    @cache.memoize(ignore=["session"])
    async def f(x, session):
        calls.append(x)
        return x

    @cache.memoize()
    async def g(x, session: Annotated[object, Ignore]):
        calls.append(x)
        return x

    for function in (f, g):
        calls.clear()
        await function(1, object())
        await function(1, session=object())
        await function(2, object())
        assert calls == [1, 2]
        assert function.key(1, object()) == function.key(1, None)


async def test_methods(cache):
    """A method with ``__cache_key__`` is remembered per key, not per object; handles work bound."""
    calls = []

    class Shop:
        def __init__(self, name):
            self.name = name

        def __cache_key__(self):
            return self.name

        @cache.memoize()
        async def price(self, item):
            calls.append((self.name, item))
            return len(calls)

        @cache.memoize(key="shop:{self.name}:{item}")
        async def stock(self, item):
            calls.append((self.name, item))
            return len(calls)

    for method in ("price", "stock"):
        calls.clear()
        a, twin, b = (getattr(Shop(name), method) for name in ("a", "a", "b"))
        assert inspect.iscoroutinefunction(a)
        assert [await a(1), await twin(1), await b(1), await a(item=1)] == [1, 1, 2, 1]
        assert a.key(1) == twin.key(1) != b.key(1)
        assert await a.refresh(1) == 3
        assert await twin(1) == 3
        await twin.invalidate(1)
        assert await a(1) == 4
        assert await a.bypass(1) == 5
        await a.set("given", 1)
        assert await twin(1) == "given"
    assert Shop("a").stock.key(1) == "shop:a:1"


async def test_a_method_without_identity(cache):
    """An object that cannot be told apart by a stable key is refused by name."""

    class Shop:
        @cache.memoize()
        async def price(self, item):
            return item

    with pytest.raises((CacheError, TypeError, ValueError), match="self"):
        await Shop().price(1)


async def test_static_and_class_methods(cache):
    """Static and class methods are remembered; two classes that share a class method do not mix."""
    calls = []

    class Base:
        label = "base"

        @staticmethod
        @cache.memoize(key="static:{x}")
        async def static(x):
            calls.append(x)
            return x

        @classmethod
        @cache.memoize(key="class:{cls.label}:{x}")
        async def of_class(cls, x):
            calls.append(x)
            return (cls.__name__, x)

    class Child(Base):
        label = "child"

    assert [await Base.static(1), await Base().static(1), await Child.static(1)] == [1, 1, 1]
    assert calls == [1]
    assert await Base.of_class(1) == ("Base", 1)
    assert await Child.of_class(1) == ("Child", 1)
    assert await Child().of_class(1) == ("Child", 1)
    assert calls == [1, 1, 1]
    assert await Base.static.refresh(1) == 1
    assert Base.static.key(1) == "static:1"


async def test_grace_and_the_rest_reach_the_load(cache, sb):
    """Loading options of the decorator hold for its calls."""
    fail = []

    @cache.memoize(ttl=1, grace="1h", key="k:{x}")
    async def f(x):
        if fail:
            raise OSError("down")
        return x

    assert await f(1) == 1
    sb.travel(2)
    fail.append(1)
    assert await f(1) == 1
    with pytest.raises(OSError, match="down"):
        await f(2)


DISABLED = """
import asyncio
from asynccache import Cache
cache = Cache()
calls = []
@cache.memoize()
async def f(x):
    calls.append(x)
    return len(calls)
async def main():
    print(await f(1), await f(1), await asyncio.gather(f(2), f(2)))
asyncio.run(main())
"""


@pytest.mark.parametrize(("switch", "printed"), [("1", "1 2 [3, 4]"), (None, "1 1 [2, 2]")])
def test_the_kill_switch(switch, printed):
    """``ASYNCCACHE_DISABLE=1`` lets every call through."""
    environment = {key: value for key, value in os.environ.items() if key != "ASYNCCACHE_DISABLE"}
    if switch:
        environment["ASYNCCACHE_DISABLE"] = switch
    run = subprocess.run([sys.executable, "-c", DISABLED], env=environment, capture_output=True, text=True, timeout=20)
    assert run.stderr == ""
    assert run.stdout.strip() == printed
