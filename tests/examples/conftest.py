"""An empty backend of each durable kind, and the modules of the examples."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.house.tree import ROOT
from tests.servers.fixtures import REQUESTED_KINDS, StartedServers

SERVERS = ("valkey", "postgres")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on SQLite, and on each server that the run asks for."""
    if "backend_url" in metafunc.fixturenames:
        requested = metafunc.config.stash[REQUESTED_KINDS]
        chosen = [kind for kind in SERVERS if kind in requested]
        kinds: list[Any] = [pytest.param(kind, marks=pytest.mark.server) for kind in chosen]
        metafunc.parametrize("backend_url", ["sqlite", *kinds], indirect=True)


@pytest.fixture
def backend_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty backend."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    started: StartedServers = request.getfixturevalue("started_servers")
    server: Any = started[request.param]
    server.empty()
    request.node.user_properties.append(("server", server.name))
    return str(server.url)


@pytest.fixture
def import_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str, str], ModuleType]]:
    """Imports a module of an example anew, and forgets it afterwards."""
    imported: list[str] = []

    def load(folder: str, name: str) -> ModuleType:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(ROOT / "examples" / folder))
        imported.append(name)
        return importlib.import_module(name)

    yield load
    for name in imported:
        sys.modules.pop(name, None)
