"""The first words on a connection: which protocol, who we are, which database, and what time it is there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from asynccache.backends.redis.address import Settings
from asynccache.backends.redis.replies import ErrorReply, code_of, told
from asynccache.backends.redis.wire import Asked, Wire, pack
from asynccache.clock import Clock
from asynccache.errors import BackendError, BackendUnavailable

__all__ = ["Greeting", "greet"]

_CLOCK_SECONDS: Final = 0.005  # by which clocks differ that are taken for the same
_MORE_LOOKS: Final = 3  # at a clock, while the answers take long
_FAR_SECONDS: Final = 0.02  # from which they take long because the way is
_REFUSED: Final = frozenset(("WRONGPASS", "NOAUTH"))


@dataclass(frozen=True, slots=True)
class Greeting:
    """What came of it.

    Attributes:
        protocol: 2 or 3.
        tracking: Whether the server tells of keys that change.
        offset: Seconds by which its clock is ahead of the cache's.
    """

    protocol: int
    tracking: bool
    offset: float


@dataclass(frozen=True, slots=True)
class _Who:
    """Who we are: words that are in no frame by themselves, as there are loggers that show what is in frames."""

    username: str | None = field(repr=False)
    password: str | None = field(repr=False)


async def greet(wire: Wire, settings: Settings, clock: Clock, *, track_all: bool, master: bool) -> Greeting:
    """Introduce ourselves.

    Args:
        wire: The connection.
        settings: Who we are.
        clock: Ours.
        track_all: Whether the server is to tell of every key that is read, or only of those read on request.
        master: Whether it must be a master.

    Raises:
        BackendUnavailable: The server will not have us, or is not what it must be.
    """
    who = await _who(settings)
    protocol = settings.protocol
    while True:
        began = clock.monotonic()
        # A server that does not want to hear our name does no harm.
        replies = [await each for each in _say(wire, settings, who, protocol, track_all=track_all, master=master)]
        hello, _, _, _, database, role, tracking, time = replies
        if protocol == 2 or not isinstance(hello, ErrorReply) or code_of(hello) in _REFUSED:
            break
        protocol = 2  # it is older than 6, or there is something between us that speaks RESP2 only
    if isinstance(hello, ErrorReply) and code_of(hello) == "ERR":
        hello = ErrorReply("ERR")  # who knows no such command says it again, with the password
    told(hello)
    if isinstance(database, ErrorReply) and settings.db and code_of(database) == "ERR":
        raise BackendError(f"redis: there is no database {settings.db}")
    told(database)
    if master and not isinstance(role, ErrorReply) and told(role)[0] != b"master":
        raise BackendUnavailable("redis: the server is not a master")
    error, offset = _compared(clock, began, time)
    for _ in range(_MORE_LOOKS):
        if not _CLOCK_SECONDS < error < _FAR_SECONDS:
            break
        began, before = clock.monotonic(), error
        [asked] = wire.urgent(pack(("TIME",)))
        error, offset = min((error, offset), _compared(clock, began, await asked))
        if error > 0.7 * before:
            break
    if abs(offset) <= error + _CLOCK_SECONDS:
        offset = 0.0
    return Greeting(protocol, protocol == 3 and not isinstance(tracking, Exception), offset)


def _say(wire: Wire, settings: Settings, who: _Who, protocol: int, *, track_all: bool, master: bool) -> Sequence[Asked]:
    """The replies to come to all in one round trip; this frame, which has the words, is over before anything fails."""
    tracking_on = ("ON",) if track_all else ("ON", "OPTIN")
    commands: tuple[tuple[str, ...], ...] = (
        _first(protocol, who.username, who.password),
        ("CLIENT", "SETNAME", settings.client_name or "asynccache"),
        ("CLIENT", "SETINFO", "LIB-NAME", "asynccache"),
        ("CLIENT", "SETINFO", "LIB-VER", version("asynccache")),
        ("SELECT", str(settings.db)) if settings.db else ("PING",),
        ("ROLE",) if master else ("PING",),
        ("CLIENT", "TRACKING", *(tracking_on if protocol == 3 else ("OFF",))),
        ("TIME",),
    )
    return wire.urgent(*map(pack, commands))


def _first(protocol: int, username: str | None, password: str | None) -> tuple[str, ...]:
    """Which protocol it is, and who we are.

    A user without a password says so, by an empty one: it may need none, and if it needs one the server refuses. Not a
    word would make us the default user, who may be allowed more.
    """
    nobody = username is None and password is None
    if protocol == 3:
        return ("HELLO", "3") if nobody else ("HELLO", "3", "AUTH", username or "default", password or "")
    if nobody:
        return ("PING",)
    return ("AUTH", password or "") if username is None else ("AUTH", username, password or "")


def _compared(clock: Clock, began: float, time: Any) -> tuple[float, float]:
    """By how much the server's clock is ahead of ours: the most that this can be wrong, and how much it is."""
    if isinstance(time, ErrorReply):
        return 0.0, 0.0
    took = clock.monotonic() - began
    seconds, micros = told(time)
    return took / 2, int(seconds) + int(micros) / 1e6 - (began + took / 2 + clock.epoch)


async def _who(settings: Settings) -> _Who:
    """The user's name, if any, and the password.

    Raises:
        BackendUnavailable: Who is to provide them does not.
    """
    if settings.credentials is None:
        return _Who(settings.username, settings.password)
    try:
        *names, password = await settings.credentials.get_credentials_async()
        return _Who(names[0] if names else None, password or "")
    except Exception as error:
        failure = type(error).__name__
    raise BackendUnavailable(f"redis: no credentials: {failure}")  # what it has said may be part of them
