"""process_one and drain: one job at a time, on a clock that stands still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import BackendUnavailable, NothingRegistered, NotOpen
from nimburion.core.exchange import Lane, Reply, ReserveRequest
from nimburion.core.job import State
from nimburion.core.session import Session
from nimburion.core.settings import QueueSettings
from nimburion.core.settlement import Settlement
from nimburion.jobs import Backoff, Context, Processor, job
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend

ran: list[str] = []


@job
async def note(word: str) -> str:
    ran.append(word)
    return word


@job(max_retries=2, retry_backoff=10)
async def fail() -> None:
    raise ValueError("no luck")


@pytest.fixture
def clock() -> FakeClock:
    ran.clear()
    return FakeClock()


@pytest.fixture
async def processor(clock: FakeClock) -> AsyncIterator[Processor]:
    async with Processor(MemoryBackend(clock=clock), clock=clock) as processor:
        processor.register(note, fail)
        yield processor


async def test_no_retry_starts_later_than_retry_for(clock: FakeClock) -> None:
    """Retries after 60, 120 and 240 seconds: the third would start 420 s after the enqueue."""
    times: list[float] = []
    began = clock.now()

    @job(max_retries=50, retry_backoff=Backoff(60, retry_for=timedelta(seconds=400)))
    async def charge() -> None:
        times.append(clock.now() - began)
        raise ConnectionError

    async with Processor(MemoryBackend(clock=clock), clock=clock) as processor:
        processor.register(charge)
        job_id = await processor.enqueue(charge.job())
        assert await processor.drain(advance=True) == len(times) == 3
        status = await processor.get_status(job_id)
    assert (status.state, status.reason, status.failures) == ("failed", "exhausted", 3)
    assert times[2] >= 180


async def test_process_one_runs_exactly_one(processor: Processor) -> None:
    await processor.enqueue_many([note.job("a"), note.job("b")])
    assert await processor.process_one()
    assert ran == ["a"]
    assert await processor.process_one()
    assert not await processor.process_one()
    assert ran == ["a", "b"]


class Unanswered(OverridableBackend):
    """Does not answer one exchange that settles; `applies`: it has applied it before."""

    def __init__(self, clock: FakeClock, *, applies: bool) -> None:
        super().__init__(clock=clock)
        self.applies = applies
        self.answers = False

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        if not settlements or self.answers:
            return await super().exchange(session_id, number, settlements, request)
        self.answers = True
        if self.applies:
            await super().exchange(session_id, number, settlements, request)
        raise BackendUnavailable("no answer")


@pytest.mark.parametrize("applies", [True, False])
async def test_a_settlement_without_an_answer_is_repeated_by_the_next_step(
    clock: FakeClock, applies: bool
) -> None:
    backend = Unanswered(clock, applies=applies)
    async with Processor(backend, clock=clock) as processor:
        processor.register(note)
        first, second = await processor.enqueue_many([note.job("a"), note.job("b")])
        with pytest.raises(BackendUnavailable):
            await processor.process_one()
        assert await processor.process_one()
        assert not await processor.process_one()
        for job_id in (first, second):
            assert (await processor.get_status(job_id)).state is State.COMPLETED
    assert ran == ["a", "b"]


async def test_process_one_needs_an_open_processor(clock: FakeClock) -> None:
    with pytest.raises(NotOpen):
        await Processor(MemoryBackend(clock=clock), clock=clock).process_one()


async def test_middleware_wraps_the_run_outermost_first(processor: Processor) -> None:
    async def outer(ctx: Context, call_next):  # type: ignore[no-untyped-def]
        ran.append("outer")
        return await call_next(ctx)

    async def inner(ctx: Context, call_next):  # type: ignore[no-untyped-def]
        ran.append("inner")
        ctx.payload = b'{"word": "changed"}'
        return await call_next(ctx)

    processor.use(outer)
    processor.use(inner)
    await processor.enqueue(note.job("given"))
    await processor.drain()
    assert ran == ["outer", "inner", "changed"]


async def test_no_thread_outlives_process_one(processor: Processor) -> None:
    @job(timeout=0.01)
    def slow() -> None:
        threading.Event().wait(0.05)
        ran.append("done")

    processor.register(slow)
    await processor.enqueue(slow.job())
    await asyncio.sleep(0)  # the writer of statistics begins to wait
    tasks = asyncio.all_tasks()
    assert await processor.process_one()
    assert ran == ["done"]
    assert not [t for t in threading.enumerate() if t.name.startswith("nimburion-handler")]
    assert asyncio.all_tasks() <= tasks


async def test_drain_stops_where_the_next_is_not_due(
    processor: Processor, clock: FakeClock
) -> None:
    job_id = await processor.enqueue(fail.job())
    assert await processor.drain() == 1
    assert (await processor.get_status(job_id)).state is State.RETRYING
    clock.advance(9.9)
    assert await processor.drain() == 0
    clock.advance(2.2)
    assert await processor.drain() == 1


async def test_drain_with_advance_runs_to_the_very_end(
    processor: Processor, clock: FakeClock
) -> None:
    before = clock.now()
    failing = await processor.enqueue(fail.job())
    await processor.enqueue_after(note.job("late"), 3_600)
    assert await processor.drain(advance=True) == 4
    assert (await processor.get_status(failing)).state is State.FAILED
    assert ran == ["late"]
    assert clock.now() >= before + 3_600
    assert await processor.pending_count() == 0


async def test_a_backend_with_its_own_clock_cannot_be_advanced(tmp_path: Path) -> None:
    async with Processor(f"sqlite:///{tmp_path}/jobs.db", clock=FakeClock()) as processor:
        processor.register(note)
        await processor.enqueue(note.job("later"), after=3600.0)
        with pytest.raises(TypeError, match="reads its own clock"):
            await processor.drain(advance=True)


async def test_due_jobs_of_unknown_names_are_an_error(processor: Processor) -> None:
    await processor.enqueue(note.job("known"))
    await processor.enqueue_raw("unknown", b"{}")
    with pytest.raises(NothingRegistered, match="unknown"):
        await processor.drain()
    assert ran == ["known"]


async def test_what_is_not_due_yet_is_no_error(processor: Processor) -> None:
    await processor.enqueue_raw("unknown", b"{}", after=60)
    assert not await processor.process_one()


async def test_process_one_rescues(processor: Processor, clock: FakeClock) -> None:
    job_id = await processor.enqueue(note.job("again"))
    backend = processor.backend
    await backend.consuming.open_session(Session(id="dead", ttl=30, names=("note",)))
    reply = await backend.consuming.exchange(
        "dead", 1, [], ReserveRequest(1, (Lane("default", "note"),))
    )
    assert len(reply.deliveries) == 1
    assert not await processor.process_one()
    clock.advance(31)
    assert await processor.process_one()
    status = await processor.get_status(job_id)
    assert (status.state, status.lost, status.failures) == (State.COMPLETED, 1, 0)


async def test_its_own_session_outlives_any_pause(processor: Processor, clock: FakeClock) -> None:
    for word in ("a", "b", "c"):
        await processor.enqueue(note.job(word))
        assert await processor.process_one()
        clock.advance(3_600)
    assert ran == ["a", "b", "c"]


async def test_an_unreadable_payload_becomes_a_dead_letter_byte_for_byte(
    processor: Processor,
) -> None:
    payloads = [
        b"not json",
        b"\xff\xfe",
        b'{"word": 1}',
        b"{}",
        b'{"word":"x","more":1}',
        b"[" * 99,
    ]
    ids = [await processor.enqueue_raw("note", payload) for payload in payloads]
    assert await processor.drain() == len(ids)
    letters = [record async for record in processor.dead.list(reason="unreadable")]
    assert sorted(r.payload or b"" for r in letters) == sorted(payloads)
    assert all(r.error is not None and r.error.kind == "unreadable" for r in letters)
    assert ran == []


async def test_dead_letters_are_replayed_once(processor: Processor) -> None:
    job_id = await processor.enqueue(fail.job(), max_retries=0)
    await processor.drain()
    assert [record.id async for record in processor.dead.list()] == [job_id]
    assert await processor.dead.replay(job_id) == [job_id]
    assert await processor.dead.replay(job_id) == []
    status = await processor.get_status(job_id)
    assert (status.state, status.failures, len(status.history)) == (State.PENDING, 0, 1)
    await processor.drain()
    assert await processor.dead.replay_all(name="fail") == [job_id]
    await processor.drain()
    assert await processor.dead.purge_all(name="fail") == [job_id]
    assert [record.id async for record in processor.dead.list()] == []


async def test_queue_priorities_rule_until_age_outweighs_them(clock: FakeClock) -> None:
    ran.clear()
    queues = (QueueSettings("high", 1), QueueSettings("low", 0))
    backend = MemoryBackend(clock=clock)
    async with Processor(backend, clock=clock, queues=queues) as processor:
        processor.register(note)
        await processor.enqueue(note.job("old low"), queue="low")
        clock.advance(121)
        await processor.enqueue(note.job("high"), queue="high")
        await processor.enqueue(note.job("new low"), queue="low")
        await processor.drain()
    assert ran == ["old low", "high", "new low"]


async def test_a_cancelled_step_gives_its_job_back_and_is_cancelled(processor: Processor) -> None:
    began = asyncio.Event()

    async def wait(_: Context, __: bytes) -> None:
        began.set()
        await asyncio.Event().wait()

    processor.register("wait", wait)
    job_id = await processor.enqueue_raw("wait", b"{}")
    draining = asyncio.create_task(processor.drain())
    async with asyncio.timeout(10):
        await began.wait()
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
    status = await processor.get_status(job_id)
    assert (status.state, status.failures) == (State.PENDING, 0)
