"""What a store owes its servers: bounded, the newest intent of a key, and nothing that time has settled."""

import pytest

from asynccache.backends.redis import intents as module
from asynccache.backends.redis.intents import Intents


def test_a_deletion_that_failed_again_is_not_paid_by_the_first_answer() -> None:
    """The answer to a repetition settles the failure that it was sent for, not a later one."""
    intents = Intents()
    intents.add([b"key"])
    [first] = intents.some()
    intents.add([b"key"])
    intents.paid(first)
    [second] = intents.some()
    intents.paid(second)
    assert (first.name, second.name, len(intents)) == (b"key", b"key", 0)


def test_too_many_debts_cost_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of keys and of leases is bounded; the oldest go, and are counted."""
    monkeypatch.setattr(module, "_MOST_KEYS", 2)
    monkeypatch.setattr(module, "_MOST_LEASES", 2)
    intents = Intents()
    for number in range(5):
        intents.add([b"key%d" % number])
        intents.give_back(b"lock", f"token{number}", 60)
    assert [(debt.name, debt.token) for debt in intents.some()] == [
        (b"key3", None),
        (b"key4", None),
        (b"lock", "token3"),
        (b"lock", "token4"),
    ]
    assert intents.lost == 6


def test_a_lease_that_has_lapsed_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage that outlasts the leases that were asked for in it leaves nothing to be done about them."""
    now = 100.0
    monkeypatch.setattr(module, "stopwatch", lambda: now)
    intents = Intents()
    intents.give_back(b"load", "token", 3)
    lock = intents.give_back(b"lock", "token", 60)
    assert len(intents.some()) == 2
    now = 104.0
    assert intents.some() == [lock]
    assert len(intents) == 1
