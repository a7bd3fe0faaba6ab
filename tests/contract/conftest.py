"""The cases on PostgreSQL run on one event loop, so that connections last from case to case."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nimburion.backends.sqlite import SQLiteBackend
from tests.contract.kept_connections import KeptConnections
from tests.contract.neighbours import Neighbours
from tests.servers.fixtures import StartedServers

CASES = Path(__file__).parent / "test_postgres.py"
REGRESSIONS = ("KeyedLimits", "KeyedRates", "LimitChanges", "OpenTransactions", "Turns")
"""The classes whose cases, or most of them, are defects that were found in use."""
LONGEST = "test_a_limit_holds_for_a_fleet_that_loses_workers"
"""7,000 exchanges with 5,000 jobs: 20 s of CPU time on PostgreSQL. With 600 jobs it runs always."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the cases on PostgreSQL run on the event loop of `kept_connections`; mark the longest."""
    mark = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if isinstance(item, pytest.Function) and is_regression(item):
            item.add_marker("regression")
        if item.path == CASES:
            item.add_marker(mark, append=False)
        if (
            item.path.parent == CASES.parent
            and item.name.startswith(LONGEST)
            and "5000" in item.name
        ):
            item.add_marker("deep")
            item.add_marker(pytest.mark.timeout(300))


def is_regression(item: pytest.Function) -> bool:
    """Tell whether a case stands in one of the classes of `REGRESSIONS`."""
    return item.function.__qualname__.partition(".")[0] in REGRESSIONS


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kept_connections(started_servers: StartedServers) -> AsyncIterator[KeptConnections]:
    """The connections of this process that no case uses."""
    kept = KeptConnections()
    yield kept
    await kept.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def opened_neighbours(
    kept_connections: KeptConnections,
) -> AsyncIterator[dict[str, Neighbours]]:
    """The neighbours in each database that the cases of this process have used, by its URL."""
    opened: dict[str, Neighbours] = {}
    yield opened
    for one in opened.values():
        await one.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def new_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a backend on SQLite makes it: a copy is there four times as fast."""
    backend = SQLiteBackend(tmp_path_factory.mktemp("new") / "jobs.db")
    await backend.open()
    await backend.close()
    return backend.path
