"""A harness on each backend."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.crash.fork_server import ForkServer
from tests.crash.harness import ProcessHarness
from tests.servers.server_kinds import RunningPostgres, RunningRedis


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer | None]:
    """What actors are forked from; None where the system has no process descriptors (not Linux)."""
    server = ForkServer() if hasattr(os, "pidfd_open") else None
    yield server
    if server is not None:
        server.close()


@pytest.fixture
async def sqlite_harness(
    tmp_path: Path, fork_server: ForkServer | None
) -> AsyncIterator[ProcessHarness]:
    """One file."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with ProcessHarness(tmp_path, url, fork_server) as harness:
        yield harness


@pytest.fixture
async def redis_harness(
    tmp_path: Path, single_redis: RunningRedis, fork_server: ForkServer | None
) -> AsyncIterator[ProcessHarness]:
    """A server, which is not what dies here."""
    async with ProcessHarness(tmp_path, single_redis.url, fork_server) as harness:
        yield harness


@pytest.fixture
async def postgres_harness(
    tmp_path: Path, clean_postgres: RunningPostgres, fork_server: ForkServer | None
) -> AsyncIterator[ProcessHarness]:
    """A server, which is not what dies here."""
    async with ProcessHarness(tmp_path, clean_postgres.url, fork_server) as harness:
        yield harness
