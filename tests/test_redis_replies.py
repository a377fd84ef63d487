"""A Redis that says no: every error that a server answers with costs a miss, and what is stored wrongly is replaced."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from promised_times import (
    ATTEMPTS_A_SECOND,
    CALL_SECONDS,
    CROWD_SECONDS,
    HEALED_SECONDS,
    holds_within,
    well,
    within,
)
from servers import Server, ServerError
from stores import FLAVOURS, emptied, server_of

from asynccache import BackendError, Cache, CacheError, LockTimeout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """A server without keys, scripts and counts."""
    running.command("FLUSHALL")
    running.command("SCRIPT", "FLUSH")
    running.command("CONFIG", "RESETSTAT")
    return running


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that a test may set up as it likes."""
    with Server() as server:
        yield server


# Errors

REPLIES = (
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOPERM User default has no permissions to run the command",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "CLUSTERDOWN The cluster is down",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "ERR max number of clients reached",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "NOSCRIPT No matching script. Please use EVAL.",
    "UNKILLABLE Sorry the script already executed write commands.",
    "EXECABORT Transaction discarded because of previous errors.",
    "NOREPLICAS Not enough good replicas to write.",
    "ERR",
    "",
    "never heard of this, \u00e9\u00e8",
)
READS = ("GET", "MGET", "GETRANGE", "STRLEN", "EXISTS", "PTTL", "SCAN")
WRITES = ("SET", "DEL", "UNLINK", "SETRANGE", "PEXPIRE")
SCRIPTS = ("EVALSHA", "EVAL", "SCRIPT")
WHERE: dict[str, dict[str, Any]] = {
    "everywhere": {},
    "after the handshake": {"after_handshake": True},
    "on reads": {"only": READS},
    "on writes": {"only": WRITES},
    "on scripts": {"only": SCRIPTS},
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply[:24] or "nothing")
async def test_error_reply_costs_a_miss(reply: str, where: str, server: Server, proxy: FaultProxy) -> None:
    """A call answers promptly whatever error the server answers with, new or known connection, and all is well 2 s
    after it is over."""
    async with Cache(proxy.url, ttl="1m") as cache, Cache(proxy.url, ttl="1m") as cold:
        assert await well(cache)

        @cache.memoize(key="f:{number}", tags=["t"])
        async def function(number: int) -> int:
            return number

        @cold.memoize(key="f:{number}")
        async def other(number: int) -> int:
            return number

        proxy.error_replies(b"-" + reply.encode() + b"\r\n", **WHERE[where])
        with within(CALL_SECONDS):
            assert await function(1) == 1
            assert await other(2) == 2
            assert await cache.get("k") is None
            await cache.set("k", 1)
            await cache.incr("n")
            await cache.delete("k")
            await cache.invalidate_tags("t")
        with within(CROWD_SECONDS):
            assert await asyncio.gather(*(function(number) for number in range(2, 52))) == list(range(2, 52))
        proxy.healthy()
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        await holds_within(lambda: well(cold), HEALED_SECONDS)
        errors = cache.stats().errors
        assert await function(100) == await function(100) == 100
        assert cache.stats().errors == errors


@pytest.mark.slow
@pytest.mark.parametrize("where", ["everywhere", "after the handshake", "on reads"])
@pytest.mark.parametrize(
    "reply", ["LOADING x", "READONLY x", "NOAUTH x", "MASTERDOWN x", "ERR max number of clients reached"]
)
async def test_error_replies_bring_few_connections(reply: str, where: str, server: Server, proxy: FaultProxy) -> None:
    """A server that answers with an error for which the connection is made anew is tried at most 20 times a second."""
    async with Cache(proxy.url, ttl="1m") as cache:
        assert await well(cache)
        proxy.error_replies(b"-" + reply.encode() + b"\r\n", **WHERE[where])
        proxy.clear_counters()
        began = time.perf_counter()
        while time.perf_counter() < began + 1.0:
            await asyncio.gather(*(cache.get(f"k:{number}") for number in range(5)))
            await asyncio.sleep(0.002)
        assert proxy.connections_made <= ATTEMPTS_A_SECOND * (time.perf_counter() - began)


# Errors of real servers


async def test_full_server_goes_on_answering_reads(own: Server) -> None:
    """A server without memory for more takes no writes, and what it has is still served."""
    async with Cache(own.url, ttl="1m", local=None) as cache:
        keys = [f"k:{number}" for number in range(100)]
        assert await cache.set_many(dict.fromkeys(keys, "kept"))
        assert await cache.set("tagged", "kept", tags=["t"])
        assert await cache.incr("n") == 1
        own.command("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1")
        assert not await cache.set("new", 1)
        assert not await cache.set_many({"new": 1, "newer": 2})
        assert not await cache.add("new", 1)
        assert await cache.incr("n") == 0
        with within(CALL_SECONDS):
            assert await asyncio.gather(*(cache.get_or_set(f"new:{each}", lambda: 1) for each in range(50))) == [1] * 50
        errors = cache.stats().errors
        assert await asyncio.gather(*(cache.get(key) for key in keys)) == ["kept"] * 100
        assert await cache.get_many(keys) == dict.fromkeys(keys, "kept")
        assert await cache.get("tagged") == "kept"
        assert await cache.get_or_set("tagged", lambda: "loaded") == "kept"
        assert cache.stats().errors == errors
        assert await cache.delete(keys[0])
        own.command("CONFIG", "SET", "maxmemory", "0")
        assert await well(cache)
        assert await cache.incr("n") == 2


async def test_write_that_found_no_room_leaves_no_older_value(own: Server) -> None:
    """A value that could not replace an older one, for want of memory, leaves the older one unread."""
    async with Cache(own.url, ttl="1m") as cache:
        assert await cache.set("k", "old")
        own.command("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1")
        assert not await cache.set("k", "new")
        assert await cache.get("k") is None


@pytest.mark.slow
async def test_master_that_becomes_a_replica_serves_what_it_has(own: Server, server: Server) -> None:
    """A server that takes no writes any more costs no exception; once it does again, all is well within 2 s."""
    async with Cache(own.url, ttl="1m") as cache:
        assert await cache.set("k", "kept")
        own.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
        own.command("REPLICAOF", "127.0.0.1", "1")  # nobody is there
        began, hits = time.perf_counter(), 0
        rounds = 0
        while time.perf_counter() < began + 1.0:
            rounds += 1
            with within(CALL_SECONDS):
                assert await cache.get_or_set(f"new:{rounds}", lambda: 1) == 1
            hits += await cache.get("k") == "kept"
            await asyncio.sleep(0.005)
        assert hits > rounds / 2
        own.command("REPLICAOF", "NO", "ONE")
        await holds_within(lambda: well(cache), HEALED_SECONDS)


@pytest.mark.slow
async def test_busy_server(own: Server) -> None:
    """A server that runs somebody's endless script costs no exception; once it is killed, all is well within 2 s."""
    own.command("CONFIG", "SET", "busy-reply-threshold", "50")
    async with Cache(own.url, ttl="1m") as cache:
        assert await cache.set("k", "kept")

        def endless() -> None:
            with contextlib.suppress(ServerError):
                own.command("EVAL", "while true do end", 0)

        script = asyncio.create_task(asyncio.to_thread(endless))
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        while time.perf_counter() < began + 1.0:
            with within(CALL_SECONDS):
                assert await cache.get_or_set("new", lambda: 1) == 1
                assert await cache.get("k") in (None, "kept")
            await asyncio.sleep(0.005)
        own.command("SCRIPT", "KILL")
        await script
        await holds_within(lambda: well(cache), HEALED_SECONDS)
        assert await cache.get("k") == "kept"


@pytest.mark.slow
async def test_loading_server(own: Server, tmp_path: Path) -> None:
    """A server that reads its data after a start costs no exception; once it is there, all is well within 2 s."""
    options = {"rdb-key-save-delay": 0, "key-load-delay": 400, "loading-process-events-interval-bytes": 1_024}
    with Server(own.flavour, options=options, directory=tmp_path) as server:
        server.command("DEBUG", "POPULATE", 3_000)
        async with Cache(server.url, ttl="1m") as cache:
            assert await cache.set("k", "kept")
            server.command("SAVE")
            server.kill()
            await cache.get("k")
            server.launch()
            await holds_within(lambda: _loads(server), 5.0)
            rounds = 0
            while await _loads(server):
                rounds += 1
                with within(CALL_SECONDS):
                    assert await cache.get_or_set("new", lambda: 1) == 1
                    assert await cache.get("k") in (None, "kept")
                await asyncio.sleep(0.01)
            assert rounds > 10
            await holds_within(lambda: well(cache), HEALED_SECONDS)
            assert await cache.get("k") == "kept"


async def _loads(server: Server) -> bool:
    try:
        return server.info("persistence")["loading"] == "1"
    except OSError:
        return False


@pytest.mark.slow
async def test_server_with_room_for_no_more_clients(own: Server) -> None:
    """A server with too many clients costs no exception; once it has room, all is well within 2 s."""
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(own.unix_socket)
        other.sendall(b"CONFIG SET maxclients 1\r\n")
        assert other.recv(100) == b"+OK\r\n"
        async with Cache(own.url, ttl="1m") as cache:
            for _ in range(100):
                with within(CALL_SECONDS):
                    assert await cache.get_or_set("k", lambda: 1) == 1
                await asyncio.sleep(0.005)
            other.sendall(b"CONFIG SET maxclients 100\r\n")
            assert other.recv(100) == b"+OK\r\n"
            await holds_within(lambda: well(cache), HEALED_SECONDS)


@pytest.mark.parametrize(
    "allowed", ["-@all", "+ping +hello +client +time", "+@all -@write", "+@all -@scripting", "+@all -@read"]
)
async def test_user_without_permissions(own: Server, allowed: str) -> None:
    """A user who may not do what a cache does costs no exception; with the permissions, all is well within 2 s."""
    own.command("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", *allowed.split())
    async with Cache(f"redis://me:secret@{own.host}:{own.port}", ttl="1m") as cache:
        for _ in range(2):
            with within(CALL_SECONDS):
                assert await cache.get_or_set("k", lambda: 1, tags=["t"]) == 1
                await cache.set("k", 1)
                await cache.get("k")
                await cache.incr("n")
                await cache.delete("k")
        assert cache.stats().errors
        own.command("ACL", "SETUSER", "me", "+@all")
        await holds_within(lambda: well(cache), HEALED_SECONDS)


async def test_server_of_a_cluster_that_is_down(own: Server) -> None:
    """A node of a cluster without slots, taken for a single server, costs no exception."""
    with Server(own.flavour, options={"cluster-enabled": "yes"}) as node:
        async with Cache(node.url, ttl="1m") as cache:
            for _ in range(3):
                with within(CALL_SECONDS):
                    assert await cache.get_or_set("k", lambda: 1) == 1
                    assert await cache.get("k") is None
            assert cache.stats().errors


# Replies of another kind

STRANGE = (
    b"+OK",
    b"+PONG",
    b":0",
    b":1",
    b":-7",
    b":9223372036854775807",
    b"$-1",
    b"_",
    b"#t",
    b",1.5",
    b"(3492890328409238509324850943850943825024385",
    b"$0\r\n",
    b"$5\r\nhello",
    b"$1\r\n\xad",
    b"*0",
    b"*-1",
    b"*1\r\n$-1",
    b"*1\r\n:1",
    b"*2\r\n$1\r\n0\r\n*0",
    b"*2\r\n-ERR x\r\n-ERR y",
    b"*3\r\n*0\r\n%0\r\n~0",
    b"%1\r\n+a\r\n+b",
    b"~1\r\n+a",
    b"=8\r\ntxt:text",
    b"!5\r\nERR x",
)


@pytest.mark.parametrize("raising", [False, True], ids=["hidden", "raised"])
@pytest.mark.parametrize("reply", STRANGE, ids=repr)
async def test_reply_of_another_kind(reply: bytes, raising: bool, server: Server, proxy: FaultProxy) -> None:
    """A server that gives well-formed nonsense for an answer costs no exception but this package's own."""
    async with Cache(proxy.url, ttl="1m", on_error="raise" if raising else "degrade") as cache:
        assert await cache.set("k", 1)
        proxy.error_replies(reply + b"\r\n", after_handshake=True)

        async def locked() -> None:
            async with cache.lock("k", ttl=1, timeout=0.1):
                pass

        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "get": lambda: cache.get("k"),
            "get_many": lambda: cache.get_many(["k", "l"]),
            "set": lambda: cache.set("k", 1),
            "set large": lambda: cache.set("k", "x" * 200_000),
            "set tagged": lambda: cache.set("k", 1, tags=["t"]),
            "add": lambda: cache.add("k", 1),
            "set_many": lambda: cache.set_many({"k": 1, "l": 2}),
            "delete": lambda: cache.delete("k"),
            "touch": lambda: cache.touch("k", "1m"),
            "ttl": lambda: cache.ttl("k"),
            "incr": lambda: cache.incr("k"),
            "keys": lambda: _all_keys(cache),
            "clear": lambda: cache.clear(),
            "invalidate_tags": lambda: cache.invalidate_tags("t"),
            "lock": locked,
            "get_or_set": lambda: cache.get_or_set("k", lambda: 1),
            "get_or_set_many": lambda: cache.get_or_set_many(["k", "l"], lambda keys: dict.fromkeys(keys, 1)),
            "ping": lambda: cache.ping(),
        }
        allowed = CacheError if raising else LockTimeout
        for call in calls.values():
            with within(CALL_SECONDS), contextlib.suppress(allowed):
                async with asyncio.timeout(3):
                    await call()
        proxy.healthy()
        with contextlib.suppress(CacheError):
            await cache.get("k")
        await holds_within(lambda: _well_again(cache), HEALED_SECONDS)


async def _well_again(cache: Cache) -> bool:
    try:
        return await well(cache)
    except CacheError:
        return False


# What is not a Redis server at all

ANSWERS: dict[str, bytes] = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "garbage": bytes(range(256)),
    "OK to everything": b"+OK\r\n" * 30,
    "nil to everything": b"$-1\r\n" * 30,
    "empty lists": b"*0\r\n" * 30,
    "numbers": b":1\r\n" * 30,
    "maps": b"%1\r\n+server\r\n+redis\r\n" * 30,
    "pushes": b">2\r\n+invalidate\r\n*0\r\n" * 30,
    "strange pushes": b">1\r\n+invalidate\r\n" * 30,
    "empty pushes": b">0\r\n" * 30,
    "a long way": b"$1099511627776\r\nx",
    "a long list": b"*4294967295\r\n+x\r\n",
    "deep": b"*1\r\n" * 2_000,
    "errors in lists": b"*2\r\n-ERR x\r\n-ERR y\r\n" * 30,
    "nothing": b"",
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("ends", [False, True], ids=["stays", "closes"])
async def test_server_of_another_kind(answer: str, ends: bool) -> None:
    """A server that speaks no Redis, or another one, costs neither an exception nor much memory."""
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(ANSWERS[answer])
            await writer.drain()
            while not ends and await reader.read(65_536):
                pass
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        async with Cache(f"redis://127.0.0.1:{port}", ttl="1m", local="memory://") as cache:
            with within(CALL_SECONDS):
                assert await cache.get_or_set("k", lambda: 1) == 1
            with within(CALL_SECONDS):
                for _ in range(3):
                    assert await cache.get_or_set("l", lambda: 2) == 2
                    await cache.set("l", 2)
                    await cache.incr("n")
                    await asyncio.sleep(0.1)
            assert cache.stats().errors
        assert 0 < served <= 12
        await asyncio.sleep(0.01)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# What is stored wrongly


def of_type(kind: str) -> tuple[Any, ...]:
    """A command that stores another type under ``k``."""
    return {
        "list": ("RPUSH", "k", "x"),
        "hash": ("HSET", "k", "f", "x"),
        "set": ("SADD", "k", "x"),
        "sorted set": ("ZADD", "k", 1, "x"),
        "stream": ("XADD", "k", "*", "f", "x"),
        "bitmap": ("SETBIT", "k", 100, 1),
    }[kind]


LEASE = b"\xad" + b"0123456789abcdef"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one byte": lambda data: data[:1],
    "half a header": lambda data: data[:12],
    "a header alone": lambda data: data[:24],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "another first byte": lambda data: b"\x00" + data[1:],
    "another version": lambda data: data[:1] + b"\xff" + data[2:],
    "another codec": lambda data: data[:2] + b"\xff" + data[3:],
    "other flags": lambda data: data[:3] + b"\xff" + data[4:],
    "another checksum": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "another body": lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
    "text": lambda data: b"hello",
    "a number": lambda data: b"42",
    "zeros": lambda data: bytes(len(data)),
    "large": lambda data: data + bytes(200_000),
    "much": lambda data: b"\xac" * 200_000,
    "half a lease": lambda data: LEASE[:9],
    "a strange lease": lambda data: LEASE + b"x" * 15,
    "a lease and damage": lambda data: LEASE + b"000000000000001" + data[:-1],
    "a lapsed lease": lambda data: LEASE + b"000000000000001",
}
BEHIND = ("large",)
"""What stands behind a sound head, so far behind that who wants no value does not read it."""
TYPES = ("list", "hash", "set", "sorted set", "stream", "bitmap")


@pytest.mark.parametrize(
    ("flavour", "local"),
    [(FLAVOURS[0], None), (FLAVOURS[0], "memory://"), *((flavour, None) for flavour in FLAVOURS[1:])],
    ids=["one tier", "two tiers", *FLAVOURS[1:]],
)
@pytest.mark.parametrize("damage", [*DAMAGES, *TYPES])
async def test_damaged_entry_is_a_miss_that_is_replaced(damage: str, flavour: str, local: str | None) -> None:
    """Damaged bytes, or another type, are a miss for every read of a value, and are replaced by every write: at once.
    So they are for those who want no value, where the damage is in what they read."""
    server, url = server_of(flavour), emptied(flavour)
    number = url.rpartition("/")[2]

    async def spoil() -> None:
        assert await cache.set("k", {"a": [1, 2, "three"]})
        data = server.command("EVAL", "redis.call('SELECT', ARGV[1]) return redis.call('GET', 'k')", 0, number)
        wrong = ("SET", "k", DAMAGES[damage](data)) if damage in DAMAGES else of_type(damage)
        run = "redis.call('SELECT', ARGV[1]) redis.call('DEL', 'k') return redis.call(unpack(ARGV, 2))"
        server.command("EVAL", run, 0, number, *wrong)

    async with Cache(url, local=local, ttl="1m", on_error="raise") as cache:
        looks = (lambda: cache.exists("k"), lambda: cache.touch("k", "1m"), lambda: _all_keys(cache))
        for read in (
            lambda: cache.get("k"),
            lambda: cache.get_many(["k"]),
            lambda: cache.entry("k"),
            *(() if damage in BEHIND else looks),
        ):
            await spoil()
            assert not await read()
            assert not await read()
        await spoil()
        await cache.delete("k")  # whether it was there is for the server to say, which reads times alone
        assert not await cache.delete("k")
        for name, write in {
            "set": lambda: cache.set("k", "new"),
            "set_many": lambda: cache.set_many({"k": "new"}),
            "get_or_set": lambda: cache.get_or_set("k", lambda: "new"),
            "memoized": lambda: cache.memoize(key="k")(_new)(),
            "refresh": lambda: cache.memoize(key="k")(_new).refresh(),
            "get_or_set_many": lambda: cache.get_or_set_many(["k"], lambda keys: {"k": "new"}),
            **({} if damage in BEHIND else {"add": lambda: cache.add("k", "new")}),
        }.items():
            await spoil()
            assert await write(), name
            assert await cache.get("k") == "new"
            assert await cache.get_or_set("k", lambda: "not called") == "new"
        await spoil()
        assert await cache.incr("k", 5) == 5
        assert await cache.incr("k") == 6


async def _new() -> str:
    return "new"


async def _all_keys(cache: Cache) -> list[str]:
    return [key async for key in cache.keys()]  # noqa: SIM118 - a cache is no mapping


async def test_lease_without_end_is_not_waited_for_without_end(server: Server) -> None:
    """A record that says that somebody loads a key for years holds up a load no longer than a lease lasts."""
    async with Cache(server.url, ttl="1m") as cache:
        server.command("SET", "k", LEASE + b"9" * 15)
        with within(3.0):
            async with asyncio.timeout(6):
                assert await cache.get_or_set("k", lambda: "new") == "new"


@pytest.mark.parametrize("damage", ["cut", "another version", "text", "large", "list", "hash"])
async def test_damaged_entry_is_told_of(damage: str, server: Server) -> None:
    """Each read that finds damaged bytes, or another type, tells the hook and the counter, and shows neither key nor
    value."""
    told: list[BaseException] = []
    async with Cache(server.url, ttl="1m", on_error=told.append) as cache:
        assert await cache.set("my key", "my value")
        data = server.command("GET", "my key")
        wrong = ("SET", "my key", DAMAGES[damage](data)) if damage in DAMAGES else of_type(damage)
        server.command("DEL", "my key")
        server.command(wrong[0], "my key", *wrong[2:])
        assert await cache.get("my key") is None
        assert len(told) == cache.stats().errors == 1
        if damage in DAMAGES:  # MGET has nothing to say of other types
            assert await cache.get_many(["my key"]) == {}
            assert len(told) == cache.stats().errors == 2
        assert await cache.get_or_set("my key", lambda: "new") == "new"
        errors = cache.stats().errors
        assert await cache.get("my key") == "new"
        assert len(told) == cache.stats().errors == errors
        assert all(isinstance(error, BackendError) and "my " not in f"{error!r} {error.__cause__!r}" for error in told)
