"""Ports that are free, and waiting for what should soon be true."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing

TIMEOUT = 20.0
"""Seconds after which something that should happen counts as not happening."""
BUS = 10_000
"""A cluster node's second port is that much above its first."""


def wait_until(holds: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Look again and again until it holds; `TimeoutError` after `long poll` seconds."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:.0f} s: {what}")
        pause.wait(0.01)


def free_port() -> int:
    """Return a port that is free now, and whose cluster bus port is free too.

    It lies below the range from which the kernel gives ports to outgoing connections (32768 and up
    on Linux), so that nobody takes it while its server is down between two starts.
    """
    for _ in range(1000):
        port = random.randrange(11_000, 22_000)
        if is_free(port) and is_free(port + BUS):
            return port
    raise OSError("no free port between 11000 and 22000")


def is_free(port: int) -> bool:
    """Tell whether a server could listen there."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
