"""The benchmark runner: its arithmetic, its traces, and that every scenario runs."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contract import Absent, AtMost, Case, Role, Run, Timed
from benchmarks.rounds import Effort, Outcome, Result, run_rounds, spread
from benchmarks.stock import Fresh, Shuffled
from benchmarks.toys import HeapStore, TimerStore
from benchmarks.trace_set import TRACES

ROOT = Path(__file__).resolve().parents[1]

THREE_ROUNDS = Effort(rounds=3, warmup=2, slice_seconds=0.0, fewest=10)


class Paced:
    """A case that takes the seconds it is told, round by round, and notes when it ran."""

    def __init__(self, name: str, log: list[str], *seconds: float, role: Role = "peer") -> None:
        self.log = log
        self.seconds = iter(seconds)
        self.name = name
        self.closed = False
        self.case = Case(name, role, self.open)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Run]:
        async def run(keys: Sequence[Any]) -> float:
            self.log.append(self.name)
            return next(self.seconds)

        yield run
        self.closed = True


def timed(*cases: Case | Absent, operations: int | None = 10) -> Timed:
    return Timed("toy", "a toy", lambda _: cases, lambda count: [0] * count, operations=operations)


def outcome(**ns: list[float]) -> Outcome:
    roles: dict[str, Role] = {"floor": "floor", "ours": "ours"}
    return Outcome("toy", "", [Result(name, roles.get(name, "peer"), times, 1) for name, times in ns.items()])


async def test_rounds_are_interleaved() -> None:
    """Every case runs once in each round, one after the other."""
    log: list[str] = []
    a, b = Paced("a", log, *[1.0] * 5), Paced("b", log, *[1.0] * 5)
    await run_rounds(timed(a.case, b.case), "", THREE_ROUNDS)
    assert log == ["a", "b"] * 5
    assert a.closed
    assert b.closed


async def test_first_rounds_are_dropped() -> None:
    """The rounds that warm up do not count, and what counts is nanoseconds per operation."""
    a = Paced("a", [], 99.0, 98.0, 1e-6, 2e-6, 3e-6)
    found = await run_rounds(timed(a.case), "", THREE_ROUNDS)
    assert found.results[0].ns == pytest.approx([100.0, 200.0, 300.0])


async def test_operations_follow_from_the_time_of_a_case() -> None:
    """A fast case does more operations in a run than a slow one, so that both fill the same slice of time."""
    fast, slow = Paced("fast", [], *[1e-5] * 7), Paced("slow", [], *[1e-3] * 7)
    effort = Effort(rounds=3, warmup=2, slice_seconds=0.01, fewest=10)
    found = await run_rounds(timed(fast.case, slow.case, operations=None), "", effort)
    assert [result.operations for result in found.results] == [pytest.approx(10_000, abs=1), pytest.approx(100, abs=1)]


async def test_a_peer_that_fails_is_named_and_the_others_go_on() -> None:
    """A peer that raises, at the start or later, costs its own row."""

    @asynccontextmanager
    async def broken() -> AsyncIterator[Run]:
        raise RuntimeError("no server")
        yield

    async def stops(keys: Sequence[Any]) -> float:
        raise OSError("gone")

    @asynccontextmanager
    async def breaking() -> AsyncIterator[Run]:
        yield stops

    good = Paced("good", [], *[1.0] * 5)
    missing = Absent("other", "No module named 'other'")
    cases = [missing, Case("broken", "peer", broken), Case("breaking", "peer", breaking), good.case]
    found = await run_rounds(timed(*cases), "", THREE_ROUNDS)
    assert [result.name for result in found.results] == ["good"]
    assert [absent.name for absent in found.absent] == ["other", "broken", "breaking"]
    assert "no server" in found.absent[1].reason
    assert "gone" in found.absent[2].reason


async def test_a_failure_of_ours_is_not_hidden() -> None:
    """An error in a case that is no peer's ends the run."""

    @asynccontextmanager
    async def broken() -> AsyncIterator[Run]:
        raise RuntimeError("ours")
        yield

    with pytest.raises(RuntimeError, match="ours"):
        await run_rounds(timed(Case("ours", "ours", broken)), "", THREE_ROUNDS)


def test_a_ratio_is_taken_inside_each_round() -> None:
    """A machine that slows down in a round slows both sides: the median of ratios, not the ratio of medians."""
    found = outcome(floor=[100.0, 1_000.0, 110.0], ours=[150.0, 1_500.0, 330.0])
    ours, floor = found.named("ours"), found.floor
    assert ours is not None
    assert floor is not None
    assert found.paired(ours, to=floor) == pytest.approx(1.5)
    assert median(ours.ns) / median(floor.ns) == pytest.approx(3.0)


def test_a_difference_is_taken_inside_each_round() -> None:
    """What is subtracted comes from the same round, before the division."""
    found = outcome(floor=[100.0, 200.0, 100.0], off=[10.0, 20.0, 10.0], ours=[60.0, 120.0, 80.0])
    ours, off = found.named("ours"), found.named("off")
    assert ours is not None
    assert found.paired(ours, minus=off) == pytest.approx(70.0)
    assert found.paired(ours, minus=off, to=found.floor) == pytest.approx(0.5)


def test_best_peer_is_the_fastest_of_the_peers() -> None:
    """Neither the floor nor ours competes for it."""
    found = outcome(floor=[1.0], ours=[2.0], slow=[9.0], quick=[5.0])
    assert found.best_peer is not None
    assert found.best_peer.name == "quick"
    assert outcome(floor=[1.0], ours=[2.0]).best_peer is None


@pytest.mark.parametrize(("limit", "reached"), [(1.5, True), (1.49, False)])
def test_a_target_is_reached_up_to_its_limit(limit: float, reached: bool) -> None:
    """A number equal to the limit reaches it."""
    found = outcome(floor=[100.0], ours=[150.0])
    verdict = found.verdict(found.results[1], AtMost(limit, to="floor"))
    assert verdict["value"] == pytest.approx(1.5)
    assert verdict["reached"] is reached


def test_a_target_against_an_absent_peer_is_neither_reached_nor_missed() -> None:
    """What was not measured is not judged."""
    found = outcome(floor=[100.0], ours=[150.0])
    assert found.verdict(found.results[1], AtMost(1.0, to="async-lru"))["reached"] is None
    assert found.verdict(found.results[1], AtMost(1.0, minus="async-lru"))["reached"] is None


def test_a_target_names_a_peer_without_its_version() -> None:
    """The beginning of a case's name is enough, as long as one case alone begins with it."""
    found = Outcome(
        "toy", "", [Result(name, "peer", [1.0], 1) for name in ("cashews 7.6", "theine 2", "theine 2 sync")]
    )
    assert found.named("cashews") is found.results[0]
    assert found.named("theine 2") is found.results[1]
    assert found.named("theine") is None


def test_an_outcome_survives_json() -> None:
    """What a worker process prints comes back equal."""
    found = outcome(floor=[100.0, 101.0], ours=[150.0, 151.0])
    found.results[1].targets = (AtMost(1.5, to="floor"),)
    found.absent.append(Absent("other", "not here"))
    assert Outcome.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_spread_is_the_distance_of_the_quartiles() -> None:
    """One wild round does not move it."""
    assert spread([1.0, 2.0, 3.0, 4.0, 1_000.0]) == pytest.approx(2.0)
    assert spread([5.0]) == 0.0


def test_shuffled_keys_come_equally_often() -> None:
    """Each lap has every key once, in an order of its own."""
    keys = Shuffled(range(10))
    first, second = keys(10), keys(10)
    assert sorted(map(int, map(str, first + second))) == sorted([*range(10)] * 2)
    assert first != second


def test_fresh_keys_are_never_the_same() -> None:
    """No two runs share a key."""
    keys = Fresh()
    assert len({*keys(100), *keys(100)}) == 200


@pytest.mark.parametrize("name", TRACES)
def test_traces_are_the_same_every_time(name: str) -> None:
    """A trace has the length asked for and does not change from run to run."""
    first = list(TRACES[name](2_000))
    assert len(first) == 2_000
    assert first == list(TRACES[name](2_000))


def test_recorded_trace_is_as_documented() -> None:
    """The committed trace has the accesses and names that its page tells, in less than 300 KB."""
    trace = TRACES["stdlib names"](10**9)
    page = (ROOT / "benchmarks" / "traces" / "README.md").read_text(encoding="utf-8")
    assert f"{len(trace):,} accesses" in page
    assert f"{len(set(trace)):,} names" in page
    assert (ROOT / "benchmarks" / "traces" / "stdlib-names.u32.gz").stat().st_size < 300_000


async def test_toy_timer_store_forgets_what_it_is_told_to() -> None:
    """The reference rows store and expire, so that they are worth comparing with."""
    timers, heap = TimerStore(), HeapStore()
    for store in (timers, heap):
        await store.set("key", 1, ttl=600.0)
        await store.set("key", 2, ttl=600.0)
        assert len(store) == 1
        await store.aclose()


def run_script(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd=ROOT)


def scenario_names() -> list[str]:
    """One for each file: pytest collects them without importing a peer into this process."""
    files = (ROOT / "benchmarks" / "scenarios").glob("*.py")
    return sorted(file.stem for file in files if file.stem != "__init__")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", scenario_names())
def test_scenario_runs(name: str, tmp_path: Path) -> None:
    """Every scenario runs at a tiny size, every case gives positive numbers, and they are written as JSON."""
    path = tmp_path / "numbers.json"
    done = run_script("--tiny", "--only", name, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["environment"]["size"] == "tiny"
    assert document["scenarios"]
    for scenario in document["scenarios"]:
        assert scenario["scenario"] == name
        assert not [absent for absent in scenario["absent"] if absent["reason"].startswith("failed")]
        for case in scenario.get("cases", ()):
            assert min(case["ns"]) > 0
        for row in scenario.get("rows", ()):
            assert row["numbers"]


def test_list_names_the_scenarios() -> None:
    """``--list`` names each and measures nothing."""
    done = run_script("--list")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in scenario_names())


def test_an_unknown_scenario_is_refused() -> None:
    """The error names it and those that there are."""
    done = run_script("--only", "gte")
    assert done.returncode == 2
    assert "gte" in done.stderr
    assert "get_or_set" in done.stderr
