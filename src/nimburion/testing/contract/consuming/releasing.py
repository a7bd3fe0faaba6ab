"""Releasing leases outside the numbered exchanges."""

from __future__ import annotations

from msgspec.structs import replace

from nimburion.core.job import State
from nimburion.core.lease import Token
from nimburion.core.settlement import Completed, Released, Settled
from nimburion.testing.contract.harness import Harness, ids


class Releasing:
    """`release`: leases released while an exchange may be under way."""

    async def test_a_released_job_waits_in_its_old_place_and_counts_nothing(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b", "c")
        first, second = await harness.worker(), await harness.worker()
        a, b = await first.take(2)
        await harness.backend.consuming.release(first.id, [b.lease, a.lease])
        assert await harness.state("a") == State.PENDING
        again = await second.take(3)
        assert ids(again) == ["a", "b", "c"]
        assert [(delivery.failures, delivery.lost) for delivery in again] == [(0, 0)] * 3
        assert again[0].lease.token.fence > a.lease.token.fence

    async def test_what_is_not_released_stays(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        a, b = await worker.take(2)
        await harness.backend.consuming.release(worker.id, [b.lease])
        assert await worker.settle(Completed(a.lease)) == [Settled.DONE]
        assert await harness.state("b") == State.PENDING

    async def test_a_release_changes_no_exchange_number(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        delivery = await worker.take_one()
        await harness.backend.consuming.release(worker.id, [delivery.lease])
        assert ids(await worker.take(1)) == ["a"]

    async def test_a_nonce_releases_the_jobs_of_its_exchange(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker, other = await harness.worker(), await harness.worker()
        a = await worker.take_one()
        want = worker.want(1)
        (b,) = (await worker.exchange(want=want)).deliveries
        c = await other.take_one()
        await harness.backend.consuming.release(worker.id, nonce=want.nonce)
        assert [await harness.state(job_id) for job_id in "abc"] == [
            State.PROCESSING,
            State.PENDING,
            State.PROCESSING,
        ]
        assert await worker.settle(Completed(a.lease)) == [Settled.DONE]
        assert await other.settle(Completed(c.lease)) == [Settled.DONE]
        assert await worker.settle(Released(b.lease)) == [Settled.ALREADY]

    async def test_a_repeated_exchange_does_not_return_released_jobs(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        want = worker.want(2)
        a, b = (await worker.exchange(want=want)).deliveries
        await harness.backend.consuming.release(worker.id, [a.lease])
        repeated = await harness.backend.consuming.exchange(worker.id, worker.number, [], want)
        assert [delivery.lease for delivery in repeated.deliveries] == [b.lease]
        await harness.backend.consuming.release(worker.id, nonce=want.nonce)
        repeated = await harness.backend.consuming.exchange(worker.id, worker.number, [], want)
        assert repeated.deliveries == []

    async def test_only_the_whole_token_of_its_own_session_releases(self, harness: Harness) -> None:
        await harness.add("a")
        worker, other = await harness.worker(), await harness.worker()
        lease = (await worker.take_one()).lease
        token = lease.token
        for wrong in (Token(token.fence + 1, token.nonce), Token(token.fence, bytes(16))):
            await harness.backend.consuming.release(
                worker.id, [replace(lease, token=wrong)], bytes(16)
            )
        await harness.backend.consuming.release(other.id, [lease], token.nonce)
        await harness.backend.consuming.release("f" * 32, [lease], token.nonce)
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_releasing_twice_changes_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        first, second = await harness.worker(), await harness.worker()
        lease = (await first.take_one()).lease
        await harness.backend.consuming.release(first.id, [lease], lease.token.nonce)
        held = (await second.take_one()).lease
        await harness.backend.consuming.release(first.id, [lease], lease.token.nonce)
        assert await second.settle(Completed(held)) == [Settled.DONE]
        await harness.backend.consuming.release(first.id, [lease], lease.token.nonce)
        assert await harness.state("a") == State.COMPLETED

    async def test_a_requested_cancel_ends_the_job(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        await harness.backend.consuming.release(worker.id, [lease])
        assert await harness.state("a") == State.CANCELLED

    async def test_its_place_under_a_limit_is_freed(self, harness: Harness) -> None:
        await harness.add("a", "b")
        first = await harness.worker(limits={"mail": 1})
        second = await harness.worker(limits={"mail": 1})
        lease = (await first.take_one()).lease
        assert await second.take(1) == []
        await harness.backend.consuming.release(first.id, [lease])
        assert ids(await second.take(2)) == ["a"]

    async def test_a_session_that_is_over_gives_nothing_back(self, harness: Harness) -> None:
        await harness.add("a")
        lost, other = await harness.worker(ttl=5.0), await harness.worker()
        lease = (await lost.take_one()).lease
        await harness.lose(lost)
        held = (await other.take_one()).lease
        await harness.backend.consuming.release(lost.id, [lease], lease.token.nonce)
        assert await other.settle(Completed(held)) == [Settled.DONE]

    async def test_many_are_released_in_one_call(self, harness: Harness) -> None:
        await harness.add(*(f"j{n}" for n in range(1_200)))
        worker = await harness.worker()
        held = [delivery for _ in range(3) for delivery in await worker.take(400)]
        await harness.backend.consuming.release(worker.id, [delivery.lease for delivery in held])
        (info,) = await harness.backend.reads.list_sessions()
        assert info.running == 0
        assert ids(await worker.take(3)) == ["j0", "j1", "j2"]
