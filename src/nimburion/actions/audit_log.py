"""Read the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nimburion.actions.operator import SubjectActions
from nimburion.core.audit import AuditRecord, list_audit
from nimburion.core.paging import iterate_items


class AuditLog(SubjectActions):
    """The records of who changed what: `processor.audit`.

    ```python
    async for record in processor.audit.list():
        print(record.by, record.action, record.target, record.outcome)
    ```
    """

    def list(self) -> AsyncIterator[AuditRecord]:
        """Iterate over the audit records that are kept, the newest first. Use it with
        `async for`.
        """
        backend = self._backend
        return iterate_items(
            lambda after: list_audit(backend, after=after), lambda page: page.records
        )
