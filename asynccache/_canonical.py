"""Values as bytes that are the same in every process, and different for different values.

The encoding is a prefix code: every value is a tag followed by a payload that says its own length, so no two values,
however nested, run into each other. It tells apart whatever a function could tell apart: ``1``, ``True``, ``1.0`` and
``"1"``; a list and a tuple; ``0.0`` and ``-0.0``; ``Decimal("1")`` and ``Decimal("1.0")``; one moment in two time
zones. It does not see what equality does not see in a collection: the order of a set or a dictionary. Every NaN is
one value.

Instances of users' classes are known by their class's module and name, together with, in this order: their
``__cache_key__``, the member's name (enums), what they are besides (subclasses of built-in types), their fields
(dataclasses, attrs, msgspec, pydantic). Classes and functions are known by name when they can be imported by it.
Anything else, above all what is only known by its address, is `Unstable`.

What is written here is part of the keys of stores that outlive a release: kinds may be added, nothing may change.
"""

import struct
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from enum import Enum, Flag
from types import BuiltinFunctionType, EllipsisType, FunctionType, NoneType
from typing import Any, Final

__all__ = ["SCALARS", "Unstable", "encode", "encode_class"]

_DEEPEST = 64
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


class Unstable(Exception):
    """Raised when a value has no identity that another process would agree with.

    Args:
        culprit: The value's class, as text.
        reason: What is wrong with it, to be read after the name of the class.
    """

    def __init__(self, culprit: str, reason: str) -> None:
        super().__init__(culprit, reason)
        self.culprit = culprit
        self.reason = reason


def encode(value: object) -> bytes:
    """The value's canonical encoding.

    Raises:
        Unstable: It, or something in it, has no stable identity.
    """
    scalar = SCALARS.get(type(value))
    return scalar(value) if scalar is not None else _encode(value, set())


def encode_class(value: type) -> bytes:
    """A class's encoding, by its name: for one that stands for itself even if it cannot be imported."""
    return _object("class", value, b"")


def _encode(value: Any, path: set[int]) -> bytes:
    """The encoding of a value inside those whose ids are in ``path``."""
    kind = type(value)
    scalar = SCALARS.get(kind)
    if scalar is not None:
        return scalar(value)
    if id(value) in path:
        raise Unstable(_name(kind), "contains itself")
    if len(path) >= _DEEPEST:
        raise Unstable(_name(kind), f"is nested deeper than {_DEEPEST} levels")
    path.add(id(value))
    container = _CONTAINERS.get(kind)
    encoded = container(value, path) if container is not None else _encode_other(value, kind, path)
    path.discard(id(value))
    return encoded


# -- built-in values that contain no others


def _text(value: str) -> bytes:
    data = str.encode(value, "utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _integer(value: int) -> bytes:
    return b"i%x;" % value  # hexadecimal: decimal digits are quadratic, and limited to 4,300


def _float(value: float) -> bytes:
    return b"n" if value != value else b"f" + struct.pack(">d", value)


def _complex(value: complex) -> bytes:
    return b"c" + _float(value.real) + _float(value.imag)


def _bytes(value: bytes) -> bytes:
    return b"b%d:%b" % (len(value), value)


def _bytearray(value: bytearray) -> bytes:
    return b"B%d:" % len(value) + value


def _range(value: range) -> bytes:
    return b"r" + _integer(value.start) + _integer(value.stop) + _integer(value.step)


def _known(word: str, *parts: object) -> bytes:
    """A class of the standard library, under a word of our own: its module may be another one in the next Python."""
    return b"K" + _text(word) + encode(parts)


def _date(value: date) -> bytes:
    return _known("date", date.isoformat(value))


def _datetime(value: datetime) -> bytes:
    return _known("datetime", datetime.isoformat(value.replace(tzinfo=None)), value.fold, *_zone(value, value.tzinfo))


def _time(value: time) -> bytes:
    return _known("time", time.isoformat(value.replace(tzinfo=None)), value.fold, *_zone(value, value.tzinfo))


def _zone(value: datetime | time, zone: tzinfo | None) -> tuple[object, ...]:
    if zone is None:
        return ()
    name = getattr(zone, "key", None)  # a ZoneInfo: its name says all, whatever this machine's tables say
    if isinstance(name, str):
        return ("zone", name)
    return ("offset", value.utcoffset(), value.tzname())


def _timedelta(value: timedelta) -> bytes:
    return _known("timedelta", value.days, value.seconds, value.microseconds)


def _decimal(value: Any) -> bytes:
    sign, digits, exponent = value.as_tuple()
    return _known("Decimal", sign, bytes(digits), exponent)


def _fraction(value: Any) -> bytes:
    return _known("Fraction", value.numerator, value.denominator)


def _uuid(value: Any) -> bytes:
    return _known("UUID", value.bytes)


def _path(value: Any) -> bytes:
    return _known("path", type(value).__name__, str(value))


def _ip(value: Any) -> bytes:
    return _known("ip", type(value).__name__, str(value))


SCALARS: Final[dict[type, Callable[[Any], bytes]]] = {
    NoneType: lambda value: b"N",
    EllipsisType: lambda value: b"E",
    bool: lambda value: b"T" if value else b"F",
    int: _integer,
    str: _text,
    float: _float,
    complex: _complex,
    bytes: _bytes,
    bytearray: _bytearray,
    range: _range,
    date: _date,
    datetime: _datetime,
    time: _time,
    timedelta: _timedelta,
}
"""How a value of exactly this class is encoded, for classes whose values contain no others."""

# By name, so that nobody pays for the import of a module whose values nobody passes.
_BY_NAME: Final[dict[str, Callable[[Any], bytes]]] = {
    "decimal.Decimal": _decimal,
    "fractions.Fraction": _fraction,
    "uuid.UUID": _uuid,
    **{f"ipaddress.IPv{v}{what}": _ip for v in (4, 6) for what in ("Address", "Interface", "Network")},
    **{f"pathlib.{pure}{kind}Path": _path for pure in ("", "Pure") for kind in ("Posix", "Windows")},
}


# -- built-in containers


def _tuple(value: tuple[Any, ...], path: set[int]) -> bytes:
    return b"t%d:" % tuple.__len__(value) + b"".join([_encode(item, path) for item in tuple.__iter__(value)])


def _list(value: list[Any], path: set[int]) -> bytes:
    return b"l%d:" % list.__len__(value) + b"".join([_encode(item, path) for item in list.__iter__(value)])


def _set(value: set[Any], path: set[int]) -> bytes:
    return b"S%d:" % set.__len__(value) + b"".join(sorted([_encode(item, path) for item in set.__iter__(value)]))


def _frozenset(value: frozenset[Any], path: set[int]) -> bytes:
    items = sorted([_encode(item, path) for item in frozenset.__iter__(value)])
    return b"Z%d:" % len(items) + b"".join(items)


def _dict(value: dict[Any, Any], path: set[int]) -> bytes:
    pairs = sorted([_encode(key, path) + _encode(item, path) for key, item in dict.items(value)])
    return b"d%d:" % len(pairs) + b"".join(pairs)


def _ordered_dict(value: dict[Any, Any], path: set[int]) -> bytes:
    return b"o" + _list([*value.items()], path)


def _default_dict(value: Any, path: set[int]) -> bytes:
    return b"D" + _encode(value.default_factory, path) + _dict(value, path)


_CONTAINERS: Final[dict[type, Callable[[Any, set[int]], bytes]]] = {
    tuple: _tuple,
    list: _list,
    set: _set,
    frozenset: _frozenset,
    dict: _dict,
}

_CONTAINERS_BY_NAME: Final[dict[str, Callable[[Any, set[int]], bytes]]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
}


# -- everything else


def _encode_other(value: Any, kind: type, path: set[int]) -> bytes:
    if isinstance(value, type):
        if not _importable(value):
            raise Unstable(_name(value), "is a class that cannot be imported by its name")
        return encode_class(value)
    if isinstance(value, FunctionType | BuiltinFunctionType):
        if not _importable(value):
            raise Unstable(_name(kind), "cannot be imported by its name")
        return _object("function", value, b"")
    if hasattr(kind, "__cache_key__") or "__cache_key__" in getattr(
        value, "__dict__", ()
    ):  # never a __getattr__'s answer
        return _object("key", kind, _own_key(value, kind, path))
    if isinstance(value, Flag):
        return _object("flag", kind, _encode(value.value, path))
    if isinstance(value, Enum):
        return _object("member", kind, _text(value.name))

    # What is a built-in value besides is that value under its own class's name, if there is no more to it.
    for base in kind.__mro__:
        encoded = _encode_as(base, value, path)
        if encoded is None:
            continue
        if base is kind:
            return encoded
        if _has_more_state(value, kind, base):
            raise Unstable(_name(kind), f"is a {base.__name__} that may hold more than that")
        return _object("sub", kind, encoded)

    record = _record(value, kind)
    if record is None:
        raise Unstable(_name(kind), "has no stable identity")
    pairs = [_text(name) + _encode(item, path) for name, item in record]
    return _object("fields", kind, b"%d:" % len(pairs) + b"".join(pairs))


def _encode_as(base: type, value: Any, path: set[int]) -> bytes | None:
    """The value's encoding as a ``base``; ``None`` when that is no built-in class."""
    name = _name(base)
    scalar = SCALARS.get(base) or _BY_NAME.get(name)
    if scalar is not None:
        return scalar(value)
    container = _CONTAINERS.get(base) or _CONTAINERS_BY_NAME.get(name)
    return container(value, path) if container is not None else None


def _own_key(value: Any, kind: type, path: set[int]) -> bytes:
    given = value.__cache_key__
    if callable(given):
        given = given()
    if not isinstance(given, str | int | bytes | tuple):
        raise Unstable(
            _name(kind), f"has a __cache_key__ that is a {_name(type(given))}, not a str, int, bytes or tuple"
        )
    return _encode(given, path)


def _has_more_state(value: object, kind: type, base: type) -> bool:
    """Whether an instance may keep something that its built-in base does not know of."""
    if getattr(value, "__dict__", None) or hasattr(kind, "n_sequence_fields"):  # os.stat_result shows a part as a tuple
        return True
    above = kind.__mro__[: kind.__mro__.index(base)]
    # A class made in C or Cython keeps its state where nobody sees it: pandas.Timestamp is a datetime with nanoseconds.
    return any(cls.__dict__.get("__slots__") or not cls.__flags__ & _HEAP_TYPE for cls in above)


def _record(value: Any, kind: Any) -> list[tuple[str, Any]] | None:
    """The names and values that make up a record of one of the known makes; ``None`` when it is no record."""
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__]
    elif hasattr(kind, "__struct_fields__"):  # msgspec
        names = list(kind.__struct_fields__)
    elif hasattr(kind, "__pydantic_validator__"):
        names = [*kind.model_fields, *sorted(value.__pydantic_extra__ or ())]
    else:
        return None
    return [(name, getattr(value, name)) for name in names]


def _object(word: str, named: Any, payload: bytes) -> bytes:
    return b"O" + _text(word) + _text(_name(named)) + payload


def _name(named: Any) -> str:
    module = named.__module__
    return f"{'pathlib' if module == 'pathlib._local' else module}.{named.__qualname__}"


def _importable(value: Any) -> bool:
    """Whether another process would find this very class or function under its module and name."""
    found: object = sys.modules.get(value.__module__ or "")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value
