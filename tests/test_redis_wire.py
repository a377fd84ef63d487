"""One connection to a Redis server: what leaves when, whose reply is whose, and how it ends.

Most tests drive the connection by a loop whose turns and time are the test's, so that nothing depends on a clock or a
socket. The last ones have a real loop and a server that follows a script.
"""

import asyncio
import contextlib
import gc
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import hiredis
import pytest
from fault_proxy import RespScanner
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import on_redis

from asynccache import BackendError, BackendTimeout, BackendUnavailable, Cache
from asynccache.backends.redis import wire as wire_module
from asynccache.backends.redis.pieces import Pieces
from asynccache.backends.redis.reading import CHUNK, first_chunk
from asynccache.backends.redis.times import milliseconds
from asynccache.backends.redis.wire import KEPT, Asked, Wire, pack
from asynccache.backends.redis.writing import storing
from asynccache.errors import CacheError

TIMEOUT = 0.5
MOST_IN_AIR = 1_024
LEAST_IN_AIR = 16
MOST_WAITING = 65_536
OK = b"+OK\r\n"


# The tools


class Timer:
    """One of the loop's."""

    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandLoop:
    """An event loop as far as a connection needs one, which turns, and ages, when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.timers: list[Timer] = []
        self.most_timers = 0

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> Asked:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: Any = None) -> None:
        self._soon.append((callback, arguments))

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: Any) -> Timer:
        timer = Timer(self.now + delay, partial(callback, *arguments))
        self.timers.append(timer)
        self.most_timers = max(self.most_timers, len(self.timers))
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(context)

    def turn(self) -> None:
        """Run what is due now; what that asks for waits for the next turn."""
        for _ in range(len(self._soon)):
            callback, arguments = self._soon.popleft()
            callback(*arguments)

    def settle(self) -> None:
        """Turn until nothing is due."""
        while self._soon:
            self.turn()

    def age(self, seconds: float) -> None:
        """Let time pass, with each timer at its time."""
        end = self.now + seconds
        while True:
            self.settle()
            due = min(self.timers, key=lambda timer: timer.at, default=None)
            if due is None or due.at > end:
                break
            self.timers.remove(due)
            self.now = max(self.now, due.at)
            if not due.cancelled:
                due.callback()
        self.now = end
        self.settle()


class HandTransport:
    """What was written, write by write; it can be full."""

    def __init__(self, protocol: "Wire", room: float = float("inf")) -> None:
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.aborted = False
        self.room = room
        self.full = False
        self.buffered = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.aborted, "written after the end"
        assert data, "an empty write"
        self.writes.append(bytes(data))
        self.buffered += len(data)
        if self.buffered > self.room and not self.full:
            self.full = True
            self.protocol.pause_writing()  # as asyncio's do: from inside of write()

    def drain(self) -> None:
        self.buffered = 0
        if self.full:
            self.full = False
            self.protocol.resume_writing()

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.protocol.connection_lost(None)

    close = abort

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Hand:
    """A connection in the test's hand."""

    latest: "Hand | None" = None

    def __init__(self, *, timeout: float = TIMEOUT, open: bool = True, room: float = float("inf")) -> None:
        self.loop = HandLoop()
        Hand.latest = self
        self.pushed: list[Any] = []
        self.ends: list[BaseException | None] = []
        self.stalls = 0
        self.wire = Wire(
            self.loop,  # type: ignore[arg-type]
            timeout=timeout,
            pushed=self.pushed.append,
            stalled=self._stalled,
            lost=self.ends.append,
        )
        self.transport = HandTransport(self.wire, room)
        self.wire.connection_made(self.transport)
        if open:
            self.wire.open()

    def _stalled(self) -> None:
        self.stalls += 1

    @property
    def written(self) -> bytes:
        return b"".join(self.transport.writes)

    def take(self) -> list[bytes]:
        """The writes since the last look."""
        writes = list(self.transport.writes)
        self.transport.writes.clear()
        return writes

    def taken(self) -> list[bytes]:
        """The commands in the writes since the last look, each as the name or number that it asks for."""
        return words(b"".join(self.take()))

    def receive(self, data: bytes) -> None:
        hear(self.wire, data)
        self.loop.settle()


def hear(wire: Wire, data: bytes) -> None:
    """What a transport does with what has come."""
    while data and not wire.lost:
        buffer = wire.get_buffer(-1)
        part = data[: len(buffer)]
        buffer[: len(part)] = part
        wire.buffer_updated(len(part))
        data = data[len(part) :]


@pytest.fixture(autouse=True)
def _time_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test has a connection in hand, the connection's stopwatch shows its time."""
    Hand.latest = None
    monkeypatch.setattr(
        wire_module, "stopwatch", lambda: time.perf_counter() if Hand.latest is None else Hand.latest.loop.now
    )


def words(data: bytes) -> list[bytes]:
    """The second word of each command, or the first of those that have one."""
    reader = hiredis.Reader()
    reader.feed(data)
    found: list[bytes] = []
    while (command := reader.gets()) is not False:
        assert isinstance(command, list)
        found.append(command[min(1, len(command) - 1)])
    return found


def get(number: int) -> bytes:
    return pack(("GET", str(number)))


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def reply_to(name: bytes) -> bytes:
    return bulk(b"of " + name)


# What leaves


@given(
    name=st.binary(min_size=1), data=st.binary(), seconds=st.floats(min_value=-1.0, max_value=1e12) | st.just(math.inf)
)
def test_what_is_written_by_hand_is_what_the_library_writes(name: bytes, data: bytes, seconds: float):
    """The two commands that are sent most are put together here, and are as hiredis has them."""
    left = milliseconds(seconds)
    lasting = () if seconds == math.inf else (b"PX", min(max(math.ceil(seconds * 1_000), 1), 10**14))
    assert storing(name, data, left) == pack(("SET", name, data, *lasting))
    assert first_chunk(name) == pack(("GETRANGE", name, 0, CHUNK - 1))


def test_what_is_asked_in_one_turn_leaves_in_one_write():
    """Commands of one turn of the loop leave together, in the order in which they were asked."""
    hand = Hand()
    hand.wire.ask(get(0))
    hand.take()
    for number in range(1, 6):
        hand.wire.ask(get(number))
    assert hand.take() == []
    hand.loop.turn()
    assert hand.take() == [b"".join(get(number) for number in range(1, 6))]


def test_a_caller_alone_does_not_wait_for_the_turn_to_end():
    """With nothing in the air and the last batch of one, a command leaves within the call."""
    hand = Hand()
    for number in range(3):
        asked = hand.wire.ask(get(number))
        assert hand.take() == [get(number)]
        hand.receive(reply_to(b"%d" % number))
        assert asked.result() == b"of %d" % number


def test_after_a_batch_the_first_command_waits_for_others():
    """When the last batch had several commands, the next one is gathered too: it will have several again."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(3)]
    hand.loop.settle()
    hand.receive(b"".join(reply_to(b"%d" % number) for number in range(3)))
    assert [each.result() for each in asked] == [b"of 0", b"of 1", b"of 2"]
    hand.take()
    hand.wire.ask(get(3))
    hand.wire.ask(get(4))
    hand.loop.settle()
    assert hand.take() == [get(3) + get(4)]


def asked_at_once(hand: Hand, numbers: range) -> None:
    """Ask, end the turn, and have all answered."""
    for number in numbers:
        hand.wire.ask(get(number))
    hand.loop.settle()
    hand.receive(b"".join(reply_to(b"%d" % number) for number in numbers))


def test_half_of_a_usual_turn_leaves_while_the_rest_is_asked():
    """With nothing in the air, the server gets half of what the last turn asked before the turn has ended."""
    hand = Hand()
    asked_at_once(hand, range(10))
    asked_at_once(hand, range(10))  # of those ten the first one did not go alone
    hand.take()
    for number in range(4):
        hand.wire.ask(get(number))
    assert hand.take() == []
    hand.wire.ask(get(4))
    assert hand.take() == [b"".join(get(number) for number in range(5))]
    for number in range(5, 15):
        hand.wire.ask(get(number))
    assert hand.take() == []
    hand.loop.settle()
    assert hand.take() == [b"".join(get(number) for number in range(5, 15))]


def test_a_turn_is_not_parted_while_the_server_has_something_to_do():
    """What is in the air keeps the server busy: the rest of the turn leaves in one write."""
    hand = Hand()
    asked_at_once(hand, range(10))
    asked_at_once(hand, range(10))
    hand.wire.ask(get(0))
    hand.loop.settle()
    hand.take()
    for number in range(1, 11):
        hand.wire.ask(get(number))
    assert hand.take() == []
    hand.loop.settle()
    assert hand.take() == [b"".join(get(number) for number in range(1, 11))]


def test_a_turn_that_asks_less_than_usual_leaves_at_its_end():
    """A few after many are not kept back for those that do not come."""
    hand = Hand()
    asked_at_once(hand, range(10))
    asked_at_once(hand, range(10))
    hand.take()
    hand.wire.ask(get(0))
    hand.wire.ask(get(1))
    hand.loop.turn()
    assert hand.take() == [get(0) + get(1)]


def test_a_failure_tells_whether_the_command_has_left():
    """What was in the air may have happened; what waited for room has not, nor what was refused."""
    hand = Hand()
    in_air = hand.wire.ask(get(0))
    hand.wire.pause_writing()
    waiting = hand.wire.ask(get(1))
    hand.loop.settle()
    hand.wire.close()
    assert (in_air.result().sent, waiting.result().sent) == (True, False)
    with pytest.raises(BackendUnavailable) as caught:
        hand.wire.ask(get(2))
    assert not caught.value.sent


def test_what_is_asked_before_the_greeting_leaves_after_it():
    """Until the connection is open only its greeting leaves; then all that waits, in order."""
    hand = Hand(open=False)
    asked = [hand.wire.ask(get(number)) for number in range(3)]
    hand.loop.settle()
    (hello,) = hand.wire.urgent(pack(("HELLO", "3")))
    assert hand.taken() == [b"3"]
    hand.receive(b"%0\r\n")
    assert hello.result() == {}
    words_of_greeting = hand.wire.urgent(pack(("SELECT", "1")), pack(("TIME",)))
    assert hand.take() == [pack(("SELECT", "1")) + pack(("TIME",))]
    hand.receive(OK + b"*0\r\n")
    assert [each.result() for each in words_of_greeting] == [b"OK", []]
    assert not any(each.done() for each in asked)
    assert hand.take() == []
    hand.wire.open()
    assert hand.taken() == [b"0", b"1", b"2"]


# Whose reply is whose

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=30) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def encoded(value: Any) -> bytes:
    """A value by RESP3."""
    if value is None:
        return b"_\r\n"
    if value is True or value is False:
        return b"#t\r\n" if value else b"#f\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, float):
        return b",%s\r\n" % repr(value).encode()
    if isinstance(value, bytes):
        return bulk(value)
    return b"*%d\r\n%s" % (len(value), b"".join(map(encoded, value)))


@settings(deadline=None)
@given(
    st.lists(st.tuples(values, st.lists(st.binary(max_size=9), max_size=2)), min_size=1, max_size=8),
    st.lists(st.integers(0, 1_000_000), max_size=12),
)
def test_replies_cut_anywhere_are_whole(answers: list[tuple[Any, list[bytes]]], cuts: list[int]):
    """However the network cuts the bytes, each command gets its reply, and messages in between go elsewhere."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(len(answers))]
    hand.loop.settle()
    stream, messages = b"", []
    for value, pushes in answers:
        for push in pushes:
            stream += b">2\r\n" + bulk(b"invalidate") + b"*1\r\n" + bulk(push)
            messages.append([b"invalidate", [push]])
        stream += encoded(value)
    places = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        hand.receive(stream[start:end])
    assert [each.result() for each in asked] == [value for value, _ in answers]
    assert [list(each) for each in hand.pushed] == messages
    assert not hand.wire.lost
    assert hand.wire.load == 0


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_replies_in_tiny_pieces(size):
    """Byte by byte it is the same."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(20)]
    hand.loop.settle()
    stream = b"".join(reply_to(b"%d" % number) for number in range(20))
    for start in range(0, len(stream), size):
        hand.receive(stream[start : start + size])
    assert [each.result() for each in asked] == [b"of %d" % number for number in range(20)]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(st.just("answer"), st.integers(1, 5)),
        st.tuples(st.just("cut"), st.integers(1, 9)),
        st.tuples(st.just("pause"), st.just(0)),
        st.tuples(st.just("drain"), st.just(0)),
        st.tuples(st.just("push"), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(actions)
def test_nobody_gets_another_ones_reply(steps: list[tuple[str, int]]):
    """Asking, cancelling, answering and blocking in any order: every reply is its caller's, none is lost, and no
    command is sent twice or out of order."""
    hand = Hand()
    asked: dict[int, Asked] = {}
    server, unanswered, sent, rest = RespScanner(), deque[bytes](), list[bytes](), b""
    gone: set[int] = set()

    def serve() -> None:
        for command in server.feed(b"".join(hand.take())):
            (name,) = words(command)
            unanswered.append(name)
            sent.append(name)

    def answer(count: int, cut: int | None = None) -> None:
        nonlocal rest
        serve()
        replies = rest + b"".join(
            # CACHING is answered too; who asked it has nothing to do with that reply
            OK if name == b"YES" else reply_to(name)
            for name in [unanswered.popleft() for _ in range(min(count, len(unanswered)))]
        )
        end = len(replies) if cut is None else max(len(replies) - cut, 0)
        if replies[:end]:
            hand.receive(replies[:end])
        rest = replies[end:]

    for step, argument in steps:
        number = len(asked)
        if step == "ask":
            size = (0, 10, 70_000)[argument]
            command = pack(("GET", f"{number}", b"x" * size)) if size else get(number)
            if number % 5 == 4:
                asked[number] = hand.wire.ask(pack(("CACHING", "YES")) + command, 1)
            else:
                asked[number] = hand.wire.ask(command)
        elif step == "cancel" and argument in asked and asked[argument].cancel():
            gone.add(argument)
        elif step == "turn":
            hand.loop.turn()
        elif step == "answer":
            answer(argument)
        elif step == "cut":
            answer(3, argument)
        elif step == "pause" and not hand.transport.full:
            hand.transport.full = True
            hand.wire.pause_writing()
        elif step == "drain":
            hand.transport.drain()
        elif step == "push" and not rest:
            hand.receive(b">1\r\n+hello\r\n")
    hand.transport.drain()
    for _ in range(200):
        hand.loop.settle()
        answer(50)
    for number, each in asked.items():
        assert each.cancelled() if number in gone else each.result() == b"of %d" % number
    numbers = [int(name) for name in sent if name != b"YES"]
    assert numbers == sorted(set(numbers))
    assert set(asked) - gone <= set(numbers)
    assert hand.wire.load == 0
    assert not hand.wire.lost


def test_who_is_cancelled_before_his_turn_is_never_sent():
    """Cancelled before the command has left, it does not leave."""
    hand = Hand()
    hand.wire.ask(get(0))
    hand.take()
    asked = [hand.wire.ask(get(number)) for number in range(1, 4)]
    asked[1].cancel()
    hand.loop.settle()
    assert hand.taken() == [b"1", b"3"]
    hand.receive(reply_to(b"0") + reply_to(b"1") + reply_to(b"3"))
    assert [each.result() for each in asked if not each.cancelled()] == [b"of 1", b"of 3"]


def test_who_is_cancelled_after_it_leaves_his_place():
    """Cancelled after the command has left, exactly its reply is dropped."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(4)]
    hand.loop.settle()
    asked[0].cancel()
    asked[2].cancel()
    hand.receive(b"".join(reply_to(b"%d" % number) for number in range(4)))
    assert asked[1].result() == b"of 1"
    assert asked[3].result() == b"of 3"
    later = hand.wire.ask(get(9))
    hand.loop.settle()
    hand.receive(reply_to(b"9"))
    assert later.result() == b"of 9"


def test_a_write_that_is_kept_is_sent_without_its_caller():
    """Cancelled before its turn, a command that must happen, or be known not to, leaves all the same; its reply is
    dropped."""
    hand = Hand()
    hand.wire.ask(get(0))
    hand.take()
    asked = [hand.wire.ask(get(number), KEPT) for number in range(1, 4)]
    asked[1].cancel()
    hand.loop.settle()
    assert hand.taken() == [b"1", b"2", b"3"]
    hand.receive(b"".join(reply_to(b"%d" % number) for number in range(4)))
    assert [each.result() for each in asked if not each.cancelled()] == [b"of 1", b"of 3"]
    assert hand.wire.load == 0


def test_all_cancelled_leaves_a_connection_that_works():
    """A thousand callers cancelled, half before their commands have left: the next caller has his own reply."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(500)]
    hand.loop.settle()
    asked += [hand.wire.ask(get(number)) for number in range(500, 1_000)]
    for each in asked:
        each.cancel()
    hand.loop.settle()
    last = hand.wire.ask(get(1_000))
    hand.loop.settle()
    names = hand.taken()
    assert names == [b"%d" % number for number in [*range(500), 1_000]]
    hand.receive(b"".join(map(reply_to, names)))
    assert last.result() == b"of 1000"
    assert not hand.wire.lost


def test_others_in_front_of_a_command_are_answered_to_nobody():
    """Of commands that leave together only the last one's reply is handed over."""
    hand = Hand()
    first = hand.wire.ask(pack(("ASKING",)) + get(1), 1)
    second = hand.wire.ask(pack(("MULTI",)) + get(2) + get(3) + pack(("EXEC",)), 3)
    third = hand.wire.ask(get(4))
    hand.loop.settle()
    hand.receive(OK + reply_to(b"1") + OK + b"+QUEUED\r\n" * 2 + b"*2\r\n" + reply_to(b"2") + reply_to(b"3"))
    assert first.result() == b"of 1"
    assert second.result() == [b"of 2", b"of 3"]
    assert not third.done()
    hand.receive(reply_to(b"4"))
    assert third.result() == b"of 4"


def test_the_reply_to_one_in_front_may_be_an_error():
    """It is dropped like any other: the command's own reply tells."""
    hand = Hand()
    asked = hand.wire.ask(pack(("ASKING",)) + get(1), 1)
    hand.loop.settle()
    hand.receive(b"-ERR no cluster\r\n" + reply_to(b"1"))
    assert asked.result() == b"of 1"


def test_an_error_reply_is_one_callers_own():
    """What the server refuses, it refuses to one caller."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(3)]
    hand.loop.settle()
    hand.receive(reply_to(b"0") + b"-WRONGTYPE of it\r\n" + reply_to(b"2"))
    assert asked[0].result() == b"of 0"
    assert isinstance(asked[1].result(), hiredis.ReplyError)
    assert asked[2].result() == b"of 2"


def test_messages_take_nobodys_place():
    """What the server tells by itself comes before, between and after replies, and with nobody asking."""
    hand = Hand()
    message = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
    hand.receive(message)
    asked = [hand.wire.ask(get(number)) for number in range(2)]
    hand.loop.settle()
    hand.receive(message + reply_to(b"0") + message + reply_to(b"1") + message)
    assert [each.result() for each in asked] == [b"of 0", b"of 1"]
    assert [list(each) for each in hand.pushed] == [[b"invalidate", None]] * 4


def test_a_message_is_told_before_the_reply_behind_it():
    """What comes first is told first: a copy made of the reply is not overtaken by the message before it."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    done_then: list[bool] = []
    hand.wire._on_pushed = lambda _: done_then.append(asked.done())
    hand.receive(b">2\r\n$10\r\ninvalidate\r\n_\r\n" + reply_to(b"0") + b">2\r\n$10\r\ninvalidate\r\n_\r\n")
    assert done_then == [False, True]


# How much is in the air


def test_the_window_in_commands():
    """At most 1,024 commands wait for replies; as many more leave as replies come."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(3_000)]
    hand.loop.settle()
    assert len(hand.taken()) == MOST_IN_AIR
    hand.receive(b"".join(reply_to(b"%d" % number) for number in range(10)))
    assert hand.taken() == [b"%d" % number for number in range(MOST_IN_AIR, MOST_IN_AIR + 10)]
    for number in range(10, 3_000):
        hand.receive(reply_to(b"%d" % number))
    assert [each.result() for each in asked] == [b"of %d" % number for number in range(3_000)]


def test_the_window_in_bytes():
    """Where replies are large, fewer are in the air, but never under sixteen; it widens again with small ones."""
    hand = Hand()
    large = bulk(b"x" * 100_000)
    for _ in range(200):
        hand.wire.ask(get(0))
        hand.loop.settle()
        hand.receive(large)
    hand.take()
    asked = [hand.wire.ask(get(number)) for number in range(300)]
    hand.loop.settle()
    in_air = len(hand.taken())
    assert in_air == LEAST_IN_AIR
    for _ in range(300):
        hand.receive(bulk(b"x" * 10))
    assert all(each.done() for each in asked)
    hand.take()
    for number in range(2_000):
        hand.wire.ask(get(number))
    hand.loop.settle()
    assert len(hand.taken()) > 500


def test_large_replies_in_pieces_narrow_the_window_too():
    """A reply that comes in many pieces counts as large as it is."""
    hand = Hand()
    for _ in range(200):
        hand.wire.ask(get(0))
        hand.loop.settle()
        data = bulk(b"x" * 400_000)
        for start in range(0, len(data), 65_536):
            hand.receive(data[start : start + 65_536])
    hand.take()
    for number in range(300):
        hand.wire.ask(get(number))
    hand.loop.settle()
    assert len(hand.taken()) == LEAST_IN_AIR


def test_nothing_is_written_while_the_system_takes_nothing():
    """After `pause_writing` commands wait; after `resume_writing` they leave, in order."""
    hand = Hand()
    hand.wire.pause_writing()
    for number in range(5):
        hand.wire.ask(get(number))
    hand.loop.settle()
    assert hand.take() == []
    hand.wire.resume_writing()
    assert hand.taken() == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("size", [20_000, 60_000, 100_000])
def test_a_full_buffer_stops_a_batch_of_large_commands(size):
    """When the system takes no more in the middle of a batch, the rest of it waits: memory stays bounded however many
    values are written at once, and however large they are."""
    hand = Hand(room=262_144)
    value = b"x" * size
    asked = [hand.wire.ask(pack(("SET", str(number), value))) for number in range(200)]
    hand.loop.settle()
    assert hand.transport.full
    assert hand.transport.buffered < 1_000_000
    for _ in range(300):
        hand.transport.drain()
        hand.loop.settle()
    assert hand.taken() == [b"%d" % number for number in range(200)]
    hand.receive(OK * 200)
    assert all(each.result() == b"OK" for each in asked)


def test_a_cancelled_command_does_not_take_up_the_window():
    """Callers who give up before their commands have left make room for those behind them."""
    hand = Hand()
    for number in range(MOST_IN_AIR):
        hand.wire.ask(get(number))
    waiting = [hand.wire.ask(get(number)) for number in range(5_000)]
    last = hand.wire.ask(get(7))
    hand.loop.settle()
    for each in waiting:
        each.cancel()
    hand.take()
    hand.receive(reply_to(b"0"))
    assert hand.taken() == [b"7"]
    assert not last.done()


def test_too_many_waiting_commands_are_refused():
    """The queue is bounded: one more is refused at once with this package's error, and those in it are answered."""
    hand = Hand(open=False)
    asked = [hand.wire.ask(get(number)) for number in range(MOST_WAITING)]
    for _ in range(3):
        with pytest.raises(BackendError, match="65,536"):
            hand.wire.ask(get(0))
    hand.wire.open()
    count = 0
    while count < MOST_WAITING:
        names = hand.taken()
        assert names == [b"%d" % number for number in range(count, count + len(names))]
        count += len(names)
        hand.receive(OK * len(names))
    assert all(each.result() == b"OK" for each in asked)
    hand.wire.ask(get(0))


# Large commands


@given(
    st.lists(st.one_of(st.text(), st.binary(), st.integers(), st.floats(allow_nan=False)), max_size=3),
    st.lists(st.binary(max_size=200), min_size=1, max_size=3),
    st.lists(st.binary(max_size=5), max_size=2),
    st.binary(max_size=10),
)
def test_a_command_in_pieces_is_as_hiredis_packs_it(
    before: list[str | bytes | float], data: list[bytes], after: list[bytes], front: bytes
):
    """Whatever its arguments are, and what stands in front of it."""
    whole = front + pack(("EVALSHA", *before, b"".join(data), *after))
    command = front + Pieces.of(("EVALSHA", *before), data, after)
    assert b"".join(command) == whole
    assert len(command) == len(whole)


def test_a_large_command_leaves_in_parts():
    """No turn of the loop hands more than a quarter of a megabyte of it to the system, and nothing gets in between."""
    hand = Hand()
    value = bytes(range(256)) * 8_000
    first = hand.wire.ask(get(0))
    large = hand.wire.ask(pack(("SET", "1", value)))
    second = hand.wire.ask(get(2))
    turns = 0
    sizes = []
    while hand.loop._soon:
        hand.loop.turn()
        turns += 1
        sizes.append(sum(map(len, hand.transport.writes)) - sum(sizes))
    assert max(sizes) <= 262_144 + 1_000
    assert turns >= 8
    assert hand.written == get(0) + pack(("SET", "1", value)) + get(2)
    hand.receive(reply_to(b"0") + OK + reply_to(b"2"))
    assert [each.result() for each in (first, large, second)] == [b"of 0", b"OK", b"of 2"]


def test_a_large_command_that_was_begun_is_finished():
    """Its caller is gone half-way: the rest leaves all the same, since the server waits for it."""
    hand = Hand()
    value = b"x" * 2_000_000
    large = hand.wire.ask(pack(("SET", "1", value)))
    assert 0 < len(hand.written) < 1_000_000
    large.cancel()
    after = hand.wire.ask(get(2))
    hand.loop.settle()
    assert hand.written == pack(("SET", "1", value)) + get(2)
    hand.receive(OK + reply_to(b"2"))
    assert after.result() == b"of 2"


def test_a_large_command_waits_for_the_system():
    """Its parts stop while the system takes nothing, and go on after it."""
    hand = Hand(room=300_000)
    value = b"x" * 2_000_000
    hand.wire.ask(pack(("SET", "1", value)))
    after = hand.wire.ask(get(2))
    hand.loop.settle()
    assert hand.transport.full
    assert hand.transport.buffered <= 300_000 + 262_144
    for _ in range(20):
        hand.transport.drain()
        hand.loop.settle()
    assert hand.written == pack(("SET", "1", value)) + get(2)
    assert not after.done()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([1, 100, 65_400, 65_536, 200_000, 262_144, 262_200, 800_000]), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=40, max_size=40),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_commands_of_any_size_leave_whole_and_in_order(sizes: list[int], full: list[bool], in_pieces: list[bool]):
    """Small and large ones, copied together or in pieces, while the system now takes some and now nothing."""
    hand = Hand(room=150_000)
    commands = [pack(("SET", str(number), b"x" * size)) for number, size in enumerate(sizes)]
    asked = []
    for number, command in enumerate(commands):
        pieces = Pieces.of(("SET", number), (b"x", b"x" * (sizes[number] - 1)))
        asked.append(hand.wire.ask(pieces if in_pieces[number] else command))
        if full[number]:
            hand.loop.turn()
    for each in full:
        hand.loop.turn()
        if each:
            hand.transport.drain()
    for _ in range(60):
        hand.loop.settle()
        hand.transport.drain()
    assert hand.written == b"".join(commands)
    hand.receive(OK * len(commands))
    assert [each.result() for each in asked] == [b"OK"] * len(commands)


def test_nothing_gets_ahead_within_a_large_command():
    """What may pass by those who wait does not leave in the middle of a command, nor on a connection that is not open:
    it is said that it could not be done."""
    hand = Hand(open=False)
    assert not hand.wire.ahead([get(8)])
    hand.wire.open()
    value = b"x" * 300_000
    large = hand.wire.ask(pack(("SET", "1", value)))
    after = hand.wire.ask(get(2))
    assert not hand.wire.ahead([get(9)])
    hand.loop.settle()
    assert hand.wire.ahead([get(3), get(4)])
    assert hand.written == pack(("SET", "1", value)) + get(2) + get(3) + get(4)
    hand.receive(OK + reply_to(b"2") + b"-ERR no\r\n" + OK)
    assert [each.result() for each in (large, after)] == [b"OK", b"of 2"]
    assert hand.wire.load == 0


def test_a_large_command_on_a_connection_that_is_lost():
    """The rest of it is thrown away, and its caller told."""
    hand = Hand()
    large = hand.wire.ask(pack(("SET", "1", b"x" * 2_000_000)))
    hand.transport.abort()
    hand.loop.settle()
    assert isinstance(large.result(), BackendUnavailable)
    assert len(hand.written) < 1_000_000


# Deadlines


def test_one_timer_for_all_deadlines():
    """However many commands are asked, there is one timer, and each caller is told at its own deadline."""
    hand = Hand()
    early = [hand.wire.ask(get(number)) for number in range(100)]
    hand.loop.age(0.2)
    hand.receive(b">1\r\n+alive\r\n")
    late = [hand.wire.ask(get(number)) for number in range(100)]
    hand.loop.age(0.2)
    hand.receive(b">1\r\n+alive\r\n")
    assert not any(each.done() for each in early + late)
    hand.loop.age(0.101)
    assert all(isinstance(each.result(), BackendTimeout) for each in early)
    assert not any(each.done() for each in late)
    hand.loop.age(0.2 + TIMEOUT / 4)
    assert all(isinstance(each.result(), BackendTimeout) for each in late)
    assert hand.loop.most_timers == 1
    errors = [each.result() for each in early + late]
    assert len({id(error) for error in errors}) == len(errors)


def test_one_timer_however_long_it_lasts():
    """With commands in the air all the time, each answered in time, there is one timer still, and nobody is told
    that he has waited too long."""
    hand = Hand()
    asked: list[Asked] = []
    for number in range(40):
        asked.append(hand.wire.ask(get(number)))
        if number >= 3:
            hand.receive(reply_to(b"%d" % (number - 3)))
        hand.loop.age(0.1)
    assert [each.result() for each in asked[:-3]] == [b"of %d" % number for number in range(37)]
    assert not any(each.done() for each in asked[-3:])
    assert hand.loop.most_timers == 1


def test_no_timer_stays_behind():
    """When nothing is asked, no timer runs for ever."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.receive(reply_to(b"0"))
    assert asked.done()
    hand.loop.age(2 * TIMEOUT)
    assert hand.loop.timers == []
    assert not hand.wire.lost


@settings(deadline=None, max_examples=80)
@given(st.lists(st.floats(0.001, 0.3), min_size=1, max_size=20))
def test_deadlines_are_kept_whenever_commands_are_asked(pauses: list[float]):
    """Whatever the times at which commands are asked of a server that only tells it is alive: each caller is told
    after the timeout, and not much later."""
    hand = Hand()
    told: dict[int, tuple[float, float]] = {}
    for number, pause in enumerate(pauses):
        began = hand.loop.now
        try:
            asked = hand.wire.ask(get(number))
        except BackendUnavailable:
            assert hand.wire.late
        else:
            asked.add_done_callback(
                lambda _, number=number, began=began: told.setdefault(number, (began, hand.loop.now))
            )
        hand.loop.age(pause)
        hear(hand.wire, b">1\r\n+alive\r\n")
    for _ in range(10):
        hand.loop.age(0.1)
        hear(hand.wire, b">1\r\n+alive\r\n")
    assert told
    for began, at in told.values():
        assert TIMEOUT - 1e-6 <= at - began <= TIMEOUT * 1.3


def test_a_command_that_waits_for_room_has_the_same_deadline():
    """The wait for the window is part of the time: it is told in time, and is never sent."""
    hand = Hand()
    for number in range(MOST_IN_AIR):
        hand.wire.ask(get(number))
    hand.loop.age(0.3)
    waiting = hand.wire.ask(get(5_000))
    hand.receive(reply_to(b"0"))  # room for one, which it takes
    unsent = hand.wire.ask(get(6_000))
    hand.loop.age(0.45)
    hand.receive(b">1\r\n+alive\r\n")
    hand.loop.age(0.06)
    assert isinstance(waiting.result(), BackendTimeout)
    assert isinstance(unsent.result(), BackendTimeout)
    hand.take()
    hand.receive(OK * MOST_IN_AIR)
    assert b"6000" not in hand.taken()


def test_a_deadline_of_its_own():
    """An operation of several commands has one time: a later command of it waits no longer than what is left, and its
    late reply is dropped."""
    hand = Hand()
    asked = hand.wire.ask(get(0), deadline=hand.loop.now + 0.1)
    other = hand.wire.ask(get(1))
    hand.loop.age(0.09)
    assert not asked.done()
    hand.loop.age(0.02)
    assert isinstance(asked.result(), BackendTimeout)
    assert not other.done()
    assert not hand.wire.late
    hand.receive(reply_to(b"0") + reply_to(b"1"))
    assert other.result() == b"of 1"
    over = hand.wire.ask(get(2), deadline=hand.loop.now - 1.0)
    hand.loop.age(0.001)
    assert isinstance(over.result(), BackendTimeout)


def test_a_late_server_is_not_asked_until_it_has_caught_up():
    """Once a command has waited too long, others are refused at once; the late replies go to nobody; after them all is
    well on the same connection."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(3)]
    hand.loop.age(0.4)
    hand.receive(b">1\r\n+alive\r\n")
    hand.loop.age(0.11)
    assert hand.wire.late
    assert all(isinstance(each.result(), BackendTimeout) for each in asked)
    with pytest.raises(BackendUnavailable):
        hand.wire.ask(get(9))
    hand.receive(reply_to(b"0") + reply_to(b"1"))
    with pytest.raises(BackendUnavailable):
        hand.wire.ask(get(9))
    hand.receive(reply_to(b"2"))
    assert not hand.wire.late
    hand.take()
    after = hand.wire.ask(get(4))
    hand.loop.settle()
    assert hand.taken() == [b"4"]
    hand.receive(reply_to(b"4"))
    assert after.result() == b"of 4"
    assert not hand.ends


def test_a_trickle_is_no_answer():
    """A reply that comes byte by byte keeps the connection, but its caller waits no longer than the timeout."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    reply = bulk(b"x" * 1_000)
    for at in range(60):
        hand.receive(reply[at : at + 1])
        hand.loop.age(0.01)
    assert isinstance(asked.result(), BackendTimeout)
    assert not hand.wire.lost
    hand.receive(reply[60:])
    assert not hand.wire.late


def test_a_silent_server_is_given_up():
    """Nothing at all for as long as a deadline: the connection is closed, with the reason."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.loop.age(TIMEOUT + 0.01)
    assert isinstance(asked.result(), BackendTimeout)
    assert hand.wire.lost
    assert hand.transport.aborted
    assert isinstance(hand.ends[0], BackendTimeout)
    assert len(hand.ends) == 1
    with pytest.raises(BackendUnavailable):
        hand.wire.ask(get(1))
    assert hand.loop.timers == []


def test_a_connection_that_does_not_open_in_time():
    """Who waits for it is told at his deadline, and so is the breaker."""
    hand = Hand(open=False)
    asked = [hand.wire.ask(get(number)) for number in range(3)]
    hand.loop.age(TIMEOUT + 0.01)
    assert all(isinstance(each.result(), BackendTimeout) and not each.result().sent for each in asked)
    assert hand.stalls == 1
    hand.wire.open()
    assert hand.take() == []


def test_a_loop_that_is_late_all_the_time_keeps_deadlines():
    """What it had no time to read may be there: it looks at that once, and then tells who has waited too long."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    for late, told in ((TIMEOUT, False), (0.0, True)):
        hand.loop.now += late + 0.1
        hand.loop.timers.pop().callback()
        assert asked.done() is told
    assert isinstance(asked.result(), BackendTimeout)


def test_a_greeting_that_is_not_answered():
    """Nobody else waits yet: it has its time like any other command, and may have been heard."""
    hand = Hand(open=False)
    [asked] = hand.wire.urgent(get(0))
    hand.loop.age(TIMEOUT + 0.01)
    assert isinstance(asked.result(), BackendTimeout)
    assert asked.result().sent


def test_a_wait_that_was_cancelled_leaves_no_failure_behind():
    """A caller cancelled just before his deadline: nothing is set on his future, and nothing is logged."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.loop.age(TIMEOUT - 0.01)
    asked.cancel()
    hand.loop.age(0.02)
    assert asked.cancelled()
    del asked
    gc.collect()


# How it ends


def ended(hand: Hand, asked: Sequence[Asked]) -> list[BackendError]:
    """What each caller was told, after the end: his own exception, once."""
    assert hand.wire.lost
    assert hand.transport.aborted
    assert len(hand.ends) == 1
    assert hand.wire.load == 0
    errors = [each.result() for each in asked]
    assert all(isinstance(error, BackendUnavailable) for error in errors)
    assert len({id(error) for error in errors}) == len(errors)
    with pytest.raises(BackendUnavailable):
        hand.wire.ask(get(0))
    assert all(isinstance(each.result(), BackendUnavailable) for each in hand.wire.urgent(get(0), get(1)))
    before = hand.written
    hand.loop.age(5.0)
    assert hand.written == before
    return errors


def test_a_reply_to_no_question_ends_the_connection():
    """What was not asked is not answered: who comes next must not get it."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.receive(reply_to(b"0") + reply_to(b"1"))
    assert asked.result() == b"of 0"
    ended(hand, [])


def test_a_reply_before_any_question_ends_it_too():
    """Also when nobody has asked anything yet."""
    hand = Hand()
    hand.receive(b"-ERR max number of clients reached\r\n")
    ended(hand, [])


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$x\r\n",
        b"\x16\x03\x01\x02\x00",
        b"*1\r\n$-7\r\n",
        b":12a\r\n",
        b"#x\r\n",
        b"*-9\r\n",
        b"$99999999999999999999\r\n",
        b"*9223372036854775807\r\n",
        b"*999999999999\r\n",
        b"%4611686018427387903\r\n",
        b"~9223372036854775807\r\n",
        b">9223372036854775807\r\n",
        b"*1\r\n" * 2_000,
        b">1\r\n" * 2_000,
    ],
    ids=lambda garbage: ascii(garbage[:24]),
)
def test_what_cannot_be_parsed_ends_the_connection(garbage):
    """After garbage nothing is trusted: not even what looks like a reply; nothing is raised into the loop."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(4)]
    hand.loop.settle()
    hand.receive(reply_to(b"0") + garbage + reply_to(b"1") * 3)
    assert asked[0].result() == b"of 0"
    for error in ended(hand, asked[1:]):
        assert isinstance(error.__cause__, Exception)


def test_the_end_tells_all_who_wait():
    """Sent or not, each is told by an exception of his own; the reason is its cause."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(MOST_IN_AIR + 50)]
    hand.loop.settle()
    gone = asked.pop(5)
    gone.cancel()
    reason = ConnectionResetError("by peer")
    hand.transport.aborted = True
    hand.wire.connection_lost(reason)
    assert all(error.__cause__ is reason for error in ended(hand, asked))
    assert gone.cancelled()
    assert hand.ends == [reason]


def test_a_reply_cut_in_the_middle_is_nobodys():
    """The connection ends within a reply: its caller is told, and has no half of it."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.receive(reply_to(b"0")[:-3])
    assert hand.wire.eof_received() is False
    hand.transport.abort()
    ended(hand, [asked])


def test_closing_twice_is_closing():
    """The second time nothing happens."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.wire.close(BackendUnavailable("redis: first"))
    hand.wire.close(BackendUnavailable("redis: second"))
    assert str(ended(hand, [asked])[0]) == "redis: first"


def test_a_reply_after_the_end_changes_nothing():
    """Bytes that the transport still had come after it was closed."""
    hand = Hand()
    asked = hand.wire.ask(get(0))
    hand.wire.close()
    hand.receive(reply_to(b"0"))
    ended(hand, [asked])


def test_closing_from_within_a_message():
    """Whoever is told of a message may end the connection: what follows in the same bytes is nobody's."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(2)]
    hand.loop.settle()
    hand.wire._on_pushed = lambda _: hand.wire.close()
    hand.receive(reply_to(b"0") + b">1\r\n+bye\r\n" + reply_to(b"1"))
    assert asked[0].result() == b"of 0"
    ended(hand, asked[1:])


def test_a_message_that_nobody_understands_ends_the_connection():
    """Whoever is told of it stumbles: the connection is not trusted any more, and nothing is raised into the loop."""
    hand = Hand()
    asked = [hand.wire.ask(get(number)) for number in range(2)]
    hand.loop.settle()
    hand.wire._on_pushed = lambda message: message[1]
    hand.receive(reply_to(b"0") + b">1\r\n+bye\r\n" + reply_to(b"1"))
    assert asked[0].result() == b"of 0"
    ended(hand, asked[1:])


def test_nothing_is_sent_again():
    """What was on its way when the connection ended is not sent by this one any more, nor by a later one."""
    hand = Hand()
    hand.wire.ask(pack(("INCR", "1")))
    hand.transport.abort()
    hand.wire.open()
    hand.loop.age(3.0)
    assert hand.written.count(b"INCR") == 1


# With a real loop, and a server by a script

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """The URL of a server that does this with every connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


GREETING = {
    b"HELLO": b"%1\r\n+proto\r\n:3\r\n",
    b"PING": b"+PONG\r\n",
    b"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
}


async def commands_of(reader: asyncio.StreamReader) -> AsyncIterator[list[bytes]]:
    """The commands of a client."""
    parser = hiredis.Reader()
    while data := await reader.read(65_536):
        parser.feed(data)
        while (command := parser.gets()) is not False:
            yield command


def greeting(name: bytes) -> bytes:
    """What a server says to the first words on a connection."""
    if name == b"TIME":
        now = time.time()
        return b"*2\r\n" + bulk(b"%d" % now) + bulk(b"%d" % (now % 1 * 1e6))
    return GREETING.get(name, OK)


def talking(answer: Callable[[list[bytes]], bytes | None]) -> Script:
    """A server that greets, and answers other commands so; ``None`` ends the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands_of(reader):
            name = command[0].upper()
            known = name in (b"HELLO", b"CLIENT", b"SELECT", b"PING", b"TIME", b"ROLE")
            reply = greeting(name) if known else answer(command)
            if reply is None:
                return
            writer.write(reply)

    return script


async def test_thousands_at_once_in_bytes_cut_anywhere():
    """Over a real socket whose server writes in odd pieces, a third of the callers cancelled: every reply is its
    caller's."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sizes = itertools.cycle((1, 50, 3, 700, 13))
        async for command in commands_of(reader):
            name = command[0].upper()
            reply = bulk(b"of " + command[1]) if name == b"GETRANGE" else greeting(name)
            while reply:
                size = next(sizes)
                writer.write(reply[:size])
                reply = reply[size:]
                if size == 13:
                    await writer.drain()

    async with serving(script) as url:
        backend = on_redis(f"{url}?timeout=8s")
        pool = backend.pool()

        async def ask(number: int) -> Any:
            return await pool.ask(b"key", "GETRANGE", str(number), 0, 9)

        tasks = [asyncio.create_task(ask(number)) for number in range(3_000)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 3:
                assert result == b"of %d" % number
            else:
                assert isinstance(result, asyncio.CancelledError)
        await backend.aclose()


async def test_a_server_that_reads_nothing_holds_no_memory():
    """Large values written to a server that takes nothing: what is handed to the system stays bounded, and each caller
    has his answer in time."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands_of(reader):
            writer.write(greeting(command[0].upper()))
            if command[0].upper() == b"TIME":
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.Event().wait()

    async with serving(script) as url, Cache(f"{url}?timeout=300ms", codec="bytes") as cache:
        assert await cache.ping() is True or True
        value = bytes(50_000)
        began = time.perf_counter()
        stored = await asyncio.gather(*[cache.set(f"k{number}", value) for number in range(400)])
        assert not any(stored)
        assert time.perf_counter() - began < 2.0


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"-ERR max number of clients reached\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-DENIED Redis is running in protected mode\r\n",
        b"+\r\n" * 5,
        b"*0\r\n" * 20,
        b"$-1\r\n" * 20,
        b":1\r\n" * 20,
        b"",
    ],
    ids=lambda first: ascii(first[:20]),
)
async def test_a_strange_greeting_is_an_absent_server(first):
    """Whatever answers at the port: a read misses, a write says no, promptly, and closing leaves nothing."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.05)

    async with serving(script) as url, Cache(url) as cache:
        began = time.perf_counter()
        assert await cache.get("key", "absent") == "absent"
        assert await cache.set("key", 1) is False
        assert await cache.get_or_set("key", lambda: 2) == 2
        assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize(
    "strange",
    [b"$-1\r\n", b"*0\r\n", b":7\r\n", b"$3\r\nabc\r\n", b"-ERR no\r\n", b"*1\r\n$1\r\nx\r\n", b"+\r\n", b"*-1\r\n"],
    ids=ascii,
)
async def test_strange_replies_are_no_crash(strange, protocol):
    """A server whose replies after the greeting are of no type that is expected: every call answers by what it may
    answer when the server fails, and raises nothing."""
    async with serving(talking(lambda _: strange)) as url, Cache(f"{url}?protocol={protocol}") as cache:
        assert await cache.get("key") is None
        assert await cache.get_many(["a", "b"]) == {}
        assert await cache.set("key", 1) in (True, False)
        assert await cache.set_many({"a": 1}) in (True, False)
        assert await cache.delete("key") in (True, False)
        assert await cache.touch("key", 5) in (True, False)
        assert type(await cache.incr("key")) is int
        assert await cache.clear() == 0
        assert [key async for key in cache.keys("*")] == []
        assert await cache.get_or_set("key", lambda: 5) == 5
        assert await cache.ping() in (True, False)


@pytest.mark.parametrize(
    "message",
    [
        b">0\r\n",
        b">1\r\n:5\r\n",
        b">1\r\n-ERR no\r\n",
        b">2\r\n+hello\r\n_\r\n",
        b">1\r\n+invalidate\r\n",
        b">2\r\n$10\r\ninvalidate\r\n:7\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n_\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\n\xff\r\n",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("local", [None, "memory://"])
async def test_strange_messages_are_no_crash(message, local):
    """Whatever a server tells by itself: calls are answered, by it or as without it, and nothing reaches the loop."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    server = talking(lambda command: message + (b"$0\r\n\r\n" if command[0] == b"GETRANGE" else OK) + message)
    async with serving(server) as url, Cache(url, local=local) as cache:
        for number in range(5):
            assert await cache.get(f"k{number}") is None
            assert await cache.set(f"k{number}", 1) in (True, False)
            assert await cache.get_or_set(f"k{number}", lambda: 2) in (1, 2)
    assert failures == []


async def test_a_server_that_hangs_up_within_a_reply():
    """A connection cut in the middle of each reply: misses, and no exception."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands_of(reader):
            name = command[0].upper()
            if name == b"GETRANGE":
                writer.write(b"$100\r\nabc")
                await writer.drain()
                return
            writer.write(greeting(name))

    async with serving(script) as url, Cache(url) as cache:
        for _ in range(5):
            assert await cache.get("key", "absent") == "absent"


async def test_a_lost_reply_is_not_asked_for_again():
    """A counter's command whose reply never came was sent once, and is not sent on the next connection."""
    seen: list[bytes] = []

    def answer(command: list[bytes]) -> bytes | None:
        seen.append(command[0].upper())
        return None

    async with serving(talking(answer)) as url, Cache(url, on_error="raise") as cache:
        with pytest.raises(CacheError):
            await cache.incr("key")
        assert await cache.ping()
        await asyncio.sleep(0.1)  # nor later
    assert seen.count(b"EVALSHA") == 1


async def test_all_commands_of_a_turn_come_in_few_reads():
    """A hundred callers at once, a few segments: what the server reads is gathered."""
    reads: list[int] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            count = 0
            while (command := parser.gets()) is not False:
                count += command[0].upper() == b"GETRANGE"
                writer.write(b"$0\r\n\r\n" if command[0].upper() == b"GETRANGE" else greeting(command[0].upper()))
            if count:
                reads.append(count)

    async with serving(script) as url, Cache(url) as cache:
        await cache.get("warm")
        reads.clear()
        await asyncio.gather(*[cache.get(f"k{number}") for number in range(100)])
        assert sum(reads) == 100
        assert len(reads) <= 3


# Redirections by servers that are not right in the head


def cluster_of(port: int, answer: Callable[[list[bytes]], bytes | None], slots: bytes | None = None) -> Script:
    """A node that says it has all slots, or this of them, and answers other commands so."""
    place = b"*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port

    def answered(command: list[bytes]) -> bytes | None:
        if command[0].upper() == b"CLUSTER":
            return b"*1\r\n" + place if slots is None else slots
        return answer(command)

    return talking(answered)


async def answers_all(cache: Cache) -> None:
    """Every call answers promptly, as it may when the server fails, and raises nothing."""
    for call in (
        lambda: cache.get("key"),
        lambda: cache.get_many(["a", "b", "c"]),
        lambda: cache.set("key", 1),
        lambda: cache.set_many({"a": 1, "b": 2}),
        lambda: cache.delete("key"),
        lambda: cache.incr("key"),
        lambda: cache.touch("key", 5),
        lambda: cache.clear(),
        lambda: cache.get_or_set("key", lambda: 5),
        lambda: cache.ping(),
    ):
        began = time.perf_counter()
        await call()
        assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    "error",
    [
        b"MOVED", b"MOVED 5", b"MOVED x y:1", b"MOVED 5 nowhere", b"MOVED 99999 127.0.0.1:1", b"MOVED -1 127.0.0.1:1",
        b"MOVED 5 127.0.0.1:notaport", b"MOVED 5 127.0.0.1:99999", b"MOVED 5 :", b"MOVED 5 [::1]:1", b"ASK",
        b"ASK 5", b"ASK x y", b"ASK 5 127.0.0.1:0", b"MOVED 5 127.0.0.1:1 and more", b"MOVED  5  127.0.0.1:1",
        b"TRYAGAIN", b"CLUSTERDOWN Hash slot not served", b"NOSCRIPT No matching script",
    ],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_strange_redirections_are_no_crash(error, scheme):
    """A node that sends commands nowhere: every call answers, and closing leaves nothing."""
    async with serving(talking(lambda _: b"")) as unused:
        port = int(unused.rsplit(":", 1)[1])
    script = cluster_of(port, lambda _: b"-" + error + b"\r\n")
    async with serving(script) as url, Cache(url.replace("redis", scheme, 1) + "?timeout=300ms") as cache:
        await answers_all(cache)


async def test_nodes_that_send_commands_round_in_circles():
    """Two nodes, each of which says that the other one has it: a few tries, then it is a failure."""
    seen = 0
    places: list[bytes] = []

    def answer(number: int) -> Callable[[list[bytes]], bytes]:
        def answered(_: list[bytes]) -> bytes:
            nonlocal seen
            seen += 1
            return b"-MOVED 5 127.0.0.1:%s\r\n" % places[1 - number]

        return answered

    async with serving(cluster_of(1, answer(0), b"*0\r\n")) as one, serving(cluster_of(1, answer(1), b"*0\r\n")) as two:
        places += [url.rsplit(":", 1)[1].encode() for url in (one, two)]
        async with Cache(one.replace("redis", "redis+cluster", 1), on_error="raise") as cache:
            began = time.perf_counter()
            with pytest.raises(BackendUnavailable):
                await cache.get("key")
            assert time.perf_counter() - began < 1.0
        assert seen <= 12


@pytest.mark.parametrize(
    "table",
    [
        b"$-1\r\n", b"*0\r\n", b":5\r\n", b"-ERR This instance has cluster support disabled\r\n", b"*1\r\n*0\r\n",
        b"*1\r\n:5\r\n",
        b"*1\r\n*3\r\n:0\r\n:16383\r\n*0\r\n", b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n:5\r\n:5\r\n",
        b"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$1\r\nx\r\n:5\r\n", b"*1\r\n*3\r\n$1\r\na\r\n:9\r\n*2\r\n$1\r\nx\r\n:5\r\n",
        b"*1\r\n*3\r\n:9\r\n:5\r\n*2\r\n$1\r\nx\r\n:5\r\n", b"*1\r\n*3\r\n:0\r\n:9\r\n*2\r\n$1\r\n\xff\r\n:5\r\n",
    ],
    ids=ascii,
)  # fmt: skip
async def test_a_strange_map_is_no_crash(table):
    """A node that says strange things about its cluster: every call answers."""
    async with (
        serving(cluster_of(1, lambda _: OK, table)) as url,
        Cache(url.replace("redis", "redis+cluster", 1) + "?timeout=300ms") as cache,
    ):
        await answers_all(cache)


@pytest.mark.parametrize(
    "place",
    [
        b"*-1\r\n", b"$-1\r\n", b"*0\r\n", b"*1\r\n$1\r\nx\r\n", b"*2\r\n:1\r\n:2\r\n", b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n",
        b"*2\r\n$1\r\n\xff\r\n$1\r\n1\r\n", b"*2\r\n_\r\n_\r\n", b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n99999\r\n", b":1\r\n",
        b"-IDONTKNOW\r\n", b"+OK\r\n", b"*2\r\n$0\r\n\r\n$0\r\n\r\n",
    ],
    ids=ascii,
)  # fmt: skip
async def test_a_strange_sentinel_is_no_crash(place):
    """A sentinel that says strange things about the master: every call answers."""
    async with serving(talking(lambda _: place)) as url:
        name = url.replace("redis", "redis+sentinel", 1) + "/main?timeout=300ms"
        async with Cache(name) as cache:
            await answers_all(cache)


@pytest.mark.parametrize(
    "place", [b"*-1\r\n", b"*2\r\n:1\r\n:2\r\n", b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n", b"+OK\r\n"], ids=ascii
)
async def test_one_strange_sentinel_of_two(place):
    """The other one is believed."""
    async with serving(talking(lambda _: b"$0\r\n\r\n")) as master:
        host, port = master.removeprefix("redis://").split(":")
        good = b"*2\r\n" + bulk(host.encode()) + bulk(port.encode())

        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.05)
            await talking(lambda _: good)(reader, writer)

        async with serving(talking(lambda _: place)) as strange, serving(slowly) as sane:
            places = ",".join(each.removeprefix("redis://") for each in (strange, sane))
            async with Cache(f"redis+sentinel://{places}/main", on_error="raise") as cache:
                assert await cache.get("key", "absent") == "absent"
