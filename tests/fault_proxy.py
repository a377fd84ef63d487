"""A TCP proxy that does to the connections of Redis clients what networks do.

It runs in a thread with an event loop of its own, so that it serves tests with several loops or processes. A switch has
taken effect when its method returns, on the connections there are and on those to come; faults add up until `healthy`.

Two rules, both as with real TCP. Bytes arrive in order: latency and bandwidth never let one overtake another. And
nothing arrives after a gap: a direction of a connection that has lost a byte loses all that follow, its end included,
also when the proxy is healthy again. So a client that goes on with such a connection waits for ever, as it would after
a firewall forgot it, and never takes one reply for another.

What it does not show: a handshake is made by the kernel of this machine, at once; TLS passes, but unread, so its
commands are neither counted nor answered.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

__all__ = ["HANDSHAKE", "SCRIPTS", "FaultProxy", "RespScanner"]

HANDSHAKE = frozenset({"AUTH", "CLIENT", "HELLO", "PING", "SELECT", "TIME"})
"""What clients say before their first real command, and to see whether the server lives."""
SCRIPTS = frozenset({"EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO", "SCRIPT"})

_SUBSCRIPTIONS = frozenset(prefix + verb for prefix in ("", "P", "S") for verb in ("SUBSCRIBE", "UNSUBSCRIBE"))
_CHUNK = 65_536
_UNDER_WAY = 64 * 1024 * 1024  # bytes in one direction, before the sender feels it
_SECONDS = 10.0
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST
T = TypeVar("T")


class RespScanner:
    """Where the RESP values in a stream end, which may be cut anywhere.

    Values are counted, not read: one is owed at first, an array of n owes n more, and a value ends when none is owed.
    Bytes inside a bulk string are skipped, however many calls they take to come. Cost: linear.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0  # of the next header; beyond the buffer while a bulk string is not all there
        self._owed = 1

    def feed(self, data: bytes) -> list[bytes]:
        """The values, or inline commands, that are complete now, each as its bytes.

        Raises:
            ValueError: This is not RESP; `rest` has the bytes.
        """
        self._buffer += data
        values = []
        while self._position <= len(self._buffer):
            if self._owed == 0:
                values.append(bytes(self._buffer[: self._position]))
                del self._buffer[: self._position]
                self._position, self._owed = 0, 1
            elif not self._read_header():
                break
        return values

    def _read_header(self) -> bool:
        kind = bytes(self._buffer[self._position : self._position + 1])
        if kind and not (kind in b"*$+-:_,#!=(%~>|\r" or (kind.isalpha() and self._position == 0)):
            raise ValueError(f"no RESP value starts with {kind!r}")
        end = self._buffer.find(b"\r\n", self._position)
        if end < 0:
            return False
        header = bytes(self._buffer[self._position + 1 : end])
        self._position = end + 2
        self._owed -= 1
        if kind in (b"$", b"=", b"!"):
            if (length := int(header)) >= 0:
                self._position += length + 2
        elif kind in (b"*", b"~", b">"):
            self._owed += max(int(header), 0)
        elif kind == b"%":
            self._owed += 2 * int(header)
        elif kind == b"|":  # attributes, and then the value that has them
            self._owed += 2 * int(header) + 1
        return True

    def rest(self) -> bytes:
        """What came of a value that is not complete; it is forgotten."""
        rest = bytes(self._buffer)
        self.__init__()  # type: ignore[misc]
        return rest


def _command_name(command: bytes) -> str:
    """The name in upper case; empty for an empty line, which is not answered."""
    start = command[:200]
    name = start.split(b"\r\n", 3)[2] if start.startswith(b"*") else start.partition(b"\r\n")[0].partition(b" ")[0]
    return name.decode(errors="replace").upper()


@dataclass(frozen=True, slots=True)
class _Errors:
    """Commands that are answered with an error: those named, or all, but for those that pass."""

    reply: bytes
    only: frozenset[str]
    passing: frozenset[str]

    def answer(self, name: str) -> bool:
        return name not in self.passing and (not self.only or name in self.only)


@dataclass(frozen=True, slots=True)
class _Faults:
    """What is wrong at present."""

    latency: float = 0.0
    bandwidth: float | None = None
    stalled: bool = False
    black_hole: bool = False
    errors: _Errors | None = None
    errors_left: int | None = None
    drop: frozenset[str] | None = None  # the replies to these commands, or to all
    reset: frozenset[str] = frozenset()
    reset_answered: bool = False
    truncate: int | None = None
    truncate_once: bool = False

    @property
    def upstream_needed(self) -> bool:
        return not self.black_hole and not (self.errors and not self.errors.passing and not self.errors.only)


class _Way:
    """One direction of a connection: the bytes under way, each with the time at which it arrives."""

    def __init__(self, proxy: "FaultProxy") -> None:
        self._proxy = proxy
        self._queue: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._free_at = 0.0
        self.lost = False

    def wake(self) -> None:
        self._changed.set()

    def send(self, data: bytes) -> None:
        """Send bytes on their way; none at all is the end."""
        due = asyncio.get_running_loop().time() + self._proxy._faults.latency
        self._queue.append((due, data))
        self._size += len(data)
        self._changed.set()

    async def room(self) -> None:
        while self._size > _UNDER_WAY:
            self._room.clear()
            await self._room.wait()

    async def arrivals(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive; the last are none at all."""
        loop = asyncio.get_running_loop()
        while True:
            faults, pause = self._proxy._faults, None
            if self._queue and not faults.stalled:
                due, data = self._queue[0]
                # Without latency nothing is under way: what was, when it ended, arrives at once.
                pause = due - loop.time() if faults.latency else 0.0
                if pause <= 0:
                    self._queue.popleft()
                    self._size -= len(data)
                    self._room.set()
                    async for piece in self._paced(data):
                        yield piece
                    if not data:
                        yield data
                        return
                    continue
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _paced(self, data: bytes) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while data:
            if (rate := self._proxy._faults.bandwidth) is None:
                yield data
                return
            piece, data = data[: max(1, int(rate / 50))], data[max(1, int(rate / 50)) :]
            self._free_at = max(self._free_at, loop.time()) + len(piece) / rate
            await asyncio.sleep(self._free_at - loop.time())
            yield piece


class _Link:
    """A client's connection with the one to the server that belongs to it."""

    def __init__(self, proxy: "FaultProxy", client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        self._up, self._down = _Way(proxy), _Way(proxy)
        self._commands: RespScanner | None = RespScanner()
        self._replies: RespScanner | None = RespScanner()
        # The commands not answered yet, in order, with the answers that wait for those before them.
        self._pending: deque[tuple[str, bytes | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.allowance = proxy._faults.truncate
        self.client_there = True

    def start(self) -> None:
        for part in (self._read_client(), self._carry_up(), self._carry_down()):
            self._spawn(part)

    def _spawn(self, part: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await part
            except OSError:  # the other side is gone, which each side should see as it is
                self.close(reset=True)
            except ValueError:  # what asyncio says of a socket closed since
                if not self._closed:
                    raise

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        task.add_done_callback(lambda _: part.close())  # one that had not begun, or it says that nobody awaited it

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._proxy._failures.append(error)

    def wake(self) -> None:
        self._up.wake()
        self._down.wake()

    def close(self, *, reset: bool = False) -> None:
        """Close both connections now; that of the client with RST, or with FIN."""
        loop = asyncio.get_running_loop()
        for task in self._tasks:
            task.cancel()
        for end in (self._client, self._server):
            if end is not None and end.fileno() >= 0:
                loop.remove_reader(end)
                loop.remove_writer(end)
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                end.close()
        self.client_there, self._closed = False, True
        self._proxy._links.discard(self)

    def half_close(self) -> None:
        with contextlib.suppress(OSError):  # it may be gone already
            self._client.shutdown(socket.SHUT_WR)
        self._down.lost = True

    # From the client to the server

    async def _read_client(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._client, _CHUNK):
            self._up.send(data)
            await self._up.room()
        self.client_there = False
        self._up.send(b"")

    async def _carry_up(self) -> None:
        if self._proxy._faults.upstream_needed:
            await self._reach_server()
        async for data in self._up.arrivals():
            self._up.lost = self._up.lost or (self._proxy._faults.black_hole and data != b"")
            if not self._up.lost:
                for command in self._split_commands(data):
                    await self._take(command)
        # The client is gone: so much the server learns, unless it lost what came before.
        if self._server is None or self._up.lost or self._down.lost:
            self.close()
        else:
            self._server.shutdown(socket.SHUT_WR)

    def _split_commands(self, data: bytes) -> list[bytes]:
        if self._commands is None:
            return [data] if data else []
        try:
            commands = self._commands.feed(data)
        except ValueError:
            commands, self._commands = [self._commands.rest()], None
        return commands

    async def _take(self, command: bytes) -> None:
        """Answer a command, forward it, or break the connection over it."""
        if self._commands is None:
            return await self._forward(command)
        proxy, name = self._proxy, _command_name(command)
        if proxy._faults.errors and proxy._faults.errors.answer(name):
            proxy._answered[name] += 1
            self._pending.append((name, proxy._faults.errors.reply))
            proxy._count_error()
            return self._send_answers()
        if name in proxy._faults.reset and not proxy._faults.reset_answered:
            proxy._faults = replace(proxy._faults, reset=frozenset())
            return self.close(reset=True)
        proxy._commands[name] += 1
        if name and name not in _SUBSCRIPTIONS:
            self._pending.append((name, None))
        await self._forward(command)

    async def _forward(self, data: bytes) -> None:
        server = self._server or await self._reach_server()
        await asyncio.get_running_loop().sock_sendall(server, data)
        self._proxy.bytes_up += len(data)

    async def _reach_server(self) -> socket.socket:
        server = self._server = socket.socket()
        server.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(server, self._proxy.upstream)
        self._spawn(self._read_server(server))
        return server

    # From the server to the client

    async def _read_server(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server, _CHUNK):
            for reply in self._split_replies(data):
                self._give(reply)
            await self._down.room()
        if self._replies is not None and (rest := self._replies.rest()):
            self._down.send(rest)
        self._down.send(b"")

    def _split_replies(self, data: bytes) -> list[bytes]:
        if self._replies is None:
            return [data]
        try:
            return self._replies.feed(data)
        except ValueError:
            rest, self._replies = self._replies.rest(), None
            return [rest]

    def _give(self, reply: bytes) -> None:
        """Send a reply to the client, lose it, or break the connection over it."""
        faults, name = self._proxy._faults, ""
        if self._replies is not None and not reply.startswith(b">") and self._pending:
            name, _ = self._pending.popleft()
        if name in faults.reset and faults.reset_answered:
            self._proxy._faults = replace(faults, reset=frozenset())
            return self.close(reset=True)
        if faults.drop is not None and (not faults.drop or name in faults.drop):
            self._down.lost = True
        if not self._down.lost:
            self._down.send(reply)
        self._send_answers()

    def _send_answers(self) -> None:
        """Send the proxy's answers that are next: each waits for the server's answers to the commands before it."""
        while self._pending and (answer := self._pending[0][1]) is not None:
            self._pending.popleft()
            if not self._down.lost:
                self._down.send(answer)

    async def _carry_down(self) -> None:
        loop = asyncio.get_running_loop()
        async for data in self._down.arrivals():
            self._down.lost = self._down.lost or self._proxy._faults.black_hole
            if self._down.lost:
                continue
            if self.allowance is not None:
                cut = len(data) >= self.allowance
                data = data[: self.allowance]
                self.allowance -= len(data)
                await loop.sock_sendall(self._client, data)
                self._proxy.bytes_down += len(data)
                if cut:
                    self._proxy._count_truncation()
                    return self.close()
            else:
                await loop.sock_sendall(self._client, data)
                self._proxy.bytes_down += len(data)
        if not self._down.lost:
            self.close()


class FaultProxy:
    """A port on the loopback that leads to a server, and the switches that make the way bad.

    Entered it listens; left it has closed everything. Its counters are for all connections since then.
    """

    host = "127.0.0.1"

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self.upstream = (upstream_host, upstream_port)
        self.port = 0
        self.connections_made = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._commands: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._faults = _Faults()
        self._links: set[_Link] = set()
        self._fillers: list[socket.socket] = []
        self._filler_ports: set[int] = set()
        self._failures: list[BaseException] = []
        self._listener: socket.socket | None = None
        self._accepting = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen on a free port."""
        self._listener = self._bound(0)
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.SelectorEventLoop()
        self._loop.set_exception_handler(
            lambda _, context: self._failures.append(context.get("exception") or RuntimeError(context["message"]))
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fault proxy {self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen)

    def close(self) -> None:
        """Close everything.

        Raises:
            RuntimeError: The proxy itself was at fault, in a way that a test should not pass over.
        """
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)
        self._loop.close()
        self._loop = self._thread = None
        if self._failures:
            raise RuntimeError("the fault proxy failed") from self._failures[0]

    async def _end(self) -> None:
        self._stop_listening()
        assert self._listener is not None
        self._listener.close()
        tasks = {task for link in self._links for task in link._tasks}
        self._each(lambda link: link.close())
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    # The switches

    def healthy(self) -> None:
        """End all faults. What was only late arrives at once; what was lost stays lost, see the top of the module."""

        def heal() -> None:
            self._faults = _Faults()
            for link in self._links:
                link.allowance = None
                link.wake()
            self._listen()

        self._call(heal)

    def latency(self, seconds: float) -> None:
        """Let bytes take so many seconds, in each direction, however many are under way."""
        self._set(latency=seconds)

    def bandwidth(self, bytes_per_second: float | None) -> None:
        """Let so many bytes through in a second, in each direction of each connection."""
        self._set(bandwidth=bytes_per_second)

    def stall(self) -> None:
        """Hold all bytes back, losing none, until `healthy`: replies then come late."""
        self._set(stalled=True)

    def black_hole(self) -> None:
        """Lose all bytes of both directions; connections can be made."""
        self._set(black_hole=True)

    def hold_connects(self) -> None:
        """Have new connections hang while they are made; those there are go on.

        The queue of connections not accepted yet is full then, and Linux drops what asks for one. Once `healthy`, a
        client that still waits gets through when its kernel asks again: one second after it first did, then three.

        Raises:
            RuntimeError: This kernel makes them all the same.
        """
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._hold(), self._loop).result(_SECONDS)

    def refuse(self) -> None:
        """Reset the connections there are, and refuse new ones, as the machine of a server that is down."""

        def refuse() -> None:
            self._stop_listening()
            assert self._listener is not None
            # Bound and not listening: connections are refused, and nobody else takes the port. A shutdown comes
            # first, since a forked process may hold the socket as well.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = self._bound(self.port)
            self._each(lambda link: link.close(reset=True))

        self._call(refuse)

    def reset_all(self) -> None:
        """Reset the connections there are (RST); new ones are not touched."""
        self._call(lambda: self._each(lambda link: link.close(reset=True)))

    def reset_at(self, *names: str, answered: bool = False) -> None:
        """Reset the connection that next brings one of these commands, once.

        Args:
            names: Of commands.
            answered: Only when the server has done it: in place of its reply. Else the server never hears of it.
        """
        self._set(reset=_names(names), reset_answered=answered)

    def half_close(self) -> None:
        """End the connections there are towards the client (FIN), while its commands still reach the server."""
        self._call(lambda: self._each(_Link.half_close))

    def truncate(self, after_bytes: int, *, once: bool = False) -> None:
        """Let so many more bytes of replies through on each connection, then close it (FIN).

        Args:
            after_bytes: From now, or from the start of a new connection, whose handshake counts too.
            once: The others are well again when it has happened to the first.
        """

        def truncate() -> None:
            self._faults = replace(self._faults, truncate=after_bytes, truncate_once=once)
            for link in self._links:
                link.allowance = after_bytes

        self._call(truncate)

    def error_replies(
        self,
        reply: bytes,
        *,
        after_handshake: bool = False,
        scripts: bool = False,
        only: Iterable[str] = (),
        times: int | None = None,
    ) -> None:
        r"""Answer commands with an error in place of the server, which need not be there.

        Args:
            reply: Such as ``b"-LOADING the dataset is in memory soon\r\n"``.
            after_handshake: Let `HANDSHAKE` pass.
            scripts: Let `SCRIPTS` pass.
            only: Answer these commands alone.
            times: Answer so many, then no more.
        """
        passing = HANDSHAKE if after_handshake else frozenset[str]()
        passing |= SCRIPTS if scripts else frozenset[str]()
        self._set(errors=_Errors(reply, _names(only), passing), errors_left=times)

    def drop_replies(self, *names: str) -> None:
        """Lose the replies to commands that the server carries out.

        Args:
            names: The commands; all by default. The replies that follow on the same connection are lost too.
        """
        self._set(drop=_names(names))

    # The counters

    @property
    def connections_open(self) -> int:
        """How many connections clients have here at present."""
        return self._call(lambda: sum(link.client_there for link in self._links))

    @property
    def commands(self) -> Counter[str]:
        """How often each command was forwarded, by name in upper case."""
        return self._call(self._commands.copy)

    @property
    def answered(self) -> Counter[str]:
        """How often each command was answered with an error, by name in upper case."""
        return self._call(self._answered.copy)

    def clear_counters(self) -> None:
        """Count from zero again."""

        def clear() -> None:
            self.connections_made = self.bytes_up = self.bytes_down = 0
            self._commands.clear()
            self._answered.clear()

        self._call(clear)

    # In the thread of the proxy

    def _call(self, function: Callable[[], T]) -> T:
        """What a function returns that runs in the thread of the proxy."""

        async def call() -> T:
            return function()

        if self._loop is None:
            raise RuntimeError("the proxy does not run")
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_SECONDS)

    def _set(self, **changes: Any) -> None:
        def change() -> None:
            self._faults = replace(self._faults, **changes)
            for link in self._links:
                link.wake()

        self._call(change)

    def _each(self, action: Callable[[_Link], None]) -> None:
        for link in list(self._links):
            action(link)

    def _count_error(self) -> None:
        if (left := self._faults.errors_left) is not None:
            over = left <= 1
            self._faults = replace(
                self._faults, errors=None if over else self._faults.errors, errors_left=None if over else left - 1
            )

    def _count_truncation(self) -> None:
        if self._faults.truncate_once:
            self._faults = replace(self._faults, truncate=None, truncate_once=False)
            for link in self._links:
                link.allowance = None

    def _bound(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind((self.host, port))
        return bound

    def _listen(self) -> None:
        assert self._loop is not None
        assert self._listener is not None
        for filler in self._fillers:
            self._filler_ports.add(filler.getsockname()[1])
            filler.close()
        self._fillers.clear()
        self._listener.listen(512)
        if not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        assert self._loop is not None
        assert self._listener is not None
        self._loop.remove_reader(self._listener)
        self._accepting = False
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                client, (_, port) = self._listener.accept()
            except OSError:  # nobody is left, or was gone before
                return
            if port in self._filler_ports:
                self._filler_ports.discard(port)
                client.close()
                continue
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections_made += 1
            link = _Link(self, client)
            self._links.add(link)
            link.start()

    async def _hold(self) -> None:
        assert self._loop is not None
        assert self._listener is not None
        self._stop_listening()
        self._listener.listen(0)
        for _ in range(600):  # more than the queue may have been long
            filler = socket.socket()
            filler.setblocking(False)
            try:
                async with asyncio.timeout(0.05):
                    await self._loop.sock_connect(filler, self.address)
            except TimeoutError:
                filler.close()
                return
            self._fillers.append(filler)
        raise RuntimeError("this kernel makes connections that nobody accepts")


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.upper() for name in names)
