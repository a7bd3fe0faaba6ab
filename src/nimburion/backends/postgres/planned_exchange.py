"""The planned exchange: what limits or tenants restrict is decided by `plan_reserve`.

The first statement settles, promotes and reads candidates; no lock is held while the plan is made.
The second one applies the plan, or reports that something that the plan has read has changed. After
such a conflict, one transaction takes the locks first, so that the next plan applies.
`planned_exchange.sql` explains the statements.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import msgspec

from nimburion.backends.planning.reserve import PlannedLease, ReservePlan, plan_reserve
from nimburion.backends.postgres.candidates import (
    CandidateJob,
    NeedsMore,
    PostgresSource,
    Sizes,
    decode_candidates,
    make_sizes,
)
from nimburion.backends.postgres.connection.pool import Fetch, PostgresConnection
from nimburion.backends.postgres.database import make_call
from nimburion.backends.postgres.exchange import is_capped
from nimburion.backends.postgres.first_turns import FirstTurns, plan_first_turns
from nimburion.core.exchange import ReserveRequest
from nimburion.core.limits import LimitKey, get_limited_queue

_BEGIN = make_call("begin_planned_exchange_1", 23)
_READ_AGAIN = make_call("read_candidates_again_1", 10)
_APPLY = make_call("apply_plan_1", 37)

_LOCKED_EXCHANGES = 32
"""How many exchanges take the locks first after one that met a conflict: others use the same limits
or tenants at the same time.
"""
_MOST_CONFLICTS = 5
"""After so many conflicts of one exchange it leases nothing. With locks, only jobs that the
transactions of callers hold make a conflict, and the next plan is without them.
"""


class PlannedExchange(msgspec.Struct):
    """One exchange of a session that is planned."""

    session_id: str
    number: int
    settlements: Sequence[Any]
    """Encoded, as nine arguments."""
    request: ReserveRequest
    queues: list[str]
    names: list[str]
    marks: tuple[list[int], list[int], int]
    """The low-water marks."""


class PlannedReply(msgspec.Struct):
    """What the statements of a planned exchange have returned."""

    begun: Any
    """The status row of `begin_planned_exchange_1`."""
    rows: list[Any] | None = None
    """Those of the statement that has leased jobs; None: nothing was leased."""
    seqs: Sequence[int] | None = None
    """The planned jobs, in the order of the reply; None: nothing was planned."""
    changing: list[int] = []
    """The requested lanes to which parked jobs still return."""
    gave_up: bool = False
    """Whether jobs were left out because of conflicts."""


class ExchangePlanner:
    """Runs the planned exchanges of one worker's connection."""

    def __init__(self, connection: PostgresConnection, insert_schema: Callable[[str], str]) -> None:
        self._connection = connection
        self._insert_schema = insert_schema
        self._locked_left = 0
        self._sizes: Sizes | None = None

    async def run(
        self, now: int | None, exchange: PlannedExchange, *, extra_time: float
    ) -> PlannedReply:
        """Run one exchange."""
        sizes = make_sizes(exchange.request)
        if self._locked_left > 0:
            self._locked_left -= 1
            return await self._connection.run_in_transaction(
                partial(self._begin_and_lease, now, exchange, sizes, lock=True),
                extra_time=extra_time,
            )
        fetch = partial(self._connection.fetch, extra_time=extra_time)
        reply = await self._begin(fetch, now, exchange, sizes, lock=False)
        if await self._lease(fetch, now, exchange, sizes, reply, conflicts=1):
            return reply
        self._locked_left = _LOCKED_EXCHANGES
        await self._connection.run_in_transaction(
            partial(self._lease_again, now, exchange, sizes, reply), extra_time=extra_time
        )
        return reply

    async def _begin_and_lease(
        self, now: int | None, exchange: PlannedExchange, sizes: Sizes, fetch: Fetch, *, lock: bool
    ) -> PlannedReply:
        reply = await self._begin(fetch, now, exchange, sizes, lock=lock)
        reply.gave_up = not await self._lease(
            fetch, now, exchange, sizes, reply, conflicts=_MOST_CONFLICTS
        )
        return reply

    async def _lease_again(
        self,
        now: int | None,
        exchange: PlannedExchange,
        sizes: Sizes,
        reply: PlannedReply,
        fetch: Fetch,
    ) -> None:
        candidates = await self._read_again(fetch, now, exchange, sizes, lock=True)
        reply.gave_up = not await self._lease(
            fetch, now, exchange, sizes, reply, candidates, conflicts=_MOST_CONFLICTS
        )

    async def _begin(
        self, fetch: Fetch, now: int | None, exchange: PlannedExchange, sizes: Sizes, *, lock: bool
    ) -> PlannedReply:
        """Settle, promote and read candidates."""
        request = exchange.request
        rows = await fetch(
            self._insert_schema(_BEGIN),
            now,
            exchange.session_id,
            exchange.number,
            *exchange.settlements,
            max(0, request.total),
            request.nonce,
            exchange.queues,
            exchange.names,
            request.max_bytes,
            is_capped(request),
            list(sizes),
            lock,
            *exchange.marks,
        )
        return PlannedReply(rows[-1], rows if len(rows) > 1 else None)

    async def _read_again(
        self, fetch: Fetch, now: int | None, exchange: PlannedExchange, sizes: Sizes, *, lock: bool
    ) -> tuple[int, str | None]:
        """Return the time, and candidates."""
        request = exchange.request
        (row,) = await fetch(
            self._insert_schema(_READ_AGAIN),
            now,
            exchange.session_id,
            request.total,
            exchange.queues,
            exchange.names,
            request.max_bytes,
            list(sizes),
            lock,
            *exchange.marks[:2],
        )
        return row["now"], row["candidates"]

    async def _lease(  # noqa: PLR0917 - the parts of one exchange
        self,
        fetch: Fetch,
        now: int | None,
        exchange: PlannedExchange,
        sizes: Sizes,
        reply: PlannedReply,
        read: tuple[int, str | None] | None = None,
        *,
        conflicts: int,
    ) -> bool:
        """Make a plan and apply it. Return False after so many conflicts."""
        at, candidates = read or (reply.begun["now"], reply.begun["options"])
        excluded: set[int] = set()
        while candidates is not None:
            plan = Plan(at, candidates, exchange.request, sizes, excluded)
            reply.changing = plan.changing
            try:
                plan.make()
            except NeedsMore as more:
                sizes = sizes.grow(more.what)
                at, candidates = await self._read_again(fetch, now, exchange, sizes, lock=False)
                continue
            rows = await fetch(
                self._insert_schema(_APPLY),
                at,
                exchange.session_id,
                exchange.number,
                exchange.request.nonce,
                *plan.encode(),
                exchange.queues,
                exchange.names,
                *exchange.marks[:2],
            )
            status = rows[-1]
            if status["outcome"] != "conflict":
                reply.rows = rows if status["outcome"] == "ok" else None
                reply.seqs = plan.seqs
                return True
            conflicts -= 1
            if not conflicts:
                return False
            if status["results"]:
                excluded.update(map(int, status["results"].split(",")))
            at, candidates = await self._read_again(fetch, now, exchange, sizes, lock=False)
        return True


class Plan:
    """A plan of an exchange, from the candidates that were read."""

    def __init__(
        self,
        now: int,
        candidates: str,
        request: ReserveRequest,
        sizes: Sizes,
        excluded: Collection[int],
    ) -> None:
        self._now = now
        self._candidates = decode_candidates(candidates)
        self._request = request
        self._sizes = sizes
        self._excluded = excluded
        self._short: FirstTurns | None = None
        self.changing: list[int] = self._candidates.changing

    def make(self) -> None:
        """Make the plan. If its jobs do not fit into the reply, make one for fewer.

        Raises:
            NeedsMore: more candidates have to be read.
        """
        if self._candidates.sizes is None and not self._excluded:
            self._short = plan_first_turns(self._candidates, self._request)
            if self._short is not None:
                return
        self._make(self._request)
        if self._candidates.sizes is None:
            return
        sizes = dict(self._candidates.sizes)
        fitting = count_fitting(
            [sizes[lease.seq] for lease in self._plan.leases], self._request.max_bytes
        )
        if fitting < len(self._plan.leases):
            self._make(msgspec.structs.replace(self._request, total=fitting))

    def _make(self, request: ReserveRequest) -> None:
        source = PostgresSource(self._candidates, request, self._sizes, self._excluded)
        lanes, uses = source.make_lanes()
        has_turns = source.has_turns or any(
            share is not None for *_, share in self._candidates.parked or ()
        )
        self._source = source
        self._plan: ReservePlan = plan_reserve(
            source, lanes, request, self._now, uses=uses, has_turns=has_turns
        )

    @property
    def seqs(self) -> Sequence[int]:
        """The jobs to lease, in the order of the reply."""
        if self._short is not None:
            return self._short.seqs
        return [lease.seq for lease in self._plan.leases]

    def encode(self) -> list[Any]:
        """Return the arguments of `apply_plan_1` from the jobs to the waiting lanes."""
        if self._short is not None:
            return self._short.encode()
        plan, source = self._plan, self._source
        parked = {**plan.park, **plan.move}
        # Own limits are counted by `take_limits_1`.
        keys = dict.fromkeys((*(key for key in plan.uses if key in source.uses), *parked.values()))
        for lease in plan.leases:
            keys.update(dict.fromkeys(list_counted_keys(lease)))
        places: dict[LimitKey, int] = {key: n for n, key in enumerate(keys, 1)}
        return [
            *self._encode_jobs([lease.seq for lease in plan.leases], list(parked)),
            *self._encode_lease_keys(places),
            *self._encode_charges(),
            [places[key] for key in parked.values()] or None,
            plan.unpark or None,
            *self._encode_uses(list(keys)),
            self._candidates.version if keys else None,
            *encode_shares(plan, source),
            None,
        ]

    def _encode_jobs(self, leased: list[int], parked: list[int]) -> list[Any]:
        seqs = leased + parked
        jobs: list[CandidateJob] = [self._source.jobs[seq] for seq in seqs]
        lanes = [lane for _, lane, _ in jobs]
        main_lanes = [main_lane for _, _, main_lane in jobs]
        return [
            seqs,
            [due for due, _, _ in jobs],
            lanes,
            None if main_lanes == lanes else main_lanes,
            len(leased),
        ]

    def _encode_lease_keys(self, places: dict[LimitKey, int]) -> list[Any]:
        ends: list[int] = []
        keys: list[int] = []
        for lease in self._plan.leases:
            keys += [places[key] for key in list_counted_keys(lease)]
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


def list_counted_keys(lease: PlannedLease) -> list[LimitKey]:
    """Return the keys for which a lease is counted: those of its job, and that of its queue."""
    of_queue = [
        limit.key for limit in lease.lane.limits if get_limited_queue(limit.key[0]) is not None
    ]
    return [limit.key for limit in lease.limits] + of_queue


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


def count_fitting(sizes: Sequence[int], max_bytes: int) -> int:
    """Return how many jobs of these sizes, from the first on, fit into one reply: at least 1."""
    for count, size in enumerate(sizes):
        max_bytes -= size
        if max_bytes < 0 and count:
            return count
    return len(sizes)
