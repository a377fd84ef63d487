"""Values to bytes and back: equal and of the same type, or refused with the place."""

import array
import collections
import enum
import math
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction
from importlib.resources import files
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


THING = object()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ((0, THING), "value[1]"),
        ({3: {"a": THING}}, "value[3]['a']"),
        ({("x", 1): (THING,)}, "value[('x', 1)][0]"),
        ({"$": 1, "a": THING}, "value['a']"),
        ({7**6_000: THING}, "value[…]"),
        ([{THING: 1}], "value[0] (a key)"),
        ([{(1, THING)}], "value[0] (a member)[1]"),
        ([frozenset([THING])], "value[0] (a member)"),
        ({"a": {"\ud800": 1}}, "value['a'] (the key '\\ud800')"),
        ({"$": 1, "a": ["\ud800"]}, "value['a'][0]"),
        ([1, datetime(2026, 1, 1, tzinfo=Nowhere())], "value[1]"),
        ({"k" * 9_999: THING}, "value['" + "k" * 12 + "..." + "k" * 13 + "']"),
    ],
)
def test_the_place_is_named_whatever_holds_it(value: Any, place: str) -> None:
    """An index, a key of any type, a member of a set: the error says the way to what it refuses, and stays short."""
    with pytest.raises(EncodeError) as caught:
        JSON.dumps(value)
    assert str(caught.value).startswith(f"{place}: ")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"$": 1, "\ud800": 2}, "value (the key '\\ud800'): a text with a lone surrogate is no JSON"),
        ([math.inf], "value[0]: plain JSON does not have NaN and infinities"),
        ({"n": 2**64}, "value['n']: plain JSON does not have int past 64 bits"),
        ([{1: 2}], "value[0]: plain JSON does not have keys that are no str"),
        ([(1,)], "value[0]: plain JSON does not have tuple"),
    ],
)
def test_plain_documents_say_what_they_lack(value: Any, reason: str) -> None:
    """The error of a plain document names the place and what JSON does not have."""
    with pytest.raises(EncodeError) as caught:
        PLAIN.dumps(value)
    assert str(caught.value) == reason


class Moody:
    """A key that raises when it is compared with the key of the tags."""

    def __hash__(self) -> int:
        return hash("$")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


class Unhashable(type):
    """Makes classes that no table can be asked for: who defines only equality has no hash."""

    def __eq__(cls, other: object) -> bool:
        return True


class Liar(metaclass=Unhashable):
    pass


@pytest.mark.parametrize("serializer", [JSON, PLAIN], ids=["tags", "plain"])
@pytest.mark.parametrize("value", [{Moody(): 1}, [Liar()], Liar()])
def test_no_code_of_the_value_runs(value: Any, serializer: JsonSerializer) -> None:
    """What a foreign class does when it is hashed or compared is never asked."""
    with pytest.raises(EncodeError, match="JSON does not"):
        serializer.dumps(value)


def zone_of(key: str | None, rules: str) -> ZoneInfo:
    """A zone read from a file by its user."""
    continent, city = rules.split("/")
    with (files(f"tzdata.zoneinfo.{continent}") / city).open("rb") as file:
        return ZoneInfo.from_file(file, key=key)


AMBIGUOUS = datetime(2026, 10, 25, 2, 30)
"""In Berlin the clock shows it twice."""


@pytest.mark.parametrize(
    "zone",
    [
        zone_of(None, "Europe/Berlin"),
        zone_of("No/Where", "Europe/Berlin"),
        zone_of("Asia/Tokyo", "Europe/Berlin"),
        zone_of("Europe", "Europe/Berlin"),
        zone_of("x" * 300, "Europe/Berlin"),
    ],
)
def test_a_zone_that_its_key_does_not_bring_back_is_refused(zone: ZoneInfo) -> None:
    """A zone made from a file comes back only if its key leads to the same times."""
    with pytest.raises(EncodeError, match=r"^value\[0\]: its time zone does not come back"):
        JSON.dumps([datetime(2026, 1, 1, tzinfo=zone)])


def test_a_second_object_of_a_zone_comes_back_where_it_is_equal() -> None:
    """A zone outside the interpreter's cache is its key, but in an ambiguous hour nothing is equal to it: refused."""
    zone = ZoneInfo.no_cache("Europe/Berlin")
    for value in (datetime(2026, 1, 1, tzinfo=zone), time(1, tzinfo=zone), datetime.min.replace(tzinfo=zone)):
        assert JSON.loads(JSON.dumps(value)) == value
    for fold in (0, 1):
        with pytest.raises(EncodeError, match="time zone"):
            JSON.dumps(AMBIGUOUS.replace(tzinfo=zone, fold=fold))
        value = AMBIGUOUS.replace(tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
        back = JSON.loads(JSON.dumps(value))
        assert same(back, value)
        assert back.utcoffset() == timedelta(hours=2 - fold)


@pytest.mark.parametrize(
    "text", ["NaN", "-NaN123", "sNaN", "-sNaN7", "Infinity", "-Infinity", "-0", "1E+999999", "0.10"]
)
def test_decimals_come_back_digit_for_digit(text: str) -> None:
    """Signalling NaN, payloads, signs and trailing zeros are kept, whatever the caller's decimal context says."""
    with localcontext() as context:
        context.prec = 1
        context.capitals = 0
        assert same(JSON.loads(JSON.dumps([Decimal(text)])), [Decimal(text)])


def test_a_lenient_decimal_context_makes_no_nan_of_garbage() -> None:
    """A caller that does not trap invalid operations gets the error all the same."""
    with localcontext() as context:
        context.traps[InvalidOperation] = False
        for text in (b"x", b"1e99999999999999999999"):
            with pytest.raises(DecodeError):
                JSON.loads(TAGGED + b'{"$":"decimal","v":"' + text + b'"}')


def test_a_value_that_changes_meanwhile_is_refused() -> None:
    """Another thread's change of a dict while it is walked is an error of this package."""
    value: dict[Any, Any] = {0: ()}

    def change(*_: Any) -> None:
        value[len(value)] = ()

    sys.setprofile(change)  # between any two calls
    try:
        with pytest.raises(EncodeError, match="changes"):
            JSON.dumps(value)
    finally:
        sys.setprofile(None)


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
            b'{"$":"timedelta","v":"123"}',
            b'{"$":"timedelta","v":[1,2,3,4]}',
            b'{"$":"timedelta","v":[1.5,2,3]}',
            b'{"$":"timedelta","v":[true,2,3]}',
            b'{"$":"dict","v":["ab"]}',
            b'{"$":"dict","v":{"ab":1}}',
            b'{"$":"dict","v":[{"a":1,"b":2}]}',
            b'{"$":"dict","v":[[1,2,3]]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00+01:00",0,null]}',
            b'{"$":"time","v":["00:00:00+01:00",0,null]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,"Europe"]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,""]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,true]}',
            b'{"$":"datetime","v":["2026-01-01T00:00:00",0,"a\\u0000"]}',
            b'{"$":"time","v":["00:00:00",0,"' + b"x" * 300 + b'"]}',
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


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12) | st.text("./_\\-Europe ", max_size=12))
def test_any_name_of_a_zone_is_a_value_or_an_error(key: str) -> None:
    """A zone's name in the bytes opens no folder, no file beside the zones, and no other error."""
    document = TAGGED + orjson.dumps({"$": "time", "v": ["00:00:00", 0, key]})
    try:
        assert JSON.loads(document).tzinfo.key == key
    except DecodeError:
        pass


def test_a_tagged_document_cut_anywhere_is_a_decode_error() -> None:
    """No beginning of a tagged document is taken for the whole."""
    document = JSON.dumps([(1, 2.5), {1: b"x", "$": {2}}, datetime(2026, 1, 1, tzinfo=UTC), 2**70, Decimal(1), "é"])
    for length in range(len(document)):
        with pytest.raises(DecodeError):
            JSON.loads(document[:length])


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
