"""What a worker tells the backend about an attempt; each names its lease, a stale one writes
nothing.

Where a cancel was requested meanwhile, `Retried` and `Released` end the job as cancelled; the other
three say what happened and win.
"""

from __future__ import annotations

import enum

import msgspec

from nimburion.core.job import AttemptError
from nimburion.core.lease import Lease


class Completed(msgspec.Struct, frozen=True, gc=False, tag="completed"):
    """The handler returned. `result` is JSON, or None where there is nothing to keep."""

    lease: Lease
    result: bytes | None = None


class Retried(msgspec.Struct, frozen=True, tag="retried"):
    """The attempt failed; due again `delay` seconds from now by the backend's clock. Counts a
    failure and joins the history."""

    lease: Lease
    delay: float
    error: AttemptError


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The attempt failed and was the last: the job becomes a dead letter. Counts a failure."""

    lease: Lease
    reason: str
    error: AttemptError


class Released(msgspec.Struct, frozen=True, gc=False, tag="released"):
    """Given back, nothing counted. Without a delay the job keeps its old place in the line;
    with one (a snooze) it is due `delay` seconds from now."""

    lease: Lease
    delay: float | None = None


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    """The attempt ended the job as cancelled."""

    lease: Lease
    reason: str = ""


class Progressed(msgspec.Struct, frozen=True, tag="progressed"):
    """The attempt goes on and has come this far (0.0 to 1.0). The lease stays."""

    lease: Lease
    fraction: float
    message: str = ""


Settlement = Completed | Retried | Failed | Released | Cancelled | Progressed


class Settled(enum.StrEnum):
    """What the backend made of one settlement."""

    DONE = "done"
    ALREADY = "already"
    """This very token settled the job before; nothing was written now."""
    STALE = "stale"
    """The job is not (or no longer) held under this token; nothing was written."""
