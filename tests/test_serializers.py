"""Values to bytes and back: equal and of the same type, or refused with the place."""

import array
import collections
import enum
import math
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from unittest.mock import ANY
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asynccache import DecodeError, EncodeError
from asynccache.serializers.json import JsonSerializer
from asynccache.serializers.pickle import PickleSerializer
from asynccache.serializers.plain import BytesSerializer, StrSerializer

JSON = JsonSerializer()
PLAIN = JsonSerializer(tags=False)
TAGGED = b"\x01"


def same(one: Any, other: Any) -> bool:
    """Whether two are the same to the last bit: of the same types all the way down, NaN and signs of zero included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, set | frozenset):
        left = list(other)
        for item in one:
            place = next((place for place, each in enumerate(left) if same(item, each)), None)
            if place is None:
                return False
            del left[place]
        return not left
    if isinstance(one, datetime | time):
        return one == other and one.tzinfo == other.tzinfo and one.fold == other.fold
    return bool(one == other)


ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=-3, minutes=30)), ZoneInfo("Europe/Berlin")])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**63 - 2, 2**65),
    st.floats(),
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(["$", "v", "tuple"]),
    st.binary(max_size=20),
    st.decimals(),
    st.uuids(),
    st.dates(),
    st.datetimes(timezones=ZONES, allow_imaginary=False),
    st.times(),
    st.timedeltas(),
    st.complex_numbers(),
)
HASHABLE = st.recursive(
    SCALARS.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan())),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=9).map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=4),
        st.dictionaries(st.sampled_from(["$", "v", "a"]), inner, max_size=3),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(VALUES)
@example({"$": "tuple", "v": [1]})
@example([{"$": "tuple", "v": [1]}, (1,)])
@example({"$": 1, "v": 2, "w": (3,)})
@example([float("nan"), -0.0, float("-inf"), 1, 1.0, True])
@example({1: "a", 1.5: "b", None: "c", (1, "x"): "d", b"": "e"})
def test_what_goes_in_comes_out(value: Any) -> None:
    """Every value of the table, however nested, comes back equal and of the same types, keys included."""
    assert same(JSON.loads(JSON.dumps(value)), value)
    assert same(JSON.loads(memoryview(JSON.dumps(value))), value)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=4),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_what_json_has_is_plain_json(value: Any) -> None:
    """What JSON has needs no tag: any program reads it."""
    assert JSON.dumps(value) == PLAIN.dumps(value)
    assert same(orjson.loads(JSON.dumps(value)), value)
    assert same(PLAIN.loads(PLAIN.dumps(value)), value)


@pytest.mark.parametrize(
    "value",
    [(1,), {1}, {1: 2}, float("nan"), 2**64, b"", datetime(2026, 1, 1), UUID(int=1), [float("inf")], {"a": (1,)}],
)
def test_plain_documents_have_no_tags(value: Any) -> None:
    """Without tags what JSON does not have is refused, and a tagged document is no plain one."""
    with pytest.raises(EncodeError, match="value"):
        PLAIN.dumps(value)
    tagged = JSON.dumps(value)
    assert tagged[:1] == TAGGED
    with pytest.raises(DecodeError):
        PLAIN.loads(tagged)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ADA = "ada"


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Pair(NamedTuple):
    a: int
    b: int


class Moment(datetime):
    pass


class Nowhere(tzinfo):
    def utcoffset(self, _: Any) -> timedelta:
        return timedelta(0)

    def tzname(self, _: Any) -> str:
        return "nowhere"

    def dst(self, _: Any) -> None:
        return None


@dataclass
class Record:
    x: int


@pytest.mark.parametrize(
    "thing",
    [
        Colour.RED,
        Level.LOW,
        Name.ADA,
        Text("x"),
        Number(5),
        Pair(1, 2),
        Record(1),
        Moment(2026, 1, 1),
        ANY,
        object(),
        collections.OrderedDict(a=1),
        collections.defaultdict(list),
        collections.Counter("a"),
        collections.deque([1]),
        array.array("b", b"x"),
        Fraction(1, 2),
        PurePosixPath("x"),
        range(3),
        len,
        orjson.Fragment(b"1"),
        "\ud800",
        datetime(2026, 1, 1, tzinfo=Nowhere()),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "mine")),
        type,
        NotImplemented,
        ...,
    ],
)
@pytest.mark.parametrize("serializer", [JSON, PLAIN], ids=["tags", "plain"])
def test_what_would_come_back_otherwise_is_refused(thing: Any, serializer: JsonSerializer) -> None:
    """A subclass, an enum, any other class: refused alone and inside, with the place of it."""
    for value, place in (
        (thing, "value:"),
        ([1, thing], "value[1]:"),
        ({"users": [0, {"x": thing}]}, "value['users'][1]['x']:"),
    ):
        with pytest.raises(EncodeError) as caught:
            serializer.dumps(value)
        assert str(caught.value).startswith(place)


@pytest.mark.parametrize("key", [Level.LOW, Name.ADA, Text("x"), Pair(1, 2), "\ud800", Colour.RED])
def test_a_key_that_would_come_back_otherwise_is_refused(key: Any) -> None:
    """Keys are values too."""
    with pytest.raises(EncodeError, match="value"):
        JSON.dumps({key: 1})
    with pytest.raises(EncodeError, match="value"):
        JSON.dumps({"a": {key, 1} if key != "\ud800" else [key]})


def nested(depth: int, around: Any) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = around(value)
    return value


@pytest.mark.parametrize("around", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)])
def test_what_is_nested_too_deep_is_refused(around: Any) -> None:
    """Depth is an error of this package, however deep, and so is a value that holds itself."""
    assert same(JSON.loads(JSON.dumps(nested(50, around))), nested(50, around))
    for depth in (255, 400, 5_000):
        with pytest.raises(EncodeError, match="deep"):
            JSON.dumps(nested(depth, around))
    loop: list[Any] = [(1,)]
    loop.append(loop)
    with pytest.raises(EncodeError, match="deep"):
        JSON.dumps(loop)


def bad(*tags: bytes) -> list[bytes]:
    return [TAGGED + tag for tag in tags]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b"\xff",
        b"\x80\x05K\x01.",
        TAGGED,
        TAGGED + TAGGED + b"1",
        b"[" * 5_000,
        TAGGED + b"[" * 5_000,
        *bad(
            b'{"$":"nobody","v":1}',
            b'{"$":"tuple"}',
            b'{"$":"tuple","v":1}',
            b'{"$":"tuple","v":[],"x":1}',
            b'{"$":[],"v":1}',
            b'{"$":"set","v":[[1]]}',
            b'{"$":"dict","v":[1]}',
            b'{"$":"dict","v":[[[],1]]}',
            b'{"$":"dict","v":5}',
            b'{"$":"int","v":"x"}',
            b'{"$":"int","v":5}',
            b'{"$":"float","v":"1e5"}',
            b'{"$":"float","v":[]}',
            b'{"$":"bytes","v":"*"}',
            b'{"$":"bytes","v":5}',
            b'{"$":"decimal","v":"x"}',
            b'{"$":"uuid","v":"x"}',
            b'{"$":"date","v":"2026-13-01"}',
            b'{"$":"datetime","v":["x",0,null]}',
            b'{"$":"datetime","v":[]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",7,null]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,"No/Where"]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,"../../etc/passwd"]}',
            b'{"$":"time","v":["25:00",0,null]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,99999999999999]}',
            b'{"$":"timedelta","v":[1e300,0,0]}',
            b'{"$":"timedelta","v":["a",0,0]}',
            b'{"$":"complex","v":["a",0]}',
            b'{"$":"complex","v":[1.0]}',
            b'{"$":"timedelta","v":[999999999999,0,0]}',
            b'{"$":"bytearray","v":null}',
        ),
    ],
)
def test_bad_bytes_are_a_decode_error(data: bytes) -> None:
    """Bytes that mean nothing are refused, whatever they are."""
    with pytest.raises(DecodeError):
        JSON.loads(data)


def test_a_long_number_takes_no_time() -> None:
    """A number of a hundred thousand digits comes back, and does not meet the interpreter's limit on digits."""
    value = 7**120_000
    assert JSON.loads(JSON.dumps(value)) == value


@settings(max_examples=300, deadline=None)
@given(VALUES, st.data())
def test_mutated_bytes_are_a_value_or_an_error(value: Any, data: st.DataObject) -> None:
    """Whatever happens to the bytes, reading them gives a value or a DecodeError."""
    document = bytearray(JSON.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        if not document:
            break
        place = data.draw(st.integers(0, len(document) - 1))
        if data.draw(st.booleans()):
            document[place] = data.draw(st.integers(0, 255))
        else:
            del document[place : place + data.draw(st.integers(1, 5))]
    try:
        JSON.loads(bytes(document))
    except DecodeError:
        pass


@given(st.binary())
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    """Bytes of any origin, tagged or not."""
    for document in (data, TAGGED + data):
        try:
            JSON.loads(document)
        except DecodeError:
            pass


def test_threads_share_a_serializer() -> None:
    """It keeps nothing between two calls."""
    problems: list[Any] = []

    def work(number: int) -> None:
        for turn in range(300):
            value = {"a": (number, turn), number: [turn]}
            if not same(JSON.loads(JSON.dumps(value)), value):
                problems.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# Bytes, text, pickle


def test_bytes_and_text_are_kept_as_they_are() -> None:
    """Exactly those, and nothing that only looks like them."""
    assert BytesSerializer().loads(memoryview(BytesSerializer().dumps(b"\0\xff"))) == b"\0\xff"
    assert type(BytesSerializer().loads(memoryview(b"x"))) is bytes
    assert StrSerializer().loads(memoryview(StrSerializer().dumps("ü\0"))) == "ü\0"
    for serializer, values in (
        (BytesSerializer(), ("x", bytearray(b"x"), None)),
        (StrSerializer(), (b"x", Text("x"), 1, "\ud800")),
    ):
        for value in values:
            with pytest.raises(EncodeError):
                serializer.dumps(value)
    with pytest.raises(DecodeError):
        StrSerializer().loads(b"\xff")


class Sulky:
    """An object that will not be pickled, or not be made again."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> object:
        if self.when == "dumps":
            raise RuntimeError("no")
        return {"when": self.when}

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("no")


def test_pickle_fails_by_this_packages_errors() -> None:
    """What a class raises while it is pickled or made again is an EncodeError or a DecodeError."""
    serializer = PickleSerializer()
    record = Record(1)
    assert serializer.loads(memoryview(serializer.dumps(record))) == record
    for value in (Sulky("dumps"), lambda: 1):
        with pytest.raises(EncodeError):
            serializer.dumps(value)
    with pytest.raises(DecodeError):
        serializer.loads(serializer.dumps(Sulky("loads")))
    for data in (b"", b"garbage", b"cnowhere\nNobody\n."):
        with pytest.raises(DecodeError):
            serializer.loads(data)


def test_dates_are_exact_types() -> None:
    """A date is no datetime, nor the other way round."""
    for value in (date(2026, 1, 1), datetime(2026, 1, 1), time(1, 2, 3, 4, fold=1), time(1, tzinfo=UTC)):
        assert same(JSON.loads(JSON.dumps(value)), value)
