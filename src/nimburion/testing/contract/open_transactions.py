"""A caller's transaction that stays open holds up no worker, no maintenance and no reading. Runs
if the `Capabilities` of the backend have `concurrent_transactions`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.lease import Delivery, Lease
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Released,
    Retried,
    Settled,
    Settlement,
)
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids, wait_in_time
from nimburion.testing.contract.transactions import OpenTransaction

KEY = JobOptions(unique_key="k")
WAITING_KEY = JobOptions(
    unique_key="k", unique_while=(State.SCHEDULED, State.PENDING, State.RETRYING)
)
TENANT = JobOptions(tenant="acme")
KEEP_NOTHING = Retention(completed=0.0, failed=0.0, results=0.0)
OUTCOMES: dict[str, tuple[Callable[[Lease], Settlement], State]] = {
    "completed": (Completed, State.COMPLETED),
    "failed": (lambda lease: Failed(lease, "failure", FAILURE), State.FAILED),
    "cancelled": (lambda lease: Cancelled(lease, "enough"), State.CANCELLED),
    "retried": (lambda lease: Retried(lease, 0.0, FAILURE), State.RETRYING),
    "released": (Released, State.PENDING),
}
"""Each way in which a run ends, and the state that follows."""


async def open_transaction(harness: Harness) -> OpenTransaction:
    """Begin a transaction that the case leaves open; skip the case if the backend cannot."""
    if not harness.backend.capabilities.concurrent_transactions:
        pytest.skip("an open transaction of a caller holds up all others, and the backend says so")
    return await OpenTransaction(harness).begin()


def settle_as(outcome: str, lease: Lease) -> Settlement:
    """Return the settlement of an outcome in `OUTCOMES`."""
    return OUTCOMES[outcome][0](lease)


def repeat_key(harness: Harness, how: str, options: JobOptions = KEY) -> NewJob:
    """Return another job of the key: its enqueue finds the holder (`existing`) or is refused."""
    on_duplicate = {"existing": "existing", "refused": "reject"}[how]
    return harness.job(options=msgspec.structs.replace(options, on_duplicate=on_duplicate))


async def hold_key(
    harness: Harness, options: JobOptions = KEY
) -> tuple[HandDrivenWorker, Delivery]:
    """Let a worker run a job with a unique key; the id is `holder`."""
    await harness.put(harness.job("holder", options=options))
    worker = await harness.worker()
    return worker, await worker.take_one()


class OpenTransactions:
    """Enqueues in a transaction that stays open."""

    @pytest.mark.parametrize("outcome", sorted(OUTCOMES))
    @pytest.mark.parametrize("how", ["existing", "refused"])
    async def test_a_duplicate_does_not_delay_the_end_of_the_running_holder(
        self, harness: Harness, how: str, outcome: str
    ) -> None:
        transaction = await open_transaction(harness)
        worker, delivery = await hold_key(harness)
        (found,) = await transaction.enqueue(repeat_key(harness, how))
        assert (found.id, found.outcome) == (
            ("holder", {"existing": "exists", "refused": "taken"}[how])
        )
        assert await wait_in_time(worker.settle(settle_as(outcome, delivery.lease))) == [
            Settled.DONE
        ]
        assert await harness.state("holder") is OUTCOMES[outcome][1]
        await transaction.rollback()
        after = "taken" if outcome in {"retried", "released"} else "created"
        (result,) = await harness.enqueue(harness.job("next", options=KEY))
        assert result.outcome == after

    @pytest.mark.parametrize("how", ["existing", "refused"])
    async def test_a_duplicate_does_not_delay_the_waiting_holder(
        self, harness: Harness, how: str
    ) -> None:
        transaction = await open_transaction(harness)
        await harness.put(harness.job("holder", options=KEY))
        await transaction.enqueue(repeat_key(harness, how))
        worker = await harness.worker()
        (delivery,) = await wait_in_time(worker.take())
        assert await wait_in_time(worker.settle(Completed(delivery.lease))) == [Settled.DONE]
        await transaction.rollback()
        await harness.put(harness.job("next", options=KEY))

    async def test_a_refused_duplicate_holds_nothing(self, harness: Harness) -> None:
        transaction = await open_transaction(harness)
        await harness.put(harness.job("holder", options=WAITING_KEY))
        refused = repeat_key(harness, "refused", WAITING_KEY)
        other = harness.job("other", options=JobOptions(unique_key="other"))
        assert [one.outcome for one in await transaction.enqueue(refused, other)] == (
            ["taken", "refused"]
        )
        (found,) = await wait_in_time(harness.enqueue(repeat_key(harness, "existing", WAITING_KEY)))
        assert found == Enqueued("holder", "exists")
        await wait_in_time(harness.put(other))
        worker = await harness.worker()
        assert ids(await wait_in_time(worker.take(2))) == ["holder", "other"]
        await transaction.rollback()

    async def test_a_key_is_free_in_the_transaction_that_found_its_holder(
        self, harness: Harness
    ) -> None:
        """The holder ends while the transaction is open: its key is free at once."""
        transaction = await open_transaction(harness)
        worker, delivery = await hold_key(harness)
        await transaction.enqueue(repeat_key(harness, "existing"))
        await wait_in_time(worker.settle(Completed(delivery.lease)))
        assert await transaction.enqueue(harness.job("next", options=KEY)) == (
            [Enqueued("next", "created")]
        )
        await transaction.rollback()
        await harness.put(harness.job("next", options=KEY))

    @pytest.mark.parametrize("outcome", sorted(OUTCOMES))
    async def test_a_key_that_was_taken_over_does_not_delay_its_old_holder(
        self, harness: Harness, outcome: str
    ) -> None:
        transaction = await open_transaction(harness)
        worker, delivery = await hold_key(harness, WAITING_KEY)
        assert await transaction.enqueue(harness.job("next", options=WAITING_KEY)) == (
            [Enqueued("next", "created")]
        )
        assert await wait_in_time(worker.settle(settle_as(outcome, delivery.lease))) == [
            Settled.DONE
        ]
        assert await harness.state("holder") is OUTCOMES[outcome][1]
        await transaction.rollback()
        (result,) = await harness.enqueue(harness.job("last", options=WAITING_KEY))
        assert result.outcome == ("taken" if outcome in {"retried", "released"} else "created")

    @pytest.mark.parametrize("outcome", ["completed", "failed"])
    async def test_a_key_that_could_not_be_released_leaves_nothing_behind(
        self, harness: Harness, outcome: str
    ) -> None:
        """A replay of the failed job takes the key again, and prune leaves it with it."""
        transaction = await open_transaction(harness)
        worker, delivery = await hold_key(harness)
        await transaction.enqueue(repeat_key(harness, "existing"))
        await wait_in_time(worker.settle(settle_as(outcome, delivery.lease)))
        await transaction.rollback()
        if outcome == "failed":
            await replay(harness.backend, JobFilter(ids=("holder",)), 1)
        await wait_in_time(
            harness.backend.maintenance.prune(
                Retention(completed=60.0, failed=60.0, results=60.0), 100
            )
        )
        (result,) = await harness.enqueue(harness.job("next", options=KEY))
        assert result.outcome == ("taken" if outcome == "failed" else "created")

    async def test_a_key_that_could_not_be_released_explains_nothing(
        self, harness: Harness
    ) -> None:
        """A dead letter of the key can be replayed: no other job holds its key."""
        transaction = await open_transaction(harness)
        await harness.put(harness.job("old", options=KEY))
        worker = await harness.worker()
        await worker.settle(settle_as("failed", (await worker.take_one()).lease))
        await harness.put(harness.job("holder", options=KEY))
        delivery = await worker.take_one()
        await transaction.enqueue(repeat_key(harness, "existing"))
        assert (await harness.backend.reads.explain_job("old")).key_holder == "holder"
        await wait_in_time(worker.settle(Completed(delivery.lease)))
        assert (await harness.backend.reads.explain_job("old")).key_holder is None
        await transaction.rollback()

    @pytest.mark.parametrize("how", ["scheduled", "retried", "released", "rescued"])
    async def test_a_job_of_a_tenant_does_not_delay_another_of_the_tenant(
        self, harness: Harness, how: str
    ) -> None:
        transaction = await open_transaction(harness)
        worker = await harness.worker()
        job = harness.job("a", options=TENANT, after=5.0 if how == "scheduled" else 0.0)
        await harness.put(job)
        deliveries = await worker.take()
        assert await transaction.enqueue(harness.job("open", options=TENANT)) == (
            [Enqueued("open", "created")]
        )
        if how == "scheduled":
            harness.clock.advance(5.0)
        elif how == "rescued":
            assert (await wait_in_time(harness.lose(worker))).returned == ["a"]
            worker = await harness.worker()
        else:
            await wait_in_time(worker.settle(settle_as(how, deliveries[0].lease)))
        assert ids(await wait_in_time(worker.take(5))) == ["a"]
        await transaction.rollback()
        assert await worker.take(5) == []

    async def test_a_committed_job_of_a_tenant_has_its_turn(self, harness: Harness) -> None:
        """Whatever exchanges did with the turns of the tenant before the commit."""
        first, second = await open_transaction(harness), await open_transaction(harness)
        worker = await harness.worker()
        await first.enqueue(harness.job("a", options=TENANT))
        await wait_in_time(harness.put(harness.job("b", options=TENANT)))
        await wait_in_time(second.enqueue(harness.job("c", options=TENANT)))
        await harness.put(harness.job("d", options=JobOptions(tenant="z")))
        taken = await wait_in_time(worker.take(5))
        assert set(ids(taken)) == {"b", "d"}
        await worker.settle(*(Completed(one.lease) for one in taken))
        assert await wait_in_time(worker.take(5)) == []
        await wait_in_time(harness.backend.maintenance.prune(KEEP_NOTHING, 100))
        await second.commit()
        assert ids(await wait_in_time(worker.take(5))) == ["c"]
        await first.commit()
        assert ids(await wait_in_time(worker.take(5))) == ["a"]

    @pytest.mark.parametrize("lane", ["of one tenant", "of a limit", "of a limit by key", "plain"])
    async def test_a_waiting_job_that_is_replaced_delays_no_other(
        self, harness: Harness, lane: str
    ) -> None:
        """The replaced job waits for the commit. Those behind it do not, in its lane and others."""
        transaction = await open_transaction(harness)
        plain = TENANT if lane == "of one tenant" else JobOptions()
        plain = msgspec.structs.replace(plain, limit_keys={"customer": "c"})
        options = msgspec.structs.replace(plain, unique_key="k", on_duplicate="replace")
        await harness.put(harness.job("a", options=options))
        await harness.put(harness.job("b", options=plain))
        await harness.put(harness.job("c", name="other", options=plain))
        (result,) = await transaction.enqueue(harness.job(after=60.0, options=options))
        assert result == Enqueued("a", "replaced")
        by_key = {name: {"customer": LimitRule(concurrency=5)} for name in ("mail", "other")}
        worker = await harness.worker(
            names=("mail", "other"),
            limits={"mail": 5} if lane == "of a limit" else None,
            keyed=by_key if lane == "of a limit by key" else None,
        )
        for expected in ("b", "c"):
            (delivery,) = await wait_in_time(worker.take())
            assert delivery.lease.job_id == expected
            assert await wait_in_time(worker.settle(Completed(delivery.lease))) == [Settled.DONE]
        assert await wait_in_time(worker.take(5)) == []
        await transaction.rollback()
        assert ids(await worker.take(5)) == ["a"]

    @pytest.mark.parametrize("level", ["plain", "limited"])
    async def test_a_rescue_waits_for_no_caller(self, harness: Harness, level: str) -> None:
        transaction = await open_transaction(harness)
        await harness.put(harness.job("holder", options=KEY))
        await harness.put(harness.job("old", options=msgspec.structs.replace(
            WAITING_KEY, unique_key="old"
        )))  # fmt: skip
        await harness.put(harness.job("tenant", options=TENANT))
        await harness.add("other")
        worker = await harness.worker(limits={"mail": 9} if level == "limited" else None)
        assert len(await worker.take(9)) == 4
        await transaction.enqueue(
            repeat_key(harness, "existing"),
            harness.job(options=msgspec.structs.replace(WAITING_KEY, unique_key="old")),
            harness.job(options=TENANT),
        )
        lost = await wait_in_time(harness.lose(worker, max_lost=1))
        assert {*lost.failed} == {"holder", "old", "tenant", "other"}
        await transaction.rollback()
        await harness.put(harness.job("next", options=KEY))

    async def test_maintenance_and_readings_wait_for_no_caller(self, harness: Harness) -> None:
        """The transaction holds a key, a waiting job, an expired key and the turn of a tenant."""
        transaction = await open_transaction(harness)
        backend = harness.backend
        await harness.put(harness.job("holder", options=WAITING_KEY))
        await harness.put(harness.job("expired", options=JobOptions(unique_key="e", unique_for=1)))
        await harness.put(harness.job("later", options=TENANT, after=5.0))
        worker = await harness.worker()
        harness.clock.advance(5.0)
        options = msgspec.structs.replace(WAITING_KEY, on_duplicate="replace")
        results = await transaction.enqueue(
            harness.job("new", options=options),
            harness.job(options=JobOptions(unique_key="e", unique_for=1)),
            harness.job(options=TENANT),
        )
        assert [one.outcome for one in results] == ["replaced", "created", "created"]
        assert (await wait_in_time(backend.consuming.promote(100))).count == 1
        await wait_in_time(backend.maintenance.prune(KEEP_NOTHING, 100))
        await wait_in_time(backend.consuming.heartbeat(worker.id))
        await wait_in_time(backend.reads.get_job("holder"))
        await wait_in_time(backend.reads.explain_job("holder"))
        await wait_in_time(backend.reads.explain_job("later"))
        assert len((await wait_in_time(backend.reads.list_jobs())).jobs) == 3
        assert (await wait_in_time(backend.reads.count_jobs()))[State.PENDING] == 3
        await wait_in_time(backend.reads.list_queues())
        await wait_in_time(backend.reads.list_sessions())
        assert [
            one.waiting for one in (await wait_in_time(backend.reads.list_tenants())).tenants
        ] == [1]
        await wait_in_time(harness.add("unrelated"))
        await wait_in_time(harness.put(harness.job(options=JobOptions(unique_key="unrelated"))))
        assert (await wait_in_time(backend.producing.cancel("later"))) == "cancelled"
        await wait_in_time(worker.close())
        await transaction.rollback()
