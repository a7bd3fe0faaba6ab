"""A harness on the memory backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import Harness


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.open()
    yield Harness(clock, [backend])
    await backend.close()
