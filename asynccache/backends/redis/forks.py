"""The stores of this process, which a forked child is to forget: their connections are its parent's."""

import os
import weakref
from typing import Protocol

__all__ = ["leave", "remember"]


class Forgetful(Protocol):
    """What a store does in a forked child."""

    def forget(self) -> None: ...


def remember(store: Forgetful) -> None:
    """Have it forget in a forked child, as long as there is anybody who uses it."""
    _all.add(store)


def leave(inherited: object) -> None:
    """Never collect what is the parent's: that would close it."""
    _inherited.append(inherited)


_all: "weakref.WeakSet[Forgetful]" = weakref.WeakSet()
_inherited: list[object] = []


def _forget_after_fork() -> None:
    for store in list(_all):
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
