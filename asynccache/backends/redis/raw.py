"""Redis itself, for what a cache has no word for: keys are whole, values are bytes, failures are raised."""

from collections.abc import AsyncIterator, Sequence
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from asynccache.backends.redis.address import Settings
from asynccache.backends.redis.patterns import escaped
from asynccache.backends.redis.pool import Pool
from asynccache.backends.redis.replies import ErrorReply, told, translated
from asynccache.backends.redis.wire import pack
from asynccache.errors import BackendError, NotSupported

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RawRedis", "Store"]

_OWN_CONNECTION: Final = frozenset((
    "AUTH", "ASKING", "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN", "DISCARD",
    "EXEC", "HELLO", "MONITOR", "MULTI", "PSUBSCRIBE", "PSYNC", "PUNSUBSCRIBE", "QUIT", "READONLY", "READWRITE",
    "RESET", "SELECT", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE", "SWAPDB", "SYNC", "UNSUBSCRIBE", "UNWATCH", "WAIT",
    "WAITAOF", "WATCH",
))  # fmt: skip
"""What changes the connection, or holds up all who share it."""

_KEY_PLACES: Final = {
    **dict.fromkeys((
        "BITOP", "LMPOP", "MEMORY", "OBJECT", "SINTERCARD", "XGROUP", "XINFO", "ZDIFF", "ZINTER", "ZINTERCARD", "ZMPOP",
        "ZUNION",
    ), 2),
    **dict.fromkeys(("EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO", "MIGRATE"), 3),
}  # fmt: skip
"""Where a command's first key stands, if it is not its first argument."""

_FOR_ALL: Final = frozenset((
    "CACHING", "NO-EVICT", "NO-TOUCH", "REPLY", "SETINFO", "SETNAME", "TRACKING",
))  # fmt: skip
"""What `CLIENT` would do to all who share a connection."""

_MULTI: Final = pack(("MULTI",))
_EXEC: Final = pack(("EXEC",))
_SCAN_COUNT: Final = 1_000

Argument = str | bytes | int | float


class Store(Protocol):
    """What this needs of its store."""

    settings: Settings

    def pool(self) -> Pool: ...


@final
class RawRedis:
    """Commands on the cache's own connections.

    The server is chosen by a command's first argument, its key. Values of a cache are in its codec's format; these
    calls show and take bytes. What they write, caches are told of like of any other process's writes.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def command(self, *arguments: Argument) -> Any:
        """The reply to one command.

        Raises:
            NotSupported: It would change the shared connection, or hold it up: use `client`.
            BackendError: The server said no, or did not answer.
        """
        _check(arguments)
        try:
            return await self._store.pool().ask(_key_of(arguments), *arguments)
        except BackendError as error:
            raise _in_full(error) from error.__cause__

    async def pipeline(self, commands: Sequence[Sequence[Argument]], *, transaction: bool = False) -> list[Any]:
        """The replies to commands that leave together, in their order; a failure stands where its reply would.

        Args:
            commands: Each with its arguments.
            transaction: Whether the server is to do all without anybody else's in between; their keys are in one slot
                then, and no command is done when one cannot be understood.

        Raises:
            NotSupported: One of them is not for a shared connection.
            BackendError: The transaction was not done.
        """
        if not commands:
            return []
        for command in commands:
            _check(command)
        pool = self._store.pool()
        if not transaction:
            replies = await pool.ask_all([(_key_of(command), pack(tuple(command))) for command in commands])
            return [_in_full(each) if isinstance(each, BackendError) else each for each in replies]
        whole = b"".join((_MULTI, *(pack(tuple(command)) for command in commands), _EXEC))
        key = _key_of(commands[0])
        if not pool.mapped:
            await pool.meet(key)
        reply = await pool.link(key).ask(whole, len(commands) + 1)
        if isinstance(reply, Exception):
            pool.refresh()  # perhaps the slot has moved: the next one finds it
            raise _in_full(translated(reply))
        return [_in_full(translated(each)) if isinstance(each, Exception) else each for each in reply]

    async def scan(self, match: str = "*", *, prefix: str = "") -> AsyncIterator[bytes]:
        """The keys of all servers that match, perhaps some of them twice.

        Args:
            match: A pattern as the server has it.
            prefix: Text that stands in front of it and means itself.

        Raises:
            BackendError: A server did not answer.
        """
        for link in await self._store.pool().masters():
            cursor = b"0"
            while True:
                command = pack(("SCAN", cursor, "MATCH", escaped(prefix) + match, "COUNT", _SCAN_COUNT))
                cursor, names = told(await link.ask(command))
                for name in names:
                    yield name
                if cursor == b"0":
                    break

    def client(self) -> "Redis":
        """A client of redis-py with the same address and credentials and connections of its own, for subscriptions,
        blocking commands and ``WATCH``; to be closed by who asked for it.

        It waits for an answer as long as it takes, and sends no command twice.

        Raises:
            NotSupported: The servers are a cluster, or behind sentinels.
        """
        settings = self._store.settings
        if settings.topology != "single":
            raise NotSupported("redis: make a client of redis-py by hand for a cluster or for sentinels")
        from redis.asyncio import Redis  # slow to import, and seldom needed
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        address = settings.addresses[0]
        place: dict[str, Any] = (
            {"unix_socket_path": address} if isinstance(address, str) else {"host": address[0], "port": address[1]}
        )
        client = Redis(
            **place,
            **(settings.tls or {"ssl": settings.context is not None}),
            db=settings.db,
            username=settings.username,
            password=settings.password,
            credential_provider=settings.credentials,
            protocol=settings.protocol,
            client_name=settings.client_name or "asynccache",
            socket_connect_timeout=settings.connect_timeout,
            # Its own defaults (of redis-py 8) would cut a blocking command after 5 s, and send it ten times more.
            socket_timeout=None,
            socket_keepalive=True,  # who waits without end would never hear of a server that is gone
            retry=Retry(NoBackoff(), 0),
        )
        if settings.context is not None and not settings.tls:
            client.connection_pool.connection_class = _checking(settings.context)
        return client


def _checking(context: SSLContext) -> type[Any]:
    """redis-py's connections by TLS, with a context of the user's: it makes its own otherwise."""
    from redis.asyncio.connection import SSLConnection

    class Checking(SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = context

    return Checking


def _in_full(error: BackendError) -> BackendError:
    """The failure with all that the server said: who wrote the command may read it."""
    if not isinstance(error.__cause__, ErrorReply):
        return error
    failure = type(error)(f"redis: {error.__cause__}")
    failure.__cause__ = error.__cause__
    return failure


def _check(arguments: Sequence[Argument]) -> None:
    if not arguments:
        raise BackendError("redis: a command has a name")
    words = [_word(each) for each in arguments[:8]]
    blocking = words[0] in ("XREAD", "XREADGROUP") and "BLOCK" in _options(words)
    for_all = words[0] == "CLIENT" and len(words) > 1 and words[1] in _FOR_ALL
    if words[0] in _OWN_CONNECTION or blocking or for_all:
        raise NotSupported(f"redis: {words[0]} is not for a shared connection: use client()")


def _word(argument: Argument) -> str:
    return (argument.decode("ascii", "replace") if isinstance(argument, bytes) else str(argument)).upper()


def _options(words: Sequence[str]) -> Sequence[str]:
    return words[: words.index("STREAMS")] if "STREAMS" in words else words


def _key_of(arguments: Sequence[Argument]) -> bytes:
    """What says which server: the first key of most commands."""
    name = _word(arguments[0])
    place = _KEY_PLACES.get(name, 1)
    if name in ("XREAD", "XREADGROUP"):
        words = [_word(each) for each in arguments]
        place = words.index("STREAMS") + 1 if "STREAMS" in words else 1
    key = arguments[place] if len(arguments) > place else ""
    return key if isinstance(key, bytes) else str(key).encode()
