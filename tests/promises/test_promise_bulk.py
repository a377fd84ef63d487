"""Loading many keys at once: each missing key once, joined with whoever else loads it."""

import asyncio

import pytest

pytestmark = pytest.mark.usefixtures("quiet")


class Bulk:
    """A loader that counts, and can be held."""

    def __init__(self, *, gated=False):
        self.asked = []
        self.gate = asyncio.Event()
        self.cancelled = 0
        if not gated:
            self.gate.set()

    async def load(self, missing):
        self.asked.append(list(missing))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {key: f"v-{key}" for key in missing}


async def test_only_the_missing(cache):
    """Of a hundred keys forty are there: one call for just the sixty others, the result in the order asked."""
    keys = [f"k{number}" for number in range(100)]
    await cache.set_many({key: f"v-{key}" for key in keys[::5] + keys[1::5]})
    bulk = Bulk()
    found = await cache.get_or_set_many(keys, bulk.load)
    assert list(found.items()) == [(key, f"v-{key}") for key in keys]
    assert len(bulk.asked) == 1
    assert sorted(bulk.asked[0]) == sorted(set(keys) - set(keys[::5]) - set(keys[1::5]))
    assert await cache.get_or_set_many(keys, bulk.load) == found
    assert len(bulk.asked) == 1


async def test_nothing_to_do(cache):
    """No keys, or no missing ones: the loader is not called."""
    bulk = Bulk()
    assert await cache.get_or_set_many([], bulk.load) == {}
    await cache.set("k", 1)
    assert await cache.get_or_set_many(["k"], bulk.load) == {"k": 1}
    assert bulk.asked == []


async def test_the_same_key_twice(cache):
    """A key asked twice is loaded once."""
    bulk = Bulk()
    assert await cache.get_or_set_many(["a", "b", "a"], bulk.load) == {"a": "v-a", "b": "v-b"}
    assert sorted(bulk.asked[0]) == ["a", "b"]


async def test_any_iterable_of_keys(cache):
    """A generator of keys will do, and so will a plain function as the loader."""
    found = await cache.get_or_set_many((key for key in "ab"), lambda missing: dict.fromkeys(missing, 1))
    assert found == {"a": 1, "b": 1}


async def test_overlapping_bulks(cache, settle):
    """Bulks that overlap in time load each key once between them."""
    one, two = Bulk(gated=True), Bulk(gated=True)
    first = asyncio.create_task(cache.get_or_set_many(["a", "b", "c"], one.load))
    await settle()
    second = asyncio.create_task(cache.get_or_set_many(["b", "c", "d"], two.load))
    await settle()
    assert (one.asked, two.asked) == ([["a", "b", "c"]], [["d"]])
    two.gate.set()
    await settle()
    assert not second.done()
    one.gate.set()
    assert await first == {"a": "v-a", "b": "v-b", "c": "v-c"}
    assert list((await second).items()) == [("b", "v-b"), ("c", "v-c"), ("d", "v-d")]


async def test_a_single_joins_a_bulk(cache, make_source, settle):
    """A `get_or_set` of a key that a bulk loads waits for the bulk."""
    bulk, single = Bulk(gated=True), make_source("single")
    many = asyncio.create_task(cache.get_or_set_many(["a", "b"], bulk.load))
    await settle()
    one = asyncio.create_task(cache.get_or_set("a", single.load))
    await settle()
    bulk.gate.set()
    assert await one == "v-a"
    assert await many == {"a": "v-a", "b": "v-b"}
    assert single.calls == 0


async def test_a_bulk_joins_a_single(cache, make_source, settle):
    """A bulk waits for a key that a `get_or_set` loads, and does not ask for it."""
    bulk, single = Bulk(), make_source("single", gated=True)
    one = asyncio.create_task(cache.get_or_set("a", single.load))
    await settle()
    many = asyncio.create_task(cache.get_or_set_many(["a", "b"], bulk.load))
    await settle()
    assert bulk.asked == [["b"]]
    single.gate.set()
    assert await one == "single"
    assert await many == {"a": "single", "b": "v-b"}


async def test_what_the_loader_leaves_out(cache):
    """Keys that the loader leaves out are absent from the result and not stored; the next call asks for them again."""
    asked = []

    async def loader(missing):
        asked.append(list(missing))
        return {"a": 1}

    assert await cache.get_or_set_many(["a", "b"], loader) == {"a": 1}
    assert not await cache.exists("b")
    assert await cache.get_or_set_many(["a", "b"], loader) == {"a": 1}
    assert asked == [["a", "b"], ["b"]]


async def test_what_the_loader_adds(cache):
    """Keys that nobody asked for are stored and not returned."""

    async def loader(missing):
        return {"a": 1, "x": 2, "y": None}

    assert await cache.get_or_set_many(["a"], loader) == {"a": 1}
    assert await cache.get_many(["a", "x", "y"]) == {"a": 1, "x": 2, "y": None}


async def test_none_is_a_value(cache):
    """A None that the loader returns is stored and found."""
    calls = []

    async def loader(missing):
        calls.append(1)
        return dict.fromkeys(missing)

    for _ in range(2):
        assert await cache.get_or_set_many(["a"], loader) == {"a": None}
    assert len(calls) == 1


async def test_a_single_whose_key_is_left_out(cache, make_source, settle):
    """Who joined a bulk for a key that it leaves out does not hang and gets no None: it loads by itself."""
    gate = asyncio.Event()

    async def loader(missing):
        await gate.wait()
        return {}

    many = asyncio.create_task(cache.get_or_set_many(["a", "b"], loader))
    await settle()
    one = asyncio.create_task(cache.get_or_set("a", make_source("own").load))
    await settle()
    gate.set()
    assert await many == {}
    assert await asyncio.wait_for(one, 2) == "own"


async def test_a_bulk_that_fails(cache, make_source, settle, nobody_left):
    """All who wait for it get its error, nothing is left, the next load works."""
    gate = asyncio.Event()

    async def loader(missing):
        await gate.wait()
        raise OSError("down")

    many = asyncio.create_task(cache.get_or_set_many(["a", "b"], loader))
    await settle()
    one = asyncio.create_task(cache.get_or_set("b", make_source().load))
    await settle()
    gate.set()
    outcomes = await asyncio.gather(many, one, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
    await nobody_left()
    assert await cache.get_or_set_many(["a", "b"], Bulk().load) == {"a": "v-a", "b": "v-b"}


@pytest.mark.parametrize("junk", [None, 5, ["a"], "ab"])
async def test_a_loader_that_returns_no_mapping(cache, nobody_left, junk):
    """Anything but a mapping is a clear error and leaves the keys usable."""
    with pytest.raises((TypeError, ValueError)):
        await cache.get_or_set_many(["a", "b"], lambda missing: junk)
    await nobody_left()
    assert await cache.get_or_set_many(["a"], Bulk().load) == {"a": "v-a"}


async def test_a_bulk_whose_caller_is_cancelled(cache, settle, nobody_left):
    """The load is cancelled with its last waiter, and goes on while anybody waits for one of its keys."""
    alone, joined = Bulk(gated=True), Bulk(gated=True)
    first = asyncio.create_task(cache.get_or_set_many(["a", "b"], alone.load))
    second = asyncio.create_task(cache.get_or_set_many(["c", "d"], joined.load))
    await settle()
    single = asyncio.create_task(cache.get_or_set("d", lambda: "own"))
    await settle()
    first.cancel()
    second.cancel()
    await settle()
    assert (alone.cancelled, joined.cancelled) == (1, 0)
    joined.gate.set()
    assert await single == "v-d"
    await nobody_left()
    assert await cache.get_many([*"abcd"]) in ({"c": "v-c", "d": "v-d"}, {"d": "v-d"})


async def test_the_options_of_a_bulk(cache, sb):
    """Ttl and tags given to a bulk are those of each entry."""
    await cache.get_or_set_many(["a", "b"], Bulk().load, ttl=5, tags=["t"])
    assert await cache.ttl("b") == pytest.approx(5)
    await cache.invalidate_tags("t")
    assert await cache.get_many([*"ab"]) == {}


async def test_a_bad_key_among_many(cache):
    """One bad key and nothing is loaded."""
    from asynccache import InvalidKeyError

    bulk = Bulk()
    with pytest.raises(InvalidKeyError):
        await cache.get_or_set_many(["a", ""], bulk.load)
    assert bulk.asked == []


async def test_stale_values_in_bulk(cache, sb, settle):
    """A bulk that fails is answered with stale values where every missing key has one."""
    await cache.get_or_set_many(["a", "b"], Bulk().load, ttl=1, grace="1h")
    sb.travel(2)

    async def fail(missing):
        raise OSError("down")

    assert await cache.get_or_set_many(["a", "b"], fail, ttl=1, grace="1h") == {"a": "v-a", "b": "v-b"}
