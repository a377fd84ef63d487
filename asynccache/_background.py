"""The one door to tasks of our own."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, final

__all__ = ["Background"]

_EAGER: Final = sys.version_info >= (3, 12)
_CLOSING_SECONDS: Final = 1.0  # a factory that swallows its cancellation does not hold up the closing
_eager_task: Final[Callable[..., asyncio.Task[None]]] = asyncio.Task  # type checkers of 3.11 know no eager_start


@final
class Background:
    """The tasks that a cache runs for itself; each is held until it ends, so that none is collected half-way."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        """Run the work in a task of its own, in the given context, at once as far as it goes where Python can
        (3.12)."""
        loop = asyncio.get_running_loop()
        if _EAGER:
            task = _eager_task(work, loop=loop, context=context, eager_start=True)
            if task.done():
                return task
        else:
            task = asyncio.Task(work, loop=loop, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those who wait have been told; what ends the program is raised by the loop itself

    def forget(self) -> None:
        """Drop every task unseen: in a forked child they belong to the parent's loop."""
        self._tasks = set()

    async def aclose(self) -> None:
        """Cancel all, and return when those of this loop have ended."""
        here = asyncio.get_running_loop()
        mine = []
        for task in list(self._tasks):
            loop = task.get_loop()
            if loop is here:
                if task is not asyncio.current_task():
                    task.cancel()
                    mine.append(task)
            elif not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(task.cancel)
                except RuntimeError:
                    continue  # that loop closed just now, and its tasks with it
        if mine:
            await asyncio.wait(mine, timeout=_CLOSING_SECONDS)
