"""The fleet of a run: `nimburion worker` processes, killed, paused and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos.event_log import find_processes
from benchmarks.chaos.fault_plan import Size
from benchmarks.chaos.targets import Target

ROOT = Path(__file__).parents[2]
TARGET = "benchmarks.chaos.application:make_processor"
BEGAN, RESERVED = b'"SessionBegan"', b'"Reserved"'
"""What the lines of these events contain."""
STOP_SECONDS = 30.0
LOOK_AGAIN = 0.02
"""Seconds between two looks for the session of a worker that was started."""


class Fleet:
    """The workers of a run, each started again when it ends.

    A member is a `nimburion worker`. Its workers are the processes that run jobs: with one
    process the member itself, with more the children of its supervisor.
    """

    def __init__(self, folder: Path, target: Target, size: Size) -> None:
        self._folder = folder
        self._target = target
        self._size = size
        self._members: list[subprocess.Popen[bytes]] = []
        self._output = (folder / "workers.txt").open("ab")
        self._ready: set[int] = set()
        self._gone: set[int] = set()
        self.paused: set[int] = set()
        self.restarts = 0
        """How often a member ended and was started again."""

    def start(self) -> None:
        """Start all members."""
        self._members = [self._start(number) for number in range(self._size.workers)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "nimburion", "worker", TARGET, "--log-level", "warning"]
        if self._size.processes > 1:
            command += ["--processes", str(self._size.processes)]
        if self._size.sessions > 1:
            command = [sys.executable, "-m", "benchmarks.chaos.several_workers"]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=make_environment(self._folder, self._target.get_url(number), self._size)
            | {"CHAOS_WORKER": f"worker{number}"},
            stdout=self._output,
            stderr=self._output,
        )

    def restart_ended(self) -> None:
        """Start each member again that has ended."""
        for number, process in enumerate(self._members):
            if process.poll() is not None:
                self.restarts += 1
                self._members[number] = self._start(number)

    async def restart_one_by_one(self) -> None:
        """Ask each member to stop, start it again, and wait until it has a session."""
        for number, process in enumerate([*self._members]):
            before = {*find_processes(self._folder, f"worker{number}")}
            process.terminate()
            await asyncio.to_thread(process.wait, STOP_SECONDS)
            self.restart_ended()
            while not self._has_new_session(number, before):
                await asyncio.sleep(LOOK_AGAIN)

    def _has_new_session(self, number: int, before: set[int]) -> bool:
        paths = find_processes(self._folder, f"worker{number}")
        return any(BEGAN in path.read_bytes() for pid, path in paths.items() if pid not in before)

    def find_workers(self, *, idle: bool = False) -> dict[int, int]:
        """Return the workers that run and have received jobs: member by pid.

        With `idle`, also those that have a session and have not received a job yet.
        """
        found = {}
        for number in range(self._size.workers):
            for pid, path in find_processes(self._folder, f"worker{number}").items():
                if pid not in self._gone and self._is_ready(pid, path, idle=idle):
                    found[pid] = number
        return found

    def _is_ready(self, pid: int, path: Path, *, idle: bool) -> bool:
        if not is_running(pid):
            self._gone.add(pid)
            return False
        if pid in self._ready:
            return True
        events = path.read_bytes()
        if RESERVED in events:
            self._ready.add(pid)
        return RESERVED in events or (idle and BEGAN in events)

    def kill(self, pid: int) -> None:
        """End a worker at once (SIGKILL)."""
        os.kill(pid, signal.SIGKILL)
        self._gone.add(pid)

    def pause(self, pid: int) -> None:
        """Let a worker hang (SIGSTOP)."""
        os.kill(pid, signal.SIGSTOP)
        self.paused.add(pid)

    def resume(self, pid: int) -> None:
        """Let a paused worker continue (SIGCONT)."""
        self.paused.discard(pid)
        if is_running(pid):
            os.kill(pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Ask all members to stop (SIGTERM), and wait until they have."""
        for process in self._members:
            process.terminate()
        for process in self._members:
            await asyncio.to_thread(process.wait, STOP_SECONDS)

    def close(self) -> None:
        """End what still runs."""
        for pid in [*self.paused]:
            self.resume(pid)
        for process in self._members:
            if process.poll() is None:
                process.kill()
                process.wait()
        self._output.close()


def make_environment(folder: Path, url: str, size: Size) -> dict[str, str]:
    """Return the environment of a worker or a producer: its settings, and where it logs."""
    return os.environ | {
        "CHAOS_FOLDER": str(folder),
        "CHAOS_SESSIONS": str(size.sessions),
        "CHAOS_NAMES": str(size.names),
        "CHAOS_FILLED": str(int(size.filled)),
        "CHAOS_FLOWS": str(size.flows),
        "CHAOS_DURABLE": str(size.durable),
        "NIMBURION_CONFIG": os.devnull,
        "NIMBURION_JOBS__URL": url,
        "NIMBURION_JOBS__SESSION_TTL": str(size.ttl),
        "NIMBURION_JOBS__GRACE": "10",
        "NIMBURION_JOBS__RETRY_BACKOFF": "0.2",
        "NIMBURION_JOBS__KEEP_COMPLETED_MAX": str(10 * size.jobs),
    }


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that ended and that nobody waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
