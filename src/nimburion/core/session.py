"""The life of a worker as the backend sees it."""

from __future__ import annotations

import msgspec

from nimburion.core.lease import Lease


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself when it opens a session."""

    id: str
    """Random, 128 bits; never used twice."""
    ttl: float = 30.0
    """Seconds it lives after each heartbeat."""
    host: str = ""
    pid: int = 0
    owner: str = ""
    """The application's name."""
    queues: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """The job names it can run."""
    limits: dict[str, int] = msgspec.field(default_factory=dict)
    """Fleet-wide concurrency by job name. For every name of `names` the newest session's word
    counts: a limit here sets the gate, none takes it away."""

    def to_info(
        self, *, opened_at: float, expires_in: float, left: bool, running: int
    ) -> SessionInfo:
        """What it said of itself, with what the backend knows of it."""
        return SessionInfo(
            id=self.id,
            host=self.host,
            pid=self.pid,
            owner=self.owner,
            queues=self.queues,
            names=self.names,
            opened_at=opened_at,
            expires_in=expires_in,
            left=left,
            running=running,
        )


class ConcurrencyLimit(msgspec.Struct, frozen=True, gc=False):
    """A limit and how much of it is taken."""

    limit: int
    in_use: int


class HeartbeatReply(msgspec.Struct, frozen=True):
    """What the backend answers to a heartbeat."""

    cancel: list[Lease]
    """Leases of this session whose jobs somebody wants cancelled."""
    paused: list[str]
    """Every paused queue."""
    limits: dict[str, ConcurrencyLimit]
    """The gates of the session's own names."""


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One session, as read."""

    id: str
    host: str
    pid: int
    owner: str
    queues: tuple[str, ...]
    names: tuple[str, ...]
    opened_at: float
    """Epoch seconds."""
    expires_in: float
    """Seconds until it may be rescued; negative when it is overdue."""
    left: bool
    """It said goodbye, but some of its `def` handlers were still running."""
    running: int
    """How many leases it holds."""
