"""Limits: what is declared and changed, which limits a job has, and the use of their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from nimburion.backends.lane_limits import (
    KeySums,
    StoredLaneLimit,
    describe_limits,
    make_key_use,
    make_rate,
)
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.parked_jobs import let_return, unpark
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.exchange import Lane
from nimburion.core.limits import (
    JobLimit,
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitKey,
    LimitRule,
    LimitUse,
    apply_changes,
    closes_lane,
    concerns_lane,
    drop_lane_limits,
    find_limit_key,
    get_limited_job,
    get_limited_queue,
)
from nimburion.core.rate_limits import CLOCK_TOLERANCE, RateLimit
from nimburion.core.timing.clock import MICRO, to_micros

_encode = msgspec.json.Encoder().encode
decode_change: Callable[[str], LimitChange] = msgspec.json.Decoder(LimitChange).decode
_decode_rule = msgspec.json.Decoder(LimitRule).decode
_decode_rules = msgspec.json.Decoder(
    list[tuple[str, str, int | None, str | None, int | None, int | None, int | None]]
).decode
_decode_uses = msgspec.json.Decoder(list[LimitUse], strict=False).decode

Rules = dict[str, dict[str, LimitRule]]
"""Limits by job name and limit name."""
KeyChanges = dict[LimitKey, LimitChange]
"""The changes of single keys of limits."""


class LimitKeyOptions(msgspec.Struct, gc=False):
    """The options of a job that concern limits."""

    limit_keys: dict[str, str] = {}
    cost: int | None = None


_NO_KEYS = LimitKeyOptions()
_decode_key_options = msgspec.json.Decoder(list[tuple[int, LimitKeyOptions]]).decode


LaneLimits = dict[str, list[StoredLaneLimit]]
"""The limits that close lanes, by job name: that of the name and those of queues."""


class LaneLimitRow(msgspec.Struct, array_like=True, gc=False):
    """A row of `list_lane_limits`."""

    job: str
    limit: str
    concurrency: int | None
    rate: str | None
    interval: int | None
    burst: int | None
    cost: int | None
    in_use: int | None
    spent_until: int | None


_decode_lane_limits = msgspec.json.Decoder(list[LaneLimitRow]).decode


# --- reading ----------------------------------------------------------------------------------


def decode_lane_limits(listed: str) -> LaneLimits:
    """Decode the limits that close lanes, as `list_lane_limits` returns them."""
    limits: LaneLimits = {}
    for row in _decode_lane_limits(listed):
        rate = make_rate(row.rate, row.interval, row.burst, row.cost)
        limit = JobLimit((row.limit, ""), row.concurrency, rate)
        use = LimitUse(row.in_use or 0, row.spent_until or 0)
        limits.setdefault(row.job, []).append(StoredLaneLimit(limit, use))
    return limits


def list_lane_limits(limits: LaneLimits, lane: Lane) -> list[StoredLaneLimit]:
    """Return the limits that close a lane."""
    return [
        stored
        for stored in limits.get(lane.name, ())
        if concerns_lane(stored.limit.key[0], lane.queue)
    ]


def has_rate(limits: LaneLimits) -> bool:
    """Return whether any of these limits has a rate."""
    return any(stored.limit.rate is not None for own in limits.values() for stored in own)


def read_lane_limits(db: Database) -> LaneLimits:
    """Read the limits that close lanes, with their uses."""
    return decode_lane_limits(db.fetch_value("list_lane_limits"))


def read_rules(db: Database, name: str | None = None) -> Rules:
    """Read the limits in force, of one job name or of all."""
    return _decode_rules_by_job(db.fetch_value("list_limit_rules", name))


def read_keyed_rules(db: Database) -> Rules:
    """Read the limits in force for which jobs may be parked."""
    return _decode_rules_by_job(db.fetch_value("list_keyed_rules"))


def _decode_rules_by_job(listed: str) -> Rules:
    rules: Rules = {}
    for job, limit, concurrency, rate, interval, burst, cost in _decode_rules(listed):
        rule = LimitRule(concurrency, make_rate(rate, interval, burst, cost))
        rules.setdefault(job, {})[limit] = rule
    return rules


def read_key_options(db: Database, seqs: Iterable[int]) -> dict[int, LimitKeyOptions]:
    """Return the options of jobs that concern limits, without jobs that have no options."""
    return dict(
        _decode_key_options(db.fetch_value("list_job_options", _encode(list(seqs)).decode()))
    )


def list_limits_of_job(
    rules: Mapping[str, LimitRule],
    queue: str,
    options: LimitKeyOptions | None,
    changes: KeyChanges,
) -> list[JobLimit]:
    """Return the limits in which a job with these options counts."""
    options = options or _NO_KEYS
    found = []
    for name, rule in rules.items():
        key = find_limit_key(name, queue, options.limit_keys)
        if key is None:
            continue
        if (name, key) in changes:
            rule = rule.apply(changes[name, key])  # noqa: PLW2901
        rate = rule.rate
        if rate is not None and options.cost is not None and not closes_lane(name):
            rate = msgspec.structs.replace(rate, cost=options.cost)
        found.append(JobLimit((name, key), rule.concurrency, rate))
    return found


def read_job_limits(
    db: Database, lane: int, seq: int, *, uses_own_cost: bool = True
) -> list[JobLimit]:
    """Return the limits in which a job counts.

    `uses_own_cost`: the rates for which it may be parked have the cost of the job, if it has one.
    """
    waiting_in = db.get_lane(lane)
    rules = read_rules(db, waiting_in.name).get(waiting_in.name)
    if rules is None:
        return []
    options = read_key_options(db, [seq]).get(seq)
    if options is not None and not uses_own_cost:
        options.cost = None
    changes = read_key_changes(db)
    return list_limits_of_job(rules, waiting_in.queue, options, changes)


def read_uses(db: Database, keys: Iterable[LimitKey]) -> dict[LimitKey, LimitUse]:
    """Return the uses of these keys, also of those that are not in use."""
    by_limit: dict[str, list[str]] = {}
    for limit, key in keys:
        by_limit.setdefault(limit, []).append(key)
    return {
        (limit, key): use
        for limit, some in by_limit.items()
        for key, use in zip(
            some,
            _decode_uses(db.fetch_value("list_uses_of_keys", limit, _encode(some).decode())),
            strict=True,
        )
    }


def write_uses(db: Database, uses: Mapping[LimitKey, LimitUse]) -> None:
    """Store the uses of these keys."""
    by_limit: dict[str, dict[str, tuple[int, int, int | None]]] = {}
    for (limit, key), use in uses.items():
        by_limit.setdefault(limit, {})[key] = (use.in_use, use.spent_until, use.opens_at)
    for limit, rows in by_limit.items():
        db.run("put_limit_uses", limit, _encode(rows).decode())


# --- rates ------------------------------------------------------------------------------------


def follow_clock(db: Database) -> None:
    """Let all rates follow the clock if it was set back.

    See `follow_clock` in core/rate_limits.py. The time of the latest exchange is stored once in a
    second.
    """
    before = db.fetch_value("get_limits_used_at")
    if abs(db.now - before) <= CLOCK_TOLERANCE:
        return
    db.run("put_limits_used_at", db.now)
    if db.now < before:
        db.run("let_uses_follow_clock", db.now, before)


def give_units_back(db: Database, lane: int, seq: int, taken_at: int) -> None:
    """Give back what a job that has not started took from the rates of its keys."""
    counted = db.run("list_lease_keys", seq).fetchall()
    for key, _, rate in read_job_limits(db, lane, seq):
        if rate is not None and (key in counted or closes_lane(key[0])):
            use = read_uses(db, [key])[key]
            use.spent_until = rate.refund(use.spent_until, db.now, taken_at)
            write_uses(db, {key: use})


def spend_units(db: Database, lane: int, seq: int, units: int) -> None:
    """Take units that an attempt spent beyond its cost, or give some back."""
    for key, _, rate in read_job_limits(db, lane, seq):
        if rate is not None:
            use = read_uses(db, [key])[key]
            use.spent_until = rate.spend(use.spent_until, db.now, units)
            write_uses(db, {key: use})


def block_rates(db: Database, lane: int, seq: int, seconds: float) -> bool:
    """Let the rates of the keys of a job, or that of its name, allow no job for some seconds.

    Returns whether there is a rate.
    """
    limits = read_job_limits(db, lane, seq, uses_own_cost=False)
    rates = [(key, rate) for key, _, rate in limits if rate is not None]
    carried = [(key, rate) for key, rate in rates if get_limited_job(key[0]) is None]
    for key, rate in carried or rates:
        use = read_uses(db, [key])[key]
        use.spent_until = rate.block(use.spent_until, db.now, max(0, to_micros(seconds)))
        write_uses(db, {key: use})
    return bool(rates)


def pass_turns(db: Database, lane: int, seq: int) -> None:
    """Let jobs that are parked for the keys of a cancelled job have its turn."""
    for key, _, _ in read_job_limits(db, lane, seq):
        if not closes_lane(key[0]):
            unpark(db, key, lane)


# --- what is declared and changed -------------------------------------------------------------


def _apply_limits(db: Database, name: str) -> None:
    """Let what is declared for a job name apply, with the changes of operators."""
    rows = db.run("list_declared_limits", name)
    set_limits(db, name, {limit: _decode_rule(body) for limit, body in rows})


def set_limits(db: Database, name: str, declared: Mapping[str, LimitRule]) -> bool:
    """Set the limits of a job name to what is declared, with the changes of operators; return
    whether the limits in force changed.

    If limits change for which jobs are parked, exchanges consider these again: see
    `unpark_changed`.
    """
    changes = {change.name: change for change in _list_changes(db, for_key=0)}
    rules = apply_changes(name, declared, changes)
    old_rules = read_rules(db, name).get(name, {})
    if not rules and not old_rules:
        return False
    db.run("delete_limit_rules", name)
    for limit, rule in rules.items():
        rate = rule.rate
        parts = (None,) * 4 if rate is None else (rate.rate, rate.interval, rate.burst, rate.cost)
        body = _encode(declared[limit]).decode() if limit in declared else None
        db.run("insert_limit_rule", name, limit, body, rule.concurrency, *parts, closes_lane(limit))
    if rules == old_rules:
        return False
    for limit in old_rules.keys() | rules.keys():
        _replace_rule(db, limit, old_rules.get(limit), rules.get(limit))
    if drop_lane_limits(old_rules) != drop_lane_limits(rules):
        for limit in drop_lane_limits(old_rules):
            if limit in rules:
                db.run("let_first_return", name, limit, rules[limit].count_at_once())
            else:
                db.run("mark_changed_limit", name, limit)
    return True


def _replace_rule(db: Database, limit: str, old: LimitRule | None, new: LimitRule | None) -> None:
    """Let the uses of a limit follow its new rule."""
    if closes_lane(limit) and (old is None or new is None):
        db.run("count_running_jobs", limit)
    if get_limited_job(limit) is not None and (new is None or new.rate is None):
        db.run("forget_units", limit)
    old_rate = None if old is None else old.rate
    new_rate = None if new is None else new.rate
    if old_rate is not None and new_rate is not None and old_rate != new_rate:
        ends = (db.now + rate.burst * rate.interval for rate in (new_rate, old_rate))
        db.run("carry_over_keys", limit, *ends)


def read_key_changes(db: Database) -> KeyChanges:
    """Read the changes of single keys."""
    return {(change.name, change.key or ""): change for change in _list_changes(db, for_key=1)}


def _list_changes(db: Database, *, for_key: int | None) -> list[LimitChange]:
    return [decode_change(body) for (body,) in db.run("list_limit_changes", for_key)]


def apply_change(db: Database, name: str, key: str | None, before: KeyChanges) -> None:
    """Apply the limits of all job names that have a limit, or one key of it, after it was changed.

    `before`: the earlier changes of single keys.
    """
    if key is None:
        of_queue = get_limited_queue(name) is not None
        listed = db.run("list_known_names") if of_queue else db.run("list_job_names_of_limit", name)
        jobs: set[str] = {job for (job,) in listed}
        own = get_limited_job(name)
        for job in jobs if own is None else jobs | {own}:
            _apply_limits(db, job)
    else:
        _apply_key_change(db, (name, key), before)
    db.notify([EVERY_QUEUE])


def _apply_key_change(db: Database, key: LimitKey, before: KeyChanges) -> None:
    """Carry the rate of a key over, and consider the jobs that are parked for it again."""
    change = read_key_changes(db).get(key)
    count = 1
    for rules in read_rules(db).values():
        if key[0] in rules:
            old = rules[key[0]].apply(before.get(key))
            new = rules[key[0]].apply(change)
            _carry_key_over(db, key, old.rate, new.rate)
            count = max(count, new.count_at_once())
    let_return(db, key, count)


def _carry_key_over(
    db: Database, key: LimitKey, old: RateLimit | None, new: RateLimit | None
) -> None:
    """Replace the rate of one key; see `RateLimit.carry_over`."""
    if old is not None and new is not None:
        use = read_uses(db, [key])[key]
        use.spent_until = new.carry_over(old, use.spent_until, db.now)
        write_uses(db, {key: use})


# --- the reading of operators -----------------------------------------------------------------


def list_limits(db: Database, name: str | None, fullest: int, holders: int) -> list[LimitInfo]:
    """Return the limits in force and changed, with their use."""
    rows = db.run("list_fullest_keys", name, max(1, fullest)).fetchall()
    return describe_limits(
        read_rules(db),
        _list_changes(db, for_key=None),
        (lane for own in read_lane_limits(db).values() for lane in own),
        [(make_key_use(*row[:5]), KeySums(*row[5:])) for row in rows],
        _read_holders(db, name, holders),
        now=db.now,
        name=name,
        fullest=fullest,
    )


def _read_holders(db: Database, name: str | None, most: int) -> dict[str, list[LimitHolder]]:
    """Return the jobs that have counted longest against each maximum, by limit."""
    held: dict[str, list[LimitHolder]] = {}
    if most > 0 and (name is None or get_limited_job(name) is not None):
        for limit, job_id, session, host, at in db.run("list_limit_holders", name, most):
            held.setdefault(limit, []).append(LimitHolder(job_id, session, host, at / MICRO))
    return held


def find_key_uses(db: Database, lane: int, seq: int) -> list[KeyUse]:
    """Return the keys of a job, for which it may be parked, that are in use."""
    return [
        make_key_use(*row)
        for key, _, _ in read_job_limits(db, lane, seq)
        if not closes_lane(key[0])
        for row in db.run("get_key_use", *key).fetchall()
    ]
