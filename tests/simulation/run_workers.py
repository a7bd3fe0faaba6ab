"""Workers that drive durable runs by hand, and a caller that starts runs and sends them signals.

They speak the contract, and know nothing of how `nimburion.jobs` writes steps. A run enqueues its
children and waits for them, takes its signals one after another, and completes. A run that was
asked to end stores what it undid, and ends as cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendUnavailable, JobNotFound, SessionLost
from nimburion.core.exchange import RESERVE_NOTHING, Lane, ReserveRequest
from nimburion.core.flows import NewFlow, SourceKind, WaitSource
from nimburion.core.job import AttemptError, JobOptions, NewJob, State
from nimburion.core.lease import Delivery
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    NewSignal,
    RunPage,
    SignalOutcome,
    make_signal_source,
)
from nimburion.core.session import Session
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Suspended,
)
from tests.simulation.loop import elapse
from tests.simulation.net import wired

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

QUEUE, NAME = "runs", "durable"
SIGNALS = 4
"""The signals that each run takes."""
UNDO = 100
"""The step of a run that has undone what it did."""
ERROR = AttemptError(1, "failure", "ValueError", "as planned")
_SLOTS = 2
_TTL = 2.0
_MOST_FAILURES = 2


class Crash(Exception):
    """The worker is gone without a goodbye."""


class Plan(NamedTuple):
    """What a run does, which follows from its id."""

    needs_cleanup: bool
    children: int


def make_plan(job_id: str) -> Plan:
    """Return what a run does."""
    luck = Random(job_id)
    return Plan(luck.random() < 0.5, luck.choice((0, 1, 3)))


def make_children(job_id: str, count: int) -> tuple[list[NewJob], NewFlow]:
    """Return the children of a run, and their flow."""
    flow_id = f"{job_id}.children"
    options = JobOptions(flow=flow_id)
    jobs = [
        NewJob(f"{flow_id}.{n}", "plain", "default", b"{}", options=options) for n in range(count)
    ]
    return jobs, NewFlow(id=flow_id, name="children", members=count)


async def repeat(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call until it is answered. Each call of this module is safe to repeat."""
    while True:
        try:
            return await call()
        except BackendUnavailable:
            await elapse(0.05)


class RunWorker:
    """One process that drives durable runs. It begins anew when it loses its session."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._random = Random(world.seed * 1_000 + number)
        self.process = world.loop.begin(f"runner-{number}")
        self.stop_requested = False
        self.task = world.loop.spawn(self._main(), self.process)

    async def _main(self) -> None:
        handle = wired(self._world.net, self.process, self._world.backend.new_handle())
        await handle.open()
        while not self.stop_requested:
            try:
                await self._serve(handle)
            except SessionLost:
                self._world.counts["sessions of runs lost"] += 1
            except Crash:
                self._world.counts["workers of runs crashed"] += 1
                await elapse(self._random.uniform(0.0, _TTL))
        await handle.close()

    async def _serve(self, handle: Backend) -> None:
        """Drive runs in one session, until it is lost or a stop is requested."""
        consuming, identity = handle.consuming, self._random.randbytes(16).hex()
        session = Session(id=identity, ttl=_TTL, queues=(QUEUE,), names=(NAME,))
        await repeat(lambda: consuming.open_session(session))
        held: dict[str, Delivery] = {}
        settlements: list[Settlement] = []
        number, next_heartbeat = 0, 0.0
        while not self.stop_requested:
            if self._world.loop.time() >= next_heartbeat:
                await repeat(lambda: consuming.heartbeat(identity))
                next_heartbeat = self._world.loop.time() + _TTL / 4
            number += 1
            reply = await self._exchange(handle, identity, number, settlements, _SLOTS - len(held))
            for settlement, result in zip(settlements, reply, strict=True):
                if result is not Settled.DONE or not isinstance(settlement, Recorded):
                    held.pop(settlement.lease.job_id, None)
            held.update(self._delivered)
            settlements = []
            for delivery in held.values():
                settlements += await self._advance(handle, delivery)
            if self._world.net.weather and self._random.random() < 0.03:
                raise Crash
            await elapse(self._random.uniform(0.02, 0.2))
        await repeat(lambda: consuming.close_session(identity))

    async def _exchange(
        self,
        handle: Backend,
        session: str,
        number: int,
        settlements: list[Settlement],
        slots: int,
    ) -> list[Settled]:
        """Make an exchange until it is answered; note what it delivered, and return its results."""
        nonce = self._random.randbytes(16)
        want = (
            ReserveRequest(slots, (Lane(QUEUE, NAME),), nonce=nonce) if slots else RESERVE_NOTHING
        )
        reply = await repeat(lambda: handle.consuming.exchange(session, number, settlements, want))
        self._delivered = {one.lease.job_id: one for one in reply.deliveries}
        return list(reply.results)

    async def _advance(self, handle: Backend, delivery: Delivery) -> list[Settlement]:
        """Do the next part of a run, and return what to settle."""
        lease, luck = delivery.lease, self._random.random()
        try:
            page = await repeat(lambda: handle.reads.read_run(lease.job_id))
        except JobNotFound:
            return []  # it was rescued, has ended, and was pruned: the session is lost
        cancel = [signal for signal in page.signals if signal.name == CANCEL_SIGNAL]
        if cancel:
            undone = Recorded(lease, UNDO, b"undone", cancel[0].number)
            return [undone, Cancelled(lease, "asked")]
        if luck < 0.05 and delivery.failures < _MOST_FAILURES:
            return [Retried(lease, 0.1, ERROR)]
        if luck < 0.1:
            return [Released(lease, 0.1)]
        done = {step.number for step in page.steps}
        settlements = [await self._do_next(handle, delivery, page, len(done - {CLEANUP_STEP}) + 1)]
        if make_plan(lease.job_id).needs_cleanup and CLEANUP_STEP not in done:
            settlements.insert(0, Recorded(lease, CLEANUP_STEP, b""))
        return settlements

    async def _do_next(
        self, handle: Backend, delivery: Delivery, page: RunPage, number: int
    ) -> Settlement:
        """Do the step with this number, or return what ends the attempt."""
        lease = delivery.lease
        if number == 1:
            return await self._run_children(handle, delivery, make_plan(lease.job_id).children)
        if number > 1 + SIGNALS:
            keep_payload = handle.capabilities.keeps_arguments
            return Completed(lease, b"1", keep_payload=keep_payload)
        if page.signals:
            signal = page.signals[0]
            return Recorded(lease, number, signal.payload, signal.number)
        delay = self._random.choice((None, None, 0.3))
        return Suspended(lease, (make_signal_source(lease.job_id, "go"),), delay)

    async def _run_children(
        self, handle: Backend, delivery: Delivery, count: int
    ) -> Recorded | Suspended:
        """Enqueue the children of a run, and let it wait for them, unless they have ended."""
        if not count:
            return Recorded(delivery.lease, 1, b"no children")
        jobs, flow = make_children(delivery.lease.job_id, count)
        await repeat(lambda: handle.producing.enqueue(jobs, [flow]))
        (info,) = await repeat(lambda: handle.reads.get_flow(flow.id))
        if info.unfinished:
            return Suspended(delivery.lease, (WaitSource(SourceKind.FLOW, flow.id),))
        return Recorded(delivery.lease, 1, b"children")


async def send_runs(world: World, count: int) -> None:
    """Enqueue runs over the net, and send each its signals in order; cancel some."""
    random = Random(world.seed + 11)
    handle = wired(world.net, world.loop.begin("runs"), world.backend.new_handle())
    await handle.open()
    left: dict[str, int] = {}
    for number in range(count):
        job = NewJob(f"run-{number}", NAME, QUEUE, b"{}")
        await repeat(lambda job=job: handle.producing.enqueue([job]))  # type: ignore[misc]
        world.acknowledged.append(job.id)
        left[job.id] = 0
        world.counts["runs"] += 1
    while left:
        await elapse(random.expovariate(8.0))
        job_id = random.choice(sorted(left))
        if random.random() < 0.04:
            await cancel(world, handle, job_id)
        place = left[job_id]
        signal = NewSignal(job_id, "go", str(place), b"%d" % place)
        (outcome,) = await repeat(
            lambda signal=signal: handle.producing.send_signals([signal])  # type: ignore[misc]
        )
        world.counts[f"signals {outcome}"] += 1
        left[job_id] += 1
        if outcome in {SignalOutcome.FINISHED, SignalOutcome.UNKNOWN} or left[job_id] == SIGNALS:
            del left[job_id]
    await handle.close()
    world.loop.detach(send_again(world))


async def send_again(world: World) -> None:
    """Send all signals again to the runs that have not ended: a request to enqueue one that came
    again, after its job was pruned, has enqueued it anew.
    """
    while not world.loop.over:
        await elapse(2.0)
        for number in range(world.counts["runs"]):
            job_id = f"run-{number}"
            if job_id not in world.ledger.ended:
                signals = [NewSignal(job_id, "go", str(n), b"%d" % n) for n in range(SIGNALS)]
                await world.backend.producing.send_signals(signals)


async def cancel(world: World, handle: Backend, job_id: str) -> None:
    try:
        await repeat(lambda: handle.producing.cancel(job_id))
        world.counts["runs cancelled"] += 1
    except JobNotFound:
        world.counts["cancels of pruned jobs"] += 1


def check_runs(steps: Mapping[str, Mapping[int, bytes]], ended: Mapping[str, State]) -> None:
    """Check that each run that completed took all its signals, and that none ended as cancelled
    that did not undo what it had to.
    """
    for job_id, bodies in steps.items():
        if ended[job_id] is State.COMPLETED:
            assert len(bodies.keys() - {CLEANUP_STEP}) == 1 + SIGNALS, f"{job_id}: {bodies}"
        if ended[job_id] is State.CANCELLED and CLEANUP_STEP in bodies:
            assert UNDO in bodies, f"{job_id} was cancelled, and has undone nothing"
