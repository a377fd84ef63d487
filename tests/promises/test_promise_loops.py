"""One cache object under loop after loop, in several threads, and on both sides of a fork."""

import asyncio
import gc
import subprocess
import sys
import threading
from functools import partial

import pytest

from asynccache import Cache
from asynccache.testing import sandbox


def test_three_runs():
    """Values survive from one ``asyncio.run`` to the next, loads and locks work in each, nothing complains."""
    cache = Cache(ttl="10m")

    async def main(number):
        async def load():
            await asyncio.sleep(0)
            return number

        assert await cache.get_or_set("first", load) == 0
        assert await cache.get_or_set(f"own{number}", load) == number
        async with cache.lock("l", ttl=60):
            await cache.incr("n")
        return await asyncio.gather(*(cache.get_or_set(f"crowd{number}", load) for _ in range(10)))

    for number in range(3):
        assert asyncio.run(main(number)) == [number] * 10

    async def total():
        return await cache.get("n")

    assert asyncio.run(total()) == 3


def test_a_load_left_in_flight_by_a_run():
    """A load that ended with its loop does not hold up the key in the next loop."""
    cache = Cache()

    async def leave():
        async def hang():
            await asyncio.Event().wait()

        task = asyncio.create_task(cache.get_or_set("k", hang))
        refresh = asyncio.create_task(cache.get_or_set("j", hang, hard_timeout=0.01))
        with pytest.raises(TimeoutError):
            await refresh
        del task

    async def next_one():
        async with asyncio.timeout(2):
            return await cache.get_or_set("k", lambda: 1), await cache.get_or_set("j", lambda: 2)

    asyncio.run(leave())
    assert asyncio.run(next_one()) == (1, 2)


def test_a_loop_closed_in_the_middle_of_a_load(caplog):
    """Also when the loop was closed with the load still pending the key works under the next loop."""
    cache = Cache()
    loop = asyncio.new_event_loop()
    blocker = loop.create_future()

    async def hang():
        await blocker

    task = loop.create_task(cache.get_or_set("k", hang))
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def next_one():
        async with asyncio.timeout(2):
            return await cache.get_or_set("k", lambda: 1)

    assert asyncio.run(next_one()) == 1
    del task
    gc.collect()


def test_time_goes_on_between_loops():
    """What expired between two loops is gone under the second, and is swept there."""
    with sandbox() as sb:
        cache = Cache(clock=sb.clock)

        async def fill():
            await cache.set_many({f"k{number}": 1 for number in range(100)}, ttl=5)
            await cache.set("long", 1, ttl=500)

        async def look():
            found = await cache.get_many(["k1", "long"])
            await cache.set("more", 1, ttl=5)
            sb.travel(2)
            for _ in range(50):
                await asyncio.sleep(0)
            return found, cache.stats().entries

        asyncio.run(fill())
        sb.travel(6)
        assert asyncio.run(look()) == ({"long": 1}, 2)


def test_two_threads():
    """Two loops in two threads use one cache at once: right values, exact counters, no error."""
    cache = Cache(ttl="10m")
    problems = []

    async def work(name):
        async def load(number):
            await asyncio.sleep(0)
            return number

        for number in range(1500):
            key = number % 50
            found = await cache.get_or_set(f"k{key}", partial(load, key))
            assert found == key, (found, key)
            await cache.incr("n")
            if number % 7 == 0:
                await cache.delete(f"k{key}")
            await cache.set(f"{name}{number % 10}", number, ttl=60)
            assert await cache.get(f"{name}{number % 10}") == number
            if number % 100 == 0:
                await cache.invalidate_tags("t")
                await asyncio.sleep(0)

    def run(name):
        try:
            asyncio.run(asyncio.wait_for(work(name), 20))
        except BaseException as error:
            problems.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert problems == []

    async def total():
        return await cache.get("n")

    assert asyncio.run(total()) == 3000


def test_two_threads_want_one_key():
    """While one thread's loop loads a key the other's asks for it: both get a right value, neither hangs."""
    cache = Cache()
    loading = threading.Event()
    release = threading.Event()
    results = {}

    def first():
        async def load():
            loading.set()
            await asyncio.to_thread(release.wait)
            return "value"

        results["first"] = asyncio.run(asyncio.wait_for(cache.get_or_set("k", load), 5))

    def second():
        async def load():
            return "value"

        results["second"] = asyncio.run(asyncio.wait_for(cache.get_or_set("k", load), 5))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert loading.wait(5)
    threads[1].start()
    threads[1].join(0.1)
    release.set()
    for thread in threads:
        thread.join(10)
    assert results == {"first": "value", "second": "value"}


FORKED = """
import asyncio, os, sys
from asynccache import Cache
cache = Cache(ttl="10m")

async def use(who):
    async with asyncio.timeout(5):
        assert await cache.get("before") == "set"
        assert await cache.get_or_set("k", lambda: who) == who
        await cache.set("mine", who, ttl=60)
        assert await cache.get("mine") == who
        await cache.aclose()

async def parent():
    await cache.set("before", "set")
    gate = asyncio.Event()
    async def slow():
        await gate.wait()
        return "parent"
    flight = asyncio.create_task(cache.get_or_set("k", slow))
    await asyncio.sleep(0.01)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(use("child"))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    gate.set()
    assert await flight == "parent"
    await use("parent")

asyncio.run(parent())
print("fine")
"""


def test_a_fork_in_the_middle_of_a_load():
    """A child of a live parent starts anew: it waits for no load of the parent's, and the parent goes on."""
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=20)
    assert run.stderr == ""
    assert run.stdout.strip() == "fine"


EXITING = """
import asyncio
from asynccache import Cache
cache = Cache()
async def stop():
    raise SystemExit(3)
async def main():
    await cache.get_or_set("k", stop)
try:
    asyncio.run(main())
except SystemExit as error:
    print("code", error.code)
async def after():
    async with asyncio.timeout(2):
        return await cache.get_or_set("k", lambda: "works")
print(asyncio.run(after()))
"""


@pytest.mark.parametrize(("raised", "printed"), [("SystemExit(3)", "code 3"), ("KeyboardInterrupt", "interrupt")])
def test_a_factory_that_ends_the_program(raised, printed):
    """``SystemExit`` and ``KeyboardInterrupt`` in a factory end the run, and leave the cache usable in the next one."""
    script = EXITING.replace("SystemExit(3)", raised)
    script = script.replace("except SystemExit", "except KeyboardInterrupt:\n    print('interrupt')\nexcept SystemExit")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert "never retrieved" not in run.stderr
    assert run.stdout.split("\n")[:2] == [printed, "works"]


def test_left_open():
    """A program that ends without closing its cache prints nothing."""
    script = (
        "import asyncio\nfrom asynccache import Cache\ncache = Cache(ttl=5)\nasync def f(): return 1\n"
        "async def main():\n    await cache.set('k', 1)\n    await cache.get_or_set('j', f, refresh_ahead=0.5)\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-X", "dev", "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
