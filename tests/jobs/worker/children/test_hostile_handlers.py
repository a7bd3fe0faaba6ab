"""Handlers that do harm to their process. Their worker and their neighbours are not affected."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nimburion.core.job import JobRecord, State
from nimburion.core.settings import Recycle
from nimburion.jobs import Processor
from nimburion.jobs.worker.children.line_budget import BURST, LINES_PER_SECOND
from tests.jobs.worker.children import application as app
from tests.jobs.worker.children.conftest import Make
from tests.waiting import DEADLINE, wait_until, wait_until_finished

ENDLESS = [app.block, app.never_return, app.ignore_everything]


async def wait_for_start(path: Path) -> int:
    """Return the process id that a handler has written when it started."""
    found: list[str] = []

    def is_there() -> bool:
        with suppress(FileNotFoundError):
            found[:] = [path.read_text()]
        return found not in ([], [""])

    await wait_until(is_there, "the handler starts")
    return int(found[0])


async def wait_for_end(process: int) -> None:
    def is_gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(process, 0)
            return False
        return True

    await wait_until(is_gone, f"process {process} ends")


async def run(processor: Processor, job: object) -> JobRecord:
    return await wait_until_finished(processor, await processor.enqueue(job))  # type: ignore[arg-type]


@pytest.mark.parametrize("handler", ENDLESS)
async def test_a_timeout_kills_the_process(make: Make, tmp_path: Path, handler: object) -> None:
    processor = make()
    await processor.start()
    path = tmp_path / "started"
    job_id = await processor.enqueue(handler.job(str(path)), timeout=0.3)  # type: ignore[attr-defined]
    process = await wait_for_start(path)
    record = await wait_until_finished(processor, job_id)
    assert (record.state, record.history[-1].kind) == (State.FAILED, "timeout")
    await wait_for_end(process)
    assert await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE) == 2


async def test_a_handler_that_stops_the_loop_of_its_child_runs_on(make: Make) -> None:
    processor = make()
    await processor.start()
    for _ in range(2):
        job_id = await processor.enqueue(app.stop_loop.job())
        assert await processor.wait(job_id, DEADLINE) == "ran on"


async def test_a_cancel_kills_the_process_and_no_neighbour(make: Make, tmp_path: Path) -> None:
    processor = make(children=2, session_ttl=1)
    await processor.start()
    paths = [tmp_path / "one", tmp_path / "two"]
    ids = [await processor.enqueue(app.block.job(str(path))) for path in paths]
    processes = [await wait_for_start(path) for path in paths]
    await processor.cancel(ids[0])
    record = await wait_until_finished(processor, ids[0])
    assert record.state is State.CANCELLED
    await wait_for_end(processes[0])
    os.kill(processes[1], 0)
    assert (await processor.get_status(ids[1])).state is State.PROCESSING


async def test_a_stop_kills_the_process_and_releases_the_job(make: Make, tmp_path: Path) -> None:
    processor = make()
    await processor.start()
    path = tmp_path / "started"
    job_id = await processor.enqueue(app.block.job(str(path)))
    process = await wait_for_start(path)
    await processor.stop(0.0)
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)
    await wait_for_end(process)


async def test_os_exit_fails_its_own_attempt_and_says_how(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    processor = make(children=2)
    await processor.start()
    record = await run(processor, app.end_process.job(7))
    error = record.history[-1]
    assert (error.kind, error.type) == ("failure", "ChildProcessDied")
    assert "exit code 7" in error.message
    assert "last words" in error.traceback
    assert any("exit code 7" in r.getMessage() for r in caplog.records)
    assert await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE) == 2


async def test_os_exit_counts_in_the_budget_of_failures(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id: str = await processor.enqueue(app.end_process.job(7), max_retries=2)

    async def has_failed() -> bool:
        return (await processor.backend.reads.get_job(job_id)).failures == 1

    await wait_until(has_failed, "the attempt fails")
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.lost) == (State.RETRYING, 0)


async def test_a_crash_of_the_interpreter_fails_its_own_attempt(make: Make) -> None:
    processor = make()
    await processor.start()
    record = await run(processor, app.crash.job())
    assert "SIGSEGV" in record.history[-1].message
    assert "application.py" in record.history[-1].traceback, "the stack of the crash"


async def test_a_memory_limit_kills_the_process_and_is_not_retried(make: Make) -> None:
    processor = make()
    await processor.start()
    record = await run(processor, app.eat_memory.job())
    error = record.history[-1]
    assert (record.reason, record.failures) == ("permanent", 1)
    assert error.type == "MemoryLimitExceeded"
    assert "200,000,000 bytes" in error.message


async def test_a_memory_limit_is_retried_if_the_job_asks_for_it(make: Make) -> None:
    processor = make()
    await processor.start()
    record = await run(processor, app.eat_memory_twice.job())
    assert (record.reason, record.failures) == ("exhausted", 2)


async def test_a_fork_ends_with_its_handler_and_speaks_for_nobody(make: Make) -> None:
    processor = make()
    await processor.start()
    assert await processor.wait(await processor.enqueue(app.fork.job()), DEADLINE) == 0
    assert await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE) == 2


async def test_left_threads_and_tasks_stay_until_the_child_is_replaced(make: Make) -> None:
    processor = make(child_recycle=Recycle(jobs=4))
    await processor.start()
    results = [
        await processor.wait(await processor.enqueue(job), DEADLINE)
        for job in (
            app.leave_thread.job(),
            app.leave_task.job(),
            app.leave_task.job(),
            app.get_process.job(),
            app.leave_task.job(),
        )
    ]
    assert results[1:3] == [0, 1], "the task waits in the loop of the child"
    assert results[4] == 0, "another child"


async def test_a_program_that_a_handler_started_dies_with_the_child(
    make: Make, tmp_path: Path
) -> None:
    processor = make()
    await processor.start()
    path = tmp_path / "started"
    job_id = await processor.enqueue(app.leave_program.job(str(path)))
    program = await wait_for_start(path)
    await processor.stop(0.0)  # not a timeout: it might end before the program starts
    await wait_for_end(program)
    status = await processor.get_status(job_id)
    assert (status.state, status.failures, status.lost) == (State.PENDING, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="guards exist on Linux only")
@pytest.mark.parametrize("how", ["blocks", "exits"])
async def test_a_program_in_a_session_of_its_own_dies_with_the_child(
    make: Make, tmp_path: Path, how: str
) -> None:
    processor = make()
    await processor.start()
    path = tmp_path / "started"
    job_id = await processor.enqueue(app.leave_session.job(str(path), how), max_retries=0)
    program = await wait_for_start(path)
    if how == "blocks":
        await processor.stop(0.0)
    else:
        record = await wait_until_finished(processor, job_id)
        assert "exit code 3" in record.history[-1].message
    await wait_for_end(program)


async def test_a_flood_of_output_is_cut_and_stops_nothing(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    processor = make()
    await processor.start()
    flood = await processor.enqueue(app.write.job("x\n", 40_000))
    long_line = await processor.enqueue(app.write.job("y" * 100_000 + "\n"))
    for job_id in (flood, long_line):
        await processor.wait(job_id, DEADLINE)
    lines = [r.getMessage() for r in caplog.records if r.name == "nimburion.job.output"]
    assert len(lines) < 40_000
    assert any("lines of output were dropped" in line for line in lines)
    assert max(len(line) for line in lines) < 10_000


async def test_a_flood_of_log_records_is_cut(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    processor = make()
    await processor.start()
    began = time.monotonic()
    await processor.wait(await processor.enqueue(app.log.job(5_000)), DEADLINE)
    allowed = BURST + LINES_PER_SECOND * (time.monotonic() - began)
    texts = [r.getMessage() for r in caplog.records]
    logged = sum(text.startswith("record ") for text in texts)
    dropped = sum(int(text.split()[2]) for text in texts if "log records were dropped" in text)
    assert logged <= allowed
    assert 5_000 <= logged + dropped <= 5_001


async def test_bytes_in_the_channel_that_are_no_frame_end_the_child(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id = await processor.enqueue(app.damage_channel.job(), max_retries=0)
    record = await wait_until_finished(processor, job_id)
    assert record.history[-1].type == "ChildProcessDied"
    assert await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE) == 2


async def test_sigterm_to_a_child_changes_nothing(make: Make) -> None:
    processor = make()
    await processor.start()
    process = await processor.wait(await processor.enqueue(app.get_process.job()), DEADLINE)
    os.kill(process, signal.SIGTERM)
    os.kill(process, signal.SIGINT)
    again = await processor.wait(await processor.enqueue(app.get_process.job()), DEADLINE)
    assert again == process


async def test_sigterm_from_a_handler_to_its_child_changes_nothing(make: Make) -> None:
    processor = make()
    await processor.start()
    first = await processor.wait(await processor.enqueue(app.terminate_itself.job()), DEADLINE)
    again = await processor.wait(await processor.enqueue(app.get_process.job()), DEADLINE)
    assert again == first


async def test_a_child_whose_tasks_are_cancelled_fails_its_own_attempt(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id = await processor.enqueue(app.cancel_all.job(), max_retries=0)
    record = await wait_until_finished(processor, job_id)
    assert (record.state, record.failures, record.lost) == (State.FAILED, 1, 0)
    assert await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE) == 2


async def test_the_event_loop_runs_while_a_child_blocks(make: Make, tmp_path: Path) -> None:
    processor = make()
    await processor.start()
    path = tmp_path / "started"
    await processor.enqueue(app.block.job(str(path)))
    await wait_for_start(path)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    await asyncio.gather(*(turn() for _ in range(10)))
    assert turns == 10
    other = await processor.enqueue(app.run_anywhere.job())
    assert await processor.wait(other, DEADLINE) == os.getpid()
