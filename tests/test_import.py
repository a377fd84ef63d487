"""``import asynccache``: what it brings with it, and how long it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[1]

_MOST_SECONDS: Final = 0.060
_TRIES: Final = 7

_REPORT: Final = """
import json, sys, time
before = set(sys.modules)
began = time.process_time()
import {package}
took = time.process_time() - began
print(json.dumps(dict(seconds=took, modules=sorted(set(sys.modules) - before))))
"""

PACKAGES: Final = {"asynccache", "opentelemetry", "typing_extensions"}
"""Everything outside the standard library that is imported."""

HEAVY: Final = {
    "sqlite3",
    "multiprocessing",
    "unittest",
    "http",
    "email",
    "xml",
    "zoneinfo",
    "decimal",
    "pickle",
}
"""Parts of the standard library that an import can do without."""


def reports_on(package: str, bytecode: Path) -> list[dict[str, Any]]:
    """What several fresh interpreters report; the first one, which compiles, is left out."""
    kept = (name for name in os.environ if name == "PYTHONPATH" or not name.startswith(("PYTHON", "COVERAGE")))
    environment = {name: os.environ[name] for name in kept}
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)  # so that there is some, as of an installed package
    command = [sys.executable, "-c", _REPORT.replace("{package}", package)]
    found = []
    for _ in range(_TRIES + 1):
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert run.stderr == ""
        found.append(json.loads(run.stdout))
    return found[1:]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What fresh interpreters report on an import of the package."""
    return reports_on("asynccache", tmp_path_factory.mktemp("bytecode"))


def test_import_is_quick(reports: list[dict[str, Any]], tmp_path: Path) -> None:
    """It takes less than 60 ms of processor time, asyncio and OpenTelemetry's interface included: the best of several
    tries, and on a slow machine three times what asyncio alone takes there."""
    alone = min(report["seconds"] for report in reports_on("asyncio", tmp_path))
    assert min(report["seconds"] for report in reports) < max(_MOST_SECONDS, 3 * alone)


def test_import_brings_no_other_package(reports: list[dict[str, Any]]) -> None:
    """It imports no Redis client, no codec, no test runner: nothing that the call at hand does not need."""
    packages = {name.partition(".")[0] for name in reports[0]["modules"]}
    assert packages - sys.stdlib_module_names - {"_distutils_hack"} == PACKAGES


def test_import_leaves_the_heavy_parts_of_the_library_alone(reports: list[dict[str, Any]]) -> None:
    """It imports no database, no server, no process pool."""
    assert {name.partition(".")[0] for name in reports[0]["modules"]} & HEAVY == set()


def test_import_brings_only_the_stores_at_hand(reports: list[dict[str, Any]]) -> None:
    """Of our own modules the testing kit and the plugin stay out."""
    ours = {name for name in reports[0]["modules"] if name.startswith("asynccache.")}
    assert "asynccache.cache" in ours
    assert not {name for name in ours if name.startswith(("asynccache.testing", "asynccache.pytest_plugin"))}
