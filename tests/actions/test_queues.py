"""When a pause ends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import pytest

from nimburion.actions import Actions, Operator
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import InvalidJob


@asynccontextmanager
async def open_actions() -> AsyncIterator[Actions]:
    backend = MemoryBackend()
    await backend.open()
    yield Actions(backend, Operator("ann"))
    await backend.close()


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
async def test_a_pause_lasts_a_time_above_0(seconds: float) -> None:
    async with open_actions() as actions:
        with pytest.raises(InvalidJob, match="a number of seconds above 0"):
            await actions.queues.pause("mail", seconds=seconds)


async def test_the_end_of_a_pause_has_a_time_zone() -> None:
    async with open_actions() as actions:
        with pytest.raises(InvalidJob, match="until must have a time zone"):
            await actions.queues.pause("mail", until=datetime(2100, 1, 1))  # noqa: DTZ001
