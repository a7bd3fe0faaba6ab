"""The memory backend keeps the contract."""

from __future__ import annotations

from pathlib import Path

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract


class TestMemory(BackendContract):
    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        first = MemoryBackend(clock=clock)
        return [first, *(first.new_handle() for _ in range(count - 1))]
