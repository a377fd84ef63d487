"""The tree of errors."""

import copy
import inspect
import pickle
import re

import pytest

from asynccache import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def drawn() -> dict[str, str]:
    """The parent of each class in the tree that the module's docstring draws."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(?P<indent>    [ │├└─]*)(?P<name>[A-Z]\w+)", line)
        if match:
            depth = (len(match["indent"]) - 4) // 4
            path[depth:] = [match["name"]]
            if depth:
                parents[match["name"]] = path[depth - 1]
    return parents


def test_the_drawing_is_the_tree():
    """What the module draws is what its classes are."""
    assert drawn() == {each.__name__: each.__bases__[0].__name__ for each in CLASSES if each is not errors.CacheError}


def test_also_errors_are_drawn():
    """The builtin that a class is as well is written beside it."""
    for each in CLASSES:
        for base in each.__bases__[1:]:
            assert re.search(rf"{each.__name__} +\(also a {base.__name__}\)", errors.__doc__ or "")


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives(kind):
    """Every error can be pickled and copied, with its text and its class."""
    for twin in (pickle.loads(pickle.dumps(kind("a text"))), copy.copy(kind("a text"))):
        assert type(twin) is kind
        assert str(twin) == "a text"


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_when(kind):
    """Each has a docstring that says when it is raised, but for those that only gather others."""
    text = inspect.getdoc(kind) or ""
    assert text.startswith("Raised when") or kind in (errors.CacheError, errors.LoadError, errors.CodecError)
