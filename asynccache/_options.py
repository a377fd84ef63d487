"""The options of a store's URL, read by type."""

import difflib
from collections.abc import Mapping
from typing import final

from asynccache.duration import seconds
from asynccache.errors import ConfigError

__all__ = ["Options"]

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")


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

    def integer(self, name: str, *, minimum: int, default: int | None) -> int | None:
        """A whole number; ``none`` stands for ``None``."""
        given = self.text(name, default=None)
        if given is None:
            return default
        if given.lower() == "none":
            return None
        try:
            value = int(given)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise self._wrong(name, given, f"a whole number of at least {minimum}, or none")
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

    def duration(self, name: str, *, default: float | None) -> float | None:
        """A duration in seconds; ``none`` stands for ``None``."""
        given = self.text(name, default=None)
        if given is None:
            return default
        if given.strip().lower() == "none":
            return None
        try:
            return seconds(float(given) if given.replace(".", "", 1).isdigit() else given, name=name)
        except ValueError as error:
            raise ConfigError(f"{self._what}: {error}") from error

    def done(self) -> None:
        """Refuse what nobody asked for.

        Raises:
            ConfigError: There is such an option.
        """
        for name in self._given:
            if name not in self._known:
                if not name.replace("_", "").isalnum():
                    name = "..."  # no option looks like that, but a password may
                near = difflib.get_close_matches(name, self._known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(self._known))}"
                raise ConfigError(f"{self._what} has no option {name!r}; {hint}")

    def _wrong(self, name: str, given: str, wanted: str) -> ConfigError:
        return ConfigError(f"{self._what}: {name} is {wanted}, not {given!r}")
