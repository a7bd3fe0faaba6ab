"""The stack of a running handler: in a thread, on the event loop, blocked, in a child process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nimburion.actions.jobs import JobActions, StackAnswer
from nimburion.actions.operator import Operator
from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend
from nimburion.core.errors import MissingRight
from nimburion.core.job import State
from nimburion.core.stacks import MAX_STACK_BYTES, answer_stack_request, list_stack_requests
from nimburion.jobs import Processor, job
from nimburion.testing import FakeClock
from tests.jobs.worker.children import application as app
from tests.jobs.worker.children.conftest import Make, make  # noqa: F401 (a fixture)
from tests.waiting import wait_until

SHORT_TTL = 1.0
"""The least session TTL, so that heartbeats come every quarter of a second."""
SECRET = "4111-1111"


def make_actions(backend: Backend) -> JobActions:
    return JobActions(backend, Operator("ann"))


async def ask(processor: Processor, job_id: str) -> StackAnswer:
    """Ask for the stack of a job as soon as it runs."""

    async def is_running() -> bool:
        return (await processor.backend.reads.get_job(job_id)).state is State.PROCESSING

    await wait_until(is_running, "the job runs")
    return await make_actions(processor.backend).show_stack(job_id)


async def test_a_handler_in_a_thread_and_one_on_the_loop_show_where_they_are() -> None:
    release, in_thread, on_loop = threading.Event(), threading.Event(), asyncio.Event()

    @job(name="block")
    def block(card: str) -> None:
        in_thread.set()
        release.wait()  # the line that the stack shows

    @job(name="wait")
    async def wait(card: str) -> None:
        on_loop.set()
        await wait_for_nothing()

    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()  # the line in which it waits

    processor = Processor(MemoryBackend(), session_ttl=SHORT_TTL)
    processor.register(block, wait)
    async with processor:
        await processor.start()
        blocked, waiting = (
            await processor.enqueue(block.job(SECRET)),
            await processor.enqueue(wait.job(SECRET)),
        )
        await on_loop.wait()
        await wait_until(in_thread.is_set, "the thread is there")
        first, second = await ask(processor, blocked), await ask(processor, waiting)
        release.set()
        await processor.stop(0.0)
    assert first.stack
    assert second.stack
    assert (first.stack.place, second.stack.place) == ("thread", "event loop")
    assert "the line that the stack shows" in first.stack.text
    assert "in wait_for_nothing" in second.stack.text
    assert "the line in which it waits" in second.stack.text
    assert SECRET not in first.stack.text + second.stack.text


async def test_a_job_that_ignores_its_cancel_shows_where_it_is() -> None:
    """Each heartbeat repeats the cancel request."""
    release, started = threading.Event(), threading.Event()

    @job(name="block")
    def block() -> None:
        started.set()
        release.wait()

    processor = Processor(MemoryBackend(), session_ttl=60.0)  # no regular heartbeat comes
    processor.register(block)
    async with processor:
        await processor.start()
        job_id = await processor.enqueue(block.job())
        await wait_until(started.is_set, "the handler runs")
        await processor.backend.producing.cancel(job_id)
        try:
            first, second = await ask(processor, job_id), await ask(processor, job_id)
        finally:
            release.set()
    assert first.stack
    assert second.stack


async def test_a_worker_whose_loop_is_blocked_answers() -> None:
    backend = MemoryBackend()
    answers: list[StackAnswer] = []

    @job(name="hog")
    async def hog() -> None:
        def ask_elsewhere() -> StackAnswer:
            return asyncio.run(make_actions(backend.new_handle()).show_stack("hog"))

        with ThreadPoolExecutor(1) as pool:
            answers.append(pool.submit(ask_elsewhere).result())  # blocks the loop

    processor = Processor(backend, session_ttl=SHORT_TTL)
    processor.register(hog)
    async with processor:
        await processor.start()
        await processor.enqueue(hog.job(), id="hog")
        await wait_until(lambda: bool(answers), "the worker answered", seconds=30.0)
    (answer,) = answers
    assert answer.stack
    assert "blocks the loop" in answer.stack.text


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (app.wait_in_child, "threading.Event().wait()"),
        (app.wait_in_child_async, "await asyncio.Event().wait()"),
    ],
)
async def test_a_handler_in_a_child_process_shows_where_it_is(
    make: Make,  # noqa: F811
    job: object,
    line: str,
) -> None:
    processor = make(session_ttl=SHORT_TTL * 4)
    await processor.start()
    job_id = await processor.enqueue(job.job())  # type: ignore[attr-defined]
    found: list[StackAnswer] = []

    async def is_there() -> bool:
        found[:] = [await ask(processor, job_id)]
        return found[0].stack is not None and line in found[0].stack.text

    await wait_until(is_there, "the child shows the line", seconds=60.0)
    assert found[0].stack
    assert found[0].stack.place == "child process"


async def test_a_job_that_does_not_run_has_no_stack() -> None:
    backend = MemoryBackend()
    processor = Processor(backend)
    async with processor:
        await processor.enqueue_raw("send", b"{}", id="a")
        assert await make_actions(backend).show_stack("a") == StackAnswer("not running")


async def test_the_right_is_one_of_its_own() -> None:
    backend = MemoryBackend()
    others = frozenset({"read", "payloads", "operate", "admin"})
    await backend.open()
    with pytest.raises(MissingRight):
        await JobActions(backend, Operator("bob", rights=others)).show_stack("a")


async def test_a_request_counts_for_a_minute_and_its_answer_is_short() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with Processor(backend, clock=clock) as processor:
        await processor.enqueue_raw("send", b"{}", id="a")
        from nimburion.core.stacks import get_stack, request_stack

        await request_stack(backend, "a", "s1")
        assert await list_stack_requests(backend, "s2") == []
        (request,) = await list_stack_requests(backend, "s1")
        await answer_stack_request(backend, request, "s1", "thread", "x" * 1_000_000)
        assert await list_stack_requests(backend, "s1") == []
        stack = await get_stack(backend, "a", clock.now())
        assert stack is not None
        assert len(stack.text) <= MAX_STACK_BYTES
        clock.advance(61.0)
        assert await get_stack(backend, "a", clock.now()) is None
        await request_stack(backend, "b", "s1")
        page = await backend.reads.list_records("stack")
        assert [record.id for record in page.records] == ["b"]
