"""Who is told when keys change: those who wait for a key, and the local stores in front of this one."""

import logging
import weakref
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, final

__all__ = ["Changed", "Tracker", "Waiters"]

Changed: TypeAlias = Callable[[Sequence[str] | None], object]
"""Told of keys that have changed; ``None`` when any may have."""

_log: Final = logging.getLogger("asynccache")


@final
class Tracker:
    """Hands on what the server tells of keys that have changed.

    Args:
        wanted: Called when somebody begins to listen.

    Attributes:
        live: Whether the server tells of keys that are read now.
    """

    def __init__(self, wanted: Callable[[], object]) -> None:
        self.live = True
        self._wanted = weakref.WeakMethod(wanted)
        self._listeners: list[weakref.WeakMethod[Changed]] = []

    def watch(self, changed: Changed) -> None:
        """Tell a method, as long as its object lives."""
        first = not self.watched
        self._listeners = [each for each in self._listeners if each() is not None]
        self._listeners.append(weakref.WeakMethod(changed))
        wanted = self._wanted()
        if first and wanted is not None:
            wanted()

    @property
    def watched(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def connected(self, *, told: bool, log: bool = True) -> None:
        """Take note of whether a server tells; that one does not is logged once."""
        if log and self.watched and self.live and not told:
            _log.warning("the server cannot tell of keys that change: a local copy is believed for a second at most")
        self.live = told

    def changed(self, keys: Sequence[bytes] | None) -> None:
        """Tell all who listen."""
        if not self._listeners:
            return
        names = None if keys is None else [key.decode("utf-8", "replace") for key in keys]
        for each in self._listeners:
            listener = each()
            if listener is not None:
                listener(names)


@final
class Waiters:
    """Those of one loop who wait for a key to change."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._of: dict[bytes, set[Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def enter(self, key: bytes) -> "Future[None]":
        """Be woken by the key's next change."""
        waiter: Future[None] = self._loop.create_future()
        self._of.setdefault(key, set()).add(waiter)
        return waiter

    def leave(self, key: bytes, waiter: "Future[None]") -> None:
        """Wait no more."""
        waiters = self._of.get(key)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._of[key]

    def wake(self, keys: Sequence[bytes] | None) -> None:
        """Wake those who wait for the keys, or all."""
        if not self._of:
            return
        for key in list(self._of) if keys is None else keys:
            for waiter in self._of.get(key, ()):
                if not waiter.done():
                    waiter.set_result(None)
