"""The suite against itself: each backend that is broken in one point must fail the case for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.memory.state import JobEntry, MemoryState
from nimburion.backends.waiters import EVERY_QUEUE, LastWait
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import SessionLost
from nimburion.core.exchange import Lane, Reply, ReserveRequest
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.lease import Lease, Token
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.maintenance import Cancellation, JobChanges, Promoted, Rescued, Retention
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, WHOLE_PAYLOAD, JobFilter, Page
from nimburion.core.records import NewRecord, RecordChange, RecordPut
from nimburion.core.schedules import Fired, Overlap, decode_schedule
from nimburion.core.session import HeartbeatReply, Session, Vitals
from nimburion.core.settlement import Completed, Progressed, Released, Retried, Settled, Settlement
from nimburion.core.timing.clock import Clock
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract
from nimburion.testing.contract.consuming.token_cases import TOKEN_CASES
from nimburion.testing.contract.maintaining.dead_letters import ODD
from tests.overridden import OverridableBackend


class OpenMemoryBackend(OverridableBackend):
    """A memory backend whose data the breakages below may reach."""

    @property
    def state(self) -> MemoryState:
        return self._data.shared.state

    def new_handle(self) -> MemoryBackend:
        handle = type(self)(clock=self._data.clock)
        handle._data.shared = self._data.shared
        return handle

    def find_entry(self, job_id: str) -> JobEntry | None:
        return self.state.jobs.get(job_id)


class TokenNotCompared(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        trusted = [self._trust(one, session_id) for one in settlements]
        return await super().exchange(session_id, number, trusted, request)

    def _trust(self, one: Settlement, session_id: str) -> Settlement:
        entry = self.find_entry(one.lease.job_id)
        if entry is None or entry.leased is None:
            return one
        return replace(one, lease=replace(one.lease, token=self._token(entry, one.lease)))

    def _token(self, entry: JobEntry, lease: Lease) -> Token:
        assert entry.leased is not None
        return entry.leased.token


class OnlyTheCounterCompared(TokenNotCompared):
    def _token(self, entry: JobEntry, lease: Lease) -> Token:
        assert entry.leased is not None
        return Token(lease.token.fence, entry.leased.token.nonce)


class OnlyTheRandomHalfCompared(TokenNotCompared):
    def _token(self, entry: JobEntry, lease: Lease) -> Token:
        assert entry.leased is not None
        return Token(entry.leased.token.fence, lease.token.nonce)


class TokenNotComparedForProgress(TokenNotCompared):
    def _trust(self, one: Settlement, session_id: str) -> Settlement:
        return super()._trust(one, session_id) if isinstance(one, Progressed) else one


class SessionNotCompared(TokenNotCompared):
    def _trust(self, one: Settlement, session_id: str) -> Settlement:
        entry, tenant = self.find_entry(one.lease.job_id), self.state.sessions[session_id]
        if entry is not None and entry.leased is not None:
            entry.leased.session = tenant
        return one


class AlreadyReportedAsStale(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, request)
        stale = [Settled.STALE if one is Settled.ALREADY else one for one in reply.results]
        return replace(reply, results=stale)


class NumberIgnored(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        tenant = self.state.sessions.get(session_id)
        if tenant is not None:
            tenant.last_exchange_number = number - 1
        return await super().exchange(session_id, number, settlements, request)


class RepeatForgetsResults(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        tenant = self.state.sessions.get(session_id)
        repeat = tenant is not None and tenant.last_exchange_number == number
        reply = await super().exchange(session_id, number, settlements, request)
        return replace(reply, results=[]) if repeat else reply


class PromotesEarly(OpenMemoryBackend):
    async def promote(self, limit: int) -> Promoted:
        for entry in self.state.jobs.values():
            entry.due -= 1_000
        self.state.scheduled = [
            (due - 1_000, seq, place, entry) for due, seq, place, entry in self.state.scheduled
        ]
        return await super().promote(limit)


class LimitOffByOne(OpenMemoryBackend):
    async def open_session(self, session: Session) -> None:
        limits = {
            name: {
                limit: LimitRule(None if rule.concurrency is None else rule.concurrency + 1)
                for limit, rule in rules.items()
            }
            for name, rules in session.limits.items()
        }
        await super().open_session(replace(session, limits=limits))


class LimitNotFreedByRescue(OpenMemoryBackend):
    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        held = {key: use.in_use for key, use in self.state.limit_uses.items()}
        rescued = await super().rescue(limit, max_lost=max_lost)
        for key, count in held.items():
            self.state.limit_uses[key].in_use = count
        return rescued


class LimitCountsFromZero(OpenMemoryBackend):
    async def open_session(self, session: Session) -> None:
        known = set(self.state.limit_uses)
        await super().open_session(session)
        for key in self.state.limit_uses.keys() - known:
            self.state.limit_uses[key].in_use = 0


class KeyFreedByReserving(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, request)
        if reply.deliveries:
            self.state.unique_keys.clear()
        return reply


class KeyIgnored(OpenMemoryBackend):
    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        return await super().enqueue(
            [replace(job, options=replace(job.options, unique_key=None)) for job in jobs], flows
        )


class PriorityIgnored(OpenMemoryBackend):
    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        return await super().enqueue([replace(job, priority=5) for job in jobs], flows)


class AgeingIgnored(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        return await super().exchange(session_id, number, settlements, replace(request, ageing=0.0))


class OrderedByAgeOfTheLane(OpenMemoryBackend):
    """Sorts everything instead of merging heads."""

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, request)
        return replace(reply, deliveries=sorted(reply.deliveries, key=lambda one: one.due))


class CapIgnored(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        options = {queue: replace(one, limit=None) for queue, one in request.queues.items()}
        return await super().exchange(
            session_id, number, settlements, replace(request, queues=options)
        )


class ServesEveryLane(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        lanes = (*request.lanes, *(Lane(*lane) for lane in list(self.state.lanes)))
        return await super().exchange(
            session_id, number, settlements, replace(request, lanes=lanes)
        )


class ReservesBeforeItSettles(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        first = await super().exchange(session_id, number, [], request)
        tenant = self.state.sessions[session_id]
        tenant.last_exchange_number -= 1
        second = await super().exchange(session_id, number, settlements, replace(request, total=0))
        return replace(first, results=second.results)


class ReleaseCountsAFailure(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        for one in settlements:
            entry = self.find_entry(one.lease.job_id)
            if isinstance(one, Released) and entry is not None:
                entry.failures += 1
        return await super().exchange(session_id, number, settlements, request)


class DelayFromTheReservation(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        return await super().exchange(
            session_id, number, [self._sooner(one) for one in settlements], request
        )

    def _sooner(self, one: Settlement) -> Settlement:
        entry = self.find_entry(one.lease.job_id)
        if not isinstance(one, Retried) or entry is None or entry.leased is None:
            return one
        return replace(
            one, delay=one.delay - (self._data.clock.now() - entry.leased.started_at / 1e6)
        )


class ResultDropped(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        plain = [replace(o, result=None) if isinstance(o, Completed) else o for o in settlements]
        return await super().exchange(session_id, number, plain, request)


class LostNotCounted(OpenMemoryBackend):
    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        rescued = await super().rescue(limit, max_lost=max_lost)
        for job_id in rescued.returned:
            self.state.jobs[job_id].lost = 0
        return rescued


class RescuesLiveSessions(OpenMemoryBackend):
    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        for tenant in self.state.sessions.values():
            tenant.expires_at = self._data.clock.monotonic()
        return await super().rescue(limit, max_lost=max_lost)


class HeartbeatRevivesExpired(OpenMemoryBackend):
    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        try:
            return await super().heartbeat(session_id, vitals)
        except SessionLost:
            return HeartbeatReply([], [], {})


class ClosingCountsALoss(OpenMemoryBackend):
    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        tenant = self.state.sessions.get(session_id)
        for entry in tenant.leased_jobs.values() if tenant else ():
            entry.lost += 1
        await super().close_session(session_id, running)


class StoresHalfOfACall(OpenMemoryBackend):
    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        return [
            result for job in jobs for result in await super(OpenMemoryBackend, self).enqueue([job])
        ]


class ComparesIdsOnly(OpenMemoryBackend):
    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        results = await super().enqueue(jobs, flows)
        return [replace(o, outcome="exists") if o.outcome == "conflict" else o for o in results]


class CancelsWhatRuns(OpenMemoryBackend):
    async def cancel(self, job_id: str) -> Cancellation:
        answer = await super().cancel(job_id)
        return Cancellation.CANCELLED if answer is Cancellation.REQUESTED else answer


class ReplayForgetsHistory(OpenMemoryBackend):
    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        changes = await super().change_jobs(action, job_ids, record, states=states)
        for job_id in changes.ids:
            if action is BulkAction.REPLAY:
                self.state.jobs[job_id].history = ()
        return changes


class MakesDueAndForgetsFailures(OpenMemoryBackend):
    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        changes = await super().change_jobs(action, job_ids, record, states=states)
        for job_id in changes.ids:
            if action is BulkAction.RUN_NOW:
                self.state.jobs[job_id].failures = 0
        return changes


class DeadLetterOverwritten(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, request)
        for one in settlements:
            entry = self.find_entry(one.lease.job_id)
            if entry is not None and entry.payload is not None:
                entry.payload = entry.payload.replace(b" ", b"")
        return reply


class PrunesOneTooMany(OpenMemoryBackend):
    async def prune(self, keep: Retention, limit: int) -> int:
        return await super().prune(keep, limit + 1)


class PausesNothing(OpenMemoryBackend):
    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        pass


class SessionsUndoChanges(OpenMemoryBackend):
    async def open_session(self, session: Session) -> None:
        self.state.limit_changes.clear()
        await super().open_session(session)


class ChangesLimitsOnlyForNewSessions(OpenMemoryBackend):
    async def change_limit(self, change: LimitChange) -> None:
        self.state.limit_changes[change.name] = change


class ResetsNothing(OpenMemoryBackend):
    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        return name in self.state.limit_changes


class PausesForEver(OpenMemoryBackend):
    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        await super().pause_queue(queue, paused=paused, by=by, reason=reason)


class AddsRepeatedStatistics(OpenMemoryBackend):
    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        await super().put_statistics(f"{source}{len(self.state.statistics)}", rows)


class KeepsOneSourceOfStatistics(OpenMemoryBackend):
    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        await super().put_statistics("", rows)


class ReplacedRecordForgetsTheFirstTime(OpenMemoryBackend):
    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        if version is None:
            await self.delete_record(record.kind, record.id)
        return await super().put_record(record, version=version, keep=keep)


class RecordVersionIgnored(OpenMemoryBackend):
    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        return await super().put_record(record, version=None if version else version, keep=keep)


class GivenStatesIgnored(OpenMemoryBackend):
    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        return await super().change_jobs(action, job_ids, record)


class StepVersionIgnored(OpenMemoryBackend):
    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        kept = record and await self.get_record(record.kind, record.id)
        if record and kept:
            record = replace(record, version=kept.version)
        return await super().change_jobs(action, job_ids, record, states=states)


class ChangesJobsUnderAStaleRecord(OpenMemoryBackend):
    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        changes = await super().change_jobs(action, job_ids, record, states=states)
        if record and changes.record is None:
            await super().change_jobs(action, job_ids)
        return changes


class DeletesRecordsThatAreDue(OpenMemoryBackend):
    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        put = await super().put_record(record, version=version, keep=keep)
        if put.outcome == "full" and put.record:
            await self.delete_record(put.record.kind, put.record.id)
            put = await super().put_record(record, version=version, keep=keep)
        return put


class SearchesWithoutBudget(OpenMemoryBackend):
    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        return await super().list_jobs(which, limit=limit, after=after, payloads=payloads)


class SearchEndsAtItsBudget(OpenMemoryBackend):
    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        page = await super().list_jobs(
            which, limit=limit, after=after, payloads=payloads, budget=budget
        )
        return replace(page, next=page.next if len(page.jobs) == limit else None)


class ForgetsWhoEndedAJob(OpenMemoryBackend):
    async def get_job(self, job_id: str) -> JobRecord:
        return replace(await super().get_job(job_id), ended_by=None, host="")


class CommandIsSentOnce(OpenMemoryBackend):
    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        reply = await super().heartbeat(session_id, vitals)
        self.state.sessions[session_id].command = None
        return reply


class HeartbeatForgetsVitals(OpenMemoryBackend):
    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        reply = await super().heartbeat(session_id, vitals)
        self.state.sessions[session_id].vitals = vitals
        return reply


class FiresWithoutComparing(OpenMemoryBackend):
    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        kept = await self.get_record("schedule", name)
        last = None if kept is None else decode_schedule(kept).last_tick
        return await super().fire(name, last, tick, job, overlap)


class PagesOverlap(OpenMemoryBackend):
    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        after = after and str(int(after) + 1)
        return await super().list_jobs(
            which, limit=limit, after=after, payloads=payloads, budget=budget
        )


class ForgetsThePayload(OpenMemoryBackend):
    async def get_job(self, job_id: str) -> JobRecord:
        record = await super().get_job(job_id)
        return replace(record, payload=None) if record.state is State.FAILED else record


class NeverWakes(OpenMemoryBackend):
    async def wait(self, queues: Collection[str], timeout: float) -> None:
        await self._data.clock.sleep(timeout)


class WakesEveryone(OpenMemoryBackend):
    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        results = await super().enqueue(jobs, flows)
        self._data.shared.notify({EVERY_QUEUE: 1})
        return results


class WakesOneForAnyNumber(OpenMemoryBackend):
    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        with self._data.shared.lock:
            waiters = self._data.shared.waiters
            kept = dict(list(waiters.items())[1:])
            for waiter in kept:
                del waiters[waiter]
            results = await super().enqueue(jobs, flows)
            waiters.update(kept)
        return results


class NeverPassing(LastWait):
    __slots__ = ()

    def note_end(self, may_pass: Collection[str] = ()) -> None:
        super().note_end()


class NeverPassesOn(OpenMemoryBackend):
    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self._last_wait = NeverPassing()


class AlwaysPassing(LastWait):
    __slots__ = ()

    def find_next(self, request: ReserveRequest, reply: Reply) -> tuple[Collection[str], bool]:
        queues, _ = super().find_next(request, reply)
        return queues or {lane.queue for lane in request.lanes}, False


class PassesOnForEver(OpenMemoryBackend):
    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self._last_wait = AlwaysPassing()


class NeverWakesTheNext(OpenMemoryBackend):
    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        self._last_wait.find_next(request, Reply([], [], []))
        return await super().exchange(session_id, number, settlements, request)


class NeverNotifiesSessions(OpenMemoryBackend):
    async def wait_for_session(self, session_id: str) -> None:
        await asyncio.Event().wait()


class NotifiesEverySession(OpenMemoryBackend):
    async def wait_for_session(self, session_id: str) -> None:
        return


class NewHandleIsEmpty(MemoryBackend):
    def new_handle(self) -> MemoryBackend:
        return MemoryBackend(clock=self._data.clock)


class Breakage(NamedTuple):
    """A backend that is broken, and a case that must say so."""

    backend: type[MemoryBackend]
    case: str
    arguments: tuple[object, ...] = ()
    handles: int = 1


def _token_case(backend: type[MemoryBackend], row: str, kind: str = "Completed") -> Breakage:
    (case,) = [found for found in TOKEN_CASES if found.name == row]
    return Breakage(backend, "a_settlement_writes_only_under_its_whole_token", (case, (kind,)))


BREAKAGES = [
    _token_case(TokenNotCompared, "processing again, older than that"),
    _token_case(OnlyTheCounterCompared, "processing, other random half"),
    _token_case(OnlyTheRandomHalfCompared, "processing, other counter"),
    _token_case(TokenNotComparedForProgress, "processing, other random half", "Progressed"),
    _token_case(SessionNotCompared, "processing, right, from another session"),
    _token_case(AlreadyReportedAsStale, "completed, the one that settled it"),
    Breakage(NumberIgnored, "a_repeat_brings_the_same_deliveries"),
    Breakage(NumberIgnored, "a_skipped_number_is_out_of_order_and_writes_nothing"),
    Breakage(RepeatForgetsResults, "a_repeat_brings_the_same_results"),
    Breakage(PromotesEarly, "what_is_not_due_stays"),
    Breakage(LimitOffByOne, "no_more_than_the_limit_in_one_reply"),
    Breakage(LimitOffByOne, "a_limit_holds_for_a_fleet_that_loses_workers", (600,), 8),
    Breakage(LimitNotFreedByRescue, "rescue_gives_places_back"),
    Breakage(LimitCountsFromZero, "a_new_limit_counts_what_is_processing"),
    Breakage(KeyFreedByReserving, "an_unfinished_job_keeps_its_key", ("retried",)),
    Breakage(KeyIgnored, "a_held_key_is_taken"),
    Breakage(KeyIgnored, "one_unique_key_is_taken_once", (), 8),
    Breakage(PriorityIgnored, "job_priority_orders_a_lane"),
    Breakage(AgeingIgnored, "a_head_ages_one_level_for_each_whole_span", (120.0, "waited")),
    Breakage(OrderedByAgeOfTheLane, "an_old_job_behind_a_fresh_urgent_one_does_not_lift_it"),
    Breakage(CapIgnored, "a_queue_limit_limits_this_reply"),
    Breakage(ServesEveryLane, "a_name_that_no_worker_requests_waits"),
    Breakage(ReservesBeforeItSettles, "every_end_of_a_lease_frees_its_place", ("completed",)),
    Breakage(ReleaseCountsAFailure, "released_counts_nothing"),
    Breakage(DelayFromTheReservation, "the_delay_is_counted_on_the_clock_of_the_backend"),
    Breakage(ResultDropped, "completed_keeps_the_result_and_drops_the_payload"),
    Breakage(LostNotCounted, "a_loss_is_counted_apart_from_failures_and_added_to_the_history"),
    Breakage(LostNotCounted, "the_last_loss_makes_a_dead_letter"),
    Breakage(RescuesLiveSessions, "a_live_session_is_left_alone"),
    Breakage(HeartbeatRevivesExpired, "a_rescued_session_never_lives_again"),
    Breakage(ClosingCountsALoss, "closing_releases_what_was_held"),
    Breakage(StoresHalfOfACall, "one_conflict_refuses_the_whole_call"),
    Breakage(ComparesIdsOnly, "another_body_under_a_finished_id_is_a_conflict"),
    Breakage(CancelsWhatRuns, "a_running_job_is_cancelled_through_its_worker"),
    Breakage(MakesDueAndForgetsFailures, "a_retry_is_due_at_once_and_counts_its_failures"),
    Breakage(ReplayForgetsHistory, "counts_begin_anew_and_the_history_stays"),
    Breakage(DeadLetterOverwritten, "the_payload_is_the_same_byte_for_byte", (ODD,)),
    Breakage(PrunesOneTooMany, "the_limit_holds_and_less_means_that_nothing_is_left"),
    Breakage(PausesForEver, "a_pause_ends_by_itself"),
    Breakage(SessionsUndoChanges, "a_change_wins_over_newer_sessions"),
    Breakage(ChangesLimitsOnlyForNewSessions, "a_change_raises_a_limit_at_the_next_exchange"),
    Breakage(ResetsNothing, "a_reset_returns_to_what_the_newest_session_declares"),
    Breakage(AddsRepeatedStatistics, "a_repeated_put_of_statistics_changes_nothing"),
    Breakage(KeepsOneSourceOfStatistics, "the_counters_of_all_sources_are_added_up"),
    Breakage(
        ReplacedRecordForgetsTheFirstTime, "a_record_that_is_replaced_keeps_its_place_and_time"
    ),
    Breakage(RecordVersionIgnored, "only_the_given_version_is_replaced"),
    Breakage(RecordVersionIgnored, "of_many_that_replace_a_version_one_does", (), 8),
    Breakage(DeletesRecordsThatAreDue, "a_record_with_a_due_time_is_not_deleted_as_the_oldest"),
    Breakage(
        GivenStatesIgnored,
        "a_job_changes_only_in_the_given_states",
        arguments=(BulkAction.DELETE, "completed"),
    ),
    Breakage(StepVersionIgnored, "a_step_of_another_version_changes_nothing"),
    Breakage(StepVersionIgnored, "a_repeated_step_changes_nothing"),
    Breakage(ChangesJobsUnderAStaleRecord, "a_repeated_step_changes_nothing"),
    Breakage(SearchesWithoutBudget, "a_search_stops_at_its_budget_and_continues", (3,)),
    Breakage(SearchEndsAtItsBudget, "a_search_stops_at_its_budget_and_continues", (3,)),
    Breakage(ForgetsWhoEndedAJob, "a_completed_attempt_names_its_session_and_host"),
    Breakage(CommandIsSentOnce, "a_command_comes_with_every_heartbeat"),
    Breakage(HeartbeatForgetsVitals, "vitals_are_listed_with_the_session"),
    Breakage(PausesNothing, "a_paused_queue_returns_no_jobs"),
    Breakage(FiresWithoutComparing, "the_same_tick_fires_once"),
    Breakage(FiresWithoutComparing, "one_tick_fires_once", (), 8),
    Breakage(PagesOverlap, "pages_have_no_gaps_and_no_doubles", (3,)),
    Breakage(ForgetsThePayload, "failed_is_a_dead_letter_with_all_that_belongs_to_it"),
    Breakage(NeverWakes, "as_many_are_woken_as_there_are_jobs", (3,), 8),
    Breakage(WakesEveryone, "as_many_are_woken_as_there_are_jobs", (3,), 8),
    Breakage(WakesOneForAnyNumber, "as_many_are_woken_as_there_are_jobs", (3,), 8),
    Breakage(NeverPassesOn, "a_worker_that_finds_nothing_passes_the_wakeup_on_once", (), 8),
    Breakage(PassesOnForEver, "a_worker_that_finds_nothing_passes_the_wakeup_on_once", (), 8),
    Breakage(NeverWakesTheNext, "a_worker_that_leaves_jobs_wakes_the_next", (), 8),
    Breakage(NeverNotifiesSessions, "a_session_is_notified_by", ("a command",), 8),
    Breakage(NotifiesEverySession, "only_the_session_that_holds_the_job_is_notified", (), 8),
    Breakage(NewHandleIsEmpty, "a_new_handle_opens_the_same_data"),
]


class BrokenBackendContract(BackendContract):
    """The suite, on any class of memory backend. Not collected: no name of a test class."""

    def __init__(self, backend: type[MemoryBackend]) -> None:
        self.made = backend

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        first = self.made(clock=clock)
        return [first, *(first.new_handle() for _ in range(count - 1))]


async def run_case(backend: type[MemoryBackend], breakage: Breakage, tmp_path: Path) -> None:
    """The case itself, called as it stands."""
    kit = BrokenBackendContract(backend)
    async with kit.make_harness(breakage.handles, tmp_path) as harness:
        await getattr(kit, f"test_{breakage.case}")(harness, *breakage.arguments)


@pytest.mark.parametrize(
    "breakage", BREAKAGES, ids=[f"{one.backend.__name__}-{one.case}" for one in BREAKAGES]
)
async def test_a_broken_backend_fails(
    breakage: Breakage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a sound one passes the same case, so that it is the breakage which is seen."""
    for module in ("harness", "consuming.waiting"):
        monkeypatch.setattr(f"nimburion.testing.contract.{module}.DEADLINE", 2.0)
    await run_case(MemoryBackend, breakage, tmp_path)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await run_case(breakage.backend, breakage, tmp_path)
