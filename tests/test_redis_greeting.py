"""What a greeting finds out of the server's clock, however long its answers take."""

import asyncio
from typing import Any

import hiredis
import pytest

from asynccache.backends.redis.address import Settings
from asynccache.backends.redis.greeting import greet
from asynccache.testing import TravellingClock


class Answers:
    """A connection of which each answer takes as long as it is told; the server looks at its clock at the beginning."""

    def __init__(self, clock: TravellingClock, ahead: float, *took: float) -> None:
        self.clock = clock
        self.ahead = ahead
        self.took = list(took)
        self.asked = 0
        self.trips = 0

    def urgent(self, *commands: bytes) -> list[asyncio.Future[Any]]:
        self.trips += 1
        now = self.clock.monotonic() + self.clock.epoch + self.ahead
        if any(b"TIME" in command for command in commands):
            self.clock.travel(self.took.pop(0))
            self.asked += 1
        answers: list[asyncio.Future[Any]] = []
        for command in commands:
            future = asyncio.get_running_loop().create_future()
            future.set_result([b"%d" % now, b"%d" % (now % 1 * 1e6)] if b"\r\nTIME\r\n" in command else b"OK")
            answers.append(future)
        return answers


async def offset(wire: Answers, **known: Any) -> float:
    settings = Settings(addresses=[("localhost", 6379)], **{"protocol": 2, **known})
    greeting = await greet(wire, settings, wire.clock, track_all=False, master=False)  # type: ignore[arg-type]
    return greeting.offset


@pytest.mark.parametrize(
    ("ahead", "took", "looks", "found"),
    [
        (0.0, [0.001], 1, 0.0),
        (60.0, [0.001], 1, 60.0),
        (0.02, [0.036, 0.001], 2, 0.02),  # the machine was busy: it is asked again
        (0.0, [0.036, 0.02, 0.001], 3, 0.0),
        (0.0, [0.038, 0.026, 0.018, 0.012], 4, 0.0),
        (0.01, [0.036, 0.03], 2, 0.0),  # as good as it gets: within what cannot be told apart
        (-3_600.0, [0.036, 0.03], 2, -3_600.015),
        (60.0, [0.4], 1, 59.8),  # a long way is not shorter at the next look
    ],
)
async def test_the_clock_is_looked_at_until_it_is_known(
    clock: TravellingClock, ahead: float, took: list[float], looks: int, found: float
) -> None:
    """The shortest of a few looks counts, of which half its time is the most that it can be wrong."""
    wire = Answers(clock, ahead, *took)
    assert await offset(wire) == pytest.approx(found, abs=0.002)
    assert wire.asked == looks


@pytest.mark.parametrize("known", [{}, {"protocol": 3}, {"protocol": 3, "password": "letmein", "db": 2}])
async def test_a_greeting_is_one_round_trip(clock: TravellingClock, known: dict[str, Any]) -> None:
    """Whoever we are, and whatever is to be found out: who waits for a connection waits for that once."""
    wire = Answers(clock, 0.0, 0.001)
    await offset(wire, **known)
    assert wire.trips == 1


async def test_a_server_that_does_not_tell_the_time_is_taken_for_right(clock: TravellingClock) -> None:
    """Its user may not ask for it: then both clocks are taken for the same, and nothing is asked again."""
    wire = Answers(clock, 0.0, 0.036)
    usual = wire.urgent

    def refused(*commands: bytes) -> list[asyncio.Future[Any]]:
        answers = usual(*commands)
        answers[-1] = asyncio.get_running_loop().create_future()
        answers[-1].set_result(hiredis.ReplyError("NOPERM this user has no permissions"))
        return answers

    wire.urgent = refused  # type: ignore[method-assign]
    assert await offset(wire) == 0.0
    assert wire.asked == 1
