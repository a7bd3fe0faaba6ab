"""Run the steps of bulk operations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkState,
    BulkStep,
    Claim,
    claim_bulk_operation,
    end_bulk_operation,
    get_bulk_operation,
    run_bulk_step,
)
from nimburion.core.errors import (
    BulkOperationNotFound,
    InvalidJob,
    NotSupported,
    StepLost,
    Unstorable,
)
from nimburion.core.service import Periodic, wait_for_first
from nimburion.core.timing.clock import Clock

if TYPE_CHECKING:
    from nimburion.core.audit import AuditRecord

_log = logging.getLogger("nimburion.bulk_operations")

_INTERVAL = 5.0
"""Seconds until a process that found no step tries again."""
_CLAIM_TTL = 10.0
"""Seconds for which a step is claimed. The step of a process that died waits for so long.

A step takes two calls of the backend, which take milliseconds and by default at most 5 s each.
"""
_EARLY = 0.25
"""A process that asked at most this many seconds too early for the next step waits for it."""
_SHORTEST_WAIT = 0.01
_MAX_ERROR_CHARACTERS = 500


class BulkOperationRunner(Periodic):
    """Runs the steps of bulk operations, those that other processes started too.

    Workers and management servers run one each. The backend gives each step to one of them. The
    workers look for a step about once in 5 s, all together; after a step, its runner waits for the
    next one.
    """

    logger_name = "nimburion.bulk_operations"

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        random: Random,
        *,
        count_workers: Callable[[], int] = lambda: 1,
    ) -> None:
        super().__init__(clock, _INTERVAL, random, count_workers=count_workers)
        self._backend = backend
        self._wait = self.draw_interval()
        self._follows = False
        """Whether this runner ran the last step that it asked for."""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Ask for a step at once: an operation was started in this process."""
        self._woken.set()

    async def run(self) -> None:
        while not self.stopping.is_set():
            await wait_for_first(
                self.clock.sleep(self._wait), self.stopping.wait(), self._woken.wait()
            )
            has_turn = self._woken.is_set() or self._follows or self.draw_turn()
            self._woken.clear()
            self._wait = self.draw_interval()
            if has_turn and not self.stopping.is_set():
                await self._run_tick()

    async def tick(self) -> None:
        """Run steps until none is due."""
        has_run = False
        while not self.stopping.is_set():
            claim = await claim_bulk_operation(self._backend, _CLAIM_TTL)
            if claim.operation is not None:
                has_run = True
                await self._run_step(claim, claim.operation)
                continue
            wait = claim.wait
            self._follows = wait is not None and (has_run or (self._follows and wait <= _EARLY))
            if wait is not None and self._follows:
                self._wait = min(max(wait, _SHORTEST_WAIT), _INTERVAL)
            return

    async def _run_step(self, claim: Claim, operation: BulkOperation) -> None:
        try:
            if operation.has_finished_work:
                await self._end(claim, operation, BulkState.DONE)
            else:
                await self._change_jobs(claim, operation)
        except StepLost as lost:
            _log.info("a step was not written: %s", lost)

    async def _change_jobs(self, claim: Claim, operation: BulkOperation) -> None:
        """Run a step. If the operation cannot continue, end it as failed."""
        try:
            page = await self._backend.reads.list_jobs(
                operation.step_filter, limit=operation.next_step_size, after=operation.cursor
            )
            step = BulkStep(
                ids=tuple(record.id for record in page.jobs),
                cursor=page.next,
                exhausted=page.next is None,
            )
            await run_bulk_step(self._backend, claim, step)
        except (InvalidJob, NotSupported, Unstorable) as error:
            text = f"{type(error).__name__}: {error}".partition("\n")[0][:_MAX_ERROR_CHARACTERS]
            await self._end(claim, operation, BulkState.FAILED, text)

    async def _end(
        self, claim: Claim, operation: BulkOperation, state: BulkState, error: str = ""
    ) -> None:
        """End an operation. Its audit record is stored first, so there is no end without one.

        Raises:
            StepLost: the operation was cancelled, or another process ends it.
        """
        # Imported for an end only.
        from nimburion.core.audit import AuditRecord, put_audit

        record = AuditRecord(
            id=f"{operation.id}:end",
            action="operations.end",
            target=operation.id,
            by=operation.by,
            origin=operation.origin,
            details={
                "action": operation.action.value,
                "skipped": str(operation.skipped),
                "failed": str(operation.failed),
            },
            outcome="failed" if state is BulkState.FAILED else "done",
            changed=operation.done,
            error=error,
        )
        await put_audit(self._backend, record)
        try:
            await end_bulk_operation(self._backend, claim, state, error)
        except StepLost:
            await self._delete_audit(record, operation)
            raise
        _log.info(
            "bulk operation %s (%s by %s) is %s: %d done, %d skipped, %d failed",
            operation.id,
            operation.action,
            operation.by,
            state,
            operation.done,
            operation.skipped,
            operation.failed,
        )

    async def _delete_audit(self, record: AuditRecord, operation: BulkOperation) -> None:
        """Delete the record of an end that was not written, if the operation was cancelled. If
        another process ends it, that process replaces the record.
        """
        with suppress(BulkOperationNotFound):
            kept = await get_bulk_operation(self._backend, operation.id)
            if kept.state is BulkState.CANCELLED:
                await self._backend.maintenance.delete_record("audit", record.id)
