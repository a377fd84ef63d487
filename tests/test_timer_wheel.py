"""The timing wheel against a model that remembers every deadline."""

import math
import random
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asynccache._timer_wheel import TimerWheel

TICK = 0.0625
EVERYTHING = 10**9
CENTURY = 100 * 365.25 * 86_400.0

keys = st.sampled_from([f"key:{number}" for number in range(12)])
spans = st.one_of(
    st.floats(0.001, 10.0),
    st.floats(0.001, 5_000.0),
    st.floats(0.001, CENTURY),
    st.integers(0, 200).map(lambda ticks: ticks * TICK),
)


class Store:
    """Deadlines by key, and a wheel used the way a store uses it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.deadlines: dict[str, float] = {}
        self.expired: list[str] = []
        self.wheel = TimerWheel(self.deadlines.get, self.expire, now=now)

    def put(self, key: str, ttl: float, *, tell: bool = True) -> None:
        deadline = self.now + ttl
        earlier = self.deadlines.get(key)
        self.deadlines[key] = deadline
        if earlier is None or deadline < earlier:
            self.wheel.schedule(key, deadline, *((self.now,) if tell else ()))

    def expire(self, key: str) -> None:
        assert self.deadlines[key] <= self.now, "expired before its deadline"
        del self.deadlines[key]
        self.expired.append(key)

    def advance(self, now: float, budget: int = EVERYTHING) -> int:
        self.now = now
        return self.wheel.advance(now, budget)


class WheelMachine(RuleBasedStateMachine):
    """Any mixture of puts, moves, deletions and advances: nothing expires early, nothing stays too long."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.advanced_at = 0.0
        self.gone_by: dict[str, float] = {}

    @rule(key=keys, span=spans, tell=st.booleans())
    def put(self, key: str, span: float, tell: bool) -> None:
        store = self.store
        there = key in store.deadlines
        store.put(key, span, tell=tell)
        deadline = store.deadlines[key]
        told = store.now if tell else self.advanced_at
        by = deadline + TICK + (deadline - told) / 32
        self.gone_by[key] = max(by, self.gone_by[key]) if there else by

    @precondition(lambda self: self.store.deadlines)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        del self.store.deadlines[data.draw(st.sampled_from(sorted(self.store.deadlines)))]

    @rule(span=spans)
    def pass_time_unnoticed(self, span: float) -> None:
        self.store.now += span

    @rule(span=spans, budget=st.integers(0, 5))
    def advance_a_little(self, span: float, budget: int) -> None:
        store = self.store
        before = store.wheel.references
        now = store.now + span
        due = store.wheel.due(now)
        processed = store.advance(now, budget)
        self.advanced_at = store.now
        assert processed <= budget
        assert (processed > 0) == (due and budget > 0)
        assert before - processed <= store.wheel.references <= before

    @rule(span=spans)
    def advance(self, span: float) -> None:
        store = self.store
        store.advance(store.now + span)
        self.advanced_at = store.now
        assert not store.wheel.due(store.now)
        overdue = [key for key in store.deadlines if self.gone_by[key] <= store.now]
        assert not overdue

    @rule()
    def advance_to_the_next(self) -> None:
        due = self.store.wheel.next_due()
        if due is not None and due >= self.store.now:
            if due > self.store.now:
                assert not self.store.wheel.due(math.nextafter(due, -math.inf))
            assert self.store.advance(due) > 0
            self.advanced_at = due

    @rule()
    def rebuild(self) -> None:
        self.store.wheel.rebuild(self.store.deadlines)
        assert self.store.wheel.references == len(self.store.deadlines)

    @invariant()
    def the_alarm_is_set_in_time(self) -> None:
        due = self.store.wheel.next_due()
        assert (due is None) == (self.store.wheel.references == 0)
        if due is not None:
            assert self.store.wheel.due(due)
        for key in self.store.deadlines:
            assert due is not None
            assert due <= max(self.gone_by[key], self.advanced_at)  # a rebuilt wheel has work to do at once

    def teardown(self) -> None:
        self.store.advance(self.store.now + 10 * CENTURY)
        assert not self.store.deadlines
        assert self.store.wheel.references == 0
        assert self.store.wheel.next_due() is None


TestWheelMachine = WheelMachine.TestCase
TestWheelMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("seed", range(3))
def test_many_random_ttls_expire_on_time(seed: int) -> None:
    """Ten thousand mixed ttls: none early, each gone a thirty-second of its time and a tick after its deadline."""
    rng = random.Random(seed)
    store = Store(now=1_000_000 * rng.random())
    start = store.now
    ttls = {f"key:{number}": 10 ** rng.uniform(-2, 6) for number in range(10_000)}
    for key, ttl in ttls.items():
        store.put(key, ttl)
    while store.deadlines:
        store.advance(store.now + max(0.5, (store.now - start) * 0.1))
        passed = store.now - start
        late = [key for key in store.deadlines if ttls[key] * (1 + 1 / 32) + TICK <= passed]
        assert not late
    assert len(store.expired) == len(set(store.expired)) == 10_000


def test_a_day_of_deadlines_needs_few_wakings() -> None:
    """A hundred thousand deadlines spread over a day wake the loop a few hundred times, not a hundred thousand."""
    rng = random.Random(4)
    store = Store()
    for number in range(100_000):
        store.put(f"key:{number}", rng.uniform(1, 86_400))
    wakings = 0
    while (due := store.wheel.next_due()) is not None:
        store.advance(due)
        wakings += 1
    assert wakings < 64 + 32 * 15
    assert not store.deadlines


def test_a_clock_that_leaps_costs_the_buckets_it_passes() -> None:
    """A leap of a century, fifty thousand million ticks, is one advance over the references that there are."""
    store = Store()
    for number in range(1_000):
        store.put(f"key:{number}", number * 1_000.0)
    store.put("last", 2 * CENTURY)
    assert store.advance(CENTURY) == 1_000
    assert list(store.deadlines) == ["last"]


@pytest.mark.parametrize("deadline", [math.inf, 1.7e308, 1e30])
def test_what_never_comes_needs_no_reference(deadline: float) -> None:
    """A deadline that is infinite or past all reckoning gets no reference and raises nothing."""
    store = Store()
    store.wheel.schedule("key", deadline)
    assert store.wheel.references == 0
    assert store.wheel.next_due() is None


def test_a_key_that_came_to_live_for_ever_leaves_the_wheel() -> None:
    """A reference whose key has an infinite deadline by now is dropped when it fires."""
    store = Store()
    store.put("key", 1.0)
    store.deadlines["key"] = math.inf
    store.advance(10.0)
    assert store.wheel.references == 0
    assert not store.expired


def test_a_deadline_in_the_past_is_due_at_once() -> None:
    """A key scheduled after its deadline goes at the next advance, at the same time still."""
    store = Store(now=100.0)
    store.put("key", -5.0)
    assert store.wheel.due(100.0)
    store.advance(100.0)
    assert store.expired == ["key"]


def test_a_bucket_is_left_and_taken_up_again() -> None:
    """An advance stops in the middle of a bucket when its budget is spent, and the next goes on there."""
    store = Store()
    for number in range(10):
        store.put(f"key:{number}", 1.0)
    taken = []
    while store.wheel.due(2.0):
        taken.append(store.advance(2.0, 4))
    assert taken == [4, 4, 2]
    assert len(store.expired) == 10


def test_a_bucket_half_done_does_not_hold_up_what_is_added() -> None:
    """What is scheduled while a bucket is half done, even for its tick, expires too."""
    store = Store()
    for number in range(4):
        store.put(f"key:{number}", 1.0)
    store.advance(1.5, 2)
    store.put("new", -0.5)
    store.put("newer", 1.0)
    store.advance(1.5)
    assert sorted(store.deadlines) == ["newer"]
    store.advance(2.6)
    assert not store.deadlines


def test_a_later_deadline_costs_no_reference() -> None:
    """A key whose deadline moves away a thousand times keeps its one reference, and expires at the last deadline."""
    store = Store()
    for second in range(1_000):
        store.now = float(second)
        store.put("key", 5.0)
        store.advance(store.now)
    assert store.wheel.references == 1
    store.advance(999.0 + 5.0 - 0.001)
    assert not store.expired
    store.advance(999.0 + 5.3)
    assert store.expired == ["key"]


def test_time_left_is_reckoned_from_the_time_given() -> None:
    """On a wheel that nobody has turned for an hour, a second is still a second, not a thirty-second of the hour."""
    store = Store()
    store.put("far", 36_000.0)
    store.now = 3_600.0
    store.put("near", 1.0)
    due = store.wheel.next_due()
    assert due is not None
    assert 3_601.0 <= due <= 3_601.0 + TICK


def test_expiring_may_schedule_delete_and_rebuild() -> None:
    """What ``expire`` does to the wheel and to other keys while an advance runs takes effect, and nothing is lost."""
    deadlines = {f"key:{number}": 1.0 for number in range(8)}
    expired: list[str] = []

    def expire(key: str) -> None:
        del deadlines[key]
        expired.append(key)
        if len(expired) == 1:
            deadlines["child"] = 1.5
            wheel.schedule("child", 1.5)
            deadlines["again"] = 0.5
            wheel.schedule("again", 0.5)
        elif len(expired) == 2:
            deadlines.pop("key:0", None)
            wheel.rebuild(deadlines)

    wheel = TimerWheel(deadlines.get, expire, now=0.0)
    for key, deadline in list(deadlines.items()):
        wheel.schedule(key, deadline)
    wheel.advance(2.0, EVERYTHING)
    assert not deadlines
    assert len(expired) == len(set(expired)) == 9
    assert wheel.references == 0


def test_rebuilding_drops_the_stale_and_keeps_the_living() -> None:
    """After a rebuild there is one reference a living key, found its bucket within a budget, and due in its time."""
    store = Store()
    for generation in range(5):
        for number in range(100):
            store.deadlines.pop(f"key:{number}", None)
            store.put(f"key:{number}", 100.0 + generation)
    assert store.wheel.references == 500
    store.wheel.rebuild(store.deadlines)
    assert store.wheel.references == 100
    while store.wheel.due(0.0):
        assert store.advance(0.0, 16) <= 16
    assert store.wheel.references == 100
    due = store.wheel.next_due()
    assert due is not None
    assert due >= 104.0
    store.advance(104.0 * 33 / 32 + TICK)
    assert len(store.expired) == 100


def test_a_reference_is_small_and_its_memory_comes_back() -> None:
    """A reference takes at most twelve bytes, and none once it has fired."""
    names = [f"key:{number}" for number in range(50_000)]
    wheel = TimerWheel({}.get, lambda key: None, now=0.0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, name in enumerate(names):
            wheel.schedule(name, 600.0 + number * 0.001)
        full = tracemalloc.get_traced_memory()[0] - before
        wheel.advance(1_000.0, EVERYTHING)
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert full / len(names) <= 12
    assert left < 4_096


@pytest.mark.parametrize("resolution", [0.1, 0.0, -0.5, 3.0, math.inf, math.nan])
def test_ticks_are_exact(resolution: float) -> None:
    """A resolution that is no power of two, so that ticks would be rounded, is refused."""
    with pytest.raises(ValueError, match="power of two"):
        TimerWheel({}.get, lambda key: None, now=0.0, resolution=resolution)


@pytest.mark.parametrize("resolution", [2.0**-10, 0.5, 1.0, 8.0])
def test_the_resolution_is_the_unit_of_lateness(resolution: float) -> None:
    """With any resolution, a deadline near at hand is met within one tick."""
    wheel = TimerWheel({}.get, lambda key: None, now=0.0, resolution=resolution)
    wheel.schedule("key", resolution * 10.3)
    assert wheel.next_due() == resolution * 11
