"""A crowd of HTTP/1.1 clients on loopback, lean enough to leave the cores to the server.

Each of its connections sends a request, waits for the answer, and takes the next request from the common list: a closed
loop, in which nobody gives up. aiohttp and httpx would spend more on a request than the server does on a hit.
"""

import asyncio
import math
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from random import Random
from time import perf_counter

__all__ = ["Ask", "Outcome", "drive", "percentile", "room_for", "zipf"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a GET of a path, in a trace of its own when the server shall record it."""

    path: str
    trace: str | None = None

    def encoded(self, host: str) -> bytes:
        """What goes over the wire."""
        trace = f"traceparent: 00-{self.trace}-{self.trace[:16]}-01\r\n" if self.trace else ""
        return f"GET {self.path} HTTP/1.1\r\nhost: {host}\r\n{trace}\r\n".encode()


@dataclass(slots=True)
class Outcome:
    """What became of the crowd's requests.

    Attributes:
        seconds: From the first request sent to the last answer.
        latencies: Seconds from sending to the whole answer, of each request that was answered.
        statuses: How often each HTTP status came.
        broken: Connections that ended in the middle.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0

    @property
    def failed(self) -> int:
        """Requests that got something else than the 200 that they asked for."""
        return self.broken + self.statuses.total() - self.statuses[200]

    @property
    def per_second(self) -> float:
        """Requests answered in a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, part: float) -> float:
        """The latency in seconds that this part (0 to 1) of the requests did not pass."""
        return percentile(sorted(self.latencies), part)


def percentile(ordered: Sequence[float], part: float) -> float:
    """The number that this part (0 to 1) of them, in order of size, does not pass; not a number when there are none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def zipf(names: Sequence[str], count: int, *, skew: float, seed: int) -> list[str]:
    """Names drawn at random, the n-th of them with a weight of ``1 / n ** skew``; the same for the same seed."""
    weights = list(accumulate(1 / rank**skew for rank in range(1, len(names) + 1)))
    return Random(seed).choices(names, cum_weights=weights, k=count)


def room_for(connections: int) -> int:
    """How many connections this process may open, its limit of open files being raised as far as needed and allowed."""
    others = 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, max(1, soft - others))


async def drive(
    address: tuple[str, int],
    asks: Iterable[Ask],
    *,
    connections: int,
    at_most: float = math.inf,
    answered: Callable[[], object] = lambda: None,
) -> Outcome:
    """What became of the requests, when so many connections sent them at once.

    Args:
        address: Host and port.
        asks: The requests, sent in this order.
        connections: How many are opened, all before the first request goes out.
        at_most: Seconds after which no further request is sent; the ones under way are waited for.
        answered: Called after each answer.
    """
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    crowd = [_Connection(answered, outcome) for _ in range(connections)]
    for connection in crowd:
        await loop.create_connection(partial(_itself, connection), *address)
    host = f"{address[0]}:{address[1]}"
    begun = perf_counter()
    queue = _until(begun + at_most, (ask.encoded(host) for ask in asks))
    try:
        for connection in crowd:
            connection.take_from(queue)
        await asyncio.gather(*(connection.done for connection in crowd))
        outcome.seconds = perf_counter() - begun
    finally:
        for connection in crowd:
            connection.close()
    return outcome


def _itself(connection: "_Connection") -> "_Connection":
    return connection


def _until(end: float, requests: Iterator[bytes]) -> Iterator[bytes]:
    for request in requests:
        yield request
        if perf_counter() >= end:
            return


class _Connection(asyncio.Protocol):
    """One member of the crowd. Knows as much HTTP as our servers speak: every answer says its ``content-length``."""

    def __init__(self, answered: Callable[[], object], outcome: Outcome) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answered = answered
        self._outcome = outcome
        self._queue: Iterator[bytes] = iter(())
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._sent_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def take_from(self, queue: Iterator[bytes]) -> None:
        """Send the queue's next request, and go on until it is empty; then `done` is."""
        self._queue = queue
        self._send_next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end_of_head, body = self._received.partition(b"\r\n\r\n")
        if not end_of_head:
            return
        lower = head.lower()
        at = lower.find(b"\r\ncontent-length:")
        length = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length or self._sent_at is None:
            return
        self._outcome.latencies.append(perf_counter() - self._sent_at)
        self._outcome.statuses[int(head[9:12])] += 1
        self._received = b""
        self._sent_at = None
        self._answered()
        self._send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._outcome.broken += 1
        self._finish()

    def close(self) -> None:
        """Hang up."""
        self._finish()
        if self._transport is not None:
            self._transport.close()

    def _send_next(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return  # `connection_lost` comes, and counts
        request = next(self._queue, None)
        if request is None:
            self._finish()
            return
        self._sent_at = perf_counter()
        self._transport.write(request)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
