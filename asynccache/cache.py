"""The cache that users hold: one meaning over every store."""

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, final, overload

from asynccache._arguments import (
    escaped,
    optional_seconds,
    own_terms,
    seconds_or_left_out,
    tag_names,
    whole_key,
    whole_keys,
)
from asynccache._detours import override
from asynccache._dispatcher import Dispatcher
from asynccache._failures import OnError
from asynccache._memoize import KeyRule, Memoized, MemoizedMany, memoized
from asynccache._opening import check_options, checked_policy, open_seats, raw_of
from asynccache._short_way import Get, GetOrSet, bind_get, bind_get_or_set, put_remote
from asynccache._typed_cache import TypedCache
from asynccache.backend import Backend, OnlyIf
from asynccache.backends.memory import MemoryBackend
from asynccache.clock import Clock
from asynccache.duration import Duration, seconds
from asynccache.entry import Entry
from asynccache.errors import ConfigError
from asynccache.keys import check_view
from asynccache.policy import Policy, PolicyOptions, Ttl
from asynccache.stats import Stats
from asynccache.telemetry import Telemetry

if TYPE_CHECKING:
    from asynccache.backends.redis.raw import RawRedis

__all__ = ["Cache"]

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K")
T = TypeVar("T")


@final
class Cache:
    """A cache over an in-process store, a remote one, or both.

    Nothing is opened before the first call. One object may be used by any number of tasks, under one event loop after
    another, and from loops in several threads.

    A *key* is a non-empty text without NUL, at most 1,024 bytes of UTF-8; anything else raises `InvalidKeyError`. A
    *ttl* is a duration, ``None`` for no expiry; left out, it is the policy's. When the store fails, reads miss and
    writes return ``False`` or ``0``, unless ``on_error`` says otherwise.

    Args:
        store: A URL such as ``"memory://?max_entries=10000"``, or a backend object (which you close yourself).
        local: The in-process store in front of a remote one: a ``memory://`` URL or a `MemoryBackend`.
        name: What spans, metrics and logs call it.
        namespace: What keeps its keys apart from those of other caches on the same store.
        ttl: How long a value is fresh, unless a call says otherwise.
        policy: How values are loaded and kept, unless a call says otherwise.
        codec: How values become bytes, for a store that keeps bytes.
        on_error: ``"degrade"``, ``"raise"``, or a function that is told of every failure that was hidden.
        telemetry: ``"auto"``, ``"off"``, or a `Telemetry`.
        clock: Where time comes from.
        **options: Options of the policy.

    Raises:
        ConfigError: An option is unknown, ill-typed, or contradicts another.
    """

    # Described here because each cache has a function of its own, made when it is: the shortest way to a hit.
    __slots__ = {
        "__weakref__": None,
        "_core": None,
        "_prefix": None,
        "get": Get.__call__.__doc__,
        "get_or_set": GetOrSet.__call__.__doc__,
    }
    get: Get
    get_or_set: GetOrSet

    def __init__(
        self,
        store: str | Backend | MemoryBackend = "memory://",
        *,
        local: str | MemoryBackend | None = None,
        name: str = "default",
        namespace: str = "",
        ttl: Ttl | EllipsisType = ...,
        policy: Policy | None = None,
        codec: Any = None,
        on_error: OnError = "degrade",
        telemetry: Literal["auto", "off"] | Telemetry = "auto",
        clock: Clock | None = None,
        **options: Unpack[PolicyOptions],
    ) -> None:
        check_options(on_error=on_error, telemetry=telemetry, name=name, namespace=namespace)
        terms = checked_policy(ttl, policy, options)
        opened = open_seats(store, local, clock, codec, f"{escaped(namespace)}:" if namespace else "")
        core = Dispatcher(
            local=opened.local,
            remote=opened.remote,
            owned=opened.owned,
            clock=opened.clock,
            name=name,
            policy=terms,
            on_error=on_error,
            telemetry=None if telemetry == "off" else Telemetry() if telemetry == "auto" else telemetry,
            prefix=opened.added,
        )
        self._bind(core, opened.prefix)

    def _bind(self, core: Dispatcher, prefix: str) -> None:
        self._core, self._prefix = core, prefix
        self.get = bind_get(core, prefix)
        self.get_or_set = bind_get_or_set(core, prefix)

    # Reading

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those found, in the order of the keys: one round trip."""
        return await self._core.here().get_many(whole_keys(self._prefix, keys))

    async def exists(self, key: str) -> bool:
        """Whether the key has a fresh value; this look counts as no use."""
        return await self._core.here().ttl(whole_key(self._prefix, key)) is not None

    async def ttl(self, key: str) -> float | None:
        """Seconds of freshness left: ``math.inf`` with no expiry, ``None`` when absent."""
        return await self._core.here().ttl(whole_key(self._prefix, key))

    async def entry(self, key: str) -> Entry | None:
        """The stored entry with its times and tags, fresh or stale, or ``None``: for looking."""
        return await self._core.here().entry(whole_key(self._prefix, key), self._prefix)

    async def keys(self, match: str = "*") -> AsyncIterator[str]:
        """The keys of this namespace, not those of deeper ones, that match the glob; without the namespace.

        ``*`` is any text, ``?`` any character, ``[a-z]`` one of a set, ``[^a-z]`` one not of it; a backslash takes the
        meaning away.
        """
        async for key in self._core.here().keys(self._prefix, match):
            yield key

    # Writing

    async def set(
        self,
        key: str,
        value: Any,
        ttl: Duration | EllipsisType | None = ...,
        *,
        grace: Duration | None = None,
        tags: Iterable[str] = (),
        only_if: OnlyIf = None,
    ) -> bool:
        """Store a value; whether the condition held and the store took it. A load of the key under way does not
        overwrite it.

        Args:
            key: The key.
            value: Any value that the store can keep.
            ttl: How long it is fresh.
            grace: How long past that it can stand in for a failing load; left out, the policy's.
            tags: Names under which it can be invalidated together with others.
            only_if: ``"absent"`` or ``"present"``: the condition, tested atomically.

        Raises:
            EncodeError: The store cannot keep the value so that it comes back equal.
        """
        core = self._core.here()
        full = whole_key(self._prefix, key)
        if core.short_writes and only_if is None and grace is None and tags == () and not core.tracing.wanted():
            left = seconds_or_left_out(ttl)
            return core.put(full, value, left) if core.remote is None else await put_remote(core, full, value, left)
        if only_if not in (None, "absent", "present"):
            raise ConfigError(f'only_if is "absent", "present" or None, not {only_if!r}')
        given = seconds_or_left_out(ttl)
        spare = optional_seconds(grace, "grace")
        return await core.set(full, value, given, spare, tag_names(self._prefix, tags, core.terms), core.terms, only_if)

    async def add(
        self,
        key: str,
        value: Any,
        ttl: Duration | EllipsisType | None = ...,
        *,
        grace: Duration | None = None,
        tags: Iterable[str] = (),
    ) -> bool:
        """Store a value if the key has none; whether it was stored."""
        return await self.set(key, value, ttl, grace=grace, tags=tags, only_if="absent")

    async def set_many(
        self,
        values: Mapping[str, Any],
        ttl: Duration | EllipsisType | None = ...,
        *,
        grace: Duration | None = None,
        tags: Iterable[str] = (),
    ) -> bool:
        """Store all values: one round trip; whether the store took them."""
        core = self._core.here()
        whole = {full: values[key] for key, full in whole_keys(self._prefix, values).items()}
        names = tag_names(self._prefix, tags, core.terms)
        given, spare = seconds_or_left_out(ttl), optional_seconds(grace, "grace")
        return await core.set_many(whole, given, spare, names, core.terms)

    async def delete(self, key: str) -> bool:
        """Remove the key; whether it had a fresh value. A load under way does not bring it back."""
        return bool(await self._core.here().delete("cache.delete", [whole_key(self._prefix, key)]))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove the keys: one round trip; how many had a fresh value."""
        return await self._core.here().delete("cache.delete_many", list(whole_keys(self._prefix, keys).values()))

    async def touch(self, key: str, ttl: Duration | None) -> bool:
        """Give a fresh entry a new ttl, from now; whether there was one."""
        return await self._core.here().retime(whole_key(self._prefix, key), optional_seconds(ttl, "ttl"))

    async def incr(self, key: str, delta: int = 1, *, ttl: Duration | None = None) -> int:
        """Add to a counter, atomically, and return the sum; an absent one starts at zero.

        Args:
            key: The key.
            delta: What to add.
            ttl: How long a counter that this call creates lives; ``None`` for ever.

        Raises:
            TypeError: The key holds something else than an integer, or ``delta`` is none.
        """
        return await self._count("cache.incr", key, delta, ttl)

    async def decr(self, key: str, delta: int = 1, *, ttl: Duration | None = None) -> int:
        """Subtract from a counter; as `incr`."""
        return await self._count("cache.decr", key, delta, ttl)

    async def _count(self, name: str, key: str, delta: int, ttl: Duration | None) -> int:
        if type(delta) is not int:
            raise TypeError(f"delta is an integer, not {type(delta).__name__}")
        delta = -delta if name == "cache.decr" else delta
        spare = optional_seconds(ttl, "ttl")
        return await self._core.here().add_to(name, whole_key(self._prefix, key), delta, spare)

    async def clear(self, match: str = "*") -> int:
        """Remove the keys of this namespace that match the glob; how many had a fresh value.

        ``"*"`` removes those of the namespaces below it too. Neighbours' keys are never touched.
        """
        return await self._core.here().clear(self._prefix, match)

    async def invalidate_tags(self, *tags: str) -> None:
        """Hide every entry of this namespace that has one of the tags: O(1) in the number of entries.

        An entry whose making began before this call is hidden, also one that is still being loaded; one whose making
        begins after it is not.
        """
        core = self._core.here()
        await core.invalidate([whole_key(self._prefix, tag) for tag in tags], self._prefix)

    # Loading

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> dict[str, Any]:
        """The values of the keys, in their order; those that the loader does not return are left out.

        Args:
            keys: The keys.
            loader: An async or sync callable of the list of missing keys, that returns a mapping. Keys that are being
                loaded already, by other processes too, are waited for instead.
            ttl: How long the loaded values are fresh.
            policy: How to load, instead of the cache's policy.
            **options: Options of the policy, for this call.
        """
        if not callable(loader):
            raise TypeError(f"loader is a callable, not {type(loader).__name__}")
        core = self._core.here()
        fulls = whole_keys(self._prefix, keys)
        terms = own_terms(core, self._prefix, ttl, policy, options)
        return await core.get_or_set_many(list(fulls), fulls, self._prefix, loader, terms)

    @overload
    def memoize(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Memoized[P, R]: ...
    @overload
    def memoize(
        self,
        function: None = None,
        /,
        *,
        ttl: Ttl | EllipsisType = ...,
        key: KeyRule = None,
        ignore: Collection[str] = (),
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Memoized[P, R]]: ...
    def memoize(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        ttl: Ttl | EllipsisType = ...,
        key: KeyRule = None,
        ignore: Collection[str] = (),
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> Any:
        """Cache the results of a coroutine function, method, static or class method.

        Args:
            function: The function, when the decorator is used without options.
            ttl: How long a result is fresh: a duration, ``None``, or a function of the result.
            key: A template such as ``"user:{user_id}"``, a function of the arguments, or ``None``: a digest of all of
                them.
            ignore: Names of parameters that make no difference to the result.
            policy: How to load, instead of the cache's policy.
            **options: Options of the policy; ``tags`` may be templates too.

        Raises:
            ConfigError: A template names no parameter, or an option is wrong; at decoration.
        """
        tags = options.get("tags", ())
        rest = cast(PolicyOptions, {name: value for name, value in options.items() if name != "tags"})
        if isinstance(tags, str):
            raise ConfigError(f"tags is a collection of names, not one text: write tags=[{tags!r}]")
        decorate = partial(
            memoized,
            cache=self,
            dispatcher=self._core,
            prefix=self._prefix,
            terms=own_terms(self._core, self._prefix, ttl, policy, rest),
            key=key,
            ignore=ignore,
            tags=tuple(tags),
        )
        return decorate if function is None else decorate(function)

    def memoize_many(
        self,
        *,
        ttl: Ttl | EllipsisType = ...,
        key: KeyRule = None,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> Callable[[Callable[[list[K]], Coroutine[Any, Any, Mapping[K, R]]]], MemoizedMany[K, R]]:
        """Cache the results of a coroutine function that takes a list and returns a mapping, each by itself.

        Args:
            ttl: How long a result is fresh.
            key: A template with one field, which stands for one of the list, such as ``"user:{id}"``; a function of
                it; or ``None``.
            policy: How to load, instead of the cache's policy.
            **options: Options of the policy.
        """
        return partial(
            MemoizedMany,
            cache=self,
            dispatcher=self._core,
            prefix=self._prefix,
            terms=own_terms(self._core, self._prefix, ttl, policy, options),
            key=key,
        )

    def override(self, *, refresh: bool = False, bypass: bool = False) -> AbstractContextManager[None]:
        """In this context, and in tasks begun in it, have this and every other cache load anew (``refresh``), or leave
        them aside (``bypass``).

        Raises:
            ConfigError: Not exactly one of the two is set.
        """
        if refresh == bypass:
            raise ConfigError("override takes refresh=True or bypass=True")
        return override("refresh" if refresh else "bypass")

    def lock(
        self, key: str, *, ttl: Duration, timeout: Duration | None = None
    ) -> AbstractAsyncContextManager[int | None]:
        """Hold a lock, shared with other processes when the store is; what is entered is its fencing number.

        A holder's number is greater than those of all before him: what has seen a greater one refuses his writes. It is
        ``None`` where the store has none, or failed.

        Args:
            key: Its name, apart from the keys of entries.
            ttl: When it lapses although nobody has given it back: longer than the work takes.
            timeout: How long to wait for it; ``None`` for as long as it takes.

        Raises:
            LockTimeout: It was not free in time.
        """
        full, left = whole_key(self._prefix, key), optional_seconds(timeout, "timeout")
        return self._core.here().lock(full, seconds(ttl, name="ttl"), left)

    # The rest

    @property
    def redis(self) -> "RawRedis":
        """Redis itself, for what a cache has no word for; where the store is another one, this is `NotSupported`."""
        return raw_of(self._core.here().remote)

    def namespace(self, name: str) -> "Cache":
        """A view: the same store and settings, with keys of its own.

        Raises:
            InvalidKeyError: The name is empty or not a valid text.
        """
        view = Cache.__new__(Cache)
        # No key has a NUL, so no key of this namespace can be taken for one of that.
        view._bind(self._core, f"{self._prefix}{check_view(name)}\0")
        return view

    def typed(self, kind: type[T]) -> TypedCache[T]:
        """A view for values of one type, which come back as that type from every store: a dataclass, ``list[User]``.

        Raises:
            ConfigError: The type cannot be supported, or the library for it is missing.
        """
        return TypedCache(self, self._core, self._prefix, kind)

    def stats(self) -> Stats:
        """What was counted so far, by all views together."""
        return (self._core if self._core.closed else self._core.here()).stats()

    async def ping(self) -> bool:
        """Whether the store answers."""
        return await self._core.here().ping()

    async def aclose(self) -> None:
        """End the background work and let go of what the cache opened; a second call does nothing."""
        await self._core.aclose()

    async def __aenter__(self) -> Self:
        self._core.here()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Cache({self._core.backend_name!r}, name={self._core.name!r})"
