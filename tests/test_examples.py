"""The example applications answer as they promise, and the demonstration ends by itself."""

import asyncio
import importlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from aiohttp import ClientSession, web

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))

# whether this checkout is installed or not, the demonstrations are to run on it
ENVIRONMENT = {
    **os.environ,
    "FORCE_COLOR": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(EXAMPLES.parent)])),
}
ENVIRONMENT.pop("PYTHONASYNCIODEBUG", None)  # it halves the speed, and says so on stderr


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that imports an example by its name; none of them stays imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


class GatedSource:
    """A source whose facts wait for a gate, and come from this process."""

    def __init__(self, module_facts: ModuleType) -> None:
        self.inner = module_facts.ModuleSource()
        self.analyse = module_facts.analyse
        self.computed = self.inner.computed
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.inside = False

    async def __aenter__(self) -> "GatedSource":
        self.inside = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inside = False

    async def facts(self, name: str) -> Any:
        assert self.inside
        self.computed[name] += 1
        self.asked.set()
        await self.gate.wait()
        return self.analyse(name)


@asynccontextmanager
async def fastapi_client(example: Any, source: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = example("fastapi_app").create_app(source)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://example") as client,
    ):
        yield client


@asynccontextmanager
async def aiohttp_client(example: Any, source: Any) -> AsyncIterator[ClientSession]:
    runner = web.AppRunner(example("aiohttp_app").create_app(source))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with ClientSession(f"http://{host}:{port}") as client:
            yield client
    finally:
        await runner.cleanup()


# The facts


def test_facts_are_what_the_text_says(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number about a module can be counted by hand in its text."""
    module_facts = example("module_facts")
    text = '''"""Small."""
import os
import sys
from json import loads

class Box:
    """Holds."""

    def get(self, deep):
        if deep and os.sep:
            for _ in range(3):
                self.get(None)
        return helper(deep)

def helper(value):
    return [item for item in value if item]  # a comment

async def idle():
    return helper(())
'''
    path = tmp_path / "small.py"
    path.write_text(text)
    monkeypatch.setattr(module_facts, "module_paths", lambda: {"small": path})
    facts = module_facts.analyse("small")
    assert (facts.module, facts.lines, facts.code_lines) == ("small", 19, 15)
    assert (facts.functions, facts.coroutines, facts.classes) == (3, 1, 1)
    assert facts.imports == ["json", "os", "sys"]
    assert facts.unused_imports == ["loads", "sys"]
    assert (facts.longest_function.name, facts.longest_function.count) == ("Box.get", 5)
    assert [(fact.name, fact.count) for fact in facts.most_complex_functions] == [
        ("Box.get", 4),
        ("helper", 3),
        ("idle", 1),
    ]
    assert facts.mean_complexity == 2.67
    assert [(fact.name, fact.count) for fact in facts.most_called] == [("helper", 2), ("Box.get", 1)]
    assert facts.calls_inside == 3
    assert facts.recursive_functions == ["Box.get"]
    assert facts.never_called_inside == 1
    assert facts.deepest_nesting == 2
    assert facts.undocumented == 3
    assert facts.alike_functions == 0


def test_every_busy_module_is_in_this_python(example: Any) -> None:
    """The modules that the crowd asks for exist, each once, and a name that is no module does not."""
    module_facts = example("module_facts")
    assert set(module_facts.BUSY_MODULES) <= set(module_facts.module_paths())
    assert len(set(module_facts.BUSY_MODULES)) == len(module_facts.BUSY_MODULES)
    assert not {"", "sys", "../json", "json/decoder", "test.support"} & set(module_facts.module_paths())


async def test_source_counts_every_computation_and_ends_its_workers(example: Any) -> None:
    """The source computes anew at each call, in processes that are gone when it is left."""
    module_facts = example("module_facts")
    async with module_facts.ModuleSource(workers=1) as source:
        twice = [await source.facts("uuid"), await source.facts("uuid")]
        with pytest.raises(KeyError):
            await source.facts("no.such.module")
    assert twice == [module_facts.analyse("uuid")] * 2
    assert source.computed == {"uuid": 2, "no.such.module": 1}
    with pytest.raises(RuntimeError, match="async with"):
        await source.facts("uuid")


# The FastAPI application


async def test_fastapi_crowd_computes_once(example: Any) -> None:
    """Fifty requests at once for a module not asked for before cause one computation and get the same answer."""
    source = GatedSource(example("module_facts"))
    source.gate.clear()
    async with fastapi_client(example, source) as client:
        crowd = [asyncio.create_task(client.get("/modules/uuid")) for _ in range(50)]
        await source.asked.wait()
        source.gate.set()
        answers = await asyncio.gather(*crowd)
        stats = (await client.get("/stats")).json()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["module"] == "uuid"
    assert stats["computed"] == {"uuid": 1}
    assert (stats["cache"]["loads"], stats["cache"]["entries"]) == (1, 1)
    assert stats["cache"]["coalesced"] + stats["cache"]["hits"] == 49


async def test_fastapi_refresh_and_invalidation_compute_again(example: Any) -> None:
    """A refresh computes now; a deletion, of one or of all, makes the next request compute."""
    source = GatedSource(example("module_facts"))
    async with fastapi_client(example, source) as client:
        for _ in range(2):
            assert (await client.get("/modules/uuid")).status_code == 200
        assert source.computed["uuid"] == 1
        assert (await client.post("/modules/uuid/refresh")).json()["module"] == "uuid"
        assert source.computed["uuid"] == 2
        for path in ("/modules/uuid", "/modules"):
            before = source.computed["uuid"]
            assert (await client.delete(path)).status_code == 204
            assert source.computed["uuid"] == before
            await client.get("/modules/uuid")
            await client.get("/modules/uuid")
            assert source.computed["uuid"] == before + 1


async def test_fastapi_unknown_module_is_not_found(example: Any) -> None:
    """A name that is no module is answered with 404, by every method, and never reaches the source or the cache."""
    source = GatedSource(example("module_facts"))
    async with fastapi_client(example, source) as client:
        answers = [
            await client.get("/modules/no.such.module"),
            await client.post("/modules/no.such.module/refresh"),
            await client.delete("/modules/no.such.module"),
        ]
        stats = (await client.get("/stats")).json()
        assert (await client.get("/spans")).json() == []
    assert [answer.status_code for answer in answers] == [404] * 3
    assert "no.such.module" in answers[0].json()["detail"]
    assert not source.computed
    assert stats["cache"]["misses"] == 0


async def test_fastapi_applications_are_independent(example: Any) -> None:
    """Leaving the application leaves its source, and a second application starts with an empty cache."""
    source = GatedSource(example("module_facts"))
    for round_number in (1, 2):
        async with fastapi_client(example, source) as client:
            await client.get("/modules/uuid")
            assert source.computed["uuid"] == round_number
        assert not source.inside


# The aiohttp application


async def test_aiohttp_crowd_computes_once_over_real_sockets(example: Any) -> None:
    """Fifty requests on connections of their own cause one computation and get the same answer."""
    source = GatedSource(example("module_facts"))
    source.gate.clear()
    async with aiohttp_client(example, source) as client:

        async def ask() -> tuple[int, str]:
            async with client.get("/modules/uuid") as answer:
                return answer.status, await answer.text()

        async def stats() -> Any:
            async with client.get("/stats") as answer:
                return await answer.json()

        crowd = [asyncio.create_task(ask()) for _ in range(50)]
        await source.asked.wait()
        source.gate.set()
        answers = set(await asyncio.gather(*crowd))
        counted = (await stats())["cache"]
    assert len(answers) == 1
    assert answers.pop()[0] == 200
    assert source.computed == {"uuid": 1}
    assert counted["loads"] == 1
    assert counted["coalesced"] + counted["hits"] == 49
    assert not source.inside


async def test_aiohttp_refresh_invalidation_and_unknown_modules(example: Any) -> None:
    """The aiohttp application refreshes, forgets and denies as the FastAPI one does."""
    source = GatedSource(example("module_facts"))
    async with aiohttp_client(example, source) as client:

        async def status(method: str, path: str) -> int:
            async with client.request(method, path) as answer:
                await answer.read()
                return answer.status

        assert [await status("GET", "/modules/uuid") for _ in range(2)] == [200, 200]
        assert source.computed == {"uuid": 1}
        assert await status("POST", "/modules/uuid/refresh") == 200
        assert source.computed == {"uuid": 2}
        for count, path in ((3, "/modules/uuid"), (4, "/modules")):
            assert await status("DELETE", path) == 204
            assert [await status("GET", "/modules/uuid") for _ in range(2)] == [200, 200]
            assert source.computed == {"uuid": count}
        assert await status("GET", "/modules/no.such.module") == 404
        assert await status("GET", "/spans") == 200
    assert set(source.computed) == {"uuid"}


# The crowd


async def test_crowd_counts_every_failure(example: Any) -> None:
    """An answer other than 200 and a connection cut in the middle both count as failed requests."""
    crowd = example("crowd")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                path = request.split()[1]
                if path == b"/cut":
                    break
                status = b"200 OK" if path == b"/good" else b"503 Away"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\nab")
                await writer.drain()
                writer.write(b"cd")
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        good = await crowd.drive(address, [crowd.Ask("/good")] * 9, connections=4)
        mixed = await crowd.drive(address, [crowd.Ask("/good"), crowd.Ask("/bad")] * 3, connections=2)
        cut = await crowd.drive(address, [crowd.Ask("/good"), crowd.Ask("/cut")], connections=1)
    assert (good.failed, len(good.latencies), good.statuses) == (0, 9, {200: 9})
    assert 0 < good.percentile(0.5) <= good.percentile(0.99) <= good.seconds
    assert (mixed.failed, mixed.statuses) == (3, {200: 3, 503: 3})
    assert (cut.failed, cut.broken, len(cut.latencies)) == (1, 1, 1)


def test_crowd_is_skewed_and_the_same_for_a_seed(example: Any) -> None:
    """The first names are asked for most, and a seed always brings the same requests."""
    zipf = example("crowd").zipf
    names = [str(number) for number in range(20)]
    drawn = zipf(names, 5000, skew=1.0, seed=3)
    assert drawn == zipf(names, 5000, skew=1.0, seed=3) != zipf(names, 5000, skew=1.0, seed=4)
    assert drawn.count("0") > 1.5 * drawn.count("1") > 1.5 * drawn.count("5") > 0


# The demonstration


DEMO = [sys.executable, str(EXAMPLES / "demo.py")]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_demo_shows_its_table_and_a_trace() -> None:
    """A short demonstration ends with 0, shows figures and spans, and writes no control codes to a pipe."""
    ended = subprocess.run(
        [*DEMO, "--connections", "20", "--requests-off", "20", "--requests", "300"],
        capture_output=True,
        timeout=100,
        check=False,
        env=ENVIRONMENT,
    )
    shown = ended.stdout.decode()
    assert ended.returncode == 0, shown + ended.stderr.decode()
    assert ended.stderr == b""
    assert "\x1b" not in shown
    assert "\r" not in shown
    for expected in (
        "requests per second",
        "p50",
        "p99",
        "loads of the source",
        "waited",
        "hit ratio",
        "ASYNCCACHE_DISABLE",
        "killed and started again",
        "nor again after the restart",
    ):
        assert expected in shown
    for span in ("GET /modules/{name}", "cache.get_or_set", "cache.load", "coalesced", "linked to the load above"):
        assert span in shown


@pytest.mark.slow
def test_demo_stops_its_server_when_interrupted() -> None:
    """Ctrl-C ends the demonstration in order, with its server gone before it."""
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as running:
        assert running.stdout is not None
        line = running.stdout.readline().decode()  # the server is up, and the crowd about to start
        host, _, port = line.partition("http://")[2].split()[0].rpartition(":")
        assert httpx.get(f"http://{host}:{port}/stats", timeout=30).status_code == 200
        running.send_signal(signal.SIGINT)
        shown, complained = running.communicate(timeout=30)
    assert running.returncode == 130, complained.decode()
    assert b"stopped" in shown
    # A signal between a callback's look at a future and its result shows as "invalid state" in the client's library.
    assert complained == b"" or b"invalid state" in complained, complained.decode()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{host}:{port}/stats")


def test_demo_fails_when_a_module_was_computed_twice_or_a_request_failed(example: Any) -> None:
    """The verdict names what must not happen: a second computation, a failed request, no computation at all."""
    demo_module, crowd = example("demo"), example("crowd")

    def phase(computed: dict[str, int], statuses: dict[int, int]) -> Any:
        return demo_module.Phase(crowd.Outcome(statuses=Counter(statuses)), Counter(computed), {}, [])

    def act(before: dict[str, int], after: dict[str, int], statuses: dict[int, int]) -> Any:
        return demo_module.Restart(Counter(before), Counter(after), 1.0, crowd.Outcome(statuses=Counter(statuses)))

    off, on, well = phase({"ast": 5}, {200: 5}), phase({"ast": 1}, {200: 5}), act({"ast": 1}, {}, {200: 1})
    assert "{'ast': 1} after it" in demo_module.complaints(off, on, act({"ast": 1}, {"ast": 1}, {200: 1}))[0]
    assert "before the restart" in demo_module.complaints(off, on, act({}, {}, {200: 1}))[0]
    assert "after the restart" in demo_module.complaints(off, on, act({"ast": 1}, {}, {500: 1}))[0]
    assert demo_module.complaints(off, on, well) == []
    assert "'ast': 2" in demo_module.complaints(off, phase({"ast": 2, "csv": 1}, {200: 5}), well)[0]
    assert "1 requests failed" in demo_module.complaints(off, phase({"ast": 1}, {200: 4, 500: 1}), well)[0]
    failed = phase({"ast": 5}, {404: 1})
    assert "1 requests failed" in demo_module.complaints(failed, phase({"ast": 1}, {200: 4}), well)[0]
    assert len(demo_module.complaints(off, phase({}, {200: 5}), well)) == 1
