"""Starts actors by forking a process that has imported them: a tenth of the time of a new Python.

    python -m tests.crash.fork_server DESCRIPTOR

The descriptor is a socket. A request is a packet of JSON, and so is its reply.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nimburion.backends import open_backend
from tests.crash import actor

ROOT = Path(__file__).parent.parent.parent
_STDERR = 2
_LARGEST = 1 << 17
"""Bytes of a request, at most."""


class ForkedProcess:
    """An actor, to be used as a `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; minus n: signal n ended it."""
        if self.returncode is None and self._has_ended(0.0):
            self.returncode = self._server.collect(self.pid)
            os.close(self._descriptor)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("actor", timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, timeout: float | None) -> bool:
        return bool(select.select([self._descriptor], [], [], timeout)[0])


class ForkServer:
    """The process that forks, as its user sees it. Threads may share it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = theirs.fileno()
        command = [sys.executable, "-m", "tests.crash.fork_server", str(number)]
        with theirs:
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[number])
        self._socket = ours
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> ForkedProcess:
        """Start an actor with these arguments of its command line; it writes to our stderr."""
        request = {"arguments": list(arguments), "environment": dict(environment)}
        return ForkedProcess(self, self._ask(request))

    def collect(self, pid: int) -> int:
        """Return the exit code of an actor that has ended."""
        return self._ask({"ended": pid})

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait(20)

    def _ask(self, request: Mapping[str, object]) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [_STDERR])
            reply: int = json.loads(self._socket.recv(_LARGEST))
            return reply


def serve(connection: socket.socket) -> list[str] | None:
    """Answer requests. Return the arguments of the actor in a process that was forked to be one,
    and None in this process, at the end."""
    with connection:
        while True:
            packet, descriptors, _, _ = socket.recv_fds(connection, _LARGEST, 1)
            if not packet:
                return None
            request: dict[str, Any] = json.loads(packet)
            if "ended" in request:
                _, status = os.waitpid(request["ended"], 0)
                reply = os.waitstatus_to_exitcode(status)
            else:
                open_backend(request["arguments"][2])  # the first time, imports the driver
                reply = os.fork()
                if reply == 0:
                    os.dup2(descriptors[0], _STDERR)
                    os.close(descriptors[0])
                    os.environ.clear()
                    os.environ.update(request["environment"])
                    return list(request["arguments"])
            for descriptor in descriptors:
                os.close(descriptor)
            connection.sendall(json.dumps(reply).encode())


if __name__ == "__main__":
    given = serve(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        sys.argv[1:] = given
        actor.main()
