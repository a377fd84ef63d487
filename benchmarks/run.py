"""The runner script: ``python benchmarks/run.py --help``."""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script is given its own folder, not the one above

from rich.console import Console

from benchmarks import scenarios
from benchmarks.contract import Absent, Measured, Scenario, Size, Timed
from benchmarks.report import MeasuredOutcome, announce, environment, plot, table, write_json
from benchmarks.rounds import Effort, Outcome, run_rounds

_RESULTS = Path(__file__).parent / "results"
_FULL = Effort(rounds=15, warmup=2, slice_seconds=0.02)
_QUICK = Effort(rounds=5, warmup=1, slice_seconds=0.004)
_TINY = Effort(rounds=2, warmup=0, slice_seconds=0.0, fewest=20)
_WORKER_SECONDS = 600
_WIDTH_IN_A_PIPE = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything ran, whatever the numbers; 2 when a scenario of ours failed to run."""
    parser = argparse.ArgumentParser(description="Measures asynccache beside its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds and smaller sizes: about 20 s")
    parser.add_argument(
        "--tiny", action="store_true", help="only to see that everything runs; the numbers mean nothing"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scenarios (see --list)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds that count, instead of 15 (5 with --quick)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers; the plot goes beside it")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument("--worker", nargs=2, metavar=("SCENARIO", "PART"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    known = scenarios.load()
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH_IN_A_PIPE)
    if options.list:
        for scenario in known.values():
            said = f"not here: {scenario.reason}" if isinstance(scenario, Absent) else scenario.title
            console.print(f"[bold]{scenario.name:12}[/bold] {said}", highlight=False)
        return 0
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds needs at least one")
    strangers = sorted(set(options.only or ()) - set(known))
    if strangers:
        parser.error(f"no scenario is called {', '.join(strangers)}; there are {', '.join(known)}")
    size: Size = "tiny" if options.tiny else "quick" if options.quick else "full"
    usual = {"tiny": _TINY, "quick": _QUICK, "full": _FULL}[size]
    effort = Effort(options.rounds or usual.rounds, usual.warmup, usual.slice_seconds, usual.fewest)
    if options.worker:
        asked = known[options.worker[0]]
        if isinstance(asked, Absent):
            parser.error(asked.reason)
        print(json.dumps(_work(asked, options.worker[1], effort, size)))
        return 0

    chosen = [scenario for name, scenario in known.items() if not options.only or name in options.only]
    about = environment(effort.rounds, size)
    announce(console, about)
    started = time.monotonic()
    outcomes: list[Outcome | MeasuredOutcome] = []
    drawn: list[tuple[str, Outcome]] = []
    failed = False
    for scenario in chosen:
        begun = time.monotonic()
        try:
            if isinstance(scenario, Absent):
                console.print(f"[dim]not here: {scenario.name} ({scenario.reason})[/dim]\n")
            elif isinstance(scenario, Timed):
                for outcome in _timed(console, scenario, effort, size):
                    outcomes.append(outcome)
                    drawn.append((scenario.title, outcome))
                    table(console, outcome, scenario.title)
            else:
                measured = _measured(console, scenario, effort, size)
                outcomes.append(measured)
                table(console, measured, scenario.title)
        except Exception:
            console.print_exception()
            failed = True
        console.print(f"[dim]{scenario.name}: {time.monotonic() - begun:.1f} s[/dim]\n")

    whole = size == "full" and not options.only and not failed
    path: Path = options.json or _RESULTS / ("latest.json" if whole else "partial.json")
    write_json(path, about, outcomes)
    picture = path.with_suffix(".svg")
    drew = bool(drawn) and plot(picture, about, drawn)
    console.print(
        f"{time.monotonic() - started:.0f} s; numbers in {_shown(path)}"
        + (f", plot in {_shown(picture)}" if drew else ", no plot (matplotlib is not here)" if drawn else "")
    )
    return 2 if failed else 0


def _timed(console: Console, scenario: Timed, effort: Effort, size: Size) -> list[Outcome]:
    """The outcomes of every situation: here when there is one, else each in a process of its own."""
    outcomes = []
    for situation in scenario.situations:
        with console.status(f"{scenario.name} {situation}"):
            if len(scenario.situations) == 1:
                outcomes.append(asyncio.run(run_rounds(scenario, situation, effort)))
            else:
                outcomes.append(Outcome.from_json(_in_process(scenario.name, situation, effort, size)))
    return outcomes


def _measured(console: Console, scenario: Measured, effort: Effort, size: Size) -> MeasuredOutcome:
    outcome = MeasuredOutcome(scenario)
    for row in scenario.rows(size):
        if isinstance(row, Absent):
            outcome.absent.append(row)
            continue
        name, role = row
        with console.status(f"{scenario.name} {name}"):
            if scenario.isolated:
                numbers = _in_process(scenario.name, name, effort, size)
            else:
                numbers = dict(asyncio.run(_numbers(scenario, name, size)))
        outcome.rows.append((name, role, numbers))
    return outcome


async def _numbers(scenario: Measured, row: str, size: Size) -> dict[str, float]:
    return dict(await scenario.measure(row, size))


def _work(scenario: Scenario, part: str, effort: Effort, size: Size) -> dict[str, object]:
    """What a worker process prints: the outcome of one situation, or the numbers of one row."""
    if isinstance(scenario, Timed):
        return asyncio.run(run_rounds(scenario, part, effort)).as_json()
    return dict(asyncio.run(_numbers(scenario, part, size)))


def _in_process(scenario: str, part: str, effort: Effort, size: Size) -> dict[str, float]:
    """What a worker printed, which it does in its last line."""
    command = [sys.executable, __file__, "--worker", scenario, part, "--rounds", str(effort.rounds)]
    done = subprocess.run(
        command if size == "full" else [*command, f"--{size}"],
        capture_output=True,
        text=True,
        timeout=_WORKER_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{scenario}, {part}: the worker failed\n{done.stderr[-4000:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _shown(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    here = Path.cwd()
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else str(path)


if __name__ == "__main__":
    sys.exit(main())
