"""One plain connection to a PostgreSQL, for its figures and counts of rows. No library."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.figures import Figures
from benchmarks.peers.setting import Setting
from benchmarks.peers.wire import Refused
from benchmarks.peers.workers import spent, tree

Row = list[str | None]

_FIGURES = """
    SELECT pg_current_wal_insert_lsn() - CAST('0/0' AS pg_lsn), xact_commit + xact_rollback,
        pg_database_size(datid)
    FROM pg_stat_database WHERE datname = current_database()
"""


class PostgresWire:
    """Asks one statement at a time (protocol 3, text); each is a transaction of its own."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._socket = socket.create_connection((setting.host, setting.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        words = ("user", setting.user, "database", setting.database, "application_name", "meter")
        body = struct.pack("!i", 196608) + b"".join(b"%b\0" % word.encode() for word in words)
        self._socket.sendall(struct.pack("!i", len(body) + 5) + body + b"\0")
        self._rows()
        self.own_requests = 0

    def ask(self, statement: str) -> list[Row]:
        """The rows of a statement, each value as text or None."""
        self.own_requests += 1
        body = statement.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        return self._rows()

    def number(self, statement: str) -> int:
        """The one number that a statement answers."""
        ((value,),) = self.ask(statement)
        return int(value or 0)

    def figures(self) -> Figures:
        """What the server counts. A backend tells of its transactions once a second at most."""
        own_requests = self.own_requests
        ((wal, transactions, size),) = self.ask(_FIGURES)
        return Figures(
            cpu=sum(map(spent, tree(self._setting.server))),
            transactions=int(transactions or 0) - own_requests,
            memory=int(size or 0),
            wal=int(wal or 0),
        )

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Hold a snapshot open on another connection, as a long report does."""
        other = PostgresWire(self._setting)
        other.ask("BEGIN ISOLATION LEVEL REPEATABLE READ")
        other.ask("SELECT count(*) FROM pg_class")
        try:
            yield
        finally:
            other.close()

    def close(self) -> None:
        """Hang up."""
        self._replies.close()
        self._socket.close()

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        refused: bytes | None = None
        while True:
            kind, body = self._message()
            if kind == b"D":
                rows.append(_values(body))
            elif kind == b"E":
                refused = body
            elif kind == b"Z":
                break
        if refused is not None:
            raise Refused(refused.replace(b"\0", b" ").decode(errors="replace"))
        return rows

    def _message(self) -> tuple[bytes, bytes]:
        head = self._replies.read(5)
        if len(head) < 5:
            raise Refused("the server hung up")
        (size,) = struct.unpack("!i", head[1:])
        return head[:1], self._replies.read(size - 4)


def _values(body: bytes) -> Row:
    (many,) = struct.unpack_from("!h", body)
    values: Row = []
    at = 2
    for _ in range(many):
        (size,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if size < 0 else body[at : at + size].decode())
        at += max(0, size)
    return values
