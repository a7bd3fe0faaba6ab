"""A plan for many tenants: each of the first ones has one turn, so no decision depends on another.

It is what `plan_reserve` would return, at a fraction of its work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimburion.backends.postgres.applied_plan import AppliedPlan
from nimburion.backends.postgres.candidates import Candidates, iterate_rows
from nimburion.backends.postgres.exchange import is_capped
from nimburion.core.fairness import TenantShare

if TYPE_CHECKING:
    from nimburion.core.exchange import ReserveRequest


def plan_first_turns(candidates: Candidates, request: ReserveRequest) -> AppliedPlan | None:
    """Return the plan if the charge of a first tenant moves it behind all others; else None."""
    if not _has_only_turns(candidates, request):
        return None
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
    minimums = {rank: minimum for _, rank, minimum in candidates.classes or ()}
    minimum = first_minimum = minimums.get(ranks[0], 0)
    next_time = times[total]
    charges, after = [], {}
    for share, time in zip(shares[:total], times[:total], strict=True):
        virtual_time, mean, unmeasured, units = stored[share]
        if virtual_time not in {None, time}:
            return None
        own = TenantShare(time if virtual_time is None else virtual_time, mean, unmeasured)
        minimum, charge = own.charge(minimum, units)
        if own.virtual_time <= next_time:
            return None
        charges.append(charge)
        after[share] = own
    charged = sorted(after)
    return AppliedPlan(
        seqs=seqs[:total],
        dues=dues[:total],
        lanes=lanes[:total],
        leased=total,
        shares=shares[:total],
        charges=charges,
        version=candidates.version,
        charged=charged,
        times_before=[stored[share][0] for share in charged],
        times=[after[share].virtual_time for share in charged],
        unmeasured=[after[share].unmeasured for share in charged],
        class_queues=[request.lanes[0].queue],
        class_ranks=[ranks[0]],
        minimums_before=[first_minimum],
        minimums=[minimum],
        waiting=[1],  # more tenants wait than get a turn
    )


def _has_only_turns(candidates: Candidates, request: ReserveRequest) -> bool:
    """Whether one lane is requested, and nothing but turns decides which of its jobs are leased."""
    has_turns = candidates.turns is not None and candidates.turns[0] is not None
    has_jobs = candidates.jobs is not None and candidates.jobs[0] is not None
    others = (candidates.changing, candidates.rules, candidates.parked)
    if len(request.lanes) != 1 or not has_turns or has_jobs or any(others):
        return False
    return not is_capped(request)
