"""A large command in the pieces that it is made of, which leave one after the other and are never copied together."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias, final

__all__ = ["Command", "Pieces", "portions"]

_PORTION_BYTES: Final = 65_536


@final
class Pieces:
    """A packed command whose argument is large.

    Args:
        pieces: What makes it up; the first begins with its name.
    """

    __slots__ = ("_pieces", "_size")

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self._size = sum(map(len, pieces))

    @classmethod
    def of(
        cls, before: Sequence[str | bytes | float], data: Sequence[bytes], after: Sequence[str | bytes | float] = ()
    ) -> "Pieces":
        """The command with these arguments before and after its large one."""
        count = len(before) + 1 + len(after)
        head = b"*%d\r\n%b$%d\r\n" % (count, b"".join(map(_packed, before)), sum(map(len, data)))
        return cls(head, *data, b"\r\n" + b"".join(map(_packed, after)))

    def __len__(self) -> int:
        return self._size

    def __radd__(self, before: bytes) -> "Pieces":
        return Pieces(before, *self._pieces)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


Command: TypeAlias = bytes | Pieces
"""A packed command; perhaps others in front of it."""


def portions(command: Command) -> Iterator[memoryview]:
    """A large command, in what leaves in one turn of the loop each."""
    for piece in command if isinstance(command, Pieces) else (command,):
        view = memoryview(piece)
        for start in range(0, len(view), _PORTION_BYTES):
            yield view[start : start + _PORTION_BYTES]


def _packed(argument: str | bytes | float) -> bytes:
    data = argument if isinstance(argument, bytes) else str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
