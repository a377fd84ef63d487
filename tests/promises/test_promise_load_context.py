"""What a factory that takes the `Load` context can see and say."""

import asyncio
import functools
import math

import pytest

from asynccache import CacheError, Entry

pytestmark = pytest.mark.usefixtures("quiet")


async def test_it_knows_its_key(cache):
    """The context carries the key, without a namespace; there is no stale entry on a first load."""
    seen = []

    async def load(context):
        seen.append((context.key, context.stale))
        return 1

    await cache.get_or_set("k", load)
    await cache.namespace("n").get_or_set("kk", load)
    assert seen == [("k", None), ("kk", None)]


async def test_every_kind_of_callable_gets_it(cache):
    """Plain functions, methods, callable objects and partials take the context as well."""

    class Loader:
        async def method(self, load):
            return load.key

        async def __call__(self, load):
            return load.key

    async def with_prefix(prefix, load):
        return prefix + load.key

    assert await cache.get_or_set("a", lambda load: load.key) == "a"
    assert await cache.get_or_set("b", Loader().method) == "b"
    assert await cache.get_or_set("c", Loader()) == "c"
    assert await cache.get_or_set("d", functools.partial(with_prefix, "p:")) == "p:d"


async def test_its_ttl(cache, sb):
    """The factory's ttl is above the call's, in any form; the shared policy is not changed by it."""

    def with_ttl(ttl):
        async def load(context):
            context.ttl = ttl
            return 1

        return load

    await cache.get_or_set("a", with_ttl("5s"), ttl=60)
    await cache.get_or_set("b", with_ttl(None), ttl=60)
    await cache.get_or_set("c", lambda: 1)
    assert [await cache.ttl(key) for key in "abc"] == [pytest.approx(5), math.inf, pytest.approx(600)]


async def test_its_ttl_must_be_a_duration(cache, nobody_left):
    """A bad ttl is an error of the factory's."""

    async def load(context):
        context.ttl = -5
        return 1

    with pytest.raises(ValueError, match="-5"):
        await cache.get_or_set("k", load)
    await nobody_left()


async def test_its_grace(cache, sb):
    """The factory can give a grace to what it loads."""

    async def load(context):
        context.ttl = 1
        context.grace = "1m"
        return "good"

    async def fail():
        raise OSError

    await cache.get_or_set("k", load)
    sb.travel(2)
    assert await cache.get_or_set("k", fail) == "good"


async def test_its_tags(cache):
    """Tags from the factory invalidate, assigned or added."""

    async def assigned(context):
        context.tags = ["one"]
        return 1

    async def added(context):
        context.add_tags("two", "three")
        return 2

    await cache.get_or_set("a", assigned)
    await cache.get_or_set("b", added, tags=["zero"])
    entry = await cache.entry("b")
    assert set(entry.tags) == {"zero", "two", "three"}
    await cache.invalidate_tags("one")
    assert await cache.get_many(["a", "b"]) == {"b": 2}
    await cache.invalidate_tags("three")
    assert await cache.get_many(["a", "b"]) == {}


async def test_tags_added_do_not_leak(cache):
    """What one load adds is not on the next load's entry."""

    async def tagged(context):
        context.add_tags("mine")
        return 1

    await cache.get_or_set("a", tagged, tags=["t"])
    await cache.get_or_set("b", lambda: 2, tags=["t"])
    await cache.invalidate_tags("mine")
    assert await cache.get_many(["a", "b"]) == {"b": 2}


async def test_skip(cache, settle):
    """A skipped value goes to all who waited and is not stored."""
    gate = asyncio.Event()
    calls = []

    async def load(context):
        calls.append(1)
        await gate.wait()
        context.skip()
        return "unstored"

    tasks = [asyncio.create_task(cache.get_or_set("k", load)) for _ in range(3)]
    await settle()
    gate.set()
    assert await asyncio.gather(*tasks) == ["unstored"] * 3
    assert len(calls) == 1
    assert await cache.get("k") is None


async def test_the_stale_entry(cache, sb):
    """On a later load the context carries the old entry."""
    seen = []

    async def load(context):
        seen.append(context.stale)
        return len(seen)

    await cache.get_or_set("k", load, ttl=1, grace="1h")
    sb.travel(2)
    assert await cache.get_or_set("k", load, ttl=1, grace="1h") == 2
    assert isinstance(seen[1], Entry)
    assert seen[1].value == 1
    assert seen[1].expires_at > seen[1].fresh_until


async def test_conditional_fetches(cache, sb):
    """A document 1, 1, 1, 1, 42 behind ETags costs four requests: three conditional, two full, two not modified."""
    document = {"etag": "e1", "body": 1}
    requests = []

    async def fetch(load):
        if load.stale is not None:
            requests.append("conditional")
            if load.stale.value["etag"] == document["etag"]:
                requests.append("not modified")
                return load.keep_stale()
        requests.append("full")
        return dict(document)

    async def read():
        return (await cache.get_or_set("doc", fetch, ttl=10, grace="1h"))["body"]

    bodies = [await read(), await read()]
    for _ in range(2):
        sb.travel(11)
        bodies.append(await read())
        assert await cache.ttl("doc") == pytest.approx(10)
        assert await read() == 1
    document.update(etag="e2", body=42)
    sb.travel(11)
    bodies.append(await read())
    assert bodies == [1, 1, 1, 1, 42]
    assert requests.count("conditional") == 3
    assert requests.count("full") == 2
    assert requests.count("not modified") == 2
    assert await read() == 42


async def test_keeping_what_is_not_there(cache):
    """``keep_stale`` without a stale entry is a clear error, and nothing is stored."""

    async def load(context):
        return context.keep_stale()

    with pytest.raises((CacheError, RuntimeError), match="stale"):
        await cache.get_or_set("k", load)
    assert not await cache.exists("k")


@pytest.mark.parametrize("removal", ["delete", "clear", "tag"])
async def test_what_was_removed_is_not_offered(cache, sb, removal):
    """A removed value is never offered to the factory, stale or fresh."""
    seen = []

    async def load(context):
        seen.append(context.stale)
        return 1

    options = {"ttl": 1, "grace": "1h", "tags": ["t"]}
    for lapse in (0, 2):
        await cache.get_or_set("k", load, **options)
        if lapse:
            sb.travel(lapse)
        if removal == "delete":
            await cache.delete("k")
        elif removal == "clear":
            await cache.clear()
        else:
            await cache.invalidate_tags("t")
        await cache.get_or_set("k", load, **options)
        await cache.delete("k")
    assert seen == [None] * 4


async def test_keeping_a_stale_value_keeps_its_tags_working(cache, sb):
    """An entry that was kept can still be invalidated by its tags."""

    async def load(context):
        return context.keep_stale() if context.stale else "first"

    options = {"ttl": 1, "grace": "1h", "tags": ["t"]}
    await cache.get_or_set("k", load, **options)
    sb.travel(2)
    assert await cache.get_or_set("k", load, **options) == "first"
    assert await cache.get("k") == "first"
    await cache.invalidate_tags("t")
    assert await cache.get("k") is None


async def test_keeping_what_is_deleted_meanwhile(cache, sb, settle):
    """A value deleted while its conditional fetch runs is not revived by "not modified"."""
    gate = asyncio.Event()

    async def load(context):
        if context.stale is None:
            return "first"
        await gate.wait()
        return context.keep_stale()

    await cache.get_or_set("k", load, ttl=1, grace="1h")
    sb.travel(2)
    task = asyncio.create_task(cache.get_or_set("k", load, ttl=1, grace="1h"))
    await settle()
    await cache.delete("k")
    gate.set()
    await asyncio.wait([task])
    await settle()
    assert await cache.get("k") is None
