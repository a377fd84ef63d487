"""The connections of one event loop: which server has a key, and what is done when it says that another one has."""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol, final

from asynccache._background import Background
from asynccache._breaker import Breaker
from asynccache.backends.redis import trips
from asynccache.backends.redis.address import Address
from asynccache.backends.redis.intents import Intents
from asynccache.backends.redis.link import Link, Owner
from asynccache.backends.redis.pieces import Command
from asynccache.backends.redis.reading import Merger, first_chunk
from asynccache.backends.redis.repayment import Repayment
from asynccache.backends.redis.replies import ErrorReply, code_of, told
from asynccache.backends.redis.scripts import Script
from asynccache.backends.redis.sentinels import Sentinels
from asynccache.backends.redis.slots import SLOTS, redirection, slot_of
from asynccache.backends.redis.tracker import Tracker
from asynccache.backends.redis.wire import Asked, pack
from asynccache.clock import stopwatch
from asynccache.errors import BackendError, BackendUnavailable
from asynccache.telemetry import recording

__all__ = ["Pool"]

_SLOTS_COMMAND: Final = pack(("CLUSTER", "SLOTS"))
_ASKING: Final = pack(("ASKING",))
_PING: Final = pack(("PING",))
_MOST_REDIRECTIONS: Final = 5
_MOST_AT_ONCE: Final = 10_000  # commands: more would take longer than their deadline by their number alone
_TRY_AGAIN_SECONDS: Final = 0.02
_REFRESH_SECONDS: Final = 0.25
_SAME_SECONDS: Final = 0.05


class Store(Owner, Protocol):
    """What a pool needs of the store that it belongs to."""

    intents: Intents
    coherence: Tracker

    def told(self, *, log: bool = True) -> None: ...


@final
class Pool:
    """The servers as one loop sees them.

    Args:
        owner: The store.
        loop: The loop.

    Attributes:
        timeout: Seconds for an operation.
        large_writes: Those on their way, by key: what comes after them waits.
        bulky_until: Until when many values that are read at once are expected to be large, by the stopwatch.
        together: As `Background.together`.
        met: Whether a server has been greeted.
        offset: Seconds by which the servers' clock is ahead of the cache's.
        repayment: How debts of the store are paid here.
    """

    def __init__(self, owner: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.timeout = owner.settings.timeout
        self.large_writes: dict[bytes, Asked] = {}
        self.bulky_until = 0.0
        self.met = False
        self.offset = 0.0
        self._owner = owner
        self._settings = owner.settings
        self._background = Background()
        self.together = self._background.together
        self.repayment = Repayment(self, owner.intents, self._background)
        self._breaker = Breaker(stopwatch)  # all have one server, unless they are a cluster's nodes
        self._nodes: dict[Address, Link] = {}
        self._large: dict[tuple[int, bool], Link] = {}
        self._mergers: dict[int, Merger] = {}
        self._slots: list[Address | None] = []
        self._refreshing = False
        self._refreshed_at = -_REFRESH_SECONDS
        self._closed = False
        settings = owner.settings
        self.clustered = settings.topology == "cluster"
        self._only: Link | None = None
        self._sentinels = Sentinels(owner.settings, owner.clock, loop, self._background)
        if self.clustered:
            self._slots = [None] * SLOTS
        else:
            self._mains = [self._made(None) for _ in range(settings.connections)]
            self._mergers = {id(link): Merger(link, loop) for link in self._mains if settings.merge_reads}
            if settings.connections == 1:
                self._only = self._mains[0]

    # Which server

    def link(self, key: bytes) -> Link:
        """The connection for a key."""
        if self._only is not None:
            return self._only
        if self.clustered:
            address = self._slots[slot_of(key)]
            return self._seed() if address is None else self._node(address)
        return self._mains[crc_hqx(key, 0) % len(self._mains)]

    def read(self, name: bytes) -> Asked:
        """Ask for the start of what is under a key: all of it, but of large values."""
        link = self.link(name)
        if recording():
            return link.ask(first_chunk(name))
        return self._mergers[id(link)].ask(name) if self._mergers else link.send(first_chunk(name))

    def large(self, link: Link, *, out: bool) -> Link:
        """The connection beside another one for what would hold it up: one for writes, one for reads."""
        beside = self._large.get((id(link), out))
        if beside is None:
            beside = self._large[id(link), out] = self._made(link)
        return beside

    async def masters(self) -> Sequence[Link]:
        """A connection to each server that has keys of its own."""
        if not self.clustered:
            return self._mains[:1]
        if not self.mapped:
            await self._seed().ask(_PING)
        addresses = {address for address in self._slots if address is not None}
        return [self._node(address) for address in addresses] or [self._seed()]

    def links(self) -> Iterable[Link]:
        """All connections that there are."""
        mains = list(self._nodes.values()) if self.clustered else self._mains
        return [*mains, *self._large.values()]

    def serving(self) -> Iterable[Link]:
        """Those to servers that are needed: of a cluster's nodes the ones that have slots, where that is known."""
        addresses = set(self._slots) - {None}
        return [link for link in self.links() if not addresses or link.address in addresses]

    @property
    def mapped(self) -> bool:
        """Whether it is known where the keys are."""
        return not self.clustered or any(self._slots)

    def _made(self, beside: Link | None) -> Link:
        sentinel = self._settings.topology == "sentinel"
        locate = self._locate if beside is None or not self.clustered else partial(_same_as, beside)
        breaker = self._breaker if beside is None else beside.breaker
        return Link(self._owner, locate, self.loop, self._background, master=sentinel, breaker=breaker)

    def _node(self, address: Address) -> Link:
        link = self._nodes.get(address)
        if link is None:
            link = self._nodes[address] = Link(self._owner, partial(_here, address), self.loop, self._background)
            link.address = address
        return link

    def _seed(self) -> Link:
        """Some node of the cluster: one that is up, or one that is not known to be down."""
        known = [*self._settings.addresses, *self._nodes]
        links = [self._node(address) for address in dict.fromkeys(known)]
        for link in links:
            if link.up:
                return link
        return next((link for link in links if link.state != "open"), links[0])

    async def _locate(self) -> Address:
        if self._settings.topology == "sentinel":
            return await self._sentinels.master()
        return self._settings.addresses[0]

    # The servers' clock

    async def meet(self, key: bytes) -> float:
        """Return when a server has said what time it is: with the deadline for the rest of the operation.

        Raises:
            BackendError: It did not.
        """
        deadline = stopwatch() + self.timeout
        await self.ask(key, b"PING")
        return deadline

    def greeted(self, link: Link) -> None:
        """Take over the time of a server that has been greeted (small differences are that of two messages); and let go
        of connections to what was the master before."""
        if self._settings.topology == "sentinel":
            for other in self.links():
                if other.up and other.peer != link.peer:
                    other.drop()
        if not self.met or abs(link.offset - self.offset) > _SAME_SECONDS:
            self.offset = link.offset
        self.met = True

    # Asking

    async def ask(self, key: bytes, *arguments: str | bytes | float) -> Any:
        """The reply to a command about a key.

        Raises:
            BackendError: There is none, or the server said no.
        """
        command, deadline = pack(arguments), stopwatch() + self.timeout
        link = self.link(key)
        reply = await link.ask(command)
        if not isinstance(reply, Exception):
            return reply
        try:
            return await self.again(link, reply, command, deadline=deadline)
        finally:
            del reply  # see again

    async def run(
        self,
        key: bytes,
        script: Script,
        keys: Sequence[bytes],
        *arguments: str | bytes | float,
        deadline: float | None = None,
        extra: int = 0,
    ) -> Any:
        """What a script returns that runs where a key is.

        Raises:
            BackendError: It did not run, or failed.
        """
        command = pack((b"EVALSHA", script.sha, len(keys), *keys, *arguments))
        link = self.link(key)
        until = deadline or stopwatch() + self.timeout
        reply = await link.ask(command, extra, deadline=deadline)
        if not isinstance(reply, Exception):
            return reply
        try:
            return await self.again(link, reply, command, script.source, until)
        finally:
            del reply  # see again

    async def ask_all(
        self, commands: Sequence[tuple[bytes, bytes]], script: Script | None = None, extra: int = 0
    ) -> list[Any]:
        """The replies to many commands that leave together; a failure stands where its reply would.

        Args:
            commands: Each with a key that says where it goes.
            script: What they call, if they call one.
            extra: `KEPT` for writes.
        """
        if len(commands) > _MOST_AT_ONCE:
            parts = [commands[start : start + _MOST_AT_ONCE] for start in range(0, len(commands), _MOST_AT_ONCE)]
            return [reply for part in parts for reply in await self.ask_all(part, script, extra)]
        asked: list[tuple[Link, Any, bytes]] = []
        trip = None
        several = len(commands) > 1
        if several and recording():
            trip = trips.begun_all(self._settings, [command for _, command in commands])
        for key, command in commands:
            link = self.link(key)
            try:
                asked.append((link, link.ask(command, extra, traced=not several), command))
            except BackendError as error:
                asked.append((link, error.with_traceback(None), command))
        deadline = stopwatch() + self.timeout
        source = "" if script is None else script.source
        replies: list[Any] = []
        try:
            for link, answer, command in asked:
                reply = answer if isinstance(answer, Exception) else await answer
                if isinstance(reply, Exception):
                    try:
                        reply = await self.again(link, reply, command, source, deadline)
                    except BackendError as error:
                        reply = error.with_traceback(None)  # which holds this frame, and that the replies
                replies.append(reply)
        finally:
            if trip is not None:
                trips.answered_all(trip, {link.peer for link, _, _ in asked}, replies)
        return replies

    async def large_ended(self, keys: Iterable[bytes]) -> None:
        """Return when no large write of these keys is on its way."""
        under_way = [self.large_writes[key] for key in keys if key in self.large_writes]
        if under_way:
            await asyncio.wait(under_way, timeout=self.timeout)

    def grouped(self, keys: Sequence[bytes], most: int) -> list[Sequence[bytes]]:
        """The keys in groups that one command can have: of one connection; in a cluster, where slots move, each by
        itself."""
        if self.clustered:
            return [[key] for key in keys]
        parts: dict[Link, list[bytes]] = {}
        for key in keys:
            parts.setdefault(self.link(key), []).append(key)
        return [part[start : start + most] for part in parts.values() for start in range(0, len(part), most)]

    async def again(
        self, link: Link, failure: Exception, command: Command, source: str = "", deadline: float | None = None
    ) -> Any:
        """What comes of a command that was not executed where it was sent; other failures are raised.

        A command is sent again only when the server has said that it did not do it: it knows no such script, the key
        is elsewhere, or on its way.

        Args:
            link: Where it was sent.
            failure: What came back.
            command: The command.
            source: That of the script that it calls, if it calls one.
            deadline: When the operation has had its time.

        Raises:
            BackendError: There is no reply.
        """
        deadline = deadline or stopwatch() + self.timeout
        reply: Any = failure
        taught = False
        for _ in range(_MOST_REDIRECTIONS):
            code = code_of(reply) if isinstance(reply, ErrorReply) else ""
            alone = command
            extra = 0
            if code == "NOSCRIPT" and source:
                if taught or not link.teach():
                    extra, command = 1, pack(("SCRIPT", "LOAD", source)) + command  # in one round trip
                taught = True
            elif code in ("MOVED", "ASK") and self.clustered and (place := redirection(str(reply), _host_of(link))):
                slot, address = place
                # What one node tells of a key is in no order with what another one answers: no copy is to be trusted.
                self._owner.coherence.changed(None)
                link = self._node(address)
                if code == "MOVED":
                    self._slots[slot] = address
                    self.refresh()
                else:
                    extra, command = 1, _ASKING + command
            elif code == "TRYAGAIN" and stopwatch() + _TRY_AGAIN_SECONDS < deadline:
                await asyncio.sleep(_TRY_AGAIN_SECONDS)
            else:
                break
            # A loop that was busy is no server that was slow; and who brings no script stands behind a crowd again.
            until = None if code == "NOSCRIPT" else max(deadline, stopwatch() + self.timeout / 2)
            reply = await link.ask(command, extra, deadline=until, wanted=alone)
            command = alone
            if not isinstance(reply, Exception):
                return reply
        if not isinstance(reply, Exception):
            return reply
        if self.clustered and not isinstance(reply, ErrorReply):
            self.refresh()
        try:
            raise link.refused(reply)
        finally:
            del failure, reply  # what is raised holds the frames that it has passed, and what they hold: a circle

    # The map of a cluster

    def refresh(self) -> None:
        """Ask where the keys are, soon, and not by everybody."""
        if self.clustered and not self._refreshing and not self._background.ending:
            self._refreshing = True
            self._background.start(self._refresh(), Context())

    async def _refresh(self) -> None:
        try:
            pause = self._refreshed_at + _REFRESH_SECONDS - stopwatch()
            if pause > 0:
                await asyncio.sleep(pause)
            self._refreshed_at = stopwatch()
            for link in sorted(self._all_nodes(), key=lambda link: (not link.up, link.state == "open")):
                try:
                    self.learn(link, told(await link.ask(_SLOTS_COMMAND)))
                    return
                except BackendError:
                    continue
        finally:
            self._refreshing = False

    def _all_nodes(self) -> list[Link]:
        return [self._node(address) for address in dict.fromkeys([*self._settings.addresses, *self._nodes])]

    def learn(self, link: Link, table: Any) -> None:
        """Take over a node's map."""
        slots: list[Address | None] = [None] * SLOTS
        for low, high, master, *_ in table:
            host = master[0].decode() if master[0] else ""
            address: Address = (host or _host_of(link), int(master[1]))
            slots[low : high + 1] = [address] * (high - low + 1)
        self._slots = slots
        for address in [each for each in self._nodes if each not in set(slots) | set(self._settings.addresses)]:
            if not self._nodes[address].load:
                self._nodes.pop(address).close()

    # Ending

    def close(self) -> None:
        """Close all; from the pool's own loop."""
        self._closed = True
        for link in self.links():
            link.close()
        self._sentinels.close()
        self._background.end()

    async def aclose(self) -> None:
        """Close all, and return when their tasks have ended."""
        self.close()
        await self._background.aclose()

    def track(self) -> None:
        """Have the servers tell of all that is read; until they do, nothing is taken for told."""
        for link in self.links():
            if link.up:
                link.tracking = False
                self._owner.told(log=False)
                self._background.start(self._track(link), Context())

    async def _track(self, link: Link) -> None:
        try:
            for command in (("CLIENT", "TRACKING", "OFF"), ("CLIENT", "TRACKING", "ON")):
                told(await link.ask(pack(command)))
        except BackendError:
            self._owner.told()
        else:
            self._owner.coherence.changed(None)
            link.tracking = True
            self._owner.told()

    def call(self, what: Callable[[], object]) -> None:
        """Have the pool's loop call it, from any thread."""
        try:
            self.loop.call_soon_threadsafe(what)
        except RuntimeError:
            pass  # the loop has ended, and has closed the connections


async def _here(address: Address) -> Address:
    return address


async def _same_as(link: Link) -> Address:
    if link.address is None:
        raise BackendUnavailable("redis: the server is not known yet")
    return link.address


def _host_of(link: Link) -> str:
    return link.address[0] if isinstance(link.address, tuple) else "localhost"
