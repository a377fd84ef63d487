"""The main job on real input: a slow source, a web service before it, and a crowd of 500 that wants it all at once.

``examples/fastapi_app.py`` runs in a process of its own, first with the cache switched off (``ASYNCCACHE_DISABLE=1``),
then with it. The crowd sends both the same requests. In the second act the service keeps what it knows in files, is
killed, and started again. The exit code is 0 when every request was answered, no module was computed twice with the
cache on, and none again after the restart.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

from crowd import Ask, Outcome, drive, room_for, zipf
from module_facts import BUSY_MODULES
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from stage import blank_table, child_process, perform, verdict

__all__ = ["main"]

Span = dict[str, Any]

_PATIENCE = 50.0  # seconds that one phase may take before it counts as failed


@dataclass(frozen=True, slots=True)
class Phase:
    """What one server did for the crowd.

    Attributes:
        outcome: What the crowd saw.
        computed: How often the source computed each module.
        cache: What the cache counted.
        spans: The spans of the requests that asked for a trace.
    """

    outcome: Outcome
    computed: Counter[str]
    cache: dict[str, int]
    spans: list[Span]

    @property
    def hit_ratio(self) -> float:
        """Requests answered from the cache, as a part of all that asked it."""
        answered = self.cache["hits"] + self.cache["stale_hits"]
        asked = answered + self.cache["misses"]
        return answered / asked if asked else 0.0

    @property
    def computed_twice(self) -> dict[str, int]:
        """The modules that were computed more than once."""
        return {name: count for name, count in self.computed.items() if count > 1}


@dataclass(frozen=True, slots=True)
class Restart:
    """What a service that keeps its entries in files did before and after it was killed.

    Attributes:
        computed_before: How often the source computed each module before.
        computed_after: How often it did so afterwards.
        started: Seconds from the new start to the first answer.
        first: What the crowd saw of the new process.
    """

    computed_before: Counter[str]
    computed_after: Counter[str]
    started: float
    first: Outcome


class Server:
    """A running ``fastapi_app.py``, ready for requests."""

    def __init__(self, process: asyncio.subprocess.Process, address: tuple[str, int]) -> None:
        """Know a process and where it listens."""
        self.process = process
        self.address = address

    async def get(self, path: str) -> Any:
        """What a GET of this path answers, decoded from JSON."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: {self.address[0]}\r\nconnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"GET {path}: {head[:40].decode() or 'no answer'}")
        return json.loads(body)


@asynccontextmanager
async def serving(*, cached: bool, folder: Path | None = None) -> AsyncIterator[Server]:
    """A server in a process of its own, on a free port of loopback; with a folder it keeps its entries there."""
    keeping = () if folder is None else ("--folder", str(folder))
    with tempfile.TemporaryFile() as log:
        try:
            async with child_process(
                "fastapi_app.py", "--port", "0", "--until-stdin-ends", "--log-level", "warning", *keeping,
                log=log, cached=cached,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                async with asyncio.timeout(_PATIENCE):
                    said_first = (await process.stdout.readline()).decode().strip()
                    host, colon, port = said_first.removeprefix("http://").rpartition(":")
                    if not colon:
                        raise RuntimeError("the server did not start")
                    server = Server(process, (host, int(port)))
                    await server.get("/stats")  # answered when its workers are up
                yield server
        except Exception as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            if said:
                error.add_note("The server said:\n" + "\n".join(said.splitlines()[-20:]))
            raise


async def phase(
    asks: Sequence[Ask], *, cached: bool, connections: int, at_most: float, bar: Progress, label: str
) -> Phase:
    """What a new server, its cache empty, does for the crowd."""
    task = bar.add_task(label, total=len(asks))
    async with serving(cached=cached) as server:
        if not bar.console.is_terminal:
            bar.console.print(f"{label}: {len(asks):,} requests to http://{server.address[0]}:{server.address[1]} …")
        async with asyncio.timeout(_PATIENCE):
            outcome = await drive(
                server.address, asks, connections=connections, at_most=at_most, answered=lambda: bar.advance(task)
            )
        bar.update(task, total=len(outcome.latencies))
        told = await server.get("/stats")
        return Phase(outcome, Counter(told["computed"]), told["cache"], await server.get("/spans"))


async def restart(names: Sequence[str], *, connections: int, bar: Progress) -> Restart:
    """What a service does that is killed when it has answered for each of the names, and started again."""
    asks = [Ask(f"/modules/{name}") for name in names]
    task = bar.add_task("killed and started again", total=2 * len(asks))
    if not bar.console.is_terminal:
        bar.console.print(f"killed and started again: {len(asks)} modules, kept in files …")
    with tempfile.TemporaryDirectory(prefix="asynccache-demo-") as folder:
        place = Path(folder) / "modules"

        async def ask(server: Server) -> tuple[Outcome, Counter[str]]:
            async with asyncio.timeout(_PATIENCE):
                outcome = await drive(
                    server.address, asks, connections=min(connections, len(asks)), answered=lambda: bar.advance(task)
                )
            return outcome, Counter((await server.get("/stats"))["computed"])

        async with serving(cached=True, folder=place) as server:
            _, before = await ask(server)
            server.process.kill()
            await server.process.wait()
        begun = perf_counter()
        async with serving(cached=True, folder=place) as server:
            await server.get(asks[0].path)
            started = perf_counter() - begun
            first, after = await ask(server)
    return Restart(before, after, started, first)


def plan(count: int, connections: int, seed: int) -> list[Ask]:
    """The crowd's requests; those of its first wave that want the most popular module ask for a trace."""
    random = Random(seed)
    asks = [Ask(f"/modules/{name}") for name in zipf(BUSY_MODULES, count, skew=1.0, seed=seed)]
    popular = Counter(asks[:connections]).most_common(1)[0][0]
    for place, ask in enumerate(asks[:connections]):
        if ask == popular:
            asks[place] = replace(ask, trace=f"{random.getrandbits(128) | 1 << 64:032x}")
    return asks


def results(off: Phase, on: Phase, *, connections: int, seed: int) -> Table:
    """Both phases side by side."""
    table = blank_table(
        f"{connections} connections, {len(BUSY_MODULES)} modules, the n-th asked for 1/n as often (seed {seed})",
        {"cache off": "", "cache on": "bold green"},
    )

    def row(label: str, before: str, after: str, note: str = "") -> None:
        table.add_row(label, before, after, note)

    def times(ratio: float) -> str:
        return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"

    a, b = off.outcome, on.outcome
    row("requests", f"{len(a.latencies):,}", f"{len(b.latencies):,}")
    row("seconds", f"{a.seconds:.2f}", f"{b.seconds:.2f}")
    more = f"{times(b.per_second / a.per_second)} as many"
    row("requests per second", f"{a.per_second:,.1f}", f"{b.per_second:,.1f}", more)
    for label, part in (("p50", 0.5), ("p99", 0.99)):
        before, after = a.percentile(part), b.percentile(part)
        row(f"latency, {label}", _duration(before), _duration(after), f"{times(before / after)} faster")
    table.add_section()
    row("loads of the source", f"{off.computed.total():,}", f"{on.computed.total():,}")
    row("  of the one loaded most", f"{max(off.computed.values()):,}", f"{max(on.computed.values()):,}", "must be 1")
    row("waited for another's load", "-", f"{on.cache['coalesced']:,}")
    row("hit ratio", "-", f"{on.hit_ratio:.1%}")
    row("failed requests", f"{a.failed:,}", f"{b.failed:,}", "must be 0")
    return table


def restarted(act: Restart) -> Table:
    """What the restart showed."""
    table = blank_table(
        "with its entries in files (file://): killed by SIGKILL, and started again",
        {"before": "", "after": "bold green"},
    )
    before, after = act.computed_before.total(), act.computed_after.total()
    table.add_row("loads of the source", f"{before:,}", f"{after:,}", "must be 0 after")
    table.add_row("requests", "", f"{len(act.first.latencies):,}", "one for each module")
    for label, part in (("p50", 0.5), ("p99", 0.99)):
        table.add_row(f"latency, {label}", "", _duration(act.first.percentile(part)))
    table.add_row("from the start to the first answer", "", _duration(act.started), "with Python and its imports")
    return table


def trace_tree(spans: Sequence[Span]) -> Tree | None:
    """The request that loaded the most popular module, as a tree of its spans, and one that waited for its load."""
    load = next((span for span in spans if span["name"] == "cache.load"), None)
    if load is None:
        return None
    loader = [span for span in spans if span["trace"] == load["trace"]]
    waiting = [span for span in spans if load["span"] in span["links"]]
    names = {load["span"]: "the load above"}
    tree = Tree("[bold]One request of the first wave[/bold], it happened to be the one that loads")
    _grow(tree, loader, names)
    if waiting:
        median = statistics.median_low(_length(span) for span in waiting)
        waiter = next(span for span in waiting if _length(span) == median)
        branch = Tree(f"[bold]and one of the {len(waiting)} others[/bold] that wanted the same at that moment")
        _grow(branch, [span for span in spans if span["trace"] == waiter["trace"]], names)
        both = Tree("", hide_root=True)
        both.add(tree)
        both.add(branch)
        return both
    return tree


def _grow(tree: Tree, spans: Sequence[Span], names: dict[str, str]) -> None:
    """Hang the spans of one trace under the tree, each where its parent is."""
    inside = {span["span"] for span in spans}
    begun = min(span["start"] for span in spans)
    shown = ("http.response.status_code", "cache.result", "cache.load.reason")

    def add(parent: Tree, span: Span) -> None:
        text = Text.assemble((span["name"], "bold cyan"), f"  {_duration(_length(span) / 1e9)}")
        text.append(f"  at {_duration((span['start'] - begun) / 1e9)}", "dim")
        for name in shown:
            if name in span["attributes"]:
                text.append(f"  {name.rpartition('.')[2]}={span['attributes'][name]}", "yellow")
        for link in span["links"]:
            if link in names:
                text.append(f"  linked to {names[link]}", "magenta")
        branch = parent.add(text)
        for child in sorted(spans, key=lambda other: other["start"]):
            if child["parent"] == span["span"]:
                add(branch, child)

    for span in spans:
        if span["parent"] not in inside:
            add(tree, span)


def _length(span: Span) -> int:
    return int(span["end"]) - int(span["start"])


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 0.001 or seconds == 0 else f"{seconds * 1e6:.0f} µs"


def complaints(off: Phase, on: Phase, act: Restart) -> list[str]:
    """What should not have happened; nothing, when all is well."""
    found = [
        f"{one.outcome.failed} requests failed with the cache {state}: "
        f"{dict(one.outcome.statuses)}, {one.outcome.broken} broken off"
        for state, one in (("off", off), ("on", on))
        if one.outcome.failed
    ]
    if on.computed_twice:
        found.append(f"computed more than once with the cache on: {on.computed_twice}")
    if act.first.failed:
        found.append(f"{act.first.failed} requests failed after the restart: {dict(act.first.statuses)}")
    if act.computed_after or not act.computed_before:
        found.append(
            f"computed {dict(act.computed_before)} before the restart, and {dict(act.computed_after)} after it"
        )
    if not on.computed:
        found.append("the source computed nothing with the cache on")
    return found


async def show(console: Console, options: argparse.Namespace) -> int:
    """Both phases and what they showed; the exit code."""
    connections = room_for(options.connections)
    if connections < options.connections:
        console.print(f"the limit of open files allows {connections} connections only")
    asks = plan(max(options.requests, options.requests_off), connections, options.seed)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        off = await phase(
            asks[: options.requests_off], cached=False, connections=connections, at_most=options.seconds,
            bar=bar, label="cache off",
        )  # fmt: skip
        on = await phase(
            asks[: options.requests], cached=True, connections=connections, at_most=options.seconds,
            bar=bar, label="cache on ",
        )  # fmt: skip
        act = await restart(BUSY_MODULES, connections=connections, bar=bar)
    console.print()
    console.print(results(off, on, connections=connections, seed=options.seed))
    console.print(
        "The same requests in the same order; with the cache off (ASYNCCACHE_DISABLE=1) only the first of them, for "
        "brevity. Both begin cold. A connection asks again when it has its answer: latency is mostly the wait in line.",
        style="dim",
    )
    tree = trace_tree(on.spans)
    if tree is not None:
        console.print()
        console.print(tree)
    console.print()
    console.print(restarted(act))
    return verdict(
        console,
        complaints(off, on, act),
        "every request was answered; with the cache no module was computed twice, nor again after the restart",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20_000, help="with the cache on (default: %(default)s)")
    parser.add_argument("--requests-off", type=int, default=500, help="with the cache off (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="when a phase stops sending (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of the requests (default: %(default)s)")
    options = parser.parse_args(arguments)
    return perform(lambda console: show(console, options))


if __name__ == "__main__":
    sys.exit(main())
