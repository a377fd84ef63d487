"""What a Redis URL may say, what it may not, and that it is obeyed: who we are, whom we trust, what we may do."""

import asyncio
import contextlib
import logging
import random
import re
import socket
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from servers import Certificates, Server, certificates, flavours, has_tls
from stores import FLAVOURS
from waiting import until

from asynccache import BackendError, BackendTimeout, BackendUnavailable, Cache, Caches, ConfigError
from asynccache._urls import open_store
from asynccache.backends.redis import RedisBackend
from asynccache.backends.redis.address import Settings
from asynccache.clock import SystemClock
from asynccache.codec import Codec
from asynccache.errors import CacheClosed, CacheError

pytestmark = pytest.mark.slow

SECRET = "s3cr3t-Wörd"
QUOTED = "s3cr3t-W%C3%B6rd"
SCHEMES = ("redis", "rediss", "valkey", "valkeys")


def opened(url: str) -> RedisBackend:
    """The store of a URL, by the door that caches use; nothing is connected."""
    store: RedisBackend = open_store(url, clock=SystemClock())
    assert isinstance(store, RedisBackend)
    return store


def said(url: str) -> Settings:
    """What a URL says."""
    return opened(url).settings


def whole(error: BaseException) -> str:
    """All that can be seen of an exception: its text, its arguments, its chain, its traceback."""
    texts = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        each = rest.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            texts += [str(each), repr(each), repr(each.args), repr(vars(each))]
            rest += [each.__cause__, each.__context__]
    return "\n".join(texts)


def hides(text: str, secret: str = SECRET) -> bool:
    """Whether a text shows nothing of a secret, quoted or not."""
    return not any(each in text for each in (secret, QUOTED, secret.encode().hex(), repr(secret.encode())[2:-1]))


# What URLs say


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"addresses": (("localhost", 6379),), "db": 0, "topology": "single", "context": None}),
        ("redis://localhost", {"addresses": (("localhost", 6379),)}),
        ("valkey://localhost", {"addresses": (("localhost", 6379),)}),
        ("redis://:7000", {"addresses": (("localhost", 7000),)}),
        ("redis://host:7000", {"addresses": (("host", 7000),)}),
        ("redis://host:7000/", {"addresses": (("host", 7000),), "db": 0}),
        ("redis://host:7000/3", {"addresses": (("host", 7000),), "db": 3}),
        ("redis://host/15", {"addresses": (("host", 6379),), "db": 15}),
        ("redis://host?db=4", {"db": 4}),
        ("redis+sentinel://host/main?db=4", {"db": 4}),
        ("redis://host?timeout=1e1", {"timeout": 10.0}),
        ("redis://host?connections=256", {"connections": 256}),
        ("redis://10.0.0.1:7000", {"addresses": (("10.0.0.1", 7000),)}),
        ("redis://[::1]:7000/1", {"addresses": (("::1", 7000),), "db": 1}),
        ("redis://[fe80::1]", {"addresses": (("fe80::1", 6379),)}),
        ("redis://user:word@host", {"username": "user", "password": "word"}),
        ("redis://:word@host", {"username": None, "password": "word"}),
        ("redis://user:a%3Ab%40c%2Fd%25e%2C@host:1", {"password": "a:b@c/d%e,", "addresses": (("host", 1),)}),
        ("redis://a%40b%3Ac:w@host", {"username": "a@b:c", "password": "w"}),
        ("redis://user:a@b@host", {"password": "a@b", "addresses": (("host", 6379),)}),
        (f"redis://user:{QUOTED}@host", {"password": SECRET}),
        ("redis://user:%20%2B+@host", {"password": " ++"}),
        ("redis://host?timeout=250ms", {"timeout": 0.25}),
        ("redis://host?timeout=2", {"timeout": 2.0}),
        ("redis://host", {"timeout": 0.5, "connect_timeout": 1.0, "connections": 1, "protocol": 3}),
        ("redis://host?connect_timeout=3s&connections=4", {"connect_timeout": 3.0, "connections": 4}),
        ("redis://host?client_name=web-1&protocol=2", {"client_name": "web-1", "protocol": 2}),
        ("unix:///run/redis.sock", {"addresses": ("/run/redis.sock",), "db": 0}),
        ("unix:///run/redis.sock?db=2", {"addresses": ("/run/redis.sock",), "db": 2}),
        ("unix:///run/a%20b/redis.sock", {"addresses": ("/run/a b/redis.sock",)}),
        ("unix://user:word@/run/redis.sock", {"addresses": ("/run/redis.sock",), "password": "word"}),
        (
            "redis+sentinel://h1,h2:1,h3/main",
            {
                "addresses": (("h1", 26379), ("h2", 1), ("h3", 26379)),
                "topology": "sentinel",
                "service": "main",
                "db": 0,
            },
        ),
        ("valkey+sentinel://h1/main/7", {"topology": "sentinel", "service": "main", "db": 7}),
        ("redis+sentinel://[::1]:1,[::2]/main", {"addresses": (("::1", 1), ("::2", 26379))}),
        (
            "redis+sentinel://user:word@h1,h2/main?sentinel_username=su&sentinel_password=sp",
            {"username": "user", "password": "word", "sentinel_username": "su", "sentinel_password": "sp"},
        ),
        ("redis+sentinel://h1/my%20main", {"service": "my main"}),
        (
            "redis+cluster://h1,h2:1,h3",
            {"addresses": (("h1", 6379), ("h2", 1), ("h3", 6379)), "topology": "cluster", "db": 0},
        ),
        ("valkey+cluster://u:w@h1:1", {"topology": "cluster", "username": "u", "password": "w"}),
        ("redis+cluster://h1/0", {"topology": "cluster", "db": 0}),
    ],
)
def test_every_form_of_a_url(url: str, expected: Mapping[str, Any]):
    """Each part of a URL means what it says; what is left out has its default."""
    settings = said(url)
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_its_tls_or_none(scheme: str, kind: str):
    """The s at the end is TLS, checked; without it there is none."""
    settings = said(f"{scheme}{kind}://host/{'main' if kind == '+sentinel' else ''}")
    assert settings.topology == (kind[1:] or "single")
    assert (settings.context is not None) == (scheme in ("rediss", "valkeys"))
    if settings.context is not None:
        assert settings.context.verify_mode is ssl.CERT_REQUIRED
        assert settings.context.check_hostname is True


def test_only_one_word_switches_the_checks_off():
    """``insecure=true`` it is, and it says so; every other way is refused."""
    context = said("rediss://host?insecure=true").context
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    for wrong in ("ssl_cert_reqs=none", "ssl_cert_reqs=CERT_NONE", "ssl_check_hostname=false", "insecure=perhaps"):
        with pytest.raises(ConfigError, match="insecure"):
            opened(f"rediss://host?{wrong}")
    for no in ("false", "no", "0", "off"):
        context = said(f"rediss://host?insecure={no}").context
        assert context is not None
        assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://host?timeut=1s", "timeut.*timeout"),
        ("redis://host?timeout=", "timeout"),
        ("redis://host?timeout=soon", "timeout"),
        ("redis://host?timeout=0", "timeout is a duration such as .*, longer than 0, not '0'"),
        ("redis://host?timeout=-1s", "timeout"),
        ("redis://host?timeout=nan", "timeout"),
        ("redis://host?timeout=inf", "timeout"),
        ("redis://host?timeout=none", "timeout"),
        ("redis://host?connect_timeout=0s", "connect_timeout"),
        ("redis://host?connect_timeout=none", "connect_timeout"),
        ("redis://host?connections=0", "connections"),
        ("redis://host?connections=many", "connections"),
        ("redis://host?connections=1.5", "connections"),
        ("redis://host?connections=none", "connections is a whole number from 1 to 256, not 'none'"),
        ("redis://host?connections=257", "connections is a whole number from 1 to 256, not '257'"),
        ("redis://host?protocol=1", "protocol"),
        ("redis://host?protocol=", "protocol"),
        ("redis://host?client_name=a%20b", "client_name"),
        ("redis://host?client_name=a%0Ab", "client_name"),
        ("redis://host?db=-1", "db"),
        ("redis://host?db=one", "db"),
        ("redis://host?db=none", "db is a whole number of at least 0, not 'none'"),
        ("unix:///run/redis.sock?db=none", "db is a whole number of at least 0, not 'none'"),
        ("redis://host/one", "database"),
        ("redis://host/-1", "database"),
        ("redis://host/1/2", "database"),
        ("redis://host/1?db=2", "twice.*db"),
        ("redis+sentinel://host/main/2?db=3", "twice.*db"),
        ("redis://host:port", "host:port"),
        ("redis://host:99999", "host:port"),
        ("redis://host:-1", "host:port"),
        ("redis://h1,h2", "cluster|sentinel|one"),
        ("redis://host?insecure=true", "insecure.*TLS goes with rediss://"),
        ("redis://host?ssl_ca_certs=/x", "ssl_ca_certs.*TLS goes with rediss://"),
        ("valkey+cluster://host?ssl_cert_reqs=none", r"ssl_cert_reqs.*TLS goes with valkeys\+cluster://"),
        ("redis://host?password=x", "password.*user:password@host"),
        ("redis://host?username=x", "username.*user:password@host"),
        ("redis+sentinel://host/main?password=x", "'password'.*user:password@host"),
        ("redis://host?socket_timeout=1", "'socket_timeout'; did you mean 'timeout'"),
        ("redis://host?socket_connect_timeout=1", "did you mean 'connect_timeout'"),
        ("redis://host?max_connections=5", "did you mean 'connections'"),
        ("redis://host?sentinel_username=x", r"sentinel_username.*it goes with redis\+sentinel://"),
        ("rediss+cluster://host?sentinel_password=x", r"sentinel_password.*it goes with rediss\+sentinel://"),
        ("unix:///run/redis.sock?sentinel_password=x", r"sentinel_password.*it goes with redis\+sentinel://"),
        ("redis://host?decode_responses=true", "decode_responses"),
        ("redis://host?timeout=1s&timeout=2s", "twice"),
        ("rediss://host?ssl_ca_certs=/no/such/file.pem", "ssl_ca_certs"),
        ("rediss://host?ssl_certfile=/no/such/file.pem", "ssl_certfile"),
        ("rediss://host?ssl_ca_path=/no/such/folder", "ssl_ca_path"),
        ("rediss://host?ssl_keyfile=/dev/null", "say ssl_certfile too"),
        ("unix://", "unix"),
        ("unix://host/run/redis.sock", "unix"),
        ("unix:///run/redis.sock?db=x", "db"),
        ("unix:///run/redis.sock?ssl_ca_certs=x", "ssl_ca_certs.*TLS goes with rediss://"),
        ("redis+sentinel://", "service"),
        ("redis+sentinel://host", "service"),
        ("redis+sentinel://host/", "service"),
        ("redis+sentinel:///main", "service"),
        ("redis+sentinel://h1,,h2/main", "host"),
        ("redis+sentinel://host/main/x", "database"),
        ("redis+sentinel://host/main/0/1", "database"),
        ("redis+cluster://host/1", "one database"),
        ("redis+cluster://host?db=1", "one database"),
        ("redis+other://host", "no backend"),
        ("redis://[::1", "URL"),
        ("redis://ho st", "host"),
    ],
)
def test_what_a_url_cannot_say(url: str, words: str):
    """A URL that is wrong is a `ConfigError` when the cache is made, which names the part or option that is wrong."""
    with pytest.raises(ConfigError, match=words):
        Cache(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:{}@host:port",
        "redis://user:{}@host:99999/0",
        "redis://user:{}@host/one",
        "redis://user:{}@host?nonsense=1",
        "redis://user:{}@host?timeout=soon",
        "redis://user:{}@host?db=x",
        "redis://user:{}@h1,,h2:x",
        "redis://user:{}@[::1",
        "redis://user:{}\uff03@host",
        "redis://user:{}@host\uff0f",
        "redis://user:a/{}@host",
        "redis://user:a#{}@host",
        "redis://user:a?{}@host",
        "redis://user:{}",
        "redis:///{}@host",
        "rediss://user:{}@host?ssl_ca_certs=/no/such/file",
        "redis+sentinel://user:{}@h1,h2",
        "redis+sentinel://user:{}@h1:x/main",
        "redis+sentinel://h1/main?sentinel_password={}&nonsense=1",
        "redis+sentinel://h1/main?sentinel_pasword={}",
        "redis+cluster://user:{}@h1/7",
        "unix://user:{}@host/path",
        "unix://user:{}",
        "redsi://user:{}@host",
        "redis://host?password={}",
        "redis://host?username=user&password={}&timeout=soon",
    ],
)
@pytest.mark.parametrize("secret", [SECRET, QUOTED])
def test_no_secret_in_an_error_about_a_url(url: str, secret: str):
    """However a URL is wrong, its `ConfigError` shows nothing of a password in it, nor do its causes."""
    with pytest.raises(ConfigError) as caught:
        Cache(url.format(secret))
    assert hides(whole(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{QUOTED}@host",
        f"rediss://:{QUOTED}@host",
        f"unix://user:{QUOTED}@/run/redis.sock",
        f"redis+sentinel://user:{QUOTED}@h1/main?sentinel_password={QUOTED}",
        f"redis+cluster://user:{QUOTED}@h1",
    ],
)
def test_no_secret_in_what_is_shown(url: str):
    """Neither the store, nor its settings, nor the cache show a password; the store shows where the servers are."""
    store = opened(url)
    cache = Cache(store)
    shown = f"{store} {store!r} {store.settings} {store.settings!r} {cache} {cache!r} {store.raw!r} {store.health!r}"
    assert hides(shown)
    assert hides(repr(Cache(url)))
    assert any(word in repr(store) for word in ("host", "h1", "/run/redis.sock"))


@pytest.mark.parametrize(
    "store", ["redis://user:{}@host", "redis+sentinel://h/main?sentinel_password={}", "redis://h,{}/x", "{}"]
)
def test_no_secret_of_the_environment_in_an_error(monkeypatch: pytest.MonkeyPatch, store: str):
    """A password from a variable, with whatever characters, makes a cache or a `ConfigError` that does not show it."""
    odd = ["", "#", "/", "?", "[", "@", ":", "%", "%4", "\uff03", "&timeout=x", "\n", " "]
    for secret in [f"{before}{SECRET}{after}" for before in odd for after in odd]:
        monkeypatch.setenv("THE_PASSWORD", secret)
        try:
            caches = Caches.from_mapping({"sessions": {"store": store.format("${THE_PASSWORD}")}})
            shown = repr(caches) + repr(caches["sessions"])
        except ConfigError as error:
            shown = whole(error)
        assert hides(shown)


CHARACTERS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["redis", "valkeys"]),
    st.none() | CHARACTERS,
    CHARACTERS,
    st.sampled_from(["host", "10.1.2.3", "[::1]", "a-b.example.org"]),
    st.none() | st.integers(1, 65_535),
    st.none() | st.integers(0, 99),
)
def test_any_user_and_password_come_through(
    scheme: str, user: str | None, password: str, host: str, port: int | None, db: int | None
):
    """Quoted as URLs are, whatever they hold."""
    url = f"{scheme}://{quote(user or '', safe='')}:{quote(password, safe='')}@{host}"
    url += ("" if port is None else f":{port}") + ("" if db is None else f"/{db}")
    told = said(url)
    assert (told.username, told.password) == (user, password)
    assert told.addresses == ((host.strip("[]"), port or 6379),)
    assert told.db == (db or 0)


def test_making_a_cache_connects_nothing(monkeypatch: pytest.MonkeyPatch):
    """No socket is opened, no name looked up, no loop needed."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    for url in ("redis://host", "rediss://host", "unix:///s", "redis+sentinel://h/main", "redis+cluster://h1,h2"):
        Cache(url)


# On servers


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        server.command("ACL", "SETUSER", "alice", "on", ">" + SECRET, "~*", "&*", "+@all")
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """One that wants a password of everybody."""
    with Server(options={"requirepass": "letmein"}) as server:
        yield server


async def works(cache: Cache) -> bool:
    """Whether a value comes back."""
    await cache.set("key", {"a": [1]}, ttl=60)
    return bool(await cache.get("key") == {"a": [1]} and await cache.ping() and await cache.delete("key"))


@pytest.mark.parametrize("form", ["redis://", "valkey://"])
async def test_it_connects_by_name_and_number(server: Server, form: str):
    """To the port, to another database, by a name."""
    for url in (f"{form}{server.host}:{server.port}", f"{form}localhost:{server.port}/5"):
        async with Cache(url, on_error="raise") as cache:
            assert await works(cache)


async def test_a_database_of_its_own(server: Server):
    """What is stored in one database is not in another."""
    async with (
        Cache(f"{server.url}/1") as first,
        Cache(f"{server.url}/2") as second,
        Cache(f"{server.url}?db=1") as a,
    ):
        await first.set("key", 1)
        assert await second.get("key") is None
        assert await a.get("key") == 1


async def test_a_database_that_is_not_there(server: Server):
    """A number beyond the server's: the server is as good as away, and no key lands in database 0."""
    async with Cache(f"{server.url}/99", on_error="raise") as cache:
        with pytest.raises(BackendError):
            await cache.set("lost", 1)
    async with Cache(f"{server.url}/99") as cache:
        assert await cache.set("lost", 1) is False
        assert await cache.get("lost") is None
    assert server.command("EXISTS", "lost") == 0


async def test_by_a_unix_socket(server: Server):
    """Also with a database, a user and characters that a URL quotes."""
    for url in (
        f"unix://{server.unix_socket}",
        f"unix://{server.unix_socket}?db=3",
        f"unix://alice:{QUOTED}@{server.unix_socket}",
    ):
        async with Cache(url, on_error="raise") as cache:
            assert await works(cache)


async def test_a_unix_socket_that_is_not_there(tmp_path: Path):
    """A miss, at once."""
    async with Cache(f"unix://{tmp_path}/none.sock") as cache:
        began = time.perf_counter()
        assert await cache.get("key") is None
        assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_a_user_and_a_password(server: Server, protocol: str):
    """With characters that a URL has to quote."""
    async with Cache(f"redis://alice:{QUOTED}@127.0.0.1:{server.port}?protocol={protocol}", on_error="raise") as cache:
        assert await works(cache)
        users = server.command("CLIENT", "LIST").decode()
        assert "user=alice" in users


@pytest.mark.parametrize("password", ["p@ss:w/rd%#?&,[]", "pä ss", "%41", "+"])
@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_passwords_of_any_characters(server: Server, password: str, protocol: str):
    """Quoted as URLs are, every character is the password's."""
    quoted = "".join(f"%{byte:02X}" for byte in password.encode())
    server.command("ACL", "SETUSER", "bob", "on", "resetpass", ">" + password, "~*", "&*", "+@all")
    async with Cache(f"redis://bob:{quoted}@127.0.0.1:{server.port}?protocol={protocol}", on_error="raise") as cache:
        assert await works(cache)


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_a_password_alone(locked: Server, protocol: str):
    """That of the default user."""
    async with Cache(f"redis://:letmein@127.0.0.1:{locked.port}?protocol={protocol}", on_error="raise") as cache:
        assert await works(cache)


USER_ALONE: Mapping[str, Callable[[int, int], RedisBackend]] = {
    "url": lambda port, protocol: opened(f"redis://keyless@127.0.0.1:{port}?protocol={protocol}"),
    "url with a colon": lambda port, protocol: opened(f"redis://keyless:@127.0.0.1:{port}?protocol={protocol}"),
    "like": lambda port, _: RedisBackend.like(redis.asyncio.Redis(port=port, username="keyless")),
}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("how", USER_ALONE)
async def test_a_user_without_a_password_is_that_user(server: Server, how: str, protocol: int):
    """Not the default one, who may be allowed more; for `client()` too."""
    server.command("ACL", "SETUSER", "keyless", "reset", "on", "nopass", "~mine:*", "+@all")
    store = USER_ALONE[how](server.port, protocol)
    assert await store.raw.command("ACL", "WHOAMI") == b"keyless"
    with pytest.raises(BackendError, match="NOPERM"):
        await store.raw.command("GET", "theirs")
    async with store.raw.client() as client:
        assert await client.acl_whoami() in ("keyless", b"keyless")
    await store.aclose()


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_a_password_that_is_missing_is_a_miss(server: Server, protocol: str):
    """A user who needs one is refused without it, though the default user would be let in."""
    url = f"redis://alice@127.0.0.1:{server.port}?protocol={protocol}"
    async with Cache(url) as cache:
        assert await cache.set("key", 1) is False
        assert await cache.get("key") is None
    async with Cache(url, on_error="raise") as cache:
        with pytest.raises(BackendError, match="WRONGPASS"):
            await cache.get("key")


def test_an_empty_user_and_password_are_none():
    """A variable that is empty says nothing of who we are."""
    for told in (
        said("redis://:@host"),
        said("redis+sentinel://:@host/main?sentinel_username=&sentinel_password="),
        RedisBackend.like(redis.asyncio.Redis(username="", password="")).settings,
    ):
        assert (told.username, told.password) == (None, None)
        assert (told.sentinel_username, told.sentinel_password) == (None, None)


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("who", ["", f":{QUOTED}@", f"default:{QUOTED}@", f"nobody:{QUOTED}@"])
async def test_a_wrong_password_is_a_miss(locked: Server, who: str, protocol: str, caplog: pytest.LogCaptureFixture):
    """Nobody, a wrong word, an unknown user: calls answer at once as without a server, and neither the log nor the
    exceptions show what was tried."""
    caplog.set_level(logging.DEBUG)
    url = f"redis://{who}127.0.0.1:{locked.port}?protocol={protocol}"
    async with Cache(url) as cache:
        began = time.perf_counter()
        assert await cache.get("key", "absent") == "absent"
        assert await cache.set("key", 1) is False
        assert await cache.get_or_set("key", lambda: 2) == 2
        assert await cache.ping() is False
        assert time.perf_counter() - began < 0.5
        assert cache.stats().errors > 0
    async with Cache(url, on_error="raise") as cache:
        with pytest.raises(CacheError) as caught:
            await cache.get("key")
        assert hides(whole(caught.value))
    assert caplog.records
    assert hides(caplog.text)
    assert all(hides(repr(vars(record))) for record in caplog.records)


class Provider(CredentialProvider):
    """Gives a user's name and password, the latest ones each time."""

    def __init__(self, *given: str) -> None:
        self.given = given
        self.asked = 0

    async def get_credentials_async(self) -> tuple[str, ...]:  # type: ignore[override]
        self.asked += 1
        if not self.given:
            raise RuntimeError(f"no password, not even {SECRET}")
        return self.given


@contextlib.asynccontextmanager
async def provided(server: Server, provider: Provider, **options: Any) -> AsyncIterator[Cache]:
    backend = RedisBackend.from_url(server.url, credentials=provider)
    try:
        yield Cache(backend, **options)
    finally:
        await backend.aclose()


async def test_a_provider_of_credentials(locked: Server):
    """It is asked at each connection: a password that is changed needs no new cache."""
    locked.command("ACL", "SETUSER", "rotated", "reset", "on", ">first", "~*", "&*", "+@all")
    provider = Provider("rotated", "first")
    async with provided(locked, provider) as cache:
        assert await works(cache)
        assert provider.asked == 1
        locked.command("ACL", "SETUSER", "rotated", "reset", "on", ">second", "~*", "&*", "+@all")
        provider.given = ("rotated", "second")
        locked.command("CLIENT", "KILL", "USER", "rotated")
        await until_it_works(cache)
        assert provider.asked >= 2
    async with provided(locked, Provider("letmein")) as cache:
        assert await works(cache)


async def test_a_provider_that_fails(locked: Server, caplog: pytest.LogCaptureFixture):
    """Misses, promptly, and nothing of what it said; when it works again, so does the cache."""
    caplog.set_level(logging.DEBUG)
    provider = Provider()
    async with provided(locked, provider, on_error="raise") as cache:
        began = time.perf_counter()
        with pytest.raises(BackendUnavailable, match="no credentials: RuntimeError") as caught:
            await cache.get("key")
        assert time.perf_counter() - began < 1.0
        assert hides(whole(caught.value))
    async with provided(locked, provider) as cache:
        assert await cache.get("key") is None
        provider.given = ("letmein",)
        await until_it_works(cache)
    assert hides(caplog.text)


async def until_it_works(cache: Cache) -> None:
    await until(lambda: cache.set("key", 1), seconds=2.0)
    assert await cache.get("key") == 1


@pytest.mark.parametrize("given", [(), ("a", "b", "c"), (None,), 7])
async def test_a_provider_that_gives_something_else(locked: Server, given: Any, caplog: pytest.LogCaptureFixture):
    """A miss as well, and the cache says that it is the credentials."""
    provider = Provider()
    provider.get_credentials_async = lambda: asyncio.sleep(0, given)  # type: ignore[method-assign,assignment]
    async with provided(locked, provider) as cache:
        assert await cache.get("key") is None
    assert re.search("no credentials|WRONGPASS", caplog.text)


async def test_a_provider_for_a_raw_client(locked: Server):
    """`client()` asks it too."""
    backend = RedisBackend.from_url(locked.url, credentials=Provider("letmein"))
    async with backend.raw.client() as client:
        assert await client.ping()


CONTEXT = ssl.create_default_context()


@pytest.mark.parametrize(
    ("url", "more", "words"),
    [
        ("memory://", {}, "memory:// is for others"),
        ("redis+unix://host", {}, r"redis\+unix:// is for others"),
        ("localhost", {}, "scheme"),
        ("redis://host#1", {}, "no fragment"),
        (7, {}, "scheme"),
        ("redis://host?timeout=1&timeout=2", {}, "twice"),
        ("redis://host?timeut=1", {}, "timeout"),
        ("redis://host", {"codec": "jsn"}, "json"),
        ("redis://host", {"credentials": ("user", "word")}, "CredentialProvider"),
        ("redis://host", {"credentials": Provider}, "CredentialProvider"),
        ("redis://user@host", {"credentials": Provider("a")}, "said twice"),
        ("redis://:word@host", {"credentials": Provider("a")}, "said twice"),
        ("redis://host", {"ssl_context": CONTEXT}, "rediss://"),
        ("unix:///run/redis.sock", {"ssl_context": CONTEXT}, "rediss://"),
        ("rediss://host", {"ssl_context": True}, "SSLContext, not a bool"),
        ("rediss://host?insecure=true", {"ssl_context": CONTEXT}, "said twice"),
        ("rediss+cluster://host?ssl_ca_certs=/dev/null", {"ssl_context": CONTEXT}, "said twice"),
    ],
)
def test_what_a_store_cannot_be_made_of(url: Any, more: dict[str, Any], words: str):
    """`RedisBackend.from_url` refuses what is wrong, for others, or said twice."""
    with pytest.raises(ConfigError, match=words):
        RedisBackend.from_url(url, **more)


def test_a_store_is_not_made_of_a_text():
    """It says what to call instead, at once, and shows no password."""
    for wrong in (f"redis://:{SECRET}@host", redis.asyncio.Redis(password=SECRET), None):
        with pytest.raises(ConfigError, match=r"RedisBackend\.from_url.*RedisBackend\.like") as caught:
            RedisBackend(wrong)  # type: ignore[arg-type]
        assert hides(str(caught.value))


@pytest.mark.parametrize(
    "url", ["redis://user:{}@host?timeut=1", "redis://{}#@host", "redis://[{}", "redis://host?{}=1"]
)
def test_no_secret_in_an_error_about_a_stores_url(url: str):
    """Nor does its constructor show any."""
    with pytest.raises(ConfigError) as caught:
        RedisBackend.from_url(url.format(SECRET))
    assert hides(whole(caught.value))


def test_a_store_by_its_url_is_that_of_a_cache():
    """Every part of the URL means the same."""
    for url in ("redis://u:w@h:1/2?timeout=1s&connections=3", "redis+sentinel://h1,h2/main/3", "valkey+cluster://h1:1"):
        assert RedisBackend.from_url(url).settings == said(url)
    context = RedisBackend.from_url("rediss://host", ssl_context=CONTEXT).settings.context
    assert context is CONTEXT


async def test_caches_that_share_a_store_share_its_connection(server: Server):
    """Each has keys and copies of its own, and one that is closed leaves the store to the others."""

    def connections() -> int:
        return server.command("CLIENT", "LIST").decode().count("name=shared")

    store = RedisBackend.from_url(f"{server.url}?client_name=shared", codec="json")
    users = Cache(store, namespace="users", local="memory://", on_error="raise")
    orders = Cache(store, namespace="orders", local="memory://", on_error="raise")
    await asyncio.gather(*[cache.set(f"k{n}", n) for cache in (users, orders) for n in range(50)])
    for cache, value in ((users, "a user"), (orders, "an order")):
        await cache.set("key", value)
    assert (await users.get("key"), await orders.get("key")) == ("a user", "an order")
    assert connections() == 1
    async with Cache(server.url, namespace="orders") as other:
        await other.set("key", "another order")

    async def told() -> bool:
        return await orders.get("key") == "another order"

    await until(told, seconds=0.5)
    assert await users.get("key") == "a user"
    await orders.aclose()
    with pytest.raises(CacheClosed):
        await orders.get("key")
    assert await users.get("k1") == 1
    assert await Cache(store, namespace="orders", on_error="raise").get("key") == "another order"
    assert connections() == 1
    await store.aclose()
    with pytest.raises(BackendUnavailable):
        await users.set("key", "too late")


@pytest.mark.parametrize("how", ["host", "socket", "tls", "provider", "url"])
@pytest.mark.debian_redis
async def test_a_store_like_a_client_of_redis_py(locked: Server, secure: Server, files: Certificates, how: str):
    """`RedisBackend.like` takes address, credentials, database and TLS over, and shows no password."""
    clients: dict[str, Callable[[], redis.asyncio.Redis]] = {
        "host": lambda: redis.asyncio.Redis(host="127.0.0.1", port=locked.port, password="letmein", db=2),
        "socket": lambda: redis.asyncio.Redis(unix_socket_path=locked.unix_socket, password="letmein", db=2),
        "tls": lambda: redis.asyncio.Redis(
            host="localhost", port=secure.tls_port, db=2, ssl=True, ssl_ca_certs=str(files.authority)
        ),
        "provider": lambda: redis.asyncio.Redis(port=locked.port, credential_provider=Provider("letmein"), db=2),
        "url": lambda: redis.asyncio.Redis.from_url(f"redis://:letmein@127.0.0.1:{locked.port}/2"),
    }
    async with clients[how]() as client:
        backend = RedisBackend.like(client)
        cache = Cache(backend, on_error="raise")
        assert await works(cache)
        await cache.set("mine", 1)
        assert await client.exists("mine")
        assert "letmein" not in f"{backend!r} {backend.settings!r}"
        await backend.aclose()
        assert await client.ping()


@pytest.mark.debian_redis
async def test_a_store_like_a_client_that_checks_nothing(secure: Server):
    """What was switched off at the client is off; what was not is on."""
    port = secure.tls_port
    for options, right in (({"ssl_cert_reqs": "none", "ssl_check_hostname": False}, True), ({}, False)):
        async with redis.asyncio.Redis(host="localhost", port=port, ssl=True, **options) as client:
            backend = RedisBackend.like(client)
            assert await Cache(backend).set("key", 1) is right
            await backend.aclose()


async def test_a_store_like_a_client_has_timeouts_of_its_own(server: Server):
    """Not the 5 s that redis-py 8 has by default, nor what a client was given for other work."""
    for client in (redis.asyncio.Redis(), redis.asyncio.Redis(socket_timeout=9, socket_connect_timeout=9)):
        told = RedisBackend.like(client).settings
        assert (told.timeout, told.connect_timeout) == (0.5, 1.0)
        told = RedisBackend.like(client, timeout="2s", connect_timeout=3).settings
        assert (told.timeout, told.connect_timeout) == (2.0, 3.0)
    with pytest.raises(ConfigError, match=r"^timeout: 0 is not a positive, finite duration$"):
        RedisBackend.like(redis.asyncio.Redis(), timeout=0)
    for wrong in ({"connect_timeout": "soon"}, {"timeout": None}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RedisBackend.like(redis.asyncio.Redis(), **wrong)
    with FaultProxy(server.host, server.port) as proxy:
        backend = RedisBackend.like(redis.asyncio.Redis(port=proxy.port), timeout="150ms")
        cache = Cache(backend)
        assert await cache.set("key", 1)
        proxy.stall()
        began = time.perf_counter()
        assert await cache.get("key") is None
        assert 0.1 < time.perf_counter() - began < 0.4
        await backend.aclose()


@pytest.mark.parametrize("how", ["argument", "url"])
@pytest.mark.parametrize("protocol", [2, 3, None])
async def test_a_store_like_a_client_speaks_its_protocol(server: Server, protocol: int | None, how: str):
    """The older one where it was chosen."""
    if how == "argument":
        client = redis.asyncio.Redis(port=server.port, protocol=protocol)
    else:
        client = redis.asyncio.Redis.from_url(server.url + (f"?protocol={protocol}" if protocol else ""))
    backend = RedisBackend.like(client)
    assert backend.settings.protocol == (protocol or 3)
    hello = await backend.raw.command("HGETALL", "nothing")
    assert hello == ([] if protocol == 2 else {})
    await backend.aclose()


def test_a_protocol_that_nobody_chose():
    """The default of older releases of redis-py is no choice."""

    class Redis:
        def __init__(self, protocol: int = 2) -> None:
            self.connection_pool = redis.asyncio.ConnectionPool(protocol=protocol, host="host")

    assert RedisBackend.like(Redis()).settings.protocol == 3


def test_a_store_like_a_client_of_a_cluster():
    """It cannot be made."""
    with pytest.raises(ConfigError):
        RedisBackend.like(redis.asyncio.RedisCluster(host="127.0.0.1"))


async def test_a_password_that_becomes_right(locked: Server):
    """When the server takes the password, the cache works without being made anew."""
    async with Cache(f"redis://late:letmein@127.0.0.1:{locked.port}") as cache:
        assert await cache.get("key") is None
        locked.command("ACL", "SETUSER", "late", "on", ">letmein", "~*", "&*", "+@all")
        await until_it_works(cache)


async def test_a_user_who_is_removed_is_a_miss(locked: Server):
    """The server ends the connections of a user that is deleted; a cache goes on without it."""
    locked.command("ACL", "SETUSER", "gone", "on", ">letmein", "~*", "&*", "+@all")
    async with Cache(f"redis://gone:letmein@127.0.0.1:{locked.port}") as cache:
        assert await cache.set("key", 1)
        locked.command("ACL", "DELUSER", "gone")
        for _ in range(5):
            assert await cache.get("key") is None
            assert await cache.get_or_set("key", lambda: 3) == 3
            await asyncio.sleep(0.05)


async def test_what_the_server_calls_us(server: Server):
    """``CLIENT LIST`` shows our name, or the package's, and which library it is."""
    async with Cache(f"{server.url}?client_name=web-1") as one, Cache(server.url) as other:
        await asyncio.gather(one.get("a"), other.get("a"))
        rows = [
            dict(w.split("=", 1) for w in row.split())
            for row in server.command("CLIENT", "LIST").decode().split("\n")
            if row
        ]
        assert {"web-1", "asynccache"} <= {row["name"] for row in rows}
        newer = [row for row in rows if "lib-name" in row]  # since 7.2
        assert all(row["lib-name"] == "asynccache" for row in newer if row["name"] == "web-1")


async def test_connections_are_as_many_as_the_url_says(server: Server):
    """One by default, however many callers there are; more when asked for."""

    def count() -> int:
        return server.command("CLIENT", "LIST", "TYPE", "normal").decode().count("name=counted")

    for option, most in (("", 1), ("&connections=3", 3)):
        async with Cache(f"{server.url}?client_name=counted{option}", on_error="raise") as cache:
            await asyncio.gather(*[cache.set(f"k{number}", number) for number in range(200)])
            assert await cache.get_many([f"k{number}" for number in range(200)]) == {
                f"k{number}": number for number in range(200)
            }
            assert count() == most


async def test_a_timeout_from_the_url(server: Server):
    """A server that does not answer is waited for as long as the URL says."""
    with FaultProxy(server.host, server.port) as proxy:
        async with Cache(f"{proxy.url}?timeout=150ms") as cache:
            assert await cache.set("key", 1)
            proxy.stall()
            began = time.perf_counter()
            assert await cache.get("key") is None
            assert 0.1 < time.perf_counter() - began < 0.4


async def test_a_connect_timeout_from_the_url(server: Server):
    """A connection that does not come about is waited for no longer than the URL says."""
    with FaultProxy(server.host, server.port) as proxy:
        proxy.hold_connects()
        async with Cache(f"{proxy.url}?timeout=5s&connect_timeout=200ms") as cache:
            began = time.perf_counter()
            assert await cache.get("key") is None
            assert time.perf_counter() - began < 0.6


# An old server


@pytest.fixture(scope="module")
def old() -> Iterator[Server]:
    """One that has no HELLO, as before Redis 6."""
    with Server(options={"rename-command": 'HELLO ""', "requirepass": "letmein"}) as server:
        yield server


@pytest.mark.parametrize("who", [":letmein@", "default:letmein@"])
@pytest.mark.debian_redis
async def test_a_server_that_speaks_the_old_protocol_only(old: Server, who: str):
    """It is spoken then, without being told; everything works, waiting for another's load too."""
    old.command("FLUSHALL")
    url = f"redis://{who}127.0.0.1:{old.port}"
    async with Cache(url, on_error="raise") as one, Cache(url, on_error="raise") as other:
        assert await works(one)
        loads = 0

        async def load() -> int:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.1)
            return 7

        assert await asyncio.gather(*[each.get_or_set("slow", load) for each in (one, other) * 5]) == [7] * 10
        assert loads == 1


@pytest.mark.debian_redis
async def test_a_server_is_not_to_watch_keys_for_who_cannot_be_told(old: Server):
    """It would remember each key that is read, and tell nobody."""
    async with Cache(f"redis://:letmein@127.0.0.1:{old.port}", local="memory://", on_error="raise") as cache:
        await cache.set("key", 1)
        told = await cache.redis.command("CLIENT", "TRACKINGINFO")
        assert told[told.index(b"flags") + 1] == [b"off"]


async def test_a_wrong_password_on_an_old_server(old: Server):
    """Refused there too, and a miss."""
    async with Cache(f"redis://:wrong@127.0.0.1:{old.port}") as cache:
        assert await cache.get("key") is None
        assert await cache.set("key", 1) is False


# TLS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(files: Certificates) -> Iterator[Server]:
    with Server(next(flavour for flavour in flavours() if has_tls(flavour)), tls=files) as server:
        yield server


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.debian_redis
async def test_tls_with_an_authority_that_is_trusted(secure: Server, files: Certificates, scheme: str, host: str):
    """With the authority's file and a name that is in the certificate all is well."""
    url = f"{scheme}://{host}:{secure.tls_port}/2?ssl_ca_certs={files.authority}"
    async with Cache(url, on_error="raise") as cache:
        assert await works(cache)
        value = "x" * 3_000_000
        await cache.set("large", value)
        assert await cache.get("large") == value


@pytest.mark.parametrize("size", [100, 5_000, 30_000])
@pytest.mark.debian_redis
async def test_tls_hands_each_reply_to_who_asked(secure: Server, files: Certificates, size: int):
    """Also when several records are there at once, because the loop was busy while they came."""
    url = f"rediss://localhost:{secure.tls_port}/3?ssl_ca_certs={files.authority}"
    async with Cache(url, codec={"serializer": "bytes", "plain": True}, on_error="raise") as cache:
        values = {f"k{number}": b"%05d" % number * (size // 5) for number in range(100)}
        await cache.set_many(values, 60)
        for turn in range(20):
            asked = [asyncio.ensure_future(cache.get(key)) for key in values]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            end = time.perf_counter() + 0.002 * (turn % 3)
            while time.perf_counter() < end:
                pass
            assert await asyncio.gather(*asked) == list(values.values())
        assert await cache.get_many(values) == values


async def fails(url: str) -> BaseException | None:
    """Why a connection is not made: known within a second, by this package's exception, or as a miss."""
    async with Cache(url, on_error="raise") as cache:
        began = time.perf_counter()
        with pytest.raises((BackendUnavailable, BackendTimeout)) as caught:
            await cache.get("key")
        assert time.perf_counter() - began < 1.0
    async with Cache(url) as cache:
        began = time.perf_counter()
        assert await cache.get("key", "absent") == "absent"
        assert await cache.set("key", 1) is False
        assert time.perf_counter() - began < 1.0
    return caught.value.__cause__


@pytest.mark.debian_redis
async def test_tls_checks_the_certificate(secure: Server):
    """By default: an authority that the machine does not know is refused, within a second."""
    assert isinstance(await fails(f"rediss://localhost:{secure.tls_port}"), ssl.SSLCertVerificationError)


@pytest.mark.debian_redis
async def test_tls_checks_against_the_authority_that_was_named(secure: Server, tmp_path: Path):
    """Another authority's file is of no use."""
    another = certificates(tmp_path).authority
    cause = await fails(f"rediss://localhost:{secure.tls_port}?ssl_ca_certs={another}")
    assert isinstance(cause, ssl.SSLCertVerificationError)


class Elsewhere(FaultProxy):
    """A way to a server by an address that its certificate does not have."""

    host = "127.0.0.2"


@pytest.mark.debian_redis
async def test_tls_checks_the_name(secure: Server, files: Certificates):
    """By default: a good certificate of another server is refused, within a second."""
    assert secure.tls_port is not None
    with Elsewhere(secure.host, secure.tls_port) as proxy:
        cause = await fails(f"rediss://{proxy.host}:{proxy.port}?ssl_ca_certs={files.authority}")
        assert isinstance(cause, ssl.SSLCertVerificationError)
        assert "127.0.0.2" in str(cause)
        url = f"rediss://{proxy.host}:{proxy.port}?ssl_ca_certs={files.authority}&insecure=true"
        async with Cache(url, on_error="raise") as cache:
            assert await works(cache)


@pytest.mark.debian_redis
async def test_tls_unchecked_by_the_word_only(secure: Server):
    """``insecure=true`` connects to whomever; ``insecure=false`` does not."""
    async with Cache(f"rediss://127.0.0.1:{secure.tls_port}?insecure=true", on_error="raise") as cache:
        assert await works(cache)
    await fails(f"rediss://127.0.0.1:{secure.tls_port}?insecure=false")


@pytest.mark.debian_redis
async def test_tls_where_the_server_has_none(secure: Server):
    """A server that does not speak TLS at that port: soon a miss."""
    await fails(f"rediss://127.0.0.1:{secure.port}?insecure=true")


@pytest.mark.debian_redis
async def test_no_tls_where_the_server_has_it(secure: Server):
    """And the other way round; what is said in the clear holds no password."""
    await fails(f"redis://127.0.0.1:{secure.tls_port}")


@pytest.mark.debian_redis
async def test_tls_whose_handshake_never_ends(secure: Server):
    """A server that accepts and says nothing: a miss within the timeouts."""
    assert secure.tls_port is not None
    with FaultProxy(secure.host, secure.tls_port) as proxy:
        proxy.black_hole()
        async with Cache(f"rediss://127.0.0.1:{proxy.port}?insecure=true") as cache:
            began = time.perf_counter()
            assert await cache.get("key") is None
            assert time.perf_counter() - began < 1.0


@pytest.mark.debian_redis
async def test_a_certificate_of_our_own(files: Certificates):
    """A server that asks for one gets the one in the URL; without it there is no connection."""
    flavour = next(flavour for flavour in flavours() if has_tls(flavour))
    with Server(flavour, tls=files, options={"tls-auth-clients": "yes"}) as server:
        url = f"rediss://127.0.0.1:{server.tls_port}?ssl_ca_certs={files.authority}"
        mine = f"{url}&ssl_certfile={files.certificate}&ssl_keyfile={files.key}"
        async with Cache(mine, on_error="raise") as cache:
            assert await works(cache)
        async with Cache(url) as cache:
            assert await cache.set("key", 1) is False


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_is_no_certificate(option: str, tmp_path: Path):
    """It is named by its option."""
    path = tmp_path / "nonsense.pem"
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match=option):
        Cache(f"rediss://host?{option}={path}")


@pytest.mark.parametrize("trusts", [True, False])
@pytest.mark.debian_redis
async def test_a_context_of_our_own(secure: Server, files: Certificates, trusts: bool):
    """What it checks is what is checked, for `client()` too."""
    context = ssl.create_default_context(cafile=str(files.authority) if trusts else None)
    store = RedisBackend.from_url(f"rediss://localhost:{secure.tls_port}", ssl_context=context)
    assert await Cache(store).set("key", 1) is trusts
    async with store.raw.client() as client:
        with contextlib.nullcontext() if trusts else pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
            assert await client.ping()
    await store.aclose()


@pytest.mark.debian_redis
async def test_what_is_said_of_tls_reaches_a_raw_client(secure: Server, files: Certificates):
    """`raw.client()` checks as the cache does."""
    store = opened(f"rediss://localhost:{secure.tls_port}?ssl_ca_certs={files.authority}")
    async with store.raw.client() as client:
        assert await client.ping()
    async with opened(f"rediss://localhost:{secure.tls_port}").raw.client() as client:
        client.set_retry(Retry(NoBackoff(), 0))
        with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
            await client.ping()


# What we may do

NAMESPACE = "shop"
ACL = (
    "~shop:*", "resetchannels", "-@all", "+ping", "+time", "+select", "+client|setname", "+client|tracking",
    "+client|caching", "+get", "+getrange", "+strlen", "+mget", "+set", "+setrange", "+del", "+unlink", "+exists",
    "+pttl", "+pexpire", "+persist", "+rename", "+incrby", "+evalsha", "+script|load", "+scan",
)  # fmt: skip
"""The least that a cache needs on Redis 7.0 and newer, as the README has it; on a cluster ``+cluster|slots +asking`` as
well, and behind sentinels ``+role``. HELLO and AUTH are everybody's."""


class Restricted:
    """A server on which one user has no more than some rules."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def allow(self, *rules: str) -> None:
        self.server.command("ACL", "SETUSER", "app", "reset", "on", ">word", *rules)
        self.server.command("ACL", "LOG", "RESET")
        self.server.command("FLUSHALL")
        self.server.command("SCRIPT", "FLUSH")

    def url(self, more: str = "") -> str:
        return f"redis://app:word@127.0.0.1:{self.server.port}{more}"

    def denied(self) -> set[str]:
        """What the server has refused: commands, and other things by their kind."""
        denied = set()
        for row in self.server.command("ACL", "LOG", 100):
            fields = {name.decode(): value for name, value in zip(row[::2], row[1::2], strict=True)}
            reason, what = fields["reason"].decode(), fields["object"].decode().lower()
            denied.add(what if reason == "command" else f"{reason} {what}")
        return denied - {"client|setinfo"}  # since 7.2, and 7.0 does not know the word; not needed


@pytest.fixture(scope="module", params=FLAVOURS)
def restricted(request: pytest.FixtureRequest) -> Iterator[Restricted]:
    with Server(request.param) as server:
        yield Restricted(server)


@pytest.fixture(scope="module")
def first() -> Iterator[Restricted]:
    with Server(FLAVOURS[0]) as server:
        yield Restricted(server)


async def everything(url: str, **options: Any) -> None:
    """All that a cache can do."""
    plain = "codec" in options and options["codec"].plain
    async with (
        Cache(url, namespace=NAMESPACE, **options) as cache,
        Cache(url, namespace=NAMESPACE, **options) as other,
    ):
        await asyncio.gather(cache.ping(), other.ping())
        await cache.set("a", 1, ttl=60)
        await cache.get("a")
        await cache.set_many({"b": 1, "c": 2})
        await cache.get_many(["b", "c"])
        await cache.add("d", 1, ttl=5)
        await cache.set("d", 2, only_if="present")
        await cache.touch("d", 50)
        await cache.touch("d", None)
        await cache.exists("d")
        await cache.ttl("d")
        await cache.incr("n")
        await cache.incr("n", ttl=5)
        await cache.incr("o", 2**62, ttl=5)
        with contextlib.suppress(CacheError):
            await cache.incr("o", 2**62)
        await cache.delete("n")
        await cache.delete_many(["b", "c"])
        await cache.get_or_set("e", lambda: 1, ttl=5)
        await cache.get_or_set("large", lambda: [random.random() for _ in range(20_000)], ttl=5)
        if not plain:
            await cache.set("f", 1, ttl=5, grace=5, tags=["t"])
            await cache.get("f")
            await cache.incr("f")
            await cache.invalidate_tags("t")
            gate = asyncio.Event()

            async def load() -> int:
                await gate.wait()
                return 1

            # The lease lies in front of a stale entry, is waited for, renewed, and given back.
            tasks = [asyncio.ensure_future(each.get_or_set("g", load, ttl=5, grace=5)) for each in (cache, other)]
            await asyncio.sleep(0.05)
            gate.set()
            await asyncio.gather(*tasks)
            with contextlib.suppress(ZeroDivisionError):
                await cache.get_or_set("h", lambda: 1 // 0)
            await cache.set("i", 1, ttl=0.01, grace=60)
            await asyncio.sleep(0.03)
            await cache.get_or_set("i", lambda: 2, ttl=60, grace=60)
            async with cache.lock("l", ttl=5):
                pass
            large = "".join(map(str, range(40_000)))
            await cache.set("j", large)
            await cache.get("j")
        [key async for key in cache.keys("*")]
        await cache.clear("a*")
        await cache.clear()


MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "as it is": ("", {}),
    "another database": ("/3", {}),
    "two tiers": ("", {"local": "memory://"}),
    "old protocol": ("?protocol=2", {}),
    "plain": ("", {"codec": Codec("json", plain=True)}),
    "signed": ("", {"codec": Codec("json", keys=["a secret of sixteen bytes"])}),
}


@pytest.mark.parametrize("mode", MODES)
async def test_the_least_acl_is_enough(restricted: Restricted, mode: str):
    """With it every call of a cache works, and nothing is refused by the server."""
    restricted.allow(*ACL)
    more, options = MODES[mode]
    await everything(restricted.url(more), on_error="raise", **options)
    assert restricted.denied() == set()


async def test_the_least_acl_is_enough_for_copies(restricted: Restricted):
    """The server tells a user with no more than that of keys that change."""
    restricted.allow(*ACL)
    url = restricted.url()
    async with (
        Cache(url, namespace=NAMESPACE, local="memory://", on_error="raise") as cache,
        Cache(url, namespace=NAMESPACE, on_error="raise") as other,
    ):
        await cache.set("key", 1)
        assert await cache.get("key") == 1
        await other.set("key", 2)

        async def told() -> bool:
            return await cache.get("key") == 2

        await until(told, seconds=0.5)


async def test_the_least_acl_is_enough_over_another_type(restricted: Restricted):
    """Also to replace what is no value of a cache."""
    restricted.allow(*ACL)
    async with Cache(restricted.url(), namespace=NAMESPACE, on_error="raise") as cache:
        for write in (
            lambda: cache.set("key", 1),
            lambda: cache.incr("key"),
            lambda: cache.add("key", 1),
            lambda: cache.get_or_set("key", lambda: 1),
        ):
            restricted.server.command("DEL", "shop:key")
            restricted.server.command("RPUSH", "shop:key", "x")
            assert await cache.get("key") is None
            await write()
            assert await cache.get("key") == 1
    assert restricted.denied() == set()


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in ACL if rule.startswith("+")])
async def test_nothing_in_the_least_acl_is_superfluous(first: Restricted, rule: str):
    """Without any one of its commands the server refuses something that is needed, and no call raises for that."""
    first.allow(*[each for each in ACL if each != rule])
    for mode in ("another database", "plain"):
        more, options = MODES[mode]
        first.server.command("FLUSHALL")
        await everything(first.url(more), **options)
    async with Cache(first.url(), namespace=NAMESPACE) as cache:
        first.server.command("RPUSH", "shop:key", "x")
        await cache.incr("key")
    assert first.denied() == {rule[1:]}


async def test_a_namespace_that_is_not_allowed(restricted: Restricted):
    """Keys of others are refused: misses, promptly, and no exception; nothing of them is shown or changed."""
    restricted.allow(*ACL)
    restricted.server.command("SET", "other:key", "theirs")
    async with Cache(restricted.url(), namespace="other") as cache:
        began = time.perf_counter()
        assert await cache.get("key") is None
        assert await cache.get_many(["key", "more"]) == {}
        assert await cache.set("key", 1) is False
        assert await cache.incr("key") == 0
        assert await cache.delete("key") is False
        assert await cache.get_or_set("key", lambda: 2) == 2
        assert await cache.clear() == 0
        assert time.perf_counter() - began < 1.0
    assert restricted.server.command("GET", "other:key") == b"theirs"
