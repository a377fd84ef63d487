"""A text with fields, such as ``user:{user_id}``, that is filled from the arguments of a call."""

import difflib
import operator
import re
import string
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NoReturn

from asynccache.errors import ConfigError, InvalidKeyError

__all__ = ["KeyTemplate", "nearest"]

_FIELD = re.compile(r"([^\W\d]\w*)((?:\.\w+|\[[^\[\]{}]+\])*)")
_STEP = re.compile(r"\.(\w+)|\[([^\]]+)\]")
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]{6,}")
_CONVERSIONS: Final[dict[str, Callable[[object], str]]] = {"s": str, "r": repr, "a": ascii}
_PLAIN: Final = frozenset({str, int, bool, float, type(None)})
"""Classes whose text can hold no address, and is the same with ``str`` and ``format``."""

_Step = tuple[str, str | int]


def nearest(name: str, names: Collection[str]) -> str:
    """Words that lead from a wrong parameter name to the right one."""
    if not names:
        return "it has no parameters"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, names))}"


class KeyTemplate:
    """A template, checked and taken apart.

    A field is a parameter's name with any attributes and indexes, and perhaps a conversion and a format: ``{user_id}``,
    ``{user.id}``, ``{ids[0]}``, ``{name!r}``, ``{day:%Y-%m}``; a brace is written twice. A template is its author's own
    words: ``{x}`` is one text for ``1`` and ``"1"``, and fields run into each other where nothing stands between them.

    Args:
        text: The template.
        parameters: The names that its fields may begin with; `render` gets their values in this order.
        function: What the parameters are of, for messages.

    Raises:
        ConfigError: It is malformed, names a parameter that is none (the message names the nearest), or looks at an
            attribute that begins with an underscore.

    Attributes:
        text: The template.
        pure: Whether its text depends on nothing but values that are passed: no attribute is looked at, no locale.
        used: The places, in ``parameters``, of those that occur.
    """

    __slots__ = ("_fields", "_format", "_function", "_pick", "_single", "pure", "text", "used")

    def __init__(self, text: str, parameters: Sequence[str], *, function: str) -> None:
        self.text = text
        self._function = function
        self._fields: list[_Field] = []
        pattern = ""
        for literal, field in self._parse(parameters):
            pattern += literal.replace("%", "%%")
            if field is not None:
                self._fields.append(field)
                pattern += "%s"
        self._format: Callable[[object], str] = pattern.__mod__
        self.used = tuple(field.place for field in self._fields)
        self.pure = all(field.pure for field in self._fields)
        # Fields that are parameters as they are: of plain values the text is made in one step.
        bare = bool(self._fields) and all(field.bare for field in self._fields)
        self._pick: Callable[[Sequence[object]], Any] | None = operator.itemgetter(*self.used) if bare else None
        self._single = len(self._fields) == 1

    def render(self, values: Sequence[object]) -> str:
        """The text for these values of the parameters.

        Raises:
            InvalidKeyError: A field cannot be read or formatted, or its text would hold a memory address.
        """
        if self._pick is not None:
            picked = self._pick(values)  # the value itself when there is one field, a tuple when there are more
            if type(picked) in _PLAIN if self._single else _PLAIN.issuperset(map(type, picked)):
                return self._format(picked)
        return self._format(tuple([field.text(values[field.place], self._function) for field in self._fields]))

    def _parse(self, parameters: Sequence[str]) -> Iterator[tuple[str, "_Field | None"]]:
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            self._refuse(f"{error}; a brace that is meant as such is written twice", cause=error)
        for literal, source, layout, conversion in parts:
            if source is None:
                yield literal, None
                continue
            match = _FIELD.fullmatch(source)
            if match is None:
                self._refuse(f"{{{source}}} is no field: write a parameter's name, as in {{user_id}} or {{user.id}}")
            name, path = match.groups()
            if name not in parameters:
                self._refuse(f"there is no parameter {name!r}; {nearest(name, parameters)}")
            steps: list[_Step] = []
            for attribute, index in _STEP.findall(path):
                if attribute.startswith("_"):
                    self._refuse(
                        f"{{{source}}} looks at {attribute!r}: attributes that begin with an underscore are private"
                    )
                steps.append(
                    ("attribute", attribute) if attribute else ("index", int(index) if index.isdecimal() else index)
                )
            if conversion is not None and conversion not in _CONVERSIONS:
                self._refuse(f"{{{source}!{conversion}}}: a conversion is !s, !r or !a")
            if layout and "{" in layout:
                self._refuse(f"{{{source}:{layout}}}: a format holds no fields of its own")
            yield literal, _Field(source, parameters.index(name), steps, conversion, layout or "")

    def _refuse(self, reason: str, *, cause: Exception | None = None) -> NoReturn:
        raise ConfigError(f"{self._function}: template {self.text!r}: {reason}") from cause


class _Field:
    """One field of a template."""

    __slots__ = ("_convert", "_layout", "_source", "_steps", "bare", "place", "pure")

    def __init__(self, source: str, place: int, steps: list[_Step], conversion: str | None, layout: str) -> None:
        self._source = source
        self._steps = steps
        self._convert = _CONVERSIONS[conversion] if conversion else None
        self._layout = layout
        self.place = place
        self.bare = not steps and not conversion and not layout
        self.pure = not layout.endswith("n") and not any(how == "attribute" for how, _ in steps)

    def text(self, value: Any, function: str) -> str:
        """What stands in the field's place for this value of its parameter.

        Raises:
            InvalidKeyError: See `KeyTemplate.render`.
        """
        try:
            for how, step in self._steps:
                value = getattr(value, str(step)) if how == "attribute" else value[step]
            shown: object = self._convert(value) if self._convert is not None else value
            text = format(shown, self._layout)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidKeyError(
                f"{function}: the template's field {{{self._source}}}: {type(error).__name__}"
            ) from error
        if type(value) not in _PLAIN and _ADDRESS.search(text) is not None:
            raise InvalidKeyError(
                f"{function}: the template's field {{{self._source}}} is a {type(value).__qualname__}, whose text "
                f"holds a memory address: name what distinguishes it, as in {{{self._source}.id}}"
            )
        return text
