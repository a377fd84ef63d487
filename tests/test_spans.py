"""Spans: what each call shows, to whom it belongs, and when none is made."""

import asyncio
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from asynccache import Cache, ConfigError, Policy, Telemetry
from asynccache.telemetry import Tracing

SECRET_KEY = "user:4711"
SECRET_VALUE = "a value that nobody should see"


class Spans:
    """A provider and what it has been told."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def all(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def names(self) -> list[str]:
        return [span.name for span in self.all()]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


@pytest.fixture
def cache(spans: Spans) -> Cache:
    return Cache(name="shop", ttl="1m", telemetry=Telemetry(tracer_provider=spans.provider))


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


# Names and attributes


async def test_every_call_has_a_span_of_its_name(cache, spans):
    """Each public call makes one span that is named after it, and nothing more."""
    calls = {
        "cache.set": lambda: cache.set("a", 1),
        "cache.get": lambda: cache.get("a"),
        "cache.get_many": lambda: cache.get_many(["a"]),
        "cache.set_many": lambda: cache.set_many({"a": 1}),
        "cache.delete": lambda: cache.delete("nobody"),
        "cache.delete_many": lambda: cache.delete_many(["nobody", "no one"]),
        "cache.touch": lambda: cache.touch("a", "1m"),
        "cache.incr": lambda: cache.incr("n"),
        "cache.decr": lambda: cache.decr("n"),
        "cache.clear": lambda: cache.clear("x*"),
        "cache.entry": lambda: cache.entry("a"),
        "cache.ttl": lambda: cache.ttl("a"),
        "cache.invalidate_tags": lambda: cache.invalidate_tags("t"),
        "cache.get_or_set": lambda: cache.get_or_set("a", lambda: 1),
        "cache.ping": cache.ping,
    }
    for name, call in calls.items():
        spans.exporter.clear()
        await call()
        assert spans.names() == [name]
    spans.exporter.clear()
    assert [key async for key in cache.keys("a*")] == ["a"]
    async with cache.lock("a", ttl="1m"):
        pass
    assert spans.names() == ["cache.keys", "cache.lock"]


@pytest.mark.parametrize(
    ("stored", "result"), [({}, "miss"), ({"key": 1}, "hit"), ({"key": None}, "negative")], ids=["miss", "hit", "None"]
)
async def test_a_read_says_how_it_ended(cache, spans, stored, result):
    """A ``get`` tells the cache, the store, the result, and where it was found."""
    await cache.set_many(stored)
    spans.exporter.clear()
    await cache.get("key")
    expected = {"cache.name": "shop", "cache.backend": "memory", "cache.result": result, "cache.hit": bool(stored)}
    assert attributes(spans.one("cache.get")) == expected | ({"cache.tier": "local"} if stored else {})


async def test_the_short_way_says_the_same(spans, monkeypatch):
    """With a global provider a hit goes the short way, and its span has the same attributes and parent."""
    cache = Cache(name="shop")
    await cache.set("key", 1)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    memoized = cache.memoize(key="key")(load_one)
    with spans.tracer.start_as_current_span("request") as request:
        await cache.get("key")
        await cache.get_or_set("key", lambda: 2)
        await memoized()
    expected = {
        "cache.name": "shop",
        "cache.backend": "memory",
        "cache.result": "hit",
        "cache.hit": True,
        "cache.tier": "local",
    }
    assert spans.names() == ["cache.get", "cache.get_or_set", "cache.get_or_set", "request"]
    for span in spans.all()[:3]:
        assert attributes(span) == expected
        assert span.parent == request.get_span_context()


async def load_one() -> int:
    return 1


async def test_calls_of_many_keys_say_how_many(cache, spans):
    """Bulk calls have the number of their keys."""
    await cache.get_many(["a", "b"])
    await cache.set_many({"a": 1, "b": 2, "c": 3})
    await cache.delete_many(["a"])
    await cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1))
    sizes = {span.name: attributes(span).get("cache.batch.size") for span in spans.all()}
    assert sizes == {
        "cache.get_many": 2,
        "cache.set_many": 3,
        "cache.delete_many": 1,
        "cache.get_or_set_many": 2,
        "cache.load": 1,
    }
    assert attributes(spans.one("cache.load"))["cache.load.reason"] == "bulk"


async def test_a_memoized_call_is_a_get_or_set(cache, spans):
    """A memoized function's call, and its refresh, have the span of what they are."""
    memoized = cache.memoize(load_one)
    await memoized()
    await memoized.refresh()
    await memoized.invalidate()
    assert spans.names() == ["cache.load", "cache.get_or_set"] * 2 + ["cache.delete"]
    assert [attributes(span)["cache.load.reason"] for span in spans.named("cache.load")] == ["miss", "refresh"]


async def test_a_bypass_says_so(cache, spans):
    """A call that leaves the cache aside has the result ``bypass``."""
    with cache.override(bypass=True):
        await cache.get_or_set("key", lambda: 1)
    assert attributes(spans.one("cache.get_or_set"))["cache.result"] == "bypass"


# Whose child


async def test_one_load_and_ninety_nine_links(cache, spans):
    """Of 100 callers at once, the load is the child of the one that began it, and the others link to it."""
    gate = asyncio.Event()

    async def load():
        await gate.wait()
        return 1

    async def caller(number):
        with spans.tracer.start_as_current_span(f"request {number}"):
            return await cache.get_or_set("key", load)

    tasks = [asyncio.create_task(caller(number)) for number in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*tasks)
    load_span = spans.one("cache.load")
    callers = spans.named("cache.get_or_set")
    assert len(callers) == 100
    requests = {span.context.span_id for span in spans.all() if span.name.startswith("request")}
    assert {span.parent.span_id for span in callers} == requests
    leaders = [span for span in callers if span.context.span_id == load_span.parent.span_id]
    assert [attributes(span)["cache.result"] for span in leaders] == ["miss"]
    for span in callers:
        if span is not leaders[0]:
            assert [link.context for link in span.links] == [load_span.context]
            assert attributes(span)["cache.result"] == "coalesced"


async def test_the_factory_runs_inside_the_load(cache, spans):
    """A span that the factory makes is a child of ``cache.load``."""

    async def load():
        with spans.tracer.start_as_current_span("query"):
            await asyncio.sleep(0)

    await cache.get_or_set("key", load)
    assert spans.one("query").parent.span_id == spans.one("cache.load").context.span_id


async def test_a_refresh_ahead_is_linked_and_not_a_child(spans, cache_sandbox):
    """A background refresh has a trace of its own, and links to the call that began it."""
    cache = Cache(ttl=10, policy=Policy(refresh_ahead=0.5), telemetry=Telemetry(tracer_provider=spans.provider))
    await cache.get_or_set("key", load_one)
    cache_sandbox.travel(6)
    await cache.get_or_set("key", load_one)
    for _ in range(5):
        await asyncio.sleep(0)
    refresh = spans.one("cache.refresh")
    trigger = spans.named("cache.get_or_set")[1]
    assert refresh.parent is None
    assert [link.context.span_id for link in refresh.links] == [trigger.context.span_id]
    assert attributes(refresh)["cache.load.reason"] == "background"


async def test_who_takes_the_stale_value_links_to_the_load(spans, cache_sandbox):
    """After a soft timeout the caller's span ends as stale and links to the load that goes on."""
    cache = Cache(ttl=10, policy=Policy(grace=60, soft_timeout=1), telemetry=Telemetry(tracer_provider=spans.provider))
    gate = asyncio.Event()

    async def load():
        await gate.wait()
        return 2

    await cache.set("key", 1, ttl=10, grace=60)
    cache_sandbox.travel(11)
    spans.exporter.clear()
    caller = asyncio.create_task(cache.get_or_set("key", load))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cache_sandbox.travel(2)
    assert await caller == 1
    gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    call, late = spans.one("cache.get_or_set"), spans.one("cache.load")
    assert attributes(call)["cache.result"] == "stale"
    assert [link.context.span_id for link in call.links] == [late.context.span_id]


# Failures


async def test_a_failing_factory_marks_the_load_and_every_caller(cache, spans):
    """An error shows by its class alone, in the load's span and in those of all who get it."""

    async def load():
        await asyncio.sleep(0)
        raise LookupError(SECRET_VALUE)

    await asyncio.gather(*(cache.get_or_set("key", load) for _ in range(3)), return_exceptions=True)
    assert len(spans.all()) == 4
    for span in spans.all():
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == "LookupError"
        assert not span.events
        assert SECRET_VALUE not in str(span.status.description)
    assert {attributes(span)["cache.result"] for span in spans.named("cache.get_or_set")} == {"error"}


async def test_a_failure_behind_a_stale_value_marks_the_load(spans, cache_sandbox):
    """Who gets a stale value has not failed; the load has."""
    cache = Cache(ttl=10, policy=Policy(grace=60), telemetry=Telemetry(tracer_provider=spans.provider))
    await cache.set("key", 1)
    cache_sandbox.travel(11)

    async def load():
        raise ZeroDivisionError

    assert await cache.get_or_set("key", load) == 1
    assert spans.one("cache.load").status.status_code is StatusCode.ERROR
    assert spans.one("cache.get_or_set").status.status_code is StatusCode.UNSET


async def test_a_cancelled_caller_has_not_failed(cache, spans):
    """A cancelled call's span ends without a status."""
    caller = asyncio.create_task(cache.get_or_set("key", asyncio.Event().wait))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0)
    assert sorted(spans.names()) == ["cache.get_or_set", "cache.load"]
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}


async def test_a_hidden_failure_marks_the_call(spans):
    """A store that fails shows in the span of the call that got a miss instead."""

    class Broken:
        name = "broken"
        leases = None
        reports = None
        coherence = None
        shortcut = None
        heads = None
        health = None

        async def get(self, key):
            raise OSError(SECRET_VALUE)

    cache = Cache(Broken(), telemetry=Telemetry(tracer_provider=spans.provider))
    assert await cache.get("key") is None
    span = spans.one("cache.get")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "OSError"
    assert attributes(span)["cache.backend"] == "broken"


async def test_a_value_that_cannot_be_stored_marks_the_load(spans):
    """A load whose value cannot be kept returns it, and its span says that something went wrong."""
    cache = Cache("memory://?copy=true", telemetry=Telemetry(tracer_provider=spans.provider))

    class Uncopyable:
        def __deepcopy__(self, memo):
            raise TypeError(SECRET_VALUE)

    await cache.get_or_set("key", Uncopyable)
    assert attributes(spans.one("cache.load"))["error.type"] == "asynccache.errors.EncodeError"
    assert spans.one("cache.get_or_set").status.status_code is StatusCode.UNSET


# When none is made


async def test_an_unsampled_parent_makes_nothing(cache, spans, monkeypatch):
    """Under a parent that is not sampled no span is even started."""
    started = []
    monkeypatch.setattr(Tracing, "_get_tracer", lambda self: started.append(self))
    parent = NonRecordingSpan(SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.DEFAULT)))
    with trace.use_span(parent):
        await cache.get_or_set("key", load_one)
        await cache.get("key")
        await cache.memoize(load_one)()
    assert not started


async def test_a_sampled_remote_parent_makes_spans(cache, spans):
    """A parent in another process that is sampled has its children recorded."""
    parent = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    with trace.use_span(parent):
        await cache.get("key")
    assert spans.one("cache.get").parent.span_id == 2


async def test_off_makes_none(spans, monkeypatch):
    """``telemetry="off"`` makes no spans, whatever provider there is."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    cache = Cache(telemetry="off")
    await cache.get_or_set("key", load_one)
    await cache.get("key")
    assert not spans.all()


def test_a_provider_that_comes_after_the_cache_is_noticed():
    """In a process without an SDK nothing is made; once one is installed, the same cache makes spans."""
    run(
        """
        cache = Cache()
        memoized = cache.memoize(key="key")(load)
        asyncio.run(memoized())
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        asyncio.run(memoized())
        asyncio.run(cache.get("key"))
        asyncio.run(cache.get("other"))
        assert [span.name for span in exporter.get_finished_spans()] == ["cache.get_or_set", "cache.get", "cache.get"]
        """
    )


def test_a_coroutine_thrown_away_is_quiet():
    """A call that is closed half-way, in another context, ends its span and logs nothing."""
    run(
        """
        logging.basicConfig(level="ERROR")
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        cache = Cache()

        async def main():
            call = cache.get_or_set("key", asyncio.Event().wait)
            contextvars.copy_context().run(call.send, None)
            call.close()

        asyncio.run(main())
        assert "cache.get_or_set" in [span.name for span in exporter.get_finished_spans()]
        """
    )


def run(code: str) -> None:
    """Run the code in a process of its own, which must print nothing."""
    imports = """
        import asyncio, contextvars, logging
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from asynccache import Cache
        async def load(): return 1
    """
    program = textwrap.dedent(imports) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=15
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Privacy


async def test_nothing_tells_a_key_or_a_value(cache, spans, caplog):
    """By default no name, attribute, status, event or log shows a key, a value or an argument."""
    caplog.set_level(logging.INFO)
    memoized = cache.memoize(key="user:{number}")(load_by_number)

    async def fail():
        raise LookupError(SECRET_VALUE)

    number = 4_711_471_147_114_711  # which no trace id happens to contain
    await memoized(number)
    await memoized(number)
    await cache.set(SECRET_KEY, SECRET_VALUE, tags=[SECRET_KEY])
    await cache.get_many([SECRET_KEY])
    with suppress(LookupError):
        await cache.get_or_set("another " + SECRET_KEY, fail)
    await cache.invalidate_tags(SECRET_KEY)
    shown = caplog.text + "".join(span.to_json() for span in spans.all())
    assert str(number) not in shown
    assert SECRET_VALUE not in shown


async def load_by_number(number: int) -> str:
    return f"{SECRET_VALUE} {number}"


@pytest.mark.parametrize(
    ("telemetry", "shown"),
    [
        ({"keys": "raw"}, "user:7"),
        ({"keys": "template"}, "user:{number}"),
        ({"keys": "hash", "hash_secret": b"s"}, None),
    ],
    ids=["raw", "template", "hash"],
)
async def test_keys_are_shown_as_asked_for(spans, telemetry, shown):
    """Spans of a memoized call have the key, its template, or a digest of it."""
    cache = Cache(telemetry=Telemetry(tracer_provider=spans.provider, **telemetry))
    memoized = cache.memoize(key="user:{number}")(load_by_number)
    await memoized(7)
    await memoized(7)
    await memoized.refresh(7)
    keys = {attributes(span)["cache.key"] for span in spans.all()}
    assert len(keys) == 1
    (key,) = keys
    if shown is None:
        assert len(key) == 24
        assert "7" not in {key}
        other = Cache(telemetry=Telemetry(tracer_provider=spans.provider, keys="hash", hash_secret=b"other"))
        spans.exporter.clear()
        await other.get("user:7")
        assert attributes(spans.one("cache.get"))["cache.key"] != key
    else:
        assert key == shown


async def test_the_short_way_shows_keys_as_asked_for(spans, monkeypatch):
    """Under a global provider the key of a hit is shown too; a call without a template shows none."""
    raw, template = Cache(telemetry=Telemetry(keys="raw")), Cache(telemetry=Telemetry(keys="template"))
    for cache in (raw, template):
        await cache.set("key", 1)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    await raw.get("key")
    await template.get("key")
    await template.memoize(key="key")(load_one)()
    assert [attributes(span).get("cache.key") for span in spans.all()] == ["key", None, "key"]


@pytest.mark.parametrize(
    "options",
    [{"keys": "all"}, {"keys": "hash"}, {"hash_secret": "text"}, {"hash_secret": b"s" * 65}],
    ids=["unknown detail", "no secret", "text for bytes", "too long a secret"],
)
def test_wrong_settings_are_refused(options):
    """A detail that there is not, or a digest without a proper secret, is a ConfigError."""
    with pytest.raises(ConfigError):
        Telemetry(**options)
