"""The children of a worker: how many there are, when they are replaced, and how they end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from nimburion.core.exchange import Lane
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settings import Recycle, Settings
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.children import process
from nimburion.jobs.worker.children.errors import ChildNotStarted
from nimburion.jobs.worker.children.line_budget import BURST, LINES_PER_SECOND, LineBudget
from nimburion.jobs.worker.children.messages import Start
from nimburion.jobs.worker.children.process import Child
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from tests.jobs.worker.children import application as app
from tests.jobs.worker.children.conftest import Make
from tests.waiting import DEADLINE, block_until

PARENT = """
import asyncio, sys
from tests.jobs.worker.children.application import get_process, leave_session, make_processor

async def main():
    processor = make_processor(children=1)
    await processor.start()
    print(await processor.wait(await processor.enqueue(get_process.job()), 30), flush=True)
    await processor.enqueue(leave_session.job(sys.argv[1], "blocks"))
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def run_many(make: Make, count: int, **settings: object) -> list[int]:
    processor = make(**settings)
    await processor.start()
    ids = [await processor.enqueue(app.get_process.job()) for _ in range(count)]
    return [await processor.wait(job_id, DEADLINE) for job_id in ids]


async def test_never_more_children_than_the_setting(make: Make) -> None:
    assert len(set(await run_many(make, 40, children=2))) <= 2


async def test_a_child_is_replaced_after_its_number_of_jobs(make: Make) -> None:
    processes = await run_many(make, 6, children=1, child_recycle=Recycle(jobs=3))
    assert [processes.count(each) for each in dict.fromkeys(processes)] == [3, 3]


async def test_a_child_is_replaced_when_it_holds_too_much_memory(make: Make) -> None:
    processor = make(children=1, child_recycle=Recycle(memory=32 * 1024**2))
    await processor.start()
    await processor.wait(await processor.enqueue(app.hold_memory.job(64)), DEADLINE)
    first, second = [
        await processor.wait(await processor.enqueue(job), DEADLINE)
        for job in (app.hold_memory.job(64), app.hold_memory.job(64))
    ]
    assert first != second


async def enqueue_nothing(_: Sequence[NewJob]) -> list[Enqueued]:
    return []


async def test_the_end_of_a_child_is_reported_once() -> None:
    ended: list[Child] = []
    child = Child(asyncio.get_running_loop(), enqueue_nothing, ended.append)
    path = f"{app.__name__}:make_processor"
    await child.start(Start(path, None, sys.path, sys.argv, os.getpid(), logging.WARNING))
    await child.stop()
    child._note_disconnect(None)  # a process that a handler forked closes the channel later
    assert ended == [child]


@pytest.mark.skipif(sys.platform != "linux", reason="guards exist on Linux only")
@pytest.mark.parametrize("program", ["unguarded", None])
async def test_a_kill_waits_for_no_timeout_with_and_without_a_guard(
    monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    monkeypatch.setattr(process, "_GUARD_TIMEOUT", 100 * DEADLINE)
    if program is not None:
        monkeypatch.setattr(process, "_PROGRAM", f"{__package__}.{program}")
    child = Child(asyncio.get_running_loop(), enqueue_nothing, lambda _: None)
    path = f"{app.__name__}:make_processor"
    await child.start(Start(path, None, sys.path, sys.argv, os.getpid(), logging.WARNING))
    child.kill()
    try:
        async with asyncio.timeout(DEADLINE):
            await child.wait_until_finished()
        assert child.describe_end() == "was killed by SIGKILL"
    finally:
        child._kill_group()


async def test_a_process_without_free_file_descriptors_starts_no_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    child = Child(asyncio.get_running_loop(), enqueue_nothing, lambda _: None)
    monkeypatch.setattr(socket, "socketpair", fail)
    start = Start("a:b", None, [], [], os.getpid(), logging.WARNING)
    with pytest.raises(ChildNotStarted, match=r"cannot be started: .*Too many open files"):
        await child.start(start)
    await child.wait_until_finished()


async def test_all_children_end_with_the_worker(make: Make) -> None:
    processor = make(children=1)
    await processor.start()
    process = await processor.wait(await processor.enqueue(app.get_process.job()), DEADLINE)
    await processor.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_child_that_blocks_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """On Linux, a program in a session of its own that its handler started dies too."""
    path = tmp_path / "started"
    command = [sys.executable, "-c", PARENT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        block_until(path.exists, "the handler starts a program")
        parent.send_signal(signal.SIGKILL)
    block_until(lambda: is_gone(child), "the child ends")
    program = int(path.read_text())
    if sys.platform == "linux":
        block_until(lambda: is_gone(program), "the program ends")
    else:
        os.kill(program, signal.SIGKILL)


def is_gone(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return False
    return True


async def test_a_cancelled_wait_for_a_child_harms_none(make: Make) -> None:
    processor = make(children=1, session_ttl=1)
    await processor.start()
    ids = [await processor.enqueue(app.get_process.job()) for _ in range(20)]
    await asyncio.gather(*(processor.cancel(job_id) for job_id in ids[5:]))
    first = [await processor.wait(job_id, DEADLINE) for job_id in ids[:5]]
    assert len(set(first)) == 1


# Parts


def test_lines_have_a_burst_and_then_a_rate() -> None:
    now = 0.0
    budget = LineBudget(lambda: now)
    assert sum(budget.allow() for _ in range(10_000)) == BURST
    assert budget.take_dropped() == 10_000 - BURST
    now = 0.5
    assert sum(budget.allow() for _ in range(10_000)) == LINES_PER_SECOND / 2


def make_selector() -> LaneSelector:
    settings = Settings(children=2)
    registry = Registry(settings)
    registry.add(app.add, app.run_anywhere)
    return LaneSelector(registry, settings, os.urandom)


def deliver(name: str) -> Delivery:
    return Delivery(Lease("id", Token(1, bytes(16))), name, "default", b"{}")


def test_no_more_process_jobs_are_held_than_there_are_children() -> None:
    selector = make_selector()
    names = ["add", "run_anywhere", "add", "add", "run_anywhere"]
    held, surplus = selector.split_surplus([deliver(name) for name in names])
    assert [each.name for each in held] == ["add", "run_anywhere", "add", "run_anywhere"]
    assert [each.name for each in surplus] == ["add"]


def test_process_jobs_are_not_requested_while_all_children_are_busy() -> None:
    selector = make_selector()
    both = (Lane("default", "add"), Lane("default", "run_anywhere"))
    assert selector.make_request(10, everything=True).lanes == both
    for _ in range(2):
        selector.occupy_slot(deliver("add"))
    assert selector.make_request(10, everything=True).lanes == both[1:]
    selector.free_slot(deliver("add"))
    assert selector.make_request(10, everything=True).lanes == both


def test_requests_are_small_while_process_jobs_wait_and_grow_with_other_jobs() -> None:
    selector = make_selector()
    assert selector.make_request(100, everything=True).total == 100
    selector.split_surplus([deliver("add")] * 3)
    assert selector.make_request(100, everything=True).total == 2
    selector.split_surplus([deliver("run_anywhere")] * 2)
    assert selector.make_request(100, everything=True).total == 6
    selector.note_non_empty([Lane("default", "run_anywhere")])
    assert selector.make_request(100, everything=True).total == 100
