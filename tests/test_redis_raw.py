"""Redis from near by: raw commands, plain values, foreign types, neighbours' keys, counters, large values, spans."""

import asyncio
import contextlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from servers import Server
from stores import FLAVOURS, emptied, on_redis, server_of

from asynccache import BackendError, Cache, NotSupported, Telemetry
from asynccache.backends.redis import RedisBackend
from asynccache.backends.redis.raw import RawRedis
from asynccache.codec import Codec
from asynccache.errors import CacheError, ConfigError, EncodeError
from asynccache.telemetry import RoundTrip

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def cached(store: Any = None, **options: Any) -> AsyncIterator[Cache]:
    """A cache on an empty database, or on this store; it raises what goes wrong."""
    cache = Cache(emptied() if store is None else store, **{"on_error": "raise", **options})
    try:
        yield cache
    finally:
        await cache.aclose()


@contextlib.asynccontextmanager
async def another(url: str) -> AsyncIterator["redis.Redis"]:
    """Another program on the same database, which answers at once."""
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def url() -> str:
    return emptied()


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisBackend]:
    backend = on_redis(url)
    yield backend
    await backend.aclose()


# Raw commands


async def test_a_command_takes_and_gives_bytes(store, url):
    """Arguments of any usual type; replies as the server sends them."""
    raw = store.raw
    assert await raw.command("SET", "a key", b"\x00\xff") == b"OK"
    assert await raw.command("get", "a key") == b"\x00\xff"
    assert await raw.command(b"INCRBY", b"n", 5) == 5
    assert await raw.command("INCRBYFLOAT", "f", 0.25) in (b"0.25", 0.25)
    assert await raw.command("RPUSH", "list", "a", b"b", 3) == 3
    assert await raw.command("LRANGE", "list", 0, -1) == [b"a", b"b", b"3"]
    assert await raw.command("GET", "nothing") is None
    assert await raw.command("HSET", "hash", "a", 1) == 1
    assert await raw.command("HGETALL", "hash") in ({b"a": b"1"}, [b"a", b"1"])
    assert await raw.command("EVAL", "return {KEYS[1], ARGV[1]}", 1, "k", "v") == [b"k", b"v"]
    assert await raw.command("PING") == b"PONG"


async def test_a_command_that_fails_is_raised(store):
    """As this package's error, whatever ``on_error`` is; the connection goes on."""
    await store.raw.command("SET", "key", "text")
    with pytest.raises(BackendError, match="WRONGTYPE") as caught:
        await store.raw.command("LPUSH", "key", "x")
    assert "wrong kind of value" in str(caught.value)  # who wrote the command may read all of it
    with pytest.raises(BackendError):
        await store.raw.command("NOSUCHCOMMAND")
    with pytest.raises(BackendError):
        await store.raw.command("GET")
    assert await store.raw.command("GET", "key") == b"text"


async def test_the_cache_shows_it_too(url):
    """``cache.redis`` is the store's; keys there are whole, values in the codec's format."""
    async with cached(url, namespace="shop") as cache:
        await cache.set("key", 1)
        assert isinstance(cache.redis, RawRedis)
        assert await cache.redis.command("EXISTS", "shop:key") == 1
        data = await cache.redis.command("GET", "shop:key")
        assert data[0] == 0xAC
        await cache.redis.command("DEL", "shop:key")
        assert await cache.get("key") is None
    with pytest.raises(NotSupported):
        _ = Cache().redis


REFUSED = (
    ("MULTI",), ("EXEC",), ("DISCARD",), ("WATCH", "a"), ("UNWATCH",), ("SUBSCRIBE", "a"), ("PSUBSCRIBE", "a"),
    ("SSUBSCRIBE", "a"), ("UNSUBSCRIBE",), ("PUNSUBSCRIBE",), ("SUNSUBSCRIBE",), ("MONITOR",), ("BLPOP", "a", 1),
    ("BRPOP", "a", 1), ("BLMOVE", "a", "b", "LEFT", "LEFT", 1), ("BRPOPLPUSH", "a", "b", 1),
    ("BLMPOP", 1, 1, "a", "LEFT"), ("BZPOPMIN", "a", 1), ("BZPOPMAX", "a", 1), ("BZMPOP", 1, 1, "a", "MIN"),
    ("WAIT", 1, 0), ("WAITAOF", 1, 0, 0), ("SELECT", 1), ("AUTH", "x"), ("HELLO", 2), ("RESET",), ("QUIT",),
    ("SYNC",), ("PSYNC", "?", -1), ("READONLY",), ("READWRITE",), ("ASKING",), ("CLIENT", "REPLY", "OFF"),
    ("CLIENT", "TRACKING", "OFF"), ("CLIENT", "CACHING", "YES"), ("CLIENT", "SETNAME", "x"),
    ("CLIENT", "NO-TOUCH", "ON"),
    ("XREAD", "BLOCK", 0, "STREAMS", "a", "$"), ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "a", ">"),
)  # fmt: skip


def spelled(command: Sequence[Any], how: str) -> tuple[Any, ...]:
    """A command in other letters, or as bytes."""
    texts = [str(each) for each in command]
    if how == "lower":
        return tuple(each.lower() for each in texts)
    if how == "bytes":
        return tuple(each.encode() for each in texts)
    return tuple(command)


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: " ".join(map(str, command[:2])))
async def test_what_would_change_or_block_the_shared_connection_is_refused(store, command):
    """However it is spelled, alone or in a pipeline: it is not sent, and the connection goes on as it was."""
    await store.raw.command("SET", "a", "1")
    for how in ("as it is", "lower", "bytes"):
        with pytest.raises(NotSupported):
            await store.raw.command(*spelled(command, how))
        for transaction in (False, True):
            with pytest.raises(NotSupported):
                await store.raw.pipeline([("SET", "a", "2"), spelled(command, how)], transaction=transaction)
    assert await store.raw.command("GET", "a") == b"1"


@pytest.mark.parametrize(
    "command",
    [("XREAD", "COUNT", 1, "STREAMS", "block", "0"), ("SET", "multi", "exec"), ("HSET", "client", "reply", 1)],
)
async def test_what_only_looks_like_it_is_not_refused(store, command):
    """A key or a value may be called like a command or an option."""
    await store.raw.command(*command)


async def test_no_command_is_an_error(store):
    """A command has a name."""
    with pytest.raises(CacheError):
        await store.raw.command()
    with pytest.raises(CacheError):
        await store.raw.pipeline([()])
    assert await store.raw.pipeline([]) == []


async def test_a_pipeline_is_one_round_trip(url):
    """Its commands leave together, come back in order, and a failure stands in its place only."""
    server = next(server_of(each) for each in FLAVOURS if server_of(each).url in url)
    split = url.rsplit("/", 1)
    with FaultProxy(*_address(url)) as proxy:
        backend = on_redis(f"{proxy.url}/{split[1]}")
        await backend.raw.command("PING")
        proxy.latency(0.05)
        began = time.perf_counter()
        replies = await backend.raw.pipeline(
            [("SET", "k", "text"), ("LPUSH", "k", "x"), ("GET", "k"), *[("INCR", "n")] * 50]
        )
        assert time.perf_counter() - began < 0.3
        proxy.healthy()
        assert replies[0] == b"OK"
        assert isinstance(replies[1], BackendError)
        assert replies[2:] == [b"text", *range(1, 51)]
        await backend.aclose()
    assert server.running


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("redis://").split("/")[0].split(":")
    return host, int(port)


async def test_a_transaction_is_done_as_one(store, url):
    """Nobody sees a part of it, and others' commands on the same connection do not get in."""
    await store.raw.command("MSET", "a", 0, "b", 0)
    torn = 0

    async def look() -> None:
        nonlocal torn
        for _ in range(50):
            a, b = await store.raw.command("MGET", "a", "b")
            torn += a != b

    async def change() -> None:
        for _ in range(50):
            replies = await store.raw.pipeline([("INCR", "a"), ("INCR", "b")], transaction=True)
            assert replies[0] == replies[1]

    await asyncio.gather(look(), change(), look(), change())
    assert torn == 0
    assert await store.raw.command("GET", "a") == b"100"


async def test_a_transaction_with_a_failure_inside(store):
    """A command that fails when it is run fails alone; one that cannot be understood undoes all."""
    replies = await store.raw.pipeline([("SET", "k", "v"), ("LPUSH", "k", 1), ("GET", "k")], transaction=True)
    assert replies[0] == b"OK"
    assert isinstance(replies[1], BackendError)
    assert replies[2] == b"v"
    with pytest.raises(BackendError):
        await store.raw.pipeline([("SET", "k", "w"), ("NOSUCHCOMMAND",)], transaction=True)
    assert await store.raw.command("GET", "k") == b"v"


async def test_a_cancelled_transaction_harms_nobody(store):
    """Its replies are dropped as one: those behind it have their own."""
    await store.raw.command("SET", "k", "v")
    for _ in range(30):
        task = asyncio.ensure_future(store.raw.pipeline([("INCR", "n")] * 20, transaction=True))
        behind = asyncio.ensure_future(store.raw.command("GET", "k"))
        await asyncio.sleep(0)
        task.cancel()
        assert await behind == b"v"
    assert await store.raw.pipeline([("GET", "k")], transaction=True) == [b"v"]


async def test_a_pipeline_longer_than_the_window(store):
    """Many commands at once: each has its reply, in its place."""
    replies = await store.raw.pipeline([("INCR", "n")] * 20_000)
    assert replies == list(range(1, 20_001))
    replies = await store.raw.pipeline([("INCR", "m")] * 5_000, transaction=True)
    assert replies == list(range(1, 5_001))


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_hundred_thousand_keys_at_once(url):
    """More than may wait at a time: they are stored, found and removed all the same, given the time."""
    async with cached(url + "?timeout=10s") as cache:
        values = {f"k{number}": number for number in range(100_000)}
        assert await cache.set_many(values)
        assert await cache.get_many(values) == values
        assert await cache.delete_many(values) == 100_000


async def test_scan_gives_each_key_that_matches(store):
    """All of many keys, by a pattern of the server's and a prefix that means itself."""
    await store.raw.pipeline([("SET", f"[x]*:{number}", "") for number in range(2_500)])
    await store.raw.pipeline([("SET", f"xx:{number}", "") for number in range(100)])
    assert {key async for key in store.raw.scan(prefix="[x]*:")} == {b"[x]*:%d" % number for number in range(2_500)}
    assert {key async for key in store.raw.scan("*:1?", prefix="xx")} == {b"xx:%d" % number for number in range(10, 20)}
    assert {key async for key in store.raw.scan("xx:7")} == {b"xx:7"}


async def test_a_client_of_redis_py(store, url):
    """`client()` has the same database, and is for what blocks or subscribes."""
    async with store.raw.client() as client:
        await store.raw.command("SET", "key", "v")
        assert await client.get("key") == b"v"
        popping = asyncio.ensure_future(client.blpop(["queue"], timeout=5))
        await asyncio.sleep(0.02)
        await store.raw.command("RPUSH", "queue", "job")
        assert list(await popping) == [b"queue", b"job"]
        pubsub = client.pubsub()
        await pubsub.subscribe("news")
        assert (await pubsub.get_message(timeout=1))["type"] == "subscribe"
        await store.raw.command("PUBLISH", "news", "hello")
        assert (await pubsub.get_message(timeout=1))["data"] == b"hello"
        await pubsub.aclose()
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch("key")
            pipe.multi()
            pipe.set("key", "w")
            assert await pipe.execute() == [True]


async def test_a_client_waits_as_long_as_it_is_told(proxy: FaultProxy):
    """A blocking command is sent once and has its whole time, longer than the 5 s after which redis-py would send it
    again by default."""
    backend = on_redis(proxy.url)
    async with backend.raw.client() as client:
        began = time.monotonic()
        assert await client.blpop(["nothing"], timeout=6) is None
        assert time.monotonic() - began >= 6.0
    assert proxy.commands["BLPOP"] == 1


async def test_a_client_sends_nothing_twice(server: Server, proxy: FaultProxy):
    """Where the connection is lost, whoever waits is told at once, and decides: perhaps the server has done it."""
    backend = on_redis(f"{proxy.url}/9")
    server.command("EVAL", "redis.call('SELECT', 9) redis.call('DEL', 'n')", 0)
    async with backend.raw.client() as client:
        proxy.reset_at("INCR", answered=True)
        with pytest.raises(redis.ConnectionError):
            await client.execute_command("INCR", "n")
        assert await client.get("n") == b"1"
        proxy.reset_at("BLPOP")
        began = time.monotonic()
        with pytest.raises(redis.ConnectionError):
            await client.blpop(["nothing"], timeout=2)
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("name", ["billing", ""])
async def test_a_client_speaks_and_is_called_as_the_cache_is(url: str, protocol: str, name: str):
    """``protocol`` and ``client_name`` of the URL are the client's as well."""
    backend = on_redis(f"{url}?protocol={protocol}" + (f"&client_name={name}" if name else ""))
    async with backend.raw.client() as client:
        told = await client.client_info()
        assert told["name"] == (name or "asynccache")
        assert str(told.get("resp", protocol)) == protocol  # before 7.0 it is not told


async def test_what_is_written_raw_is_told_to_local_copies(url):
    """A local copy does not outlive a raw write to its key."""
    async with cached(url, local="memory://") as cache:
        await cache.set("key", 1)
        assert await cache.get("key") == 1
        await cache.redis.command("DEL", "key")
        await _becomes(lambda: cache.get("key"), None)


async def _becomes(read: Callable[[], Awaitable[Any]], value: Any, seconds: float = 1.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := await read()) != value:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.005)


# Plain values

PLAIN = Codec("json", plain=True)


async def test_plain_values_are_what_other_programs_read(url):
    """The bytes are the serializer's alone, both ways, and the time to live is the server's."""
    async with cached(url, codec=PLAIN, namespace="app") as cache, another(url) as other:
        await cache.set("key", {"a": [1, None, "ü"]}, ttl=60)
        assert json.loads(other.get("app:key")) == {"a": [1, None, "ü"]}
        assert 59_000 < other.pttl("app:key") <= 60_000
        await cache.set("for ever", 1)
        assert other.ttl("app:for ever") == -1
        other.set("app:theirs", '{"b": 2}', px=30_000)
        assert await cache.get("theirs") == {"b": 2}
        left = await cache.ttl("theirs")
        assert left is not None
        assert 29.0 < left <= 30.0
        other.set("app:no end", "3")
        assert await cache.ttl("no end") == math.inf
        assert await cache.get_many(["key", "theirs", "none"]) == {"key": {"a": [1, None, "ü"]}, "theirs": {"b": 2}}


async def test_plain_bytes_and_text(url):
    """Other serializers likewise."""
    async with cached(url, codec=Codec("bytes", plain=True)) as cache, another(url) as other:
        await cache.set("b", b"\x00\xffraw")
        assert other.get("b") == b"\x00\xffraw"
        other.set("c", b"")
        assert await cache.get("c") == b""
    async with cached(url, codec=Codec("str", plain=True)) as cache, another(url) as other:
        await cache.set("t", "ünï")
        assert other.get("t") == "ünï".encode()


async def test_plain_conditions(url):
    """``add`` and ``only_if`` are the server's NX and XX."""
    async with cached(url, codec=PLAIN) as cache, another(url) as other:
        assert await cache.add("key", 1, ttl=60) is True
        assert await cache.add("key", 2) is False
        assert other.get("key") == b"1"
        assert other.ttl("key") > 50
        assert await cache.set("key", 3, only_if="present") is True
        assert await cache.set("none", 3, only_if="present") is False
        assert other.exists("none") == 0
        other.delete("key")
        assert await cache.add("key", 4) is True


async def test_plain_counters(url):
    """Counters are the server's numbers, which others add to as well; the ttl is that of the creation."""
    async with cached(url, codec=PLAIN) as cache, another(url) as other:
        assert await cache.incr("n", 5, ttl=60) == 5
        first = other.pttl("n")
        assert 59_000 < first <= 60_000
        assert other.incrby("n", 10) == 15
        assert await cache.decr("n", 3, ttl=600) == 12
        assert other.pttl("n") <= first
        assert await cache.get("n") == 12
        assert other.get("n") == b"12"
        assert await cache.incr("m") == 1
        assert other.ttl("m") == -1


async def test_a_plain_counter_is_atomic(url):
    """Two caches and another program add at once: nothing is lost."""
    async with cached(url, codec=PLAIN) as one, cached(url, codec=PLAIN) as two, another(url) as other:

        def theirs() -> None:
            for _ in range(200):
                other.incr("n")

        thread = threading.Thread(target=theirs)
        thread.start()
        totals = await asyncio.gather(*[each.incr("n", ttl=60) for each in (one, two) * 200])
        await asyncio.to_thread(thread.join)
        assert len(set(totals)) == 400
        assert await one.get("n") == 600


async def test_a_plain_counter_of_something_else(url):
    """A text is no counter: a `TypeError`, as on every store, and it stays what it was."""
    async with cached(url, codec=PLAIN) as cache:
        await cache.set("text", "five")
        for _ in range(2):
            with pytest.raises(TypeError):
                await cache.incr("text")
        assert await cache.get("text") == "five"
        await cache.set("float", 1.5)
        with pytest.raises(TypeError):
            await cache.incr("float")


async def test_touching_plain_values(url):
    """A new time to live, none at all, and ``False`` for what is not there."""
    async with cached(url, codec=PLAIN) as cache, another(url) as other:
        await cache.set("key", 1, ttl=5)
        assert await cache.touch("key", 500) is True
        assert other.ttl("key") > 400
        assert await cache.touch("key", None) is True
        assert other.ttl("key") == -1
        assert await cache.touch("none", 5) is False
        assert await cache.touch("none", None) is False
        assert other.exists("none") == 0


async def test_plain_values_run_out_on_the_server(url):
    """What the server has dropped is gone."""
    async with cached(url, codec=PLAIN) as cache:
        await cache.set("key", 1, ttl=0.05)
        assert await cache.get("key") == 1
        await asyncio.sleep(0.08)
        assert await cache.get("key") is None
        assert await cache.exists("key") is False


async def test_loading_plain_values(url):
    """``get_or_set`` loads once in the process, and stores what others can read."""
    async with cached(url, codec=PLAIN) as cache, another(url) as other:
        loads = 0

        async def load() -> dict[str, int]:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.02)
            return {"n": 1}

        assert await asyncio.gather(*[cache.get_or_set("key", load, ttl=60) for _ in range(20)]) == [{"n": 1}] * 20
        assert loads == 1
        assert json.loads(other.get("key")) == {"n": 1}
        assert await cache.clear() == 1


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff\xfe", b"nan", b"\xac" + bytes(40), b"\xad" + bytes(40)])
async def test_plain_bytes_that_mean_nothing(url, junk):
    """What another program wrote there and the serializer cannot read is a miss, which is then replaced."""
    async with cached(url, codec=PLAIN) as cache, another(url) as other:
        other.set("key", junk)
        assert await cache.get("key") is None
        assert await cache.get_many(["key"]) == {}
        assert await cache.get_or_set("key", lambda: 5) == 5
        assert await cache.get("key") == 5


async def test_a_large_plain_value(url):
    """Whole, both ways."""
    async with cached(url + "?timeout=5s", codec=Codec("bytes", plain=True)) as cache, another(url) as other:
        value = os.urandom(3_000_000)
        assert await cache.set("key", value)
        assert other.get("key") == value
        assert await cache.get("key") == value


async def test_plain_values_have_neither_tags_nor_grace(url):
    """There is no room for them: that is said at once."""
    async with cached(url, codec=PLAIN) as cache:
        with pytest.raises(ConfigError):
            await cache.set("key", 1, ttl=5, tags=["a"])
        with pytest.raises(ConfigError):
            await cache.set("key", 1, ttl=5, grace=5)


# Other types under a key

FOREIGN: dict[str, tuple[Any, ...]] = {
    "list": ("RPUSH", "key", "a", "b"),
    "hash": ("HSET", "key", "a", "1"),
    "set": ("SADD", "key", "a"),
    "sorted set": ("ZADD", "key", 1, "a"),
    "stream": ("XADD", "key", "*", "a", "1"),
    "bitmap": ("SETBIT", "key", 7, 1),
    "hyperloglog": ("PFADD", "key", "a"),
    "empty text": ("SET", "key", ""),
    "number": ("SET", "key", "7"),
    "text": ("SET", "key", "something else"),
}
CODECS = {
    "json": Codec(),
    "plain": PLAIN,
    "signed": Codec("json", keys=["a secret of sixteen bytes"]),
    "encrypted": Codec("json", keys=["a secret of sixteen bytes"], encrypt=True),
    "pickle": Codec("pickle", keys=["a secret of sixteen bytes"]),
}
MISSED = {
    name: [kind for kind in FOREIGN if codec != PLAIN or kind not in ("number",)] for name, codec in CODECS.items()
}


@pytest.mark.parametrize(("codec", "kind"), [(name, kind) for name, kinds in MISSED.items() for kind in kinds])
async def test_another_type_under_a_key_is_a_miss_that_is_replaced(url, codec, kind):
    """By no call an exception; each write stores, and is found from then on."""
    async with cached(url, codec=CODECS[codec]) as cache:

        async def foreign() -> None:
            await cache.redis.command("DEL", "key")
            await cache.redis.command(*FOREIGN[kind])

        await foreign()
        assert await cache.get("key") is None
        assert await cache.get_many(["key", "other"]) == {}
        assert await cache.exists("key") is False
        assert await cache.ttl("key") is None
        assert await cache.entry("key") is None
        assert await cache.touch("key", 5) is False
        await foreign()
        assert await cache.set("key", 1) is True
        assert await cache.get("key") == 1
        await foreign()
        await cache.set_many({"key": 2, "other": 3})
        assert await cache.get("key") == 2
        await foreign()
        assert await cache.get_or_set("key", lambda: 4) == 4
        assert await cache.get("key") == 4
        await foreign()
        assert await cache.get_or_set_many(["key", "more"], lambda keys: dict.fromkeys(keys, 5)) == {
            "key": 5,
            "more": 5,
        }
        assert await cache.get("key") == 5
        await foreign()
        await cache.delete("key")
        assert await cache.redis.command("EXISTS", "key") == 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["list", "hash", "stream", "empty text"])
async def test_counting_and_adding_over_another_type(url, codec, kind):
    """``incr``, ``add`` and the conditions take such a key for absent too."""
    async with cached(url, codec=CODECS[codec]) as cache:

        async def foreign() -> None:
            await cache.redis.command("DEL", "key")
            await cache.redis.command(*FOREIGN[kind])

        await foreign()
        assert await cache.incr("key", 3, ttl=60) == 3
        assert await cache.get("key") == 3
        await foreign()
        assert await cache.add("key", 1) is True
        assert await cache.get("key") == 1
        await foreign()
        assert await cache.set("key", 1, only_if="present") is False


@pytest.mark.parametrize("codec", ["json", "plain", "signed"])
@pytest.mark.parametrize("kind", ["list", "text"])
async def test_a_race_over_another_type(url, codec, kind):
    """Many take such a key for absent at once: one of them adds to it, and no count is lost."""
    async with cached(url, codec=CODECS[codec]) as one, cached(url, codec=CODECS[codec]) as two:
        await asyncio.gather(one.ping(), two.ping())
        for _ in range(5):
            await one.redis.command("DEL", "key")
            await one.redis.command(*FOREIGN[kind])
            added = await asyncio.gather(*[each.add("key", 1, ttl=60) for each in (one, two) * 5])
            assert added.count(True) == 1
            await one.redis.command("DEL", "key")
            await one.redis.command(*FOREIGN[kind])
            totals = await asyncio.gather(*[each.incr("key", ttl=60) for each in (one, two) * 5])
            assert sorted(totals) == list(range(1, 11))


async def test_a_lock_over_another_type(url):
    """And so does a lock's key."""
    async with cached(url) as cache:
        async for name in cache.redis.scan():
            raise AssertionError(name)
        async with cache.lock("key", ttl=5):
            (name,) = [name async for name in cache.redis.scan()]
        await cache.redis.command("RPUSH", name, "x")
        async with asyncio.timeout(1), cache.lock("key", ttl=5):
            pass


async def test_tags_over_another_type(url):
    """A tag whose record is of another type hides what has it, and works again when it is invalidated."""
    async with cached(url) as cache:
        await cache.set("key", 1, tags=["t"])
        (record,) = [name async for name in cache.redis.scan() if name != b"key"]
        await cache.redis.command("DEL", record)
        await cache.redis.command("RPUSH", record, "x")
        assert await cache.get("key") is None
        await cache.invalidate_tags("t")
        await cache.set("key", 2, tags=["t"])
        assert await cache.get("key") == 2


# Neighbours

NAMESPACES = (
    "t[1]", "t*", "t?", "t\\", "t", "t1", "t[", "t]", "t^", "*", "?", "[a-z]", "\\", "t:", "t%", "t\\*", "ü", "{t}",
    "t{", " ", "t\n",
)  # fmt: skip


async def test_namespaces_of_any_name_are_apart(url):
    """`keys` and `clear` of each touch exactly their own, whatever characters the names have."""
    async with contextlib.AsyncExitStack() as stack:
        caches = {name: await stack.enter_async_context(cached(url, namespace=name)) for name in NAMESPACES}
        names = ["a", "b:c", "*", "[x]", "t1:a", "\\"]
        for name, cache in caches.items():
            await cache.set_many(dict.fromkeys(names, name))
        for name, cache in caches.items():
            assert sorted([key async for key in cache.keys("*")]) == sorted(names), name
            assert await cache.get_many(names) == dict.fromkeys(names, name)
        left = dict(caches)
        for name, cache in caches.items():
            assert await cache.clear() == len(names), name
            del left[name]
            for other, each in left.items():
                assert len([key async for key in each.keys("*")]) == len(names), (name, other)


async def test_views_of_any_name_are_apart(url):
    """And so are the namespaces within one."""
    async with cached(url, namespace="shop") as cache:
        views = {name: cache.namespace(name) for name in NAMESPACES}
        for name, view in views.items():
            await view.set("a", name)
            await view.set("b*", name)
        await cache.set("own", 1)
        assert [key async for key in cache.keys("*")] == ["own"]
        left = dict(views)
        for name, view in views.items():
            assert sorted([key async for key in view.keys("*")]) == ["a", "b*"]
            assert await view.clear() == 2
            del left[name]
            assert {other: await each.get("a") for other, each in left.items()} == {other: other for other in left}
        assert await cache.get("own") == 1


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("t*?[]\\^-:%1 \0ü", min_size=1, max_size=4).filter(lambda name: "\0" not in name), min_size=2,
             max_size=4, unique=True),
    st.text("t*?[]\\^-1", min_size=1, max_size=4),
)  # fmt: skip
def test_clear_touches_its_own_only(names: list[str], key: str):
    """For any names: what one namespace clears is its own, and all of it; what a pattern clears is what `keys` says."""

    async def run() -> None:
        url = emptied()
        async with contextlib.AsyncExitStack() as stack:
            caches = [await stack.enter_async_context(cached(url, namespace=name)) for name in names]
            for number, cache in enumerate(caches):
                await cache.set_many({key: number, "other": number})
            for number, cache in enumerate(caches):
                matching = [each async for each in cache.keys(key)]
                cleared = await cache.clear(key)
                assert cleared == len(matching)
                rest = {each async for each in cache.keys("*")}
                assert rest == {key, "other"} - set(matching)
                await cache.clear()
                for later, each in enumerate(caches[number + 1 :], number + 1):
                    assert await each.get_many([key, "other"]) == {key: later, "other": later}

    asyncio.run(run())


async def test_others_keys_without_a_namespace(url):
    """A cache without a namespace has the whole database; one with a namespace leaves what others keep there."""
    async with cached(url, namespace="n") as cache, another(url) as other:
        other.set("nn", "x")
        other.set("n", "x")
        other.rpush("list", "x")
        other.set(b"n:\xff", b"not UTF-8")
        await cache.set("a", 1)
        assert [key async for key in cache.keys("*")] == ["a"]
        assert await cache.clear() == 1
        assert {*other.keys()} >= {b"nn", b"n", b"list"}


FORBIDDEN = ("KEYS", "FLUSHDB", "FLUSHALL", "MONITOR", "CONFIG", "DEBUG", "EVAL")


async def test_what_is_never_sent():
    """No call of a cache sends KEYS or FLUSHDB, a script's text more than once, or anything that blocks the server."""
    with Server() as server:
        async with cached(server.url, namespace="n", local="memory://") as cache, cached(server.url) as plain:
            for each in (cache, plain, cache.namespace("v")):
                await each.set_many({f"k{number}": number for number in range(50)})
                assert [key async for key in each.keys("k1?")]
                await each.clear("k*")
                await each.set("a", 1, tags=["t"])
                await each.invalidate_tags("t")
                await each.get_or_set("b", lambda: 1, ttl=5)
                await each.incr("c")
                async with each.lock("l", ttl=5):
                    pass
                await each.clear()
                await each.ping()
        calls = server.calls()
    assert not set(calls) & set(FORBIDDEN)
    assert calls["SCAN"] > 0
    assert calls["SCRIPT|LOAD"] <= 20


async def test_a_hostile_pattern_is_cheap(url):
    """A pattern made to be slow costs less than ten milliseconds, and matches as it should."""
    async with cached(url, namespace="n") as cache:
        await cache.set_many({"a" * 200 + str(number): 1 for number in range(20)})
        for pattern in (
            "*a" * 100 + "b",
            "a*" * 200 + "!",
            "[a-z]" * 150 + "*!",
            "?" * 1_000,
            "*?" * 500,
            "*[" + "a-z" * 300,
        ):
            cheapest = 1.0
            for _ in range(3):
                began = time.process_time()
                assert [key async for key in cache.keys(pattern)] == []
                assert await cache.clear(pattern) == 0
                cheapest = min(cheapest, time.process_time() - began)
            assert cheapest < 0.01, pattern


# Counters

EDGES = (2**53 - 1, 2**53, 2**53 + 1, 2**60 + 1, 2**63 - 2, 2**63 - 1, -(2**53) - 1, -(2**63) + 1, -(2**63))


@pytest.mark.parametrize("start", EDGES)
@pytest.mark.parametrize("codec", ["json", "signed", "encrypted", "plain", "pickle"])
async def test_counters_are_exact(url, codec, start):
    """Past 2**53, where floating point loses ones, and up to the edges of 64 bits: every sum is exact, also by those
    who read it."""
    async with cached(url, codec=CODECS[codec]) as cache:
        assert await cache.incr("n", start) == start
        assert await cache.get("n") == start
        step = -1 if start > 0 else 1
        total = start
        for delta in (step, step, step * 1_000_003, step * 2**40):
            total += delta
            assert await cache.incr("n", delta) == total
        assert await cache.get("n") == total
        await cache.set("m", start)
        assert await cache.incr("m", step) == start + step
        assert type(await cache.get("m")) is int


@pytest.mark.parametrize("codec", ["json", "signed"])
@pytest.mark.parametrize(("start", "delta"), [(2**63 - 1, 1), (-(2**63), -1), (2**62, 2**62), (2**63 - 5, 10)])
async def test_a_counter_over_the_edge(url, codec, start, delta):
    """Past 64 bits the sum is exact or an `EncodeError`: never a wrong number, and the counter keeps its value then."""
    async with cached(url, codec=CODECS[codec]) as cache:
        await cache.set("n", start)
        try:
            total = await cache.incr("n", delta)
        except EncodeError:
            total = start
        else:
            assert total == start + delta
        assert await cache.get("n") == total


@pytest.mark.parametrize(("start", "delta"), [(2**63 - 1, 1), (-(2**63), -1), (0, 2**63), (0, -(2**63) - 1)])
async def test_a_plain_counter_over_the_edge(url, start, delta):
    """The server's numbers end there: it is said by this package's error and changes nothing."""
    async with cached(url, codec=PLAIN) as cache:
        await cache.set("n", start)
        with pytest.raises((CacheError, OverflowError)):
            await cache.incr("n", delta)
        assert await cache.get("n") == start


@pytest.mark.parametrize("codec", CODECS)
async def test_many_add_at_once(url, codec):
    """Two caches, a hundred callers each: every sum is given once, whatever the codec."""
    async with cached(url, codec=CODECS[codec]) as one, cached(url, codec=CODECS[codec]) as two:
        await one.set("n", 2**53)
        totals = await asyncio.gather(*[each.incr("n") for each in (one, two) * 25])
        assert sorted(totals) == [2**53 + number for number in range(1, 51)]
        assert await two.get("n") == 2**53 + 50


@pytest.mark.parametrize("codec", CODECS)
async def test_a_counter_keeps_its_time(url, codec):
    """The ttl is that of its creation; later ones change nothing, and a counter that has run out begins anew."""
    async with cached(url, codec=CODECS[codec]) as cache:
        assert await cache.incr("n", 5, ttl=60) == 5
        assert await cache.incr("n", 5, ttl=6_000) == 10
        left = await cache.ttl("n")
        assert left is not None
        assert 58 < left <= 60
        assert await cache.incr("m", 7, ttl=0.05) == 7
        await asyncio.sleep(0.08)
        assert await cache.incr("m", 1) == 1


@pytest.mark.parametrize("codec", ["signed", "encrypted"])
async def test_a_sealed_counter_stays_sealed(url, codec):
    """A counter that somebody changed on the server is none: it is counted anew, not believed."""
    async with cached(url, codec=CODECS[codec]) as cache:
        assert await cache.incr("n", 41) == 41
        data = bytearray(await cache.redis.command("GET", "n"))
        data[-1] ^= 1
        await cache.redis.command("SET", "n", bytes(data))
        assert await cache.get("n") is None
        assert await cache.incr("n", 5) == 5
        await cache.redis.command("SET", "other", bytes(await cache.redis.command("GET", "n")))
        assert await cache.get("other") is None


@pytest.mark.parametrize("codec", ["json", "signed"])
async def test_a_counter_with_tags_can_be_counted(url, codec):
    """Its tags and its times stay."""
    async with cached(url, codec=CODECS[codec]) as cache:
        await cache.set("n", 1, ttl=60, tags=["t"])
        assert await cache.incr("n", 2) == 3
        entry = await cache.entry("n")
        assert entry is not None
        assert len(entry.tags) == 1
        await cache.invalidate_tags("t")
        assert await cache.get("n") is None


async def test_a_counter_under_a_lease_is_counted(url):
    """While the key is being loaded, others count on: the load's result does not overwrite it."""
    async with cached(url) as one, cached(url) as two:
        await one.set("n", 1, ttl=60)
        began, go = asyncio.Event(), asyncio.Event()

        async def load() -> int:
            began.set()
            await go.wait()
            return 100

        await one.delete("n")
        loading = asyncio.ensure_future(one.get_or_set("n", load))
        await began.wait()
        assert await two.incr("n", 5) == 5
        go.set()
        assert await loading == 100
        assert await two.get("n") == 5


# Large values

SIZES = (65_535, 65_536, 65_537, 100_000, 131_072, 1_000_000, 10_000_000)
RAW = Codec("bytes", compress=None)


@pytest.mark.parametrize("size", SIZES)
async def test_large_values_come_back_whole(url, size):
    """Of any size around the parts in which they are read, singly and with others."""
    async with cached(url + "?timeout=5s", codec=RAW) as cache:
        for offset in (-25, -24, -23, 0):
            value = os.urandom(size + offset)
            assert await cache.set("key", value)
            assert await cache.get("key") == value
            if size > 5_000_000:
                break
        assert await cache.get_many(["key", "none"]) == {"key": value}
        assert await cache.get_or_set("new", lambda: value) == value
        assert await cache.get("new") == value


@pytest.mark.parametrize(("size", "rounds"), [(100_000, 40), (1_000_000, 12)])
async def test_a_large_value_replaced_while_it_is_read(url, size, rounds):
    """Every reader has one of the values that were there, whole: none is torn, none is lost."""
    async with cached(url + "?timeout=5s", codec=RAW) as cache, cached(url + "?timeout=5s", codec=RAW) as other:
        values = [bytes([number]) * (size + number * 70_000) for number in range(1, 5)]
        await cache.set("key", values[0])
        stop = False

        async def write() -> None:
            for number in range(rounds):
                await other.set("key", values[number % len(values)])
                await asyncio.sleep(0.001)

        async def read() -> Counter[int]:
            seen: Counter[int] = Counter()
            while not stop:
                value = await cache.get("key")
                assert value in values
                seen[value[0]] += 1
            return seen

        readers = [asyncio.ensure_future(read()) for _ in range(3)]
        await write()
        stop = True
        assert sum(sum(each.values()) for each in await asyncio.gather(*readers)) > 3


@pytest.mark.parametrize("how", ["deleted", "list", "smaller", "other value"])
async def test_a_large_value_that_goes_while_it_is_read(url, how):
    """Between its parts it is deleted, replaced by another type, or by something small: a miss or the new value."""
    with FaultProxy(*_address(url)) as proxy:
        async with cached(f"{proxy.url}/{url.rsplit('/', 1)[1]}?timeout=5s", codec=RAW) as cache, another(url) as other:
            small = b"small"
            await cache.set("small", small)
            await cache.set("key", b"x" * 2_000_000)
            assert await cache.get("key")
            proxy.latency(0.01)
            reading = asyncio.ensure_future(cache.get("key"))
            await asyncio.sleep(0.05)
            if how == "deleted":
                other.delete("key")
            elif how == "list":
                other.delete("key")
                other.rpush("key", "x")
            elif how == "smaller":
                other.set("key", other.get("small"))
            else:
                other.set("key", b"y" * 500_000)
            assert await reading in (None, b"x" * 2_000_000)


async def test_large_values_do_not_hold_up_small_ones(url):
    """While a large one is read and written, a small one is answered meanwhile."""
    async with cached(url + "?timeout=5s", codec=RAW) as cache:
        await cache.set("large", b"x" * 10_000_000)
        await cache.set("small", b"s")
        large = asyncio.ensure_future(cache.get("large"))
        order = []
        large.add_done_callback(lambda _: order.append("large"))
        await asyncio.sleep(0)
        assert await cache.get("small") == b"s"
        order.append("small")
        await large
        writing = asyncio.ensure_future(cache.set("large", b"y" * 10_000_000))
        writing.add_done_callback(lambda _: order.append("large"))
        await asyncio.sleep(0)
        assert await cache.get("small") == b"s"
        order.append("small")
        await writing
        assert order == ["small", "large"] * 2


async def test_a_large_read_that_is_cancelled(url):
    """It leaves nothing behind: later reads have their own values."""
    async with cached(url + "?timeout=5s", codec=RAW) as cache:
        value = os.urandom(3_000_000)
        await cache.set("large", value)
        for pause in (0, 0.001, 0.003, 0.006):
            task = asyncio.ensure_future(cache.get("large"))
            await asyncio.sleep(pause)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert await cache.get("large") == value


async def test_one_deadline_for_a_large_value(url):
    """A large value over a slow link has the same time as any call: it is a miss after that, not a wait of many
    times as long."""
    with FaultProxy(*_address(url)) as proxy:
        async with cached(f"{proxy.url}/{url.rsplit('/', 1)[1]}", codec=RAW, on_error="degrade") as cache, another(url):
            direct = Cache(url + "?timeout=5s", codec=RAW)
            await direct.set("large", os.urandom(3_000_000))
            await direct.aclose()
            assert await cache.ping()
            proxy.bandwidth(600_000)
            began = time.perf_counter()
            await cache.get("large")
            assert time.perf_counter() - began < 1.0
            proxy.healthy()


# Spans


class Spans:
    """A provider and what it has been told."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def clients(self) -> list[ReadableSpan]:
        return [span for span in self.all() if span.kind is SpanKind.CLIENT]

    def clear(self) -> None:
        self.exporter.clear()


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


KEY, VALUE = "user:4711:sensitive", "a value that nobody should see"
ALLOWED = {
    "db.system.name", "db.namespace", "db.operation.name", "db.operation.batch.size", "server.address", "server.port",
    "error.type", "db.response.status_code", "db.stored_procedure.name", "network.peer.address", "network.peer.port",
}  # fmt: skip


@contextlib.asynccontextmanager
async def traced(url: str, spans: Spans, **options: Any) -> AsyncIterator[Cache]:
    async with cached(url, telemetry=Telemetry(tracer_provider=spans.provider), **options) as cache:
        await cache.get("warm")
        await cache.incr("warm")  # the scripts are known
        await cache.delete("warm")
        await cache.add("warm", 1)
        await cache.get_or_set("warm too", lambda: 1)
        spans.clear()
        yield cache


CALLS: dict[str, tuple[Callable[[Cache], Awaitable[Any]], list[str]]] = {
    "get": (lambda cache: cache.get(KEY), ["GETRANGE"]),
    "set": (lambda cache: cache.set(KEY, VALUE), ["SET"]),
    "get_many": (lambda cache: cache.get_many([KEY, "b"]), ["MGET"]),
    "set_many": (lambda cache: cache.set_many({KEY: VALUE, "b": VALUE}), ["PIPELINE SET"]),
    "delete": (lambda cache: cache.delete(KEY), ["EVALSHA"]),
    "delete_many": (lambda cache: cache.delete_many([KEY, "b", "c"]), ["EVALSHA"]),
    "add": (lambda cache: cache.add(KEY, VALUE), ["EVALSHA"]),
    "incr": (lambda cache: cache.incr("n"), ["EVALSHA"]),
    "touch": (lambda cache: cache.touch(KEY, 5), ["GETRANGE"]),
    "ping": (lambda cache: cache.ping(), ["PING"]),
    "clear": (lambda cache: cache.clear("x*"), ["SCAN"]),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_round_trip_has_a_span(url, spans, name):
    """A CLIENT span within the call's own, named after the command, that says which server and database, and nothing
    of keys and values."""
    call, commands = CALLS[name]
    async with traced(url, spans) as cache:
        await call(cache)
    trips = spans.clients()
    assert [span.name for span in trips] == commands
    (own,) = [span for span in spans.all() if span.kind is SpanKind.INTERNAL]
    for span in trips:
        assert own.name == f"cache.{'set' if name == 'add' else name}"
        assert span.parent is not None
        assert span.parent.span_id == own.context.span_id
        assert own.start_time <= span.start_time <= span.end_time <= own.end_time
        attributes = dict(span.attributes or {})
        host, port = _address(url)
        assert attributes["db.system.name"] == "redis"
        assert attributes["db.namespace"] == url.rsplit("/", 1)[1]
        assert attributes["db.operation.name"] == span.name
        assert (attributes["server.address"], attributes["server.port"]) == (host, port)
        assert (attributes["network.peer.address"], attributes["network.peer.port"]) == (host, port)
        assert set(attributes) <= ALLOWED
        assert span.status.status_code is StatusCode.UNSET
        assert not span.events
    for span in spans.all():
        shown = span.to_json()
        assert KEY not in shown
        assert VALUE not in shown


async def test_a_batch_says_how_large_it_is(url, spans):
    """Where several commands leave together, their number; where it is one, none."""
    async with traced(url, spans) as cache:
        await cache.set_many({f"k{number}": 1 for number in range(7)})
        await cache.redis.command("PING")
        (trip,) = spans.clients()
        assert dict(trip.attributes or {})["db.operation.batch.size"] == 7
        spans.clear()
        await cache.set("a", 1)
        (trip,) = spans.clients()
        assert "db.operation.batch.size" not in dict(trip.attributes or {})


async def test_a_batch_is_named_after_its_commands(url, spans):
    """Where they are of one kind, after that; where they are of several, after none."""
    async with traced(url, spans) as cache:
        await cache.set_many({"a": 1, "b": 2})
        await cache.memoize(key="piped")(_piping(cache))()
    names = [span.name for span in spans.clients() if span.name.startswith("PIPELINE")]
    assert names == ["PIPELINE SET", "PIPELINE"]


def _piping(cache: Cache) -> Callable[[], Awaitable[int]]:
    async def load() -> int:
        return len(await cache.redis.pipeline([("SET", "c", 1), ("GET", "c")]))

    return load


SCRIPTS: dict[str, tuple[Callable[[Cache], Awaitable[Any]], set[str]]] = {
    "delete": (lambda cache: cache.delete("a"), {"delete"}),
    "add": (lambda cache: cache.add("a", 1), {"put_if"}),
    "incr": (lambda cache: cache.incr("n"), {"add"}),
    "touch": (lambda cache: cache.touch("warm", 5), {"touch"}),
    "get_or_set": (lambda cache: cache.get_or_set("a", lambda: 1), {"acquire", "commit"}),
    "lock": (lambda cache: _locked(cache), {"acquire"}),  # nobody waits for its end
}


async def _locked(cache: Cache) -> None:
    async with cache.lock("k", ttl=5):
        pass


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_has_its_name_and_is_taught_without_an_error(url, spans, name, known):
    """A trace says which script ran; that a server did not know it yet is no failure of a call that succeeds."""
    call, scripts = SCRIPTS[name]
    async with traced(url, spans) as cache:
        if not known:
            await cache.redis.command("SCRIPT", "FLUSH")
        await call(cache)
    trips = [span for span in spans.clients() if span.name == "EVALSHA"]
    assert {dict(span.attributes or {})["db.stored_procedure.name"] for span in trips} == scripts
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    assert not any("error.type" in dict(span.attributes or {}) for span in spans.all())
    codes = {dict(span.attributes or {}).get("db.response.status_code") for span in trips}
    assert codes == ({None} if known else {None, "NOSCRIPT"})


@pytest.mark.parametrize(
    ("reply", "code"),
    [("ERR max number of clients reached", "ERR"), ("ERR value is not an integer or out of range", "ERR")],
)
@pytest.mark.parametrize("many", [True, False])
async def test_the_code_of_a_refusal_is_the_servers_own(url, spans, reply, code, many):
    """Its prefix as it was sent, also of a batch."""
    with FaultProxy(*_address(url)) as proxy:
        async with traced(f"{proxy.url}/{url.rsplit('/', 1)[1]}", spans, on_error="degrade") as cache:
            proxy.error_replies(f"-{reply}\r\n".encode(), only=["SET"])
            await (cache.set_many({"a": 1, "b": 2}) if many else cache.set("a", 1))
            proxy.healthy()
    (trip, *_) = [span for span in spans.clients() if span.name in ("SET", "PIPELINE SET")]
    attributes = dict(trip.attributes or {})
    assert attributes["db.response.status_code"] == attributes["error.type"] == code
    assert trip.status.status_code is StatusCode.ERROR


async def test_a_load_has_its_round_trips(url, spans):
    """Those of a load are within the load's span or its caller's."""
    async with traced(url, spans) as cache:
        await cache.get_or_set(KEY, lambda: VALUE)
    ours = {span.context.span_id for span in spans.all() if span.kind is SpanKind.INTERNAL}
    trips = spans.clients()
    assert {"GETRANGE", "EVALSHA"} <= {span.name for span in trips}
    assert all(span.parent is not None and span.parent.span_id in ours for span in trips)
    assert VALUE not in "".join(span.to_json() for span in spans.all())


async def test_commands_that_leave_with_another_in_front(url, spans):
    """A round trip is named after the command that was wanted, whatever has to be said in front of it."""
    server = next(server_of(each) for each in FLAVOURS if server_of(each).url in url)
    async with traced(url, spans) as cache, cached(url) as holder:
        gate = asyncio.Event()

        async def load() -> int:
            await gate.wait()
            return 1

        loading = asyncio.ensure_future(holder.get_or_set("key", load))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(cache.get_or_set("key", load))
        await asyncio.sleep(0.05)
        gate.set()
        assert [await loading, await waiting] == [1, 1]
        server.command("SCRIPT", "FLUSH")
        assert await cache.incr("n") == 1
    assert {span.name for span in spans.clients()} == {"GETRANGE", "EVALSHA"}


async def test_a_server_that_says_no_shows_in_the_span(url, spans):
    """By its code, not by its words, which may name keys."""
    with FaultProxy(*_address(url)) as proxy:
        async with traced(f"{proxy.url}/{url.rsplit('/', 1)[1]}", spans, on_error="degrade") as cache:
            proxy.error_replies(f"-OOM command not allowed, key '{KEY}'\r\n".encode(), only=["SET"])
            assert await cache.set(KEY, VALUE) is False
            proxy.healthy()
    trips = [span for span in spans.clients() if span.name == "SET"]
    assert trips
    for span in trips:
        attributes = dict(span.attributes or {})
        assert attributes["error.type"] == "OOM"
        assert attributes["db.response.status_code"] == "OOM"
        assert span.status.status_code is StatusCode.ERROR
        assert KEY not in span.to_json()


async def test_a_server_that_is_away_shows_in_the_span(url, spans):
    """By the class of the failure."""
    with FaultProxy(*_address(url)) as proxy:
        async with traced(f"{proxy.url}/{url.rsplit('/', 1)[1]}", spans, on_error="degrade") as cache:
            proxy.refuse()
            await asyncio.sleep(0.05)
            await cache.get(KEY)
            await cache.get(KEY)
    trips = spans.clients()
    assert trips
    for span in trips:
        assert "Backend" in str(dict(span.attributes or {})["error.type"])
        assert span.status.status_code is StatusCode.ERROR


async def test_a_cancelled_round_trip_is_no_failure(url, spans):
    """Its span ends, without a status."""
    with FaultProxy(*_address(url)) as proxy:
        async with traced(f"{proxy.url}/{url.rsplit('/', 1)[1]}", spans) as cache:
            proxy.stall()
            task = asyncio.ensure_future(cache.get(KEY))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.healthy()
    (trip,) = spans.clients()
    assert trip.status.status_code is StatusCode.UNSET
    assert "error.type" not in dict(trip.attributes or {})


async def test_every_span_of_a_crowd_has_its_own_parent(url, spans):
    """Callers that share one write have their own spans."""
    async with traced(url, spans) as cache:
        await asyncio.gather(*[cache.get(f"k{number}") for number in range(50)])
    parents = Counter(span.parent.span_id for span in spans.clients() if span.parent)
    assert len(parents) == 50
    assert set(parents.values()) == {1}


async def test_no_provider_no_span(url, monkeypatch):
    """Without a provider, with telemetry off, or under a parent that is not sampled, nothing is even begun."""
    spans, unsampled = Spans(), Spans(sampler=ALWAYS_OFF)
    telemetry = Telemetry(tracer_provider=spans.provider)
    async with cached(url) as cache, cached(url, telemetry="off") as off, cached(url, telemetry=telemetry) as given:
        await given.set("a", 1)
        assert spans.clients()

        def begun(*_: object, **__: object) -> None:
            raise AssertionError("a span")

        monkeypatch.setattr(RoundTrip, "__init__", begun)
        with pytest.raises(BackendError):
            await given.get("a")  # the trap works
        for each in (cache, off):
            await each.set_many({"a": 1, "b": 2})
            assert await each.get("a") == 1
            assert await each.delete("b")
        spans.clear()
        with unsampled.provider.get_tracer("request").start_as_current_span("request"):
            assert await given.get("a") == 1
            assert await given.get_many(["a", "b"]) == {"a": 1}
    assert spans.all() == ()


async def test_the_global_provider(url, spans, monkeypatch):
    """Set up after the cache was made, it is found: the round trip is a child of the call's span, that one of the
    request's."""
    async with cached(url) as cache:
        await cache.set("a", 1)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
        with spans.provider.get_tracer("request").start_as_current_span("request") as request:
            assert await cache.get("a") == 1
            assert await cache.get_or_set("a", lambda: 2) == 1
        assert await cache.redis.command("PING") == b"PONG"  # no call of a cache
    (first, one, second, two, last) = spans.all()
    assert [span.name for span in (first, one, second, two, last)] == [
        "GETRANGE", "cache.get", "GETRANGE", "cache.get_or_set", "request",
    ]  # fmt: skip
    for trip, call in ((first, one), (second, two)):
        assert trip.parent == call.context
        assert call.parent == request.get_span_context()


async def test_the_greeting_has_no_span(url, spans):
    """What the connection does for itself belongs to nobody's call."""
    async with cached(url, telemetry=Telemetry(tracer_provider=spans.provider)) as cache:
        await cache.get("a")
    assert {span.name for span in spans.clients()} <= {"GETRANGE"}


async def test_spans_over_a_unix_socket(url, spans):
    """The server's address is the path."""
    server = next(server_of(each) for each in FLAVOURS if server_of(each).url in url)
    async with traced(f"unix://{server.unix_socket}?db=3", spans) as cache:
        await cache.get("a")
    (trip,) = spans.clients()
    attributes = dict(trip.attributes or {})
    assert attributes["server.address"] == server.unix_socket
    assert attributes["db.namespace"] == "3"
    assert "server.port" not in attributes
