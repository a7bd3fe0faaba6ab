"""The suite against itself: stores that are broken in one point must each fail the case for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.memory.state import Entry, Shelf
from nimburion.core.backend import Backend
from nimburion.core.errors import SessionLost
from nimburion.core.exchange import Lane, Reply, Want
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.lease import Lease, Token
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, JobFilter, Page
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import Orders, Session
from nimburion.core.settlement import Completed, Progressed, Released, Retried, Settled, Settlement
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract
from nimburion.testing.contract.dead_letters import ODD
from nimburion.testing.contract.situations import SITUATIONS


class Inside(MemoryBackend):
    """A memory store whose data the breakages below may reach."""

    @property
    def shelf(self) -> Shelf:
        return self._shared.shelf

    def sibling(self) -> MemoryBackend:
        handle = type(self)(clock=self._clock)
        handle._shared = self._shared
        return handle

    def entry(self, job_id: str) -> Entry | None:
        return self.shelf.jobs.get(job_id)


class TokenNotCompared(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        trusted = [self._trust(one, session_id) for one in settlements]
        return await super().exchange(session_id, number, trusted, want)

    def _trust(self, one: Settlement, session_id: str) -> Settlement:
        entry = self.entry(one.lease.job_id)
        if entry is None or entry.held is None:
            return one
        return replace(one, lease=replace(one.lease, token=self._token(entry, one.lease)))

    def _token(self, entry: Entry, lease: Lease) -> Token:
        assert entry.held is not None
        return entry.held.token


class OnlyTheCounterCompared(TokenNotCompared):
    def _token(self, entry: Entry, lease: Lease) -> Token:
        assert entry.held is not None
        return Token(lease.token.fence, entry.held.token.nonce)


class OnlyTheRandomHalfCompared(TokenNotCompared):
    def _token(self, entry: Entry, lease: Lease) -> Token:
        assert entry.held is not None
        return Token(entry.held.token.fence, lease.token.nonce)


class TokenNotComparedForProgress(TokenNotCompared):
    def _trust(self, one: Settlement, session_id: str) -> Settlement:
        return super()._trust(one, session_id) if isinstance(one, Progressed) else one


class SessionNotCompared(TokenNotCompared):
    def _trust(self, one: Settlement, session_id: str) -> Settlement:
        entry, tenant = self.entry(one.lease.job_id), self.shelf.sessions[session_id]
        if entry is not None and entry.held is not None:
            entry.held.session = tenant
        return one


class AlreadySaysStale(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, want)
        stale = [Settled.STALE if one is Settled.ALREADY else one for one in reply.results]
        return replace(reply, results=stale)


class NumberIgnored(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        tenant = self.shelf.sessions.get(session_id)
        if tenant is not None:
            tenant.number = number - 1
        return await super().exchange(session_id, number, settlements, want)


class RepeatForgetsResults(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        tenant = self.shelf.sessions.get(session_id)
        repeat = tenant is not None and tenant.number == number
        reply = await super().exchange(session_id, number, settlements, want)
        return replace(reply, results=[]) if repeat else reply


class PromotesEarly(Inside):
    async def promote(self, limit: int) -> Promoted:
        for entry in self.shelf.jobs.values():
            entry.due -= 1_000
        self.shelf.scheduled = [
            (due - 1_000, seq, place, entry) for due, seq, place, entry in self.shelf.scheduled
        ]
        return await super().promote(limit)


class GateOffByOne(Inside):
    async def open_session(self, session: Session) -> None:
        limits = {name: limit + 1 for name, limit in session.limits.items()}
        await super().open_session(replace(session, limits=limits))


class GateNotGivenBackByRescue(Inside):
    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        held = {name: gate.held for name, gate in self.shelf.gates.items()}
        rescued = await super().rescue(limit, max_lost=max_lost)
        for name, count in held.items():
            self.shelf.gates[name].held = count
        return rescued


class GateCountsFromZero(Inside):
    async def open_session(self, session: Session) -> None:
        known = set(self.shelf.gates)
        await super().open_session(session)
        for name in self.shelf.gates.keys() - known:
            self.shelf.gates[name].held = 0


class KeyFreedByReserving(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, want)
        if reply.deliveries:
            self.shelf.keys.clear()
        return reply


class KeyIgnored(Inside):
    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        return await super().enqueue(
            [replace(job, options=replace(job.options, unique_key=None)) for job in jobs]
        )


class PriorityIgnored(Inside):
    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        return await super().enqueue([replace(job, priority=5) for job in jobs])


class AgeingIgnored(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        return await super().exchange(session_id, number, settlements, replace(want, ageing=0.0))


class OrderedByAgeOfTheLane(Inside):
    """Sorts everything instead of merging heads."""

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, want)
        return replace(reply, deliveries=sorted(reply.deliveries, key=lambda one: one.due))


class CapIgnored(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        terms = {queue: replace(one, cap=None) for queue, one in want.queues.items()}
        return await super().exchange(session_id, number, settlements, replace(want, queues=terms))


class ServesEveryLane(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        lanes = (*want.lanes, *(Lane(*lane) for lane in list(self.shelf.lanes)))
        return await super().exchange(session_id, number, settlements, replace(want, lanes=lanes))


class ReservesBeforeItSettles(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        first = await super().exchange(session_id, number, [], want)
        tenant = self.shelf.sessions[session_id]
        tenant.number -= 1
        second = await super().exchange(session_id, number, settlements, replace(want, total=0))
        return replace(first, results=second.results)


class ReleaseCountsAFailure(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        for one in settlements:
            entry = self.entry(one.lease.job_id)
            if isinstance(one, Released) and entry is not None:
                entry.failures += 1
        return await super().exchange(session_id, number, settlements, want)


class DelayFromTheReservation(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        return await super().exchange(
            session_id, number, [self._sooner(one) for one in settlements], want
        )

    def _sooner(self, one: Settlement) -> Settlement:
        entry = self.entry(one.lease.job_id)
        if not isinstance(one, Retried) or entry is None or entry.held is None:
            return one
        return replace(one, delay=one.delay - (self._clock.now() - entry.held.at / 1e6))


class ResultDropped(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        plain = [replace(o, result=None) if isinstance(o, Completed) else o for o in settlements]
        return await super().exchange(session_id, number, plain, want)


class LostNotCounted(Inside):
    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        rescued = await super().rescue(limit, max_lost=max_lost)
        for job_id in rescued.returned:
            self.shelf.jobs[job_id].lost = 0
        return rescued


class RescuesTheLiving(Inside):
    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        for tenant in self.shelf.sessions.values():
            tenant.expires = self._clock.monotonic()
        return await super().rescue(limit, max_lost=max_lost)


class BeatsTheDead(Inside):
    async def beat(self, session_id: str) -> Orders:
        try:
            return await super().beat(session_id)
        except SessionLost:
            return Orders([], [], {})


class ClosingCountsALoss(Inside):
    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        tenant = self.shelf.sessions.get(session_id)
        for entry in tenant.held.values() if tenant else ():
            entry.lost += 1
        await super().close_session(session_id, running)


class StoresHalfOfACall(Inside):
    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        return [result for job in jobs for result in await super(Inside, self).enqueue([job])]


class ComparesIdsOnly(Inside):
    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        results = await super().enqueue(jobs)
        return [replace(o, outcome="exists") if o.outcome == "conflict" else o for o in results]


class CancelsWhatRuns(Inside):
    async def cancel(self, job_id: str) -> Cancellation:
        answer = await super().cancel(job_id)
        return Cancellation.CANCELLED if answer is Cancellation.REQUESTED else answer


class ReplayForgetsHistory(Inside):
    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        replayed = await super().replay(which, limit, after)
        for job_id in replayed.ids:
            self.shelf.jobs[job_id].history = ()
        return replayed


class DeadLetterWrittenAnew(Inside):
    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, want)
        for one in settlements:
            entry = self.entry(one.lease.job_id)
            if entry is not None and entry.payload is not None:
                entry.payload = entry.payload.replace(b" ", b"")
        return reply


class PrunesOneTooMany(Inside):
    async def prune(self, keep: Retention, limit: int) -> int:
        return await super().prune(keep, limit + 1)


class PausesNothing(Inside):
    async def pause(self, queue: str, *, paused: bool) -> None:
        pass


class FiresWithoutComparing(Inside):
    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        kept = self.shelf.schedules.get(name)
        last = None if kept is None else kept.last_tick
        return await super().fire(name, last, tick, job, overlap)


class PutForgetsTheTick(Inside):
    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        self.shelf.schedules[schedule.name] = schedule


class PagesOverlap(Inside):
    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        after = after and str(int(after) + 1)
        return await super().list_jobs(which, limit=limit, after=after, payloads=payloads)


class ForgetsThePayload(Inside):
    async def get(self, job_id: str) -> JobRecord:
        record = await super().get(job_id)
        return replace(record, payload=None) if record.state is State.FAILED else record


class NeverWakes(Inside):
    async def wait(self, queues: Collection[str], timeout: float) -> None:
        await self._clock.sleep(timeout)


class SiblingIsAnEmptyStore(MemoryBackend):
    def sibling(self) -> MemoryBackend:
        return MemoryBackend(clock=self._clock)


class Breakage(NamedTuple):
    """A store that is broken, and a case that must say so."""

    store: type[MemoryBackend]
    case: str
    arguments: tuple[object, ...] = ()
    handles: int = 1


def _token_case(store: type[MemoryBackend], row: str, kind: str = "Completed") -> Breakage:
    (situation,) = [one for one in SITUATIONS if one.name == row]
    return Breakage(store, "a_settlement_writes_only_under_its_whole_token", (situation, kind))


BREAKAGES = [
    _token_case(TokenNotCompared, "processing again, older than that"),
    _token_case(OnlyTheCounterCompared, "processing, other random half"),
    _token_case(OnlyTheRandomHalfCompared, "processing, other counter"),
    _token_case(TokenNotComparedForProgress, "processing, other random half", "Progressed"),
    _token_case(SessionNotCompared, "processing, right, from another session"),
    _token_case(AlreadySaysStale, "completed, the one that settled it"),
    Breakage(NumberIgnored, "a_repeat_brings_the_same_deliveries"),
    Breakage(NumberIgnored, "a_skipped_number_is_out_of_order_and_writes_nothing"),
    Breakage(RepeatForgetsResults, "a_repeat_brings_the_same_results"),
    Breakage(PromotesEarly, "what_is_not_due_stays"),
    Breakage(GateOffByOne, "no_more_than_the_limit_in_one_reply"),
    Breakage(GateOffByOne, "a_limit_holds_for_a_fleet_that_loses_workers", (), 8),
    Breakage(GateNotGivenBackByRescue, "rescue_gives_places_back"),
    Breakage(GateCountsFromZero, "a_new_gate_counts_what_is_processing"),
    Breakage(KeyFreedByReserving, "a_job_that_goes_on_keeps_its_key", ("retried",)),
    Breakage(KeyIgnored, "a_held_key_is_taken"),
    Breakage(KeyIgnored, "one_unique_key_is_taken_once", (), 8),
    Breakage(PriorityIgnored, "job_priority_orders_a_lane"),
    Breakage(AgeingIgnored, "a_head_ages_one_level_for_each_whole_span", (120.0, "waited")),
    Breakage(OrderedByAgeOfTheLane, "an_old_job_behind_a_fresh_urgent_one_does_not_lift_it"),
    Breakage(CapIgnored, "a_queue_cap_bounds_this_reply"),
    Breakage(ServesEveryLane, "a_name_that_nobody_asks_for_waits"),
    Breakage(ReservesBeforeItSettles, "every_end_of_a_lease_gives_its_place_back", ("completed",)),
    Breakage(ReleaseCountsAFailure, "released_counts_nothing"),
    Breakage(DelayFromTheReservation, "the_delay_is_counted_on_the_clock_of_the_store"),
    Breakage(ResultDropped, "completed_keeps_the_result_and_drops_the_payload"),
    Breakage(LostNotCounted, "a_loss_is_counted_apart_from_failures_and_joins_the_history"),
    Breakage(LostNotCounted, "the_last_loss_makes_a_dead_letter"),
    Breakage(RescuesTheLiving, "a_live_session_is_left_alone"),
    Breakage(BeatsTheDead, "a_rescued_session_never_lives_again"),
    Breakage(ClosingCountsALoss, "closing_releases_what_was_held"),
    Breakage(StoresHalfOfACall, "one_conflict_refuses_the_whole_call"),
    Breakage(ComparesIdsOnly, "another_body_under_a_finished_id_is_a_conflict"),
    Breakage(CancelsWhatRuns, "a_running_job_is_asked_through_its_worker"),
    Breakage(ReplayForgetsHistory, "counts_begin_anew_and_the_history_stays"),
    Breakage(DeadLetterWrittenAnew, "the_payload_is_the_same_byte_for_byte", (ODD,)),
    Breakage(PrunesOneTooMany, "the_bound_holds_and_less_means_that_nothing_is_left"),
    Breakage(PausesNothing, "a_paused_queue_hands_out_nothing"),
    Breakage(FiresWithoutComparing, "the_same_tick_fires_once"),
    Breakage(FiresWithoutComparing, "one_tick_fires_once", (), 8),
    Breakage(PutForgetsTheTick, "putting_again_replaces_the_spec_and_keeps_what_happened"),
    Breakage(PagesOverlap, "pages_have_no_gaps_and_no_doubles", (3,)),
    Breakage(ForgetsThePayload, "failed_is_a_dead_letter_with_all_that_belongs_to_it"),
    Breakage(NeverWakes, "everybody_who_waits_is_woken", (), 8),
    Breakage(SiblingIsAnEmptyStore, "a_sibling_is_another_handle_on_the_same_data"),
]


class Kit(BackendContract):
    """The suite, on any class of memory store. Not collected: no name of a test class."""

    def __init__(self, store: type[MemoryBackend]) -> None:
        self.made = store

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        first = self.made(clock=clock)
        return [first, *(first.sibling() for _ in range(count - 1))]


async def run_case(store: type[MemoryBackend], breakage: Breakage, tmp_path: Path) -> None:
    """The case itself, called as it stands."""
    kit = Kit(store)
    async with kit.stage_of(breakage.handles, tmp_path) as stage:
        await getattr(kit, f"test_{breakage.case}")(stage, *breakage.arguments)


@pytest.mark.parametrize(
    "breakage", BREAKAGES, ids=[f"{one.store.__name__}-{one.case}" for one in BREAKAGES]
)
async def test_a_broken_store_fails(
    breakage: Breakage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a sound one passes the same case, so that it is the breakage which is seen."""
    monkeypatch.setattr("nimburion.testing.contract.harness.DEADLINE", 2.0)
    await run_case(MemoryBackend, breakage, tmp_path)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await run_case(breakage.store, breakage, tmp_path)
