"""The shapes of the types that users name or annotate.

A type says more than its data: a `User` is kept as an object of its fields, and only who knows the type makes a `User`
of it again. What does so is imported when the first value of a type goes to a store of bytes.
"""

import typing
from collections.abc import Callable
from typing import Any, Final, final

from asynccache.errors import ConfigError
from asynccache.shape import AS_IT_IS, Shape

__all__ = ["result_shape", "shape_for"]

_SAYS_NOTHING: Final = (object, Any, typing.TypeVar, typing.ParamSpec)


def shape_for(annotation: Any) -> Shape:
    """The shape of a type that a user names.

    Raises:
        ConfigError: The type cannot be supported, or the library for it is missing.
    """
    from asynccache._shaping import shaped  # slow to import, and of use to stores of bytes only

    return shaped(annotation)


def result_shape(function: Callable[..., Any], *, of_mapping: bool = False) -> Shape | None:
    """The shape of what a function is annotated to return; ``None`` when nothing is said.

    The annotation is looked at when the shape is first used: it may name a class that is defined later. One that
    cannot be resolved, or that no library takes, leaves values as they are.

    Args:
        function: The function.
        of_mapping: Whether it returns a mapping of the values.
    """
    if getattr(function, "__annotations__", {}).get("return", Any) in _SAYS_NOTHING:
        return None
    return _OfResult(function, of_mapping)


@final
class _OfResult:
    """The shape of a function's result, found when it is first used."""

    def __init__(self, function: Callable[..., Any], of_mapping: bool) -> None:
        self._function = function
        self._of_mapping = of_mapping
        self._shape: Shape | None = None

    def dump(self, value: Any) -> Any:
        return (self._shape or self._found()).dump(value)

    def load(self, plain: Any) -> Any:
        return (self._shape or self._found()).load(plain)

    def _found(self) -> Shape:
        self._shape = shape = self._of(self._annotation())
        return shape

    def _annotation(self) -> Any:
        try:
            annotation = typing.get_type_hints(self._function, include_extras=True).get("return", Any)
        except (NameError, TypeError, AttributeError, SyntaxError):
            return Any
        if not self._of_mapping:
            return annotation
        parts = typing.get_args(annotation)
        return parts[1] if len(parts) == 2 else Any

    def _of(self, annotation: Any) -> Shape:
        try:
            return shape_for(annotation)
        except ConfigError:
            return AS_IT_IS
