"""The reasons for a hit not to take the short way: overrides and sandboxes, wherever in the process they are.

Both belong to a context. Asking the context costs every hit tens of nanoseconds, so it is asked only while there is
one somewhere: as long as the count is zero, the face looks straight into the local store.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, final

from asynccache.clock import Clock

__all__ = ["Detours", "Mode", "World", "current_world", "detours", "overridden", "override", "worlds"]

Mode: TypeAlias = Literal["bypass", "refresh"] | None
"""How loads are done in a context, where not as usual."""


class Watcher(Protocol):
    """What has a short way to open and close."""

    def bind(self) -> None:
        """Open it while `detours` counts none, close it otherwise."""
        ...

    def twin(self, clock: Clock) -> Self:
        """The same over an empty in-memory store."""
        ...

    def end(self) -> None:
        """End what runs for it, at once."""
        ...


@final
class Detours:
    """How many reasons there are now.

    Attributes:
        count: The number.
    """

    __slots__ = ("_lock", "_watchers", "count")

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()

    def watch(self, watcher: Watcher) -> None:
        """Tell it of every change, as long as it lives."""
        with self._lock:
            self._watchers.add(watcher)

    def change(self, by: int) -> None:
        """Note that reasons came or went."""
        with self._lock:
            self.count += by
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.bind()


detours: Final = Detours()


@final
class Override:
    """One block in which loads are done in another way.

    A task that was begun in the block has it in its context for ever, also when the block is over.

    Attributes:
        mode: The way.
        outer: The block around it.
        ended: Whether it is over.
    """

    __slots__ = ("ended", "mode", "outer")

    def __init__(self, mode: Mode, outer: "Override | None") -> None:
        self.mode = mode
        self.outer = outer
        self.ended = False


@final
class World:
    """A sandbox: an empty in-memory store of its own behind every cache that is used in it.

    Attributes:
        clock: The clock of all of them.
        outer: The world around it.
        ended: Whether it is over: a task begun in it may outlive it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.outer: World | None = None
        self.ended = False
        self._inside: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def stand_in(self, outside: Watcher) -> Any:
        """What stands for it here."""
        inside = self._inside.get(outside)
        if inside is None:
            inside = self._inside[outside] = outside.twin(self.clock)
        return inside

    def end(self) -> None:
        """End what still runs here."""
        self.ended = True
        for inside in list(self._inside.values()):
            inside.end()


_override: ContextVar[Override | None] = ContextVar("asynccache_override", default=None)
_world: ContextVar[World | None] = ContextVar("asynccache_world", default=None)


def overridden() -> Mode:
    """How loads are done here, where not as usual."""
    block = _override.get()
    while block is not None and block.ended:
        block = block.outer
    return None if block is None else block.mode


def current_world() -> World | None:
    """The sandbox that the caller is in."""
    world = _world.get()
    while world is not None and world.ended:
        world = world.outer
    return world


@contextmanager
def worlds(world: World) -> Iterator[World]:
    """Have every cache used in this context, and in tasks begun in it, live in the world."""
    world.outer = current_world()
    token = _world.set(world)
    detours.change(+1)
    try:
        yield world
    finally:
        detours.change(-1)
        try:
            _world.reset(token)
        except ValueError:
            _world.set(None)  # entered in one context and left in another, as some test frameworks do
        world.end()


@contextmanager
def override(mode: Mode) -> Iterator[None]:
    """Have the loads of this context, and of tasks begun in it, done in this way."""
    block = Override(mode, _override.get())
    token = _override.set(block)
    detours.change(+1)
    try:
        yield
    finally:
        block.ended = True
        detours.change(-1)
        _override.reset(token)
