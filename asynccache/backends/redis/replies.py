"""What a server answered, or this package's exception for it."""

import re
from typing import Any, Final, TypeVar

import hiredis

from asynccache.backends.redis.address import Address
from asynccache.errors import BackendError, BackendUnavailable

__all__ = ["ErrorReply", "all_told", "away", "code_of", "foreign", "frameless", "place_of", "told", "translated"]

E = TypeVar("E", bound=BaseException)

ErrorReply = hiredis.ReplyError
"""The server said no; it comes as a value, also inside of other replies."""

_CODE: Final = re.compile(r"[A-Z]{2,24}")
_AWAY: Final = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN", "MOVED", "ASK", "MAX")
)


def code_of(error: BaseException) -> str:
    """The first word of an error reply: the rest may name keys, values and users, and is shown to nobody."""
    text = str(error)
    if text.startswith("ERR max number of clients"):
        return "MAX"
    if text.startswith("ERR value is not an integer") or text.startswith("ERR hash value is not an integer"):
        return "NOTINT"
    word = text.split(" ", 1)[0]
    return word if _CODE.fullmatch(word) else "ERR"


def translated(error: BaseException) -> BackendError:
    """A failure in this package's words."""
    if isinstance(error, BackendError):
        return error
    code = code_of(error)
    failure = (BackendUnavailable if code in _AWAY else BackendError)(f"redis: {code}")
    failure.reason = f"redis: {code}"
    failure.__cause__ = error
    return failure


def away(where: str, reason: str, cause: BaseException | None = None) -> BackendUnavailable:
    """The failure of a call to a server that cannot be asked, and was not.

    Args:
        where: Which server.
        reason: Why, without keys and values.
        cause: What was raised when it was asked last.
    """
    failure = BackendUnavailable(f"redis: {reason}")
    failure.reason = f"redis at {where}: {reason}"
    failure.sent = False
    failure.__cause__ = cause
    return failure


def frameless(error: E) -> E:
    """The failure to keep, and to show as the cause of others: without the frames that it and what led to it have
    passed, as there are loggers that show what is in frames, and a password may be."""
    rest: list[BaseException | None] = [error]
    seen: set[int] = set()
    while rest:
        each = rest.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            rest += [each.__cause__, each.__context__]
    return error


def place_of(*addresses: Address) -> str:
    """What logs and failures call servers."""
    return ", ".join(each if isinstance(each, str) else f"{each[0]}:{each[1]}" for each in addresses)


def told(reply: Any) -> Any:
    """The reply.

    Raises:
        BackendError: It is a failure.
    """
    if not isinstance(reply, Exception):
        return reply
    try:
        raise translated(reply)
    finally:
        del reply  # what is raised holds this frame: the collector would have to find the two


def all_told(replies: list[Any]) -> list[Any]:
    """The replies.

    Raises:
        BackendError: One of them is a failure: the first of these.
    """
    failure = next((reply for reply in replies if isinstance(reply, Exception)), None)
    if failure is not None:
        del replies
        try:
            told(failure)
        finally:
            del failure  # as above
    return replies


def foreign(error: Exception, *, away: bool = False) -> Exception:
    """The failure of a read that found a value of another type: an entry that cannot be read. Others are raised.

    Args:
        error: The failure.
        away: Whether a server that cannot be asked is to be taken likewise, because others have answered.

    Raises:
        BackendError: It is another failure.
    """
    cause = error.__cause__ if isinstance(error, BackendError) and error.__cause__ is not None else error
    if not away and code_of(cause) != "WRONGTYPE":
        told(error)
    return error
