"""Starting and stopping a processor in odd orders: nothing hangs, nothing goes on unseen."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import (
    BackendReadOnly,
    BackendUnavailable,
    DefinitionError,
    NimburionError,
    NotOpen,
    OutOfOrder,
    SessionLost,
)
from nimburion.core.events import Event, SessionEnded
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.job import State
from nimburion.core.service import Service
from nimburion.core.session import Session
from nimburion.core.settlement import Settlement
from nimburion.core.timing.clock import SystemClock
from nimburion.jobs import Processor, job
from nimburion.jobs.handling.context import Context
from tests.overridden import OverridableBackend
from tests.waiting import wait_until, wait_until_finished

DEADLINE = 10.0


class Unanswering(OverridableBackend):
    """Opens no session."""

    async def open_session(self, session: Session) -> None:
        self.called = True
        raise BackendUnavailable("away")

    called = False


class Forgetting(OverridableBackend):
    """Answers one exchange with an error that ends the session."""

    def __init__(self, error: type[NimburionError]) -> None:
        super().__init__()
        self.error = error

    forgets = True

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        if settlements and self.forgets:
            self.forgets = False
            raise self.error(session_id)
        return await super().exchange(session_id, number, settlements, request)


class Narrow(OverridableBackend):
    """Its replies do not get through if they contain a job."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = set[str]()
        """The sessions that have reserved a job."""

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, request)
        if reply.deliveries:
            self.sessions.add(session_id)
            raise BackendUnavailable("no answer in time")
        return reply


class ReadOnly(OverridableBackend):
    """Refuses to open a session."""

    async def open_session(self, session: Session) -> None:
        raise BackendReadOnly("takes no writes")


class Blocked:
    """A handler that says when it runs, and waits."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.proceed = asyncio.Event()

    async def __call__(self, _: Context, __: bytes) -> None:
        self.began.set()
        await self.proceed.wait()


async def test_a_start_that_failed_reports_why_and_can_be_closed() -> None:
    with pytest.raises(BackendReadOnly):
        async with Processor(ReadOnly()) as processor:
            await processor.start()


async def test_a_stop_ends_a_start_that_waits_for_its_backend() -> None:
    backend = Unanswering()
    async with asyncio.timeout(DEADLINE), Processor(backend) as processor:
        starting = asyncio.create_task(processor.start())
        await wait_until(lambda: backend.called, "it calls the backend")
        await processor.stop()
        with pytest.raises(NotOpen, match="stopped before"):
            await starting


async def test_a_stop_that_was_given_up_goes_on_and_can_be_waited_for_again() -> None:
    handler = Blocked()
    processor = Processor(MemoryBackend())
    processor.register("wait", handler)
    async with asyncio.timeout(DEADLINE), processor:
        await processor.start()
        job_id = await processor.enqueue_raw("wait", b"{}")
        await handler.began.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(processor.stop(), 0)
        stopping = asyncio.create_task(processor.stop())
        await asyncio.sleep(0)
        handler.proceed.set()
        await stopping
        assert (await processor.get_status(job_id)).state is State.COMPLETED


async def has_session(processor: Processor) -> bool:
    return bool(await processor.backend.reads.list_sessions())


async def test_a_cancelled_run_releases_what_it_ran_and_starts_no_more() -> None:
    handler = Blocked()
    processor = Processor(MemoryBackend())
    processor.register("wait", handler)
    async with asyncio.timeout(DEADLINE), processor:
        running = asyncio.create_task(processor.run(signals=False))
        job_id = await processor.enqueue_raw("wait", b"{}")
        await handler.began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        status = await processor.get_status(job_id)
        assert (status.state, status.failures, status.lost) == (State.PENDING, 0, 0)
        assert await processor.backend.reads.list_sessions() == []


async def test_a_stop_from_elsewhere_and_the_run_it_ends_close_the_session_once() -> None:
    closed: list[str] = []

    class Counting(OverridableBackend):
        async def close_session(self, session_id: str, running: object = ()) -> None:
            closed.append(session_id)
            await super().close_session(session_id)

    async with asyncio.timeout(DEADLINE), Processor(Counting()) as processor:
        running = asyncio.create_task(processor.run(signals=False))
        await wait_until(partial(has_session, processor), "the worker has a session")
        await processor.stop()
        await running
    assert len(closed) == 1


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_a_processor_left_open_by_one_loop_works_on_the_next(backend: str, tmp_path: Path) -> None:
    @job
    async def double(n: int) -> int:
        return 2 * n

    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/jobs.db"}[backend]
    processor = Processor(open_backend(url), session_ttl=1)
    processor.register(double)
    before = set(threading.enumerate())

    async def work(n: int) -> int:
        async with asyncio.timeout(DEADLINE):
            await processor.start()
            result: int = await processor.wait(await processor.enqueue(double.job(n)))
            return result

    try:
        assert [asyncio.run(work(1)), asyncio.run(work(2))] == [2, 4]
    finally:
        asyncio.run(processor.close())
        check_threads_end(before)


def check_threads_end(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_no_session_is_kept_alive_for_a_loop_that_was_closed() -> None:
    processor = Processor(MemoryBackend(), session_ttl=1)
    before = set(threading.enumerate())
    asyncio.run(processor.start())
    check_threads_end(before)


def test_a_loop_that_does_not_own_the_processor_gets_an_error() -> None:
    processor = Processor(MemoryBackend())
    asyncio.run(processor.open())
    with pytest.raises(NotOpen, match="another event loop"):
        asyncio.run(processor.enqueue_raw("x", b"{}"))


def test_run_on_another_thread_leaves_signals_alone() -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE), Processor(MemoryBackend()) as processor:
            running = asyncio.create_task(processor.run())
            await wait_until(partial(has_session, processor), "the worker has a session")
            await processor.stop()
            await running

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, main()).result(2 * DEADLINE)
    assert signal.getsignal(signal.SIGTERM) is before


class Slow(Service):
    """Does not stop before an event is set."""

    def __init__(self, proceed: asyncio.Event) -> None:
        super().__init__(SystemClock())
        self.proceed = proceed

    async def run(self) -> None:
        await self.proceed.wait()


async def test_a_service_that_stops_slowly_uses_up_no_grace_time() -> None:
    """Here it would never stop: it waits for the end of a handler that must be interrupted."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(_: Context, __: bytes) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    processor = Processor(MemoryBackend(), grace=0.0)
    processor.register("wait", wait)
    processor.add_service(Slow(ended))
    async with asyncio.timeout(DEADLINE), processor:
        job_id = await processor.enqueue_raw("wait", b"{}")
        await processor.start()
        await began.wait()
        await processor.stop()
        assert (await processor.get_status(job_id)).state is State.PENDING


async def test_middleware_that_would_come_too_late_is_refused() -> None:
    async with Processor(MemoryBackend()) as processor:
        await processor.start()
        with pytest.raises(DefinitionError, match="before the processor is started"):
            processor.use(lambda ctx, call_next: call_next(ctx))


@pytest.mark.parametrize(("error", "how"), [(SessionLost, "lost"), (OutOfOrder, "closed")])
async def test_an_exchange_that_answers_session_lost_ends_the_session(
    error: type[NimburionError], how: str
) -> None:
    processor = Processor(Forgetting(error))
    ended: list[str] = []
    again = asyncio.Event()

    def note(event: Event) -> None:
        if isinstance(event, SessionEnded):
            ended.append(event.how)
            again.set()

    async def handle(_: Context, data: bytes) -> None: ...

    processor.register("job", handle)
    processor.events.subscribe(note)
    async with processor, asyncio.timeout(DEADLINE):
        await processor.enqueue_raw("job", b"{}")
        await processor.start()
        await again.wait()
        await processor.stop()
    assert ended == [how, "closed"]


async def test_a_job_that_does_not_get_through_goes_to_another_worker() -> None:
    """Its first worker, which has free slots and a new session, does not reserve it before."""
    backend = Narrow()
    narrow, other = (Processor(each, session_ttl=1.0) for each in (backend, backend.new_handle()))
    ended: list[Event] = []
    narrow.events.subscribe(ended.append, kinds=(SessionEnded,))

    async def handle(_: Context, data: bytes) -> None: ...

    for processor in (narrow, other):
        processor.register("job", handle)
    async with narrow, other, asyncio.timeout(DEADLINE):
        await narrow.start()
        job_id = await narrow.enqueue_raw("job", b"{}")
        await wait_until(lambda: bool(backend.sessions), "the first worker has the job")
        await other.start()
        await wait_until_finished(other, job_id)
        assert len(ended) == 1
        assert len(backend.sessions) == 1


async def test_handlers_that_occupy_the_executor_keep_no_worker_from_a_new_session() -> None:
    """`asyncio.to_thread` has few threads, which wait for what the handlers wait for."""
    processor = Processor(Forgetting(SessionLost))
    completed: list[bytes] = []
    proceed = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    occupied = loop.run_in_executor(None, proceed.wait)

    async def handle(_: Context, data: bytes) -> None:
        completed.append(data)

    processor.register("job", handle)
    try:
        async with asyncio.timeout(DEADLINE), processor:
            job_id = await processor.enqueue_raw("job", b"{}")
            await processor.start()
            await processor.wait(job_id, timeout=DEADLINE)
            await processor.stop()
    finally:
        proceed.set()
        await occupied
    assert completed == [b"{}", b"{}"]
