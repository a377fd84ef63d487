"""What the demonstrations stand on: a console, child processes, tables, and an end in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["blank_table", "child_process", "perform", "verdict"]

_TIME_TO_STOP = 5.0  # seconds that a child has to stop by itself
_LONGEST_LINE = 1 << 26


def perform(show: Callable[[Console], Awaitable[int]]) -> int:
    """The exit code of a demonstration, that of `show` unless it was stopped: SIGTERM and Ctrl-C end it in order."""
    terminal = sys.stdout.isatty()  # said here: without it FORCE_COLOR would put control codes into a log
    console = Console(force_terminal=terminal, width=None if terminal else 110, highlight=False)

    async def until_told_to_stop() -> int:
        here = asyncio.current_task()
        assert here is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
        return await show(console)

    try:
        return asyncio.run(until_told_to_stop())
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")
        return 130


@asynccontextmanager
async def child_process(
    script: str, *arguments: str, log: IO[bytes], cached: bool = True
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A script of this folder in a process of its own, gone at the end whatever happens.

    It has to stop when the pipe that is its stdin closes, as it does when this process is killed, too. It is in a
    session of its own, so that Ctrl-C in the terminal is for this process only, which stops its children in order.

    Args:
        script: The name of its file.
        arguments: Those of its command line.
        log: Where its stderr goes.
        cached: Whether its cache is switched on.
    """
    environment = {name: value for name, value in os.environ.items() if name != "ASYNCCACHE_DISABLE"}
    if not cached:
        environment["ASYNCCACHE_DISABLE"] = "1"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name(script)), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        limit=_LONGEST_LINE, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        await _stopped(process)


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


def blank_table(title: str, columns: Mapping[str, str]) -> Table:
    """A table without rows: labels on the left, a column of numbers for each name in its style, notes on the right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("")
    for name, style in columns.items():
        table.add_column(name, justify="right", style=style)
    table.add_column("", justify="right", style="dim")
    return table


def verdict(console: Console, complaints: Sequence[str], well: str) -> int:
    """Print what went wrong, or that all is well; the exit code."""
    console.print()
    for complaint in complaints:
        console.print(f"[bold red]WRONG[/bold red] {escape(complaint)}")
    if not complaints:
        console.print(f"[bold green]OK[/bold green] {well}")
    return 1 if complaints else 0
