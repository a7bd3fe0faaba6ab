"""Limits: apply what is declared and changed, and read their use. Each call runs in one
`AtomicStep`.
"""

from __future__ import annotations

import msgspec

from nimburion.backends.memory.state import MemoryState
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.backend import MAX_HOLDERS
from nimburion.core.limits import (
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitKey,
    LimitRule,
    apply_changes,
    closes_lane,
    concerns_lane,
    drop_lane_limits,
    get_limited_job,
    get_limited_queue,
    summarize_limits,
)
from nimburion.core.timing.clock import MICRO


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
        change = state.key_changes.get(key)
        if old is not None and new is not None and (change is None or change.rate is None):
            use.carry_over(old.rate, new.rate, step.now)
        for lane in [lane for lane in use.parked if lane[1] == name and changes_parked_jobs]:
            count = len(use.parked[lane]) if new is None else new.count_at_once()
            state.let_return(key, lane, count)
    state.unpark_changed()


def count_running_jobs(state: MemoryState, name: str, limit: str) -> None:
    """Count the jobs that are processing in a limit that closes lanes: a job name has it now, or
    has it no more.

    The units that jobs have taken from the rate of a job name are forgotten with it.
    """
    key, rule = (limit, ""), state.limits.get(name, {}).get(limit)
    use = state.limit_uses[key]
    use.in_use = 0
    for session in state.sessions.values():
        for entry in session.leased_jobs.values():
            lease = entry.leased
            if lease is None:
                continue
            if entry.name == name and concerns_lane(limit, entry.queue):
                others = tuple(one for one in lease.counted_keys if one != key)
                lease.counted_keys = others if rule is None else (*others, key)
            use.in_use += key in lease.counted_keys
    if get_limited_job(limit) is not None and (rule is None or rule.rate is None):
        use.spent_until = 0


def apply_changed_limit(step: AtomicStep, limit: str) -> None:
    """Apply the limits of all job names that have a limit, after it was changed."""
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


def change_key(step: AtomicStep, key: LimitKey, change: LimitChange | None) -> None:
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


def list_limits(step: AtomicStep, name: str | None, fullest: int, holders: int) -> list[LimitInfo]:
    """Return the limits in force and changed, with their use."""
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
    """Return when the rate of a limit that closes lanes allows the next job; None: now."""
    rates = [rules[key[0]].rate for rules in step.state.limits.values() if key[0] in rules]
    spent_until = step.state.limit_uses[key].spent_until
    openings = [
        rate.find_opening(spent_until)
        for rate in rates
        if rate is not None and rate.count_room(spent_until, step.now) == 0
    ]
    return min(openings, default=None)
