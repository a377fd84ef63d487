"""What callers give, checked and brought to its one form."""

from collections.abc import Iterable
from types import EllipsisType

from asynccache._dispatcher import Dispatcher
from asynccache.duration import Duration, seconds
from asynccache.errors import ConfigError, InvalidKeyError
from asynccache.keys import check_key
from asynccache.policy import Policy, PolicyOptions, Terms, Ttl

__all__ = ["escaped", "optional_seconds", "own_terms", "seconds_or_left_out", "tag_names", "whole_key", "whole_keys"]


def whole_key(prefix: str, key: str) -> str:
    """The key with what its namespace puts in front.

    Raises:
        InvalidKeyError: It is no key.
    """
    return prefix + check_key(key) if prefix else check_key(key)


def whole_keys(prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """The whole key of each.

    Raises:
        InvalidKeyError: One of them is no key, or they are one text.
    """
    if isinstance(keys, str):
        raise InvalidKeyError("keys is a collection of keys, not one text")
    return {key: whole_key(prefix, key) for key in keys}


def tag_names(prefix: str, tags: Iterable[str], terms: Terms) -> tuple[str, ...]:
    """The whole names of the tags of an entry: those of the terms and those of the call.

    Raises:
        ConfigError: They are one text.
        InvalidKeyError: One of them cannot be a name.
    """
    if tags == () == terms.tags:
        return ()
    if isinstance(tags, str):
        raise ConfigError(f"tags is a collection of names, not one text: write tags=[{tags!r}]")
    return tuple([whole_key(prefix, tag) for tag in dict.fromkeys((*terms.tags, *tags))])


def own_terms(
    core: Dispatcher, prefix: str, ttl: Ttl | EllipsisType, policy: Policy | None, options: PolicyOptions
) -> Terms:
    """The terms of one call; its tags are whole names.

    Raises:
        ConfigError: An option is wrong.
    """
    terms = core.terms
    if policy is not None or ttl is not ... or options:
        base = core.policy if policy is None else policy
        if ttl is not ...:
            base = base.but(ttl=ttl, **options)
        elif options:
            base = base.but(**options)
        terms = Terms.of(base)
    return terms.tagged(tag_names(prefix, (), terms)) if terms.tags else terms


def seconds_or_left_out(ttl: Duration | EllipsisType | None) -> float | EllipsisType | None:
    """A ttl in seconds; ``None``, no expiry, and ``...``, left out, stay what they are.

    Raises:
        ConfigError: It is no duration.
    """
    return ttl if ttl is None or ttl is ... else seconds(ttl, name="ttl")


def optional_seconds(duration: Duration | None, name: str) -> float | None:
    """A duration in seconds, or ``None``.

    Raises:
        ConfigError: It is no duration.
    """
    return None if duration is None else seconds(duration, name=name)


def escaped(namespace: str) -> str:
    """A namespace without the colon that will end it."""
    return namespace.replace("%", "%25").replace(":", "%3A")
