"""How a value is loaded, kept and replaced."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, TypedDict

from asynccache.duration import Duration, seconds
from asynccache.errors import ConfigError

__all__ = ["Policy", "PolicyOptions", "Terms", "Ttl"]

Ttl: TypeAlias = Duration | Callable[[Any], Duration | None] | None
"""How long a value is fresh: a duration, ``None`` for ever, or a function of the value that returns either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A frozen set of loading options; a call's own options override it.

    Durations may be given in any form and are kept as seconds (``float``).

    Attributes:
        ttl: How long a value is fresh. ``None``: for ever. A function gets the value and returns one of these.
        grace: How long past its ttl a value can stand in while the source fails. ``None``: not at all.
        grace_throttle: After a failed load, how long the stale value is returned without trying again.
        refresh_ahead: The part of the ttl (0 to 1) after which a hit starts a refresh in the background.
        jitter: The part of the ttl (0 to 1) by which it is shortened at random, so that values written together do not
            expire together.
        soft_timeout: How long a caller who could have a stale value waits for the load.
        hard_timeout: How long any caller waits for the load.
        background_timeout: How long a load may go on that nobody waits for any more (after a timeout, or a refresh).
        sliding: Whether a hit gives the entry its whole ttl again; a store outside of the process is told behind the
            hit, when a tenth of it has passed.
        negative_ttl: The ttl of a loaded ``None``, when it should differ.
        cache_if: Whether to store a loaded value at all: a function of the value.
        lock: Who shares one load: ``"shared"``, all processes on the store (where it can grant leases), ``"local"``,
            the callers of this process, ``"none"``, nobody.
        tags: Names under which a loaded entry can be invalidated together with others.
    """

    ttl: Ttl = None
    grace: Duration | None = None
    grace_throttle: Duration = 30.0
    refresh_ahead: float | None = None
    jitter: float = 0.0
    soft_timeout: Duration | None = None
    hard_timeout: Duration | None = None
    background_timeout: Duration = 30.0
    sliding: bool = False
    negative_ttl: Duration | None = None
    cache_if: Callable[[Any], bool] | None = None
    lock: Literal["shared", "local", "none"] = "shared"
    tags: Iterable[str] = ()

    def __post_init__(self) -> None:
        """Check every option and bring it to its one form.

        Raises:
            ConfigError: An option is out of range, or no duration, or two contradict each other.
        """
        for name in (
            "ttl",
            "grace",
            "grace_throttle",
            "soft_timeout",
            "hard_timeout",
            "background_timeout",
            "negative_ttl",
        ):
            given = getattr(self, name)
            if given is not None and not (name == "ttl" and callable(given)):
                object.__setattr__(self, name, seconds(given, name=name))
        for name in ("grace_throttle", "background_timeout"):
            if getattr(self, name) is None:
                raise ConfigError(f"{name} needs a duration")
        for name in ("refresh_ahead", "jitter"):
            given = getattr(self, name)
            if isinstance(given, bool) or not (isinstance(given, int | float) or (given is None and name != "jitter")):
                raise ConfigError(f"{name} is a part of the ttl, a number, not {given!r}")
        if not isinstance(self.sliding, bool):
            raise ConfigError(f"sliding is True or False, not {self.sliding!r}")
        if self.refresh_ahead is not None and not 0 < self.refresh_ahead < 1:
            raise ConfigError(f"refresh_ahead is a part of the ttl between 0 and 1, not {self.refresh_ahead!r}")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter is a part of the ttl, at least 0 and less than 1, not {self.jitter!r}")
        if self.lock not in ("shared", "local", "none"):
            raise ConfigError(f'lock is "shared", "local" or "none", not {self.lock!r}')
        if self.sliding and self.refresh_ahead is not None:
            raise ConfigError("sliding and refresh_ahead contradict each other: a sliding entry in use never ages")
        soft, hard = self.soft_timeout, self.hard_timeout
        if soft is not None and hard is not None and seconds(soft) > seconds(hard):
            raise ConfigError("soft_timeout is longer than hard_timeout: nobody would ever have waited so long")
        if self.cache_if is not None and not callable(self.cache_if):
            raise ConfigError(f"cache_if is a function of the value, not {self.cache_if!r}")
        if isinstance(self.tags, str):
            raise ConfigError(f"tags is a collection of names, not one text: write tags=[{self.tags!r}]")
        tags = tuple(self.tags)
        if not all(isinstance(tag, str) for tag in tags):
            raise ConfigError("tags is a collection of names, each of them a text")
        object.__setattr__(self, "tags", tags)

    def but(self, **options: Any) -> "Policy":
        """A copy with other options.

        Raises:
            ConfigError: There is no such option, or it is not what it must be.
        """
        known = [each.name for each in fields(self)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise ConfigError(f"a policy has no option {name!r}; {hint}")
        return replace(self, **options)


class PolicyOptions(TypedDict, total=False):
    """The options of a `Policy` that a call may override, beside the ttl."""

    grace: Duration | None
    grace_throttle: Duration
    refresh_ahead: float | None
    jitter: float
    soft_timeout: Duration | None
    hard_timeout: Duration | None
    background_timeout: Duration
    sliding: bool
    negative_ttl: Duration | None
    cache_if: Callable[[Any], bool] | None
    lock: Literal["shared", "local", "none"]
    tags: Iterable[str]


@dataclass(slots=True)
class Terms:
    """A policy with every option in its one form: what the loading path reads.

    Attributes:
        ordinary: Whether a ttl says all there is to say about an entry stored on these terms.
        patient: Whether callers wait as long as the load takes.
        plain: Whether a fresh value in a remote store is all that a caller needs to know of it.
        template: What the keys are made from, where that is known.
        shape: That of the values' type, where it is known: between values and the plain data of a remote store.
    """

    ttl: float | None
    ttl_of: Callable[[Any], Duration | None] | None
    grace: float
    grace_throttle: float
    refresh_ahead: float | None
    jitter: float
    soft_timeout: float | None
    hard_timeout: float | None
    background_timeout: float
    sliding: bool
    negative_ttl: float | None
    cache_if: Callable[[Any], bool] | None
    lock: Literal["shared", "local", "none"]
    tags: tuple[str, ...]
    ordinary: bool = field(default=False, init=False)
    patient: bool = field(default=True, init=False)
    plain: bool = field(default=True, init=False)
    template: str | None = None
    shape: Any = None

    def __post_init__(self) -> None:
        """Work out what is asked at every load."""
        self.patient = self.soft_timeout is None and self.hard_timeout is None
        self.plain = self.patient and self.refresh_ahead is None and self.shape is None and not self.sliding
        self.ordinary = not (
            self.ttl_of
            or self.grace
            or self.refresh_ahead
            or self.jitter
            or self.sliding
            or self.negative_ttl
            or self.tags
        )

    @classmethod
    def of(cls, policy: Policy) -> "Terms":
        """The terms of a policy."""
        given = policy.ttl
        return cls(
            ttl=None if given is None or callable(given) else seconds(given),
            ttl_of=given if callable(given) else None,
            grace=0.0 if policy.grace is None else seconds(policy.grace),
            grace_throttle=seconds(policy.grace_throttle),
            refresh_ahead=policy.refresh_ahead,
            jitter=policy.jitter,
            soft_timeout=None if policy.soft_timeout is None else seconds(policy.soft_timeout),
            hard_timeout=None if policy.hard_timeout is None else seconds(policy.hard_timeout),
            background_timeout=seconds(policy.background_timeout),
            sliding=policy.sliding,
            negative_ttl=None if policy.negative_ttl is None else seconds(policy.negative_ttl),
            cache_if=policy.cache_if,
            lock=policy.lock,
            tags=tuple(policy.tags),
        )

    @property
    def slides(self) -> "Terms | None":
        """These terms, if a hit gives the whole ttl again."""
        return self if self.sliding else None

    def ttl_for(self, value: Any) -> float | None:
        """How long this value is fresh, in seconds; ``None`` for ever.

        Raises:
            ConfigError: The function of the value returned no duration.
        """
        if value is None and self.negative_ttl is not None:
            return self.negative_ttl
        if self.ttl_of is None:
            return self.ttl
        given = self.ttl_of(value)
        return None if given is None else seconds(given, name="ttl")

    def tagged(self, tags: tuple[str, ...]) -> "Terms":
        """The same terms for an entry with these tags."""
        return replace(self, tags=tuple(dict.fromkeys(tags)))
