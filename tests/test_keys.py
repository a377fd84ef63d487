"""Keys, and how they are made of calls."""

import collections
import enum
import functools
import ipaddress
import math
import os
import pathlib
import subprocess
import sys
import typing
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynccache._canonical import encode
from asynccache.errors import ConfigError, InvalidKeyError
from asynccache.keys import Ignore, KeyBuilder, check_key, check_namespace, check_view

if TYPE_CHECKING:
    Unseen = int


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    ONE = "1"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: object
    y: object = 0


@dataclass(frozen=True)
class Spot:
    x: object
    y: object = 0


class Pair(NamedTuple):
    a: object
    b: object


class UserId(int):
    pass


class Labelled(str):
    label: str


class Slotted(int):
    __slots__ = ()


class Plain:
    pass


class Shop:
    def __init__(self, number: Any) -> None:
        self.number = number

    def __cache_key__(self) -> Any:
        return self.number


class Mall(Shop):
    pass


class Constant:
    __cache_key__ = 5


class Struct:
    __struct_fields__ = ("a",)

    def __init__(self, a: object) -> None:
        self.a = a


class Attrs:
    __attrs_attrs__ = (SimpleNamespace(name="a"),)

    def __init__(self, a: object) -> None:
        self.a = a


class Model:
    __pydantic_validator__ = None
    model_fields: typing.ClassVar[dict[str, object]] = {"a": None}

    def __init__(self, a: object, **extra: object) -> None:
        self.__dict__.update(a=a, **extra)
        self.__pydantic_extra__ = extra


class Oddly(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> str:
        return "odd"


def one(x: Any) -> None: ...
def two(x: Any, y: Any = 0) -> None: ...


def key_of(*args: Any) -> str:
    return KeyBuilder(one if len(args) == 1 else two)(args, {})


BERLIN = ZoneInfo("Europe/Berlin")
DIFFERENT: list[Any] = [
    *(1, "1", True, 1.0, None, "", b"1", [1, 2], (1, 2), "1:2", ("a", "b:c"), ("a:b", "c"), ("a", "b", "c"), "a:b:c"),
    *(0, -1, 16, 0.0, -0.0, math.inf, -math.inf, math.nan, 1j, 0j, complex(-0.0, 0), 10**5000, -(10**5000), False, ...),
    *(
        b"",
        bytearray(b"1"),
        bytearray(),
        "None",
        [],
        (),
        {},
        set(),
        frozenset(),
        [[]],
        [()],
        ([],),
        ((),),
        [[], []],
        [[[]]],
    ),
    *(
        {1},
        frozenset({1}),
        {1: 2},
        {2: 1},
        {"1": 2},
        {1: 2, 3: 4},
        {1: {2: 3}},
        [(1, 2)],
        [1, [2]],
        [[1], 2],
        {True: 2},
    ),
    *(
        range(3),
        range(0, 3, 2),
        range(1, 3),
        Decimal("1"),
        Decimal("1.0"),
        Decimal("NaN"),
        Decimal("-0"),
        Decimal("Infinity"),
    ),
    *(
        Fraction(1, 3),
        uuid.UUID(int=1),
        uuid.UUID(int=2),
        date(2026, 1, 1),
        datetime(2026, 1, 1),
        time(1),
        time(1, 2),
    ),
    *(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=BERLIN), time(1, tzinfo=UTC)),
    *(datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)),
    *(datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), datetime(2026, 1, 1, tzinfo=Oddly()), "2026-01-01"),
    *(timedelta(1), timedelta(seconds=1), timedelta(microseconds=1), Color.RED, Color.BLUE, Level.LOW, Word.ONE),
    *(
        Right.READ,
        Right.WRITE,
        Right.READ | Right.WRITE,
        Point(1),
        Point(1, 2),
        Spot(1),
        Spot(1, 2),
        Point("1"),
        Pair(1, 2),
    ),
    *(
        UserId(1),
        Slotted(1),
        pathlib.Path("a"),
        pathlib.PurePosixPath("a"),
        pathlib.PureWindowsPath("a"),
        pathlib.Path("b"),
    ),
    *(
        ipaddress.ip_address("::1"),
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_network("127.0.0.1"),
        "\ud800",
        "\ud801",
    ),
    *(int, str, Shop, Mall, pathlib.Path, one, two, len, math.sin, Shop(1), Shop("1"), Shop(b"1"), Shop((1,)), Mall(1)),
    *(
        Constant(),
        Struct(1),
        Struct(2),
        Attrs(1),
        Attrs(2),
        Model(1),
        Model(2),
        Model(1, b=2),
        collections.Counter("a"),
    ),
    *(collections.OrderedDict({1: 2, 3: 4}), collections.OrderedDict({3: 4, 1: 2}), collections.defaultdict(int), "é"),
    *(collections.defaultdict(list), collections.defaultdict(None), {"a": 1, "b": (2,)}, [None], [True], ["1"], [b"1"]),
]


def test_different() -> None:
    """Values that a function can tell apart have different keys, nested ones too (PROMISES 23)."""
    shapes: list[Callable[[Any], Any]] = [
        lambda v: v,
        lambda v: [v],
        lambda v: (v,),
        lambda v: {"k": v},
        lambda v: Point(v),
    ]
    keys = [key_of(shape(value)) for shape in shapes for value in DIFFERENT]
    # Three of the shapes make values that are in the list already: [1, [], (), None...] and their like.
    shaped = {encode(shape(value)) for shape in shapes for value in DIFFERENT}
    assert len({key_of(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert len(set(keys)) == len(shaped)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"x", "y", "z"}, {"z", "y", "x"}),
        (frozenset("abc"), frozenset("cba")),
        (math.nan, -math.nan),
        ([1, "a" * 5], [1, "aaaaa"]),
        (Point(1, [2]), Point(1, [2])),
        (Shop(1), Shop(1)),
        (Model(1, b=2, c=3), Model(1, c=3, b=2)),
    ],
)
def test_equal(left: object, right: object) -> None:
    """Equal values have one key, whatever the order of a dictionary or set."""
    assert key_of(left) == key_of(right)


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("a:1;é", max_size=4)
    | st.binary(max_size=3)
    | st.decimals(allow_nan=False, places=1)
    | st.dates()
    | st.sampled_from([*Color, *Level, *Word])
)
HASHABLE = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3).map(frozenset)
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(st.tuples(HASHABLE, inner), max_size=3).map(dict)
        | st.lists(HASHABLE, max_size=3).map(set)
        | st.builds(Point, inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equality that looks at types, at every depth."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left.hex() == right.hex()
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, Point):
        return same(left.x, right.x) and same(left.y, right.y)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        left, right = list(left.items()), list(right.items())
    if isinstance(left, set | frozenset | list):
        return len(left) == len(right) and all(any(same(a, b) for b in right) for a in left)
    return bool(left == right)


@given(VALUES, VALUES)
def test_injective(left: object, right: object) -> None:
    """Two values have one encoding exactly when they are the same by value and type."""
    assert (encode(left) == encode(right)) is same(left, right)
    assert encode([left, right]) != encode([[left], right])


@given(st.lists(VALUES, min_size=2, max_size=2), st.lists(VALUES, min_size=2, max_size=2))
def test_arguments_do_not_run_together(left: list[Any], right: list[Any]) -> None:
    """Two calls have one key exactly when each argument is the same."""
    assert (key_of(*left) == key_of(*right)) is same(left, right)


@pytest.mark.parametrize("template", [None, "k:{x}:{y}"])
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (lambda x, y=0: None, [((5,), {}), ((), {"x": 5}), ((5, 0), {}), ((), {"y": 0, "x": 5}), ((5,), {"y": 0})]),
        (lambda x, *, y=0: None, [((5,), {}), ((), {"x": 5}), ((5,), {"y": 0}), ((), {"y": 0, "x": 5})]),
        (lambda x, /, y=0: None, [((5,), {}), ((5, 0), {}), ((5,), {"y": 0})]),
        (lambda x, y=0, *a, **k: None, [((5,), {}), ((5, 0), {}), ((5,), {"y": 0}), ((), {"x": 5})]),
    ],
)
def test_call_forms(function: Callable[..., Any], calls: list[Any], template: str | None) -> None:
    """A call has one key however it is written, for default keys and templates (PROMISES 23)."""
    build = KeyBuilder(function, key=template, prefix=None if template else "f")
    assert len({build(args, kwargs) for args, kwargs in calls}) == 1
    assert template is None or build(*calls[0]) == "k:5:0"


def test_variadic() -> None:
    """Variadic parameters count, keywords in any order, and never as ordinary ones."""

    def f(x: Any = 0, *args: Any, **kwargs: Any) -> None: ...

    build = KeyBuilder(f)
    assert build((1,), {"a": 1, "b": 2}) == build((1,), {"b": 2, "a": 1})
    calls: list[Any] = [
        ((), {}),
        ((1,), {}),
        ((1, 2), {}),
        ((1, (2,)), {}),
        ((1, 2, 3), {}),
        ((1,), {"a": 1}),
        ((1, {"a": 1}), {}),
        ((1,), {"args": (2,)}),
        ((1,), {"kwargs": {"a": 1}}),
    ]
    assert len({build(*call) for call in calls}) == len(calls)
    assert KeyBuilder(f, key="{args[0]}:{kwargs[z]}:{kwargs}")((1, 2), {"z": 3, "a": 4}) == "2:3:{'a': 4, 'z': 3}"


def test_positional_only_and_keyword_of_one_name() -> None:
    """A keyword that is named like a positional-only parameter is another argument."""

    def f(x: Any, /, **kwargs: Any) -> None: ...

    build = KeyBuilder(f)
    assert len({build((1,), {"x": 2}), build((2,), {"x": 1}), build((1,), {})}) == 3


@pytest.mark.parametrize("call", [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})])
def test_bad_call(call: Any) -> None:
    """A call that the function would refuse is a TypeError."""
    with pytest.raises(TypeError):
        KeyBuilder(two)(*call)


# Instances count under their class's name, and this module's name depends on how it is imported: so none of them here.
PINNED: dict[str, tuple[Any, Any]] = {
    "fa4954a9df910749c3b6af6f294784e5": (1, "a"),
    "48459a905e6698ffeebc65752af46871": ({"b": 2, "a": {"x", "y", "z"}}, [1.5, None, b"x", (True,)]),
    "7ce01d48c95d93457585962cf4cfba93": (Decimal("1.50"), datetime(2026, 1, 2, 3, tzinfo=BERLIN)),
    "1484ad719f87e3df62bbdf0957e2e1f2": (pathlib.PurePosixPath("a/b"), uuid.UUID(int=5)),
    "4804d0500c5f1e02713fc36f9ef03fdc": (pathlib.PurePath, frozenset({"p", "q", "r", 1})),
    "e162f13105523b4d01dd9a07df5a03cc": (math.nan, [-0.0, 1j, range(3), bytearray(b"z"), -(10**30), ...]),
    "1726c6dcefc6b85755fc2e184402a6e3": (timedelta(days=1.5), (date(2026, 1, 2), time(1, 2, tzinfo=UTC), "\ud800")),
    "13113b491741c4d90fa895c2102f20b2": (len, collections.OrderedDict(a=ipaddress.ip_address("::1"), b=Fraction(1, 3))),
}
SCRIPT = """
import sys; sys.path[:0] = sys.argv[1:]
import test_keys
print(*test_keys.pinned_keys(), sep="\\n")
"""


def pinned_keys() -> list[str]:
    return [KeyBuilder(two, prefix="f")(args, {}).removeprefix("f:") for args in PINNED.values()]


class TestPinned:
    def test_for_ever(self) -> None:
        """Keys are those that the first release made: a store outlives the interpreter and the release."""
        assert pinned_keys() == [*PINNED]

    @pytest.mark.parametrize("seed", ["0", "1", "4242"])
    def test_any_hash_seed(self, seed: str) -> None:
        """Keys are the same in a process with another hash seed (PROMISES 23)."""
        here = pathlib.Path(__file__).parent
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(here), str(here.parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == [*PINNED]


def local() -> Any:
    class Local:
        pass

    return Local


def cyclic() -> Any:
    loop: list[Any] = []
    loop += [loop, loop]
    return loop


def deep() -> Any:
    return functools.reduce(lambda inner, _: [inner], range(10_000), [])


def labelled() -> Any:
    text = Labelled("a")
    text.label = "b"
    return text


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Plain(),
        lambda: None,
        local(),
        local()(),
        cyclic(),
        deep(),
        labelled(),
        iter(()),
        [].append,
        Shop(1).__cache_key__,
        functools.partial(one),
        [1, {"a": Plain()}],
        Point(Plain()),
        {Plain(): 1},
        Shop(None),
        Shop(1.5),
        Shop((Plain(),)),
        memoryview(b""),
        sys,
        ValueError("x"),
        (1).__add__,
        list[int],
    ],
)
def test_unstable(value: object) -> None:
    """An argument without a stable identity is refused with its name and a way out (PROMISES 24)."""
    with pytest.raises(InvalidKeyError, match="argument 'x'") as caught:
        KeyBuilder(two)((value, 1), {})
    message = str(caught.value)
    assert "__cache_key__" in message
    assert "ignore=['x']" in message
    assert "key=" in message
    assert " at 0x" not in message


def test_subclass_made_in_c() -> None:
    """An instance that may hide state that Python does not see is refused, not cut to its built-in part."""
    with pytest.raises(InvalidKeyError, match="stat_result"):
        key_of(os.stat(__file__))


def test_answering_everything() -> None:
    """An object that answers to any attribute is not taken to have a ``__cache_key__``."""

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return lambda: 1

    with pytest.raises(InvalidKeyError, match="Proxy"):
        key_of(Proxy())


def test_own_key_of_instance() -> None:
    """A ``__cache_key__`` may be a constant of the class or the instance."""
    left, right = Plain(), Plain()
    left.__dict__["__cache_key__"] = right.__dict__["__cache_key__"] = "k"
    assert key_of(left) == key_of(right)


def test_arguments_are_not_readable() -> None:
    """A default key shows the function's name, and nothing of its arguments (PROMISES 24)."""
    key = key_of("secret-token")
    name, _, digest = key.rpartition(":")
    assert name == f"{__name__}.one"
    assert len(digest) == 32
    assert "secret" not in key


def test_functions_differ() -> None:
    """Equal calls of two functions have two keys; one without parameters has one."""

    def none() -> None: ...

    assert KeyBuilder(one)((1,), {}) != KeyBuilder(two)((1,), {})
    assert KeyBuilder(none)((), {}).startswith(f"{__name__}.test_functions_differ.<locals>.none:")


def test_long_name() -> None:
    """A name too long for a key is shortened to a valid one of its own."""
    keys = {KeyBuilder(one, prefix="é" * 2_000 + end)((1,), {}) for end in "ab"}
    assert len(keys) == 2
    assert all(check_key(key) == key for key in keys)


class Service:
    def __init__(self, number: int) -> None:
        self.id = number

    def method(self, x: int) -> None: ...

    @classmethod
    def make(cls, x: int) -> None: ...


class Derived(Service):
    pass


class TestMethods:
    def test_self_without_key(self) -> None:
        """A receiver without an identity is refused with its class and what to do."""
        with pytest.raises(InvalidKeyError, match=r"'self'.*Service.*__cache_key__"):
            KeyBuilder(Service.method)((Service(1), 5), {})

    def test_self_ignored(self) -> None:
        """A receiver that is ignored does not count."""
        build = KeyBuilder(Service.method, ignore=["self"])
        assert build((Service(1), 5), {}) == build((Service(2),), {"x": 5})

    def test_self_in_template(self) -> None:
        """A template can name what distinguishes a receiver."""
        assert KeyBuilder(Service.method, key="{self.id}:{x}")((Service(1), 5), {}) == "1:5"

    def test_cls(self) -> None:
        """The receiver of a class method counts by name, even a local one."""
        build = KeyBuilder(Service.make.__func__)  # type: ignore[attr-defined]  # a bound method has it
        assert len({build((cls, 5), {}) for cls in (Service, Derived, local(), local())}) == 3

    def test_bound(self) -> None:
        """A bound method, whose key could not tell receivers apart, needs a prefix."""
        with pytest.raises(ConfigError, match="prefix="):
            KeyBuilder(Service(1).method)
        assert KeyBuilder(Service(1).method, prefix="s")((5,), {}).startswith("s:")


def quiet(
    x: int, session: Annotated[Plain, Ignore], log: "Annotated[Plain, Ignore()]", other: "Unseen" = 0
) -> None: ...


def strange(x: "Annotated[Nowhere, Ignore]") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the case tested


class TestIgnore:
    def test_annotated(self) -> None:
        """A parameter marked ``Ignore``, as an object or in text, is left out; one that cannot be read is not."""
        build = KeyBuilder(quiet)
        assert build((1, Plain(), Plain()), {}) == build((1,), {"session": None, "log": 3})
        assert build((1, None, None, 1), {}) != build((1, None, None, 2), {})

    def test_unreadable(self) -> None:
        """A mark that cannot be read is an error, not a parameter that counts after all."""
        with pytest.raises(ConfigError, match="use ignore="):
            KeyBuilder(strange)

    def test_by_name(self) -> None:
        """A parameter named in ``ignore`` is left out."""
        build = KeyBuilder(two, ignore={"y"})
        assert build((1, Plain()), {}) == build((1,), {})

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"ignore": ["sesion"]}, "did you mean 'session'"),
            ({"ignore": "session"}, r"ignore=\['session'\]"),
            ({"ignore": ["log"], "key": "{x}"}, "default key"),
            ({"prefix": "a", "key": "{x}"}, "default key"),
            ({"prefix": ""}, "not empty"),
            ({"prefix": "a\0"}, "NUL"),
            ({"prefix": "\ud800"}, "surrogate"),
            ({"key": 5}, "not a int"),
            ({"key": "{sesion}"}, "did you mean 'session'"),
        ],
    )
    def test_wrong_options(self, options: Any, hint: str) -> None:
        """A wrong option is refused at decoration, with the nearest right one."""
        with pytest.raises(ConfigError, match=hint):
            KeyBuilder(quiet, **options)


@pytest.mark.parametrize("function", [lambda x: x, functools.partial(two, y=1)])
def test_nameless(function: Any) -> None:
    """A callable without a name of its own needs a prefix."""
    with pytest.raises(ConfigError, match="prefix="):
        KeyBuilder(function)
    assert KeyBuilder(function, prefix="p")((), {"x": 1}).startswith("p:")


def test_no_signature() -> None:
    """A callable whose parameters cannot be known is refused."""
    with pytest.raises(ConfigError, match="parameters"):
        KeyBuilder(min)


def test_key_function() -> None:
    """A key function gets the call's arguments as they are, and must return a key."""
    build = KeyBuilder(two, key=lambda x, y=9: f"{x}-{y}")
    assert build((1,), {}) == "1-9"
    assert not build.pure
    with pytest.raises(InvalidKeyError):
        KeyBuilder(two, key=lambda x: x)((5,), {})

    async def later(x: int) -> str:
        return "a"

    with pytest.raises(ConfigError, match="plain function"):
        KeyBuilder(two, key=later)  # type: ignore[arg-type]  # that is the case tested


def test_template_that_makes_no_key() -> None:
    """What a template makes of the arguments is checked as any key."""
    with pytest.raises(InvalidKeyError):
        KeyBuilder(one, key="{x}")(("",), {})


def mutable(x: Any, y: Any = []) -> None: ...  # noqa: B006 - that is the case tested
def steady(x: Any, y: Any = (1, Color.RED), *, z: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("function", "key", "pure"),
    [
        (two, None, True),
        (two, "{x}:{y}", True),
        (two, "{x.real}", False),
        (mutable, None, False),
        (mutable, "{x}", True),
        (mutable, "{x}{y}", False),
        (steady, None, True),
    ],
)
def test_pure(function: Any, key: str | None, pure: bool) -> None:
    """A builder says whether keys of plain positional arguments can be remembered."""
    assert KeyBuilder(function, key=key).pure is pure


def test_looks() -> None:
    """A builder tells its function's name and parameters."""
    build = KeyBuilder(two)
    assert (repr(build), build.name, build.parameters) == ("KeyBuilder(two)", "two", ("x", "y"))


class TestCheckKey:
    @pytest.mark.parametrize("key", ["a", "a" * 1_024, "é" * 512, "with space\n*?[", "ключ", "\U0001f600", "\x01"])
    def test_valid(self, key: str) -> None:
        """Any character but NUL is an ordinary one; 1,024 bytes are allowed."""
        assert check_key(key) is key
        assert check_namespace(key) is key

    @pytest.mark.parametrize(
        "key", ["a" * 1_025, "é" * 513, "a\0", "é\0", "\ud800", "a" * 50_000 + "\ud800", "\n" * 9_999]
    )
    def test_invalid(self, key: str) -> None:
        """What is no key is refused, and no more than 80 characters of it are shown."""
        for check in (check_key, check_namespace):
            with pytest.raises(InvalidKeyError) as caught:
                check(key)
            assert len(str(caught.value)) < 160

    @pytest.mark.parametrize("key", [None, 1, b"a", ["a"]])
    def test_not_text(self, key: object) -> None:
        """Only a ``str`` is a key or a namespace."""
        for check in (check_key, check_namespace, check_view):
            with pytest.raises(InvalidKeyError, match="is a str"):
                check(key)

    def test_empty(self) -> None:
        """A key is not empty, nor is the name of a view; a namespace may be."""
        with pytest.raises(InvalidKeyError, match="a key is not empty"):
            check_key("")
        with pytest.raises(InvalidKeyError, match="the name of a namespace is not empty"):
            check_view("")
        assert check_namespace("") == ""

    def test_text_enum(self) -> None:
        """A subclass of ``str`` becomes the ``str`` that it equals."""
        assert type(check_key(Word.ONE)) is str
        assert check_key(Word.ONE) == "1"

    @given(st.text(st.characters(), max_size=600))
    def test_property(self, text: str) -> None:
        """A text is a key exactly when the rule says so."""
        try:
            valid = 0 < len(text.encode()) <= 1_024 and "\0" not in text
        except UnicodeEncodeError:
            valid = False
        try:
            assert check_key(text) == text
        except InvalidKeyError:
            assert not valid
        else:
            assert valid
