"""The plan of an exchange as the arguments of `apply_plan_1`: `make_plan`."""

from __future__ import annotations

import msgspec

from nimburion.backends.planning.reserve import ReservePlan, count_fitting, plan_reserve
from nimburion.backends.postgres.applied_plan import AppliedPlan
from nimburion.backends.postgres.candidates import Candidates, Sizes
from nimburion.backends.postgres.first_turns import plan_first_turns
from nimburion.backends.postgres.source import CandidateJob, PostgresSource
from nimburion.core.exchange import ReserveRequest
from nimburion.core.limits import LimitKey


def make_plan(
    now: int, candidates: Candidates, request: ReserveRequest, sizes: Sizes
) -> AppliedPlan:
    """Return a plan whose jobs fit into the reply, as the arguments of `apply_plan_1`.

    Args:
        now: the time of the plan.
        candidates: what was read.
        request: the request of the exchange.
        sizes: how much was read at most.

    Raises:
        NeedsMore: more candidates have to be read.
    """
    if candidates.sizes is None:
        first_turns = plan_first_turns(candidates, request)
        return first_turns or make_whole_plan(now, candidates, request, sizes)
    plan = make_whole_plan(now, candidates, request, sizes)
    job_sizes = dict(candidates.sizes)
    seqs = plan.seqs[: plan.leased]
    fitting = count_fitting([job_sizes[seq] for seq in seqs], request.max_bytes)
    if fitting == len(seqs):
        return plan
    return make_whole_plan(now, candidates, msgspec.structs.replace(request, total=fitting), sizes)


def make_whole_plan(
    now: int, candidates: Candidates, request: ReserveRequest, sizes: Sizes
) -> AppliedPlan:
    """Return what `plan_reserve` decides about these candidates, whatever the sizes of the jobs."""
    source = PostgresSource(candidates, request, sizes)
    lanes, uses = source.make_lanes()
    plan = plan_reserve(source, lanes, request, now, uses=uses, has_turns=source.has_turns)
    parked = {**plan.park, **plan.move}
    # SQL counts the limits that close lanes.
    keys = dict.fromkeys((*(key for key in plan.uses if key in source.uses), *parked.values()))
    for lease in plan.leases:
        keys.update((limit.key, None) for limit in lease.limits)
    places: dict[LimitKey, int] = {key: n for n, key in enumerate(keys, 1)}
    seqs: list[int] = [*(lease.seq for lease in plan.leases), *parked]
    jobs: list[CandidateJob] = [source.jobs[seq] for seq in seqs]
    lane_numbers = [lane for _, lane, _ in jobs]
    main_lanes = [main_lane for _, _, main_lane in jobs]
    applied = AppliedPlan(
        seqs=seqs,
        dues=[due for due, _, _ in jobs],
        lanes=lane_numbers,
        main_lanes=None if main_lanes == lane_numbers else main_lanes,
        leased=len(plan.leases),
        park_keys=[places[key] for key in parked.values()] or None,
        returned=plan.unpark or None,
        version=candidates.version,
    )
    if keys:
        _add_uses(applied, plan, source, places)
    if plan.shares:
        _add_charges(applied, plan, source)
    return applied


def _add_uses(
    applied: AppliedPlan, plan: ReservePlan, source: PostgresSource, places: dict[LimitKey, int]
) -> None:
    """Add the keys of the leased jobs, and the uses before and after the plan."""
    ends: list[int] = []
    lease_keys: list[int] = []
    for lease in plan.leases:
        lease_keys += [places[limit.key] for limit in lease.limits]
        ends.append(len(lease_keys))
    if lease_keys:
        applied.key_ends, applied.keys = ends, lease_keys
    before = [source.uses[key] for key in places]
    after = [plan.uses.get(key, use) for key, use in zip(places, before, strict=True)]
    applied.limits = [limit for limit, _ in places]
    applied.key_names = [key for _, key in places]
    applied.in_use_before = [use.in_use for use in before]
    applied.spent_before = [use.spent_until for use in before]
    applied.opens_before = [use.opens_at for use in before]
    applied.in_use = [use.in_use for use in after]
    applied.spent = [use.spent_until for use in after]
    applied.opens = [use.opens_at for use in after]


def _add_charges(applied: AppliedPlan, plan: ReservePlan, source: PostgresSource) -> None:
    """Add what tenants are charged, their shares, and the minimum virtual times."""
    charged = sorted(
        (share, planned.share)
        for planned_shares in plan.shares.values()
        for share, planned in planned_shares.items()
    )
    applied.shares = [source.shares_by_job.get(lease.seq) for lease in plan.leases]
    applied.charges = [lease.charge for lease in plan.leases]
    shares: list[int] = [share for share, _ in charged]  # type: ignore[misc]
    applied.charged = shares
    applied.times_before = [source.virtual_times[share] for share in shares]
    applied.times = [after.virtual_time for _, after in charged]
    applied.unmeasured = [after.unmeasured for _, after in charged]
    applied.class_queues = [queue for queue, _ in plan.min_virtual_times]
    applied.class_ranks = [rank for _, rank in plan.min_virtual_times]
    applied.minimums_before = [
        source.read_min_virtual_time(class_) for class_ in plan.min_virtual_times
    ]
    applied.minimums = list(plan.min_virtual_times.values())
