"""A memoized function is the function, whatever it is and however it is called."""

import asyncio
import copy
import functools
import inspect
import pickle
import tracemalloc
import typing
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
import pytest_asyncio

from asynccache import Cache, ConfigError, Ignore, InvalidKeyError, MemoryBackend, Policy
from asynccache.testing import TravellingClock


@pytest_asyncio.fixture
async def cache(clock: TravellingClock) -> AsyncIterator[Cache]:
    """A cache that is closed afterwards."""
    async with Cache("memory://?max_entries=none", ttl="10m", clock=clock) as opened:
        yield opened


SHARED = Cache(ttl="10m")  # made, and used to decorate, before any loop


def kinds_of(cache: Cache) -> dict[str, Any]:
    """One memoized callable of every kind, each of one argument, that returns it and how often it ran."""
    runs: dict[str, int] = {}

    def run(name: str, x: Any) -> tuple[str, Any, int]:
        runs[name] = runs.get(name, 0) + 1
        return name, x, runs[name]

    @cache.memoize
    async def function(x: int) -> Any:
        """Doc of it."""
        return run("function", x)

    class Shop:
        def __cache_key__(self) -> str:
            return "shop"

        @cache.memoize()
        async def method(self, x: int) -> Any:
            """Doc of it."""
            return run("method", x)

        @cache.memoize()
        @classmethod
        async def class_method(cls, x: int) -> Any:
            """Doc of it."""
            return run("class_method", x)

        @staticmethod
        @cache.memoize()
        async def static_outside(x: int) -> Any:
            """Doc of it."""
            return run("static_outside", x)

        @cache.memoize()
        @staticmethod
        async def static_inside(x: int) -> Any:
            """Doc of it."""
            return run("static_inside", x)

    shop = Shop()
    return {
        "function": function,
        "method": shop.method,
        "class_method": Shop.class_method,
        "class_method of an instance": shop.class_method,
        "static_outside": Shop.static_outside,
        "static_outside of an instance": shop.static_outside,
        "static_inside": Shop.static_inside,
        "static_inside of an instance": shop.static_inside,
    }


KINDS = list(kinds_of(Cache()))


class TestEveryKind:
    """Functions, methods, class and static methods, bound in every way."""

    @pytest.mark.parametrize("kind", KINDS)
    async def test_handles(self, cache: Cache, kind: str) -> None:
        """The call and all of its handles agree on one entry."""
        kept = kinds_of(cache)[kind]
        name = kind.split()[0]
        assert await kept(5) == await kept(x=5) == (name, 5, 1)
        assert await cache.get(kept.key(5)) == await cache.get(kept.key(x=5)) == (name, 5, 1)
        assert await kept.refresh(x=5) == (name, 5, 2)
        assert await kept(5) == (name, 5, 2)
        assert await kept.bypass(5) == (name, 5, 3)
        assert await kept(5) == (name, 5, 2)
        assert await kept.set("given", 5) is True
        assert await kept(5) == "given"
        assert await kept.invalidate(5) is True
        assert await kept.invalidate(5) is False
        assert await kept(5) == (name, 5, 4)
        assert await kept(6) == (name, 6, 5)
        assert kept.cache is cache

    @pytest.mark.parametrize("kind", KINDS)
    def test_looks_like_the_function(self, kind: str) -> None:
        """Name, place, text, wrapped function and parameters are the function's; it is seen as a coroutine function."""
        kept = kinds_of(Cache())[kind]
        name = kind.split()[0]
        assert kept.__name__ == name
        assert kept.__qualname__.endswith(name)
        assert kept.__module__ == __name__
        assert kept.__doc__ == "Doc of it."
        assert inspect.isfunction(kept.__wrapped__)
        assert list(inspect.signature(kept).parameters) == ["x"]
        assert inspect.signature(kept).parameters["x"].annotation is int
        assert typing.get_type_hints(kept.__wrapped__)["x"] is int
        assert inspect.iscoroutinefunction(kept)
        assert callable(kept)
        assert name in repr(kept) or "method" in kind

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_partial_of_it(self, cache: Cache, kind: str) -> None:
        """``functools.partial`` of it calls it, and is seen as a coroutine function."""
        kept = kinds_of(cache)[kind]
        partial = functools.partial(kept, 5)
        assert inspect.iscoroutinefunction(partial)
        assert await partial() == await kept(5)

    async def test_two_classes_share_a_class_method(self, cache: Cache) -> None:
        """A class method remembers for each class by itself, in both orders of the decorators."""

        class Base:
            @cache.memoize()
            @classmethod
            async def inside(cls) -> str:
                return cls.__name__

            @classmethod
            @cache.memoize()
            async def outside(cls) -> str:
                return cls.__name__

        class Child(Base):
            pass

        for _ in range(2):
            assert [await Base.inside(), await Child.inside(), await Child().inside()] == ["Base", "Child", "Child"]
            assert [await Base.outside(), await Child.outside(), await Child().outside()] == ["Base", "Child", "Child"]

    async def test_a_class_method_around_it(self, cache: Cache) -> None:
        """With ``@classmethod`` above, the handles work or say which order works: since Python 3.13 the class does not
        reach them."""

        class Shop:
            @classmethod
            @cache.memoize()
            async def of_class(cls, x: int) -> int:
                return x

        assert await Shop.of_class(1) == 1
        kept = Shop.of_class
        for handle in (kept.refresh, kept.bypass, kept.invalidate):
            (outcome,) = await asyncio.gather(handle(1), return_exceptions=True)
            assert outcome == 1 or "put @memoize above @classmethod" in str(outcome)
        with pytest.raises(TypeError, match="put @memoize above @classmethod"):
            Shop.__dict__["of_class"].__func__.key(1)

    async def test_asked_for_on_the_class(self, cache: Cache) -> None:
        """A memoized method got from the class takes the receiver as its first argument."""

        class Shop:
            def __cache_key__(self) -> str:
                return "shop"

            @cache.memoize()
            async def price(self, item: str) -> list[str]:
                return [item]

        shop = Shop()
        assert await Shop.price(shop, "tea") is await shop.price("tea")
        assert Shop.price.key(shop, "tea") == shop.price.key("tea")

    async def test_a_subclass_calls_its_parent(self, cache: Cache) -> None:
        """``super()`` reaches the parent's memoized method, whose entries are its own."""

        class Shop:
            def __cache_key__(self) -> str:
                return "shop"

            @cache.memoize()
            async def price(self) -> int:
                return 1

        class Dear(Shop):
            @cache.memoize()
            async def price(self) -> int:
                return 10 + await super().price()

        for _ in range(2):
            assert await Dear().price() == 11
            assert await Shop().price() == 1

    async def test_decorated_before_any_loop(self) -> None:
        """A function that was decorated when its module was imported works."""
        assert await at_import(3) == await at_import(3) == [3]
        assert await at_import(3) is await at_import(3)


@SHARED.memoize()
async def at_import(x: int) -> list[int]:
    return [x]


def double(x: int, *, by: int = 2) -> int:
    return x * by


class TestArguments:
    """What counts as the same call."""

    async def test_every_kind_of_parameter(self, cache: Cache) -> None:
        """Calls that the function takes for equal are run once, all others each by itself."""
        runs: list[Any] = []

        @cache.memoize()
        async def f(a: Any, /, b: Any, c: Any = 3, *rest: Any, d: Any, e: Any = 5, **others: Any) -> Any:
            runs.append((a, b, c, rest, d, e, others))
            return runs[-1]

        same = [
            lambda: f(1, 2, d=4),
            lambda: f(1, b=2, d=4),
            lambda: f(1, 2, 3, d=4),
            lambda: f(1, d=4, c=3, e=5, b=2),
        ]
        for call in same:
            assert await call() == (1, 2, 3, (), 4, 5, {})
        assert len(runs) == 1
        for call in (
            lambda: f(1, 2, 3, 4, d=4),
            lambda: f(1, 2, 3, (4,), d=4),
            lambda: f(1, 2, d=4, z=0),
            lambda: f(1, 2, d=4, a=0),
            lambda: f(1, 2, d=5),
            lambda: f(2, 1, d=4),
        ):
            before = len(runs)
            assert await call() == await call() == runs[-1]
            assert len(runs) == before + 1

    async def test_no_arguments(self, cache: Cache) -> None:
        """A function of nothing is run once, and takes nothing."""
        runs: list[int] = []

        @cache.memoize()
        async def f() -> int:
            runs.append(1)
            return len(runs)

        assert [await f(), await f(), await f.refresh(), await f()] == [1, 1, 2, 2]
        with pytest.raises(TypeError):
            await f(1)

    @pytest.mark.parametrize("call", [lambda f: f(), lambda f: f(1, 2), lambda f: f(1, z=2), lambda f: f(1, x=1)])
    async def test_a_wrong_call(self, cache: Cache, call: Any) -> None:
        """A call that the function would refuse is a ``TypeError``, and nothing is run or kept."""

        @cache.memoize()
        async def f(x: int) -> int:
            return x

        with pytest.raises(TypeError):
            await call(f)
        assert cache.stats().loads == 0

    async def test_arguments_that_cannot_be_hashed(self, cache: Cache) -> None:
        """Lists, dictionaries and sets are arguments: equal ones are one call, in whatever order they were built."""
        runs: list[Any] = []

        @cache.memoize()
        async def f(x: Any) -> Any:
            runs.append(x)
            return x

        for _ in range(2):
            for x in ([1, 2], {"a": 1, "b": 2}, {1, 2}, [[1], [2]], {"b": 2, "a": 1}):
                await f(x)
        assert runs == [[1, 2], {"a": 1, "b": 2}, {1, 2}, [[1], [2]]]

    @pytest.mark.parametrize("template", [None, "k:{x!r}:{y}"])
    @pytest.mark.parametrize("backwards", [False, True])
    async def test_equal_and_not_the_same(self, cache: Cache, template: str | None, backwards: bool) -> None:
        """``1``, ``True`` and ``1.0``, subclasses of ``int`` and ``str``: each has its own result, in whatever order
        and however often they come, whatever was remembered of the others."""

        class Text(str):
            def __repr__(self) -> str:
                return f"Text({str.__repr__(self)})"

        class Number(int):
            def __repr__(self) -> str:
                return f"Number({int.__repr__(self)})"

        @cache.memoize(key=template)
        async def f(x: Any, y: int = 0) -> str:
            return f"{type(x).__name__}"

        alike = [1, True, 1.0, Number(1), "1", Text("1"), b"1", None, 0, False, 0.0, -0.0, "", ()]
        for _ in range(3):
            for x in reversed(alike) if backwards else alike:
                assert await f(x) == type(x).__name__
                assert await f(x, 0) == type(x).__name__

    async def test_many_arguments(self, cache: Cache) -> None:
        """More different calls than keys are remembered for are all told apart and all found again."""

        @cache.memoize(key="k:{x}:{y}")
        async def f(x: int, y: int) -> int:
            return x * 1_000 + y

        for _ in range(2):
            for x in range(33_000):
                assert await f(x, 7) == x * 1_000 + 7
        stats = cache.stats()
        assert (stats.loads, stats.hits) == (33_000, 33_000)
        assert len(f._remembered) <= 32_768

    async def test_long_keys_are_not_remembered(self, cache: Cache) -> None:
        """Arguments that make a long key are not kept in memory beside the entry."""

        @cache.memoize(key="k:{x}")
        async def f(x: str) -> int:
            return len(x)

        assert await f("a" * 900) == await f("a" * 900) == 900
        assert len(f._remembered) == 0
        with pytest.raises(InvalidKeyError, match="longer than"):
            await f("a" * 2_000)

    async def test_huge_arguments_are_not_remembered(self, cache: Cache) -> None:
        """An argument of a megabyte is not kept alive by a key that is short, being a digest or leaving it out."""

        @cache.memoize()
        async def by_digest(x: Any) -> int:
            return 1

        @cache.memoize(key="k:{number}")
        async def by_template(number: int, x: Any) -> int:
            return 1

        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(5):
                for function in (by_digest, functools.partial(by_template, number)):
                    await function(str(number) * 1_000_000)
                    await function(bytes([number]) * 1_000_000)
                    await function(1 << (8_000_000 + number))
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 2_000_000

    async def test_text_that_is_no_utf8(self, cache: Cache) -> None:
        """A lone surrogate is an argument like another for the default key, and a clear error in a template."""

        @cache.memoize()
        async def by_digest(x: str) -> str:
            return x

        @cache.memoize(key="k:{x}")
        async def by_template(x: str) -> str:
            return x

        assert await by_digest("\ud800") == await by_digest("\ud800") == "\ud800"
        with pytest.raises(InvalidKeyError, match="surrogate"):
            await by_template("\ud800")

    async def test_a_warm_function_is_found_without_a_run(self, cache: Cache) -> None:
        """What another process, or a `set`, stored under the key is the function's result."""

        @cache.memoize(key="k:{x}")
        async def f(x: int) -> str:
            raise AssertionError(x)

        await cache.set("k:1", "stored")
        assert await f(1) == await f(x=1) == "stored"


class TestKeys:
    """Where a result is kept."""

    async def test_a_key_function_that_raises(self, cache: Cache) -> None:
        """Its error comes out as it is, of the call and of every handle; the function is not run."""

        def key(x: int) -> str:
            raise ZeroDivisionError

        @cache.memoize(key=key)
        async def f(x: int) -> int:
            raise AssertionError

        with pytest.raises(ZeroDivisionError):
            f.key(1)
        for use in (f, f.refresh, f.invalidate, functools.partial(f.set, 0)):
            with pytest.raises(ZeroDivisionError):
                await use(1)
        assert cache.stats().loads == 0

    @pytest.mark.parametrize("made", [5, None, b"k", "", "a\0b", "x" * 1_025])
    async def test_a_key_function_that_makes_no_key(self, cache: Cache, made: Any) -> None:
        """What is no key is refused as one, and the function is not run."""

        @cache.memoize(key=lambda x: made)
        async def f(x: int) -> int:
            raise AssertionError

        with pytest.raises(InvalidKeyError):
            await f(1)

    async def test_an_argument_without_identity(self, cache: Cache) -> None:
        """An argument that no key can be made of is refused by name, by the call and by every handle."""

        @cache.memoize()
        async def f(x: object) -> int:
            raise AssertionError

        for use in (f, f.refresh, f.invalidate, functools.partial(f.set, 0)):
            with pytest.raises(InvalidKeyError, match="'x'"):
                await use(object())

    async def test_in_a_namespace(self, cache: Cache) -> None:
        """A function decorated by a view keeps its results and its tags there, and tells keys without the namespace."""
        view = cache.namespace("shop")

        @view.memoize(key="u:{x}", tags=["users", "u{x}"])
        async def f(x: int) -> list[int]:
            return [x]

        first = await f(1)
        assert f.key(1) == "u:1"
        assert await view.get("u:1") is first
        assert await cache.get("u:1") is None
        await cache.invalidate_tags("users", "u1")
        assert await f(1) is first
        await view.invalidate_tags("u1")
        assert await f(1) is not first

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"key": "u:{user}"}, "user_id"),
            ({"key": "u:{user_id"}, "u:{user_id"),
            ({"key": 5}, "template"),
            ({"ignore": ["nobody"]}, "nobody"),
            ({"ignore": "user_id"}, "collection"),
            ({"ignore": ["user_id"], "key": "u"}, "default key"),
            ({"tags": "users"}, "collection"),
            ({"tags": ["u:{nobody}"]}, "nobody"),
            ({"ttl": -1}, "-1"),
            ({"ttl": "soon"}, "soon"),
            ({"gracee": 5}, "gracee"),
            ({"lock": "maybe"}, "maybe"),
        ],
    )
    def test_wrong_at_decoration(self, options: Any, hint: str) -> None:
        """A wrong option is an error where the function is decorated, and says what was given."""

        async def f(user_id: int) -> int:
            return user_id

        with pytest.raises((ConfigError, ValueError, TypeError), match=hint):
            Cache().memoize(**options)(f)

    @pytest.mark.parametrize("decorated", [double, lambda x: x, 5, int, staticmethod(double), classmethod(double)])
    def test_what_is_no_coroutine_function(self, decorated: Any) -> None:
        """Anything but a coroutine function is refused where it is decorated."""
        with pytest.raises(ConfigError, match="coroutine function"):
            Cache().memoize(decorated)


class TestOptions:
    """What the decorator's options reach."""

    async def test_tags_of_policy_and_template(self, cache: Cache) -> None:
        """The tags of the cache's policy, of the decorator's policy and of templates are all on the entry, also on one
        that was `set`."""
        tagged = Cache(policy=Policy(tags=["cache"]))

        @tagged.memoize(tags=["u:{x}", "plain"])
        async def f(x: int) -> int:
            return x

        @tagged.memoize(policy=Policy(tags=["own"]))
        async def g(x: int) -> int:
            return x

        await f(1)
        assert set((await tagged.entry(f.key(1))).tags) == {"cache", "u:1", "plain"}
        await f.set(5, 2)
        assert set((await tagged.entry(f.key(2))).tags) == {"cache", "u:2", "plain"}
        await g(1)
        assert set((await tagged.entry(g.key(1))).tags) == {"own"}
        await tagged.aclose()

    async def test_a_ttl_of_the_result(self, cache: Cache) -> None:
        """A ttl may be a function of the result, also for a value that is `set`; a ``None`` has its own."""

        @cache.memoize(ttl=lambda value: value, negative_ttl=3)
        async def f(x: int | None) -> int | None:
            return x

        await f(7)
        await f(None)
        await f.set(9, 8)
        await f.set(None, 4)
        assert [await cache.ttl(f.key(x)) for x in (7, None, 8, 4)] == [7, 3, 9, 3]

    async def test_a_failing_refresh(self, cache: Cache) -> None:
        """A refresh that fails raises, and what was cached stays."""
        fail: list[int] = []

        @cache.memoize()
        async def f() -> str:
            if fail:
                raise OSError("down")
            return "good"

        await f()
        fail.append(1)
        with pytest.raises(OSError, match="down"):
            await f.refresh()
        assert await f() == "good"

    async def test_refreshes_at_once_share_a_run(self, cache: Cache) -> None:
        """Refreshes that overlap share one run; one that finds a load begun before it runs anew, and its value
        stays."""
        gate = asyncio.Event()
        runs: list[int] = []

        @cache.memoize()
        async def f() -> int:
            runs.append(1)
            number = len(runs)
            await gate.wait()
            return number

        load = asyncio.create_task(f())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refreshes = [asyncio.create_task(f.refresh()) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gate.set()
        assert await load == 1
        assert await asyncio.gather(*refreshes) == [2] * 5
        assert await f() == 2

    async def test_on_a_store_that_copies(self) -> None:
        """With ``copy=true`` what a caller does to a result is not seen by the next one, hit or load."""
        async with Cache("memory://?copy=true") as cache:

            @cache.memoize()
            async def f() -> list[int]:
                return [1]

            for _ in range(3):
                found = await f()
                assert found == [1]
                found.append(2)

    async def test_a_result_that_cannot_be_kept(self) -> None:
        """A result that the store cannot keep is returned all the same, each time by a run, and counted."""
        async with Cache("memory://?copy=true") as cache:
            runs: list[int] = []

            @cache.memoize()
            async def f() -> Any:
                runs.append(1)
                return (part for part in "generator")

            assert "".join(await f()) == "generator"
            assert "".join(await f()) == "generator"
            assert len(runs) == 2
            assert cache.stats().errors == 2

    async def test_the_store_is_shared_and_not_closed(self, clock: TravellingClock) -> None:
        """On a store that is handed in, two caches of two namespaces keep the same function's results apart."""
        store = MemoryBackend(clock=clock)
        found = []
        for name in ("a", "b"):
            async with Cache(store, namespace=name, name=name) as cache:

                @cache.memoize(key="k:{number}")
                async def f(number: int, name: Annotated[str, Ignore] = name) -> str:
                    return name

                found += [await f(1), await f(1)]
        assert found == ["a", "a", "b", "b"]


class TestCopies:
    """A memoized function is copied and pickled as the function would be: by name."""

    def test_of_a_function(self) -> None:
        """Copies are the function itself, and a pickle brings it back."""
        for kept in (at_import, many_at_import):
            assert copy.copy(kept) is kept
            assert copy.deepcopy({"f": kept})["f"] is kept
            assert pickle.loads(pickle.dumps(kept)) is kept

    def test_of_a_method(self) -> None:
        """A bound method is copied and pickled with its receiver."""
        method = Point(3).double
        for again in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
            assert asyncio.run(again()) == 6
        assert asyncio.run(pickle.loads(pickle.dumps(Point.origin))()) == 0


@SHARED.memoize_many()
async def many_at_import(xs: list[int]) -> dict[int, int]:
    return dict.fromkeys(xs, 1)


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    @SHARED.memoize(key="point:{self.x}")
    async def double(self) -> int:
        return self.x * 2

    @SHARED.memoize()
    @classmethod
    async def origin(cls) -> int:
        return 0


class TestMany:
    """`memoize_many`: each thing of a list is cached by itself."""

    async def test_only_the_missing(self, cache: Cache) -> None:
        """One call of the function with just what is missing, results in the order asked, each kept under its key."""
        asked: list[list[int]] = []

        @cache.memoize_many(ttl="5m", key="user:{user_id}")
        async def users(user_ids: list[int]) -> dict[int, str]:
            """Doc of it."""
            asked.append(user_ids)
            return {number: f"u{number}" for number in reversed(user_ids)}

        await users([2, 4])
        assert list((await users([1, 2, 3, 4])).items()) == [(1, "u1"), (2, "u2"), (3, "u3"), (4, "u4")]
        assert asked == [[2, 4], [1, 3]]
        assert users.key(3) == "user:3"
        assert await cache.get("user:3") == "u3"
        assert await cache.ttl("user:3") == 300
        assert users.cache is cache

    @pytest.mark.parametrize("key", [None, "u:{item}", "{{u}}:{it!r}", lambda item: f"u{item}"])
    async def test_every_form_of_key(self, cache: Cache, key: Any) -> None:
        """The default key, templates and key functions tell the things apart and find them again."""
        asked: list[Any] = []

        @cache.memoize_many(key=key)
        async def f(items: list[int]) -> dict[int, int]:
            asked.extend(items)
            return {item: -item for item in items}

        for _ in range(2):
            assert await f([1, 2, 3]) == {1: -1, 2: -2, 3: -3}
        assert asked == [1, 2, 3]
        assert len({f.key(item) for item in (1, 2, 3)}) == 3
        assert await cache.get(f.key(2)) == -2

    async def test_any_iterable(self, cache: Cache) -> None:
        """A generator is read once; what is named twice is loaded once; nothing at all is no call."""
        asked: list[list[int]] = []

        @cache.memoize_many()
        async def f(items: list[int]) -> dict[int, int]:
            asked.append(items)
            return dict.fromkeys(items, 0)

        assert await f(item for item in (3, 1, 3, 3)) == {3: 0, 1: 0}
        assert await f(iter([])) == {}
        assert await f({1: "a", 3: "b"}) == {1: 0, 3: 0}
        assert asked == [[3, 1]]

    async def test_left_out_and_added(self, cache: Cache) -> None:
        """What the function leaves out is absent, not kept, and asked for again; what it adds is neither returned nor
        in the way."""
        asked: list[list[int]] = []

        @cache.memoize_many(key="u:{item}")
        async def f(items: list[int]) -> dict[int, str]:
            asked.append(items)
            return {1: "one", 99: "extra"}

        assert await f([1, 2]) == {1: "one"}
        assert await f([1, 2]) == {1: "one"}
        assert asked == [[1, 2], [2]]
        assert await cache.get("u:2") is None

    async def test_invalidate(self, cache: Cache) -> None:
        """Just the things that are named are forgotten, and counted."""
        asked: list[list[str]] = []

        @cache.memoize_many(tags=["users"])
        async def f(names: list[str]) -> dict[str, str]:
            asked.append(names)
            return {name: name.upper() for name in names}

        await f(["a", "b", "c"])
        assert await f.invalidate("a", "c", "never") == 2
        assert await f.invalidate() == 0
        assert await f(["a", "b", "c"]) == {"a": "A", "b": "B", "c": "C"}
        assert asked == [["a", "b", "c"], ["a", "c"]]
        await cache.invalidate_tags("users")
        await f(["b"])
        assert asked[2:] == [["b"]]

    async def test_a_crowd(self, cache: Cache) -> None:
        """Overlapping calls at once load each thing once."""
        gate = asyncio.Event()
        asked: list[int] = []

        @cache.memoize_many()
        async def f(items: list[int]) -> dict[int, int]:
            asked.extend(items)
            await gate.wait()
            return {item: item * 10 for item in items}

        tasks = [asyncio.create_task(f(range(start, start + 10))) for start in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*tasks)
        assert found == [{item: item * 10 for item in range(start, start + 10)} for start in range(20)]
        assert sorted(asked) == list(range(29))

    @pytest.mark.parametrize("first", [[1, True], [True, 1], [1.0, 1]])
    async def test_equal_and_not_the_same(self, cache: Cache, first: list[Any]) -> None:
        """Of things that are equal the first is loaded, and kept as the one that it is."""

        @cache.memoize_many()
        async def f(items: list[Any]) -> dict[Any, str]:
            return {item: repr(item) for item in items}

        assert list((await f(first)).values()) == [repr(first[0])]
        assert list((await f([first[1]])).values()) == [repr(first[1])]
        assert list((await f([first[0]])).values()) == [repr(first[0])]

    async def test_two_things_of_one_key(self, cache: Cache) -> None:
        """Things that a key function takes for one are one: loaded once, found again as they were given."""
        asked: list[str] = []

        @cache.memoize_many(key=lambda name: f"u:{name.lower()}")
        async def f(names: list[str]) -> dict[str, str]:
            asked.extend(names)
            return {name: name for name in names}

        for _ in range(2):
            assert await f(["A", "a"]) == {"A": "A", "a": "A"}
        assert asked == ["A"]

    async def test_what_is_added_touches_no_other_key(self, cache: Cache) -> None:
        """A thing that nobody asked for is not stored under its own name, which is no key of the function's."""

        @cache.memoize_many(key="u:{name}")
        async def f(names: list[str]) -> dict[str, str]:
            return {"asked": "x", "config": "y"}

        await cache.set("config", "mine")
        assert await f(["asked"]) == {"asked": "x"}
        assert await cache.get("config") == "mine"

    async def test_a_thing_without_identity(self, cache: Cache) -> None:
        """A thing that no key can be made of is refused, and nothing is loaded."""

        @cache.memoize_many()
        async def f(items: list[object]) -> dict[object, object]:
            raise AssertionError

        with pytest.raises(InvalidKeyError, match="item"):
            await f([1, object()])

    def test_looks_like_the_function(self) -> None:
        """Name, text, parameters are the function's; it is seen as a coroutine function and prints its name."""

        @SHARED.memoize_many()
        async def f(items: list[int]) -> dict[int, int]:
            """Doc of it."""
            return {}

        assert (f.__name__, f.__doc__, f.__module__) == ("f", "Doc of it.", __name__)
        assert list(inspect.signature(f).parameters) == ["items"]
        assert inspect.iscoroutinefunction(f)
        assert repr(f).endswith("f>")

    async def test_as_a_static_method(self, cache: Cache) -> None:
        """It stands in a class as a static method."""

        class Shop:
            @staticmethod
            @cache.memoize_many(key="p:{item}")
            async def prices(items: list[str]) -> dict[str, int]:
                return {item: len(item) for item in items}

        assert await Shop.prices(["tea"]) == await Shop().prices(["tea"]) == {"tea": 3}

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"key": "u:{a}:{b}"}, "'b'"),
            ({"key": "users"}, "no field"),
            ({"key": "{{users}}"}, "no field"),
            ({"tags": ["u:{item}"]}, "templates"),
            ({"key": "u:{"}, "u:{"),
            ({"key": 5}, "template"),
            ({"tags": "users"}, "collection"),
            ({"ttl": 0}, "ttl"),
        ],
    )
    def test_wrong_at_decoration(self, options: Any, hint: str) -> None:
        """A wrong option is an error where the function is decorated."""

        async def f(items: list[int]) -> dict[int, int]:
            return {}

        with pytest.raises((ConfigError, ValueError), match=hint):
            Cache().memoize_many(**options)(f)

    def test_a_wrong_function(self) -> None:
        """A plain function, and one of two parameters or none, is refused where it is decorated."""

        async def two(self: Any, items: list[int]) -> dict[int, int]:
            return {}

        async def none() -> dict[int, int]:
            return {}

        for function in (two, none):
            with pytest.raises(ConfigError, match="one argument"):
                Cache().memoize_many()(function)
        with pytest.raises(ConfigError, match="coroutine function"):
            Cache().memoize_many()(lambda items: {})


async def test_left_out_by_annotation_under_a_text(cache: Cache) -> None:
    """An annotation written as text marks a parameter too."""
    runs: list[int] = []

    @cache.memoize()
    async def f(x: int, session: "Annotated[object, Ignore]" = None) -> int:
        runs.append(x)
        return x

    await f(1, object())
    await f(1)
    assert runs == [1]


def test_a_key_without_fields_is_one_for_all_calls() -> None:
    """A brace that was forgotten is told of when the function is decorated, not by the data of the first caller."""
    cache = Cache()
    with pytest.raises(ConfigError, match=r"\{user_id\}"):

        @cache.memoize(key="user:user_id")
        async def get_user(user_id: int) -> None: ...

    @cache.memoize(key="all")
    async def nothing_given() -> None: ...

    @cache.memoize(key="all")
    async def nothing_that_counts(session: Annotated[object, Ignore]) -> None: ...

    @cache.memoize(key=lambda *_: "all")
    async def meant(user_id: int) -> None: ...

    class Repository:
        @cache.memoize(key="all")
        async def everything(self) -> None: ...


async def test_invalidating_a_list_is_refused() -> None:
    """Things are invalidated one by one: a list of them is none."""
    cache = Cache()

    @cache.memoize_many(key="user:{id}")
    async def get_users(ids: list[int]) -> dict[int, str]:
        return dict.fromkeys(ids, "user")

    await get_users([1, 2])
    with pytest.raises(TypeError):
        await get_users.invalidate([1, 2])  # type: ignore[arg-type]
    assert await get_users.invalidate(1, 2) == 2
