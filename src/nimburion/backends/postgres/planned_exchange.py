"""The planned exchange: what limits or tenants restrict is decided by `plan_reserve`.

The first statement settles, promotes and reads candidates; no lock is held while the plan is made.
The second one applies the plan, or reports that something that the plan has read has changed. After
such a conflict, one transaction takes the locks first, so that the next plan applies.
`planned_exchange.sql` explains the statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import msgspec

from nimburion.backends.postgres.applied_plan import AppliedPlan
from nimburion.backends.postgres.candidates import (
    Candidates,
    NeedsMore,
    decode_candidates,
    make_sizes,
)
from nimburion.backends.postgres.connection.pool import Fetch, PostgresConnection
from nimburion.backends.postgres.database import make_call, make_named_call
from nimburion.backends.postgres.encoding import to_optional_seconds, to_seconds
from nimburion.backends.postgres.exchange import (
    clamp_number,
    decode_deliveries,
    get_queues_to_notify,
    is_capped,
)
from nimburion.backends.postgres.plan import make_plan
from nimburion.core.exchange import MAX_WAITING_LANES, Reply, ReserveRequest
from nimburion.core.lease import Delivery
from nimburion.core.settlement import SETTLED_BY_LETTER

_CONTINUE_FLOWS = make_call("continue_flows_1", 1)

_LOCKED_EXCHANGES = 32
"""How many exchanges take the locks first after one that met a conflict: others use the same limits
or tenants at the same time.
"""
_MOST_CONFLICTS = 5
"""An exchange that holds the locks leases nothing after this number of conflicts. They are then
due to what the locks do not cover, such as a queue that is paused.
"""


class ExchangePlanner:
    """Runs the planned exchanges of one worker."""

    def __init__(self) -> None:
        self._locked_left = 0

    async def run(
        self, exchange: PlannedExchange, connection: PostgresConnection, *, extra_time: float
    ) -> None:
        """Run one exchange. It takes locks before it plans only after a conflict."""
        if self._locked_left > 0:
            self._locked_left -= 1
            await connection.run_in_transaction(
                exchange.begin_and_lease_locked, extra_time=extra_time
            )
            await exchange.continue_flows(partial(connection.fetch, extra_time=extra_time))
            return
        fetch = partial(connection.fetch, extra_time=extra_time)
        await exchange.begin(fetch, lock=False)
        if not await exchange.lease(fetch, conflicts=1):
            self._locked_left = _LOCKED_EXCHANGES
            await connection.run_in_transaction(exchange.lease_locked, extra_time=extra_time)


class PlannedExchange:
    """One exchange that is planned: its statements, and what they have returned."""

    def __init__(
        self,
        request: ReserveRequest,
        *,
        now: int | None,
        session_id: str,
        number: int,
        settlements: dict[str, Any],
        marks: tuple[list[int], list[int], int],
        insert_schema: Callable[[str], str],
    ) -> None:
        """Prepare an exchange.

        Args:
            request: what the exchange asks for.
            now: the time of a test's clock; None: the server reads its own.
            session_id: the id of the session.
            number: the number of the exchange.
            settlements: what `encode_named_settlements` returns.
            marks: the low-water marks, as from `LowWaterMarks.make_arguments`.
            insert_schema: inserts the schema into a statement.
        """
        self._clock = now
        self._session_id = session_id
        self._number = clamp_number(number)
        self._settlements = settlements
        self._request = request
        self._lanes = list(dict.fromkeys(request.lanes))
        self._insert_schema = insert_schema
        low_water_lanes, low_water_marks, self._scheduled_low_water_mark = marks
        self._read_arguments: dict[str, Any] = {
            "queues": [lane.queue for lane in self._lanes],
            "names": [lane.name for lane in self._lanes],
            "low_water_lanes": low_water_lanes,
            "low_water_marks": low_water_marks,
        }
        """The arguments of each statement that reads the requested lanes."""
        self._sizes = make_sizes(request)
        self._now = 0
        self._is_locked = False
        """Whether the transaction takes the locks before it reads."""
        self._candidates: Candidates | None = None
        """What was read last, and when; None: no job can be leased."""
        self._changing: list[int] = []
        """The requested lanes to which parked jobs still return."""
        self.begun: Any = None
        """The status row of the first statement."""
        self._last_read: Any = None
        """The row of the statement that has read candidates again; None: none has."""
        self._leased_rows: list[Any] | None = None
        """The rows of the statement that has leased jobs; None: nothing was leased."""
        self._plan: AppliedPlan | None = None
        """The plan that was applied."""
        self._resumed: list[str] = []
        """The queues of jobs that were resumed after the transaction."""
        self._gave_up = False
        """Whether jobs were left out because of conflicts."""

    async def begin(self, fetch: Fetch, *, lock: bool) -> None:
        """Settle and promote. Lease jobs that nothing restricts, else read candidates."""
        request = self._request
        rows = await self._call(
            fetch,
            "begin_planned_exchange_1",
            now=self._clock,
            session=self._session_id,
            number=self._number,
            **self._settlements,
            total=max(0, request.total),
            nonce=request.nonce,
            max_bytes=request.max_bytes,
            is_capped=is_capped(request),
            **self._sizes._asdict(),
            lock=lock,
            **self._read_arguments,
            scheduled_low_water_mark=self._scheduled_low_water_mark,
        )
        self.begun = rows[-1]
        self._leased_rows = rows if len(rows) > 1 else None
        self._note_candidates(self.begun["now"], self.begun["candidates"])

    async def lease(self, fetch: Fetch, *, conflicts: int) -> bool:
        """Make plans until one applies. Return False after `conflicts` plans that did not."""
        while (plan := await self._make_plan(fetch)) is not None:
            status = await self._apply(fetch, plan)
            if status["outcome"] != "conflict":
                return True
            conflicts -= 1
            if not conflicts:
                return False
            await self._read_again(fetch, lock=False)
        return True

    async def begin_and_lease_locked(self, fetch: Fetch) -> None:
        """Run all of it in a transaction that takes the locks first."""
        self._is_locked = True
        await self.begin(fetch, lock=True)
        self._gave_up = not await self.lease(fetch, conflicts=_MOST_CONFLICTS)

    async def continue_flows(self, fetch: Fetch) -> None:
        """Apply what follows from the end of members of flows, after such a transaction."""
        if self.begun["results"]:
            ((self._resumed,),) = await fetch(self._insert_schema(_CONTINUE_FLOWS), self._clock)

    async def lease_locked(self, fetch: Fetch) -> None:
        """After a conflict, lease jobs in a transaction that takes the locks first."""
        self._is_locked = True
        await self._read_again(fetch, lock=True)
        self._gave_up = not await self.lease(fetch, conflicts=_MOST_CONFLICTS)

    async def _make_plan(self, fetch: Fetch) -> AppliedPlan | None:
        """Make a plan, and read candidates until they suffice. None: no job can be leased."""
        while self._candidates is not None:
            try:
                return make_plan(self._now, self._candidates, self._request, self._sizes)
            except NeedsMore as more:
                self._sizes = self._sizes.grow(more.what)
                await self._read_again(fetch, lock=False)
        return None

    async def _read_again(self, fetch: Fetch, *, lock: bool) -> None:
        """Read candidates again."""
        (self._last_read,) = await self._call(
            fetch,
            "read_candidates_again_1",
            now=self._clock,
            session=self._session_id,
            total=self._request.total,
            max_bytes=self._request.max_bytes,
            **self._sizes._asdict(),
            lock=lock,
            is_locked=self._is_locked,
            **self._read_arguments,
        )
        self._note_candidates(self._last_read["now"], self._last_read["candidates"])

    def _note_candidates(self, now: int, encoded: str | None) -> None:
        self._now = now
        self._candidates = None if encoded is None else decode_candidates(encoded)
        if self._candidates is not None:
            self._changing = self._candidates.changing

    async def _apply(self, fetch: Fetch, plan: AppliedPlan) -> Any:  # noqa: ANN401 - a row
        """Apply a plan, and return the status row."""
        rows = await self._call(
            fetch,
            "apply_plan_1",
            now=self._now,
            session=self._session_id,
            number=self._number,
            nonce=self._request.nonce,
            **msgspec.structs.asdict(plan),
            **self._read_arguments,
        )
        if rows[-1]["outcome"] == "ok":
            self._leased_rows, self._plan = rows, plan
        return rows[-1]

    async def _call(self, fetch: Fetch, function: str, **arguments: Any) -> list[Any]:
        """Call a database function, and return its rows."""
        statement = make_named_call(function, tuple(arguments))
        return await fetch(self._insert_schema(statement), *arguments.values())

    def make_reply(self) -> Reply:
        """Return the reply of the exchange."""
        lanes = self._lanes
        rows = [self.begun] if self._last_read is None else [self.begun, self._last_read]
        deliveries: list[Delivery] = []
        if self._leased_rows is not None:
            rows.append(self._leased_rows[-1])
            deliveries = decode_deliveries(self._leased_rows, rows[-1])
        waiting = set(self._changing).union(*(row["waiting"] or () for row in rows))
        dues = [row["next_due"] for row in rows if row["next_due"] is not None]
        if self._gave_up:
            waiting.update(range(1, len(lanes) + 1))
        if self._plan is not None:
            places = {seq: place for place, seq in enumerate(self._plan.seqs)}
            deliveries.sort(key=lambda delivery: places[cast("int", delivery.lease.ref)])
        return Reply(
            [SETTLED_BY_LETTER[letter] for letter in self.begun["results"]],
            deliveries,
            [lanes[place - 1] for place in sorted(waiting)[:MAX_WAITING_LANES]],
            to_optional_seconds(min(dues, default=None)),
            to_seconds(self.begun["now"]),
        )

    def list_queues_to_notify(self, deliveries: Iterable[Delivery]) -> list[str]:
        """Return the queues to notify: also those of promoted jobs that the reply leaves."""
        if self.begun is None:
            return []
        queues = get_queues_to_notify(self.begun) + self._resumed
        if self.begun["promoted_queues"]:
            left = Counter(self.begun["promoted_queues"])
            left -= Counter(delivery.queue for delivery in deliveries)
            return queues + list(left.elements())
        return queues
