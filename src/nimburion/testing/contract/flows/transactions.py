"""Flows in a caller's transaction. Runs if the `Capabilities` have `supports_transactions`."""

from __future__ import annotations

from nimburion.core.flows import FlowState
from nimburion.core.job import State
from nimburion.core.settlement import Completed
from nimburion.testing.contract.flows.graphs import (
    FLOW,
    after,
    finish,
    list_waiting,
    make_flow,
    member,
    read_counts,
    store,
)
from nimburion.testing.contract.harness import Harness, wait_in_time
from nimburion.testing.contract.transactions import opened


class TransactionalFlows:
    """`enqueue_in` with flows, and members that end in the transaction of their handler."""

    async def test_a_flow_comes_with_the_commit(self, harness: Harness) -> None:
        await harness.add("carrier")
        worker = await harness.worker()
        carrier = await worker.take_one()
        transaction = await opened(harness)
        jobs = [member("a"), member("b", after("a"))]
        await wait_in_time(
            transaction.producing.enqueue_in(transaction.connection, jobs, [make_flow(2)])
        )
        await transaction.complete(worker, carrier)
        assert await harness.backend.reads.get_flow(FLOW) == []
        await transaction.commit()
        assert await harness.state("b") is State.SUSPENDED
        await finish(worker, "a")
        assert await list_waiting(worker) == ["b"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 1, 0, 0)

    async def test_a_flow_is_gone_with_the_rollback(self, harness: Harness) -> None:
        transaction = await opened(harness)
        jobs = [member("a"), member("b", after("a"))]
        await wait_in_time(
            transaction.producing.enqueue_in(transaction.connection, jobs, [make_flow(2)])
        )
        await transaction.rollback()
        assert await harness.backend.reads.get_flow(FLOW) == []
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0
        await store(harness, jobs)
        await finish(await harness.worker(), "a")

    async def test_a_job_is_added_while_its_source_ends(self, harness: Harness) -> None:
        """The source ends before the commit; a next step finds that it has ended."""
        await store(harness, [member("a")], members=2)
        worker = await harness.worker()
        source = await worker.take_one()
        await harness.add("carrier")
        carrier = await worker.take_one()
        transaction = await opened(harness)
        added = [member("b", after("a"))]
        await wait_in_time(
            transaction.producing.enqueue_in(transaction.connection, added, [make_flow(2)])
        )
        is_concurrent = harness.backend.capabilities.concurrent_transactions
        if is_concurrent:
            await wait_in_time(worker.settle(Completed(source.lease)))
        await transaction.complete(worker, carrier)
        await transaction.commit()
        if not is_concurrent:
            await worker.settle(Completed(source.lease))
        await harness.backend.consuming.promote(100)
        assert await list_waiting(worker) == ["b"]

    async def test_a_member_ends_in_the_transaction_of_its_handler(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        source = await worker.take_one()
        transaction = await opened(harness)
        await transaction.complete(worker, source)
        await transaction.commit()
        assert await list_waiting(worker) == ["b"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 1, 0, 0)

    async def test_a_member_that_is_rolled_back_resumes_nothing(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        source = await worker.take_one()
        transaction = await opened(harness)
        await transaction.complete(worker, source)
        await transaction.rollback()
        assert await harness.state("b") is State.SUSPENDED
        await worker.settle(Completed(source.lease))
        assert await list_waiting(worker) == ["b"]
