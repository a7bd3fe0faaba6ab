"""`processor.sync`: the same methods for code that is not async, wherever it is called from."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite.producing import SQLiteProducing
from nimburion.core.errors import (
    BackendUnavailable,
    InvalidJob,
    JobConflict,
    JobNotFound,
    NotOpen,
    UseAwait,
    WaitTimeout,
)
from nimburion.core.events import Event, JobEnqueued
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.metrics.counters import JobCounters
from nimburion.core.settings import Settings
from nimburion.jobs import Priority, Processor, job
from nimburion.jobs.client.client import Client
from nimburion.jobs.client.sync import SyncClient, SyncMethod
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import DEADLINE

LIVING = {"open", "close"}
"""Of the loop that owns the processor alone."""


@job
async def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def processor() -> Iterator[Processor]:
    made = Processor(MemoryBackend())
    made.register(double)
    yield made
    made.sync.close()


@pytest.fixture
def portals() -> Callable[[], int]:
    """Returns how many loops of portals run that this test has started."""
    before = set(threading.enumerate())

    def count() -> int:
        return len(list_portals(before))

    return count


@pytest.fixture
def check_portals_end() -> Callable[[], None]:
    """Waits for the loops whose client could not be opened: a call leaves them after 0.5 s."""
    before = set(threading.enumerate())

    def check() -> None:
        for thread in list_portals(before):
            thread.join(DEADLINE)
        assert list_portals(before) == []

    return check


def list_portals(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the loops of portals that have started since."""
    started = set(threading.enumerate()) - before
    return [thread for thread in started if thread.name == "nimburion-sync"]


def in_thread(call: Callable[[], Any]) -> Any:
    """Call it on a thread of its own; what it returned, or raise what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 (raised again on the caller's thread)
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def test_it_has_each_async_method_of_the_client() -> None:
    wanted = {
        name
        for name, method in inspect.getmembers(Client, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    synced = {name: one for name, one in vars(SyncClient).items() if isinstance(one, SyncMethod)}
    assert synced.keys() == wanted - LIVING
    assert {name: one.method for name, one in synced.items()} == {
        name: getattr(Client, name) for name in synced
    }
    assert len(synced) >= 12


def test_from_a_plain_script(processor: Processor) -> None:
    sync = processor.sync
    job_id = sync.enqueue(double.job(4), priority=Priority.HIGH)
    assert sync.get_status(job_id).priority == 7
    assert len(sync.enqueue_many([double.job(1), double.job(2)])) == 2
    assert sync.enqueue_with_id(double.job(1), "own") == "own"
    assert sync.enqueue_at(double.job(1), datetime(2030, 1, 1, tzinfo=UTC))
    assert sync.enqueue_after(double.job(1), 30)
    assert sync.enqueue_raw("hook", b"{}")
    assert (sync.queue_size(), sync.pending_count()) == (5, 7)
    assert sync.cancel(job_id) == "cancelled"
    with pytest.raises(WaitTimeout):
        sync.wait("own", timeout=0)
    with pytest.raises(JobNotFound):
        sync.get_status("unknown")
    with pytest.raises(InvalidJob):
        sync.enqueue("double")  # type: ignore[arg-type]


def test_it_ends_its_thread_and_begins_anew(
    processor: Processor, portals: Callable[[], int]
) -> None:
    processor.sync.enqueue(double.job(1))
    assert portals() == 1
    processor.sync.close()
    processor.sync.close()
    assert portals() == 0
    with processor.sync as sync:
        assert sync.pending_count() == 1
        assert portals() == 1
    assert portals() == 0


def test_from_many_threads_at_once_one_portal_serves_all(
    processor: Processor, portals: Callable[[], int]
) -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(processor.sync.enqueue(double.job(1))))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(ids)) == 20
    assert portals() == 1
    assert processor.sync.pending_count() == 20


async def test_on_the_owning_loop_it_says_to_await(processor: Processor) -> None:
    async with processor:
        with pytest.raises(UseAwait, match=r"write `await processor\.enqueue\(…\)`"):
            processor.sync.enqueue(double.job(1))
        assert await processor.pending_count() == 0


async def test_from_another_thread_it_hands_over_to_the_owning_loop(processor: Processor) -> None:
    loops: list[object] = []

    async def see(enqueueing: Any, call_next: Any) -> Any:
        loops.append(asyncio.get_running_loop())
        return await call_next(enqueueing)

    processor.use_enqueue(see)
    async with processor:
        job_id = await asyncio.to_thread(processor.sync.enqueue, double.job(4))
        await processor.process_one()
        assert await asyncio.to_thread(processor.sync.wait, job_id) == 8
    assert loops == [asyncio.get_running_loop()]


async def test_from_a_handler_thread(processor: Processor) -> None:
    @job
    def parent(number: int) -> str:
        return processor.sync.enqueue(double.job(number))

    processor.register(parent)
    async with processor:
        job_id = await processor.enqueue(parent.job(4))
        await processor.process_one()
        child = await processor.wait(job_id)
        await processor.process_one()
        assert await processor.wait(child) == 8


async def test_inside_a_running_loop_that_does_not_own_the_processor(processor: Processor) -> None:
    job_id = processor.sync.enqueue(double.job(4))  # the processor is not open
    async with processor:  # and can still be, on this loop
        await processor.process_one()
        assert await processor.wait(job_id) == 8


def test_a_processor_left_open_by_a_loop_that_ended_does_not_block(processor: Processor) -> None:
    asyncio.run(processor.open())
    assert processor.sync.enqueue(double.job(1))
    assert processor.sync.pending_count() == 1


def test_a_backend_that_cannot_be_opened_raises_and_leaves_no_thread(
    tmp_path: Path, check_portals_end: Callable[[], None]
) -> None:
    processor = Processor(open_backend(f"sqlite:///{tmp_path}/missing/jobs.db"))
    for _ in range(2):
        with pytest.raises(Exception, match="missing"):
            processor.sync.enqueue(double.job(1))
    check_portals_end()


@pytest.fixture
def direct_calls(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that enqueue on SQLite without an event loop."""
    seen: list[threading.Thread] = []
    original = SQLiteProducing.enqueue_blocking

    def note(producing: SQLiteProducing, jobs: Sequence[NewJob], timeout: float) -> list[Enqueued]:
        seen.append(threading.current_thread())
        return original(producing, jobs, timeout)

    monkeypatch.setattr(SQLiteProducing, "enqueue_blocking", note)
    return seen


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Processor]:
    """A processor on a backend that needs no event loop to enqueue."""
    made = Processor(open_backend(f"sqlite:///{tmp_path}/jobs.db"))
    made.register(double)
    yield made
    made.sync.close()


def test_a_thread_calls_the_open_backend_without_the_loop(
    on_sqlite: Processor, direct_calls: list[threading.Thread]
) -> None:
    sync = on_sqlite.sync
    first = sync.enqueue(double.job(1))  # opens the client on its loop
    assert direct_calls == []
    assert sync.enqueue(double.job(2), priority=7, id="own") == "own"
    assert sync.enqueue(double.job(2), id="own") == "own"
    with pytest.raises(JobConflict):
        sync.enqueue(double.job(3), id="own")
    with pytest.raises(InvalidJob):
        sync.enqueue("double")  # type: ignore[arg-type]
    assert direct_calls == [threading.current_thread()] * 3
    assert sync.get_status("own").priority == 7
    assert sync.get_status(first).state == "pending"
    (lane,) = [lane for each in list_job_counters(on_sqlite) for lane in each.list_lanes()]
    assert lane.enqueued == 2


def list_job_counters(processor: Processor) -> list[JobCounters]:
    return processor._statistics.list_job_counters()


def test_threads_share_the_writer_of_the_backend(
    on_sqlite: Processor, direct_calls: list[threading.Thread]
) -> None:
    on_sqlite.sync.enqueue(double.job(0))
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(on_sqlite.sync.enqueue, [double.job(n) for n in range(80)]))
    assert len(set(ids)) == 80
    assert len(direct_calls) == 80
    assert on_sqlite.sync.pending_count() == 81


def test_what_needs_the_loop_stays_on_it(
    on_sqlite: Processor, direct_calls: list[threading.Thread]
) -> None:
    seen: list[Event] = []
    on_sqlite.sync.enqueue(double.job(0))
    unsubscribe = on_sqlite.events.subscribe(seen.append, kinds=(JobEnqueued,))
    on_sqlite.sync.enqueue(double.job(1))
    unsubscribe()

    async def pass_on(enqueueing: Any, call_next: Any) -> Any:
        return await call_next(enqueueing)

    on_sqlite.use_enqueue(pass_on)
    on_sqlite.sync.enqueue(double.job(2))
    assert len(seen) == 1
    assert direct_calls == []


async def test_the_loop_that_owns_the_processor_is_not_asked_either(
    on_sqlite: Processor, direct_calls: list[threading.Thread]
) -> None:
    async with on_sqlite:
        await on_sqlite.enqueue(double.job(0))
        job_id = await asyncio.to_thread(on_sqlite.sync.enqueue, double.job(4))
        assert len(direct_calls) == 1
        with pytest.raises(UseAwait):
            on_sqlite.sync.enqueue(double.job(1))
        while await on_sqlite.process_one():
            pass
        assert await on_sqlite.wait(job_id) == 8


def test_a_call_without_an_answer_is_repeated_on_the_loop(
    on_sqlite: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_sqlite.sync.enqueue(double.job(0))

    def fail(*_: object) -> list[Enqueued]:
        raise BackendUnavailable("locked", outcome="not applied")

    monkeypatch.setattr(SQLiteProducing, "enqueue_blocking", fail)
    assert on_sqlite.sync.enqueue(double.job(1), id="own") == "own"
    assert on_sqlite.sync.pending_count() == 2


def test_a_client_that_is_closed_meanwhile_is_opened_again(
    on_sqlite: Processor, direct_calls: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = on_sqlite.sync
    sync.enqueue(double.job(0))
    original = SQLiteProducing.enqueue_blocking

    def close_first(*arguments: Any) -> list[Enqueued]:
        sync.close()
        return original(*arguments)

    monkeypatch.setattr(SQLiteProducing, "enqueue_blocking", close_first)
    sync.enqueue(double.job(1))
    assert len(direct_calls) == 1
    assert sync.pending_count() == 2


def test_a_client_that_is_closed_before_a_repetition_enqueues_no_job_twice(
    on_sqlite: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes it after the job was stored, and before the call is repeated."""
    sync = on_sqlite.sync
    sync.enqueue(double.job(0))
    original = SQLiteProducing.enqueue_blocking

    def lose_the_answer(*arguments: Any) -> list[Enqueued]:
        original(*arguments)
        sync.close()
        raise BackendUnavailable("no answer", outcome="unknown")

    monkeypatch.setattr(SQLiteProducing, "enqueue_blocking", lose_the_answer)
    with pytest.raises(BackendUnavailable, match="may have been stored") as caught:
        sync.enqueue(double.job(1))
    assert sync.pending_count() == 2
    assert caught.value.outcome == "unknown"
    assert caught.value.job_id is not None
    assert sync.get_status(caught.value.job_id).state == "pending"


class Unreachable(MemoryBackend):
    """A backend that does not answer while it is opened."""

    def new_handle(self) -> Unreachable:
        return Unreachable()

    async def open(self) -> None:
        await asyncio.Event().wait()


def test_threads_that_wait_for_the_opening_each_keep_their_time(
    check_portals_end: Callable[[], None],
) -> None:
    """Not one after the other; and the next call tries anew."""
    processor = Processor(Unreachable(), Settings(enqueue_timeout=1.0))
    outcomes: list[str] = []

    def call() -> None:
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="could not be opened") as refused:
            processor.sync.enqueue(double.job(1))
        outcomes.append(refused.value.outcome)
        assert time.monotonic() - began <= 1.5 * 1.0 + 4.0  # a busy machine; in turn: 8 s and more

    for _ in range(2):
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert outcomes == ["not applied"] * 16
    check_portals_end()


def test_what_the_opening_took_counts_as_the_calls_own_time() -> None:
    class Slow(OverridableBackend):
        def new_handle(self) -> Slow:
            return Slow()

        async def open(self) -> None:
            clock.advance(1.9)
            await super().open()

        async def enqueue(
            self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
        ) -> list[Enqueued]:
            began = time.monotonic()
            try:
                await asyncio.Event().wait()
            finally:
                waited.append(time.monotonic() - began)
                clock.advance(waited[0])
            raise AssertionError

    waited: list[float] = []
    clock = FakeClock()
    with (
        Processor(Slow(), Settings(enqueue_timeout=2.0), clock=clock).sync as sync,
        pytest.raises(BackendUnavailable, match="did not answer"),
    ):
        sync.enqueue(double.job(1))
    assert waited[0] <= 1.5, "of two seconds, the opening took nearly all"


def test_a_loop_that_ends_under_a_waiting_caller_sets_it_free(processor: Processor) -> None:
    loop = asyncio.new_event_loop()
    opened, blocked = threading.Event(), threading.Event()

    async def block(enqueueing: Any, call_next: Any) -> Any:
        blocked.set()
        await asyncio.Event().wait()

    processor.use_enqueue(block)

    def own() -> None:
        loop.run_until_complete(processor.open())
        loop.call_soon(opened.set)
        loop.run_forever()

    owner = threading.Thread(target=own)
    owner.start()
    assert opened.wait(20)

    def stop_when_blocked() -> None:
        assert blocked.wait(20)
        loop.call_soon_threadsafe(loop.stop)

    threading.Thread(target=stop_when_blocked).start()
    with pytest.raises(NotOpen, match="has ended"):
        in_thread(lambda: processor.sync.enqueue(double.job(1)))
    owner.join(20)
    _end(loop)


def _end(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
    loop.close()


SCRIPT = """
import asyncio, os, sys, threading
from nimburion.backends import open_backend
from nimburion.jobs import Processor, job

@job
def double(number: int) -> int:
    return 2 * number

processor = Processor(open_backend("sqlite:///" + sys.argv[1]))
processor.register(double)
{before}
print(processor.sync.enqueue(double.job(1), id="parent"))
sys.stdout.flush()
child = os.fork()
if child == 0:
    print(processor.sync.enqueue(double.job(2), id="child"))
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(processor.sync.enqueue(double.job(3), id="parent-again"))
print(processor.sync.pending_count())
"""

OPEN_ON_A_LOOP = """
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(processor.open(), loop).result()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("before", ["", OPEN_ON_A_LOOP], ids=["portal", "open on a loop"])
def test_after_a_fork_the_child_opens_anew_and_the_parent_goes_on(
    before: str, tmp_path: Path
) -> None:
    script = textwrap.dedent(SCRIPT).replace("{before}", before)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(tmp_path / "j.db")],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    ended = (ran.stdout.split(), ran.stderr, ran.returncode)
    assert ended == (["parent", "child", "parent-again", "3"], "", 0)
