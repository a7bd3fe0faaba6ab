"""The Redis backend: Redis or Valkey, as a single server, behind Sentinel, or in a cluster."""

from __future__ import annotations

import os
from collections.abc import Collection, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from nimburion.backends.redis import (
    bulk_operations,
    operations,
    queries,
    sessions,
    statistics,
)
from nimburion.backends.redis import enqueue as enqueueing
from nimburion.backends.redis import exchange as exchanging
from nimburion.backends.redis.connection.command_connection import CommandConnection, CommandPart
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.encoding import decode_time, encode_lookup_text
from nimburion.backends.redis.keys import Keys
from nimburion.backends.redis.long_poll import Command, StreamLongPoll
from nimburion.backends.redis.notifications import PubSubListener, Subscribe
from nimburion.backends.redis.queries import (
    MAX_SORTED,
    SCAN_STEP,
    JobScan,
    PageScan,
    split_fields,
)
from nimburion.backends.redis.record_format import STATE_CODES, UNKNOWN_LANE
from nimburion.backends.redis.scripts import Script, Scripts
from nimburion.backends.redis.server_check import RedisServerInfo, check_server
from nimburion.backends.redis.statistics import StatisticsRead
from nimburion.backends.redis.url import RedisSettings, parse_url
from nimburion.backends.server.encoding import MICRO, encode_id_or_empty, to_micros
from nimburion.backends.server.errors import make_no_roles_error
from nimburion.backends.server.handle import OpenHandle
from nimburion.core.audit import AuditPage, AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Capabilities
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkOperationPage,
    BulkStep,
    Claim,
    NewBulkOperation,
)
from nimburion.core.diagnosis.checks import CheckResult, make_failed_check
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGrouper, FailureGroups
from nimburion.core.errors import (
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    FormatMismatch,
)
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.fairness import TenantUses
from nimburion.core.ids import Entropy
from nimburion.core.job import FINISHED, Enqueued, JobRecord, NewJob, State
from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.lease import Lease
from nimburion.core.limit_changes import LimitChange
from nimburion.core.metrics.statistics import Statistics, add_statistics
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, QueueInfo
from nimburion.core.rate_limits import RateInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import (
    HeartbeatReply,
    LimitInfo,
    Session,
    SessionInfo,
    Vitals,
    WorkerCommand,
)
from nimburion.core.settlement import Settlement
from nimburion.core.timing.clock import Clock, SystemClock

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    supports_transactions=False,
    atomic_batch=enqueueing.BATCH_SIZE,
    shared=True,
    supports_long_poll=True,
    out_of_process=True,
)
_TEST_CLOCK_CAPABILITIES = msgspec.structs.replace(CAPABILITIES, supports_long_poll=False)
_MAX_PER_SCRIPT = 500
"""The largest number of jobs that one script changes."""


class RedisBackend:
    """A backend in one Redis or Valkey server, Sentinel service or cluster.

    All keys of the backend begin with `{namespace}:`, so a cluster keeps them on one node.

    Args:
        url: the URL of the server; `docs/how-to/redis-in-production.md` lists all forms.
        namespace: the prefix of all keys. The URL can set it, and all options below, too.
        require_durable: reject a server that can lose jobs, instead of logging a warning.
        durable_enqueue: `enqueue` returns only when the job is on the server's disk.
        timeout: seconds allowed for connecting, and then for each reply.
        clock: the clock of a test; by default the server's own time counts.
        entropy: not used here; accepted so that all backends have the same signature.

    >>> RedisBackend("redis://localhost:6379/0").capabilities.durable
    True
    """

    def __init__(
        self,
        url: str | RedisSettings = "redis://localhost:6379/0",
        *,
        namespace: str | None = None,
        require_durable: bool | None = None,
        durable_enqueue: bool | None = None,
        timeout: float | None = None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        settings = url if isinstance(url, RedisSettings) else parse_url(url)
        self.settings: RedisSettings = settings.replace(
            namespace=namespace,
            require_durable=require_durable,
            durable_enqueue=durable_enqueue,
            timeout=timeout,
        )
        self._test_clock = clock
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._warned: set[str] = set()
        """The server warnings already logged; shared by all handles of this backend."""
        self._handle = OpenHandle(self.describe(), self._make_connections)

    @classmethod
    def from_url(cls, url: str, **options: object) -> RedisBackend:
        """Create the backend for a URL such as `redis://localhost:6379/0`."""
        return cls(url, **options)  # type: ignore[arg-type]

    # --- lifecycle ---

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this backend. Durability depends on the server's configuration.
        `enqueue` is atomic per batch of 500 jobs. With a test clock, long polling is off, because
        the server waits by its own clock.
        """
        return CAPABILITIES if self._test_clock is None else _TEST_CLOCK_CAPABILITIES

    def describe(self) -> str:
        """Return a one-line description of the backend, without secrets."""
        return self.settings.describe()

    def new_handle(self) -> RedisBackend:
        """Return another handle on the same data. It is not open and has its own connections."""
        handle = RedisBackend(self.settings, clock=self._test_clock, entropy=self._entropy)
        handle._warned = self._warned
        return handle

    async def open(self) -> None:
        """Connect, and check the server and the format. You can call it more than once."""
        await self._handle.open()

    async def close(self) -> None:
        """Disconnect. You can call it more than once."""
        await self._handle.close()

    async def exists(self) -> bool:
        """See `Backend.exists`."""
        return True

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._get_connections().commands.execute("PING")

    async def now(self) -> float:
        """See `Backend.now`: returns the time of the server's clock."""
        connections = self._get_connections()
        if self._test_clock is not None:
            return to_micros(self._test_clock.now()) / MICRO
        seconds, fraction = await connections.commands.execute("TIME")
        return int(seconds) + int(fraction) / MICRO

    async def check(self) -> list[CheckResult]:
        """See `Backend.check`."""
        from nimburion.backends.redis.checks import run_checks  # no worker needs them

        try:
            return await run_checks(
                self._get_connections().commands.execute, self.settings, self._clock
            )
        except (BackendError, ConfigurationError) as error:
            return [make_failed_check("server", error)]

    async def plan_migration(self) -> list[str]:
        """See `Backend.plan_migration`. Reads on a connection of its own, and writes nothing."""
        connections = self._make_connections()
        try:
            return await connections.plan_migration()
        finally:
            await connections.close()

    async def migrate(self) -> list[str]:
        """See `Backend.migrate`. Only one format exists so far; the first `open` writes it."""
        steps = await self.plan_migration()
        await self.open()
        return steps

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`. Permissions of Redis users are configured on the server."""
        raise make_no_roles_error(self.describe(), role)

    def _make_connections(self) -> RedisConnections:
        return RedisConnections(self.settings, self._subscribe, self._warned)

    def _get_connections(self) -> RedisConnections:
        return self._handle.get()

    def _make_times(self) -> tuple[CommandPart, CommandPart]:
        """Return the time of the test clock; without one, the script reads the server's time."""
        if self._test_clock is None:
            return b"", b""
        return to_micros(self._test_clock.now()), to_micros(self._test_clock.monotonic())

    async def _run_script(
        self, name: str, *arguments: CommandPart, more_keys: Sequence[bytes] = ()
    ) -> Any:  # noqa: ANN401 - a script's reply
        connections = self._get_connections()
        (reply,) = await connections.run_script(
            connections.commands, name, arguments, self._make_times(), more_keys=more_keys
        )
        return reply

    async def _subscribe(self, queues: Collection[str]) -> None:
        connections = self._get_connections()
        channel = connections.listener.channel
        pairs = [part for queue in queues for part in (queue, b"1")]
        await connections.commands.execute("HSET", channel, *pairs)

    # --- enqueue ---

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`. Each batch of 500 jobs is stored atomically. For a call of several
        batches, all jobs are checked before the first batch is stored.
        """
        if not jobs:
            return []
        connections = self._get_connections()
        if len(jobs) == 1 and (plain := enqueueing.encode_single(jobs[0])) is not None:
            stream = connections.long_poll.get_stream(jobs[0].queue)
            reply = await self._run_enqueue_script(
                connections, "enqueue_one", plain, more_keys=[stream]
            )
            if reply != UNKNOWN_LANE:
                return enqueueing.make_single_result(jobs[0], reply)
        slices = enqueueing.encode_batches(jobs)
        if len(slices) > 1:
            reply = await self._run_script("check_enqueue", *enqueueing.encode_lookups(jobs))
            refused = enqueueing.predict_refusal(jobs, reply)
            if refused is not None:
                return refused
        results: list[Enqueued] = []
        trips: set[int] = set()
        for at, batch in enumerate(slices):
            part = jobs[at * _MAX_PER_SCRIPT : (at + 1) * _MAX_PER_SCRIPT]
            is_last = at == len(slices) - 1
            reply = await self._run_enqueue_script(
                connections, "enqueue", batch.make_arguments(), flush=is_last
            )
            trips.add(connections.enqueues.connection_count)
            found = enqueueing.make_results(part, reply)
            results += found
            if any(result.outcome in {"conflict", "taken"} for result in found):
                break
        else:
            self._check_one_server(trips)
        return results + [Enqueued(job.id, "refused") for job in jobs[len(results) :]]

    async def _run_enqueue_script(
        self,
        connections: RedisConnections,
        script: str,
        arguments: Sequence[CommandPart],
        *,
        more_keys: Sequence[bytes] = (),
        flush: bool = True,
    ) -> Any:  # noqa: ANN401 - a script's reply
        """Store new jobs. With `durable_enqueue`, wait until they are on the server's disk."""
        flush = flush and self.settings.durable_enqueue
        then = connections.make_flush_commands(self.settings) if flush else ()
        reply, *flushed = await connections.run_script(
            connections.enqueues,
            script,
            arguments,
            self._make_times(),
            more_keys=more_keys,
            after=then,
        )
        if flush:
            enqueueing.check_flushed(flushed, self.settings)
        return reply

    def _check_one_server(self, connections: Collection[int]) -> None:
        """Raise `BackendUnavailable` if the batches of a durable call used several connections. The
        flush after the last batch covers all batches only on one connection. After a reconnect, the
        server may have lost the first batches.
        """
        if self.settings.durable_enqueue and len(connections) > 1:
            problem = "the connection was lost between slices; the first may not be on the disk"
            raise BackendUnavailable(f"{self.describe()}: {problem}")

    # --- workers ---

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        reply = await self._run_script("open_session", *sessions.encode_open_session(session))
        sessions.check_alive(reply, session.id)

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        """See `Backend.exchange`."""
        connections = self._get_connections()
        arguments = exchanging.encode_arguments(session_id, number, settlements, request)
        if request.long_poll > 0:
            answer = await self._exchange_long_poll(
                arguments, request, 0 if settlements else request.long_poll
            )
            return exchanging.decode_reply(answer, session_id, number, request)
        (answer,) = await connections.run_script(
            connections.exchanges, "exchange", arguments, self._make_times()
        )
        reply = exchanging.decode_reply(answer, session_id, number, request)
        if request.total and not reply.waiting:
            connections.listener.note_subscribed({lane.queue for lane in request.lanes})
        return reply

    async def _exchange_long_poll(
        self, arguments: Sequence[CommandPart], request: ReserveRequest, seconds: float
    ) -> Any:  # noqa: ANN401 - a script's reply
        """Run an exchange of an idle worker, preceded by a blocking read of up to `seconds`."""
        connections = self._get_connections()
        before = connections.long_poll.make_preceding_commands(
            [lane.queue for lane in request.lanes], seconds
        )
        connection, times = connections.exchanges, self._make_times()
        try:
            replies = await connections.run_script(
                connection, "exchange", arguments, times, before=before, long_poll=seconds
            )
        finally:
            connections.long_poll.end_wait()
        connections.long_poll.note_replies(before, replies[:-1])
        return replies[-1]

    def interrupt_long_poll(self) -> None:
        """See `LongPolling.interrupt_long_poll`."""
        connections = self._handle.latest
        if connections is not None:
            connections.long_poll.interrupt_long_poll()

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        """See `Backend.heartbeat`."""
        arguments = sessions.encode_heartbeat(session_id, vitals)
        return sessions.decode_heartbeat(
            await self._run_script("heartbeat", *arguments), session_id
        )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        """See `Backend.put_statistics`. Each batch of 500 rows is stored atomically."""
        connections = self._get_connections()
        for call in statistics.encode_statistics(source, rows, connections.keys):
            await self._run_script("put_statistics", *call.arguments, more_keys=call.keys)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`. Releases up to 500 leases per script."""
        arguments = sessions.encode_release(session_id, leases, nonce, _MAX_PER_SCRIPT)
        while await self._run_script("release", *arguments) == b"more":
            pass

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`. Releases up to 500 leases per script."""
        arguments = sessions.encode_close_session(session_id, running, _MAX_PER_SCRIPT)
        while await self._run_script("close_session", *arguments) == b"more":
            pass

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        replies: list[list[Any]] = []
        while limit > 0 or not replies:
            step = min(limit, _MAX_PER_SCRIPT)
            reply = await self._run_script("rescue", *sessions.encode_rescue(step, max_lost))
            replies.append(reply)
            limit -= step
            if not reply[3]:
                break
        return sessions.decode_rescued(replies)

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""
        count, due = 0, b""
        while True:
            step = min(limit - count, _MAX_PER_SCRIPT)
            moved, due = await self._run_script("promote", step)
            count += moved
            if moved < step or count >= limit:
                break
        next_due = decode_time(int.from_bytes(due, "big")) if due else None
        return Promoted(count, next_due)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`."""
        await self._get_connections().listener.wait(queues, timeout, self._clock.sleep)

    async def wait_for_session(self, session_id: str) -> None:
        """See `Backend.wait_for_session`."""
        await self._get_connections().listener.wait_for_session(session_id)

    # --- operators ---

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        reply = await self._run_script("cancel", encode_id_or_empty(job_id))
        return operations.decode_cancellation(reply, job_id)

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`. Each script checks 500 dead letters. The scan ends when `limit`
        jobs are found and it is known whether more match.
        """
        which.check_selects()
        scan = await self._open_scan(which, which.failed_states, after)
        replies: list[list[Any]] = []
        while not scan.is_finished:
            reply = await self._run_script("replay", *scan.make_arguments(limit))
            replies.append(reply)
            scan.advance(*reply[:2])
            limit -= len(reply[2]) + len(reply[3])
            if reply[5]:
                break
        return operations.decode_replayed(replies)

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        """See `Backend.make_due`. Each script changes up to 500 jobs."""
        changed: list[str] = []
        ids = [encode_id_or_empty(job_id) for job_id in dict.fromkeys(job_ids)]
        for first in range(0, len(ids), SCAN_STEP):
            found = await self._run_script("make_due", *ids[first : first + SCAN_STEP])
            changed += queries.decode_ids(found)
        return changed

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`. Each script checks 500 finished jobs."""
        which.check_selects()
        scan = await self._open_scan(which, which.finished_states, deletes=True)
        ids: list[str] = []
        while len(ids) < limit and not scan.is_finished:
            after, last, found = await self._run_script(
                "delete", *scan.make_arguments(limit - len(ids))
            )
            scan.advance(after, last)
            ids += queries.decode_ids(found)
        return ids

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        """See `Backend.pause_queue`."""
        if paused:
            arguments = operations.encode_pause(queue, by, reason, until)
        else:
            arguments = operations.encode_resume(queue)
        await self._run_script("pause_queue", *arguments)

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        """See `Backend.send_command`."""
        arguments = sessions.encode_command(session_id, command)
        return bool(await self._run_script("send_command", *arguments))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        """See `Backend.set_tenant_weight`."""
        arguments = sessions.encode_tenant_weight(tenant, weight)
        await self._run_script("set_tenant_weight", *arguments)

    async def change_limit(self, change: LimitChange) -> None:
        """See `Backend.change_limit`."""
        change.check()
        await self._run_script("change_limit", *operations.encode_limit_change(change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        """See `Backend.reset_limit`."""
        arguments = operations.encode_limit_reset(name, key)
        return bool(await self._run_script("change_limit", *arguments))

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        """See `Backend.put_audit`."""
        await self._run_script("put_audit", *statistics.encode_audit(record, keep))

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        """See `Backend.start_bulk_operation`."""
        operation.check()
        arguments = bulk_operations.encode_new(operation, keep)
        return bulk_operations.decode_started(
            await self._run_script("start_bulk_operation", *arguments)
        )

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        """See `Backend.claim_bulk_operation`."""
        reply = await self._run_script("claim_bulk_operation", to_micros(ttl))
        return bulk_operations.decode_claim(reply)

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        """See `Backend.advance_bulk_operation`. One script runs the whole step."""
        step.check()
        arguments = bulk_operations.encode_step(operation_id, fence, step)
        reply = await self._run_script("advance_bulk_operation", *arguments)
        return bulk_operations.decode_advanced(reply, operation_id)

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.cancel_bulk_operation`."""
        reply = await self._run_script("cancel_bulk_operation", encode_lookup_text(operation_id))
        return bulk_operations.decode_operation(reply, operation_id)

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`. Each script deletes up to 500 entries. Statistics expire by
        themselves, and the sources of each interval are merged once.
        """
        arguments, pruned, more = operations.encode_retention(keep), 0, 1
        now, merged = b"", []
        while pruned < limit and more:
            step = min(limit - pruned, SCAN_STEP)
            count, more, now, merged = await self._run_script("prune", step, *arguments)
            more = more or count == step
            pruned += count
        if now:
            await self._merge_statistics(now, merged)
        return pruned

    async def _merge_statistics(self, now: bytes, merged: list[bytes]) -> None:
        keys = self._get_connections().keys
        for read in statistics.start_merges(now, merged):
            await self._finish_read(read)
            for call in statistics.encode_merges(read, keys):
                await self._run_script("merge_statistics", *call.arguments, more_keys=call.keys)

    async def _open_scan(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        deletes: bool = False,
    ) -> JobScan:
        """Start a scan over the jobs of a filter. It covers the listed ids if the filter has ids.
        It covers only the unfinished jobs if the filter allows no others and there are few.
        Otherwise it covers all jobs.
        """
        fields: Iterable[bytes] | None = None
        if which.ids is not None:
            fields = await self._find_fields(which.ids)
        elif states and states.isdisjoint(FINISHED):
            codes = "".join(STATE_CODES[state] for state in states)
            fields = split_fields(await self._run_script("find_unfinished", codes, MAX_SORTED))
        return JobScan(which, states, after, fields=fields, deletes=deletes)

    async def _find_fields(self, ids: Collection[str]) -> list[bytes]:
        """Return the fields (encoded seqs) of the jobs with these ids; unknown ids are skipped."""
        arguments, found = sorted({encode_id_or_empty(job_id) for job_id in ids}), []
        for at in range(0, len(arguments), SCAN_STEP):
            found += await self._run_script("find_jobs", *arguments[at : at + SCAN_STEP])
        return [field for field in found if field is not None]

    # --- queries ---

    async def get_job(self, job_id: str) -> JobRecord:
        """See `Backend.get_job`."""
        reply = await self._run_script("get_job", encode_id_or_empty(job_id))
        return queries.decode_record(reply, job_id)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        """See `Backend.list_jobs`. Each script checks about 500 jobs. The call also stops when it
        has passed 16 times `budget` deleted jobs.
        """
        scan = await self._open_scan(which, which.states, after)
        page = PageScan(scan, limit, budget, payloads=payloads)
        while not page.is_finished:
            page.add_reply(await self._run_script("list_jobs", *page.make_arguments()))
        return page.make_page()

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        """See `Backend.group_failures`. Each script checks 500 dead letters, which are grouped
        before the next one: to decode all at once would hold up other tasks. Another call reads
        the errors of the groups that it returns.
        """
        scan = await self._open_scan(which, which.failed_states)
        grouper = FailureGrouper(since)
        checked, stopped = 0, 0
        while not scan.is_finished and not stopped:
            arguments = scan.make_arguments(0, max(0, budget - checked))
            after, last, stopped, count, found = await self._run_script(
                "list_dead_letters", *arguments
            )
            scan.advance(after, last)
            checked += count
            grouper.add(queries.decode_dead_letters(found))
        groups = grouper.list_largest(limit)
        latest = JobFilter(ids=tuple(group.job_id for group in groups))
        jobs = (await self.list_jobs(latest, limit=len(groups))).jobs if groups else []
        return FailureGroups(
            groups=queries.add_errors(groups, jobs),
            examined=checked,
            complete=scan.is_finished,
        )

    async def explain_job(self, job_id: str) -> Facts:
        """See `Backend.explain_job`. One script reads everything."""
        reply = await self._run_script("explain_job", encode_id_or_empty(job_id))
        return queries.decode_facts(reply, job_id)

    async def list_limits(self) -> list[LimitInfo]:
        """See `Backend.list_limits`. Each script looks for holders among 2,000 leases."""
        replies: list[list[Any]] = []
        following: int | None = 0
        while following is not None:
            following, rows = await self._run_script("list_limits", following)
            replies.append(rows)
        return queries.decode_limits(replies)

    async def list_rates(self) -> list[RateInfo]:
        """See `Backend.list_rates`. One script reads everything."""
        return queries.decode_rates(*await self._run_script("list_rates"))

    async def list_keyed_limits(
        self, *, name: str | None = None, fullest: int = 5
    ) -> list[KeyedLimitInfo]:
        """See `Backend.list_keyed_limits`. Each script reads some 500 keys."""
        reading = queries.KeyedLimitsReading()
        while not reading.is_finished:
            reading.add_reply(await self._run_script("list_keyed_limits", reading.cursor))
        return reading.summarize(name, fullest)

    async def list_limit_changes(self) -> list[LimitChange]:
        """See `Backend.list_limit_changes`."""
        return queries.decode_limit_changes(await self._run_script("list_limit_changes"))

    async def list_key_uses(self, limit: int = 100) -> list[KeyUse]:
        """See `Backend.list_key_uses`. One script reads everything."""
        return queries.decode_key_uses(await self._run_script("list_key_uses", limit))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        """See `Backend.list_tenants`."""
        return queries.decode_tenants(await self._run_script("list_tenants", limit), limit)

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        """See `Backend.list_statistics`. Each script reads up to 100 intervals."""
        read = StatisticsRead(since, until, step, queue, name)
        await self._finish_read(read)
        return add_statistics(read.rows)

    async def _finish_read(self, read: StatisticsRead) -> None:
        keys = self._get_connections().keys
        while not read.is_finished:
            call = read.make_call(keys)
            reply = await self._run_script("list_statistics", *call.arguments, more_keys=call.keys)
            read.add_reply(reply)

    async def list_audit(self, *, limit: int = 100, after: str | None = None) -> AuditPage:
        """See `Backend.list_audit`."""
        arguments = statistics.encode_numbered_page(limit, after)
        return statistics.decode_audit_page(await self._run_script("list_audit", *arguments))

    async def get_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.get_bulk_operation`."""
        reply = await self._run_script("get_bulk_operation", encode_lookup_text(operation_id))
        return bulk_operations.decode_operation(reply, operation_id)

    async def list_bulk_operations(
        self, *, limit: int = 100, after: str | None = None
    ) -> BulkOperationPage:
        """See `Backend.list_bulk_operations`."""
        arguments = statistics.encode_numbered_page(limit, after)
        return bulk_operations.decode_page(
            await self._run_script("list_bulk_operations", *arguments)
        )

    async def count_jobs(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.count_jobs`."""
        arguments = [] if queue is None else [encode_lookup_text(queue)]
        return queries.decode_counts(await self._run_counting_script("count_jobs", *arguments))

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:  # noqa: ARG002
        """See `Backend.list_queues`. Reads counters."""
        return queries.decode_queues(await self._run_counting_script("list_queues"))

    async def list_sessions(self) -> list[SessionInfo]:
        """See `Backend.list_sessions`."""
        return queries.decode_sessions(await self._run_script("list_sessions"))

    async def _run_counting_script(self, name: str, *arguments: CommandPart) -> list[Any]:
        """Run a script that counts jobs, and return its reply. The script counts up to 500 due jobs
        as ready before they are promoted. If there are more, they are promoted first.
        """
        while not (reply := await self._run_script(name, *arguments)):
            await self.promote(SCAN_STEP)
        return reply  # type: ignore[no-any-return]

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        await self._run_script("put_schedule", *operations.encode_schedule(schedule))

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        return operations.decode_schedules(await self._run_script("list_schedules"))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        flag = b"1" if paused else b"0"
        return bool(await self._run_script("pause_schedule", encode_lookup_text(name), flag))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        return bool(await self._run_script("delete_schedule", encode_lookup_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        arguments = operations.encode_fire(name, (expected_last, tick), job, overlap)
        reply = await self._run_enqueue_script(self._get_connections(), "fire", arguments)
        return operations.decode_fired(reply)


FORMAT = 1
"""The format that this version writes. Workers of the same format run together."""


class RedisConnections:
    """The open connections of a backend on one event loop, and the properties of its server."""

    def __init__(self, settings: RedisSettings, subscribe: Subscribe, warned: set[str]) -> None:
        self.settings: RedisSettings = settings
        self.locator: ServerLocator = ServerLocator(settings, timeout=settings.timeout)
        where = settings.describe()
        self.commands: CommandConnection = CommandConnection(self.locator, where, settings.timeout)
        """The connection for all operations other than enqueue and exchange."""
        self.enqueues: CommandConnection = CommandConnection(self.locator, where, settings.timeout)
        self.exchanges: CommandConnection = CommandConnection(self.locator, where, settings.timeout)
        self.keys: Keys = Keys(settings.namespace)
        self.listener: PubSubListener = PubSubListener(self.locator, self.keys.channel, subscribe)
        self.long_poll: StreamLongPoll = StreamLongPoll(
            self.keys.wakeup_streams, self.exchanges, self.commands
        )
        self.server: RedisServerInfo
        self._warned = warned
        self._scripts: dict[str, tuple[Script, tuple[bytes, ...]]] = {}

    async def start(self) -> None:
        """Check the server and the format of the namespace; write the format if there is none.

        Raises:
            ConfigurationError: the server is not suitable.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: the server does not answer.
        """
        self.server = await check_server(self.commands.execute, self.settings, self._warned)
        self._scripts = {
            script.name: (script, self.keys.select(script.keys))
            for script in Scripts(self.server.version)
        }
        (found,) = await self.run_script(self.commands, "open", [b"%d" % FORMAT])
        _check_format(found, self.settings)
        for connection in (self.commands, self.enqueues, self.exchanges):
            connection.is_verified = True

    async def plan_migration(self) -> list[str]:
        """Return descriptions of what `start` would change in the namespace. Writes nothing.

        Raises:
            ConfigurationError: the server is not suitable.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: the server does not answer.
        """
        await check_server(self.commands.execute, self.settings, self._warned)
        (meta,) = self.keys.select(["meta"])
        found = await self.commands.execute("HGET", meta, "format")
        if found is None:
            return [f"format {FORMAT}: namespace {self.settings.namespace!r}"]
        _check_format(int(found), self.settings)
        return []

    def run_script(
        self,
        connection: CommandConnection,
        name: str,
        arguments: Sequence[CommandPart],
        times: tuple[CommandPart, CommandPart] = (b"", b""),
        *,
        more_keys: Sequence[bytes] = (),
        before: Sequence[Command] = (),
        after: Sequence[Command] = (),
        long_poll: float = 0.0,
    ) -> Coroutine[Any, Any, list[Any]]:
        """Run a script with commands before and after it in one request. Return all replies in
        order.
        """
        script, keys = self._scripts[name]
        return connection.run_script(
            script,
            [*keys, *more_keys],
            [*times, *arguments],
            before=before,
            after=after,
            long_poll=long_poll,
        )

    def make_flush_commands(self, settings: RedisSettings) -> list[enqueueing.FlushCommand]:
        """Return the commands that follow a write and wait until it is on the disk."""
        return enqueueing.make_flush_commands(*self._scripts["flush"], settings)

    async def close(self) -> None:
        """Close all connections."""
        await self.listener.close()
        await self.long_poll.close()
        for connection in (self.exchanges, self.enqueues, self.commands):
            await connection.close()


def _check_format(found: int, settings: RedisSettings) -> None:
    """Raise `FormatMismatch` if the format is newer than `FORMAT`."""
    if found > FORMAT:
        raise FormatMismatch(
            f"{settings.describe()} has format {found}, this nimburion knows formats up to "
            f"{FORMAT}; nothing was changed. Upgrade nimburion here (pip install --upgrade "
            "nimburion)"
        )
