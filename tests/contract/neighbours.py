"""Backends in other schemas of the database in which the cases run.

They hold jobs, sessions, limits, schedules and records with the names that the cases use, and work
between the cases. The server rejects each statement of a case that writes into their tables.
"""

from __future__ import annotations

from itertools import cycle

import psycopg

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.audit import AuditRecord, put_audit
from nimburion.core.bulk_operations import BulkAction, NewBulkOperation, start_bulk_operation
from nimburion.core.exchange import Lane
from nimburion.core.job import JobOptions
from nimburion.core.lease import Delivery
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.schedules import ScheduleRecord, put_schedule
from nimburion.core.settlement import Completed, Failed
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness

SCHEMAS = ("user", "jobs")
"""The first is a keyword of SQL."""
CASES_EACH = 4
"""How many cases run for each time that a neighbour works."""
_APPLICATION = "neighbour"
_NAMES = ("mail", "report", "slow")
_LANE = Lane("default", "report")
_GUARD = f"""
CREATE FUNCTION {{schema}}.reject_others() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF current_setting('application_name') <> '{_APPLICATION}' THEN
        RAISE 'a write into %.%, a table of a neighbour', TG_TABLE_SCHEMA, TG_TABLE_NAME;
    END IF;
    RETURN NULL;
END $$;
DO $$ DECLARE
    one regclass;
BEGIN
    FOR one IN
        SELECT c.oid FROM pg_class c
        WHERE c.relnamespace = '{{schema}}'::regnamespace AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('CREATE TRIGGER guard AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
            'FOR EACH STATEMENT EXECUTE FUNCTION {{schema}}.reject_others()', one);
    END LOOP;
END $$"""


class Neighbour:
    """A backend in a schema of its own, with a worker that runs its jobs."""

    def __init__(self, url: str, schema: str) -> None:
        clock = FakeClock()
        self._backend = PostgresBackend(
            f"{url}?application_name={_APPLICATION}", schema=schema, clock=clock, timeout=30.0
        )
        self._harness = Harness(clock, [self._backend])
        self._worker: HandDrivenWorker | None = None
        self._running: list[Delivery] = []

    async def open(self) -> None:
        """Open the backend and fill it. By the clock of a case, its sessions end, and its jobs
        become due and old."""
        await self._backend.open()
        harness, backend = self._harness, self._backend
        keyed = {"mail": {"customer": LimitRule(1)}}
        rates = {"slow": RateLimit("2/min", interval=30_000_000, burst=2)}
        self._worker = worker = await harness.worker(
            names=_NAMES, limits={"mail": 9}, rates=rates, keyed=keyed
        )
        await harness.add("failed", "completed", "running")
        failed, completed, _ = await worker.take(3)
        await worker.settle(
            Failed(failed.lease, "fatal", FAILURE), Completed(completed.lease, b"1")
        )
        for number in range(2):
            await harness.put(harness.job(f"paused-{number}", queue="bulk"))
            await harness.put(harness.job(f"later-{number}", after=5.0 * number + 1.0))
            options = JobOptions(limit_keys={"customer": "acme"}, unique_key=f"k{number}")
            await harness.put(harness.job(f"limited-{number}", options=options))
            await harness.put(harness.job(f"tenant-{number}", options=JobOptions(tenant="t")))
        await worker.take(2)
        await backend.maintenance.pause_queue("bulk", paused=True)
        await backend.maintenance.set_tenant_weight("t", 2.0)
        await backend.maintenance.change_limit(
            LimitChange(name="customer", key="acme", concurrency=1)
        )
        await put_audit(backend, AuditRecord(id="a", action="queue.pause", target="bulk"))
        await start_bulk_operation(backend, NewBulkOperation(id="o", action=BulkAction.REPLAY))
        await put_schedule(backend, ScheduleRecord(name="nightly", spec=b"{}"))

    async def work(self) -> None:
        """Enqueue a job, end the job before it, and reserve it."""
        assert self._worker is not None
        [job_id] = await self._harness.add(name="report")
        ended = [Completed(one.lease) for one in self._running]
        want = self._worker.want(lanes=(_LANE,))
        self._running = (await self._worker.exchange(*ended, want=want)).deliveries
        assert [one.lease.job_id for one in self._running] == [job_id]

    async def close(self) -> None:
        """Disconnect."""
        await self._backend.close()


class Neighbours:
    """The neighbours in one database. They work in turn."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._neighbours = [Neighbour(url, schema) for schema in SCHEMAS]
        pauses = [None] * (CASES_EACH - 1)
        self._turns = cycle([turn for one in self._neighbours for turn in (one, *pauses)])

    async def open(self) -> None:
        """Create and fill them."""
        for one in self._neighbours:
            await one.open()
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=None) as connection:
            for schema in SCHEMAS:
                connection.execute(_GUARD.replace("{schema}", f'"{schema}"').encode())

    async def work(self) -> None:
        """Before each case: let one of them work, or none."""
        if one := next(self._turns):
            await one.work()

    async def close(self) -> None:
        """Disconnect."""
        for one in self._neighbours:
            await one.close()
