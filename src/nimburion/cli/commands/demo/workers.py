"""Start, kill and stop the worker processes of the demo."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Self

TARGET = "nimburion.cli.commands.demo.jobs:make_processor"


class WorkerProcesses:
    """Worker processes, each with its own log file in the folder. They end with the block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, Process] = {}
        self.numbers: dict[int, int] = {}
        """Number of each worker, counted from 1, by process id."""

    async def start(self) -> int:
        """Start a worker and return its process id. It reads `config.yaml` in the folder; nothing
        else configures it."""
        number = len(self.numbers) + 1
        inherited = {name: v for name, v in os.environ.items() if name[:10] != "NIMBURION_"}
        with (self._folder / f"worker-{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "nimburion",
                "worker",
                TARGET,
                "--config",
                "config.yaml",
                cwd=self._folder,
                env=inherited,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the demo, which stops its workers
            )
        self._running[process.pid] = process
        self.numbers[process.pid] = number
        return process.pid

    async def kill(self, pid: int) -> None:
        """Send SIGKILL: the worker writes nothing and releases nothing."""
        process = self._running.pop(pid)
        process.kill()
        await process.wait()

    def list_exited(self) -> list[int]:
        """Return the numbers of the workers that ended by themselves."""
        ended = [pid for pid, process in self._running.items() if process.returncode is not None]
        return [self.numbers[pid] for pid in ended]

    async def stop(self) -> list[int]:
        """Send SIGTERM to all workers and return their exit codes."""
        for process in self._running.values():
            if process.returncode is None:
                process.terminate()
        codes = [await process.wait() for process in self._running.values()]
        self._running.clear()
        return codes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send SIGKILL to all workers that still run before waiting for any of them. A second
        Ctrl-C then cannot leave a worker behind."""
        left = [process for process in self._running.values() if process.returncode is None]
        for process in left:
            process.kill()
        for process in left:
            await process.wait()
