"""State transitions of a single job.

Each also updates lanes, concurrency limits, unique keys and notifications.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.memory.state import (
    MICRO,
    JobEntry,
    LeaseEntry,
    MemoryState,
    ReplacementEntry,
    SessionEntry,
    UniqueKeyEntry,
    check_time,
    compute_due,
    make_job_rate,
    to_micros,
)
from nimburion.core.job import (
    REPEAT_WINDOW,
    WAITING,
    AttemptError,
    Enqueued,
    NewJob,
    Progress,
    State,
    limit_replaced_due,
)
from nimburion.core.keyed_limits import LimitKey
from nimburion.core.lease import Token
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
)

_REFUSED = frozenset({"conflict", "taken"})
"""The outcomes for which an enqueue stores none of its jobs."""


class AtomicStep:
    """One atomic change of the data, at one time. Collects the queues and sessions to notify."""

    __slots__ = ("names_to_notify", "now", "state")

    def __init__(self, state: MemoryState, now: int) -> None:
        self.state: MemoryState = state
        self.now: int = now
        self.names_to_notify: set[str] = set()

    # Enqueue

    def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store jobs: decide the outcome of every job first, then store the new ones."""
        check_job_times(jobs)
        fresh: dict[str, NewJob] = {}
        keys: dict[tuple[str, str], str] = {}
        replacements: dict[str, tuple[str, bytes]] = {}
        results = [self._decide_outcome(job, fresh, keys, replacements) for job in jobs]
        if not _REFUSED.isdisjoint([result.outcome for result in results]):
            return [_mark_refused(job, result) for job, result in zip(jobs, results, strict=True)]
        for job, result in zip(jobs, results, strict=True):
            if result.outcome == "created":
                self._insert(job)
            elif result.outcome == "replaced" and self._find_replacement(job.id) is None:
                self._replace(self.state.jobs[result.id], job)
        return results

    def _decide_outcome(
        self,
        job: NewJob,
        fresh: dict[str, NewJob],
        keys: dict[tuple[str, str], str],
        replacements: dict[str, tuple[str, bytes]],
    ) -> Enqueued:
        existing = self.state.jobs.get(job.id)
        if existing is not None or job.id in fresh:
            known = (
                fresh[job.id].compute_digest() if existing is None else existing.get_body_digest()
            )
            return Enqueued(job.id, "exists" if known == job.compute_digest() else "conflict")
        key = job.options.unique_key
        if key is not None:
            repeated = None
            if job.options.on_duplicate == "replace":
                repeated = replacements.get(job.id) or self._find_replacement(job.id)
            if repeated is not None:
                replaced, known = repeated
                if known != job.compute_digest():
                    return Enqueued(job.id, "conflict")
                return Enqueued(replaced, "replaced")
            holder = keys.get((job.name, key)) or self.find_key_holder(job.name, key)
            if holder is not None:
                return self._decide_duplicate(job, holder, fresh, replacements)
            keys[job.name, key] = job.id
        fresh[job.id] = job
        return Enqueued(job.id, "created")

    def _decide_duplicate(
        self,
        job: NewJob,
        holder: str,
        fresh: dict[str, NewJob],
        replacements: dict[str, tuple[str, bytes]],
    ) -> Enqueued:
        if job.options.on_duplicate == "existing":
            return Enqueued(holder, "exists")
        if job.options.on_duplicate == "reject":
            return Enqueued(holder, "taken")
        if holder not in fresh:
            entry = self.state.jobs.get(holder)
            if entry is None or entry.get_state(self.now) not in WAITING:
                return Enqueued(holder, "taken")
        replacements[job.id] = (holder, job.compute_digest())
        return Enqueued(holder, "replaced")

    def _find_replacement(self, job_id: str) -> tuple[str, bytes] | None:
        """Return the id of the job that an earlier enqueue of `job_id` replaced, and the digest of
        its body, or None.
        """
        entry = self.state.replacements.get(job_id)
        if entry is None or entry.valid_until <= self.now:
            return None
        return entry.job_id, entry.digest

    def _insert(self, job: NewJob) -> None:
        state = self.state
        state.seq += 1
        entry = JobEntry(
            job.id,
            job.name,
            job.queue,
            job.payload,
            job.priority,
            job.options,
            state.seq,
            due=compute_due(job, self.now),
            created_at=self.now,
        )
        state.jobs[job.id] = state.jobs_by_seq[entry.seq] = entry
        if job.options.unique_key is not None:
            self.take_key(entry)
        state.add_waiting(entry, self.now)
        self.names_to_notify.add(job.queue)

    def _replace(self, entry: JobEntry, job: NewJob) -> None:
        """Give a waiting job the payload, options, queue, priority and due time of a new one."""
        max_wait = job.options.max_wait
        due = limit_replaced_due(
            compute_due(job, self.now),
            now=self.now,
            first=entry.created_at,
            max_wait=None if max_wait is None else to_micros(max_wait),
        )
        self.pass_turns(entry)
        entry.digest = entry.get_body_digest()
        entry.due = max(due, entry.due) if entry.failures else due
        entry.payload, entry.options = job.payload, job.options
        entry.queue, entry.priority = job.queue, job.priority
        self.take_key(entry)
        self.state.add_waiting(entry, self.now)
        self.state.replacements[job.id] = ReplacementEntry(
            entry.id, job.compute_digest(), self.now + to_micros(REPEAT_WINDOW)
        )
        self.names_to_notify.add(job.queue)

    # Unique keys

    def find_key_holder(self, name: str, key: str) -> str | None:
        """Return the id of the job that holds a unique key now, or None."""
        lease = self.state.unique_keys.get((name, key))
        if lease is None or (lease.valid_until is not None and lease.valid_until <= self.now):
            return None
        if lease.states is not None:
            entry = self.state.jobs.get(lease.job_id)
            if entry is None or entry.get_state(self.now) not in lease.states:
                return None
        return lease.job_id

    def take_key(self, entry: JobEntry) -> None:
        """Assign its unique key to a job; do nothing for a job without a key."""
        options = entry.options
        if options.unique_key is not None:
            span = options.unique_for
            until = None if span is None else self.now + to_micros(span)
            self.state.unique_keys[entry.name, options.unique_key] = UniqueKeyEntry(
                entry.id, until, options.unique_while
            )

    def release_key(self, entry: JobEntry, key: str) -> None:
        """Release the unique key of a finished job, unless the key is held until a fixed time."""
        lease = self.state.unique_keys.get((entry.name, key))
        if lease is not None and lease.job_id == entry.id and lease.valid_until is None:
            del self.state.unique_keys[entry.name, key]
            self.names_to_notify.add(entry.queue)

    # Settle

    def settle(self, session: SessionEntry, settlement: Settlement) -> Settled:  # noqa: C901
        """Apply one settlement if its token matches the lease.

        Otherwise return `ALREADY` if this token settled the job last, else `STALE`.
        """
        entry = self.state.jobs.get(settlement.lease.job_id)
        if entry is None:
            return Settled.STALE
        lease = entry.leased
        if lease is None or lease.session is not session or lease.token != settlement.lease.token:
            same = entry.last_settled_token == settlement.lease.token
            return Settled.ALREADY if same else Settled.STALE
        if lease.charge is not None and not isinstance(settlement, Progressed | Spent):
            self.charge_run_time(entry, lease, lease.charge, settlement)
        match settlement:
            case Completed():
                self.end_lease(entry, settled=lease.token)
                self.finish(
                    entry,
                    State.COMPLETED,
                    session=session,
                    result=settlement.result,
                    keep_payload=settlement.keep_payload,
                )
            case Retried():
                self.add_error(entry, settlement.error)
                entry.failures += 1
                self.requeue_or_cancel(entry, lease, delay=settlement.delay, settled=lease.token)
            case Failed():
                self.add_error(entry, settlement.error)
                entry.failures += 1
                self.end_lease(entry, settled=lease.token)
                self.finish(entry, State.FAILED, session=session, reason=settlement.reason)
            case Released():
                if settlement.unstarted:
                    self.give_units_back(entry, lease)
                self.requeue_or_cancel(entry, lease, delay=settlement.delay, settled=lease.token)
            case RateLimited():
                delay = self.block_rates(entry, settlement.retry_after)
                self.requeue_or_cancel(entry, lease, delay=delay, settled=lease.token)
            case Cancelled():
                self.end_lease(entry, settled=lease.token)
                self.finish(entry, State.CANCELLED, session=session, reason=settlement.reason)
            case Progressed() | Spent():
                self.note_report(entry, settlement)
        return Settled.DONE

    def note_report(self, entry: JobEntry, report: Progressed | Spent) -> None:
        """Store what an attempt that continues reports."""
        if isinstance(report, Progressed):
            entry.progress = Progress(report.fraction, report.message)
            return
        if entry.name in self.state.rates:
            self.state.rates[entry.name].spend(self.now, report.units)
        for key, limit in self.state.iter_keys(entry):
            if limit.rate is not None:
                use = self.state.limit_keys[key]
                use.spent_until = limit.rate.spend(use.spent_until, self.now, report.units)

    def requeue_or_cancel(
        self,
        entry: JobEntry,
        lease: LeaseEntry,
        *,
        delay: float | None = None,
        settled: Token | None = None,
    ) -> bool:
        """End the lease and make the job wait again, or cancel it if a cancel was requested.

        It is due in `delay` seconds; without a delay it keeps its position. Returns False if it
        was cancelled.
        """
        self.end_lease(entry, settled=settled)
        if lease.cancel_requested:
            self.finish(entry, State.CANCELLED, session=lease.session)
            return False
        if delay is not None:
            entry.due = self.now + max(0, to_micros(delay))
        self.state.add_waiting(entry, self.now)
        self.names_to_notify.add(entry.queue)
        return True

    def block_rates(self, entry: JobEntry, seconds: float) -> float | None:
        """Let the rates of a job's keys, or that of its name, allow no job for some seconds.

        Returns the delay of the job itself: None, its old place, if there is a rate.
        """
        delay = max(0, to_micros(seconds))
        keyed = False
        for key, limit in self.state.iter_keys(entry):
            if limit.rate is not None:
                use = self.state.limit_keys[key]
                use.spent_until = limit.rate.block(use.spent_until, self.now, delay)
                keyed = True
        rate = self.state.rates.get(entry.name)
        if rate is None:
            return None if keyed else seconds
        if not keyed:
            rate.spent_until = rate.limit.block(rate.spent_until, self.now, delay)
        return None

    def give_units_back(self, entry: JobEntry, lease: LeaseEntry) -> None:
        """Give back what a job that has not started took from the rate limit of its name."""
        rate = self.state.rates.get(entry.name)
        if rate is not None:
            rate.spent_until = rate.limit.refund(rate.spent_until, self.now, lease.started_at)
        for key, limit in self.state.iter_keys(entry):
            keyed_rate = make_job_rate(entry, limit)
            if keyed_rate is not None and key in lease.counted_keys:
                use = self.state.limit_keys[key]
                use.spent_until = keyed_rate.refund(use.spent_until, self.now, lease.started_at)

    def charge_run_time(
        self, entry: JobEntry, lease: LeaseEntry, charge: int, settlement: Settlement
    ) -> None:
        """Charge the tenant of a job the time since it was reserved, if its handler was called."""
        if not (isinstance(settlement, Released) and settlement.unstarted):
            self.state.turns.settle(entry, charge, self.now - lease.started_at)
            lease.charge = None

    def end_lease(self, entry: JobEntry, *, settled: Token | None = None) -> None:
        """Remove the lease of a job and decrement the count of its concurrency limit."""
        lease = entry.leased
        if lease is None:
            return
        entry.leased = None
        entry.started_at = lease.started_at
        if settled is not None:
            entry.last_settled_token = settled
        lease.session.leased_jobs.pop(entry.seq, None)
        if lease.counts_in_limit:
            self.state.limits[entry.name].in_use -= 1
            self.names_to_notify.add(entry.queue)
        if lease.charge is not None:
            self.state.turns.settle(entry, lease.charge, None)
        for key in lease.counted_keys:
            self.release_limit_key(key)

    def release_limit_key(self, key: LimitKey) -> None:
        """Count one job less for a key of a limit, and let the next parked jobs have their turn."""
        use = self.state.limit_keys[key]
        use.in_use -= 1
        for lane in list(use.parked):
            if self.state.unpark(key, lane):
                self.names_to_notify.add(lane[0])

    def finish(
        self,
        entry: JobEntry,
        state: State,
        *,
        session: SessionEntry | None = None,
        reason: str | None = None,
        result: bytes | None = None,
        keep_payload: bool = False,
    ) -> None:
        """Put the job into a finished state and release its key.

        `session` is the one whose attempt ended the job; None if it was waiting.
        A failed job keeps its payload.
        """
        entry.final_state = state
        entry.ended_by = session
        entry.finished_at = self.now
        entry.reason = reason
        entry.result = result
        entry.position = None
        if entry.leased is None and session is None:
            self.pass_turns(entry)
        if state is not State.FAILED and not keep_payload:
            entry.digest = entry.get_body_digest()
            entry.payload = None
        if entry.options.unique_key is not None:
            self.release_key(entry, entry.options.unique_key)

    def pass_turns(self, entry: JobEntry) -> None:
        """Let jobs that are parked for the keys of a cancelled or replaced job have its turn.

        It may have been the one that returned to its lane when its key had room.
        """
        lane = (entry.queue, entry.name)
        if entry.parked_for is None:
            for key, _ in self.state.iter_keys(entry):
                if self.state.unpark(key, lane):
                    self.names_to_notify.add(entry.queue)
        entry.parked_for = None

    def add_error(self, entry: JobEntry, error: AttemptError) -> None:
        """Append an error to the history, with the time of this step."""
        entry.history = (*entry.history, msgspec.structs.replace(error, at=self.now / MICRO))


def check_job_times(jobs: Sequence[NewJob]) -> None:
    """Raise `Unstorable` if a job has an invalid time. Call it before any job is stored."""
    for job in jobs:
        check_time(job.after if job.at is None else job.at)
        if job.options.unique_for is not None:
            check_time(job.options.unique_for)
        if job.options.max_wait is not None:
            check_time(job.options.max_wait)


def check_settlement_delays(settlements: Sequence[Settlement]) -> None:
    """Raise `Unstorable` if a delay is invalid. Call it before any settlement is applied."""
    for settlement in settlements:
        if isinstance(settlement, Retried | Released) and settlement.delay is not None:
            check_time(settlement.delay)
        elif isinstance(settlement, RateLimited):
            check_time(settlement.retry_after)


def _mark_refused(job: NewJob, result: Enqueued) -> Enqueued:
    return result if result.outcome in _REFUSED else Enqueued(job.id, "refused")
