"""The options of a store's URL, read by type."""

import difflib
from collections.abc import Mapping
from typing import Final, Literal, TypeVar, final, overload
from urllib.parse import SplitResult, parse_qsl, urlsplit

from asynccache.duration import seconds
from asynccache.errors import ConfigError

__all__ = ["Options", "split_url"]

D = TypeVar("D")

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")
_NOTHING: Final[Mapping[str, str]] = {}


@final
class Options:
    """Options given as text; each is asked for once, and `done` refuses those that nobody asked for.

    Args:
        what: What they belong to, for errors.
        given: The options.
    """

    def __init__(self, what: str, given: Mapping[str, str]) -> None:
        self._what = what
        self._given = given
        self._known: list[str] = []

    def text(self, name: str, *, default: str | None) -> str | None:
        """The option's text."""
        self._known.append(name)
        return self._given.get(name, default)

    @overload
    def integer(self, name: str, *, minimum: int, default: int | None) -> int | None: ...

    @overload
    def integer(
        self, name: str, *, minimum: int, default: D, maximum: int | None = None, none: Literal[False]
    ) -> int | D: ...

    def integer(
        self, name: str, *, minimum: int, default: D, maximum: int | None = None, none: bool = True
    ) -> int | D | None:
        """A whole number; ``none`` stands for ``None`` where it may be left open."""
        given = self.text(name, default=None)
        if given is None:
            return default
        if none and given.lower() == "none":
            return None
        try:
            value = int(given)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
            raise self._wrong(name, given, f"a whole number {bounds}{_or_none(none)}")
        return value

    def choice(self, name: str, choices: tuple[str, ...], *, default: str) -> str:
        """One of the choices."""
        given = self.text(name, default=None)
        if given is None:
            return default
        if given not in choices:
            raise self._wrong(name, given, f"one of {', '.join(choices)}")
        return given

    def boolean(self, name: str, *, default: bool) -> bool:
        """``true`` or ``false``, in the usual spellings."""
        given = self.text(name, default=None)
        if given is None:
            return default
        if given.lower() not in _TRUE + _FALSE:
            raise self._wrong(name, given, "true or false")
        return given.lower() in _TRUE

    def number(self, name: str) -> float | None:
        """A number, or ``None`` when it is left out."""
        given = self.text(name, default=None)
        if given is None:
            return None
        try:
            return float(given)
        except ValueError:
            raise self._wrong(name, given, "a number") from None

    @overload
    def duration(self, name: str, *, default: float | None) -> float | None: ...

    @overload
    def duration(self, name: str, *, default: float, none: Literal[False]) -> float: ...

    def duration(self, name: str, *, default: float | None, none: bool = True) -> float | None:
        """A duration in seconds; ``none`` stands for ``None`` where it may be left open."""
        given = self.text(name, default=None)
        if given is None:
            return default
        if none and given.strip().lower() == "none":
            return None
        try:
            number: float | str = float(given)
        except ValueError:
            number = given
        try:
            return seconds(number, name=name)
        except ConfigError:
            pass  # it is said below in a URL's words
        raise self._wrong(name, given, f"a duration such as 250ms, 90s or 1h30m, longer than 0{_or_none(none)}")

    def done(self, elsewhere: Mapping[str, str] = _NOTHING) -> None:
        """Refuse what nobody asked for.

        Args:
            elsewhere: What to say of options that people look for here, and that are none here.

        Raises:
            ConfigError: There is such an option.
        """
        for name in self._given:
            if name not in self._known:
                if not name.replace("_", "").isalnum():
                    name = "..."  # no option looks like that, but a password may
                near = difflib.get_close_matches(name, self._known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(self._known))}"
                raise ConfigError(f"{self._what} has no option {name!r}; {elsewhere.get(name, hint)}")

    def _wrong(self, name: str, given: str, wanted: str) -> ConfigError:
        return ConfigError(f"{self._what}: {name} is {wanted}, not {given!r}")


def split_url(url: str) -> tuple[SplitResult, Mapping[str, str]]:
    """The parts of a store's URL, and its options.

    Raises:
        ConfigError: It is none, or has an option twice; the message shows nothing of it, as a password may be in it.
    """
    try:
        split = urlsplit(url) if isinstance(url, str) and "://" in url else None
    except ValueError:  # its text may hold the password: it must not even be the context of the next
        split = None
    if split is None or not split.scheme or split.fragment:
        raise ConfigError(
            "a URL has a scheme and no fragment; what is special in its parts is written as %23 and so on"
        )
    pairs = parse_qsl(split.query, keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise ConfigError(f"{split.scheme}://: an option is given twice")
    return split, query


def _or_none(none: bool) -> str:
    return ", or none" if none else ""
