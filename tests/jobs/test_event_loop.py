"""The end of a process whose handlers left something behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.waiting import DEADLINE

PROGRAM = """
import asyncio, logging, threading, time
from nimburion.jobs.event_loop import limit_exit

logging.basicConfig(format="%(message)s")
never = threading.Event()

async def catch_cancellations():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def main():
    global left  # or the garbage collector could end a task that nothing else refers to
    {left}
    await asyncio.sleep(0)

with asyncio.Runner() as runner:
    runner.run(main())
    limit_exit(runner.get_loop(), {seconds})
"""

TASK = 'left = asyncio.create_task(catch_cancellations(), name="stubborn")'
POOL_THREAD = "left = asyncio.create_task(asyncio.to_thread(never.wait))"
THREAD = 'threading.Thread(target=never.wait, name="own").start()'


def run(left: str, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(left=left, seconds=seconds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


@pytest.mark.parametrize(
    ("left", "name"),
    [(TASK, "task stubborn"), (POOL_THREAD, "thread asyncio_0"), (THREAD, "thread own")],
    ids=["task", "pool thread", "thread"],
)
def test_what_handlers_left_behind_does_not_keep_the_process(left: str, name: str) -> None:
    ended = run(left, 0.1)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert name in ended.stderr
    assert "the process ends without it" in ended.stderr


def test_a_process_that_ends_by_itself_waits_for_nothing_and_logs_nothing() -> None:
    ended = run("left = asyncio.create_task(asyncio.Event().wait())", 10 * DEADLINE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_process_with_other_work_lifts_the_limit() -> None:
    program = PROGRAM.format(left="pass", seconds=0.1).replace(
        "    limit_exit(", "    lift = limit_exit("
    )
    program += "lift()\nthreading.Event().wait(0.3)\nprint('goes its way')\n"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "goes its way\n", "")
