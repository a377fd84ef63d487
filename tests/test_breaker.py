"""The breaker of a server: when it is tried again, by how many, and who is kept waiting for it."""

import pytest

from asynccache._breaker import Breaker


class Stopwatch:
    """One that the test moves on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def breaker(watch: Stopwatch) -> Breaker:
    return Breaker(watch)


def pause(breaker: Breaker, watch: Stopwatch) -> float:
    """How many seconds it is until somebody may try."""
    began = watch.now
    while not breaker.allows():
        watch.now += 0.001
        assert watch.now - began < 60
    return watch.now - began


def test_a_server_that_answers_is_asked(breaker: Breaker) -> None:
    """Nobody is refused, and no attempt is one that others wait for."""
    assert (breaker.state, breaker.tripped, breaker.allows()) == ("closed", False, True)
    assert not breaker.probe()
    assert breaker.allows()


def test_a_failure_opens_it_for_a_while(breaker: Breaker, watch: Stopwatch) -> None:
    """Then one may try, and the others are refused still."""
    breaker.failed()
    assert (breaker.state, breaker.tripped, breaker.allows()) == ("open", True, False)
    pause(breaker, watch)
    assert (breaker.state, breaker.tripped) == ("half_open", True)
    assert breaker.probe()
    watch.now += 1.0
    assert not breaker.allows()
    breaker.probed()
    assert breaker.allows()


def test_the_pauses_grow_and_are_bounded(breaker: Breaker, watch: Stopwatch) -> None:
    """A server that is away for long is tried less often, and soon after it has come back nevertheless."""
    pauses = []
    for _ in range(2_000):
        breaker.failed()
        pauses.append(pause(breaker, watch))
    assert 0.05 < pauses[0] < 0.07
    assert 1.5 < pauses[1] / pauses[0] < 2.5
    assert min(pauses[5:]) > 0.3
    assert max(pauses) < 0.5


def test_failures_that_tell_nothing_new_are_one(breaker: Breaker, watch: Stopwatch) -> None:
    """What was begun before the latest failure was no attempt after it: many that fail together make no long pause."""
    began = watch.now
    watch.now += 1.0
    for _ in range(50):
        breaker.failed(began)
    assert pause(breaker, watch) < 0.07
    breaker.failed(watch.now)
    assert pause(breaker, watch) > 0.1


def test_a_failure_of_long_ago_refuses_nobody(breaker: Breaker, watch: Stopwatch) -> None:
    """Who comes then is worth a wait, though nobody has succeeded meanwhile."""
    breaker.failed()
    watch.now += 4.9
    assert breaker.tripped
    watch.now += 0.2
    assert (breaker.state, breaker.tripped, breaker.allows()) == ("closed", False, True)


def test_a_success_forgets_all(breaker: Breaker, watch: Stopwatch) -> None:
    """The next failure is the first one again, and whoever was trying holds nobody up."""
    for _ in range(10):
        breaker.failed()
        pause(breaker, watch)
    assert breaker.probe()
    breaker.succeeded()
    assert (breaker.state, breaker.tripped, breaker.allows()) == ("closed", False, True)
    breaker.failed()
    assert pause(breaker, watch) < 0.07
