"""What stands between the values of one type and the plain data that a store of bytes keeps for them."""

from typing import Any, Final, Protocol, final

__all__ = ["AS_IT_IS", "Shape"]


class Shape(Protocol):
    """What is done with the values of one type on their way to a store of bytes and back."""

    def dump(self, value: Any) -> Any:
        """The value as plain data; the value itself where the serializer brings it back by itself.

        Raises:
            EncodeError: It is not of the type, or would not come back equal.
        """
        ...

    def load(self, plain: Any) -> Any:
        """The value again.

        Raises:
            DecodeError: What is stored does not fit the type any more.
        """
        ...


@final
class _AsItIs:
    """Nothing to do."""

    def dump(self, value: Any) -> Any:
        return value

    def load(self, plain: Any) -> Any:
        return plain


AS_IT_IS: Final[Shape] = _AsItIs()
"""Leaves values to the serializer, to take or refuse."""
