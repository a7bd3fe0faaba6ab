"""The audit log: the changes that operators made."""

from __future__ import annotations

from nimburion.core.audit import AuditPage, list_audit
from nimburion.server.api.names import PageQuery
from nimburion.server.api.operation import ApiRequest, NoBody, Operation


async def list_audit_records(request: ApiRequest[PageQuery, NoBody]) -> AuditPage:
    """List the changes that operators made, newest first: who, what, when, with which result."""
    query = request.query
    return await list_audit(request.services.backend, limit=query.limit, after=query.after)


OPERATIONS = (
    Operation(
        method="GET",
        path="/audit",
        handle=list_audit_records,
        query=PageQuery,
        answer=AuditPage,
    ),
)
