"""Start, kill and stop the worker processes of the demo. All of them end with the block."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

TARGET = "nimburion.cli.commands.demo.jobs:make_processor"
STOP_SECONDS = 5.0


class WorkerProcesses:
    """Worker processes, each with its own log file in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, Process] = {}
        self.numbers: dict[int, int] = {}
        """Number of each worker, counted from 1, by process id."""

    async def start(self) -> int:
        """Start a worker and return its process id. It reads `config.yaml` in the folder."""
        number = len(self.numbers) + 1
        with (self._folder / f"worker-{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nimburion", "worker", TARGET, "--config", "config.yaml"),
                cwd=self._folder,
                env=_make_environment(),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the demo, which stops its workers
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
        """Return the numbers of the workers that have exited."""
        return [
            self.numbers[pid]
            for pid, process in self._processes.items()
            if process.returncode is not None
        ]

    async def stop(self) -> list[int]:
        """Send SIGTERM to all workers, then SIGKILL to those that still run; return their exit
        codes."""
        processes = list(self._processes.values())
        for process in processes:
            if process.returncode is None:
                process.terminate()
        codes = list(await asyncio.gather(*(_wait_or_kill(process) for process in processes)))
        self._processes.clear()
        return codes

    async def kill_all(self) -> None:
        """Send SIGKILL to all remaining workers before waiting for any of them. A second Ctrl-C
        then cannot leave a worker behind."""
        left = [process for process in self._processes.values() if process.returncode is None]
        for process in left:
            process.kill()
        for process in left:
            await process.wait()


@asynccontextmanager
async def start_workers_in(folder: Path) -> AsyncIterator[WorkerProcesses]:
    """Manage worker processes; all of them have ended when the block exits, also after an error."""
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
    """Return the environment without nimburion settings: only the file configures the workers."""
    return {name: value for name, value in os.environ.items() if name[:10] != "NIMBURION_"}
