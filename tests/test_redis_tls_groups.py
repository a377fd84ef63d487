"""Sentinels and clusters over TLS: every server of a group is asked over it, checked, and refused if it is not what it
should be."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from server_groups import Cluster, Sentinels, place_of
from servers import Certificates, Server, certificates, flavours, has_tls
from test_redis_connections import FORKED
from test_redis_processes import _nobody_left, clients, ended, lines, start, wait_for  # noqa: F401
from test_redis_topology import KEYS, Workers, _left
from waiting import comes, turns, until

from asynccache import BackendTimeout, BackendUnavailable, Cache, CacheClosed, ConfigError
from asynccache.backends.redis.slots import slot_of

pytestmark = [pytest.mark.slow, pytest.mark.debian_redis]

TLS = next((flavour for flavour in flavours() if has_tls(flavour)), None)
SOON_SECONDS = 1.5
ALL = {key: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class Papers:
    """Certificates of several authorities.

    Attributes:
        good: Of the host that is asked.
        named: Of ``localhost``, not of its address.
        elsewhere: Of another host.
        stranger: Of the host that is asked, by an authority that nobody trusts.
        trusted: The authorities of all but the stranger.
    """

    good: Certificates
    named: Certificates
    elsewhere: Certificates
    stranger: Certificates
    trusted: Path


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("tls")
    good = certificates(folder / "good")
    named = certificates(folder / "named", ["localhost"])
    elsewhere = certificates(folder / "elsewhere", ["elsewhere.example", "127.0.0.9"])
    trusted = folder / "trusted.pem"
    trusted.write_bytes(b"".join(each.authority.read_bytes() for each in (good, named, elsewhere)))
    own = [replace(each, authority=trusted) for each in (good, named, elsewhere)]
    return Papers(*own, certificates(folder / "stranger"), trusted)


def trusting(url: str, papers: Papers, **more: object) -> str:
    """The URL with the authorities to trust, and more options."""
    options = {"ssl_ca_certs": papers.trusted, "timeout": "2s", **more}
    return f"{url}?" + "&".join(f"{name}={value}" for name, value in options.items())


def certified(papers: Papers) -> dict[str, Path]:
    """The options of one who has a certificate of his own."""
    return {"ssl_certfile": papers.good.certificate, "ssl_keyfile": papers.good.key}


async def refused(url: str) -> BaseException | None:
    """Why nothing can be stored: known soon, and a miss for who does not ask."""
    async with Cache(url, on_error="raise") as cache:
        began = time.perf_counter()
        with pytest.raises((BackendUnavailable, BackendTimeout)) as caught:
            await cache.get("key")
        assert time.perf_counter() - began < SOON_SECONDS
    async with Cache(url) as cache:
        assert await cache.set("key", 1) is False
        assert await cache.get_or_set("key", lambda: 2) == 2
    return caught.value.__cause__


async def works(url: str) -> bool:
    """Whether a value comes back."""
    async with Cache(url, on_error="raise") as cache:
        await cache.set("key", 1)
        return await cache.get("key") == 1 and await cache.delete("key")


def by_tls(server: Server, name: str) -> list[bool]:
    """Of each connection of that name, whether it came by the TLS port."""
    return [client["laddr"] == "{}:{}".format(*place_of(server)) for client in clients(server, name).values()]


# Sentinels


@pytest.fixture(scope="module")
def sentinels(papers: Papers) -> Iterator[Sentinels]:
    with Sentinels(TLS, tls=papers.good) as group:
        yield group


@contextlib.contextmanager
def one_sentinel(
    papers: Certificates, of_master: Certificates, *lines: str, host: str = "127.0.0.1", **options: Any
) -> Iterator[tuple[Server, str]]:
    """A master, and the URL of a sentinel that names it by a host."""
    settings = {name.replace("_", "-"): value for name, value in options.items()}
    with Server(TLS, tls=of_master, options=settings) as master:
        watched = [*lines, f"sentinel monitor main {host} {master.tls_port} 1"]
        with Server(TLS, tls=papers, sentinel="\n".join(watched), options=settings) as sentinel:
            yield master, f"rediss+sentinel://{host}:{sentinel.tls_port}/main"


@pytest.mark.timeout(40)
async def test_a_failover_over_tls(sentinels: Sentinels, papers: Papers) -> None:
    """The master is killed: no exception, no wrong value, soon all is written to the new one, by every connection; and
    all connections are over TLS."""
    url = trusting(sentinels.url, papers, client_name="failing", connections=2)
    async with Cache(url) as cache:
        workers = Workers(cache, KEYS[:20])
        await workers.go_on()
        old = sentinels.master_server()
        assert by_tls(old, "failing") == [True, True]
        await asyncio.to_thread(old.kill)
        waiting = asyncio.create_task(asyncio.to_thread(sentinels.wait_failover, old))
        new = await waiting
        values = {f"all {key}": key for key in KEYS}
        await until(lambda: cache.set_many(values), "writes of all connections")
        await workers.go_on()
        await workers.end()
        assert await cache.get_many(values) == values
        assert new.command("EXISTS", *values) == len(KEYS)
        assert set(by_tls(new, "failing")) == {True}
    await asyncio.to_thread(sentinels.heal)


async def test_copies_behind_sentinels_over_tls(sentinels: Sentinels, papers: Papers) -> None:
    """They are told of on each of several connections."""
    url = trusting(sentinels.url, papers, connections=3)
    async with Cache(url, local="memory://", on_error="raise") as near, Cache(url, on_error="raise") as other:
        for turn in range(3):
            await other.set_many(dict.fromkeys(KEYS, turn))
            await until(lambda turn=turn: _all_are(near, turn), "the new values")  # type: ignore[misc]


async def _all_are(cache: Cache, value: Any) -> bool:
    return [await cache.get(key) for key in KEYS] == [value] * len(KEYS)


@pytest.mark.parametrize("which", ["sentinel", "master"])
async def test_an_authority_that_nobody_trusts(papers: Papers, which: str) -> None:
    """That of the sentinel, or that of the master whom it names: refused, and the master hears of nothing."""
    pair = (papers.stranger, papers.good) if which == "sentinel" else (papers.good, papers.stranger)
    with one_sentinel(*pair) as (master, url):
        cause = await refused(trusting(url, papers))
        assert which == "sentinel" or isinstance(cause, ssl.SSLCertVerificationError)
        assert {"HELLO", "AUTH", "SET"} & {name for name, calls in master.calls().items() if calls} == set()
        assert await works(trusting(url, papers, insecure="true"))


@pytest.mark.parametrize("which", ["sentinel", "master"])
async def test_a_name_that_is_not_in_the_certificate(papers: Papers, which: str) -> None:
    """By a trusted authority, but of another host: refused."""
    pair = (papers.elsewhere, papers.good) if which == "sentinel" else (papers.good, papers.elsewhere)
    with one_sentinel(*pair) as (master, url):
        cause = await refused(trusting(url, papers))
        assert which == "sentinel" or isinstance(cause, ssl.SSLCertVerificationError)
        assert master.calls()["HELLO"] == 0
        assert await works(trusting(url, papers, insecure="true"))


async def test_a_master_by_its_name(papers: Papers) -> None:
    """What is checked is the host as the sentinel gives it: by its address a master is refused whose certificate has
    its name only."""
    lines = ("sentinel resolve-hostnames yes", "sentinel announce-hostnames {}")
    for announced, right in (("yes", True), ("no", False)):
        papers_of_both = (papers.named, papers.named)
        with one_sentinel(*papers_of_both, lines[0], lines[1].format(announced), host="localhost") as (_, url):
            if right:
                assert await works(trusting(url, papers))
            else:
                assert isinstance(await refused(trusting(url, papers)), ssl.SSLCertVerificationError)


async def test_an_impostor_among_the_sentinels(papers: Papers) -> None:
    """One that cannot prove who it is names another master: it is not believed, even if it is the first to answer."""
    with (
        one_sentinel(papers.good, papers.good) as (master, url),
        one_sentinel(papers.stranger, papers.good) as (other, liar),
    ):
        hosts = [each.removeprefix("rediss+sentinel://").removesuffix("/main") for each in (liar, url)]
        for _ in range(5):
            async with Cache(trusting(f"rediss+sentinel://{','.join(hosts)}/main", papers), on_error="raise") as cache:
                assert await cache.incr("n") > 0
        assert master.command("EXISTS", "n") == 1
        assert other.command("EXISTS", "n") == 0


async def test_certificates_of_our_own_behind_sentinels(papers: Papers) -> None:
    """Sentinel and master both ask for one, and get the one in the URL; without it there is no connection."""
    with one_sentinel(papers.good, papers.good, tls_auth_clients="yes") as (_, url):
        assert await works(trusting(url, papers, **certified(papers)))
        await refused(trusting(url, papers))


async def test_a_master_that_speaks_no_tls(papers: Papers) -> None:
    """The sentinel names a port without TLS: nothing is said there in the clear."""
    with Server(TLS) as master:
        watched = f"sentinel monitor main {master.host} {master.port} 1"
        with Server(TLS, tls=papers.good, sentinel=watched) as sentinel:
            url = f"rediss+sentinel://{sentinel.host}:{sentinel.tls_port}/main"
            await refused(trusting(url, papers, connect_timeout="300ms"))  # as long as the server waits for a line
        assert master.calls()["HELLO"] == master.calls()["AUTH"] == 0


# A cluster


@pytest.fixture(scope="module")
def six(papers: Papers) -> Iterator[Cluster]:
    with Cluster(TLS, tls=papers.good) as cluster:
        yield cluster


@pytest.fixture
def cluster(six: Cluster, papers: Papers) -> Iterator[Cluster]:
    """All well, and empty."""
    for node in six.masters():
        node.command("FLUSHALL")
    yield six
    for node in six.nodes:
        shown(node, papers.good)
        node.command("CONFIG", "SET", "tls-auth-clients", "no", "cluster-preferred-endpoint-type", "ip")


def shown(node: Server, papers: Certificates) -> None:
    """Have a node show these to who connects from now on."""
    node.command("CONFIG", "SET", "tls-cert-file", str(papers.certificate), "tls-key-file", str(papers.key))


async def found(cache: Cache, keys: list[str]) -> dict[str, Any]:
    """What single reads find."""
    values = await asyncio.gather(*[cache.get(key) for key in keys])
    return {key: value for key, value in zip(keys, values, strict=True) if value is not None}


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_all_nodes_are_asked_over_tls(cluster: Cluster, papers: Papers, scheme: str) -> None:
    """Also by replicas, which know the others' TLS ports."""
    host, port = place_of(cluster.nodes[4])
    url = f"{scheme}+cluster://{host}:{port}"
    async with Cache(trusting(url, papers, client_name="all"), on_error="raise") as cache:
        assert await cache.set_many(ALL)
        assert await cache.get_many(KEYS) == await found(cache, KEYS) == ALL
        assert sorted([key async for key in cache.keys("*")]) == sorted(KEYS)
        assert [by_tls(node, "all") for node in cluster.masters()] == [[True]] * 3
        assert await cache.clear() == len(KEYS)


async def test_a_slot_that_has_moved(cluster: Cluster, papers: Papers) -> None:
    """A map that is not true any more: the node that has the keys now is found by its TLS port, and checked."""
    async with Cache(trusting(cluster.url, papers, client_name="moved"), on_error="raise") as cache:
        keys = [f"{{moved}}{number}" for number in range(5)]
        await cache.set_many({key: key for key in keys})
        slot = slot_of(b"moved")
        source = cluster.master_of(slot)
        target = next(node for node in cluster.masters() if node is not source)
        await asyncio.to_thread(cluster.migrate, slot, target)
        assert await found(cache, keys) == {key: key for key in keys}
        assert await cache.incr(keys[0] + "n") == 1
        assert target.command("EXISTS", *keys) == len(keys)
        assert by_tls(target, "moved") == [True]


async def test_a_slot_that_is_moving(cluster: Cluster, papers: Papers) -> None:
    """In the middle of it keys are asked for where they are: by ASK, of every kind of call."""
    keys = [f"{{asked}}{number}" for number in range(6)]
    slot = slot_of(b"asked")
    large = "".join(map(str, range(40_000)))
    async with Cache(trusting(cluster.url, papers), on_error="raise") as cache:
        await cache.set_many({key: key for key in keys})
        source = cluster.master_of(slot)
        target = next(node for node in cluster.masters() if node is not source)
        with cluster.migrating(slot, target) as move:
            await asyncio.to_thread(move, *keys[:3])
            assert await cache.get_many(keys) == await found(cache, keys) == {key: key for key in keys}
            assert await cache.incr("{asked}n", 5) == 5
            assert await cache.delete_many([keys[0], keys[5]]) == 2
            assert await cache.get_or_set("{asked}load", lambda: large) == large
            assert await cache.set("{asked}large", large)
            async with cache.lock("{asked}", ttl=5):
                pass
        assert await cache.get_many([*keys, "{asked}large"]) == {key: key for key in keys[1:5]} | {
            "{asked}large": large
        }


@pytest.mark.parametrize("when", ["moving", "moved"])
async def test_a_large_value_whose_slot_moves(cluster: Cluster, papers: Papers, when: str) -> None:
    """It is read where it is, all of it, also when its old node leads there."""
    slot = slot_of(when.encode())
    large, key = "".join(map(str, range(40_000))), f"{{{when}}}large"
    async with Cache(trusting(cluster.url, papers)) as cache, Cache(trusting(cluster.url, papers)) as other:
        assert await cache.set(key, large)
        assert await other.get(key) == large
        source = cluster.master_of(slot)
        target = next(node for node in cluster.masters() if node is not source)
        with cluster.migrating(slot, target) as move:
            await asyncio.to_thread(move, key)
            found = [await each.get(key) for each in (cache, other)] if when == "moving" else []
        found += [await each.get(key) for each in (cache, other)]
        assert [each == large for each in found] == [True] * len(found)


async def test_copies_on_a_cluster_over_tls(cluster: Cluster, papers: Papers) -> None:
    """Every node tells of its keys, also after a replica has taken over."""
    url = trusting(cluster.url, papers)
    async with Cache(url, local="memory://") as near, Cache(url) as other:
        for turn in range(4):
            if turn == 2:
                await asyncio.to_thread(cluster.failover, slot_of(KEYS[0].encode()))
            await until(lambda turn=turn: other.set_many(dict.fromkeys(KEYS, turn)), "a write")  # type: ignore[misc]
            await until(lambda turn=turn: _all_are(near, turn), "the new values")  # type: ignore[misc]


@pytest.mark.parametrize("wrong", ["stranger", "elsewhere"])
async def test_a_node_that_is_not_what_it_should_be(cluster: Cluster, papers: Papers, wrong: str) -> None:
    """It shows a certificate of an unknown authority, or of another host: it is told nothing, its keys are misses,
    soon; the other nodes' keys are found; and all is well when it shows the right one."""
    url = trusting(cluster.url, papers, client_name="wary")
    async with Cache(url, on_error="raise") as other:
        await other.set_many(ALL)
    node = cluster.master_of(slot_of(KEYS[0].encode()))
    theirs = [key for key in KEYS if cluster.master_of(slot_of(key.encode())) is node]
    shown(node, getattr(papers, wrong))
    async with Cache(url) as cache:
        began = time.perf_counter()
        assert await cache.get_many(KEYS) == {key: key for key in KEYS if key not in theirs}
        assert await found(cache, KEYS) == {key: key for key in KEYS if key not in theirs}
        assert await cache.set(theirs[0], "new") is False
        assert time.perf_counter() - began < 2 * SOON_SECONDS
        assert clients(node, "wary") == {}
        async with Cache(trusting(cluster.url, papers, insecure="true"), on_error="raise") as careless:
            assert await careless.get_many(KEYS) == ALL
        shown(node, papers.good)
        expected = {key: key for key in KEYS if key != theirs[0]}  # what could not be stored is deleted
        await until(lambda: _is(cache, expected), "all is well")


async def _is(cache: Cache, values: dict[str, Any]) -> bool:
    return await cache.get_many(KEYS) == values


async def test_a_redirection_to_a_node_that_is_not_what_it_should_be(cluster: Cluster, papers: Papers) -> None:
    """MOVED and ASK lead to a server with another host's certificate: the value is not read there, nor stored."""
    slot = slot_of(b"led")
    async with Cache(trusting(cluster.url, papers, client_name="led")) as cache:
        await cache.set_many({"{led}a": 1, "{led}b": 2})
        target = next(node for node in cluster.masters() if not clients(node, "led"))
        shown(target, papers.elsewhere)
        with cluster.migrating(slot, target) as move:
            await asyncio.to_thread(move, "{led}a")
            assert await cache.get("{led}a") is None
            assert await cache.get("{led}b") == 2
        assert await cache.get("{led}b") is None
        assert await cache.set("{led}c", 3) is False
        assert clients(target, "led") == {}
        shown(target, papers.good)
        await until(lambda: cache.get("{led}b"), "it is what it should be")


async def test_nodes_by_their_names(cluster: Cluster, papers: Papers) -> None:
    """What is checked is the host as the nodes give it: by their addresses nodes are refused whose certificates have
    their name only."""
    url = f"rediss+cluster://localhost:{place_of(cluster.nodes[0])[1]}"
    for node in cluster.nodes:
        shown(node, papers.named)
        node.command("CONFIG", "SET", "cluster-announce-hostname", "localhost")
    await comes(lambda: all(node.command("CLUSTER", "NODES").count(b",localhost ") == 6 for node in cluster.nodes))
    for kind, right in (("hostname", True), ("ip", False)):
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)
        async with Cache(trusting(url, papers)) as cache:
            assert await cache.set_many(ALL) is right
            assert await cache.get_many(KEYS) == (ALL if right else {})


async def test_certificates_of_our_own_on_a_cluster(cluster: Cluster, papers: Papers) -> None:
    """Every node asks for one, and gets the one in the URL; without it there is no connection."""
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "tls-auth-clients", "yes")
    async with Cache(trusting(cluster.url, papers, **certified(papers)), on_error="raise") as cache:
        await cache.set_many(ALL)
        assert await cache.get_many(KEYS) == ALL
    await refused(trusting(cluster.url, papers))


def test_several_connections_to_each_node(papers: Papers) -> None:
    """There is one to each, and a URL that asks for more is refused, not passed over in silence."""
    with pytest.raises(ConfigError, match="connections"):
        Cache(trusting("rediss+cluster://localhost", papers, connections=2))


# Loops and processes


@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
def test_loops_one_after_another_over_tls(request: pytest.FixtureRequest, papers: Papers, kind: str) -> None:
    """One cache under three loops that end without closing it: right values, and nothing that is left of one disturbs
    the next."""
    group = request.getfixturevalue(kind)
    several = {"connections": 2} if kind == "sentinels" else {}
    cache = Cache(trusting(group.url, papers, **several), on_error="raise")

    async def use(turn: int) -> None:
        await cache.set_many(dict.fromkeys(KEYS, turn))
        assert await found(cache, KEYS) == await cache.get_many(KEYS) == dict.fromkeys(KEYS, turn)

    for turn in range(3):
        asyncio.run(use(turn))
    asyncio.run(cache.aclose())


def test_a_forked_child_has_tls_connections_of_its_own(tmp_path: Path, sentinels: Sentinels, papers: Papers) -> None:
    """Behind sentinels, two each: the parent's are not touched, both go on with right values and exact counts."""
    master = sentinels.master_server()
    master.command("FLUSHALL")
    url = trusting(sentinels.url, papers, connections=2, client_name="forked")
    process = start(FORKED, tmp_path, url, warnings="ignore")
    wait_for(lambda: len(lines(tmp_path / "worked")) == 2 or process.poll() is not None or lines(tmp_path / "failed"))
    connected = by_tls(master, "forked")
    (tmp_path / "listed").touch()
    assert lines(tmp_path / "failed") == []
    assert ended(process) == "0"
    assert connected == [True] * 4

    async def counts() -> dict[str, Any]:
        async with Cache(url, on_error="raise") as cache:
            return await cache.get_many([f"k{number}" for number in range(30)])

    assert asyncio.run(counts()) == {f"k{number}": 15 for number in range(30)}


@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
async def test_leaving_without_closing_over_tls(request: pytest.FixtureRequest, papers: Papers, kind: str) -> None:
    """A program that ends without closing prints nothing, in asyncio's debug mode."""
    group = request.getfixturevalue(kind)
    for server in [group.master_server()] if kind == "sentinels" else group.masters():
        server.command("FLUSHALL")
    assert await _left(trusting(group.url, papers), "memory://", "loading") == ""


async def test_closing_over_tls_while_a_node_is_away(cluster: Cluster, papers: Papers) -> None:
    """It ends within two seconds, though nobody says good-bye; who waits is told."""
    cache = Cache(trusting(cluster.url, papers))
    await cache.set_many(ALL)
    node = cluster.masters()[0]
    await asyncio.to_thread(node.freeze)
    try:
        waiting = asyncio.ensure_future(cache.get_many(KEYS))
        await turns()
        began = time.perf_counter()
        await cache.aclose()
        assert time.perf_counter() - began < 2.0
        with contextlib.suppress(CacheClosed):
            await waiting
    finally:
        node.thaw()
    await asyncio.to_thread(cluster.heal)
