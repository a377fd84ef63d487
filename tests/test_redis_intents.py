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
    """The number of keys and of leases is bounded; the oldest go, and the deletions among them are counted."""
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
    assert intents.lost == 3


def test_what_is_dropped_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Deletions past the bound are logged with their number, at most once a second, and at last those that are owed."""
    now = 100.0
    monkeypatch.setattr(module, "stopwatch", lambda: now)
    monkeypatch.setattr(module, "_MOST_KEYS", 2)
    intents = Intents("redis at host:1")
    for number in range(3):
        intents.add([b"key%d" % number])
    intents.add([b"some", b"more"])
    intents.tell()
    dropped = "redis at host:1: deletions dropped: %d, as more than 2 were owed; old values may be read until their ttl"
    assert [record.getMessage() for record in caplog.records] == [dropped % 1]
    now = 101.0
    intents.tell()
    assert [record.getMessage() for record in caplog.records[1:]] == [dropped % 2]
    intents.add([b"another"])
    intents.tell(last=True)
    assert [record.getMessage() for record in caplog.records[2:]] == [
        dropped % 1,
        "redis at host:1: deletions still owed at closing: 2; old values may be read until their ttl",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_nothing_dropped_is_nothing_told(caplog: pytest.LogCaptureFixture) -> None:
    """Where all was paid, and a lease is left that lapses by itself, closing says nothing."""
    intents = Intents()
    intents.add([b"key"])
    intents.give_back(b"lock", "token", 60)
    for debt in intents.of([b"key"]):
        intents.paid(debt)
    intents.tell(last=True)
    assert not caplog.records


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
