"""The outbox and its relay, on SQLite as the database of the application."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidJob,
    JobNotFound,
    NotSupported,
    UnusableConnection,
    WaitTimeout,
)
from nimburion.core.job import Enqueued, NewJob, State
from nimburion.core.queries import JobFilter
from nimburion.jobs import Processor, Unique, job
from nimburion.jobs.client.client import send_jobs
from nimburion.jobs.handling.middleware import Enqueueing, Next
from nimburion.jobs.outbox.outbox import Outbox, get_rows
from nimburion.jobs.outbox.relay import OutboxRelay, SendJobs
from nimburion.testing import FakeClock, assert_enqueued, assert_not_enqueued
from tests.house.tree import ROOT


@job
async def send(to: str) -> str:
    return f"sent to {to}"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "app.db")


@pytest.fixture
async def outbox(where: str) -> Outbox:
    made = Outbox(f"sqlite:///{where}")
    await made.create_table()
    return made


@pytest.fixture
async def processor(clock: FakeClock, outbox: Outbox) -> AsyncIterator[Processor]:
    made = Processor(MemoryBackend(clock=clock), clock=clock, outbox=outbox)
    made.register(send)
    async with made:
        yield made


@pytest.fixture
async def relay(processor: Processor, outbox: Outbox) -> AsyncIterator[OutboxRelay]:
    made = make_relay(processor, outbox)
    yield made
    await made.stop()


def make_relay(
    processor: Processor, outbox: Outbox, send_to_backend: SendJobs | None = None
) -> OutboxRelay:
    return OutboxRelay(
        outbox, send_to_backend or partial(send_jobs, processor), processor.clock, Random(0)
    )


async def store(processor: Processor, where: str, *names: str, **options: Any) -> list[str]:
    """Enqueue jobs in one transaction of the application."""
    with closing(sqlite3.connect(where)) as connection:
        jobs = [send.job(name) for name in names]
        ids = await processor.enqueue_many(jobs, connection=connection, **options)
        connection.commit()
    return [str(job_id) for job_id in ids]


def count_rows(where: str) -> int:
    with closing(sqlite3.connect(where)) as connection:
        return int(connection.execute("SELECT count(*) FROM nimburion_outbox").fetchone()[0])


async def test_a_committed_job_is_relayed_with_its_options(
    processor: Processor, relay: OutboxRelay, where: str, clock: FakeClock
) -> None:
    (job_id,) = await store(
        *(processor, where, "ann"), queue="mail", priority=7, after=60, headers={"a": "b"}
    )
    await assert_not_enqueued(processor.backend, send)
    clock.advance(10)
    assert await relay.relay() == 1
    record = await assert_enqueued(
        processor, send.job("ann"), queue="mail", priority=7, headers={"a": "b"}
    )
    assert record.id == job_id
    assert record.due == pytest.approx(clock.now() + 50)  # counted from the enqueue
    assert count_rows(where) == 0


async def test_a_relay_that_dies_before_the_delete_enqueues_once(
    processor: Processor,
    outbox: Outbox,
    relay: OutboxRelay,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (job_id,) = await store(processor, where, "ann")

    async def die(*_: object) -> None:
        raise ConnectionError("the process is gone")

    with monkeypatch.context() as patched:
        patched.setattr(get_rows(outbox), "delete", die)
        with pytest.raises(ConnectionError):
            await relay.relay()
    assert count_rows(where) == 1
    assert await relay.relay() == 1
    page = await processor.backend.reads.list_jobs(JobFilter(), limit=10)
    assert [each.id for each in page.jobs] == [job_id]


async def test_a_job_that_has_run_before_the_delete_does_not_run_again(
    processor: Processor, outbox: Outbox, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_id,) = await store(processor, where, "ann")

    async def die(*_: object) -> None:
        raise ConnectionError("the process is gone")

    with monkeypatch.context() as patched:
        patched.setattr(get_rows(outbox), "delete", die)
        with pytest.raises(ConnectionError):
            await processor.drain()
    assert await processor.drain() == 1
    assert await processor.drain() == 0
    assert (await processor.get_status(job_id)).attempt == 1


async def test_rows_stay_while_the_backend_does_not_answer(
    processor: Processor, outbox: Outbox, where: str
) -> None:
    await store(processor, where, "ann")

    async def fail(_: Sequence[NewJob]) -> list[Enqueued]:
        raise BackendUnavailable("no answer", outcome="unknown")

    relay = make_relay(processor, outbox, fail)
    with pytest.raises(BackendUnavailable):
        await relay.relay()
    await relay.stop()
    assert count_rows(where) == 1


async def test_rows_whose_jobs_are_enqueued_are_deleted_when_a_later_one_fails(
    processor: Processor, outbox: Outbox, where: str
) -> None:
    """A row that stays would be enqueued, and run, again once the record of its job is pruned."""
    await processor.enqueue(send.job("held"), unique_key="k")
    await store(processor, where, "ann", "bob")
    await store(processor, where, "cy", unique_key="k")
    await store(processor, where, "dan")
    answers = 0

    async def answer_three_times(jobs: Sequence[NewJob]) -> list[Enqueued]:
        nonlocal answers
        answers += 1  # all together, then one at a time
        if answers == 4:
            raise BackendUnavailable("no answer", outcome="not applied")
        return await send_jobs(processor, jobs)

    relay = make_relay(processor, outbox, answer_three_times)
    with pytest.raises(BackendUnavailable):
        await relay.relay()
    await relay.stop()
    assert count_rows(where) == 2
    await assert_enqueued(processor, send.job("bob"))


async def test_a_job_that_cannot_be_enqueued_stays_and_delays_no_other(
    processor: Processor,
    outbox: Outbox,
    relay: OutboxRelay,
    where: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(sqlite3.connect(where)) as connection, connection:
        connection.executemany(
            "INSERT INTO nimburion_outbox (job_id, name, created_at, job) VALUES (?, ?, ?, ?)",
            [("x", "send", processor.clock.now(), b'{"id": 5}')] * 100,
        )
    await store(processor, where, "ann")
    await relay.tick()
    await relay.tick()
    await assert_enqueued(processor, send.job("ann"))
    assert count_rows(where) == 100
    assert caplog.text.count("the job in row 1 of nimburion_outbox cannot be enqueued") == 1
    assert get_rows(outbox).counters.jobs == 100


async def test_a_job_that_cannot_be_enqueued_is_logged_once_by_all_drains(
    processor: Processor, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(where)) as connection, connection:
        connection.execute(
            "INSERT INTO nimburion_outbox (job_id, name, created_at, job) VALUES (?, ?, ?, ?)",
            ("x", "send", processor.clock.now(), b'{"id": 5}'),
        )
    await processor.drain()
    await processor.process_one()
    assert caplog.text.count("the job in row 1 of nimburion_outbox cannot be enqueued") == 1


async def test_a_page_ends_with_the_row_that_reaches_its_bytes(
    processor: Processor, outbox: Outbox, where: str
) -> None:
    ids = await store(processor, where, *["x" * 300_000] * 7, "small")
    sizes: list[int] = []

    async def count(jobs: Sequence[NewJob]) -> list[Enqueued]:
        sizes.append(len(jobs))
        return await send_jobs(processor, jobs)

    relay = make_relay(processor, outbox, count)
    assert await relay.relay() == len(ids)
    await relay.stop()
    assert sizes == [3, 3, 2]
    assert await processor.pending_count() == len(ids)


async def test_a_page_is_halved_until_the_backend_answers_in_time(
    processor: Processor, outbox: Outbox, where: str
) -> None:
    await store(processor, where, *map(str, range(20)))
    sizes: list[int] = []

    async def answer_few(jobs: Sequence[NewJob]) -> list[Enqueued]:
        sizes.append(len(jobs))
        if len(jobs) > 5:
            raise BackendUnavailable("no answer", outcome="unknown")
        return await send_jobs(processor, jobs)

    relay = make_relay(processor, outbox, answer_few)
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            await relay.tick()
    assert count_rows(where) == 20
    for left in (15, 10):  # the page grows after a success, and is halved again
        with pytest.raises(BackendUnavailable):
            await relay.tick()
        assert count_rows(where) == left
    await relay.tick()
    await relay.stop()
    assert count_rows(where) == 0
    assert sizes == [20, 10, 5, 10, 5, 10, 5, 5]


async def test_an_outage_of_its_database_is_two_lines_in_the_log(
    processor: Processor, where: str, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    await store(processor, where, "ann")
    problems = [sqlite3.OperationalError("the database is gone")]

    def connect() -> sqlite3.Connection:
        for problem in problems:
            raise problem
        return sqlite3.connect(where)

    relay = make_relay(processor, Outbox(connect))
    for _ in range(3):
        await relay._run_tick()
    assert str(relay.failure) == "the database is gone"  # the health check reads it
    problems.clear()
    for _ in range(2):
        await relay._run_tick()
    await relay.stop()
    assert relay.failure is None
    assert [record.getMessage() for record in caplog.records] == [
        "the outbox nimburion_outbox cannot be relayed, its jobs wait: the database is gone",
        "the outbox nimburion_outbox can be relayed again",
    ]
    await assert_enqueued(processor, send.job("ann"))


async def test_an_error_of_the_measurement_does_not_hide_that_of_the_backend(
    processor: Processor, outbox: Outbox, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(processor, where, "ann")

    async def fail(*_: object) -> list[Enqueued]:
        raise BackendUnavailable("no answer", outcome="unknown")

    async def break_down(*_: object) -> None:
        raise sqlite3.OperationalError("the database is gone")

    relay = make_relay(processor, outbox, fail)
    monkeypatch.setattr(get_rows(outbox), "measure", break_down)
    with pytest.raises(BackendUnavailable):
        await relay.tick()
    await relay.stop()


async def test_two_relays_that_send_one_row_together_enqueue_its_job_once(
    processor: Processor, outbox: Outbox, relay: OutboxRelay, where: str
) -> None:
    (job_id,) = await store(processor, where, "ann")
    sending, go_on = asyncio.Event(), asyncio.Event()

    async def send_late(jobs: Sequence[NewJob]) -> list[Enqueued]:
        sending.set()
        await go_on.wait()
        return await send_jobs(processor, jobs)

    first = make_relay(processor, outbox, send_late)
    relaying = asyncio.create_task(first.relay())
    async with asyncio.timeout(30):
        await sending.wait()
        assert await relay.relay() == 1
        assert await processor.drain() == 1  # it has even run
        go_on.set()
        await relaying
    await first.stop()
    assert await processor.drain() == 0
    page = await processor.backend.reads.list_jobs(JobFilter(), limit=10)
    assert [(each.id, each.attempt) for each in page.jobs] == [(job_id, 1)]
    assert count_rows(where) == 0


async def test_a_job_whose_unique_key_is_held_is_dropped_with_a_warning(
    processor: Processor,
    outbox: Outbox,
    relay: OutboxRelay,
    where: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = await processor.enqueue(send.job("ann"), unique_key="one")
    await store(processor, where, "bob", unique_key="one")
    await store(processor, where, "cy")
    with caplog.at_level(logging.WARNING, "nimburion.jobs"):
        assert await relay.relay() == 2
    assert f"job {held} holds its unique key" in caplog.text
    await assert_enqueued(processor, send.job("cy"))
    assert count_rows(where) == 0
    assert (get_rows(outbox).counters.relayed, get_rows(outbox).counters.dropped) == (1, 1)


async def test_a_job_replaces_the_holder_of_its_key_when_it_is_relayed(
    processor: Processor, relay: OutboxRelay, where: str
) -> None:
    await processor.enqueue(send.job("ann"), unique_key="one")
    await store(*(processor, where, "bob"), unique_key="one", unique=Unique(on_duplicate="replace"))
    assert await relay.relay() == 1
    await assert_enqueued(processor, send.job("bob"))
    assert await processor.pending_count() == 1


async def test_one_call_empties_the_outbox(
    processor: Processor, outbox: Outbox, relay: OutboxRelay, where: str
) -> None:
    await store(processor, where, *map(str, range(250)))
    await relay.tick()
    assert count_rows(where) == 0
    assert await processor.pending_count() == 250
    assert (get_rows(outbox).counters.jobs, get_rows(outbox).counters.oldest_seconds) == (0, 0.0)


async def test_the_lag_is_the_age_of_the_oldest_job(
    processor: Processor, outbox: Outbox, where: str, clock: FakeClock
) -> None:
    await store(processor, where, "ann")
    clock.advance(30)
    await store(processor, where, "bob")
    rows = get_rows(outbox)
    async with rows.open_database() as database:
        lag = await rows.measure(database, clock.now())
    assert lag.jobs == 2
    assert lag.seconds == pytest.approx(30)


async def test_the_metrics_of_a_worker_show_the_lag(
    processor: Processor, relay: OutboxRelay, where: str
) -> None:
    await store(processor, where, "ann")
    assert "outbox" not in processor.metrics.render()[0]  # no relay has looked here
    await relay.tick()
    text = processor.metrics.render()[0]
    assert "nimburion_outbox_jobs 0" in text
    assert "nimburion_outbox_relayed_total 1" in text


async def test_the_enqueue_middleware_runs_once_and_at_the_enqueue(
    processor: Processor, relay: OutboxRelay, where: str
) -> None:
    seen: list[str] = []

    async def name_tenant(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> Any:
        seen.append(enqueueing.name)
        enqueueing.queue = "mail"
        return await call_next(enqueueing)

    processor.use_enqueue(name_tenant)
    await store(processor, where, "ann")
    assert seen == ["send"]
    await relay.relay()
    await assert_enqueued(processor, send.job("ann"), queue="mail")
    assert seen == ["send"]


async def test_wrong_arguments_are_refused_at_the_enqueue(processor: Processor, where: str) -> None:
    wrong: Any = 5
    with closing(sqlite3.connect(where)) as connection, pytest.raises(InvalidJob, match="'to'"):
        await processor.enqueue(send.job(wrong), connection=connection)
    assert count_rows(where) == 0


async def test_enqueue_or_get_is_refused_and_writes_nothing(
    processor: Processor, where: str
) -> None:
    with closing(sqlite3.connect(where)) as connection:
        with pytest.raises(NotSupported, match=r"cannot say"):
            await processor.enqueue_or_get(send.job("ann"), connection=connection)
        connection.commit()
    assert count_rows(where) == 0


async def test_a_database_without_the_table_is_named_in_the_error(
    processor: Processor, tmp_path: Path
) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "other.db")) as connection,
        pytest.raises(UnusableConnection, match=r"no table nimburion_outbox .*create_table"),
    ):
        await processor.enqueue(send.job("ann"), connection=connection)


async def test_a_connection_that_commits_each_statement_is_refused(
    processor: Processor, where: str
) -> None:
    engine = create_engine(f"sqlite:///{where}", isolation_level="AUTOCOMMIT")
    with (
        closing(sqlite3.connect(where, isolation_level=None)) as connection,
        engine.connect() as alchemy,
    ):
        for each in (connection, alchemy):
            with pytest.raises(UnusableConnection, match="no transaction is open"):
                await processor.enqueue(send.job("ann"), connection=each)
    engine.dispose()
    assert count_rows(where) == 0


async def test_wait_waits_for_the_relay(processor: Processor, where: str, outbox: Outbox) -> None:
    (job_id,) = await store(processor, where, "ann")
    rows = get_rows(outbox)
    async with rows.open_database() as database:
        assert (await rows.find_waiting(database, [job_id, "other"])).keys() == {job_id}
    with pytest.raises(WaitTimeout, match="is in the outbox, not relayed yet"):
        await processor.wait(job_id, timeout=0)
    await processor.drain()
    assert await processor.wait(job_id) == "sent to ann"


async def test_a_status_shows_a_job_that_is_not_relayed(
    processor: Processor, where: str, clock: FakeClock
) -> None:
    options: dict[str, Any] = {"priority": 7, "tenant": "acme", "tags": ["media"]}
    now = await store(processor, where, "ann", **options)
    later = await store(processor, where, "bob", after=60)
    statuses = [await processor.get_status(job_id) for job_id in now + later]
    assert [status.state for status in statuses] == [State.PENDING, State.SCHEDULED]
    assert (statuses[0].args, statuses[0].attempt) == ({"to": "ann"}, 1)
    assert (statuses[0].priority, statuses[0].tenant, statuses[0].tags) == (7, "acme", ("media",))
    assert statuses[1].due.timestamp() == clock.now() + 60
    known = await processor.get_statuses(["unknown", *now])
    assert known == {"unknown": None, now[0]: statuses[0]}
    with pytest.raises(JobNotFound):
        await processor.get_status("unknown")
    await processor.drain()
    assert (await processor.get_status(now[0])).state == State.COMPLETED


async def test_a_job_that_is_not_relayed_can_be_cancelled_and_run_now(
    processor: Processor, relay: OutboxRelay, where: str
) -> None:
    first, second = await store(processor, where, "ann", "bob", after=60)
    assert await processor.cancel(first) == "cancelled"
    assert await processor.run_now(second)
    assert await relay.relay() == 2
    assert count_rows(where) == 0
    assert await processor.drain() == 1
    statuses = await processor.get_statuses([first, second])
    assert [status and status.state for status in statuses.values()] == ["cancelled", "completed"]
    for method in (processor.cancel, processor.run_now):
        with pytest.raises(JobNotFound):
            await method("unknown")


async def test_assertions_see_the_outbox(processor: Processor, where: str) -> None:
    await assert_not_enqueued(processor, send)
    await store(processor, where, "ann", priority=7)
    assert (await assert_enqueued(processor, send, to="ann")).priority == 7
    with pytest.raises(AssertionError, match=re.escape('{"to":"ann"}')):
        await assert_enqueued(processor, send, to="bob")
    with pytest.raises(AssertionError, match="was enqueued"):
        await assert_not_enqueued(processor, send, to="ann")


async def test_a_burst_relays_before_it_ends(processor: Processor, where: str) -> None:
    (job_id,) = await store(processor, where, "ann")
    await processor.run(signals=False, until_empty=True)
    assert await processor.wait(job_id, timeout=0) == "sent to ann"
    assert count_rows(where) == 0


async def test_a_wait_opens_one_connection(where: str, outbox: Outbox, clock: FakeClock) -> None:
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(where, check_same_thread=False))
        return opened[-1]

    processor = Processor(MemoryBackend(clock=clock), clock=clock, outbox=Outbox(connect))
    processor.register(send)
    async with processor:
        (job_id,) = await store(processor, where, "ann")
        waiting = asyncio.create_task(processor.wait(job_id, timeout=5))
        async with asyncio.timeout(30):
            while not waiting.done():
                clock.advance(1)
                await asyncio.sleep(0)
        with pytest.raises(WaitTimeout, match="is in the outbox, not relayed yet"):
            await waiting
    assert len(opened) == 1
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


async def test_a_wait_ends_in_time_while_the_database_of_the_outbox_hangs() -> None:
    answer = threading.Event()
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        answer.wait(30)
        opened.append(sqlite3.connect(":memory:", check_same_thread=False))
        return opened[-1]

    async with Processor("memory://", outbox=Outbox(connect)) as processor:
        try:
            with pytest.raises(WaitTimeout, match="the database of the outbox did not answer"):
                async with asyncio.timeout(20):
                    await processor.wait("unknown", timeout=0)
        finally:
            answer.set()


async def test_an_error_of_the_driver_is_one_of_nimburion() -> None:
    def refuse() -> sqlite3.Connection:
        raise sqlite3.OperationalError("refused")

    async with Processor("memory://", outbox=Outbox(refuse)) as processor:
        with pytest.raises(BackendUnavailable, match=r"database of the outbox .*refused"):
            await processor.wait("unknown", timeout=5)


async def test_an_unknown_id_is_not_found_even_without_a_table(tmp_path: Path) -> None:
    outbox = Outbox(f"sqlite:///{tmp_path}/other.db")
    async with Processor("memory://", outbox=outbox) as processor:
        with pytest.raises(JobNotFound):
            await processor.wait("unknown")


async def test_the_lag_is_noted_while_the_backend_does_not_answer(
    processor: Processor, outbox: Outbox, where: str, clock: FakeClock
) -> None:
    await store(processor, where, "ann")
    clock.advance(5)

    async def fail(_: Sequence[NewJob]) -> list[Enqueued]:
        raise BackendUnavailable("no answer", outcome="unknown")

    relay = make_relay(processor, outbox, fail)
    with pytest.raises(BackendUnavailable):
        await relay.tick()
    await relay.stop()
    assert get_rows(outbox).counters.jobs == 1
    assert get_rows(outbox).counters.oldest_seconds == pytest.approx(5)


async def test_what_a_job_enqueues_through_the_outbox_is_drained_too(
    processor: Processor, where: str
) -> None:
    @processor.job
    async def first() -> None:
        await store(processor, where, "ann")

    await processor.enqueue(first.job())
    assert await processor.drain() == 2


# The database of the outbox


@pytest.mark.parametrize("kind", ["engine", "async engine", "function", "async function"])
async def test_each_kind_of_database_can_be_relayed_from(
    kind: str, where: str, processor: Processor, outbox: Outbox
) -> None:
    import aiosqlite

    engine = create_engine(f"sqlite:///{where}")
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{where}")
    databases: dict[str, Any] = {
        "engine": engine,
        "async engine": async_engine,
        "function": partial(sqlite3.connect, where),
        "async function": partial(aiosqlite.connect, where),
    }
    await store(processor, where, "ann")
    relay = make_relay(processor, Outbox(databases[kind]))
    assert await relay.relay() == 1
    assert await relay.relay() == 0
    await relay.stop()
    engine.dispose()
    await async_engine.dispose()


async def test_a_connection_that_breaks_is_replaced(
    processor: Processor, outbox: Outbox, where: str
) -> None:
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(where, check_same_thread=False))
        return opened[-1]

    relay = make_relay(processor, Outbox(connect))
    assert await relay.relay() == 0
    assert await relay.relay() == 0
    assert len(opened) == 1  # it is kept
    opened[0].close()
    await store(processor, where, "ann")
    with pytest.raises(sqlite3.ProgrammingError):
        await relay.relay()
    assert await relay.relay() == 1
    assert len(opened) == 2
    await relay.stop()


class ClosableConnection:
    """A connection of an unknown driver."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_connection_of_an_unknown_driver_is_closed(is_async: bool) -> None:
    connection = ClosableConnection()

    async def connect() -> ClosableConnection:
        return connection

    outbox = Outbox(connect if is_async else lambda: connection)
    with pytest.raises(UnusableConnection, match="no connection that nimburion knows"):
        await outbox.read_lag()
    assert connection.closed.is_set()


async def test_a_connection_that_opens_after_a_cancel_is_closed() -> None:
    connecting, answer, connection = threading.Event(), threading.Event(), ClosableConnection()

    def connect() -> ClosableConnection:
        connecting.set()
        answer.wait(30)
        return connection

    reading = asyncio.create_task(Outbox(connect).read_lag())
    await asyncio.to_thread(connecting.wait, 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    answer.set()
    assert await asyncio.to_thread(connection.closed.wait, 30)


async def test_a_cancelled_use_does_not_wait_for_its_driver(where: str) -> None:
    running, answer = threading.Event(), threading.Event()

    def hang() -> None:
        running.set()
        answer.wait(30)

    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(where))
        return opened[-1]

    async with get_rows(Outbox(connect)).open_database() as database:
        using = asyncio.create_task(database.run(lambda adapter: adapter.caller.run(hang)))
        await asyncio.to_thread(running.wait, 30)
        using.cancel()
        try:
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(20):
                    await using
            assert not answer.is_set()
        finally:
            answer.set()


def test_what_is_not_a_database_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"is no URL for an outbox"):
        Outbox("mysql://localhost/app")
    wrong: Any = 5
    with pytest.raises(ConfigurationError, match=r"not int"):
        Outbox(wrong)
    for url in ("sqlite:///:memory:", "sqlite:///"):
        with pytest.raises(ConfigurationError, match=r"an outbox needs a file"):
            Outbox(url)
    with pytest.raises(ConfigurationError, match=r"is not the name of a table"):
        Outbox("sqlite:///app.db", table="outbox; DROP TABLE account")


def test_an_interval_is_seconds_or_a_timedelta() -> None:
    assert Outbox("sqlite:///app.db", interval=timedelta(seconds=2)).interval == 2.0
    wrong: Any
    for wrong in (0, -1, float("nan"), float("inf"), None, timedelta(0), "soon"):
        with pytest.raises(ConfigurationError, match=r"the interval of an outbox"):
            Outbox("sqlite:///app.db", interval=wrong)


async def test_the_table_of_sqlalchemy_is_that_of_the_statement(tmp_path: Path) -> None:
    """Both are used in one program: migrations make one, a test the other."""
    columns = []
    for name in ("alchemy", "statement"):
        where = tmp_path / f"{name}.db"
        outbox = Outbox(f"sqlite:///{where}")
        if name == "alchemy":
            engine = create_engine(f"sqlite:///{where}")
            metadata = MetaData()
            outbox.add_table(metadata)
            metadata.create_all(engine)
            engine.dispose()
        else:
            await outbox.create_table()
            await outbox.create_table()
        with closing(sqlite3.connect(where)) as connection:
            rows = connection.execute("PRAGMA table_info(nimburion_outbox)").fetchall()
        columns.append([(row[1], row[3] or row[5], row[5]) for row in rows])
    assert columns[0] == columns[1]
    assert [column[0] for column in columns[0]] == [
        "position",
        "job_id",
        "name",
        "created_at",
        "job",
    ]


@pytest.mark.parametrize("point", ["before the relay", "before the delete"])
def test_a_job_survives_a_process_that_dies_after_the_commit(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SQLModel application whose processes have the outbox: one dies, another works."""
    monkeypatch.setenv("SHOP_FOLDER", str(tmp_path))
    command = [sys.executable, "-m", "tests.jobs.outbox.sqlmodel_shop"]
    died, worked = [
        subprocess.run([*command, what], cwd=ROOT, capture_output=True, text=True, check=False)
        for what in (point, "work")
    ]
    assert died.returncode == 9, died.stderr
    assert worked.stdout == f"orders 1; jobs {died.stdout}: receipt for hat", worked.stderr


# The backend in memory stores jobs after the commit of a session


async def test_memory_enqueues_after_the_commit(processor: Processor, where: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{where}")
    async with AsyncSession(engine) as session:
        await processor.enqueue(send.job("ann"), connection=session, tenant="acme")
        await assert_not_enqueued(processor, send)
        await session.commit()
        await assert_enqueued(processor, send.job("ann"), tenant="acme")
        await processor.enqueue(send.job("bob"), connection=session)
        await session.rollback()
        await session.commit()
        await assert_not_enqueued(processor, send.job("bob"))
        await processor.enqueue(send.job("cy"), connection=session, after=5)
        await session.commit()
    assert await processor.pending_count() == 2
    assert count_rows(where) == 0
    await engine.dispose()


async def test_memory_drops_the_job_of_a_savepoint(processor: Processor, where: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{where}")
    async with AsyncSession(engine) as session, session.begin():
        await processor.enqueue(send.job("outer"), connection=session)
        undone = await session.begin_nested()
        await processor.enqueue(send.job("undone"), connection=session)
        await undone.rollback()
        async with session.begin_nested():
            await processor.enqueue(send.job("kept"), connection=session)
        await assert_not_enqueued(processor, send)  # releasing a savepoint commits nothing
    await assert_enqueued(processor, send.job("outer"))
    await assert_enqueued(processor, send.job("kept"))
    await assert_not_enqueued(processor, send.job("undone"))
    await engine.dispose()


async def test_memory_drops_the_job_of_a_session_that_is_closed(
    processor: Processor, where: str
) -> None:
    engine = create_engine(f"sqlite:///{where}")
    with Session(engine) as session:
        await processor.enqueue(send.job("ann"), connection=session)
    with Session(engine) as session:
        await processor.enqueue(send.job("bob"), connection=session)
        session.commit()
    await assert_enqueued(processor, send.job("bob"))
    assert await processor.pending_count() == 1
    engine.dispose()


def test_memory_follows_a_session_of_another_thread(where: str) -> None:
    processor = Processor("memory://")
    engine = create_engine(f"sqlite:///{where}")
    with Session(engine) as session:
        job_id = processor.sync.enqueue(send.job("ann"), connection=session)
        assert processor.sync.pending_count() == 0
        session.commit()
    assert processor.sync.get_status(job_id).state is State.PENDING
    processor.sync.close()
    engine.dispose()


async def test_a_job_that_memory_refuses_after_the_commit_is_logged_and_delays_no_other(
    processor: Processor, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(f"sqlite:///{where}")
    await processor.enqueue(send.job("held"), unique_key="one")
    with Session(engine) as session:
        await processor.enqueue(send.job("ann"), connection=session, unique_key="one")
        await processor.enqueue(send.job("bob"), connection=session)
        session.commit()
    await assert_enqueued(processor, send.job("bob"))
    assert "a job could not be enqueued after the commit, and is lost" in caplog.text
    engine.dispose()


async def test_memory_without_an_outbox_names_it_for_a_connection_without_a_hook(
    where: str,
) -> None:
    async with Processor("memory://") as processor:
        with (
            closing(sqlite3.connect(where)) as connection,
            pytest.raises(NotSupported, match=r"sqlite3.Connection.*outbox=Outbox"),
        ):
            await processor.enqueue(send.job("ann"), connection=connection)
