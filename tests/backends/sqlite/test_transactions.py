"""Transactions of callers and handlers on a SQLite file, where something is odd or goes wrong."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite import SQLiteBackend, transactions
from nimburion.backends.sqlite.notifications import CommitPoller
from nimburion.core.errors import (
    BackendUnavailable,
    DefinitionError,
    NotOpen,
    PermanentError,
    ResultNotKept,
    TransactionExpired,
    UnusableConnection,
)
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.job import AttemptError, NewJob, State
from nimburion.core.maintenance import Retention
from nimburion.core.session import Session
from nimburion.core.settlement import Settlement
from nimburion.core.transactions import CallerConnection
from nimburion.jobs import Context, Processor
from nimburion.jobs.handling.attempt_record import RETURNED_TOO_LATE
from nimburion.testing.clock import FakeClock
from tests.waiting import wait_until, wait_until_finished

DEADLINE = 20.0
ROW = "INSERT INTO account VALUES (1)"


@pytest.fixture
def application(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the application, with a table of its own."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE account (amount INTEGER)")
        yield connection


@pytest.fixture
async def processor(
    application: sqlite3.Connection, backend: SQLiteBackend, clock: FakeClock
) -> AsyncIterator[Processor]:
    made = Processor(backend, clock=clock, max_retries=0, retry_backoff=0.0)
    async with made:
        yield made


def rows(path: Path) -> int:
    """How many rows the application's table has for everybody."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM account").fetchone()[0])


async def run(processor: Processor, handler: Callable[..., Any]) -> Any:
    """Run one job with this handler; its status."""
    processor.register("pay", handler)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await asyncio.wait_for(processor.process_one(), DEADLINE)
    return await processor.get_status(job_id)


# Connections


@pytest.mark.parametrize("how", ["isolation_level", "autocommit"])
async def test_a_connection_that_commits_each_statement_is_refused(
    backend: SQLiteBackend, path: Path, how: str
) -> None:
    if how == "autocommit" and not hasattr(sqlite3.Connection, "autocommit"):
        return  # before Python 3.12
    options: dict[str, Any] = {how: None if how == "isolation_level" else True}
    with (
        closing(sqlite3.connect(path, **options)) as connection,
        pytest.raises(UnusableConnection, match="no transaction is open"),
    ):
        await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "n", "q", b"{}")]
        )
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 0


async def test_the_callers_own_settings_do_not_matter(backend: SQLiteBackend, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = lambda cursor, row: {"a dict": row}
        connection.text_factory = bytes
        jobs = [NewJob("a", "n", "q", b"{}"), NewJob("a", "n", "q", b"{}")]
        results = await backend.producing.enqueue_in(CallerConnection(connection), jobs)
        assert [one.outcome for one in results] == ["created", "exists"]
        assert connection.execute("SELECT 'x'").fetchone() == {"a dict": (b"x",)}
        connection.commit()
    assert (await backend.reads.get_job("a")).state is State.PENDING


async def test_a_database_in_memory_is_refused(backend: SQLiteBackend) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(UnusableConnection, match="a database in memory"),
    ):
        await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "n", "q", b"{}")]
        )


async def test_a_closed_connection_is_rejected(backend: SQLiteBackend, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        pass
    with pytest.raises(UnusableConnection, match="closed database"):
        await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "n", "q", b"{}")]
        )


async def test_a_connection_of_another_thread_is_rejected(
    backend: SQLiteBackend, path: Path
) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        connection = await loop.run_in_executor(thread, sqlite3.connect, path)
        with pytest.raises(UnusableConnection, match="same thread"):
            await backend.producing.enqueue_in(
                CallerConnection(connection), [NewJob("a", "n", "q", b"{}")]
            )
        await loop.run_in_executor(thread, connection.close)


async def test_a_transaction_that_read_too_early_names_begin_immediate(
    backend: SQLiteBackend, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM job").fetchone()
        await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
        with pytest.raises(BackendUnavailable, match="BEGIN IMMEDIATE") as unavailable:
            await backend.producing.enqueue_in(
                CallerConnection(connection), [NewJob("b", "n", "q", b"{}")]
            )
    assert unavailable.value.outcome == "not applied"


async def test_an_open_transaction_delays_writes_only_after_it_has_written(
    backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimburion.backends.sqlite.connection.threads.BUSY_TIMEOUT", 0.05)
    session = Session(id="5e" * 16, ttl=60.0, names=("n",))
    await backend.consuming.open_session(session)
    writes: list[Callable[[int], Awaitable[object]]] = [
        lambda n: backend.consuming.exchange(session.id, n, [], RESERVE_NOTHING),
        lambda _: backend.consuming.heartbeat(session.id),
        lambda _: backend.consuming.rescue(9, max_lost=3),
        lambda _: backend.consuming.promote(9),
        lambda _: backend.maintenance.prune(Retention(), 9),
        lambda n: backend.producing.enqueue([NewJob(f"{n}", "n", "q", b"{}")]),
        lambda _: backend.maintenance.pause_queue("q", paused=True),
    ]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM job").fetchone()
        for write in writes:
            await write(1)
        connection.execute("COMMIT")
        connection.execute("BEGIN")
        await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "n", "q", b"{}")]
        )
        for write in writes:
            with pytest.raises(BackendUnavailable) as refused:
                await write(2)
            assert refused.value.outcome == "not applied"
        assert (await backend.reads.get_job("1")).name == "n"
        assert sum((await backend.reads.count_jobs(budget=None)).values()) == 1
        connection.execute("COMMIT")
    for write in writes:
        await write(2)


async def test_callers_transactions_need_an_open_backend(path: Path) -> None:
    backend = SQLiteBackend(path)
    with pytest.raises(NotOpen):
        backend.producing.transaction(None)
    await backend.open()
    await backend.close()
    with pytest.raises(NotOpen):
        await backend.producing.enqueue_in(CallerConnection(None), [NewJob("a", "n", "q", b"{}")])


def test_a_plain_script_enqueues_in_a_transaction_on_its_own_thread(
    path: Path, application: sqlite3.Connection
) -> None:
    asyncio.run(SQLiteBackend(path).migrate())
    processor = Processor(SQLiteBackend(path))
    try:
        with application:
            application.execute(ROW)  # the backend is opened while this holds the lock
            processor.sync.enqueue_raw("pay", b"{}", connection=application)
            assert processor.sync.pending_count() == 0
        assert processor.sync.pending_count() == 1
        processor.sync.enqueue_raw("pay", b"{}", connection=application)
        application.rollback()
        assert processor.sync.pending_count() == 1
    finally:
        processor.sync.close()


async def test_a_connection_of_a_loop_is_not_used_from_a_thread(
    processor: Processor, path: Path
) -> None:
    async with aiosqlite.connect(path) as connection:
        with pytest.raises(UnusableConnection, match=r"await the processor"):
            await asyncio.to_thread(processor.sync.enqueue_raw, "pay", b"{}", connection=connection)


# Notifications


async def test_a_waiter_wakes_after_a_commit_on_a_callers_connection(
    backend: SQLiteBackend, path: Path, application: sqlite3.Connection
) -> None:
    waiting = asyncio.create_task(backend.consuming.wait(["q"], 1_000.0))
    await backend.producing.enqueue_in(
        CallerConnection(application), [NewJob("a", "n", "q", b"{}")]
    )
    await asyncio.sleep(0)
    assert not waiting.done()
    application.commit()
    await asyncio.wait_for(waiting, DEADLINE)


async def test_a_commit_poller_notifies_once_after_the_commit() -> None:
    looks: list[list[str]] = []
    notified: list[Any] = []
    pauses: list[float] = []

    async def look(ids: list[str]) -> list[str]:
        looks.append(ids)
        return ids if len(looks) == 3 else []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    watch = CommitPoller(look, notified.append, sleep=pause)
    watch.add("a", {"q": 1})
    await wait_until(lambda: bool(notified), "it notifies")
    await watch.close()
    assert (looks, notified) == ([["a"]] * 3, [{"q": 1}])
    assert pauses == sorted(pauses)


async def test_a_commit_poller_gives_up_on_a_rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimburion.backends.sqlite.notifications._COMMIT_TIMEOUT", 0.0)
    looks: list[list[str]] = []

    async def look(ids: list[str]) -> list[str]:
        looks.append(ids)
        return []

    watch = CommitPoller(look, lambda _: None, sleep=lambda _: asyncio.sleep(0))
    watch.add("a", {"q": 1})
    await wait_until(lambda: watch._task is not None and watch._task.done(), "it gives up")
    assert looks == [["a"]]


# Handlers


async def test_an_async_handler_writes_and_completes_in_one_commit(
    processor: Processor, path: Path
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            await processor.enqueue_raw("thank", b"{}", connection=connection)
            assert rows(path) == 0

    status = await run(processor, pay)
    assert (status.state, rows(path)) == (State.COMPLETED, 1)
    assert await processor.pending_count() == 1


async def test_a_def_handler_does_so_with_with(processor: Processor, path: Path) -> None:
    def pay(ctx: Context, _: bytes) -> None:
        with ctx.transaction() as connection:
            connection.execute(ROW)
            processor.sync.enqueue_raw("thank", b"{}", connection=connection)

    status = await run(processor, pay)
    assert (status.state, status.error, rows(path)) == (State.COMPLETED, None, 1)
    assert await processor.pending_count() == 1


async def test_an_error_inside_undoes_all_of_it(processor: Processor, path: Path) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            raise ValueError("no money")

    status = await run(processor, pay)
    assert (status.state, status.error.type, rows(path)) == (State.FAILED, "ValueError", 0)


async def test_what_fails_after_the_commit_changes_nothing(
    processor: Processor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
        raise ValueError("too late")

    status = await run(processor, pay)
    assert (status.state, status.failures, rows(path)) == (State.COMPLETED, 0, 1)
    assert "completed by its own transaction" in caplog.text


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_a_hook_writes_its_rows_with_the_outcome_of_the_failed_attempt(
    kind: str, processor: Processor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It never completes the job: the outcome stays, with its history."""
    called: list[str] = []

    async def pay(ctx: Context, _: bytes) -> None:
        raise ValueError("no money")

    async def write(ctx: Context, _: AttemptError) -> None:
        called.append(ctx.job_id)
        async with ctx.transaction() as connection:
            connection.execute(ROW)

    def write_in_thread(ctx: Context, _: AttemptError) -> None:
        called.append(ctx.job_id)
        with ctx.transaction() as connection:
            connection.execute(ROW)

    hook = write if kind == "async" else write_in_thread
    processor.on_failure(hook)
    processor.on_dead(hook)
    processor.register("pay", pay, max_retries=1, retry_backoff=0.0)
    job_id = await processor.enqueue_raw("pay", b"{}")
    assert await processor.drain() == 2
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures, rows(path)) == (State.FAILED, 2, 2)
    assert [each.type for each in record.history] == ["ValueError", "ValueError"]
    assert called == [job_id, job_id]
    assert "the hook" not in caplog.text
    assert "its outcome was not written" not in caplog.text


async def test_a_row_of_a_hook_and_the_dead_letter_are_one_commit(
    processor: Processor, path: Path
) -> None:
    """A worker stores them that is killed before it reports the outcome."""
    seen: list[object] = []

    async def pay(ctx: Context, _: bytes) -> None:
        raise PermanentError("no money")

    @processor.on_dead
    async def write(ctx: Context, _: AttemptError) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            seen.append((await processor.get_status(ctx.job_id)).state)
        status = await processor.get_status(ctx.job_id)
        seen.append((status.state, status.reason, rows(path)))

    status = await run(processor, pay)
    assert seen == [State.PROCESSING, (State.FAILED, "permanent", 1)]
    assert (status.state, len(status.history)) == (State.FAILED, 1)


@pytest.mark.parametrize("in_worker", [False, True])
async def test_an_outcome_that_a_hook_has_stored_is_not_sent_again(
    processor: Processor,
    backend: SQLiteBackend,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    in_worker: bool,
) -> None:
    """It would be stale when another worker has run the next attempt meanwhile."""
    sent: list[Settlement] = []
    exchange = backend.consuming.exchange

    async def note(
        session_id: str, number: int, settlements: Sequence[Settlement], want: ReserveRequest
    ) -> Reply:
        sent.extend(settlements)
        return await exchange(session_id, number, settlements, want)

    async def pay(ctx: Context, _: bytes) -> None:
        raise ValueError("no money")

    @processor.on_failure
    @processor.on_dead
    async def write(ctx: Context, _: AttemptError) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)

    monkeypatch.setattr(backend.consuming, "exchange", note)
    processor.register("pay", pay, max_retries=1)
    job_id = await processor.enqueue_raw("pay", b"{}")
    if in_worker:
        await processor.start()
        record = await wait_until_finished(processor, job_id)
        await processor.stop()
    else:
        assert await processor.drain() == 2
        record = await backend.reads.get_job(job_id)
    assert (record.state, record.failures, rows(path), sent) == (State.FAILED, 2, 2, [])


@pytest.mark.parametrize("where", ["inside", "after"])
async def test_an_error_of_a_hook_changes_nothing_about_the_outcome(
    where: str, processor: Processor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        raise ValueError("no money")

    @processor.on_dead
    async def write(ctx: Context, _: AttemptError) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            if where == "inside":
                raise RuntimeError("oh")
        raise RuntimeError("oh")

    status = await run(processor, pay)
    expected = 0 if where == "inside" else 1
    assert (status.state, len(status.history), rows(path)) == (State.FAILED, 1, expected)
    assert "which changes nothing about the job" in caplog.text


async def test_one_transaction_of_one_hook_writes_the_outcome(
    processor: Processor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        raise ValueError("no money")

    @processor.on_dead
    @processor.on_dead
    async def write(ctx: Context, _: AttemptError) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)

    status = await run(processor, pay)
    assert (status.state, len(status.history), rows(path)) == (State.FAILED, 1, 1)
    assert caplog.text.count("the outcome of this attempt is decided") == 1


async def test_a_handler_that_runs_on_after_its_timeout_cannot_complete_the_job(
    processor: Processor, path: Path
) -> None:
    """Its hooks were called for a failed attempt."""
    is_hook_called, has_ended = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def pay(ctx: Context, _: bytes) -> None:
        try:
            with ctx.transaction() as connection:
                connection.execute(ROW)
                assert is_hook_called.wait(DEADLINE)
        except DefinitionError as error:
            raised.append(error)
        finally:
            has_ended.set()

    @processor.on_dead
    async def wait_for_handler(ctx: Context, _: AttemptError) -> None:
        is_hook_called.set()
        assert await asyncio.to_thread(has_ended.wait, DEADLINE)

    processor.register("pay", pay, max_retries=0, timeout=0.1)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await processor.start()
    record = await wait_until_finished(processor, job_id)
    assert (record.state, record.failures, rows(path)) == (State.FAILED, 1, 0)
    assert len(raised) == 1


async def test_a_handler_cannot_commit_by_itself(processor: Processor, path: Path) -> None:
    """Else its rows could stay without the completion, and be written twice."""

    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            connection.commit()

    status = await run(processor, pay)
    assert (status.state, rows(path)) == (State.FAILED, 0)
    assert "not authorized" in status.error.message


async def test_a_handler_whose_job_was_rescued_keeps_nothing(
    processor: Processor, path: Path, backend: SQLiteBackend, clock: FakeClock
) -> None:
    fences: list[int] = []

    async def pay(ctx: Context, _: bytes) -> None:
        fences.append(ctx.fence)
        if ctx.fence == 1:
            clock.advance(3_600.0)
            await backend.consuming.rescue(10, max_lost=3)
        async with ctx.transaction() as connection:
            connection.execute(ROW)

    processor.register("pay", pay)
    job_id = await processor.enqueue_raw("pay", b"{}")
    with pytest.raises(Exception, match="is not alive"):  # the inline runner's own session is gone
        await processor.process_one()
    assert rows(path) == 0
    await processor.process_one()
    status = await processor.get_status(job_id)
    assert (status.state, status.lost, fences, rows(path)) == (State.COMPLETED, 1, [1, 2], 1)


async def test_a_handler_that_times_out_inside_keeps_nothing(
    processor: Processor, path: Path, clock: FakeClock
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            await asyncio.Event().wait()

    processor.register("pay", pay, timeout=0.01)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await processor.process_one()
    status = await processor.get_status(job_id)
    assert (status.state, status.error.kind if status.error else "", rows(path)) == (
        (State.FAILED, "timeout", 0)
    )


async def test_two_handlers_of_a_process_run_one_after_the_other(
    processor: Processor, path: Path
) -> None:
    """On one thread, one that waited for the lock would keep the other from giving it back."""
    inside: list[int] = []
    left = 10
    over = asyncio.Event()

    async def pay(ctx: Context, _: bytes) -> None:
        nonlocal left
        async with ctx.transaction() as connection:
            inside.append(1)
            connection.execute(ROW)
            for _turn in range(20):
                await asyncio.sleep(0)
            assert len(inside) == 1
            inside.clear()
        left -= 1
        if not left:
            over.set()

    processor.register("pay", pay)
    for _ in range(left):
        await processor.enqueue_raw("pay", b"{}")
    await processor.start()
    await asyncio.wait_for(over.wait(), DEADLINE)
    await processor.stop()
    assert rows(path) == 10


async def test_the_block_that_does_not_fit_the_handler_is_refused(processor: Processor) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        with ctx.transaction():
            pass

    status = await run(processor, pay)
    assert status.error.type == "UseAwait"
    assert "async with" in status.error.message


async def test_a_backend_without_transactions_is_rejected() -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction():
            pass

    async with Processor(MemoryBackend(), max_retries=0) as processor:
        status = await run(processor, pay)
    assert status.error.type == "NotSupported"


# Five seconds


async def test_an_async_handler_loses_the_lock_after_five_seconds(
    processor: Processor, path: Path, backend: SQLiteBackend, clock: FakeClock
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            connection.execute("SELECT * FROM account").fetchall()
            clock.advance(60.0)  # reading holds nobody up
            connection.execute(ROW)
            await wait_until(lambda: clock.sleepers > 0, "the transaction is timed")
            clock.advance(transactions.MAX_SECONDS)
            await wait_until(lambda: not connection.in_transaction, "it is rolled back")
            await backend.producing.enqueue(
                [NewJob("other", "n", "q", b"{}")]
            )  # others write again
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                connection.execute(ROW)

    status = await run(processor, pay)
    assert (status.state, status.error.type, rows(path)) == (
        (State.FAILED, TransactionExpired.__name__, 0)
    )


async def test_a_def_handler_loses_the_lock_after_five_seconds(
    processor: Processor, path: Path, clock: FakeClock
) -> None:
    written, over = threading.Event(), threading.Event()

    def pay(ctx: Context, _: bytes) -> None:
        with ctx.transaction() as connection:
            connection.execute(ROW)
            written.set()
            over.wait(DEADLINE)
            connection.execute(ROW)

    processor.register("pay", pay)
    job_id = await processor.enqueue_raw("pay", b"{}")
    running = asyncio.create_task(processor.process_one())
    await asyncio.to_thread(written.wait, DEADLINE)
    await wait_until(lambda: clock.sleepers > 0, "the transaction is timed")
    clock.advance(transactions.MAX_SECONDS)
    async with asyncio.timeout(DEADLINE):
        await processor.enqueue_raw("other", b"{}")
    over.set()
    await running
    status = await processor.get_status(job_id)
    assert (status.state, rows(path)) == (State.FAILED, 0)
    assert status.error is not None
    assert status.error.type == TransactionExpired.__name__


async def test_after_one_that_expired_the_next_has_its_turn(
    processor: Processor, path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            sleepers = clock.sleepers
            connection.execute(ROW)
            if ctx.attempt == 1:
                await wait_until(lambda: clock.sleepers > sleepers, "the transaction is timed")
                clock.advance(transactions.MAX_SECONDS)
                await wait_until(lambda: not connection.in_transaction, "it is rolled back")

    processor.register("pay", pay, max_retries=1, retry_backoff=0.0)
    job_id = await processor.enqueue_raw("pay", b"{}")
    assert await processor.drain() == 2
    status = await processor.get_status(job_id)
    assert (status.state, rows(path)) == (State.COMPLETED, 1)
    assert [error.type for error in status.history] == [TransactionExpired.__name__]


# Results


async def test_a_result_that_is_set_inside_is_there_with_the_commit(
    processor: Processor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []

    async def pay(ctx: Context, _: bytes) -> dict[str, int]:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            ctx.set_result({"paid": 1})
        seen.append((await processor.get_status(ctx.job_id)).result)
        return {"paid": 2}

    status = await run(processor, pay)
    assert (status.state, status.result, seen) == (State.COMPLETED, {"paid": 1}, [{"paid": 1}])
    assert not caplog.records


def names_its_job(record: logging.LogRecord) -> bool:
    """As all records of this logger do."""
    return (record.name, vars(record).get("job_name")) == ("nimburion.job", "pay")


async def test_a_result_returned_after_the_transaction_is_dropped_with_a_warning(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    async def pay(ctx: Context, _: bytes) -> int:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
        ctx.set_result(2)
        return 3

    status = await run(processor, pay)
    assert (status.state, status.result) == (State.COMPLETED, None)
    late, returned = [record.getMessage() for record in caplog.records]
    assert "set_result was called after" in late
    assert names_its_job(caplog.records[0])
    assert "Call ctx.set_result(...) inside the block" in returned


@pytest.mark.parametrize(
    ("annotation", "is_kept"),
    [(int, False), (int | None, False), (None, True), (Any, True), (inspect.Signature.empty, True)],
)
async def test_wait_does_not_take_a_result_that_came_too_late_for_none(
    processor: Processor, annotation: object, *, is_kept: bool
) -> None:
    """A handler without an annotation may return nothing: then None is its result."""

    async def pay(ctx: Context, _: bytes):  # type: ignore[no-untyped-def]
        async with ctx.transaction() as connection:
            connection.execute(ROW)

    pay.__signature__ = inspect.signature(pay).replace(  # type: ignore[attr-defined]
        return_annotation=annotation
    )
    job_id = (await run(processor, pay)).id
    if is_kept:
        assert await processor.wait(job_id) is None
        return
    with pytest.raises(ResultNotKept, match=r"ctx\.set_result\(value\) inside the block"):
        await processor.wait(job_id)
    status = await processor.get_status(job_id)
    assert (status.state, status.result) == (State.COMPLETED, None)
    assert status.result_error == RETURNED_TOO_LATE


async def test_a_result_of_none_may_be_set_inside(processor: Processor) -> None:
    async def pay(ctx: Context, _: bytes) -> int | None:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            ctx.set_result(None)
        return None

    assert await processor.wait((await run(processor, pay)).id) is None


async def test_a_result_that_is_not_to_be_kept_is_none(processor: Processor) -> None:
    async def pay(ctx: Context, _: bytes) -> int:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
        return 3

    processor.register("pay", pay, result=False)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await processor.drain()
    assert await processor.wait(job_id) is None


async def test_a_result_that_cannot_be_kept_undoes_nothing(
    processor: Processor, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def pay(ctx: Context, _: bytes) -> object:
        async with ctx.transaction() as connection:
            connection.execute(ROW)
            ctx.set_result("x" * 1024 * 1024)
        return None

    status = await run(processor, pay)
    assert (status.state, status.result, rows(path)) == (State.COMPLETED, None, 1)
    assert "is not stored" in caplog.text
    assert names_its_job(caplog.records[0])


async def test_without_a_transaction_a_set_result_stands_for_none(processor: Processor) -> None:
    def set_only(ctx: Context, _: bytes) -> None:
        ctx.set_result([1])

    assert (await run(processor, set_only)).result == [1]


async def test_without_a_transaction_what_is_returned_goes_first(processor: Processor) -> None:
    def both(ctx: Context, _: bytes) -> list[int]:
        ctx.set_result([1])
        return [2]

    assert (await run(processor, both)).result == [2]
