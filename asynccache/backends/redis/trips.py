"""Round trips to a server as spans show them: which command went to whom, and what came of it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from asynccache.backends.redis.address import Settings
from asynccache.backends.redis.pieces import Command, Pieces
from asynccache.backends.redis.replies import ErrorReply, prefix_of
from asynccache.backends.redis.scripts import NAMES
from asynccache.backends.redis.wire import Asked, Wire
from asynccache.telemetry import RoundTrip, round_trip

__all__ = ["answered", "answered_all", "begun", "begun_all"]

_HEAD_BYTES: Final = 128  # have the names of a command and of the script that it calls


def begun(settings: Settings, command: Command) -> RoundTrip | None:
    """The span of a packed command; ``None`` where nobody records."""
    name, script = _names_of(command)
    return round_trip(name, _where(settings), script=script)


def begun_all(settings: Settings, commands: Sequence[Command]) -> RoundTrip | None:
    """The span of commands that leave together; ``None`` where nobody records."""
    names = {_names_of(command) for command in commands}
    commands_called = {name for name, _ in names}
    scripts = {script for _, script in names}
    name = f"PIPELINE {commands_called.pop()}" if len(commands_called) == 1 else "PIPELINE"
    return round_trip(name, _where(settings), len(commands), scripts.pop() if len(scripts) == 1 else None)


def answered(trip: RoundTrip, wire: Wire, asked: Asked) -> None:
    """End the span of a round trip.

    Args:
        trip: The span.
        wire: The connection.
        asked: What has been answered.
    """
    reply = None if asked.cancelled() else asked.result()
    error = reply if isinstance(reply, Exception) else None
    code = prefix_of(error) if isinstance(error, ErrorReply) else None
    if code == "NOSCRIPT":
        error = None  # it is taught, and asked again: nothing has failed
    trip.end(error, code, _peer(wire.peer))


def answered_all(trip: RoundTrip, peers: Collection[object], replies: Sequence[Any]) -> None:
    """End the span of commands that have left together.

    Args:
        trip: The span.
        peers: The other ends of their connections.
        replies: What came.
    """
    error = next((each for each in replies if isinstance(each, Exception)), None)
    cause = None if error is None else error.__cause__
    code = prefix_of(cause) if isinstance(cause, ErrorReply) else None
    trip.end(error, code, _peer(next(iter(peers))) if len(peers) == 1 else {})


def _names_of(command: Command) -> tuple[str, str | None]:
    """What the server calls a packed command, and what we call the script that it runs."""
    start = next(iter(command)) if isinstance(command, Pieces) else command
    words = bytes(start[:_HEAD_BYTES]).split(b"\r\n")
    name = words[2].decode("ascii", "replace").upper()
    return name, NAMES.get(words[4].decode("ascii", "replace")) if name == "EVALSHA" else None


def _where(settings: Settings) -> Mapping[str, str | int]:
    """The attributes that say where the servers are by the URL: the first, where it has several."""
    where: dict[str, str | int] = {"db.system.name": "redis", "db.namespace": str(settings.db)}
    address = settings.addresses[0]
    if isinstance(address, str):
        where["server.address"] = address
    else:
        where["server.address"], where["server.port"] = address
    return where


def _peer(peer: object) -> Mapping[str, str | int]:
    """The attributes that say which server it was."""
    if isinstance(peer, tuple):
        return {"network.peer.address": str(peer[0]), "network.peer.port": int(peer[1])}
    return {"network.peer.address": peer} if isinstance(peer, str) and peer else {}
