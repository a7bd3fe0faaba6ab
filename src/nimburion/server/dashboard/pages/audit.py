"""The page of the audit log: who changed what, when, and with which result."""

from __future__ import annotations

import msgspec

from nimburion.core.audit import AuditPage, AuditRecord, list_audit
from nimburion.server.api.names import Cursor
from nimburion.server.dashboard.page import DashboardPage, PageRequest

PAGE_SIZE = 50


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of the log to show."""

    after: Cursor | None = None


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One change, and the page of what was changed."""

    record: AuditRecord
    link: str | None
    """The path below the dashboard; None if there is no such page."""


class AuditData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the log, newest first."""

    records: list[AuditRow]
    next: str | None


async def read_audit(request: PageRequest[AuditQuery]) -> AuditData:
    """Read a page of the audit log."""
    backend, after = request.readings.backend, request.query.after

    async def read() -> AuditPage:
        return await list_audit(backend, limit=PAGE_SIZE, after=after)

    page = await request.readings.read(f"audit {after}", read)
    rows = [AuditRow(record=record, link=find_link(record)) for record in page.records]
    return AuditData(records=rows, next=page.next)


def find_link(record: AuditRecord) -> str | None:
    """Return the path of the page of what was changed.

    >>> find_link(AuditRecord(id="1", action="queue.pause", target="mail"))
    '/queues/mail'
    """
    kind = record.action.partition(".")[0]
    if kind == "queue" and record.target:
        return f"/queues/{record.target}"
    if kind in {"jobs", "dead"} and record.target:
        return f"/jobs/{record.target}"
    if kind == "flows" and record.target:
        return f"/flows/{record.target}"
    return {"worker": "/workers", "schedule": "/schedules", "operations": "/operations"}.get(kind)


AUDIT = DashboardPage(
    path="/audit",
    title="Audit",
    section="Audit",
    read=read_audit,
    template="audit.html",
    tables=("records",),
    query=AuditQuery,
)
