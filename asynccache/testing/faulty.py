"""A backend that fails on purpose."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, final

from asynccache.backend import Backend, Coherence, Health, Lease, Leases, OnlyIf, Reports
from asynccache.entry import Entry
from asynccache.errors import BackendUnavailable, ConfigError

__all__ = ["FaultyBackend"]

T = TypeVar("T")

_OPERATIONS: Final = frozenset(
    ("get", "get_many", "set", "set_many", "delete", "touch", "incr", "keys", "ping", "aclose")
)
_OF_LEASES: Final = frozenset(("acquire", "renew", "commit", "release", "wait"))


@dataclass(slots=True)
class _Fault:
    error: Exception | None = None
    times: int | None = None
    after: bool = False
    delay: float = 0.0
    gate: asyncio.Event | None = None


@dataclass(slots=True)
class _Script:
    """What is to happen to which operation, and what has been called."""

    calls: Counter[str] = field(default_factory=Counter)
    faults: dict[str, _Fault] = field(default_factory=dict)

    def fault(self, operation: str) -> _Fault:
        fault = self.faults.get(operation, _NO_FAULT)
        if fault.times is not None:
            if fault.times == 0:
                return _NO_FAULT
            fault.times -= 1
        return fault

    async def through(self, operation: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The call's result, unless the script says otherwise."""
        self.calls[operation] += 1
        fault = self.fault(operation)
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.gate is not None:
            await fault.gate.wait()
        if fault.error is not None and not fault.after:
            raise fault.error
        result = await call()
        if fault.error is not None:
            raise fault.error
        return result


_NO_FAULT: Final = _Fault()


@final
class FaultyBackend:
    """A backend around another one, which fails, hangs or dawdles as it is told, and counts what it is asked.

    Operations are called by the names of a backend's methods, and of its leases' methods; without a name, all are
    meant.

    Args:
        inner: What does the work.

    Attributes:
        calls: How often each operation was asked for, also when it failed.
    """

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self._script = _Script()
        self.calls = self._script.calls
        self.clock = getattr(inner, "clock", None)

    # What is to go wrong

    def fail(self, *operations: str, error: Exception | None = None, times: int | None = None) -> None:
        """Have operations raise, without being done.

        Args:
            *operations: Which; all, when none is named.
            error: What they raise; left out, `BackendUnavailable`.
            times: How often; left out, until `heal`.
        """
        self._set(operations, lambda: _Fault(error=error or BackendUnavailable("told to fail"), times=times))

    def lose(self, *operations: str, error: Exception | None = None, times: int | None = None) -> None:
        """Have operations be done, and then raise: the answer is lost."""
        failure = error or BackendUnavailable("told to lose the answer")
        self._set(operations, lambda: _Fault(error=failure, times=times, after=True))

    def hang(self, *operations: str) -> None:
        """Have operations not answer until `heal`; then they are done."""
        gate = asyncio.Event()
        self._set(operations, lambda: _Fault(gate=gate))

    def delay(self, duration: float, *operations: str) -> None:
        """Have operations take ``duration`` seconds more."""
        self._set(operations, lambda: _Fault(delay=duration))

    def heal(self, *operations: str) -> None:
        """Have operations work again; those that hang go on."""
        for operation in self._named(operations):
            fault = self._script.faults.pop(operation, None)
            if fault is not None and fault.gate is not None:
                fault.gate.set()

    def _set(self, operations: Sequence[str], fault: Callable[[], _Fault]) -> None:
        for operation in self._named(operations):
            self._script.faults[operation] = fault()

    def _named(self, operations: Sequence[str]) -> Sequence[str]:
        for operation in operations:
            if operation not in _OPERATIONS | _OF_LEASES:
                raise ConfigError(f"a backend has no operation {operation!r}")
        return operations or sorted(_OPERATIONS | _OF_LEASES)

    # The backend

    @property
    def name(self) -> str:
        """That of the other."""
        return self._inner.name

    @property
    def shortcut(self) -> None:
        """None: each read is one of `get`, which can be made to fail."""
        return None

    @property
    def heads(self) -> None:
        """None: each look at an entry is one of `get` or `get_many`, which can be made to fail."""
        return None

    @property
    def coherence(self) -> Coherence | None:
        """That of the backend inside."""
        return self._inner.coherence

    @property
    def health(self) -> Health | None:
        """That of the backend inside."""
        return self._inner.health

    @property
    def reports(self) -> Reports | None:
        """Those of the other."""
        return self._inner.reports

    @property
    def leases(self) -> Leases | None:
        """Those of the other, which fail likewise; ``None`` when it has none."""
        leases = self._inner.leases
        return None if leases is None else _FaultyLeases(leases, self._script)

    async def get(self, key: str) -> Entry | None:
        """As the other, or as told."""
        return await self._script.through("get", lambda: self._inner.get(key))

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """As the other, or as told."""
        return await self._script.through("get_many", lambda: self._inner.get_many(keys))

    async def set(self, key: str, entry: Entry, *, only_if: OnlyIf = None) -> bool:
        """As the other, or as told."""
        return await self._script.through("set", lambda: self._inner.set(key, entry, only_if=only_if))

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """As the other, or as told."""
        await self._script.through("set_many", lambda: self._inner.set_many(entries))

    async def delete(self, keys: Sequence[str]) -> int:
        """As the other, or as told."""
        return await self._script.through("delete", lambda: self._inner.delete(keys))

    async def touch(self, key: str, *, fresh_until: float, expires_at: float) -> bool:
        """As the other, or as told."""
        return await self._script.through(
            "touch", lambda: self._inner.touch(key, fresh_until=fresh_until, expires_at=expires_at)
        )

    async def incr(self, key: str, delta: int, *, ttl: float | None) -> int:
        """As the other, or as told."""
        return await self._script.through("incr", lambda: self._inner.incr(key, delta, ttl=ttl))

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """As the other, or as told."""

        async def collect() -> list[str]:
            return [key async for key in self._inner.keys(prefix)]

        for key in await self._script.through("keys", collect):
            yield key

    async def ping(self) -> None:
        """As the other, or as told."""
        await self._script.through("ping", self._inner.ping)

    async def aclose(self) -> None:
        """As the other, or as told."""
        await self._script.through("aclose", self._inner.aclose)


@final
class _FaultyLeases:
    """The leases of a `FaultyBackend`."""

    def __init__(self, inner: Leases, script: _Script) -> None:
        self._inner = inner
        self._script = script

    async def acquire(self, key: str, *, ttl: float) -> Lease | None:
        return await self._script.through("acquire", lambda: self._inner.acquire(key, ttl=ttl))

    async def renew(self, lease: Lease, *, ttl: float) -> bool:
        return await self._script.through("renew", lambda: self._inner.renew(lease, ttl=ttl))

    async def commit(self, lease: Lease, entry: Entry) -> bool:
        return await self._script.through("commit", lambda: self._inner.commit(lease, entry))

    async def release(self, lease: Lease) -> None:
        await self._script.through("release", lambda: self._inner.release(lease))

    def abandon(self, lease: Lease) -> None:
        self._script.calls["release"] += 1
        if self._script.fault("release").error is None:
            self._inner.abandon(lease)

    async def wait(self, key: str, *, timeout: float) -> None:
        await self._script.through("wait", lambda: self._inner.wait(key, timeout=timeout))
