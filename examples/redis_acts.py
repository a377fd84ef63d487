"""The two acts of ``demo_redis.py``, as the parent of the processes directs them."""

import asyncio
import json
import math
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from time import monotonic
from typing import Any

from crowd import percentile
from redis_server import Server
from redis_worker import LOOKS_A_SECOND, PATIENCE, REPORT_SECONDS, Schedule, until
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from stage import child_process

__all__ = ["Outage", "Phase", "Worker", "outage", "rush", "workers"]

_LEAD = 0.2  # seconds from an order to its start, so that all processes start together


# The processes


class Worker:
    """A process that runs ``redis_worker.py``, as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Know the process."""
        self.process = process

    async def ready(self) -> None:
        """Return when it has reached the server."""
        async with asyncio.timeout(PATIENCE * 4):
            await self._hear()

    async def act(self, heard: Callable[[dict[str, Any]], object], **order: Any) -> Any:
        """What it says when it has carried out the order; `heard` is told of what it says before."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        while "done" not in (said := await self._hear()):
            heard(said)
        return said["done"]

    def dismiss(self) -> None:
        """Let it stop by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process ended before its time")
        said: dict[str, Any] = json.loads(line)
        return said


@asynccontextmanager
async def workers(count: int, url: str, console: Console) -> AsyncIterator[list[Worker]]:
    """So many processes, ready for orders, that are gone at the end whatever happens."""
    with tempfile.TemporaryFile() as log:
        try:
            async with AsyncExitStack() as stack:
                crew = [
                    Worker(await stack.enter_async_context(child_process("redis_worker.py", url, log=log)))
                    for _ in range(count)
                ]
                await asyncio.gather(*(worker.ready() for worker in crew))
                yield crew
                for worker in crew:
                    worker.dismiss()  # all of them stop at once
        finally:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            if said:
                console.print("[yellow]The processes said:[/yellow]\n" + escape("\n".join(said.splitlines()[-40:])))


# The first act: one cold key


async def rush(crew: Sequence[Worker], callers: int, bar: Progress) -> list[dict[str, Any]]:
    """What each process did when all callers wanted one cold key at once."""
    task = bar.add_task(f"{callers:,} callers, one key", total=callers, now="")
    shares = [callers // len(crew) + (place < callers % len(crew)) for place in range(len(crew))]
    begin = monotonic() + _LEAD

    async def one(worker: Worker, share: int) -> dict[str, Any]:
        done: dict[str, Any] = await worker.act(lambda _: None, act="rush", callers=share, begin=begin)
        bar.advance(task, share)
        return done

    async with asyncio.timeout(REPORT_SECONDS + 4 * PATIENCE):
        return await asyncio.gather(*map(one, crew, shares))


# The second act: the server is killed, and comes back


@dataclass(frozen=True, slots=True)
class Phase:
    """What all processes did together in one part of the second act.

    Attributes:
        seconds: How long it lasted.
        latencies: Seconds that each request took that began in it, in order of size.
        failed: What went wrong with each that failed.
        counted: What functions and caches counted.
    """

    seconds: float
    latencies: Sequence[float]
    failed: Sequence[str]
    counted: Counter[str]

    def percentile(self, part: float) -> float:
        """The latency in seconds that this part (0 to 1) of the requests did not pass."""
        return percentile(self.latencies, part)


@dataclass(frozen=True, slots=True)
class Outage:
    """What the second act showed.

    Attributes:
        phases: Before, while the server was away, and after.
        resumed: Seconds from the restart until most requests were hits again, in each process; infinite for never.
    """

    phases: Sequence[Phase]
    resumed: Sequence[float]


async def outage(
    crew: Sequence[Worker], server: Server, bar: Progress, *, callers: int, seconds: float, away: float, seed: int
) -> Outage:
    """What the processes, with so many callers each, did while their server was killed and started again."""
    begin = monotonic() + _LEAD
    kill = begin + (seconds - away) / 2
    schedule = Schedule(begin, kill, kill + away, begin + seconds)
    task = bar.add_task("", total=seconds, now="")
    heard: list[list[dict[str, Any]]] = [[] for _ in crew]

    async def direct() -> None:
        _announce(bar, task, "the server is there")
        await until(schedule.kill)
        server.kill()
        _announce(bar, task, "[red]the server is killed")
        await until(schedule.restart)
        server.start()  # it holds up this loop for a moment; the callers are in other processes
        _announce(bar, task, "[green]the server is back")

    async def show_progress() -> None:
        while True:
            bar.update(task, completed=monotonic() - schedule.begin, now=_now(heard))
            await asyncio.sleep(0.1)

    showing = asyncio.create_task(show_progress())
    try:
        async with asyncio.timeout(seconds + 4 * PATIENCE):
            *done, _ = await asyncio.gather(
                *(
                    worker.act(
                        heard[place].append, act="traffic", callers=callers, seed=seed + place,
                        schedule=asdict(schedule),
                    )
                    for place, worker in enumerate(crew)
                ),
                direct(),
            )  # fmt: skip
    finally:
        showing.cancel()
    bar.update(task, completed=seconds)
    return Outage(_phases(done, schedule), [_resumed(looks, schedule.restart) for looks in heard])


def _announce(bar: Progress, task: TaskID, what: str) -> None:
    bar.update(task, description=what)
    if not bar.console.is_terminal:
        bar.console.print(f"{what} …")


def _now(heard: Sequence[Sequence[dict[str, Any]]]) -> str:
    """How it goes at the moment, from the last half second of what the processes said."""
    span = LOOKS_A_SECOND // 2
    if any(len(looks) <= span for looks in heard):
        return ""
    news = Counter[str]()
    for looks in heard:
        for name in ("answered", "hits"):
            news[name] += looks[-1][name] - looks[-1 - span][name]
    failed = sum(looks[-1]["failed"] for looks in heard)
    hits = news["hits"] / max(news["answered"], 1)
    return f"{news['answered'] / 0.5:,.0f} requests/s, {hits:.0%} hits, {failed} failed"


def _phases(done: Sequence[dict[str, Any]], schedule: Schedule) -> list[Phase]:
    """The parts of the act; a request belongs to that in which it began."""
    moments = schedule.begin, schedule.kill, schedule.restart, schedule.end
    phases = []
    for number, (start, stop) in enumerate(pairwise(moments)):
        last = stop == schedule.end
        latencies, failed, counted = [], [], Counter[str]()
        for one in done:
            asked = zip(one["begun"], one["took"], strict=True)
            latencies += [took for begun, took in asked if start <= begun and (begun < stop or last)]
            failed += [what for begun, what in one["failed"] if start <= begun and (begun < stop or last)]
            before, after = one["marks"][number : number + 2]
            counted.update({name: after[name] - before[name] for name in after})
        phases.append(Phase(stop - start, sorted(latencies), failed, counted))
    return phases


def _resumed(looks: Sequence[dict[str, Any]], restart: float) -> float:
    """Seconds from the restart until half of what a process answered between two looks were hits."""
    for before, after in pairwise(looks):
        answered, hits = after["answered"] - before["answered"], after["hits"] - before["hits"]
        if before["at"] >= restart and answered and 2 * hits >= answered:
            return float(after["at"] - restart)
    return math.inf
