"""The eviction policies: one suite for all of them, the LRU against a list, S3-FIFO against its own account."""

import gc
import itertools
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asynccache.eviction_policies import EVICTION_POLICIES, LRU, S3FIFO
from asynccache.eviction_policy import EvictionPolicy

BOUNDS = [(None, None), (8, None), (None, 100), (8, 100)]
every_policy = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda name=name, bound=bound: EVICTION_POLICIES[name](*bound), id=f"{name}{bound}")
        for name in sorted(EVICTION_POLICIES)
        for bound in BOUNDS
    ],
)
Make = Callable[[], EvictionPolicy]


class Bounded:
    """A store that evicts as a memory store does, and counts its hits."""

    def __init__(self, policy: EvictionPolicy, room: int, weigh: Callable[[str], int] = lambda key: 1) -> None:
        self.policy = policy
        self.room = room
        self.weigh = weigh
        self.weight = 0
        self.hits = 0

    def ask(self, key: str) -> bool:
        policy = self.policy
        if key in policy.values:
            policy.touch(key)
            self.hits += 1
            return True
        policy.insert(key, key, self.weigh(key))
        self.weight += self.weigh(key)
        while self.weight > self.room:
            victim = policy.victim()
            self.weight -= self.weigh(victim)
            policy.evict(victim)
        return False

    def ask_all(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.ask(key)


def touched_late(policy: EvictionPolicy, key: str) -> None:
    """Touch a key that may be gone, as a reader on another thread does."""
    try:
        policy.touch(key)
    except KeyError:
        assert key not in policy.values


# What every policy promises


class PolicyMachine(RuleBasedStateMachine):
    """Any mixture of calls: ``values`` holds what a plain dictionary would, and a victim is always one of them."""

    keys = st.integers(0, 14).map(str)
    weights = st.integers(0, 30)

    def __init__(self) -> None:
        super().__init__()
        self.policy = self.make()
        self.values, self.touch = self.policy.values, self.policy.touch
        self.model: dict[str, object] = {}
        self.weighed: dict[str, int] = {}

    def make(self) -> EvictionPolicy:
        raise NotImplementedError

    def some(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model)))

    @rule(key=keys, weight=weights)
    def put(self, key: str, weight: int) -> None:
        value = object()
        if key in self.model:
            self.policy.replace(key, value, weight)
            self.replaced(key)
        else:
            self.policy.insert(key, value, weight)
            self.inserted(key)
        self.model[key] = value
        self.weighed[key] = weight

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        key = self.some(data)
        self.policy.touch(key)
        self.used(key)

    @rule(key=keys)
    def use_late(self, key: str) -> None:
        if key not in self.model:
            touched_late(self.policy, key)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = self.some(data)
        self.policy.remove(key)
        self.left(key)

    @precondition(lambda self: self.model)
    @rule(count=st.integers(1, 4))
    def evict(self, count: int) -> None:
        for _ in range(min(count, len(self.model))):
            victim = self.policy.victim()
            assert victim in self.model
            assert self.policy.victim() == victim
            self.policy.evict(victim)
            self.left(victim)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def evict_another(self, data: st.DataObject) -> None:
        key = self.some(data)
        self.policy.evict(key)
        self.left(key)

    @precondition(lambda self: len(self.model) > 8)
    @rule()
    def clear(self) -> None:
        self.policy.clear()
        for key in list(self.model):
            self.left(key)

    def left(self, key: str) -> None:
        del self.model[key], self.weighed[key]

    def inserted(self, key: str) -> None: ...

    def replaced(self, key: str) -> None: ...

    def used(self, key: str) -> None: ...

    @invariant()
    def holds_what_was_put(self) -> None:
        assert self.policy.values == self.model

    @invariant()
    def stays_the_same_object(self) -> None:
        assert self.policy.values is self.values
        assert self.policy.touch is self.touch

    def teardown(self) -> None:
        while self.model:
            victim = self.policy.victim()
            self.policy.evict(victim)
            self.left(victim)
        assert not self.policy.values


class LRUMachine(PolicyMachine):
    """The LRU evicts what a list, in which every use moves the key to the end, has at its front."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def make(self) -> EvictionPolicy:
        return LRU()

    def inserted(self, key: str) -> None:
        self.order.append(key)

    def used(self, key: str) -> None:
        self.order.remove(key)
        self.order.append(key)

    replaced = used

    def left(self, key: str) -> None:
        super().left(key)
        self.order.remove(key)

    @invariant()
    def evicts_the_front(self) -> None:
        if self.order:
            assert self.policy.victim() == self.order[0]


class S3FIFOMachine(PolicyMachine):
    """S3-FIFO's account of its queues is true after every call."""

    def make(self) -> EvictionPolicy:
        return S3FIFO()

    @invariant()
    def keeps_a_true_account(self) -> None:
        assert isinstance(self.policy, S3FIFO)
        audit(self.policy, self.weighed)


class WeighedS3FIFOMachine(S3FIFOMachine):
    """The same by weight."""

    def make(self) -> EvictionPolicy:
        return S3FIFO(None, 100)


def audit(policy: S3FIFO, weighed: dict[str, int] | None = None) -> None:
    """Every living key has one living slot, behind its dead ones; sums are right; nothing of the dead piles up."""
    places: Counter[str] = Counter()
    for queue in (policy._small, policy._main):
        struck = {key: count for table in queue.struck for key, count in table.items()}
        assert queue.dead == sum(struck.values())
        assert all(count > 0 for count in struck.values())
        for key in itertools.chain(queue.older, queue.newer):
            if struck.get(key, 0):
                struck[key] -= 1
                continue
            assert (key in policy._small_keys) == (queue is policy._small)
            places[key] += 1
        assert not any(struck.values())
    assert places == Counter(list(policy.values))
    assert policy._small_keys <= policy.values.keys()
    weights = policy._weights
    if weights is None:
        weights = dict.fromkeys(policy.values, 1)
    elif weighed is not None:
        assert weights == weighed
    assert policy._weight == sum(weights[key] for key in policy.values)
    assert policy._small_weight == sum(weights[key] for key in policy._small_keys)
    assert len(policy._visited) <= len(policy.values) * 1.25 + 65
    assert len(policy._ghost) <= 2 * max(len(policy.values), 15) or policy._weights is not None


TestLRU = LRUMachine.TestCase
TestS3FIFO = S3FIFOMachine.TestCase
TestWeighedS3FIFO = WeighedS3FIFOMachine.TestCase
TestLRU.settings = TestS3FIFO.settings = TestWeighedS3FIFO.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


@every_policy
def test_a_mapping_of_values_is_for_ever(make: Make) -> None:
    """``values`` and ``touch`` can be bound once: ``clear`` empties the very same objects."""
    policy = make()
    values, touch = policy.values, policy.touch
    policy.insert("a", 1, 1)
    policy.clear()
    assert policy.values is values
    assert policy.touch is touch
    assert values == {}
    policy.insert("b", None, 1)
    touch("b")
    assert values == {"b": None}


def test_a_value_set_is_a_key_inserted() -> None:
    """In an LRU, which says so, a key set in ``values`` leaves when one that was inserted would."""
    policy, other = LRU(), LRU()
    assert policy.insert_sets_values
    assert not S3FIFO().insert_sets_values
    for number in range(6):
        policy.values[str(number)] = number
        other.insert(str(number), number, 1)
    for one in (policy, other):
        one.touch("0")
    while other.values:
        assert policy.victim() == other.victim()
        policy.evict(policy.victim())
        other.evict(other.victim())
    assert policy.values == {}


@every_policy
def test_what_is_used_outlives_what_is_not(make: Make) -> None:
    """Of twenty keys, ten of which were used, the first nine to leave are others."""
    policy = make()
    for number in range(20):
        policy.insert(str(number), number, 5)
    for number in range(0, 20, 2):
        policy.touch(str(number))
    left = []
    for _ in range(9):
        victim = policy.victim()
        policy.evict(victim)
        left.append(int(victim))
    assert all(number % 2 for number in left)


@every_policy
def test_a_replacement_is_a_use(make: Make) -> None:
    """A key whose value is replaced is not the next to leave."""
    policy = make()
    for key in "abcdefghij":
        policy.insert(key, 1, 5)
    first = policy.victim()
    policy.replace(first, 2, 5)
    assert policy.values[first] == 2
    assert policy.victim() != first


@pytest.mark.parametrize("room", range(1, 6))
@pytest.mark.parametrize("name", sorted(EVICTION_POLICIES))
def test_the_newest_key_stays(name: str, room: int) -> None:
    """A key that has just been put is not the one that makes room for itself, however small the store."""
    rng = random.Random(room)
    store = Bounded(EVICTION_POLICIES[name](room, None), room)
    for _ in range(3_000):
        key = rng.choice("aaaabbbcdefghij")
        store.ask(key)
        assert key in store.policy.values
        assert len(store.policy.values) <= room


@every_policy
def test_a_key_that_was_touched_too_late_is_forgotten(make: Make) -> None:
    """Touching keys that are gone neither brings them back nor keeps them in memory."""

    class Key(str):
        __slots__ = ("__weakref__",)

    policy = make()
    refs = []
    for number in range(500):
        key = Key(f"key:{number}")
        refs.append(weakref.ref(key))
        policy.insert(key, None, 1)
        policy.remove(key)
        touched_late(policy, key)
    del key
    gc.collect()
    assert policy.values == {}
    assert sum(ref() is not None for ref in refs) <= 100


@every_policy
def test_an_evicted_key_is_not_kept_alive(make: Make) -> None:
    """Evicted keys are not kept alive by whatever remembers them; only the last one may be."""

    class Key(str):
        __slots__ = ("__weakref__",)

    policy = make()
    refs = []
    for number in range(100):
        key = Key(f"key:{number}")
        refs.append(weakref.ref(key))
        policy.insert(key, None, 1)
        if number % 3:
            policy.touch(key)
    del key
    while policy.values:
        policy.evict(policy.victim())
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 1


@every_policy
def test_room_is_kept_under_any_mixture(make: Make) -> None:
    """Thousands of random steps over a bounded store: the bound holds, and emptying it names every key once."""
    rng = random.Random(5)
    policy = make()
    store = Bounded(policy, room=50)
    for _ in range(5_000):
        key = str(int(rng.paretovariate(0.7)) % 400)
        if rng.random() < 0.2 and key in policy.values:
            policy.remove(key)
            store.weight -= 1
        else:
            store.ask(key)
        assert len(policy.values) <= 50
    living = set(policy.values)
    gone = []
    while policy.values:
        gone.append(policy.victim())
        policy.evict(gone[-1])
    assert len(gone) == len(living)
    assert set(gone) == living


# What S3-FIFO promises


def settled(room: int = 100, **bounds: Any) -> tuple[S3FIFO, Bounded]:
    """A full S3-FIFO store whose main queue holds ``hot:…``, each used."""
    policy = S3FIFO(bounds.get("max_entries", room), bounds.get("max_weight"))
    store = Bounded(policy, room)
    hot = [f"hot:{number}" for number in range(room * 8 // 10)]
    for _ in range(3):
        store.ask_all(hot)
    store.ask_all(f"fill:{number}" for number in range(room))
    store.ask_all(hot)
    assert all(key in policy.values for key in hot)
    return policy, store


def test_one_hit_wonders_leave_first() -> None:
    """Keys that are asked for once pass through a tenth of the store, and none of the keys in use leaves for them."""
    policy, store = settled()
    store.ask_all(f"once:{number}" for number in range(150))
    assert sum(key.startswith("hot:") for key in policy.values) == 80
    store.ask_all(f"twice:{number // 2}" for number in range(10))
    store.ask_all(f"once more:{number}" for number in range(50))
    assert sum(key.startswith("twice:") for key in policy.values) == 5


def places(policy: S3FIFO, *keys: str) -> set[int]:
    """Where the ghost remembers the keys: hashes differ from run to run, and so do those that collide."""
    return {(hash(key) >> 16) % len(policy._ghost) for key in keys}


def test_a_key_that_comes_back_is_proven() -> None:
    """A key that was evicted from the small queue and is asked for again goes to the main queue."""
    policy, store = settled()
    store.ask("again")
    assert "again" in policy._small_keys
    names = (f"once:{number}" for number in itertools.count())
    store.ask_all(itertools.islice((key for key in names if not places(policy, key) & places(policy, "again")), 30))
    assert "again" not in policy.values
    store.ask("again")
    assert "again" in policy.values
    assert "again" not in policy._small_keys
    store.ask_all(f"once more:{number}" for number in range(80))
    assert "again" in policy.values


def test_most_ghosts_are_remembered() -> None:
    """Of keys that come back after half the store has been evicted since, most are known, for all that collide."""
    room = 2_000
    policy, store = settled(room)
    keys = [f"again:{number}" for number in range(room // 2)]
    store.ask_all(keys)
    store.ask_all(f"once:{number}" for number in range(room // 4))
    proven = 0
    for key in keys:
        if key not in policy.values:
            store.ask(key)
            proven += key not in policy._small_keys
    assert proven > len(keys) / 2


def test_the_ghost_forgets() -> None:
    """A key that comes back after more than the whole store has been evicted since starts anew."""
    policy, store = settled()
    store.ask("again")
    store.ask_all(f"once:{number}" for number in range(400))
    store.ask("again")
    assert "again" in policy._small_keys


def test_a_key_deleted_is_no_ghost() -> None:
    """A key that was removed, not evicted, is not taken for proven when it comes back."""
    policy, store = settled()
    store.ask("deleted")
    policy.remove("deleted")
    store.weight -= 1
    store.ask("deleted")
    assert "deleted" in policy._small_keys


def test_a_key_reinserted_does_not_take_its_old_place() -> None:
    """A key that was removed and put again leaves after those that were there before, not at its old turn."""
    policy = S3FIFO(1)  # without room to spare all keys go to the small queue
    for key in ("a", "b", "c", "d", "e"):
        policy.insert(key, 1, 1)
    policy.remove("c")
    policy.insert("c", 2, 1)
    policy.remove("b")
    policy.remove("c")
    policy.insert("c", 3, 1)
    policy.insert("b", 2, 1)
    order = []
    while policy.values:
        order.append(policy.victim())
        policy.evict(order[-1])
    assert order == ["a", "d", "e", "c", "b"]


def test_the_newest_key_is_not_proven_for_being_alone() -> None:
    """A new key that is the only one in the small queue stays there while a victim is looked for."""
    policy = S3FIFO(1)
    policy.insert("a", 1, 1)
    policy.touch("a")
    policy.insert("b", 1, 1)
    assert policy.victim() == "a"
    assert policy._small_keys == {"b"}


def test_a_heavier_value_is_not_evicted_for_its_own_sake() -> None:
    """A key that was given a heavier value stays, and another makes room; so does a new one that is alone in main."""
    policy = S3FIFO(None, 10)
    policy.insert("other", 1, 3)
    policy.insert("grown", 1, 1)
    policy.replace("grown", 2, 9)
    assert policy.victim() == "other"
    policy = S3FIFO(None, 30)
    policy.insert("old", 1, 1)
    policy.insert("new", 1, 30)
    assert policy.victim() == "old"


def test_a_use_of_a_former_self_does_not_count() -> None:
    """A late use of a removed key does not make its successor a visited one."""
    policy = S3FIFO(1)
    policy.insert("a", 1, 1)
    policy.remove("a")
    policy.touch("a")
    policy.insert("a", 1, 1)
    policy.insert("b", 1, 1)
    assert policy.victim() == "a"


@pytest.mark.parametrize("order", ["oldest", "newest", "random"])
def test_removed_keys_leave_no_slots(order: str) -> None:
    """Whatever is removed, and in whatever order, fewer slots are dead than living."""
    rng = random.Random(6)
    policy = S3FIFO(1_000)
    living: list[str] = []
    names = (f"key:{number}" for number in itertools.count())
    for _ in range(20_000):
        if len(living) < 1_000:
            living.append(next(names))
            policy.insert(living[-1], None, 1)
        if len(living) == 1_000 or rng.random() < 0.4:
            gone = living.pop({"oldest": 0, "newest": -1, "random": rng.randrange(len(living))}[order])
            policy.remove(gone)
        slots = len(policy._small) + len(policy._main)
        assert slots <= 1.75 * len(policy.values) + 64
    audit(policy)
    rng.shuffle(living)
    for key in living:
        policy.remove(key)
        assert len(policy._small) + len(policy._main) <= 1_200
    assert len(policy._small) + len(policy._main) == 0


def test_a_scan_does_not_empty_the_store() -> None:
    """On a skewed load with long scans in between, S3-FIFO hits more often than the LRU; on the load alone too."""
    rng = random.Random(7)
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.9 for rank in range(5_000)))
    load = [f"key:{rank}" for rank in rng.choices(range(5_000), cum_weights=weights, k=40_000)]
    scans = [[f"scan:{start}:{number}" for number in range(1_000)] for start in range(10)]
    scanned = [*itertools.chain.from_iterable([*load[n * 4_000 : (n + 1) * 4_000], *scans[n]] for n in range(10))]

    def hits(policy: EvictionPolicy, keys: list[str]) -> int:
        store = Bounded(policy, room=500)
        store.ask_all(keys)
        return store.hits

    assert hits(S3FIFO(500), load) > hits(LRU(), load)
    assert hits(S3FIFO(500), scanned) > hits(LRU(), scanned) * 1.1


def test_heavy_keys_fill_the_small_queue_by_weight() -> None:
    """Bounded by weight, unproven keys keep a tenth of the weight, not of the number, and the bound always holds."""
    rng = random.Random(8)
    weights = {f"key:{number}": rng.choice((1, 10, 100)) for number in range(3_000)}
    policy = S3FIFO(None, 10_000)
    store = Bounded(policy, 10_000, weights.__getitem__)
    for step in range(20_000):
        store.ask(f"key:{min(int(rng.expovariate(1 / 300)), 2_999)}")
        assert store.weight == policy._weight <= 10_000
        if step > 5_000:
            assert policy._small_weight <= 1_200 or len(policy._small_keys) == 1
    audit(policy, {key: weights[key] for key in policy.values})


def test_a_store_full_of_visited_keys_is_not_searched_through() -> None:
    """Where every key is visited, a victim is found after few looks, and the others keep their marks."""
    policy = S3FIFO(10_000)
    store = Bounded(policy, 10_000)
    names = [f"key:{number}" for number in range(10_000)]
    store.ask_all(names)
    store.ask_all(names)
    store.ask("new")
    assert len(policy._visited) > 9_800
    assert "new" in policy.values
    audit(policy)


def test_a_replaced_weight_is_accounted() -> None:
    """A replacement's weight takes the place of the old one, in either queue."""
    policy, _ = settled(max_entries=None, max_weight=100)
    new, old = next(iter(policy._small_keys)), next(iter(policy.values.keys() - policy._small_keys))
    before, small = policy._weight, policy._small_weight
    policy.replace(new, None, 7)
    policy.replace(old, None, 4)
    assert policy._weight == before + 6 + 3
    assert policy._small_weight == small + 6
    audit(policy)
