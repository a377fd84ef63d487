"""The one door to tasks of our own."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Final, TypeVar, final

__all__ = ["Background", "running_loop"]

T = TypeVar("T")

_MOST_TOGETHER: Final = 1_000
_EAGER: Final = sys.version_info >= (3, 12)
_CLOSING_SECONDS: Final = 1.0  # a factory that swallows its cancellation does not hold up the closing
_eager_task: Final[Callable[..., asyncio.Task[None]]] = asyncio.Task  # type checkers of 3.11 know no eager_start


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@final
class _Task(asyncio.Task[None]):
    """A task that tells of its end when it is cancelled, by whomever: one that had not begun never comes to its own."""

    at_end: Callable[[asyncio.Task[None]], object]

    def cancel(self, msg: Any | None = None) -> bool:
        self.add_done_callback(self.at_end)
        return super().cancel(msg)


@final
class _Housekeeper(asyncio.Task[None]):
    """A task that nobody but the cache knows of: where a loop is closed by hand, there is nobody to be told that it has
    not ended."""

    def __del__(self) -> None:
        if self.done():
            super().__del__()


@final
class Background:
    """The tasks that a cache runs for itself; each is held until it ends, so that none is collected half-way.

    Attributes:
        ending: For how many reasons nothing that can be left undone is to be begun any more.
    """

    __slots__ = ("_tasks", "ending")

    def __init__(self) -> None:
        self.ending = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        """Run the work in a task of its own, in the given context, at once as far as it goes where Python can
        (3.12)."""
        task = _housekeeper(work, loop=asyncio.get_running_loop(), context=context, **_EAGERLY)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        return task

    def launch(
        self,
        work: Coroutine[Any, Any, None],
        context: Context,
        loop: asyncio.AbstractEventLoop,
        at_end: Callable[[asyncio.Task[None]], object],
    ) -> asyncio.Task[None]:
        """The same for work that calls `landed` when it ends: a callback of the task would do that by itself, and cost
        every miss half a microsecond.

        Args:
            work: The work.
            context: Where it runs.
            loop: The running loop.
            at_end: Called when the task has ended after it was cancelled, perhaps before it had begun.
        """
        if _EAGER:
            task = _eager_task(work, loop=loop, context=context, eager_start=True)
            if task.done():
                return task
        else:
            lazy = task = _Task(work, loop=loop, context=context)
            lazy.at_end = at_end
        self._tasks.add(task)
        return task

    def landed(self, task: asyncio.Task[None]) -> None:
        """Let go of a launched task whose work is done."""
        self._tasks.discard(task)

    def watch_current(self) -> None:
        """Let go of the running task whenever it ends, and take note of what it raises, since nobody awaits it."""
        task = None if running_loop() is None else asyncio.current_task()
        if task is not None:  # not when the work is collected after its loop has gone
            task.add_done_callback(self._ended)

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel a task, of whichever loop."""
        loop = task.get_loop()
        if loop is running_loop():
            self._cancel_here(task)
        elif not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._cancel_here, task)
            except RuntimeError:
                return  # it closed just now, and its tasks with it

    def _cancel_here(self, task: asyncio.Task[None]) -> None:
        if not task.done():
            task.add_done_callback(self._ended)  # a task that has not begun never comes to its end
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those who wait have been told; what ends the program is raised by the loop itself

    async def together(self, works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of works that go on at the same time, in tasks of their own where there are several; of very many
        one part after the other, as the last would have to wait for long if all began at once."""
        if len(works) == 1:
            return [await works[0]]
        results: list[T] = []
        for start in range(0, len(works), _MOST_TOGETHER):
            end = start + _MOST_TOGETHER
            try:
                results += await asyncio.gather(*works[start:end])
            except BaseException:
                for work in works[end:]:
                    work.close()
                raise
        return results

    def forget(self) -> None:
        """Drop every task unseen: in a forked child they belong to the parent's loop."""
        self._tasks = set()

    def end(self) -> None:
        """Cancel all."""
        self.ending += 1
        current = None if running_loop() is None else asyncio.current_task()
        for task in [task for task in self._tasks if task is not current]:
            self.cancel(task)

    async def aclose(self) -> None:
        """Cancel all, and return when those of this loop have ended, and what they began in ending."""
        self.end()
        here, current = asyncio.get_running_loop(), asyncio.current_task()
        known: set[asyncio.Task[None]] = set()
        while mine := {task for task in self._tasks - known if task is not current and task.get_loop() is here}:
            await asyncio.wait(mine, timeout=_CLOSING_SECONDS)
            known |= mine


# Type checkers of 3.11 know no eager_start.
_EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if _EAGER else {}
_housekeeper: Final[Callable[..., asyncio.Task[None]]] = _Housekeeper
