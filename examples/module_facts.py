"""The slow source of the examples: facts about a standard library module, worked out from its text.

Everything is really computed, every time: the text is read, tokenized, parsed and walked. That keeps a core busy for 20
to 300 ms, in Python: threads would only take turns with the event loop, so a pool of processes does the work.
"""

import ast
import asyncio
import io
import multiprocessing
import os
import signal
import sysconfig
import threading
import tokenize
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self, TypeAlias

__all__ = ["BUSY_MODULES", "ModuleFacts", "ModuleSource", "NamedNumber", "analyse", "module_paths"]

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)

BUSY_MODULES = (
    "functools", "asyncio.tasks", "logging", "random", "dataclasses", "collections", "http.client", "threading",
    "subprocess", "enum", "typing", "tempfile", "urllib.parse", "socket", "ssl", "asyncio.base_events", "shutil",
    "inspect", "ast", "statistics", "argparse", "asyncio.streams", "configparser", "zipfile", "traceback",
    "unittest.mock", "ipaddress", "pickle", "smtplib", "email.message", "uuid", "http.server", "logging.handlers",
    "urllib.request", "tarfile", "optparse", "multiprocessing.pool", "asyncio.selector_events", "http.cookiejar",
    "difflib", "platform", "gettext", "locale", "ftplib", "imaplib", "doctest", "pdb", "mailbox", "fractions",
    "importlib._bootstrap",
)  # fmt: skip
"""Modules that take a while, the most popular first; those in every Python that the project supports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedNumber:
    """Something in a module, and its size in whatever is being counted."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """What the text of one module says about it."""

    module: str
    lines: int
    code_lines: int
    functions: int
    coroutines: int
    classes: int
    imports: list[str]
    unused_imports: list[str]
    longest_function: NamedNumber | None
    most_complex_functions: list[NamedNumber]
    mean_complexity: float
    most_called: list[NamedNumber]
    calls_inside: int
    recursive_functions: list[str]
    never_called_inside: int
    deepest_nesting: int
    undocumented: int
    alike_functions: int
    distinct_tokens: int


@cache
def module_paths() -> dict[str, Path]:
    """Where the text of each module of the standard library is: a name that is not here is not a module."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out and name.isidentifier()]
        package = Path(folder).relative_to(root).parts
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix == ".py" and stem.isidentifier():
                found[".".join(package if stem == "__init__" else (*package, stem))] = Path(folder, file)
    found.pop("", None)
    return found


def analyse(name: str) -> ModuleFacts:
    """The facts about one module, computed from nothing.

    Raises:
        KeyError: The standard library has no such module in Python.
    """
    text = _text(module_paths()[name])
    tree = ast.parse(text)
    functions = dict(_functions(tree, ""))
    complexity = {path: _complexity(function) for path, function in functions.items()}
    lengths = {path: (node.end_lineno or node.lineno) - node.lineno + 1 for path, node in functions.items()}
    calls = _calls(functions)
    called = Counter(callee for callees in calls.values() for callee in callees.elements())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    imports, unused = _imports(tree)
    code_lines, distinct_tokens = _tokens(text)
    bodies = Counter(ast.dump(ast.Module(function.body, [])) for function in functions.values())
    longest = max(lengths, key=lambda path: lengths[path], default=None)
    return ModuleFacts(
        module=name,
        lines=text.count("\n"),
        code_lines=code_lines,
        functions=len(functions),
        coroutines=sum(isinstance(function, ast.AsyncFunctionDef) for function in functions.values()),
        classes=len(classes),
        imports=imports,
        unused_imports=unused,
        longest_function=None if longest is None else NamedNumber(name=longest, count=lengths[longest]),
        most_complex_functions=_largest(Counter(complexity)),
        mean_complexity=round(sum(complexity.values()) / len(complexity), 2) if complexity else 0.0,
        most_called=_largest(called),
        calls_inside=called.total(),
        recursive_functions=sorted(_recursive(calls))[:10],
        never_called_inside=sum(path not in called for path in functions),
        deepest_nesting=_nesting(tree),
        undocumented=sum(ast.get_docstring(node) is None for node in (*functions.values(), *classes)),
        alike_functions=sum(count for count in bodies.values() if count > 1),
        distinct_tokens=distinct_tokens,
    )


def _text(path: Path) -> str:
    """The text of a Python file, in the encoding that it declares."""
    with tokenize.open(path) as file:
        return file.read()


def _largest(counts: Counter[str]) -> list[NamedNumber]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [NamedNumber(name=name, count=count) for name, count in ordered[:5]]


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    """Every function, with the path to it: ``Class.method``, ``function.inner``."""
    for child in ast.iter_child_nodes(node):
        path = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            path = f"{prefix}.{child.name}" if prefix else child.name
            if not isinstance(child, ast.ClassDef):
                yield path, child
        yield from _functions(child, path)


def _complexity(function: Function) -> int:
    """McCabe's cyclomatic complexity: the number of decisions, and one."""
    decisions = 1
    for node in ast.walk(function):
        match node:
            case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler() | ast.Assert():
                decisions += 1
            case ast.BoolOp(values=values):
                decisions += len(values) - 1
            case ast.comprehension(ifs=ifs):
                decisions += 1 + len(ifs)
            case ast.Match(cases=cases):
                decisions += len(cases)
    return decisions


def _calls(functions: dict[str, Function]) -> dict[str, Counter[str]]:
    """The call graph, as far as names tell: who calls which function of the module, and how often."""
    by_name: dict[str, list[str]] = {}
    for path in functions:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    graph = {}
    for path, function in functions.items():
        callees: Counter[str] = Counter()
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Name(id=name)):
                    callees.update(target for target in by_name.get(name, ()) if "." not in target)
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name)):
                    owner = path.rpartition(".")[0]
                    callees.update(target for target in by_name.get(name, ()) if target == f"{owner}.{name}")
        graph[path] = callees
    return graph


def _recursive(graph: dict[str, Counter[str]]) -> set[str]:
    """The functions that can reach themselves, directly or through others."""
    found = set()
    for start in graph:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead and start not in seen:
            here = ahead.pop()
            if here not in seen:
                seen.add(here)
                ahead.extend(graph[here])
        if start in seen:
            found.add(start)
    return found


def _imports(tree: ast.Module) -> tuple[list[str], list[str]]:
    """The modules imported, and the names bound by an import at the top that nothing uses."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    bound = {
        (alias.asname or alias.name).partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    exported = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted(modules), sorted(bound - used - exported - {"*"})


def _nesting(node: ast.AST, depth: int = 0) -> int:
    """How many blocks the innermost statement stands in."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        deepest = max(deepest, _nesting(child, depth + isinstance(child, _BLOCKS)))
    return deepest


def _tokens(text: str) -> tuple[int, int]:
    """The lines with code on them, and the distinct words of the text."""
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    words: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
            words.add(token.string)
    return len(lines), len(words)


class ModuleSource:
    """The facts, computed anew at every call by a pool of processes that lives from ``async with`` to its end.

    Attributes:
        computed: How often each module's facts were computed.
    """

    def __init__(self, workers: int | None = None) -> None:
        """A source with one worker process for each core, unless told otherwise. Starts nothing yet."""
        self.computed: Counter[str] = Counter()
        self._workers = workers or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        # "spawn": a fork would copy the server's threads' locks and its sockets
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_end_with_the_server)
        await asyncio.gather(*(self._run("this") for _ in range(self._workers)))  # all are up before the first request
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.to_thread(partial(pool.shutdown, cancel_futures=True))

    async def facts(self, name: str) -> ModuleFacts:
        """The facts about a module.

        Raises:
            KeyError: There is no such module.
        """
        self.computed[name] += 1
        return await self._run(name)

    async def _run(self, name: str) -> ModuleFacts:
        if self._pool is None:
            raise RuntimeError("the source works inside its own `async with` only")
        return await asyncio.get_running_loop().run_in_executor(self._pool, analyse, name)


def _end_with_the_server() -> None:
    """Make a worker end when its server does, however that ends; Ctrl-C is the server's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = multiprocessing.parent_process()

    def watch() -> None:
        if server is not None:
            wait([server.sentinel])
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
