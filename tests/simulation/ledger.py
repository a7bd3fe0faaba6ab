"""Wraps the backend, records every call that is applied, and checks what must always hold.

The checks are those of a reader who trusts nobody: tokens, times and limits are compared with what
was seen before, and after each call with what the backend itself then says of the jobs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from nimburion.backends.planning.flows import REOPENED_REASONS
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import SessionLost
from nimburion.core.exchange import DELIVERY_OVERHEAD, Reply, ReserveRequest
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob, State
from nimburion.core.lease import SUSPECT_AFTER, Delivery, Lease, Token
from nimburion.core.maintenance import JobChanges, Rescued
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import CLEANUP_STEP
from nimburion.core.settlement import (
    Failed,
    Progressed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
    Suspended,
)
from nimburion.core.timing.clock import Clock
from tests.overridden import get_operation
from tests.simulation.flow_ledger import FlowLedger

Answer = Any
"""What an operation of the contract answers."""

_PROCESSING = frozenset({State.PROCESSING})
_HAIR = 1e-6
"""Floating point seconds that are the same."""
_LARGEST_DELIVERY = 4096
"""More bytes than a delivery counts here, with its options."""


class CallerTransaction(Protocol):
    """An open transaction of a caller that enqueued a job."""

    async def commit(self) -> list[Enqueued]:
        """Commit; return what the enqueue returned."""
        ...


class Ledger:
    """Applies calls on the backend and keeps the record."""

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        limits: dict[str, int],
        rates: dict[str, RateLimit],
        keyed: dict[str, int],
    ) -> None:
        self.backend = backend
        self._clock = clock
        self._limits = limits
        self._rates = rates
        self._keyed = keyed
        self._keys: dict[str, dict[str, str]] = {}
        """The keys of each job, by the name of the limit."""
        self._names: dict[str, str] = {}
        """The name of each job."""
        self._taken: list[tuple[str, float, int, Token | None]] = []
        """What was taken of rates: the name, when, how many units, and under which token."""
        self._refused_until: dict[str, float] = defaultdict(float)
        """When the next job of a name may be handed out, after a service refused one."""
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.tokens: dict[str, list[Token]] = defaultdict(list)
        """Every token that a job was ever handed out under, in order."""
        self._given: dict[tuple[str, Token], str] = {}
        """To which session."""
        self.payloads: dict[str, list[bytes]] = defaultdict(list)
        """What each job was enqueued with: the first payload, and those that replaced it."""
        self._replacing: set[str] = set()
        """The ids of enqueued jobs that replaced another."""
        self.due: dict[str, float] = {}
        """No earlier may it be handed out."""
        self.ended: dict[str, State] = {}
        self.pruned: set[str] = set()
        """Jobs that ended and were deleted."""
        self.flows = FlowLedger(self.ended)
        self.failures: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.steps: defaultdict[str, dict[int, bytes]] = defaultdict(dict)
        """The bodies of the steps of each durable run, by number."""
        self._holder: dict[str, tuple[str, Lease]] = {}
        """Who holds a job, as far as it is known here."""
        self.last_exchange: dict[str, float] = {}
        """When a session made its last exchange that was no repeat."""
        self._replies: dict[tuple[str, int], Reply] = {}
        self.begun: set[tuple[str, int]] = set()
        """Jobs that a handler began, with the fence of the delivery; the handlers say so."""
        self.unfilled: Counter[tuple[str, str]] = Counter()
        """Exchanges that asked for more jobs of a queue and name than they got, with room for them.
        """
        self.open_transactions = 0
        """How many transactions of callers are open."""
        self._left: set[str] = set()
        """Sessions that were closed while some of their handlers ran."""
        self.orphans: list[Lease] = []
        """Leases that were lost to a rescue: whoever settles under one must be refused."""

    @property
    def held(self) -> dict[str, tuple[str, Lease]]:
        """Session and lease of each job that is held, as far as it is known here."""
        return self._holder

    async def apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
        """Make the call and check what it did."""
        try:
            return await self._apply(name, args, kwargs)
        except AssertionError as violation:
            # Whoever made the call would take it for an error of the backend.
            self.violations.append(str(violation))
            raise

    async def _apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
        if name == "exchange":
            self._check_senders(args[0], args[2])
        try:
            answer = await get_operation(self.backend, name)(*args, **kwargs)
        except SessionLost:
            if name == "exchange":
                self.counts["exchanges of lost sessions"] += 1
                self.counts["stale settles refused"] += len(args[2])
            raise
        check = getattr(self, f"_after_{name}", None)
        if check is not None:
            await check(answer, *args)
        return answer

    def _check_senders(self, session: str, settlements: Sequence[Settlement]) -> None:
        """A worker speaks of a lease only in the session that got it."""
        for one in settlements:
            lease = one.lease
            assert self._given[lease.job_id, lease.token] == session, f"{lease} is of another"

    async def commit(self, transaction: CallerTransaction, job: NewJob) -> None:
        """Commit a caller's transaction that enqueued the job."""
        await self._after_enqueue(await transaction.commit(), [job])

    def note_step_back(self, before: float) -> None:
        """The clock stepped back from `before`. A job that was due stays due. A rate may allow one
        burst more, and the pause after a refusal may be shorter.
        """
        for job_id, due in self.due.items():
            if due <= before:
                self.due[job_id] = -math.inf
        self._taken.clear()
        self._refused_until.clear()

    # One for each operation that changes jobs

    async def _after_enqueue(
        self, answer: list[Any], jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> None:
        if flows:
            self.flows.note_enqueued(jobs, flows)
        for enqueued, job in zip(answer, jobs, strict=True):
            if enqueued.outcome == "created":
                if job.id in self.pruned and not flows:
                    self._forget(job.id)  # the request comes again, later than its job was kept
                assert job.id not in self.due, f"{job.id} was created twice"
                self.due[job.id] = job.due_at(self._clock.now())
                self._names[job.id] = job.name
                self._keys[job.id] = job.options.limit_keys or {}
                self.payloads[job.id].append(job.payload)
            elif enqueued.outcome == "replaced" and job.id not in self._replacing:
                self._replacing.add(job.id)  # a repeat of the call changes nothing
                self.counts["jobs replaced"] += 1
                self.payloads[enqueued.id].append(job.payload)
                due = job.due_at(self._clock.now())
                has_failed = self.failures[enqueued.id] + self.lost[enqueued.id] > 0
                self.due[enqueued.id] = max(due, self.due[enqueued.id]) if has_failed else due

        if flows:
            await self._look_at_members()

    def _forget(self, job_id: str) -> None:
        """Forget a job that was deleted: the next one with its id is another job."""
        for known in (self.due, self.ended, self.tokens, self.failures, self.lost, self.steps):
            known.pop(job_id, None)
        self.begun = {(begun, fence) for begun, fence in self.begun if begun != job_id}
        self.pruned.remove(job_id)

    async def _after_cancel(self, _: object, job_id: str) -> None:
        await self._look_at(job_id)
        await self._look_at_members()

    async def _after_change_jobs(
        self, changes: JobChanges, action: BulkAction, _: Sequence[str]
    ) -> None:
        """Only members of flows are replayed here."""
        for job_id in changes.ids if action is BulkAction.REPLAY else ():
            assert self.ended.pop(job_id) is State.FAILED, f"{job_id} was replayed"
            self.counts["members replayed"] += 1
            self.failures[job_id] = self.lost[job_id] = 0
            self.flows.note_replayed(job_id)
        await self._look_at_members(reopened=action is BulkAction.REPLAY)

    async def _after_promote(self, *_: object) -> None:
        await self._look_at_members()

    async def _after_prune(self, *_: object) -> None:
        kept = {job.id for job in (await self.backend.reads.list_jobs(limit=10_000)).jobs}
        for job_id in self.due.keys() - self.pruned - kept:
            state = self.ended.get(job_id)
            assert state in {State.COMPLETED, State.CANCELLED}, f"{job_id} was pruned: {state}"
            member = self.flows.jobs.get(job_id)
            if member is not None and member.options.flow is not None:
                unfinished = self.flows.count(member.options.flow).unfinished
                assert unfinished == 0, f"{job_id} was pruned, and its flow runs"
                self.counts["members pruned"] += 1
            self.pruned.add(job_id)

    async def _after_exchange(
        self,
        reply: Reply,
        session: str,
        number: int,
        settlements: list[Settlement],
        request: ReserveRequest,
    ) -> None:
        before = self._replies.setdefault((session, number), reply)
        if before is not reply:
            self.counts["repeated exchanges"] += 1
            assert before.results == reply.results, f"exchange {number} answered otherwise"
            kept, given = _leases(reply), _leases(before)
            assert given[: len(kept)] == kept, f"exchange {number} handed out other jobs"
            assert kept or not given, f"exchange {number} gave back its first job"
            self._replies[session, number] = reply
            for lease in given[len(kept) :]:
                await self._after_release(session, lease)
            return
        self.last_exchange[session] = self._clock.monotonic()
        self.counts["exchanges beside open transactions"] += self.open_transactions > 0
        if len(reply.deliveries) < request.total and not _is_full(reply, request):
            self.unfilled.update({(lane.queue, lane.name) for lane in request.lanes})
        for settlement, result in zip(settlements, reply.results, strict=True):
            await self._after_settlement(session, settlement, result)
        await self._look_at_members()
        for delivery in reply.deliveries:
            await self._after_delivery(session, delivery)
        if len(reply.deliveries) > 1:
            suspects = [one for one in reply.deliveries if one.lost >= SUSPECT_AFTER]
            self.counts["suspects in a batch"] += bool(suspects)

    async def _after_release(self, session: str, lease: Lease) -> None:
        """A repeat had no room for it."""
        assert self._holder.pop(lease.job_id) == (session, lease), f"{lease}: not its holder"
        self.counts["deliveries released"] += 1
        self._give_back(lease)
        self.orphans.append(lease)
        await self._look_at(lease.job_id)

    async def _after_settlement(
        self, session: str, settlement: Settlement, result: Settled
    ) -> None:
        lease = settlement.lease
        job_id = lease.job_id
        if result is not Settled.DONE:
            self.counts["stale settles refused"] += result is Settled.STALE
            return
        assert self._holder.get(job_id) == (session, lease), f"{job_id}: not the holder's token"
        if isinstance(settlement, Progressed):
            return
        if isinstance(settlement, Recorded):
            self._note_step(settlement)
            return
        if isinstance(settlement, Spent):
            self._take(self._names[job_id], settlement.units, None)
            return
        assert job_id not in self.ended, f"{job_id} was settled after its end"
        del self._holder[job_id]
        if isinstance(settlement, Retried | Failed):
            self.failures[job_id] += 1
        # A run that needs cleanup does not wait for its delay if it was asked to end.
        may_be_asked = CLEANUP_STEP in self.steps.get(job_id, ())
        delay = settlement.delay if isinstance(settlement, Retried | Released) else None
        if delay is not None and not may_be_asked:
            self.due[job_id] = self._clock.now() + delay
        self.counts["runs suspended"] += isinstance(settlement, Suspended)
        self._note_rate(settlement)
        await self._look_at(job_id)

    def _note_step(self, step: Recorded) -> None:
        """A run stores each step once, and takes its signals in the order of their payloads."""
        job_id = step.lease.job_id
        steps = self.steps[job_id]
        if step.number in steps:
            self.counts["steps repeated"] += 1
            return
        steps[step.number] = step.body
        self.counts["steps"] += 1
        if step.number != CLEANUP_STEP:
            self.failures[job_id] = self.lost[job_id] = 0
        taken = [int(body) for _, body in sorted(steps.items()) if body.isdigit()]
        assert taken == [*range(len(taken))], f"{job_id} took its signals as {taken}"

    def _note_rate(self, settlement: Settlement) -> None:
        """A released job may give its units back; a refused one stops its name."""
        now, name = self._clock.now(), self._names[settlement.lease.job_id]
        if isinstance(settlement, Released) and settlement.unstarted:
            self._give_back(settlement.lease)
        elif isinstance(settlement, RateLimited) and name in self._rates:
            self.counts["rates stopped"] += 1
            until = now + settlement.retry_after
            self._refused_until[name] = max(self._refused_until[name], until)

    def _take(self, name: str, units: int, token: Token | None) -> None:
        if name in self._rates:
            self._taken.append((name, self._clock.now(), units, token))

    def _give_back(self, lease: Lease) -> None:
        self._taken = [taken for taken in self._taken if taken[3] != lease.token]

    def _look_at_rate(self, name: str) -> None:
        """No interval up to now has more deliveries than one burst and the rate allow."""
        rate, now = self._rates.get(name), self._clock.now()
        if rate is None:
            return
        assert now >= self._refused_until[name] - _HAIR, f"{name!r} came before its pause ended"
        units = 0
        for taken in reversed(self._taken):
            if taken[0] == name and taken[3] is not None:
                units += taken[2]
                most = rate.burst + (now - taken[1]) * 1e6 / rate.interval
                assert units <= most + _HAIR, f"{units} of {name!r} in {now - taken[1]} s"
                self.counts["bursts"] += units == rate.burst

    async def _after_delivery(self, session: str, delivery: Delivery) -> None:
        lease, now = delivery.lease, self._clock.now()
        job_id, known = lease.job_id, self.tokens[lease.job_id]
        self.counts["deliveries"] += 1
        assert job_id not in self.ended, f"{job_id} was handed out after its end"
        assert job_id not in self._holder, f"{job_id} was handed out while held"
        assert now >= self.due[job_id] - _HAIR, f"{job_id} came {self.due[job_id] - now} s early"
        self.flows.check_start(job_id)
        assert all(lease.token.fence > token.fence for token in known), f"{job_id}: fence fell"
        assert all(lease.token.nonce != token.nonce for token in known), f"{job_id}: nonce again"
        known.append(lease.token)
        self._given[job_id, lease.token] = session
        self._holder[job_id] = session, lease
        await self._look_at_limit(delivery.name)
        self._look_at_keys(job_id)
        self._take(delivery.name, 1, lease.token)
        self._look_at_rate(delivery.name)

    async def _after_rescue(self, rescued: Rescued, *_: object) -> None:
        held = Counter(session for session, _ in self._holder.values())
        for job_id in (*rescued.returned, *rescued.failed, *rescued.cancelled):
            self.counts["jobs rescued"] += 1
            session, lease = self._holder.pop(job_id)
            self.orphans.append(lease)
            before, self.lost[job_id] = (
                self.lost[job_id],
                (await self.backend.reads.get_job(job_id)).lost,
            )
            if self.lost[job_id] == before:
                begun = (job_id, lease.token.fence) in self.begun
                assert session in self._left or not begun, f"a run of {job_id} counts nowhere"
                self.counts["suspects spared"] += session not in self._left
            elif before >= SUSPECT_AFTER:
                assert held[session] == 1, f"{job_id} was lost with others, as a suspect"
            await self._look_at(job_id)
        await self._look_at_members()

    async def _after_close_session(
        self, _: object, session: str, running: Sequence[Lease] = ()
    ) -> None:
        kept = {lease.job_id for lease in running}
        if kept:
            self._left.add(session)
        for job_id in [
            job_id for job_id, (held_by, _) in self._holder.items() if held_by == session
        ]:
            if job_id not in kept:
                _, lease = self._holder.pop(job_id)
                self.orphans.append(lease)
                self.counts["leases released"] += 1
            await self._look_at(job_id)
        await self._look_at_members()

    # What the backend says itself

    async def _look_at(self, job_id: str) -> None:
        state = (await self.backend.reads.get_job(job_id)).state
        before = self.ended.get(job_id)
        if state.finished:
            assert before in {None, state}, f"{job_id} ended as {before}, then as {state}"
            self.ended[job_id] = state
        else:
            assert before is None, f"{job_id} had ended as {before} and is {state}"

    async def _look_at_members(self, *, reopened: bool = False) -> None:
        """Look at the jobs of flows: the end of one may end others.

        `reopened`: a job was replayed, so others that were cancelled because of it may wait again.
        """
        looked_at = self.flows.list_unfinished()
        if reopened:
            looked_at = [*self.flows.jobs.keys() - self.pruned]
        if not looked_at:
            return
        which = JobFilter(ids=tuple(looked_at))
        for job in (await self.backend.reads.list_jobs(which, limit=len(looked_at))).jobs:
            before = self.ended.get(job.id)
            if job.state.finished and before is None:
                self.ended[job.id] = job.state
                self.counts["members cancelled for others"] += job.reason in REOPENED_REASONS
            elif not job.state.finished and before is not None:
                assert before is State.CANCELLED, f"{job.id} had ended as {before}"
                assert self.flows.is_replayed(job.id), f"{job.id} waits again without a replay"
                del self.ended[job.id]
                self.counts["members reopened"] += 1

    async def _look_at_limit(self, name: str) -> None:
        limit = self._limits.get(name)
        if limit is not None:
            which = JobFilter(states=_PROCESSING, name=name)
            held = len((await self.backend.reads.list_jobs(which)).jobs)
            assert held <= limit, f"{held} of {name!r} at once, {limit} are allowed"
            self.counts["limits reached"] += held == limit

    def _look_at_keys(self, job_id: str) -> None:
        """No key has more jobs than its limit allows."""
        for limit, key in self._keys.get(job_id, {}).items():
            held = sum(self._keys.get(one, {}).get(limit) == key for one in self._holder)
            assert held <= self._keyed[limit], f"{held} of {key!r} at once under {limit!r}"
            self.counts["keys full"] += held == self._keyed[limit]
        self._count_jobs_with_full_keys()

    def _count_jobs_with_full_keys(self) -> None:
        """Count the waiting jobs that have two keys, both of which are full."""
        held = Counter(key for job_id in self._holder for key in self._keys.get(job_id, {}).items())
        self.counts["jobs with two full keys"] += sum(
            len(keys) == 2 and all(held[key] >= self._keyed[key[0]] for key in keys.items())
            for job_id, keys in self._keys.items()
            if job_id not in self._holder and job_id not in self.ended
        )


def _is_full(reply: Reply, request: ReserveRequest) -> bool:
    """Whether the reply may have had no room for another job."""
    size = sum(DELIVERY_OVERHEAD + len(delivery.payload) for delivery in reply.deliveries)
    return bool(reply.deliveries) and size + _LARGEST_DELIVERY > request.max_bytes


def _leases(reply: Reply) -> list[Lease]:
    return [delivery.lease for delivery in reply.deliveries]
