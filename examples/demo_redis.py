"""Four processes behind one Redis: a thousand callers make one load, and an outage of the server fails no request.

In the first act all callers want the same cold key at the same moment. In the second, requests for some dozens of keys
go on while the server is killed, stays away, and is started again on its port, empty. The exit code is 0 when each
request of both acts was answered with the right value, the first act took one load, and in each process most requests
were hits again within two seconds of the restart.

The processes are this program, too: they take their orders from stdin and report on stdout, a line of JSON each.
"""

import argparse
import asyncio
import json
import logging
import math
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path
from random import Random
from time import monotonic  # one clock for all processes of a machine
from typing import Any

from crowd import zipf
from redis_server import NoServer, Server, running
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from asynccache import Cache

__all__ = ["main"]

_REPORT_SECONDS = 0.5  # what the function of the first act takes
_ITEMS = range(48)
_QUICKEST, _SLOWEST = 0.020, 0.050  # seconds that those of the second act take
_TTL = "1s"
_THINKING = 0.020  # seconds, on average, between an answer and the caller's next request
_RESUMED_IN = 2.0  # seconds after the restart until hits must be back
_WINDOW = 0.05  # seconds between two looks at the counters
_LEAD = 0.2  # seconds from an order to its start, so that all processes start together
_PATIENCE = 5.0  # seconds after which a request counts as failed
_TIME_TO_STOP = 3.0  # seconds that a process has to stop by itself
_LONGEST_LINE = 1 << 26
_PHASES = ("before", "away", "after")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen in the second act, by `time.monotonic`."""

    begin: float
    kill: float
    restart: float
    end: float


# What one process of the service does


class Service:
    """Two slow functions behind one cache.

    Attributes:
        runs: How often each of them ran.
    """

    def __init__(self, cache: Cache) -> None:
        """Memoize the functions."""
        self.cache = cache
        self.runs = runs = Counter[str]()

        @cache.memoize(key="report", ttl="10m", grace="1h")
        async def report() -> str:
            runs["report"] += 1
            await asyncio.sleep(_REPORT_SECONDS)
            return "all is well"

        @cache.memoize(key="price:{item}", ttl=_TTL, grace="1m")
        async def price(item: int) -> dict[str, int]:
            runs["price"] += 1
            await asyncio.sleep(_QUICKEST + (_SLOWEST - _QUICKEST) * item / len(_ITEMS))
            return {"item": item, "price": 100 + item}

        self.report = report
        self.price = price

    def counted(self) -> dict[str, int]:
        """What has been counted until now."""
        stats = self.cache.stats()
        return {
            "hits": stats.hits + stats.stale_hits,
            "coalesced": stats.coalesced,
            "errors": stats.errors,
            "loads": self.runs.total(),
        }

    async def rush(self, callers: int, begin: float) -> dict[str, Any]:
        """What so many callers got who asked for one key at once."""
        await _until(begin)
        begun = monotonic()
        answers = await asyncio.gather(*(self.report() for _ in range(callers)), return_exceptions=True)
        return {
            "begun": begun,
            "ended": monotonic(),
            "callers": callers,
            "failed": [repr(answer) for answer in answers if answer != "all is well"],
            **self.counted(),
        }

    async def traffic(self, callers: int, seed: int, schedule: Schedule) -> dict[str, Any]:
        """What became of the requests of so many callers, each of whom asks again when it has its answer."""
        begun: list[float] = []
        took: list[float] = []
        failed: list[tuple[float, str]] = []
        asking: dict[int, float] = {}

        async def call(caller: int) -> None:
            random = Random(seed * callers + caller)
            items = zipf([str(item) for item in _ITEMS], 2_000, skew=0.8, seed=random.getrandbits(32))
            await asyncio.sleep(random.random() * _THINKING)
            for item in map(int, cycle(items)):
                now = monotonic()
                if now >= schedule.end:
                    return
                asking[caller] = now
                try:
                    answer = await self.price(item)
                except Exception as error:  # whatever it is, a request has failed
                    failed.append((now, repr(error)))
                else:
                    if answer != {"item": item, "price": 100 + item}:
                        failed.append((now, f"a wrong answer: {answer!r}"))
                begun.append(now)
                took.append(monotonic() - now)
                del asking[caller]
                await asyncio.sleep(random.expovariate(1 / _THINKING))

        async def look() -> None:
            while True:
                _say(at=monotonic(), answered=len(begun), failed=len(failed), **self.counted())
                await asyncio.sleep(_WINDOW)

        await _until(schedule.begin)
        marks = [self.counted()]
        looking = asyncio.create_task(look())
        crowd = [asyncio.create_task(call(caller)) for caller in range(callers)]
        try:
            for moment in (schedule.kill, schedule.restart):
                await _until(moment)
                marks.append(self.counted())
            await _until(schedule.end)
            await asyncio.wait(crowd, timeout=_PATIENCE)
            marks.append(self.counted())
            failed += [(since, f"no answer in {_PATIENCE:g} s") for since in asking.values()]
        finally:
            for task in (*crowd, looking):
                task.cancel()
            await asyncio.wait([*crowd, looking])
        return {"begun": begun, "took": took, "failed": failed, "marks": marks}


async def serve(url: str) -> None:
    """One process: carry out the orders that come on stdin until it ends, as it does when the parent is killed, too."""
    logging.getLogger("asynccache").addHandler(logging.NullHandler())  # the table has the failures
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def obey() -> None:
        async with Cache(url, namespace="demo", ttl="10m") as cache:
            service = Service(cache)
            if not await cache.ping():
                raise RuntimeError("the server does not answer")
            _say(ready=True)
            while True:
                order = await orders.get()
                if order["act"] == "rush":
                    done = await service.rush(order["callers"], order["begin"])
                else:
                    done = await service.traffic(order["callers"], order["seed"], Schedule(**order["schedule"]))
                _say(done=done)

    async with asyncio.TaskGroup() as group:
        obeying = group.create_task(obey())
        while line := await reader.readline():
            orders.put_nowait(json.loads(line))
        obeying.cancel()


def _say(**said: Any) -> None:
    with suppress(BrokenPipeError):  # the parent is gone, and stdin says so in a moment
        print(json.dumps(said), flush=True)


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - monotonic()))


# What the parent sees of them


class Worker:
    """A process of the service, as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Know the process."""
        self.process = process

    async def ready(self) -> None:
        """Return when it has reached the server."""
        async with asyncio.timeout(_PATIENCE * 4):
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
    environment = {name: value for name, value in os.environ.items() if name != "ASYNCCACHE_DISABLE"}
    with tempfile.TemporaryFile() as log:
        try:
            async with AsyncExitStack() as stack:
                crew = []
                for _ in range(count):
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, str(Path(__file__)), "--serve", url,
                        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                        limit=_LONGEST_LINE, env=environment, start_new_session=True,
                    )  # fmt: skip
                    stack.push_async_callback(_stopped, process)
                    crew.append(Worker(process))
                await asyncio.gather(*(worker.ready() for worker in crew))
                yield crew
                for worker in crew:
                    worker.dismiss()  # all of them stop at once
        finally:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            if said:
                console.print("[yellow]The processes said:[/yellow]\n" + escape("\n".join(said.splitlines()[-40:])))


async def _stopped(process: asyncio.subprocess.Process) -> None:
    """Wait until the process is gone: asked kindly first, then less so."""
    assert process.stdin is not None
    process.stdin.close()
    for demand in (None, signal.SIGTERM, signal.SIGKILL):
        if demand is not None:
            with suppress(ProcessLookupError):
                process.send_signal(demand)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _TIME_TO_STOP)
            return


# The two acts


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
        return self.latencies[max(0, math.ceil(part * len(self.latencies)) - 1)] if self.latencies else math.nan


@dataclass(frozen=True, slots=True)
class Outage:
    """The second act.

    Attributes:
        phases: Before, while the server was away, and after.
        resumed: Seconds from the restart until most requests were hits again, in each process; infinite for never.
    """

    phases: Sequence[Phase]
    resumed: Sequence[float]


async def rush(crew: Sequence[Worker], callers: int, bar: Progress) -> list[dict[str, Any]]:
    """What each process did when all callers wanted one cold key at once."""
    task = bar.add_task(f"{callers:,} callers, one key", total=callers, now="")
    shares = [callers // len(crew) + (place < callers % len(crew)) for place in range(len(crew))]
    begin = monotonic() + _LEAD

    async def one(worker: Worker, share: int) -> dict[str, Any]:
        done: dict[str, Any] = await worker.act(lambda _: None, act="rush", callers=share, begin=begin)
        bar.advance(task, share)
        return done

    async with asyncio.timeout(_REPORT_SECONDS + 4 * _PATIENCE):
        return await asyncio.gather(*map(one, crew, shares))


async def outage(crew: Sequence[Worker], server: Server, options: argparse.Namespace, bar: Progress) -> Outage:
    """What the processes did while their server was killed and started again."""
    begin = monotonic() + _LEAD
    kill = begin + (options.seconds - options.away) / 2
    schedule = Schedule(begin, kill, kill + options.away, begin + options.seconds)
    task = bar.add_task("", total=options.seconds, now="")
    heard: list[list[dict[str, Any]]] = [[] for _ in crew]

    async def direct() -> None:
        _announce(bar, task, "the server is there")
        await _until(schedule.kill)
        await server.kill()
        _announce(bar, task, "[red]the server is killed")
        await _until(schedule.restart)
        await server.start()
        _announce(bar, task, "[green]the server is back")

    async def show_progress() -> None:
        while True:
            bar.update(task, completed=monotonic() - schedule.begin, now=_now(heard))
            await asyncio.sleep(0.1)

    showing = asyncio.create_task(show_progress())
    try:
        async with asyncio.timeout(options.seconds + 4 * _PATIENCE):
            *done, _ = await asyncio.gather(
                *(
                    worker.act(
                        heard[place].append, act="traffic", callers=options.busy, seed=options.seed + place,
                        schedule=asdict(schedule),
                    )
                    for place, worker in enumerate(crew)
                ),
                direct(),
            )  # fmt: skip
    finally:
        showing.cancel()
    bar.update(task, completed=options.seconds)
    return Outage(_phases(done, schedule), [_resumed(looks, schedule.restart) for looks in heard])


def _announce(bar: Progress, task: TaskID, what: str) -> None:
    bar.update(task, description=what)
    if not bar.console.is_terminal:
        bar.console.print(f"{what} …")


def _now(heard: Sequence[Sequence[dict[str, Any]]]) -> str:
    """How it goes at the moment, from the last half second of what the processes said."""
    span = round(0.5 / _WINDOW)
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


# What is shown


def rushed(act: Sequence[dict[str, Any]]) -> Table:
    """The first act, process by process."""
    table = Table(
        title=f"{sum(one['callers'] for one in act):,} callers in {len(act)} processes ask at once for one cold key: "
        f"its function takes {_REPORT_SECONDS:g} s",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("")
    for place in range(len(act)):
        table.add_column(f"#{place + 1}", justify="right")
    table.add_column("all", justify="right", style="bold green")
    table.add_column("", justify="right", style="dim")
    for label, name, note in (
        ("callers", "callers", ""),
        ("loads", "loads", "must be 1"),
        ("waited here", "coalesced", ""),
        ("had it from Redis", "hits", ""),
    ):
        each = [one[name] for one in act]
        table.add_row(label, *(f"{count:,}" for count in each), f"{sum(each):,}", note)
    each = [len(one["failed"]) for one in act]
    table.add_row("failed requests", *(f"{count:,}" for count in each), f"{sum(each):,}", "must be 0")
    times = [one["ended"] - one["begun"] for one in act]
    total = max(one["ended"] for one in act) - min(one["begun"] for one in act)
    table.add_row("last answer", *map(_duration, times), _duration(total))
    return table


def survived(act: Outage, options: argparse.Namespace) -> Table:
    """The second act, phase by phase."""
    table = Table(
        title=f"{options.processes} processes with {options.busy} callers each, {len(_ITEMS)} keys, ttl {_TTL}; "
        f"the server is killed and stays away {options.away:g} s",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("")
    for name, style in zip(_PHASES, ("", "bold red", "bold green"), strict=True):
        table.add_column(name, justify="right", style=style)
    table.add_column("", justify="right", style="dim")

    def row(label: str, shown: Callable[[Phase], str], note: str = "") -> None:
        table.add_row(label, *map(shown, act.phases), note)

    row("seconds", lambda phase: f"{phase.seconds:.1f}")
    row("requests", lambda phase: f"{len(phase.latencies):,}")
    row("requests per second", lambda phase: f"{len(phase.latencies) / phase.seconds:,.0f}")
    row("latency, p50", lambda phase: _duration(phase.percentile(0.5)))
    row("latency, p99", lambda phase: _duration(phase.percentile(0.99)), "waits for loads count")
    table.add_section()
    row("hits", lambda phase: f"{phase.counted['hits']:,}")
    row("loads", lambda phase: f"{phase.counted['loads']:,}", "runs of the functions")
    row("coalesced", lambda phase: f"{phase.counted['coalesced']:,}", "waited in its process")
    row("failures hidden", lambda phase: f"{phase.counted['errors']:,}", "stats().errors")
    row("failed requests", lambda phase: f"{len(phase.failed):,}", "must be 0")
    resumed = max(act.resumed)
    shown = _duration(resumed) if math.isfinite(resumed) else "never"
    table.add_row("hits resumed in", "", "", shown, f"slowest; at most {_RESUMED_IN:g} s")
    return table


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def complaints(first: Sequence[dict[str, Any]], second: Outage) -> list[str]:
    """What should not have happened; nothing, when all is well."""
    found = []
    loads = sum(one["loads"] for one in first)
    if loads != 1:
        found.append(f"the cold key took {loads} loads")
    for name, failed in (
        ("for the cold key", [what for one in first for what in one["failed"]]),
        *((f"({name})", phase.failed) for name, phase in zip(_PHASES, second.phases, strict=True)),
    ):
        if failed:
            what, count = Counter(failed).most_common(1)[0]
            found.append(f"{len(failed)} requests failed {name}, {count} of them by {what}")
    found += [
        f"nothing was asked while the server was {name}"
        for name, phase in zip(("there", "away", "back"), second.phases, strict=True)
        if not phase.latencies
    ]
    if not second.phases[0].counted["hits"]:
        found.append("there were no hits before the server was killed")
    if not second.phases[1].counted["errors"]:
        found.append("no process noticed that the server was away")
    late = [resumed for resumed in second.resumed if resumed > _RESUMED_IN]
    if late:
        found.append(f"hits did not resume within {_RESUMED_IN:g} s of the restart in {len(late)} processes")
    return found


async def show(console: Console, options: argparse.Namespace) -> int:
    """Both acts and what they showed; the exit code."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(),
        TextColumn("{task.fields[now]}", style="dim"),
    )  # fmt: skip
    async with running() as server:
        console.print(f"{server.program.name} at {server.url}, which keeps nothing on the disk", style="dim")
        async with workers(options.processes, server.url, console) as crew:
            with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
                first = await rush(crew, options.callers, bar)
                second = await outage(crew, server, options, bar)
    console.print()
    console.print(rushed(first))
    console.print()
    console.print(survived(second, options))
    console.print(
        "A caller asks, thinks for 20 ms, and asks again: where answers take longer, there are fewer requests. While "
        "the server is away each process loads for itself, one load per key at a time. It comes back empty.",
        style="dim",
    )
    found = complaints(first, second)
    console.print()
    for complaint in found:
        console.print(f"[bold red]WRONG[/bold red] {escape(complaint)}")
    if not found:
        console.print("[bold green]OK[/bold green] one load for all, no request failed, and the hits came back")
    return 1 if found else 0


async def _until_told_to_stop(console: Console, options: argparse.Namespace) -> int:
    """As `show`, and SIGTERM ends it as Ctrl-C does: in order."""
    here = asyncio.current_task()
    assert here is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
    return await show(console, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--callers", type=int, default=1_000, help="of the first act, in all (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=25, help="callers a process in the second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the second act (default: %(default)s)")
    parser.add_argument("--away", type=float, default=3.0, help="seconds without the server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of the requests (default: %(default)s)")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(serve(options.serve))
        return 0
    terminal = sys.stdout.isatty()  # said here: without it FORCE_COLOR would put control codes into a log
    console = Console(force_terminal=terminal, width=None if terminal else 110, highlight=False)
    try:
        return asyncio.run(_until_told_to_stop(console, options))
    except NoServer as error:
        console.print(f"[bold red]no server[/bold red] {escape(str(error))}")
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
