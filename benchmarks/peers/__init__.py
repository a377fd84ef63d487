"""The other libraries: one file each, every one optional."""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from benchmarks.contract import Ability, Absent, Case, Peer

__all__ = ["known", "peer_abilities", "peer_cases"]


@cache
def known() -> tuple[Peer | Absent, ...]:
    """Every peer that has a file here; one whose library is not installed is named as absent."""
    found: list[Peer | Absent] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        try:
            found.append(importlib.import_module(f"{__name__}.{module.name}").PEER)
        except ImportError as error:
            found.append(Absent(module.name, str(error)))
    return tuple(found)


def peer_abilities(scenario: str) -> dict[str, Ability]:
    """What the peers that are here can do of the scenario's work, by their names with their versions."""
    abilities: dict[str, Ability] = {}
    for peer in known():
        if isinstance(peer, Peer) and (ability := peer.abilities.get(scenario)) is not None:
            remark = peer.remarks.get(scenario, "")
            abilities[f"{peer.distribution} {version(peer.distribution)} {remark}".rstrip()] = ability
    return abilities


def peer_cases(scenario: str, keys: Sequence[Any]) -> list[Case]:
    """A case for each of those peers."""
    return [Case(name, "peer", partial(ability, keys)) for name, ability in peer_abilities(scenario).items()]
