"""The way to one server: a connection that is made when it is needed, and made again, by a breaker's leave."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import Context
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, Protocol, final

from asynccache._background import Background
from asynccache._breaker import Breaker, BreakerState
from asynccache.backends.redis import trips
from asynccache.backends.redis.address import Address, Settings
from asynccache.backends.redis.greeting import greet
from asynccache.backends.redis.patience import patience
from asynccache.backends.redis.pieces import Command
from asynccache.backends.redis.replies import (
    away,
    bare,
    code_of,
    frameless,
    meaning,
    place_of,
    said,
    translated,
)
from asynccache.backends.redis.scripts import LESSONS
from asynccache.backends.redis.wire import Asked, Wire, pack, unsent
from asynccache.clock import Clock, stopwatch
from asynccache.errors import BackendError, BackendTimeout, BackendUnavailable
from asynccache.telemetry import recording

__all__ = ["Link", "Owner", "answered"]

_log: Final = logging.getLogger("asynccache")
_IDLE_SECONDS: Final = 1.0
_DROP_SECONDS: Final = 1.0
_LEAST_PAUSE: Final = 0.05
_LAST_SECONDS: Final = 1.0
_ANSWERED_SECONDS: Final = 0.25
_TAUGHT_SECONDS: Final = 1.0  # who misses a script that long after they were all sent brings it himself
_DROPPING: Final = frozenset(("READONLY", "LOADING", "NOAUTH", "MASTERDOWN", "MAX"))


_last: set[asyncio.Task[Any] | None] = set()  # of all loops


class Owner(Protocol):
    """What a link needs of whom it belongs to."""

    settings: Settings
    clock: Clock

    @property
    def track_all(self) -> bool:
        """Whether every key that is read is to be told of."""
        ...

    def pushed(self, message: Any) -> None:
        """A message has come that answers no command."""
        ...

    async def opening(self, link: "Link", wire: Wire) -> int:
        """Do what must be done before anybody reads; how many deletions were repeated."""
        ...

    def lost(self, link: "Link") -> None:
        """The connection is gone, and messages with it."""
        ...

    def look_around(self) -> None:
        """See after other loops, once in a while."""
        ...


@final
class Link:
    """The shared connection to one server on one loop.

    Args:
        owner: Whom it belongs to.
        locate: Where the server is now.
        loop: The loop.
        background: Where its task lives.
        master: Whether the server must be a master.
        breaker: That of all connections to the server; left out, it is the only one.

    Attributes:
        address: Where it was found last.
        breaker: When to try again.
        offset: Seconds by which the server's clock is ahead of the cache's.
        send: As `Wire.ask`, as long as the connection is good; else as `ask`.
        tracking: Whether the server tells of keys that change.
        broken: Whether it was lost, and has not been made again.
        attempts: How often a connection was tried.
    """

    def __init__(
        self,
        owner: Owner,
        locate: Callable[[], Awaitable[Address]],
        loop: asyncio.AbstractEventLoop,
        background: Background,
        *,
        master: bool = False,
        breaker: Breaker | None = None,
    ) -> None:
        self._owner = owner
        self._locate = locate
        self._loop = loop
        self._background = background
        self._master = master
        self.breaker = Breaker(stopwatch) if breaker is None else breaker
        self._wire: Wire | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._dropped_at = -_DROP_SECONDS
        self._given_up = False
        self._closed = False
        self._tried_at = -_LEAST_PAUSE
        self._began = 0.0
        self._taught_at = -_TAUGHT_SECONDS
        self._last: BackendError | None = None  # why the latest attempt failed
        self.address: Address | None = None
        self.offset = 0.0
        self.tracking = False
        self.broken = False
        self.attempts = 0
        self.send: Callable[..., Asked] = self.ask

    def ask(
        self,
        command: Command,
        extra: int = 0,
        *,
        deadline: float | None = None,
        traced: bool = True,
        wanted: Command | None = None,
    ) -> Asked:
        """Send a packed command; see `Wire.ask`.

        Args:
            command: The command.
            extra: How many others stand in front of it.
            deadline: When the operation has had its time.
            traced: Whether it is a round trip of its own.
            wanted: What spans show of it, where others stand in front.

        Raises:
            BackendUnavailable: The server is away, and it is too early to try again.
        """
        wire = self._wire
        if wire is None or wire.lost:
            wire = self._begin()
        elif not wire.opened and self.breaker.tripped:
            raise self._away()
        asked = wire.ask(command, extra, deadline)
        if traced and recording():
            trip = trips.begun(self._owner.settings, wanted or command)
            if trip is not None:
                asked.add_done_callback(partial(trips.answered, trip, wire))
        return asked

    def teach(self) -> bool:
        """Have the server know all scripts before it reads what waits to be sent, or what is asked from now on; whether
        that could be done. Where each of a crowd brought his own, most would come before it."""
        now = stopwatch()
        if now - self._taught_at >= _TAUGHT_SECONDS and self._wire is not None and self._wire.ahead(LESSONS):
            self._taught_at = now
        return now - self._taught_at < _TAUGHT_SECONDS

    @property
    def state(self) -> BreakerState:
        """Of its breaker."""
        return "open" if self.late else self.breaker.state

    @property
    def late(self) -> bool:
        """Whether the server is behind with its answers."""
        return self._wire is not None and self._wire.late

    def answered_since(self, when: float) -> bool:
        """Whether the server has been heard on this connection after a time of the stopwatch."""
        return self._wire is not None and self._wire.opened and self._wire.quiet_since() > when

    @property
    def up(self) -> bool:
        """Whether a command would leave at once."""
        return self._wire is not None and self._wire.opened

    @property
    def peer(self) -> object:
        """The other end of the connection, whatever name it was found by."""
        return None if self._wire is None else self._wire.peer

    @property
    def load(self) -> int:
        """How many commands wait."""
        return 0 if self._wire is None else self._wire.load

    def refused(self, error: BaseException) -> BackendError:
        """What an error reply means to the caller; after some of them the connection is made anew."""
        if not isinstance(error, BackendError) and code_of(error) in _DROPPING:
            now = stopwatch()
            if now - self._dropped_at >= _DROP_SECONDS or code_of(error) in ("LOADING", "MAX"):
                self._dropped_at = now
                self.drop()
                self._failed(meaning(error))
        return translated(error)

    def drop(self) -> None:
        """Close the connection; the next command makes another."""
        self._given_up = True
        if self._wire is not None:
            self._wire.close(BackendUnavailable("redis: the connection was given up"))

    def close(self) -> None:
        """Close it for good."""
        self._closed = True
        self._given_up = True
        if self._wire is not None:
            self._wire.close(BackendUnavailable("redis: the store is closed"))

    # Connecting

    def _begin(self) -> Wire:
        if self._closed:
            raise unsent(BackendUnavailable("redis: the store is closed"))
        if self._background.ending:
            raise unsent(BackendUnavailable(_ENDED))
        if not self.breaker.allows():
            raise self._away()
        wire = Wire(
            self._loop,
            timeout=self._owner.settings.timeout,
            pushed=self._owner.pushed,
            stalled=self._failed,
            lost=self._lost,
            place=self._place(),
        )
        self._wire = wire
        self._given_up = False
        self._began = stopwatch()
        tripped = self.breaker.tripped
        self.attempts += 1
        self._background.start(self._live(wire, self.breaker.probe()), Context())
        if tripped:
            raise self._away()  # the attempt goes on without the caller
        return wire

    async def _live(self, wire: Wire, probing: bool) -> None:
        """Connect, greet, and keep the connection until it is lost."""
        settings = self._owner.settings
        opened, tracked_all, repeated = False, False, 0
        failure: BackendError = BackendUnavailable(_ENDED)
        try:
            pause = self._tried_at + _LEAST_PAUSE - stopwatch()
            if pause > 0:  # a server that greets and hangs up is not called without end; who asks waits
                await asyncio.sleep(pause)
            self._tried_at = stopwatch()
            async with patience(settings.connect_timeout):
                await self._connect(wire)
                wire.place = self._place()
                tracked_all = self._owner.track_all
                greeting = await greet(wire, settings, self._owner.clock, track_all=tracked_all, master=self._master)
                self.offset, self.tracking = greeting.offset, greeting.tracking
                if self.tracking and self._owner.track_all and not tracked_all:
                    for each in wire.urgent(_TRACK_NOTHING, _TRACK_ALL):  # somebody has come to rely on it meanwhile
                        self.tracking = not isinstance(await each, Exception)
                repeated = await self._owner.opening(self, wire)
            if not wire.lost:
                opened = True
                self._last = None
                self.broken = False
                self._back(repeated)
                self._keeper = asyncio.current_task()
                wire.open()
                self.send = wire.ask
                await self._keep(wire)
        except (OSError, BackendError) as error:  # TimeoutError is one too
            failure = self._last = self._failure(error)
        except (ValueError, TypeError, LookupError) as error:
            failure = self._last = frameless(away(self._place(), "what answers there is no Redis", error))
        except asyncio.CancelledError:
            if opened and not wire.lost:
                await self._go_last(wire)
            raise
        finally:
            if not opened and not self._given_up:
                self._failed(bare(failure))
            if not opened and probing:
                self.breaker.probed()
            wire.close(failure)

    async def _connect(self, wire: Wire) -> None:
        address = self.address = await self._locate()
        if isinstance(address, str):
            await self._loop.create_unix_connection(lambda: wire, address)
            return
        *others, last = await self._hosts(*address)
        for host in others:
            with suppress(OSError):
                await self._reach(wire, host, *address)
                return
        await self._reach(wire, last, *address)

    async def _hosts(self, name: str, port: int) -> list[str]:
        """The addresses of a name. Each attempt begins with another one: the first may never answer, and has all the
        time of the attempt."""
        with suppress(ValueError):
            return [str(ip_address(name))]
        found = await self._loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        hosts = list(dict.fromkeys([str(place[0]) for *_, place in found])) or [name]
        first = (self.attempts - 1) % len(hosts)
        return hosts[first:] + hosts[:first]

    async def _reach(self, wire: Wire, host: str, name: str, port: int) -> None:
        context = self._owner.settings.context
        server = None if context is None else name
        transport, _ = await self._loop.create_connection(lambda: wire, host, port, ssl=context, server_hostname=server)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def _keep(self, wire: Wire) -> None:
        """Hear from the server once a second where others rely on its messages: a dead link does not tell."""
        while not wire.lost:
            await asyncio.sleep(_IDLE_SECONDS)
            self._owner.look_around()
            if self._owner.track_all and stopwatch() - wire.quiet_since() >= _IDLE_SECONDS and not wire.load:
                try:
                    wire.ask(_PING)
                except BackendError:
                    pass  # it is late, or lost: whoever asks next is told

    async def _go_last(self, wire: Wire) -> None:
        """Keep the connection until the others have ended: the loop is about to, and what they hold is given back.

        Nobody but `asyncio.run`, or who does its work, cancels a task of which only the cache knows.
        """
        task = asyncio.current_task()
        end = stopwatch() + _LAST_SECONDS
        self._background.ending += 1
        _last.add(task)
        try:
            while not wire.lost and stopwatch() < end and (others := asyncio.all_tasks() - _last):
                await asyncio.wait(others, timeout=end - stopwatch())
            if wire.load and not wire.late and not wire.lost:  # what nobody waits for has its answer before this one
                await asyncio.wait([wire.ask(_PING)], timeout=max(end - stopwatch(), 0.0))
        finally:
            _last.discard(task)
            self._background.ending -= 1

    def _failed(self, why: str = "no answer in time") -> None:
        if self.breaker.failed(self._began) and not self._background.ending:
            _log.warning("redis at %s: away: %s", self._place(), why)

    def _back(self, repeated: int) -> None:
        seconds = self.breaker.succeeded()
        if seconds is not None:
            _log.info("redis at %s: back after %.1f s; deletions repeated: %d", self._place(), seconds, repeated)

    def _failure(self, error: BaseException) -> BackendError:
        """What an attempt to connect has come to; with the server's name, for the log."""
        if isinstance(error, BackendError):
            failure, words = error, bare(error)
        elif isinstance(error, TimeoutError):
            failure = BackendTimeout()
            words = f"no connection in time{' (does it speak TLS there?)' if self._owner.settings.context else ''}"
        else:
            failure = BackendUnavailable()
            unknown = isinstance(error, socket.gaierror)
            words = f"no connection: {'the name is not known' if unknown else type(error).__name__}"
        if failure is not error:
            failure.__cause__ = error
        failure.reason = said(self._place(), words)
        failure.args = (failure.reason,)
        return frameless(failure)

    def _away(self) -> BackendUnavailable:
        """That nobody asks it just now, and why."""
        last = self._last
        why = "" if last is None else f" ({bare(last)})"
        return away(self._place(), _AWAY + why, last)

    def _place(self) -> str:
        return place_of(*(self._owner.settings.addresses if self.address is None else [self.address]))

    def _lost(self, error: BaseException | None) -> None:
        wire = self._wire
        if isinstance(error, BackendTimeout) or (wire is not None and not wire.proved and not self._given_up):
            why = bare(error) if isinstance(error, BackendError) else "the connection is lost"
            self._failed(why)  # silent, or lost before it was good for anything
        self.tracking, self.broken = False, True
        self._taught_at = -_TAUGHT_SECONDS
        self.send = self.ask
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._background.cancel(keeper)
        self._owner.lost(self)


async def answered(links: Iterable[Link]) -> None:
    """Return when what was asked has its answer, or soon: what is in the air when a connection closes may be lost."""
    asked: list[Asked] = []
    for link in links:
        if link.up and link.load:
            with suppress(BackendError):  # it is late
                asked.append(link.ask(_PING, traced=False))
    if asked:
        await asyncio.wait(asked, timeout=_ANSWERED_SECONDS)


_ENDED: Final = "redis: the loop has ended"
_AWAY: Final = "the server is away"
_PING: Final = pack(("PING",))
_TRACK_NOTHING: Final = pack(("CLIENT", "TRACKING", "OFF"))
_TRACK_ALL: Final = pack(("CLIENT", "TRACKING", "ON"))
