"""The contract of a backend: `Backend`, its four protocols, and what some backends have more.

A `Backend` opens, closes, checks and migrates itself (`Lifecycle`). One object for each of four
protocols has the other operations:

- `backend.producing` (`Producing`): enqueue and cancel jobs, fire the ticks of schedules.
- `backend.consuming` (`Consuming`): open a session, reserve and settle jobs, rescue the jobs of
  dead workers.
- `backend.maintenance` (`Maintaining`): change jobs, pause and prune; store records.
- `backend.reads` (`Reading`): read jobs, counts, queues, sessions and records.

The capabilities say whether `producing` is also `BlockingProducing` and `Transactional`, and
whether `consuming` is also `LongPolling` and `SharedListening`.

These rules hold for every operation of every backend:

- Atomic: a call is applied as a whole, or not at all. `Capabilities.atomic_batch` may limit
  this for large `enqueue` calls.
- Time: all times are epoch seconds on the backend's own clock. The backend never relies on the
  clock of a caller.
- Bounded batches: a call carries many jobs. `limit` is the maximum number of records it
  changes or returns.
- Errors: every error of a backend is a `BackendError` of `nimburion.core.errors`, except where
  a docstring names another.
- Repeatable: after `BackendUnavailable` with the outcome `unknown`, the caller may repeat the
  call. Ids make `enqueue` safe to repeat, the number makes `exchange` safe, and tokens make
  settlements safe. All other operations are safe to repeat by themselves.
- Event loop: call a handle on the event loop that opened it. `new_handle()` makes a handle for
  another loop.

The test suite for backends is `nimburion.testing.contract`. Decision 0001 gives the reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from nimburion.core.queries import (
    COUNT_BUDGET,
    EVERY_JOB,
    SCAN_BUDGET,
    WHOLE_PAYLOAD,
    JobCounts,
    JobFilter,
    Page,
    QueueInfo,
)

if TYPE_CHECKING:  # a protocol needs no values: each command and each client would load all
    from nimburion.core.bulk_operations import BulkAction
    from nimburion.core.diagnosis.checks import CheckResult
    from nimburion.core.diagnosis.explanations import Facts
    from nimburion.core.diagnosis.failure_groups import FailureGroups
    from nimburion.core.exchange import Reply, ReserveRequest
    from nimburion.core.fairness import TenantUses
    from nimburion.core.flows import FlowInfo, FlowPage, NewFlow
    from nimburion.core.job import Enqueued, JobRecord, NewJob, State
    from nimburion.core.lease import Lease
    from nimburion.core.limits import LimitChange, LimitInfo
    from nimburion.core.listener import ShareListener
    from nimburion.core.maintenance import Cancellation, JobChanges, Promoted, Rescued, Retention
    from nimburion.core.metrics.statistics import Statistics
    from nimburion.core.records import (
        NewRecord,
        Record,
        RecordChange,
        RecordKind,
        RecordPage,
        RecordPut,
    )
    from nimburion.core.runs import NewSignal, RunPage, SignalOutcome
    from nimburion.core.schedules import Fired, Overlap
    from nimburion.core.session import (
        HeartbeatReply,
        Session,
        SessionInfo,
        Vitals,
        WorkerCommand,
    )
    from nimburion.core.settlement import Settlement
    from nimburion.core.transactions import CallerConnection, EnqueueCount, Transaction

MAX_HOLDERS = 20
"""The most holders of each limit that `list_limits` returns."""


class Capabilities(msgspec.Struct, frozen=True):
    """The optional features of a backend. Read these fields; never test with `isinstance`."""

    durable: bool
    """Jobs survive the death of every process that uses the backend."""
    notifies: bool
    """`wait` returns when another process enqueues a job, not only after its timeout."""
    supports_transactions: bool
    """`producing` is also `Transactional`: it works inside a caller's transaction."""
    atomic_batch: int | None
    """The maximum number of jobs that one `enqueue` call stores atomically; None: all jobs."""
    shared: bool = True
    """Other processes can open the same data."""
    supports_long_poll: bool = False
    """`consuming` is `LongPolling` too: `exchange` waits up to `ReserveRequest.long_poll` seconds
    for a job. A job then starts one round trip sooner than with `wait`.
    """
    out_of_process: bool = False
    """Another process does the work of the backend. A worker should therefore reserve some jobs
    ahead, and run them while it waits for a reply.
    """
    roles: bool = False
    """The backend has roles: `grant` gives another role the permissions of a worker."""
    keeps_arguments: bool = False
    """The default of the setting `keep_arguments`: completed jobs keep their arguments."""
    lazy_batches: bool = False
    """`enqueue` reads a large sequence of jobs lazily, while it stores the first of them. An
    exception raised while a job is built rejects the whole call.
    """
    concurrent_transactions: bool = False
    """A caller's transaction that stays open delays no worker, no maintenance and no reading.
    Without it, one transaction writes at a time, and all other writes wait for its end.
    """
    blocking_enqueue: bool = False
    """`producing` is `BlockingProducing` too: a thread can store jobs without an event loop."""
    shares_listener: bool = False
    """`consuming` is `SharedListening` too: the worker processes of one supervisor can share one
    listening connection.
    """


class Producing(Protocol):
    """Operations of producers."""

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        """Store jobs and return one result for each, in the same order.

        The call is idempotent by job id. If a job with the id is kept, in any state, the outcome is
        `exists` when name and payload are the same, else `conflict`. With `exists` the job does not
        run again.

        The backend checks the unique key in the same atomic step. The options of the job that holds
        the key say in which states and for how long it does (`unique_while`, `unique_for`). If it
        holds the key, the outcome depends on `on_duplicate` of the new job: `exists`, `replaced` or
        `taken`, each with the id of the holder. A job that waits again holds its key again, unless
        another job took it in the meantime: then it keeps running and retrying without the key.

        With `replaced`, the holder keeps its id, its place in the enqueue order, its failures and
        its history. If it has failed before, it is not due earlier than its retry was. The id of
        the new job is remembered for `REPEAT_WINDOW` seconds: a repeat of the call changes nothing
        and returns the same outcome; with another body it is a `conflict`. A job keeps the digest
        of its first body, so the repeat of its own enqueue also still `exists`.

        One `conflict` or `taken` rejects the whole call, and nothing is stored. After a successful
        call the backend notifies the workers that wait for these queues.

        The call stores `flows` that are not kept yet. A job with a flow or conditions comes in a
        call with that flow, also if the flow is stored already. A job with conditions is
        `suspended`. Its sources are jobs of the flows of the call, and flows. A source that ended
        before counts with its end. What follows from the end of a
        member is done in the step that ends it, or in the next steps if more than `MAX_RESOLVED`
        jobs are concerned:

        - A job is resumed when its last condition is met: it waits, and is due at the time of that
          step or at its own due time, whichever is later.
        - A job is cancelled with the reason `dependency` when a condition on a success cannot be
          met any more, and with `not needed` when one on a failure cannot. It keeps its payload.
        - A flow counts each member once. It ends with its last member; one without members ends at
          once.
        - Each failure of a member of a flow with `fail_fast` that has failed cancels its members
          that have not started, with the reason `dependency`. They keep their payload. Those that
          run are left alone, also when they are retried or return later. A member that waits for a
          worker may be cancelled by a later step: `promote` and `rescue` do so at the latest.

        A flow repeats as a job does: the same id with the same values changes nothing. A job of a
        flow that has ended is not stored, because it was before: its outcome is `exists`, also if
        its sources are gone. So what waits for the flow is stored before its last member, or with
        it. A stored job with the id of a member that is in another flow, or in
        none, is a `conflict`. If it is in the flow and the flow is new again, its end counts.

        A flow with the growth `ADD` is stored already. Each new job of the call that it counts is
        one more member. If it has ended, the call is refused, unless all of these jobs are stored.
        So a repeat adds nothing twice. An open flow ends when a call closes it (`Growth.CLOSE`) and
        its last member has ended. `enqueue_in` adds no members.

        Raises:
            InvalidJob: the source of a condition or a flow of a job is unknown, a source is a job
                of no flow of the call, another flow with the same id is kept, or a flow that gets
                members has ended. Nothing was stored.
            FlowNotFound: a flow that gets members, or is closed, is not stored. Nothing was stored.
            EnqueueBlocked: a transaction that is still open enqueued the same id or unique key.
                Nothing was stored; repeat the call. The client does so, apart from other jobs.
        """
        ...

    async def cancel(self, job_id: str) -> Cancellation:
        """Cancel a waiting job immediately, or request it from the worker that runs the job.

        A request notifies the session of that worker (`wait_for_session`). A durable run with the
        step `CLEANUP_STEP` that waits for a worker or is suspended gets the signal `CANCEL_SIGNAL`,
        and is resumed if it is suspended: this is a request, too. `change_jobs` does the same.

        Raises:
            JobNotFound: there is no job with this id.
        """
        ...

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[SignalOutcome]:
        """Store signals to jobs, up to `MAX_SIGNALS`, and return one outcome for each, in order.

        A signal is kept until a step of its job takes it (`Recorded.takes`). Its id is kept until
        it was taken and `MAX_UNREAD_SIGNALS` later signals of the job were stored. A job that is
        suspended and waits for a signal of this name is resumed in the same step. If the job does
        not wait, its next `Suspended` finds the signal.
        """
        ...

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """Decide one tick of a schedule, in one atomic step.

        The schedule is a record of the kind `schedule`, whose body is what `encode_schedule` makes.
        The call moves the last tick from `expected_last` to `tick` by compare-and-swap, and
        enqueues `job`. `overlap` applies when the previous job of the schedule is not finished:

        - `allow`: enqueue the job as well.
        - `skip`: do not enqueue it.
        - `queue_one`: do not enqueue it if the previous job has not started.
        - `cancel_previous`: cancel the previous job, as `cancel` does, and enqueue the job.
        """
        ...


class Consuming(Protocol):
    """Operations of workers."""

    async def open_session(self, session: Session) -> None:
        """Open a session, which expires `session.ttl` seconds after its last heartbeat.

        For each name in `session.names`, the limits become those of `session.limits`; a name
        without any there has no limit any more. A new limit of a job name (`job:NAME`) counts the
        jobs of that name that are processing now. A limit that existed before keeps the units that
        its jobs have taken (`RateLimit.carry_over`). If limits change for which jobs of the name
        are parked, these jobs are considered again. `change_limit` wins over what a session
        declares.

        Opening a session with the same id again is a heartbeat.

        If a limit changes, the call wakes all workers. A session that changes none wakes no worker.

        The weights of `session.weights` are stored as `set_tenant_weight` does.
        """
        ...

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        """Settle finished attempts and reserve new jobs, in one atomic step.

        The backend applies the settlements in order, promotes the jobs that are due (up to
        `MAX_PROMOTED`), resumes the durable runs whose time has come (up to `MAX_RESOLVED`), and
        then serves `request`. The same call can therefore reserve what a
        settlement made available: a slot of a concurrency limit, or a retry without delay. It never
        reserves a job that is not due, is in a paused queue, or would exceed one of its limits.

        A job counts in each limit that its name has: in that of the job name and that of its queue
        without a key, in the others if it carries a key of theirs (`find_limit_key`). A reserved
        job takes the units of the rates of its keys. `Released` with `unstarted`, `release` and a
        delivery that a repeat returns to its queue give them back. Every other end of a lease keeps
        them, because the handler may have started.

        If the limit of the job name or of the queue has no room (`closes_lane`), the lane is
        closed: none of its jobs is read. If another one has no room, the exchange parks the job
        and reserves the next one of the lane. A parked job waits as a pending job; it returns to
        its place in the lane in the step that gives its key room. Jobs of one key and lane are
        reserved in the order of the lane.

        If another key of a job that returned has no room, the job is parked for that one, and the
        next job that is parked for the first key takes its turn. An exchange parks up to
        `MAX_PARKED` jobs. It serves all other lanes whatever it parked. Lanes that it left because
        of this bound are in `Reply.waiting`.

        A job may run if it is due, its queue is not paused, and each of its limits has room. While
        a job may run, at most two exchanges that request its lane can have fewer jobs than `total`
        without it; the third reserves it. Each further 1,000 jobs that exchanges park or return to
        a lane meanwhile take one exchange more. Other jobs, keys and tenants do not change this
        bound, and an open transaction of a caller changes it only for jobs that the transaction
        has locked. Such a job may wait until one second after the end of the transaction; then the
        bound begins.

        The jobs of tenants in a queue take turns, as `ReserveRequest` says. Each reserved job
        charges its tenant, so the shares are decided job by job, also inside one exchange. Every
        end of a lease takes the charge back. An end after which the handler may have run charges
        the time since the job was reserved: a settlement, except `Released` with `unstarted`. All
        others charge nothing: `release`, `close_session`, `rescue`, and a delivery that a repeat
        returns to its queue.

        `number` starts at 1 and increases by one with each exchange of the session. To repeat an
        exchange whose outcome is unknown, send its number again. A repeat applies no settlements,
        whatever it carries, and returns the same reply. Only deliveries that exceed its
        `request.max_bytes` are missing: they go back to their places in the queue. A caller may
        thus repeat an exchange with only a part of its settlements. The number of results is the
        number of settlements applied.

        Raises:
            OutOfOrder: `number` is neither the next nor the last.
            SessionLost: the session is not alive. Nothing was written; none of its leases is valid.
            Unstorable: the backend cannot store the data of a settlement. Nothing was applied, and
                the number is still free.
        """
        ...

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        """Extend the session: it now expires `ttl` seconds from now.

        A heartbeat also revives a session that has expired and is not rescued yet. `vitals`
        replace those of the last heartbeat; None keeps them.

        Raises:
            SessionLost: the session was rescued or closed.
        """
        ...

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """Release leases outside of the numbered exchanges, as `Released` without a delay does.

        The call releases `leases`. With `nonce` it also releases every lease whose token has this
        random half: the deliveries of an exchange whose reply was not read. A repeat of that
        exchange does not return these deliveries, and a later settlement of them results in
        `already`.

        The call skips leases that the session does not hold under exactly this token. It does
        nothing if the session is not alive. Repeatable.
        """
        ...

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """Close a session and release its leases, except those in `running`.

        With leases in `running`, the session stays until it expires, with `left` set. Its rescue
        then counts no loss. Closing a session that does not exist does nothing.
        """
        ...

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """Take back up to `limit` jobs from expired sessions.

        Each job counts one loss. At `max_lost` losses it fails with the reason `lost`; otherwise it
        waits again in its old place. Two kinds of jobs count no loss:

        - jobs of a session that had `left`;
        - suspects (jobs with `SUSPECT_AFTER` losses) whose session held other jobs too. A suspect
          in such a session had not started.

        An expired session ends in the same step, even if some of its jobs remain for the next call.

        The call also continues what follows from the end of members of flows, if an earlier step
        has left some of it; `more` says too that some is left again.
        """
        ...

    async def promote(self, limit: int) -> Promoted:
        """Make up to `limit` due scheduled jobs available for reservation, earliest first.

        The call also resumes the durable runs whose time has come, up to `MAX_RESOLVED`, and
        continues what follows from the end of members of flows, if an earlier step has left some of
        it.
        """
        ...

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """Wait for jobs of these queues. Return when the call is woken, or after `timeout` seconds.

        Each call is an idle entry: it says that its worker can start a job at once. When n jobs of
        a queue become available, the backend wakes n of the calls that wait for the queue. If there
        are fewer, the handles without a call keep the notification, and their next call returns
        immediately. A change whose number of jobs is unknown wakes all: a resumed queue, a changed
        limit.

        The first exchange of the handle after a call may wake one more call. It does if it reserved
        jobs and left others in `Reply.waiting`. If the call was woken, and the exchange reserved
        nothing, it passes the wake-up on, but only once. A queue is thus served by workers of
        different names.

        Wake-ups are best effort: `wait` may return without cause, and may miss a notification.
        While the handle receives none, the call returns after about two seconds.
        Callers must poll as well. A lost wake-up delays a job until any worker of its queue polls.
        """
        ...

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the next heartbeat of a session has something to report.

        That is a cancel request for one of its running jobs, or a changed command. The worker then
        sends a heartbeat at once.

        Notifications are best effort: the call may return without cause, may miss a notification,
        and may never return. The regular heartbeats report what it missed. A worker that sends its
        heartbeat after the call returned, and then calls again, misses nothing in between.
        """
        ...

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        """Store the counters of one process for some intervals, queues and names.

        Each row replaces what `source` stored for the same interval, queue and name. The counters
        are thus absolute values, and repeating the call changes nothing. `source` is the id of a
        session, or another id that no other process uses. A backend may store the rows without
        waiting for the disk.
        """
        ...


class LongPolling(Protocol):
    """The additional operation of `consuming` where the capabilities have `supports_long_poll`."""

    def interrupt_long_poll(self) -> None:
        """Make an exchange that waits reply now. Best effort: it may take effect late, or not at
        all.
        """
        ...


class SharedListening(Protocol):
    """The additional operation of `consuming` where the capabilities have `shares_listener`."""

    def share_listener(self, share: ShareListener) -> None:
        """Receive notifications from the listener that `share` returns, from the next `open` on.
        Handles that `new_handle` makes do not.
        """
        ...


class Maintaining(Protocol):
    """Operations of operators."""

    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        """Replay, make due, cancel or delete up to `MAX_STEP` jobs, in one atomic step.

        Jobs that the action cannot change are skipped, and unknown ids too. So the call is
        idempotent. With `states`, jobs in other states are skipped as well. A caller that listed
        the jobs passes the states of its filter, because jobs change between the two calls. The
        actions:

        - `replay`: a failed job becomes pending again. Its failures and losses start at zero; its
          id, payload and history stay. A job whose unique key another job holds stays failed. The
          jobs that were cancelled only because of its failure are suspended again, and its flow
          runs again. What a flow with `fail_fast` cancelled waits again with the first replay of
          one of its members, also if others stay failed.
        - `run_now`: a scheduled job, or one that waits for its next attempt, becomes due. Its due
          time is the time of the call, so it comes after the jobs of its priority that are due
          already. Everything else stays, also failures and losses.
        - `cancel`: as `cancel` does. A job that gets a cancel request counts as changed.
        - `delete`: a finished job is deleted permanently, unless its flow runs. A backend may use
          several steps if durable runs have very many steps; the last one writes `record`.

        The call notifies the workers that wait for the queues of these jobs.

        With `record`, the step also writes this record, and adds the numbers of jobs to its
        `changed` and `held`. If the record does not have the version `record.version`, nothing is
        changed, and `JobChanges.record` is None.

        Raises:
            InvalidJob: there are more than `MAX_STEP` ids, or one of them twice.
        """
        ...

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        """Pause or resume a queue. No exchange reserves a job of a paused queue.

        `by`, `reason` and `until` are kept with the pause (`Pause`). From `until` on, in epoch
        seconds, the queue is not paused any more; workers notice it with their next exchange.
        Pausing a paused queue replaces all three, and keeps the time since which it is paused.

        Resuming notifies the workers that wait for the queue.
        """
        ...

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        """Send a command to the worker of a session; None takes the last command back.
        `SHOW_STACKS` leaves the last command as it is.

        Each heartbeat of the session returns the latest command. The call notifies the session
        (`wait_for_session`). Returns False if the session has ended or never existed.
        """
        ...

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        """Set the weight of a tenant, in all queues; None: the default, which is 1.

        With twice the weight, a tenant with enough jobs gets twice the run time. Weights are
        rounded to two decimals, within `MIN_WEIGHT` and `MAX_WEIGHT`. A change counts for jobs that
        are reserved or end after it.

        Raises:
            InvalidJob: the weight is NaN; nothing changed.
        """
        ...

    async def change_limit(self, change: LimitChange) -> None:
        """Change a limit until it is reset. What workers declare does not apply meanwhile.

        The change applies to every job name that has the limit, or to one key of it. A change of
        the limit of a job name (`job:mail`) makes this limit, also if no worker declares it. A
        change of the limit of a queue (`queue:mail`) makes it for every job name that has limits or
        a session, and for those of later sessions. What an earlier change of the same limit set
        stays, unless this one sets it too.

        The next exchange follows the change, also for parked jobs. A step returns at most 1,000 of
        them to their lanes; if more are parked, exchanges reserve nothing from these lanes until
        all have returned. Nothing that runs is stopped.
        Units that jobs took under an earlier rate delay the next job by at most a full burst of the
        new one (`RateLimit.carry_over`). The workers that wait are notified.

        Raises:
            InvalidJob: `change.check` rejects the change.
        """
        ...

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        """Let what the newest session declares apply again. Return False if nothing was changed.

        With a key, only the change of this key ends.
        """
        ...

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        """Add a record or replace it, if it has this version. 0: there is none; None: any.

        A record that is replaced keeps its place among the others, `created_at`, `changed` and
        `held`. If a new record makes more than `keep` of its kind, the oldest are deleted; but
        nothing is stored while one of these has a due time.
        """
        ...

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        """Delete a record. Return False if there is none."""
        ...

    async def prune(self, keep: Retention, limit: int) -> int:
        """Delete records and results older than `keep` allows, and return the number deleted.

        The call deletes at most `limit` records and results. If it returns less than `limit`,
        nothing more is due for deletion.

        Open flows that got no members for longer than `keep.open_flows` are closed. The member that
        stands for those that may come counts as cancelled, with as many others as the flow
        tolerates: it ends as cancelled, or as failed. This may follow in the next steps of any
        worker. One call closes at most `MAX_CLOSED` flows.

        A job stays while its flow runs. A flow is deleted with its groups when it ended longer ago
        than `keep.flows` allows. Flows do not count in `limit`. A job that was cancelled because
        of another one (`DEPENDENCY`, `NOT_NEEDED`) stays as long as a failed one, since a replay
        suspends it again, and does not count in `keep.completed_max`.

        The call also deletes the statistics that are older than `STEPS` allows. For intervals that
        ended more than `MERGE_AFTER` seconds ago, it merges the rows of different sources into
        one, so that their number does not grow with the number of processes. Neither counts.
        """
        ...


class Reading(Protocol):
    """Read operations. They change nothing, run no job, and take no lock that delays a worker."""

    async def get_job(self, job_id: str) -> JobRecord:
        """Return the complete record of a job.

        Raises:
            JobNotFound: there is no job with this id.
        """
        ...

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        """Return a page of jobs, most recently enqueued first.

        `after` is the `next` of the previous page; None: start at the newest job. Pages stay stable
        while jobs are inserted. Records carry their payload only with `payloads`, and its first
        `payload_bytes` bytes only. The cursor of one filter continues with any other: it is a place
        in the order of storage (`move_cursor`).

        The call examines at most `budget` records. If it stops there, the page has fewer jobs
        than `limit` and a `next` that continues at the record after the last one examined. Where
        only failed jobs, only processing ones or only those of `which.ids` can match, no others are
        examined.
        """
        ...

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        """Group the dead letters that match, and return the `limit` largest groups.

        The call examines at most `budget` dead letters, the most recently enqueued ones. For each
        time in `since`, in epoch seconds, each group has the number of those that failed then or
        later (`FailureGroup.counts_since`).
        """
        ...

    async def explain_job(self, job_id: str) -> Facts:
        """Return what decides whether a job can run, in one consistent read.

        `find_causes` of `nimburion.core.diagnosis.explanations` says what follows from it.

        Raises:
            JobNotFound: there is no job with this id.
        """
        ...

    async def get_flow(self, flow_id: str) -> list[FlowInfo]:
        """Return a flow and the groups inside it, at any depth, in the order of their ids.

        The flow comes first. The list is empty if there is no flow with this id.
        """
        ...

    async def read_run(
        self, job_id: str, *, limit: int = 1_000, after: str | None = None
    ) -> RunPage:
        """Return the steps of a durable run, then its unread signals, up to `limit` of both.

        A page ends after about `RUN_PAGE_BYTES`. `after` is the `next` of the previous page. Steps
        and signals are kept as long as the record of the job, and removed with it or shortly after
        it. A job with the same id never sees them.

        Raises:
            JobNotFound: there is no job with this id.
            InvalidJob: `after` is not the `next` of a page.
        """
        ...

    async def list_flows(
        self, *, running: bool = False, limit: int = 100, after: str | None = None
    ) -> FlowPage:
        """Return a page of flows that are no groups, most recently stored first.

        `after` is the `next` of the previous page. With `running`, only flows that have not ended.

        Raises:
            InvalidJob: `after` is not the `next` of a page.
        """
        ...

    async def count_jobs(
        self, queue: str | None = None, *, budget: int | None = COUNT_BUDGET
    ) -> JobCounts:
        """Return the number of jobs in each state, of one queue or of all. Every state is a key.

        A backend without counters counts the jobs that wait and the dead letters, which takes long
        where there are millions. `budget` bounds this: about this many are counted. With None, all
        are. If numbers may be too small, `JobCounts.is_complete` is False. Backends with counters
        ignore the budget. Completed, cancelled and processing jobs are always counted exactly.
        """
        ...

    async def list_queues(self, *, budget: int | None = COUNT_BUDGET) -> list[QueueInfo]:
        """Return every queue that holds an unfinished job or is paused, ordered by name.

        Suspended jobs are left out.

        `budget` is that of `count_jobs`, and at least one job of each lane is counted. Numbers
        that are then too small are marked (`QueueInfo.size_complete`, `scheduled_complete`), and a
        queue whose jobs are all scheduled may be missing.
        """
        ...

    async def list_sessions(self) -> list[SessionInfo]:
        """Return every session that has not ended, oldest first.

        `close_session` and `rescue` end sessions.
        """
        ...

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        """Return every limit, or only the one of this name, ordered by name.

        These are the limits that a job name has, the changed ones, and those whose keys are in use.

        Args:
            name: the only limit to return.
            fullest: the most keys of each limit to return.
            holders: the most holders of each limit to return; at most `MAX_HOLDERS`. With 0, no
                lease is read.

        The answer is bounded by the number of limits. The cost also grows with the keys that are in
        use or for which jobs are parked; keys without jobs are not read, and parked jobs are
        counted, not read. Call it at intervals, not once for each job.
        """
        ...

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        """Return up to `limit` tenants with waiting or running jobs, and up to `limit` weights."""
        ...

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        """Return the statistics of the intervals that start in [`since`, `until`).

        The counters of all sources are added up. Rows are ordered by start, queue and name;
        intervals without rows are missing.

        Raises:
            InvalidJob: `step` is no key of `STEPS`, or the range has more than `MAX_INTERVALS`
                intervals.
        """
        ...

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        """Return a record; None: there is none."""
        ...

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        """Return a page of records of one kind, most recently added first.

        `after` is the `next` of the previous page. With `by_due`, only records with a due time are
        returned, the earliest first, on one page.

        Raises:
            InvalidJob: `after` is not the `next` of a page.
        """
        ...


class Lifecycle(Protocol):
    """Operations that open, check, migrate and close a backend."""

    @property
    def capabilities(self) -> Capabilities:
        """The optional features of this backend."""
        ...

    def describe(self) -> str:
        """Return the name of the backend on one line, without secrets.

        Example: `SQLite /srv/app/nimburion.db`.
        """
        ...

    def new_handle(self) -> Backend:
        """Return another handle on the same data.

        The handle is not open. Open it on an event loop of its own.
        """
        ...

    async def open(self) -> None:
        """Connect, create or migrate the data where this is allowed, and check its format.

        Repeatable.
        """
        ...

    async def close(self) -> None:
        """Release everything that the handle holds. Repeatable."""
        ...

    async def exists(self) -> bool:
        """Return whether there is data to open.

        The result is False where `open` would create the data, for example a file in the wrong
        folder. A backend with a server returns True, because only `open` contacts the server. The
        call creates nothing, and the backend need not be open.
        """
        ...

    async def ping(self) -> None:
        """Return when the backend answers."""
        ...

    async def now(self) -> float:
        """Return the time on the backend's clock, in epoch seconds. Cheap, and changes nothing."""
        ...

    async def check(self) -> list[CheckResult]:
        """Run the health checks of an open backend and return their results, in a fixed order.

        The checks cover location, durability, free space, speed and clock. They change nothing. An
        error of the backend during a check is not raised; it becomes a result with the verdict
        `error`.
        """
        ...

    async def migrate(self, *, dry_run: bool = False) -> list[str]:
        """Migrate the data to the current format and return one text for each step done.

        With `dry_run`, the call returns the steps that it would do now, and writes nothing. An
        empty list means that there is nothing to do. The backend need not be open; close it
        afterwards. Any number of processes may call this at the same time, while workers run.

        Raises:
            FormatMismatch: the format of the data is too new for this version of nimburion.
        """
        ...

    async def grant(self, role: str) -> list[str]:
        """Grant another role the permissions of a worker and return one text for each grant.

        The role gets no other permissions. The backend need not be open; close it afterwards.

        Raises:
            NotSupported: the backend has no roles.
            ConfigurationError: there is no such role, or the current role may not grant.
        """
        ...


class Backend(Lifecycle, Protocol):
    """A complete backend: its lifecycle, and one object for each protocol.

    The objects are the same for as long as the handle exists, and work while it is open.
    """

    @property
    def producing(self) -> Producing:
        """The operations of producers."""
        ...

    @property
    def consuming(self) -> Consuming:
        """The operations of workers."""
        ...

    @property
    def maintenance(self) -> Maintaining:
        """The operations of operators."""
        ...

    @property
    def reads(self) -> Reading:
        """The read operations."""
        ...


class BlockingProducing(Protocol):
    """The additional operation of `producing` where the capabilities have `blocking_enqueue`."""

    def enqueue_blocking(self, jobs: Sequence[NewJob], timeout: float) -> list[Enqueued]:
        """Store jobs as `Producing.enqueue` does, and block the calling thread meanwhile.

        Call it on any thread other than the thread of the event loop on which the backend is open.
        Raises `BackendUnavailable` after `timeout` seconds without an answer. The jobs may have
        been stored nevertheless.
        """
        ...


class Transactional(Protocol):
    """The additional operations of `producing` where the capabilities have `supports_transactions`.

    Changes inside a caller's transaction are invisible to others until it commits. A rollback
    discards all of them.

    Raises:
        UnusableConnection: the driver of the connection is unknown to the backend, the connection
            belongs to another database, or no transaction is open on it.
    """

    async def enqueue_in(
        self,
        connection: CallerConnection,
        jobs: Sequence[NewJob],
        flows: Sequence[NewFlow] = (),
    ) -> list[Enqueued]:
        """Enqueue jobs as `enqueue` does, inside the open transaction of the caller's connection.

        The caller commits. The queues are notified after the commit. A rejected call writes nothing
        and leaves the transaction usable. The same holds for every error except
        `BackendUnavailable`; after that, the caller must roll back.

        Without jobs, the call only checks that the connection is to the database of the backend.

        The new jobs are counted inside the transaction, for `take_enqueue_counts`.
        """
        ...

    async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
        """Remove and return what committed transactions enqueued at least `min_age` seconds ago.

        Each count is returned once, to any process, which adds it to its statistics. So a job is
        counted when its transaction has committed, and never after a rollback. A call returns at
        most 1,000 counts. It never waits for a caller's open transaction, unless the backend has
        one writer at a time.
        """
        ...

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        """Return a transaction that commits a handler's writes together with the end of its job.

        It uses the caller's connection, or one of the backend's own connections if that is None.
        """
        ...
