"""A peer's worker processes: started, watched, and ended with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

TICK = os.sysconf("SC_CLK_TCK")


class Workers:
    """Processes of one command each; what they print is shown only when something goes wrong."""

    def __init__(self, commands: list[list[str]]) -> None:
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of the workers)

    def __enter__(self) -> Self:
        for command in self._commands:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in [pid for process in self._processes for pid in tree(process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self._processes:
            process.wait()
        if error is not None:
            error.add_note(f"the workers printed: {self.printed()}")
        self._printed.close()

    def cpu(self) -> float:
        """Seconds of processor time, of all and of what they started and reaped."""
        return sum(spent(pid) for process in self._processes for pid in tree(process.pid))

    def printed(self, last: int = 2000) -> str:
        """The end of what they printed."""
        self._printed.seek(0)
        return self._printed.read()[-last:].decode(errors="replace")

    def check(self) -> None:
        """Complain when one has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended with {process.returncode}")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue  # the thread has ended
        found += [below for child in children for below in tree(int(child))]
    return found


def spent(pid: int) -> float:
    """Seconds of processor time of one process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / TICK
