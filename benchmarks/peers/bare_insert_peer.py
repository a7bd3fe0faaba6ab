"""No job system: one insert of the same body after another, by asyncpg, committed each.

What an enqueue is held against: a table with a key and the body, a prepared statement, nothing
else. Best: uvloop.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

import asyncpg

from benchmarks.payload import PAYLOAD
from benchmarks.peers.peer import Peer

BODY = json.dumps(PAYLOAD).encode()
TABLE = """
    CREATE TABLE bare (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue text NOT NULL,
        payload bytea NOT NULL
    )
"""
INSERT = "INSERT INTO bare (queue, payload) VALUES ($1, $2)"


class BareInsert(Peer):
    """INSERT, and nothing else."""

    connection: asyncpg.Connection[Any]

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.setting.url)
        await self.connection.execute(TABLE)

    async def close(self) -> None:
        await self.connection.close()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        assert arguments is PAYLOAD  # encoded once, not for each insert
        return self.connection.execute(INSERT, kind, BODY)

    async def left(self) -> int:
        return self.postgres.number("SELECT count(*) FROM bare")


PEER = BareInsert
