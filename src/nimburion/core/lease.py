"""Leases: a worker's right to run a job, and a delivered job with its lease."""

from __future__ import annotations

import msgspec

from nimburion.core.job import NO_JOB_OPTIONS, JobOptions


class Token(msgspec.Struct, frozen=True, gc=False):
    """The fencing token of a lease: a counter and 128 random bits, always compared as a whole.

    Every write about a job needs it. The counter alone repeats when a backend loses acknowledged
    writes in a failover; the random part does not.
    """

    fence: int
    """A number that is 1 for the first delivery of the job and increases with each one. Pass it to
    systems that fence by number.

    After a crash or failover of the backend, the latest numbers can be issued again.
    """
    nonce: bytes
    """16 random bytes of the exchange that delivered the job."""


SUSPECT_AFTER = 2
"""The number of losses from which a job is a suspect.

A worker runs a suspect alone, in a session that holds nothing else. A suspect that a dead session
held beside other jobs had therefore not started.
"""


class Lease(msgspec.Struct, frozen=True, gc=False):
    """The lease of a worker on a job. It has no expiry of its own; it expires with its session."""

    job_id: str
    token: Token
    ref: int | str = 0
    """The backend's own reference to the row, which a worker returns unchanged."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A job that a worker has reserved."""

    lease: Lease
    name: str
    queue: str
    payload: bytes
    priority: int = 5
    failures: int = 0
    lost: int = 0
    due: float = 0.0
    created_at: float = 0.0
    options: JobOptions = NO_JOB_OPTIONS
    run: object = None
    """The `RunPage` of a durable run with all its steps and unread signals, if the backend has read
    it with the lease, and it has at most `MAX_DELIVERED_RUN` bytes. None: `read_run` returns it.
    """

    @property
    def attempt(self) -> int:
        """The number of this attempt; 1 for the first."""
        return self.failures + self.lost + 1
