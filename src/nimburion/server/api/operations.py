"""All operations of the API."""

from __future__ import annotations

from nimburion.server.api import (
    audit,
    bulk_operations,
    dead_letters,
    jobs,
    limits,
    queues,
    scale,
    schedules,
    statistics,
    status,
    tenants,
    workers,
)
from nimburion.server.api.operation import AnyOperation

OPERATIONS: tuple[AnyOperation, ...] = (
    *status.OPERATIONS,
    *queues.OPERATIONS,
    *jobs.OPERATIONS,
    *dead_letters.OPERATIONS,
    *workers.OPERATIONS,
    *limits.OPERATIONS,
    *tenants.OPERATIONS,
    *statistics.OPERATIONS,
    *scale.OPERATIONS,
    *schedules.OPERATIONS,
    *bulk_operations.OPERATIONS,
    *audit.OPERATIONS,
)
