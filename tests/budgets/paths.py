"""Lists the functions and files of nimburion that one enqueue and one job pass through on SQLite.

Usage: python -m tests.budgets.paths [--list]

Prints the number of distinct functions and files as JSON; with `--list`, also their names in the
order of their first call. A reader who follows the path of a job reads these. What happens once
in a process, such as opening, is not counted, nor is the watchdog, which runs beside the path.

Run it as a program: the profiler sees the calls of every thread of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from nimburion import Job, Processor
from tests.waiting import wait_until

_PACKAGE = "/nimburion/"
_WARM_UP = 20
_ROUNDS = 3
"""Timers can only add functions, so the round with the fewest counts."""
_WATCHDOG = "nimburion-loop-watchdog"
"""The name of its thread."""
_OF_WATCHDOG = ("/loop_watchdog.py", "/vitals.py")
"""The files of the functions that it calls on the event loop."""
_LAST_OF_COMMIT = "Checkpointer.note_commit"
"""The last function of a commit. The caller of the commit may have its reply before."""
_ENQUEUE = """
import sys
from nimburion import Processor
from tests.budgets.paths import Mail

Processor(sys.argv[1]).sync.enqueue(Mail(to="one"))
"""


class Mail(Job, name="mail"):
    """A plain job."""

    to: str

    async def process(self, _: object) -> None:
        """Do nothing."""


class PathRecorder:
    """The functions of nimburion that were called while it recorded, in the order of their first
    call.
    """

    def __init__(self) -> None:
        self.functions: dict[CodeType, None] = {}
        self.is_recording = False

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call. For `sys.setprofile`."""
        file = frame.f_code.co_filename
        if not self.is_recording or event != "call" or _PACKAGE not in file:
            return
        if threading.current_thread().name != _WATCHDOG and not file.endswith(_OF_WATCHDOG):
            self.functions.setdefault(frame.f_code)

    async def wait_for_commit(self) -> None:
        """Wait until a commit has called its last function."""
        await wait_until(lambda: self._has_recorded(_LAST_OF_COMMIT), "a commit has ended")

    def _has_recorded(self, name: str) -> bool:
        return any(function.co_qualname == name for function in self.functions.copy())

    @asynccontextmanager
    async def record(self) -> AsyncIterator[None]:
        """Record what is called meanwhile, on every thread. The shortest record stays."""
        before, self.functions, self.is_recording = self.functions, {}, True
        try:
            yield
        finally:
            self.is_recording = False
            if 0 < len(before) < len(self.functions):
                self.functions = before

    def count(self) -> dict[str, int]:
        """Return the number of functions and of their files."""
        files = {function.co_filename for function in self.functions}
        return {"functions": len(self.functions), "files": len(files)}

    def list_names(self) -> list[str]:
        """Return each function with its file."""
        return [
            f"{function.co_filename.rpartition(_PACKAGE)[2]}: {function.co_qualname}"
            for function in self.functions
        ]


async def record_enqueue(recorder: PathRecorder, url: str) -> None:
    """Record one enqueue by a client that has enqueued before."""
    async with Processor(url) as processor:
        for _ in range(_WARM_UP):
            await processor.enqueue(Mail(to="before"))
        for _ in range(_ROUNDS):
            async with recorder.record():
                await processor.enqueue(Mail(to="one"))
                await recorder.wait_for_commit()


async def record_job(recorder: PathRecorder, url: str, file: Path) -> None:
    """Record one job from its reservation until its end is stored, with the idle exchanges.

    Another process enqueues it, so that only the worker's functions are recorded.
    """
    processor = Processor(url)
    processor.register(Mail)

    def has_completed(jobs: int) -> bool:
        with sqlite3.connect(file) as connection:
            (count,) = connection.execute("SELECT count(*) FROM job WHERE state = 1").fetchone()
        return bool(count == jobs)

    async with processor:
        await processor.start()
        for _ in range(_WARM_UP):
            await processor.enqueue(Mail(to="before"))
        await wait_until(partial(has_completed, _WARM_UP), "the first jobs have ended")
        for number in range(_WARM_UP + 1, _WARM_UP + 1 + _ROUNDS):
            async with recorder.record():
                await asyncio.to_thread(_enqueue_elsewhere, url)
                await wait_until(partial(has_completed, number), "the job has ended")
                await recorder.wait_for_commit()
        await processor.stop()


def _enqueue_elsewhere(url: str) -> None:
    subprocess.run([sys.executable, "-c", _ENQUEUE, url], check=True)


def main() -> None:
    """Print the counts of both paths."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="also print the functions")
    arguments = parser.parse_args()
    found = {}
    for name in ("enqueue", "job"):
        recorder = PathRecorder()
        threading.setprofile(recorder.note)
        sys.setprofile(recorder.note)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "jobs.db"
            url = f"sqlite:///{file}"
            if name == "enqueue":
                asyncio.run(record_enqueue(recorder, url))
            else:
                asyncio.run(record_job(recorder, url, file))
        found[name] = recorder.count()
        if arguments.list:
            sys.stdout.write("\n  ".join([f"{name}:", *recorder.list_names()]) + "\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
