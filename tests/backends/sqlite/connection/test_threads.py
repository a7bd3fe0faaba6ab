"""Group commit: what waits runs together, and nobody pays for another's mistake."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection import disk
from nimburion.backends.sqlite.connection.database import Database
from nimburion.core.errors import (
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    NotOpen,
    OutOfOrder,
)
from nimburion.core.exchange import RESERVE_NOTHING
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from tests.waiting import wait_until


class WriterBlocker:
    """A call that keeps the writer busy until it is let go, so that others gather behind it."""

    def __init__(self, backend: SQLiteBackend) -> None:
        self._backend = backend
        self._go = threading.Event()
        self._task: asyncio.Future[bool] | None = None

    async def __aenter__(self) -> None:
        entered = threading.Event()

        def block(_: Database) -> bool:
            entered.set()
            return self._go.wait(30)

        self._task = asyncio.ensure_future(self._backend._file.write(block))
        await asyncio.to_thread(entered.wait, 30)

    async def __aexit__(self, *_: object) -> None:
        self._go.set()
        assert self._task is not None
        assert await self._task


async def record_statements(backend: SQLiteBackend) -> list[str]:
    """The transactions that the writer begins from now on."""
    seen: list[str] = []

    def note(text: str) -> None:
        if text.startswith("BEGIN"):
            seen.append(text)

    await backend._file.write(lambda db: db.connection.set_trace_callback(note))
    return seen


async def test_a_hundred_enqueues_share_a_transaction(backend: SQLiteBackend) -> None:
    seen = await record_statements(backend)
    async with WriterBlocker(backend):
        calls = [backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"")]) for n in range(100)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks)
    assert [result[0].outcome for result in results] == ["created"] * 100
    assert seen == ["BEGIN IMMEDIATE"] * 2  # the blocker, then all of them
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 100


async def test_calls_of_threads_share_that_transaction(backend: SQLiteBackend) -> None:
    writer = backend._file._writer
    assert writer is not None
    seen = await record_statements(backend)
    async with WriterBlocker(backend):
        on_threads = [
            asyncio.create_task(
                asyncio.to_thread(
                    backend.producing.enqueue_blocking, [NewJob(f"t-{n}", "n", "q", b"")], 20.0
                )
            )
            for n in range(3)
        ]
        on_loop = asyncio.create_task(backend.producing.enqueue([NewJob("l", "n", "q", b"")]))
        await wait_until(lambda: writer._calls.qsize() == 4, "all calls wait")
    results = await asyncio.gather(*on_threads, on_loop)
    assert [result[0].outcome for result in results] == ["created"] * 4
    assert seen == ["BEGIN IMMEDIATE"] * 2


async def test_a_thread_waits_no_longer_than_its_timeout(backend: SQLiteBackend) -> None:
    job = NewJob("a", "n", "q", b"")
    async with WriterBlocker(backend):
        with pytest.raises(BackendUnavailable, match=r"no answer within 0\.01 s") as raised:
            await asyncio.to_thread(backend.producing.enqueue_blocking, [job], 0.01)
    assert raised.value.outcome == "unknown"
    assert (await backend.producing.enqueue([job]))[0].outcome == "exists"


async def test_a_failing_call_leaves_its_neighbours_alone(backend: SQLiteBackend) -> None:
    await backend.consuming.open_session(Session(id="s", names=("n",)))
    async with WriterBlocker(backend):
        before = asyncio.create_task(backend.producing.enqueue([NewJob("before", "n", "q", b"")]))
        failing = asyncio.ensure_future(backend._file.write(insert_then_fail))
        wrong = asyncio.create_task(backend.consuming.exchange("s", 7, [], RESERVE_NOTHING))
        after = asyncio.create_task(backend.producing.enqueue([NewJob("after", "m", "q2", b"")]))
        await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        await failing
    with pytest.raises(OutOfOrder):
        await wrong
    await asyncio.gather(before, after)
    page = await backend.reads.list_jobs()
    assert [(job.id, job.name, job.queue) for job in page.jobs] == [
        ("after", "m", "q2"),
        ("before", "n", "q"),
    ]


def insert_then_fail(db: Database) -> None:
    """Write something, in a new lane too, and fail."""
    db.get_or_add_lane("q", "never")
    db.run("pause_queue", "q", "", "", 0, None)
    raise ZeroDivisionError


async def test_what_a_failed_call_wrote_is_gone(backend: SQLiteBackend) -> None:
    async with WriterBlocker(backend):
        failing = asyncio.ensure_future(backend._file.write(insert_then_fail))
        other = asyncio.create_task(backend.maintenance.pause_queue("other", paused=True))
        await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        await failing
    await other
    assert [queue.name for queue in await backend.reads.list_queues()] == ["other"]


async def test_a_conflict_in_a_new_queue_leaves_no_queue(backend: SQLiteBackend) -> None:
    await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
    (result,) = await backend.producing.enqueue([NewJob("a", "n", "q2", b"another")])
    assert result.outcome == "conflict"
    assert [queue.name for queue in await backend.reads.list_queues()] == ["q"]


async def test_one_enqueue_takes_five_statements(backend: SQLiteBackend) -> None:
    await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
    seen: list[str] = []
    await backend._file.write(lambda db: db.connection.set_trace_callback(seen.append))
    del seen[:]
    await backend.producing.enqueue([NewJob("b", "n", "q", b"")])
    verbs = [text.split()[0] for text in seen if not text.startswith("PRAGMA")]
    assert verbs == ["BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"], seen


async def test_a_group_that_fails_as_a_whole_is_done_one_by_one(path: Path) -> None:
    backend = SQLiteBackend(path, measure=lambda _: 1 << 20)
    await backend.open()
    big = [NewJob(f"big-{n}", "n", "q", b"x" * 1000) for n in range(1000)]
    async with WriterBlocker(backend):
        first = asyncio.create_task(backend.producing.enqueue([NewJob("first", "n", "q", b"")]))
        full = asyncio.create_task(backend.producing.enqueue(big))
        last = asyncio.create_task(backend.producing.enqueue([NewJob("last", "n", "q", b"")]))
        await asyncio.sleep(0)
    with pytest.raises(BackendFull):
        await full
    assert (await first)[0].outcome == "created"
    assert (await last)[0].outcome == "created"
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 2
    await backend.close()


async def test_a_cancelled_wait_does_not_disturb_the_writer(backend: SQLiteBackend) -> None:
    async with WriterBlocker(backend):
        task = asyncio.create_task(backend.producing.enqueue([NewJob("a", "n", "q", b"")]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await backend.producing.enqueue([NewJob("a", "n", "q", b"")]))[0].outcome == "exists"


async def test_close_answers_pending_calls(path: Path) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    tasks = [
        asyncio.create_task(backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"")]))
        for n in range(50)
    ]
    await asyncio.sleep(0)
    await backend.close()
    assert [result[0].outcome for result in await asyncio.gather(*tasks)] == ["created"] * 50


async def test_two_hundred_openings_leave_no_thread_and_no_file(path: Path) -> None:
    before = threading.active_count()
    for n in range(200):
        backend = SQLiteBackend(path)
        await backend.open()
        call = asyncio.create_task(backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"")]))
        await asyncio.sleep(0)
        await backend.close()
        await call
    await wait_until(lambda: threading.active_count() <= before, "the threads have ended")
    assert {one.name for one in path.parent.iterdir()} == {"jobs.db"}


async def test_callers_writes_are_synced_and_workers_writes_are_not(
    backend: SQLiteBackend,
) -> None:
    assert backend._file._writer is not None
    assert await backend._file.write(synchronous) == 2
    assert await backend._file.write(synchronous, durable=False) == 1
    await backend.consuming.open_session(Session(id="s", names=("n",)))
    assert (
        await read_synchronous_after(
            backend, backend.consuming.exchange("s", 1, [], RESERVE_NOTHING)
        )
        == "NORMAL"
    )
    assert (
        await read_synchronous_after(
            backend, backend.producing.enqueue([NewJob("a", "n", "q", b"")])
        )
        == "FULL"
    )
    assert await read_synchronous_after(backend, backend.consuming.heartbeat("s")) == "NORMAL"
    assert await read_synchronous_after(backend, backend.producing.cancel("a")) == "FULL"
    assert (
        await read_synchronous_after(backend, backend.consuming.rescue(1, max_lost=3)) == "NORMAL"
    )
    assert (
        await read_synchronous_after(backend, backend.maintenance.pause_queue("q", paused=True))
        == "FULL"
    )


async def read_synchronous_after(backend: SQLiteBackend, call: Awaitable[object]) -> str:
    """How the transaction of a call was committed."""
    await call
    assert backend._file._writer is not None
    return backend._file._writer._synchronous


def synchronous(db: Database) -> int:
    """SQLite's level: 1 NORMAL, 2 FULL."""
    level: int = db.connection.execute("PRAGMA synchronous").fetchone()[0]
    return level


async def test_one_durable_call_syncs_the_whole_group(backend: SQLiteBackend) -> None:
    await backend.consuming.open_session(Session(id="s", names=("n",)))
    async with WriterBlocker(backend):
        noted = asyncio.ensure_future(backend._file.write(synchronous, durable=False))
        pending = asyncio.create_task(backend.producing.enqueue([NewJob("a", "n", "q", b"")]))
        await asyncio.sleep(0)
    assert await noted == 2
    await pending


async def test_the_log_of_synced_commits_stays_short(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_SYNCED_COMMITS_PER_CHECKPOINT", 10)
    log = backend.path.with_name(f"{backend.path.name}-wal")
    sizes = []
    for part in range(3):
        for n in range(20):
            await backend.producing.enqueue([NewJob(f"j-{part}-{n}", "n", "q", b"")])
        sizes.append(log.stat().st_size)
    assert sizes == sizes[:1] * 3


async def test_the_reader_cannot_write(backend: SQLiteBackend) -> None:
    with pytest.raises(BackendReadOnly):
        await backend._file.read(lambda db: db.run("pause_queue", "q", "", "", 0, None))


async def test_a_slow_read_holds_up_no_other(backend: SQLiteBackend) -> None:
    may_end = threading.Event()
    slow = asyncio.create_task(backend._file.read_slowly(lambda _: may_end.wait(20.0)))
    async with asyncio.timeout(20.0):
        assert await backend.reads.list_sessions() == []
        assert not slow.done()
        may_end.set()
        assert await slow
        await backend.close()
        with pytest.raises(NotOpen):
            await backend.reads.count_jobs(budget=None)
