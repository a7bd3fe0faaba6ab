"""The plan of an exchange as the arguments of `apply_plan_1`: `make_plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.planning.reserve import (
    ReservePlan,
    count_fitting,
    plan_reserve,
)
from nimburion.backends.postgres.candidates import Candidates, Sizes
from nimburion.backends.postgres.first_turns import FirstTurns, plan_first_turns
from nimburion.backends.postgres.source import CandidateJob, PostgresSource
from nimburion.core.exchange import ReserveRequest
from nimburion.core.limits import LimitKey


def make_plan(
    now: int,
    candidates: Candidates,
    request: ReserveRequest,
    sizes: Sizes,
) -> Plan | FirstTurns:
    """Return a plan whose jobs fit into the reply.

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
        if first_turns is not None:
            return first_turns
    plan = Plan(now, candidates, request, sizes)
    if candidates.sizes is None:
        return plan
    job_sizes = dict(candidates.sizes)
    fitting = count_fitting([job_sizes[seq] for seq in plan.seqs], request.max_bytes)
    if fitting == len(plan.seqs):
        return plan
    return Plan(now, candidates, msgspec.structs.replace(request, total=fitting), sizes)


class Plan:
    """What `plan_reserve` returns for these candidates; its arguments are those of `make_plan`."""

    def __init__(
        self,
        now: int,
        candidates: Candidates,
        request: ReserveRequest,
        sizes: Sizes,
    ) -> None:
        source = PostgresSource(candidates, request, sizes)
        lanes, uses = source.make_lanes()
        self._source = source
        self._version = candidates.version
        self._plan: ReservePlan = plan_reserve(
            source, lanes, request, now, uses=uses, has_turns=source.has_turns
        )
        self.seqs: Sequence[int] = [lease.seq for lease in self._plan.leases]
        """The jobs to lease, in the order of the reply."""

    def encode(self) -> list[Any]:
        """Return the arguments of `apply_plan_1` from the jobs to the waiting lanes."""
        plan, source = self._plan, self._source
        parked = {**plan.park, **plan.move}
        # SQL counts the limits that close lanes.
        keys = dict.fromkeys((*(key for key in plan.uses if key in source.uses), *parked.values()))
        for lease in plan.leases:
            keys.update((limit.key, None) for limit in lease.limits)
        places: dict[LimitKey, int] = {key: n for n, key in enumerate(keys, 1)}
        return [
            *self._encode_jobs(list(parked)),
            *self._encode_lease_keys(places),
            *self._encode_charges(),
            [places[key] for key in parked.values()] or None,
            plan.unpark or None,
            *self._encode_uses(list(keys)),
            self._version,
            *encode_shares(plan, source),
            None,
        ]

    def _encode_jobs(self, parked: list[int]) -> list[Any]:
        seqs = [*self.seqs, *parked]
        jobs: list[CandidateJob] = [self._source.jobs[seq] for seq in seqs]
        lanes = [lane for _, lane, _ in jobs]
        main_lanes = [main_lane for _, _, main_lane in jobs]
        return [
            seqs,
            [due for due, _, _ in jobs],
            lanes,
            None if main_lanes == lanes else main_lanes,
            len(self.seqs),
        ]

    def _encode_lease_keys(self, places: dict[LimitKey, int]) -> list[Any]:
        ends: list[int] = []
        keys: list[int] = []
        for lease in self._plan.leases:
            keys += [places[limit.key] for limit in lease.limits]
            ends.append(len(keys))
        return [ends, keys] if keys else [None, None]

    def _encode_charges(self) -> list[Any]:
        leases = self._plan.leases
        if not self._plan.shares:
            return [None, None]
        return [
            [self._source.shares_by_job.get(lease.seq) for lease in leases],
            [lease.charge for lease in leases],
        ]

    def _encode_uses(self, keys: list[LimitKey]) -> list[Any]:
        if not keys:
            return [None] * 8
        before = [self._source.uses[key] for key in keys]
        after = [self._plan.uses.get(key, use) for key, use in zip(keys, before, strict=True)]
        return [
            [limit for limit, _ in keys],
            [key for _, key in keys],
            [use.in_use for use in before],
            [use.spent_until for use in before],
            [use.opens_at for use in before],
            [use.in_use for use in after],
            [use.spent_until for use in after],
            [use.opens_at for use in after],
        ]


def encode_shares(plan: ReservePlan, source: PostgresSource) -> list[Any]:
    """Encode the shares and minimum virtual times that a plan changes."""
    if not plan.shares:
        return [None] * 8
    charged = sorted(
        (share, planned.share)
        for shares in plan.shares.values()
        for share, planned in shares.items()
    )
    return [
        [share for share, _ in charged],
        [source.virtual_times[share] for share, _ in charged],  # type: ignore[index]
        [after.virtual_time for _, after in charged],
        [after.unmeasured for _, after in charged],
        [queue for queue, _ in plan.min_virtual_times],
        [rank for _, rank in plan.min_virtual_times],
        [source.read_min_virtual_time(class_) for class_ in plan.min_virtual_times],
        list(plan.min_virtual_times.values()),
    ]
