"""Read the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nimburion.actions.operator import SubjectActions
from nimburion.core.audit import AuditRecord, list_audit


class AuditLog(SubjectActions):
    """The records of who changed what: `processor.audit`.

    ```python
    async for record in processor.audit.list():
        print(record.by, record.action, record.target, record.outcome)
    ```
    """

    async def list(self) -> AsyncIterator[AuditRecord]:
        """Iterate over the audit records that are kept, the newest first. Use it with
        `async for`.
        """
        after: str | None = None
        while True:
            page = await list_audit(self._backend, after=after)
            for record in page.records:
                yield record
            after = page.next
            if after is None:
                return
