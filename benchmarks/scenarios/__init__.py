"""The scenarios: one file each, which ends in ``SCENARIO``."""

import importlib
import pkgutil

from benchmarks.contract import Absent, Scenario

__all__ = ["load"]

_FIRST = ("floor", "get", "get_or_set", "memoize", "miss", "stampede", "set", "telemetry", "million", "hit_ratio")


def load() -> dict[str, Scenario | Absent]:
    """Every scenario by its name, in the order of the report; files that it does not know come last.

    One that needs a library which is not installed is absent.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    names.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    found: dict[str, Scenario | Absent] = {}
    for name in names:
        try:
            found[name] = importlib.import_module(f"{__name__}.{name}").SCENARIO
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(("asynccache", "benchmarks")):
                raise  # ours to mend, not a library that somebody may leave out
            found[name] = Absent(name, str(error))
    return found
