"""Memoization of coroutine functions.

A call finds its value in three steps: arguments → key → entry. For arguments of which the key is a pure function
(exact text, whole numbers, bytes, ``None``) the first step is remembered in a table, so that a hit builds no key. Two
arguments that are equal and not the same (``1``, ``True``, ``1.0``) would share a place there, so the table is
believed only when the classes are exact.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from sys import getsizeof
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, cast, final, overload

from asynccache._dispatcher import Dispatcher
from asynccache._shapes import result_shape
from asynccache.entry import MISSING
from asynccache.errors import ConfigError
from asynccache.keys import KeyBuilder
from asynccache.policy import Terms
from asynccache.telemetry import provider_module

__all__ = ["KeyRule", "Memoized", "MemoizedClassMethod", "MemoizedMany", "memoized"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")

KeyRule = str | Callable[..., str] | None
"""A template such as ``"user:{user_id}"``, a function of the call's arguments, or ``None`` for a key made of all of
them."""

_EXACT: Final = frozenset({str, int, bytes, type(None)})
_MOST_REMEMBERED: Final = 32_768
_LONGEST_REMEMBERED: Final = 256  # characters of a key
_LARGEST_REMEMBERED: Final = 1_024  # bytes of one call's arguments


@final
class Memoized(Generic[P, R]):
    """A coroutine function whose results are cached.

    It is called like the function. Its key can be had and its entry handled by the same arguments.

    Attributes:
        cache: The cache that keeps the results.
    """

    # What a hit reads has slots: the copied attributes of the function are kept in a dictionary, which is slower.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_builder",
        "_core",
        "_function",
        "_of_class",
        "_prefix",
        "_remembered",
        "_tags",
        "_terms",
        "cache",
    )

    def __init__(
        self,
        function: Callable[P, Coroutine[Any, Any, R]],
        *,
        cache: Any,
        dispatcher: Dispatcher,
        prefix: str,
        terms: Terms,
        key: KeyRule,
        ignore: Collection[str],
        tags: Iterable[str],
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"memoize takes a coroutine function (async def), not {function!r}")
        self._function = function
        self._core = dispatcher
        self._prefix = prefix
        template = key if isinstance(key, str) else None
        self._terms = replace(terms, template=template, shape=result_shape(function))
        self._builder = KeyBuilder(function, key=key, ignore=ignore)
        self._tags = [KeyBuilder(function, key=tag) if "{" in tag else tag for tag in tags]
        if self._tags and not any(isinstance(tag, KeyBuilder) for tag in self._tags):
            self._terms = _tagged(self._terms, tuple(prefix + str(tag) for tag in self._tags))
            self._tags = []
        self._of_class = self._builder.parameters[:1] == ("cls",) and _in_a_class(function)
        self._remembered: dict[tuple[Any, ...], str] = {}
        self.cache = cache
        functools.update_wrapper(self, function)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):  # so that inspect sees a coroutine function
            setattr(self, name, getattr(function, name, None))

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, from the cache or loaded."""
        core = self._core
        try:
            full = None if kwargs else self._remembered.get(args)
            if full is not None and not (
                type(args[0]) in _EXACT if len(args) == 1 else _EXACT.issuperset(map(type, args))
            ):
                full = None
        except TypeError:  # an argument that cannot be looked up by
            full = None
        if full is None:
            full = self._full_key(args, kwargs)
        until = core.until(full)  # before the value, as in the short way
        value: R = core.find(full, MISSING)
        if value is not MISSING and (until is None or core.now() < until):
            if provider_module._TRACER_PROVIDER is not None and core.tracing.wanted():
                core.tracing.hit("cache.get_or_set", full, value, self._terms.template)
            try:
                core.touch(full)
            except KeyError:
                pass  # it has just left, on another thread
            core.counters.hits += 1
            return value
        function = self._function
        loaded: R = await core.here().get_or_set(
            full,
            self._prefix,
            lambda: function(*args, **kwargs),
            self._terms_of(args, kwargs) if self._tags else self._terms,
        )
        return loaded

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a run that begins now; it replaces what is cached. A failure is raised and changes nothing."""
        self._check_class(args)
        function = self._function
        full = self._full_key(args, kwargs)
        value = await self._core.here().refresh(
            full, self._prefix, lambda: function(*args, **kwargs), self._terms_of(args, kwargs)
        )
        return cast(R, value)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result; whether it was there."""
        self._check_class(args)
        return bool(await self._core.here().delete("cache.delete", [self._full_key(args, kwargs)]))

    async def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, the cache left aside."""
        self._check_class(args)
        return await self._function(*args, **kwargs)

    async def set(self, value: R, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store a result for these arguments, as if the function had returned it."""
        self._check_class(args)
        terms = self._terms_of(args, kwargs)
        return await self._core.here().set(self._full_key(args, kwargs), value, ..., None, terms.tags, terms, None)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of these arguments, without the namespace.

        Raises:
            InvalidKeyError: An argument has no stable identity, or the key is not a valid one.
            TypeError: The function takes no such arguments.
        """
        self._check_class(args)
        return self._builder(args, kwargs)

    # Written as the type of self, so that a checker tells apart a class method (its first parameter is the owner), a
    # method (the instance) and a static one (neither).
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]], instance: object, owner: S
    ) -> "Memoized[Q, R]": ...
    @overload
    def __get__(self, instance: None, owner: type) -> "Memoized[P, R]": ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]], instance: S, owner: type | None = None
    ) -> "Memoized[Q, R]": ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> "Memoized[P, R]": ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The method of an instance or class; the function itself when asked for on the class."""
        return self if instance is None else _Bound(self, instance)

    def __repr__(self) -> str:
        return f"<memoized {self._builder.name}>"

    def __reduce__(self) -> str:
        """Its name: it is copied and pickled as a function is."""
        return self._function.__qualname__

    def _check_class(self, args: tuple[Any, ...]) -> None:
        """Refuse arguments without the class that a class method has in front: since Python 3.13 a ``classmethod``
        around a memoized function leaves it out."""
        if self._of_class and not (args and isinstance(args[0], type)):
            raise TypeError(f"{self._builder.name}: the class is missing: put @memoize above @classmethod")

    def _full_key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        full = self._prefix + self._builder(args, kwargs)
        small = len(full) <= _LONGEST_REMEMBERED and sum(map(getsizeof, args)) <= _LARGEST_REMEMBERED
        if small and not kwargs and self._builder.pure and _EXACT.issuperset(map(type, args)):
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[args] = full
        return full

    def _terms_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Terms:
        if not self._tags:
            return self._terms
        tags = [tag(args, kwargs) if isinstance(tag, KeyBuilder) else tag for tag in self._tags]
        return _tagged(self._terms, tuple(self._prefix + tag for tag in tags))


def memoized(decorated: Any, **options: Any) -> Any:
    """A memoized function, method, static or class method; the options are those of `Memoized`."""
    if isinstance(decorated, classmethod):
        return MemoizedClassMethod(Memoized(decorated.__func__, **options))
    if isinstance(decorated, staticmethod):
        return staticmethod(Memoized(decorated.__func__, **options))
    return Memoized(decorated, **options)


def _in_a_class(function: Callable[..., Any]) -> bool:
    around = function.__qualname__.rpartition(".")[0]
    return bool(around) and not around.endswith("<locals>")


@final
class _Bound:
    """A memoized method with its receiver: made anew at each ``object.method``, and so kept light."""

    def __init__(self, memoized: Memoized[..., Any], receiver: Any) -> None:
        self._memoized = memoized
        self.__self__ = receiver
        self.__doc__ = memoized.__doc__
        self.__module__ = memoized.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """The method's result, from the cache or loaded."""
        return self._memoized(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the function has, its name and code among them, so that `inspect` sees a coroutine function."""
        return getattr(self._memoized, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Its receiver and its name, as of other methods."""
        return getattr, (self.__self__, self._memoized._function.__name__)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's parameters without the receiver."""
        signature = inspect.signature(self._memoized._function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """As `Memoized.refresh`."""
        return await self._memoized.refresh(self.__self__, *args, **kwargs)

    async def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """As `Memoized.invalidate`."""
        return await self._memoized.invalidate(self.__self__, *args, **kwargs)

    async def bypass(self, *args: Any, **kwargs: Any) -> Any:
        """As `Memoized.bypass`."""
        return await self._memoized.bypass(self.__self__, *args, **kwargs)

    async def set(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        """As `Memoized.set`."""
        return await self._memoized.set(value, self.__self__, *args, **kwargs)

    def key(self, *args: Any, **kwargs: Any) -> str:
        """As `Memoized.key`."""
        return self._memoized.key(self.__self__, *args, **kwargs)


@final
class MemoizedClassMethod:
    """A memoized class method: since Python 3.13 the built-in one leaves a descriptor's own binding aside."""

    def __init__(self, memoized: Memoized[..., Any]) -> None:
        self.__func__ = memoized

    def __get__(self, instance: Any, owner: type) -> Any:
        """The method with its class."""
        return _Bound(self.__func__, owner)


@final
class MemoizedMany(Generic[K, V]):
    """A coroutine function of a list of things, of which each result is cached by itself.

    Attributes:
        cache: The cache that keeps the results.
    """

    def __init__(
        self,
        function: Callable[[list[K]], Coroutine[Any, Any, Mapping[K, V]]],
        *,
        cache: Any,
        dispatcher: Dispatcher,
        prefix: str,
        terms: Terms,
        key: KeyRule,
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"memoize_many takes a coroutine function (async def), not {function!r}")
        if any("{" in tag for tag in terms.tags):
            raise ConfigError(
                "memoize_many: its tags are names, not templates: all that is loaded together has the same"
            )
        self._function = function
        self._core = dispatcher
        self._prefix = prefix
        self._terms = replace(terms, shape=result_shape(function, of_mapping=True))
        self._builder = _builder_of_one(function, key)
        self.cache = cache
        functools.update_wrapper(self, function)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            setattr(self, name, getattr(function, name, None))

    async def __call__(self, things: Iterable[K]) -> dict[K, V]:
        """The results that there are, in the order of the things; one call of the function loads the missing ones."""
        fulls: dict[K, str] = {}
        firsts: dict[str, K] = {}  # things of one key are one: the first stands for the others
        for each in things:
            if each not in fulls:
                full = fulls[each] = self._prefix + self.key(each)
                firsts.setdefault(full, each)
        loaded = await self._core.here().get_or_set_many(
            list(firsts.values()), fulls, None, self._function, self._terms
        )
        return {each: loaded[firsts[full]] for each, full in fulls.items() if firsts[full] in loaded}

    async def invalidate(self, *things: K) -> int:
        """Remove the results; how many were there.

        Args:
            *things: One by one, not as a list.

        Raises:
            TypeError: One of them cannot be one of the things: it has no hash.
        """
        for each in things:
            hash(each)  # a list of things is no thing
        return await self._core.here().delete("cache.delete_many", [self._prefix + self.key(each) for each in things])

    def key(self, thing: K) -> str:
        """The key of one thing, without the namespace."""
        return self._builder((thing,), {})

    def __repr__(self) -> str:
        return f"<memoized {self._builder.name}>"

    def __reduce__(self) -> str:
        """Its name: it is copied and pickled as a function is."""
        return self._function.__qualname__


def _builder_of_one(function: Callable[..., Any], key: KeyRule) -> KeyBuilder:
    """A builder for a function of one of the things: its parameter is what the template names, or ``item``."""
    names = list(inspect.signature(function).parameters)
    if len(names) != 1:
        raise ConfigError("memoize_many takes a function of one argument, the list of what is missing")
    name = "item"
    if isinstance(key, str):
        inside = key.replace("{{", "").partition("{")[2]
        if not inside:
            raise ConfigError(f"memoize_many: template {key!r} has no field that stands for one of the list")
        name = "".join(iter_identifier(inside)) or name

    async def one(item: Any) -> None: ...

    one.__module__, one.__qualname__ = function.__module__, function.__qualname__
    parameter = inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    one.__dict__["__signature__"] = inspect.Signature([parameter])  # what inspect.signature reads
    return KeyBuilder(one, key=key)


def iter_identifier(text: str) -> Iterable[str]:
    """The characters of the identifier that the text begins with."""
    for place, character in enumerate(text):
        if not text[: place + 1].isidentifier():
            return
        yield character


def _tagged(terms: Terms, tags: tuple[str, ...]) -> Terms:
    return terms.tagged((*terms.tags, *tags))
