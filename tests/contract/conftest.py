"""The cases on PostgreSQL run on one event loop, so that connections last from case to case."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.kept_connections import KeptConnections
from tests.servers.fixtures import StartedServers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the cases on PostgreSQL run on the event loop of `kept_connections`."""
    mark = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if item.path.stem == "test_postgres":
            item.add_marker(mark, append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kept_connections(started_servers: StartedServers) -> AsyncIterator[KeptConnections]:
    """The connections of this process that no case uses."""
    kept = KeptConnections()
    yield kept
    await kept.close()
