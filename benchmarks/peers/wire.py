"""One plain connection to a Redis, for its figures and the lengths of keys. No library."""

from __future__ import annotations

import socket
from typing import Any

from benchmarks.peers.figures import Figures


class Refused(Exception):
    """The server answered with an error."""


class Wire:
    """Asks one question at a time (RESP2); counts them, so that they can be taken off."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        self.own_requests = 0

    def ask(self, *words: str) -> Any:
        """A reply as int, str, list or None."""
        self.own_requests += 1
        parts = [word.encode() for word in words]
        request = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%b" % (len(parts), request))
        return self._read()

    def figures(self) -> Figures:
        """What the server counts; these questions are not counted."""
        own_requests = self.own_requests
        info = self.info()
        return Figures(
            cpu=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            commands=int(info["total_commands_processed"]) - own_requests,
            requests=int(info["total_reads_processed"]) - own_requests,
            memory=int(info["used_memory"]),
        )

    def info(self) -> dict[str, str]:
        """INFO, every section, as one table."""
        lines = str(self.ask("INFO", "everything")).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def close(self) -> None:
        """Hang up."""
        self._replies.close()
        self._socket.close()

    def _read(self) -> Any:
        line = self._replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise Refused(rest.decode())
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._replies.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self._read() for _ in range(int(rest))]
        raise Refused(f"not a reply: {line!r}")
