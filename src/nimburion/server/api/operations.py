"""All operations of the API."""

from __future__ import annotations

from nimburion.server.api import dead_letters, jobs, queues, schedules, sessions, status
from nimburion.server.api.operation import AnyOperation

OPERATIONS: tuple[AnyOperation, ...] = (
    *status.OPERATIONS,
    *queues.OPERATIONS,
    *jobs.OPERATIONS,
    *dead_letters.OPERATIONS,
    *sessions.OPERATIONS,
    *schedules.OPERATIONS,
)
