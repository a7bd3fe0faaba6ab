"""Audit records of changes that operators make: stored before the change, completed after it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from nimburion.core.audit import AuditRecord, put_audit
from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError
from nimburion.core.ids import Entropy

_log = logging.getLogger("nimburion.audit")

_MAX_ERROR_CHARACTERS = 500


class Change:
    """One change in progress, for the code that makes it."""

    def __init__(self, target: str = "") -> None:
        self.target: str = target
        """What is changed. Set it if that is known only after the change."""
        self.count: int | None = None
        """Set it to the number of records that were changed."""


@asynccontextmanager
async def record_change(
    backend: Backend,
    action: str,
    *,
    by: str,
    origin: str,
    target: str = "",
    details: Mapping[str, str] | None = None,
    entropy: Entropy = os.urandom,
) -> AsyncIterator[Change]:
    """Record a change of an operator around the block that makes it.

    The record is stored with the outcome `started` first, so there is no change without a record.
    If that fails, the block does not run. Afterwards the record is completed with `done` or
    `failed`. If the backend does not answer then, the record keeps `started`.

    ```python
    async with record_change(backend, "queue.pause", target="mail", by="ops", origin="python"):
        await backend.maintenance.pause_queue("mail", paused=True, by="ops")
    ```
    """
    record = AuditRecord(
        id=entropy(16).hex(),
        action=action,
        target=target,
        by=by,
        origin=origin,
        details=dict(details or {}),
    )
    await put_audit(backend, record)
    change = Change(target)
    try:
        yield change
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0][:_MAX_ERROR_CHARACTERS]
        await _complete(backend, record, change, outcome="failed", error=text)
        raise
    await _complete(backend, record, change, outcome="done")


async def _complete(
    backend: Backend, record: AuditRecord, change: Change, **fields: object
) -> None:
    record = msgspec.structs.replace(record, target=change.target, changed=change.count, **fields)
    _log.info("%s %s %s by %s", record.action, record.target, record.outcome, record.by)
    try:
        await put_audit(backend, record)
    except BackendError as error:
        _log.warning("the audit record %s could not be completed: %s", record.id, error)
