"""The reference pages name what the code has: no more, no less."""

from __future__ import annotations

import re
import tomllib
from typing import get_args

import msgspec

import nimburion
from nimburion import errors
from nimburion.backends import open_backend
from nimburion.core import errors as core_errors
from nimburion.core import events
from nimburion.core.job import Reason, State
from nimburion.jobs.client.status import Status
from nimburion.jobs.options.enqueue_options import EnqueueOptions
from nimburion.jobs.options.policy import POLICY_OPTIONS
from nimburion.jobs.worker.health import Condition
from tests.house.tree import ROOT

REFERENCE = ROOT / "docs" / "reference"


def text_of(page: str) -> str:
    return (REFERENCE / page).read_text(encoding="utf-8")


def first_cells(page: str, *, under: str = "") -> list[str]:
    """Return the code words in the first cells of the tables of a page, or of a part of it."""
    text = text_of(page)
    if under:
        text = text.split(f"## {under}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`(\w+)[^`]*`", cell)]


def test_the_errors_are_all_there() -> None:
    raised = set(nimburion.__all__) & set(vars(core_errors))
    assert sorted(first_cells("errors.md")) == sorted({*errors.__all__, *raised})


def test_the_states_and_reasons_are_all_there() -> None:
    assert first_cells("states.md") == [*map(str, ORDER_OF_STATES), *map(str, Reason)]
    assert set(ORDER_OF_STATES) == set(State)


ORDER_OF_STATES = [
    State.PENDING,
    State.SCHEDULED,
    State.PROCESSING,
    State.RETRYING,
    State.SUSPENDED,
    State.COMPLETED,
    State.FAILED,
    State.CANCELLED,
]


def test_the_events_are_there_with_their_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text_of("events.md"), re.MULTILINE)
    documented = {name: re.findall(r"`(\w+)`", fields) for name, fields in rows}
    known = {
        kind.__name__: [field.name for field in msgspec.structs.fields(kind)]
        for kind in events.Event.__subclasses__()
    }
    assert documented == known


def test_the_public_names_are_all_there() -> None:
    shown = set(first_cells("api.md", under="`nimburion`"))
    assert shown <= set(nimburion.__all__)
    assert set(nimburion.__all__) - set(vars(errors)) <= shown


def test_the_options_of_a_job_are_all_there() -> None:
    words = {"name", "queue", *POLICY_OPTIONS}
    assert set(first_cells("api.md", under="The options of a job")) == words


def test_the_methods_of_a_processor_are_all_there() -> None:
    section = text_of("api.md").split("## `Processor`\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"`(?:Processor\.)?(\w+)", section))
    known = {name for name in dir(nimburion.Processor) if not name.startswith("_")}
    assert known - documented == set()


def test_the_fields_and_states_of_health_are_all_there() -> None:
    section = text_of("api.md").split("## `Health`, ")[1].split("\n## ")[0]
    for word in (*get_args(Condition), *(f.name for f in msgspec.structs.fields(nimburion.Health))):
        assert f"`{word}`" in section


def test_the_capabilities_of_each_backend_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", text_of("capabilities.md"), re.MULTILINE)
    documented = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    urls = ("memory://", "sqlite:///jobs.db", "redis://localhost", "postgresql://localhost/app")
    found = [msgspec.structs.asdict(open_backend(url).capabilities) for url in urls]
    words = {True: "yes", False: "no", None: "all"}
    assert documented == {
        name: [words.get(each[name], str(each[name])) for each in found] for name in found[0]
    }


def test_the_options_and_the_fields_of_a_status_are_all_there() -> None:
    text = text_of("api.md")
    for words in (EnqueueOptions.__annotations__, [f.name for f in msgspec.structs.fields(Status)]):
        assert [word for word in words if f"`{word}`" not in text] == []


def test_the_extras_are_all_there_with_what_they_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    page = (ROOT / "docs" / "tutorial" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    assert rows.keys() == extras.keys()
    for extra, requirements in extras.items():
        names = re.findall(r"[a-z][a-z-]*", rows[extra])
        wanted = [name for one in requirements for name in list_packages(one)]
        assert extra == "all" or names == wanted
    assert all(re.split(r"[^A-Za-z]", one)[0] in page for one in project["dependencies"])


def list_packages(requirement: str) -> list[str]:
    """Return the package of a requirement, and the package that its extra is named after."""
    found = re.match(r"([a-z-]+)(?:\[(\w+)\])?", requirement)
    assert found is not None
    return [name for name in found.groups() if name and name != "asyncio"]
