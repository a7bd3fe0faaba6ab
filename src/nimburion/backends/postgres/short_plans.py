"""Plans for the two common cases in which no decision depends on an earlier one.

Both return what `plan_reserve` would, at a fraction of its work, or None if the case is another.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from nimburion.backends.postgres.candidates import Candidates, iterate_rows, make_rate
from nimburion.core.fairness import TenantShare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nimburion.core.exchange import ReserveRequest


class ShortPlan:
    """The first arguments of `apply_plan_1` for jobs of which none is parked."""

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        """`columns`: seqs, due times, lanes and main lanes of the jobs."""
        self._columns = columns
        self.seqs: Sequence[int] = columns[0]
        self.keys: Sequence[Any] = (None, None)
        """Where the keys of each job end, and the places of these keys."""
        self.charges: Sequence[Any] = (None, None)
        """The shares of the jobs, and their charges."""
        self.uses: Sequence[Any] = (None,) * 8
        self.version: int | None = None
        self.shares: Sequence[Any] = (None,) * 8

    def encode(self) -> list[Any]:
        """Return the arguments of `apply_plan_1` from the jobs to the floors."""
        return [
            *self._columns,
            len(self.seqs),
            *self.keys,
            *self.charges,
            None,
            None,
            *self.uses,
            self.version,
            *self.shares,
        ]


def plan_shortly(candidates: Candidates, request: ReserveRequest, now: int) -> ShortPlan | None:
    """Return the plan if the jobs of one lane are leased in its order; else None."""
    if (
        len(request.lanes) != 1
        or candidates.changing
        or candidates.own
        or candidates.parked
        or candidates.changes
    ):
        return None
    has_jobs = candidates.jobs is not None and candidates.jobs[0] is not None
    has_turns = candidates.turns is not None and candidates.turns[0] is not None
    if has_jobs and not has_turns:
        return plan_open_keys(candidates, request.total, now)
    if has_turns and not has_jobs and not candidates.limits:
        return plan_first_turns(candidates, request)
    return None


def plan_open_keys(candidates: Candidates, total: int, now: int) -> ShortPlan | None:
    """Return the plan if all keys of the first jobs have room for all of these jobs."""
    assert candidates.jobs is not None
    _, _, *columns = (column[:total] for column in candidates.jobs)
    dues, seqs, lanes, main_lanes = columns
    plan = ShortPlan((seqs, dues, lanes, main_lanes))
    if candidates.keys is None or candidates.keys[0] is None:
        return plan if candidates.limits is None else None
    of_seqs, _, _, keys, costs, in_use, spent, opens, parked = candidates.keys
    limited = candidates.limits or ()
    if len(of_seqs) != len(seqs) or len(limited) != 1:  # read beyond the total, or several limits
        return None
    if of_seqs != seqs or True in parked or costs.count(None) != len(costs):
        return None
    ((_, limit, concurrency, interval, burst, cost),) = limited
    rate = make_rate(interval, burst, cost)
    counts: Counter[str] = Counter(keys)
    first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    names = list(counts)
    before = [in_use[first[key]] or 0 for key in names]
    after = [used + counts[key] for used, key in zip(before, names, strict=True)]
    if concurrency is not None and max(after) > concurrency:
        return None
    spent_before = [spent[first[key]] or 0 for key in names]
    spent_after = spent_before
    if rate is not None:
        spent_after = []
        for key, until in zip(names, spent_before, strict=True):
            if rate.count_room(until, now) < counts[key]:
                return None
            spent_after.append(rate.spend(until, now, counts[key] * rate.cost))
    opens_before = [opens[first[key]] for key in names]
    places = {key: n for n, key in enumerate(names, 1)}
    plan.keys = (list(range(1, len(seqs) + 1)), [places[key] for key in keys])
    plan.uses = (
        [limit] * len(names),
        names,
        before,
        spent_before,
        opens_before,
        after,
        spent_after,
        opens_before,
    )
    plan.version = candidates.version
    return plan


def plan_first_turns(candidates: Candidates, request: ReserveRequest) -> ShortPlan | None:
    """Return the plan if each of the first tenants has one turn: no charge changes their order."""
    assert candidates.turns is not None
    assert candidates.groups is not None
    total = request.total
    _, ranks, times, lanes, shares = candidates.turns
    group_lanes, dues, seqs = candidates.groups
    if len(lanes) <= total or group_lanes != lanes or len(set(shares)) != len(shares):
        return None
    if ranks[0] != ranks[total]:
        return None
    stored = {share: values for share, *values in iterate_rows(candidates.shares)}
    ((queue, _),) = {(lane.queue, lane.name) for lane in request.lanes}
    floors = {rank: floor for _, rank, floor in candidates.floors or ()}
    floor = first_floor = floors.get(ranks[0], 0)
    next_time = times[total]
    charges, after = [], {}
    for share, time in zip(shares[:total], times[:total], strict=True):
        virtual_time, mean, unmeasured, units = stored[share]
        if virtual_time not in {None, time}:
            return None
        own = TenantShare(time if virtual_time is None else virtual_time, mean, unmeasured)
        floor, charge = own.charge(floor, units)
        if own.virtual_time <= next_time:
            return None
        charges.append(charge)
        after[share] = own
    plan = ShortPlan((seqs[:total], dues[:total], lanes[:total], lanes[:total]))
    plan.charges = (shares[:total], charges)
    charged = sorted(after)
    plan.shares = (
        charged,
        [stored[share][0] for share in charged],
        [after[share].virtual_time for share in charged],
        [after[share].unmeasured for share in charged],
        [queue],
        [ranks[0]],
        [first_floor],
        [floor],
    )
    return plan
