"""Concurrent callers: the backend decides each race exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

import pytest

from nimburion.core.backend import Backend
from nimburion.core.errors import EnqueueBlocked, SessionLost
from nimburion.core.exchange import RESERVE_NOTHING
from nimburion.core.job import WAITING, Enqueued, JobOptions, NewJob, State, sort_states
from nimburion.core.maintenance import Cancellation
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    NewSignal,
    SignalOutcome,
    make_signal_source,
)
from nimburion.core.schedules import ScheduleRecord, put_schedule
from nimburion.core.session import ConcurrencyLimit
from nimburion.core.settlement import Completed, Failed, Recorded, Settled, Suspended
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids, wait_in_time

T = TypeVar("T")

RACERS = 32


async def race(count: int, run: Callable[[int], Awaitable[T]]) -> list[T]:
    """Start `count` coroutines at the same time and return their results."""
    barrier = asyncio.Barrier(count)

    async def one(n: int) -> T:
        await barrier.wait()
        return await run(n)

    return await wait_in_time(asyncio.gather(*(one(n) for n in range(count))))


def run_on_own_loop(
    run: Callable[[HandDrivenWorker], Coroutine[None, None, T]], worker: HandDrivenWorker
) -> T:
    """Run the coroutine on a new event loop, for use in a thread."""
    return asyncio.run(run(worker))


class Racing:
    """Thirty-two callers over eight handles."""

    def _handle(self, fleet: Harness, n: int) -> Backend:
        return fleet.handles[n % len(fleet.handles)]

    async def _enqueue(self, fleet: Harness, n: int, jobs: list[NewJob]) -> list[Enqueued]:
        """Enqueue jobs with handle `n`. Repeat a blocked call, as a client does."""
        while True:
            try:
                return await self._handle(fleet, n).producing.enqueue(jobs)
            except EnqueueBlocked:
                continue

    async def _workers(
        self, fleet: Harness, count: int = RACERS, limits: dict[str, int] | None = None
    ) -> list[HandDrivenWorker]:
        return [
            await fleet.worker(backend=self._handle(fleet, n), limits=limits) for n in range(count)
        ]

    async def test_one_id_is_created_once(self, fleet: Harness) -> None:
        results = await race(RACERS, lambda n: self._enqueue(fleet, n, [fleet.job("a")]))
        outcomes = Counter(result.outcome for (result,) in results)
        assert outcomes == {"created": 1, "exists": RACERS - 1}
        assert sum((await fleet.backend.reads.count_jobs()).values()) == 1

    async def test_one_id_with_many_bodies_is_created_once(self, fleet: Harness) -> None:
        results = await race(
            RACERS,
            lambda n: self._enqueue(fleet, n, [fleet.job("a", payload=b"%d" % n)]),
        )
        outcomes = Counter(result.outcome for (result,) in results)
        assert outcomes == {"created": 1, "conflict": RACERS - 1}
        (winner,) = [n for n, (result,) in enumerate(results) if result.outcome == "created"]
        assert (await fleet.backend.reads.get_job("a")).payload == b"%d" % winner

    async def test_one_unique_key_is_taken_once(self, fleet: Harness) -> None:
        options = JobOptions(unique_key="k")
        results = await race(
            RACERS,
            lambda n: self._enqueue(fleet, n, [fleet.job(f"{n}", options=options)]),
        )
        outcomes = Counter(result.outcome for (result,) in results)
        assert outcomes == {"created": 1, "taken": RACERS - 1}
        (holder,) = {result.id for (result,) in results}
        assert [job.id for job in (await fleet.backend.reads.list_jobs()).jobs] == [holder]

    async def test_one_waiting_job_is_replaced_by_every_other_caller(self, fleet: Harness) -> None:
        options = JobOptions(unique_key="k", on_duplicate="replace")
        results = await race(
            RACERS,
            lambda n: self._enqueue(
                fleet,
                n,
                [fleet.job(f"{n}", payload=b"%d" % n, priority=n % 10, options=options)],
            ),
        )
        outcomes = Counter(result.outcome for (result,) in results)
        assert outcomes == {"created": 1, "replaced": RACERS - 1}
        (holder,) = {result.id for (result,) in results}
        job = await fleet.backend.reads.get_job(holder)
        assert job.payload is not None
        assert job.priority == int(job.payload) % 10
        worker = await fleet.worker()
        assert [delivery.payload for delivery in await worker.take(5)] == [job.payload]

    async def test_a_job_runs_with_its_old_payload_or_is_replaced(self, fleet: Harness) -> None:
        """An enqueue that answered `replaced` is never lost to a worker that starts the job."""
        options = JobOptions(
            unique_key="k", unique_while=sort_states(WAITING), on_duplicate="replace"
        )
        workers = await self._workers(fleet, 8)
        for n in range(24):
            await fleet.put(fleet.job(f"old{n}", payload=b"1", options=options))
            new = fleet.job(f"new{n}", payload=b"2", options=options)
            worker, other = workers[n % 8], self._handle(fleet, n + 1)
            taken, (result,) = await wait_in_time(
                asyncio.gather(worker.take(1), other.producing.enqueue([new]))
            )
            rest = await worker.take(2)
            payloads = [delivery.payload for delivery in (*taken, *rest)]
            assert payloads == ([b"2"] if result.outcome == "replaced" else [b"1", b"2"])
            await worker.settle(*(Completed(delivery.lease) for delivery in (*taken, *rest)))

    async def test_overlapping_calls_in_other_orders_store_every_job_once(
        self, fleet: Harness
    ) -> None:
        """There is no deadlock, and no call is stored in part."""
        jobs = [
            fleet.job(f"{n}", options=JobOptions(unique_key=f"{n}", on_duplicate="existing"))
            for n in range(60)
        ]
        turned = [jobs[shift:] + jobs[:shift] for shift in range(0, 60, 4)]
        turned += [list(reversed(call)) for call in turned]
        results = await race(len(turned), lambda n: self._enqueue(fleet, n, turned[n]))
        outcomes = Counter(result.outcome for call in results for result in call)
        assert outcomes == {"created": 60, "exists": 60 * (len(turned) - 1)}
        assert (await fleet.backend.reads.count_jobs())[State.PENDING] == 60

    async def test_no_job_is_reserved_twice(self, fleet: Harness) -> None:
        """Promise 4. Every job is reserved once."""
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(400)))
        workers = await self._workers(fleet)
        taken: list[str] = []
        while replies := [
            reply for reply in await race(RACERS, lambda n: workers[n].take(3)) if reply
        ]:
            taken += [job_id for reply in replies for job_id in ids(reply)]
        assert len(taken) == len(set(taken)) == 400

    async def test_one_job_goes_to_one_worker(self, fleet: Harness) -> None:
        workers = await self._workers(fleet)
        for _ in range(5):
            await fleet.add()
            replies = await race(RACERS, lambda n: workers[n].take(1))
            assert sum(len(reply) for reply in replies) == 1

    async def test_a_limit_that_is_set_while_jobs_are_taken_counts_them_all(
        self, fleet: Harness
    ) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(200)))
        workers = await self._workers(fleet)

        async def run(n: int) -> int:
            if n == RACERS // 2:
                await fleet.worker(backend=self._handle(fleet, n), limits={"mail": 500})
                return 0
            return len(await workers[n].take(3))

        taken = sum(await race(RACERS, run))
        assert (await workers[0].heartbeat()).limits == {"mail": ConcurrencyLimit(500, taken)}

    async def test_completing_and_reserving_at_once_leaves_the_limit_exact(
        self, fleet: Harness
    ) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(200)))
        workers = await self._workers(fleet, limits={"mail": 8})
        held = await race(RACERS, lambda n: workers[n].take(1))

        async def run(n: int) -> int:
            done = [Completed(delivery.lease) for delivery in held[n]]
            reply = await workers[n].exchange(*done, want=workers[n].want(1))
            return len(reply.deliveries)

        taken = sum(await race(RACERS, run))
        assert taken <= 8
        assert (await workers[0].heartbeat()).limits == {"mail": ConcurrencyLimit(8, taken)}
        counts = await fleet.backend.reads.count_jobs()
        assert (counts[State.PROCESSING], counts[State.COMPLETED]) == (taken, 8)

    async def test_a_lost_job_is_rescued_once(self, fleet: Harness) -> None:
        """A rescue may pass over a session that another one is rescuing."""
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(40)))
        for worker in await self._workers(fleet, 4):
            await worker.take(10)
        fleet.clock.advance(60.0)
        replies = await race(
            RACERS, lambda n: self._handle(fleet, n).consuming.rescue(7, max_lost=3)
        )
        while (reply := await fleet.backend.consuming.rescue(7, max_lost=3)).returned:
            replies.append(reply)
        returned = [job_id for reply in replies for job_id in reply.returned]
        assert len(returned) == len(set(returned)) == 40
        assert {job.lost for job in (await fleet.backend.reads.list_jobs()).jobs} == {1}

    async def test_a_signal_is_never_missed(self, fleet: Harness) -> None:
        """It comes through another handle while its run is suspended."""
        workers = await self._workers(fleet, 8)
        for n in range(24):
            job_id = f"r{n}"
            await fleet.add(job_id)
            worker, other = workers[n % 8], self._handle(fleet, n + 1)
            held = await worker.take_one()
            wait = Suspended(held.lease, (make_signal_source(job_id, "go"),))
            _, outcomes = await wait_in_time(
                asyncio.gather(
                    worker.exchange(wait),
                    other.producing.send_signals([NewSignal(job_id, "go", "1", b"")]),
                )
            )
            assert outcomes == [SignalOutcome.STORED]
            assert await fleet.state(job_id) is State.PENDING
            (held,) = await worker.take(2)
            await worker.settle(Completed(held.lease))

    async def test_a_cancel_is_never_missed(self, fleet: Harness) -> None:
        """It comes through another handle while the run that needs cleanup is suspended."""
        workers = await self._workers(fleet, 8)
        for n in range(24):
            job_id = f"r{n}"
            await fleet.add(job_id)
            worker, other = workers[n % 8], self._handle(fleet, n + 1)
            held = await worker.take_one()
            await worker.settle(Recorded(held.lease, CLEANUP_STEP, b""))
            _, cancellation = await wait_in_time(
                asyncio.gather(
                    worker.exchange(Suspended(held.lease)), other.producing.cancel(job_id)
                )
            )
            assert cancellation is Cancellation.REQUESTED
            page = await fleet.backend.reads.read_run(job_id)
            assert [signal.name for signal in page.signals] == [CANCEL_SIGNAL]
            (held,) = await worker.take(2)
            await worker.settle(Completed(held.lease))

    async def test_one_id_of_a_signal_is_stored_once(self, fleet: Harness) -> None:
        await fleet.add("a")
        signal = NewSignal("a", "go", "1", b"")
        results = await race(
            RACERS, lambda n: self._handle(fleet, n).producing.send_signals([signal])
        )
        outcomes = Counter(outcome for (outcome,) in results)
        assert outcomes == {SignalOutcome.STORED: 1, SignalOutcome.EXISTS: RACERS - 1}
        assert len((await fleet.backend.reads.read_run("a")).signals) == 1

    async def test_signals_of_many_senders_have_numbers_of_their_own(self, fleet: Harness) -> None:
        await fleet.add("a", "b")

        async def send(n: int) -> None:
            jobs = ("a", "b") if n % 2 else ("b", "a")
            signals = [NewSignal(job_id, "go", str(n), b"%d" % n) for job_id in jobs]
            await self._handle(fleet, n).producing.send_signals(signals)

        await race(RACERS, send)
        for job_id in ("a", "b"):
            numbers = [
                signal.number for signal in (await fleet.backend.reads.read_run(job_id)).signals
            ]
            assert len({*numbers}) == RACERS
            assert numbers == sorted(numbers)

    @pytest.mark.parametrize("round_", range(4))
    async def test_a_heartbeat_against_a_rescue_has_one_winner(
        self, fleet: Harness, round_: int
    ) -> None:
        """Either the session lives and keeps its jobs, or it is lost and its jobs wait again."""
        await fleet.add("a")
        worker = await fleet.worker(backend=fleet.handles[0])
        lease = (await worker.take_one()).lease
        fleet.clock.advance(60.0)

        async def run(n: int) -> bool:
            if n % 2 == round_ % 2:
                await self._handle(fleet, n + 1).consuming.rescue(10, max_lost=3)
                return True
            try:
                await self._handle(fleet, n).consuming.heartbeat(worker.id)
            except SessionLost:
                return False
            return True

        await race(RACERS, run)
        if await fleet.state("a") is State.PROCESSING:
            assert await worker.settle(Completed(lease)) == [Settled.DONE]
        else:
            assert (await fleet.backend.reads.get_job("a")).lost == 1
            with pytest.raises(SessionLost):
                await worker.settle(Completed(lease))

    async def test_a_settlement_against_a_rescue_has_one_winner(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(16)))
        workers = await self._workers(fleet, 16)
        leases = [(await worker.take_one()).lease for worker in workers]
        fleet.clock.advance(60.0)

        async def run(n: int) -> list[Settled]:
            if n % 2:
                await self._handle(fleet, n).consuming.rescue(100, max_lost=3)
                return []
            try:
                return await workers[n // 2].settle(Completed(leases[n // 2]))
            except SessionLost:
                return []

        results = await race(RACERS, run)
        for n, lease in enumerate(leases):
            done = results[2 * n] == [Settled.DONE]
            expected = State.COMPLETED if done else State.PENDING
            assert await fleet.state(lease.job_id) is expected

    async def test_a_repeat_that_overtakes_its_first_try_brings_the_same(
        self, fleet: Harness
    ) -> None:
        """One number is sent through all handles at the same time and is applied once."""
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(50)))
        worker = await fleet.worker()
        want = worker.want(3)
        replies = await race(
            RACERS, lambda n: self._handle(fleet, n).consuming.exchange(worker.id, 1, [], want)
        )
        assert [reply.deliveries for reply in replies] == [replies[0].deliveries] * RACERS
        assert (await fleet.backend.reads.count_jobs())[State.PROCESSING] == 3

    async def test_a_repeated_settlement_is_applied_once(self, fleet: Harness) -> None:
        await fleet.add("a")
        worker = await fleet.worker()
        batch = [Failed((await worker.take_one()).lease, "permanent", FAILURE)]
        replies = await race(
            RACERS,
            lambda n: self._handle(fleet, n).consuming.exchange(
                worker.id, 2, batch, RESERVE_NOTHING
            ),
        )
        assert [reply.results for reply in replies] == [[Settled.DONE]] * RACERS
        record = await fleet.backend.reads.get_job("a")
        assert (record.failures, len(record.history)) == (1, 1)

    async def test_one_tick_fires_once(self, fleet: Harness) -> None:
        """Promise 8: the number of schedulers does not matter."""
        await put_schedule(fleet.backend, ScheduleRecord(name="nightly", spec=b"{}"))

        async def run(n: int) -> str:
            fired = await self._handle(fleet, n).producing.fire(
                "nightly", None, 100.0, fleet.job(f"{n}"), "allow"
            )
            return fired.outcome

        assert Counter(await race(RACERS, run)) == {"fired": 1, "moved": RACERS - 1}
        assert sum((await fleet.backend.reads.count_jobs()).values()) == 1

    async def test_a_dead_letter_is_replayed_once(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(20)))
        worker = await fleet.worker()
        taken = await worker.take(20)
        await worker.settle(*(Failed(delivery.lease, "permanent", FAILURE) for delivery in taken))
        replies = await race(RACERS, lambda n: replay(self._handle(fleet, n), EVERY_JOB, 100))
        replayed = [job_id for reply in replies for job_id in reply.ids]
        assert len(replayed) == len(set(replayed)) == 20

    async def test_a_job_is_replayed_or_deleted(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(16)))
        worker = await fleet.worker()
        taken = await worker.take(16)
        await worker.settle(*(Failed(delivery.lease, "permanent", FAILURE) for delivery in taken))

        async def run(n: int) -> list[str]:
            which = JobFilter(ids=(f"{n // 2}",))
            if n % 2:
                return (await replay(self._handle(fleet, n), which, 1)).ids
            return await delete(self._handle(fleet, n // 2 + 1), which, 1)

        results = await race(RACERS, run)
        for n in range(16):
            assert len(results[2 * n] + results[2 * n + 1]) == 1
        counts = await fleet.backend.reads.count_jobs()
        assert counts[State.PENDING] == sum(len(moved) for moved in results[1::2])
        assert counts[State.FAILED] == 0

    async def test_a_cancel_against_a_reservation_has_one_winner(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(16)))
        workers = await self._workers(fleet, 16)

        async def run(n: int) -> Cancellation | list[str]:
            if n % 2:
                return await self._handle(fleet, n).producing.cancel(f"{n // 2}")
            return ids(await workers[n // 2].take(1))

        results = await race(RACERS, run)
        taken = {job_id for ids in results[0::2] for job_id in ids}
        for n, answer in enumerate(results[1::2]):
            record = await fleet.backend.reads.get_job(f"{n}")
            if answer is Cancellation.CANCELLED:
                assert (record.state, record.id in taken) == (State.CANCELLED, False)
            else:
                assert (answer, record.cancel_requested) == (Cancellation.REQUESTED, True)
                assert record.id in taken

    async def test_a_cancel_against_a_completion_has_one_winner(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}") for n in range(16)))
        workers = await self._workers(fleet, 16)
        leases = [(await worker.take_one()).lease for worker in workers]

        async def run(n: int) -> object:
            if n % 2:
                return await self._handle(fleet, n).producing.cancel(leases[n // 2].job_id)
            return await workers[n // 2].settle(Completed(leases[n // 2]))

        results = await race(RACERS, run)
        assert results[0::2] == [[Settled.DONE]] * 16
        assert set(results[1::2]) <= {Cancellation.REQUESTED, Cancellation.FINISHED}
        assert (await fleet.backend.reads.count_jobs())[State.COMPLETED] == 16

    async def test_promotions_at_once_move_each_job_once(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"{n}", after=5.0) for n in range(100)))
        fleet.clock.advance(5.0)
        replies = await race(RACERS, lambda n: self._handle(fleet, n).consuming.promote(9))
        assert sum(reply.count for reply in replies) == 100
        assert len(await (await fleet.worker()).take(500)) == 100

    async def test_pages_have_no_doubles_while_others_enqueue(self, fleet: Harness) -> None:
        await fleet.enqueue(*(fleet.job(f"old-{n}") for n in range(50)))

        async def run(n: int) -> list[str]:
            if n % 2:
                await self._handle(fleet, n).producing.enqueue([fleet.job(f"new-{n}")])
                return []
            seen: list[str] = []
            after: str | None = None
            while after is not None or not seen:
                page = await self._handle(fleet, n).reads.list_jobs(limit=7, after=after)
                seen += [job.id for job in page.jobs]
                after = page.next
            return seen

        for seen in (await race(RACERS, run))[0::2]:
            assert len(seen) == len(set(seen))
            assert {f"old-{n}" for n in range(50)} <= set(seen)

    async def test_handles_on_threads_of_their_own_share_the_work(self, harness: Harness) -> None:
        await harness.enqueue(*(harness.job(f"{n}") for n in range(300)))
        handles = [harness.backend.new_handle() for _ in range(4)]
        workers = [HandDrivenWorker(handle, (await harness.worker()).session) for handle in handles]

        async def drain(worker: HandDrivenWorker) -> list[str]:
            await worker.backend.open()
            try:
                taken: list[str] = []
                while deliveries := await worker.take(5):
                    taken += ids(deliveries)
                    await worker.settle(*(Completed(delivery.lease) for delivery in deliveries))
                return taken
            finally:
                await worker.backend.close()

        drained = await wait_in_time(
            asyncio.gather(
                *(asyncio.to_thread(run_on_own_loop, drain, worker) for worker in workers)
            )
        )
        taken = [job_id for ids in drained for job_id in ids]
        assert len(taken) == len(set(taken)) == 300
        assert (await harness.backend.reads.count_jobs())[State.COMPLETED] == 300
