"""Stores compared with the memory store, operation by operation."""

import asyncio
import math
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from stores import FLAVOURS, emptied, on_redis

from asynccache import Backend, Cache, MemoryBackend
from asynccache.backends.file import FileBackend
from asynccache.testing import TravellingClock

KEYS = st.sampled_from(["a", "b", "a:1", "a*", "é", "x y"])
TAGS = st.lists(st.sampled_from(["red", "blue"]), unique=True, max_size=2)
VALUES = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.text(max_size=3),
    st.tuples(st.integers(), st.binary(max_size=3)),
    st.just("x" * 5_000),
)
TTLS = st.one_of(st.none(), st.sampled_from([1, 10, 60]))


class Comparison(RuleBasedStateMachine):
    """Two caches, one on the memory store and one on another, that must answer alike."""

    def opened(self) -> Backend:
        """The other store, empty."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = TravellingClock()
        self.hidden = False
        self.folder = Path(tempfile.mkdtemp())
        # Both on stores that were given, so that both have the namespace in their keys.
        self.model = Cache(MemoryBackend(clock=self.clock), namespace="n", clock=self.clock)
        self.store = self.opened()
        self.other = Cache(self.store, namespace="n", clock=self.clock, on_error="raise")

    def teardown(self) -> None:
        async def close() -> None:
            await self.model.aclose()
            await self.other.aclose()
            await self.store.aclose()

        self.runner.run(close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def both(self, call: Callable[[Cache], Coroutine[Any, Any, Any]], *, counted: bool = False) -> Any:
        """What both answer, or raise. A remote store counts what tags hide as there when it is removed."""

        async def answer(cache: Cache) -> Any:
            try:
                return await call(cache)
            except TypeError:
                return "a TypeError"

        wanted, found = (self.runner.run(answer(cache)) for cache in (self.model, self.other))
        if counted and self.hidden:
            return wanted
        if isinstance(wanted, float) and not math.isinf(wanted):
            assert found == pytest.approx(wanted, abs=3e-3)
        else:
            assert found == wanted
            assert type(found) is type(wanted)
        return wanted

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        self.both(lambda cache: cache.get(key, "absent"))

    @rule(keys=st.lists(KEYS, max_size=4))
    def get_many(self, keys: list[str]) -> None:
        self.both(lambda cache: cache.get_many(keys))

    @rule(key=KEYS, value=VALUES, ttl=TTLS, tags=TAGS, only_if=st.sampled_from([None, None, "absent", "present"]))
    def set(self, key: str, value: Any, ttl: Any, tags: list[str], only_if: Any) -> None:
        self.both(lambda cache: cache.set(key, value, ttl, tags=tags, only_if=only_if))

    @rule(key=KEYS, value=VALUES, grace=st.sampled_from([5, 100]))
    def set_with_grace(self, key: str, value: Any, grace: int) -> None:
        self.both(lambda cache: cache.set(key, value, 10, grace=grace))

    @rule(values=st.dictionaries(KEYS, VALUES, max_size=4), ttl=TTLS)
    def set_many(self, values: dict[str, Any], ttl: Any) -> None:
        self.both(lambda cache: cache.set_many(values, ttl))

    @rule(keys=st.lists(KEYS, max_size=4))
    def delete_many(self, keys: list[str]) -> None:
        self.both(lambda cache: cache.delete_many(keys), counted=True)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.both(lambda cache: cache.delete(key), counted=True)

    @rule(key=KEYS, delta=st.integers(-3, 2**70), ttl=TTLS)
    def incr(self, key: str, delta: int, ttl: Any) -> None:
        if not self.hidden:  # a remote store goes on with what tags hide
            self.both(lambda cache: cache.incr(key, delta, ttl=ttl))

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: str, ttl: Any) -> None:
        self.both(lambda cache: cache.touch(key, ttl))

    @rule(key=KEYS)
    def ttl(self, key: str) -> None:
        self.both(lambda cache: cache.ttl(key))

    @rule(key=KEYS)
    def exists(self, key: str) -> None:
        self.both(lambda cache: cache.exists(key))

    @rule(match=st.sampled_from(["*", "a*", "a\\*", "?", "[ab]"]))
    def keys(self, match: str) -> None:
        async def listed(cache: Cache) -> set[str]:
            return {key async for key in cache.keys(match)}

        self.both(listed)

    @rule(match=st.sampled_from(["*", "a*", "b"]))
    def clear(self, match: str) -> None:
        self.both(lambda cache: cache.clear(match), counted=True)
        self.hidden = self.hidden and match != "*"

    @rule(tags=TAGS)
    def invalidate(self, tags: list[str]) -> None:
        self.both(lambda cache: cache.invalidate_tags(*tags))
        self.hidden = self.hidden or bool(tags)

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def get_or_set(self, key: str, value: Any, ttl: Any) -> None:
        self.both(lambda cache: cache.get_or_set(key, lambda: value, ttl))

    @rule(key=KEYS, view=st.sampled_from(["v", "w"]), value=VALUES)
    def view(self, key: str, view: str, value: Any) -> None:
        self.both(lambda cache: cache.namespace(view).add(key, value, 10))

    @rule(seconds=st.sampled_from([0.5, 5, 30, 200]))
    def travel(self, seconds: float) -> None:
        self.clock.travel(seconds)


class WithFile(Comparison):
    """The file store."""

    def opened(self) -> Backend:
        return FileBackend(self.folder / "store", clock=self.clock)


class WithRedis(Comparison):
    """Redis."""

    def opened(self) -> Backend:
        return on_redis(emptied(), self.clock)


class WithOtherRedis(Comparison):
    """The other kind of Redis server, where there are two."""

    def opened(self) -> Backend:
        return on_redis(emptied(FLAVOURS[-1]), self.clock)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("other", "examples"), [(WithFile, 150), (WithRedis, 100), (WithOtherRedis, 50)])
def test_other_stores_are_as_the_memory_store(other: type[Comparison], examples: int) -> None:
    """Whatever is asked, in whatever order, another store answers like memory."""
    run_state_machine_as_test(
        other,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
