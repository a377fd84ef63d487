"""The keys under which values are stored: what is one, and how one is made of a call."""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Annotated, Any, Final, final

from asynccache._canonical import SCALARS, Unstable, encode, encode_class
from asynccache._key_template import KeyTemplate, nearest
from asynccache.errors import ConfigError, InvalidKeyError

__all__ = ["Ignore", "KeyBuilder", "check_key", "check_namespace", "check_view"]

_LONGEST = 1_024
_DIGEST_SIZE = 16
_LONGEST_NAME = _LONGEST - 1 - 2 * _DIGEST_SIZE
_SHOWN = 80
_EMPTY: Final = inspect.Parameter.empty
_STARS: Final[Mapping[Any, str]] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def check_key(key: object) -> str:
    """The key, when it is a non-empty text without NUL and lone surrogates, of at most 1,024 bytes of UTF-8.

    Raises:
        InvalidKeyError: It is not; the message shows no more than its beginning.
    """
    if type(key) is str and key.isascii() and 0 < len(key) <= _LONGEST and "\0" not in key:
        return key
    if not isinstance(key, str):
        raise InvalidKeyError(f"a key is a str, not a {type(key).__qualname__}")
    if not key:
        raise InvalidKeyError("a key is not empty")
    return _check_text(key, "key")


def check_namespace(namespace: object) -> str:
    """The namespace, when it is empty or could be a key. (A key in it is stored as ``namespace:key``.)

    Raises:
        InvalidKeyError: It is neither.
    """
    if not isinstance(namespace, str):
        raise InvalidKeyError(f"a namespace is a str, not a {type(namespace).__qualname__}")
    return _check_text(namespace, "namespace")


def check_view(name: object) -> str:
    """The name of a namespace within another one, when it could be a key.

    Raises:
        InvalidKeyError: It is none.
    """
    if not (checked := check_namespace(name)):
        raise InvalidKeyError("the name of a namespace is not empty")
    return checked


def _check_text(text: str, what: str) -> str:
    if not (text.isascii() and len(text) <= _LONGEST):
        try:
            size = len(text) if len(text) > _LONGEST else len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidKeyError(f"{what} {_shown(text)} has a lone surrogate at {error.start}") from None
        if size > _LONGEST:
            raise InvalidKeyError(f"{what} {_shown(text)} is longer than {_LONGEST:,} bytes")
    if "\0" in text:
        raise InvalidKeyError(f"{what} {_shown(text)} has a NUL at {text.index(chr(0))}")
    return (
        text if type(text) is str else str.__str__(text)
    )  # a member of a StrEnum is stored as the text that it equals


def _shown(text: str) -> str:
    shown = ascii(text[:_SHOWN])
    return shown if len(text) <= _SHOWN and len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


class Ignore:
    """Marks a parameter that says nothing about the result: ``session: Annotated[Session, Ignore]``."""


@final
class KeyBuilder:
    """Makes the key of a call of one function: equal calls have one key, however they are written.

    Without a template the key is ``module.qualname:digest``. The digest (BLAKE2b, 128 bits) is of the arguments that
    the function would see, defaults included, in an encoding that tells ``1``, ``"1"``, ``True`` and ``1.0`` apart
    and is the same in every process: no argument can be read in it. What a value needs for that is said in
    ``_canonical.py``.

    A method needs nothing special: its receiver is its first argument, and is given like the others. A class there
    counts by its name; an instance by its ``__cache_key__`` or fields, unless it is ignored or named in a template.

    Args:
        function: What is called. It is only looked at.
        key: ``None``, a template (see `KeyTemplate`), or a function that gets a call's arguments and returns its key.
        ignore: Parameters left out of the default key, besides those that are ``Annotated[..., Ignore]``.
        prefix: What stands for the function's name in the default key; needed by a callable that has none.

    Raises:
        ConfigError: An option is ill-typed, contradicts another one, or names a parameter that the function does not
        have.

    Attributes:
        name: The function's name, for messages.
        parameters: The names of its parameters.
        pure: Whether calls by equal positional arguments, all of them exactly ``str``, ``int``, ``bytes`` or ``None``,
            always have one key, so that it can be remembered. Not so with a key function, a field that looks at an
            attribute, or a default that might change.
    """

    __slots__ = (
        "_by_hand",
        "_digested",
        "_given",
        "_kept",
        "_key_function",
        "_positional",
        "_render",
        "_signature",
        "_width",
        "name",
        "parameters",
        "pure",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        key: str | Callable[..., str] | None = None,
        ignore: Collection[str] = (),
        prefix: str | None = None,
    ) -> None:
        self.name: str = getattr(function, "__qualname__", None) or type(function).__qualname__
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.name}: its parameters are not known: {error}") from error
        parameters = list(self._signature.parameters.values())
        self.parameters = tuple(parameter.name for parameter in parameters)
        if key is not None and (ignore or prefix is not None):
            raise ConfigError(f"{self.name}: ignore= and prefix= are for the default key; key= says all by itself")

        # How a call's arguments are put in the parameters' order.
        kinds = [parameter.kind for parameter in parameters]
        self._given = tuple((parameter.name, parameter.default) for parameter in parameters)
        self._positional = sum(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds)
        self._by_hand = all(
            kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY) for kind in kinds
        )
        self._width = len(parameters) if self._by_hand and self._positional == len(parameters) else -1

        # What is made of them.
        self._digested = ""
        self._kept: tuple[tuple[int, bytes], ...] = ()
        self._render: Callable[[Sequence[object]], str] | None = None
        self._key_function: Callable[..., str] | None = None
        used: Collection[int]
        if key is None:
            ignored = self._check_ignored(ignore) | {p.name for p in parameters if _is_ignored(p, function)}
            used = [place for place, name in enumerate(self.parameters) if name not in ignored]
            self._kept = tuple((place, encode(_STARS.get(kinds[place], "") + self.parameters[place])) for place in used)
            self._digested = f"{_name_in_keys(function, self.name, prefix)}:"
            self._render = self._digest
            self.pure = True
        elif isinstance(key, str):
            template = KeyTemplate(key, self.parameters, function=self.name)
            used = template.used
            given = [p.name for p in parameters[_is_method(function) :] if not _is_ignored(p, function)]
            if given and not used:
                raise ConfigError(
                    f"{self.name}: the key {key!r} would be one for all of its calls; it has no field such as "
                    f"{{{given[0]}}} (if that is meant: key=lambda *_, **__: {key!r})"
                )
            self._render = template.render
            self.pure = template.pure
        elif callable(key) and not inspect.iscoroutinefunction(key):
            used = ()
            self._key_function = key
            self.pure = False
        else:
            raise ConfigError(f"{self.name}: key is a template or a plain function, not a {type(key).__qualname__}")
        self.pure = self.pure and all(_is_constant(parameters[place].default) for place in used)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The key of the call ``function(*args, **kwargs)``: a valid one, without a namespace.

        Raises:
            InvalidKeyError: An argument has no stable identity (the message names it and says what to do), or what the
                template or the key function makes of the arguments is no key.
            TypeError: The function cannot be called with these arguments.
        """
        if self._render is None:
            assert self._key_function is not None
            return check_key(self._key_function(*args, **kwargs))
        values = args if not kwargs and len(args) == self._width else self._bind(args, kwargs)
        return check_key(self._render(values))

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[object]:
        """The parameters' values, defaults included, in their order."""
        if self._by_hand and len(args) <= self._positional:
            values = [*args]
            left = len(kwargs)
            for name, default in self._given[len(args) :]:
                if name in kwargs:
                    values.append(kwargs[name])
                    left -= 1
                elif default is _EMPTY:
                    break
                else:
                    values.append(default)
            else:
                if not left:
                    return values
        # Variadic parameters, or a call that the function would refuse: then this raises the same TypeError.
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return [
            dict(sorted(value.items()))
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            else value
            for name, value in bound.arguments.items()
        ]

    def _digest(self, values: Sequence[object]) -> str:
        parts = []
        for place, label in self._kept:
            value = values[place]
            scalar = SCALARS.get(type(value))
            parts.append(label)
            parts.append(scalar(value) if scalar is not None else self._encode(place, value))
        return self._digested + blake2b(b"".join(parts), digest_size=_DIGEST_SIZE).hexdigest()

    def _encode(self, place: int, value: object) -> bytes:
        parameter = self.parameters[place]
        if place == 0 and parameter == "cls" and isinstance(value, type):
            return encode_class(value)  # a class method's: it counts by name even when local, as its function does
        try:
            return encode(value)
        except Unstable as error:
            raise InvalidKeyError(
                f"{self.name}: argument {parameter!r} is or contains a {error.culprit}, which {error.reason}, so that "
                f"no key can be made of it: give that class a __cache_key__, leave the argument out "
                f'(ignore=[{parameter!r}]), or say what distinguishes it (key="...{{{parameter}.id}}...")'
            ) from None

    def _check_ignored(self, names: Collection[str]) -> set[str]:
        if isinstance(names, str):
            raise ConfigError(f"{self.name}: ignore is a collection of names, not one text: write ignore=[{names!r}]")
        for name in names:
            if name not in self.parameters:
                raise ConfigError(
                    f"{self.name}: ignore: there is no parameter {name!r}; {nearest(name, self.parameters)}"
                )
        return set(names)

    def __repr__(self) -> str:
        return f"KeyBuilder({self.name})"


def _name_in_keys(function: Callable[..., Any], name: str, prefix: str | None) -> str:
    """What the keys of this function begin with, short enough."""
    if prefix is None:
        own = getattr(function, "__qualname__", None)
        if not own or own.endswith("<lambda>") or inspect.ismethod(function):  # several of them would share their keys
            raise ConfigError(
                f"{name}: a {type(function).__name__} has no name of its own that keys could begin with: give prefix="
            )
        prefix = f"{function.__module__}.{own}"
    data = prefix.encode(errors="surrogatepass")
    if len(data) > _LONGEST_NAME:
        digest = blake2b(data, digest_size=_DIGEST_SIZE).hexdigest()
        prefix = data[: _LONGEST_NAME - 1 - len(digest)].decode(errors="ignore") + "~" + digest
    try:
        return check_key(prefix)
    except InvalidKeyError as error:
        raise ConfigError(f"{name}: prefix: {error}") from error


def _is_method(function: Callable[..., Any]) -> bool:
    """Whether its first parameter is, by all custom, the instance or the class."""
    return next(iter(inspect.signature(function).parameters), "") in ("self", "cls")


def _is_ignored(parameter: inspect.Parameter, function: Callable[..., Any]) -> bool:
    """Whether it is ``Annotated[..., Ignore]``."""
    hint = parameter.annotation
    if isinstance(hint, str):

        def bearer() -> None:
            """Bears one annotation: read all at once, one that cannot be read would fail the others."""

        bearer.__annotations__ = {parameter.name: hint}
        names = getattr(inspect.unwrap(function), "__globals__", {})
        try:
            hint = typing.get_type_hints(bearer, globalns=names, include_extras=True)[parameter.name]
        except (NameError, AttributeError, TypeError, SyntaxError) as error:  # a name under TYPE_CHECKING, most often
            if "Ignore" in hint:
                raise ConfigError(
                    f"the annotation of {parameter.name!r} cannot be read: {error}; use ignore="
                ) from error
            return False
    return typing.get_origin(hint) is Annotated and any(
        note is Ignore or isinstance(note, Ignore) for note in hint.__metadata__
    )


def _is_constant(value: object) -> bool:
    """Whether a default can be relied on to have one encoding, and one text, for ever."""
    if isinstance(value, tuple | frozenset):
        return all(map(_is_constant, value))
    return value is _EMPTY or isinstance(value, Enum) or (type(value) in SCALARS and type(value) is not bytearray)
