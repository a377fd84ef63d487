"""Redis on several servers: behind sentinels that replace a master, and in a cluster whose slots move."""

import asyncio
import contextlib
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import hiredis
import pytest
from fault_proxy import FaultProxy
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from owing import owed
from promised_times import within
from server_groups import Cluster, Sentinels
from servers import Certificates, Server, certificates, flavours, free_port, has_tls, wait_until
from stores import on_redis
from test_redis_urls import ACL, Provider
from waiting import comes, until

from asynccache import Backend, Cache, Clock, Telemetry
from asynccache.backends.redis import RedisBackend
from asynccache.backends.redis.slots import SLOTS, slot_of
from asynccache.codec import Codec
from asynccache.errors import CacheError
from asynccache.testing import BackendConformance, TravellingClock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

BACK_WITHIN = 10.0
KEYS = [f"k{number}" for number in range(60)]
SENTINEL_ACL = ("+sentinel|get-master-addr-by-name", "+ping")


class Workers:
    """Callers that read, write, count and load all the time, and what they saw.

    What was written is checked: a value read must be one that was written for that key, and not older than one that
    was acknowledged before the read began, unless the servers were being replaced.
    """

    def __init__(self, cache: Cache, keys: list[str], workers: int = 10) -> None:
        self.cache = cache
        self.keys = keys
        self.errors: list[BaseException] = []
        self.wrong: list[object] = []
        self.slowest = 0.0
        self.calls = 0
        self.stored_after: float | None = None
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._work(number)) for number in range(workers)]

    async def _work(self, number: int) -> None:
        step = 0
        while not self._stop:
            step += 1
            key = self.keys[(number + step * 7) % len(self.keys)]
            began = time.perf_counter()
            try:
                value = await self._call(step % 5, key, f"{key}={number}.{step}")
                if value is not None and not str(value).startswith(f"{key}="):
                    self.wrong.append((key, value))
            except Exception as error:
                self.errors.append(error)
            self.slowest = max(self.slowest, time.perf_counter() - began)
            self.calls += 1
            await asyncio.sleep(0.002)

    async def _call(self, kind: int, key: str, value: str) -> Any:
        if kind == 0:
            await self.cache.set(key, value, ttl=60)
            return None
        if kind == 1:
            return await self.cache.get_or_set(key, lambda: value, ttl=60)
        if kind == 2:
            found = await self.cache.get_many(self.keys[:5])
            self.wrong += [item for item in found.items() if not str(item[1]).startswith(f"{item[0]}=")]
            return None
        if kind == 3:
            await self.cache.delete(key)
            return None
        return await self.cache.get(key)

    async def go_on(self, calls: int = 10) -> None:
        """Return when so many more calls, of all kinds, have been made for each worker."""
        before = self.calls
        await comes(lambda: self.calls >= before + calls * len(self._tasks), "calls")

    async def end(self) -> None:
        """Stop, and see that nobody had an exception, a wrong value or a long wait."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        assert self.errors == []
        assert self.wrong == []
        assert self.calls > 100
        assert self.slowest < 2.0


# Sentinels


@pytest.fixture(scope="module")
def group() -> Iterator[Sentinels]:
    with Sentinels() as group:
        yield group


@pytest.fixture
def sentinels(group: Sentinels) -> Iterator[Sentinels]:
    """All well, and empty."""
    group.master_server().command("FLUSHALL")
    yield group
    group.heal()


async def test_sentinels_lead_to_the_master(sentinels: Sentinels) -> None:
    """What is stored is on the master, in the URL's database."""
    url = sentinels.url.removesuffix("/0") + "/3"
    async with Cache(url, on_error="raise") as cache:
        assert await cache.set("key", 1)
        assert await cache.get("key") == 1
    assert b"db3:keys=1" in sentinels.master_server().command("INFO", "keyspace")


@pytest.mark.parametrize("how", ["kill", "freeze", "command"])
async def test_a_failover_without_an_exception(
    sentinels: Sentinels, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The master dies, hangs, or is replaced on purpose: callers see misses at most, writes are kept again within ten
    seconds, and by the new master."""
    async with Cache(sentinels.url) as cache:
        await cache.set("before", 1)
        workers = Workers(cache, [f"k{number}" for number in range(20)])
        await workers.go_on()
        old = sentinels.master_server()
        began = time.monotonic()
        if how == "kill":
            await asyncio.to_thread(old.kill)
        elif how == "freeze":
            await asyncio.to_thread(old.freeze)
        else:
            sentinels.sentinels[0].command("SENTINEL", "FAILOVER", sentinels.service)
        waiting = asyncio.create_task(asyncio.to_thread(sentinels.wait_failover, old))

        async def written() -> bool:
            new = await asyncio.to_thread(sentinels.master_server)
            if new is old or not await cache.set("after", 2):
                return False
            try:
                return await asyncio.to_thread(new.command, "EXISTS", "after") == 1
            except OSError:
                return False

        await until(written, "a write on the new master", BACK_WITHIN - (time.monotonic() - began))
        new = await waiting
        assert new is not old
        await workers.go_on(100)
        assert await cache.get("after") == 2
        await workers.end()
    assert len(caplog.records) <= 100


async def lose_master(sentinels: Sentinels, cache: Cache) -> None:
    """Kill the master; return when it is replaced, and the cache has written within the time that is promised."""
    old = await asyncio.to_thread(sentinels.kill_master)
    waiting = asyncio.create_task(asyncio.to_thread(sentinels.wait_failover, old))
    await asyncio.sleep(0.1)
    await until(lambda: cache.set("after", 2), "a write", BACK_WITHIN)
    await waiting


@pytest.mark.parametrize("how", [FaultProxy.black_hole, FaultProxy.hold_connects], ids=["silent", "unreachable"])
async def test_a_failover_with_a_sentinel_in_a_black_hole(
    sentinels: Sentinels, how: Callable[[FaultProxy], None]
) -> None:
    """The first of the sentinels takes connections and says nothing, or does not even take them: the same."""
    with FaultProxy(*sentinels.sentinels[0].address) as proxy:
        how(proxy)
        places = [f"{s.host}:{s.port}" for s in sentinels.sentinels]
        places[0] = f"{proxy.host}:{proxy.port}"
        async with Cache(f"redis+sentinel://{','.join(places)}/{sentinels.service}/0") as cache:
            began = time.perf_counter()
            assert await cache.set("before", 1)
            assert time.perf_counter() - began < 1.0
            workers = Workers(cache, [f"k{number}" for number in range(20)])
            await lose_master(sentinels, cache)
            assert await cache.set("after", 3)
            await workers.end()


async def test_a_failover_with_a_sentinel_dead(sentinels: Sentinels) -> None:
    """One of them is gone, the first in the URL: the other two are enough."""
    await asyncio.to_thread(sentinels.sentinels[0].kill)
    async with Cache(sentinels.url) as cache:
        assert await cache.set("before", 1)
        workers = Workers(cache, [f"k{number}" for number in range(20)])
        await lose_master(sentinels, cache)
        await workers.end()


async def test_all_sentinels_away(sentinels: Sentinels) -> None:
    """While the master is well and known, nobody needs them; a new cache misses, promptly, and works when they are
    back."""
    async with Cache(sentinels.url) as known, Cache(sentinels.url) as new:
        assert await known.set("key", 1)
        for sentinel in sentinels.sentinels:
            await asyncio.to_thread(sentinel.freeze)
        assert await known.get("key") == 1
        began = time.perf_counter()
        assert await new.get("key") is None
        assert await new.get_or_set("other", lambda: 2) == 2
        assert time.perf_counter() - began < 1.5
        for sentinel in sentinels.sentinels:
            sentinel.thaw()
        await until(lambda: new.get("key"), "a read", 3.0)


async def test_spans_behind_sentinels(sentinels: Sentinels) -> None:
    """They say what the URL says, and which server it was: another one after each failover."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with Cache(sentinels.url, telemetry=Telemetry(tracer_provider=provider), on_error="raise") as cache:
        await cache.set("key", 1)
        exporter.clear()
        await cache.set_many({"a": 1, "b": 2})
    [trip] = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
    attributes = dict(trip.attributes or {})
    assert (attributes["network.peer.address"], attributes["network.peer.port"]) == sentinels.master()
    assert (attributes["server.address"], attributes["server.port"]) == sentinels.sentinels[0].address
    provider.shutdown()


async def test_an_unknown_service(sentinels: Sentinels) -> None:
    """Sentinels that do not know the name: misses, promptly."""
    url = sentinels.url.replace(f"/{sentinels.service}/", "/nobody/")
    async with Cache(url) as cache:
        began = time.perf_counter()
        assert await cache.get("key") is None
        assert await cache.set("key", 1) is False
        assert time.perf_counter() - began < 1.0


@contextlib.asynccontextmanager
async def told_by_hand(place: Callable[[], tuple[str, int]]) -> AsyncIterator[str]:
    """The address of a sentinel that names the master that the test wants."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(4_096):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                host, port = (str(word) for word in place())
                named = f"*2\r\n${len(host)}\r\n{host}\r\n${len(port)}\r\n{port}\r\n"
                answers = {b"SENTINEL": named, b"HELLO": "%0\r\n"}
                writer.write(answers.get(command[0].upper(), "+OK\r\n").encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_sentinels_that_name_a_replica(sentinels: Sentinels) -> None:
    """A sentinel that lies, or is behind, is not believed: a server that says it is no master gets no command."""
    replica = sentinels.replicas()[0]
    before = replica.calls()["GETRANGE"]  # it may have been the master once
    async with told_by_hand(lambda: replica.address) as place, Cache(f"redis+sentinel://{place}/main") as cache:
        assert await cache.get("key") is None
        assert await cache.set("key", 1) is False
        assert await cache.get("key") is None
    assert replica.calls()["GETRANGE"] == before


async def test_what_was_deleted_during_a_failover_stays_deleted(sentinels: Sentinels) -> None:
    """A `delete` while there is no master: the replica that takes over has the old value, which is never read again."""
    async with Cache(sentinels.url) as cache, Cache(sentinels.url) as other:
        await cache.set_many(dict.fromkeys(KEYS[:10], "old"), ttl=60)
        replicas = sentinels.replicas()
        await asyncio.to_thread(_replicated, replicas, KEYS[0])
        old = await asyncio.to_thread(sentinels.kill_master)
        await asyncio.sleep(0.05)
        for key in KEYS[:5]:
            assert await cache.delete(key) is False
        assert await cache.set(KEYS[5], "new") is False
        await asyncio.to_thread(sentinels.wait_failover, old)
        seen: set[Any] = set()

        async def there() -> bool:
            seen.update((await cache.get_many(KEYS[:6])).values())
            return await cache.get(KEYS[9]) == "old"

        await until(there, "a read from the new master", BACK_WITHIN)
        assert seen == set()
        assert await other.get_many(KEYS[:6]) == {}


def _replicated(replicas: list[Server], key: str) -> None:
    deadline = time.monotonic() + 5.0
    while not all(replica.command("EXISTS", key) for replica in replicas):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_local_copies_do_not_outlive_a_failover(sentinels: Sentinels) -> None:
    """What another process stores on the new master is seen soon, though a copy was kept of what was there before."""
    async with Cache(sentinels.url, local="memory://") as cache, Cache(sentinels.url) as other:
        await cache.set_many(dict.fromkeys(KEYS, 1))
        assert await cache.get_many(KEYS) == dict.fromkeys(KEYS, 1)
        old = await asyncio.to_thread(sentinels.kill_master)
        new = await asyncio.to_thread(sentinels.wait_failover, old)
        await until(lambda: other.set_many(dict.fromkeys(KEYS, 2)), "a write", BACK_WITHIN)
        await until(lambda: _all_are(cache, 2), "the new values", 2.5)
        assert new.command("EXISTS", "k1") == 1


LEAVING = """
import asyncio, gc, sys
from asynccache import Cache

async def main():
    cache = Cache(sys.argv[1], local=sys.argv[2] or None)
    assert await cache.set_many({f"k{number}": number for number in range(50)})
    assert len(await cache.get_many([f"k{number}" for number in range(50)])) == 50
    assert await asyncio.gather(*[cache.incr(f"n{number}") for number in range(20)])
    if len(sys.argv) > 3:
        asyncio.ensure_future(cache.get_or_set("slow", lambda: asyncio.sleep(60)))
        await asyncio.sleep(0.05)

for _ in range(2):
    asyncio.run(main())
    gc.collect()
"""


async def _left(url: str, *more: str) -> str:
    """What is printed by a program that does not close its cache."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", "-W", "always", "-c", LEAVING.replace("assert await asyncio", "await asyncio"),
        url, *more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return "".join(line for line in said.decode().splitlines(True) if not line.startswith("Executing <"))


async def test_leaving_without_closing_behind_sentinels(sentinels: Sentinels) -> None:
    """A program that ends without closing prints nothing, in asyncio's debug mode."""
    sentinels.master_server().command("FLUSHALL")
    assert await _left(sentinels.url, "memory://", "loading") == ""


async def test_a_master_that_was_demoted() -> None:
    """Its connections are not ended, it only refuses writes from then on: the new master is found, writes go there
    soon, and what was refused is not read any more."""
    with Server() as one, Server() as two:
        master = one
        async with told_by_hand(lambda: master.address) as place, Cache(f"redis+sentinel://{place}/main") as cache:
            assert await cache.set("key", "old")
            two.command("REPLICAOF", one.host, one.port)
            await asyncio.to_thread(_replicated, [two], "key")
            two.command("REPLICAOF", "NO", "ONE")
            one.command("REPLICAOF", two.host, two.port)
            master = two
            assert await cache.set("key", "new") is False
            assert await cache.get("key") != "old"
            await until(lambda: cache.set("key", "newer"), "a write", 3.0)
            assert two.command("STRLEN", "key") > 0
            assert await cache.get("key") == "newer"


async def test_a_master_that_is_none() -> None:
    """While the sentinels still name it, it gets no commands, and few attempts; when they name another, that one is
    found."""
    with Server() as one, Server() as two:
        master = one
        one.command("REPLICAOF", two.host, two.port)
        async with told_by_hand(lambda: master.address) as place, Cache(f"redis+sentinel://{place}/main") as cache:
            began = time.perf_counter()
            for _ in range(50):
                assert await cache.get("key") is None
                await asyncio.sleep(0.01)
            assert await cache.set("key", 1) is False
            assert one.calls()["ROLE"] <= 20 * (time.perf_counter() - began) + 2
            assert one.calls()["GETRANGE"] == one.calls()["SET"] == 0
            master = two
            await until(lambda: cache.set("key", 1), "a write", 3.0)


@pytest.fixture
def guarded() -> Iterator[tuple[Server, Server]]:
    """A master that lets in one user with the least rights, and a sentinel that wants a password."""
    with Server() as master:
        rules = (*ACL, "+role")
        master.command("ACL", "SETUSER", "app", "on", ">word", *rules)
        watched = f"sentinel monitor main {master.host} {master.port} 1"
        with Server(sentinel=watched, options={"requirepass": "hush"}) as sentinel:
            yield master, sentinel


async def test_passwords_of_sentinels_and_masters(guarded: tuple[Server, Server]) -> None:
    """Each has its own; the least rights are enough behind sentinels too; a wrong one is a miss."""
    master, sentinel = guarded
    place = f"{sentinel.host}:{sentinel.port}/main"
    url = f"redis+sentinel://app:word@{place}?sentinel_password=hush"
    async with Cache(url, namespace="shop", on_error="raise") as cache:
        assert await cache.set("key", 1)
        assert await cache.get("key") == 1
    assert [row for row in master.command("ACL", "LOG") if b"client|setinfo" not in row] == []
    for wrong in (
        f"redis+sentinel://app:word@{place}",
        f"redis+sentinel://app:word@{place}?sentinel_password=wrong",
        f"redis+sentinel://app:wrong@{place}?sentinel_password=hush",
    ):
        async with Cache(wrong, namespace="shop") as cache:
            began = time.perf_counter()
            assert await cache.get("key") is None
            assert await cache.set("key", 1) is False
            assert time.perf_counter() - began < 1.0


async def test_a_user_of_the_sentinels(guarded: tuple[Server, Server]) -> None:
    """With a name as well, and no more rights than it takes to ask for a master."""
    _, sentinel = guarded
    sentinel.command("ACL", "SETUSER", "asker", "on", ">hush2", "resetchannels", "-@all", *SENTINEL_ACL)
    url = (
        f"redis+sentinel://app:word@{sentinel.host}:{sentinel.port}/main"
        "?sentinel_username=asker&sentinel_password=hush2"
    )
    async with Cache(url, namespace="shop", on_error="raise") as cache:
        assert await cache.set("key", 1)


async def test_a_user_of_the_sentinels_without_a_password(guarded: tuple[Server, Server]) -> None:
    """It is that user who asks, and not the default one, who would be refused."""
    _, sentinel = guarded
    sentinel.command("ACL", "SETUSER", "keyless", "on", "nopass", "resetchannels", "-@all", *SENTINEL_ACL)
    url = f"redis+sentinel://app:word@{sentinel.host}:{sentinel.port}/main?sentinel_username=keyless"
    async with Cache(url, namespace="shop", on_error="raise") as cache:
        assert await cache.set("key", 1)


async def test_a_provider_of_credentials_behind_sentinels(guarded: tuple[Server, Server]) -> None:
    """It is asked for the master's; the sentinels have their own."""
    master, sentinel = guarded
    url = f"redis+sentinel://{sentinel.host}:{sentinel.port}/main?sentinel_password=hush"
    provider = Provider("app", "word")
    store = RedisBackend.from_url(url, credentials=provider)
    assert await Cache(store, namespace="shop", on_error="raise").set("key", 1)
    assert provider.asked == 1
    assert "user=app" in master.command("CLIENT", "LIST").decode()
    await store.aclose()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


TLS = next((flavour for flavour in flavours() if has_tls(flavour)), None)


@pytest.mark.debian_redis
async def test_sentinels_over_tls(files: Certificates) -> None:
    """Sentinel and master are both asked over TLS, and both are checked."""
    with Server(TLS, tls=files) as master:
        watched = f"sentinel monitor main {master.host} {master.tls_port} 1"
        with Server(TLS, tls=files, sentinel=watched, options={"tls-replication": "yes"}) as sentinel:
            url = f"rediss+sentinel://{sentinel.host}:{sentinel.tls_port}/main"
            async with Cache(f"{url}?ssl_ca_certs={files.authority}", on_error="raise") as cache:
                assert await cache.set("key", 1)
                assert await cache.get("key") == 1
            async with Cache(url) as cache:
                began = time.perf_counter()
                assert await cache.set("key", 1) is False
                assert time.perf_counter() - began < 1.0
            store = RedisBackend.from_url(url, ssl_context=ssl.create_default_context(cafile=files.authority))
            assert await Cache(store, on_error="raise").get("key") == 1
            await store.aclose()


class OnSeveral(BackendConformance):
    """The suite on several servers, which do not travel with the clock."""

    options = "?timeout=2s"
    url = ""

    def setup_method(self) -> None:
        self.clock: Clock = TravellingClock()

    async def pass_time(self, seconds: float) -> None:
        assert isinstance(self.clock, TravellingClock)
        self.clock.travel(seconds)

    def emptied(self) -> None:
        raise NotImplementedError

    async def open(self) -> Backend:
        self.emptied()
        return await self.open_another()

    async def open_another(self, backend: Backend | None = None) -> Backend:
        opened = on_redis(self.url + self.options, self.clock)
        await opened.ping()  # who meets a server after a journey takes its clock for another one
        return opened


class TestBehindSentinels(OnSeveral):
    """A master that sentinels know."""

    @pytest.fixture(autouse=True)
    def _group(self, group: Sentinels) -> None:
        self.group, self.url = group, group.url

    def emptied(self) -> None:
        self.group.master_server().command("FLUSHALL")


# A cluster


@pytest.fixture(scope="module")
def six() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(six: Cluster) -> Iterator[Cluster]:
    """All well, and empty."""
    for node in six.masters():
        node.command("FLUSHALL")
    yield six
    six.heal()


def test_slots_are_those_of_the_specification(cluster: Cluster) -> None:
    """By the server's own reckoning, hash tags included."""
    for key in (b"", b"a", b"foo{bar}baz", b"{}a", b"{", b"}{", b"{a}{b}", b"a{b", b"{{a}}", "ü{ü}".encode(), b"\x00{"):
        if key:
            assert slot_of(key) == cluster.slot(key), key
    assert slot_of(b"123456789") == 0x31C3
    assert len({slot_of(b"%d" % number) for number in range(200_000)}) == SLOTS


async def test_calls_of_many_keys_across_slots(cluster: Cluster) -> None:
    """`get_many`, `set_many`, `delete_many`, `keys` and `clear` on keys of all masters, tags and plain values too."""
    async with Cache(cluster.url, on_error="raise", namespace="n") as cache, Cache(cluster.url) as neighbour:
        await neighbour.set("k1", "theirs")
        values = {key: [key] for key in KEYS}
        assert await cache.set_many(values, ttl=60)
        per_node = [int(node.command("DBSIZE")) for node in cluster.masters()]
        assert all(per_node)
        assert await cache.get_many([*KEYS, "none"]) == values
        assert sorted([key async for key in cache.keys("*")]) == sorted(KEYS)
        assert sorted([key async for key in cache.keys("k1?")]) == [f"k{number}" for number in range(10, 20)]
        assert await cache.delete_many([*KEYS[:30], "none"]) == 30
        assert await cache.get_many(KEYS) == {key: [key] for key in KEYS[30:]}
        assert await cache.clear("k5*") == 10
        assert await cache.clear() == 20
        assert await cache.get_many(KEYS) == {}
        assert await cache.get_or_set_many(KEYS, lambda keys: {key: [key] for key in keys}) == values
        assert await cache.get_many(KEYS) == values
        await cache.set_many(values, tags=["t", "u"])
        await cache.invalidate_tags("u")
        assert await cache.get_many(KEYS) == {}
        assert await neighbour.get("k1") == "theirs"
        assert await cache.ping()
    async with Cache(cluster.url, on_error="raise", codec=Codec("json", plain=True)) as plain:
        await plain.set_many({f"p{number}": number for number in range(40)})
        assert await plain.get_many([f"p{number}" for number in range(40)]) == {f"p{n}": n for n in range(40)}
        assert await plain.delete_many([f"p{number}" for number in range(40)]) == 40


async def test_one_round_trip_for_many_keys(cluster: Cluster) -> None:
    """Keys of all slots are asked for at once, not one after another."""
    async with Cache(cluster.url, on_error="raise") as cache:
        await cache.set_many({f"k{number}": number for number in range(2_000)})
        before = sum(sum(node.calls().values()) for node in cluster.nodes)
        with within(1.0):
            assert len(await cache.get_many([f"k{number}" for number in range(2_000)])) == 2_000
        assert sum(sum(node.calls().values()) for node in cluster.nodes) - before < 2_200


async def test_the_first_call_of_any_kind(cluster: Cluster) -> None:
    """A cache that has just been made does not know the cluster yet: whatever it is asked first is answered rightly."""
    async with Cache(cluster.url, on_error="raise") as cache:
        await cache.set_many({key: key for key in KEYS})
    for number in range(6):
        key = KEYS[number]
        async with Cache(cluster.url, on_error="raise") as cache:
            assert await cache.get(key) == key
        async with Cache(cluster.url, on_error="raise") as cache:
            assert await cache.get_many(KEYS) == {each: each for each in KEYS}
        async with Cache(cluster.url, on_error="raise") as cache:
            assert {each async for each in cache.keys("k*")} == set(KEYS)
        async with Cache(cluster.url, on_error="raise") as cache:
            assert await cache.redis.command("STRLEN", key) > 0
        async with Cache(cluster.url, on_error="raise") as cache:
            replies = await cache.redis.pipeline([("STRLEN", key), ("EXISTS", key)], transaction=True)
            assert replies[1] == 1
        async with Cache(cluster.url, on_error="raise") as cache:
            assert await cache.incr(f"n{number}") == 1
        async with Cache(cluster.url, on_error="raise") as cache, cache.lock(key, ttl=5):
            pass


async def test_any_node_leads_to_all(cluster: Cluster) -> None:
    """A replica, or a list with a dead node at its head, is enough to find the rest."""
    async with Cache(cluster.url, on_error="raise") as cache:
        await cache.set_many({key: key for key in KEYS})
    for place in ("127.0.0.1:1,{}", "{}", "{},127.0.0.1:1"):
        for node in (cluster.nodes[4], cluster.nodes[1]):
            url = "redis+cluster://" + place.format(f"{node.host}:{node.port}")
            async with Cache(url) as cache:
                await until(lambda cache=cache: _has_all(cache), url, 3.0)  # type: ignore[misc]


async def _has_all(cache: Cache) -> bool:
    return await cache.get_many(KEYS) == {key: key for key in KEYS}


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_master_that_is_gone(cluster: Cluster, how: str) -> None:
    """Killed or hanging: no exception, and within ten seconds all keys can be written and read, its own too."""
    async with Cache(cluster.url) as cache:
        assert await cache.set_many({key: f"{key}=0" for key in KEYS})
        workers = Workers(cache, KEYS)
        await workers.go_on()
        old = cluster.master_of(slot_of(KEYS[0].encode()))
        await asyncio.to_thread(old.kill if how == "kill" else old.freeze)

        async def all_work() -> bool:
            values = {f"w{key}": key for key in KEYS}
            return await cache.set_many(values) and await cache.get_many(values) == values

        began = time.monotonic()
        waiting = asyncio.create_task(asyncio.to_thread(cluster.wait_failover, old))
        await asyncio.sleep(0.1)
        await until(all_work, "all keys", BACK_WITHIN)
        await waiting
        assert time.monotonic() - began < BACK_WITHIN
        await workers.go_on(100)
        assert await all_work()
        await workers.end()


async def test_the_other_masters_go_on_at_once(cluster: Cluster) -> None:
    """While one master is gone, keys of the others are found without a wait."""
    async with Cache(cluster.url) as cache:
        await cache.set_many({key: key for key in KEYS})
        old = cluster.master_of(slot_of(KEYS[0].encode()))
        others = [key for key in KEYS if cluster.master_of(slot_of(key.encode())) is not old]
        await asyncio.to_thread(old.freeze)
        await cache.get_many(KEYS)  # whoever notices first may wait for his timeout
        for _ in range(5):
            began = time.perf_counter()
            found = await cache.get_many(KEYS)
            assert time.perf_counter() - began < 0.6
            assert {key: found.get(key) for key in others} == {key: key for key in others}


async def test_a_failover_on_purpose(cluster: Cluster) -> None:
    """A replica takes over from a master that is well: nothing is lost."""
    async with Cache(cluster.url) as cache:
        await cache.set_many({key: key for key in KEYS})
        slot = slot_of(KEYS[0].encode())
        await asyncio.to_thread(cluster.failover, slot)
        await until(lambda: _has_all(cache), "all keys", 3.0)
        assert await cache.set_many({key: key for key in KEYS})


def _other_master(cluster: Cluster, slot: int) -> Server:
    source = cluster.master_of(slot)
    return next(node for node in cluster.masters() if node is not source)


async def test_a_slot_that_moves_under_load(cluster: Cluster) -> None:
    """While its keys move one by one, and after: every call is answered, and by the right value: what was
    acknowledged is what is read."""
    async with Cache(cluster.url, on_error="raise") as cache:
        keys = [f"{{tag}}{number}" for number in range(30)]
        slot = slot_of(b"tag")
        await cache.set_many({key: f"{key}=0" for key in keys})
        wrong: list[object] = []
        stop = False
        rounds: Counter[str] = Counter()

        async def own(number: int) -> None:
            key, step = keys[number], 0
            while not stop:
                step += 1
                assert await cache.set(key, f"{key}={step}")
                if (found := await cache.get(key)) != f"{key}={step}":
                    wrong.append((key, step, found))
                if (total := await cache.incr(f"{{tag}}n{number}")) != step:
                    wrong.append(("incr", key, step, total))
                rounds[key] += 1
                await asyncio.sleep(0.001)

        async def together() -> None:
            names = [f"{{tag}}m{number}" for number in range(5)]
            step = 0
            while not stop:
                step += 1
                assert await cache.set_many(dict.fromkeys(names, step))
                found = await cache.get_many([*names, "{tag}none"])
                if found != dict.fromkeys(names, step):
                    wrong.append(("many", step, found))
                rounds["many"] += 1
                await asyncio.sleep(0.001)

        tasks = [asyncio.ensure_future(own(number)) for number in range(10)] + [asyncio.ensure_future(together())]
        await asyncio.sleep(0.1)
        target = _other_master(cluster, slot)

        def move() -> None:
            with cluster.migrating(slot, target) as some:
                for key in keys:
                    some(key)
                    time.sleep(0.01)
                go_on()

        def go_on() -> None:
            before = {name: rounds[name] for name in (*keys[:10], "many")}

            def went_on() -> bool:
                return all(rounds[name] >= count + 20 for name, count in before.items())

            wait_until(lambda: went_on() or any(task.done() for task in tasks), "everybody goes on")

        await asyncio.to_thread(move)
        await asyncio.to_thread(go_on)
        stop = True
        await asyncio.gather(*tasks)
        assert wrong == []
        assert min(rounds.values()) > 20
        assert int(target.command("CLUSTER", "COUNTKEYSINSLOT", slot)) >= 45


async def test_every_call_within_a_move(cluster: Cluster) -> None:
    """In the middle of it, with some of the keys here and some there, every call of a cache does what it should."""
    keys = [f"{{w}}{number}" for number in range(8)]
    slot = slot_of(b"w")
    async with Cache(cluster.url, on_error="raise") as cache:
        await cache.set_many({key: key for key in keys}, ttl=60)
        target = _other_master(cluster, slot)
        with cluster.migrating(slot, target) as move:
            await asyncio.to_thread(move, *keys[:4])
            target.command("SCRIPT", "FLUSH")
            for _ in range(2):
                assert await cache.get_many([*keys, "{w}none"]) == {key: key for key in keys}
                assert [await cache.get(key) for key in keys] == keys
            assert await cache.get("{w}none") is None
            assert await cache.touch(keys[0], 600) is True
            assert await cache.touch(keys[7], 600) is True
            assert await cache.add(keys[1], "new") is False
            assert await cache.add("{w}new", "new") is True
            assert await cache.incr("{w}n", 5) == 5
            assert await cache.incr("{w}n", 5) == 10
            assert await cache.delete(keys[2]) is True
            assert await cache.delete(keys[6]) is True
            assert await cache.get_or_set("{w}load", lambda: "loaded") == "loaded"
            assert await cache.get("{w}load") == "loaded"
            async with cache.lock("{w}", ttl=5):
                pass
            assert await cache.delete_many([keys[0], keys[1], keys[7], "{w}none"]) == 3
            assert sorted([key async for key in cache.keys("{w}?")]) == sorted([keys[3], keys[4], keys[5], "{w}n"])
            large = "x" * 300_000
            assert await cache.set("{w}large", large)
            assert await cache.get("{w}large") == large
        assert await cache.get_many(keys) == {key: key for key in keys[3:6]}
        assert await cache.get("{w}large") == large
        assert await cache.clear() == 7


async def test_a_raw_command_goes_where_its_key_is(cluster: Cluster) -> None:
    """Also where that is not its first argument: one that is sent elsewhere comes back, and costs all local copies."""
    keys = [f"key {number}" for number in range(20)]
    async with Cache(cluster.url, local="memory://", on_error="raise") as cache:
        await cache.set_many(dict.fromkeys(keys, "value"))
        local = cache._core.local
        assert local is not None
        for key in keys:
            await until(partial(_copied, cache, key))
            for command in (
                ("OBJECT", "ENCODING", key),
                ("MEMORY", "USAGE", key),
                ("EVAL_RO", "return redis.call('STRLEN', KEYS[1])", 1, key),
                ("SINTERCARD", 1, f"{key} none"),
                ("XREAD", "COUNT", 1, "STREAMS", f"{key} none", "0"),
            ):
                await cache.redis.command(*command)
        assert local.values.keys() >= set(keys)


async def _copied(cache: Cache, key: str) -> bool:
    await cache.get(key)
    return cache._core.local is not None and key in cache._core.local.values


async def test_spans_of_a_redirection(cluster: Cluster) -> None:
    """Each round trip has its own, with the node that was asked beside the address of the URL, and is named after the
    command that was wanted."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    slot = slot_of(b"spans")
    async with Cache(cluster.url, telemetry=Telemetry(tracer_provider=provider), on_error="raise") as cache:
        await cache.set("{spans}", 1)
        source, target = cluster.master_of(slot), _other_master(cluster, slot)
        with cluster.migrating(slot, target) as move:
            await asyncio.to_thread(move, "{spans}")
            exporter.clear()
            assert await cache.get("{spans}") == 1
        spans = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
        assert [span.name for span in spans] == ["GETRANGE", "GETRANGE"]
        seen = [dict(span.attributes or {}) for span in spans]
        assert [each["network.peer.port"] for each in seen] == [source.port, target.port]
        assert len({(each["server.address"], each["server.port"]) for each in seen}) == 1
        assert [each.get("error.type") for each in seen] == ["ASK", None]
        assert "{spans}" not in "".join(span.to_json() for span in spans)
    provider.shutdown()


async def test_a_transaction_after_a_move(cluster: Cluster) -> None:
    """A raw transaction finds its slot again after it has moved."""
    slot = slot_of(b"tx")
    async with Cache(cluster.url, on_error="raise") as cache:
        assert await cache.redis.pipeline([("SET", "{tx}a", 1), ("INCR", "{tx}a")], transaction=True) == [b"OK", 2]
        await asyncio.to_thread(cluster.migrate, slot, _other_master(cluster, slot))

        async def found() -> bool:
            try:
                return await cache.redis.pipeline([("GET", "{tx}a")], transaction=True) == [b"2"]
            except CacheError:  # the first may be refused as a whole
                return False

        await until(found, "the slot is found")
        assert await cache.redis.pipeline([("INCR", "{tx}a"), ("GET", "{tx}a")], transaction=True) == [3, b"3"]


async def test_raw_commands_in_a_cluster(cluster: Cluster) -> None:
    """A command goes where its first key is; a scan asks all masters."""
    async with Cache(cluster.url, on_error="raise") as cache:
        raw = cache.redis
        replies = await raw.pipeline([("SET", key, key) for key in KEYS])
        assert replies == [b"OK"] * len(KEYS)
        assert [await raw.command("GET", key) for key in KEYS] == [key.encode() for key in KEYS]
        assert {key async for key in raw.scan("k1*")} == {key.encode() for key in KEYS if key.startswith("k1")}
        for key in KEYS[:5]:
            assert await raw.command("EVAL", "return redis.call('GET', KEYS[1])", 1, key) == key.encode()
            assert await raw.command(b"EVAL", b"return redis.call('GET', KEYS[1])", b"1", key.encode()) == key.encode()


async def test_a_script_that_a_node_does_not_know(cluster: Cluster) -> None:
    """After SCRIPT FLUSH on every node, as after a failover, calls that need scripts work."""
    async with Cache(cluster.url, on_error="raise") as cache:
        for key in KEYS[:6]:
            assert await cache.incr(key) == 1
        for node in cluster.nodes:
            node.command("SCRIPT", "FLUSH")
        assert await asyncio.gather(*[cache.incr(key) for key in KEYS[:6]]) == [2] * 6
        assert await cache.delete_many(KEYS[:6]) == 6


@pytest.mark.parametrize("key", ["key", "{tag}key", "a}b", "{}key"])
async def test_a_large_load_is_stored_where_its_key_is(cluster: Cluster, key: str) -> None:
    """Whether or not something of the same slot can be put beside the key; nothing else is left."""
    value = [random.random() for _ in range(20_000)]
    async with Cache(cluster.url, on_error="raise") as cache, Cache(cluster.url, on_error="raise") as other:
        assert await cache.get_or_set(key, lambda: value, ttl=60) == value
        assert await other.get(key) == value
        left = await other.ttl(key)
        assert left is not None
        assert 50 < left <= 60
        assert [name async for name in cache.redis.scan()] == [key.encode()]


async def test_loads_are_shared_across_a_cluster(cluster: Cluster) -> None:
    """Two caches, keys on all masters: one load for each key; who waits is told by the node that has it."""
    async with Cache(cluster.url, on_error="raise") as one, Cache(cluster.url, on_error="raise") as two:
        loads: Counter[str] = Counter()
        gate = asyncio.Event()

        async def value(cache: Cache, key: str) -> Any:
            async def load() -> str:
                loads[key] += 1
                await gate.wait()
                return key

            return await cache.get_or_set(key, load, ttl=60)

        keys = KEYS[:20]
        calls = asyncio.gather(*[value(cache, key) for key in keys for cache in (one, two)])
        await comes(lambda: len(loads) == len(keys), "loads")
        await asyncio.sleep(0.1)  # so long nobody begins another one
        gate.set()
        assert await calls == [key for key in keys for _ in range(2)]
        assert loads == dict.fromkeys(keys, 1)


async def test_local_copies_on_a_cluster(cluster: Cluster) -> None:
    """Every node tells of its keys: a copy is gone after another's write, wherever the key is."""
    async with Cache(cluster.url, local="memory://") as one, Cache(cluster.url) as other:
        await one.set_many(dict.fromkeys(KEYS, 1))
        assert await one.get_many(KEYS) == dict.fromkeys(KEYS, 1)
        await other.set_many(dict.fromkeys(KEYS, 2))
        await until(lambda: _all_are(one, 2), "all copies are gone", 1.5)


async def _all_are(cache: Cache, value: Any) -> bool:
    return await cache.get_many(KEYS) == dict.fromkeys(KEYS, value)


async def test_closing_while_a_node_is_away(cluster: Cluster) -> None:
    """It ends within two seconds."""
    cache = Cache(cluster.url)
    await cache.set_many(dict.fromkeys(KEYS, 1))
    await asyncio.to_thread(cluster.nodes[0].freeze)
    waiting = asyncio.ensure_future(cache.get_many(KEYS))
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    await cache.aclose()
    assert time.perf_counter() - began < 2.0
    await waiting


async def test_what_was_deleted_while_a_master_was_away(cluster: Cluster) -> None:
    """A `delete` of keys whose master is dead: the replica that takes over has the old values, which are never read
    again."""
    async with Cache(cluster.url) as cache, Cache(cluster.url) as other:
        await cache.set_many(dict.fromkeys(KEYS, "old"), ttl=600)
        slot = slot_of(KEYS[0].encode())
        lost = [key for key in KEYS if cluster.master_of(slot_of(key.encode())) is cluster.master_of(slot)]
        await asyncio.to_thread(_replicated_in, cluster, slot, len(lost))
        old = await asyncio.to_thread(cluster.kill_master, slot)
        await asyncio.sleep(0.05)
        for key in lost:
            assert await cache.delete(key) is False
        await asyncio.to_thread(cluster.wait_failover, old)
        seen: set[Any] = set()

        async def written() -> bool:
            seen.update((await cache.get_many(lost)).values())
            return await cache.set(f"{{{lost[0]}}}", 1)

        await until(written, "a write on the new master", BACK_WITHIN)
        assert seen == set()
        assert await cache.get_many(lost) == {}
        await until(lambda: _has_none(other, lost), "they are gone for others", 1.0)
        assert len(await cache.get_many(KEYS)) == len(KEYS) - len(lost)


async def _has_none(cache: Cache, keys: list[str]) -> bool:
    return not await cache.get_many(keys)


def _replicated_in(cluster: Cluster, slot: int, count: int) -> None:
    replica = cluster.replica_of(cluster.master_of(slot))
    deadline = time.monotonic() + 5.0
    while int(replica.command("DBSIZE")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_writes_of_other_masters_stay_while_one_is_away(cluster: Cluster) -> None:
    """Of many keys written together, those whose masters are well are kept: the failure of one part takes nothing from
    the others."""
    async with Cache(cluster.url) as cache, Cache(cluster.url) as other:
        await asyncio.gather(cache.ping(), other.ping())
        old = cluster.master_of(slot_of(KEYS[0].encode()))
        well = [key for key in KEYS if cluster.master_of(slot_of(key.encode())) is not old]
        await asyncio.to_thread(old.freeze)
        assert await cache.set_many({key: key for key in KEYS}) is False
        await comes(lambda: owed(cache) <= len(KEYS) - len(well), "the others are paid what is owed")
        assert [await other.get(key) for key in well] == well
        assert await cache.get_many(KEYS) == {key: key for key in well}


async def test_a_slot_without_any_master(cluster: Cluster) -> None:
    """A master and its replica dead: every call is answered promptly; when they are back all is well."""
    async with Cache(cluster.url) as cache:
        await cache.set_many({key: key for key in KEYS})
        slot = slot_of(KEYS[0].encode())
        master = cluster.master_of(slot)
        replica = cluster.replica_of(master)
        await asyncio.to_thread(replica.kill)
        await asyncio.to_thread(master.kill)
        slowest = 0.0
        for _ in range(60):
            for call in (
                lambda: cache.get(KEYS[0]),
                lambda: cache.get_many(KEYS),
                lambda: cache.set(KEYS[0], 1),
                lambda: cache.get_or_set(KEYS[0], lambda: 2),
            ):
                began = time.perf_counter()
                await call()
                slowest = max(slowest, time.perf_counter() - began)
            await asyncio.sleep(0.02)
        assert slowest < 1.0
        await asyncio.to_thread(cluster.heal)
        await until(lambda: cache.set_many({key: key for key in KEYS}), "all is well", BACK_WITHIN)
        assert await _has_all(cache)


async def test_the_node_of_the_url_dies(cluster: Cluster) -> None:
    """The only node that was named is gone: the others are known by then."""
    async with Cache(f"redis+cluster://{cluster.nodes[0].host}:{cluster.nodes[0].port}") as cache:
        await cache.set_many({key: key for key in KEYS})
        old = cluster.nodes[0]
        await asyncio.to_thread(old.kill)
        await asyncio.to_thread(cluster.wait_failover, old)
        await until(lambda: cache.set_many({key: key for key in KEYS}), "all keys", BACK_WITHIN)
        assert await _has_all(cache)


async def test_a_load_whose_slot_moves(cluster: Cluster) -> None:
    """The lease moves with its key: the one load is stored where the key is then, and others who waited have it."""
    slot = slot_of(b"move")
    async with Cache(cluster.url, on_error="raise") as one, Cache(cluster.url, on_error="raise") as two:
        began, go = asyncio.Event(), asyncio.Event()
        loads = 0

        async def load() -> str:
            nonlocal loads
            loads += 1
            began.set()
            await go.wait()
            return "loaded"

        keys = [f"{{move}}{number}" for number in range(3)]
        tasks = [asyncio.ensure_future(cache.get_or_set(key, load, ttl=60)) for cache in (one, two) for key in keys]
        await began.wait()
        await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.migrate, slot, _other_master(cluster, slot))
        go.set()
        assert await asyncio.gather(*tasks) == ["loaded"] * 6
        assert loads == 3
        assert await two.get_many(keys) == dict.fromkeys(keys, "loaded")


async def test_plain_values_within_a_move(cluster: Cluster) -> None:
    """Those of several commands too."""
    slot = slot_of(b"p")
    async with Cache(cluster.url, on_error="raise", codec=Codec("json", plain=True)) as cache:
        keys = [f"{{p}}{number}" for number in range(6)]
        await cache.set_many({key: key for key in keys}, ttl=60)
        await cache.set("{p}n", 5, ttl=60)
        with cluster.migrating(slot, _other_master(cluster, slot)) as move:
            await asyncio.to_thread(move, *keys[:3], "{p}n")
            assert [await cache.get(key) for key in keys] == keys
            assert await cache.get_many([*keys, "{p}none"]) == {key: key for key in keys}
            assert await cache.incr("{p}n", 2, ttl=600) == 7
            assert await cache.incr("{p}m", 2, ttl=600) == 2
            assert await cache.incr("{p}m", 2, ttl=600) == 4
            for key in (keys[0], keys[5]):
                left = await cache.ttl(key)
                assert left is not None
                assert left > 50
                assert await cache.touch(key, 6_000) is True
                assert await cache.add(key, 1) is False
            assert await cache.touch("{p}none", 5) is False
            assert await cache.add("{p}new", 1, ttl=60) is True
            assert await cache.delete_many([keys[1], keys[4], "{p}none"]) == 2
        left = await cache.ttl("{p}m")
        assert left is not None
        assert 500 < left <= 600
        assert await cache.get_many(keys) == {key: key for key in (keys[0], keys[2], keys[3], keys[5])}


@pytest.mark.parametrize("more", [("",), ("memory://", "loading")], ids=["as it is", "two tiers, loading"])
async def test_leaving_without_closing_on_a_cluster(cluster: Cluster, more: tuple[str, ...]) -> None:
    """A program that ends without closing prints nothing, in asyncio's debug mode."""
    for node in cluster.masters():
        node.command("FLUSHALL")
    assert await _left(cluster.url, *more) == ""


async def test_cancelled_callers_on_a_cluster(cluster: Cluster) -> None:
    """A storm of cancellations, also while slots move: whoever is not cancelled has his own value."""
    slot = slot_of(b"storm")
    async with Cache(cluster.url, on_error="raise") as cache:
        keys = [*KEYS, *[f"{{storm}}{number}" for number in range(20)]]
        await cache.set_many({key: key for key in keys})
        stop = False
        counts: Counter[str] = Counter()

        async def storm(number: int) -> None:
            step = number
            while not stop:
                step += 7
                key = keys[step % len(keys)]
                task = asyncio.ensure_future(cache.get(key) if step % 2 else cache.get_many([key, keys[step % 11]]))
                if step % 3:
                    await asyncio.sleep(0 if step % 5 else 0.0005)
                    task.cancel()
                try:
                    found = await task
                except asyncio.CancelledError:
                    counts["cancelled"] += 1
                    continue
                counts["answered"] += 1
                assert found == key if step % 2 else found == {key: key, keys[step % 11]: keys[step % 11]}

        tasks = [asyncio.ensure_future(storm(number)) for number in range(20)]
        await asyncio.to_thread(cluster.migrate, slot, _other_master(cluster, slot))
        before = counts.copy()

        def went_on() -> bool:
            return all(counts[kind] > before[kind] + 100 for kind in ("cancelled", "answered"))

        await comes(lambda: went_on() or any(task.done() for task in tasks), "calls")
        stop = True
        await asyncio.gather(*tasks)


async def test_local_copies_while_a_slot_moves(cluster: Cluster) -> None:
    """A copy never goes back to an older value, and the last write is seen, wherever the key is by then."""
    slot = slot_of(b"local")
    keys = [f"{{local}}{number}" for number in range(10)]
    async with Cache(cluster.url, local="memory://") as cache, Cache(cluster.url, on_error="raise") as other:
        await other.set_many(dict.fromkeys(keys, 0))
        stop, last = False, 0
        back: list[object] = []

        async def write() -> None:
            nonlocal last
            while not stop:
                last += 1
                await other.set_many(dict.fromkeys(keys, last))
                await asyncio.sleep(0.002)

        async def read(key: str) -> None:
            newest = 0
            while not stop:
                value = await cache.get(key)
                if value is not None and value < newest:
                    back.append((key, newest, value))
                newest = max(newest, value or 0)
                await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(work) for work in (write(), *map(read, keys))]
        target = _other_master(cluster, slot)

        def move() -> None:
            with cluster.migrating(slot, target) as some:
                for key in keys:
                    some(key)
                    time.sleep(0.02)

        await asyncio.to_thread(move)
        moved = last
        await comes(lambda: last > moved + 20 or any(task.done() for task in tasks), "writes")
        stop = True
        await asyncio.gather(*tasks)
        assert back == []

        async def seen() -> bool:
            return await cache.get_many(keys) == dict.fromkeys(keys, last)

        await until(seen, "the last write", 1.5)


# A cluster of one


@contextlib.contextmanager
def alone(flavour: str | None = None, tls: Certificates | None = None, **options: Any) -> Iterator[Server]:
    """One node that has all slots."""
    settings = {"cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-port": free_port(), **options}
    with Server(flavour, tls=tls, options=settings) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"), "the cluster is fine")
        yield server


@pytest.mark.debian_redis
async def test_a_cluster_over_tls(files: Certificates) -> None:
    """Nodes are found by their TLS ports, and checked."""
    with alone(TLS, files, **{"tls-cluster": "yes"}) as server:
        url = f"rediss+cluster://localhost:{server.tls_port}"
        async with Cache(f"{url}?ssl_ca_certs={files.authority}", on_error="raise") as cache:
            await cache.set_many({key: key for key in KEYS})
            assert await cache.get_many(KEYS) == {key: key for key in KEYS}
        async with Cache(url) as cache:
            assert await cache.set("key", 1) is False
        store = RedisBackend.from_url(url, ssl_context=ssl.create_default_context(cafile=files.authority))
        assert await Cache(store, on_error="raise").get_many(KEYS) == {key: key for key in KEYS}
        await store.aclose()


async def test_a_provider_of_credentials_on_a_cluster(cluster: Cluster) -> None:
    """It is asked at the connection to each node."""
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", "app", "on", ">word", "~*", "&*", "+@all")
    provider = Provider("app", "word")
    store = RedisBackend.from_url(cluster.url, credentials=provider)
    cache = Cache(store, on_error="raise")
    await cache.set_many({key: key for key in KEYS})
    assert await cache.get_many(KEYS) == {key: key for key in KEYS}
    assert provider.asked == sum(node.command("CLIENT", "LIST").decode().count("user=app") for node in cluster.nodes)
    await store.aclose()


@pytest.fixture(scope="module")
def lonely() -> Iterator[Server]:
    with alone() as server:
        yield server


@pytest.mark.parametrize(
    "options",
    [
        {"cluster-preferred-endpoint-type": "unknown-endpoint"},
        {"cluster-preferred-endpoint-type": "hostname", "cluster-announce-hostname": "localhost"},
        {"cluster-preferred-endpoint-type": "ip", "cluster-announce-ip": "127.0.0.1"},
    ],
    ids=lambda options: options["cluster-preferred-endpoint-type"],
)
async def test_nodes_that_say_where_they_are_in_other_ways(lonely: Server, options: dict[str, str]) -> None:
    """By a hostname, or not at all: then they are where we found them."""
    for name, value in options.items():
        lonely.command("CONFIG", "SET", name, value)
    for host in ("127.0.0.1", "localhost"):
        async with Cache(f"redis+cluster://{host}:{lonely.port}", on_error="raise") as cache:
            await cache.set_many({key: key for key in KEYS})
            assert await cache.get_many(KEYS) == {key: key for key in KEYS}
            assert await cache.clear() == len(KEYS)


async def test_the_least_acl_on_a_cluster(cluster: Cluster) -> None:
    """With two commands more than elsewhere all works, also while a slot moves."""
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", "app", "reset", "on", ">word", *ACL, "+cluster|slots", "+asking")
        node.command("ACL", "LOG", "RESET")
    url = cluster.url.replace("//", "//app:word@")
    slot = slot_of(b"shop:{acl}")
    assert slot == slot_of(b"acl")
    async with Cache(url, namespace="shop", on_error="raise") as cache:
        keys = [f"{{acl}}{number}" for number in range(6)]
        await cache.set_many({key: key for key in [*KEYS, *keys]})
        with cluster.migrating(slot, _other_master(cluster, slot)) as move:
            await asyncio.to_thread(move, *[f"shop:{key}" for key in keys[:3]])
            assert await cache.get_many(keys) == {key: key for key in keys}
            assert await cache.incr("{acl}n") == 1
        assert await cache.get_many(keys) == {key: key for key in keys}
        assert await cache.clear() == len(KEYS) + 7
    for node in cluster.nodes:
        assert [row for row in node.command("ACL", "LOG") if b"client|setinfo" not in row] == []


async def test_a_server_that_is_no_cluster(lonely: Server) -> None:
    """A cluster's URL for one server, and the other way round: misses at most, promptly."""
    with Server() as server:
        async with Cache(f"redis+cluster://{server.host}:{server.port}") as cache:
            began = time.perf_counter()
            assert await cache.get("key") is None
            assert await cache.get_or_set("key", lambda: 1) == 1
            assert time.perf_counter() - began < 1.0
    async with Cache(lonely.url) as cache:
        assert await cache.set("key", 1)
        assert await cache.get("key") == 1
        began = time.perf_counter()
        await cache.set_many({key: key for key in KEYS})
        assert await cache.get_many(KEYS) in ({}, {key: key for key in KEYS})  # MGET is for one slot only
        assert await cache.get_or_set_many(KEYS, lambda keys: {key: key for key in keys}) == {key: key for key in KEYS}
        assert time.perf_counter() - began < 2.0


async def test_nodes_that_cannot_be_reached_where_they_say(lonely: Server) -> None:
    """A cluster that names addresses of another network: calls are answered within the timeouts, as without it."""
    lonely.command("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
    lonely.command("CONFIG", "SET", "cluster-announce-ip", "192.0.2.1")
    try:
        async with Cache(f"redis+cluster://{lonely.host}:{lonely.port}") as cache:
            for call in (
                lambda: cache.get("key"),
                lambda: cache.set_many({key: key for key in KEYS}),
                lambda: cache.get_many(KEYS),
                lambda: cache.get_or_set("key", lambda: 1),
            ):
                began = time.perf_counter()
                await call()
                assert time.perf_counter() - began < 1.0
    finally:
        lonely.command("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")


class TestOnCluster(OnSeveral):
    """Six nodes."""

    @pytest.fixture(autouse=True)
    def _group(self, six: Cluster) -> None:
        self.group, self.url = six, six.url

    def emptied(self) -> None:
        for node in self.group.masters():
            node.command("FLUSHALL")


class TestOnClusterByOldProtocol(TestOnCluster):
    """By RESP2, where nodes tell of nothing by themselves."""

    options = "?timeout=2s&protocol=2"
