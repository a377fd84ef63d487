"""Servers that stand in for each other: a master watched by sentinels, or a cluster of six."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from servers import Certificates, Server, ServerError, free_port, launch, wait_until

__all__ = ["Cluster", "Sentinels", "place_of"]


def _rows(flat: list[list[bytes]]) -> list[dict[str, str]]:
    """The rows of an answer that lists names and values in turn."""
    return [dict(zip((x.decode() for x in row[::2]), (x.decode() for x in row[1::2]), strict=True)) for row in flat]


def place_of(server: Server) -> tuple[str, int]:
    """Where the others of its group find a server: at its TLS port, if it has one."""
    return server.host, server.tls_port or server.port


class _Group:
    """Servers that are started when it is entered, and closed when it is left or one of them does not start."""

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Three servers and three sentinels


class Sentinels(_Group):
    """A master with two replicas, watched by three sentinels that replace it within about a second.

    Entered, all know each other. A test that kills or freezes something calls `heal` before the next one.
    """

    def __init__(
        self,
        flavour: str | None = None,
        *,
        service: str = "service",
        options: Mapping[str, str | int] | None = None,
        down_after: float = 0.5,
        tls: Certificates | None = None,
    ) -> None:
        """Args:
        flavour: One of `flavours`.
        service: The name by which the sentinels know the master.
        options: Those of the three servers.
        down_after: After so many seconds of silence a server counts as down.
        tls: Makes all speak TLS, with each other too, and is the certificate of each.
        """
        self.service = service
        self.tls = tls
        self._flavour = flavour
        self._down_after = down_after
        self._tls_options = {"tls-replication": "yes"} if tls else {}
        self.servers = [Server(flavour, tls=tls, options={**self._tls_options, **(options or {})}) for _ in range(3)]
        self.sentinels: list[Server] = []

    @property
    def url(self) -> str:
        """``redis+sentinel://host:port,host:port,host:port/service/0``; with TLS, ``rediss+sentinel://``."""
        hosts = ",".join("{}:{}".format(*place_of(sentinel)) for sentinel in self.sentinels)
        return f"redis{'s' if self.tls else ''}+sentinel://{hosts}/{self.service}/0"

    def start(self) -> None:
        launch(self.servers)
        master, *replicas = self.servers
        for replica in replicas:
            replica.command("REPLICAOF", *place_of(master))
        for replica in replicas:
            wait_until(lambda r=replica: r.info("replication")["master_link_status"] == "up", "a replica follows")  # type: ignore[misc]
        milliseconds = round(self._down_after * 1000)
        configuration = [
            "sentinel monitor {} {} {} 2".format(self.service, *place_of(master)),
            f"sentinel down-after-milliseconds {self.service} {milliseconds}",
            f"sentinel failover-timeout {self.service} 3000",  # also for a promotion, see `_hurry`
            f"sentinel parallel-syncs {self.service} 2",
        ]
        self.sentinels = [
            Server(self._flavour, sentinel="\n".join(configuration), tls=self.tls, options=self._tls_options)
            for _ in range(3)
        ]
        launch(self.sentinels)
        self._hurry(publish=100)  # they find each other by what they publish
        self.wait_steady()
        self._hurry(publish=400)

    def _hurry(self, publish: int) -> None:
        """Have all look after the others more often than every 1 to 10 s; one that ends forgets it.

        Two of these periods have a second meaning that limits them, because in a failover replicas are asked only
        once a second: one not heard of for 5 pings is not good enough to be promoted, and one that says it is a master
        for 4 publications while a sentinel has not heard of the failover is made a replica again.
        """
        periods = {"ask-period": 100, "info-period": 100, "ping-period": 300, "publish-period": publish}
        for sentinel in self.sentinels:
            sentinel.command("SENTINEL", "DEBUG", *(word for item in periods.items() for word in item))

    def close(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.close()

    def master(self) -> tuple[str, int]:
        """The address of the master, as told by the first sentinel that answers."""
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError):
                host, port = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service, timeout=1.0)
                return host.decode(), int(port)
        raise ConnectionError("no sentinel answers")

    def master_server(self) -> Server:
        return self._server_at(self.master())

    def replicas(self) -> list[Server]:
        """The servers that are not the master."""
        master = self.master_server()
        return [server for server in self.servers if server is not master]

    def _server_at(self, address: tuple[str, int]) -> Server:
        return next(server for server in self.servers if place_of(server) == address)

    def kill_master(self) -> Server:
        """The master, just killed; `wait_failover` waits until it is replaced."""
        master = self.master_server()
        master.kill()
        return master

    def wait_failover(self, old: Server, seconds: float = 20.0) -> Server:
        """The new master, once all sentinels name one in place of an old one, and it takes writes."""

        def replaced() -> bool:
            named = {tuple(s.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)) for s in self._alive()}
            ((host, port),) = named if len(named) == 1 else {(b"", b"0")}
            address = host.decode(), int(port)
            return (
                address not in (("", 0), place_of(old))
                and self._server_at(address).info("replication")["role"] == "master"
            )

        wait_until(replaced, "another master", seconds)
        return self.master_server()

    def failover(self) -> Server:
        """The new master, after the sentinels were told to replace one that is well."""
        self.wait_steady()
        old = self.master_server()
        # Refused while they do not know yet how well the replicas are.
        wait_until(lambda: self.sentinels[0].command("SENTINEL", "FAILOVER", self.service), "a failover can start")
        self.wait_failover(old)
        self.wait_steady()
        return self.master_server()

    def heal(self) -> None:
        """Bring back all that were killed or frozen, and wait until all know each other again."""
        for server in [*self.servers, *self.sentinels]:
            server.thaw()
        launch(self.servers)
        launch(self.sentinels)
        self._hurry(publish=400)
        self.wait_steady()

    def _alive(self) -> list[Server]:
        return [sentinel for sentinel in self.sentinels if sentinel.running and not sentinel.frozen]

    def wait_steady(self, seconds: float = 30.0) -> None:
        """Wait until all sentinels name one master, which has two replicas, and see nothing wrong."""

        def steady() -> bool:
            named = set()
            for sentinel in self.sentinels:
                (master,) = _rows(sentinel.command("SENTINEL", "MASTERS"))
                replicas = _rows(sentinel.command("SENTINEL", "REPLICAS", self.service))
                others = _rows(sentinel.command("SENTINEL", "SENTINELS", self.service))
                if master["flags"] != "master" or master["num-other-sentinels"] != "2":
                    return False
                if len(others) != 2 or any("s_down" in o["flags"] or "disconnected" in o["flags"] for o in others):
                    return False  # but `master_down` may stay: what one said of an old master
                if [(r["flags"], r["master-link-status"], r["master-port"]) for r in replicas] != [
                    ("slave", "ok", master["port"])
                ] * 2:
                    return False
                named.add((master["ip"], int(master["port"])))
            if len(named) != 1:
                return False
            replication = self._server_at(named.pop()).info("replication")
            online = [value for name, value in replication.items() if name.startswith("slave") and "online" in value]
            return replication["role"] == "master" and len(online) == 2

        wait_until(steady, "the sentinels agree", seconds)


# Six servers in a cluster


class Cluster(_Group):
    """Three masters, each with a replica that takes over about two seconds after its death.

    Entered, all agree on who has which slots; that takes two seconds, because a new master waits for so long before it
    calls its cluster fine. A test that kills or freezes something calls `heal` before the next one.
    """

    def __init__(
        self,
        flavour: str | None = None,
        *,
        options: Mapping[str, str | int] | None = None,
        node_timeout: float = 1.0,
        tls: Certificates | None = None,
    ) -> None:
        """Args:
        flavour: One of `flavours`.
        options: Those of the six servers.
        node_timeout: After so many seconds of silence a node counts as down.
        tls: Makes all speak TLS, with each other too, and is the certificate of each.
        """
        self.tls = tls
        self.nodes = [
            Server(
                flavour,
                tls=tls,
                options={
                    **({"tls-cluster": "yes", "tls-replication": "yes"} if tls else {}),
                    "cluster-enabled": "yes",
                    "cluster-config-file": "nodes.conf",
                    "cluster-node-timeout": round(node_timeout * 1000),
                    "cluster-port": free_port(),
                    "cluster-replica-validity-factor": 0,  # a replica takes over however old its data
                    "cluster-allow-replica-migration": "no",
                    **(options or {}),
                },
            )
            for _ in range(6)
        ]

    @property
    def url(self) -> str:
        """``redis+cluster://host:port,host:port,host:port``, with the first three nodes; or ``rediss+cluster://``."""
        hosts = ",".join("{}:{}".format(*place_of(node)) for node in self.nodes[:3])
        return f"redis{'s' if self.tls else ''}+cluster://{hosts}"

    def start(self) -> None:
        launch(self.nodes)
        for epoch, node in enumerate(self.nodes, 1):  # different ones from the start: no conflicts to resolve
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for first, last, master in zip((0, 5461, 10923), (5460, 10922, 16383), self.nodes[:3], strict=True):
            master.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for i, node in enumerate(self.nodes):  # all with all, not leaving it to gossip
            for other in self.nodes[:i]:
                bus = other.options["cluster-port"]
                node.command("CLUSTER", "MEET", *place_of(other), bus)
        wait_until(lambda: all(len(self._known(node)) == 6 for node in self.nodes), "the nodes know each other")
        for master, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            replica.command("CLUSTER", "REPLICATE", self.id_of(master))
        self.wait_ok(all_nodes=True)

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    # Who is who

    def id_of(self, node: Server) -> str:
        identity = node.command("CLUSTER", "MYID")
        assert isinstance(identity, bytes)
        return identity.decode()

    def slot(self, key: str | bytes) -> int:
        """The slot of a key."""
        return int(self._alive()[0].command("CLUSTER", "KEYSLOT", key))

    def master_of(self, slot: int) -> Server:
        """The node that has a slot, as told by the first node that answers."""
        for node in self._alive():
            for first, last, port in self._ranges(node):
                if first <= slot <= last:
                    return self._node_at(port)
        raise LookupError(f"nobody has slot {slot}")

    def masters(self) -> list[Server]:
        """The nodes that have slots, in the order of their slots."""
        ports = dict.fromkeys(port for _, _, port in self._ranges(self._alive()[0]))
        return [self._node_at(port) for port in ports]

    def replica_of(self, master: Server) -> Server:
        """The replica of a master, as told by the first node that answers."""
        identity = next(row[0] for row in self._known(self._alive()[0]) if self._port(row) == master.port)
        rows = self._known(self._alive()[0])
        return self._node_at(next(self._port(row) for row in rows if row[3] == identity))

    def _alive(self) -> list[Server]:
        return [node for node in self.nodes if node.running and not node.frozen]

    def _node_at(self, port: int) -> Server:
        return next(node for node in self.nodes if node.port == port)

    def _ranges(self, node: Server) -> list[tuple[int, int, int]]:
        """The first slot, the last, and the port of the master, as a node sees it."""
        return sorted((first, last, master[1]) for first, last, master, *_ in node.command("CLUSTER", "SLOTS"))

    def _known(self, node: Server) -> list[list[str]]:
        """The nodes with whom a node has shaken hands, as lines of words: id, address, flags, master, ..."""
        lines = [line.split() for line in node.command("CLUSTER", "NODES").decode().splitlines()]
        return [line for line in lines if "handshake" not in line[2] and "noaddr" not in line[2]]

    def _port(self, row: list[str]) -> int:
        return int(row[1].split("@")[0].rsplit(":", 1)[1])

    # What happens to them

    def wait_ok(self, *, all_nodes: bool = False, seconds: float = 30.0) -> None:
        """Wait until the nodes that live agree that the cluster is fine, and on who has which slots.

        Args:
            all_nodes: All must live, and three of them be replicas up to date.
            seconds: At most so long.
        """

        def ok() -> bool:
            alive = self.nodes if all_nodes else self._alive()
            views = [self._ranges(node) for node in alive]
            if any(view != views[0] for view in views[1:]):
                return False
            if any(b"cluster_state:ok" not in node.command("CLUSTER", "INFO") for node in alive):
                return False
            ports = {node.port for node in alive}
            if any(port not in ports for _, _, port in views[0]):
                return False
            if not all_nodes:
                return True
            flags = [row[2].replace("myself,", "") for node in alive for row in self._known(node)]
            if Counter(flags) != {"master": 18, "slave": 18}:
                return False
            replicas = [info for node in alive if (info := node.info("replication"))["role"] == "slave"]
            return len(replicas) == 3 and all(replica["master_link_status"] == "up" for replica in replicas)

        wait_until(ok, "the cluster is fine", seconds)

    def kill_master(self, slot: int = 0) -> Server:
        """The master of a slot, just killed; `wait_failover` waits until it is replaced."""
        master = self.master_of(slot)
        master.kill()
        return master

    def wait_failover(self, old: Server, seconds: float = 20.0) -> None:
        """Wait until an old master has no slots, and those that live agree that the cluster is fine."""

        def replaced() -> bool:
            return all(port != old.port for node in self._alive() for _, _, port in self._ranges(node))

        wait_until(replaced, "another master", seconds)
        self.wait_ok(seconds=seconds)

    def failover(self, slot: int = 0) -> Server:
        """The new master of a slot, after the replica of the old one was told to take over, losing nothing."""
        old = self.master_of(slot)

        def taken_over() -> bool:
            try:
                self.replica_of(old).command("CLUSTER", "FAILOVER")
            except ServerError:  # it has not heard enough of its master yet
                return False
            return True

        wait_until(taken_over, "a replica that can take over", 20.0)
        self.wait_failover(old)
        return self.master_of(slot)

    def heal(self) -> None:
        """Bring back all that were killed or frozen, and wait until each master has its replica again."""
        for node in self.nodes:
            node.thaw()
        launch(self.nodes)
        self.wait_ok(all_nodes=True)

    def migrate(self, slot: int, to: Server) -> None:
        """Give a slot with its keys to another master."""
        with self.migrating(slot, to) as move:
            move()

    @contextlib.contextmanager
    def migrating(self, slot: int, to: Server) -> Iterator[Callable[..., None]]:
        """A slot on its way to another master: what has left is answered with ASK, what is torn apart with TRYAGAIN.

        Yields:
            What moves the keys given, or all; at the end the rest moves, and the slot is given away.
        """
        source = self.master_of(slot)
        there, here = self.id_of(to), self.id_of(source)
        if there == here:
            raise ValueError(f"slot {slot} is there already")
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)

        def move(*keys: str | bytes) -> None:
            some = list(keys) or source.command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            while some:
                source.command("MIGRATE", *place_of(to), "", 0, 5000, "KEYS", *some)
                some = [] if keys else source.command("CLUSTER", "GETKEYSINSLOT", slot, 1000)

        yield move
        move()
        others = [node for node in self.masters() if node not in (source, to)]
        for node in [to, source, *others]:
            node.command("CLUSTER", "SETSLOT", slot, "NODE", there)
        self.wait_ok()
