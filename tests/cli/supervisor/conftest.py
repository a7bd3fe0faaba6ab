"""A supervisor with its worker processes, as real processes in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nimburion.jobs import Processor
from tests.house.tree import ROOT
from tests.waiting import block_until

APPLICATION = '''
"""Handlers that write the id of their process to a file."""
import asyncio
import os
import threading

from nimburion.jobs import Processor

processor = Processor("sqlite:///jobs.db", concurrency=4, grace=1.0, session_ttl=5.0)


@processor.job
async def note(seconds: float = 0.0) -> None:
    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=seconds)
    with open("notes", "a") as file:
        file.write(f"{os.getpid()}\\n")


@processor.job
def block(seconds: float) -> None:
    with open("began", "a") as file:
        file.write(f"{os.getpid()}\\n")
    threading.Event().wait(seconds)


@processor.job(execution="process")
def hold(seconds: float) -> None:
    with open("began", "a") as file:
        file.write(f"{os.getpid()}\\n")
    threading.Event().wait(seconds)


@processor.job
def grow(megabytes: int) -> None:
    """Hold memory until the file `go` exists."""
    held = b"x" * megabytes * 1024**2
    with open("began", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while held and not os.path.exists("go"):
        threading.Event().wait(0.01)
'''


END_TIMEOUT = 50
"""Seconds within which a supervisor that was stopped must end, on a busy machine too."""


class Supervised:
    """A running supervisor."""

    def __init__(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.folder = folder
        self._log = folder / "log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                stderr=log,
                stdout=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What all processes have logged so far."""
        return self._log.read_text(encoding="utf-8")

    def wait_for_log(self, pattern: str, count: int = 1) -> list[Any]:
        """Return the matches of a pattern once there are `count` of them in the log."""

        def is_logged() -> bool:
            assert self.process.poll() is None or len(re.findall(pattern, self.log)) >= count, (
                self.log
            )
            return len(re.findall(pattern, self.log)) >= count

        block_until(is_logged, f"the log has {count} of {pattern}")
        return re.findall(pattern, self.log)

    def wait_until_ready(self, count: int) -> list[int]:
        """Return the ids of the first `count` worker processes that are ready."""
        return [int(each) for each in self.wait_for_log(r"worker process (\d+) .* is ready", count)]

    def list_workers(self) -> list[int]:
        """Return the ids of the processes whose parent is the supervisor."""
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
        return [int(each) for each in text.split()]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """Stop the supervisor as a service manager does; return its exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of the supervisor; return its exit code."""
        return self.process.wait(END_TIMEOUT)

    def read_pids(self, name: str) -> list[int]:
        """Return the process ids that handlers have written to a file."""
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def close(self) -> None:
        """Kill what is left."""
        if self.process.poll() is None:
            for pid in self.list_workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


StartSupervised = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartSupervised]:
    """Start a supervisor of `app:processor`.

    Keywords are options of its workers, except `settings`, `recycle` and `reload`.
    """
    running: list[Supervised] = []
    if not (tmp_path / "app.py").exists():
        (tmp_path / "app.py").write_text(APPLICATION)

    def start_supervisor(
        *,
        settings: dict[str, float] | None = None,
        recycle: dict[str, float] | None = None,
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        reload: bool = False,
        **options: Any,
    ) -> Supervised:
        given = {
            "options": {"target": "app:processor", "processes": 1, **options},
            "recycle": recycle or {},
            "settings": settings or {},
            "reload": reload,
        }
        program = [sys.executable, "-m", "tests.cli.supervisor", json.dumps(given)]
        supervised = Supervised(tmp_path, [*prefix, *program], environment or {})
        running.append(supervised)
        return supervised

    yield start_supervisor
    for supervised in running:
        supervised.close()


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    """A processor on the backend of the workers, to enqueue jobs."""
    return Processor(f"sqlite:///{tmp_path}/jobs.db")


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
