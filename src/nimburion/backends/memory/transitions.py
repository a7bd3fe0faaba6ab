"""The moves of one job from one state to another; each with all that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.memory.state import (
    MICRO,
    Entry,
    Held,
    Key,
    Shelf,
    Tenant,
    check_time,
    micros,
)
from nimburion.core.job import AttemptError, Enqueued, NewJob, Progress, State
from nimburion.core.lease import Token
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settled,
    Settlement,
)


class Step:
    """One atomic step on the shelf, at one time; collects the queues to ring afterwards."""

    __slots__ = ("now", "rung", "shelf")

    def __init__(self, shelf: Shelf, now: int) -> None:
        self.shelf: Shelf = shelf
        self.now: int = now
        self.rung: set[str] = set()

    # The way in

    def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`: first decide about all, then store all that are new."""
        check_jobs(jobs)
        fresh: dict[str, NewJob] = {}
        keys: dict[tuple[str, str], str] = {}
        results = [self._decide(job, fresh, keys) for job in jobs]
        if any(result.outcome in {"conflict", "taken"} for result in results):
            return [_refused(job, result) for job, result in zip(jobs, results, strict=True)]
        for job in fresh.values():
            self._store(job)
        return results

    def _decide(
        self, job: NewJob, fresh: dict[str, NewJob], keys: dict[tuple[str, str], str]
    ) -> Enqueued:
        kept = self.shelf.jobs.get(job.id)
        if kept is not None or job.id in fresh:
            known = fresh[job.id].digest() if kept is None else kept.body_digest()
            return Enqueued(job.id, "exists" if known == job.digest() else "conflict")
        key = job.options.unique_key
        if key is not None:
            holder = keys.get((job.name, key)) or self.holder(job.name, key)
            if holder is not None:
                lenient = job.options.on_duplicate == "existing"
                return Enqueued(holder, "exists" if lenient else "taken")
            keys[job.name, key] = job.id
        fresh[job.id] = job
        return Enqueued(job.id, "created")

    def _store(self, job: NewJob) -> None:
        shelf = self.shelf
        shelf.seq += 1
        entry = Entry(job, shelf.seq, self.now)
        shelf.jobs[job.id] = shelf.by_seq[entry.seq] = entry
        if job.options.unique_key is not None:
            self.take_key(entry)
        shelf.stand(entry, self.now)
        self.rung.add(job.queue)

    # Unique keys

    def holder(self, name: str, key: str) -> str | None:
        """The id of the job that holds a unique key now."""
        held = self.shelf.keys.get((name, key))
        if held is None or (held.until is not None and held.until <= self.now):
            return None
        return held.job_id

    def take_key(self, entry: Entry) -> None:
        """Let an entry hold its unique key."""
        key, span = entry.options.unique_key, entry.options.unique_for
        if key is not None:
            until = None if span is None else self.now + micros(span)
            self.shelf.keys[entry.name, key] = Key(entry.id, until)

    def free_key(self, entry: Entry) -> None:
        """Give back the key of a job that has ended, unless it is held for a stated time."""
        key = entry.options.unique_key
        if key is None:
            return
        held = self.shelf.keys.get((entry.name, key))
        if held is not None and held.job_id == entry.id and held.until is None:
            del self.shelf.keys[entry.name, key]
            self.rung.add(entry.queue)

    # Out of a worker's hands

    def settle(self, tenant: Tenant, one: Settlement) -> Settled:
        """Apply one settlement, if its whole token holds."""
        entry = self.shelf.jobs.get(one.lease.job_id)
        if entry is None:
            return Settled.STALE
        held = entry.held
        if held is None or held.session is not tenant or held.token != one.lease.token:
            same = entry.settled == one.lease.token
            return Settled.ALREADY if same else Settled.STALE
        match one:
            case Completed():
                self.end_lease(entry, settled=held.token)
                self.finish(entry, State.COMPLETED, result=one.result)
            case Retried():
                self.note(entry, one.error)
                entry.failures += 1
                self.wait_or_cancel(entry, held, delay=one.delay, settled=held.token)
            case Failed():
                self.note(entry, one.error)
                entry.failures += 1
                self.end_lease(entry, settled=held.token)
                self.finish(entry, State.FAILED, reason=one.reason)
            case Released():
                self.wait_or_cancel(entry, held, delay=one.delay, settled=held.token)
            case Cancelled():
                self.end_lease(entry, settled=held.token)
                self.finish(entry, State.CANCELLED, reason=one.reason)
            case Progressed():
                entry.progress = Progress(one.fraction, one.message)
        return Settled.DONE

    def wait_or_cancel(
        self,
        entry: Entry,
        held: Held,
        *,
        delay: float | None = None,
        settled: Token | None = None,
    ) -> bool:
        """Let the job wait again: `delay` seconds from now, or in its old place. Where a cancel
        was asked for it ends instead: False."""
        self.end_lease(entry, settled=settled)
        if held.cancel:
            self.finish(entry, State.CANCELLED)
            return False
        if delay is not None:
            entry.due = self.now + max(0, micros(delay))
        self.shelf.stand(entry, self.now)
        self.rung.add(entry.queue)
        return True

    def end_lease(self, entry: Entry, *, settled: Token | None = None) -> None:
        """Take the job out of its session's hands, and give back its place under a limit."""
        held = entry.held
        if held is None:
            return
        entry.held = None
        entry.started_at = held.at
        if settled is not None:
            entry.settled = settled
        held.session.held.pop(entry.seq, None)
        if held.gated:
            self.shelf.gates[entry.name].held -= 1
            self.rung.add(entry.queue)

    def finish(
        self,
        entry: Entry,
        state: State,
        *,
        reason: str | None = None,
        result: bytes | None = None,
    ) -> None:
        """End the job. Only a dead letter keeps its payload."""
        entry.state = state
        entry.finished_at = self.now
        entry.reason = reason
        entry.result = result
        entry.place = None
        if state is not State.FAILED:
            entry.digest = entry.body_digest()
            entry.payload = None
        self.free_key(entry)

    def note(self, entry: Entry, error: AttemptError) -> None:
        """Add to the history, with the store's time."""
        entry.history = (*entry.history, msgspec.structs.replace(error, at=self.now / MICRO))


def check_jobs(jobs: Sequence[NewJob]) -> None:
    """Refuse jobs whose times are none, before one of the call is stored."""
    for job in jobs:
        check_time(job.after if job.at is None else job.at)
        if job.options.unique_for is not None:
            check_time(job.options.unique_for)


def check_settlements(settlements: Sequence[Settlement]) -> None:
    """Refuse settlements whose delays are none, before one of the call is applied."""
    for one in settlements:
        if isinstance(one, Retried | Released) and one.delay is not None:
            check_time(one.delay)


def _refused(job: NewJob, result: Enqueued) -> Enqueued:
    return result if result.outcome in {"conflict", "taken"} else Enqueued(job.id, "refused")
