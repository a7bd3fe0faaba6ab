"""What a processor says of itself while its backend comes and goes, on a clock moved by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import msgspec
import pytest

from nimburion.core.errors import BackendFull, BackendUnavailable, EnqueueBlocked
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob, State
from nimburion.core.maintenance import Rescued, Retention
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.records import RecordKind, RecordPage
from nimburion.core.session import HeartbeatReply, Session, SessionInfo, Vitals
from nimburion.core.settlement import Settlement
from nimburion.jobs import Processor, job
from nimburion.jobs.handling.context import Context
from nimburion.jobs.worker.health import STOPPED, Health
from nimburion.scheduler import Scheduler
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend

DEADLINE = 10.0
TTL = 30.0
OF_SERVICES = ("prune", "list_sessions", "list_records", "put_statistics")


class Unsteady(OverridableBackend):
    """A backend whose operations fail while they are named in `refused`, with what stands there."""

    def __init__(self, clock: FakeClock, refused: dict[str, Exception] | None = None) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.refused: dict[str, Exception] = {} if refused is None else refused
        self.calls = 0

    def new_handle(self) -> Unsteady:
        handle = Unsteady(self.clock, self.refused)
        handle._data.shared = self._data.shared
        return handle

    def go_away(self) -> None:
        """Answer nothing that a worker or a service asks."""
        for name in (*("open_session", "exchange", "heartbeat", "rescue", "wait"), *OF_SERVICES):
            self.refused[name] = BackendUnavailable("nobody there")

    def come_back(self) -> None:
        self.refused.clear()

    def _check(self, name: str) -> None:
        self.calls += 1
        if name in self.refused:
            raise self.refused[name]

    async def open_session(self, session: Session) -> None:
        self._check("open_session")
        await super().open_session(session)

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        self._check("exchange")
        return await super().exchange(session_id, number, settlements, request)

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        """Say that a session has expired, so that the worker looks for jobs of dead workers."""
        self._check("heartbeat")
        reply = await super().heartbeat(session_id, vitals)
        return msgspec.structs.replace(reply, next_expiry=0.0)

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        self._check("rescue")
        return await super().rescue(limit, max_lost=max_lost)

    async def prune(self, keep: Retention, limit: int) -> int:
        self._check("prune")
        return await super().prune(keep, limit)

    async def list_sessions(self) -> list[SessionInfo]:
        self._check("list_sessions")
        return await super().list_sessions()

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        self._check("list_records")
        return await super().list_records(kind, limit=limit, after=after, by_due=by_due)

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        self._check("put_statistics")
        await super().put_statistics(source, rows)

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        self._check("enqueue")
        return await super().enqueue(jobs, flows)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        self._check("wait")
        await super().wait(queues, timeout)


@job(name="tick")
def tick() -> None:
    """A job of a schedule."""


class Slow:
    """A handler that waits for its event, and counts how its runs began and were broken off."""

    def __init__(self) -> None:
        self.proceed = asyncio.Event()
        self.begun = self.interrupted = 0

    async def __call__(self, _: Context, __: bytes) -> None:
        self.begun += 1
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.interrupted += 1
            raise


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> Unsteady:
    return Unsteady(clock)


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def processor(backend: Unsteady, slow: Slow) -> AsyncIterator[Processor]:
    """A processor that has not started; its backend is back when it is closed."""
    processor = Processor(backend, clock=backend.clock, session_ttl=TTL, grace=0.0)
    processor.register("slow", slow)
    processor.register(tick)
    await processor.open()
    yield processor
    backend.come_back()
    closing = asyncio.create_task(processor.close())
    await until(backend.clock, closing.done)


async def until(clock: FakeClock, holds: Callable[[], bool], step: float = 0.25) -> None:
    """Let time pass until it holds."""
    async with asyncio.timeout(DEADLINE):
        while not holds():
            clock.advance(step)
            await settle()


async def settle() -> None:
    """Let everything happen that needs no time to pass."""
    for _ in range(50):
        await asyncio.sleep(0)


async def elapse(clock: FakeClock, seconds: float) -> None:
    """Let so much time pass, bit by bit."""
    for _ in range(int(seconds / 0.25)):
        clock.advance(0.25)
        await settle()


def states(processor: Processor, state: str) -> Callable[[], bool]:
    return lambda: processor.health().state == state


async def test_a_processor_whose_worker_has_ended_is_stopped(processor: Processor) -> None:
    assert processor.health() == Health(state="open")
    await processor.start()
    assert processor.health() != STOPPED
    await processor.stop()
    assert processor.health() == STOPPED == Health(state="stopped")


async def test_a_process_that_only_enqueues_has_a_health(
    backend: Unsteady, clock: FakeClock
) -> None:
    processor = Processor(backend, clock=clock, enqueue_timeout=0.04)
    async with processor:
        assert processor.health() == Health(state="open")
        await processor.enqueue_raw("slow", b"{}")
        clock.advance(3)
        assert processor.health() == Health(state="open", seconds_since_answer=3.0)
        backend.refused["enqueue"] = BackendUnavailable("nobody there")
        with pytest.raises(BackendUnavailable):
            await processor.enqueue_raw("slow", b"{}")
        health = processor.health()
        assert health == Health(state="unreachable", seconds_since_answer=3.0, error="nobody there")
        backend.come_back()
        await processor.enqueue_raw("slow", b"{}")
        assert processor.health() == Health(state="open", seconds_since_answer=0.0)
    assert processor.health() == STOPPED


def test_a_process_without_async_code_has_a_health() -> None:
    processor = Processor("memory://")
    assert processor.health() == STOPPED
    processor.sync.enqueue_raw("slow", b"{}")
    assert processor.health().state == "open"
    processor.sync.close()
    assert processor.health() == STOPPED


async def test_a_worker_with_all_it_needs_is_ready(
    processor: Processor, slow: Slow, clock: FakeClock
) -> None:
    await processor.start()
    await processor.enqueue_raw("slow", b"{}")
    await until(clock, lambda: slow.begun == 1)
    health = processor.health()
    [session] = await processor.backend.reads.list_sessions()
    assert (health.state, health.session, health.running, health.prefetched) == (
        "ready",
        session.id,
        1,
        0,
    )
    assert (health.error, health.failures) == (None, {})
    assert 0 < health.lease_seconds_left < session.expires_in
    assert health.seconds_since_answer is not None
    assert health.seconds_since_answer < 3.0


async def test_reading_the_health_sends_nothing_to_the_backend(
    processor: Processor, backend: Unsteady
) -> None:
    await processor.start()
    await settle()
    calls = backend.calls
    on_a_thread = await asyncio.to_thread(processor.health)
    assert on_a_thread == processor.health()
    assert backend.calls == calls


async def test_an_unreachable_backend_is_logged_and_running_jobs_go_on(
    processor: Processor, backend: Unsteady, slow: Slow
) -> None:
    await processor.start()
    await processor.enqueue_raw("slow", b"{}")
    await until(backend.clock, lambda: slow.begun == 1)
    session = processor.health().session
    backend.go_away()
    await until(backend.clock, states(processor, "unreachable"))
    first = processor.health()
    assert (first.session, first.running, first.error) == (session, 1, "nobody there")
    await elapse(backend.clock, 10.0)
    later = processor.health()
    assert (later.session, later.running, slow.interrupted) == (session, 1, 0)
    assert first.seconds_since_answer is not None
    assert later.seconds_since_answer == pytest.approx(first.seconds_since_answer + 10.0)
    assert later.lease_seconds_left == pytest.approx(first.lease_seconds_left - 10.0)


async def test_a_worker_treats_its_leases_as_expired_before_the_backend_does(
    processor: Processor, backend: Unsteady, slow: Slow
) -> None:
    await processor.start()
    job_id = await processor.enqueue_raw("slow", b"{}")
    await until(backend.clock, lambda: slow.begun == 1)
    backend.go_away()
    await until(backend.clock, lambda: slow.interrupted == 1)
    del backend.refused["list_sessions"]
    [session] = await backend.reads.list_sessions()
    assert session.expires_in > 0
    assert (await backend.reads.get_job(job_id)).session == session.id
    health = processor.health()
    assert (health.state, health.session, health.running) == ("unreachable", None, 0)
    assert health.lease_seconds_left == 0.0


async def test_it_goes_on_by_itself_when_the_backend_is_back(
    processor: Processor, backend: Unsteady, slow: Slow
) -> None:
    await processor.start()
    job_id = await processor.enqueue_raw("slow", b"{}")
    await until(backend.clock, lambda: slow.begun == 1)
    before = processor.health().session
    backend.go_away()
    await elapse(backend.clock, 2 * TTL)
    backend.come_back()
    await until(backend.clock, lambda: slow.begun == 2)
    slow.proceed.set()
    await until(backend.clock, states(processor, "ready"))
    health = processor.health()
    assert health.session not in (before, None)
    assert (health.error, health.failures) == (None, {})
    await settle()
    record = await backend.reads.get_job(job_id)
    assert (record.state, record.lost) == (State.COMPLETED, 0)


async def test_an_outage_is_two_lines_of_the_log_however_long(
    processor: Processor, backend: Unsteady, caplog: pytest.LogCaptureFixture
) -> None:
    """All services notice it: the scheduler, the statistics, the rescuer, the pruner, …"""
    Scheduler(processor).schedule("@every 10s", tick.job())
    await processor.start()
    await until(backend.clock, states(processor, "ready"))
    for seconds in (0.6 * TTL, 0.6 * TTL):
        await elapse(backend.clock, 2 * TTL)
        caplog.set_level(logging.INFO, "nimburion")
        caplog.clear()
        await processor.enqueue_raw("slow", b"{}")  # statistics to store
        backend.go_away()
        await elapse(backend.clock, seconds)
        backend.come_back()
        await elapse(backend.clock, 4 * TTL)
        start, end = caplog.messages
        assert start.startswith("backend unreachable (nobody there); ")
        assert end.startswith("backend reachable again after ")


async def test_an_outage_that_a_service_notices_first_is_two_lines(
    processor: Processor, backend: Unsteady, caplog: pytest.LogCaptureFixture
) -> None:
    await processor.start()
    await until(backend.clock, states(processor, "ready"))
    caplog.set_level(logging.INFO, "nimburion")
    caplog.clear()
    backend.refused["rescue"] = BackendUnavailable("nobody there")
    await until(backend.clock, lambda: "rescuer" in processor.health().failures)
    backend.go_away()
    await elapse(backend.clock, 0.5 * TTL)
    backend.come_back()
    await elapse(backend.clock, TTL)
    start, end = caplog.messages
    assert start.startswith("backend unreachable (nobody there); ")
    assert end.startswith("backend reachable again after ")


async def test_a_service_that_fails_alone_is_named_once(
    processor: Processor, backend: Unsteady, caplog: pytest.LogCaptureFixture
) -> None:
    await processor.start()
    await until(backend.clock, states(processor, "ready"))
    caplog.set_level(logging.INFO, "nimburion")
    caplog.clear()
    backend.refused["rescue"] = BackendUnavailable("too slow")
    await elapse(backend.clock, 3 * TTL)
    *_, named = caplog.messages
    assert named == "Rescuer: the backend did not answer (too slow)"
    assert len(caplog.messages) == 3
    backend.come_back()
    await elapse(backend.clock, TTL)
    backend.refused["rescue"] = BackendFull("no room")
    await elapse(backend.clock, TTL)
    assert caplog.messages[3:] == ["Rescuer: the backend answered with BackendFull (no room)"]


async def test_a_blocked_enqueue_of_a_service_is_no_outage(
    processor: Processor, backend: Unsteady, caplog: pytest.LogCaptureFixture
) -> None:
    await processor.start()
    await until(backend.clock, states(processor, "ready"))
    caplog.set_level(logging.INFO, "nimburion")
    caplog.clear()
    backend.refused["rescue"] = EnqueueBlocked("a transaction is open")
    await elapse(backend.clock, TTL)
    answered = "Rescuer: the backend answered with EnqueueBlocked (a transaction is open)"
    assert caplog.messages == [answered]


async def test_a_process_without_a_worker_logs_an_outage_once(
    processor: Processor, backend: Unsteady, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler(processor, in_workers=False)
    scheduler.schedule("@every 10s", tick.job())
    await scheduler.start()
    await elapse(backend.clock, 15.0)
    caplog.set_level(logging.INFO, "nimburion")
    caplog.clear()
    backend.refused["enqueue"] = BackendUnavailable("nobody there")
    backend.go_away()
    await elapse(backend.clock, TTL)
    backend.come_back()
    await elapse(backend.clock, TTL)
    await scheduler.stop()
    outage = [line for line in caplog.messages if line.startswith("backend ")]
    assert len(outage) == len(caplog.messages) == 2


async def test_a_worker_without_a_backend_waits_for_it(
    processor: Processor, backend: Unsteady
) -> None:
    backend.go_away()
    starting = asyncio.create_task(processor.start())
    await settle()
    health = processor.health()
    assert (health.state, health.session, health.seconds_since_answer) == (
        "unreachable",
        None,
        None,
    )
    assert health.error == "nobody there"
    backend.come_back()
    await until(backend.clock, starting.done)
    assert processor.health().state == "ready"


async def test_a_backend_that_answers_only_heartbeats_is_degraded(
    processor: Processor, backend: Unsteady
) -> None:
    await processor.start()
    await until(backend.clock, states(processor, "ready"))
    backend.refused["exchange"] = BackendFull("no room")
    await until(backend.clock, states(processor, "unreachable"))
    await until(backend.clock, states(processor, "degraded"))
    health = processor.health()
    assert (health.error, health.session is None) == ("no room", False)
    await elapse(backend.clock, TTL)
    assert processor.health().state == "degraded"
    assert processor.health().session != health.session, "it was given up, and another opened"
    backend.go_away()
    await until(backend.clock, states(processor, "unreachable"))
    backend.come_back()
    await until(backend.clock, lambda: not processor.health().error)


@pytest.mark.parametrize(("refused", "name"), [("rescue", "rescuer"), ("wait", "wakeups")])
async def test_a_service_that_fails_is_named_until_it_works(
    refused: str, name: str, processor: Processor, backend: Unsteady
) -> None:
    await processor.start()
    backend.refused[refused] = BackendUnavailable("not now")
    await until(backend.clock, lambda: bool(processor.health().failures))
    health = processor.health()
    assert (health.state, health.error, health.failures) == ("degraded", None, {name: "not now"})
    backend.come_back()
    await until(backend.clock, states(processor, "ready"))


async def test_an_error_of_the_engine_is_shown_until_an_exchange_works(
    processor: Processor, backend: Unsteady
) -> None:
    await processor.start()
    backend.refused["exchange"] = RuntimeError("a bug")
    await until(backend.clock, lambda: "worker" in processor.health().failures)
    assert processor.health().failures["worker"] == "a bug"
    backend.come_back()
    await until(backend.clock, states(processor, "ready"))


async def test_it_says_that_it_stops(processor: Processor, backend: Unsteady, slow: Slow) -> None:
    await processor.start()
    await processor.enqueue_raw("slow", b"{}")
    await until(backend.clock, lambda: slow.begun == 1)
    stopping = asyncio.create_task(processor.stop(grace=60.0))
    await settle()
    health = processor.health()
    assert (health.state, health.running) == ("stopping", 1)
    slow.proceed.set()
    await until(backend.clock, stopping.done)
    assert processor.health() == STOPPED


async def test_it_can_be_written_as_json(processor: Processor) -> None:
    await processor.start()
    health = processor.health()
    assert msgspec.json.decode(msgspec.json.encode(health), type=Health) == health
