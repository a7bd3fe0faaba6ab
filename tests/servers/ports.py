"""Ports that are free."""

from __future__ import annotations

import random
import socket
from contextlib import closing

BUS = 10_000
"""A cluster node's second port is that much above its first."""


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
