"""A harness on each backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash.harness import ProcessHarness
from tests.servers.server_kinds import RunningPostgres, RunningRedis


@pytest.fixture
async def sqlite_harness(tmp_path: Path) -> AsyncIterator[ProcessHarness]:
    """One file."""
    async with ProcessHarness(tmp_path, f"sqlite:///{tmp_path}/jobs.db") as harness:
        yield harness


@pytest.fixture
async def redis_harness(
    tmp_path: Path, redis_server: RunningRedis
) -> AsyncIterator[ProcessHarness]:
    """A server, which is not what dies here."""
    async with ProcessHarness(tmp_path, redis_server.url) as harness:
        yield harness


@pytest.fixture
async def postgres_harness(
    tmp_path: Path, postgres_server: RunningPostgres
) -> AsyncIterator[ProcessHarness]:
    """A server, which is not what dies here."""
    async with ProcessHarness(tmp_path, postgres_server.url) as harness:
        yield harness
