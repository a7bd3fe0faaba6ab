"""Sessions as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import Database


class SessionDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """The description that a worker gives of itself, stored as JSON."""

    host: str = ""
    pid: int = 0
    owner: str = ""
    queues: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


decode_description: Callable[[bytes | str], SessionDescription] = msgspec.json.Decoder(
    SessionDescription
).decode


class SessionRow(NamedTuple):
    """The columns of a session that its own operations need."""

    session: int
    description: str
    ttl: float
    left_at: int | None
    ended_at: int | None
    command: str | None

    @property
    def is_alive(self) -> bool:
        """Whether the session is neither closed nor expired."""
        return self.left_at is None and self.ended_at is None


def find_session(db: Database, session_id: str) -> SessionRow | None:
    """Return the session, also if it has ended; None if it is unknown."""
    row = db.fetch_one("get_session", session_id)
    return None if row is None else SessionRow(*row)
