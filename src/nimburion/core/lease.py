"""The right to work on a job, and a job together with that right."""

from __future__ import annotations

import msgspec

from nimburion.core.job import NO_JOB_OPTIONS, JobOptions


class Token(msgspec.Struct, frozen=True, gc=False):
    """What fences every write about a job: a counter and 128 random bits, compared whole.

    The counter alone repeats when a backend loses acknowledged writes in a failover; the random
    part cannot.
    """

    fence: int
    """Rises with each delivery of the job. Hand it to systems that fence by number. After a crash
    or failover of the backend the last numbers can be handed out again."""
    nonce: bytes
    """16 random bytes of the exchange that handed the job out."""


SUSPECT_AFTER = 2
"""From this many losses on, a job is a suspect: a worker runs it alone, under a session that holds
nothing else. So a suspect that a dead session held beside other jobs had not begun."""


class Lease(msgspec.Struct, frozen=True, gc=False):
    """One worker's hold on one job. It has no expiry of its own: the session's counts."""

    job_id: str
    token: Token
    ref: int | str = 0
    """The backend's own handle on the row, handed back untouched."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A job in a worker's hands."""

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

    @property
    def attempt(self) -> int:
        """1 for the first try."""
        return self.failures + self.lost + 1
