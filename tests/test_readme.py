"""The README: each of its code blocks runs, and what it says about this repository is so."""

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from stores import emptied

import asynccache
from asynccache.testing import sandbox

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"

_SHOWN: Final = re.compile(r"  # -> (.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        section: The heading of the second level that it stands under.
        language: The word after the fence.
        line: The number of its first line.
        text: What is inside.
    """

    section: str
    language: str
    line: int
    text: str


def blocks_of(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text, in order."""
    section, language, begun = "", "", 0
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if begun:
                yield Block(section, language, begun, "\n".join(inside) + "\n")
                begun, inside = 0, []
            else:
                begun, language = number + 1, line[3:].strip()
        elif begun:
            inside.append(line)
        elif line.startswith("## "):
            section = line[3:].strip()
    assert not begun, f"README.md:{begun}: this block never ends"


BLOCKS: Final = list(blocks_of(README.read_text(encoding="utf-8")))


class _Showing(ast.NodeTransformer):
    """Puts a check around each expression whose line ends in ``# -> what it is``."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self.checked: set[int] = set()

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        number = node.end_lineno or node.lineno
        shown = _SHOWN.search(self._lines[number - 1])
        if shown is None:
            return node
        self.checked.add(number)
        wanted = [ast.Constant(shown[1]), ast.Constant(number)]
        call = ast.Call(ast.Name("_shows", ast.Load()), [node.value, *wanted], [])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(ast.copy_location(call, node)), node))


def _shows(value: object, wanted: str, line: int) -> None:
    assert repr(value) == wanted, f"README.md:{line}: shows {wanted}, and it is {value!r}"


async def run(blocks: Sequence[Block]) -> dict[str, Any]:
    """Run Python blocks one after the other in one namespace, their tests too; an error's traceback has the README's
    line numbers."""
    space: dict[str, Any] = {"__name__": "readme", "_shows": _shows}
    for block in blocks:
        source = "\n" * (block.line - 1) + block.text
        lines = source.splitlines()
        showing = _Showing(lines)
        tree = showing.visit(ast.parse(source, str(README)))
        promised = {number for number, line in enumerate(lines, 1) if _SHOWN.search(line)}
        assert promised == showing.checked, f"README.md:{sorted(promised - showing.checked)}: shows what is not checked"
        before = set(space)
        code = compile(tree, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        try:
            running = eval(code, space)
            if inspect.isawaitable(running):
                await running
            for name in sorted(set(space) - before):
                if name.startswith("test_"):
                    with sandbox() as box:
                        await space[name](box)
        except Exception as error:
            error.add_note(f"README.md:{_line_of(error) or block.line}: in the block at line {block.line}")
            raise
    return space


def _line_of(error: BaseException) -> int:
    """The README's line at which an exception passed through it last."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(README):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else 0


PYTHON: Final = {
    section: [block for block in BLOCKS if block.section == section and block.language == "python"]
    for section in dict.fromkeys(block.section for block in BLOCKS if block.language == "python")
}


@pytest.mark.parametrize("section", PYTHON)
async def test_python_blocks_run(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a section run in order, and each ``# ->`` shows what the expression is."""
    monkeypatch.chdir(tmp_path)  # what an example writes stays here
    if section == "Redis":
        monkeypatch.setenv("REDIS_URL", emptied())
    for toml in (block for block in BLOCKS if block.section == section and block.language == "toml"):
        _file_name(toml, tmp_path).write_text(toml.text, encoding="utf-8")
    for console in (block for block in BLOCKS if block.section == section and block.language == "console"):
        for variable, value in re.findall(r"^\$ export (\w+)='?([^'\n]*)'?$", console.text, re.MULTILINE):
            monkeypatch.setenv(variable, value)
    space = await run(PYTHON[section])
    for value in {id(value): value for value in space.values() if isinstance(value, asynccache.Cache)}.values():
        await value.aclose()


def _file_name(block: Block, folder: Path) -> Path:
    """Where a TOML block belongs: its first line is a comment with the file's name."""
    named = re.match(r"# (\w+\.toml)\n", block.text)
    assert named, f"README.md:{block.line}: a TOML block begins with its file's name"
    return folder / named[1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("## A\n```python\nx = 1\nx  # -> 2\n```\n", 4),
        ("## A\n\n```python\n\nx = 1\nawait missing()\n```\n", 6),
        ("## A\n```python\nasync def test_it(box):\n    assert False\n```\n", 4),
        ("## A\n```python\nx = [1]\nfor each in x:\n    each  # -> 3\n```\n", 5),
    ],
)
async def test_a_wrong_block_fails_with_its_line(text: str, line: int) -> None:
    """A block that fails, or shows what is not so, fails the test and says where in the README it stands."""
    with pytest.raises((AssertionError, NameError)) as caught:
        await run(list(blocks_of(text)))
    assert f"README.md:{line}:" in "\n".join([str(caught.value), *caught.value.__notes__])


async def test_a_promise_in_the_wrong_place_fails() -> None:
    """A ``# ->`` where nothing is compared is refused: it would prove nothing."""
    with pytest.raises(AssertionError, match=r"README.md:\[3\]"):
        await run(list(blocks_of("## A\n```python\nx = 1  # -> 1\n```\n")))


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """No block escapes for want of a language."""
    assert {block.language for block in BLOCKS} <= {"python", "toml", "console"}
    assert len(BLOCKS) > 15


def test_toml_blocks_parse() -> None:
    """Each TOML block is TOML; the section's Python blocks read it from a file."""
    for block in BLOCKS:
        if block.language == "toml":
            assert tomllib.loads(block.text), f"README.md:{block.line}"
            assert block.section in PYTHON


def _check_make(words: Sequence[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


def _check_python(words: Sequence[str]) -> None:
    if words[:1] == ["-m"]:
        assert words[1:3] == ["pip", "install"]
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert set(words[3].removeprefix(".").strip("[]").split(",")) - {""} <= set(extras)
    else:
        assert (ROOT / words[0]).is_file()


def _check_export(words: Sequence[str]) -> None:
    assert all(word.startswith("ASYNCCACHE_") and "=" in word for word in words)


_COMMANDS: Final[dict[str, Callable[[Sequence[str]], None]]] = {
    "make": _check_make,
    "python": _check_python,
    ".venv/bin/python": _check_python,
    "export": _check_export,
}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "console"], ids=lambda it: it.line)
def test_commands_exist(block: Block) -> None:
    """Each command that a reader is told to type names a target or file that exists."""
    for number, line in enumerate(block.text.splitlines(), block.line):
        prompt, command, *words = shlex.split(line, comments=True)
        assert prompt == "$", f"README.md:{number}"
        _COMMANDS[command](words)


def test_named_targets_and_files_exist() -> None:
    """Every ``make`` target and every link in the text leads somewhere."""
    text = README.read_text(encoding="utf-8")
    _check_make(re.findall(r"`make ([\w-]+)`", text))
    headings = {
        re.sub(r"[^\w\- ]", "", line[3:]).lower().replace(" ", "-") for line in re.findall("^## .*$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).is_file(), target


def test_the_tests_are_run_by_make_test() -> None:
    """The README says how the tests are run."""
    assert any("$ make test" in block.text for block in BLOCKS if block.language == "console")


def test_the_errors_table_names_every_error() -> None:
    """The table has each error that the package exports, and no other."""
    section = README.read_text(encoding="utf-8").split("\n## Errors\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    exported = [getattr(asynccache, name) for name in asynccache.__all__]
    errors = {each.__name__ for each in exported if isinstance(each, type) and issubclass(each, asynccache.CacheError)}
    assert len(listed) == len(set(listed))
    assert set(listed) == errors - {"CacheError"}


def test_the_errors_table_tells_the_family() -> None:
    """What the table says an error is besides, it is."""
    section = README.read_text(encoding="utf-8").split("\n## Errors\n")[1].split("\n## ")[0]
    builtin = {"ValueError": ValueError, "TimeoutError": TimeoutError}
    for name, text in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE):
        for parent in re.findall(r"(?:A|[Aa]lso a) `(\w+)`", text):
            assert issubclass(getattr(asynccache, name), builtin.get(parent) or getattr(asynccache, parent)), name


def test_the_memory_options_table_is_the_stores() -> None:
    """The table has each option of a ``memory://`` URL, with its default."""
    section = README.read_text(encoding="utf-8").split("\n## The memory store\n")[1].split("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    parameters = inspect.signature(asynccache.MemoryBackend).parameters
    defaults = {name: str(parameters[name].default).lower() for name in table}
    assert {name: default.strip("` ") for name, default in table.items()} == defaults
    with pytest.raises(asynccache.ConfigError, match="has no option 'nothing'") as caught:
        asynccache.Cache("memory://?nothing=1")
    assert str(caught.value).partition("there are ")[2].split(", ") == sorted(table)


def test_the_policy_options_table_is_the_policys() -> None:
    """Each option in the table is a field of a policy."""
    section = README.read_text(encoding="utf-8").split("\n## When the source fails or is slow\n")[1].split("\n## ")[0]
    table = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    fields = set(inspect.signature(asynccache.Policy).parameters)
    assert fields - set(table) == {"ttl", "tags", "lock"}  # told elsewhere, or of no use with one process
    assert set(table) <= fields
