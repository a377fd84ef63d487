"""What holds for all tests."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported from the garbage collector: many tests collect, to see that nothing is left behind, and
    would look through all libraries each time."""
    gc.collect()
    gc.freeze()
