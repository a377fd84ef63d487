"""A view of a cache for values of one type."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from types import EllipsisType
from typing import Any, Generic, Protocol, TypeVar, Unpack, cast, final, overload

from asynccache._arguments import (
    optional_seconds,
    own_terms,
    seconds_or_left_out,
    tag_names,
    whole_key,
    whole_keys,
)
from asynccache._dispatcher import Dispatcher
from asynccache._shapes import shape_for
from asynccache._short_way import bind_get, bind_get_or_set
from asynccache.backend import OnlyIf
from asynccache.duration import Duration
from asynccache.errors import ConfigError
from asynccache.load import Load
from asynccache.policy import Policy, PolicyOptions, Terms, Ttl

__all__ = ["TypedCache"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")


class _Get(Protocol[T_co]):
    @overload
    async def __call__(self, key: str) -> T_co | None: ...
    @overload
    async def __call__(self, key: str, default: D) -> T_co | D: ...
    async def __call__(self, key: str, default: Any = None) -> Any: ...


class _GetOrSet(Protocol[T]):
    async def __call__(
        self,
        key: str,
        factory: Callable[[], Coroutine[Any, Any, T]]
        | Callable[[Load], Coroutine[Any, Any, T]]
        | Callable[[], T]
        | Callable[[Load], T],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> T: ...


@final
class TypedCache(Generic[T]):
    """The same keys, entries and settings as its cache; what it stores and returns is of one type.

    Read a key by the type that it was written with: the in-process store keeps the values themselves.

    Attributes:
        cache: The cache that it is a view of: for deleting, touching, listing and all that is of no type.
        get: As `Cache.get`.
        get_or_set: As `Cache.get_or_set`.
    """

    __slots__ = ("_core", "_prefix", "_shape", "cache", "get", "get_or_set")

    def __init__(self, cache: Any, core: Dispatcher, prefix: str, kind: Any) -> None:
        self.cache = cache
        self._core = core
        self._prefix = prefix
        self._shape = shape_for(kind)
        self.get = cast(_Get[T], bind_get(core, prefix, self._shape))
        self.get_or_set = cast(_GetOrSet[T], bind_get_or_set(core, prefix, self._shape))

    async def get_many(self, keys: Iterable[str]) -> dict[str, T]:
        """As `Cache.get_many`."""
        return await self._core.here().get_many(whole_keys(self._prefix, keys), self._shape)

    async def set(
        self,
        key: str,
        value: T,
        ttl: Duration | EllipsisType | None = ...,
        *,
        grace: Duration | None = None,
        tags: Iterable[str] = (),
        only_if: OnlyIf = None,
    ) -> bool:
        """As `Cache.set`.

        Raises:
            EncodeError: On a store of bytes, the value is not of the type, or would not come back equal.
        """
        core = self._core.here()
        if only_if not in (None, "absent", "present"):
            raise ConfigError(f'only_if is "absent", "present" or None, not {only_if!r}')
        return await core.set(
            whole_key(self._prefix, key),
            value,
            seconds_or_left_out(ttl),
            optional_seconds(grace, "grace"),
            tag_names(self._prefix, tags, core.terms),
            self._typed(core.terms),
            only_if,
        )

    async def add(
        self,
        key: str,
        value: T,
        ttl: Duration | EllipsisType | None = ...,
        *,
        grace: Duration | None = None,
        tags: Iterable[str] = (),
    ) -> bool:
        """As `Cache.add`."""
        return await self.set(key, value, ttl, grace=grace, tags=tags, only_if="absent")

    async def set_many(
        self,
        values: Mapping[str, T],
        ttl: Duration | EllipsisType | None = ...,
        *,
        grace: Duration | None = None,
        tags: Iterable[str] = (),
    ) -> bool:
        """As `Cache.set_many`."""
        core = self._core.here()
        whole = {full: values[key] for key, full in whole_keys(self._prefix, values).items()}
        names = tag_names(self._prefix, tags, core.terms)
        given, spare = seconds_or_left_out(ttl), optional_seconds(grace, "grace")
        return await core.set_many(whole, given, spare, names, self._typed(core.terms))

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Coroutine[Any, Any, Mapping[str, T]] | Mapping[str, T]],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> dict[str, T]:
        """As `Cache.get_or_set_many`."""
        if not callable(loader):
            raise TypeError(f"loader is a callable, not {type(loader).__name__}")
        core = self._core.here()
        fulls = whole_keys(self._prefix, keys)
        terms = self._typed(own_terms(core, self._prefix, ttl, policy, options))
        return await core.get_or_set_many(list(fulls), fulls, self._prefix, loader, terms)

    def _typed(self, terms: Terms) -> Terms:
        return replace(terms, shape=self._shape)

    def __repr__(self) -> str:
        return f"<TypedCache of {self.cache!r}>"
