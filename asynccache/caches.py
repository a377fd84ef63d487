"""Named caches from configuration: a mapping, a TOML file, or the environment."""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import fields
from types import TracebackType
from typing import Any, Final, Self, cast, final

from asynccache._options import Options
from asynccache.cache import Cache
from asynccache.errors import ConfigError
from asynccache.policy import Policy

__all__ = ["Caches"]

_OF_CACHE: Final = ("store", "local", "name", "namespace", "ttl", "policy", "codec", "on_error", "telemetry", "clock")
_OF_POLICY: Final = tuple(field.name for field in fields(Policy))
_KNOWN: Final = tuple(dict.fromkeys((*_OF_CACHE, *_OF_POLICY)))
_DISABLE: Final = "DISABLE"  # the kill switch has the same prefix and is no cache's

_DURATIONS: Final = frozenset(
    ("ttl", "grace", "grace_throttle", "soft_timeout", "hard_timeout", "background_timeout", "negative_ttl")
)
_PARTS: Final = frozenset(("refresh_ahead", "jitter"))
_OBJECTS: Final = frozenset(("codec", "clock", "cache_if"))
"""What only a program can give: text cannot say it."""

_VARIABLE: Final = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\}|(.?))", re.DOTALL)


@final
class Caches:
    """Caches by name.

    An option is one of `Cache`, or one of `Policy`: beside the others, or in a table ``policy``. A cache is called by
    its name unless an option says otherwise. Every mistake is found when the configuration is read; nothing is opened
    before the first call of a cache.
    """

    def __init__(self, caches: Mapping[str, Cache]) -> None:
        self._caches = dict(caches)

    @classmethod
    def from_mapping(cls, configuration: Mapping[str, Mapping[str, Any]]) -> Self:
        """The caches of a mapping from names to options.

        Raises:
            ConfigError: An option is unknown, ill-typed or contradicts another one; the message names cache and option.
        """
        if not isinstance(configuration, Mapping):
            raise ConfigError(f"a configuration is a mapping from names to options, not {_kind(configuration)}")
        return cls({_checked_name(name): _cache(name, options) for name, options in configuration.items()})

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """The caches of a TOML file: its tables ``[caches.<name>]``, or ``[tool.asynccache.caches.<name>]``.

        In any text ``${NAME}`` is replaced by that variable of the environment, so that no secret has to be in the
        file, and ``$$`` by a dollar. TOML has no null: the text ``"none"`` stands for no expiry.

        Raises:
            ConfigError: The file cannot be read, has no such table, names a variable that is not set, or as
                `from_mapping`.
        """
        try:
            with open(path, "rb") as file:
                document = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from error
        tables = document.get("caches", document.get("tool", {}).get("asynccache", {}).get("caches"))
        if not isinstance(tables, Mapping):
            raise ConfigError(f"{os.fspath(path)}: there is no table [caches.<name>]")
        try:
            return cls.from_mapping({name: _resolved(f"cache {name!r}", table) for name, table in tables.items()})
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def from_env(cls, prefix: str = "ASYNCCACHE") -> Self:
        """The caches of the environment: ``<prefix>_<NAME>_<OPTION>``, such as ``ASYNCCACHE_SESSIONS_TTL=30m``.

        The longest option that a variable ends in counts; what is before it is the cache's name, in small letters. Tags
        are parted by commas, ``none`` stands for no expiry. ``<prefix>_DISABLE`` is the kill switch and no cache's.

        Raises:
            ConfigError: A variable ends in no option, or as `from_mapping`.
        """
        texts: dict[str, dict[str, str]] = {}
        for variable, text in sorted(os.environ.items()):
            rest = variable.removeprefix(f"{prefix}_")
            if rest not in (variable, _DISABLE):
                name, option = _parted(variable, rest)
                texts.setdefault(name, {})[option] = text
        return cls.from_mapping({name: _parsed(name, given) for name, given in texts.items()})

    def __getitem__(self, name: str) -> Cache:
        """The cache of that name: the same object each time.

        Raises:
            ConfigError: There is none.
        """
        cache = self._caches.get(name)
        if cache is None:
            raise ConfigError(f"there is no cache {name!r}; {_nearest(name, self._caches)}")
        return cache

    def __contains__(self, name: object) -> bool:
        return name in self._caches

    def __iter__(self) -> Iterator[str]:
        return iter(self._caches)

    def __len__(self) -> int:
        return len(self._caches)

    def __repr__(self) -> str:
        return f"Caches({', '.join(map(repr, self._caches))})"

    async def aclose(self) -> None:
        """Close all of them, each even when another fails; a second call does nothing."""
        async with AsyncExitStack() as stack:
            for cache in self._caches.values():
                stack.push_async_callback(cache.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _cache(name: str, options: Mapping[str, Any]) -> Cache:
    what = f"cache {name!r}"
    if not isinstance(options, Mapping):
        raise ConfigError(f"{what}: its options are a mapping, not {_kind(options)}")
    for option in options:
        if option not in _KNOWN:
            raise ConfigError(f"{what} has no option {option!r}; {_nearest(option, _KNOWN)}")
    for option in ("store", "local"):
        given = options.get(option, "")
        if isinstance(given, bool | int | float | list | Mapping):
            raise ConfigError(f"{what}: {option} is a URL or a backend, not {_kind(given)}")
    arguments = {option: value for option, value in options.items() if option in _OF_CACHE and option != "policy"}
    try:
        arguments["policy"] = _policy(what, options)
        if "ttl" in arguments:
            arguments["ttl"] = _or_none(arguments["ttl"])
        return Cache(**{"name": name, **arguments})
    except (ValueError, TypeError) as error:
        text = str(error)
        raise ConfigError(text if text.startswith(what) else f"{what}: {text}") from error


def _policy(what: str, options: Mapping[str, Any]) -> Policy:
    """The policy of a cache: its table, and what stands beside it."""
    given = options.get("policy", {})
    beside = {name: options[name] for name in _OF_POLICY if name in options and name != "ttl"}
    if isinstance(given, Policy):
        return given.but(**beside) if beside else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what}: policy is a table of options or a Policy, not {_kind(given)}")
    for name in given:
        if name not in _OF_POLICY:
            raise ConfigError(f"{what}: policy has no option {name!r}; {_nearest(name, _OF_POLICY)}")
        if name in beside or (name == "ttl" and "ttl" in options):
            raise ConfigError(f"{what}: {name} is given twice, beside the policy and in it")
    whole = {**given, **beside}
    return Policy(**{name: _or_none(value) if name in _DURATIONS else value for name, value in whole.items()})


def _or_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a cache's name is a non-empty text, not {name!r}")
    return name


# The environment


def _parted(variable: str, rest: str) -> tuple[str, str]:
    """The cache and the option that a variable names; ``policy.<name>`` for one of the policy by its long name."""
    for option in sorted(_KNOWN, key=len, reverse=True):
        for suffix, said in ((f"_POLICY_{option.upper()}", f"policy.{option}"), (f"_{option.upper()}", option)):
            if rest.endswith(suffix) and len(rest) > len(suffix) and (option in _OF_POLICY or said == option):
                return rest.removesuffix(suffix).lower(), said
    raise ConfigError(f"{variable} ends in no option; {_nearest(rest.rpartition('_')[2].lower(), _KNOWN)}")


def _parsed(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of one cache as values of their types."""
    what = f"cache {name!r}"
    parsed: dict[str, Any] = {}
    for said, text in texts.items():
        option = said.removeprefix("policy.")
        if option in _OBJECTS or option == "policy":
            raise ConfigError(f"{what}: {option} cannot be given by text")
        into = parsed if said == option else parsed.setdefault("policy", {})
        into[option] = _value(Options(what, {option: text}), option)
    return parsed


def _value(options: Options, name: str) -> Any:
    if name in _DURATIONS:
        return options.duration(name, default=None)
    if name in _PARTS:
        return options.number(name)
    if name == "sliding":
        return options.boolean(name, default=False)
    text = cast(str, options.text(name, default=""))
    return [tag.strip() for tag in text.split(",") if tag.strip()] if name == "tags" else text


# Variables in a file


def _resolved(what: str, value: Any) -> Any:
    """The value with the variables in its texts replaced.

    Raises:
        ConfigError: One of them is not set, or a dollar stands alone.
    """
    if isinstance(value, str):
        return _VARIABLE.sub(_replacing(what), value)
    if isinstance(value, Mapping):
        return {name: _resolved(what, each) for name, each in value.items()}
    if isinstance(value, list):
        return [_resolved(what, each) for each in value]
    return value


def _replacing(what: str) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            raise ConfigError(f"{what}: a dollar begins ${{NAME}}, a variable; a dollar itself is written $$")
        text = os.environ.get(match[1])
        if text is None:
            raise ConfigError(f"{what}: the variable {match[1]} is not set")
        return text

    return replace


def _nearest(name: object, names: Any) -> str:
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names)) or 'none'}"


def _kind(value: object) -> str:
    return type(value).__name__
