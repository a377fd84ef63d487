"""The house: who may import whom, what is done in one place only, and how a module looks."""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "asynccache"

FLOORS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    (
        "the ground",
        ("errors", "clock", "duration", "entry", "policy", "load", "stats"),
    ),
    (
        "the contracts",
        ("backend", "eviction_policy", "serializer", "shape"),
    ),
    (
        "the pieces",
        (
            "codec", "keys", "metrics", "serializers", "serializers.json", "serializers.pickle", "serializers.plain",
            "telemetry", "eviction_policies", "eviction_policies.lru", "eviction_policies.s3fifo",
            "_alarm", "_background", "_breaker", "_canonical", "_compression", "_copying", "_detours", "_failures",
            "_flight", "_glob", "_key_template", "_layout", "_life", "_offloading", "_options", "_removal", "_seals",
            "_shapes", "_shaping", "_timer_wheel", "_weighing",
        ),
    ),
    (
        "the dispatcher, loading and the stores",
        (
            "backends", "backends.memory", "backends.file", "backends.file.backend", "backends.file.crew",
            "backends.file.desks", "backends.file.heads", "backends.file.leases", "backends.file.place",
            "backends.file.table", "backends.file.upkeep",
            "backends.redis", "backends.redis.address", "backends.redis.backend", "backends.redis.condition",
            "backends.redis.conditional", "backends.redis.counters", "backends.redis.forks", "backends.redis.greeting",
            "backends.redis.heads", "backends.redis.intents", "backends.redis.large", "backends.redis.leases",
            "backends.redis.link", "backends.redis.many", "backends.redis.patience", "backends.redis.patterns",
            "backends.redis.pieces", "backends.redis.plain", "backends.redis.pool", "backends.redis.raw",
            "backends.redis.reading", "backends.redis.repayment", "backends.redis.replies", "backends.redis.scripts",
            "backends.redis.sentinels", "backends.redis.shortcut", "backends.redis.slots", "backends.redis.times",
            "backends.redis.tracker", "backends.redis.trips", "backends.redis.wire", "backends.redis.writing",
            "_arguments", "_bulk", "_claims", "_copies", "_dispatcher", "_flights", "_keeping", "_listing", "_loading",
            "_locks", "_memoize", "_opening", "_prefixed", "_seats", "_short_way", "_stored", "_tags", "_typed_cache",
            "_urls",
        ),
    ),
    ("what users hold", ("cache", "caches")),
    ("the public names", ("",)),
    (
        "what is built on them",
        ("testing", "testing.clock", "testing.conformance", "testing.faulty", "testing.sandboxes"),
    ),
    ("the outermost doors", ("pytest_plugin",)),
)  # fmt: skip
"""Every module once, on its floor, from the bottom; a new module is added here."""

DOORS: Final[Mapping[str, Mapping[str, str]]] = {
    "time": {
        "clock": "the door",
    },
    "spans": {
        "telemetry": "the door",
    },
    "tasks": {
        "_background": "the door",
        "testing.conformance": "a suite asks a backend many things at once",
    },
    "failures": {
        "_failures:Failures.attempt": "the failure policy",
        "backends.redis.greeting:_who": "who provides credentials may raise anything, and say a password",
        "_failures:Failures._tell": "the function on_error harms nobody",
        "backends.file.crew:_run": "a thread that ends by a failure would leave its callers waiting for ever",
        "serializers.pickle:PickleSerializer.dumps": "a class says by itself how it is pickled, and may raise anything",
        "serializers.pickle:PickleSerializer.loads": "what a pickle runs may raise anything",
        "_shaping:_dumped": "a class checks its fields by itself, and may raise anything",
        "_shaping:_loaded": "a class checks its fields by itself, and may raise anything",
        "_copying:own_copy": "a class decides by itself how it is copied, and may raise anything",
        "codec:Codec.plain_value": "a serializer may raise anything: the long way does, where it is taken",
        "codec:Codec.encode_fresh": "a serializer may raise anything: the long way does, where it is taken",
        "_flight:own_exception": "an exception that cannot be copied is shared",
        "_removal:Removals.tell": "a listener harms nobody",
        "_loading:Loader._fly": "what a factory raises is handed to those who wait",
        "_bulk:BulkLoader._fly_many": "what a factory raises is handed to those who wait",
    },
}
"""What is done in one place only: where, and the reason."""

LONGEST: Final = 450

_VAGUE: Final = re.compile(r"_*(utils?|utilities|helpers?|commons?|misc|base|bases|managers?|tools|stuff|core|lib)")
_CLOCK_READS: Final = frozenset(
    f"{name}{unit}"
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
    for unit in ("", "_ns")
)
_SPAN_MAKERS: Final = frozenset({"start_span", "start_as_current_span", "get_tracer", "use_span"})
_TASK_MAKERS: Final = frozenset(
    {"create_task", "ensure_future", "Task", "TaskGroup", "gather", "wait_for", "shield", "run_coroutine_threadsafe"}
)


@cache
def modules() -> Mapping[str, Path]:
    """Every module's file by its name without the package's: ``""`` is the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imports_in(tree: ast.AST, known: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """The modules of the package that a tree imports, wherever it does so, with the line: also those that it names in
    a text like ``asynccache.x:y``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: an import says the whole name of its module"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("asynccache.") in known else str(node.module) for name in whole]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"(asynccache(?:\.\w+)*):\w+", node.value)
            names = [named[1]] if named else []
        else:
            continue
        for name in names:
            if name == "asynccache" or name.startswith("asynccache."):
                yield name.removeprefix("asynccache").removeprefix("."), node.lineno


def upward(importers: Mapping[str, ast.AST], floors: Mapping[str, int]) -> list[str]:
    """The imports that point to a higher floor."""
    return [
        f"{module or '__init__'}:{line} imports {imported or 'the public names'}, which stands above it"
        for module, tree in importers.items()
        for imported, line in imports_in(tree, floors)
        if floors.get(imported, 0) > floors.get(module, len(FLOORS))  # one without a floor fails another test
    ]


def uses(tree: ast.AST, kind: str) -> Iterator[tuple[str, int]]:
    """Where a tree goes through a door: the qualified name of the function that does, and the line."""

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, int]]:
        if _goes_through(node, kind):
            yield inside, getattr(node, "lineno", 0)
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from walk(child, f"{inside}.{child.name}".lstrip(".") if named else inside)

    return walk(tree, "")


def _goes_through(node: ast.AST, kind: str) -> bool:
    if isinstance(node, ast.ExceptHandler):
        return kind == "failures" and _catches_all(node)
    if isinstance(node, ast.Call) and kind == "failures":
        return _name(node.func) == "suppress" and any(_name(each) in _ALL for each in node.args)
    if isinstance(node, ast.ClassDef) and kind == "tasks":
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        return any(_name(base) == "Task" for base in bases)
    if isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
        return {
            "time": node.module == "time" and bool(names & _CLOCK_READS),
            "spans": str(node.module).startswith("opentelemetry.trace") and bool(names & (_SPAN_MAKERS | {"Tracer"})),
            "tasks": str(node.module).startswith("asyncio") and bool(names & _TASK_MAKERS),
        }.get(kind, False)
    if not isinstance(node, ast.Attribute):
        return False
    owner, name = _name(node.value), node.attr
    if kind == "time":
        of_loop = name == "time" and (owner.endswith("loop") or owner == "get_running_loop")
        of_date = name in ("now", "utcnow", "today") and owner in ("datetime", "date")
        return (owner == "time" and name in _CLOCK_READS) or of_loop or of_date
    if kind == "spans":
        return name in _SPAN_MAKERS
    # A type such as asyncio.Task[None] makes no task: it is not called.
    return kind == "tasks" and name in _TASK_MAKERS - {"Task"}


_ALL: Final = frozenset({"Exception", "BaseException"})


def _catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes any failure and does not pass it on as it came."""
    caught = [handler.type] if not isinstance(handler.type, ast.Tuple) else handler.type.elts
    takes_all = any(each is None or _name(each) in _ALL for each in caught)
    last = handler.body[-1]
    return takes_all and not (isinstance(last, ast.Raise) and last.exc is None)


def _name(node: ast.AST) -> str:
    """The last part of what an expression calls itself."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def task_calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Where a tree makes a task by calling the class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == "Task":
            yield "", node.lineno


def floors() -> dict[str, int]:
    """Each module's floor."""
    return {module: number for number, (_, names) in enumerate(FLOORS) for module in names}


def test_every_module_stands_on_one_floor() -> None:
    """A module that is not in the plan, twice in it, or only in the plan, fails."""
    planned = [module for _, names in FLOORS for module in names]
    assert len(planned) == len(set(planned)), "a module is listed twice"
    assert sorted(planned) == sorted(modules())


def test_no_import_points_up() -> None:
    """Whoever imports stands at least as high as what it imports, also inside functions and under TYPE_CHECKING."""
    assert upward({module: tree_of(module) for module in modules()}, floors()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from asynccache.cache import Cache",
        "import asynccache.cache",
        "from asynccache import cache",
        "def f():\n    from asynccache import Cache",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from asynccache.testing.clock import TravellingClock",
        "import importlib\nimportlib.import_module('asynccache.testing:sandbox'.partition(':')[0])",
    ],
)
def test_an_import_that_points_up_is_seen(source: str) -> None:
    """The walk sees an import of a higher floor in whatever form it comes."""
    assert len(upward({"policy": ast.parse(source)}, floors())) == 1


def test_no_circle_on_a_floor() -> None:
    """Modules of one floor may lean on each other, not in a circle."""
    graph = {
        module: {name for name, _ in imports_in(tree_of(module), modules()) if name != module} for module in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("kind", ["time", "spans", "tasks"])
def test_one_door_each(kind: str) -> None:
    """Time is read, spans are opened and tasks are made in one module each."""
    doors = DOORS[kind]
    found = {
        module: [line for _, line in uses(tree_of(module), kind)]
        + ([line for _, line in task_calls(tree_of(module))] if kind == "tasks" else [])
        for module in modules()
    }
    used = {module: lines for module, lines in found.items() if lines}
    assert {module: lines for module, lines in used.items() if module not in doors} == {}
    assert set(used) == set(doors), "a door that nobody goes through is struck from the list"


def test_failures_are_taken_where_it_is_said_only() -> None:
    """``except Exception`` and ``except BaseException`` that do not raise again stand only where the list says why."""
    found = {f"{module}:{place}" for module in modules() for place, _ in uses(tree_of(module), "failures")}
    assert found == set(DOORS["failures"])


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("time", "import time\ntime.monotonic()"),
        ("time", "import time\nread = time.perf_counter"),
        ("time", "from time import time"),
        ("time", "import asyncio\nasyncio.get_running_loop().time()"),
        ("time", "def f(self):\n    return self._loop.time()"),
        ("time", "import datetime\ndatetime.datetime.now(datetime.UTC)"),
        ("spans", "def f(tracer):\n    return tracer.start_span('x')"),
        ("spans", "from opentelemetry.trace import use_span"),
        ("tasks", "import asyncio\nasyncio.create_task(f())"),
        ("tasks", "from asyncio import TaskGroup"),
        ("tasks", "def f(loop):\n    loop.create_task(g())"),
        ("failures", "try:\n    f()\nexcept Exception:\n    pass"),
        ("failures", "try:\n    f()\nexcept (OSError, BaseException) as error:\n    print(error)"),
        ("failures", "try:\n    f()\nexcept:\n    pass"),
        ("failures", "import contextlib\nwith contextlib.suppress(Exception):\n    f()"),
    ],
)
def test_a_side_door_is_seen(kind: str, source: str) -> None:
    """The search finds whoever goes another way than through the door."""
    assert len(list(uses(ast.parse(source), kind))) == 1


def test_cancellation_is_never_swallowed_by_a_list() -> None:
    """``CancelledError`` is caught only by handlers that can raise it again."""
    for module in modules():
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(_name(each) == "CancelledError" for each in caught):
                    raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                    assert raises, f"{module}:{node.lineno} swallows a cancellation"


def test_modules_are_short() -> None:
    """No module is longer than a reader's patience."""
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}


def test_names_say_what_is_inside() -> None:
    """No module has a name under which anything could be put."""
    assert [module for module in modules() if _VAGUE.fullmatch(module.rpartition(".")[2])] == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_introduces_itself(module: str) -> None:
    """A module opens with one sentence on one line, and has a sorted ``__all__`` of things that exist."""
    tree = tree_of(module)
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert first[:1].isupper()
    assert first.endswith(".")
    assert ". " not in first, "one sentence"
    if not tree.body[1:]:
        return  # a package that only holds others
    public = importlib.import_module(f"asynccache.{module}".rstrip(".")).__all__
    assert list(public) == sorted(set(public), key=_case_then_name)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_names_what_exists(module: str) -> None:
    """Every name in ``__all__`` can be imported."""
    imported = importlib.import_module(f"asynccache.{module}".rstrip("."))
    assert [name for name in getattr(imported, "__all__", ()) if not hasattr(imported, name)] == []


def _case_then_name(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order that the linter keeps."""
    bare = name.lstrip("_")
    return (0 if bare.isupper() else 1 if bare[:1].isupper() else 2, name)


def test_no_file_knows_a_machine() -> None:
    """No file names a path of somebody's machine."""
    machine = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|opt|mnt|srv)/\w|\b[A-Z]:\\\w")
    folders = [ROOT / folder for folder in ("asynccache", "tests", "examples", "benchmarks")]
    files = [path for folder in folders for kind in ("*.py", "*.md", "*.toml") for path in folder.rglob(kind)]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("Makefile"), *ROOT.glob(".ci/*")]
    assert len(files) > 50
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert found == []
