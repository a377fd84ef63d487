"""Four processes behind one Redis: a thousand callers make one load, and an outage of the server fails no request.

In the first act all callers want the same cold key at the same moment. In the second, requests for some dozens of keys
go on while the server is killed, stays away, and is started again on its port, empty. The exit code is 0 when each
request of both acts was answered with the right value, the first act took one load, and in each process most requests
were hits again within two seconds of the restart.

The processes run ``redis_worker.py``, which is where the cache is used; ``redis_acts.py`` tells them what to do, and
``redis_tables.py`` what came of it.
"""

import argparse
import sys
from collections.abc import Sequence

from redis_acts import outage, rush, workers
from redis_server import NoServer, running
from redis_tables import complaints, rushed, survived
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from stage import perform, verdict

__all__ = ["main"]


async def show(console: Console, options: argparse.Namespace) -> int:
    """Both acts and what they showed; the exit code."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(),
        TextColumn("{task.fields[now]}", style="dim"),
    )  # fmt: skip
    try:
        with running() as server:
            console.print(f"{server.program.name} at {server.url}, which keeps nothing on the disk", style="dim")
            async with workers(options.processes, server.url, console) as crew:
                with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
                    first = await rush(crew, options.callers, bar)
                    second = await outage(
                        crew, server, bar,
                        callers=options.busy, seconds=options.seconds, away=options.away, seed=options.seed,
                    )  # fmt: skip
    except NoServer as error:
        console.print(f"[bold red]no server[/bold red] {escape(str(error))}")
        return 2
    console.print()
    console.print(rushed(first))
    console.print()
    console.print(survived(second, options.busy))
    console.print(
        "A caller asks, thinks for 20 ms, and asks again: where answers take longer, there are fewer requests. While "
        "the server is away each process loads for itself, one load per key at a time. It comes back empty.",
        style="dim",
    )
    return verdict(console, complaints(first, second), "one load for all, no request failed, and the hits came back")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--callers", type=int, default=1_000, help="of the first act, in all (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=25, help="callers a process in the second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the second act (default: %(default)s)")
    parser.add_argument("--away", type=float, default=3.0, help="seconds without the server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of the requests (default: %(default)s)")
    options = parser.parse_args(arguments)
    return perform(lambda console: show(console, options))


if __name__ == "__main__":
    sys.exit(main())
