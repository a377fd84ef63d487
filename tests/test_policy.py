"""The policy: what it takes, and what it refuses."""

import dataclasses
from datetime import timedelta

import pytest

from asynccache import Cache, ConfigError, Policy
from asynccache.policy import Terms


def test_every_form_of_a_duration_becomes_seconds():
    """A policy keeps seconds, whatever form it was given."""
    policy = Policy(ttl="1m", grace=timedelta(hours=1), soft_timeout="250ms", hard_timeout=5)
    assert (policy.ttl, policy.grace, policy.soft_timeout, policy.hard_timeout) == (60.0, 3600.0, 0.25, 5.0)


def test_it_is_a_frozen_value():
    """Two that say the same are equal; none can be changed, but another be made from it."""
    policy = Policy(ttl=5, tags=["a"])
    assert policy == Policy(ttl="5s", tags=("a",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.ttl = 6  # type: ignore[misc]
    assert policy.but(ttl=6) == Policy(ttl=6, tags=["a"])
    assert policy.ttl == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grace_throttle": None}, "grace_throttle needs a duration"),
        ({"background_timeout": None}, "background_timeout needs a duration"),
        ({"refresh_ahead": 0}, "refresh_ahead"),
        ({"refresh_ahead": 1}, "refresh_ahead"),
        ({"refresh_ahead": "0.5"}, "refresh_ahead"),
        ({"jitter": 1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": None}, "jitter"),
        ({"lock": "global"}, "lock"),
        ({"sliding": 1}, "sliding"),
        ({"sliding": True, "refresh_ahead": 0.5}, "contradict"),
        ({"cache_if": True}, "cache_if"),
        ({"tags": "one"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"grace": "soon"}, "grace"),
        ({"ttl": 0}, "ttl"),
    ],
)
def test_what_it_refuses(options, words):
    """A wrong option is an error that names it, in a policy, a copy of one, and a call."""
    for make in (Policy, Policy().but):
        with pytest.raises(ValueError, match=words):
            make(**options)


async def test_a_call_is_checked_like_a_policy():
    """Options of a call are those of a policy."""
    cache = Cache()
    with pytest.raises(ConfigError, match="jitter"):
        await cache.get_or_set("key", lambda: 1, jitter=2)
    with pytest.raises(ConfigError, match="jiter"):
        await cache.get_or_set("key", lambda: 1, jiter=0.1)


def test_an_unknown_option_is_refused():
    """A copy with an option that there is not is a ConfigError."""
    with pytest.raises(ConfigError, match="graze"):
        Policy().but(graze=5)


def test_terms_have_every_option_of_a_policy():
    """Whatever a policy says reaches the terms, by the same name."""
    policy = Policy(
        ttl=1, grace=2, grace_throttle=3, refresh_ahead=0.5, jitter=0.1, soft_timeout=4, hard_timeout=5,
        background_timeout=6, negative_ttl=7, cache_if=bool, lock="local", tags=["t"],
    )  # fmt: skip
    terms = Terms.of(policy)
    for field in dataclasses.fields(Policy):
        assert getattr(terms, field.name) == getattr(policy, field.name), field.name
    assert Terms.of(Policy(ttl=len)).ttl_of is len
    assert Terms.of(Policy()).ordinary
    assert not terms.ordinary
    assert Terms.of(Policy()).patient
    assert not terms.patient


def test_a_soft_timeout_past_the_hard_one_is_refused() -> None:
    """It would never be reached."""
    with pytest.raises(ConfigError, match="soft_timeout"):
        Policy(soft_timeout="5s", hard_timeout="1s")
    assert Policy(soft_timeout="1s", hard_timeout="1s").soft_timeout == 1
