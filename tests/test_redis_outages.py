"""A Redis that is away, slow or strange: what it costs a caller, and that everything is well again when it is back.

The servers are real, and so is the network but for a `FaultProxy` in it. Limits are those that the package promises,
times `NOISE` for a machine that does other things as well.
"""

import asyncio
import contextlib
import itertools
import logging
import pickle
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from fault_proxy import FaultProxy
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from owing import owed, repaid
from promised_times import (
    ATTEMPTS_A_SECOND,
    CALL_SECONDS,
    CROWD_SECONDS,
    HEALED_SECONDS,
    holds_within,
    well,
    within,
)
from redis.credentials import UsernamePasswordCredentialProvider
from servers import Server, certificates, free_port, has_tls
from stores import FLAVOURS, on_redis
from waiting import comes, until

from asynccache import Cache, CacheError, Caches, ConfigError, Policy, Telemetry
from asynccache import _breaker as breaker_module
from asynccache.backend import Lease
from asynccache.backends.redis import RedisBackend, intents
from asynccache.entry import Entry
from asynccache.errors import BackendError, BackendUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """A server without keys, scripts and counts; it runs again whatever the test has done to it."""
    running.command("FLUSHALL")
    running.command("SCRIPT", "FLUSH")
    running.command("CONFIG", "RESETSTAT")
    yield running
    running.thaw()
    running.start()


# Faults


class Trouble:
    """One kind of trouble between a cache and its server, which begins and ends."""

    def __init__(self, name: str, server: Server, proxy: FaultProxy) -> None:
        self.name, self.server, self.proxy = name, server, proxy
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin: also for the connections that are there."""
        proxy = self.proxy
        match self.name:
            case "killed":
                self.server.kill()
            case "frozen":
                self.server.freeze()
            case "refused":
                proxy.refuse()
            case "connect hangs":
                proxy.reset_all()
                proxy.hold_connects()
            case "black hole":
                proxy.black_hole()
            case "stalled":
                proxy.stall()
            case "late":
                proxy.latency(1.0)  # in each direction
            case "slow":
                proxy.bandwidth(200)
            case "resets":
                self._thread = threading.Thread(target=self._reset)
                self._thread.start()
            case "cut":
                proxy.truncate(3)
            case "cut when greeted":
                proxy.truncate(330)
            case _:
                raise ValueError(self.name)

    def _reset(self) -> None:
        while not self._over.wait(0.005):
            self.proxy.reset_all()

    def end(self) -> None:
        """Heal it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.server.thaw()
        self.server.start()
        self.proxy.healthy()


TROUBLES = (
    "killed",
    "frozen",
    "refused",
    "connect hangs",
    "black hole",
    "stalled",
    "late",
    "slow",
    "resets",
    "cut",
    "cut when greeted",
)


@pytest.fixture(params=TROUBLES)
def trouble(request: pytest.FixtureRequest, server: Server, proxy: FaultProxy) -> Iterator[Trouble]:
    """Every kind, one after another."""
    trouble = Trouble(request.param, server, proxy)
    yield trouble
    trouble.end()


def remote(cache: Cache) -> RedisBackend:
    """The store of a cache."""
    return cache.redis._store


def breaker_of(cache: Cache) -> str:
    """The state of its breaker."""
    assert cache._core.health is not None
    return cache._core.health.breaker


# 2. A memoized call


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_memoized_calls_answer_whatever_happens(trouble: Trouble, proxy: FaultProxy, warm: bool) -> None:
    """A memoized call answers within a second, a hundred at once within 1.5; all is well 2 s after the healing."""
    async with Cache(proxy.url, ttl="1m") as cache:
        calls: Counter[int] = Counter()

        @cache.memoize(key="f:{number}")
        async def function(number: int) -> int:
            calls[number] += 1
            return number

        if warm:
            assert await function(0) == 0
            assert await well(cache)
        trouble.begin()
        with within(CALL_SECONDS):
            assert await function(1) == 1
        with within(CROWD_SECONDS):
            assert await asyncio.gather(*(function(number) for number in range(2, 102))) == list(range(2, 102))
        with within(CALL_SECONDS):
            assert await function(0) == 0
        trouble.end()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        errors = cache.stats().errors
        for number in range(200, 210):
            assert await function(number) == await function(number) == number
            assert calls[number] == 1
        assert cache.stats().errors == errors


# 3. The breaker


@pytest.mark.slow
@pytest.mark.parametrize("name", ["refused", "black hole", "connect hangs", "cut", "cut when greeted", "resets"])
async def test_breaker_makes_calls_cheap_and_attempts_few(name: str, server: Server, proxy: FaultProxy) -> None:
    """While the server is away a call adds under 5 ms at the median, and connections are tried at most 20 times a
    second."""
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await well(cache)
        trouble.begin()
        try:
            await cache.get("k")
            await cache.get("k")
            took = []
            with connections_to(proxy.port) as attempts:
                began = time.perf_counter()
                while time.perf_counter() < began + (0.8 if len(took) >= 1_000 else 2.0):
                    before = time.perf_counter()
                    assert await cache.get("k") is None
                    took.append(time.perf_counter() - before)
                    if len(took) % 10 == 0:
                        await asyncio.sleep(0.002)
                lasted = time.perf_counter() - began
            assert statistics.median(took) < 0.005
            assert len(attempts) <= ATTEMPTS_A_SECOND * lasted
        finally:
            trouble.end()


_attempts: list[float] | None = None
_port = 0


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _attempts is not None:
        address = arguments[1]
        if type(address) is tuple and address[1] == _port:
            _attempts.append(time.perf_counter())


sys.addaudithook(_hook)


@contextmanager
def connections_to(port: int) -> Iterator[list[float]]:
    """When a connection to the port was tried in this process, whether or not it was made."""
    global _attempts, _port
    attempts: list[float] = []
    _attempts, _port = attempts, port
    yield attempts
    _attempts = None


async def test_the_breaker_is_open_until_the_server_answers(
    server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state says what is known last, however long nobody has asked: nothing but an answer closes it."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert breaker_of(cache) == "closed"
        assert await cache.set("k", 1)
        assert breaker_of(cache) == "closed"
        proxy.refuse()
        await comes(lambda: breaker_of(cache) != "closed")
        await cache.get("k")
        assert breaker_of(cache) == "open"
        monkeypatch.setattr(breaker_module, "_FORGOTTEN_SECONDS", 0.0)  # whatever callers are let through
        proxy.healthy()
        await asyncio.sleep(0.6)  # past the longest pause between attempts
        assert breaker_of(cache) == "open"
        await holds_within(cache.ping, HEALED_SECONDS)
        assert breaker_of(cache) == "closed"


async def test_a_lost_connection_is_half_open(server: Server, proxy: FaultProxy) -> None:
    """Nobody knows whether the server is there until somebody asks; another connection to it that is up tells."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", 1)
        proxy.reset_all()
        await comes(lambda: breaker_of(cache) == "half_open")
        await holds_within(cache.ping, HEALED_SECONDS)
        assert breaker_of(cache) == "closed"
        assert await cache.set("large", random.randbytes(200_000).hex())
        pool = remote(cache).pool()
        beside = pool.large(pool.link(b"large"), out=True)
        assert beside.up
        beside.drop()
        assert not beside.up
        assert breaker_of(cache) == "closed"


# 1. Killed and restarted under load


@pytest.mark.slow
async def test_kill_and_restart_under_fifty_workers(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Killed and restarted under 50 busy workers: no exception, a 99th percentile under 0.5 s, a stored key within 1 s
    of the return, at most 100 log records."""
    caplog.set_level(logging.DEBUG)
    async with Cache(server.url, ttl="1m") as cache:
        took: list[float] = []
        ended = False

        @cache.memoize(key="slow:{number}")
        async def function(number: int) -> int:
            await asyncio.sleep(0.001)
            return number

        async def work(worker: int) -> int:
            rounds = 0
            while not ended:
                began = time.perf_counter()
                match rounds % 5:
                    case 0:
                        assert await function(rounds % 97) == rounds % 97
                    case 1:
                        await cache.set(f"k:{worker}", rounds)
                    case 2:
                        assert await cache.get(f"k:{worker}") in (None, rounds - 1)
                    case 3:
                        await cache.get_many([f"k:{other}" for other in range(5)])
                    case 4:
                        await cache.delete(f"k:{worker}")
                took.append(time.perf_counter() - began)
                rounds += 1
                await asyncio.sleep(0.002)
            return rounds

        workers = [asyncio.create_task(work(worker)) for worker in range(50)]
        await comes(lambda: len(took) > 1_000, "work")
        took.clear()
        caplog.clear()
        server.kill()
        await asyncio.sleep(1.0)  # so long it is away: the breaker opens, and lets several probes through
        await asyncio.to_thread(server.start)
        back = time.perf_counter()

        async def stored() -> bool:
            return await cache.set("first", 1) and await cache.get("first") == 1

        await holds_within(stored, 1.0)
        await asyncio.sleep(back + 1.0 - time.perf_counter())
        ended = True
        assert min(await asyncio.gather(*workers)) > 100
        assert statistics.quantiles(took, n=100)[98] < 0.5
        assert len(caplog.records) <= 100


# 4. What is sent once


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True], ids=["entries", "plain"])
@pytest.mark.parametrize("how", ["lost", "reset", "cut"])
async def test_incr_without_its_reply_is_executed_once(
    server: Server, proxy: FaultProxy, how: str, plain: bool
) -> None:
    """An `incr` whose reply is lost has been executed once, and is not repeated when all is well."""
    codec = {"plain": True} if plain else None
    async with Cache(proxy.url, codec=codec) as cache, Cache(server.url, codec=codec) as other:
        assert await cache.incr("n") == 1
        names = ("EVALSHA", "INCRBY")
        if how == "lost":
            proxy.drop_replies(*names)
        elif how == "reset":
            proxy.reset_at(*names, answered=True)
        else:
            proxy.truncate(1)
        with within(0.5):
            assert await cache.incr("n") == 0
        proxy.healthy()
        assert await other.get("n") == 2
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        assert await other.get("n") == 2
        assert await cache.incr("n") == 3


# 7. What is hidden is seen


CALLS: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "get": lambda cache: cache.get("k"),
    "get_many": lambda cache: cache.get_many(["k", "l"]),
    "set": lambda cache: cache.set("k", 1),
    "set with ttl": lambda cache: cache.set("k", 1, ttl="1m", grace="1m"),
    "set large": lambda cache: cache.set("k", "x" * 200_000),
    "set tagged": lambda cache: cache.set("k", 1, tags=["t"]),
    "set if absent": lambda cache: cache.add("k", 1),
    "set if present": lambda cache: cache.set("k", 1, only_if="present"),
    "set_many": lambda cache: cache.set_many({"k": 1, "l": 2}),
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["k", "l"]),
    "exists": lambda cache: cache.exists("k"),
    "ttl": lambda cache: cache.ttl("k"),
    "entry": lambda cache: cache.entry("k"),
    "touch": lambda cache: cache.touch("k", "1m"),
    "incr": lambda cache: cache.incr("k"),
    "decr": lambda cache: cache.decr("k", ttl="1m"),
    "keys": lambda cache: _all_keys(cache),
    "clear": lambda cache: cache.clear(),
    "invalidate_tags": lambda cache: cache.invalidate_tags("t"),
    "lock": lambda cache: _locked(cache),
    "ping": lambda cache: cache.ping(),
    "get_or_set": lambda cache: cache.get_or_set("k", lambda: 1),
    "get_or_set tagged": lambda cache: cache.get_or_set("k", lambda: 1, tags=["t"]),
    "get_or_set_many": lambda cache: cache.get_or_set_many(["k", "l"], lambda keys: dict.fromkeys(keys, 1)),
    "memoized": lambda cache: cache.memoize(key="k")(_one)(),
    "refresh": lambda cache: cache.memoize(key="k")(_one).refresh(),
}


async def _one() -> int:
    return 1


async def _all_keys(cache: Cache) -> list[str]:
    return [key async for key in cache.keys()]  # noqa: SIM118 - a cache is no mapping


async def _locked(cache: Cache) -> None:
    async with cache.lock("k", ttl=5, timeout=0.2):
        pass


@pytest.mark.parametrize("call", CALLS)
async def test_hidden_failure_reaches_hook_and_counter(call: str, server: Server, proxy: FaultProxy) -> None:
    """No call raises while the server is away, and each tells the hook and the counter that it failed."""
    told: list[BaseException] = []
    async with Cache(proxy.url, ttl="1m", on_error=told.append) as cache:
        assert await cache.set("k", 1)
        proxy.refuse()
        await cache.get("k")
        before = len(told)
        assert before == cache.stats().errors == 1
        await CALLS[call](cache)
        assert len(told) == cache.stats().errors > before
        assert all(isinstance(error, CacheError) for error in told)


async def test_a_failure_says_where_it_was(server: Server, proxy: FaultProxy) -> None:
    """A hook, and who catches the exception, know the server, the operation and the cache; also in another process."""
    told: list[BackendError] = []
    async with (
        Cache(proxy.url, name="sessions", on_error=told.append) as cache,
        Cache(proxy.url, name="orders", on_error="raise") as loud,
    ):
        assert await cache.set("k", 1)
        assert await loud.set("k", 1)
        server.command("SET", "foreign", "no entry")
        assert await cache.get("foreign") is None
        proxy.refuse()
        await comes(lambda: breaker_of(cache) != "closed")
        await cache.get("k")
        await cache.delete("k")
        for _ in range(2):
            with pytest.raises(BackendUnavailable) as caught:
                await loud.incr("n")
            told.append(pickle.loads(pickle.dumps(caught.value)))
    foreign, *away = told
    assert (foreign.cache, foreign.operation) == ("sessions", "")
    assert [(error.cache, error.operation) for error in away] == [
        ("sessions", "get"),
        ("sessions", "delete"),
        ("orders", "incr"),
        ("orders", "incr"),
    ]
    assert all(f"redis at 127.0.0.1:{proxy.port}: " in str(error) for error in away)


@pytest.mark.parametrize("call", CALLS)
async def test_a_hook_that_raises_reaches_no_caller(
    call: str, server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A function given as ``on_error`` that fails changes no answer, no count and no log line of the failure itself."""
    asked = 0

    def hook(error: BackendError) -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("a secret of the hook") from error

    async with Cache(proxy.url, ttl="1m", on_error=hook) as cache, Cache(proxy.url, ttl="1m") as other:
        assert await cache.set("k", 1)
        assert await other.set("k", 1)
        proxy.refuse()
        await cache.get("k")
        await other.get("k")
        assert await CALLS[call](cache) == await CALLS[call](other)
        assert asked == cache.stats().errors > 1
    lines = [record.getMessage() for record in caplog.records]
    assert any("cache 'default': get failed: " in line for line in lines)
    assert any(f"the function on_error failed: RuntimeError in {__file__}" in line for line in lines)
    assert "a secret of the hook" not in caplog.text


@pytest.mark.parametrize("call", CALLS)
async def test_raised_failure_is_of_this_package(call: str, server: Server, proxy: FaultProxy) -> None:
    """With ``on_error="raise"`` a call fails with this package's error, at the first failure and at those after."""
    async with Cache(proxy.url, ttl="1m", on_error="raise") as cache:
        assert await cache.set("k", 1)
        proxy.refuse()
        for _ in range(2):
            with pytest.raises(CacheError):
                await CALLS[call](cache)


# 8. What is owed

DELETIONS = ("DEL", "UNLINK", "EVALSHA", "EVAL")
BUSY = b"-BUSY Redis is busy running a script\r\n"


@pytest.fixture(scope="module")
def lasting() -> Iterator[Server]:
    """A server that has all it was told when it was killed and is there again."""
    with Server(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("refused", ""), ("black hole", ""), ("frozen", ""), ("killed", ""), ("refused", "?connections=3")],
)
async def test_deletion_is_repeated_before_the_old_value_is_served(name: str, options: str, lasting: Server) -> None:
    """Keys deleted, and tags invalidated, while the server was away are never served again."""
    lasting.command("FLUSHALL")
    with FaultProxy(*lasting.address) as proxy:
        trouble = Trouble(name, lasting, proxy)
        async with Cache(proxy.url + options, ttl="1m") as cache:
            keys = [f"k:{number}" for number in range(2_000)]
            assert await cache.set_many(dict.fromkeys(keys, "old"))
            assert await cache.set("tagged", "old", tags=["t"])
            trouble.begin()
            assert await cache.delete_many(keys) == 0
            await cache.invalidate_tags("t")
            await asyncio.to_thread(trouble.end)
            if name != "frozen":  # that one does late what it had been sent
                assert lasting.command("EXISTS", keys[0], "tagged") == 2

            async def answers() -> bool:
                assert await cache.get_many([*keys, "tagged"]) == {}
                assert await cache.get(keys[-1]) is None
                assert await cache.get("tagged") is None
                return await cache.ping()

            await holds_within(answers, HEALED_SECONDS)
            assert await cache.get_many([*keys, "tagged"]) == {}
            await holds_within(absent(lasting, *keys), HEALED_SECONDS)


async def heals_with(cache: Cache, *allowed: object) -> None:
    """Wait until the server answers; until then too a read gives what is allowed."""

    async def answers() -> bool:
        assert await cache.get("k") in allowed
        return await cache.ping()

    await holds_within(answers, HEALED_SECONDS)


def absent(server: Server, *keys: str) -> Callable[[], Awaitable[bool]]:
    """Whether the server has none of the keys."""

    async def is_absent() -> bool:
        return server.command("EXISTS", *keys) == 0

    return is_absent


READS: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "get": lambda cache: cache.get("k", "absent"),
    "get_many": lambda cache: _first_of(cache.get_many(["other", "k"])),
    "exists": lambda cache: _absent_unless(cache.exists("k")),
    "entry": lambda cache: _absent_unless(cache.entry("k")),
    "get_or_set": lambda cache: cache.get_or_set("k", lambda: "absent"),
    "get_or_set_many": lambda cache: _first_of(cache.get_or_set_many(["k"], lambda keys: {"k": "absent"})),
    "keys": lambda cache: _absent_unless(_all_keys(cache)),
    "touch": lambda cache: _absent_unless(cache.touch("k", "1m")),
}


async def _first_of(reading: Awaitable[dict[str, Any]]) -> Any:
    return (await reading).get("k", "absent")


async def _absent_unless(reading: Awaitable[Any]) -> Any:
    return await reading or "absent"


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("how", ["one tier", "two tiers", "plain"])
async def test_value_whose_deletion_was_refused_is_not_served(
    read: str, how: str, server: Server, proxy: FaultProxy
) -> None:
    """A server that answers reads and refuses a deletion does not bring the old value back."""
    local, codec = "memory://" if how == "two tiers" else None, {"plain": True} if how == "plain" else None
    async with Cache(proxy.url, local=local, ttl="1m", codec=codec) as cache:
        assert await cache.set("k", "old")
        assert await cache.get("k") == "old"
        proxy.error_replies(BUSY, only=DELETIONS, times=1)
        assert not await cache.delete("k")
        assert await READS[read](cache) == "absent"
        await holds_within(absent(server, "k") if read not in ("get_or_set", "get_or_set_many") else _true, 1.0)
        assert await cache.get("k") != "old"


async def _true() -> bool:
    return True


@pytest.mark.parametrize("local", [None, "memory://"], ids=["one tier", "two tiers"])
async def test_tagged_value_whose_invalidation_was_refused_is_not_served(
    local: str | None, server: Server, proxy: FaultProxy
) -> None:
    """A server that answers reads and refuses to invalidate a tag does not bring its values back."""
    async with Cache(proxy.url, local=local, ttl="1m") as cache:
        assert await cache.set("k", "old", tags=["t"])
        assert await cache.get("k") == "old"
        proxy.error_replies(BUSY, only=["SET", "EVALSHA"], times=1)
        await cache.invalidate_tags("t")
        assert await cache.get("k") is None
        assert await cache.get_many(["k"]) == {}
        await repaid(cache)
        assert await cache.get("k") is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["set", "set_many", "add", "large"])
async def test_write_after_a_failed_deletion_survives(how: str, server: Server, proxy: FaultProxy) -> None:
    """What was stored after a deletion had failed is not deleted when the deletion is repeated."""
    async with Cache(proxy.url, ttl="1m") as cache:
        keys = [f"k:{number}" for number in range(24)]
        new = noise(150_000) if how == "large" else "new"
        assert await cache.set_many(dict.fromkeys(keys, "old"))
        assert not await cache.delete("load the script")
        assert await cache.add("load the other", 1)
        proxy.latency(0.05)
        proxy.error_replies(BUSY, only=DELETIONS, times=len(keys))
        assert sum(await asyncio.gather(*(cache.delete(key) for key in keys))) == 0

        async def write(key: str, pause: float) -> bool:
            await asyncio.sleep(pause)
            if how == "add":
                return await cache.add(key, new)
            return await (cache.set_many({key: new}) if how == "set_many" else cache.set(key, new))

        stored = await asyncio.gather(*(write(key, 0.02 * number) for number, key in enumerate(keys)))
        assert stored == [True] * len(keys)
        await repaid(cache)
        proxy.healthy()
        assert await cache.get_many(keys) == dict.fromkeys(keys, new)


async def test_count_after_a_failed_deletion_starts_anew(server: Server, proxy: FaultProxy) -> None:
    """A counter whose deletion failed starts at zero, and keeps what was added after that."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.incr("n", 7) == 7
        proxy.error_replies(BUSY, only=DELETIONS, times=1)
        assert not await cache.delete("n")
        assert await cache.incr("n") == 1
        await repaid(cache)
        assert await cache.incr("n") == 2


async def test_load_after_a_failed_deletion_is_stored(server: Server, proxy: FaultProxy) -> None:
    """What was loaded after a deletion had failed is not deleted when the deletion is repeated."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        proxy.error_replies(BUSY, only=DELETIONS, times=1)
        assert not await cache.delete("k")
        assert await cache.get_or_set("k", lambda: "new") == "new"
        await repaid(cache)
        assert await cache.get("k") == "new"


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2], ids=["at first", "after others"])
@pytest.mark.parametrize(
    ("name", "how"),
    [("refused", "set"), ("refused", "large"), ("refused", "set_many"), ("black hole", "large")],
)
async def test_write_that_failed_leaves_no_older_value(
    name: str, how: str, times: int, server: Server, proxy: FaultProxy
) -> None:
    """A value that could not be replaced while the server was away is not served when it is back."""
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        assert await cache.set("large", noise(100_000))
        trouble.begin()
        for key in ("another", "k")[-times:]:
            new = noise(100_000) if how == "large" else "new"
            assert not await (cache.set_many({key: new}) if how == "set_many" else cache.set(key, new))
        trouble.end()
        await heals_with(cache, None)
        assert await cache.get("k") is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["timed out", "cancelled"])
async def test_large_write_given_up_does_not_come_after_a_deletion(how: str, server: Server, proxy: FaultProxy) -> None:
    """A large value that was still on its way when its writer gave up is not there after a later deletion."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("large", "x" * 100_000)
        assert await cache.set("k", "old")
        proxy.bandwidth(1_000_000)
        before = proxy.bytes_up
        first = asyncio.create_task(cache.set("first", noise(300_000)))
        await asyncio.sleep(0)
        writing = asyncio.create_task(cache.set("k", noise(430_000)))
        if how == "cancelled":
            await comes(lambda: proxy.bytes_up - before > 200_000, "much of it has left")
            writing.cancel()
            await asyncio.wait([writing])
        else:
            assert not await writing
        await cache.delete("k")
        await first
        assert await cache.get("k") is None
        proxy.healthy()  # whatever is still on its way is there at once
        for _ in range(20):
            assert await cache.get("k") is None
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_deletion_beside_a_large_write_is_not_forgotten(server: Server, proxy: FaultProxy) -> None:
    """Of several keys deleted together, while a large value is on its way, each is gone though one was refused."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set_many({"a": "old", "b": "old"})
        assert await cache.set("z", noise(100_000))
        proxy.bandwidth(1_000_000)
        writing = asyncio.create_task(cache.set("z", noise(300_000)))
        await asyncio.sleep(0.02)
        proxy.error_replies(BUSY, only=DELETIONS, times=4)
        assert not await cache.delete("b")
        await cache.delete_many(["a", "b"])
        assert await cache.get("a") is None
        assert await writing
        proxy.healthy()
        assert await cache.get_many(["a", "b"]) == {}


def noise(size: int) -> str:
    """Text that cannot be compressed much."""
    return random.Random(size).randbytes(size // 2).hex()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen", "stalled"])
async def test_write_on_its_way_is_not_served_later(name: str, server: Server, proxy: FaultProxy) -> None:
    """A value that was on its way when its writer gave up is not served after a later deletion, which failed too."""
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        trouble.begin()
        assert not await cache.set("k", "late")
        assert not await cache.delete("k")
        trouble.end()
        await heals_with(cache, None)
        for _ in range(20):
            assert await cache.get("k") is None
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["delete", "set"])
@pytest.mark.parametrize("name", ["black hole", "frozen"])
async def test_call_given_up_in_an_outage_brings_no_deleted_value_back(
    name: str, call: str, server: Server, proxy: FaultProxy
) -> None:
    """A key whose deletion failed stays deleted though the next call for it was cancelled in an outage."""
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        proxy.error_replies(BUSY, only=DELETIONS, times=1)
        assert not await cache.delete("k")
        trouble.begin()
        work = cache.delete("k") if call == "delete" else cache.set("k", "new")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await work
        if name == "frozen":
            proxy.reset_all()  # what it has not read yet, it never will
        await comes(lambda: breaker_of(cache) == "open", "the outage is noticed")
        trouble.end()
        await heals_with(cache, None, "new")
        assert await cache.get("k") in (None, "new")


@pytest.mark.slow
async def test_deletion_given_up_in_an_outage_is_repeated(server: Server, proxy: FaultProxy) -> None:
    """A deletion whose caller waited no longer, while the server was away, is done when it is back."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await cache.delete("k")
        await comes(lambda: breaker_of(cache) == "open", "the outage is noticed")
        proxy.healthy()
        await heals_with(cache, None)
        assert await cache.get("k") is None


@pytest.mark.slow
async def test_deletion_whose_reply_was_lost_loses_no_later_write(server: Server, proxy: FaultProxy) -> None:
    """After a deletion without a reply the next write that succeeds stays."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        assert await cache.delete("k")
        proxy.drop_replies(*DELETIONS)
        assert not await cache.delete("k")
        proxy.healthy()

        async def written() -> bool:
            return await cache.set("k", "new")

        await holds_within(written, HEALED_SECONDS)
        for _ in range(30):
            assert await cache.get("k") == "new"
            await asyncio.sleep(0.02)


async def test_deletion_that_failed_is_repeated_before_closing(server: Server, proxy: FaultProxy) -> None:
    """A deletion that a server refused for a moment is done when the cache is closed right after it."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        proxy.error_replies(BUSY, only=DELETIONS, times=1)
        assert not await cache.delete("k")
    assert server.command("EXISTS", "k") == 0


async def test_what_is_owed_at_closing_is_told(
    server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Deletions that cannot be made before the cache is closed are logged: their old values may be read again."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set_many(dict.fromkeys("abc", "old"))
        proxy.refuse()
        assert await cache.delete_many(["a", "b", "c"]) == 0
        caplog.clear()
    [line] = [record.getMessage() for record in caplog.records if "owed" in record.getMessage()]
    assert line.startswith(f"redis at 127.0.0.1:{proxy.port}: deletions still owed at closing: 3; ")
    assert server.command("EXISTS", "a", "b", "c") == 3


async def test_more_deletions_than_are_remembered_are_told(
    server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many deletions of an outage were dropped is logged while it lasts, the last of them too."""
    monkeypatch.setattr(intents, "_MOST_KEYS", 100)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", 1)
        proxy.refuse()
        for number in range(300):
            assert not await cache.delete(f"k{number}")

        def dropped() -> int:
            lines = [record.getMessage() for record in caplog.records]
            return sum(int(line.split("dropped: ")[1].split(",")[0]) for line in lines if "dropped: " in line)

        await comes(lambda: dropped() == 200)
        assert len([record for record in caplog.records if "dropped: " in record.getMessage()]) <= 20
        proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        await repaid(cache)


def test_deletion_that_failed_in_another_loop_is_repeated(server: Server, proxy: FaultProxy) -> None:
    """A deletion that failed in one `asyncio.run` is done in the next before anything is read."""
    cache = Cache(proxy.url, ttl="1m")

    async def first() -> None:
        assert await cache.set("k", "old")
        proxy.refuse()
        assert not await cache.delete("k")

    async def second() -> None:
        assert await cache.get("k") is None
        await holds_within(cache.ping, HEALED_SECONDS)
        assert await cache.get("k") is None
        await cache.aclose()

    asyncio.run(first())
    proxy.healthy()
    asyncio.run(second())
    assert server.command("EXISTS", "k") == 0


# 9. Closing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["black hole", "frozen", "connect hangs", "slow"])
async def test_closing_takes_no_time(name: str, server: Server, proxy: FaultProxy) -> None:
    """`aclose` ends within 2 s whatever the network does, and those who wait are told."""
    trouble = Trouble(name, server, proxy)
    cache = Cache(proxy.url, ttl="1m", local="memory://")
    assert await cache.set("k", "old")
    trouble.begin()
    try:
        waiting = [asyncio.create_task(call(cache)) for call in CALLS.values()]  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        with within(2.0):
            await cache.aclose()
        with within(0.2):
            await asyncio.gather(*waiting, return_exceptions=True)
        assert all(task.cancelled() or isinstance(task.exception(), (CacheError, NoneType)) for task in waiting)
    finally:
        trouble.end()

    async def nobody_is_connected() -> bool:
        return proxy.connections_open == 0

    await holds_within(nobody_is_connected, 1.0)


# 10. Many at once


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_thousand_gets_at_once_need_one_connection(warm: bool, server: Server, proxy: FaultProxy) -> None:
    """A thousand gets at once over a slow link are all answered, by one connection."""
    async with Cache(f"{proxy.url}?timeout=5s", ttl="1m") as cache, Cache(server.url, ttl="1m") as other:
        keys = [f"k:{number}" for number in range(1_000)]
        assert await other.set_many(dict.fromkeys(keys, "value"))
        if warm:
            assert await cache.get(keys[0]) == "value"
        proxy.latency(0.1 if warm else 0.03)
        with within(0.5):
            assert await asyncio.gather(*(cache.get(key) for key in keys)) == ["value"] * 1_000
        assert proxy.connections_made == 1


@pytest.mark.slow
async def test_gets_over_a_narrow_link_need_two_connections(server: Server, proxy: FaultProxy) -> None:
    """A thousand gets of small and large values over a link too narrow for them open no more connections than two."""
    async with Cache(proxy.url, ttl="1m") as cache, Cache(server.url, ttl="1m") as other:
        keys = [f"k:{number}" for number in range(1_000)]
        assert await other.set_many({key: noise(200_000 if key.endswith("00") else 100) for key in keys})
        assert await cache.get(keys[0])
        proxy.bandwidth(100_000)
        with within(CROWD_SECONDS):
            await asyncio.gather(*(cache.get(key) for key in keys))
        assert proxy.connections_made <= 2
        proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        assert all(await asyncio.gather(*(cache.get(key) for key in keys)))


# 15. Deleting while loading


@pytest.mark.parametrize("lock", ["shared", "local"])
async def test_deletion_during_a_load_wins(lock: Any, server: Server, proxy: FaultProxy) -> None:
    """What a load brings is not stored when its key was deleted meanwhile, by this process."""
    async with Cache(proxy.url, ttl="1m") as cache:
        loading, go = asyncio.Event(), asyncio.Event()

        @cache.memoize(key="k", lock=lock)
        async def function() -> str:
            loading.set()
            await go.wait()
            return "old"

        call = asyncio.create_task(function())
        await loading.wait()
        await cache.delete("k")
        go.set()
        assert await call == "old"
        assert await cache.get("k") is None
        assert server.command("EXISTS", "k") == 0


@pytest.mark.parametrize("how", ["memoized", "refresh", "bulk", "background"])
async def test_deletion_by_another_process_during_a_load_wins(how: str, server: Server, proxy: FaultProxy) -> None:
    """What a load brings is not stored when another process deleted its key meanwhile, however the load began."""
    async with Cache(proxy.url, ttl="1m") as cache, Cache(server.url, ttl="1m") as other:
        loading, go = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            loading.set()
            await go.wait()
            return "old"

        function = cache.memoize(key="k", refresh_ahead=0.01, ttl=5)(load)
        if how == "background":
            assert await cache.set("k", "older", ttl=5)
            await asyncio.sleep(0.1)
            call: asyncio.Task[Any] = asyncio.create_task(function())
        elif how == "bulk":

            async def load_many(keys: list[str]) -> dict[str, str]:
                return {"k": await load()}

            call = asyncio.create_task(cache.get_or_set_many(["k"], load_many))
        else:
            call = asyncio.create_task(function.refresh() if how == "refresh" else function())
        await asyncio.wait_for(loading.wait(), 2)
        await other.delete("k")
        go.set()
        await call
        await asyncio.sleep(0.05)
        assert await cache.get("k") is None
        assert await other.get("k") is None


async def test_deletion_during_a_load_that_began_in_an_outage_wins(server: Server, proxy: FaultProxy) -> None:
    """What a load brings that began while the server was away is not stored over another process's later deletion."""
    async with Cache(proxy.url, ttl="1m") as cache, Cache(server.url, ttl="1m") as other:
        loading, go = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            loading.set()
            await go.wait()
            return "old"

        assert await well(cache)
        proxy.refuse()
        call = asyncio.create_task(cache.get_or_set("k", load))
        await loading.wait()
        proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        await other.set("k", "new")
        await other.delete("k")
        go.set()
        assert await call == "old"
        assert await other.get("k") is None


async def test_deletion_during_a_load_wins_in_an_outage(server: Server, proxy: FaultProxy) -> None:
    """A deletion that fails during a load is not undone by the load, which ends when all is well again."""
    async with Cache(proxy.url, ttl="1m", local="memory://") as cache:
        loading, go = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            loading.set()
            await go.wait()
            return "old"

        call = asyncio.create_task(cache.get_or_set("k", load))
        await loading.wait()
        proxy.refuse()
        assert not await cache.delete("k")
        proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        go.set()
        assert await call == "old"
        assert await cache.get("k") is None
        await holds_within(absent(server, "k"), 1.0)


# 2. One deadline


def _entry(value: Any = 1) -> Entry:
    now = time.time()
    return Entry(value=value, created_at=now, fresh_until=now + 60, expires_at=now + 60)


QUESTIONS: dict[str, Callable[[RedisBackend], Awaitable[Any]]] = {
    "get": lambda store: store.get("k"),
    "get_many": lambda store: store.get_many(["k", "l"]),
    "set": lambda store: store.set("k", _entry()),
    "set if absent": lambda store: store.set("absent", _entry(), only_if="absent"),
    "set if present": lambda store: store.set("k", _entry(), only_if="present"),
    "set_many": lambda store: store.set_many({"k": _entry(), "l": _entry()}),
    "delete": lambda store: store.delete(["k"]),
    "touch": lambda store: store.touch("k", fresh_until=time.time() + 9, expires_at=time.time() + 9),
    "incr": lambda store: store.incr("k", 1, ttl=None),
    "ping": lambda store: store.ping(),
    "acquire": lambda store: store.leases.acquire("absent", ttl=3.0),
    "commit": lambda store: store.leases.commit(Lease("k", "0" * 16), _entry()),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
async def test_operation_has_one_deadline(question: str, server: Server, proxy: FaultProxy) -> None:
    """An operation on a slow server ends within the deadline of 0.5 s, however many questions it takes."""
    store = on_redis(proxy.url)
    try:
        assert await store.set("k", _entry())
        assert await store.get("k") is not None
        proxy.latency(0.15)
        with within(0.5), contextlib.suppress(BackendError):
            await QUESTIONS[question](store)
    finally:
        await store.aclose()


@pytest.mark.slow
async def test_large_value_has_one_deadline(server: Server, proxy: FaultProxy) -> None:
    """A read of a large value over a slow link ends within the deadline of 0.5 s."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await cache.set("k", noise(2_000_000))
        proxy.bandwidth(1_000_000)
        with within(0.5):
            await cache.get("k")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["black hole", "frozen", "refused"])
async def test_wait_for_another_process_ends_with_the_server(name: str, server: Server, proxy: FaultProxy) -> None:
    """A memoized call that waits for another process's load answers within a second of the server's going away."""
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache, Cache(server.url, ttl="1m") as other:
        loading, go = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            loading.set()
            await go.wait()
            return "theirs"

        async def own() -> str:
            return "ours"

        assert await well(cache)
        theirs = asyncio.create_task(other.get_or_set("k", load))
        await loading.wait()
        ours = asyncio.create_task(cache.get_or_set("k", own))
        await holds_within(lambda: _waits(server), 1.0)
        await asyncio.sleep(0.05)
        assert not ours.done()
        trouble.begin()
        try:
            with within(CALL_SECONDS, 1.3):
                assert await ours == "ours"
        finally:
            trouble.end()
            go.set()
            await theirs


async def _waits(server: Server) -> bool:
    return server.calls()["CLIENT|CACHING"] > 0


# 9. Leaving without closing

ENDINGS = {
    "after hits": "await cache.set('k', 1); await cache.get('k')",
    "in the middle of calls": (
        "tasks = [asyncio.ensure_future(cache.get(f'k:{n}')) for n in range(50)]; await asyncio.sleep(0.05)"
    ),
    "in the middle of loads": (
        "tasks = [asyncio.ensure_future(cache.get_or_set(f'k:{n}', load)) for n in range(50)];"
        " [await begun.acquire() for _ in range(50)]"
    ),
    "with something owed": "await cache.set('k', 1); await cache.delete('k')",
    "by an exit": "await cache.get('k'); sys.exit(0)",
}
LEAVING = """
import asyncio, sys
from asynccache import Cache
import logging
logging.basicConfig(level=logging.ERROR)

async def leave():
    sys.exit(0)

begun = asyncio.Semaphore(0)

async def load():
    begun.release()
    await asyncio.Event().wait()

async def main():
    {ending}

cache = Cache({url!r}, local={local!r}, ttl="1m", telemetry="off")
{run}
"""
RUNS = {
    "asyncio.run": "asyncio.run(main())",
    "a closed loop": "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
}


STRICTLY = ("-X", "dev", "-W", "error")


def leave(url: str, ending: str, run: str, local: str | None, options: tuple[str, ...] = STRICTLY) -> str:
    """What a program says, in development mode and with warnings as errors, that leaves without closing its cache."""
    script = LEAVING.format(url=url, ending=ENDINGS[ending], local=local, run=RUNS[run])
    ended = subprocess.run(
        [sys.executable, *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    complaints = [line for line in ended.stderr.splitlines() if not line.startswith("Executing <")]
    return "\n".join([ended.stdout, *complaints]).strip() + ("" if ended.returncode == 0 else f" {ended.returncode}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "name"),
    [
        *((ending, "well") for ending in ENDINGS),
        *((ending, "black hole") for ending in list(ENDINGS)[:4]),
        ("with something owed", "refused"),
    ],
)
async def test_leaving_without_closing_says_nothing(ending: str, name: str, server: Server, proxy: FaultProxy) -> None:
    """A program that ends without closing its cache says nothing, whatever the network does."""
    if name != "well":
        Trouble(name, server, proxy).begin()
    local = "memory://" if ending in ("after hits", "in the middle of loads") else None
    assert await asyncio.to_thread(leave, proxy.url, ending, "asyncio.run", local) == ""


@pytest.mark.parametrize("ending", ["after hits", "in the middle of calls", "with something owed"])
async def test_closing_the_loop_by_hand_says_nothing(ending: str, server: Server) -> None:
    """Who closes the loop without cancelling its tasks hears nothing of those that he has not made. (In development
    mode asyncio tells of every socket that such a loop leaves.)"""
    assert await asyncio.to_thread(leave, server.url, ending, "a closed loop", "memory://", ()) == ""


# 27. Secrets

SECRET = "hunter2"


def shown(error: BaseException) -> str:
    """All that an exception shows, its causes and contexts included."""
    return "".join([repr(error), str(error), *traceback.format_exception(error)])


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:{}@127.0.0.1:port/0",
        "redis://me:{}@127.0.0.1:99999999/0",
        "redis://me:{}@127.0.0.1:6379/zero",
        "redis://me:{}@[::1/0",
        "redis://me:{}[@127.0.0.1/0",
        "redis://me:[{}]@127.0.0.1/0",
        "redis://me:{}]@127.0.0.1/0",
        "redis://me:{}\u2100@127.0.0.1/0",
        "redis://me:{}\uff03@127.0.0.1/0",
        "redis://:{}#x@127.0.0.1/0",
        "redis://:#{}@127.0.0.1/0",
        "redis://:?{}@127.0.0.1/0",
        "redis://:1?{}@127.0.0.1/0",
        "redis://:/{}@127.0.0.1/0",
        "redis://:1/{}@127.0.0.1/0",
        "redis://me:{}@127.0.0.1/0?timout=1",
        "redis://me:{}@127.0.0.1/0?timeout=soon",
        "redis://me:{}@127.0.0.1/0?sentinel_pasword={}",
        "redis://me:{}@127.0.0.1/0?password={}",
        "redis+sentinel://me:{}@127.0.0.1/0?sentinel_password={}&sentinel_password={}",
        "redis+sentinel://me:{}@/?sentinel_password={}",
        "redis+cluster://me:{}@127.0.0.1/1",
        "unix://me:{}@/run/redis.sock?db=x",
        "unix://me:{}@127.0.0.1/run/redis.sock",
        "rediss://me:{}@127.0.0.1/0?ssl_ca_certs=/nowhere",
        "rediss://me:{}@127.0.0.1/0?ssl_check_hostname=false",
        "redos://me:{}@127.0.0.1/0",
        "me:{}@127.0.0.1/0",
        "redis:me:{}@127.0.0.1/0",
        "redis:/me:{}@127.0.0.1/0",
    ],
)
def test_wrong_url_shows_no_password(url: str) -> None:
    """The error for a URL that is wrong is a `ConfigError` and does not show the password in it."""
    for make in (
        lambda text: Cache(text),
        lambda text: Caches.from_mapping({"caches": {"a": {"store": text}}})["a"],
        lambda text: Caches.from_mapping({"a": {"store": text}})["a"],
    ):
        with pytest.raises(ConfigError) as caught:
            make(url.replace("{}", SECRET))
        assert SECRET not in shown(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        "wrong password",
        "no password wanted",
        "nobody there",
        "no such host",
        "no host",
        "TLS",
        "sentinels",
        "cluster",
        "another kind",
    ],
)
async def test_password_is_nowhere_to_be_seen(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """A password is in no log, representation, exception, traceback, span or metric, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = Telemetry(tracer_provider=tracers, meter_provider=MeterProvider([reader]), keys="raw")
    with Server(options={"requirepass": "another"} if where == "wrong password" else {}) as server:
        who = f"me:{SECRET}@"
        url = {
            "nobody there": f"redis://{who}127.0.0.1:{free_port()}",
            "no such host": f"redis://{who}nowhere.invalid",
            "no host": f"redis://{who}a..b",
            "TLS": f"rediss://{who}{server.host}:{server.port}",
            "sentinels": f"redis+sentinel://{who}{server.host}:{server.port}/main/0?sentinel_password={SECRET}",
            "cluster": f"redis+cluster://{who}{server.host}:{server.port}",
        }.get(where, f"redis://{who}{server.host}:{server.port}")
        told: list[BaseException] = []
        seen: list[str] = []
        for on_error in (told.append, "raise"):
            cache = Cache(url, local="memory://", ttl="1m", on_error=on_error, telemetry=telemetry)  # type: ignore[arg-type]
            loop.set_debug(True)
            loop.slow_callback_duration = 0.0
            try:
                for call in CALLS.values():
                    try:
                        await call(cache)
                    except Exception as error:
                        told.append(error)
                tasks = [repr(task) for task in asyncio.all_tasks()]
                parts: list[object] = [cache, remote(cache), remote(cache).settings, cache._core, cache._core.seats]
                parts += [vars(remote(cache))]
                seen += [repr(part) for part in parts] + tasks
                await cache.aclose()
            finally:
                loop.set_debug(False)
        assert told
        seen += [shown(error) for error in told]
        seen += [record.getMessage() + str(record.exc_text) for record in caplog.records] + [caplog.text]
        seen += [span.to_json() for span in exporter.get_finished_spans()]
        data = reader.get_metrics_data()
        seen += [data.to_json() if data else "", server.log]
        assert len(exporter.get_finished_spans()) > 50
        assert not [text for text in seen if SECRET in text]


FRAMES: dict[str, tuple[str, Callable[[FaultProxy], object]]] = {
    "RESP3": ("redis://{who}@{place}", FaultProxy.healthy),
    "RESP2": ("redis://{who}@{place}?protocol=2", FaultProxy.healthy),
    "cluster": ("redis+cluster://{who}@{place}", FaultProxy.healthy),
    "sentinel": ("redis+sentinel://{who}@{watcher}/main", FaultProxy.healthy),
    "a sentinel's own": ("redis+sentinel://{watcher}/main?sentinel_password={word}", FaultProxy.healthy),
    "TLS": ("rediss://{who}@{place}", FaultProxy.healthy),
    "silence": ("redis://{who}@{place}?timeout=100ms&connect_timeout=200ms", FaultProxy.black_hole),
    "too slow": ("redis://{who}@{place}?connect_timeout=200ms", FaultProxy.black_hole),
    "an echo": (
        "redis://{who}@{place}",
        lambda proxy: proxy.error_replies(f"-ERR unknown command, beginning with: '{SECRET}'\r\n".encode()),
    ),
    "nonsense": ("redis://{who}@{place}", lambda proxy: proxy.error_replies(b"*1\r\n+what\r\n")),
    "the end": ("redis://{who}@{place}", lambda proxy: proxy.truncate(0)),
    "a provider": ("redis://{place}", FaultProxy.healthy),
    "a provider in vain": ("redis://{place}?connect_timeout=200ms", FaultProxy.black_hole),
}
"""Ways in which a greeting fails: by which URL, and what the way to the server does."""


def refused(how: str, server: Server, watcher: Server, proxy: FaultProxy) -> Cache:
    """A cache that is let in nowhere; this frame, with the password in the URL, is over when it is used."""
    url, begin = FRAMES[how]
    begin(proxy)
    places = {"place": f"{proxy.host}:{proxy.port}", "watcher": f"{watcher.host}:{watcher.port}"}
    url = url.format(who=f"me:{SECRET}", word=SECRET, **places)
    credentials = UsernamePasswordCredentialProvider("me", SECRET) if "provider" in how else None
    return Cache(RedisBackend.from_url(url, credentials=credentials), on_error="raise")


@pytest.mark.parametrize("how", FRAMES)
async def test_password_is_in_no_frame(how: str, server: Server, proxy: FaultProxy) -> None:
    """Of an exception that callers get, neither the frames nor what is in them, which some loggers show, has a
    password: not at the first call, and not later, when an earlier failure is told as the reason."""
    watched = f"sentinel monitor main {server.host} {server.port} 1"
    options = {"requirepass": "another"} if how == "a sentinel's own" else {}
    with Server(sentinel=watched, options=options) as watcher:
        cache = refused(how, server, watcher, proxy)
        told = []
        for _ in range(3):
            with pytest.raises(CacheError) as caught:
                await cache.get("key")
            told.append(caught.value)
            await asyncio.sleep(0.1)  # another attempt is made
        await remote(cache).aclose()
        for error in told:
            shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
            assert len(shown) > 1_000
            assert SECRET not in shown


# The edges of loading: 50, 51, 52


@pytest.mark.slow
async def test_writes_in_an_outage_stay_near_and_old_values_do_not_come_back(server: Server, proxy: FaultProxy) -> None:
    """With the remote store away a write is held by the local one, each key is owed once, and afterwards nobody reads
    an older value."""
    async with Cache(proxy.url, ttl="1m", local="memory://") as cache, Cache(server.url, ttl="1m") as other:
        assert await cache.set("k", "old")
        proxy.refuse()
        for number in range(500):
            await cache.set("k", f"new {number}")
            await cache.set(f"k:{number % 5}", number)
        assert await cache.get("k") == "new 499"
        assert owed(cache) == 6
        proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        assert await other.get("k") in (None, "new 499")
        assert await cache.get("k") in (None, "new 499")
        assert owed(cache) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["black hole", "frozen"])
@pytest.mark.parametrize("how", ["get_or_set", "memoized", "many at once"])
async def test_stale_value_stands_in_for_a_server_that_hangs(
    how: str, name: str, server: Server, proxy: FaultProxy
) -> None:
    """With a soft timeout of 50 ms a stale value of the local store is returned within 80 ms though the remote one
    hangs."""
    trouble = Trouble(name, server, proxy)
    policy = Policy(ttl=0.3, grace=60.0, soft_timeout=0.05)
    async with Cache(proxy.url, policy=policy, local="memory://") as cache:
        keys = [f"k:{number}" for number in range(10)]
        assert await cache.set_many(dict.fromkeys(keys, "stale"))
        assert await cache.get_many(keys) == dict.fromkeys(keys, "stale")

        async def all_stale() -> bool:
            return not await cache.get_many(keys)

        await until(all_stale)
        trouble.begin()
        try:
            with within(0.08):
                if how == "get_or_set":
                    assert await cache.get_or_set("k:1", lambda: "new") == "stale"
                elif how == "memoized":
                    assert await cache.memoize(key="k:1")(_one)() == "stale"
                else:
                    calls = (cache.get_or_set(key, lambda: "new") for key in keys)
                    assert await asyncio.gather(*calls) == ["stale"] * 10
        finally:
            trouble.end()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["black hole", "connect hangs", "frozen", "cut"])
async def test_one_probe_at_a_time(name: str, server: Server, proxy: FaultProxy) -> None:
    """While the server is away one connection at a time is tried, and no call waits for it."""
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await well(cache)
        trouble.begin()
        try:
            await cache.get("k")
            await cache.get("k")
            most = 0
            began = time.perf_counter()
            while time.perf_counter() < began + 0.5:
                with within(0.1):
                    assert await asyncio.gather(*(cache.get(f"k:{number}") for number in range(50))) == [None] * 50
                most = max(most, proxy.connections_open)
                await asyncio.sleep(0.005)
            assert most <= 2  # the last one may not have been seen to end
        finally:
            trouble.end()


# All kinds of trouble, all kinds of calls


@pytest.mark.slow
async def test_calls_of_all_kinds_in_all_kinds_of_trouble(trouble: Trouble, proxy: FaultProxy) -> None:
    """No call takes long, and none raises but this package's errors where that is wanted; hidden ones are all told."""
    told: list[BaseException] = []
    async with (
        Cache(proxy.url, ttl="1m", local="memory://", on_error=told.append) as hiding,
        Cache(proxy.url, ttl="1m", local="memory://", on_error="raise") as raising,
    ):
        assert await hiding.set("k", 1)
        assert await raising.set("k", 1)
        trouble.begin()
        for _ in range(2):
            with within(CROWD_SECONDS):
                outcomes = await asyncio.gather(
                    asyncio.gather(*(call(hiding) for call in CALLS.values())),
                    asyncio.gather(*(call(raising) for call in CALLS.values()), return_exceptions=True),
                )
            raised = [each for each in outcomes[1] if isinstance(each, BaseException)]
            assert raised
            assert [error for error in raised if not isinstance(error, CacheError)] == []
        trouble.end()
        assert len(told) == hiding.stats().errors > 0
        assert [error for error in told if not isinstance(error, BackendError)] == []


@pytest.mark.slow
@pytest.mark.timeout(40)
@pytest.mark.parametrize(
    ("options", "local"),
    [("", None), ("?connections=2", None), ("", "memory://")],
    ids=["one connection", "two", "two tiers"],
)
async def test_no_wrong_value_whatever_happens(
    options: str, local: str | None, server: Server, proxy: FaultProxy
) -> None:
    """Under faults of all kinds, one after another, a read gives what was written last or nothing, and never what was
    deleted or replaced."""
    dice = random.Random(f"{options} {local}")
    wrong: list[str] = []
    hits = 0
    async with Cache(proxy.url + options, ttl="1m", local=local) as cache:
        ended, large = False, noise(100_000)

        async def own(key: str) -> None:
            nonlocal hits
            allowed: set[Any] = {None}  # what a read may give: what was written last, surely or perhaps
            for number in itertools.count(1):
                if ended:
                    return
                value = [key, number, large if dice.random() < 0.2 else ""]
                patience = dice.random() * 0.05 if dice.random() < 0.2 else 10.0
                before, allowed = allowed, allowed | {number}  # until it is known what has become of it
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        match dice.randrange(8):
                            case 0 | 1:
                                await cache.set(key, value)
                                allowed = {None, number}
                            case 2:
                                if await cache.add(key, value):
                                    allowed = {None, number}
                            case 3:
                                allowed |= {None}
                                await cache.delete(key)
                                allowed = {None}
                            case 4:
                                await cache.set_many({key: value, f"{key} too": value})
                                allowed = {None, number}
                            case _:
                                allowed = before
                                found = await cache.get(key) if number % 2 else (await cache.get_many([key])).get(key)
                                hits += found is not None
                                if found is not None and found[0] != key:
                                    wrong.append(f"{key}: {found[0]}")
                                if (None if found is None else found[1]) not in allowed:
                                    wrong.append(f"{key}: {found and found[1]} for {allowed}")
                await asyncio.sleep(dice.random() * 0.01)

        workers = [asyncio.create_task(own(f"key {number}")) for number in range(16)]
        for _ in range(6):
            trouble = Trouble(
                dice.choice([name for name in TROUBLES if name not in ("killed", "resets")]), server, proxy
            )
            trouble.begin()
            await asyncio.sleep(dice.random() * 0.4)
            trouble.end()
            if dice.random() < 0.5:
                proxy.error_replies(BUSY, only=dice.choice([DELETIONS, ["SET"], ["GETRANGE", "MGET"]]), times=5)
            if dice.random() < 0.3:
                proxy.drop_replies("SET", "EVALSHA")
            await asyncio.sleep(dice.random() * 0.5)
            proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        before = hits
        await comes(lambda: hits > before + 50, "reads that find something")
        ended = True
        await asyncio.gather(*workers)
    assert wrong == []
    assert hits > 50


@pytest.mark.slow
async def test_count_is_what_was_said_under_resets(server: Server, proxy: FaultProxy) -> None:
    """A counter on a line that is reset again and again has all that succeeded, and nothing twice."""
    async with Cache(proxy.url) as cache, Cache(server.url) as other:
        assert await cache.incr("n") == 1
        sums: list[int] = [1]
        asked = 1
        for _ in range(10):
            proxy.reset_at("EVALSHA", answered=True)
            totals = await asyncio.gather(*(cache.incr("n") for _ in range(20)))
            asked += 20
            sums += [total for total in totals if total]
            await holds_within(lambda: well(cache), HEALED_SECONDS)
        assert len(set(sums)) == len(sums)
        assert len(sums) <= await other.get("n") <= asked


# Values on the way


@pytest.mark.slow
async def test_late_replies_reach_nobody_else(server: Server, proxy: FaultProxy) -> None:
    """Replies that come after their deadline are never taken for those of later questions."""
    async with Cache(proxy.url, ttl="1m") as cache:
        keys = [f"k:{number}" for number in range(200)]
        assert await cache.set_many({key: key for key in keys})
        for latency in (0.3, 0.25):
            proxy.latency(latency)
            began = time.perf_counter()
            while time.perf_counter() < began + 1.0:
                for key, value in zip(keys, await asyncio.gather(*map(cache.get, keys)), strict=True):
                    assert value in (None, key)
                await asyncio.sleep(0.05)
            proxy.healthy()
            await holds_within(lambda: well(cache), HEALED_SECONDS)
            assert await asyncio.gather(*map(cache.get, keys)) == keys


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000, 65_000, 66_000, 1_000_000])
async def test_value_cut_in_the_middle_is_a_miss(size: int, server: Server, proxy: FaultProxy) -> None:
    """A value of which a part has come before the connection broke is a miss, and whole when all is well again."""
    async with Cache(proxy.url, ttl="1m") as cache:
        value = noise(size)
        assert await cache.set("k", value)
        assert await cache.get("k") == value
        for share in (0.01, 0.5, 0.99):
            proxy.truncate(int(size * share / 2), once=True)
            assert await cache.get("k") in (None, value)
            proxy.healthy()

            async def whole() -> bool:
                return await cache.get("k") == value

            await holds_within(whole, HEALED_SECONDS)


@pytest.mark.slow
async def test_large_value_that_changes_while_it_is_read_is_not_torn(server: Server, proxy: FaultProxy) -> None:
    """A large value that is replaced while it comes is the old one, the new one or a miss."""
    values = ["a" + noise(400_000), "b" + noise(410_000), "c" + noise(300_000)]
    async with Cache(proxy.url, ttl="1m") as cache, Cache(server.url, ttl="1m") as other:
        assert await other.set("k", values[0])
        assert await cache.get("k") == values[0]
        proxy.latency(0.002)
        proxy.bandwidth(20_000_000)
        seen: Counter[Any] = Counter()
        ended = False

        async def write() -> None:
            for value in itertools.cycle(values):
                if ended:
                    return
                await other.set("k", value)
                await asyncio.sleep(0.003)

        writing = asyncio.create_task(write())
        for _ in range(40):
            found = await cache.get("k")
            assert found is None or found in values
            seen[found and found[0]] += 1
        ended = True
        await writing
        assert sum(seen.values()) - seen[None] > 0


@pytest.mark.slow
async def test_connections_that_the_server_ends_cost_nothing(server: Server) -> None:
    """A server that ends idle connections, again and again, costs neither a miss nor a failure."""
    async with Cache(server.url, ttl="1m") as cache:
        assert await cache.set("k", 1)
        for _ in range(10):
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.06)
            assert await cache.get("k") == 1
        assert cache.stats().errors == 0


@pytest.mark.parametrize("trouble", ["refused", "lost"])
async def test_an_entry_whose_use_could_not_be_told_stays(server: Server, proxy: FaultProxy, trouble: str) -> None:
    """It has the time that it had: a session does not end because the server was away when it was used."""
    async with Cache(proxy.url, policy=Policy(ttl=60, sliding=True)) as cache:
        await cache.set("session", "value", 20)  # of a minute more than a tenth has passed: the next hit tells of it
        if trouble == "refused":
            proxy.error_replies(BUSY, only=("EVALSHA",))
        else:
            proxy.drop_replies("EVALSHA")
        assert await cache.get("session") == "value"
        await comes(lambda: cache.stats().errors)
        proxy.healthy()
        await until(lambda: well(cache))
        assert await cache.get("session") == "value"
    async with Cache(server.url) as other:
        assert await other.get("session") == "value"


# Ways to connect


@pytest.mark.parametrize("dead", ["silent", "refusing"])
async def test_a_name_whose_first_address_does_not_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    """As with a dead pod, or a way by IPv6 that there is not: one that refuses is followed by the next at once, and
    another attempt begins with another one."""
    loop = asyncio.get_running_loop()
    usual = loop.create_connection

    async def found(host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in ("127.0.0.2", "127.0.0.1")]

    async def connect(protocol: Any, host: str, port: int, **options: Any) -> Any:
        if host == "127.0.0.2" and dead == "silent":
            await asyncio.Event().wait()
        return await usual(protocol, "127.0.0.1", 1 if host == "127.0.0.2" else port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", found)
    monkeypatch.setattr(loop, "create_connection", connect)
    async with Cache(f"redis://several:{server.port}?connect_timeout=200ms") as cache:
        if dead == "refusing":
            assert await cache.set("key", "value")
        await until(lambda: cache.set("key", "value"))
        assert cache.redis._store.pool().link(b"").attempts == (2 if dead == "silent" else 1)


async def test_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose address is looked up for ever holds up neither a call nor the closing."""

    async def lost(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lost)
    cache = Cache("redis://nowhere.invalid", ttl="1m")
    with within(CALL_SECONDS):
        assert await cache.get_or_set("k", lambda: 1) == 1
    with within(CALL_SECONDS):
        await asyncio.gather(*(cache.get_or_set(f"k:{number}", lambda: 1) for number in range(100)))
    with within(1.0):
        await cache.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["black hole", "connect hangs", "cut"])
@pytest.mark.debian_redis
async def test_trouble_on_an_encrypted_line(name: str, tmp_path: Path) -> None:
    """With TLS the same holds as without: an answer within a second, closing within 2, and all well after it."""
    made = certificates(tmp_path)
    flavour = next(flavour for flavour in FLAVOURS if has_tls(flavour))
    with Server(flavour, tls=made) as server, FaultProxy(server.host, server.tls_port or 0) as proxy:
        trouble = Trouble(name, server, proxy)
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={made.authority}"
        async with Cache(url, ttl="1m") as cache, Cache(url, ttl="1m") as cold:
            assert await well(cache)
            trouble.begin()
            for each in (cache, cold):
                with within(CALL_SECONDS):
                    assert await each.get_or_set("k", lambda: 1) == 1
            with within(CROWD_SECONDS):
                await asyncio.gather(*(cache.get_or_set(f"k:{number}", lambda: 1) for number in range(100)))
            with within(2.0):
                await cold.aclose()
            trouble.end()
            await holds_within(lambda: well(cache), HEALED_SECONDS)


async def test_password_that_becomes_right(server: Server) -> None:
    """A server that wanted another password is used within 2 s of wanting this one."""
    with Server(options={"requirepass": "another"}) as guarded:
        async with Cache(f"redis://:{SECRET}@{guarded.host}:{guarded.port}", ttl="1m") as cache:
            for _ in range(20):
                assert await cache.get_or_set("k", lambda: 1) == 1
                await asyncio.sleep(0.01)
            guarded.command("CONFIG", "SET", "requirepass", SECRET)
            await holds_within(lambda: well(cache), HEALED_SECONDS)


# What the log says


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:1", "redis at 127.0.0.1:1: no connection: ConnectionRefusedError"),
        ("unix:///nowhere/socket", "redis at /nowhere/socket: no connection: FileNotFoundError"),
    ],
)
async def test_the_log_says_which_server_and_why(url: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who reads it at night sees what to mend, and the callers of later calls are told the reason too."""
    async with Cache(url) as cache:
        await cache.get("key")
    where, words = reason.split(": ", 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"{where}: away: {words}",
        f"cache 'default': get failed: {reason}",
    ]
    async with Cache(url, on_error="raise") as cache:
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match="no connection") as caught:
                await cache.get("key")
            assert caught.value.__cause__ is not None


async def test_the_log_says_that_the_password_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """And not the password."""
    with Server() as server:
        server.command("CONFIG", "SET", "requirepass", "right")
        for url, reason in (
            (server.url, "NOAUTH (it asks for a password)"),
            (server.url.replace("://", "://:wrong-one@"), "WRONGPASS (wrong user or password)"),
            (server.url.replace("://", "://:right@") + "/99", "there is no database 99"),
        ):
            caplog.clear()
            async with Cache(url) as cache:
                await cache.get("key")
            where = f"redis at 127.0.0.1:{server.port}"
            assert [record.getMessage() for record in caplog.records] == [
                f"{where}: away: {reason}",
                f"cache 'default': get failed: {where}: {reason}",
            ]


def logged(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    """The lines of the log that have the words."""
    return [line for record in caplog.records if part in (line := record.getMessage())]


@pytest.mark.parametrize("name", ["killed", "refused", "black hole"])
async def test_the_edges_of_an_outage_are_logged_once(
    name: str, server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A WARNING when the server is found away, with the reason, and an INFO when it is back, with what was repeated;
    however many ask in between, and for however many caches."""
    caplog.set_level(logging.INFO)
    trouble = Trouble(name, server, proxy)
    async with Cache(proxy.url, ttl="1m") as cache, cache.lock("lock", ttl=5):
        assert await cache.set_many(dict.fromkeys("abc", 1))
        await cache.get("a")
        trouble.begin()
        await comes_to("open", cache)
        for key in "abc":
            await cache.delete(key)
        for _ in range(20):
            await cache.get("a")
            await asyncio.sleep(0.02)
        await asyncio.to_thread(trouble.end)
        await holds_within(cache.ping, HEALED_SECONDS)
        where = f"redis at 127.0.0.1:{proxy.port}: "
        [away] = [record for record in caplog.records if record.getMessage().startswith(f"{where}away: ")]
        [back] = [record for record in caplog.records if record.getMessage().startswith(f"{where}back after ")]
        assert (away.levelname, back.levelname) == ("WARNING", "INFO")
        assert back.getMessage().endswith("; deletions repeated: 3")
        assert caplog.records.index(away) < caplog.records.index(back)


async def comes_to(state: str, cache: Cache) -> None:
    """Ask until the breaker is in the state."""

    async def is_there() -> bool:
        await cache.get("another")
        return breaker_of(cache) == state

    await until(is_there, state)


async def test_a_server_that_comes_and_goes_fills_no_log(
    server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The edges of outages are logged once a second at most, and every one that is logged has its end."""
    caplog.set_level(logging.INFO)
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await well(cache)
        began = time.monotonic()
        for _ in range(8):
            proxy.refuse()
            proxy.reset_all()
            await comes_to("open", cache)
            proxy.healthy()
            await holds_within(cache.ping, HEALED_SECONDS)
        assert 1 <= len(logged(caplog, ": away: ")) <= 1 + (time.monotonic() - began)
        assert len(logged(caplog, ": back after ")) == len(logged(caplog, ": away: "))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM (its memory is full: maxmemory)"),
        ("ERR max number of clients reached", "ERR (it has too many clients: maxclients)"),
        ("MISCONF Redis is configured to save", "MISCONF (it cannot save to its disk, and takes no writes)"),
        ("ERR something about user:4711", "ERR"),
        ("user:4711", "ERR"),
    ],
)
async def test_the_log_says_what_an_answer_means(
    server: Server, proxy: FaultProxy, reply: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operation that a server refuses names the server, its code and what that means; nothing else of its text."""
    async with Cache(proxy.url) as cache:
        assert await cache.set("a", 1)
        proxy.error_replies(f"-{reply}\r\n".encode(), only=["SET"])
        assert not await cache.set("a", 1)
        proxy.healthy()
        where = f"redis at 127.0.0.1:{proxy.port}"
        assert logged(caplog, "set failed") == [f"cache 'default': set failed: {where}: {words}"]
    assert "4711" not in caplog.text


@pytest.mark.parametrize("options", ["", "?merge_reads=true"])
async def test_the_log_names_a_server_that_is_silent(
    server: Server, proxy: FaultProxy, options: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A deadline that has passed, and a connection that was lost, say which server it was; so does the exception."""
    where = f"redis at 127.0.0.1:{proxy.port}: "
    async with Cache(proxy.url + options) as cache, Cache(proxy.url + options, on_error="raise") as loud:
        assert await cache.set("a", 1)
        assert await loud.set("a", 1)
        proxy.stall()
        await cache.get("a")
        assert logged(caplog, "get failed") == [f"cache 'default': get failed: {where}no answer in time"]
        with pytest.raises(BackendError, match=where):
            await loud.get("a")


async def test_the_log_says_what_a_user_may_not(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A right that is missing is named by its command, and by the script where it is one's."""
    server.command("ACL", "SETUSER", "svc", "reset", "on", ">pw", "~shop:*", "+@all", "-getrange", "-unlink")
    url = server.url.replace("://", "://svc:pw@")
    try:
        async with Cache(url, namespace="shop") as cache, Cache(url, namespace="other") as other:
            await cache.get("a")
            await cache.delete("a")
            await other.set("a", 1)
    finally:
        server.command("ACL", "DELUSER", "svc")
    where = f"cache 'default': {{}} failed: redis at 127.0.0.1:{server.port}: {{}}"
    lines = logged(caplog, "cache 'default'")
    assert where.format("get", "NOPERM (the user may not run GETRANGE)") in lines
    assert where.format("delete", "ERR (the user may not run a command of the script)") in lines
    assert where.format("set", "NOPERM (the user may not use the key)") in lines


async def test_the_log_says_which_name_and_which_service(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose name nobody knows, and a service of which no sentinel knows, are called so."""
    async with Cache("redis+sentinel://127.0.0.1:1/billing") as cache:
        await cache.get("key")
    sentinel = "redis at 127.0.0.1:1: no connection: ConnectionRefusedError"
    assert logged(caplog, f"get failed: redis at 127.0.0.1:1: no sentinel knows the master of 'billing' ({sentinel})")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with Cache("redis://nowhere.invalid:1") as cache:
        await cache.get("key")
    assert logged(caplog, "get failed: redis at nowhere.invalid:1: no connection: the name is not known")


@pytest.mark.parametrize("call", ["get", "set", "get_or_set", "delete"])
@pytest.mark.parametrize("on_error", ["degrade", "raise"])
async def test_who_asks_without_end_keeps_nobody_from_coming_back(
    server: Server, proxy: FaultProxy, call: str, on_error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop without a pause, while all is refused at once: the connection is made again all the same."""
    caplog.set_level(logging.CRITICAL)
    async with Cache(f"redis://127.0.0.1:{proxy.port}", on_error=on_error) as cache:
        await cache.set("key", "value", 60)
        proxy.refuse()
        proxy.reset_all()
        calls = {
            "get": lambda: cache.get("key"),
            "set": lambda: cache.set("key", "value", 60),
            "get_or_set": lambda: cache.get_or_set("key", lambda: "loaded", 60),
            "delete": lambda: cache.delete("other"),
        }
        asyncio.get_running_loop().call_later(0.3, proxy.healthy)  # needs a turn of the loop, too
        end = time.monotonic() + 15
        while True:
            with contextlib.suppress(BackendError):
                await calls[call]()
                if await cache.get("key") is not None:
                    break
            assert time.monotonic() < end


async def test_what_was_never_sent_is_not_owed(server: Server, proxy: FaultProxy) -> None:
    """A load that is refused at once asked for no lease: however many there are, none is to be given back."""
    async with Cache(f"redis://127.0.0.1:{proxy.port}") as cache:
        await cache.set("key", "value", 60)
        proxy.refuse()
        proxy.reset_all()
        while breaker_of(cache) != "open":
            await cache.get("key")
        before = owed(cache)
        for number in range(200):
            assert await cache.get_or_set(f"other{number}", lambda: "loaded", 60) == "loaded"
        assert owed(cache) == before


async def test_many_debts_keep_nobody_from_coming_back(server: Server, proxy: FaultProxy) -> None:
    """All that is to be deleted is, before anything is read, and the connection opens in time for all that."""
    keys = [f"key{number}" for number in range(30_000)]
    async with Cache(f"redis://127.0.0.1:{proxy.port}") as cache, Cache(server.url, on_error="raise") as other:
        await other.set_many(dict.fromkeys([keys[0], keys[-1], "another"], "value"))
        assert await cache.get("another") == "value"
        proxy.refuse()
        proxy.reset_all()
        while breaker_of(cache) != "open":
            await cache.get("another")
        assert await cache.delete_many(keys) == 0
        store = remote(cache)
        for number in range(9_000):
            store.intents.give_back(b"lock%d" % number, "0123456789abcdef", 60)
        attempts = store.pool().link(b"").attempts
        proxy.healthy()
        await comes(lambda: breaker_of(cache) == "closed")
        assert store.pool().link(b"").attempts <= attempts + 2
        assert await cache.get_many([keys[0], keys[-1], "another"]) == {"another": "value"}
