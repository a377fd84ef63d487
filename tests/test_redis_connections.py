"""Several shared connections to one server: each key keeps to one of them, and callers see one store."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from owing import owed, repaid
from servers import Server
from test_redis_processes import _nobody_left, clients, ended, lines, start, wait_for  # noqa: F401
from test_redis_topology import told_by_hand
from waiting import comes, turns, until

from asynccache import BackendError, Cache
from asynccache.backends.redis.link import Link
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.wire import pack
from asynccache.testing import TravellingClock

pytestmark = pytest.mark.slow

COUNT = 3
LARGE = "".join(map(str, range(40_000)))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    """The empty server, by three connections that wait for as long as a busy machine may need."""
    server.command("FLUSHALL")
    server.command("CONFIG", "RESETSTAT")
    return f"{server.url}?connections={COUNT}&timeout=5s&client_name=several"


@pytest.fixture
async def cache(url: str) -> AsyncIterator[Cache]:
    async with Cache(url, on_error="raise") as cache:
        yield cache


@pytest.fixture
async def other(server: Server) -> AsyncIterator[Cache]:
    """Another process, with one connection."""
    async with Cache(server.url, on_error="raise") as other:
        yield other


def pool_of(cache: Cache) -> Pool:
    pool = cache.redis._store.pool()
    assert isinstance(pool, Pool)
    return pool


def way(cache: Cache, key: str) -> Link:
    """The connection for a key."""
    return pool_of(cache).link(key.encode())


def apart(cache: Cache, each: int = 1, prefix: str = "k") -> list[list[str]]:
    """So many keys for each connection, the first one's first."""
    keys: dict[Link, list[str]] = {link: [] for link in pool_of(cache)._mains}
    for number in range(each * 100):
        keys[way(cache, f"{prefix}{number}")].append(f"{prefix}{number}")
    assert min(map(len, keys.values())) >= each
    return [some[:each] for some in keys.values()]


async def number_of(link: Link) -> int:
    """What the server calls the connection."""
    number = await link.ask(pack(("CLIENT", "ID")))
    assert type(number) is int
    return number


@contextlib.asynccontextmanager
async def held(server: Server, *links: Link) -> AsyncIterator[None]:
    """The server answers nothing more on these connections, until the end: it waits for something to put there."""
    gates = [f"gate {number}" for number in range(len(links))]
    asked = [link.ask(pack(("BLPOP", gate, 0))) for link, gate in zip(links, gates, strict=True)]
    await comes(lambda: int(server.info("clients")["blocked_clients"]) == len(links), "they are held")
    try:
        yield
    finally:
        for gate in gates:
            server.command("RPUSH", gate, 1)
        await asyncio.gather(*asked)
        server.command("DEL", *gates)


@contextlib.contextmanager
def monitored(server: Server) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What the server is told from now on: the address of who says it, and the words."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10.0)
        connection.connect(server.unix_socket)
        connection.sendall(b"MONITOR\r\n")
        assert connection.recv(5) == b"+OK\r\n"

        def seen() -> list[tuple[str, str]]:
            server.command("ECHO", "that was all")
            text = b""
            while b'"that was all"' not in text:
                text += connection.recv(65_536)
            return re.findall(r"\[\d+ ([\d.]+:\d+)\] (.*)\r", text.decode())

        yield seen


# Which connection


async def test_connections_are_made_when_they_are_needed(url: str, server: Server) -> None:
    """One for one key, no more than the URL says for a thousand at once, and none is left."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("key", 1)
        assert len(clients(server, "several")) == 1
        assert set(await asyncio.gather(*[cache.get(f"k{number}") for number in range(1_000)])) == {None}
        assert len(clients(server, "several")) == COUNT
        assert [link.attempts for link in pool_of(cache)._mains] == [1] * COUNT
    await comes(lambda: not clients(server, "several"), "they are closed")


async def test_a_key_keeps_to_one_connection(cache: Cache, server: Server) -> None:
    """Whatever is done with it, and whichever of the others are used meanwhile."""
    keys = [key for some in apart(cache, 5) for key in some]
    await asyncio.gather(*[cache.get(key) for key in keys])
    with monitored(server) as seen:
        await cache.set_many(dict.fromkeys(keys, 1))
        for key in keys:
            await cache.set(key, 1)
            await cache.get(key)
            await cache.incr(key)
            await cache.add(key, 1)
            await cache.touch(key, 60)
            await cache.ttl(key)
            await cache.delete(key)
            await cache.get_or_set(key, lambda: 2)
            await cache.redis.command("STRLEN", key)
        told = seen()
    ways = {key: {address for address, words in told if f'"{key}"' in words} for key in keys}
    assert [len(addresses) for addresses in ways.values()] == [1] * len(keys)
    assert len(set.union(*ways.values())) == COUNT
    assert all(sum(f'"{key}"' in words for _, words in told) >= 9 for key in keys)


# Order


async def test_calls_for_a_key_that_are_not_awaited_keep_their_order(cache: Cache) -> None:
    """Each read has what the write before it has stored, for keys of all connections at once."""
    keys = [key for some in apart(cache, 10) for key in some]
    await asyncio.gather(*[cache.get(key) for key in keys])

    async def own(key: str) -> list[Any]:
        calls = [call for step in range(5) for call in (cache.set(key, [key, step]), cache.get(key))]
        return (await asyncio.gather(*calls))[1::2]

    found = await asyncio.gather(*[own(key) for key in keys])
    assert found == [[[key, step] for step in range(5)] for key in keys]


async def test_what_one_connection_has_written_is_read_by_the_others(cache: Cache, server: Server) -> None:
    """A call of many keys returns when all connections have answered, and one of them then reads what all have
    written."""
    (a,), (b,), (c,) = apart(cache)
    async with held(server, way(cache, b)):
        writing = asyncio.ensure_future(cache.set_many({a: 1, b: 2, c: 3}))
        await until(lambda: cache.get(c), "a part of it")
        assert not writing.done()
    assert await writing is True
    for keys in ([a, b, c], [b, c, a], [c, a, b]):
        assert await cache.get_many(keys) == {a: 1, b: 2, c: 3}
    assert await cache.delete_many([c, b]) == 2
    assert [await cache.get(key) for key in (a, b, c)] == [1, None, None]


async def test_one_that_is_slow_holds_up_no_other(cache: Cache, server: Server) -> None:
    """Calls for keys of other connections are answered, of every kind; those for its own keys wait, and are then
    right."""
    slow, *rest = apart(cache, 2)
    await cache.set_many({key: key for key in (*slow, *rest[0], *rest[1])})
    async with held(server, way(cache, slow[0])):
        waiting = [asyncio.ensure_future(cache.get(slow[0])), asyncio.ensure_future(cache.set(slow[1], 1))]
        for some in rest:
            assert [await cache.get(key) for key in some] == some
            assert await cache.get_many(some) == {key: key for key in some}
            assert await cache.set_many(dict.fromkeys(some, 1)) is True
            assert await cache.incr(some[0]) == 2
            assert await cache.delete_many(some) == 2
            assert await cache.get_or_set(some[0], lambda: "loaded") == "loaded"
            assert await cache.set(some[1], LARGE) is True
            assert await cache.get(some[1]) == LARGE
        assert not any(task.done() for task in waiting)
    assert await asyncio.gather(*waiting) == [slow[0], True]
    assert await cache.get(slow[1]) == 1


async def test_a_write_that_was_given_up_is_read_by_no_connection(cache: Cache, server: Server) -> None:
    """A `set` is cancelled while its connection is slow: a read of many keys, which takes another one, has neither
    what was there before nor what comes late."""
    (a,), (b,), _ = apart(cache)
    await cache.set_many({a: 1, b: "old"})
    async with held(server, way(cache, b)):
        writing = asyncio.ensure_future(cache.set(b, "new"))
        await turns()
        writing.cancel()
        await asyncio.wait([writing])
        reading = asyncio.ensure_future(cache.get_many([a, b]))
        await turns()
    assert await reading == {a: 1}
    await repaid(cache)
    assert server.command("EXISTS", b) == 0


@pytest.mark.parametrize("how", ["delete_many", "clear"])
async def test_what_was_given_up_does_not_come_after_a_deletion(cache: Cache, server: Server, how: str) -> None:
    """A `set` is cancelled while its connection is slow, then its key is deleted together with others, and that is
    acknowledged: the value does not come back."""
    await cache.set_many({key: "old" for some in apart(cache, 4) for key in some})
    keys = [name.decode() async for name in cache.redis.scan()]  # which is the order in which `clear` deletes
    by = (way(cache, keys[0]), pool_of(cache)._mains[0])
    key = next(key for key in keys if way(cache, key) not in by)
    async with held(server, way(cache, key)):
        writing = asyncio.ensure_future(cache.set(key, "given up"))
        await turns()
        writing.cancel()
        await asyncio.wait([writing])
        deleting = asyncio.ensure_future(cache.delete_many(keys) if how == "delete_many" else cache.clear())
        await asyncio.wait([deleting], timeout=0.1)  # it may wait for that connection, or not
    assert await deleting >= len(keys) - 1
    await repaid(cache)
    assert await cache.get(key) is None
    assert server.command("EXISTS", key) == 0


async def test_a_write_is_not_undone_by_a_deletion_that_was_given_up(cache: Cache, server: Server) -> None:
    """A `delete_many` is cancelled while its connection is slow; what is stored and acknowledged after that stays,
    and a counter does not begin anew."""
    (a,), (b,), (c,) = apart(cache)
    await cache.set_many({a: 1, b: "old", c: 5})
    async with held(server, way(cache, a)):
        deleting = asyncio.ensure_future(cache.delete_many([a, b, c]))
        await turns()
        deleting.cancel()
        await asyncio.wait([deleting])
        later = asyncio.gather(cache.set(b, "new"), cache.incr(c))
        await asyncio.wait([later], timeout=0.1)  # as above
    assert await later == [True, 1]
    await repaid(cache)
    assert await cache.get(b) == "new"
    assert await cache.incr(c) == 2


async def test_a_deletion_at_the_new_master_holds_for_all_connections() -> None:
    """One connection has found that the master was replaced: what it deletes there, no other one still finds at the
    old master."""
    with Server() as old, Server() as new:
        master = old
        async with (
            told_by_hand(lambda: master.address) as place,
            Cache(f"redis+sentinel://{place}/main?connections=2") as cache,
        ):
            (a,), (b,) = apart(cache)
            await cache.set_many({a: "old", b: "old"})
            new.command("REPLICAOF", old.host, old.port)
            await comes(lambda: new.command("EXISTS", a, b) == 2, "the replica follows")
            new.command("REPLICAOF", "NO", "ONE")
            old.command("REPLICAOF", old.host, 1)  # cut off: it keeps its data and takes no writes
            master = new
            await until(lambda: cache.set(a, "new"), "a write")
            assert await cache.delete_many([a, b]) == 2
            assert new.command("EXISTS", a, b) == 0
            assert await cache.get(b) is None


# Calls of many keys


async def test_calls_of_many_keys(cache: Cache, other: Cache, server: Server) -> None:
    """More keys than one command takes, over all connections: all are written, found, listed, and gone."""
    values = {f"k{number}": number for number in range(1_200)}
    assert await cache.set_many(values)
    assert await other.get_many(values) == values
    assert await cache.get_many([*values, "none"]) == values
    assert sorted([key async for key in cache.keys("k11?")]) == [f"k{number}" for number in range(110, 120)]
    assert await cache.delete_many([*list(values)[:600], "none"]) == 600
    assert await cache.get_or_set_many(list(values), lambda keys: dict.fromkeys(keys, -1)) == {
        key: -1 if value < 600 else value for key, value in values.items()
    }
    assert await cache.clear("k1???") == 200
    assert server.command("DBSIZE") == 1_000
    await cache.set_many(dict.fromkeys(values, "tagged"), tags=["t"])
    await cache.invalidate_tags("t")
    assert await cache.get_many(values) == await other.get_many(values) == {}
    assert await cache.clear() >= len(values)
    assert server.command("DBSIZE") <= 1  # the tag's record


async def test_reads_that_are_merged(url: str, server: Server) -> None:
    """Those of one turn leave as one command on each connection, and each caller has his own value."""
    async with Cache(url + "&merge_reads=true", on_error="raise") as cache:
        keys = [key for some in apart(cache, 20) for key in some]
        await cache.set_many({key: key for key in keys})
        server.command("CONFIG", "RESETSTAT")
        assert await asyncio.gather(*[cache.get(key) for key in keys]) == keys
        assert server.calls()["MGET"] == COUNT
        assert server.calls()["GETRANGE"] == 0


async def test_pipelines(cache: Cache) -> None:
    """Replies are in the order of the commands, those of one key are done in it, and a transaction is one whatever
    its keys."""
    (a,), (b,), (c,) = apart(cache)
    steps = [(command, key, *more) for command, *more in (("SET", 1), ("INCR",), ("GET",)) for key in (a, b, c)]
    assert await cache.redis.pipeline(steps) == [b"OK"] * 3 + [2] * 3 + [b"2"] * 3
    whole = [("SET", a, 5), ("COPY", a, b, "REPLACE"), ("INCR", b), ("MGET", c, b, a)]
    assert await cache.redis.pipeline(whole, transaction=True) == [b"OK", 1, 6, [b"2", b"6", b"5"]]
    assert sorted([key async for key in cache.redis.scan()]) == sorted(key.encode() for key in (a, b, c))


async def test_large_values(cache: Cache, other: Cache, server: Server) -> None:
    """Stored, loaded and read beside the small ones of the same connection; each connection has two more for them."""
    groups = apart(cache, 3)
    for small, stored, loaded in groups:
        await cache.set(small, small)
        await cache.set(stored, LARGE + stored)
        assert await cache.get_or_set(loaded, lambda loaded=loaded: LARGE + loaded) == LARGE + loaded
    async with held(server, *[pool_of(cache).large(way(cache, small), out=False) for small, _, _ in groups]):
        reading = [asyncio.ensure_future(cache.get(key)) for _, *some in groups for key in some]
        assert [await cache.get(small) for small, _, _ in groups] == [small for small, _, _ in groups]
        assert not any(task.done() for task in reading)
    keys = [key for _, *some in groups for key in some]
    assert await asyncio.gather(*reading) == [LARGE + key for key in keys]
    assert await other.get_many(keys) == {key: LARGE + key for key in keys}
    assert len(clients(server, "several")) == 3 * COUNT


# Leases and locks


async def test_one_load_for_each_key(url: str, cache: Cache) -> None:
    """Two processes, keys of all connections: one load each; who waits is told, also when his connection is lost
    meanwhile."""
    async with Cache(url, on_error="raise") as two:
        groups = apart(cache, 6)
        loads: Counter[str] = Counter()
        gate = asyncio.Event()

        async def value(cache: Cache, key: str) -> Any:
            async def load() -> str:
                loads[key] += 1
                await gate.wait()
                return key

            return await cache.get_or_set(key, load, ttl=60)

        keys = [key for some in groups for key in some]
        first = asyncio.gather(*[value(cache, key) for key in keys])
        await comes(lambda: len(loads) == len(keys), "loads")
        second = asyncio.gather(*[value(two, key) for key in keys])
        waiters = two.redis._store.leases._waiters
        await comes(lambda: sum(map(len, waiters.values())) == len(keys), "all wait")
        lost = way(two, keys[0])
        await cache.redis.command("CLIENT", "KILL", "ID", await number_of(lost))
        await comes(lambda: lost.attempts == 2 and lost.up, "another connection")
        gate.set()
        assert await first == await second == keys
        assert loads == dict.fromkeys(keys, 1)


async def test_locks_exclude_each_other(url: str, cache: Cache) -> None:
    """Of two processes, on keys of all connections: nobody's addition is lost."""
    async with Cache(url, on_error="raise") as two:
        names = [name for (name,) in apart(cache, prefix="lock")]

        async def add(cache: Cache, name: str) -> None:
            async with cache.lock(name, ttl=10, timeout=10):
                # On two keys, which need not be of one connection.
                await cache.set(f"{name} a", await cache.get(f"{name} a", 0) + 1)
                await cache.set(f"{name} b", await cache.get(f"{name} b", 0) + 1)

        await asyncio.gather(*[add(each, name) for _ in range(8) for each in (cache, two) for name in names])
        assert [await cache.get(f"{name} {part}") for name in names for part in "ab"] == [16] * 6


# Losing one of them


async def test_the_loss_of_one(cache: Cache, server: Server) -> None:
    """Who waits on it is told, at once and each by an exception of his own; the others go on as they are, and the next
    call makes another."""
    lost, *rest = apart(cache, 4)
    keys = [*lost, *rest[0], *rest[1]]
    await cache.set_many({key: key for key in keys})
    before = {link: await number_of(link) for link in pool_of(cache)._mains}
    with contextlib.suppress(BackendError):
        async with held(server, way(cache, lost[0])):
            waiting = [asyncio.ensure_future(cache.get(key)) for key in lost]
            await turns()
            server.command("CLIENT", "KILL", "ID", before[way(cache, lost[0])])
            began = time.perf_counter()
            told = await asyncio.gather(*waiting, return_exceptions=True)
            assert time.perf_counter() - began < 1.0
            assert [type(each).__name__ for each in told] == ["BackendUnavailable"] * 4
            assert len(set(map(id, told))) == 4
            assert [await cache.get(key) for key in (*rest[0], *rest[1])] == [*rest[0], *rest[1]]
    assert await cache.get_many(keys) == {key: key for key in keys}
    after = {link: await number_of(link) for link in pool_of(cache)._mains}
    assert [link for link in before if before[link] != after[link]] == [way(cache, lost[0])]


async def test_a_counter_is_sent_once_though_its_connection_is_lost(server: Server, proxy: FaultProxy) -> None:
    """The server has added when the reply is lost: that is not repeated, on no connection."""
    async with Cache(f"{proxy.url}?connections={COUNT}", on_error="raise") as cache:
        server.command("FLUSHALL")
        keys = [key for (key,) in apart(cache)]
        assert [await cache.incr(key) for key in keys] == [1] * COUNT
        proxy.reset_at("EVALSHA", answered=True)
        totals = await asyncio.gather(*[cache.incr(key) for key in keys], return_exceptions=True)
        assert sorted(type(each).__name__ for each in totals) == ["BackendUnavailable", "int", "int"]
        assert [await cache.incr(key, 0) for key in keys] == [2] * COUNT


async def test_one_that_cannot_be_made_again(server: Server, proxy: FaultProxy) -> None:
    """Whatever the breaker says, what the others have is found, written and deleted, and nothing of it is owed; only
    its own keys miss, and what was deleted meanwhile is never found again."""
    async with Cache(f"{proxy.url}?connections={COUNT}") as cache:
        server.command("FLUSHALL")
        lost, two, three = apart(cache, 3)
        await cache.set_many(dict.fromkeys([*lost, *two, *three], "old"))
        number = await number_of(way(cache, lost[0]))
        proxy.error_replies(b"-LOADING soon\r\n", only=["PING"])
        server.command("CLIENT", "KILL", "ID", number)
        await until(lambda: _is_away(cache, lost[0]), "it is lost")
        assert cache.redis._store.health.breaker != "closed"
        others = {key: way(cache, key).attempts for key in (two[0], three[0])}
        assert await cache.get(two[0]) == "old"
        assert await cache.delete(lost[0]) is False
        assert owed(cache) == 1
        assert await cache.delete(two[0]) is True
        assert await cache.set(three[0], "new") is True
        assert owed(cache) == 1
        assert await cache.delete_many([lost[1], two[1]]) == 0  # it would have gone by the lost one
        assert await cache.get(two[1]) is None
        assert await cache.get_many([three[0], two[1], two[2]]) == {three[0]: "new", two[2]: "old"}
        assert {key: way(cache, key).attempts for key in others} == others
        proxy.healthy()
        seen: set[Any] = set()

        async def back() -> bool:
            seen.update((await cache.get_many([lost[0], lost[1]])).values())
            return await cache.get(lost[2]) == "old"

        await until(back, "all is well")
        assert seen == set()
        await repaid(cache)
        assert server.command("EXISTS", lost[0], lost[1], two[0], two[1]) == 0
        assert server.command("EXISTS", lost[2], two[2], *three) == 5


async def _is_away(cache: Cache, key: str) -> bool:
    return await cache.get(key) is None and way(cache, key).state != "closed"


async def test_many_connections_are_tried_no_more_often_than_one(proxy: FaultProxy) -> None:
    """While the server is away: at most twenty attempts a second, whatever the number of connections."""
    async with Cache(f"{proxy.url}?connections=16") as cache:
        keys = [key for (key,) in apart(cache)]
        await cache.set_many(dict.fromkeys(keys, 1))
        links = pool_of(cache)._mains
        proxy.refuse()
        began, before = time.monotonic(), sum(link.attempts for link in links)
        while time.monotonic() - began < 0.5:
            await asyncio.gather(*[cache.get(key) for key in keys])
            await asyncio.sleep(0.005)
        assert sum(link.attempts for link in links) - before <= 20


async def test_closing_while_one_is_slow(url: str, server: Server) -> None:
    """It ends within two seconds, who waits is told, and no connection is left."""
    cache = Cache(url, on_error="raise")
    (a,), (b,), _ = apart(cache)
    await cache.set_many({a: 1, b: 2})
    waiting = []
    with contextlib.suppress(BackendError):
        async with held(server, way(cache, a)):
            waiting = [asyncio.ensure_future(cache.get(a)), asyncio.ensure_future(cache.delete(a))]
            await turns()
            began = time.perf_counter()
            await cache.aclose()
            assert time.perf_counter() - began < 2.0
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, Exception) for each in told)
    await comes(lambda: not clients(server, "several"), "they are closed")


# Copies


async def _copied(cache: Cache, keys: list[str]) -> None:
    await until(lambda: _copies(cache, keys), "copies")


async def _copies(cache: Cache, keys: list[str]) -> bool:
    for key in keys:
        await cache.get(key)
    return len(cache._core.local.values) == len(keys)  # type: ignore[union-attr]


async def test_the_loss_of_one_empties_the_local_store(url: str, other: Cache, server: Server) -> None:
    """Whichever it is, all copies go, as a message may have been missed; the others stay as they are, and new copies
    are right."""
    async with Cache(url, local="memory://", on_error="raise") as near:
        groups = apart(near, 4)
        keys = [key for some in groups for key in some]
        for turn, (key, *_) in enumerate(groups):
            await other.set_many(dict.fromkeys(keys, turn))
            await until(lambda turn=turn: _all_are(near, keys, turn), "the new values")  # type: ignore[misc]
            await _copied(near, keys)
            attempts = {link: link.attempts for link in pool_of(near)._mains}
            server.command("CLIENT", "KILL", "ID", await number_of(way(near, key)))
            await comes(lambda: not near._core.local.values, "the copies are gone")  # type: ignore[union-attr]
            assert await asyncio.gather(*[near.get(key) for key in keys]) == [turn] * len(keys)
            again = [link for link in attempts if link.attempts != attempts[link]]
            assert again == [way(near, key)]


async def _all_are(cache: Cache, keys: list[str], value: Any) -> bool:
    return [await cache.get(key) for key in keys] == [value] * len(keys)


async def test_a_copy_is_told_of_by_the_connection_that_has_read_it(url: str, other: Cache) -> None:
    """Read with many others by the first one's connection, or alone by its own, before and after one of them is
    remade."""
    async with Cache(url, local="memory://", on_error="raise") as near:
        (a,), (b,), (c,) = apart(near)
        await other.set_many({a: 0, b: 0, c: 0})
        for turn in range(1, 5):
            for key in (a, b, c):
                assert await near.get_many([a, b, c]) == {a: turn - 1, b: turn - 1, c: turn - 1}
                await near.get(key)
            way(near, (a, b, c)[turn % 3]).drop()
            await near.get_many([b, c, a])
            assert await near.get(c) == turn - 1
            await other.set_many({a: turn, b: turn, c: turn})
            await until(lambda turn=turn: _all_are(near, [a, b, c], turn), "the new values")  # type: ignore[misc]


async def test_a_connection_that_is_not_told_of_changes(
    server: Server, proxy: FaultProxy, other: Cache, clock: TravellingClock
) -> None:
    """The server refuses tracking on one of them, and grants it on the next: copies that were read on the first are
    believed for a second at most."""
    server.command("FLUSHALL")
    async with Cache(f"{proxy.url}?connections={COUNT}", local="memory://", on_error="raise", clock=clock) as near:
        (a,), (b,), _ = apart(near)
        proxy.error_replies(b"-NOPERM no\r\n", only=["CLIENT"], times=4)
        await near.get(a)
        assert proxy.answered["CLIENT"] == 4
        await near.get(b)
        assert not way(near, a).tracking
        assert way(near, b).tracking
        await other.set_many({a: "old", b: "old"})
        assert await near.get(a) == await near.get(a) == "old"
        await other.set(a, "new")
        clock.travel(1.5)
        assert await near.get(a) == "new"


# Cancellation


async def test_a_storm_of_cancellations(cache: Cache, server: Server) -> None:
    """Over all connections: nobody has another's value, and no connection is given up for it."""
    keys = [f"k{number}" for number in range(90)]
    await cache.set_many({key: key for key in keys})
    before = clients(server, "several").keys()
    for turn in range(40):
        calls = [
            asyncio.ensure_future(cache.get(key) if number % 3 else cache.get_many([key, keys[number - 7]]))
            for number, key in enumerate(keys)
        ]
        await turns(turn % 4)
        for call in calls[turn % 2 :: 2]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        for number, (key, value) in enumerate(zip(keys, found, strict=True)):
            if not isinstance(value, asyncio.CancelledError):
                assert value == (key if number % 3 else {key: key, keys[number - 7]: keys[number - 7]})
    assert clients(server, "several").keys() == before
    assert await cache.get_many(keys) == {key: key for key in keys}


# Loops and processes


def test_loops_one_after_another_and_at_once(url: str, server: Server) -> None:
    """One cache under three loops in turn, then two in threads: each has its own connections, and all values are
    right."""
    cache = Cache(url, on_error="raise")
    keys = [f"k{number}" for number in range(30)]
    ready = threading.Barrier(3, timeout=10)
    failures: list[BaseException] = []

    async def use(turn: int) -> None:
        await cache.set_many(dict.fromkeys(keys, turn))
        assert await asyncio.gather(*[cache.get(key) for key in keys]) == [turn] * 30
        assert await cache.get_many(keys) == dict.fromkeys(keys, turn)

    async def count() -> None:
        await asyncio.gather(*[cache.incr(f"n{number}") for number in range(30) for _ in range(5)])
        await asyncio.to_thread(ready.wait)
        await asyncio.to_thread(ready.wait)

    def in_thread() -> None:
        try:
            asyncio.run(count())
        except BaseException as error:
            failures.append(error)
            ready.abort()

    for turn in range(3):
        asyncio.run(use(turn))
    threads = [threading.Thread(target=in_thread) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with contextlib.suppress(threading.BrokenBarrierError):
            ready.wait()
            at_once = len(clients(server, "several"))
            ready.wait()
    finally:
        for thread in threads:
            thread.join()
    assert failures == []
    assert at_once == 2 * COUNT
    assert asyncio.run(cache.get_many([f"n{number}" for number in range(30)])) == {f"n{n}": 10 for n in range(30)}
    asyncio.run(cache.aclose())


FORKED = """
cache = Cache(url, local="memory://", on_error="raise")
keys = [f"k{number}" for number in range(30)]

async def work(name):
    for turn in range(5):
        await cache.set_many({f"{name}:{key}": turn for key in keys})
        assert await asyncio.gather(*[cache.get(f"{name}:{key}") for key in keys]) == [turn] * 30
        await asyncio.gather(*[cache.incr(key) for key in keys])

async def main(name):
    await work(name)
    note("worked", name)
    await told("listed")
    await cache.aclose()

def in_child():
    try:
        asyncio.run(main("child"))
        return 0
    except BaseException as error:
        note("failed", repr(error))
        return 1

async def parent():
    await work("before")
    child = os.fork()
    if not child:
        os._exit(in_child())
    await main("parent")
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        await asyncio.sleep(0.005)
    print(done[1])

asyncio.run(parent())
"""


def test_a_forked_child_has_connections_of_its_own(tmp_path: Path, url: str, server: Server) -> None:
    """As many as the parent has: both go on with right values, and no addition is lost or made twice."""
    process = start(FORKED, tmp_path, url, warnings="ignore")
    wait_for(lambda: len(lines(tmp_path / "worked")) == 2 or process.poll() is not None or lines(tmp_path / "failed"))
    connected = clients(server, "several")
    (tmp_path / "listed").touch()
    assert lines(tmp_path / "failed") == []
    assert ended(process) == "0"
    assert len(connected) == 2 * COUNT

    async def counts() -> list[int]:
        async with Cache(url, on_error="raise") as cache:
            return [await cache.get(f"k{number}") for number in range(30)]

    assert asyncio.run(counts()) == [15] * 30


async def test_many_large_values_at_once_are_apart_from_small_ones(server: Server, url: str) -> None:
    """Written, and read again: who reads and writes small ones does not wait for them. Only the first reading, which
    could not know how large they are, takes the way of all."""
    values = {f"large {number}": LARGE + str(number) for number in range(20)}
    async with Cache(url, on_error="raise") as cache:
        pool = pool_of(cache)
        await cache.set_many(values, 60)
        assert await cache.get_many(values) == values
        link = way(cache, "")
        for out in (True, False):
            async with held(server, pool.large(link, out=out)):
                many = asyncio.ensure_future(cache.set_many(values, 60) if out else cache.get_many([*values, "none"]))
                assert await cache.set("small", out)
                assert await cache.get("small") is out
                assert not many.done()
            assert await many == (True if out else values)
