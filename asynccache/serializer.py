"""What turns values into bytes and back."""

from typing import Any, Protocol

__all__ = ["Serializer"]


class Serializer(Protocol):
    """Value to bytes and back, so that what comes back is equal to what went in, and of the same type.

    It is used from several threads at once and keeps nothing between two calls.
    """

    @property
    def name(self) -> str:
        """A short, constant word for configuration and errors: ``json``."""
        ...

    @property
    def number(self) -> int:
        """What stands for it in the bytes at rest: 1-127 are this package's, 128-255 are free for others."""
        ...

    def dumps(self, value: Any) -> bytes:
        """The value as bytes.

        Raises:
            EncodeError: It would not come back equal; the error names the path inside the value.
        """
        ...

    def loads(self, data: bytes | memoryview) -> Any:
        """The value that the bytes stand for. Whatever the bytes are, nothing is executed but what this serializer is
        documented to execute.

        Raises:
            DecodeError: They are no such bytes.
        """
        ...
