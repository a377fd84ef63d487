"""What a store must be able to do to sit behind a cache."""

import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, final
from urllib.parse import SplitResult

from asynccache.clock import Clock
from asynccache.entry import Entry

__all__ = [
    "Asking",
    "Backend",
    "Coherence",
    "Heads",
    "Health",
    "Lease",
    "Leases",
    "OnlyIf",
    "Reports",
    "Shortcut",
    "StoreOptions",
]

OnlyIf: TypeAlias = Literal["absent", "present"] | None
"""The condition of a write: the key must be absent, must be present, or may be either."""

Asking: TypeAlias = tuple[Awaitable[Any], Any, Any]
"""A question that is on its way: what brings the reply, and what the store needs to understand it."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What an entry point of the group ``asynccache.backends`` is called with.

    Attributes:
        url: The store's URL, split.
        query: Its options, each given once; the store raises `ConfigError` for one that it does not know.
        clock: Where it takes time from.
        codec: What the user gave as ``codec``, or ``None``.
    """

    url: SplitResult
    query: Mapping[str, str]
    clock: Clock
    codec: Any = field(default=None)


class Backend(Protocol):
    """A remote store: asynchronous, perhaps shared, perhaps away.

    Keys arrive whole and valid, with the namespace in front. A backend knows nothing of loading, tags or telemetry; it
    owns its connections, its encoding and its atomicity. No constructor does I/O. It is used from any number of tasks,
    and from one event loop after another. It raises `BackendError` (or a subclass) when it fails, `EncodeError` when it
    cannot keep a value, and never returns an entry past its ``expires_at``; bytes that it cannot read are an absent
    entry.
    """

    @property
    def name(self) -> str:
        """A short, constant word for spans and metrics: ``redis``, ``file``."""
        ...

    @property
    def reports(self) -> "Reports | None":
        """Where it tells of failures that no call raises; ``None`` when there are none."""
        ...

    @property
    def leases(self) -> "Leases | None":
        """The right to load, shared between processes; ``None`` when the store cannot grant it."""
        ...

    @property
    def shortcut(self) -> "Shortcut | None":
        """The shortest way to a value and back; ``None`` when there is none but `get` and `set`."""
        ...

    @property
    def heads(self) -> "Heads | None":
        """Entries without their values; ``None`` when those come with them anyway."""
        ...

    @property
    def coherence(self) -> "Coherence | None":
        """Where it tells of changes by anybody; ``None`` when it cannot."""
        ...

    @property
    def health(self) -> "Health | None":
        """How it stands with its server; ``None`` when it has none."""
        ...

    async def get(self, key: str) -> Entry | None:
        """The entry, fresh or stale, or ``None``."""
        ...

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those found, in one round trip."""
        ...

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        """Store it; ``False`` when the condition, tested atomically, does not hold. Voids the key's lease."""
        ...

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Store all, in one round trip. Voids the keys' leases."""
        ...

    async def delete(self, keys: Sequence[str]) -> int:
        """Remove them in one round trip; how many were there, stale ones not counted. Voids the keys' leases."""
        ...

    async def touch(self, key: str, *, fresh_until: float, expires_at: float) -> bool:
        """Give a fresh entry new times; ``False`` when there is none."""
        ...

    async def incr(self, key: str, delta: int, *, ttl: float | None) -> int:
        """Add atomically and return the sum. An absent or no longer fresh counter starts at zero, with ``ttl`` in
        seconds.

        Raises:
            TypeError: The key holds something else than an integer.
        """
        ...

    def keys(self, prefix: str) -> AsyncIterator[str]:
        """Every key that starts with the prefix, stale ones and those that only have a lease too, in no order, without
        blocking anybody; one that comes or goes meanwhile may or may not be among them."""
        ...

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    async def aclose(self) -> None:
        """Let go of everything that this object opened. A second call does nothing."""
        ...


@final
class Reports:
    """Tells whoever listens of failures that no call raises: bytes that cannot be read, upkeep that fails.

    It keeps no listener alive. What is told may come from any thread.
    """

    def __init__(self) -> None:
        self._listeners: list[weakref.WeakMethod[Callable[[str, BaseException], object]]] = []

    def add(self, listener: Callable[[str, BaseException], object]) -> None:
        """Tell a method, as long as its object lives, what happened and by which exception."""
        self._listeners = [each for each in self._listeners if each() is not None]
        self._listeners.append(weakref.WeakMethod(listener))

    def tell(self, what: str, error: BaseException) -> None:
        """Tell all who listen."""
        for each in self._listeners:
            listener = each()
            if listener is not None:
                listener(what, error)


class Health(Protocol):
    """How it stands with the server of a store, for metrics."""

    @property
    def breaker(self) -> Literal["closed", "half_open", "open"]:
        """What is known last of the server: ``open`` from the first failed attempt until it has answered again,
        ``half_open`` when the connection was lost and nobody has tried since."""
        ...

    @property
    def owed(self) -> int:
        """How many keys wait to be deleted, and leases to be given back, when the server is back."""
        ...


class Shortcut(Protocol):
    """Reads and writes of entries of which the value says all: fresh, small, without tags, grace, condition and type.

    It makes no entry that nobody looks at, and no coroutine where a question and its answer will do.
    """

    def ask(self, key: str) -> Asking | None:
        """Ask for what is under the key; ``None`` when something else is to be done first, by `Backend.get`.

        Raises:
            BackendError: It cannot be asked.
        """
        ...

    def value(self, asking: Asking, reply: Any) -> tuple[Any] | None:
        """The value that the reply has; ``None`` when there is more to say, or nothing: then `rest` is called."""
        ...

    async def rest(self, key: str, asking: Asking, reply: Any) -> Entry | None:
        """What `Backend.get` would return.

        Raises:
            BackendError: There was no answer.
        """
        ...

    def put(self, key: str, value: Any, ttl: float | None) -> Coroutine[Any, Any, bool] | None:
        """What stores the value when it is awaited; ``None`` when that takes `Backend.set`."""
        ...


class Heads(Protocol):
    """Entries of which only the times and tags are wanted: no large value is moved for them."""

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """What `Backend.get_many` finds, in one round trip, with `MISSING` for each value.

        What cannot be seen to be unreadable without its value counts as there.

        Raises:
            BackendError: One of them could not be asked for.
        """
        ...

    async def add(self, key: str, entry: Entry) -> Entry | None:
        """Store it as `Backend.set` does if the key is absent, and return ``None``; else what is there, with `MISSING`
        for its value: in one round trip."""
        ...


class Coherence(Protocol):
    """Messages of a store about keys that somebody has changed.

    Of a key that was read it tells at least once when it changes after that: before, or together with, the answer to
    any later read. It keeps no listener alive.
    """

    @property
    def live(self) -> bool:
        """Whether it will be told of changes to what is read now."""
        ...

    def watch(self, changed: Callable[[Sequence[str] | None], object]) -> None:
        """Call a method, as long as its object lives, with keys that have changed, or with ``None`` when any may
        have."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to load one key, granted to one caller of all processes.

    Attributes:
        key: The key.
        token: What proves the right; void after a write to the key by anybody.
        fence: A number greater than that of any earlier lease of the key; ``None`` where the store has none.
    """

    key: str
    token: str
    fence: int | None = None


class Leases(Protocol):
    """Grants of the right to load (or to hold a lock), kept by the store.

    A lease is voided by ``set``, ``set_many`` and ``delete`` of its key by anybody, and lapses when it is not renewed.
    """

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        """The lease, for ``ttl`` seconds; ``None`` when somebody else holds it."""
        ...

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        """Hold it for ``ttl`` seconds from now; ``False`` when it was voided or lapsed."""
        ...

    async def commit(self, lease: Lease, entry: Entry) -> bool:
        """Store the entry and give the lease back, if it still holds: one atomic step. ``False``: nothing was
        stored."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give it back; nothing happens when it was voided or lapsed."""
        ...

    def abandon(self, lease: Lease) -> None:
        """Give it back at the end of a task or a loop, when nothing can be awaited: as far as that goes, silently."""
        ...

    async def wait(self, key: str, *, timeout: float) -> None:
        """Return when the key's lease was given back, voided or has lapsed, or after ``timeout`` seconds."""
        ...
