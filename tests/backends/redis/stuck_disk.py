"""A disk that does not answer: the thread of a server that syncs its append-only file stands still.

The server then behaves as on a disk that hangs. It answers, puts off what it should write for up to
two seconds, and a kill in that time loses what was acknowledged. Linux only: by ptrace, which lets
one thread of a child process be held.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers import Server

_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207
_WALL = 0x40000000
"""For `waitpid`: threads that are traced, too."""


class StuckDisk:
    """Holds that thread from entering to leaving, or until the server is killed. Used on one
    thread of ours only: the kernel knows who traces."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._thread = syncing_thread(server.pid)

    def __enter__(self) -> Self:
        ptrace(_SEIZE, self._thread)
        ptrace(_INTERRUPT, self._thread)
        os.waitpid(self._thread, _WALL)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread:
            ptrace(_DETACH, self._thread)

    def kill_server(self) -> None:
        """SIGKILL; what it had not yet written is lost."""
        os.kill(self._server.pid, signal.SIGKILL)
        os.waitpid(self._thread, _WALL)  # else it stays a zombie, and its process with it
        self._thread = 0
        self._server.kill()


def syncing_thread(pid: int) -> int:
    """The id of the thread that syncs."""
    names = {
        int(task.name): (task / "comm").read_text().strip()
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    return next(thread for thread, name in names.items() if name.startswith("bio_aof"))


def ptrace(request: int, thread: int) -> None:
    """One call; `OSError` where the kernel refuses."""
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    call.restype = ctypes.c_long
    if call(request, thread, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace of a server's thread: {os.strerror(number)}")
