"""What a supervisor concludes from the reports of a worker process."""

from __future__ import annotations

import asyncio
import signal

import pytest

from nimburion.cli.supervisor.combined_health import combine_health
from nimburion.cli.supervisor.messages import WorkerOptions, WorkerReport, encode_message
from nimburion.cli.supervisor.reaper import Reaper
from nimburion.cli.supervisor.supervisor import Supervisor
from nimburion.cli.supervisor.worker_process import WorkerProcess
from nimburion.core.frames import FrameSplitter
from nimburion.core.settings import Recycle
from nimburion.jobs import Health

READY = Health(state="ready", running=1, seconds_since_exchange=1.0, lease_seconds_left=9.0)
STARTING = Health(state="starting")
UNREACHABLE = Health(state="unreachable", error="no route", running=2)


class Loop:
    """An event loop with a clock to set."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def make_process(loop: Loop) -> WorkerProcess:
    """Return a process that was not started."""
    return WorkerProcess(loop, Reaper(loop))  # type: ignore[arg-type]


def report(process: WorkerProcess, health: Health) -> None:
    (body,) = FrameSplitter().feed(encode_message(WorkerReport(health, [])))
    process.receive(body)


async def test_which_workers_make_progress() -> None:
    loop = Loop()
    process = make_process(loop)
    assert process.has_progress(60.0)
    loop.now += 61.0
    assert not process.has_progress(60.0), "it has not reported since its start"
    report(process, READY)
    loop.now += 1000.0
    assert process.has_progress(60.0), "nothing was asked"
    await process.request_report(0.0)
    loop.now += 59.0
    assert process.has_progress(60.0)
    await process.request_report(0.0)
    loop.now += 1.0
    assert (process.lag, process.has_progress(60.0)) == (60.0, False)
    report(process, READY)
    assert (process.lag, process.has_progress(60.0)) == (0.0, True)
    report(process, Health(state="ready", seconds_since_exchange=61.0))
    assert not process.has_progress(60.0), "its exchanges hang"


async def test_a_worker_that_stops_by_itself_says_so() -> None:
    process = make_process(Loop())
    report(process, Health(state="stopping"))
    assert process.stopping.is_set()


@pytest.mark.parametrize(
    ("current", "state"),
    [
        ([READY, READY], "ready"),
        ([READY, STARTING], "degraded"),
        ([READY, None], "degraded"),
        ([READY, UNREACHABLE], "degraded"),
        ([STARTING, None], "starting"),
        ([UNREACHABLE, STARTING], "unreachable"),
    ],
)
def test_the_state_of_a_group(current: list[Health | None], state: str) -> None:
    assert combine_health(current, [], stopping=False).state == state
    assert combine_health(current, [], stopping=True).state == "stopping"


def test_the_numbers_of_a_group() -> None:
    """Those of a worker that finishes its jobs count too; its lease does not."""
    finishing = Health(state="stopping", running=4)
    health = combine_health([READY, UNREACHABLE], [finishing], stopping=False)
    assert (health.running, health.error, health.seconds_since_exchange) == (7, "no route", 1.0)
    assert health.lease_seconds_left == 0.0
    waiting = combine_health([READY, STARTING], [], stopping=False)
    assert waiting.failures == {"starting": "1 of 2 worker processes is starting"}


async def test_a_process_that_is_started_while_the_supervisor_stops_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal may come between the decision to start a process and its start."""
    options = WorkerOptions(
        target="app:processor",
        processes=1,
        config_file=None,
        backend=None,
        queues=None,
        concurrency=None,
        log_level="info",
        log_format=None,
        until_empty=False,
        max_jobs=None,
        traceback=False,
    )
    supervisor = Supervisor(options, Recycle())
    supervisor._reaper = Reaper(asyncio.get_running_loop())
    sent: list[tuple[int, int]] = []

    async def stop_during_the_start(process: WorkerProcess, *_: object) -> None:
        supervisor._on_stop_signal()
        process.id = 17

    def note_signal(process: WorkerProcess, number: int) -> None:
        if process.id:
            sent.append((process.id, number))

    monkeypatch.setattr(WorkerProcess, "start", stop_during_the_start)
    monkeypatch.setattr(WorkerProcess, "send_signal", note_signal)
    process = await supervisor._start(supervisor._slots[0])
    process.ended.set()
    assert sent == [(17, signal.SIGTERM)]
