"""Audit records: who changed what, when, and with which result."""

from __future__ import annotations

from typing import Literal

import msgspec


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change that an operator made, or tried to make."""

    id: str
    """Chosen by the caller, so that storing the record again replaces it."""
    action: str
    """What was done, for example `queue.pause`."""
    target: str = ""
    """To what, for example the name of a queue or the id of a job."""
    by: str = ""
    """Who did it: the name of a token, or the user and host of a command."""
    origin: str = ""
    """Through what: `cli`, `api`, `dashboard` or `python`."""
    details: dict[str, str] = msgspec.field(default_factory=dict)
    """The arguments of the action. They carry no payload of a job."""
    outcome: Literal["started", "done", "failed"] = "started"
    changed: int | None = None
    """The number of records that the action changed; None if it does not count them."""
    error: str = ""
    """The error of a failed action, on one line."""
    at: float = 0.0
    """When the record was first stored, in epoch seconds; set by the backend."""


class AuditPage(msgspec.Struct, frozen=True):
    """A page of audit records, newest first. `next` is the cursor of the next page; None: last."""

    records: list[AuditRecord]
    next: str | None = None
