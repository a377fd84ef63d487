"""JSON that brings back what went in: exact JSON as it is, more types by tags, and the rest refused.

===========================================================  =========================================================
``None``, ``bool``, ``str``, finite ``float``,               exact JSON, as any program reads it
``int`` of 64 bits, ``list``, ``dict`` with ``str`` keys
``tuple``, ``set``, ``frozenset``, other ``dict``,           tagged
NaN, infinities, longer ``int``, ``complex``, ``bytes``,
``bytearray``, ``Decimal``, ``UUID``, ``date``,
``timedelta``, ``time`` and ``datetime`` (without zone,
with a fixed offset, or a ``ZoneInfo`` found by its key)
``str`` with a lone surrogate, subclasses of the above       refused
(enums, named tuples, ``defaultdict``, …), other classes
===========================================================  =========================================================

A tagged document begins with the byte 1, with which no JSON begins. In it an object with the key ``$`` is a tag: the
name of a type under ``$``, and under ``v`` what it is made from. An object of the user's that has that key is itself
written as the tag ``dict``, so nothing is ambiguous.
"""

import base64
import binascii
import marshal
import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from asynccache.errors import DecodeError, EncodeError

__all__ = ["JsonSerializer"]

_OPTIONS: Final = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_TAGGED: Final = b"\x01"
_TAG: Final = "$"
_VALUE: Final = "v"
_LEAST, _MOST = -(2**63), 2**64 - 1
_EXACT: Final = frozenset((str, int, bool, type(None)))
_STRICT: Final = Context(traps=[InvalidOperation])  # the caller's context may turn what is malformed into NaN
_MARSHAL_VERSION: Final = 2  # the last without references: the cheapest, and no more is asked of it

Path: TypeAlias = "tuple[Path, str, object] | None"
"""Where a part is inside the value: the path of what holds it, and a text with its place there."""


@final
class JsonSerializer:
    """JSON, by orjson.

    Args:
        tags: Whether values that JSON does not have are tagged; otherwise they are refused.
    """

    name: Final = "json"
    number: Final = 1

    def __init__(self, *, tags: bool = True) -> None:
        self._tags = tags

    def dumps(self, value: Any) -> bytes:
        """The value as JSON, or as tagged JSON.

        Raises:
            EncodeError: It would not come back equal; the error says where.
        """
        try:
            if type(value) in _EXACT:  # orjson writes these as they are, or refuses them
                return orjson.dumps(value, option=_OPTIONS)
            # What comes back equal may yet be of another type: an IntEnum is an int to JSON. marshal takes exact
            # types only, and is the fastest that does. It also has a limit of depth, which orjson has not for tuples:
            # past 2,000 of them in each other 3.13 writes where it must not.
            marshal.dumps(value, _MARSHAL_VERSION)
            data = orjson.dumps(value, option=_OPTIONS)
            if orjson.loads(data) == value:
                return data
        except (TypeError, ValueError, RecursionError):  # which includes the library's own errors
            pass
        try:
            tagged = _tagged(value, None, self._tags)
            return (_TAGGED if self._tags else b"") + orjson.dumps(tagged)
        except RecursionError:
            raise EncodeError("the value is nested too deep, or holds itself") from None
        except RuntimeError as error:  # a dict or a set that another thread changes
            raise EncodeError("the value changes while it is encoded") from error
        except TypeError as error:  # the library's limit of depth
            raise EncodeError("the value is nested too deep for JSON") from error

    def loads(self, data: bytes | memoryview) -> Any:
        """The value.

        Raises:
            DecodeError: The bytes are no JSON, or have tags that make no sense.
        """
        try:
            if data[:1] != _TAGGED:
                return orjson.loads(data)
            if not self._tags:
                raise DecodeError("a tagged document where plain JSON was expected")
            return _untagged(orjson.loads(memoryview(data)[1:]))
        except DecodeError:
            raise
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise DecodeError(f"the bytes are no JSON of this package: {type(error).__name__}") from error


# Tagging


def _tagged(value: Any, path: Path, allowed: bool) -> Any:
    """The value as JSON with tags."""
    kind = type(value)
    if kind is str:
        if not value.isascii():
            _check_text(value, path)
        return value
    if value is None or kind is bool or (kind is int and _LEAST <= value <= _MOST):
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind is list:
        return [_tagged(part, (path, "[{}]", place), allowed) for place, part in enumerate(value)]
    texts = kind is dict and all(type(key) is str for key in value)
    if texts and not (allowed and _TAG in value):
        return {_key(key, path): _tagged(part, (path, "[{}]", key), allowed) for key, part in value.items()}
    make = _MAKERS.get(kind) if type(kind) is type else None  # only a metaclass can make a class unhashable
    if make is None:
        raise EncodeError(
            f"{_place(path)}: JSON does not bring back {kind.__qualname__}; say its type by a return annotation or "
            "cache.typed(), or take another serializer"
        )
    if not allowed:
        what = {float: "NaN and infinities", int: "int past 64 bits", dict: "keys that are no str"}
        raise EncodeError(f"{_place(path)}: plain JSON does not have {what.get(kind, kind.__qualname__)}")
    return {_TAG: _NAMES[kind], _VALUE: make(value, path)}


def _key(key: str, path: Path) -> str:
    if not key.isascii():
        _check_text(key, (path, " (the key {})", key))
    return key


def _items(value: tuple[Any, ...], path: Path) -> list[Any]:
    return [_tagged(part, (path, "[{}]", place), True) for place, part in enumerate(value)]


def _members(value: Collection[Any], path: Path) -> list[Any]:
    return [_tagged(part, (path, " (a member)", None), True) for part in value]


def _pairs(value: Mapping[Any, Any], path: Path) -> list[Any]:
    return [
        [_tagged(key, (path, " (a key)", None), True), _tagged(part, (path, "[{}]", key), True)]
        for key, part in value.items()
    ]


def _base64(value: bytes | bytearray, _: Path) -> str:
    return base64.b64encode(value).decode("ascii")


def _clock(value: datetime | time, path: Path) -> list[Any]:
    return [value.replace(tzinfo=None).isoformat(), value.fold, _zone(value, path)]


def _zone(value: datetime | time, path: Path) -> Any:
    """Nothing, microseconds from UTC, or a key."""
    zone = value.tzinfo
    if zone is None:
        return None
    if type(zone) is ZoneInfo and type(zone.key) is str:
        try:
            found = _found(zone.key)
        except (ValueError, LookupError):  # made from a file, with a key that is nowhere
            found = None
        # Another object under the same key may have other rules, or make an ambiguous hour unequal (PEP 495).
        if found is zone or (found is not None and value.replace(tzinfo=found) == value):
            return zone.key
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        if zone.tzname(None) == timezone(offset).tzname(None):
            return offset // timedelta(microseconds=1)
    raise EncodeError(f"{_place(path)}: its time zone does not come back: {type(zone).__qualname__}")


def _found(key: str) -> ZoneInfo:
    try:
        return ZoneInfo(key)
    except OSError as error:  # a folder of zones, or a name too long for a file
        raise LookupError(key) from error


_MAKERS: Final[Mapping[type, Callable[[Any, Path], Any]]] = {
    tuple: _items,
    set: _members,
    frozenset: _members,
    dict: _pairs,
    int: lambda value, _: hex(value),
    float: lambda value, _: repr(value),
    complex: lambda value, path: _items((value.real, value.imag), path),
    bytes: _base64,
    bytearray: _base64,
    Decimal: lambda value, _: str(value),
    UUID: lambda value, _: value.hex,
    date: lambda value, _: value.isoformat(),
    datetime: _clock,
    time: _clock,
    timedelta: lambda value, _: [value.days, value.seconds, value.microseconds],
}
_NAMES: Final = {kind: kind.__name__.lower() for kind in _MAKERS}


def _check_text(text: str, path: Path) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EncodeError(f"{_place(path)}: a text with a lone surrogate is no JSON") from None


def _place(path: Path) -> str:
    parts = []
    while path is not None:
        path, text, part = path
        try:
            parts.append(text.format(reprlib.repr(part)))
        except ValueError:  # a key with more digits than the interpreter writes
            parts.append("[…]")
    return "value" + "".join(reversed(parts))


# Untagging


def _untagged(plain: Any) -> Any:
    if type(plain) is list:
        return [_untagged(part) for part in plain]
    if type(plain) is not dict:
        return plain
    if _TAG not in plain:
        return {key: _untagged(part) for key, part in plain.items()}
    if len(plain) != 2:
        raise ValueError
    return _READERS[plain[_TAG]](plain[_VALUE])


def _list(plain: Any) -> list[Any]:
    if type(plain) is not list:
        raise ValueError
    return plain


def _listed(plain: Any) -> list[Any]:
    return [_untagged(part) for part in _list(plain)]


def _pair(plain: Any) -> list[Any]:
    if len(_list(plain)) != 2:
        raise ValueError
    return _list(plain)


def _text(plain: Any) -> str:
    if type(plain) is not str:
        raise ValueError
    return plain


def _float(plain: Any) -> float:
    if plain not in ("nan", "inf", "-inf"):
        raise ValueError
    return float(plain)


def _bytes(plain: Any) -> bytes:
    try:
        return base64.b64decode(_text(plain), validate=True)
    except binascii.Error as error:
        raise ValueError from error


def _decimal(plain: Any) -> Decimal:
    try:
        return Decimal(_text(plain), _STRICT)
    except InvalidOperation as error:
        raise ValueError from error


def _complex(plain: Any) -> complex:
    real, imaginary = _listed(plain)
    if type(real) is not float or type(imaginary) is not float:
        raise ValueError
    return complex(real, imaginary)


def _in_zone(plain: Any) -> tzinfo | None:
    if plain is None:
        return None
    if type(plain) is int:
        return timezone(timedelta(microseconds=plain))
    return _found(_text(plain))


def _datetime(plain: Any) -> datetime:
    text, fold, zone = _listed(plain)
    value = datetime.fromisoformat(_text(text))
    if value.tzinfo is not None:
        raise ValueError
    return value.replace(tzinfo=_in_zone(zone), fold=fold)


def _time(plain: Any) -> time:
    text, fold, zone = _listed(plain)
    value = time.fromisoformat(_text(text))
    if value.tzinfo is not None:
        raise ValueError
    return value.replace(tzinfo=_in_zone(zone), fold=fold)


def _timedelta(plain: Any) -> timedelta:
    days, seconds, microseconds = _listed(plain)
    if not type(days) is type(seconds) is type(microseconds) is int:
        raise ValueError
    return timedelta(days, seconds, microseconds)


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType({
    "tuple": lambda plain: tuple(_listed(plain)),
    "set": lambda plain: set(_listed(plain)),
    "frozenset": lambda plain: frozenset(_listed(plain)),
    "dict": lambda plain: {_untagged(key): _untagged(part) for key, part in map(_pair, _list(plain))},
    "int": lambda plain: int(_text(plain), 16),
    "float": _float,
    "complex": _complex,
    "bytes": _bytes,
    "bytearray": lambda plain: bytearray(_bytes(plain)),
    "decimal": _decimal,
    "uuid": lambda plain: UUID(_text(plain)),
    "date": lambda plain: date.fromisoformat(_text(plain)),
    "datetime": _datetime,
    "time": _time,
    "timedelta": _timedelta,
})  # fmt: skip
