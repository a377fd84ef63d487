"""Types made into plain data and back, by msgspec or pydantic.

msgspec does so for the types of the standard library and its own, pydantic for its own and for what msgspec does not
take. Both are optional.

Types that the serializer brings back by itself (numbers, text, lists of dates, …) are only checked, so that what was
stored under another type is a miss.
"""

import dataclasses
import enum
import importlib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, final
from uuid import UUID

from asynccache.errors import ConfigError, DecodeError, EncodeError
from asynccache.shape import AS_IT_IS, Shape

__all__ = ["shaped"]

_NATURAL: Final = frozenset({
    type(None), bool, int, float, str, bytes, bytearray, list, dict, tuple, set, frozenset,
    date, datetime, time, timedelta, Decimal, UUID,
})  # fmt: skip
_KEPT: Final = (bytes, bytearray, datetime, date, time, timedelta, Decimal, UUID)


def shaped(annotation: Any) -> Shape:
    """The shape of a type that a user names.

    Raises:
        ConfigError: The type cannot be supported, or the library for it is missing.
    """
    kinds = set(_kinds(annotation, set()))
    if kinds <= {"any"}:
        return AS_IT_IS
    if "unknown" in kinds:
        raise ConfigError(f"typed: {_name(annotation)} has a part that is neither plain data nor a class of fields")
    shape = _made(annotation, kinds)
    if shape is None:
        raise ConfigError(
            f"typed: {_name(annotation)} takes msgspec or pydantic, and neither takes it: "
            'install "asynccache[typed]", or look at its parts'
        )
    return shape


# Which library


def _made(annotation: Any, kinds: set[str]) -> Shape | None:
    if "pydantic" not in kinds:
        msgspec = _library("msgspec")
        if msgspec is not None and _takes(lambda: msgspec.convert(None, annotation | None)):
            return _Checked(msgspec, annotation) if "class" not in kinds else _ByMsgspec(msgspec, annotation)
        if "class" not in kinds:
            return AS_IT_IS
    pydantic = _library("pydantic")
    if pydantic is None:
        return None
    try:
        return _ByPydantic(pydantic.TypeAdapter(annotation), annotation)
    except (pydantic.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation, TypeError, NameError):
        return None


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _takes(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (TypeError, NameError):  # a type that it does not take, or names not
        return False
    return True


def _kinds(annotation: Any, seen: set[int]) -> Iterator[str]:
    """What an annotation consists of: ``natural``, ``class``, ``pydantic``, ``any`` and ``unknown``."""
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    supertype = getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None)
    origin = typing.get_origin(annotation)
    if annotation in (Any, object):
        yield "any"
    elif annotation is None or annotation in _NATURAL:
        yield "natural"
    elif supertype is not None:
        yield from _kinds(supertype, seen)
    elif origin is Literal:
        yield "natural" if all(type(each) in _NATURAL for each in typing.get_args(annotation)) else "class"
    elif origin is typing.Annotated:
        yield from _kinds(annotation.__origin__, seen)
    elif origin is not None:
        if origin not in (typing.Union, types.UnionType, typing.Required, typing.NotRequired):
            yield from ("natural",) if origin.__module__ in ("builtins", "collections.abc") else _kinds(origin, seen)
        for part in typing.get_args(annotation):
            if part is not Ellipsis:
                yield from _kinds(part, seen)
    elif isinstance(annotation, type):
        yield from _kinds_of_class(annotation, seen)
    else:
        yield "unknown"


def _kinds_of_class(kind: type, seen: set[int]) -> Iterator[str]:
    pydantic = sys.modules.get("pydantic")  # a class that is pydantic's has it imported
    if hasattr(kind, "__pydantic_core_schema__") or (pydantic is not None and issubclass(kind, pydantic.BaseModel)):
        yield "pydantic"
        yield "class"
        return
    if issubclass(kind, enum.Enum):
        yield "class"
        return
    typed_dict = typing.is_typeddict(kind)
    if not typed_dict:
        if not (_has_fields(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))):
            yield "unknown"
            return
        yield "class"
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {}
    yield "natural"
    for hint in hints.values():
        # What the type of a field is not known to be, the libraries decide.
        yield from (each for each in _kinds(hint, seen) if each != "unknown")


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "__struct_fields__") or hasattr(kind, "__attrs_attrs__")


# By library


@final
class _Checked:
    """Plain data of a type: checked, and left as it is."""

    def __init__(self, msgspec: Any, annotation: Any) -> None:
        self._convert = msgspec.convert
        self._annotation = annotation

    def dump(self, value: Any) -> Any:
        if not self._fits(value):
            raise EncodeError(f"a {type(value).__qualname__} is not {_name(self._annotation)}")
        return value

    def load(self, plain: Any) -> Any:
        if not self._fits(plain):
            raise DecodeError(f"what is stored is not {_name(self._annotation)}")
        return plain

    def _fits(self, value: Any) -> bool:
        try:
            self._convert(value, self._annotation)
        except (TypeError, ValueError):
            return False
        return True


@final
class _ByMsgspec:
    """A type of fields, by msgspec."""

    def __init__(self, msgspec: Any, annotation: Any) -> None:
        self._to_builtins = msgspec.to_builtins
        self._convert = msgspec.convert
        self._annotation = annotation

    def dump(self, value: Any) -> Any:
        return _dumped(value, (self._to_builtins, self._to_natural), self.load, self._annotation)

    def load(self, plain: Any) -> Any:
        return _loaded(plain, lambda data: self._convert(data, self._annotation), self._annotation)

    def _to_natural(self, value: Any) -> Any:
        return self._to_builtins(value, builtin_types=_KEPT)


@final
class _ByPydantic:
    """A type of fields, by pydantic."""

    def __init__(self, adapter: Any, annotation: Any) -> None:
        self._adapter = adapter
        self._name = annotation

    def dump(self, value: Any) -> Any:
        return _dumped(value, (self._plain, self._natural), self.load, self._name)

    def load(self, plain: Any) -> Any:
        return _loaded(plain, self._adapter.validate_python, self._name)

    def _plain(self, value: Any) -> Any:
        return self._adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings="error")

    def _natural(self, value: Any) -> Any:
        return self._adapter.dump_python(value, by_alias=True, round_trip=True, warnings="error")


def _dumped(value: Any, ways: Sequence[Callable[[Any], Any]], load: Callable[[Any], Any], annotation: Any) -> Any:
    """Plain data, of which it is known that it comes back.

    The first way makes plain JSON, in which a date is a text. Where that does not come back, as in a field of any type,
    the second leaves to the serializer what it brings back by itself.
    """
    where = ""
    for way in ways:
        try:
            plain = way(value)
            back = load(plain)
        except Exception as error:  # its text may hold the value
            where = where or _place_in(error)
            continue
        if _same(value, back):
            return plain
    kind = type(value).__qualname__
    raise EncodeError(f"a {kind} is not as {_name(annotation)} says{where}, or would not come back the same")


def _place_in(error: Exception) -> str:
    """Where a library has found what is not of its type, without what was found."""
    found = _PLACE.search(str(error))
    return f" at {found[1]}" if found else ""


_PLACE: Final = re.compile(r"- at `(\$[\w.\[\]]+)`")  # as msgspec has it: names of fields, no keys of a dict


def _loaded(plain: Any, make: Callable[[Any], Any], annotation: Any) -> Any:
    try:
        return make(plain)
    except Exception:  # as above
        raise DecodeError(f"what is stored does not fit {_name(annotation)}") from None


def _same(one: Any, other: Any) -> bool:
    """Whether two are of the same type and have the same parts, all the way down; also where a class has no ``==``."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is list or issubclass(kind, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if kind is dict:
        return one.keys() == other.keys() and all(
            _same(part, other[key]) and type(key) is type(there)
            for (key, part), there in zip(one.items(), other, strict=True)
        )
    if kind is set or kind is frozenset:
        return one == other and sorted(map(repr, map(type, one))) == sorted(map(repr, map(type, other)))
    names = _field_names(kind)
    if names is None:
        return bool(one == other) and getattr(one, "tzinfo", None) == getattr(other, "tzinfo", None)
    extra = getattr(one, "__pydantic_extra__", None) or {}
    return extra == (getattr(other, "__pydantic_extra__", None) or {}) and all(
        _same(getattr(one, name, None), getattr(other, name, None)) for name in names
    )


def _field_names(kind: type) -> Any:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    names: Any = getattr(kind, "__struct_fields__", None)
    by_pydantic = getattr(kind, "model_fields", None)
    if names is None and isinstance(by_pydantic, Mapping):
        names = list(by_pydantic)
    if names is None and hasattr(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__]
    return names


def _name(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
