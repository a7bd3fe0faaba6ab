"""The locked requirements are whole, hashed, and of one mind with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nimburion
from tests.house.tree import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NEEDED = [Requirement(one) for one in (*PROJECT["dependencies"], *EXTRAS["cli"])]
LOCKS = ["dev", "demo"]
FILES = [*LOCKS, "docs", "deploy"]


def locked(name: str) -> dict[str, str]:
    """Return the version that a lock gives each package."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def read_requirements(name: str) -> dict[str, Requirement]:
    """Return what a list of requirements asks for directly."""
    lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {canonicalize_name(one.name): one for one in wanted}


@pytest.mark.parametrize("name", FILES)
def test_a_lock_names_no_host(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.search(r"://|index-url|find-links|trusted-host|file:", text)


@pytest.mark.parametrize("name", FILES)
def test_each_locked_package_is_hashed(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", "")
    lines = text.splitlines()
    assert len(lines) >= len(locked(name)) > 0  # some have a line for each Python
    assert [line for line in lines if "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("requirement", NEEDED, ids=str)
def test_a_runtime_dependency_is_locked_within_its_requirement(
    name: str, requirement: Requirement
) -> None:
    version = locked(name)[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("requirement", NEEDED, ids=str)
def test_the_demo_requires_the_same_versions_as_the_package(requirement: Requirement) -> None:
    assert (
        read_requirements("demo")[canonicalize_name(requirement.name)].specifier
        == requirement.specifier
    )


def test_the_demo_runs_on_the_tested_versions() -> None:
    assert locked("demo").items() <= locked("dev").items()


def test_the_locks_are_not_older_than_what_they_are_made_from() -> None:
    assert read_requirements("demo").keys() <= locked("demo").keys()
    assert (
        read_requirements("dev").keys() | read_requirements("demo").keys() <= locked("dev").keys()
    )


def test_a_dependency_has_a_lower_bound_and_no_upper_one() -> None:
    for one in (*NEEDED, *(Requirement(each) for each in sum_of_extras())):
        assert [bound.operator for bound in one.specifier] == [">="], one


def test_the_extra_all_brings_every_extra() -> None:
    (everything,) = (Requirement(one) for one in EXTRAS["all"])
    assert everything.extras == EXTRAS.keys() - {"all"}


def test_the_package_knows_its_version() -> None:
    assert nimburion.__version__ == PROJECT["version"]


def test_the_package_shows_its_readme() -> None:
    assert (ROOT / PROJECT["readme"]).is_file()


@pytest.mark.parametrize(
    ("group", "name"),
    [("console_scripts", "nimburion"), ("pytest11", "nimburion"), ("flask.commands", "nimburion")],
)
def test_what_is_installed_can_be_loaded(group: str, name: str) -> None:
    (found,) = entry_points(group=group, name=name)
    assert found.load()


def sum_of_extras() -> list[str]:
    """Return what all extras ask for, but for the extra that names the others."""
    return [one for name, several in EXTRAS.items() if name != "all" for one in several]
