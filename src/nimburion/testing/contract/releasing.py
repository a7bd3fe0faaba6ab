"""Releasing leases outside the numbered exchanges."""

from __future__ import annotations

from msgspec.structs import replace

from nimburion.core.job import State
from nimburion.core.lease import Token
from nimburion.core.settlement import Completed, Released, Settled
from nimburion.testing.contract.harness import Harness, ids


class Releasing:
    """Leases that are given back while an exchange may be under way."""

    async def test_what_is_given_back_waits_in_its_old_place_and_counts_nothing(
        self, stage: Harness
    ) -> None:
        await stage.add("a", "b", "c")
        first, second = await stage.worker(), await stage.worker()
        a, b = await first.take(2)
        await stage.store.release(first.id, [b.lease, a.lease])
        assert await stage.state("a") == State.PENDING
        again = await second.take(3)
        assert ids(again) == ["a", "b", "c"]
        assert [(one.failures, one.lost) for one in again] == [(0, 0)] * 3
        assert again[0].lease.token.fence > a.lease.token.fence

    async def test_what_is_not_given_back_stays(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        a, b = await worker.take(2)
        await stage.store.release(worker.id, [b.lease])
        assert await worker.settle(Completed(a.lease)) == [Settled.DONE]
        assert await stage.state("b") == State.PENDING

    async def test_giving_back_moves_no_number(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        delivery = await worker.take_one()
        await stage.store.release(worker.id, [delivery.lease])
        assert ids(await worker.take(1)) == ["a"]

    async def test_a_nonce_gives_back_what_its_exchange_handed_out(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        worker, other = await stage.worker(), await stage.worker()
        a = await worker.take_one()
        want = worker.want(1)
        (b,) = (await worker.exchange(want=want)).deliveries
        c = await other.take_one()
        await stage.store.release(worker.id, nonce=want.nonce)
        assert [await stage.state(one) for one in "abc"] == [
            State.PROCESSING,
            State.PENDING,
            State.PROCESSING,
        ]
        assert await worker.settle(Completed(a.lease)) == [Settled.DONE]
        assert await other.settle(Completed(c.lease)) == [Settled.DONE]
        assert await worker.settle(Released(b.lease)) == [Settled.ALREADY]

    async def test_a_repeat_of_the_exchange_brings_no_more_what_was_given_back(
        self, stage: Harness
    ) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        want = worker.want(2)
        a, b = (await worker.exchange(want=want)).deliveries
        await stage.store.release(worker.id, [a.lease])
        repeated = await stage.store.exchange(worker.id, worker.number, [], want)
        assert [one.lease for one in repeated.deliveries] == [b.lease]
        await stage.store.release(worker.id, nonce=want.nonce)
        repeated = await stage.store.exchange(worker.id, worker.number, [], want)
        assert repeated.deliveries == []

    async def test_only_the_whole_token_of_its_own_session_gives_back(self, stage: Harness) -> None:
        await stage.add("a")
        worker, other = await stage.worker(), await stage.worker()
        lease = (await worker.take_one()).lease
        token = lease.token
        for wrong in (Token(token.fence + 1, token.nonce), Token(token.fence, bytes(16))):
            await stage.store.release(worker.id, [replace(lease, token=wrong)], bytes(16))
        await stage.store.release(other.id, [lease], token.nonce)
        await stage.store.release("f" * 32, [lease], token.nonce)
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_giving_back_twice_changes_nothing(self, stage: Harness) -> None:
        await stage.add("a")
        first, second = await stage.worker(), await stage.worker()
        lease = (await first.take_one()).lease
        await stage.store.release(first.id, [lease], lease.token.nonce)
        held = (await second.take_one()).lease
        await stage.store.release(first.id, [lease], lease.token.nonce)
        assert await second.settle(Completed(held)) == [Settled.DONE]
        await stage.store.release(first.id, [lease], lease.token.nonce)
        assert await stage.state("a") == State.COMPLETED

    async def test_a_cancel_that_was_asked_for_ends_the_job(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.cancel("a")
        await stage.store.release(worker.id, [lease])
        assert await stage.state("a") == State.CANCELLED

    async def test_its_place_under_a_limit_is_given_back(self, stage: Harness) -> None:
        await stage.add("a", "b")
        first = await stage.worker(limits={"mail": 1})
        second = await stage.worker(limits={"mail": 1})
        lease = (await first.take_one()).lease
        assert await second.take(1) == []
        await stage.store.release(first.id, [lease])
        assert ids(await second.take(2)) == ["a"]

    async def test_a_session_that_is_over_gives_nothing_back(self, stage: Harness) -> None:
        await stage.add("a")
        lost, other = await stage.worker(ttl=5.0), await stage.worker()
        lease = (await lost.take_one()).lease
        await stage.lose(lost)
        held = (await other.take_one()).lease
        await stage.store.release(lost.id, [lease], lease.token.nonce)
        assert await other.settle(Completed(held)) == [Settled.DONE]

    async def test_many_are_given_back_in_one_call(self, stage: Harness) -> None:
        await stage.add(*(f"j{n}" for n in range(1_200)))
        worker = await stage.worker()
        held = [one for _ in range(3) for one in await worker.take(400)]
        await stage.store.release(worker.id, [one.lease for one in held])
        (info,) = await stage.store.sessions()
        assert info.running == 0
        assert ids(await worker.take(3)) == ["j0", "j1", "j2"]
