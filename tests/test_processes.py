"""One cache object under loop after loop, in threads, on both sides of a fork, and at the end of a program."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from asynccache import Cache, CacheClosed, LoadCancelled, LoadTimeout

pytestmark = pytest.mark.slow


def run_script(script: str, *, strict: bool = True) -> tuple[int, str, str]:
    """Runs a program in development mode, with warnings as errors, and gives its exit code, output and complaints."""
    options = ["-X", "dev", "-W", "error"] if strict else []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"}
    run = subprocess.run(
        [sys.executable, *options, "-c", script], env=environment, capture_output=True, text=True, timeout=20
    )
    busy = "Executing <"  # asyncio's word in debug mode on a step that was slow, as all are on a busy machine
    complaints = "".join(line for line in run.stderr.splitlines(keepends=True) if not line.startswith(busy))
    return run.returncode, run.stdout, complaints


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Runs each in a thread of its own and gives what they return or raise."""
    outcomes: list[Any] = [None] * len(works)

    def run(place: int, work: Callable[[], Any]) -> None:
        try:
            outcomes[place] = work()
        except BaseException as error:
            outcomes[place] = error

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads), outcomes
    return outcomes


class TestLoops:
    """One loop after another."""

    def test_three_runs_with_loads_left_running(self) -> None:
        """Loads of every kind that were running when a run ended hold up nothing in the next one."""
        cache = Cache(ttl="10m")
        cancelled: list[int] = []

        @cache.memoize()
        async def memoized(number: int) -> int:
            return await hang(number)

        async def hang(number: int) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                raise

        async def leave(number: int) -> dict[str, int]:
            found = {
                "single": await cache.get_or_set(f"done{number}", lambda: number),
                "earlier": await cache.get("done0"),
            }
            left = [
                asyncio.create_task(cache.get_or_set("single", lambda: hang(number))),
                asyncio.create_task(cache.get_or_set_many(["many", "single"], lambda keys: hang(number))),
                asyncio.create_task(cache.get_or_set("alone", lambda: hang(number), lock="none")),
                asyncio.create_task(memoized(number)),
            ]
            with pytest.raises(TimeoutError):
                await cache.get_or_set("detached", lambda: hang(number), hard_timeout=0.01)
            await asyncio.sleep(0)
            assert not any(task.done() for task in left)
            return found

        for number in range(3):
            assert asyncio.run(leave(number)) == {"single": number, "earlier": 0}
        assert sorted(cancelled) == [0] * 5 + [1] * 5 + [2] * 5

        async def after() -> list[Any]:
            async with asyncio.timeout(2):
                names = ["single", "many", "alone", "detached"]
                found = [await cache.get_or_set(name, lambda name=name: name) for name in names]
                await cache.aclose()
                return found

        assert asyncio.run(after()) == ["single", "many", "alone", "detached"]

    def test_a_bulk_of_a_closed_loop(self) -> None:
        """Keys whose bulk load was lost with a loop that was just closed are loaded anew, in bulk and by one."""
        cache = Cache()
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # asyncio's own word on tasks that were left pending

        async def hang(keys: list[str]) -> Any:
            await loop.create_future()

        task = loop.create_task(cache.get_or_set_many(["a", "b", "c"], hang))
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()

        async def after() -> tuple[Any, Any]:
            async with asyncio.timeout(2):
                one = await cache.get_or_set("a", lambda: 1)
                return one, await cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 2))

        assert asyncio.run(after()) == (1, {"a": 1, "b": 2})
        asyncio.run(cache.aclose())
        del task
        gc.collect()


class TestThreads:
    """Two loops at once."""

    def test_one_load_for_two_loops(self) -> None:
        """Callers in two threads' loops who ask at once share one run of the factory, of each kind."""
        cache = Cache()
        loading, release = threading.Event(), threading.Event()
        runs: list[str] = []

        async def load(*_: Any) -> Any:
            runs.append("load")
            loading.set()
            await asyncio.to_thread(release.wait, 5)
            return {"m": "v"} if _ else "v"

        async def ask() -> list[Any]:
            asked = [cache.get_or_set("k", lambda: load()) for _ in range(5)]
            return await asyncio.gather(*asked, cache.get_or_set_many(["m"], load))

        def second() -> list[Any]:
            loading.wait(5)
            threading.Timer(0.1, release.set).start()
            return asyncio.run(ask())

        outcomes = in_threads(lambda: asyncio.run(ask()), second)
        assert outcomes == [["v"] * 5 + [{"m": "v"}]] * 2
        assert runs == ["load", "load"]  # one of each kind

    def test_the_leaders_loop_ends(self) -> None:
        """When the loop that runs the load ends with it, a waiter in another thread is told so at once."""
        cache = Cache()
        loading, joined = threading.Event(), threading.Event()

        async def leave() -> None:
            async def hang() -> None:
                loading.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(cache.get_or_set("k", hang))
            await asyncio.to_thread(joined.wait, 5)
            assert not task.done()

        async def wait() -> str:
            asked = asyncio.create_task(cache.get_or_set("k", lambda: "mine"))
            await asyncio.sleep(0.02)
            joined.set()
            async with asyncio.timeout(5):
                with pytest.raises(LoadCancelled):
                    await asked
                return await cache.get_or_set("k", lambda: "mine")

        def second() -> str:
            loading.wait(5)
            return asyncio.run(wait())

        assert in_threads(lambda: asyncio.run(leave()), second) == [None, "mine"]

    def test_a_follower_in_another_loop_is_cancelled(self) -> None:
        """A waiter in another thread may leave: the load goes on for its own loop; the last to leave, from whichever
        thread, cancels it."""
        cache = Cache()
        loading, alone, left, ended = (threading.Event() for _ in range(4))

        async def hang() -> None:
            loading.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def lead() -> bool:
            task = asyncio.create_task(cache.get_or_set("k", hang))
            await asyncio.to_thread(alone.wait, 5)
            task.cancel()  # the follower is still there
            await asyncio.wait([task])
            went_on = not ended.is_set()
            left.set()
            await asyncio.to_thread(ended.wait, 5)
            return went_on

        async def follow() -> None:
            patient = asyncio.create_task(cache.get_or_set("k", hang))
            hasty = asyncio.create_task(cache.get_or_set("k", hang))
            await asyncio.sleep(0.02)
            hasty.cancel()
            await asyncio.wait([hasty])
            alone.set()
            await asyncio.to_thread(left.wait, 5)
            assert not patient.done()
            patient.cancel()
            await asyncio.wait([patient])

        def second() -> None:
            loading.wait(5)
            asyncio.run(follow())

        assert in_threads(lambda: asyncio.run(lead()), second) == [True, None]

    def test_written_on_another_thread(self) -> None:
        """A ``set``, a ``delete`` and an invalidation on another thread win over a load of this one."""
        for write in ("set", "delete", "clear", "invalidate_tags"):
            cache = Cache()

            def overtake(cache: Cache = cache, write: str = write) -> None:
                arguments = {"set": ("k", "newer"), "delete": ("k",), "clear": (), "invalidate_tags": ("t",)}
                asyncio.run(getattr(cache, write)(*arguments[write]))

            async def ask(cache: Cache = cache, overtake: Callable[[], None] = overtake) -> tuple[Any, Any]:
                async def load() -> str:
                    await asyncio.to_thread(overtake)
                    return "older"

                return await cache.get_or_set("k", load, tags=["t"]), await cache.get("k")

            assert asyncio.run(ask()) == ("older", "newer" if write == "set" else None)

    @pytest.mark.parametrize("debug", [False, True])
    def test_closed_from_another_thread(self, debug: bool) -> None:
        """When a cache is closed by another thread's loop, a waiter gets `LoadCancelled` at once, in debug mode too."""
        cache = Cache()
        loading = threading.Event()

        async def hang() -> None:
            loading.set()
            await asyncio.Event().wait()

        def close() -> None:
            loading.wait(5)
            time.sleep(0.05)  # the waiter's loop sleeps in its selector
            asyncio.run(cache.aclose())

        outcome, _ = in_threads(lambda: asyncio.run(cache.get_or_set("k", hang), debug=debug), close)
        assert isinstance(outcome, LoadCancelled)

    @pytest.mark.parametrize("debug", [False, True])
    def test_given_up_from_another_thread(self, debug: bool) -> None:
        """When the background timeout of a follower in another thread passes, the leader's loop is told."""
        cache = Cache()
        loading, given_up = threading.Event(), threading.Event()

        async def hang() -> None:
            loading.set()
            await asyncio.Event().wait()

        def first() -> None:
            try:
                asyncio.run(cache.get_or_set("k", hang), debug=debug)
            finally:
                given_up.set()

        async def follow() -> None:
            with pytest.raises(LoadTimeout):
                await cache.get_or_set("k", hang, hard_timeout=0.05, background_timeout=0.05)
            await asyncio.to_thread(given_up.wait, 10)  # the timer is of this loop

        def second() -> None:
            loading.wait(5)
            asyncio.run(follow(), debug=debug)

        outcome, _ = in_threads(first, second)
        assert isinstance(outcome, LoadTimeout)

    def test_written_on_another_thread_while_a_bulk_is_stored(self) -> None:
        """A value that another thread sets while a bulk load's results are being stored stays."""
        cache = Cache()
        storing, written = threading.Event(), threading.Event()

        def cache_if(value: str) -> bool:
            if value == "b":
                storing.set()
                written.wait(5)
            return True

        def bulk() -> None:
            asyncio.run(cache.get_or_set_many(["a", "b"], lambda keys: {key: key for key in keys}, cache_if=cache_if))

        def write() -> None:
            storing.wait(5)
            asyncio.run(cache.set("a", "newer"))
            written.set()

        assert in_threads(bulk, write) == [None, None]
        assert asyncio.run(cache.get("a")) == "newer"

    def test_a_lock_between_threads(self) -> None:
        """A lock excludes between loops in two threads, and wakes whoever waits in the other one."""
        cache = Cache()
        inside: list[int] = []
        most: list[int] = []

        async def work() -> None:
            for _ in range(50):
                async with cache.lock("k", ttl=60):
                    inside.append(1)
                    most.append(len(inside))
                    await asyncio.sleep(0)
                    inside.pop()

        outcomes = in_threads(*[lambda: asyncio.run(asyncio.wait_for(work(), 8))] * 2)
        assert outcomes == [None, None]
        assert max(most) == 1


class TestClosing:
    """Ends."""

    def test_closing_during_every_kind_of_load(self) -> None:
        """``aclose`` during loads, detached loads, refreshes and bulks: each waiter gets `LoadCancelled`, all is over
        within two seconds, and nothing is printed, also when a factory swallows its cancellation."""
        assert run_script(
            """
import asyncio, time
from asynccache import Cache, LoadCancelled, CacheClosed
async def hang(*_):
    await asyncio.Event().wait()
async def stubborn():
    while not over:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass
over = False
async def main():
    global over
    cache = Cache(ttl="10m")
    await cache.get_or_set("aging", lambda: 1, ttl=0.1, refresh_ahead=0.001, grace=60)
    await asyncio.sleep(0.01)
    assert await cache.get_or_set("aging", hang, ttl=0.1, refresh_ahead=0.001) == 1
    asked = [
        cache.get_or_set("a", hang), cache.get_or_set("a", hang), cache.get_or_set("b", hang, lock="none"),
        cache.get_or_set_many(["c", "a"], hang), cache.get_or_set("d", hang, hard_timeout=60, soft_timeout=50),
        cache.get_or_set("e", stubborn), cache.get_or_set("outer", lambda: cache.get_or_set("inner", hang)),
    ]
    waiting = [asyncio.create_task(each) for each in asked]
    try:
        await cache.get_or_set("detached", hang, hard_timeout=0.01)
    except TimeoutError:
        pass
    began = time.monotonic()
    unborn = asyncio.create_task(cache.get_or_set("f", hang))
    await cache.aclose()
    outcomes = await asyncio.gather(*waiting, unborn, return_exceptions=True)
    assert [type(each) for each in outcomes] == [LoadCancelled] * 7 + [CacheClosed], outcomes
    assert time.monotonic() - began < 2
    over = True
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    print("closed")
asyncio.run(main())
"""
        ) == (0, "closed\n", "")

    async def test_closing_from_inside_a_load(self) -> None:
        """A factory may close the cache that it loads for; its caller is told, and nobody waits for anybody."""
        cache = Cache()

        async def load() -> str:
            await cache.aclose()
            return "too late"

        async with asyncio.timeout(2):
            with pytest.raises(LoadCancelled):
                await cache.get_or_set("k", load)
            with pytest.raises(CacheClosed):
                await cache.get_or_set("k", load)

    async def test_closing_twice_at_once(self) -> None:
        """Two who close at once both return, and the loads end once."""
        cache = Cache()
        task = asyncio.create_task(cache.get_or_set("k", asyncio.Event().wait))
        await asyncio.sleep(0)
        await asyncio.gather(cache.aclose(), cache.aclose())
        with pytest.raises(LoadCancelled):
            await task

    async def test_a_loads_factory_asks_a_closed_cache(self) -> None:
        """A factory that goes on after the closing gets `CacheClosed` from every call, single, bulk and refresh."""
        cache = Cache()
        errors: list[type[BaseException]] = []

        async def ask() -> None:
            for call in (
                lambda: cache.get_or_set("other", lambda: 1),
                lambda: cache.get_or_set_many(["other"], lambda keys: {}),
                lambda: cache.lock("other", ttl=1).__aenter__(),
            ):
                try:
                    await call()
                except CacheClosed as error:
                    errors.append(type(error))

        async def load() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await ask()

        task = asyncio.create_task(cache.get_or_set("k", load))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await cache.aclose()
        with pytest.raises(LoadCancelled):
            await task
        assert errors == [CacheClosed] * 3

    @pytest.mark.parametrize("end", ["", "sys.exit(0)", "os._exit(0)"])
    def test_leaving_without_closing(self, end: str) -> None:
        """A program that ends in the middle of loads, refreshes and locks, with entries that have timers, prints
        nothing."""
        assert run_script(
            f"""
import asyncio, os, sys
from asynccache import Cache
cache = Cache("memory://?max_entries=100", ttl=5)
@cache.memoize()
async def f(x): return x
async def hang(*_): await asyncio.Event().wait()
kept = []
async def main():
    await cache.set_many({{str(n): n for n in range(1000)}}, ttl=2)
    await f(1)
    kept.append(asyncio.create_task(cache.get_or_set("a", hang)))
    kept.append(asyncio.create_task(cache.get_or_set_many(["b", "c"], hang)))
    kept.append(asyncio.create_task(cache.lock("l", ttl=60).__aenter__()))
    kept.append(asyncio.create_task(cache.lock("l", ttl=60).__aenter__()))
    try:
        await cache.get_or_set("d", hang, hard_timeout=0.01)
    except TimeoutError:
        pass
    {end}
asyncio.run(main())
"""
        ) == (0, "", "")

    def test_a_cancelled_program(self) -> None:
        """A program whose main task is cancelled during a load ends as any would."""
        code, printed, complaints = run_script(
            """
import asyncio, signal, os
from asynccache import Cache
cache = Cache()
async def hang():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
try:
    asyncio.run(cache.get_or_set("k", hang))
except KeyboardInterrupt:
    print("interrupted")
"""
        )
        assert (code, printed, complaints) == (0, "interrupted\n", "")


FORK = """
import asyncio, os, sys, time
from asynccache import Cache, Policy

def child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
        return
    code = 1
    try:
        asyncio.run(asyncio.wait_for(work(), 8))
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)
"""


class TestForks:
    """A child has what its parent had stored, and nothing of what its parent was doing."""

    def test_every_kind_of_load(self) -> None:
        """Single, bulk, detached, refreshing and unshared loads of the parent neither hold up nor reach the child, and
        go on in the parent."""
        code, printed, complaints = run_script(
            FORK
            + """
cache = Cache(ttl="10m")
gate = None
async def slow(value):
    await gate.wait()
    return value
async def in_child():
    assert await cache.get_many(["stored", "single"]) == {"stored": "parent"}
    assert await cache.get_or_set("single", lambda: "child") == "child"
    assert await cache.get_or_set("alone", lambda: "child", lock="none") == "child"
    assert await cache.get_or_set_many(["b", "a"], lambda keys: dict.fromkeys(keys, "child")) \\
        == {"b": "child", "a": "child"}
    assert await cache.get_or_set("detached", lambda: "child") == "child"
    assert await cache.get_or_set("aging", lambda: "child", ttl=0.05, refresh_ahead=0.001) == "parent"
    await asyncio.sleep(0.01)
    assert await cache.get("aging") == "child"
    assert len([key async for key in cache.keys()]) == 7
    await cache.aclose()
async def main():
    global gate
    gate = asyncio.Event()
    await cache.set("stored", "parent")
    await cache.get_or_set("aging", lambda: "parent", ttl=60, refresh_ahead=0.0001)
    waiting = [
        asyncio.create_task(cache.get_or_set("single", lambda: slow("parent"))),
        asyncio.create_task(cache.get_or_set("alone", lambda: slow("parent"), lock="none")),
        asyncio.create_task(cache.get_or_set_many(["a", "b"], lambda keys: slow(dict.fromkeys(keys, "parent")))),
    ]
    try:
        await cache.get_or_set("detached", lambda: slow("parent"), hard_timeout=0.02)
    except TimeoutError:
        pass
    assert await cache.get_or_set("aging", lambda: slow("newer"), ttl=60, refresh_ahead=0.0001) == "parent"
    await asyncio.sleep(0)
    child(in_child)
    gate.set()
    assert await asyncio.gather(*waiting) == ["parent", "parent", {"a": "parent", "b": "parent"}]
    await asyncio.sleep(0.01)
    assert await cache.get_many(["detached", "aging", "single"]) \\
        == {"detached": "parent", "aging": "newer", "single": "parent"}
    await cache.aclose()
    print("fine")
asyncio.run(main())
""",
            strict=sys.version_info < (3, 12),  # there a fork with threads about is a warning by itself
        )
        assert (code, printed, complaints) == (0, "fine\n", "")

    def test_timers(self) -> None:
        """Entries that the parent stored expire in the child, and leave its memory by themselves."""
        assert run_script(
            FORK
            + """
cache = Cache(ttl="10m")
async def in_child():
    assert await cache.get("short5") == 5
    await cache.set("more", 1, ttl=0.2)
    for _ in range(300):
        if cache.stats().entries == 1: break
        await asyncio.sleep(0.05)
    assert cache.stats().entries == 1, cache.stats()
    assert await cache.get("short5") is None
    assert await cache.get("long") == 1
async def main():
    await cache.set_many({f"short{n}": n for n in range(100)}, ttl=0.3)
    await cache.set("long", 1)
    child(in_child)
    assert await cache.get("long") == 1
    print("fine")
asyncio.run(main())
""",
            strict=False,
        ) == (0, "fine\n", "")

    def test_made_and_used_before_workers(self) -> None:
        """A cache that a master has used, in a loop of its own, serves each of its workers: what was stored is found,
        one load per key in each, and no worker sees another's writes."""
        assert run_script(
            FORK
            + """
cache = Cache("memory://?max_entries=1000", ttl="10m", policy=Policy(grace="1h"))
@cache.memoize(key="u:{x}")
async def user(x):
    await asyncio.sleep(0.001)
    runs.append(x)
    return (os.getpid(), x)
runs = []
async def preload():
    await user(1)
    async with cache.lock("start", ttl=60):
        pass
asyncio.run(preload())
master = os.getpid()
async def serve():
    assert await user(1) == (master, 1)
    found = await asyncio.gather(*(user(2) for _ in range(20)))
    assert set(found) == {(os.getpid(), 2)} and runs == [1, 2]
    assert await cache.incr("requests") == 1
    async with cache.lock("start", ttl=60, timeout=1):
        await cache.invalidate_tags("t")
    await cache.aclose()
for _ in range(3):
    child(serve)
async def after():
    assert await cache.get("u:2") is None and await user(1) == (master, 1)
asyncio.run(after())
print("fine")
"""
        ) == (0, "fine\n", "")

    def test_forked_inside_a_factory(self) -> None:
        """A child that is forked by a factory can load the very key that the factory is loading."""
        assert run_script(
            FORK
            + """
cache = Cache()
async def in_child():
    assert await cache.get_or_set("k", lambda: "child") == "child"
async def load():
    child(in_child)
    return "parent"
async def main():
    assert await cache.get_or_set("k", load) == "parent"
    print("fine")
asyncio.run(main())
""",
            strict=False,
        ) == (0, "fine\n", "")

    def test_a_lock_that_the_parent_holds(self) -> None:
        """A child waits for no lock of its parent's, which holds it on."""
        assert run_script(
            FORK
            + """
cache = Cache()
async def in_child():
    async with cache.lock("k", ttl=60, timeout=1):
        pass
async def main():
    async with cache.lock("k", ttl=60):
        waiter = asyncio.create_task(cache.lock("k", ttl=60).__aenter__())
        await asyncio.sleep(0)
        child(in_child)
        assert not waiter.done()
    await waiter
    print("fine")
asyncio.run(main())
""",
            strict=False,
        ) == (0, "fine\n", "")

    def test_a_pool_of_processes(self) -> None:
        """``multiprocessing`` with fork works with a cache that is in use."""
        assert run_script(
            """
import asyncio, multiprocessing
from asynccache import Cache
cache = Cache(ttl="10m")
@cache.memoize(key="s:{x}")
async def square(x):
    await asyncio.sleep(0)
    return x * x
def work(x):
    return asyncio.run(square(x)), asyncio.run(square(x))
async def main():
    assert await square(3) == 9
if __name__ == "__main__":
    asyncio.run(main())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, range(4)))
        pool.close()
        pool.join()
""",
            strict=False,
        ) == (0, "[(0, 0), (1, 1), (4, 4), (9, 9)]\n", "")


def test_a_slow_thread_holds_up_nobody() -> None:
    """While a plain factory blocks its own loop, another thread's loop is served from the cache."""
    cache = Cache()
    blocking, release = threading.Event(), threading.Event()
    asyncio.run(cache.set("there", 1))

    def block() -> str:
        blocking.set()
        release.wait(5)
        return "slow"

    def second() -> tuple[Any, float]:
        blocking.wait(5)
        began = time.monotonic()
        found = asyncio.run(cache.get("there")), asyncio.run(cache.get_or_set("other", lambda: 2))
        took = time.monotonic() - began
        release.set()
        return found, took

    slow, (found, took) = in_threads(lambda: asyncio.run(cache.get_or_set("k", block)), second)
    assert (slow, found) == ("slow", (1, 2))
    assert took < 2
