"""The tests are tested: each breakage of the product must turn them red.

A mutant that does not find its place exactly once fails here: whoever changes that line says anew
what would break it, in the file of `…breakages.py` that holds the mutant.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.house.tree import ROOT, python_files
from tests.mutants.breakages import MUTANTS as ENGINE_MUTANTS
from tests.mutants.clock_and_number_breakages import CLOCK_AND_NUMBER_MUTANTS
from tests.mutants.durable_breakages import DURABLE_MUTANTS
from tests.mutants.fairness_breakages import FAIRNESS_MUTANTS
from tests.mutants.flow_breakages import FLOW_MUTANTS
from tests.mutants.limit_breakages import LIMIT_MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.postgres_breakages import POSTGRES_MUTANTS
from tests.mutants.redis_breakages import REDIS_MUTANTS
from tests.mutants.redis_flow_breakages import REDIS_FLOW_MUTANTS
from tests.mutants.run_breakages import RUN_MUTANTS
from tests.mutants.scheduler_breakages import SCHEDULER_MUTANTS
from tests.mutants.sqlite_run_breakages import SQLITE_RUN_MUTANTS
from tests.servers.fixtures import StartedServers
from tests.servers.postgres import PostgresServer
from tests.servers.server_kinds import BORROWED

MUTANTS = (
    *ENGINE_MUTANTS,
    *SCHEDULER_MUTANTS,
    *REDIS_MUTANTS,
    *POSTGRES_MUTANTS,
    *FLOW_MUTANTS,
    *REDIS_FLOW_MUTANTS,
    *RUN_MUTANTS,
    *SQLITE_RUN_MUTANTS,
    *DURABLE_MUTANTS,
    *LIMIT_MUTANTS,
    *FAIRNESS_MUTANTS,
    *CLOCK_AND_NUMBER_MUTANTS,
)
PACKAGE = ROOT / "src" / "nimburion"
TESTS_FAILED = 1
"""pytest's exit code: tests ran and some failed; all else (no tests, no import) proves nothing."""


@pytest.fixture(autouse=True)
def _one_server_for_all(started_servers: StartedServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL takes longer to start than a test to run."""
    server = started_servers["postgres"]
    assert isinstance(server, PostgresServer)
    monkeypatch.setenv(BORROWED, str(server.port))


def copy_of_the_product(where: Path) -> Path:
    """Copy the source tree; its `nimburion` folder."""
    copy = where / "src" / "nimburion"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with that source tree in the place of ours."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "COVERAGE_", "COV_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(source.parent), str(ROOT)])
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["NB_TEST_SERVERS"] = "valkey,postgres"  # enough to see what is wrong with a script
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def pytest_on(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a selection of the tests on that source tree, up to the first failure."""
    scratch = source.parent.parent / "scratch"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(scratch)]
    options.append("--timeout=30")  # a mutant may hang; that is seen too
    return run(source, "-m", "pytest", *options, *arguments)


def assert_red(mutant: Mutant, where: Path) -> None:
    """Break a copy and run the tests that must see it."""
    source = copy_of_the_product(where)
    mutant.apply(source)
    result = pytest_on(source, *mutant.selection)
    assert result.returncode == TESTS_FAILED, f"{mutant.name} lives:\n{result.stdout[-3000:]}"


def named(mutant: Mutant) -> str:
    return mutant.name


def test_each_mutant_finds_its_place_once_and_leaves_python_that_compiles() -> None:
    """A mutant that no longer compiles would say nothing about the tests."""
    problems = []
    for mutant in MUTANTS:
        try:
            path, text = mutant.change(PACKAGE)
            if path.suffix == ".py":
                ast.parse(text)
        except (AssertionError, SyntaxError) as error:
            problems.append(f"{mutant.name}: {error}")
    assert problems == []


@cache
def list_defined_tests() -> frozenset[str]:
    """Return the names of all test functions, those of the contract suite too."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in python_files("src/nimburion/testing", "tests")
    )
    return frozenset(re.findall(r"def (test_\w+)", text))


def test_each_mutant_names_tests_that_exist() -> None:
    missing = {}
    for mutant in MUTANTS:
        path, *names = mutant.selection[0].split("::")
        tests = {name.partition("[")[0] for name in names if name.startswith("test_")}
        if not (ROOT / path).exists() or not tests <= list_defined_tests():
            missing[mutant.name] = mutant.selection[0]
    assert missing == {}


def test_a_template_survives_a_rename(tmp_path: Path) -> None:
    mutant = Mutant(
        "planted", "jobs/*.py", "if $row.$lost > $limit:", "if $row.$lost >= $limit:", ()
    )
    (tmp_path / "jobs").mkdir()
    source = tmp_path / "jobs" / "anything.py"
    source.write_text("if record.losses > bound:\n    pass\n")
    mutant.apply(tmp_path)
    assert source.read_text() == "if record.losses >= bound:\n    pass\n"


def test_a_template_that_fits_twice_is_refused(tmp_path: Path) -> None:
    mutant = Mutant("planted", "jobs/*.py", "$a > $b", "$a < $b", ())
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "anything.py").write_text("x > y\nz > y\n")
    with pytest.raises(AssertionError, match="must be found once"):
        mutant.find(tmp_path)


@pytest.mark.deep
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutant", MUTANTS, ids=named)
def test_a_mutant_is_seen(mutant: Mutant, tmp_path: Path) -> None:
    assert_red(mutant, tmp_path)


@pytest.mark.deep
@pytest.mark.timeout(120)
def test_the_same_tests_are_green_on_an_unbroken_copy(tmp_path: Path) -> None:
    source = copy_of_the_product(tmp_path)
    found = run(source, "-c", "import nimburion; print(nimburion.__file__)")
    assert Path(found.stdout.strip()).parent == source, "it would test something else"
    chosen = sorted({m.selection[0] for m in MUTANTS if not m.deep})
    result = pytest_on(source, *chosen)
    assert result.returncode == 0, result.stdout[-3000:]


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15
