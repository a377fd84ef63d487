"""Bytes and text as they are."""

from typing import Any, Final, final

from asynccache.errors import DecodeError, EncodeError

__all__ = ["BytesSerializer", "StrSerializer"]


@final
class BytesSerializer:
    """Values that are ``bytes`` already."""

    name: Final = "bytes"
    number: Final = 2

    def dumps(self, value: Any) -> bytes:
        """The value itself.

        Raises:
            EncodeError: It is something else than ``bytes``.
        """
        if type(value) is not bytes:
            raise EncodeError(f"this cache keeps bytes, not {type(value).__name__}")
        return value

    def loads(self, data: bytes | memoryview) -> bytes:
        """The bytes themselves."""
        return bytes(data)


@final
class StrSerializer:
    """Text, as UTF-8."""

    name: Final = "str"
    number: Final = 3

    def dumps(self, value: Any) -> bytes:
        """The text as UTF-8.

        Raises:
            EncodeError: It is something else than ``str``, or has a lone surrogate.
        """
        if type(value) is not str:
            raise EncodeError(f"this cache keeps str, not {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise EncodeError("a text with a lone surrogate is no UTF-8") from None

    def loads(self, data: bytes | memoryview) -> str:
        """The text.

        Raises:
            DecodeError: The bytes are no UTF-8.
        """
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise DecodeError("the bytes are no text") from error
