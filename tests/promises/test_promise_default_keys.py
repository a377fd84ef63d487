"""The default key of a memoized call: equal arguments one key, different arguments different keys."""

import itertools
import os
import subprocess
import sys

import pytest

from asynccache import Cache, CacheError

cache = Cache()


@cache.memoize()
async def one(x, y=0):
    return x, y


@cache.memoize()
async def many(*args, **kwargs):
    return args, kwargs


def test_one_call_one_key():
    """However the same call is written it has one key."""
    assert len({one.key(5), one.key(x=5), one.key(5, 0), one.key(x=5, y=0), one.key(y=0, x=5)}) == 1
    assert many.key(1, a=1, b=2) == many.key(1, b=2, a=1)


DIFFERENT = [
    1, "1", True, 1.0, None, "", b"1", [1, 2], (1, 2), "1:2", ("a", "b:c"), ("a:b", "c"),
    0, False, 0.5, "None", "True", b"", (), [], {}, "()", (1,), [1], (True,), (1.0,), ("1",),
    [[1], [2]], [[1, 2]], [1, [2]], {"a": 1}, [("a", 1)], {"a": "1"}, {1: "a"}, {"1": "a"},
    frozenset({1, 2}), "a", "a ", "A", "a,b", ("a", "b"), "('a', 'b')", "é", "e\u0301", "\n", "a\0b",
    2**70, -1, "-1", (None,), ("",), ("", ""), (("a",), "b"), ("a", ("b",)),
]  # fmt: skip


def test_different_values_different_keys():
    """No two of these values, which look alike, have one key."""
    keys = [one.key(value) for value in DIFFERENT]
    clashes = [(a, b) for (a, x), (b, y) in itertools.combinations(zip(DIFFERENT, keys, strict=True), 2) if x == y]
    assert clashes == []


def test_different_shapes_different_keys():
    """Positions, names and their number count."""
    keys = [
        many.key(),
        many.key(1),
        many.key(1, 1),
        many.key((1, 1)),
        many.key(a=1),
        many.key("a", 1),
        many.key(("a", 1)),
        many.key({"a": 1}),
        many.key(a="1"),
        many.key(1, a=1),
        many.key(b=1),
        many.key(a=1, b=1),
        many.key("a=1"),
    ]
    assert len(set(keys)) == len(keys)


def test_different_functions_different_keys():
    """The same arguments of another function are another key."""
    assert one.key(1) != many.key(1)


async def test_key_and_call_agree():
    """The key that is told is the key that is used."""
    async with Cache() as own:

        @own.memoize()
        async def f(x, y=0):
            return x

        for value in DIFFERENT:
            await f(value)
            assert await own.exists(f.key(value))
        assert own.stats().entries == len(DIFFERENT)


def test_every_key_is_valid():
    """However long the arguments, the key is a key: at most 1,024 bytes and no NUL."""
    for value in ("x" * 100_000, "日" * 5_000, list(range(10_000)), "a\0b", {"k" * 3_000: "v" * 3_000}):
        key = one.key(value)
        assert 0 < len(key.encode()) <= 1024
        assert "\0" not in key


def test_arguments_are_not_readable_in_keys():
    """No argument's value can be read in a default key."""
    assert "hunter2" not in one.key("hunter2")
    assert "hunter2" not in one.key(["hunter2"], y={"hunter2": 1})
    assert "90210777" not in one.key(90210777)


class Plain:
    """Nothing but an address."""


@pytest.mark.parametrize(
    "value", [Plain(), object(), [Plain()], {"a": Plain()}, iter([]), (Plain(),)], ids=lambda v: type(v).__name__
)
def test_no_stable_identity(value):
    """An argument without a stable identity is refused, and the message names it."""
    with pytest.raises((CacheError, TypeError, ValueError), match=r"\by\b"):
        one.key(1, y=value)


SEEDED = """
import asyncio
from asynccache import Cache
cache = Cache()
async def f(x): return x
f.__module__ = "somewhere"
f = cache.memoize()(f)
for value in [1, "a", {"b", "a", "c", "d"}, frozenset("xyz"), {"b": 1, "a": {"q", "w"}}, (1.5, None, b"x", True)]:
    print(f.key(value))
"""


def test_the_same_under_any_hash_seed():
    """Keys are the same in every process, whatever its hash seed."""
    outputs = set()
    for seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", SEEDED], env=environment, capture_output=True, text=True, timeout=20
        )
        assert run.stderr == ""
        outputs.add(run.stdout)
    assert len(outputs) == 1
