"""The worker processes of the demo: started, killed, stopped; none outlives the block."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

TARGET = "nimburion.cli.demo.jobs:make_processor"
STOP_SECONDS = 5.0


class WorkerProcesses:
    """Child processes, each with its own log file in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, Process] = {}
        self.numbers: dict[int, int] = {}
        """The number of each worker, from 1, by process id."""

    async def start(self) -> int:
        """Start one more; its process id. It reads `config.yaml` in the folder."""
        number = len(self.numbers) + 1
        with (self._folder / f"worker-{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nimburion", "worker", TARGET, "--config", "config.yaml"),
                cwd=self._folder,
                env=_make_environment(),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its workers
            )
        self._processes[process.pid] = process
        self.numbers[process.pid] = number
        return process.pid

    async def kill(self, pid: int) -> None:
        """Send SIGKILL: the worker writes nothing and releases nothing."""
        process = self._processes.pop(pid)
        process.kill()
        await process.wait()

    def list_exited(self) -> list[int]:
        """Return the numbers of those that ended by themselves."""
        return [
            self.numbers[pid]
            for pid, process in self._processes.items()
            if process.returncode is not None
        ]

    async def stop(self) -> list[int]:
        """Send SIGTERM to all, SIGKILL to those that go on; their exit codes."""
        processes = list(self._processes.values())
        for process in processes:
            if process.returncode is None:
                process.terminate()
        codes = list(await asyncio.gather(*(_wait_or_kill(process) for process in processes)))
        self._processes.clear()
        return codes

    async def kill_all(self) -> None:
        """Send SIGKILL to all that are left, before waiting for any of them: a second Ctrl-C then
        comes too late to leave one behind."""
        left = [one for one in self._processes.values() if one.returncode is None]
        for process in left:
            process.kill()
        for process in left:
            await process.wait()


@asynccontextmanager
async def start_workers_in(folder: Path) -> AsyncIterator[WorkerProcesses]:
    """Worker processes that have ended when the block is left, however it is left."""
    workers = WorkerProcesses(folder)
    try:
        yield workers
        await workers.stop()
    finally:
        await workers.kill_all()


async def _wait_or_kill(process: Process) -> int:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


def _make_environment() -> dict[str, str]:
    """Return our environment without settings: the file alone configures the workers."""
    return {name: value for name, value in os.environ.items() if name[:10] != "NIMBURION_"}
