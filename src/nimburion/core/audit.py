"""Audit records: who changed what, when, and with which result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from nimburion.core.records import NewRecord, Record, encode_body

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


MAX_AUDIT_RECORDS = 10_000
"""The number of audit records that a backend keeps, the newest ones."""


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


_decode = msgspec.json.Decoder(AuditRecord).decode


async def put_audit(
    backend: Backend, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS
) -> None:
    """Add an audit record, or replace the record with the same id, which keeps its place and `at`.

    The backend keeps the newest `keep` records.
    """
    await backend.maintenance.put_record(
        NewRecord(kind="audit", id=record.id, body=encode_body(record)), keep=keep
    )


async def list_audit(backend: Backend, *, limit: int = 100, after: str | None = None) -> AuditPage:
    """Return a page of audit records, most recently added first.

    `after` is the `next` of the previous page. Raises `InvalidJob` if it is not.
    """
    page = await backend.reads.list_records("audit", limit=limit, after=after)
    return AuditPage([_make_audit_record(record) for record in page.records], page.next)


def _make_audit_record(record: Record) -> AuditRecord:
    return msgspec.structs.replace(_decode(record.body), at=record.created_at)
