"""The Redis store keeps the contract, on Valkey."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimburion.backends.redis.store import RedisBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract
from tests.servers.server import Server


class TestValkey(BackendContract):
    url: str

    @pytest.fixture(autouse=True)
    def _on_an_empty_server(self, valkey: Server) -> Iterator[None]:
        """Each case leaves its process's server as empty as it found it."""
        self.url = valkey.url
        yield
        valkey.empty()

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        namespace = hashlib.blake2b(bytes(tmp_path), digest_size=8).hexdigest()
        return [RedisBackend(self.url, namespace=namespace, clock=clock) for _ in range(count)]
