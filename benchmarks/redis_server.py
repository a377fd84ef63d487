"""The Redis (or Valkey) server of a scenario's row: one of those that the examples start."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.contract import Absent
from examples import redis_server

__all__ = ["Server", "absent", "running"]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: where it is."""

    port: int
    host: str = redis_server.Server.host

    def url(self, database: int = 0) -> str:
        """The address of one of its sixteen databases."""
        return f"redis://{self.host}:{self.port}/{database}"


def absent(scenario: str) -> list[Absent]:
    """Empty when there is a server to start; else what a scenario shows in place of its rows."""
    try:
        redis_server.find_program()
    except redis_server.NoServer as error:
        return [Absent(scenario, str(error))]
    return []


@contextmanager
def running() -> Iterator[Server]:
    """A fresh, empty server, stopped at the end of the block.

    Raises:
        NoServer: There is no server program, or it does not start.
    """
    with redis_server.running() as started:
        yield Server(started.port)
