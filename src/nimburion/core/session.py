"""Sessions of workers: what a worker registers, and what a backend reports."""

from __future__ import annotations

import msgspec

from nimburion.core.lease import Lease


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """The data that a worker registers when it opens a session."""

    id: str
    """128 random bits; never reused."""
    ttl: float = 30.0
    """Seconds until the session expires after each heartbeat."""
    host: str = ""
    pid: int = 0
    owner: str = ""
    """The name of the application."""
    queues: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """The names of the jobs that the worker can run."""
    limits: dict[str, int] = msgspec.field(default_factory=dict)
    """The fleet-wide concurrency limits by job name.

    For every name in `names`, the newest session decides: a value here sets the limit, and no value
    removes it.
    """

    def to_info(
        self, *, opened_at: float, expires_in: float, left: bool, running: int
    ) -> SessionInfo:
        """Return this data combined with what the backend knows of the session."""
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
    """A concurrency limit and its current use."""

    limit: int
    in_use: int


class HeartbeatReply(msgspec.Struct, frozen=True):
    """The reply of a backend to a heartbeat."""

    cancel: list[Lease]
    """The leases of this session whose jobs have a cancel request."""
    paused: list[str]
    """All paused queues."""
    limits: dict[str, ConcurrencyLimit]
    """The concurrency limits of the job names of this session."""


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one session when it was read."""

    id: str
    host: str
    pid: int
    owner: str
    queues: tuple[str, ...]
    names: tuple[str, ...]
    opened_at: float
    """Epoch seconds."""
    expires_in: float
    """Seconds until the session may be rescued; negative when it has expired."""
    left: bool
    """The worker closed the session while some of its `def` handlers were still running."""
    running: int
    """The number of leases that the session holds."""
