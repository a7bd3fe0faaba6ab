"""Worker processes are started, replaced and stopped, and none outlives its supervisor."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from nimburion.core.job import State
from nimburion.jobs import Processor
from tests.cli.supervisor.conftest import APPLICATION, StartSupervised, is_alive
from tests.waiting import block_until, wait_until, wait_until_finished

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the tests read the process table of Linux"
)


async def test_all_processes_run_jobs_until_a_signal(
    start: StartSupervised, processor: Processor
) -> None:
    supervised = start(processes=2)
    workers = supervised.wait_until_ready(2)
    assert sorted(workers) == sorted(supervised.list_workers())
    async with processor:
        for _ in range(8):  # each process takes at most four
            await processor.enqueue_raw("note", b'{"seconds":0.2}')
        await wait_until(lambda: len(supervised.read_pids("notes")) == 8, "the jobs have run")
    assert set(supervised.read_pids("notes")) == set(workers)
    assert supervised.stop() == 0
    assert not any(map(is_alive, workers))


async def test_a_killed_process_is_replaced_and_takes_nothing_along(
    start: StartSupervised, processor: Processor, tmp_path: Path
) -> None:
    """What its handlers have started ends with it, and its job runs again."""
    (tmp_path / "app.py").write_text(
        APPLICATION.replace("session_ttl=5.0", "session_ttl=1.0")
        + """

@processor.job
async def spawn() -> None:
    other = await asyncio.create_subprocess_exec("sleep", "1000")
    with open("began", "a") as file:
        file.write(f"{os.getpid()}\\n{other.pid}\\n")
    if len(open("began").read().split()) == 2:
        await other.wait()
    other.kill()
    await other.wait()
"""
    )
    supervised = start()
    (first,) = supervised.wait_until_ready(1)
    async with processor:
        job_id = await processor.enqueue_raw("spawn", b"{}")
        await wait_until(lambda: len(supervised.read_pids("began")) == 2, "the handler runs")
        os.kill(first, signal.SIGKILL)
        _, second = supervised.wait_until_ready(2)
        record = await wait_until_finished(processor, job_id)
    assert record.state is State.COMPLETED
    assert record.lost >= 1
    pids = supervised.read_pids("began")
    assert (pids[0], pids[2]) == (first, second)
    await wait_until(lambda: not is_alive(pids[1]), "what the handler started has ended")
    assert f"worker process {first} was killed by SIGKILL" in supervised.log
    assert supervised.stop() == 0


async def test_the_workers_of_a_killed_supervisor_end(
    start: StartSupervised, processor: Processor
) -> None:
    """Within ten seconds, with their children, and with a thread that cannot be stopped.

    No job counts as lost.
    """
    supervised = start()
    (worker,) = supervised.wait_until_ready(1)
    async with processor:
        ids = [
            await processor.enqueue_raw(name, b'{"seconds":1000}')
            for name in ("note", "block", "hold")
        ]

        async def all_run() -> bool:
            states = [(await processor.get_status(job_id)).state for job_id in ids]
            return set(states) == {State.PROCESSING} and len(supervised.read_pids("began")) == 2

        await wait_until(all_run, "the handlers run")
        processes = {worker, *supervised.read_pids("began")}
        assert len(processes) == 2
        supervised.process.kill()
        supervised.process.wait()
        await wait_until(lambda: not any(map(is_alive, processes)), "all have ended", 10.0)
        for job_id in ids:
            status = await processor.get_status(job_id)
            assert (status.state, status.lost, status.failures) == (State.PENDING, 0, 0)
    assert "the supervisor has ended" in supervised.log


def test_a_backend_of_one_process_is_refused(start: StartSupervised, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION.replace("sqlite:///jobs.db", "memory://"))
    supervised = start(processes=2)
    assert supervised.wait() == 2
    assert supervised.log.count("exists only inside one process, so 2 processes would not") == 1


def test_an_application_that_cannot_be_imported_ends_the_supervisor(
    start: StartSupervised, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("import no_such_library\n")
    supervised = start(processes=2)
    assert supervised.wait() == 1
    assert supervised.log.count("No module named 'no_such_library'") == 1
    assert "no worker process can be started: the last one ended with exit code 1" in supervised.log


def test_a_worker_that_cannot_start_any_more_is_tried_with_growing_pauses(
    start: StartSupervised, tmp_path: Path
) -> None:
    """It started once, so the fault may pass. After some tries the supervisor gives up."""
    path = tmp_path / "app.py"
    supervised = start(settings={"first_pause": 0.01, "max_failed_starts": 2})
    (worker,) = supervised.wait_until_ready(1)
    path.write_text("import os\nos._exit(7)\n")
    os.kill(worker, signal.SIGTERM)
    supervised.wait_for_log(r"ended with exit code 7 after .* starts in 0.0 s")
    path.write_text(APPLICATION)
    _, again = supervised.wait_until_ready(2)
    path.write_text("import os\nos._exit(7)\n")
    os.kill(again, signal.SIGKILL)
    assert supervised.wait() == 7
    assert "no worker process can be started: the last one ended with exit code 7" in supervised.log


def test_signals_for_the_application_are_passed_on(start: StartSupervised, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: open('notes', 'a').write('1\\n'))\n" + APPLICATION
    )
    supervised = start()
    supervised.wait_until_ready(1)
    supervised.send(signal.SIGUSR1)
    block_until(lambda: supervised.read_pids("notes") == [1], "the worker has the signal")
    assert supervised.stop() == 0


async def test_a_second_signal_interrupts_and_a_third_one_kills(
    start: StartSupervised, processor: Processor, tmp_path: Path
) -> None:
    """A worker that ignores signals is killed."""
    (tmp_path / "app.py").write_text(APPLICATION.replace("grace=1.0", "grace=1000.0"))
    supervised = start()
    (worker,) = supervised.wait_until_ready(1)
    async with processor:
        await processor.enqueue_raw("block", b'{"seconds":1000}')
        await wait_until(lambda: len(supervised.read_pids("began")) == 1, "the handler runs")
    os.kill(worker, signal.SIGSTOP)
    for what in ("stopping", "interrupting the handlers of", "killing"):
        supervised.send(signal.SIGTERM)
        supervised.wait_for_log(f"{what} 1 worker process")
    assert supervised.wait() == 0
    assert not is_alive(worker)


async def test_a_burst_ends_when_all_workers_have_nothing_to_do(
    start: StartSupervised, processor: Processor
) -> None:
    async with processor:
        for _ in range(6):
            await processor.enqueue_raw("note", b'{"seconds":0.05}')
        supervised = start(processes=2, until_empty=True)
        assert supervised.wait() == 0
        assert len(supervised.read_pids("notes")) == 6
        assert await processor.queue_size() == 0


ORPHAN = (
    "import os, time\n"
    "if os.fork() == 0:\n"
    "    os.fork() or os.execvp('sleep', ['sleep', '0.2'])\n"
    "    os._exit(0)\n"
    "os.wait()\n"
)


def test_a_supervisor_collects_processes_that_lost_their_parent(
    start: StartSupervised, tmp_path: Path
) -> None:
    """As process 1 of a container it inherits them. Here it is a subreaper, which does too."""
    subreaper = (
        "import ctypes, os, sys\n"
        "ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    (tmp_path / "app.py").write_text(ORPHAN + APPLICATION)
    supervised = start(prefix=(sys.executable, "-c", subreaper))
    (worker,) = supervised.wait_until_ready(1)
    supervised.wait_for_log(r"process \d+, which lost its parent, has ended")
    assert supervised.list_workers() == [worker]
    assert supervised.stop() == 0


@pytest.mark.parametrize("limit", ["max_jobs", "max_memory"])
async def test_a_worker_over_a_limit_finishes_its_jobs_and_is_replaced(
    limit: str, start: StartSupervised, processor: Processor, tmp_path: Path
) -> None:
    """Its replacement starts while it finishes; the job is not interrupted."""
    async with processor:
        job_id = await processor.enqueue_raw("grow", b'{"megabytes":200}')
        supervised = start(
            recycle={"memory": 200 * 1024**2} if limit == "max_memory" else None,
            max_jobs=1 if limit == "max_jobs" else None,
            settings={"report_interval": 0.05},
        )
        first, second = supervised.wait_until_ready(2)
        assert supervised.list_workers() == [first, second]
        (tmp_path / "go").touch()
        record = await wait_until_finished(processor, job_id)
        await wait_until(
            lambda: supervised.list_workers() == [second], "the first worker has ended"
        )
    assert (record.state, record.attempt) == (State.COMPLETED, 1)
    assert supervised.read_pids("began") == [first]
    assert supervised.stop() == 0


async def test_a_changed_file_replaces_the_worker(
    start: StartSupervised, processor: Processor, tmp_path: Path
) -> None:
    """A file that cannot be imported is not the end: the next change is awaited."""
    supervised = start(reload=True)
    supervised.wait_until_ready(1)
    (tmp_path / "app.py").write_text("this is no Python")
    supervised.wait_for_log("a new one starts when a file changes")
    (tmp_path / "app.py").write_text(APPLICATION.replace('"notes"', '"other_notes"'))
    _, second = supervised.wait_until_ready(2)
    async with processor:
        await processor.enqueue_raw("note", b"{}")
        await wait_until(lambda: supervised.read_pids("other_notes") == [second], "the job has run")
    assert supervised.stop() == 0
