"""`PostgresProducing`: enqueue and cancel jobs."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres import runs
from nimburion.backends.postgres import transactions as caller_transactions
from nimburion.backends.postgres.database import JOBS_PER_SECOND, PostgresDatabase, make_call
from nimburion.backends.postgres.encoding import NeedsGeneralPath, encode_lookup_text
from nimburion.backends.postgres.errors import UNIQUE_VIOLATION, get_error_code, is_blocked_enqueue
from nimburion.backends.postgres.flows import check_graph_stored, encode_graph
from nimburion.backends.postgres.schema import NOTIFICATION_LOCK
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty
from nimburion.core.backend import Producing, Transactional
from nimburion.core.errors import BackendUnavailable, EnqueueBlocked, JobNotFound, Unstorable
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.maintenance import Cancellation
from nimburion.core.runs import NewSignal, SignalOutcome
from nimburion.core.schedules import Fired, Overlap, encode_tick
from nimburion.core.timing.clock import to_micros
from nimburion.core.transactions import (
    MAX_ENQUEUE_COUNTS,
    CallerConnection,
    EnqueueCount,
    Transaction,
    sum_enqueue_counts,
)

_LOCK_TIMEOUT = "200ms"
"""How long an enqueue waits for a transaction that enqueued the same id or unique key."""
_ENQUEUE = f"""SELECT e.codes, e.holders FROM set_config('lock_timeout', '{_LOCK_TIMEOUT}', true) s,
    LATERAL {{schema}}.enqueue_1(CASE WHEN s IS NOT NULL THEN $1::int8 END,
        {", ".join(f"${n}" for n in range(2, 18))}) e"""  # noqa: S608 - names of ours
"""Calls `enqueue_1` with a `lock_timeout`. A caller's transaction has none. The arguments refer to
`s`, so the server sets the timeout first.
"""
_ENQUEUE_ONE = "SELECT {schema}.enqueue_one_1($1, $2, $3, $4, $5, $6, $7, $8, $9), false"
_ENQUEUE_ONE_NOTIFYING = f"""SELECT e.stored,
    CASE WHEN e.stored AND pg_try_advisory_xact_lock(hashtextextended($10, {NOTIFICATION_LOCK}))
        THEN {{schema}}.wake_workers_1($10, $11, ARRAY[$12], ARRAY[1], false) ELSE false END
    FROM {{schema}}.enqueue_one_1($1, $2, $3, $4, $5, $6, $7, $8, $9) e (stored)"""  # noqa: S608
"""Notifies at the commit. A notifying transaction blocks all others that notify until its commit is
flushed. Therefore only one at a time notifies inside its transaction; the others notify afterwards.
"""
_ENQUEUE_PLAIN = make_call("enqueue_plain_1", 12)
_ENQUEUE_FLOW = f"""SELECT e.codes, e.holders, e.unknown, e.other, ARRAY(
        SELECT a.queue FROM unnest(e.to_notify) l (lane) JOIN {{schema}}.lane a ON a.id = l.lane
    ) FROM set_config('lock_timeout', '{_LOCK_TIMEOUT}', true) s,
    LATERAL {{schema}}.enqueue_flow_1(CASE WHEN s IS NOT NULL THEN $1::int8 END,
        {", ".join(f"${n}" for n in range(2, 19))}, true) e"""  # noqa: S608 - names of ours
_CONTINUE_FLOWS = make_call("continue_flows_1", 1)
_SEND_SIGNALS = make_call("send_signals_1", 6)
_TAKE_ENQUEUE_COUNTS = make_call("take_enqueue_counts_1", 3)


_CANCEL = """SELECT c.answer, c.to_notify, {schema}.continue_flows_1($1)
    FROM {schema}.cancel_job_1($1, $2, NULL) c"""


class PostgresProducing(Producing, Transactional):
    """The operations of `Producing` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        if not jobs and not flows:
            return []
        try:
            if flows:
                return await self._enqueue_flow(jobs, flows)
            if len(jobs) == 1 and await self._enqueue_one(jobs[0]):
                return [Enqueued(jobs[0].id, "created")]
            if enqueueing.is_plain(jobs[0]) and await self._enqueue_plain(jobs):
                self._database.notify([job.queue for job in jobs])
                return enqueueing.make_results(jobs, None, None)
            return await self._enqueue_any(jobs)
        except BackendUnavailable as error:
            cause = error.__cause__
            if cause is None or not is_blocked_enqueue(cause):
                raise
            where = self._database.settings.describe()
            raise EnqueueBlocked(
                f"{where}: a transaction that is still open holds a lock that this enqueue needs; "
                "probably, it enqueued the same id or unique key"
            ) from cause

    async def _enqueue_any(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store jobs on the general path."""
        opened = self._database.get_connections()
        arguments, extra = enqueueing.encode_arguments(jobs), len(jobs) / JOBS_PER_SECOND
        ((codes, holders),) = await opened.pool.fetch(
            opened.insert_schema(_ENQUEUE), self._database.now(), *arguments, extra_time=extra
        )
        results = enqueueing.make_results(jobs, codes, holders)
        if codes is None or "c" in codes or "p" in codes:
            self._database.notify([job.queue for job in jobs])
        return results

    async def _enqueue_flow(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow]
    ) -> list[Enqueued]:
        """Store flows and their jobs."""
        opened = self._database.get_connections()
        arguments, extra = enqueueing.encode_arguments(jobs), len(jobs) / JOBS_PER_SECOND
        ((codes, holders, unknown, other, resumed),) = await opened.pool.fetch(
            opened.insert_schema(_ENQUEUE_FLOW),
            self._database.now(),
            *arguments,
            encode_graph(jobs, flows),
            extra_time=extra,
        )
        check_graph_stored(jobs, flows, unknown, other)
        if any(flow.growth.adds for flow in flows):
            # It waits for other roots, so the call that holds one may not.
            ((others,),) = await opened.pool.fetch(
                opened.insert_schema(_CONTINUE_FLOWS), self._database.now()
            )
            resumed = [*resumed, *others]
        results = enqueueing.make_results(jobs, codes, holders)
        stored = [job for job in jobs if not job.options.conditions]
        self._database.notify([*(job.queue for job in stored), *resumed])
        return results

    async def _enqueue_one(self, job: NewJob) -> bool:
        """Store a job on the fast path. Return False if the job needs the general path."""
        arguments = enqueueing.encode_single(job)
        if arguments is None:
            return False
        opened = self._database.get_connections()
        notifications, statement = opened.notifications, _ENQUEUE_ONE
        if notifications.begin_inline(job.queue):
            statement = _ENQUEUE_ONE_NOTIFYING
            arguments += notifications.channel, notifications.sender_id, job.queue
        try:
            rows = await opened.pool.fetch(
                opened.insert_schema(statement), self._database.now(), *arguments
            )
        except Unstorable as error:
            if error.__cause__ is None or get_error_code(error.__cause__) != UNIQUE_VIOLATION:
                raise
            return False
        ((stored, notified),) = rows
        if stored and not notified:
            notifications.notify({job.queue: 1})
        return bool(stored)

    async def _enqueue_plain(self, jobs: Sequence[NewJob]) -> bool:
        """Store jobs on the fast path. Return False if any of them needs the general path."""
        opened, now, extra = (
            self._database.get_connections(),
            self._database.now(),
            len(jobs) / JOBS_PER_SECOND,
        )
        statement = opened.insert_schema(_ENQUEUE_PLAIN)
        try:
            if len(jobs) > enqueueing.MAX_SINGLE_STATEMENT:
                return await opened.pool.execute_all_or_rollback(
                    statement,
                    lambda: ([now, *part] for part in enqueueing.encode_batches(jobs)),
                    extra_time=extra,
                )
            (part,) = enqueueing.encode_batches(jobs)
            ((stored,),) = await opened.pool.fetch(statement, now, *part, extra_time=extra)
        except NeedsGeneralPath:
            return False
        return bool(stored)

    async def enqueue_in(
        self,
        connection: CallerConnection,
        jobs: Sequence[NewJob],
        flows: Sequence[NewFlow] = (),
    ) -> list[Enqueued]:
        return await caller_transactions.enqueue_in(
            self._database.get_connections().caller_context,
            connection,
            jobs,
            flows,
            self._database.now(),
        )

    async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
        rows = await self._database.fetch_for_worker(
            _TAKE_ENQUEUE_COUNTS, self._database.now(), to_micros(min_age), MAX_ENQUEUE_COUNTS
        )
        return sum_enqueue_counts(rows)

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        # A transaction on one of the backend's own connections provides an
        # `asyncpg.Connection`.
        return caller_transactions.make_transaction(
            self._database.get_connections().caller_context, connection, self._database.now
        )

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[SignalOutcome]:
        if not signals:
            return []
        ((codes, resumed),) = await self._database.fetch(
            _SEND_SIGNALS, self._database.now(), *runs.encode_signals(signals)
        )
        self._database.notify(resumed)
        return [runs.OUTCOMES_BY_CODE[code] for code in codes]

    async def cancel(self, job_id: str) -> Cancellation:
        ((answer, notified, resumed),) = await self._database.fetch(
            _CANCEL, self._database.now(), encode_id_or_empty(job_id)
        )
        self._database.notify(resumed if notified is None else [notified, *resumed])
        if answer == "missing":
            raise JobNotFound(job_id)
        return Cancellation(answer)

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        arguments = enqueueing.encode_arguments([job])
        places = ", ".join(f"${n}" for n in range(1, 6 + len(arguments)))
        (row,) = await self._database.fetch(
            f"SELECT * FROM {{schema}}.fire_schedule_1({places})",  # noqa: S608
            self._database.now(),
            encode_lookup_text(name),
            None if expected_last is None else encode_tick(expected_last),
            encode_tick(tick),
            overlap,
            *arguments,
        )
        outcome, job_id, cancel_notified = row
        queue = [] if job_id is None else [job.queue]
        self._database.notify([*queue, *(cancel_notified or ())])
        return Fired(outcome, None if job_id is None else decode_id(job_id))
