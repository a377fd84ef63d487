"""Durations: what is one, and what is not."""

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynccache.duration import seconds

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (5, 5.0), (0.25, 0.25), (timedelta(minutes=2), 120.0), ("250ms", 0.25), ("90s", 90.0), ("1h30m", 5_400.0),
        ("2d", 172_800.0), ("1.5h", 5_400.0), ("1w", 604_800.0), (100 * 365 * 86_400, 100 * 365 * 86_400.0),
    ],
)  # fmt: skip
def test_every_form_is_seconds(given_, expected):
    """Numbers, timedeltas and texts are turned into seconds."""
    assert seconds(given_) == pytest.approx(expected)
    assert type(seconds(given_)) is float


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(list(UNITS))), min_size=1, max_size=6))
def test_a_text_is_the_sum_of_its_parts(parts):
    """However a text is put together, its parts are added."""
    text = "".join(f"{number}{unit}" for number, unit in parts)
    expected = sum(number * UNITS[unit] for number, unit in parts)
    if expected:
        assert seconds(text) == pytest.approx(expected)
    else:
        with pytest.raises(ValueError, match="positive"):
            seconds(text)


@pytest.mark.parametrize(
    "given_",
    [
        0, -1, -0.5, math.nan, math.inf, -math.inf, 10**400, True, False, timedelta(0), timedelta(seconds=-1), "",
        "soon", "5", "5 s", "-5s", "5x", "1h30", "h", "٣s", "0s", None, [], {}, b"5s",
    ],
    ids=lambda given_: repr(given_)[:20],
)  # fmt: skip
def test_nonsense_is_refused(given_):
    """What is no positive, finite duration is a ValueError that says what was given."""
    with pytest.raises(ValueError, match="ttl: ") as caught:
        seconds(given_, name="ttl")
    assert repr(given_)[:40] in str(caught.value)


def test_a_long_text_is_refused_in_short():
    """The error does not repeat a text of any length."""
    with pytest.raises(ValueError, match=r"\.\.\.") as caught:
        seconds("1s" * 10_000)
    assert len(str(caught.value)) < 300
