"""The operations of sessions, operators and the scheduler, each one step on the shelf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from nimburion.backends.memory.reserve import Reserving, delivery_of, size_of
from nimburion.backends.memory.state import Entry, Limit, Shelf, Tenant, micros
from nimburion.backends.memory.transitions import Step, check_jobs, check_settlements
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.errors import JobNotFound, OutOfOrder, SessionLost
from nimburion.core.exchange import Reply, Want
from nimburion.core.job import FINISHED, AttemptError, NewJob, Reason, State
from nimburion.core.lease import SUSPECT_AFTER, Delivery, Lease
from nimburion.core.operations import Cancellation, Replayed, Rescued, Retention
from nimburion.core.queries import JobFilter, parse_cursor
from nimburion.core.schedules import Fired, Overlap
from nimburion.core.session import Gate, Orders, Session
from nimburion.core.settlement import Settled, Settlement

_PROMOTED = 10_000
_TOMBSTONE = micros(86_400)


# Sessions


def alive(shelf: Shelf, session_id: str) -> Tenant:
    """The session, if it may go on."""
    tenant = shelf.sessions.get(session_id)
    if tenant is None or tenant.dead or tenant.left:
        raise SessionLost(session_id)
    return tenant


def open_session(step: Step, session: Session, monotonic: float) -> None:
    """See `Backend.open_session`."""
    if session.id in step.shelf.sessions:
        beat(step, session.id, monotonic)
        return
    step.shelf.sessions[session.id] = Tenant(session, step.now, monotonic + session.ttl)
    for name in session.names:
        set_gate(step, name, session.limits.get(name))


def set_gate(step: Step, name: str, limit: int | None) -> None:
    """The newest session's word about a name. A new gate counts what is processing now."""
    gates = step.shelf.gates
    running = [
        entry.held
        for tenant in step.shelf.sessions.values()
        for entry in tenant.held.values()
        if entry.name == name and entry.held is not None
    ]
    if limit is None:
        gates.pop(name, None)
    elif name in gates:
        gates[name].limit = limit
    else:
        gates[name] = Limit(limit, len(running))
    for held in running:
        held.gated = limit is not None
    step.rung.add(EVERY_QUEUE)


def beat(step: Step, session_id: str, monotonic: float) -> Orders:
    """See `Backend.beat`."""
    shelf = step.shelf
    tenant = alive(shelf, session_id)
    tenant.expires = monotonic + tenant.said.ttl
    return Orders(
        cancel=[
            entry.lease(entry.held.token)
            for entry in tenant.held.values()
            if entry.held is not None and entry.held.cancel
        ],
        paused=sorted(shelf.paused),
        gates={
            name: Gate(shelf.gates[name].limit, shelf.gates[name].held)
            for name in tenant.said.names
            if name in shelf.gates
        },
    )


def release(step: Step, session_id: str, leases: Sequence[Lease], nonce: bytes | None) -> None:
    """See `Backend.release`."""
    try:
        tenant = alive(step.shelf, session_id)
    except SessionLost:
        return
    wanted = {(lease.job_id, lease.token) for lease in leases}
    for entry in list(tenant.held.values()):
        held = entry.held
        if held is not None and (
            (entry.id, held.token) in wanted or (nonce is not None and held.token.nonce == nonce)
        ):
            step.wait_or_cancel(entry, held, settled=held.token)


def close_session(step: Step, session_id: str, running: Sequence[Lease]) -> None:
    """See `Backend.close_session`."""
    tenant = step.shelf.sessions.get(session_id)
    if tenant is None or tenant.dead:
        return
    kept = {(lease.job_id, lease.token) for lease in running}
    for entry in list(tenant.held.values()):
        held = entry.held
        if held is not None and (entry.id, held.token) not in kept:
            step.wait_or_cancel(entry, held)
    if tenant.held:
        tenant.left = True
    else:
        tenant.died_at = step.now


def rescue(step: Step, limit: int, max_lost: int, monotonic: float) -> Rescued:
    """See `Backend.rescue`."""
    for tenant in step.shelf.sessions.values():
        if not tenant.dead and tenant.expires <= monotonic:
            tenant.died_at = step.now
    orphans = list(_orphans(step.shelf))
    rescued = Rescued([], [], [], more=len(orphans) > limit)
    for entry, beside_others in orphans[:limit]:
        take_back(step, entry, rescued, max_lost, beside_others=beside_others)
    return rescued


def _orphans(shelf: Shelf) -> Iterator[tuple[Entry, bool]]:
    """Jobs of dead sessions, each with whether its session holds others too."""
    for tenant in shelf.sessions.values():
        if tenant.dead:
            for entry in tenant.held.values():
                yield entry, len(tenant.held) > 1


def take_back(
    step: Step, entry: Entry, rescued: Rescued, max_lost: int, *, beside_others: bool
) -> None:
    """Rescue one job. Its session's word of leaving spares it the loss; so does it a suspect that
    was held beside other jobs, as that had not begun."""
    held = entry.held
    if held is None:
        return
    not_begun = beside_others and entry.lost >= SUSPECT_AFTER
    if not (held.session.left or not_begun):
        attempt = entry.failures + entry.lost + 1
        step.note(entry, AttemptError(attempt, "lost", "WorkerLost", "its worker vanished"))
        entry.lost += 1
        if entry.lost >= max_lost and not held.cancel:
            step.end_lease(entry)
            step.finish(entry, State.FAILED, reason=Reason.LOST)
            rescued.failed.append(entry.id)
            return
    line = rescued.returned if step.wait_or_cancel(entry, held) else rescued.cancelled
    line.append(entry.id)


# The exchange


def exchange(
    step: Step, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
) -> Reply:
    """See `Backend.exchange`."""
    tenant = alive(step.shelf, session_id)
    if number == tenant.number and number > 0:
        return repeated(step, tenant, want)
    if number != tenant.number + 1:
        raise OutOfOrder(f"exchange {number} after {tenant.number} of session {session_id}")
    check_settlements(settlements)
    results: list[Settled] = [step.settle(tenant, one) for one in settlements]
    step.shelf.promote(step.now, _PROMOTED)
    reserving = Reserving(step.shelf, want, step.now)
    deliveries = reserving.serve(tenant, number) if want.total > 0 else []
    tenant.number, tenant.results = number, results
    return Reply(results, deliveries, reserving.waiting(), next_due(step.shelf), step.now / 1e6)


def repeated(step: Step, tenant: Tenant, want: Want) -> Reply:
    """The same answer again; what does not fit it any more goes back to the line."""
    deliveries: list[Delivery] = []
    room = want.max_bytes
    for entry in list(tenant.held.values()):
        held = entry.held
        if held is None or held.number != tenant.number:
            continue
        room -= size_of(entry)
        if room < 0 and deliveries:
            step.wait_or_cancel(entry, held)
        else:
            deliveries.append(delivery_of(entry, held.token))
    waiting = Reserving(step.shelf, want, step.now).waiting()
    return Reply(list(tenant.results), deliveries, waiting, next_due(step.shelf), step.now / 1e6)


def next_due(shelf: Shelf) -> float | None:
    """The earliest due time still set aside, in seconds."""
    entry = shelf.next_scheduled()
    return None if entry is None else entry.due / 1e6


# Operators


def cancel(step: Step, job_id: str) -> Cancellation:
    """See `Backend.cancel`."""
    entry = step.shelf.jobs.get(job_id)
    if entry is None:
        raise JobNotFound(job_id)
    if entry.state is not None:
        return Cancellation.FINISHED
    if entry.held is not None:
        entry.held.cancel = True
        return Cancellation.REQUESTED
    step.finish(entry, State.CANCELLED)
    return Cancellation.CANCELLED


def matching(step: Step, which: JobFilter, after: str | None) -> Iterator[Entry]:
    """What a filter means, newest enqueue first, from a page's `next` on."""
    last = parse_cursor(after)
    for seq, entry in reversed(step.shelf.by_seq.items()):
        if (last is None or seq < last) and _matches(entry, which, step.now):
            yield entry


def _matches(entry: Entry, which: JobFilter, now: int) -> bool:
    return (
        (which.ids is None or entry.id in which.ids)
        and (which.states is None or entry.state_at(now) in which.states)
        and which.queue in (None, entry.queue)
        and which.name in (None, entry.name)
        and which.reason in (None, entry.reason)
    )


def page_of(entries: Iterator[Entry], limit: int) -> tuple[list[Entry], str | None]:
    """The first `limit` of them, and where the next page begins."""
    page: list[Entry] = []
    for entry in entries:
        if len(page) == limit:
            return page, str(page[-1].seq) if page else None
        page.append(entry)
    return page, None


def replay(step: Step, which: JobFilter, limit: int, after: str | None) -> Replayed:
    """See `Backend.replay`."""
    failed = (e for e in matching(step, which, after) if e.state is State.FAILED)
    page, following = page_of(failed, limit)
    replayed = Replayed([], [], following)
    for entry in page:
        key = entry.options.unique_key
        holder = None if key is None else step.holder(entry.name, key)
        if holder not in (None, entry.id):
            replayed.held.append(entry.id)
            continue
        if holder is None:
            step.take_key(entry)
        begin_anew(step, entry)
        replayed.ids.append(entry.id)
    return replayed


def begin_anew(step: Step, entry: Entry) -> None:
    """Let a dead letter wait again: due now, counts begun anew, history kept."""
    entry.state, entry.finished_at, entry.reason = None, None, None
    entry.failures = entry.lost = 0
    entry.due = step.now
    step.shelf.stand(entry, step.now)
    step.rung.add(entry.queue)


def delete(step: Step, which: JobFilter, limit: int) -> list[str]:
    """See `Backend.delete`."""
    finished = (e for e in matching(step, which, None) if e.state in FINISHED)
    page, _ = page_of(finished, limit)
    for entry in page:
        step.shelf.forget(entry)
    return [entry.id for entry in page]


def prune(step: Step, keep: Retention, limit: int) -> int:
    """See `Backend.prune`."""
    shelf, left = step.shelf, limit
    forget_the_dead(shelf, step.now)
    for entry in [e for e in shelf.by_seq.values() if _outlived(e, keep, step.now)][:left]:
        shelf.forget(entry)
        left -= 1
    if keep.completed_max is not None:
        kept = [e for e in shelf.by_seq.values() if e.state in {State.COMPLETED, State.CANCELLED}]
        kept.sort(key=lambda e: (e.finished_at or 0, e.seq))
        for entry in kept[: min(left, max(0, len(kept) - keep.completed_max))]:
            shelf.forget(entry)
            left -= 1
    for entry in shelf.by_seq.values():
        if left and entry.result is not None and _older(entry, keep.results, step.now):
            entry.result = None
            left -= 1
    return limit - left


def forget_the_dead(shelf: Shelf, now: int) -> None:
    """Drop sessions that died a day ago, and keys that are held no longer."""
    for session_id, tenant in list(shelf.sessions.items()):
        if tenant.died_at is not None and not tenant.held and tenant.died_at < now - _TOMBSTONE:
            del shelf.sessions[session_id]
    for key, held in list(shelf.keys.items()):
        if held.until is not None and held.until <= now:
            del shelf.keys[key]


def _outlived(entry: Entry, keep: Retention, now: int) -> bool:
    if entry.state is None:
        return False
    return _older(entry, keep.failed if entry.state is State.FAILED else keep.completed, now)


def _older(entry: Entry, seconds: float | None, now: int) -> bool:
    if seconds is None or entry.finished_at is None:
        return False
    return entry.finished_at < now - micros(seconds)


# Schedules


def fire(  # noqa: PLR0917 - as the contract has it
    step: Step,
    name: str,
    expected_last: float | None,
    tick: float,
    job: NewJob,
    overlap: Overlap,
) -> Fired:
    """See `Backend.fire`."""
    check_jobs([job])
    schedule = step.shelf.schedules.get(name)
    if schedule is None:
        return Fired("missing")
    if schedule.paused:
        return Fired("paused")
    if schedule.last_tick != expected_last:
        return Fired("moved")
    stored: str | None = None
    if schedule.last_job is None or makes_way(step, schedule.last_job, overlap):
        (result,) = step.enqueue([job])
        stored = result.id if result.outcome in {"created", "exists"} else None
    step.shelf.schedules[name] = msgspec.structs.replace(
        schedule, last_tick=tick, last_job=stored or schedule.last_job
    )
    return Fired("skipped") if stored is None else Fired("fired", stored)


def makes_way(step: Step, last_job: str, overlap: Overlap) -> bool:
    """Whether the schedule's previous job lets the next one in."""
    entry = step.shelf.jobs.get(last_job)
    if entry is None or entry.state is not None or overlap == "allow":
        return True
    if overlap == "cancel_previous":
        cancel(step, last_job)
        return True
    started = entry.held is not None or entry.failures > 0
    return overlap == "queue_one" and started
