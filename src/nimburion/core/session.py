"""Sessions of workers: what a worker registers, and what a backend reports."""

from __future__ import annotations

import enum

import msgspec

from nimburion.core.lease import Lease
from nimburion.core.limits import LimitRule


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
    limits: dict[str, dict[str, LimitRule]] = msgspec.field(default_factory=dict)
    """The fleet-wide limits, by job name and then by the name of the limit.

    For every name in `names`, the newest session decides: its limits here are all that it has.
    """
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    """The weights of tenants (`set_tenant_weight`). Opening the session stores them; a tenant that
    is not named here keeps the weight that it has.
    """

    def to_info(
        self,
        *,
        opened_at: float,
        expires_in: float,
        left: bool,
        running: int,
        vitals: Vitals | None = None,
        command: WorkerCommand | None = None,
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
            vitals=vitals,
            command=command,
        )


class Vitals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker reports about itself with each heartbeat."""

    slots: int = 0
    """The number of jobs that the worker may run at the same time."""
    busy: int = 0
    """The number of jobs that it runs now."""
    loop_lag: float = 0.0
    """Seconds that its event loop was late, at worst, since the last heartbeat."""
    rss: int = 0
    """Resident memory of its process, in bytes; 0 if unknown."""
    lease_margin: float | None = None
    """The least time in seconds that its leases had left when a heartbeat renewed them, since the
    last heartbeat; None before the first renewal.
    """
    version: str = ""
    """The version of nimburion."""
    python: str = ""
    """The version of Python."""
    code_version: str = ""
    """The version of the application, from the setting `code_version`."""


class WorkerCommand(enum.StrEnum):
    """A command that an operator sends to one worker."""

    QUIET = "quiet"
    """Start no further job; finish those that run."""
    STOP = "stop"
    """Stop as on SIGTERM."""
    SHOW_STACKS = "show_stacks"
    """Answer the requests for stacks (`core.stacks`). The backend only notifies the session: the
    last command stays, and no heartbeat repeats this one.
    """


def is_stored(command: WorkerCommand | None) -> bool:
    """Return whether a command replaces the last one; `SHOW_STACKS` only notifies the session."""
    return command is not WorkerCommand.SHOW_STACKS


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
    command: WorkerCommand | None = None
    """The latest command to this worker. Every heartbeat repeats it."""
    fleet_size: int = 1
    """The number of sessions that have not ended and expire later than half of this session's ttl
    from now: those of workers that sent a heartbeat a short time ago.
    """
    next_expiry: float = 0.0
    """Seconds until the first of all sessions expires; 0 or less if a rescue has work to do now,
    also if changes of flows are left.

    No session expires earlier, except one that is opened later with a shorter ttl.
    """


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
    vitals: Vitals | None = None
    """The latest report of the worker; None before the first."""
    command: WorkerCommand | None = None
    """The latest command that was sent to the worker."""
