"""The notices of entries that have left a store, and their way to the listener."""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, final

__all__ = ["Cause", "Removal", "Removals"]

Cause: TypeAlias = Literal["explicit", "replaced", "size", "expired"]
"""Why an entry left: deleted, overwritten, evicted to keep a bound, or past its time."""

_log = logging.getLogger("asynccache")


class Removal(NamedTuple):
    """What a listener is told about an entry that left."""

    key: str
    value: Any
    cause: Cause


@final
class Removals:
    """Notices that wait until the change is complete and the store's lock free: then a listener may use the store.

    Args:
        listener: Called with each removal; what it raises is logged and harms nobody.
    """

    __slots__ = ("_waiting", "listener")

    def __init__(self, listener: Callable[[Removal], object]) -> None:
        self.listener = listener
        self._waiting: deque[Removal] = deque()

    def note(self, key: str, value: Any, cause: Cause) -> None:
        """Keep a notice for the next `tell`."""
        self._waiting.append(Removal(key, value, cause))

    def note_all(self, entries: Iterable[tuple[str, Any]], cause: Cause) -> None:
        """Keep a notice for each of the entries."""
        self._waiting.extend(Removal(key, value, cause) for key, value in entries)

    def tell(self) -> None:
        """Give the notices to the listener, each once, whichever threads tell at the same time."""
        while True:
            try:
                removal = self._waiting.popleft()
            except IndexError:
                return
            try:
                self.listener(removal)
            except Exception:
                _log.exception("the listener on_removal failed")
