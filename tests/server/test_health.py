"""The health routes: what each asks, and what it does not."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import BackendUnavailable
from nimburion.jobs.worker.health import Health
from nimburion.server import health as health_module
from nimburion.server.health import HealthChecks, HealthReport, Phase
from nimburion.testing import FakeClock
from tests.server.conftest import Api
from tests.waiting import wait_until


class CountingBackend(MemoryBackend):
    """A backend that counts its pings, and answers as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.pings = 0
        self.is_down = False
        self.is_silent = False

    async def ping(self) -> None:
        self.pings += 1
        if self.is_down:
            raise BackendUnavailable("redis://secret@host did not answer")
        if self.is_silent:
            await asyncio.Event().wait()


class Process:
    """A process in any phase, with a worker in any state."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = CountingBackend()
        self.phase: Phase = "started"
        self.worker: Health | None = None
        self.worker_lag = 0.0
        self.checks = HealthChecks(
            self.backend,
            self.clock,
            lambda: self.phase,
            lambda: self.worker or Health(state="ready"),
            lambda: self.worker_lag,
        )


@pytest.fixture
async def process() -> Process:
    return Process()


async def test_a_loop_that_does_not_turn_is_not_alive(process: Process) -> None:
    assert process.checks.check_alive().ok
    process.clock.advance(health_module.MAX_LAG + 1)
    report = process.checks.check_alive()
    assert (report.ok, report.reasons) == (False, ("the event loop was blocked for 6 s",))


async def test_a_worker_process_that_does_not_answer_is_not_alive(process: Process) -> None:
    process.worker_lag = health_module.MAX_LAG
    assert process.checks.check_alive().ok
    process.worker_lag += 2
    assert process.checks.check_alive().reasons == ("the event loop was blocked for 7 s",)


async def test_a_loop_that_turns_is_alive_for_as_long_as_it_does(process: Process) -> None:
    activity = process.checks.loop_activity
    await activity.start()
    for _ in range(3):
        await wait_until(lambda: process.clock.sleepers > 0, "the service pauses")
        process.clock.advance(4)
        await wait_until(lambda: activity.seconds_since == 0, "the loop has run a task")
        assert process.checks.check_alive().ok
    await activity.stop()


async def test_liveness_never_asks_the_backend(process: Process) -> None:
    process.backend.is_down = True
    assert process.checks.check_alive().ok
    assert process.backend.pings == 0


async def test_a_process_without_backend_is_not_ready(process: Process) -> None:
    assert (await process.checks.check_ready()).ok
    process.backend.is_down = True
    process.clock.advance(health_module.PING_MAX_AGE + 0.1)
    report = await process.checks.check_ready()
    assert report.reasons == ("the backend did not answer within 2 s",)


async def test_a_backend_that_is_silent_is_not_waited_for(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "PING_TIMEOUT", 0.01)
    process.backend.is_silent = True
    assert not (await process.checks.check_ready()).ok


async def test_many_questions_cause_one_ping(process: Process) -> None:
    reports = await asyncio.gather(*(process.checks.check_ready() for _ in range(20)))
    assert all(report.ok for report in reports)
    assert process.backend.pings == 1


@pytest.mark.parametrize(
    ("state", "is_ready"),
    [
        ("ready", True),
        ("degraded", True),
        ("starting", False),
        ("unreachable", False),
        ("stopped", False),
        ("stopping", False),
    ],
)
async def test_a_process_is_ready_while_its_worker_has_a_session(
    process: Process, state: str, is_ready: bool
) -> None:
    process.worker = Health(state=state)  # type: ignore[arg-type]
    assert (await process.checks.check_ready()).ok is is_ready


async def test_a_process_that_stops_is_alive_and_not_ready(process: Process) -> None:
    process.phase = "stopping"
    report = await process.checks.check_ready()
    assert report == HealthReport(ok=False, phase="stopping", reasons=("this process is stopping",))
    assert process.backend.pings == 0
    assert process.checks.check_alive().ok
    assert process.checks.check_started().ok


async def test_a_process_that_starts_has_not_started(process: Process) -> None:
    process.phase = "starting"
    assert not process.checks.check_started().ok


async def test_the_routes_answer_with_a_status(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("live", "ready", "startup"):
        response = await api.client.get(f"/health/{path}")
        assert (response.status_code, response.json()) == (200, {"ok": True, "phase": "started"})

    async def fail() -> None:
        raise BackendUnavailable("redis://user:secret@host did not answer")

    monkeypatch.setattr(health_module, "PING_MAX_AGE", -1.0)
    monkeypatch.setattr(api.processor.backend, "ping", fail)
    response = await api.client.get("/health/ready")
    assert response.status_code == 503
    assert "secret" not in response.text
