"""The worker processes of the demo: started, killed, ended; none outlives the block."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

TARGET = "nimburion.cli.demo.work:make_processor"
PATIENCE = 5.0


class Crew:
    """Real children, each with its own log file in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, Process] = {}
        self.numbers: dict[int, int] = {}
        """Which worker, from 1, has which process id."""

    async def start(self) -> int:
        """Start one more; its process id. It reads `config.yaml` in the folder."""
        number = len(self.numbers) + 1
        with (self._folder / f"worker-{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nimburion", "worker", TARGET, "--config", "config.yaml"),
                cwd=self._folder,
                env=environment(),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its workers
            )
        self._processes[process.pid] = process
        self.numbers[process.pid] = number
        return process.pid

    async def kill(self, pid: int) -> None:
        """SIGKILL: no goodbye, nothing is written, nothing is given back."""
        process = self._processes.pop(pid)
        process.kill()
        await process.wait()

    def ended(self) -> list[int]:
        """The numbers of those that ended although nobody asked them to."""
        return [
            self.numbers[pid]
            for pid, process in self._processes.items()
            if process.returncode is not None
        ]

    async def stop(self) -> list[int]:
        """SIGTERM to all, SIGKILL to those that do not go; their exit codes."""
        processes = list(self._processes.values())
        for process in processes:
            if process.returncode is None:
                process.terminate()
        codes = list(await asyncio.gather(*(self._gone(process) for process in processes)))
        self._processes.clear()
        return codes

    async def kill_all(self) -> None:
        """SIGKILL to all that are left, before anything is waited for: a second Ctrl-C comes too
        late to leave one behind."""
        left = [one for one in self._processes.values() if one.returncode is None]
        for process in left:
            process.kill()
        for process in left:
            await process.wait()

    async def _gone(self, process: Process) -> int:
        try:
            async with asyncio.timeout(PATIENCE):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()


@asynccontextmanager
async def crew_in(folder: Path) -> AsyncIterator[Crew]:
    """A crew whose processes are gone when the block is left, however it is left."""
    crew = Crew(folder)
    try:
        yield crew
        await crew.stop()
    finally:
        await crew.kill_all()


def environment() -> dict[str, str]:
    """Ours, without settings: the workers are configured by the file alone."""
    return {name: value for name, value in os.environ.items() if name[:10] != "NIMBURION_"}
