"""What the heartbeat of a session reports when the session ends."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import BackendUnavailable
from nimburion.core.session import HeartbeatReply, Session, Vitals, WorkerCommand
from nimburion.core.stacks import get_stack, request_stack
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.session.heartbeat import Heartbeat
from nimburion.jobs.worker.session.stack_requests import StackRequests
from nimburion.jobs.worker.session.vitals import VitalsReader
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend


def make_stack_requests(clock: FakeClock) -> StackRequests:
    """Return the requests of a worker that runs no job."""
    return StackRequests("s1", clock, AsyncMock(return_value=None), polls=False)


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
        stacks=make_stack_requests(clock),
        on_reply=lambda _: None,
        on_end=stopping.set,
    )
    await asyncio.wait_for(heartbeat.run(stopping), 10.0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "session s1 ends: it is not known to the backend any more (it expired, or its data is "
        "gone); its running jobs are interrupted"
    )


async def test_a_heartbeat_that_fails_keeps_the_worst_lag_for_the_next() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.consuming.open_session(Session(id="s1", ttl=30.0))
    vitals = VitalsReader(1, lambda: 0, "")
    heartbeat = Heartbeat(
        backend,
        "s1",
        30.0,
        clock,
        BackendConnectivity(clock, "memory"),
        vitals=vitals,
        stacks=make_stack_requests(clock),
        on_reply=lambda _: None,
        on_end=lambda: None,
    )
    vitals.note_loop_lag(2.5)

    class Down(OverridableBackend):
        async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
            raise BackendUnavailable("it is down")

    await heartbeat._send(Down(clock=clock))
    await heartbeat._send(backend)
    (session,) = await backend.reads.list_sessions()
    assert session.vitals is not None
    assert session.vitals.loop_lag == 2.5
    await heartbeat._send(backend)
    (session,) = await backend.reads.list_sessions()
    assert session.vitals is not None
    assert session.vitals.loop_lag == 0.0


async def test_a_request_for_a_stack_beside_a_command_is_answered() -> None:
    """One heartbeat gets both: the reply has the command, and nothing says that there is more."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.consuming.open_session(Session(id="s1", ttl=30.0))
    read_stack = AsyncMock(return_value=("thread", "in line 1"))
    heartbeat = Heartbeat(
        backend,
        "s1",
        30.0,
        clock,
        BackendConnectivity(clock, "memory"),
        vitals=VitalsReader(1, lambda: 0, ""),
        stacks=StackRequests("s1", clock, read_stack, polls=False),
        on_reply=lambda _: None,
        on_end=lambda: None,
    )
    await backend.maintenance.send_command("s1", WorkerCommand.QUIET)
    await request_stack(backend, "a", "s1")
    await heartbeat._send(backend, notified=True)
    stack = await get_stack(backend, "a", await backend.now())
    assert stack is not None
    assert stack.text == "in line 1"


async def test_the_worst_lag_is_reported_once() -> None:
    vitals = VitalsReader(1, lambda: 0, "")
    vitals.note_loop_lag(2.5)
    first = vitals.read()
    vitals.note_loop_lag(3.0)
    vitals.forget_lag(first)
    assert vitals.read().loop_lag == 3.0
    vitals.forget_lag(vitals.read())
    assert vitals.read().loop_lag == 0.0
