"""The outbox and enqueue_after_commit, on SQLite as the database of the application."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import BackendUnavailable, InvalidJob
from nimburion.core.job import NewJob
from nimburion.core.queries import JobFilter
from nimburion.integrations.sqlalchemy import Outbox, OutboxRelay, enqueue_after_commit
from nimburion.jobs import Processor, job
from nimburion.jobs.client.client import Client, enqueue_prepared
from nimburion.jobs.declaration.middleware import Enqueueing, Next
from nimburion.testing import FakeClock, assert_enqueued, assert_not_enqueued
from tests.house.tree import ROOT


@job
async def send(to: str) -> None: ...


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def processor(clock: FakeClock) -> AsyncIterator[Processor]:
    made = Processor(MemoryBackend(clock=clock), clock=clock)
    made.register(send)
    async with made:
        yield made


@pytest.fixture
def outbox(processor: Processor) -> Outbox:
    return Outbox(processor, MetaData())


@pytest.fixture
def engine(outbox: Outbox, tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    outbox.table.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(engine: Engine, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    yield made
    await made.dispose()


def count_rows(engine: Engine, outbox: Outbox) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(outbox.table)).scalar_one()


async def test_a_committed_job_is_relayed(
    processor: Processor, outbox: Outbox, engine: Engine, clock: FakeClock
) -> None:
    with Session(engine) as session, session.begin():
        job_id = outbox.add(session, send.job("ann"), queue="mail", priority=7, after=60)
    await assert_not_enqueued(processor, send)
    clock.advance(10)
    assert await OutboxRelay(outbox, engine).relay() == 1
    record = await assert_enqueued(processor, send.job("ann"), queue="mail", priority=7)
    assert record.id == job_id
    assert record.due == pytest.approx(clock.now() + 50)  # counted from `add`
    assert count_rows(engine, outbox) == 0


async def test_a_job_that_is_rolled_back_is_not(
    processor: Processor, outbox: Outbox, engine: Engine
) -> None:
    with Session(engine) as session:
        outbox.add(session, send.job("ann"))
        session.flush()
        session.rollback()
        outbox.add(session, send.job("bob"))
        session.commit()
    assert await OutboxRelay(outbox, engine).relay() == 1
    await assert_enqueued(processor, send.job("bob"))
    await assert_not_enqueued(processor, send.job("ann"))


async def test_async_sessions_and_engines_work_too(
    processor: Processor, outbox: Outbox, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session, session.begin():
        outbox.add(session, send.job("ann"), tenant="acme", headers={"a": "b"})
    assert await OutboxRelay(outbox, async_engine).relay() == 1
    await assert_enqueued(processor, send.job("ann"), tenant="acme", headers={"a": "b"})


async def test_a_connection_writes_the_row_at_once(
    processor: Processor, outbox: Outbox, engine: Engine
) -> None:
    with engine.begin() as connection:
        outbox.add(connection, send.job("ann"))
    assert await OutboxRelay(outbox, engine).relay() == 1
    await assert_enqueued(processor, send)


async def test_a_relay_that_dies_before_the_delete_enqueues_once(
    processor: Processor, outbox: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(engine) as session, session.begin():
        job_id = outbox.add(session, send.job("ann"))
    relay = OutboxRelay(outbox, engine)
    run = relay._run
    calls = 0

    async def die_at_second_call(work: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ConnectionError("the process is gone")
        return await run(work)

    monkeypatch.setattr(relay, "_run", die_at_second_call)
    with pytest.raises(ConnectionError):
        await relay.relay()
    assert count_rows(engine, outbox) == 1
    assert await OutboxRelay(outbox, engine).relay() == 1
    page = await processor.backend.reads.list_jobs(JobFilter(), limit=10)
    assert [each.id for each in page.jobs] == [job_id]


async def test_rows_stay_while_the_backend_does_not_answer(
    processor: Processor, outbox: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(engine) as session, session.begin():
        outbox.add(session, send.job("ann"))

    async def fail(*_: object, **__: object) -> str:
        raise BackendUnavailable("no answer", outcome="unknown")

    monkeypatch.setattr("nimburion.integrations.sqlalchemy.enqueue_prepared", fail)
    with pytest.raises(BackendUnavailable):
        await OutboxRelay(outbox, engine).relay()
    assert count_rows(engine, outbox) == 1


async def test_rows_whose_jobs_are_enqueued_are_deleted_when_a_later_one_fails(
    processor: Processor, outbox: Outbox, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that stays would be enqueued, and run, again once the record of its job is pruned."""
    with Session(engine) as session, session.begin():
        for name in ("ann", "bob", "cy"):
            outbox.add(session, send.job(name))
    answers = 2

    async def answer_twice(client: Client, new: NewJob) -> str:
        nonlocal answers
        answers -= 1
        if answers < 0:
            raise BackendUnavailable("no answer", outcome="not applied")
        return await enqueue_prepared(client, new)

    monkeypatch.setattr("nimburion.integrations.sqlalchemy.enqueue_prepared", answer_twice)
    with pytest.raises(BackendUnavailable):
        await OutboxRelay(outbox, engine).relay()
    assert count_rows(engine, outbox) == 1
    await assert_enqueued(processor, send.job("bob"))


async def test_a_job_that_cannot_be_enqueued_stays_and_delays_no_other(
    processor: Processor, outbox: Outbox, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"job_id": "x", "name": "send", "created_at": 0.0, "job": b'{"id": 5}'}
    with engine.begin() as connection:
        connection.execute(insert(outbox.table).values([values] * 100))
    with Session(engine) as session, session.begin():
        outbox.add(session, send.job("ann"))
    relay = OutboxRelay(outbox, engine)
    await relay.tick()
    await relay.tick()
    await assert_enqueued(processor, send.job("ann"))
    assert count_rows(engine, outbox) == 100
    assert caplog.text.count("the job in row 1 of nimburion_outbox cannot be enqueued") == 1


async def test_a_job_whose_unique_key_is_held_is_dropped_with_a_warning(
    processor: Processor, outbox: Outbox, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    await processor.enqueue(send.job("ann"), unique_key="one")
    with Session(engine) as session, session.begin():
        outbox.add(session, send.job("bob"), unique_key="one")
        outbox.add(session, send.job("cy"))
    with caplog.at_level(logging.WARNING, "nimburion.jobs"):
        assert await OutboxRelay(outbox, engine).relay() == 2
    assert "a job of the outbox was not enqueued" in caplog.text
    await assert_enqueued(processor, send.job("cy"))
    assert count_rows(engine, outbox) == 0


async def test_a_tick_empties_the_outbox(
    processor: Processor, outbox: Outbox, engine: Engine
) -> None:
    with Session(engine) as session, session.begin():
        for number in range(250):
            outbox.add(session, send.job(str(number)))
    await OutboxRelay(outbox, engine).tick()
    assert count_rows(engine, outbox) == 0
    assert await processor.pending_count() == 250


async def test_wrong_arguments_are_refused_when_the_job_is_added(
    outbox: Outbox, engine: Engine
) -> None:
    wrong: Any = 5
    with Session(engine) as session, pytest.raises(InvalidJob, match="field 'to'"):
        outbox.add(session, send.job(wrong))


# enqueue_after_commit


async def test_the_job_is_enqueued_after_the_commit(
    processor: Processor, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session:
        enqueue_after_commit(processor, session, send.job("ann"), tenant="acme")
        await assert_not_enqueued(processor, send)
        await session.commit()
        await assert_enqueued(processor, send.job("ann"), tenant="acme")
        enqueue_after_commit(processor, session, send.job("bob"))
        await session.rollback()
        await session.commit()
        await assert_not_enqueued(processor, send.job("bob"))
        enqueue_after_commit(processor, session, send.job("cy"))
        await session.commit()
        await assert_enqueued(processor, send.job("cy"))
    assert await processor.pending_count() == 2


async def test_a_job_of_a_savepoint_is_dropped_with_it(
    processor: Processor, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session, session.begin():
        enqueue_after_commit(processor, session, send.job("outer"))
        undone = await session.begin_nested()
        enqueue_after_commit(processor, session, send.job("undone"))
        await undone.rollback()
        async with session.begin_nested():
            enqueue_after_commit(processor, session, send.job("kept"))
        await assert_not_enqueued(processor, send)  # releasing a savepoint commits nothing
    await assert_enqueued(processor, send.job("outer"))
    await assert_enqueued(processor, send.job("kept"))
    await assert_not_enqueued(processor, send.job("undone"))


def test_a_session_that_is_not_async_uses_the_sync_client(tmp_path: Path) -> None:
    processor = Processor("memory://")
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    with Session(engine) as session:
        enqueue_after_commit(processor, session, send.job("ann"))
        session.commit()
    assert processor.sync.pending_count() == 1
    processor.sync.close()
    engine.dispose()


async def test_a_backend_that_does_not_answer_is_logged(
    processor: Processor,
    async_engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object, **__: object) -> str:
        raise BackendUnavailable("no answer", outcome="unknown")

    monkeypatch.setattr(processor, "enqueue", fail)
    async with AsyncSession(async_engine) as session:
        enqueue_after_commit(processor, session, send.job("ann"))
        await session.commit()
    assert "a job could not be enqueued after the commit" in caplog.text


async def test_a_job_that_fails_after_the_commit_takes_no_other_with_it(
    processor: Processor, async_engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse_ann(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> Any:
        if b"ann" in enqueueing.payload:
            raise LookupError("ann has left")
        return await call_next(enqueueing)

    processor.use_enqueue(refuse_ann)
    async with AsyncSession(async_engine) as session:
        for name in ("ann", "bob"):
            enqueue_after_commit(processor, session, send.job(name))
        await session.commit()
    await assert_enqueued(processor, send.job("bob"))
    assert "ann has left" in caplog.text


async def test_wrong_arguments_are_refused_before_the_commit(
    processor: Processor, async_engine: AsyncEngine
) -> None:
    wrong: Any = 5
    async with AsyncSession(async_engine) as session:
        with pytest.raises(InvalidJob, match="field 'to'"):
            enqueue_after_commit(processor, session, send.job(wrong))


async def test_a_session_that_is_closed_drops_the_jobs_of_its_transaction(
    processor: Processor, async_engine: AsyncEngine
) -> None:
    session = AsyncSession(async_engine)
    enqueue_after_commit(processor, session, send.job("ann"))
    await session.close()  # rolls back
    enqueue_after_commit(processor, session, send.job("bob"))
    await session.commit()
    await session.close()
    await assert_enqueued(processor, send.job("bob"))
    assert await processor.pending_count() == 1


@pytest.mark.parametrize("point", ["before the relay", "before the delete"])
def test_a_job_survives_a_process_that_dies_after_the_commit(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SQLModel application whose processes have the relay: one dies, another works."""
    monkeypatch.setenv("SHOP_FOLDER", str(tmp_path))
    command = [sys.executable, "-m", "tests.integrations.sqlmodel_shop"]
    died, worked = [
        subprocess.run([*command, what], cwd=ROOT, capture_output=True, text=True, check=False)
        for what in (point, "work")
    ]
    assert died.returncode == 9, died.stderr
    assert worked.stdout == f"relayed 1, then 0; orders 1; jobs {died.stdout}: receipt for hat"
