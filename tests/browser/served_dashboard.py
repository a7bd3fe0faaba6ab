"""A dashboard in a process of its own, as `nimburion dashboard` serves it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.servers.ports import free_port
from tests.waiting import block_until


class ServedDashboard:
    """The dashboard of a backend. It can be killed, stopped and started again at its address."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/dashboard"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it answers."""
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nimburion", "dashboard"),
                    *("--backend", self.url, "--port", str(self.port)),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            block_until(self._answers, f"{self.address} answers", seconds=50.0)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process without ending it: it keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the process after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the dashboard ended while it started"
        try:
            return httpx.get(f"{self.address}/static/icon.svg").status_code < 500
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
