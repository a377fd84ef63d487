"""Threads that do the blocking work of a store, whole batches at a time.

A caller puts a job into a queue and awaits its future. The thread takes all that waits, does it in one go, and hands
the results back in one call to the loop.

A thread needs the interpreter's lock several times for a batch, and a loop that is always busy hardly lets go of it:
it takes the lock back before a waiting thread has woken. On the machine where this was measured a thread then got the
lock 3 times a second. So while jobs are out and the loop's thread does nothing but work, it sleeps for an instant (a
twentieth of a millisecond) once a millisecond, in which the lock is really free.
"""

import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, final
from weakref import WeakKeyDictionary

from asynccache.clock import processor_time, stopwatch
from asynccache.errors import BackendError

__all__ = ["Crew", "Desk", "Job", "done"]

_MOST_AT_ONCE: Final = 512
_GIVE_WAY_SECONDS: Final = 0.001
_BUSY: Final = 0.8  # the share of its time for which a thread must have worked to count as always busy


@final
class Job:
    """A piece of work and who waits for it.

    Attributes:
        loop: Where the waiter is; ``None`` for an errand that nobody waits for.
        future: What the waiter awaits; an errand has none.
        work: What to do, as the desk understands it.
        weight: About how many bytes it writes.
        result: What came of it.
        failure: Makes the exception that came of it: each waiter gets one of his own.
    """

    __slots__ = ("failure", "future", "loop", "result", "weight", "work")

    future: "Future[Any]"

    def __init__(self, loop: AbstractEventLoop | None, work: Any, weight: int = 0) -> None:
        self.loop = loop
        if loop is not None:
            self.future = loop.create_future()
        self.work = work
        self.weight = weight
        self.result: Any = None
        self.failure: Callable[[], BaseException] | None = None


class Desk(Protocol):
    """Where a thread does its work. One method is called at a time, by that thread or by one that has halted it."""

    def serve(self, jobs: Sequence[Job]) -> None:
        """Do the jobs: each has a result or a failure afterwards. Raises nothing."""
        ...

    def rest(self) -> float | None:
        """Do a little of what may be done between batches; in how many seconds to come again, ``None`` for never."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@final
class Crew:
    """Some threads with one queue, started when there is work.

    Args:
        name: What the threads are called.
        desk: Makes the desk of each.
        size: How many there are at most.
    """

    def __init__(self, name: str, desk: Callable[[], Desk], size: int = 1) -> None:
        self._name = name
        self._desk = desk
        self._size = size
        self._queue: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._trays: dict[AbstractEventLoop, list[Job]] = {}  # what each loop has asked for in this turn
        self._threads: list[threading.Thread] = []
        self._posts: list[_Post] = []
        self._stopped = False
        self._guard = threading.Lock()

    def put(self, job: Job) -> bool:
        """Have the job done; ``False`` when the crew was stopped.

        What one loop asks for in one turn reaches the threads together: they would only take the interpreter's lock
        from the loop while it asks for more.
        """
        loop = job.loop
        with self._guard:
            if self._stopped:
                return False
            if loop is None:
                self._hand_over([job])
                return True
            tray = self._trays.get(loop)
            if tray is None:
                tray = self._trays[loop] = []
            if not tray:
                loop.call_soon(self._flush, loop)
            tray.append(job)
            return True

    def stop(self) -> list[threading.Thread]:
        """Have the threads end when they have done what waits; those that will."""
        with self._guard:
            for tray in list(self._trays.values()):
                if tray:
                    self._hand_over(tray)
            self._trays.clear()
            self._stopped = True
            for _ in self._threads:
                self._queue.put(None)
            return self._threads

    def _flush(self, loop: AbstractEventLoop) -> None:
        with self._guard:
            tray = self._trays.pop(loop, None)
            if tray:
                self._hand_over(tray)

    def _hand_over(self, jobs: list[Job]) -> None:
        self._queue.put(jobs)
        if len(self._threads) < self._size:
            post = _Post(self._desk)
            name = f"{self._name}-{len(self._threads) + 1}"
            thread = threading.Thread(target=_run, args=(self._queue, post), name=name, daemon=True)
            self._posts.append(post)
            self._threads.append(thread)
            thread.start()

    def halt(self) -> None:
        """Wait until no thread is at work, let go of what their desks have open, and keep them from working on."""
        self._guard.acquire()
        for post in self._posts:
            post.turn.acquire()
            post.desk.close()

    def go_on(self) -> None:
        """Let the threads work on."""
        for post in self._posts:
            post.turn.release()
        self._guard.release()


@final
class _Post:
    """A desk, and the right to work at it: held by its thread while it does."""

    def __init__(self, make: Callable[[], Desk]) -> None:
        self.desk = make()
        self.turn = threading.Lock()


def _run(queue: "SimpleQueue[list[Job] | None]", post: _Post) -> None:
    desk, turn = post.desk, post.turn
    pause: float | None = 0.0
    try:
        while True:
            try:
                more = queue.get(timeout=pause)
            except Empty:
                with turn:
                    pause = desk.rest()
                continue
            jobs: list[Job] = []
            while more is not None:
                jobs += more
                if len(jobs) >= _MOST_AT_ONCE:
                    break
                try:
                    more = queue.get_nowait()
                except Empty:
                    break
            if jobs:
                try:
                    with turn:
                        desk.serve(jobs)
                except BaseException as error:  # a thread that ends like this would leave its callers waiting for ever
                    for job in jobs:
                        job.failure = partial(_unexpected, error)
                _hand_back(jobs)
            if more is None:
                return
            with turn:
                pause = desk.rest()
            del more, jobs
    finally:
        with turn:
            desk.close()


def _unexpected(error: BaseException) -> BackendError:
    failure = BackendError(f"a thread of the store failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure


def _hand_back(jobs: Sequence[Job]) -> None:
    """Give the results to the loops that wait for them, each in one call."""
    by_loop: dict[AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, own)
        except RuntimeError:  # that loop is closed: nobody waits
            pass


def _deliver(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue  # its caller was cancelled
        if job.failure is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.failure())


@final
class _GivingWay:
    """Lets threads have the interpreter's lock while jobs of one loop are out."""

    __slots__ = ("_began", "_out", "_ticking", "_worked")

    def __init__(self) -> None:
        self._out = 0
        self._ticking = False
        self._began = self._worked = 0.0

    async def wait(self, loop: AbstractEventLoop, job: Job) -> Any:
        self._out += 1
        if not self._ticking:
            self._ticking = True
            self._later(loop)
        try:
            return await job.future
        finally:
            self._out -= 1

    def _later(self, loop: AbstractEventLoop) -> None:
        self._began, self._worked = stopwatch(), processor_time()
        loop.call_later(_GIVE_WAY_SECONDS, self._tick, loop)

    def _tick(self, loop: AbstractEventLoop) -> None:
        if not self._out:
            self._ticking = False
            return
        if processor_time() - self._worked >= _BUSY * (stopwatch() - self._began):
            time.sleep(0)
        self._later(loop)


_giving_way: "WeakKeyDictionary[AbstractEventLoop, _GivingWay]" = WeakKeyDictionary()


async def done(loop: AbstractEventLoop, job: Job) -> Any:
    """What comes of a job that was put into a queue."""
    way = _giving_way.get(loop)
    if way is None:
        way = _giving_way.setdefault(loop, _GivingWay())
    return await way.wait(loop, job)
