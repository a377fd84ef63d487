"""The runner's arithmetic: interleaved rounds, and medians of what was paired inside each.

A round runs every case once, one after the other (A B C A B C …), so that a machine that slows down slows all of them.
A ratio is taken between two cases of the *same* round; what is reported is the median of those ratios, which is not the
ratio of the medians. The first rounds warm up (the interpreter specialises, tables grow) and are dropped.
"""

import gc
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from benchmarks.contract import Absent, AtMost, Case, Role, Run, Timed

__all__ = ["Effort", "Outcome", "Result", "run_rounds"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: Rounds that count.
        warmup: Rounds before them that do not.
        slice_seconds: How long one run of one case should take; the number of its operations follows from it.
        fewest: The least number of operations in a run, however slow the case.
    """

    rounds: int
    warmup: int
    slice_seconds: float
    fewest: int = 100


@dataclass(slots=True)
class Result:
    """What one case took: nanoseconds per operation, a number for each round that counted."""

    name: str
    role: Role
    ns: list[float]
    operations: int
    targets: tuple[AtMost, ...] = ()
    notes: str = ""


@dataclass(slots=True)
class Outcome:
    """What the rounds of one scenario (in one situation) gave.

    Attributes:
        results: The cases that ran.
        absent: The peers that were not there, or failed, each with the reason.
    """

    scenario: str
    situation: str = ""
    results: list[Result] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)

    def named(self, name: str) -> Result | None:
        """The case of that name; a name may be cut short, as long as one case alone begins with it."""
        exact = [result for result in self.results if result.name == name]
        begins = exact or [result for result in self.results if result.name.startswith(name)]
        return begins[0] if len(begins) == 1 else None

    def paired(self, result: Result, *, to: Result | None = None, minus: Result | None = None) -> float:
        """The median over the rounds of ``(result - minus) / to``."""
        minuends = result.ns
        subtrahends = minus.ns if minus is not None else [0.0] * len(minuends)
        divisors = to.ns if to is not None else [1.0] * len(minuends)
        rounds = zip(minuends, subtrahends, divisors, strict=True)
        return median((minuend - subtrahend) / divisor for minuend, subtrahend, divisor in rounds)

    @property
    def floor(self) -> Result | None:
        """The case that everything is compared with."""
        return next((result for result in self.results if result.role == "floor"), None)

    @property
    def best_peer(self) -> Result | None:
        """The peer with the least median time."""
        return min((r for r in self.results if r.role == "peer"), key=lambda r: median(r.ns), default=None)

    def against(self, result: Result, target: AtMost) -> float | None:
        """What the target speaks of, or ``None`` when a case that it compares with did not run."""
        to = self.named(target.to) if target.to is not None else None
        minus = self.named(target.minus) if target.minus is not None else None
        if (target.to is not None and to is None) or (target.minus is not None and minus is None):
            return None
        return self.paired(result, to=to, minus=minus)

    def as_json(self) -> dict[str, Any]:
        """Everything measured, and what the table says of it."""
        floor, best = self.floor, self.best_peer
        cases = [
            {
                **asdict(result),
                "median_ns": median(result.ns),
                "spread_ns": spread(result.ns),
                "times_floor": self.paired(result, to=floor) if floor else None,
                "times_best_peer": self.paired(result, to=best) if best else None,
                "verdicts": [self.verdict(result, target) for target in result.targets],
            }
            for result in self.results
        ]
        return {
            "scenario": self.scenario,
            "situation": self.situation,
            "best_peer": best.name if best else None,
            "cases": cases,
            "absent": [asdict(absent) for absent in self.absent],
        }

    def verdict(self, result: Result, target: AtMost) -> dict[str, Any]:
        """The target, the number that it speaks of, and whether it was reached."""
        value = self.against(result, target)
        return {**asdict(target), "value": value, "reached": None if value is None else value <= target.limit}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Outcome":
        """The outcome that `as_json` wrote, in this process or in another."""
        results = [
            Result(
                case["name"],
                case["role"],
                case["ns"],
                case["operations"],
                tuple(AtMost(**target) for target in case["targets"]),
                case["notes"],
            )
            for case in data["cases"]
        ]
        return cls(data["scenario"], data["situation"], results, [Absent(**absent) for absent in data["absent"]])


def spread(numbers: Sequence[float]) -> float:
    """The distance between the quartiles: how far the rounds lie apart."""
    if len(numbers) < 2:
        return 0.0
    first, _, third = quantiles(numbers, n=4, method="inclusive")
    return third - first


async def run_rounds(timed: Timed, situation: str, effort: Effort) -> Outcome:
    """Run the cases of one situation, interleaved.

    A peer that raises is set aside with its error and the others go on: one that does not run on this machine costs its
    row, not the table. An error of ours is raised.
    """
    outcome = Outcome(timed.name, situation)
    async with AsyncExitStack() as stack:
        if timed.within is not None:
            await stack.enter_async_context(timed.within(situation))
        running: list[tuple[Case, Run, Result]] = []
        for case in timed.cases(situation):
            if isinstance(case, Absent):
                outcome.absent.append(case)
                continue
            try:
                run = await stack.enter_async_context(case.open())
                operations = timed.operations or await _calibrated(run, timed, effort)
            except Exception as error:
                if case.role != "peer":
                    raise
                outcome.absent.append(Absent(case.name, f"failed: {error!r}"))
                continue
            running.append((case, run, Result(case.name, case.role, [], operations, case.targets)))

        for number in range(effort.warmup + effort.rounds):
            gc.collect()
            for case, run, result in list(running):
                keys = timed.keys(result.operations)
                gc.collect(1)  # so that all begin alike; the old generation is the same for all, and takes its time
                try:
                    seconds = await run(keys)
                except Exception as error:
                    if case.role != "peer":
                        raise
                    outcome.absent.append(Absent(case.name, f"failed: {error!r}"))
                    running.remove((case, run, result))
                    continue
                if number >= effort.warmup:
                    result.ns.append(seconds / result.operations * 1e9)

        for case, _, result in running:
            result.notes = case.notes()
            outcome.results.append(result)
    return outcome


async def _calibrated(run: Run, timed: Timed, effort: Effort) -> int:
    """How many operations fill a slice, from a first and a second run (the first one is the coldest)."""
    await run(timed.keys(effort.fewest))
    seconds = await run(timed.keys(effort.fewest))
    return max(effort.fewest, int(effort.fewest * effort.slice_seconds / max(seconds, 1e-9)))
