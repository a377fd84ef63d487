"""One connection to a server: commands out in batches, replies in and matched in the order of the commands.

What callers ask in one turn of the loop leaves in one write; while nothing is in the air, half of what a turn usually
asks leaves as soon as it is there, so that the server works while the rest is asked (measured: a third of the time for
10 callers, a seventh for 100). Each command has its place in a queue until its reply has come, whatever becomes of its
caller: the reply of one who is gone is read and dropped. The states of a connection:

- *opening*: what is asked waits, only `urgent` commands (the greeting) leave.
- *open*: what is asked leaves, as far as the window allows.
- *late*: open, but the oldest command in the air has passed its deadline; what is asked is refused at once, until the
  server has caught up. One that sends nothing at all for as long as a deadline is given up.
- *lost*: nothing comes any more; whoever waited has been told, each by an exception of his own.

The window bounds the replies in the air, in commands and in bytes that they are expected to have: past some 400 KB the
loop would receive more than it hands on (measured: for values of 10 KB a window gains 45 %).

A command has its time in the air, and as much while it waits for room; more of the latter while the server answers in
half of that: then it is the loop that has no time, and what it gives up would be asked for once more. A timer that is
late looks again after the loop has looked at its sockets: what it was too busy to read is no silence.
"""

import math
import socket
import struct
from asyncio import AbstractEventLoop, BufferedProtocol, Future, Transport
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast, final

import hiredis

from asynccache.backends.redis.pieces import Command, portions
from asynccache.backends.redis.replies import Refusals, bare, said
from asynccache.clock import stopwatch
from asynccache.errors import BackendError, BackendTimeout, BackendUnavailable

__all__ = ["KEPT", "Asked", "Wire", "pack", "unsent"]

pack: Final[Callable[[tuple[str | bytes | int | float, ...]], bytes]] = cast(Any, hiredis.pack_command)
"""A command and its arguments as the protocol has them."""

Asked = Future[Any]
"""What a command will bring: its reply, or an exception as a result, for `told` to raise. One that is set as an
exception, and then not looked at because its caller was cancelled at the same time, would be logged by the loop."""

E = TypeVar("E", bound=BackendError)

KEPT: Final = -1
"""In place of a number of commands; see `Wire.ask`."""

_MORE: Final = object()  # hiredis' answer when a reply is not complete
_MOST_IN_FLIGHT: Final = 1_024
_LEAST_PARTED: Final = 4  # commands of a turn
_LEAST_IN_FLIGHT: Final = 16
_WINDOW_BYTES: Final = 400_000
_MOST_WAITING: Final = 65_536
_JOINED_BYTES: Final = 65_536  # larger commands are written apart: joining would copy them once more
_BUFFER_BYTES: Final = 262_144
_RECEIVED_BYTES: Final = 65_536  # at a time
_MOST_PATIENCE: Final = 10  # times the timeout
_LATE_TIMER_SECONDS: Final = 0.05
_NO_LINGERING: Final = struct.pack("ii", 1, 0)


@final
class Wire(BufferedProtocol):
    """A connection.

    Args:
        loop: The loop that it lives on.
        timeout: Seconds that a command may take.
        pushed: Told of each message that answers no command.
        stalled: Told when commands have passed their deadline before the connection was open.
        lost: Told, with the reason, when the connection is lost.
        place: What failures call the server.

    Attributes:
        opened: Whether what is asked may leave.
        proved: Whether the server has answered anything since.
        late: Whether the server is behind.
        lost: Whether it is over.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        *,
        timeout: float,
        pushed: Callable[[Sequence[Any]], object],
        stalled: Callable[[], object],
        lost: Callable[[BaseException | None], object],
        place: str = "",
    ) -> None:
        self._loop = loop
        self._create_future = loop.create_future
        self._deadline = 0.0
        self._timeout = timeout
        self._on_pushed = pushed
        self._on_stalled = stalled
        self._on_lost = lost
        self._refusals = Refusals(place)
        self._reader = hiredis.Reader(notEnoughData=_MORE, replyError=cast(Any, self._refusals))
        self._feed: Callable[[memoryview, int, int], None] = cast(Any, self._reader.feed)
        self._gets = self._reader.gets
        # asyncio's TLS puts one record after another into slices of it: those of a bytearray would be copies.
        self._received = memoryview(bytearray(_RECEIVED_BYTES))
        self._waiting: deque[tuple[Command, Asked, float, int]] = deque()
        self._in_air: deque[tuple[Asked | None, float]] = deque()
        self._transport: Transport | None = None
        self._rest: deque[memoryview] = deque()
        self._heard_at = stopwatch()
        self._sweep_at = math.inf
        self._reply_bytes = 100.0
        self._flushing = self._sweeping = self._paused = False
        self._usual = self._ahead = self._early = 0
        self.opened = self.proved = self.late = self.lost = False

    # Asking

    def ask(self, command: Command, extra: int = 0, deadline: float | None = None) -> Asked:
        """Send a packed command when there is room; a coroutine awaits the reply.

        Args:
            command: The command; perhaps others in front of it, which leave together with it.
            extra: How many others: their replies are dropped. `KEPT` for none, and for a command that is sent also
                when its caller has been cancelled: a write happens, or it is known that it did not.
            deadline: When the answer comes too late, by the stopwatch; left out, after the timeout.

        Raises:
            BackendUnavailable: The connection is lost, or the server is behind.
            BackendError: Too many commands wait.
        """
        if self.lost or self.late:
            raise unsent(self._failure(BackendUnavailable, _SILENT if self.late else _LOST))
        waiting = self._waiting
        if len(waiting) >= _MOST_WAITING:
            raise unsent(self._failure(BackendError, f"more than {_MOST_WAITING:,} commands wait to be sent"))
        asked = self._create_future()
        if deadline is not None:
            timer = self._loop.call_later(max(deadline - stopwatch(), 0.0), self._expire, asked)
            asked.add_done_callback(lambda _: timer.cancel())  # it would hold the reply
        if self._flushing:  # somebody has asked in this turn of the loop: the time is his
            waiting.append((command, asked, self._deadline, extra))
            if len(waiting) == self._early:
                self._early, self._ahead = 0, self._send()
            return asked
        self._deadline = stopwatch() + self._timeout
        waiting.append((command, asked, self._deadline, extra))
        usual, idle = self._usual, self.opened and not self._in_air
        if idle and usual <= 1:
            self._flush()
            return asked
        self._early = usual // 2 if idle and usual >= _LEAST_PARTED else 0
        self._flushing = True
        self._loop.call_soon(self._flush)
        return asked

    def urgent(self, *commands: bytes) -> list[Asked]:
        """Send packed commands now, in one write, while the connection is opening."""
        asked = [self._loop.create_future() for _ in commands]
        if self.lost or self._transport is None:
            for each in asked:
                each.set_result(self._failure(BackendUnavailable, _LOST))
            return asked
        deadline = stopwatch() + self._timeout
        self._in_air.extend([(each, deadline) for each in asked])
        self._transport.write(b"".join(commands))
        self._watch()
        return asked

    def ahead(self, commands: Sequence[bytes]) -> bool:
        """Send packed commands whose replies nobody wants, before what waits; whether that could be done."""
        if not self.opened or self._rest or self._transport is None:
            return False
        self._in_air.extend([(None, stopwatch() + self._timeout)] * len(commands))
        self._transport.write(b"".join(commands))
        self._watch()
        return True

    def open(self) -> None:
        """Let what is asked leave from now on."""
        self.opened = True
        self._flush()

    @property
    def place(self) -> str:
        """What failures call the server."""
        return self._refusals.place

    @place.setter
    def place(self, place: str) -> None:
        self._refusals.place = place

    def _failure(self, kind: type[E], words: str) -> E:
        failure = kind(said(self.place, words))
        failure.reason = str(failure)
        return failure

    @property
    def peer(self) -> object:
        """The address of the server."""
        return None if self._transport is None else self._transport.get_extra_info("peername")

    @property
    def load(self) -> int:
        """How many commands wait for room or for their reply."""
        return len(self._waiting) + len(self._in_air)

    def quiet_since(self) -> float:
        """When the server was heard last, by the stopwatch."""
        return self._heard_at

    def close(self, error: BaseException | None = None) -> None:
        """Let go of the connection; whoever waits is told."""
        self._end(error)
        transport = self._transport
        if transport is None or self._loop.is_closed():
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX and not transport.is_closing():
            try:  # what was given up must not come later: the system throws away what it has not sent
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
            except OSError:
                pass  # the connection is gone already
        transport.abort()

    # Sending

    def _flush(self) -> None:
        """Send what the turn has left waiting."""
        self._flushing = False
        self._usual = self._ahead + self._send()
        self._ahead = self._early = 0

    def _send(self) -> int:
        """Send what waits, as far as there is room; how many commands that was."""
        waiting, in_air, transport = self._waiting, self._in_air, self._transport
        if not waiting:
            return 0
        self._watch()
        if not self.opened or self._paused or transport is None or self._rest:
            return 0
        room = min(_MOST_IN_FLIGHT, max(_LEAST_IN_FLIGHT, int(_WINDOW_BYTES / self._reply_bytes))) - len(in_air)
        if room <= 0:
            return 0
        sent = size = 0
        now = stopwatch()
        until = now + self._timeout
        batch: list[bytes] = []
        while waiting and room > 0 and not self._paused:
            command, asked, _, extra = waiting.popleft()
            if asked.done() and extra != KEPT:  # cancelled: it was never sent
                continue
            if extra > 0:
                in_air.extend([(None, until)] * extra)
            in_air.append((asked, until))
            room -= 1
            sent += 1
            if len(command) >= _JOINED_BYTES or type(command) is not bytes:
                if batch:
                    transport.write(b"".join(batch))
                    batch.clear()
                self._rest.extend(portions(command))
                self._send_rest()
                if self._rest:
                    break
            else:
                batch.append(command)
                size += len(command)
                if size >= _BUFFER_BYTES:
                    transport.write(b"".join(batch))
                    batch.clear()
                    size = 0
        if batch:
            transport.write(batch[0] if len(batch) == 1 else b"".join(batch))
        return sent

    def _send_rest(self) -> None:
        """Send some of a large command, and more in the next turns of the loop."""
        if self._transport is None or self.lost:
            return
        self._transport.write(self._rest.popleft())
        if self._rest and not self._paused:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._rest and not self._paused:
            self._send_rest()
        if not self._rest:
            self._flush()

    # What the transport calls

    def connection_made(self, transport: Any) -> None:
        """Take the transport."""
        self._transport = cast(Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self._heard_at = stopwatch()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the system is to put what has come: one place for all, as an own one costs more than what is in it."""
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """Hand each reply to who asked."""
        self._heard_at = now = stopwatch()
        in_air, gets = self._in_air, self._gets
        replies = 0
        try:
            self._feed(self._received, 0, nbytes)
            while (reply := gets()) is not _MORE:
                kind = type(reply)
                if kind is _PUSH:
                    self._on_pushed(reply)
                    continue
                if not in_air:
                    raise hiredis.ProtocolError("a reply to no command")
                replies += 1
                asked = in_air.popleft()[0]
                if asked is not None and not asked.done():
                    asked.set_result(reply)
        except _STRANGE as error:  # what follows cannot be trusted either
            failure = self._failure(BackendUnavailable, "the server's answer is not understood")
            failure.__cause__ = error
            self.close(failure)
            return
        if replies:
            self.proved = self.opened
            self._reply_bytes += (nbytes / replies - self._reply_bytes) * 0.1
        else:
            self._reply_bytes += nbytes * 0.02  # part of a large one
        if self.late:
            self.late = bool(in_air) and in_air[0][1] <= now
        if self._waiting and not self._flushing:
            self._flushing = True
            self._deadline = now + self._timeout
            self._loop.call_soon(self._flush)

    def eof_received(self) -> bool:
        """The server has closed its end: so is ours."""
        return False

    def pause_writing(self) -> None:
        """The system takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._go_on()

    def connection_lost(self, error: BaseException | None) -> None:
        """Tell whoever waits."""
        self._end(error)

    # Deadlines

    def _expire(self, asked: Asked) -> None:
        """Fail a command whose operation has had its time."""
        if not asked.done():
            asked.set_result(self._failure(BackendTimeout, _LATE))

    def _watch(self) -> None:
        if not self._sweeping:
            self._sweep_in(self._timeout)

    def _sweep_in(self, delay: float) -> None:
        self._sweeping = True
        self._sweep_at = stopwatch() + delay
        self._loop.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        """Fail what has passed its deadline: one timer for all commands, which are in the order of their deadlines."""
        self._sweeping = False
        if self.lost:
            return
        now = stopwatch()
        if now - self._sweep_at > _LATE_TIMER_SECONDS:
            self._sweep_in(0.0)
            self._sweep_at = math.inf  # however late that one is
            return
        overdue = [(asked, True) for asked, deadline in self._in_air if deadline <= now and asked is not None]
        stalled = bool(self._in_air) and self._in_air[0][1] <= now
        moving = self.opened and not (self._in_air and self._in_air[0][1] - now <= self._timeout / 2)
        oldest = now - _MOST_PATIENCE * self._timeout if moving else now
        while self._waiting and self._waiting[0][2] <= oldest:
            overdue.append((self._waiting.popleft()[1], False))
        for asked, sent in overdue:
            if not asked.done():
                failure = self._failure(BackendTimeout, _LATE)
                asked.set_result(failure if sent else unsent(failure))
        if stalled:
            self.late = True
            if self.opened and self._heard_at + self._timeout <= now:
                self.close(self._failure(BackendTimeout, "the server is silent"))
                return
        elif overdue and not self.opened:
            self._on_stalled()
        firsts = [queue[0] for queue in (self._in_air,) if queue]
        deadlines = [deadline for _, deadline in firsts if deadline > now]
        deadlines += [max(self._waiting[0][2], now + self._timeout / 4)] if self._waiting else []
        if self._in_air and not deadlines:
            deadlines = [now + self._timeout / 4]
        if deadlines:
            self._sweep_in(max(min(deadlines) - now, 0.001))

    def _end(self, error: BaseException | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.opened = False
        unheard = [(asked, True) for asked, _ in self._in_air if asked is not None]
        unheard += [(asked, False) for _, asked, _, _ in self._waiting]
        self._in_air.clear()
        self._waiting.clear()
        self._rest.clear()
        kind = BackendTimeout if isinstance(error, BackendTimeout) else BackendUnavailable
        for asked, sent in unheard:
            if not asked.done():
                failure = self._failure(kind, bare(error) if isinstance(error, BackendError) else _LOST)
                failure.sent = sent  # each has his own
                failure.__cause__ = error.__cause__ if isinstance(error, BackendError) else error
                asked.set_result(failure)
        self._on_lost(error)


def unsent(failure: E) -> E:
    """The failure of a command that never left."""
    failure.sent = False
    return failure


# What comes of replies that no server gives; the message handlers look at them as they are.
_STRANGE: Final = (hiredis.HiredisError, LookupError, TypeError, ValueError, AttributeError, MemoryError)
_PUSH: Final = hiredis.PushNotification
_LATE: Final = "no answer in time"
_SILENT: Final = "the server does not answer in time"
_LOST: Final = "the connection is lost"
