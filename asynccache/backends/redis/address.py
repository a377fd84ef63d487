"""What a Redis URL says: where the servers are, who we are to them, and how long anything may take."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from ssl import SSLContext
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import SplitResult, unquote

from redis.asyncio.connection import RedisSSLContext, parse_url

from asynccache._options import Options, split_url
from asynccache.duration import Duration, seconds
from asynccache.errors import ConfigError

__all__ = ["Address", "Settings", "Topology", "settings_at", "settings_like", "settings_of"]

Address: TypeAlias = tuple[str, int] | str
"""A host and a port, or the path of a UNIX socket."""

Topology: TypeAlias = Literal["single", "sentinel", "cluster"]

_SCHEME: Final = re.compile(r"unix|(redis|valkey)s?(\+sentinel|\+cluster)?")
_DEFAULT_PORTS: Final[Mapping[str, int]] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_DEFAULT_TIMEOUT: Final = 0.5
_DEFAULT_CONNECT_TIMEOUT: Final = 1.0
_MOST_CONNECTIONS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach one server, or a set of servers.

    Attributes:
        addresses: The server; or sentinels, or some nodes of a cluster, to ask for the others.
        topology: What the addresses are.
        service: The name that sentinels know the master by.
        db: The database's number.
        username: Of the ACL user; ``None`` for the default one.
        password: Its password, if any: a user without one is named all the same.
        sentinel_username: The same for the sentinels.
        sentinel_password: The same for the sentinels.
        credentials: redis-py's ``CredentialProvider``: asked at each connection, instead of a name and password.
        context: What TLS checks; ``None`` for no TLS.
        tls: The same as redis-py's options; empty for a context that was given.
        timeout: Seconds for an operation, everything included.
        connect_timeout: Seconds for a connection and its greeting.
        connections: How many shared connections to each server.
        merge_reads: Whether the reads of one turn of the loop leave as one ``MGET``.
        client_name: What the server calls us in ``CLIENT LIST``.
        protocol: The newest version of the protocol to speak.
    """

    addresses: Sequence[Address]
    topology: Topology = "single"
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    credentials: Any = field(default=None, repr=False)
    context: SSLContext | None = field(default=None, repr=False)
    tls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    timeout: float = _DEFAULT_TIMEOUT
    connect_timeout: float = _DEFAULT_CONNECT_TIMEOUT
    connections: int = 1
    merge_reads: bool = False
    client_name: str | None = None
    protocol: int = 3


def settings_of(url: SplitResult, query: Mapping[str, str]) -> Settings:
    """What a URL says: its parts by redis-py, its options by us.

    Raises:
        ConfigError: It is not complete, or an option is unknown or ill-typed.
    """
    scheme, _, kind = url.scheme.partition("+")
    topology: Topology = "single"
    if kind in ("sentinel", "cluster"):
        topology = cast(Topology, kind)
    shown = f"{url.scheme}://"
    options = Options(shown, query)
    if scheme != "unix" and ("@" in url.path or any("@" in name for name in query)):
        raise ConfigError(f"{shown} a / in a user name or a password is written as %2F, a ? as %3F")
    user, _, netloc = url.netloc.rpartition("@")
    path = unquote(url.path)
    service, number = "", path.strip("/")
    if topology == "sentinel":
        service, _, number = number.partition("/")
        if not service or not netloc:
            raise ConfigError(f"{shown} names sentinels and the service, as in {shown}host1,host2,host3/service/0")
    addresses: list[Address] = []
    if scheme == "unix":
        if not path or netloc:
            raise ConfigError("unix:// has three slashes and a socket, as in unix:///run/redis.sock?db=0")
        addresses.append(path)
        number = ""
    else:
        hosts = (netloc or "localhost").split(",")
        if not all(hosts) or any(" " in host for host in hosts):
            raise ConfigError(f"{shown} a host is missing, or is none")
        if topology == "single" and len(hosts) > 1:
            raise ConfigError(f"{shown} one server has one host; say {scheme}+cluster:// or {scheme}+sentinel://")
        for host in hosts:
            parsed = _parsed(f"redis://{host}", shown)
            addresses.append((parsed.get("host", "localhost"), parsed.get("port", _DEFAULT_PORTS[topology])))
    db = _database(options, number, shown)
    connections = options.integer("connections", minimum=1, maximum=_MOST_CONNECTIONS, default=1, none=False)
    if connections > 1 and topology == "cluster":
        raise ConfigError(f"{shown} connections is for one server: a cluster has a connection to each of its nodes")
    merge_reads = options.boolean("merge_reads", default=False)
    if merge_reads and topology == "cluster":
        raise ConfigError(f"{shown} reads of a cluster cannot be merged: their keys are on several servers")
    if topology == "cluster" and db:
        raise ConfigError(f"{shown} a cluster has one database only")
    who = _parsed(f"redis://{user}@host" if user else "redis://host", shown)
    client_name = options.text("client_name", default=None)
    if client_name is not None and (not client_name.isprintable() or " " in client_name):
        raise ConfigError(f"{shown} client_name is a word")
    tls = _tls(options, shown) if scheme in ("rediss", "valkeys") else {}
    protocol = int(options.choice("protocol", ("2", "3"), default="3"))
    sentinel_username = sentinel_password = None
    if topology == "sentinel":
        sentinel_username = options.text("sentinel_username", default=None)
        sentinel_password = options.text("sentinel_password", default=None)
    settings = Settings(
        addresses=tuple(addresses),
        topology=topology,
        service=service,
        db=db,
        username=who.get("username"),
        password=who.get("password"),
        sentinel_username=sentinel_username or None,
        sentinel_password=sentinel_password or None,
        context=_context(tls, shown) if tls else None,
        tls=tls,
        timeout=options.duration("timeout", default=_DEFAULT_TIMEOUT, none=False),
        connect_timeout=options.duration("connect_timeout", default=_DEFAULT_CONNECT_TIMEOUT, none=False),
        connections=connections,
        merge_reads=merge_reads,
        client_name=client_name,
        protocol=protocol,
    )
    options.done(_elsewhere(scheme, kind))
    return settings


def settings_at(url: str, credentials: Any, context: SSLContext | None) -> Settings:
    """What a URL says, and what no URL can say.

    Raises:
        ConfigError: The URL is wrong or of another store, or says what an argument says.
    """
    split, query = split_url(url)
    shown = f"{split.scheme}://"
    if not _SCHEME.fullmatch(split.scheme):
        raise ConfigError(f"a RedisBackend has a URL such as redis://localhost:6379/0: {shown} is for others")
    if context is not None and not query.keys().isdisjoint(("insecure", *_FILES)):
        raise ConfigError(f"{shown} what TLS checks is said twice: by the URL and by ssl_context")
    settings = settings_of(split, query)
    if credentials is not None:
        if isinstance(credentials, type) or not hasattr(credentials, "get_credentials_async"):
            raise ConfigError("credentials is a CredentialProvider of redis-py")
        if settings.username or settings.password:
            raise ConfigError(f"{shown} who we are is said twice: by the URL and by credentials")
    if context is None:
        return replace(settings, credentials=credentials)
    if not isinstance(context, SSLContext):
        raise ConfigError(f"ssl_context is an ssl.SSLContext, not a {type(context).__name__}")
    if settings.context is None:
        raise ConfigError(f"{shown} speaks no TLS: an ssl_context goes with rediss://")
    return replace(settings, credentials=credentials, context=context, tls={})


def settings_like(client: Any, timeout: Duration, connect_timeout: Duration) -> Settings:
    """The settings of a client of redis-py for one server, but its timeouts: those of redis-py 8 are 5 s by default.

    Raises:
        ConfigError: It has other things than a host or a socket to connect to, or a timeout is none.
    """
    pool = getattr(client, "connection_pool", None)  # a client of a cluster has none
    given: Mapping[str, Any] = {} if pool is None else pool.connection_kwargs
    path: Any = given.get("path")
    host: Any = given.get("host")
    if not (path or host):
        raise ConfigError("the settings of a redis.asyncio.Redis for one server can be taken, not those of others")
    tls = {name: option for name, option in given.items() if name.startswith("ssl_") and option is not None}
    encrypted = "SSL" in client.connection_pool.connection_class.__name__
    if encrypted:
        tls = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True} | tls
    return Settings(
        addresses=(path or (host, int(given.get("port", _DEFAULT_PORTS["single"]))),),
        db=int(given.get("db") or 0),
        username=given.get("username") or None,
        password=given.get("password") or None,
        credentials=given.get("credential_provider"),
        context=_context(tls, "redis") if encrypted else None,
        tls=tls if encrypted else {},
        timeout=seconds(timeout, name="timeout"),
        connect_timeout=seconds(connect_timeout, name="connect_timeout"),
        client_name=given.get("client_name"),
        protocol=_protocol_of(client, given),
    )


def _protocol_of(client: Any, given: Mapping[str, Any]) -> int:
    """The version that a client was told to speak. Older redis-py has 2 as a default: nobody chose that."""
    usual = signature(type(client)).parameters.get("protocol")
    chosen = given.get("protocol")
    return 2 if str(chosen) == "2" and (usual is None or usual.default != chosen) else 3


def _parsed(url: str, shown: str) -> Mapping[str, Any]:
    try:
        return cast(Mapping[str, Any], parse_url(url))
    except ValueError:
        wrong = True  # its text may hold a password: it must not even be the next one's context
    if wrong:
        raise ConfigError(f"{shown} is followed by user:password@host:port/db, parts of which may be left out")
    return {}


def _database(options: Options, number: str, shown: str) -> int:
    """The database's number: by the path, or by ``db``."""
    said = options.integer("db", minimum=0, default=None, none=False)
    if said is not None and number:
        raise ConfigError(f"{shown} the database is said twice: by the path and by db")
    if number and not (number.isascii() and number.isdigit()):
        raise ConfigError(f"{shown} the path is the number of a database")
    return int(number or 0) if said is None else said


def _elsewhere(scheme: str, kind: str) -> Mapping[str, str]:
    """What to say of options that people know from redis-py, or from other URLs."""
    who = "name and password stand in front of the host: user:password@host"
    kin = "redis" if scheme == "unix" else scheme
    encrypted = ("valkeys" if kin.startswith("valkey") else "rediss") + (f"+{kind}" if kind else "")
    return {
        **dict.fromkeys(("user", "username", "password"), who),
        "socket_timeout": "did you mean 'timeout'?",
        "socket_connect_timeout": "did you mean 'connect_timeout'?",
        "max_connections": "did you mean 'connections'?",
        **dict.fromkeys(("sentinel_username", "sentinel_password"), f"it goes with {kin}+sentinel://"),
        **dict.fromkeys(("insecure", "ssl", *_CHECKS, *_FILES), f"TLS goes with {encrypted}://"),
    }


def _tls(options: Options, shown: str) -> Mapping[str, Any]:
    """What TLS checks, as redis-py's options: the certificate and the name, unless the URL says ``insecure``."""
    insecure = options.boolean("insecure", default=False)
    files = {name: options.text(name, default=None) for name in _FILES}
    if files["ssl_keyfile"] is not None and files["ssl_certfile"] is None:
        raise ConfigError(f"{shown} ssl_keyfile is the key of a certificate: say ssl_certfile too")
    for name in _CHECKS:
        if options.text(name, default=None) is not None:
            raise ConfigError(f"{shown} certificates and names are checked; insecure=true switches that off")
    return {
        "ssl": True,
        "ssl_cert_reqs": "none" if insecure else "required",
        "ssl_check_hostname": not insecure,
    } | {name: os.path.expanduser(path) for name, path in files.items() if path is not None}


_CHECKS: Final = ("ssl_cert_reqs", "ssl_check_hostname")
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


def _context(tls: Mapping[str, Any], shown: str) -> SSLContext:
    for name in _FILES:
        if name in tls and not os.path.exists(tls[name]):
            raise ConfigError(f"{shown} {name}: there is no such file")
    made = RedisSSLContext(**{name.removeprefix("ssl_"): option for name, option in tls.items() if name != "ssl"})
    try:
        return made.get()
    except OSError as error:
        names = ", ".join(name for name in _FILES if name in tls)
        raise ConfigError(f"{shown} {names}: what is there cannot be read: {type(error).__name__}") from None
