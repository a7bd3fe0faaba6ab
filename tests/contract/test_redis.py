"""The Redis backend keeps the contract, on each kind of server that the run is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.backends.redis.backend import RedisBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract
from tests.servers.server_kinds import RunningRedis


class TestRedis(BackendContract):
    url: str

    @pytest.fixture(autouse=True)
    def _empty_server(self, redis_server: RunningRedis) -> None:
        self.url = redis_server.url

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        return [RedisBackend(self.url, clock=clock) for _ in range(count)]
