"""The pytest fixtures of asynccache."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from asynccache.testing import Sandbox

__all__ = ["cache_sandbox"]


@pytest.fixture
def cache_sandbox() -> Iterator["Sandbox"]:
    """An empty in-memory world behind every cache, and its clock: ``cache_sandbox.travel("5m")``."""
    from asynccache.testing import sandbox

    with sandbox() as box:
        yield box
