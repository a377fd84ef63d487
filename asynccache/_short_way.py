"""The short way: what a hit in the local seat takes, and nothing more; and the like for a remote seat alone.

Each cache has its own two functions, made with everything bound that a hit needs (an attribute less to look up is a
few nanoseconds of some two hundred and fifty). Only ``core.find`` changes: it looks into an empty table while there is
a reason not to take the short way. What is not found here goes through the dispatcher.

The deadline is read before the value, because the store writes a value before its deadline: a reader on another thread
may take a fresh value for a stale one, and never a stale one for fresh.
"""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import EllipsisType
from typing import Any, Protocol, TypeVar, Unpack, overload

from asynccache._arguments import own_terms, whole_key
from asynccache._dispatcher import Dispatcher
from asynccache.clock import stopwatch
from asynccache.entry import MISSING
from asynccache.errors import BackendError
from asynccache.keys import check_key
from asynccache.load import Load
from asynccache.policy import Policy, PolicyOptions, Ttl
from asynccache.shape import Shape
from asynccache.telemetry import provider_module

__all__ = ["Get", "GetOrSet", "bind_get", "bind_get_or_set", "put_remote"]

T = TypeVar("T")
D = TypeVar("D")


class Get(Protocol):
    """The type of `Cache.get`."""

    @overload
    async def __call__(self, key: str) -> Any | None: ...
    @overload
    async def __call__(self, key: str, default: D) -> Any | D: ...
    async def __call__(self, key: str, default: Any = None) -> Any:
        """The value, or ``default`` when it is absent or no longer fresh.

        Args:
            key: The key.
            default: What stands for no value; `MISSING` tells a stored ``None`` from it.
        """
        ...


class GetOrSet(Protocol):
    """The type of `Cache.get_or_set`."""

    @overload
    async def __call__(
        self,
        key: str,
        factory: Callable[[], Coroutine[Any, Any, T]] | Callable[[Load], Coroutine[Any, Any, T]],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> T: ...
    @overload
    async def __call__(
        self,
        key: str,
        factory: Callable[[], T] | Callable[[Load], T],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> T: ...
    async def __call__(
        self,
        key: str,
        factory: Callable[..., Any],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> Any:
        """The value; when it is absent or stale, what the factory returns: it runs once, however many ask.

        Args:
            key: The key.
            factory: An async or sync callable of nothing, or of a `Load`.
            ttl: How long the loaded value is fresh: a duration, ``None``, or a function of the value.
            policy: How to load, instead of the cache's policy.
            **options: Options of the policy, for this call.

        Raises:
            LoadTimeout: The load passed ``hard_timeout`` and there is no stale value.
            LoadCancelled: The factory was cancelled, or raised ``CancelledError``.
            RecursiveLoad: This very call is part of loading the key.
            Exception: What the factory raised, when there is no stale value.
        """
        ...


def bind_get(core: Dispatcher, prefix: str, shape: Shape | None = None) -> Get:
    """The ``get`` of a cache, or of a view for values of one type."""
    until_of, touch, now, counters = core.until, core.touch, core.now, core.counters
    timer = core.seats.failures.timer

    async def get(key: str, default: Any = None) -> Any:
        try:
            until = until_of(key)
            value = core.find(key, MISSING)
            if value is not MISSING and (until is None or now() < until):
                if provider_module._TRACER_PROVIDER is not None and core.tracing.wanted():
                    core.tracing.hit("cache.get", key, value)
                touch(key)
                counters.hits += 1
                return value
        except (TypeError, KeyError):
            pass  # not a key at all, or an entry that another thread has just removed
        return await core.here().get(check_key(key), default, shape)

    async def get_in_namespace(key: str, default: Any = None) -> Any:
        try:
            full = prefix + key
            until = until_of(full)
            value = core.find(full, MISSING)
            if value is not MISSING and (until is None or now() < until):
                if provider_module._TRACER_PROVIDER is not None and core.tracing.wanted():
                    core.tracing.hit("cache.get", full, value)
                touch(full)
                counters.hits += 1
                return value
        except (TypeError, KeyError):
            pass  # as above
        return await core.here().get(prefix + check_key(key), default, shape)

    async def get_remote(key: str, default: Any = None) -> Any:
        full = prefix + check_key(key)
        shortcut = core.shortcut
        if shortcut is None or (provider_module._TRACER_PROVIDER is not None and core.tracing.wanted()):
            return await core.here().get(full, default, shape)
        asking = None
        began = stopwatch() if timer.wanted else 0.0
        try:
            asking = shortcut.ask(full)
            if asking is None:
                return await core.here().get(full, default, shape)
            reply = await asking[0]
            found = shortcut.value(asking, reply)
            if found is not None:
                counters.hits += 1
                return found[0]
            here = core.here()  # the reply of a store that was closed meanwhile is that it is
            rest, asking = shortcut.rest(full, asking, reply), None
            entry = await here.seats.failures.attempt("get", rest, None, began)
        except BackendError as error:
            core.here()
            await core.seats.failures.taken("get", error)
            entry = None
        finally:
            if began and asking is not None:
                timer.record(stopwatch() - began, "get")
        if entry is not None:
            return await core.here().get(full, default, shape, entry)
        counters.misses += 1
        return default

    bound = get_in_namespace if prefix else get
    if core.local is None and shape is None:
        bound = get_remote
    bound.__qualname__, bound.__doc__ = "Cache.get", Get.__call__.__doc__
    return bound


def bind_get_or_set(core: Dispatcher, prefix: str, shape: Shape | None = None) -> GetOrSet:
    """The ``get_or_set`` of a cache, or of a view for values of one type."""
    until_of, touch, now, counters = core.until, core.touch, core.now, core.counters

    async def get_or_set(
        key: str,
        factory: Callable[..., Any],
        ttl: Ttl | EllipsisType = ...,
        *,
        policy: Policy | None = None,
        **options: Unpack[PolicyOptions],
    ) -> Any:
        try:
            full = prefix + key if prefix else key
            until = until_of(full)
            value = core.find(full, MISSING)
            if value is not MISSING and (until is None or now() < until):
                if provider_module._TRACER_PROVIDER is not None and core.tracing.wanted():
                    core.tracing.hit("cache.get_or_set", full, value)
                touch(full)
                counters.hits += 1
                return value
        except (TypeError, KeyError):
            pass  # as in get
        if not callable(factory):
            raise TypeError(f"factory is a callable, not {type(factory).__name__}")
        here = core.here()
        terms = here.terms
        if policy is not None or ttl is not ... or options or terms.tags:
            terms = own_terms(here, prefix, ttl, policy, options)
        if shape is not None:
            terms = replace(terms, shape=shape)
        return await here.get_or_set(whole_key(prefix, key), prefix, factory, terms)

    get_or_set.__qualname__, get_or_set.__doc__ = "Cache.get_or_set", GetOrSet.__call__.__doc__
    return get_or_set


async def put_remote(core: Dispatcher, key: str, value: Any, ttl: float | EllipsisType | None) -> bool:
    """Store a value of which a ttl says all in the remote seat, the only one; as `Dispatcher.set`."""
    supersede, terms, shortcut = core.loader.flights.supersede, core.terms, core.shortcut
    timer, storing = core.seats.failures.timer, None
    supersede(key)
    began = stopwatch() if timer.wanted else 0.0
    try:
        if shortcut is not None:
            storing = shortcut.put(key, value, terms.ttl if ttl is ... else ttl)
        stored = await (storing or core.set(key, value, ttl, None, (), terms, None))
    except BackendError as error:
        core.here()
        await core.seats.failures.taken("set", error)
        return False
    finally:
        if began and storing is not None:
            timer.record(stopwatch() - began, "set")
    supersede(key)  # one that began meanwhile may have read what was there before
    return stored
