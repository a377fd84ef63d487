"""What a factory may know and say about the load that it is."""

import enum
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any, Final, Literal, TypeAlias, final

from asynccache.duration import Duration, seconds
from asynccache.entry import Entry
from asynccache.errors import CacheError

__all__ = ["KEPT", "Factory", "Kept", "Load", "wants_load"]

Factory: TypeAlias = Callable[..., Any]
"""An async or sync callable of nothing, or of a `Load`."""


class Kept(enum.Enum):
    """The type of what `Load.keep_stale` returns."""

    KEPT = "KEPT"


KEPT: Final = Kept.KEPT


@final
class Load:
    """One run of a factory, from the inside: given to a factory that takes one argument.

    Attributes:
        key: The key that is being loaded, without the namespace.
        stale: The entry that the new value will replace, past its ttl and within its grace; ``None`` when there is
            none.
        reason: Why the factory runs: ``"miss"`` (also of a stale entry), ``"refresh"`` or ``"background"``.
    """

    __slots__ = ("_grace", "_skip", "_tags", "_ttl", "key", "reason", "stale")

    def __init__(self, key: str, stale: Entry | None, reason: str, tags: tuple[str, ...]) -> None:
        self.key = key
        self.stale = stale
        self.reason = reason
        self._ttl: float | Literal[Kept.KEPT] | None = KEPT
        self._grace: float | Literal[Kept.KEPT] | None = KEPT
        self._tags = tags
        self._skip = False

    @property
    def ttl(self) -> float | None:
        """How long the value will be fresh, in seconds, when set here; write any duration, or ``None`` for ever."""
        return None if isinstance(self._ttl, Kept) else self._ttl

    @ttl.setter
    def ttl(self, ttl: Duration | None) -> None:
        self._ttl = None if ttl is None else seconds(ttl, name="ttl")

    @property
    def grace(self) -> float | None:
        """How long past its ttl the value can stand in, in seconds, when set here; write any duration, or ``None``."""
        return None if isinstance(self._grace, Kept) else self._grace

    @grace.setter
    def grace(self, grace: Duration | None) -> None:
        self._grace = None if grace is None else seconds(grace, name="grace")

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the value; write any collection of names."""
        return self._tags

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        if isinstance(tags, str):
            raise ValueError(f"tags is a collection of names, not one text: write [{tags!r}]")
        self._tags = tuple(tags)

    def add_tags(self, *tags: str) -> None:
        """Add tags to those that the value has."""
        self._tags = (*self._tags, *(tag for tag in tags if tag not in self._tags))

    def skip(self) -> None:
        """Return the value to everybody who waits, and do not store it."""
        self._skip = True

    def keep_stale(self) -> Any:
        """What to return when the source says that the stale value still holds: it gets a new ttl, and everybody gets
        it.

        Raises:
            CacheError: There is no stale value.
        """
        if self.stale is None:
            raise CacheError("keep_stale: this load replaces no stale value")
        return KEPT

    @property
    def skipped(self) -> bool:
        """Whether the factory declined to store."""
        return self._skip

    @property
    def ttl_given(self) -> bool:
        """Whether the factory set a ttl."""
        return not isinstance(self._ttl, Kept)

    @property
    def grace_given(self) -> bool:
        """Whether the factory set a grace."""
        return not isinstance(self._grace, Kept)


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def wants_load(factory: Factory) -> bool:
    """Whether the factory has a positional parameter that must be given: then it gets a `Load`."""
    if type(factory) is FunctionType and not factory.__code__.co_argcount:
        return False  # most are of this kind
    bound = 0
    function: object = factory
    if isinstance(function, MethodType):
        bound, function = 1, function.__func__
    if isinstance(function, FunctionType):
        return function.__code__.co_argcount - len(function.__defaults__ or ()) > bound
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(each.kind in _POSITIONAL and each.default is each.empty for each in parameters)
