"""What the acts of ``demo_redis.py`` showed: a table of each, or what is wrong with them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from redis_acts import Outage, Phase
from redis_worker import ITEMS, REPORT_SECONDS, TTL
from rich.table import Table
from stage import blank_table

__all__ = ["complaints", "rushed", "survived"]

_PHASES = {"before": "", "away": "bold red", "after": "bold green"}
_RESUMED_IN = 2.0  # seconds after the restart until hits must be back


def rushed(act: Sequence[dict[str, Any]]) -> Table:
    """The first act, process by process."""
    table = blank_table(
        f"{sum(one['callers'] for one in act):,} callers in {len(act)} processes ask at once for one cold key: "
        f"its function takes {REPORT_SECONDS:g} s",
        {**{f"#{place}": "" for place in range(1, len(act) + 1)}, "all": "bold green"},
    )

    def row(label: str, each: Sequence[int], note: str = "") -> None:
        table.add_row(label, *(f"{count:,}" for count in each), f"{sum(each):,}", note)

    row("callers", [one["callers"] for one in act])
    row("loads", [one["loads"] for one in act], "must be 1")
    row("waited here", [one["coalesced"] for one in act])
    row("had it from Redis", [one["hits"] for one in act])
    row("failed requests", [len(one["failed"]) for one in act], "must be 0")
    times = [one["ended"] - one["begun"] for one in act]
    total = max(one["ended"] for one in act) - min(one["begun"] for one in act)
    table.add_row("last answer", *map(_duration, times), _duration(total))
    return table


def survived(act: Outage, callers: int) -> Table:
    """The second act, phase by phase."""
    table = blank_table(
        f"{len(act.resumed)} processes with {callers} callers each, {len(ITEMS)} keys, ttl {TTL}; "
        f"the server is killed and stays away {act.phases[1].seconds:g} s",
        _PHASES,
    )

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
