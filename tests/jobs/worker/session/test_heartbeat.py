"""What the heartbeat of a session reports when the session ends."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.session.heartbeat import Heartbeat
from nimburion.jobs.worker.session.vitals import VitalsReader
from nimburion.testing import FakeClock


async def test_a_session_that_is_gone_is_not_reported_as_rescued(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its data may be gone, or an operator closed it: no other worker need have done anything."""
    clock = FakeClock()
    stopping = asyncio.Event()
    heartbeat = Heartbeat(
        MemoryBackend(clock=clock),
        "s1",
        30.0,
        clock,
        BackendConnectivity(clock, "memory"),
        vitals=VitalsReader(1, lambda: 0, ""),
        on_reply=lambda _: None,
        on_end=stopping.set,
    )
    await asyncio.wait_for(heartbeat.run(stopping), 10.0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "session s1 ends: it is not known to the backend any more (it expired, or its data is "
        "gone); its running jobs are interrupted"
    )
