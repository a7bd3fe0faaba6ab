"""Enqueues and completions inside a caller's transaction: they commit or roll back with it. Runs
if the `Capabilities` of the backend have `supports_transactions`."""

from __future__ import annotations

from typing import cast

import pytest

from nimburion.core.backend import Transactional
from nimburion.core.errors import JobNotFound, LeaseLost, UnusableConnection
from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.maintenance import Retention
from nimburion.core.metrics.statistics import STEPS
from nimburion.core.settlement import Completed, Failed, Retried, Settled
from nimburion.core.transactions import CallerConnection, Transaction, TransactionSettlement
from nimburion.testing.contract.consuming.waiting import FAR, listening
from nimburion.testing.contract.harness import (
    FAILURE,
    HandDrivenWorker,
    Harness,
    ids,
    wait_in_time,
)


def get_transactional(harness: Harness) -> Transactional:
    """Return the operations inside callers' transactions; skip the case if there are none."""
    if not harness.backend.capabilities.supports_transactions:
        pytest.skip("this backend joins no transaction, and says so")
    return cast("Transactional", harness.backend.producing)


class OpenTransaction:
    """A transaction on one of the backend's own connections, in the role of a caller's
    transaction."""

    def __init__(self, harness: Harness) -> None:
        self.producing: Transactional = get_transactional(harness)
        self.transaction: Transaction = self.producing.transaction(None)
        self.connection: CallerConnection = CallerConnection(None)

    async def begin(self) -> OpenTransaction:
        """Begin the transaction and return this object."""
        self.connection = CallerConnection(await wait_in_time(self.transaction.begin()))
        return self

    async def enqueue(self, *jobs: NewJob) -> list[Enqueued]:
        """Enqueue jobs in one call inside the transaction."""
        return await wait_in_time(self.producing.enqueue_in(self.connection, jobs))

    async def complete(
        self, worker: HandDrivenWorker, delivery: Delivery, result: bytes | None = None
    ) -> None:
        """Complete a job inside the transaction."""
        await self.settle(worker, Completed(delivery.lease, result))

    async def settle(self, worker: HandDrivenWorker, settlement: TransactionSettlement) -> None:
        """Settle a job inside the transaction."""
        await wait_in_time(self.transaction.settle(worker.id, settlement))

    async def commit(self) -> None:
        """Commit the transaction. In production, a caller of `enqueue_in` commits its own
        transaction."""
        await wait_in_time(self.transaction.commit())

    async def rollback(self) -> None:
        """Roll the transaction back."""
        await wait_in_time(self.transaction.rollback())


async def opened(harness: Harness) -> OpenTransaction:
    """Return a transaction that has begun."""
    return await OpenTransaction(harness).begin()


async def committed(harness: Harness, *jobs: NewJob) -> list[Enqueued]:
    """Enqueue inside a transaction that also completes a separate job, and commit."""
    _, worker, delivery = await processing(harness, "carrier", queue="carriers")
    transaction = await opened(harness)
    results = await transaction.enqueue(*jobs)
    await transaction.complete(worker, delivery)
    await transaction.commit()
    return results


async def processing(
    harness: Harness,
    job_id: str = "a",
    *,
    queue: str = "default",
    options: JobOptions | None = None,
) -> tuple[str, HandDrivenWorker, Delivery]:
    """Enqueue and reserve a job; return its id, its worker and its delivery."""
    job = harness.job(job_id, queue=queue, options=options or JobOptions())
    await harness.put(job)
    worker = await harness.worker(queues=(queue,))
    return job_id, worker, await worker.take_one()


class TransactionalEnqueues:
    """`enqueue_in`: enqueue inside a caller's transaction."""

    async def test_an_enqueue_is_invisible_before_the_commit(self, harness: Harness) -> None:
        _, worker, delivery = await processing(harness, "carrier", queue="carriers")
        transaction = await opened(harness)
        assert await transaction.enqueue(harness.job("b")) == [Enqueued("b", "created")]
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("b")
        await transaction.complete(worker, delivery)
        await transaction.commit()
        assert await harness.state("b") is State.PENDING

    async def test_an_enqueue_is_gone_with_the_rollback(self, harness: Harness) -> None:
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("a"), harness.job("b", after=60.0))
        await transaction.rollback()
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    async def test_a_replaced_job_is_as_before_after_the_rollback(self, harness: Harness) -> None:
        options = JobOptions(unique_key="k", on_duplicate="replace")
        await harness.put(harness.job("a", payload=b"1", options=options))
        before = await harness.backend.reads.get_job("a")
        transaction = await opened(harness)
        new = harness.job("b", payload=b"2", priority=9, after=60.0, options=options)
        assert await transaction.enqueue(new) == [Enqueued("a", "replaced")]
        await transaction.rollback()
        assert await harness.backend.reads.get_job("a") == before
        assert await harness.enqueue(new) == [Enqueued("a", "replaced")]
        assert (await harness.backend.reads.get_job("a")).payload == b"2"

    async def test_an_id_that_was_rolled_back_is_free(self, harness: Harness) -> None:
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("a"))
        await transaction.rollback()
        assert await harness.enqueue(harness.job("a", payload=b"[]")) == [Enqueued("a", "created")]

    async def test_a_committed_job_is_as_any_other(self, harness: Harness) -> None:
        get_transactional(harness)
        options = JobOptions(tenant="acme", unique_key="k")
        plain = harness.job("a", priority=7, after=5.0, options=options)
        await harness.put(plain)
        twin = harness.job(
            "b", priority=7, after=5.0, options=JobOptions(tenant="acme", unique_key="l")
        )
        assert await committed(harness, twin) == [Enqueued("b", "created")]
        one, other = (
            await harness.backend.reads.get_job("a"),
            await harness.backend.reads.get_job("b"),
        )
        assert (one.due, one.priority, one.payload, one.options.tenant) == (
            (other.due, other.priority, other.payload, other.options.tenant)
        )
        harness.clock.advance(5.0)
        worker = await harness.worker()
        assert ids(await worker.take(5)) == ["a", "b"]

    async def test_an_empty_transactional_call_answers_an_empty_list(
        self, harness: Harness
    ) -> None:
        transaction = await opened(harness)
        assert await transaction.enqueue() == []
        await transaction.rollback()

    async def test_ids_and_keys_are_decided_inside_the_transaction(self, harness: Harness) -> None:
        get_transactional(harness)
        await harness.put(harness.job("a", options=JobOptions(unique_key="k")))
        transaction = await opened(harness)
        held = JobOptions(unique_key="k", on_duplicate="existing")
        assert await transaction.enqueue(harness.job("a"), harness.job("b", options=held)) == [
            Enqueued("a", "exists"),
            Enqueued("a", "exists"),
        ]
        await transaction.enqueue(harness.job("c", options=JobOptions(unique_key="own")))
        again = await transaction.enqueue(
            harness.job("c"), harness.job("d", options=JobOptions(unique_key="own"))
        )
        assert again == [Enqueued("c", "refused"), Enqueued("c", "taken")]
        await transaction.rollback()

    async def test_a_unique_key_that_was_rolled_back_is_free(self, harness: Harness) -> None:
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("a", options=JobOptions(unique_key="k")))
        await transaction.rollback()
        await harness.put(harness.job("b", options=JobOptions(unique_key="k")))
        assert await harness.state("b") is State.PENDING

    @pytest.mark.parametrize("refusal", ["conflict", "taken"])
    async def test_a_refused_call_leaves_the_transaction_usable(
        self, harness: Harness, refusal: str
    ) -> None:
        get_transactional(harness)
        await harness.put(harness.job("a", options=JobOptions(unique_key="k")))
        bad = {
            "conflict": harness.job("a", payload=b"[]"),
            "taken": harness.job("b", options=JobOptions(unique_key="k")),
        }[refusal]
        _, worker, delivery = await processing(harness, "carrier", queue="carriers")
        transaction = await opened(harness)
        results = await transaction.enqueue(harness.job("c"), bad)
        assert [result.outcome for result in results] == ["refused", refusal]
        assert await transaction.enqueue(harness.job("d")) == [Enqueued("d", "created")]
        await transaction.complete(worker, delivery)
        await transaction.commit()
        assert await harness.state("d") is State.PENDING
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("c")

    async def test_a_committed_enqueue_is_counted_once(self, harness: Harness) -> None:
        producing = get_transactional(harness)
        jobs = [harness.job("a"), harness.job("b", after=60.0), harness.job("c", name="sms")]
        tenants = [harness.job("d", queue="x", options=JobOptions(tenant="t"))]
        await committed(harness, *jobs, *tenants, harness.job("a"))
        counts = sorted(await producing.take_enqueue_counts(0.0))
        assert counts == [("default", "mail", 2), ("default", "sms", 1), ("x", "mail", 1)]
        assert await producing.take_enqueue_counts(0.0) == []

    async def test_an_enqueue_that_is_rolled_back_is_not_counted(self, harness: Harness) -> None:
        producing = get_transactional(harness)
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("a"))
        await transaction.rollback()
        await harness.put(harness.job("b"))  # a plain enqueue is counted by its process
        assert await producing.take_enqueue_counts(0.0) == []

    async def test_a_transactional_enqueue_that_creates_no_job_is_not_counted(
        self, harness: Harness
    ) -> None:
        producing = get_transactional(harness)
        key = JobOptions(unique_key="k", on_duplicate="replace")
        for stored in (harness.job("a"), harness.job("b", options=key)):
            await harness.put(stored)
        await committed(harness, harness.job("a"), harness.job("c", options=key))
        assert await producing.take_enqueue_counts(0.0) == []

    async def test_enqueue_counts_may_be_left_to_the_process_that_enqueued(
        self, harness: Harness
    ) -> None:
        producing = get_transactional(harness)
        await committed(harness, harness.job("a"))
        assert await producing.take_enqueue_counts(60.0) == []
        harness.clock.advance(61.0)
        assert await producing.take_enqueue_counts(60.0) == [("default", "mail", 1)]

    async def test_enqueue_counts_are_no_statistics_yet(self, harness: Harness) -> None:
        producing = get_transactional(harness)
        await committed(harness, harness.job("a"))
        now = harness.clock.now()
        for step in STEPS:
            assert await harness.backend.reads.list_statistics(now - step, now + step, step) == []
        harness.clock.advance(2 * max(STEPS))
        await harness.backend.maintenance.prune(Retention(), 10)
        assert await producing.take_enqueue_counts(0.0) == [("default", "mail", 1)]

    async def test_waiters_are_woken_after_the_commit(self, harness: Harness) -> None:
        if not harness.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        _, worker, delivery = await processing(harness, "carrier", queue="carriers")
        waiting = await listening(harness, 0, ("default",), FAR)
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("b"))
        await transaction.complete(worker, delivery)
        await transaction.commit()
        await wait_in_time(waiting)
        assert await harness.state("b") is State.PENDING

    async def test_what_is_no_connection_is_refused(self, harness: Harness) -> None:
        producing = get_transactional(harness)
        with pytest.raises(UnusableConnection):
            await producing.enqueue_in(CallerConnection(object()), [harness.job("a")])
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0


class TransactionalCompletions:
    """`transaction`: complete a job inside a handler's transaction."""

    async def test_a_completion_is_invisible_before_the_commit(self, harness: Harness) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        transaction = await opened(harness)
        await transaction.complete(worker, delivery, b"7")
        assert await harness.state(job_id) is State.PROCESSING
        await transaction.commit()
        record = await harness.backend.reads.get_job(job_id)
        assert (record.state, record.result, record.payload) == (State.COMPLETED, b"7", None)
        assert record.finished_at == harness.clock.now()

    async def test_after_a_rollback_the_job_is_held_as_before(self, harness: Harness) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        transaction = await opened(harness)
        await transaction.complete(worker, delivery)
        await transaction.rollback()
        assert await harness.state(job_id) is State.PROCESSING
        assert await worker.settle(Completed(delivery.lease)) == [Settled.DONE]

    @pytest.mark.parametrize("how", ["completed", "retried"])
    async def test_settling_it_once_more_answers_already(self, harness: Harness, how: str) -> None:
        """An engine that does not know whether the commit was applied can settle again."""
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        transaction = await opened(harness)
        await transaction.complete(worker, delivery)
        await transaction.commit()
        lease = delivery.lease
        again = Completed(lease) if how == "completed" else Retried(lease, 0.0, FAILURE)
        assert await worker.settle(again) == [Settled.ALREADY]
        assert await harness.state(job_id) is State.COMPLETED

    async def test_it_cannot_be_completed_twice(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, delivery = await processing(harness)
        await worker.settle(Completed(delivery.lease))
        transaction = await opened(harness)
        with pytest.raises(LeaseLost):
            await transaction.complete(worker, delivery)
        await transaction.rollback()

    @pytest.mark.parametrize("half", ["fence", "nonce", "session"])
    async def test_the_whole_token_is_compared(self, harness: Harness, half: str) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        token = delivery.lease.token
        other = {
            "fence": Token(token.fence + 1, token.nonce),
            "nonce": Token(token.fence, bytes(16)),
            "session": token,
        }[half]
        holder = await harness.worker() if half == "session" else worker
        lease = Lease(job_id, other, delivery.lease.ref)
        transaction = await opened(harness)
        with pytest.raises(LeaseLost) as lost:
            await transaction.settle(holder, Completed(lease))
        await transaction.rollback()
        assert lost.value.job_id == job_id
        assert await harness.state(job_id) is State.PROCESSING

    async def test_a_rescued_worker_writes_nothing(self, harness: Harness) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        await harness.lose(worker)
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("effect"))
        with pytest.raises(LeaseLost):
            await transaction.complete(worker, delivery)
        await transaction.rollback()
        assert await harness.state(job_id) is State.PENDING
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("effect")

    async def test_an_overdue_session_that_was_not_rescued_may_still_complete(
        self, harness: Harness
    ) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        harness.clock.advance(worker.session.ttl + 1.0)
        transaction = await opened(harness)
        await transaction.complete(worker, delivery)
        await transaction.commit()
        assert await harness.state(job_id) is State.COMPLETED

    async def test_a_transactional_completion_wins_over_a_requested_cancel(
        self, harness: Harness
    ) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        assert await harness.backend.producing.cancel(job_id) == "requested"
        transaction = await opened(harness)
        await transaction.complete(worker, delivery)
        await transaction.commit()
        assert await harness.state(job_id) is State.COMPLETED

    async def test_the_slot_under_the_limit_is_freed_with_the_commit(
        self, harness: Harness
    ) -> None:
        get_transactional(harness)
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        delivery = await worker.take_one()
        undone = await opened(harness)
        await undone.complete(worker, delivery)
        await undone.rollback()
        assert await worker.take() == []
        transaction = await opened(harness)
        await transaction.complete(worker, delivery)
        await transaction.commit()
        (following,) = await worker.take(5)
        assert following.lease.job_id == "b"
        await worker.settle(Completed(following.lease))
        assert (await worker.heartbeat()).limits["mail"].in_use == 0

    async def test_the_unique_key_is_free_with_the_commit(self, harness: Harness) -> None:
        get_transactional(harness)
        key = JobOptions(unique_key="k")
        _, worker, delivery = await processing(harness, options=key)
        transaction = await opened(harness)
        await transaction.complete(worker, delivery)
        follower = harness.job("b", options=key)
        assert await transaction.enqueue(follower) == [Enqueued("b", "created")]
        await transaction.commit()
        assert await harness.state("b") is State.PENDING

    async def test_two_transactions_complete_two_jobs_of_one_delivery(
        self, harness: Harness
    ) -> None:
        get_transactional(harness)
        await harness.add("a", "b")
        worker = await harness.worker()
        for delivery in await worker.take(2):
            transaction = await opened(harness)
            await transaction.complete(worker, delivery)
            await transaction.commit()
        assert (await harness.backend.reads.count_jobs())[State.COMPLETED] == 2
        assert await worker.take() == []


class TransactionalFailures:
    """`transaction`: store the outcome of a failed attempt inside the transaction of a hook."""

    @pytest.mark.parametrize("how", ["retried", "failed"])
    async def test_a_failure_is_stored_with_the_commit(self, harness: Harness, how: str) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("effect", queue="effects"))
        await transaction.settle(worker, fail(delivery, how))
        assert await harness.state(job_id) is State.PROCESSING
        await transaction.commit()
        record = await harness.backend.reads.get_job(job_id)
        assert (record.failures, [error.message for error in record.history]) == (
            1,
            [FAILURE.message],
        )
        if how == "failed":
            assert (record.state, record.reason) == (State.FAILED, "permanent")
            assert record.finished_at == harness.clock.now()
        else:
            assert record.state is State.RETRYING
            assert record.due == pytest.approx(harness.clock.now() + 60.0, abs=1e-6)
        assert await harness.state("effect") is State.PENDING
        assert await worker.take() == []
        harness.clock.advance(60.0)
        again = [delivery.lease.job_id for delivery in await worker.take(5)]
        assert again == ([job_id] if how == "retried" else [])

    @pytest.mark.parametrize("how", ["retried", "failed"])
    async def test_a_rollback_leaves_neither_the_failure_nor_the_effect(
        self, harness: Harness, how: str
    ) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("effect"))
        await transaction.settle(worker, fail(delivery, how))
        await transaction.rollback()
        record = await harness.backend.reads.get_job(job_id)
        assert (record.state, record.failures, record.history) == (State.PROCESSING, 0, [])
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("effect")
        assert await worker.settle(fail(delivery, how)) == [Settled.DONE]

    @pytest.mark.parametrize("how", ["retried", "failed"])
    async def test_settling_the_failure_once_more_answers_already(
        self, harness: Harness, how: str
    ) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        transaction = await opened(harness)
        await transaction.settle(worker, fail(delivery, how))
        await transaction.commit()
        before = await harness.backend.reads.get_job(job_id)
        assert await worker.settle(fail(delivery, how)) == [Settled.ALREADY]
        assert await harness.backend.reads.get_job(job_id) == before

    async def test_a_requested_cancel_wins_over_a_transactional_retry(
        self, harness: Harness
    ) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        assert await harness.backend.producing.cancel(job_id) == "requested"
        transaction = await opened(harness)
        await transaction.settle(worker, fail(delivery, "retried"))
        await transaction.commit()
        assert await harness.state(job_id) is State.CANCELLED

    @pytest.mark.parametrize("how", ["retried", "failed"])
    async def test_a_rescued_worker_writes_no_failure(self, harness: Harness, how: str) -> None:
        get_transactional(harness)
        job_id, worker, delivery = await processing(harness)
        await harness.lose(worker)
        transaction = await opened(harness)
        with pytest.raises(LeaseLost):
            await transaction.settle(worker, fail(delivery, how))
        await transaction.rollback()
        record = await harness.backend.reads.get_job(job_id)
        assert (record.state, record.failures) == (State.PENDING, 0)

    @pytest.mark.parametrize("how", ["retried", "failed"])
    async def test_the_slot_under_the_limit_is_freed_with_the_failure(
        self, harness: Harness, how: str
    ) -> None:
        get_transactional(harness)
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        delivery = await worker.take_one()
        transaction = await opened(harness)
        await transaction.settle(worker, fail(delivery, how))
        await transaction.commit()
        (following,) = await worker.take(5)
        assert following.lease.job_id == "b"


def fail(delivery: Delivery, how: str) -> Retried | Failed:
    """Return the settlement of a failed attempt."""
    if how == "retried":
        return Retried(delivery.lease, 60.0, FAILURE)
    return Failed(delivery.lease, "permanent", FAILURE)
