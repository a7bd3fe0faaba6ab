"""A running job is cancelled, and a command arrives, long before the next regular heartbeat."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.notifications import find_session_socket, find_socket_folder
from nimburion.backends.waiters import make_session_name
from nimburion.core.backend import Backend
from nimburion.core.errors import BackendUnavailable
from nimburion.core.session import Session, WorkerCommand
from nimburion.jobs import Context, Processor
from nimburion.jobs.worker.session.session_listener import SessionListener
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.servers.server_kinds import RunningPostgres, RunningRedis
from tests.waiting import DEADLINE, wait_until

LONG_TTL = 3_600.0
"""A session TTL whose regular heartbeats come every quarter of an hour."""


async def cancel_running_job(backend: Backend, operator: Backend) -> str:
    """Run a job, cancel it through the other handle, wait until it has ended; return its state.

    The wait ends after `DEADLINE`, long before the next regular heartbeat. The cancel is repeated,
    because the worker may not listen yet.
    """
    processor = Processor(backend, session_ttl=LONG_TTL, concurrency=1)
    started = asyncio.Event()

    async def run_endlessly(_: Context, __: bytes) -> None:
        started.set()
        await asyncio.Event().wait()

    processor.register("endless", run_endlessly)
    await operator.open()
    async with processor:
        job_id = await processor.enqueue_raw("endless", b"{}")
        await processor.start()
        await asyncio.wait_for(started.wait(), DEADLINE)

        async def is_cancelled() -> bool:
            return await operator.producing.cancel(job_id) == "finished"

        await wait_until(is_cancelled, "the running job is cancelled")
        state = (await processor.get_status(job_id)).state
    await operator.close()
    return state


async def test_memory() -> None:
    backend = MemoryBackend()
    assert await cancel_running_job(backend, backend.new_handle()) == "cancelled"


async def test_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    assert await cancel_running_job(SQLiteBackend(path), SQLiteBackend(path)) == "cancelled"
    assert not find_socket_folder(path).exists()


async def test_redis(redis_server: RunningRedis) -> None:
    backend, operator = open_backend(redis_server.url), open_backend(redis_server.url)
    assert await cancel_running_job(backend, operator) == "cancelled"


async def test_postgres(clean_postgres: RunningPostgres) -> None:
    backend, operator = open_backend(clean_postgres.url), open_backend(clean_postgres.url)
    assert await cancel_running_job(backend, operator) == "cancelled"


async def test_a_command_arrives_at_once() -> None:
    processor = Processor(MemoryBackend(), session_ttl=LONG_TTL)
    async with processor:
        await processor.start()
        running = processor._running
        assert running is not None
        slots = running._worker._slots

        async def is_quiet() -> bool:
            (session,) = await processor.backend.reads.list_sessions()
            await processor.backend.maintenance.send_command(session.id, WorkerCommand.QUIET)
            return slots.quiet

        await wait_until(is_quiet, "the worker is quiet")


async def test_it_listens_again_after_the_backend_did_not_answer() -> None:
    clock, calls = FakeClock(), 0
    notified = asyncio.Event()

    class Unsteady(OverridableBackend):
        async def wait_for_session(self, session_id: str) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise BackendUnavailable("no route")
            await super().wait_for_session(session_id)

    backend = Unsteady(clock=clock)
    await backend.consuming.open_session(Session(id="s1"))
    listener = SessionListener(backend, "s1", clock, notified.set)
    await listener.start()
    await wait_until(lambda: clock.sleepers == 1, "the listener pauses")
    assert isinstance(listener.failure, BackendUnavailable)
    clock.advance(1.0)
    await wait_until(lambda: calls == 2, "the listener calls again")
    await backend.maintenance.send_command("s1", WorkerCommand.QUIET)
    await asyncio.wait_for(notified.wait(), DEADLINE)
    await listener.stop()
    assert not listener.running


async def test_the_socket_of_a_dead_worker_is_removed(tmp_path: Path) -> None:
    """The process dies while it waits; the rescue of its session removes the socket."""
    clock, path = FakeClock(), tmp_path / "jobs.db"
    backend = SQLiteBackend(path, clock=clock)
    await backend.open()
    await backend.consuming.open_session(Session(id="s1", ttl=30.0))
    socket_path = find_session_socket(find_socket_folder(path), make_session_name("s1"))
    waiting = asyncio.create_task(backend.consuming.wait_for_session("s1"))
    await wait_until(socket_path.exists, "the socket is bound")
    left_over = socket_path.with_name("copy")
    left_over.hardlink_to(socket_path)
    waiting.cancel()
    await asyncio.wait({waiting})
    left_over.rename(socket_path)
    clock.advance(31.0)
    await backend.consuming.rescue(10, max_lost=3)
    await wait_until(lambda: not socket_path.exists(), "the socket is removed")
    await backend.close()
    assert not find_socket_folder(path).exists()
