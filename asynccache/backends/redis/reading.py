"""How keys are read: the start of each, or all of a turn of the loop together.

The latter is an option, for small values. The server takes less time for one ``MGET`` of many keys than for as many
commands, and so does reading the reply. But what is large comes whole, what is no text counts as absent, and all keys
must be on one server.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, final

from asynccache.backends.redis.wire import Asked, pack
from asynccache.errors import BackendError

__all__ = ["CHUNK", "HEAD", "Merger", "Way", "first_bytes", "first_chunk"]

CHUNK: Final = 65_536
"""How many bytes are read of any value; what is longer is large."""

HEAD: Final = 512
"""How many bytes are read where a value is not wanted: a lease, the header, and ten tags or so."""

_MOST_KEYS: Final = 128

Waiting = list[tuple[bytes, Asked]]


def first_chunk(name: bytes) -> bytes:
    """The command for the start of what is under a key: all of it, but of large values. By hand: that takes a quarter
    of hiredis' time."""
    return b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b%b" % (len(name), name, _RANGE)


def first_bytes(name: bytes) -> bytes:
    """The command for the first `HEAD` bytes of what is under a key."""
    return b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b%b" % (len(name), name, _HEAD_RANGE)


_HEAD_RANGE: Final = b"\r\n$1\r\n0\r\n$%d\r\n%d\r\n" % (len(str(HEAD - 1)), HEAD - 1)
_RANGE: Final = b"\r\n$1\r\n0\r\n$%d\r\n%d\r\n" % (len(str(CHUNK - 1)), CHUNK - 1)


class Way(Protocol):
    """The connection that they take."""

    @property
    def send(self) -> Callable[..., Asked]: ...


@final
class Merger:
    """The reads of one connection.

    Args:
        way: The connection.
        loop: Its loop.
    """

    def __init__(self, way: Way, loop: AbstractEventLoop) -> None:
        self._way = way
        self._loop = loop
        self._waiting: Waiting = []

    def ask(self, name: bytes) -> Asked:
        """Ask for what is under the key, together with the others of this turn."""
        asked: Asked = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting.append((name, asked))
        return asked

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting = [each for each in waiting if not each[1].done()]  # some were cancelled
        for start in range(0, len(waiting), _MOST_KEYS):
            part = waiting[start : start + _MOST_KEYS]
            try:
                reply = self._way.send(pack((b"MGET", *(name for name, _ in part))))
            except BackendError as error:
                _fail(part, error)
            else:
                reply.add_done_callback(partial(_answered, part))


def _answered(part: Waiting, reply: Asked) -> None:
    found: Any = reply.result()
    if type(found) is not list or len(found) != len(part):
        _fail(part, found if isinstance(found, Exception) else BackendError("redis: an answer of another kind"))
        return
    for (_, asked), data in zip(part, found, strict=True):
        if not asked.done():
            asked.set_result(b"" if data is None else data)


def _fail(part: Waiting, error: Exception) -> None:
    """Tell each of a failure, by an exception of his own."""
    for _, asked in part:
        if not asked.done():
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            vars(own).update(vars(error))
            asked.set_result(own)
