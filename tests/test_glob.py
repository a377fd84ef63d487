"""Glob patterns over keys."""

import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynccache._glob import compile_glob, literal_prefix


def reference(pattern: str, text: str) -> bool:
    """The dialect written down the slow, obvious way."""

    @cache
    def fits(p: int, t: int) -> bool:
        if p == len(pattern):
            return t == len(text)
        if pattern[p] == "*":
            return fits(p + 1, t) or (t < len(text) and fits(p, t + 1))
        if t == len(text):
            return False
        if pattern[p] == "?":
            return fits(p + 1, t + 1)
        if pattern[p] == "[":
            p += 1
            negated = pattern[p : p + 1] == "^"
            p += negated
            found = False
            while p < len(pattern) and pattern[p] != "]":
                if pattern[p] == "\\" and p + 1 < len(pattern):
                    found |= pattern[p + 1] == text[t]
                    p += 2
                elif pattern[p + 1 : p + 2] == "-" and p + 2 < len(pattern):
                    low, high = sorted(pattern[p] + pattern[p + 2])
                    found |= low <= text[t] <= high
                    p += 3
                else:
                    found |= pattern[p] == text[t]
                    p += 1
            return found is not bool(negated) and fits(min(p + 1, len(pattern)), t + 1)
        if pattern[p] == "\\" and p + 1 < len(pattern):
            p += 1
        return pattern[p] == text[t] and fits(p + 1, t + 1)

    return fits(0, 0)


@given(st.text("ab*?[]^-\\\n", max_size=12), st.text("ab]-^\\*\n", max_size=8))
def test_reference(pattern: str, text: str) -> None:
    """Any pattern matches exactly what the obvious matcher says, corners included."""
    assert compile_glob(pattern)(text) is reference(pattern, text)


@given(st.text("ab*?[]\\", max_size=8), st.text("ab[", max_size=6))
def test_prefix(pattern: str, text: str) -> None:
    """Whatever matches begins with the literal prefix."""
    assert not compile_glob(pattern)(text) or text.startswith(literal_prefix(pattern))


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*", "any\nthing", None),
        ("", "", "a"),
        ("user:1", "user:1", "user:11"),
        ("user:*", "user:", "users:1"),
        ("u?er", "uzer", "uer"),
        ("[a-c]x", "bx", "dx"),
        ("[c-a]x", "bx", "dx"),
        ("[^a]", "b", "a"),
        (r"t\*", "t*", "tx"),
        ("a[", None, "a"),
        ("a[bc", "ac", "a[bc"),
        ("[]", None, "]"),
        ("[^]", "x", ""),
        ("a\\", "a\\", "a"),
        ("*.py*", "x.pyc", "x.p"),
        ("ab*ba", "abba", "aba"),
        ("ключ:?", "ключ:я", "ключ:"),
    ],
)
def test_examples(pattern: str, matching: str | None, other: str | None) -> None:
    """Stars, classes, escapes and their corners mean what they mean to Redis."""
    matches = compile_glob(pattern)
    assert matching is None or matches(matching)
    assert other is None or not matches(other)


@pytest.mark.parametrize(
    ("pattern", "prefix"), [("user:*", "user:"), (r"t\*1?", "t*1"), ("*", ""), ("[a]", ""), ("plain", "plain")]
)
def test_literal_prefix(pattern: str, prefix: str) -> None:
    """The prefix is the text, unescaped, in front of the first special character."""
    assert literal_prefix(pattern) == prefix


@pytest.mark.parametrize("pattern", ["*a" * 30 + "b", "*a" * 400 + "b", "*" + "?" * 500 + "b*", "*[a-z]" * 170 + "b"])
def test_hostile(pattern: str) -> None:
    """A pattern made to blow up costs milliseconds of processor time, not years (PROMISES 25)."""
    began = time.process_time()
    assert not compile_glob(pattern)("a" * 1_000)
    assert time.process_time() - began < 0.1
