"""Values of a type: the same type comes back from every store."""

import enum
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from stores import STORES, opened

from asynccache import Cache, ConfigError, DecodeError, EncodeError
from asynccache._shapes import result_shape, shape_for
from asynccache.backends.file import FileBackend
from asynccache.serializers.json import JsonSerializer
from asynccache.testing import TravellingClock

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class User:
    id: UserId
    name: str
    born: date
    seen: datetime
    token: UUID
    credit: Decimal
    photo: bytes
    tags: set[str]
    colour: Colour
    level: Level = Level.LOW
    home: Point | None = None
    path: list[Point] = field(default_factory=list)


@dataclass(eq=False)
class Anything:
    thing: Any


@dataclass
class Box(Generic[T]):
    inside: T


class Page(TypedDict):
    title: str
    points: list[Point]


class Partly(TypedDict, total=False):
    a: int


class Pair(NamedTuple):
    left: int
    right: str


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Order(pydantic.BaseModel):
    number: int = pydantic.Field(alias="No")
    at: datetime
    lines: list["Order"] = []

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.number


@pydantic.dataclasses.dataclass
class Checked:
    a: int


USER = User(
    UserId(7),
    "Ada",
    date(1815, 12, 10),
    datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    UUID(int=5),
    Decimal("1.50"),
    b"\0\xff",
    {"a", "b"},
    Colour.BLUE,
    Level.LOW,
    Point(1, 2.5),
    [Point(3)],
)
ORDER = Order(No=1, at=datetime(2026, 1, 1, tzinfo=UTC), lines=[Order(No=2, at=datetime(2026, 1, 2))])
VALUES: list[tuple[Any, Any]] = [
    (User, USER),
    (User | None, USER),
    (User | None, None),
    (list[User], [USER]),
    (dict[str, User], {"a": USER}),
    (dict[int, Point], {1: Point(1)}),
    (tuple[Point, ...], (Point(1), Point(2))),
    (Page, {"title": "t", "points": [Point(1)]}),
    (Partly, {}),
    (Partly, {"a": 1}),
    (Pair, Pair(1, "b")),
    (list[Pair], [Pair(1, "b")]),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (dict[str, Level], {"a": Level.LOW}),
    (Cat | Dog, Dog("Rex")),
    (list[Cat | Dog], [Cat(9), Dog("Rex")]),
    (Order, ORDER),
    (list[Order] | None, [ORDER]),
    (Checked, Checked(1)),
    (Point | User, Point(1)),
    (Box[Point], Box(Point(1))),
    (Annotated[Point, "a note"], Point(1)),
    (Literal["a", 1], "a"),
    (UserId, UserId(5)),
    (int, 5),
    (float, 1),
    (float, 1.5),
    (list[datetime], [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))]),
    (timedelta, timedelta(1)),
    (set[UUID], {UUID(int=1)}),
    (tuple[int, str], (1, "a")),
    (bytes, b"\xff"),
    (Decimal, Decimal("1.0")),
    (Any, {"a": (1,)}),
    (object, [1]),
    (dict[str, Any], {"a": (1, {2})}),
]


def rest(shape: Any, value: Any) -> Any:
    """The value after a stay in a store of bytes."""
    serializer = JsonSerializer()
    return shape.load(serializer.loads(serializer.dumps(shape.dump(value))))


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_type_comes_back(kind: Any, value: Any) -> None:
    """What went in comes out, equal and of the same type."""
    back = rest(shape_for(kind), value)
    assert back == value
    assert type(back) is type(value)
    if typing.get_origin(kind) is None and kind is not Order and not isinstance(value, set | User):
        assert repr(back) == repr(value)


@pytest.mark.parametrize(
    "thing", [1, [1, {"a": None}], (1, "a"), datetime(2026, 1, 1), b"x", Decimal(1), [datetime(2026, 1, 1, tzinfo=UTC)]]
)
def test_a_field_of_any_type(thing: Any) -> None:
    """Plain data in a field of any type comes back as it was, also in a class without equality."""
    back = rest(shape_for(Anything), Anything(thing))
    assert type(back) is Anything
    assert back.thing == thing
    assert type(back.thing) is type(thing)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2)), ZoneInfo("Europe/Berlin"), None])
def test_a_zone_comes_back(zone: Any) -> None:
    """A moment keeps its zone, not only its place on the clock."""
    when = datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=1 if zone else 0)
    back = rest(shape_for(Box[datetime]), Box(when))
    assert back.inside == when
    assert back.inside.tzinfo == when.tzinfo
    assert back.inside.fold == when.fold or not isinstance(zone, ZoneInfo)


class SubPoint(Point):
    pass


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Point, {"x": 1}),
        (Point, SubPoint(1)),
        (list[Point], [SubPoint(1)]),
        (Point, None),
        (int, "secret"),
        (int, True),
        (list[int], [1, "secret"]),
        (Anything, Anything({1})),
        (Anything, Anything(Point(1))),
        (Anything, Anything(Level.LOW)),
        (Point, Point("secret")),
        (Order, Point(1)),
        (Order, "secret"),
        (Cat | Dog, Point(1)),
        (Literal["a"], "secret"),
        (Checked, Order),
        (set[int], {"secret"}),
        (Anything, Anything(object())),
    ],
)
def test_what_would_come_back_otherwise_is_refused(kind: Any, value: Any) -> None:
    """Another type, a subclass, a field that holds what its type does not say: an error that does not show it."""
    with pytest.raises(EncodeError) as caught:
        shape_for(kind).dump(value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (Point, {"y": 1.0}),
        (Point, {"x": "secret"}),
        (Point, []),
        (list[int], {"a": 1}),
        (Colour, "secret"),
        (Page, {"title": "t"}),
        (Order, {"No": "secret"}),
        (int, "secret"),
        (Pair, [1]),
        (datetime, "2026-01-01"),
    ],
)
def test_what_fits_no_more_is_an_error(kind: Any, plain: Any) -> None:
    """What is stored for an earlier version of a type is refused, without the value."""
    with pytest.raises(DecodeError) as caught:
        shape_for(kind).load(plain)
    assert "secret" not in str(caught.value)


def test_a_field_with_a_default_may_be_added() -> None:
    """What was stored before comes back with the default."""
    assert shape_for(Point).load({"x": 1}) == Point(1)


class Plain:
    pass


@pytest.mark.parametrize("kind", [Plain, list[Plain], Plain | None, T, "Point", 5])
def test_a_type_that_cannot_be_made_again_is_refused(kind: Any) -> None:
    """A class that is no record of fields has no shape, and the error says so."""
    with pytest.raises(ConfigError, match="typed: "):
        Cache().typed(kind)


@pytest.mark.parametrize("missing", [("msgspec",), ("msgspec", "pydantic")])
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    """Without msgspec pydantic does its work; without both the error says what to install; plain data needs neither."""
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert rest(shape_for(list[int]), [1]) == [1]
    if "pydantic" in missing:
        with pytest.raises(ConfigError, match=r"asynccache\[typed\]"):
            shape_for(Point)
    else:
        assert rest(shape_for(Point), Point(1, 2.0)) == Point(1, 2.0)


def test_neither_library_is_imported_before_it_is_needed() -> None:
    """A cache in the process, with typed functions, imports no library for types."""
    script = """
import asyncio, sys
from dataclasses import dataclass
from asynccache import Cache

@dataclass
class Point:
    x: int

@Cache().memoize(ttl=60)
async def load(x: int) -> Point:
    return Point(x)

assert asyncio.run(load(1)) == Point(1)
assert not {"msgspec", "pydantic"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# Annotations


async def unsaid():
    return 1


async def whatever() -> Any:
    return 1


async def unresolved() -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
    return 1


async def later() -> "Later":
    return Later(1)


async def of_a_plain_class() -> Plain:
    return Plain()


async def many(ids: list[int]) -> dict[int, Point]:
    return {each: Point(each) for each in ids}


@dataclass
class Later:
    x: int


def test_what_a_function_says_it_returns() -> None:
    """Nothing said: nothing done. A class that is defined later is found when it is needed."""
    assert result_shape(unsaid) is None
    assert result_shape(whatever) is None
    for function in (unresolved, of_a_plain_class):
        shape = result_shape(function)
        assert shape is not None
        thing = object()
        assert shape.dump(thing) is shape.load(thing) is thing
    shape = result_shape(later)
    assert shape is not None
    assert shape.dump(Later(1)) == {"x": 1}
    shape = result_shape(many, of_mapping=True)
    assert shape is not None
    assert shape.load({"x": 1}) == Point(1)


# Through a cache


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, clock: TravellingClock, tmp_path: Path) -> Callable[..., Cache]:
    return lambda **options: opened(request.param, clock, tmp_path, **options)


async def test_a_view_for_a_type(make: Callable[..., Cache]) -> None:
    """Every call of a typed view brings back the type, on every store."""
    cache = make(ttl="10m")
    users = cache.typed(User)
    assert users.cache is cache
    assert await users.get("a") is None
    assert await users.set("a", USER, tags=["red"])
    assert await users.get("a") == USER
    assert type(await users.get("a")) is User
    assert not await users.add("a", USER)
    assert await users.set_many({"b": USER, "c": USER}, 60)
    assert await users.get_many(["a", "b", "d"]) == {"a": USER, "b": USER}
    assert await users.get_or_set("d", lambda: USER) == USER
    assert await users.get_or_set("d", lambda: USER, ttl=5) == USER
    assert await users.get_or_set_many(["d", "e"], lambda keys: dict.fromkeys(keys, USER)) == {"d": USER, "e": USER}
    assert type((await users.get_many(["e"]))["e"]) is User
    await cache.invalidate_tags("red")
    assert await users.get("a", "gone") == "gone"
    with pytest.raises(ConfigError):
        await users.set("a", USER, only_if="never")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await users.get_or_set_many(["a"], 5)  # type: ignore[arg-type]


async def test_a_memoized_function_says_its_type(make: Callable[..., Cache]) -> None:
    """A cached result is of the announced type, singly and of many."""
    cache = make(ttl="10m")

    @cache.memoize(key="user:{number}")
    async def user(number: int) -> User:
        return USER

    points = cache.memoize_many(key="point:{id}")(many)
    for _ in range(2):
        assert type(await user(1)) is User
        assert await user(1) == USER
        assert await points([1, 2]) == {1: Point(1), 2: Point(2)}
    assert await user.set(USER, 2)
    assert await user(2) == USER
    assert cache.stats().errors == 0


async def test_a_type_that_was_changed_is_loaded_anew(tmp_path: Path) -> None:
    """What was stored for the type as it was is a miss, is told, and is replaced."""
    old, new = make_dataclass("User", [("id", int)]), make_dataclass("User", [("id", int), ("name", str)])
    store = FileBackend(tmp_path / "store")
    cache = Cache(store)
    await cache.typed(old).set("user", old(1))
    await cache.typed(old).set("other", old(1))
    assert await cache.typed(new).get("user") is None
    assert await cache.typed(new).get_many(["user", "other"]) == {}
    assert await cache.typed(new).get_or_set("user", lambda: new(1, "Ada")) == new(1, "Ada")
    assert await cache.typed(new).get("user") == new(1, "Ada")
    assert cache.stats().errors >= 3
    await store.aclose()


async def test_a_result_that_does_not_fit_is_returned(tmp_path: Path) -> None:
    """A function that returns something else than it says is not cached in bytes, and its caller has the value."""
    store = FileBackend(tmp_path / "store")
    cache = Cache(store)

    @cache.memoize
    async def user(number: int) -> User:
        return typing.cast(User, "nobody")

    assert await user(1) == "nobody"
    assert await user(1) == "nobody"
    assert cache.stats().loads == 2
    assert cache.stats().errors == 2
    with pytest.raises(EncodeError):
        await cache.typed(User).set("key", typing.cast(User, "nobody"))
    await store.aclose()


async def test_plain_data_of_a_type_is_nobodys_copy(tmp_path: Path) -> None:
    """Who reads a typed entry without its type gets plain data, and leaves none in front of the store for others."""
    store = FileBackend(tmp_path / "store")
    writer, reader = Cache(store, local="memory://"), Cache(store, local="memory://")
    await writer.typed(Point).set("point", Point(1))
    assert await reader.get("point") == {"x": 1, "y": 0.0}
    assert await reader.ttl("point") is not None
    assert await reader.get_many(["point"]) == {"point": {"x": 1, "y": 0.0}}
    assert await reader.typed(Point).get("point") == Point(1)
    assert type(await reader.typed(Point).get("point")) is Point
    await writer.aclose()
    await reader.aclose()
    await store.aclose()
