"""Keys are any text, patterns are globs, and a namespace touches just its own."""

import time

import pytest

from asynccache import Cache, InvalidKeyError

pytestmark = pytest.mark.usefixtures("quiet")

BAD_KEYS = ["", "a\0b", "\ud800", "x\udfff", "k" * 1025, "é" * 513, None, 5, b"k", ("a",)]
ODD_KEYS = [
    " ",
    "\n",
    "a\tb",
    "*",
    "?",
    "[a]",
    "[!a]",
    "{a}",
    "\\",
    "../x",
    "ключ",
    "日本",
    "🦀",
    "a:b",
    ":",
    "k" * 1024,
    "é" * 512,
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key)[:12])
async def test_bad_keys(cache, key):
    """Every call refuses a bad key with `InvalidKeyError`, which is a ``ValueError``, and loads nothing."""
    called = []
    for call in (
        lambda: cache.get(key),
        lambda: cache.get_many(["fine", key]),
        lambda: cache.set(key, 1),
        lambda: cache.set_many({"fine": 1, key: 1}),
        lambda: cache.add(key, 1),
        lambda: cache.delete(key),
        lambda: cache.delete_many(["fine", key]),
        lambda: cache.exists(key),
        lambda: cache.touch(key, 5),
        lambda: cache.ttl(key),
        lambda: cache.incr(key),
        lambda: cache.decr(key),
        lambda: cache.entry(key),
        lambda: cache.get_or_set(key, lambda: called.append(1)),
    ):
        with pytest.raises(InvalidKeyError):
            await call()
    assert issubclass(InvalidKeyError, ValueError)
    assert called == []
    assert not await cache.exists("fine")


async def test_a_bad_key_of_a_lock(cache):
    """A lock's key is a key."""
    with pytest.raises(InvalidKeyError):
        async with cache.lock("", ttl=5):
            pass


async def test_a_bad_key_in_a_message_is_short(cache):
    """A refused key of a megabyte does not fill the log."""
    with pytest.raises(InvalidKeyError) as caught:
        await cache.get("x" * 1_000_000)
    assert len(str(caught.value)) < 2_000


async def test_odd_keys(cache):
    """Any other character is ordinary, and no two of these are one key."""
    for number, key in enumerate(ODD_KEYS):
        assert await cache.set(key, number) is True
    for number, key in enumerate(ODD_KEYS):
        assert await cache.get(key) == number
    assert sorted([key async for key in cache.keys("*")]) == sorted(ODD_KEYS)
    for key in ODD_KEYS:
        assert await cache.delete(key) is True


async def test_no_unicode_normalization(cache):
    """Texts that look the same and are not, are two keys; upper and lower case too."""
    await cache.set("é", 1)
    await cache.set("e\u0301", 2)
    await cache.set("K", 3)
    await cache.set("k", 4)
    assert await cache.get_many(["é", "e\u0301", "K", "k"]) == {"é": 1, "e\u0301": 2, "K": 3, "k": 4}


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("*", {"a", "ab", "abc", "b*", "b?", "line\nbreak", "[x]", "A"}),
        ("a*", {"a", "ab", "abc"}),
        ("?", {"a", "A"}),
        ("a?", {"ab"}),
        ("*b*", {"ab", "abc", "b*", "b?", "line\nbreak"}),
        ("[aA]", {"a", "A"}),
        ("[a-c]*", {"a", "ab", "abc", "b*", "b?"}),
        ("b[*]", {"b*"}),
        ("b[?]", {"b?"}),
        ("[[]x]", {"[x]"}),
        ("line?break", {"line\nbreak"}),
        ("abc", {"abc"}),
        ("zzz", set()),
    ],
)
async def test_globs(cache, pattern, matching):
    """``keys`` lists and ``clear`` removes just what the glob matches, as a whole, minding the case."""
    everything = {"a", "ab", "abc", "b*", "b?", "line\nbreak", "[x]", "A"}
    await cache.set_many(dict.fromkeys(everything, 1))
    assert {key async for key in cache.keys(pattern)} == matching
    assert await cache.clear(pattern) == len(matching)
    assert {key async for key in cache.keys("*")} == everything - matching


@pytest.mark.parametrize("pattern", ["[", "[a", "]", "a\\", "[!", "[]", "[z-a]", "**", "(?P<x", "a{2", "+", "."])
async def test_broken_globs(cache, pattern):
    """A strange pattern is no crash, and ordinary characters of regular expressions are ordinary."""
    await cache.set("plain", 1)
    listed = [key async for key in cache.keys(pattern)]
    assert listed == (["plain"] if pattern == "**" else [])


async def test_a_hostile_glob(cache):
    """A pattern made to backtrack costs next to nothing."""
    await cache.set_many({"a" * 900 + str(number): 1 for number in range(20)})
    began = time.thread_time()
    assert await cache.clear("*a" * 60 + "b") == 0
    assert time.thread_time() - began < 0.1


async def test_listing_while_changing(cache):
    """Keys may come and go while they are listed: those that stay are all listed."""
    await cache.set_many({f"k{number}": 1 for number in range(500)})
    seen = set()
    listing = cache.keys()
    async for key in listing:
        seen.add(key)
        if key.startswith("k1"):
            await cache.delete("k2")
            await cache.set(f"new{len(seen)}", 1)
    assert {f"k{number}" for number in range(500) if number != 2} <= seen


async def test_expired_keys_are_not_listed(cache, sb):
    """What is gone is not listed, removed or counted."""
    await cache.set("old", 1, ttl=5)
    await cache.set("new", 1, ttl=50)
    sb.travel(6)
    assert [key async for key in cache.keys("*")] == ["new"]
    assert await cache.clear() == 1


NAMES = ["t[1]", "t*", "t?", "t\\", "t", "t1", "users", "usersAbc", "user", "T", "{t}", "日本"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_namespace_touches_its_own(cache, name):
    """Listing and clearing a namespace of whatever name leaves all the others as they are."""
    for other in NAMES:
        await cache.namespace(other).set_many({"k": other, "j*": other})
    view = cache.namespace(name)
    assert sorted([key async for key in view.keys("*")]) == ["j*", "k"]
    assert await view.clear("j[*]") == 1
    assert await view.clear() == 1
    assert [key async for key in view.keys("*")] == []
    for other in NAMES:
        if other != name:
            assert await cache.namespace(other).get_many(["k", "j*"]) == {"k": other, "j*": other}


async def test_views_of_one_name_are_one_place(cache):
    """What one view stores the other finds; siblings and the root do not."""
    await cache.namespace("a").set("k", 1)
    assert await cache.namespace("a").get("k") == 1
    assert await cache.namespace("b").get("k") is None
    assert await cache.get("k") is None
    assert await cache.namespace("a").namespace("b").get("k") is None


async def test_views_nest(cache):
    """A view of a view is a place of its own, whichever way it is reached."""
    inner = cache.namespace("a").namespace("b")
    await inner.set("k", "inner")
    await cache.namespace("a").set("k", "outer")
    await cache.namespace("b").set("k", "other")
    assert await cache.namespace("a").namespace("b").get("k") == "inner"
    assert await inner.clear() == 1
    assert await cache.namespace("a").get("k") == "outer"
    assert await cache.namespace("b").get("k") == "other"


async def test_a_view_has_the_whole_face(cache):
    """Every call works on a view, with the parent's policy."""
    view = cache.namespace("v")
    await view.set("k", 1)
    assert await view.ttl("k") == pytest.approx(600)
    assert await view.incr("n") == 1
    assert await view.get_or_set("l", lambda: 2) == 2
    assert await view.get_or_set_many(["l", "m"], lambda keys: dict.fromkeys(keys, 3)) == {"l": 2, "m": 3}
    assert (await view.entry("k")).value == 1
    assert await view.delete("k") is True
    async with view.lock("k", ttl=5):
        pass

    @view.memoize(key="f:{x}")
    async def double(x):
        return 2 * x

    assert await double(4) == 8
    assert await view.get("f:4") == 8
    assert await cache.get("f:4") is None


@pytest.mark.parametrize("name", ["", "a\0", "\ud800", "x" * 2000])
async def test_bad_namespaces(cache, sb, name):
    """A namespace is a key's front and is checked like one."""
    with pytest.raises(ValueError, match=r".+"):
        cache.namespace(name)
    if name:
        with pytest.raises(ValueError, match=r".+"):
            Cache(clock=sb.clock, namespace=name)


async def test_a_colon_is_no_border_between_namespaces(cache):
    """A key with a colon, and a namespace with one, are not taken for each other."""
    await cache.set("a:b:k", "root")
    await cache.namespace("a").set("b:k", "view")
    await cache.namespace("a:b").set("k", "colon")
    assert await cache.get("a:b:k") == "root"
    assert await cache.namespace("a").get("b:k") == "view"
    assert await cache.namespace("a:b").get("k") == "colon"
