"""Templates of keys."""

from types import SimpleNamespace
from typing import Any

import pytest

from asynccache._key_template import KeyTemplate
from asynccache.errors import ConfigError, InvalidKeyError


def render(text: str, **values: Any) -> str:
    return KeyTemplate(text, list(values), function="f").render(list(values.values()))


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("user:{x}", {"x": 7}, "user:7"),
        ("{y}:{x}:{y}", {"x": 1, "y": "b"}, "b:1:b"),
        ("{user.id}", {"user": SimpleNamespace(id=3)}, "3"),
        ("{user.tags[1]}", {"user": SimpleNamespace(tags="ab")}, "b"),
        ("{ids[0]}", {"ids": [4, 5]}, "4"),
        ("{options[lang]}", {"options": {"lang": "ru"}}, "ru"),
        ("{x!r}", {"x": "a"}, "'a'"),
        ("{x!s}|{x!a}", {"x": "é"}, "é|'\\xe9'"),
        ("{x:03d}", {"x": 7}, "007"),
        ("{{{x}}} 100%s", {"x": 1}, "{1} 100%s"),
        ("all", {"x": 1}, "all"),
        ("{x}", {"x": (1, 2)}, "(1, 2)"),
        ("{x}", {"x": {"a": 1}}, "{'a': 1}"),
    ],
)
def test_render(text: str, values: dict[str, Any], expected: str) -> None:
    """Fields, attributes, indexes, conversions, formats and doubled braces mean what they mean to ``str.format``."""
    assert render(text, **values) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{user_ib}", "did you mean 'user_id'"),
        ("{zzz}", "it has 'user_id'"),
        ("{}", "parameter's name"),
        ("{0}", "parameter's name"),
        ("{user_id._secret}", "underscore"),
        ("{user_id.__class__}", "underscore"),
        ("{user_id!x}", "!s, !r or !a"),
        ("{user_id:{user_id}}", "no fields of its own"),
        ("{user_id", "written twice"),
        ("}", "written twice"),
        ("{user_id.}", "parameter's name"),
        ("{user_id()}", "parameter's name"),
    ],
)
def test_refused(text: str, hint: str) -> None:
    """A template that cannot work is refused when it is read, in words that lead to the right one."""
    with pytest.raises(ConfigError) as caught:
        KeyTemplate(text, ["user_id"], function="get_user")
    assert hint in str(caught.value)
    assert "get_user" in str(caught.value)


def test_no_parameters() -> None:
    """A field of a function without parameters is refused as such."""
    with pytest.raises(ConfigError, match="no parameters"):
        KeyTemplate("{x}", [], function="f")


@pytest.mark.parametrize("value", [object(), [object()], lambda: None, iter(())])
@pytest.mark.parametrize("text", ["{x}", "{x!r}", "a{x}b"])
def test_address(text: str, value: object) -> None:
    """A value whose text is a memory address is refused with the field's name."""
    with pytest.raises(InvalidKeyError, match=r"\{x\}.*memory address"):
        render(text, x=value)


def test_text_that_looks_like_an_address() -> None:
    """A text is taken as it is, whatever it says."""
    assert render("{x}", x="<object at 0x7f0000000000>") == "<object at 0x7f0000000000>"


@pytest.mark.parametrize(("text", "value"), [("{x.id}", None), ("{x[0]}", []), ("{x[a]}", [1]), ("{x:d}", "a")])
def test_unreadable(text: str, value: object) -> None:
    """A field that cannot be read from an argument is an error that names the field, with the cause kept."""
    with pytest.raises(InvalidKeyError, match=r"field \{x") as caught:
        render(text, x=value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(("text", "pure"), [("{x}:{x[0]!r}", True), ("a", True), ("{x.real}", False), ("{x:n}", False)])
def test_pure(text: str, pure: bool) -> None:
    """A template is pure unless it looks at attributes or the locale."""
    assert KeyTemplate(text, ["x"], function="f").pure is pure
