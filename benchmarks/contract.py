"""What a scenario, a case, a peer and a target are."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "Ability",
    "Absent",
    "AtMost",
    "Case",
    "Column",
    "Keys",
    "Measured",
    "Open",
    "Peer",
    "Role",
    "Run",
    "Scenario",
    "Size",
    "Timed",
]

Run: TypeAlias = Callable[[Sequence[Any]], Awaitable[float]]
"""Does one operation for each of the keys and returns the seconds that it took; the loop stands inside, so that every
library is called in its own natural way and none pays for an adapter."""

Open: TypeAlias = Callable[[], AbstractAsyncContextManager[Run]]
"""The setup of a case, which gives its `Run`, and its teardown."""

Ability: TypeAlias = Callable[[Sequence[Any]], AbstractAsyncContextManager[Run]]
"""What a peer can do in one scenario: an `Open` that is told the keys to fill its cache with."""

Keys: TypeAlias = Callable[[int], Sequence[Any]]
"""The keys of one run of ``n`` operations; called off the clock."""

Size: TypeAlias = Literal["full", "quick", "tiny"]
"""How much to measure: tiny shows only that everything runs."""

Role: TypeAlias = Literal["floor", "ours", "peer", "reference"]


@dataclass(frozen=True, slots=True)
class AtMost:
    """A line of DESIGN 6: ``(this - minus) / to`` must not pass the limit.

    Attributes:
        limit: The bound, in the unit of the result where ``to`` is ``None``, else a ratio.
        to: The case that it is a ratio to; the ratio is taken inside each round.
        minus: The case that is subtracted first, inside each round.
    """

    limit: float
    to: str | None = None
    minus: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One way to do a scenario's work.

    Attributes:
        name: What the table calls it; unique in its scenario.
        role: Whose it is. Only peers compete for "best peer".
        open: Its setup and teardown.
        targets: What it must reach.
        notes: Facts beside the time, asked for after the last round.
    """

    name: str
    role: Role
    open: Open
    targets: tuple[AtMost, ...] = ()
    notes: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class Absent:
    """A peer that is not here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Another library.

    Attributes:
        distribution: Its name in the package index; the version is looked up by it.
        abilities: What it can do, by the scenario's name.
        remarks: How it was set up where that is not plain, by the scenario's name.
    """

    distribution: str
    abilities: Mapping[str, Ability]
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timed:
    """A scenario whose result is nanoseconds per operation, from interleaved rounds.

    Attributes:
        name: A short word for ``--only``.
        title: One line above the table.
        cases: The cases of one situation.
        keys: What each run is given.
        situations: Each runs in a process of its own when there are several: for what can be set once per process.
        within: What surrounds all rounds of a situation.
        operations: A fixed number of operations per run; ``None`` lets the runner choose one by the time a case takes.
    """

    name: str
    title: str
    cases: Callable[[str], Sequence[Case | Absent]]
    keys: Keys
    situations: tuple[str, ...] = ("",)
    within: Callable[[str], AbstractAsyncContextManager[None]] | None = None
    operations: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a measured row, with the bound that DESIGN 6 sets for our rows, where it sets one."""

    name: str
    unit: str
    digits: int = 0
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A scenario whose rows have several numbers each, taken once.

    Attributes:
        name: A short word for ``--only``.
        title: One line above the table.
        columns: The numbers of a row.
        rows: Their names with their roles; a name may be an `Absent`.
        measure: The numbers of one row, by column. A missing column is shown as a dash.
        isolated: Whether each row has a process of its own.
        best: Which end of the scale is good, to set the best number of a row in bold; ``None`` for no comparison.
    """

    name: str
    title: str
    columns: Callable[[], Sequence[Column]]
    rows: Callable[[Size], Sequence[tuple[str, Role] | Absent]]
    measure: Callable[[str, Size], Awaitable[Mapping[str, float]]]
    isolated: bool = False
    best: Literal["highest", "lowest"] | None = None


Scenario: TypeAlias = Timed | Measured
