"""All actions of one operator on one backend."""

from __future__ import annotations

from nimburion.actions.audit_log import AuditLog
from nimburion.actions.bulk import BulkActions
from nimburion.actions.dead_letters import DeadLetters, EnqueueJobs
from nimburion.actions.flows import FlowActions
from nimburion.actions.jobs import JobActions
from nimburion.actions.limits import LimitActions
from nimburion.actions.operator import Operator
from nimburion.actions.queues import QueueActions
from nimburion.actions.tenants import TenantActions
from nimburion.actions.workers import WorkerActions
from nimburion.core.backend import Backend
from nimburion.core.timing.clock import Clock


class Actions:
    """All actions of one operator, by subject."""

    def __init__(
        self,
        backend: Backend,
        operator: Operator,
        enqueue: EnqueueJobs | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.queues: QueueActions = QueueActions(backend, operator)
        self.jobs: JobActions = JobActions(backend, operator)
        self.dead: DeadLetters = DeadLetters(backend, operator, enqueue)
        self.limits: LimitActions = LimitActions(backend, operator)
        self.tenants: TenantActions = TenantActions(backend, operator)
        self.workers: WorkerActions = WorkerActions(backend, operator)
        self.bulk: BulkActions = BulkActions(backend, operator)
        self.flows: FlowActions = FlowActions(backend, operator, clock)
        self.audit: AuditLog = AuditLog(backend, operator)
