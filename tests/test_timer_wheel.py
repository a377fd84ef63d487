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
        if earlier is not None and deadline >= earlier:
            return
        wheel = self.wheel
        if tell and wheel.opens <= deadline < wheel.closes and self.now <= wheel.till:
            wheel.add(key)
        else:
            wheel.schedule(key, deadline, *((self.now,) if tell else ()))

    def compact(self, budget: int = EVERYTHING) -> bool:
        return self.wheel.compact(self.deadlines, budget)

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
        assert due or processed == 0
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
            references = self.store.wheel.references
            assert self.store.advance(due) > 0 or references == self.store.wheel.references  # an emptied bucket
            self.advanced_at = due

    @rule(budget=st.integers(1, 6))
    def compact_a_little(self, budget: int) -> None:
        before = self.store.wheel.references
        over = self.store.compact(budget)
        assert before - budget <= self.store.wheel.references <= before
        if over:
            assert not self.store.wheel._seen

    @rule()
    def compact(self) -> None:
        self.store.compact()  # the rest of a round, perhaps
        self.store.compact()
        living, firing = len(self.store.deadlines), len(self.store.wheel._firing)  # these it leaves as they are
        assert living <= self.store.wheel.references <= living + firing

    @precondition(lambda self: len(self.store.deadlines) > 6)
    @rule()
    def clear(self) -> None:
        self.store.deadlines.clear()
        self.store.wheel.clear()
        assert self.store.wheel.references == 0
        assert self.store.wheel.next_due() is None

    @invariant()
    def every_key_has_a_reference_in_time(self) -> None:
        wheel = self.store.wheel
        ticks = {tick: set(bucket) for tick, bucket in wheel._buckets.items()}
        ticks.setdefault(wheel._walking_at, set()).update(wheel._walking)
        assert sorted(wheel._ticks) == sorted(wheel._buckets)
        assert not wheel._walking or wheel._walking_at in wheel._buckets
        for key in self.store.deadlines:
            by = max(self.gone_by[key], self.advanced_at)
            assert key in wheel._firing or any(key in keys and tick * TICK <= by for tick, keys in ticks.items())

    @invariant()
    def the_alarm_is_set_in_time(self) -> None:
        due = self.store.wheel.next_due()
        assert due is not None or self.store.wheel.references == 0
        if due is not None:
            assert self.store.wheel.due(due)
        for key in self.store.deadlines:
            assert due is not None
            assert due <= max(self.gone_by[key], self.advanced_at)

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


def test_expiring_may_schedule_delete_and_clear() -> None:
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
            deadlines.clear()
            wheel.clear()
            deadlines["after"] = 0.25
            wheel.schedule("after", 0.25)

    wheel = TimerWheel(deadlines.get, expire, now=0.0)
    for key, deadline in list(deadlines.items()):
        wheel.schedule(key, deadline)
    wheel.advance(2.0, EVERYTHING)
    assert not deadlines
    assert len(expired) == len(set(expired)) == 3
    assert expired[-1] == "after"
    assert wheel.references == 0


def test_compacting_drops_the_stale_and_keeps_the_living() -> None:
    """After a round there is one reference a living key, none fires late, and no call looked at more than its share."""
    store = Store()
    for generation in range(5):
        for number in range(100):
            store.deadlines.pop(f"key:{number}", None)
            store.put(f"key:{number}", 100.0 + generation * 10)
    assert store.wheel.references == 500
    del store.deadlines["key:7"]
    before = 500
    while not store.compact(16):
        assert before - 16 <= store.wheel.references <= before
        before = store.wheel.references
    assert store.wheel.references == 99
    store.advance(140.0 - 0.01)
    assert not store.expired
    store.advance(140.0 * 33 / 32 + TICK)
    assert len(store.expired) == 99


def test_a_key_put_anew_while_its_reference_fires_is_not_lost() -> None:
    """A key whose kept reference fired during the round, and which then came back, keeps its new reference."""
    store = Store()
    store.put("key", 1.0)
    store.put("later", 60.0)
    assert not store.compact(1)  # the reference of "key" is seen and kept
    del store.deadlines["key"]
    store.advance(2.0)  # it fires for nothing
    store.put("key", 58.0)  # to the bucket of "later", which the walk comes to
    while not store.compact(1):
        pass
    store.advance(100.0)
    assert sorted(store.expired) == ["key", "later"]


def test_a_bucket_that_is_walked_fires_whole() -> None:
    """A bucket whose time comes in the middle of its walk loses neither what was looked at nor what was not."""
    store = Store()
    for number in range(10):
        store.put(f"key:{number}", 1.0)
    store.put("stale", 1.0)
    del store.deadlines["stale"]
    assert not store.compact(4)
    store.put("new", 1.0)
    store.advance(2.0)
    assert len(store.expired) == 11
    assert store.wheel.references == 0
    assert store.compact(4)


def test_a_bucket_that_fired_before_its_walk_is_passed_by() -> None:
    """A round goes on where the bucket that it comes to has fired since it began."""
    store = Store()
    store.put("first", 1.0)
    store.put("second", 2.0)
    store.put("third", 3.0)
    assert not store.compact(1)
    store.advance(2.5)
    assert store.expired == ["first", "second"]
    assert not store.compact(1)
    assert store.compact(1)
    assert store.wheel.references == 1


def test_what_is_scheduled_in_a_walked_bucket_stays() -> None:
    """A reference added during a round to a bucket behind, under or before the walk is kept."""
    store = Store()
    for number in range(3):
        store.put(f"key:{number}", 1.0 + number)
    assert not store.compact(2)
    for number in range(3):
        store.put(f"new:{number}", 1.0 + number)
    while not store.compact(1):
        pass
    store.advance(10.0)
    assert len(store.expired) == 6


def test_the_open_bucket_is_never_too_coarse() -> None:
    """Whether a key comes by `add` or by `schedule`, it goes at most a tick and 1/32 of its time too late."""
    rng = random.Random(9)
    store = Store()
    quick = 0
    for number in range(20_000):
        store.now += rng.choice((0.0, 0.001, 0.05, 3.0))
        key, ttl = f"key:{number}", rng.choice((0.5, 10.0, 520.0, 600.0, 86_400.0))
        store.put(key, ttl)
        wheel = store.wheel
        quick += wheel.opens <= store.now + 600.0 < wheel.closes and store.now <= wheel.till
        tick = wheel.closes if wheel.add.__self__[-1] == key else math.inf
        assert tick <= store.now + ttl + ttl / 32 + TICK
    assert quick > 1_000


def test_a_bucket_closes_when_it_is_too_near() -> None:
    """A bucket as wide as suits a day is no longer open to a deadline within it that is a minute away."""
    store = Store()
    store.put("day", 86_400.0)
    store.now = store.wheel.opens - 50.0
    store.put("minute", 60.0)
    store.advance(store.now + 60.0 * 33 / 32 + TICK)
    assert store.expired == ["minute"]


@pytest.mark.parametrize("ttl", [0.5, 3.9, 4.0, 10.0, 511.9, 512.0, 600.0, 86_400.0])
def test_a_run_of_one_ttl_shares_a_bucket(ttl: float) -> None:
    """Of a thousand keys with one ttl that come within a millisecond, nearly all go to the open bucket."""
    store = Store(now=77.7)
    quick = 0
    for number in range(1_000):
        store.now += 1e-6
        deadline = store.now + ttl
        wheel = store.wheel
        quick += wheel.opens <= deadline < wheel.closes and store.now <= wheel.till
        store.put(f"key:{number}", ttl)
    assert quick > 990 or ttl in (4.0, 512.0)  # just past the edge of an octave the bucket is soon too coarse


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
