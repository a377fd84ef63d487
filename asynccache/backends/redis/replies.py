"""What a server answered, or this package's exception for it."""

import re
from typing import Any, Final, TypeVar, final

import hiredis

from asynccache.backends.redis.address import Address
from asynccache.errors import BackendError, BackendUnavailable

__all__ = [
    "ErrorReply", "Refusals", "all_told", "away", "bare", "code_of", "foreign", "frameless", "meaning", "place_of",
    "prefix_of", "said", "told", "translated",
]  # fmt: skip

E = TypeVar("E", bound=BaseException)

ErrorReply = hiredis.ReplyError
"""The server said no; it comes as a value, also inside of other replies."""

_CODE: Final = re.compile(r"[A-Z]{2,24}")
_AWAY: Final = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN", "MOVED", "ASK", "MAX")
)


def code_of(error: BaseException) -> str:
    """What kind of error reply it is: its first word, or a finer one of ours. The rest may name keys, values and users,
    and is shown to nobody."""
    text = str(error)
    if text.startswith("ERR max number of clients"):
        return "MAX"
    if text.startswith("ERR value is not an integer") or text.startswith("ERR hash value is not an integer"):
        return "NOTINT"
    return prefix_of(error)


def prefix_of(error: BaseException) -> str:
    """The first word of an error reply as the server has it."""
    word = str(error).split(" ", 1)[0]
    return word if _CODE.fullmatch(word) else "ERR"


_MEANINGS: Final = {
    "BUSY": "a script keeps it busy",
    "CLUSTERDOWN": "a part of the cluster is missing",
    "LOADING": "it is starting",
    "MASTERDOWN": "it is a replica that has lost its master",
    "MISCONF": "it cannot save to its disk, and takes no writes",
    "NOAUTH": "it asks for a password",
    "NOREPLICAS": "it has too few replicas, and takes no writes",
    "OOM": "its memory is full: maxmemory",
    "READONLY": "it is a replica",
    "WRONGPASS": "wrong user or password",
    "WRONGTYPE": "another program keeps something else under the key",
}
_MEANINGS_OF_ERR: Final = (
    ("max number of clients", "it has too many clients: maxclients"),
    ("value is not an integer", "the value is no integer"),
    ("unknown", "it does not know the command"),
    ("user executing the script can't run", "the user may not run a command of the script"),
    ("user executing the script can't access", "the user may not use the key"),
)
_FORBIDDEN: Final = re.compile(r"to run the '([a-z|_-]{1,40})' command")


def meaning(error: BaseException) -> str:
    """An error reply in words for a log: its code, and what that means. Of the server's text, which may name keys, no
    more is taken than the name of a command that the user may not run."""
    text = str(error)
    code = code_of(error)
    if code == "NOPERM":
        command = _FORBIDDEN.search(text)
        if command is not None:
            return f"NOPERM (the user may not run {command[1].replace('|', ' ').upper()})"
        return "NOPERM (the user may not use the key)" if "key" in text else "NOPERM"
    if text.startswith("ERR "):
        lower = text.lower()
        return next((f"ERR ({words})" for start, words in _MEANINGS_OF_ERR if start in lower[:80]), "ERR")
    return f"{code} ({_MEANINGS[code]})" if code in _MEANINGS else code


@final
class _Refusal(ErrorReply):
    """An error reply that says where it is from."""

    place = ""


@final
class Refusals:
    """Makes the error replies of one connection, which say where they are from.

    Attributes:
        place: What the server is called.
    """

    __slots__ = ("place",)

    def __init__(self, place: str = "") -> None:
        self.place = place

    def __call__(self, text: str) -> ErrorReply:
        reply = _Refusal(text)
        reply.place = self.place
        return reply


def said(place: str, words: str) -> str:
    """What a failure says, with the server that it is about."""
    return f"redis at {place}: {words}" if place else f"redis: {words}"


def bare(failure: BaseException) -> str:
    """What a failure says, without the server."""
    return _SERVER.sub("", str(failure), count=1)


_SERVER: Final = re.compile(r"redis(?: at .+?)?: ")


def translated(error: BaseException) -> BackendError:
    """A failure in this package's words."""
    if isinstance(error, BackendError):
        return error
    kind = BackendUnavailable if code_of(error) in _AWAY else BackendError
    place = error.place if isinstance(error, _Refusal) else ""
    failure = kind(said(place, meaning(error)))
    failure.reason = str(failure)
    failure.__cause__ = error
    return failure


def away(where: str, reason: str, cause: BaseException | None = None) -> BackendUnavailable:
    """The failure of a call to a server that cannot be asked, and was not.

    Args:
        where: Which server.
        reason: Why, without keys and values.
        cause: What was raised when it was asked last.
    """
    failure = BackendUnavailable(said(where, reason))
    failure.reason = str(failure)
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
