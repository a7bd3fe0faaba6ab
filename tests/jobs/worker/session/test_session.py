"""How the session of a worker ends."""

from __future__ import annotations

from unittest.mock import AsyncMock

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.events import Event, Events, SessionEnded
from nimburion.core.session import Session
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.exchange_size import ExchangeSize
from nimburion.jobs.worker.session.session import WorkerSession
from nimburion.jobs.worker.session.vitals import VitalsReader
from nimburion.testing import FakeClock


def make_session(backend: MemoryBackend, clock: Clock, events: Events) -> WorkerSession:
    return WorkerSession(
        backend,
        Session(id="worker"),
        clock,
        events,
        BackendConnectivity(clock, "memory"),
        threaded=False,
        size=ExchangeSize(1_000_000),
        max_unsettled=1_000_000,
        vitals=VitalsReader(1, lambda: 0, ""),
        read_stack=AsyncMock(return_value=None),
        on_heartbeat=lambda: None,
        on_heartbeat_reply=lambda _: None,
        on_end=lambda _: None,
    )


async def test_a_session_that_closes_after_its_leases_have_expired_was_lost() -> None:
    """Its process was stopped meanwhile: the heartbeat has not noticed, and will not run again."""
    events, ended, clock = Events(), list[Event](), FakeClock()
    events.subscribe(ended.append, kinds=(SessionEnded,))
    backend = MemoryBackend(clock=clock)
    await backend.open()
    session = make_session(backend, clock, events)
    clock.advance(session.lease_seconds_left)
    await session.close()
    await backend.close()
    assert ended == [SessionEnded("worker", "lost")]


@pytest.mark.parametrize("is_lost", [False, True], ids=["open", "lost"])
async def test_a_session_that_expires_sends_no_more_heartbeats(is_lost: bool) -> None:
    events, ended, clock = Events(), list[Event](), SystemClock()
    events.subscribe(ended.append, kinds=(SessionEnded,))
    backend = MemoryBackend()
    await backend.open()
    session = make_session(backend, clock, events)
    await session.open(None)
    session.lost = is_lost  # an exchange has found it
    await session.let_expire()
    await session.let_expire()
    assert ended == [SessionEnded("worker", "lost")]
    assert session.completer.closed
    assert [each.id for each in await backend.reads.list_sessions()] == ["worker"]
    await backend.close()
