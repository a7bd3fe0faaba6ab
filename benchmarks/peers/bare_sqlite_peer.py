"""No job system: one insert of the same body after another, by sqlite3, on disk each.

What an enqueue is held against: a table with a key and the body, and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.peers.peer import Peer

BODY = json.dumps(PAYLOAD).encode()
TABLE = "CREATE TABLE bare (id INTEGER PRIMARY KEY, queue TEXT NOT NULL, payload BLOB NOT NULL)"
INSERT = "INSERT INTO bare (queue, payload) VALUES (?, ?)"


class BareSqlite(Peer):
    """INSERT, and nothing else."""

    connection: sqlite3.Connection

    async def open(self) -> None:
        self.connection = sqlite3.connect(self.setting.file, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(TABLE)

    async def close(self) -> None:
        self.connection.close()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> object:
        assert arguments is PAYLOAD  # encoded once, not for each insert
        return self.connection.execute(INSERT, (kind, BODY))

    async def left(self) -> int:
        ((count,),) = self.connection.execute("SELECT count(*) FROM bare")
        return int(count)


PEER = BareSqlite
