"""The public names: what is here a user may rely on, and a change of it is a decision."""

import inspect
from collections.abc import Callable
from typing import Any, Final

import pytest

import asynccache
import asynccache.backends.redis
import asynccache.eviction_policies
import asynccache.testing
from asynccache import Cache, Entry, Load, MemoryBackend, NotSupported, Policy, Stats, Telemetry
from asynccache._memoize import Memoized, MemoizedMany
from asynccache.backends.redis import RedisBackend

NAMES: Final = {
    asynccache: [
        "Backend", "BackendError", "BackendTimeout", "BackendUnavailable", "Cache", "CacheClosed", "CacheError",
        "Caches", "Clock", "CodecError", "ConfigError", "DecodeError", "Duration", "EncodeError", "Entry",
        "EvictionPolicy", "Ignore", "InvalidKeyError", "Lease", "Leases", "Load", "LoadCancelled", "LoadError",
        "LoadTimeout", "LockTimeout", "MISSING", "MemoryBackend", "NotSupported", "Policy", "RecursiveLoad",
        "Stats", "Telemetry",
    ],
    asynccache.backends.redis: ["RedisBackend", "open_redis"],
    asynccache.testing: ["BackendConformance", "FaultyBackend", "Sandbox", "TravellingClock", "sandbox"],
    asynccache.eviction_policies: ["EVICTION_POLICIES", "LRU", "S3FIFO"],
}  # fmt: skip

CALLS: Final = {
    "get": "(key, default=None)",
    "get_many": "(keys)",
    "exists": "(key)",
    "ttl": "(key)",
    "entry": "(key)",
    "keys": "(match='*')",
    "set": "(key, value, ttl=..., *, grace=None, tags=(), only_if=None)",
    "add": "(key, value, ttl=..., *, grace=None, tags=())",
    "set_many": "(values, ttl=..., *, grace=None, tags=())",
    "delete": "(key)",
    "delete_many": "(keys)",
    "touch": "(key, ttl)",
    "incr": "(key, delta=1, *, ttl=None)",
    "typed": "(kind)",
    "decr": "(key, delta=1, *, ttl=None)",
    "clear": "(match='*')",
    "invalidate_tags": "(*tags)",
    "get_or_set": "(key, factory, ttl=..., *, policy=None, **options)",
    "get_or_set_many": "(keys, loader, ttl=..., *, policy=None, **options)",
    "memoize": "(function=None, /, *, ttl=..., key=None, ignore=(), policy=None, **options)",
    "memoize_many": "(*, ttl=..., key=None, policy=None, **options)",
    "override": "(*, refresh=False, bypass=False)",
    "lock": "(key, *, ttl, timeout=None)",
    "namespace": "(name)",
    "stats": "()",
    "ping": "()",
    "aclose": "()",
}
"""The calls of a cache, in the order of its documentation."""

CONSTRUCTORS: Final = {
    Cache: "(store='memory://', *, local=None, name='default', namespace='', ttl=..., policy=None, codec=None, "
    "on_error='degrade', telemetry='auto', clock=None, **options)",
    Policy: "(*, ttl=None, grace=None, grace_throttle=30.0, refresh_ahead=None, jitter=0.0, soft_timeout=None, "
    "hard_timeout=None, background_timeout=30.0, sliding=False, negative_ttl=None, cache_if=None, lock='shared', "
    "tags=())",
    MemoryBackend: "(*, max_entries=100000, max_bytes=None, policy='lru', copy=False, weigher=None, on_removal=None, "
    "ttl=None, clock=None)",
    Telemetry: "(*, tracer_provider=None, meter_provider=None, keys='off', hash_secret=b'')",
}

ATTRIBUTES: Final = {
    Memoized: ["bypass", "cache", "invalidate", "key", "refresh", "set"],
    MemoizedMany: ["invalidate", "key"],
    Policy: [
        "background_timeout", "but", "cache_if", "grace", "grace_throttle", "hard_timeout", "jitter", "lock",
        "negative_ttl", "refresh_ahead", "sliding", "soft_timeout", "tags", "ttl",
    ],
    Stats: [
        "bytes", "coalesced", "entries", "errors", "evictions", "expirations", "hit_ratio", "hits", "load_failures",
        "loads", "misses", "stale_hits",
    ],
    Load: [
        "add_tags", "grace", "grace_given", "keep_stale", "key", "reason", "skip", "skipped", "stale", "tags", "ttl",
        "ttl_given",
    ],
    Entry: ["created_at", "expires_at", "fresh_until", "tags", "typed", "value"],
    asynccache.Caches: ["aclose", "from_env", "from_mapping", "from_toml"],
    asynccache.testing.FaultyBackend: [
        "aclose", "coherence", "delay", "delete", "fail", "get", "get_many", "hang", "heads", "heal", "health", "incr",
        "keys", "leases", "lose", "name", "ping", "reports", "set", "set_many", "shortcut", "touch",
    ],
    asynccache.testing.Sandbox: ["travel"],
}  # fmt: skip

MEMOIZED: Final = {
    "refresh": "(*args, **kwargs)",
    "invalidate": "(*args, **kwargs)",
    "bypass": "(*args, **kwargs)",
    "set": "(value, *args, **kwargs)",
    "key": "(*args, **kwargs)",
}


def shape(function: Callable[..., Any]) -> str:
    """A function's parameters without their types."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    shown = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return shown.replace("Ellipsis", "...")


def public(thing: object) -> list[str]:
    """The attributes of a thing that have no underscore."""
    return sorted(name for name in dir(thing) if not name.startswith("_"))


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_the_public_names_are_these(module: Any) -> None:
    """A public name comes or goes by a change of this list only."""
    assert sorted(module.__all__) == NAMES[module]


def test_the_calls_of_a_cache_are_these() -> None:
    """A cache has exactly these calls, and ``redis``, which only a cache on Redis has in fact."""
    assert public(Cache) == sorted([*CALLS, "redis"]) == public(Cache())
    with pytest.raises(NotSupported):
        _ = Cache().redis


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_what_it_took(name: str) -> None:
    """The names, order, kinds and defaults of a call's parameters stay as they are."""
    assert shape(getattr(Cache(), name)) == CALLS[name]


@pytest.mark.parametrize("kind", CONSTRUCTORS, ids=lambda kind: kind.__name__)
def test_a_constructor_takes_what_it_took(kind: type) -> None:
    """The names, order, kinds and defaults of a constructor's parameters stay as they are."""
    assert shape(kind) == CONSTRUCTORS[kind]


def test_a_redis_store_is_made_as_it_was() -> None:
    """By URL, or like a client of redis-py."""
    assert shape(RedisBackend.from_url) == "(url, *, codec=None, clock=None, credentials=None, ssl_context=None)"
    assert shape(RedisBackend.like) == "(client, *, codec=None, clock=None, timeout='500ms', connect_timeout='1s')"


@pytest.mark.parametrize("kind", ATTRIBUTES, ids=lambda kind: kind.__name__)
def test_the_attributes_of_a_class_are_these(kind: type) -> None:
    """A public attribute comes or goes by a change of this list only."""
    assert public(kind) == ATTRIBUTES[kind]


@pytest.mark.parametrize("name", MEMOIZED)
def test_a_memoized_function_and_method_take_the_arguments_of_the_function(name: str) -> None:
    """What a memoized function can do, a memoized method can, too, with the same parameters."""
    cache = Cache()

    class Shop:
        @cache.memoize
        async def price(self, item: str) -> int:
            return len(item)

    assert shape(getattr(Shop.price, name)) == MEMOIZED[name]
    assert shape(getattr(Shop().price, name)) == MEMOIZED[name]


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in NAMES.items() for name in names if name[0].isalpha()]
)
def test_every_public_thing_is_described(module: Any, name: str) -> None:
    """A public class or function, and each public method and property of a class, has a docstring; an eviction policy
    does what its contract says."""
    thing = getattr(module, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # a constant or a type alias: described where it stands
    assert _described(thing), name
    if inspect.isclass(thing) and thing.__module__.startswith("asynccache"):
        for attribute in public(thing):
            member = inspect.getattr_static(thing, attribute)
            if inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod):
                said = [member, inspect.getattr_static(asynccache.EvictionPolicy, attribute, None)]
                assert any(_described(each) for each in said[: 2 if name in ("LRU", "S3FIFO") else 1]), attribute


def test_the_calls_of_a_cache_are_described() -> None:
    """``help`` has a description of every call, on the class and on a cache."""
    cache = Cache()
    for name in CALLS:
        assert inspect.getdoc(getattr(Cache, name)), name
        assert inspect.getdoc(getattr(cache, name)), name


@pytest.mark.parametrize("kind", [Policy, Stats, Entry, Load, Telemetry], ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: type) -> None:
    """The docstring of a record names each of its fields."""
    described = inspect.getdoc(kind) or ""
    fields = [name for name in public(kind) if inspect.ismemberdescriptor(inspect.getattr_static(kind, name))]
    assert fields
    assert [name for name in fields if f"\n    {name}: " not in described] == []


def _described(thing: Any) -> bool:
    documented = (thing.__doc__ or "").strip()
    # A dataclass without a docstring gets its signature for one.
    return bool(documented) and not documented.startswith(f"{getattr(thing, '__name__', '')}(")
