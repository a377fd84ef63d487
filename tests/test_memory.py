"""The memory store alone: against a model, from several threads, under loops that come and go."""

import asyncio
import gc
import math
import random
import sys
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asynccache import Cache, ConfigError
from asynccache._life import Life
from asynccache._weighing import estimated_bytes
from asynccache.backend import StoreOptions
from asynccache.backends import memory
from asynccache.backends.memory import MemoryBackend, Removal, open_memory
from asynccache.clock import SystemClock
from asynccache.testing import TravellingClock

TICK = 0.0625
POLICIES = ["lru", "s3fifo"]
every_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep is not cut short because the machine is busy: its stopwatch stands still."""
    monkeypatch.setattr(memory, "stopwatch", lambda: 0.0)


class LoopClock:
    """A clock that travels, whose timers die with the loop that they were made under."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.epoch = 0.0
        self.monotonic = lambda: self.now
        self.timers: list[tuple[float, weakref.ref[Any]]] = []

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        handle = asyncio.get_running_loop().call_later(1e6, callback)
        self.timers.append((self.now + delay, weakref.ref(handle)))
        return handle

    @property
    def living(self) -> int:
        """How many timers there are whose loop is there."""
        return sum(handle() is not None for _, handle in self.timers)

    def travel(self, duration: float) -> int:
        """Let time pass, and run what is due on the way; how many timers ran."""
        end, ran = self.now + duration, 0
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            handle = first[1]()
            if handle is not None:
                handle._run()
                handle.cancel()
                ran += 1
        self.now = end
        return ran


def audit(store: MemoryBackend) -> None:
    """Nothing is kept about a key that is not there, and the sums are right."""
    keys = store.values.keys()
    for table in (store.deadlines, store.lives, store._other_ttls, store._born, store._weights):
        assert table.keys() <= keys
    assert store._born.keys().isdisjoint(store.lives)
    assert store.weight == sum(store._weights.values())
    if store.max_bytes is not None:
        assert store._weights.keys() == keys
        assert store.weight <= store.max_bytes
    if store.max_entries is not None:
        assert len(store) <= store.max_entries
    assert store._wheel.references <= 4 * len(keys) + 2 * 1_024


# Against a model

names = st.sampled_from([f"key:{number}" for number in range(9)])
spans = st.one_of(st.sampled_from([0.01, 1.0, 4.0, 60.0]), st.floats(0.001, 5_000.0))
weights = st.integers(0, 12)


class StoreMachine(RuleBasedStateMachine):
    """An LRU store is an ordered dictionary with times: it holds the same, and tells of each removal once."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = TravellingClock()
        self.model: OrderedDict[str, tuple[Any, float, float, float]] = OrderedDict()  # value, fresh, expires, gone by
        self.weighed: dict[str, int] = {}
        self.expected: list[tuple[str, str]] = []
        self.room = 6
        self.heaviest: int | None = None

    @initialize(heaviest=st.sampled_from([None, 20]), entries=st.sampled_from([1, 3, 6]))
    def open(self, heaviest: int | None, entries: int) -> None:
        self.room, self.heaviest = entries, heaviest
        self.store = MemoryBackend(
            max_entries=entries,
            max_bytes=heaviest,
            weigher=lambda key, value: value[1],
            on_removal=self.hear,
            clock=self.clock,
        )

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def hear(self, removal: Removal) -> None:
        key, value, cause = removal
        if cause == "expired":
            assert self.model[key][2] <= self.now, "expired before its time"
        elif cause == "size" and (key, cause) not in self.expected:
            assert key == next(iter(self.model)), "not the least recently used"
            assert len(self.model) > self.room or self.weight() > (self.heaviest or 0)
        else:
            self.expected.remove((key, cause))
            if cause == "replaced":
                return
        assert self.model.pop(key)[0] is value

    def weight(self) -> int:
        return 0 if self.heaviest is None else sum(value[1] for value, *_ in self.model.values())

    def heard(self) -> None:
        assert self.expected == []

    def write(self, key: str, weight: int, fresh: float, expires: float, put: Callable[[Any], bool]) -> None:
        value = (object(), weight)
        there = self.model.get(key)
        if self.heaviest is not None and weight > self.heaviest:
            if there is not None:
                self.expected.append((key, "size"))
            assert put(value) is False
            self.heard()
            return
        # The model first, as notices of what is evicted for it come before `put` returns.
        by = math.inf if expires == math.inf else expires + TICK + (expires - self.now) / 32
        if there is not None:
            self.expected.append((key, "replaced"))
            if there[2] <= expires:  # the reference that there is fires first, and moves on then
                by += (expires - self.now) / 32 + 2 * TICK + max(0.0, there[3] - there[2])
        self.model[key] = (value, fresh, expires, by)
        self.model.move_to_end(key)
        assert put(value) is True
        self.heard()

    @rule(key=names, span=st.none() | spans, weight=weights)
    def put(self, key: str, span: float | None, weight: int) -> None:
        end = math.inf if span is None else self.now + span
        self.write(key, weight, end, end, lambda value: self.store.put(key, value, self.now, span))

    @rule(key=names, weight=st.integers(21, 30))
    def put_too_much(self, key: str, weight: int) -> None:
        if self.heaviest is not None:
            self.write(key, weight, 0, 0, lambda value: self.store.put(key, value, self.now, None))

    @rule(
        key=names,
        span=spans | st.just(math.inf),
        grace=st.sampled_from([0.0, 5.0, math.inf]),
        tags=st.booleans(),
        weight=weights,
    )
    def put_life(self, key: str, span: float, grace: float, tags: bool, weight: int) -> None:
        life = Life(self.now, self.now + span, self.now + span + grace, tags=("tag",) if tags else ())

        def put(value: Any) -> bool:
            return self.store.put(key, value, self.now, 1.0, life)

        self.write(key, weight, life.fresh_until, life.expires_at, put)

    @rule(key=names, span=spans, grace=st.sampled_from([0.0, 9.0, math.inf]))
    def retime(self, key: str, span: float, grace: float) -> None:
        life = Life(self.now, self.now + span, self.now + span + grace)
        self.store.retime(key, life, self.now)
        if key in self.model:
            value, _, old, by = self.model[key]
            new = life.expires_at
            late = TICK + (new - self.now) / 32
            by = new + late if new < old else max(by, new) + 2 * late + max(0.0, by - old)
            self.model[key] = (value, life.fresh_until, new, by if new < math.inf else math.inf)

    @rule(key=names, weight=weights)
    def swap(self, key: str, weight: int) -> None:
        value = (object(), weight)
        if key in self.model:
            self.model[key] = (value, *self.model[key][1:])
            if self.heaviest is not None:
                self.model.move_to_end(key)
        self.store.swap(key, value)

    @rule(key=names)
    def use(self, key: str) -> None:
        self.store.used(key)
        if key in self.model:
            self.model.move_to_end(key)

    @rule(key=names)
    def remove(self, key: str) -> None:
        there = key in self.model
        if there:
            self.expected.append((key, "explicit"))
        assert self.store.remove(key) is there
        self.heard()

    @rule(span=spans)
    def travel(self, span: float) -> None:
        self.clock.travel(span)
        left = {key: entry for key, entry in self.model.items() if entry[3] < self.now}
        assert left == {}, "not gone in time"

    @rule(key=names)
    def look(self, key: str) -> None:
        there = self.model.get(key)
        found = self.store.look(key, self.now)
        if there is None or there[2] <= self.now:
            assert found is None
            assert key not in self.model
        else:
            assert found is not None
            assert found[0] is there[0]
            assert found[1].fresh_until == there[1]
            assert found[1].expires_at == there[2]
            assert found[1].created_at <= self.now + 1e-6

    @rule()
    def clear(self) -> None:
        if len(self.model) < self.room:
            return
        self.expected.extend((key, "explicit") for key in self.model)
        self.store.clear()
        self.heard()

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        assert dict(self.store.values) == {key: entry[0] for key, entry in self.model.items()}
        assert list(self.store.values) == list(self.model)
        assert len(self.store) == len(self.model)
        assert self.store.keys() == list(self.model)
        for key, (_, fresh, _, _) in self.model.items():
            assert self.store.deadlines.get(key, math.inf) in (fresh, -math.inf)
        assert self.store.weight == self.weight()
        audit(self.store)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@every_policy
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(names, st.integers(0, 40), st.sampled_from("psr")), max_size=60))
def test_bytes_are_never_too_many(policy: str, steps: list[tuple[str, int, str]]) -> None:
    """Whatever is put, swapped and removed, the weight is that of what is there, and the bound holds."""
    store = MemoryBackend(max_bytes=30, policy=policy, weigher=lambda key, value: value, clock=TravellingClock())
    for key, weight, step in steps:
        if step == "p":
            assert store.put(key, weight, 0.0, None) == (weight <= 30)
            assert (key in store.values) == (weight <= 30)
        elif step == "s":
            store.swap(key, weight)
        else:
            store.remove(key)
        assert store.weight == sum(store.values.values())
        audit(store)


# What nobody may say


@pytest.mark.parametrize(("weight", "error"), [(1.5, TypeError), ("1", TypeError), (None, TypeError), (-1, ValueError)])
def test_a_weigher_that_talks_nonsense_is_an_error(weight: Any, error: type[Exception]) -> None:
    """A weight that is no whole number, or negative, is raised, and the store is as it was."""
    given_weight: Any = 5
    store = MemoryBackend(max_bytes=100, weigher=lambda key, value: given_weight, clock=TravellingClock())
    store.put("key", "old", 0.0, None)
    given_weight = weight
    for change in (lambda: store.put("key", "new", 0.0, None), lambda: store.swap("key", "new")):
        with pytest.raises(error, match="weigher"):
            change()
    assert store.values == {"key": "old"}
    audit(store)


def test_a_weigher_that_fails_changes_nothing() -> None:
    """What a weigher raises reaches the writer, and the store is as it was."""
    store = MemoryBackend(max_bytes=100, weigher=lambda key, value: 1 // value, clock=TravellingClock())
    store.put("key", 1, 0.0, None)
    with pytest.raises(ZeroDivisionError):
        store.put("key", 0, 0.0, None)
    assert store.values == {"key": 1}
    audit(store)


@pytest.mark.parametrize("options", [{"max_entries": 0}, {"max_entries": True}, {"max_bytes": 1.5}, {"policy": "fifo"}])
def test_a_bound_that_is_none_is_an_error(options: dict[str, Any]) -> None:
    """A bound that is no positive whole number, or an unknown policy, is refused at once."""
    with pytest.raises(ConfigError):
        MemoryBackend(**options)


@pytest.mark.parametrize(
    ("url", "codec", "says"),
    [("memory://host", None, "no host"), ("memory:///path", None, "no path"), ("memory://", object(), "no codec")],
)
def test_a_url_that_says_too_much_is_an_error(url: str, codec: Any, says: str) -> None:
    """A host, a path or a codec is nothing to a store in memory."""
    with pytest.raises(ConfigError, match=says):
        open_memory(StoreOptions(urlsplit(url), {}, SystemClock(), codec))


def test_a_url_opens_a_store() -> None:
    """The options of a URL are those of the store."""
    query = {"max_entries": "7", "max_bytes": "900", "policy": "s3fifo", "copy": "true", "ttl": "2s"}
    store = open_memory(StoreOptions(urlsplit("memory://"), query, SystemClock()))
    assert repr(store) == "MemoryBackend(max_entries=7, max_bytes=900, entries=0)"
    assert store.copies
    assert store.max_ttl == 2.0
    assert store.on_removal is None


# Values


def test_copies_are_nobody_elses() -> None:
    """With ``copy`` a value is copied on its way in and each time on its way out."""
    store = MemoryBackend(copy=True, clock=TravellingClock())
    given_value = {"list": [1]}
    store.put("key", given_value, 0.0, None)
    given_value["list"].append(2)
    first, second = store.look("key", 0.0), store.look("key", 0.0)
    assert first is not None
    assert second is not None
    first[0]["list"].append(3)
    assert second[0] == {"list": [1]}
    assert store.values["key"] == {"list": [1]}


@pytest.mark.parametrize("lives", [None, 1.0, 10.0])
def test_the_longest_ttl_of_a_store(lives: float | None) -> None:
    """Whatever it is stored with, no entry is kept longer than the store's own ttl."""
    clock = TravellingClock()
    store = MemoryBackend(ttl=5.0, clock=clock)
    now = clock.monotonic()
    store.put("plain", 1, now, lives)
    ends = math.inf if lives is None else now + lives
    store.put("lively", 2, now, None, Life(now, ends, ends + 60.0, tags=("tag",), stamp=3))
    least = now + min(5.0, lives or 5.0)
    for key in ("plain", "lively"):
        found = store.look(key, now)
        assert found is not None
        assert (found[1].fresh_until, found[1].expires_at) == (least, least)
    found = store.look("lively", now)
    assert found is not None
    assert (found[1].tags, found[1].stamp) == (("tag",), 3)


def test_when_an_entry_was_made_is_remembered() -> None:
    """Among any ttls, and with none, the moment of storing is known exactly enough."""
    clock = TravellingClock()
    store = MemoryBackend(clock=clock)
    for number, ttl in enumerate([10.0, None, 10.0, 7.0, 10.0, None, 3_600.0]):
        clock.travel(1.25)
        store.put(f"key:{number}", number, clock.monotonic(), ttl)
        for key in (f"key:{number}",):
            found = store.look(key, clock.monotonic())
            assert found is not None
            assert found[1].created_at == pytest.approx(clock.monotonic())


def test_the_usual_ttl_costs_nothing_to_remember() -> None:
    """Whatever the first ttl was, that of most entries is not kept for each, and all moments of storing stay known."""
    clock = TravellingClock()
    store = MemoryBackend(clock=clock)
    made = {}
    for number in range(9_000):
        key = f"key:{number}"
        ttl = 5_000.0 if number < 100 else 7_000.0 if number % 50 == 0 else 6_000.0
        clock.travel(0.1)
        now = made[key] = clock.monotonic()
        if number % 100 == 7:
            store.put(key, number, now, None, Life(now, now + ttl, now + ttl, tags=("tag",)))
        else:
            store.put(key, number, now, ttl)
        if number in (50, 400, 8_999):
            for each, moment in made.items():
                found = store.look(each, now)
                assert found is not None
                assert found[1].created_at == pytest.approx(moment)
    assert store._usual_ttl == 6_000.0
    assert len(store._other_ttls) < 300


def test_a_ttl_stays_the_usual_one_while_most_have_it() -> None:
    """Hundreds of entries with ttls of their own, each another, do not change what is usual."""
    store = MemoryBackend(clock=TravellingClock())
    for number in range(200):
        store.put(f"key:{number}", number, 0.0, 600.0)
    for number in range(500):
        store.put(f"other:{number}", number, 0.0, 60.0 + number)
    assert store._usual_ttl == 600.0
    assert len(store._other_ttls) == 500


@every_policy
def test_a_late_use_harms_nobody(policy: str) -> None:
    """A use of a key that is gone is nothing."""
    store = MemoryBackend(policy=policy, clock=TravellingClock())
    store.used("gone")
    store.swap("gone", 1)
    store.retime("gone", Life(0.0), 0.0)
    assert not store.remove("gone")
    assert store.values == {}


# Listeners


def told(**options: Any) -> tuple[MemoryBackend, list[Removal], TravellingClock]:
    """A store, what its listener has heard, and its clock."""
    heard: list[Removal] = []
    clock = TravellingClock()
    return MemoryBackend(on_removal=heard.append, clock=clock, **options), heard, clock


@every_policy
def test_each_removal_has_one_notice(policy: str) -> None:
    """Deleted, overwritten, evicted, refused, expired by the wheel or by a look, cleared: told once, by its cause."""
    store, heard, clock = told(max_entries=3, max_bytes=90, weigher=lambda key, value: value, policy=policy)

    def put(key: str, value: int, ttl: float | None = None) -> None:
        store.put(key, value, clock.monotonic(), ttl)

    put("deleted", 1)
    store.remove("deleted")
    put("over", 1)
    put("over", 2)
    put("over", 91)
    put("swept", 3, 1.0)
    clock.travel(2)
    put("seen", 4, 1.00001)
    clock.travel(1.00002)
    store.look("seen", clock.monotonic())
    put("cleared", 5)
    store.clear()
    store.aclose_now()
    assert heard == [
        ("deleted", 1, "explicit"), ("over", 1, "replaced"), ("over", 2, "size"), ("swept", 3, "expired"),
        ("seen", 4, "expired"), ("cleared", 5, "explicit"),
    ]  # fmt: skip
    for number in range(5):
        put(f"key:{number}", 1)
    assert [cause for *_, cause in heard[6:]] == ["size", "size"]
    assert (store.evictions, store.expirations) == (3, 2)


async def test_closing_lets_go_with_a_notice() -> None:
    """A cache that closes its store tells of each entry, so that what is kept can be closed."""
    heard: list[Removal] = []
    store = MemoryBackend(on_removal=heard.append)
    store.put("key", "connection", store.clock.monotonic(), 60.0)
    store.aclose_now()
    store.aclose_now()
    assert heard == [Removal("key", "connection", "explicit")]


def test_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises is logged; the change is made, and others are told."""
    heard: list[str] = []

    def listen(removal: Removal) -> None:
        heard.append(removal.key)
        raise RuntimeError("no")

    store = MemoryBackend(max_entries=1, on_removal=listen, clock=TravellingClock())
    assert store.on_removal is listen
    for number in range(4):
        assert store.put(f"key:{number}", number, 0.0, None)
    assert heard == ["key:0", "key:1", "key:2"]
    assert len(caplog.records) == 3


def test_a_listener_that_is_interrupted_leaves_the_rest_for_the_next() -> None:
    """An exception that must not be held up passes, and no notice is lost or given twice."""
    heard: list[str] = []

    def listen(removal: Removal) -> None:
        heard.append(removal.key)
        if removal.key == "b":
            raise KeyboardInterrupt

    store = MemoryBackend(on_removal=listen, clock=TravellingClock())
    for key in "abc":
        store.put(key, key, 0.0, None)
    with pytest.raises(KeyboardInterrupt):
        store.clear()
    assert store.values == {}
    store.put("d", 1, 0.0, None)
    assert heard == ["a", "b", "c"]


def test_a_listener_may_use_the_store() -> None:
    """A listener looks, writes and removes as it likes: the store is in order when it is called."""
    heard: list[Removal] = []

    def listen(removal: Removal) -> None:
        heard.append(removal)
        audit(store)
        assert store.look(removal.key, 0.0) is None
        if removal.cause == "size" and len(removal.key) == 1:
            store.put(f"late:{removal.key}", removal.value, 0.0, None)
            store.remove(f"late:{removal.key}")

    store = MemoryBackend(max_entries=2, on_removal=listen, clock=TravellingClock())
    for key in "abcd":
        store.put(key, key, 0.0, None)
    store.clear()
    assert store.values == {}
    left = [removal.key for removal in heard]
    assert sorted(key for key in left if len(key) == 1) == ["a", "b", "c", "d"]
    assert len(left) == len(set(left)) > 6


# References


@pytest.mark.parametrize("churn", ["overwrite", "retime", "evict", "delete"])
@every_policy
def test_references_do_not_pile_up(churn: str, policy: str) -> None:
    """Two hundred entries that change a hundred thousand times, with an hour to live, keep the wheel small."""
    rng = random.Random(3)
    clock = TravellingClock()
    store = MemoryBackend(max_entries=200, policy=policy, clock=clock)
    most = 0
    for step in range(50_000):
        if not step % 100:
            clock.travel(0.01)
        now = clock.monotonic()
        key = f"key:{step if churn == 'evict' else rng.randrange(200)}"
        if churn == "delete":
            store.remove(key)
        end = now + 3_600.0 + rng.uniform(-900.0, 900.0)
        if churn == "retime" and key in store.values:
            store.retime(key, Life(now, end, end), now)
        else:
            store.put(key, step, now, end - now)
        if not step % 50:
            most = max(most, store._wheel.references)
    assert most <= 1.25 * (4 * 200 + 1_024)
    clock.travel(6_000)
    assert len(store) == 0
    assert store._wheel.references == 0
    store.put("key", 1, clock.monotonic(), 1.0)
    store.clear()
    assert store._wheel.references == len(store) == 0


def test_the_same_deadlines_anew_need_no_references() -> None:
    """A thousand keys overwritten with the same ttl a hundred times keep one reference each."""
    clock = TravellingClock()
    store = MemoryBackend(clock=clock)
    for _ in range(100):
        clock.travel(0.5)
        for number in range(1_000):
            store.put(f"key:{number}", None, clock.monotonic(), 3_600.0)
    assert store._wheel.references == 1_000
    assert store._tidy_in > 0


def test_evicted_keys_are_let_go() -> None:
    """The keys of evicted entries are not kept in memory until their time would have come."""

    class Key(str):
        __slots__ = ("__weakref__",)

    store = MemoryBackend(max_entries=10, clock=TravellingClock())
    ghosts = []
    for number in range(10_000):
        key = Key(f"key:{number}")
        ghosts.append(weakref.ref(key))
        store.put(key, None, 1_000.0, 3_600.0)
    del key
    gc.collect()
    assert sum(ghost() is not None for ghost in ghosts) < 1_600


def test_a_wheel_that_stood_still_knows_the_time() -> None:
    """After an hour in which nothing was due, an entry of a second goes after a second."""
    clock = TravellingClock()
    store = MemoryBackend(clock=clock)
    store.put("long", 1, clock.monotonic(), 36_000.0)
    clock.travel(3_500.0)
    store.put("short", 1, clock.monotonic(), 1.0)
    clock.travel(1.0 + 2 * TICK)
    assert list(store.values) == ["long"]


# Alarms


@pytest.fixture
def in_loops() -> tuple[MemoryBackend, LoopClock]:
    """A store and a clock whose timers die with their loop."""
    clock = LoopClock()
    return MemoryBackend(clock=clock), clock


def run(work: Callable[[], object]) -> object:
    """The result of the work under a loop of its own."""

    async def main() -> object:
        return work()

    return asyncio.run(main())


@pytest.mark.parametrize("step", ["write", "look", "count"])
def test_an_alarm_lost_with_its_loop_is_set_again(in_loops: tuple[MemoryBackend, LoopClock], step: str) -> None:
    """The loop that should have expired the entries is gone: under the next, whatever is done first sets an alarm."""
    store, clock = in_loops
    run(lambda: [store.put(f"key:{number}", number, clock.now, 60.0) for number in range(100)])
    clock.travel(10.0)
    assert len(store) == 100  # asked where there is no loop to set an alarm on

    def again() -> None:
        assert clock.living == 0
        if step == "write":
            store.put("later", 1, clock.now, 3_600.0)
        elif step == "look":
            store.look("nothing", clock.now)
        else:
            len(store)
        assert clock.living == 1
        clock.travel(52.0)
        assert list(store.values) == (["later"] if step == "write" else [])

    run(again)
    run(lambda: store.look("nothing", clock.now))
    assert store.expirations == 100


@pytest.mark.parametrize("step", ["write", "look", "count"])
def test_a_loop_that_does_not_turn_is_not_waited_for(in_loops: tuple[MemoryBackend, LoopClock], step: str) -> None:
    """An alarm a second late is done without: who comes along expires what is due, and asks for an alarm here."""
    store, clock = in_loops
    stuck = asyncio.new_event_loop()

    async def fill() -> None:
        for number in range(100):
            store.put(f"key:{number}", number, clock.now, 60.0)
        store.put("later", 1, clock.now, 600.0)

    stuck.run_until_complete(fill())
    clock.now += 64.0  # its timers do not run

    def again() -> None:
        if step == "write":
            store.put("later", 1, clock.now, 600.0)
        elif step == "look":
            store.look("nothing", clock.now)
        else:
            len(store)
        assert list(store.values) == ["later"]
        assert clock.living == 2
        clock.travel(700.0)
        assert not store.values

    run(again)
    stuck.close()
    assert store.expirations == 101


def test_without_a_loop_writes_turn_the_wheel(in_loops: tuple[MemoryBackend, LoopClock]) -> None:
    """Where no loop runs, each write that would set an alarm expires a few of what is due."""
    store, clock = in_loops
    for number in range(500):
        clock.now += 0.25
        store.put(f"key:{number}", number, clock.now, 10.0)
        assert len(store) <= 45


def test_a_forked_child_has_alarms_of_its_own(in_loops: tuple[MemoryBackend, LoopClock]) -> None:
    """After a fork neither the lock nor the alarms of the parent's threads are counted on."""
    store, clock = in_loops

    def fork() -> None:
        store.put("key", 1, clock.now, 60.0)
        store.guard().acquire()  # by a thread that the child has not
        store.renew_lock()
        assert store._alarms.at == math.inf
        store.put("other", 1, clock.now, 60.0)
        assert store._alarms.at < math.inf
        clock.travel(63.0)
        assert len(store) == 0

    run(fork)


def test_alarms_do_not_pile_up(in_loops: tuple[MemoryBackend, LoopClock]) -> None:
    """Thousands of short-lived entries beside a long-lived one leave a timer or two at any time."""
    store, clock = in_loops

    def work() -> None:
        store.put("long", 1, clock.now, 3_600.0)
        for number in range(1_000):
            store.put(f"key:{number}", 1, clock.now, 0.5)
            clock.travel(1.0)
            assert list(store.values) == ["long"]
            assert clock.living <= 2
        assert clock.travel(3_000.0) <= 3

    run(work)
    assert store.expirations == 1_001


def test_an_alarm_does_not_keep_a_store_alive(in_loops: tuple[MemoryBackend, LoopClock]) -> None:
    """A store that is dropped is freed, though the loop still has a timer for it, which then does nothing."""
    clock = LoopClock()

    def work() -> None:
        store = MemoryBackend(clock=clock)
        store.put("key", 1, clock.now, 60.0)
        ghost = weakref.ref(store)
        del store
        gc.collect()
        assert ghost() is None
        assert clock.travel(70.0) == 1

    run(work)


async def test_a_sweep_leaves_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two slices, each of half a millisecond, the loop goes round once."""
    passed = 0.0

    def stopwatch() -> float:
        nonlocal passed
        passed += 0.000_2  # what 64 references take
        return passed

    monkeypatch.setattr(memory, "stopwatch", stopwatch)
    store = MemoryBackend(max_entries=None)
    for number in range(1_000):
        store.put(f"key:{number}", number, store.clock.monotonic(), 0.001)
    seen = []
    while len(store.values):
        seen.append(len(store.values))
        await asyncio.sleep(0)
    slices = {before - after for before, after in zip(seen, [*seen[1:], 0], strict=True)} - {0}
    assert max(slices) == 3 * 64
    assert len(set(seen)) >= 6  # more, when a tick of the wheel passed while they were stored


# Threads


@every_policy
def test_threads_share_a_store(policy: str) -> None:
    """Loops in four threads hammer one store: a value keeps its own ttl, bounds hold, each removal is told once."""
    heard: Counter[Any] = Counter()
    stored: list[Counter[Any]] = [Counter() for _ in range(4)]
    problems: list[object] = []
    store = MemoryBackend(
        max_entries=50, max_bytes=3_000, weigher=lambda key, value: 60, policy=policy,
        on_removal=lambda removal: heard.update([removal.value]),
    )  # fmt: skip
    ttls = (0.01, 5.0, 600.0, None)

    async def hammer(thread: int) -> None:
        rng = random.Random(thread)
        for step in range(2_500):
            key = f"key:{rng.randrange(80)}"
            now = store.clock.monotonic()
            action = rng.random()
            ttl = ttls[rng.randrange(4)]
            value = (thread, step, ttl)
            if action < 0.5:
                stored[thread][value] += 1
                life = None if action < 0.4 or ttl is None else Life(now, now + ttl, now + ttl, tags=("tag",))
                if not store.put(key, value, now, ttl, life):
                    problems.append("refused")
            elif action < 0.6:
                store.remove(key)
            elif action < 0.7:
                with store.guard():
                    found = store.look(key, now)
                    if found is not None and found[0] is not store.values[key]:
                        problems.append("changed under the lock")
            else:
                found = store.look(key, now)
                store.used(key)
                if found is not None:
                    (_, _, ttl), life = found
                    kept = life.fresh_until - life.created_at
                    if not (math.isinf(kept) if ttl is None else math.isclose(kept, ttl, abs_tol=1e-6)):
                        problems.append((found[0], kept))
                    if life.expires_at <= now:
                        problems.append("expired")
            if not step % 50:
                await asyncio.sleep(0)

    def work(thread: int) -> None:
        begin.wait()
        try:
            asyncio.run(hammer(thread))
        except BaseException as error:
            problems.append(error)

    begin = threading.Event()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:  # before they are switched that often: coverage cannot trace two that start at once
        thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        begin.set()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert problems == []
    audit(store)
    store.clear()
    assert heard == sum(stored, Counter())
    assert store._wheel.references == 0


# Through the cache


@every_policy
async def test_a_counter_keeps_its_weight_in_the_bound(policy: str) -> None:
    """A counter that grows is weighed anew; when it alone is too heavy it goes, and the others stay."""
    store = MemoryBackend(max_bytes=10, weigher=lambda key, value: len(str(value)), policy=policy)
    async with Cache(store) as cache:
        await cache.set("other", "abc")
        await cache.incr("n", 9)
        assert cache.stats().bytes == 4
        await cache.incr("n", 99_000)
        assert cache.stats().bytes == 8
        await cache.incr("n", 10**8)
        assert cache.stats().bytes <= 10
        assert await cache.get("n") == 100_099_009
        await cache.incr("n", 10**20)
        assert await cache.get("n") is None
        assert cache.stats().bytes <= 10
        audit(store)


# Weights


def test_an_estimate_is_as_large_as_what_it_weighs() -> None:
    """Text and bytes are weighed exactly, containers by a sample, objects by their attributes, to some depth."""

    class Thing:
        def __init__(self, text: str) -> None:
            self.text = text

    class Bare:
        __slots__ = ("text",)

    key = "key"
    least = sys.getsizeof(key)
    assert estimated_bytes(key, "x" * 1_000) == least + sys.getsizeof("x" * 1_000)
    assert estimated_bytes(key, b"x" * 1_000) == least + sys.getsizeof(b"x" * 1_000)
    many = ["x" * 1_000 for _ in range(500)]
    for value in (
        many,
        tuple(many),
        {f"{number}": text for number, text in enumerate(many)},
        [many],
        Thing("x" * 500_000),
    ):
        assert 500_000 < estimated_bytes(key, value) < 600_000
    assert estimated_bytes(key, set(range(100))) > 2_800
    assert estimated_bytes(key, frozenset()) < 400
    assert estimated_bytes(key, {}) < 200
    assert estimated_bytes(key, Bare()) < 200
    endless: list[Any] = []
    endless.append(endless)
    assert estimated_bytes(key, endless) < 1_000
