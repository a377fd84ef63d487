"""The failure policy: what is done when a store fails, decided here and nowhere else."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias, TypeVar, final

from asynccache.clock import Clock, stopwatch
from asynccache.errors import BackendError, CacheError, DecodeError
from asynccache.metrics import Timer
from asynccache.stats import Counters

__all__ = ["Failures", "OnError"]

OnError: TypeAlias = Literal["degrade", "raise"] | Callable[[BackendError], object]
"""What happens when the store fails: a miss, an exception, or a miss that a function is told of."""

T = TypeVar("T")
F = TypeVar("F")

_LOG_SECONDS: Final = 1.0
_LONGEST_LOG_SECONDS: Final = 16.0  # while nothing changes
_MOST_KINDS: Final = 256
_log = logging.getLogger("asynccache")


@final
class Failures:
    """The failures of one cache: raised, or hidden and then counted, logged and told.

    Args:
        on_error: What the user wants.
        name: What the cache is called.
        clock: Where time comes from.
        counters: Where hidden failures are counted.
        hidden: Marks the span that a hidden failure happened in.
        timer: Told how long the store took.
    """

    def __init__(
        self,
        *,
        on_error: OnError,
        name: str,
        clock: Clock,
        counters: Counters,
        hidden: Callable[[BaseException], None],
        timer: Timer,
    ) -> None:
        self.counters = counters
        self.timer = timer
        self._on_error = on_error
        self._name = name
        self._clock = clock
        self._hidden = hidden
        self._kinds: dict[str, _Kind] = {}
        self._deaf_until = -math.inf
        self._failed = 0  # the task of the latest failure

    async def attempt(self, operation: str, work: Awaitable[T], fallback: F, began: float | None = None) -> T | F:
        """The work's result; the fallback when the store fails and failures are to be hidden.

        Args:
            operation: What is asked of the store.
            work: The question.
            fallback: What stands for an answer.
            began: When it began, where that was earlier, by the stopwatch.

        Raises:
            BackendError: The store failed, and ``on_error`` is ``"raise"``.
        """
        began = (began or stopwatch()) if self.timer.wanted else None
        try:
            return await work
        except DecodeError as error:
            failure = BackendError(f"{operation}: {type(error).__name__}")
            failure.operation, failure.cache = operation, self._name
            self._hide(operation, failure)
            return fallback
        except BackendError as error:
            await self.taken(operation, error)
            return fallback
        except CacheError:
            raise
        except Exception as error:
            if operation == "incr" and isinstance(error, TypeError):
                raise
            await self.taken(operation, _wrapped(operation, error))
            return fallback
        finally:
            if began is not None:
                self.timer.record(stopwatch() - began, operation)

    async def taken(self, operation: str, failure: BackendError) -> None:
        """Hide a failure of the store, or raise it.

        What is refused at once never waits: who asks again and again would keep the loop from the attempts that bring
        the store back. So a task with two failures in a row lets the loop have a turn; for each failure of thousands of
        tasks, that would be dear.

        Raises:
            BackendError: ``on_error`` is ``"raise"``.
        """
        task = asyncio.current_task()
        again, self._failed = self._failed == id(task), id(task)
        if again:
            await asyncio.sleep(0)
        try:
            self.take(operation, failure)
        finally:
            del failure  # what is raised holds this frame: the collector would have to find the two

    def take(self, operation: str, failure: BackendError) -> None:
        """Hide a failure of the store, or raise it.

        Raises:
            BackendError: ``on_error`` is ``"raise"``.
        """
        failure.operation, failure.cache = operation, self._name
        try:
            if self._on_error == "raise":
                raise failure
            self._hide(operation, failure)
        finally:
            del failure  # as above

    def _hide(self, operation: str, failure: BackendError) -> None:
        self._tell(failure)
        self.hide(f"{operation} failed", failure.__cause__ or failure, failure.reason)

    def told(self, what: str, error: BaseException) -> None:
        """Report what a store tells of: a failure that no call raises."""
        failure = error if isinstance(error, BackendError) else BackendError(f"{what}: {type(error).__name__}")
        failure.cache = self._name
        self._tell(failure)
        self.report(what, error)

    def _tell(self, failure: BackendError) -> None:
        """Tell the user's function; what it raises is logged and harms nobody: it would be each caller, and for the
        first time in an outage."""
        if not callable(self._on_error):
            return
        try:
            self._on_error(failure)
        except Exception as error:
            now = self._clock.monotonic()
            if now >= self._deaf_until:
                self._deaf_until = now + _LOG_SECONDS
                # Without its text and the failure that it came from: they may hold a key or a value.
                _log.error(
                    "cache %r: the function on_error failed: %s in %s", self._name, type(error).__name__, _origin(error)
                )

    def hide(self, what: str, error: BaseException, reason: str = "") -> None:
        """Report a failure, and mark the span of the call or load that it happened in."""
        self._hidden(error)
        self.report(what, error, reason)

    def not_stored(self, value: object, error: BaseException, template: str | None = None) -> None:
        """Report a loaded value that the store cannot keep: every caller loads it anew.

        Args:
            value: The value, of which no more is told than its type.
            error: Why; its text may hold a part of it.
            template: What its key was made from, where that is known.
        """
        where = f" ({template})" if template else ""
        self.hide(f"a loaded {type(value).__qualname__} could not be stored{where}", error)

    def report(self, what: str, error: BaseException, reason: str = "") -> None:
        """Count a failure that no caller sees, and log it: each kind at most once a second, and ever more seldom while
        nothing changes.

        Args:
            what: What failed: the kind.
            error: The failure; its text may hold a key or a value, and is not logged.
            reason: Why, where that is known without them.
        """
        self.counters.errors += 1
        kind = self._kinds.get(what)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            kind = self._kinds[what] = _Kind()
        why = reason or getattr(error, "reason", "") or type(error).__name__
        if not kind.due(why, self._clock.monotonic()):
            return
        more, kind.unlogged = kind.unlogged, 0
        _log.warning(
            "cache %r: %s: %s%s", self._name, what, why, f" (and {more} more since the last report)" if more else ""
        )


@final
class _Kind:
    """What is known of failures of one kind.

    Attributes:
        unlogged: How many there were since one was logged.
    """

    __slots__ = ("_logged_at", "_pause", "_why", "unlogged")

    def __init__(self) -> None:
        self.unlogged = 0
        self._logged_at = -math.inf
        self._pause = _LOG_SECONDS
        self._why = ""

    def due(self, why: str, now: float) -> bool:
        """Whether this one is to be logged."""
        same = why == self._why
        since = now - self._logged_at
        if since < (self._pause if same else _LOG_SECONDS):
            self.unlogged += 1
            return False
        lasting = same and since < 2 * self._pause
        self._pause = min(2 * self._pause, _LONGEST_LOG_SECONDS) if lasting else _LOG_SECONDS
        self._logged_at, self._why = now, why
        return True


def _origin(error: BaseException) -> str:
    """Where an exception was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"


def _wrapped(operation: str, error: Exception) -> BackendError:
    """What a store's library has raised, in this package's words."""
    failure = BackendError(f"{operation} failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
