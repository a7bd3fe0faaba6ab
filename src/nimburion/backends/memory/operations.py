"""The operations of sessions, operators and the scheduler. Each runs in one `AtomicStep`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec

from nimburion.backends.memory import records
from nimburion.backends.memory.reserve import Reservation, make_delivery, measure_size
from nimburion.backends.memory.state import (
    MICRO,
    JobEntry,
    MemoryState,
    SessionEntry,
    to_micros,
)
from nimburion.backends.memory.transitions import (
    AtomicStep,
    check_job_times,
    check_settlement_delays,
)
from nimburion.backends.planning.settle import CANCELLED
from nimburion.backends.waiters import ALL_WORKERS, EVERY_QUEUE, make_session_name
from nimburion.core.backend import MAX_HOLDERS
from nimburion.core.bulk_operations import BulkAction, check_job_ids
from nimburion.core.diagnosis import failure_groups
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailedJob, FailureGroups
from nimburion.core.errors import JobNotFound, OutOfOrder, SessionLost
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.fairness import (
    MAX_WAITING_COUNTED,
    WEIGHT_UNITS,
    TenantTurn,
    TenantUse,
    TenantUses,
    to_weight_units,
)
from nimburion.core.job import (
    FAILED_ONLY,
    PROCESSING_ONLY,
    JobRecord,
    NewJob,
    State,
)
from nimburion.core.lease import Delivery, Lease
from nimburion.core.limits import (
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitKey,
    LimitRule,
    apply_changes,
    closes_lane,
    drop_lane_limits,
    get_limited_job,
    get_limited_queue,
    make_job_limit_name,
    summarize_limits,
)
from nimburion.core.metrics.statistics import (
    MERGE_AFTER,
    MERGED_SOURCE,
    STEPS,
    Statistics,
    add_statistics,
    check_interval,
)
from nimburion.core.operations import Cancellation, JobChanges, Retention
from nimburion.core.queries import JobFilter, Page, Pause, parse_cursor
from nimburion.core.records import NewRecord, RecordChange
from nimburion.core.schedules import Fired, Overlap, decode_schedule, encode_schedule
from nimburion.core.session import (
    ConcurrencyLimit,
    HeartbeatReply,
    Session,
    Vitals,
    WorkerCommand,
)
from nimburion.core.settlement import Settled, Settlement

_MAX_PROMOTED = 10_000
_ENDED_SESSION_RETENTION = to_micros(86_400)


# Sessions


def get_live_session(state: MemoryState, session_id: str) -> SessionEntry:
    """Return the session; raise `SessionLost` if it is unknown, ended or closing."""
    session = state.sessions.get(session_id)
    if session is None or session.is_ended or session.left:
        raise SessionLost(session_id)
    return session


def open_session(step: AtomicStep, session: Session, monotonic: float) -> None:
    """See `Consuming.open_session`."""
    if session.id in step.state.sessions:
        heartbeat(step, session.id, monotonic)
        return
    weights = {tenant: to_weight_units(weight) for tenant, weight in session.weights.items()}
    step.state.sessions[session.id] = SessionEntry(session, step.now, monotonic + session.ttl)
    for name in session.names:
        step.state.declared_limits[name] = session.limits.get(name, {})
        apply_limits(step, name)
    for tenant, units in weights.items():
        _put_weight(step, tenant, units)


def apply_limits(step: AtomicStep, name: str) -> None:
    """Let what is declared for a job name apply, with the changes of operators."""
    declared = step.state.declared_limits.get(name, {})
    set_limits(step, name, apply_changes(name, declared, step.state.limit_changes))


def set_limits(step: AtomicStep, name: str, rules: dict[str, LimitRule]) -> None:
    """Set the limits of a job name. If those change for which jobs are parked, its parked jobs are
    considered again.
    """
    state = step.state
    old_rules = state.limits.get(name, {})
    if old_rules == rules:
        return
    step.names_to_notify[EVERY_QUEUE] += 1
    changes_parked_jobs = drop_lane_limits(old_rules) != drop_lane_limits(rules)
    state.limits[name] = rules
    if not rules:
        del state.limits[name]
    state.names_with_keys.discard(name)
    if drop_lane_limits(rules):
        state.names_with_keys.add(name)
    for limit in filter(closes_lane, old_rules.keys() | rules.keys()):
        count_running_jobs(state, name, limit)
    for key, use in list(state.limit_uses.items()):
        old, new = old_rules.get(key[0]), rules.get(key[0])
        own = state.key_changes.get(key)
        if old is not None and new is not None and (own is None or own.rate is None):
            use.carry_over(old.rate, new.rate, step.now)
        for lane in [lane for lane in use.parked if lane[1] == name and changes_parked_jobs]:
            count = len(use.parked[lane]) if new is None else new.count_at_once()
            state.let_return(key, lane, count)
    state.unpark_changed()


def count_running_jobs(state: MemoryState, name: str, limit: str) -> None:
    """Count the jobs of a name that are processing now in its limit, if there is one.

    The units that they have taken are forgotten with the rate.
    """
    key, rule = (limit, ""), state.limits.get(name, {}).get(limit)
    use = state.limit_uses[key]
    use.in_use = 0
    for session in state.sessions.values():
        for entry in session.leased_jobs.values():
            lease = entry.leased
            if entry.name == name and lease is not None:
                others = tuple(one for one in lease.counted_keys if one != key)
                lease.counted_keys = others if rule is None else (*others, key)
                use.in_use += rule is not None
    if rule is None or rule.rate is None:
        use.spent_until = 0


def change_limit(step: AtomicStep, change: LimitChange) -> None:
    """See `Maintaining.change_limit`."""
    state = step.state
    change = msgspec.structs.replace(change, at=step.now / MICRO)
    if change.key is None:
        old = state.limit_changes.get(change.name)
        state.limit_changes[change.name] = change if old is None else old.merge(change)
        _apply_by_limit(step, change.name)
    else:
        key = (change.name, change.key)
        old = state.key_changes.get(key)
        _change_key(step, key, change if old is None else old.merge(change))


def reset_limit(step: AtomicStep, name: str, key: str | None) -> bool:
    """See `Maintaining.reset_limit`."""
    if key is not None:
        existed = (name, key) in step.state.key_changes
        _change_key(step, (name, key), None)
        return existed
    existed = step.state.limit_changes.pop(name, None) is not None
    _apply_by_limit(step, name)
    return existed


def _apply_by_limit(step: AtomicStep, limit: str) -> None:
    """Apply the limits of all job names that have a limit."""
    state = step.state
    names = {name for name, rules in state.declared_limits.items() if limit in rules}
    job = get_limited_job(limit)
    if job is not None:
        names.add(job)
    if get_limited_queue(limit) is not None:
        names |= {name for name, rules in state.declared_limits.items() if rules}
        names |= state.limits.keys()
        names.update(*(one.session.names for one in state.sessions.values() if not one.is_ended))
    for name in sorted(names):
        apply_limits(step, name)
    step.names_to_notify[EVERY_QUEUE] += 1


def _change_key(step: AtomicStep, key: LimitKey, change: LimitChange | None) -> None:
    """Change one key of a limit, and consider its parked jobs again."""
    state, use = step.state, step.state.limit_uses[key]
    old = state.key_changes.pop(key, None)
    if change is not None:
        state.key_changes[key] = change
    count = 1
    for rules in state.limits.values():
        if key[0] in rules:
            before, after = (rules[key[0]].apply(one) for one in (old, change))
            use.carry_over(before.rate, after.rate, step.now)
            count = max(count, after.count_at_once())
    for lane in list(use.parked):
        state.let_return(key, lane, count)
    state.unpark_changed()
    step.names_to_notify[EVERY_QUEUE] += 1


def heartbeat(
    step: AtomicStep, session_id: str, monotonic: float, vitals: Vitals | None = None
) -> HeartbeatReply:
    """See `Consuming.heartbeat`."""
    state = step.state
    session = get_live_session(state, session_id)
    session.expires_at = monotonic + session.session.ttl
    session.vitals = vitals or session.vitals
    return HeartbeatReply(
        cancel=[
            entry.make_lease(entry.leased.token)
            for entry in session.leased_jobs.values()
            if entry.leased is not None and entry.leased.cancel_requested
        ],
        paused=state.list_paused(step.now),
        limits={
            name: ConcurrencyLimit(limit.concurrency, use.in_use)
            for name in session.session.names
            for limit, use in state.list_lane_limits(name)
            if limit.concurrency is not None and limit.key[0] == make_job_limit_name(name)
        },
        command=session.command,
    )


def send_command(step: AtomicStep, session_id: str, command: WorkerCommand | None) -> bool:
    """See `Maintaining.send_command`."""
    session = step.state.sessions.get(session_id)
    if session is None or session.is_ended:
        return False
    session.command = command
    step.names_to_notify[make_session_name(session_id)] += 1
    return True


def release(
    step: AtomicStep, session_id: str, leases: Sequence[Lease], nonce: bytes | None
) -> None:
    """See `Consuming.release`."""
    try:
        session = get_live_session(step.state, session_id)
    except SessionLost:
        return
    wanted = {(lease.job_id, lease.token) for lease in leases}
    for entry in list(session.leased_jobs.values()):
        held = entry.leased
        if held is not None and (
            (entry.id, held.token) in wanted or (nonce is not None and held.token.nonce == nonce)
        ):
            step.release(entry, settles=True, unstarted=True)


def close_session(step: AtomicStep, session_id: str, running: Sequence[Lease]) -> None:
    """See `Consuming.close_session`."""
    session = step.state.sessions.get(session_id)
    if session is None or session.is_ended:
        return
    existing = {(lease.job_id, lease.token) for lease in running}
    for entry in list(session.leased_jobs.values()):
        held = entry.leased
        if held is not None and (entry.id, held.token) not in existing:
            step.release(entry, settles=False, unstarted=False)
    if session.leased_jobs:
        session.left = True
    else:
        session.ended_at = step.now


# The exchange


def run_exchange(
    step: AtomicStep,
    session_id: str,
    number: int,
    settlements: Sequence[Settlement],
    request: ReserveRequest,
) -> Reply:
    """See `Consuming.exchange`."""
    session = get_live_session(step.state, session_id)
    if number == session.last_exchange_number and number > 0:
        return repeat_reply(step, session, request)
    if number != session.last_exchange_number + 1:
        raise OutOfOrder(
            f"exchange {number} after {session.last_exchange_number} of session {session_id}"
        )
    check_settlement_delays(settlements)
    step.state.follow_clock(step.now)
    results: list[Settled] = [step.settle(session, settlement) for settlement in settlements]
    step.state.promote(step.now, _MAX_PROMOTED)
    for queue in step.state.unpark_open(step.now):
        step.names_to_notify[queue] += 1
    step.state.unpark_changed()
    reserving = Reservation(step.state, request, step.now)
    deliveries = reserving.lease_jobs(session, number) if request.total > 0 else []
    session.last_exchange_number, session.last_results = number, results
    return Reply(
        results,
        deliveries,
        reserving.find_waiting_lanes(),
        find_next_time(step.state, reserving),
        step.now / 1e6,
    )


def repeat_reply(step: AtomicStep, session: SessionEntry, request: ReserveRequest) -> Reply:
    """Build the reply of the last exchange again. Jobs that no longer fit are requeued."""
    deliveries: list[Delivery] = []
    bytes_left = request.max_bytes
    for entry in list(session.leased_jobs.values()):
        lease = entry.leased
        if lease is None or lease.exchange_number != session.last_exchange_number:
            continue
        bytes_left -= measure_size(entry)
        if bytes_left < 0 and deliveries:
            step.release(entry, settles=False, unstarted=True)
        else:
            deliveries.append(make_delivery(entry, lease.token))
    lanes = Reservation(step.state, request, step.now)
    return Reply(
        list(session.last_results),
        deliveries,
        lanes.find_waiting_lanes(),
        find_next_time(step.state, lanes),
        step.now / 1e6,
    )


def find_next_time(state: MemoryState, lanes: Reservation) -> float | None:
    """Return when the next job is due, or a rate limit allows one of these lanes; None: never."""
    openings = (lanes.find_next_opening(), state.find_next_key_opening())
    times = [opening / 1e6 for opening in openings if opening is not None]
    due = find_next_due(state)
    if due is not None:
        times.append(due)
    return min(times, default=None)


def find_next_due(state: MemoryState) -> float | None:
    """Return the earliest due time of the scheduled jobs, in seconds since 1970, or None."""
    entry = state.peek_scheduled()
    return None if entry is None else entry.due / 1e6


# Operators


def cancel(step: AtomicStep, job_id: str) -> Cancellation:
    """See `Producing.cancel`."""
    entry = step.state.jobs.get(job_id)
    if entry is None:
        raise JobNotFound(job_id)
    if entry.final_state is not None:
        return Cancellation.FINISHED
    if entry.leased is not None:
        entry.leased.cancel_requested = True
        step.names_to_notify[make_session_name(entry.leased.session.session.id)] += 1
        return Cancellation.REQUESTED
    step.apply_effect(entry, CANCELLED)
    return Cancellation.CANCELLED


def pause_queue(step: AtomicStep, queue: str, new: Pause | None) -> None:
    """Pause the queue, or resume it if `new` is None."""
    state = step.state
    if new is None:
        state.pauses.pop(queue, None)
        step.names_to_notify[queue] += ALL_WORKERS
        return
    old = state.find_pause(queue, step.now)
    since = step.now / MICRO if old is None else old.since
    state.pauses[queue] = msgspec.structs.replace(new, since=since)


def _matches(entry: JobEntry, which: JobFilter, now: int) -> bool:
    return (
        (which.ids is None or entry.id in which.ids)
        and (which.states is None or entry.get_state(now) in which.states)
        and which.queue in (None, entry.queue)
        and which.name in (None, entry.name)
        and which.reason in (None, entry.reason)
        and (not which.needs_search or which.matches_search(entry.make_record(now, payloads=False)))
    )


def list_jobs(
    step: AtomicStep,
    which: JobFilter,
    limit: int,
    after: str | None,
    *,
    payloads: bool,
    budget: int,
) -> Page:
    """See `Inspecting.list_jobs`."""
    last = parse_cursor(after)
    page: list[JobRecord] = []
    examined = 0
    seq_examined: int | None = None
    for seq, entry in reversed(step.state.jobs_by_seq.items()):
        if (last is not None and seq >= last) or not _may_match(entry, which.states):
            continue
        matches = _matches(entry, which, step.now)
        if examined == budget or (matches and len(page) == limit):
            return Page(page, None if seq_examined is None else str(seq_examined), examined)
        examined += 1
        seq_examined = seq
        if matches:
            page.append(entry.make_record(step.now, payloads=payloads))
    return Page(page, None, examined)


def _may_match(entry: JobEntry, states: frozenset[State] | None) -> bool:
    """Return whether a search for these states examines a job."""
    if states == PROCESSING_ONLY:
        return entry.get_state(0) is State.PROCESSING
    return states != FAILED_ONLY or entry.final_state is State.FAILED


def group_failures(
    step: AtomicStep, which: JobFilter, limit: int, budget: int, since: Sequence[float]
) -> FailureGroups:
    """See `Inspecting.group_failures`."""
    dead = [
        entry
        for entry in reversed(step.state.jobs_by_seq.values())
        if entry.final_state is State.FAILED
    ]
    examined = dead[:budget]
    records = [
        entry.make_record(step.now, payloads=False)
        for entry in examined
        if _matches(entry, which, step.now)
    ]
    errors = {record.id: record.error for record in records}
    failed = (
        FailedJob(record.fingerprint or "", record.finished_at or 0.0, record.id, record.name)
        for record in records
    )
    groups = failure_groups.group_failures(failed, limit, since)
    return FailureGroups(
        groups=[failure_groups.add_error(group, errors[group.job_id]) for group in groups],
        examined=len(examined),
        complete=len(examined) == len(dead),
    )


def list_limits(step: AtomicStep, name: str | None, fullest: int, holders: int) -> list[LimitInfo]:
    """See `Inspecting.list_limits`."""
    state = step.state
    changes = [*state.limit_changes.values(), *state.key_changes.values()]
    uses = [make_key_use(step, key) for key in list(state.limit_uses) if name in {None, key[0]}]
    found = summarize_limits(state.limits, changes, uses, name=name, fullest=fullest)
    return [describe_job_limit(step, limit, holders) for limit in found]


def describe_job_limit(step: AtomicStep, limit: LimitInfo, holders: int) -> LimitInfo:
    """Add what is known of the limit of a job name only: its room and its holders."""
    job = get_limited_job(limit.name)
    if job is None or job not in limit.rules:
        return limit
    rule, use = limit.rules[job], step.state.limit_uses[limit.name, ""]
    return msgspec.structs.replace(
        limit,
        room=None if rule.rate is None else rule.rate.count_room(use.spent_until, step.now),
        holders=[]
        if rule.concurrency is None
        else list_holders(step.state, (limit.name, ""))[: min(holders, MAX_HOLDERS)],
    )


def list_holders(state: MemoryState, key: LimitKey) -> list[LimitHolder]:
    """Return the jobs that count for a key of a limit, first the one that has counted longest."""
    holders = [
        LimitHolder(
            entry.id,
            session.session.id,
            session.session.host,
            entry.leased.started_at / MICRO,
        )
        for session in state.sessions.values()
        for entry in session.leased_jobs.values()
        if entry.leased is not None and key in entry.leased.counted_keys
    ]
    return sorted(holders, key=lambda holder: (holder.started_at, holder.job_id))


def make_key_use(step: AtomicStep, key: LimitKey) -> KeyUse:
    """Return the use of a key of a limit."""
    use = step.state.limit_uses[key]
    parked = sum(entry.position is place for heap in use.parked.values() for place, entry in heap)
    opens_at = use.opens_at if parked else None
    if closes_lane(key[0]):
        opens_at = find_lane_opening(step, key)
    return KeyUse(
        limit=key[0],
        key=key[1],
        in_use=use.in_use,
        parked=parked,
        opens_at=None if opens_at is None else opens_at / MICRO,
    )


def find_lane_opening(step: AtomicStep, key: LimitKey) -> int | None:
    """Return when the rate of the limit of a job name allows the next job; None: now."""
    rule = step.state.limits.get(get_limited_job(key[0]) or "", {}).get(key[0])
    rate = None if rule is None else rule.rate
    spent_until = step.state.limit_uses[key].spent_until
    if rate is None or rate.count_room(spent_until, step.now) > 0:
        return None
    return rate.find_opening(spent_until)


def set_tenant_weight(step: AtomicStep, tenant: str, weight: float | None) -> None:
    """See `Maintaining.set_tenant_weight`."""
    _put_weight(step, tenant, WEIGHT_UNITS if weight is None else to_weight_units(weight))


def _put_weight(step: AtomicStep, tenant: str, units: int) -> None:
    """Store a weight in hundredths; that of all others is not stored."""
    weights = step.state.turns.weights
    if units == WEIGHT_UNITS:
        weights.pop(tenant, None)
    else:
        weights[tenant] = units


def list_tenants(step: AtomicStep, limit: int) -> TenantUses:
    """See `Inspecting.list_tenants`."""
    turns = step.state.turns
    waiting = Counter(
        (entry.queue, entry.priority, tenant) for tenant, entry in _iter_turns(step.state)
    )
    uses = [
        (
            (queue, -priority, share.virtual_time, tenant),
            TenantUse(
                tenant=tenant,
                queue=queue,
                priority=priority,
                weight=turns.get_weight(tenant) / WEIGHT_UNITS,
                waiting=min(waiting[queue, priority, tenant], MAX_WAITING_COUNTED),
                running=peers.leases[tenant],
                ahead=max(0, share.virtual_time - peers.floor) / MICRO,
            ),
        )
        for (queue, priority), peers in turns.classes.items()
        for tenant, share in peers.shares.items()
        if waiting[queue, priority, tenant] or peers.leases[tenant]
    ]
    uses.sort(key=lambda ranked: ranked[0])
    weights = {tenant: units / WEIGHT_UNITS for tenant, units in sorted(turns.weights.items())}
    return TenantUses([use for _, use in uses[:limit]], dict(list(weights.items())[:limit]))


def _iter_turns(state: MemoryState) -> Iterator[tuple[str, JobEntry]]:
    """Yield the jobs that wait for the turn of their tenant, with it."""
    for group, heap in state.turns.groups.items():
        for _, _, place, entry in heap:
            if entry.position is place:
                yield group[3], entry


def find_turn(state: MemoryState, entry: JobEntry) -> TenantTurn | None:
    """Return where a job stands in the turns of its queue; None: it does not wait for a turn."""
    tenant = entry.options.fair_tenant
    waiting = list(_iter_turns(state))
    if tenant is None or not any(other is entry for _, other in waiting):
        return None
    peers = state.turns.classes[entry.queue, entry.priority]
    used = peers.shares[tenant].virtual_time
    class_ = (entry.queue, entry.priority)
    before = {
        other
        for other, job in waiting
        if (job.queue, job.priority) == class_ and peers.shares[other].virtual_time < used
    }
    own = [
        job
        for other, job in waiting
        if (other, job.queue, job.priority, job.name) == (tenant, *class_, entry.name)
        and (job.due, job.seq) < (entry.due, entry.seq)
    ]
    return TenantTurn(
        tenant=tenant,
        ahead=max(0, used - peers.floor) / MICRO,
        tenants_before=len(before),
        jobs_before=min(len(own), MAX_WAITING_COUNTED),
    )


def explain_job(step: AtomicStep, job_id: str, monotonic: float) -> Facts:
    """See `Inspecting.explain_job`."""
    state = step.state
    entry = state.jobs.get(job_id)
    if entry is None:
        raise JobNotFound(job_id)
    key = entry.options.unique_key
    holder = None if key is None else step.find_key_holder(entry.name, key)
    return Facts(
        now=step.now / MICRO,
        job=entry.make_record(step.now, payloads=False),
        pause=state.find_pause(entry.queue, step.now),
        limits=[
            limit
            for name in state.limits.get(entry.name, {})
            if closes_lane(name)
            for limit in list_limits(step, name, 1, MAX_HOLDERS)
        ],
        keys=[
            use
            for key, _, _ in state.list_limits(entry)
            if not closes_lane(key[0]) and ((use := make_key_use(step, key)).in_use or use.parked)
        ],
        parked_for=None if entry.parked_for is None else entry.parked_for[0],
        turn=find_turn(state, entry),
        key_holder=None if holder == job_id else holder,
        sessions=[s.make_info(monotonic) for s in state.sessions.values() if not s.is_ended],
    )


def change_jobs(
    step: AtomicStep,
    action: BulkAction,
    job_ids: Sequence[str],
    change: RecordChange | None,
    states: Collection[State] | None,
) -> JobChanges:
    """See `Maintaining.change_jobs`."""
    check_job_ids(job_ids)
    kept = None
    if change is not None:
        kept = records.find_version(step, change)
        if kept is None:
            return JobChanges([])
    known = (entry for job_id in job_ids if (entry := step.state.jobs.get(job_id)) is not None)
    allowed = action.narrow_states(states)
    matching = [entry for entry in known if _can_change(step, action, entry, allowed)]
    changed = [entry.id for entry in matching if _CHANGES[action](step, entry)]
    held = [entry.id for entry in matching if entry.id not in set(changed)]
    record = None
    if change is not None and kept is not None:
        record = records.write_change(step, kept, change, len(changed), len(held))
    return JobChanges(changed, held, record)


def _can_change(
    step: AtomicStep, action: BulkAction, entry: JobEntry, allowed: frozenset[State]
) -> bool:
    """Return whether the action changes the job in its state. A job that is due stays in place."""
    if action is BulkAction.RUN_NOW and entry.due <= step.now:
        return False
    return entry.get_state(step.now) in allowed


def _replay(step: AtomicStep, entry: JobEntry) -> bool:
    """Make a dead letter due now. Reset its failure and loss counts; keep its history.

    Return False if another job holds its unique key.
    """
    key = entry.options.unique_key
    holder = None if key is None else step.find_key_holder(entry.name, key)
    if holder not in (None, entry.id):
        return False
    if holder is None:
        step.take_key(entry)
    entry.final_state, entry.finished_at, entry.reason = None, None, None
    entry.ended_by = None
    entry.failures = entry.lost = 0
    return _make_due(step, entry)


def _make_due(step: AtomicStep, entry: JobEntry) -> bool:
    entry.due = step.now
    step.state.add_waiting(entry, step.now)
    step.names_to_notify[entry.queue] += 1
    return True


def _cancel(step: AtomicStep, entry: JobEntry) -> bool:
    cancel(step, entry.id)
    return True


def _delete(step: AtomicStep, entry: JobEntry) -> bool:
    step.state.remove_job(entry)
    return True


_CHANGES: Mapping[BulkAction, Callable[[AtomicStep, JobEntry], bool]] = MappingProxyType(
    {
        BulkAction.REPLAY: _replay,
        BulkAction.RUN_NOW: _make_due,
        BulkAction.CANCEL: _cancel,
        BulkAction.DELETE: _delete,
    }
)


def prune(step: AtomicStep, keep: Retention, limit: int) -> int:
    """See `Maintaining.prune`."""
    state, left = step.state, limit
    prune_sessions_and_keys(state, step.now)
    prune_statistics(state, step.now)
    for entry in [e for e in state.jobs_by_seq.values() if _is_past_retention(e, keep, step.now)][
        :left
    ]:
        state.remove_job(entry)
        left -= 1
    if keep.completed_max is not None:
        existing = [
            e
            for e in state.jobs_by_seq.values()
            if e.final_state in {State.COMPLETED, State.CANCELLED}
        ]
        existing.sort(key=lambda e: (e.finished_at or 0, e.seq))
        for entry in existing[: min(left, max(0, len(existing) - keep.completed_max))]:
            state.remove_job(entry)
            left -= 1
    for entry in state.jobs_by_seq.values():
        if left and entry.result is not None and _is_older(entry, keep.results, step.now):
            entry.result = None
            left -= 1
    return limit - left


def prune_sessions_and_keys(state: MemoryState, now: int) -> None:
    """Remove sessions that ended more than a day ago, unique keys and replacements that have
    expired, and tenants that have no jobs.
    """
    state.turns.forget()
    for session_id, session in list(state.sessions.items()):
        if (
            session.ended_at is not None
            and not session.leased_jobs
            and session.ended_at < now - _ENDED_SESSION_RETENTION
        ):
            del state.sessions[session_id]
    for key, use in list(state.limit_uses.items()):
        if not (use.in_use or use.opens_at or use.has_parked()) and use.spent_until < now:
            del state.limit_uses[key]
    for key, lease in list(state.unique_keys.items()):
        if lease.valid_until is not None and lease.valid_until <= now:
            del state.unique_keys[key]
    for job_id, replacement in list(state.replacements.items()):
        if replacement.valid_until <= now:
            del state.replacements[job_id]


def prune_statistics(state: MemoryState, now: int) -> None:
    """Remove statistics that are older than `STEPS` allows, and merge the sources of others."""
    for key in [
        key
        for key, row in state.statistics.items()
        if row.start * MICRO < now - to_micros(STEPS[row.step])
    ]:
        del state.statistics[key]
    old = {
        key: row
        for key, row in state.statistics.items()
        if (row.start + row.step + MERGE_AFTER) * MICRO < now
    }
    for key in old:
        del state.statistics[key]
    for row in add_statistics(old.values()):
        state.statistics[row.step, row.start, row.queue, row.name, MERGED_SOURCE] = row


# Statistics


def put_statistics(step: AtomicStep, source: str, rows: Sequence[Statistics]) -> None:
    """See `Consuming.put_statistics`. The rows are copied: the caller keeps counting in its own."""
    for row in rows:
        key = (row.step, row.start, row.queue, row.name, source)
        step.state.statistics[key] = copy.deepcopy(row)


def read_statistics(
    step: AtomicStep,
    interval: tuple[float, float, int],
    queue: str | None,
    name: str | None,
) -> list[Statistics]:
    """See `Inspecting.list_statistics`. `interval` is its `since`, `until` and `step`."""
    since, until, length = interval
    check_interval(since, until, length)
    rows = [
        row
        for row in step.state.statistics.values()
        if row.step == length
        and since <= row.start < until
        and queue in (None, row.queue)
        and name in (None, row.name)
    ]
    return copy.deepcopy(add_statistics(rows))


def _is_past_retention(entry: JobEntry, keep: Retention, now: int) -> bool:
    if entry.final_state is None:
        return False
    return _is_older(
        entry, keep.failed if entry.final_state is State.FAILED else keep.completed, now
    )


def _is_older(entry: JobEntry, seconds: float | None, now: int) -> bool:
    if seconds is None or entry.finished_at is None:
        return False
    return entry.finished_at < now - to_micros(seconds)


# Schedules


def fire(  # noqa: PLR0917 - as the contract has it
    step: AtomicStep,
    name: str,
    expected_last: float | None,
    tick: float,
    job: NewJob,
    overlap: Overlap,
) -> Fired:
    """See `Scheduling.fire`."""
    check_job_times([job])
    record = records.get_record(step, "schedule", name)
    if record is None:
        return Fired("missing")
    schedule = decode_schedule(record)
    if schedule.paused:
        return Fired("paused")
    if schedule.last_tick != expected_last:
        return Fired("moved")
    stored: str | None = None
    if schedule.last_job is None or allows_next_job(step, schedule.last_job, overlap):
        (result,) = step.enqueue([job])
        stored = result.id if result.outcome in {"created", "exists", "replaced"} else None
    schedule = msgspec.structs.replace(
        schedule, last_tick=tick, last_job=stored or schedule.last_job
    )
    new = NewRecord(kind="schedule", id=name, body=encode_schedule(schedule))
    records.put_record(step, new, None, None)
    return Fired("skipped") if stored is None else Fired("fired", stored)


def allows_next_job(step: AtomicStep, last_job: str, overlap: Overlap) -> bool:
    """Return whether the overlap policy allows a new job while the previous job may be unfinished.

    `cancel_previous` cancels the previous job.
    """
    entry = step.state.jobs.get(last_job)
    if entry is None or entry.final_state is not None or overlap == "allow":
        return True
    if overlap == "cancel_previous":
        cancel(step, last_job)
        return True
    started = entry.leased is not None or entry.failures > 0
    return overlap == "queue_one" and started
