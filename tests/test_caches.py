"""Named caches from configuration."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from asynccache import BackendError, CacheClosed, Caches, ConfigError, MemoryBackend, Policy
from asynccache.backend import StoreOptions

SECRET = "hunter2"


def refused(make: Callable[[], object], *words: str) -> str:
    """The text of the ConfigError that this raises, in which all the words occur."""
    with pytest.raises(ConfigError) as caught:
        make()
    text = str(caught.value)
    assert all(word in text for word in words), text
    return text


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a TOML file."""

    def write(text: str) -> Path:
        path = tmp_path / "caches.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# From a mapping


async def test_every_option_reaches_its_cache():
    """What a mapping says of the store, the policy and the name holds for the cache."""
    caches = Caches.from_mapping(
        {
            "sessions": {"store": "memory://?max_entries=3", "ttl": "30m", "namespace": "s", "grace": "1h"},
            "pages": {"policy": {"ttl": 60, "tags": ["pages"]}, "name": "html"},
        }
    )
    sessions, pages = caches["sessions"], caches["pages"]
    await sessions.set_many(dict.fromkeys("abcd", 1))
    assert sessions.stats().entries == 3
    assert await sessions.ttl("d") == pytest.approx(1_800, abs=5)
    entry = await sessions.entry("d")
    assert entry is not None
    assert entry.expires_at - entry.fresh_until == pytest.approx(3_600)
    await pages.set("index", "…")
    assert await pages.ttl("index") == pytest.approx(60, abs=5)
    await pages.invalidate_tags("pages")
    assert not await pages.exists("index")
    assert "'html'" in repr(pages)
    assert "'sessions'" in repr(sessions)


def test_a_name_gives_the_same_object_each_time():
    """``caches[name]`` is one cache, however often it is asked for."""
    caches = Caches.from_mapping({"one": {}, "two": {}})
    assert caches["one"] is caches["one"]
    assert caches["one"] is not caches["two"]


def test_names_can_be_looked_through():
    """Membership, length and iteration are those of the names."""
    caches = Caches.from_mapping({"one": {}, "two": {}})
    assert ("one" in caches, "three" in caches, len(caches), list(caches)) == (True, False, 2, ["one", "two"])
    assert repr(caches) == "Caches('one', 'two')"


async def test_what_only_a_program_can_give():
    """A mapping may hold objects: a store, a Policy, a function."""
    store = MemoryBackend(max_entries=2)
    caches = Caches.from_mapping(
        {
            "shared": {"store": store, "policy": Policy(ttl="1m"), "cache_if": lambda value: value > 0},
            "plain": {"ttl": lambda value: value},
        }
    )
    shared = caches["shared"]
    assert await shared.get_or_set("no", lambda: 0) == 0
    assert await shared.get_or_set("yes", lambda: 1) == 1
    assert await shared.exists("yes")
    assert not await shared.exists("no")
    assert len(store) == 1
    assert await caches["plain"].get_or_set("key", lambda: 40) == 40
    assert await caches["plain"].ttl("key") == pytest.approx(40, abs=5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tll": "5m"}, ["cache 'x'", "'tll'", "did you mean 'ttl'?"]),
        ({"zzzzz": 1}, ["cache 'x'", "'zzzzz'", "there are", "store"]),
        ({"policy": {"grase": 1}}, ["cache 'x'", "policy", "'grase'", "did you mean 'grace'?"]),
        ({"policy": {"store": "memory://"}}, ["cache 'x'", "policy has no option 'store'"]),
        ({"policy": 5}, ["cache 'x'", "policy is a table", "int"]),
        ({"grace": 5, "policy": {"grace": 6}}, ["cache 'x'", "grace is given twice"]),
        ({"ttl": 5, "policy": {"ttl": 6}}, ["cache 'x'", "ttl is given twice"]),
        ({"ttl": "soon"}, ["cache 'x'", "ttl", "'soon'"]),
        ({"ttl": -1}, ["cache 'x'", "ttl", "-1"]),
        ({"ttl": True}, ["cache 'x'", "ttl", "True"]),
        ({"store": 5}, ["cache 'x'", "store is a URL", "int"]),
        ({"local": ["memory://"]}, ["cache 'x'", "local is a URL", "list"]),
        ({"store": "memry://"}, ["cache 'x'", "memry", "did you mean memory?"]),
        ({"store": "memory://?max_entrys=5"}, ["cache 'x'", "'max_entrys'", "max_entries"]),
        ({"local": "memory://"}, ["cache 'x'", "local goes in front of a remote store"]),
        ({"on_error": "explode"}, ["cache 'x'", "on_error", "'explode'"]),
        ({"on_error": 5}, ["cache 'x'", "on_error", "5"]),
        ({"telemetry": "loud"}, ["cache 'x'", "telemetry", "'loud'"]),
        ({"name": ""}, ["cache 'x'", "name"]),
        ({"namespace": 7}, ["cache 'x'", "namespace"]),
        ({"jitter": "much"}, ["cache 'x'", "jitter", "'much'"]),
        ({"jitter": None}, ["cache 'x'", "jitter", "None"]),
        ({"jitter": 2}, ["cache 'x'", "jitter", "2"]),
        ({"refresh_ahead": True}, ["cache 'x'", "refresh_ahead", "True"]),
        ({"sliding": "yes"}, ["cache 'x'", "sliding", "'yes'"]),
        ({"lock": "sharde"}, ["cache 'x'", "lock", "'sharde'"]),
        ({"tags": "one"}, ["cache 'x'", "tags", "'one'"]),
        ({"tags": [1]}, ["cache 'x'", "tags"]),
        ({"tags": 1}, ["cache 'x'"]),
        ("memory://", ["cache 'x'", "mapping", "str"]),
    ],
)
def test_a_wrong_option_is_named(options, words):
    """The error says which cache, which option, and where it can what would be right."""
    refused(lambda: Caches.from_mapping({"x": options}), *words)


def test_a_wrong_configuration_is_refused():
    """A configuration is a mapping whose keys are names."""
    refused(lambda: Caches.from_mapping(["x"]), "mapping", "list")  # type: ignore[arg-type]
    refused(lambda: Caches.from_mapping({"": {}}), "name")


def test_an_unknown_name_is_refused_with_the_nearest():
    """Asking for a cache that is not there names the one that was meant."""
    caches = Caches.from_mapping({"sessions": {}})
    refused(lambda: caches["session"], "'session'", "did you mean 'sessions'?")
    refused(lambda: Caches.from_mapping({})["any"], "there are none")


# From a TOML file


async def test_a_toml_file(written):
    """Tables ``[caches.<name>]`` make caches, with a table for the policy."""
    path = written("""
        [caches.sessions]
        store = "memory://?max_entries=1000"
        ttl = "30m"
        [caches.pages]
        ttl = 60
        [caches.pages.policy]
        grace = "1h"
        jitter = 0.0
        [caches.eternal]
        ttl = "none"
    """)
    caches = Caches.from_toml(path)
    assert list(caches) == ["sessions", "pages", "eternal"]
    await caches["pages"].set("key", 1)
    entry = await caches["pages"].entry("key")
    assert entry is not None
    assert entry.expires_at - entry.created_at == pytest.approx(3_660)
    await caches["eternal"].set("key", 1)
    assert await caches["eternal"].ttl("key") == float("inf")


def test_a_project_file(written):
    """``[tool.asynccache.caches.<name>]`` is read too, so that pyproject.toml does."""
    assert list(Caches.from_toml(str(written("[tool.asynccache.caches.one]\nttl = 5")))) == ["one"]


async def test_variables_in_a_file(written, monkeypatch):
    """``${NAME}`` is the variable's text, in lists too, and ``$$`` a dollar."""
    monkeypatch.setenv("MANY", "2")
    monkeypatch.setenv("TAG", "blue")
    caches = Caches.from_toml(
        written('[caches.x]\nstore = "memory://?max_entries=${MANY}"\nnamespace = "a$$b"\ntags = ["${TAG}", "red"]')
    )
    await caches["x"].set_many({"a": 1, "b": 2, "c": 3})
    assert caches["x"].stats().entries == 2
    entry = await caches["x"].entry("c")
    assert entry is not None
    assert list(entry.tags) == ["blue", "red"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[caches.x]\nstore = "${NO_SUCH_ONE}"', ["caches.toml", "cache 'x'", "NO_SUCH_ONE is not set"]),
        ('[caches.x]\nnamespace = "5$"', ["caches.toml", "cache 'x'", "$$"]),
        ('[caches.x]\nnamespace = "$HOME"', ["caches.toml", "cache 'x'", "${NAME}"]),
        ("[caches.x", ["caches.toml", "Expected"]),
        ("[cache.x]", ["caches.toml", "no table [caches.<name>]"]),
        ("caches = 5", ["caches.toml", "no table [caches.<name>]"]),
        ("[caches]\nx = 5", ["caches.toml", "cache 'x'", "mapping"]),
        ('[caches.x]\nttl = "soon"', ["caches.toml", "cache 'x'", "ttl"]),
    ],
)
def test_a_wrong_file_is_named(written, text, words):
    """The error names the file, the cache and the trouble."""
    refused(lambda: Caches.from_toml(written(text)), *words)


def test_a_missing_file_is_named(tmp_path):
    """A file that is not there is a ConfigError with its cause."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml") as caught:
        Caches.from_toml(tmp_path / "nowhere.toml")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


# From the environment


async def test_the_environment(monkeypatch):
    """``ASYNCCACHE_<NAME>_<OPTION>`` makes caches, each text read by the option's type."""
    for name, text in {
        "ASYNCCACHE_SESSIONS_STORE": "memory://?max_entries=2",
        "ASYNCCACHE_SESSIONS_TTL": "30m",
        "ASYNCCACHE_SESSIONS_POLICY_GRACE": "3600",
        "ASYNCCACHE_HOT_PAGES_NEGATIVE_TTL": "none",
        "ASYNCCACHE_HOT_PAGES_JITTER": "0.5",
        "ASYNCCACHE_HOT_PAGES_TTL": "100",
        "ASYNCCACHE_HOT_PAGES_TAGS": "a, b,",
        "ASYNCCACHE_IDLE_SLIDING": "yes",
        "ASYNCCACHE_IDLE_TTL": "none",
        "ASYNCCACHE_DISABLE": "0",
        "OTHER_SESSIONS_TTL": "1s",
    }.items():
        monkeypatch.setenv(name, text)
    caches = Caches.from_env()
    assert sorted(caches) == ["hot_pages", "idle", "sessions"]
    await caches["sessions"].set_many({"a": 1, "b": 2, "c": 3})
    assert caches["sessions"].stats().entries == 2
    entry = await caches["sessions"].entry("c")
    assert entry is not None
    assert entry.expires_at - entry.created_at == pytest.approx(1_800 + 3_600)
    await caches["hot_pages"].set("key", 1)
    ttl = await caches["hot_pages"].ttl("key")
    assert ttl is not None
    assert 45 < ttl <= 100
    await caches["hot_pages"].invalidate_tags("b")
    assert not await caches["hot_pages"].exists("key")


def test_another_prefix(monkeypatch):
    """The prefix is the caller's to choose."""
    monkeypatch.setenv("SHOP_CACHE_BASKETS_TTL", "5m")
    assert list(Caches.from_env("SHOP_CACHE")) == ["baskets"]


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("PRE_X_TLL", "5m", ["PRE_X_TLL", "did you mean 'ttl'?"]),
        ("PRE_TTL", "5m", ["PRE_TTL", "ends in no option"]),
        ("PRE_X_POLICY_STORE", "memory://", ["cache 'x_policy'"]),
        ("PRE_X_JITTER", "much", ["cache 'x'", "jitter", "a number"]),
        ("PRE_X_SLIDING", "perhaps", ["cache 'x'", "sliding", "true or false"]),
        ("PRE_X_GRACE", "soon", ["cache 'x'", "grace", "'soon'"]),
        ("PRE_X_CACHE_IF", "bool", ["cache 'x'", "cache_if cannot be given by text"]),
        ("PRE_X_POLICY", "{}", ["cache 'x'", "policy cannot be given by text"]),
        ("PRE_X_STORE", "memry://", ["cache 'x", "memry"]),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch, variable, text, words):
    """The error names the variable or the cache, and the option."""
    monkeypatch.setenv(variable, text)
    if "x_policy" in words[0]:
        assert list(Caches.from_env("PRE")) == ["x_policy"]  # STORE is no option of a policy: it is part of the name
    else:
        refused(lambda: Caches.from_env("PRE"), *words)


# Secrets, closing


def test_no_secret_is_told(written, monkeypatch):
    """Neither errors nor texts of the caches show what a URL or a variable holds."""
    monkeypatch.setenv("PASSWORD", SECRET)
    told = []
    for url in (
        "redis+nowhere://:${PASSWORD}@host/0",
        "memory://:${PASSWORD}@host",
        "memory://?max_entries=1&max_entries=${PASSWORD}",
        "nothing ${PASSWORD}",
    ):
        path = written(f'[caches.x]\nstore = "{url}"')
        told.append(refused(partial(Caches.from_toml, path)))
    caches = Caches.from_toml(written('[caches.x]\nnamespace = "${PASSWORD}"'))
    told += [repr(caches), repr(caches["x"])]
    assert not [text for text in told if SECRET in text]


async def test_leaving_closes_all():
    """``async with`` closes every cache; closing again does nothing."""
    async with Caches.from_mapping({"one": {}, "two": {}}) as caches:
        await caches["one"].set("key", 1)
    for name in caches:
        with pytest.raises(CacheClosed):
            await caches[name].get("key")
    await caches.aclose()


class Sticky:
    """A store that cannot be closed."""

    name = "sticky"
    leases = None
    reports = None
    coherence = None
    shortcut = None
    heads = None
    health = None

    async def aclose(self) -> None:
        raise OSError("stuck")


def open_sticky(options: StoreOptions) -> Sticky:
    return Sticky()


async def test_closing_goes_on_when_one_fails(monkeypatch):
    """A cache whose store cannot be closed keeps no other open, and its error is told."""
    monkeypatch.setattr("asynccache._urls._installed", lambda: {"sticky": f"{__name__}:open_sticky"})
    caches = Caches.from_mapping({"first": {}, "sticky": {"store": "sticky://", "on_error": "raise"}, "last": {}})
    with pytest.raises(BackendError):
        await caches.aclose()
    for name in caches:
        with pytest.raises(CacheClosed):
            await caches[name].get("key")
