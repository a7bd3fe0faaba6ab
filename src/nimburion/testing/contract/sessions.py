"""Sessions of a worker: open, heartbeat, close."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.errors import SessionLost
from nimburion.core.exchange import RESERVE_NOTHING
from nimburion.core.job import State
from nimburion.core.session import ConcurrencyLimit, HeartbeatReply
from nimburion.core.settlement import Completed, Released, Retried, Settled
from nimburion.testing.contract.harness import OOPS, TTL, Harness, ids


class Sessions:
    """Sessions."""

    async def test_an_open_session_is_listed_with_what_it_said(self, stage: Harness) -> None:
        worker = await stage.worker(names=("mail", "post"), queues=("red", "blue"), ttl=12.0)
        opened = stage.clock.now()
        stage.clock.advance(2.0)
        (info,) = await stage.store.sessions()
        assert (info.id, info.host, info.pid, info.owner) == (worker.id, "here", 7, "cases")
        assert (info.queues, info.names) == (("red", "blue"), ("mail", "post"))
        assert info.opened_at == opened
        assert info.expires_in == pytest.approx(10.0)
        assert (info.left, info.running) == (False, 0)

    async def test_sessions_are_listed_oldest_first(self, stage: Harness) -> None:
        workers = []
        for _ in range(3):
            workers.append(await stage.worker())
            stage.clock.advance(1.0)
        assert [info.id for info in await stage.store.sessions()] == [w.id for w in workers]

    async def test_running_counts_the_leases(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        worker = await stage.worker()
        leases = [delivery.lease for delivery in await worker.take(3)]
        await worker.settle(Completed(leases[0]))
        (info,) = await stage.store.sessions()
        assert info.running == 2

    async def test_an_overdue_session_is_still_listed(self, stage: Harness) -> None:
        await stage.worker()
        stage.clock.advance(TTL + 5.0)
        (info,) = await stage.store.sessions()
        assert info.expires_in == pytest.approx(-5.0)

    async def test_a_beat_moves_the_expiry(self, stage: Harness) -> None:
        worker = await stage.worker()
        for _ in range(10):
            stage.clock.advance(TTL - 1.0)
            await worker.beat()
            assert (await stage.store.sessions())[0].expires_in == pytest.approx(TTL)

    async def test_a_beat_keeps_every_lease_however_long(self, stage: Harness) -> None:
        """Promise 5: a long job is never taken from a live worker."""
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        for _ in range(20):
            stage.clock.advance(TTL - 0.5)
            await worker.beat()
            assert (await stage.store.rescue(10, max_lost=3)).returned == []
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_a_beat_revives_an_overdue_session(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        stage.clock.advance(10 * TTL)
        await worker.beat()
        assert (await stage.store.rescue(10, max_lost=3)).returned == []
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_a_beat_of_an_unknown_session_is_lost(self, stage: Harness) -> None:
        with pytest.raises(SessionLost):
            await stage.store.heartbeat("f" * 32)

    async def test_a_rescued_session_never_lives_again(self, stage: Harness) -> None:
        """Neither by a heartbeat, nor by an exchange, nor by opening its id anew."""
        worker = await stage.worker()
        await stage.lose(worker)
        for _ in range(2):
            with pytest.raises(SessionLost):
                await worker.beat()
            with pytest.raises(SessionLost):
                await worker.exchange()
            with pytest.raises(SessionLost):
                await stage.store.open_session(worker.session)
        assert await stage.store.sessions() == []

    async def test_a_session_without_leases_dies_of_its_expiry_too(self, stage: Harness) -> None:
        worker = await stage.worker()
        rescued = await stage.lose(worker)
        assert (rescued.returned, rescued.failed, rescued.more) == ([], [], False)
        with pytest.raises(SessionLost):
            await worker.beat()

    async def test_opening_the_same_session_again_is_a_beat(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        stage.clock.advance(TTL - 1.0)
        await stage.store.open_session(worker.session)
        stage.clock.advance(2.0)
        assert (await stage.store.rescue(10, max_lost=3)).returned == []
        assert len(await stage.store.sessions()) == 1
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_opening_again_does_not_start_the_numbers_anew(self, stage: Harness) -> None:
        worker = await stage.worker()
        await worker.exchange()
        await worker.exchange()
        await stage.store.open_session(worker.session)
        assert (await stage.store.exchange(worker.id, 3, [], RESERVE_NOTHING)).results == []

    async def test_a_beat_with_nothing_to_say_brings_empty_orders(self, stage: Harness) -> None:
        worker = await stage.worker()
        assert await worker.beat() == HeartbeatReply([], [], {})

    async def test_a_beat_tells_every_paused_queue(self, stage: Harness) -> None:
        worker = await stage.worker()
        await stage.store.pause("red", paused=True)
        await stage.store.pause("blue", paused=True)
        assert sorted((await worker.beat()).paused) == ["blue", "red"]

    async def test_a_beat_tells_the_gates_of_its_own_names(self, stage: Harness) -> None:
        await stage.add("a")
        await stage.worker(names=("post",), limits={"post": 9})
        worker = await stage.worker(names=("mail", "scan"), limits={"mail": 3})
        await worker.take_one()
        assert (await worker.beat()).limits == {"mail": ConcurrencyLimit(3, 1)}

    async def test_a_wall_clock_that_steps_expires_nobody(self, stage: Harness) -> None:
        """An operator or NTP sets the clock; workers that live go on living."""
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        for step in (86_400.0, -2 * 86_400.0, 86_400.0):
            stage.clock.step_wall(step)
            assert (await stage.store.rescue(10, max_lost=3)).returned == []
        assert await worker.settle(Completed(lease)) == [Settled.DONE]


class Closing:
    """Ending a session."""

    async def test_closing_releases_what_was_held(self, stage: Harness) -> None:
        """Promise 9: a restart counts nothing, and the jobs keep their place."""
        await stage.add("a", "b", "c")
        before = [await stage.store.get(job_id) for job_id in ("a", "b")]
        worker = await stage.worker()
        await worker.take(2)
        reserved = stage.clock.now()
        stage.clock.advance(1.0)
        await worker.close()
        after = [await stage.store.get(job_id) for job_id in ("a", "b")]
        assert after == [replace(record, started_at=reserved) for record in before]
        assert ids(await (await stage.worker()).take(5)) == ["a", "b", "c"]

    async def test_a_closed_session_is_gone(self, stage: Harness) -> None:
        worker = await stage.worker()
        await worker.close()
        assert await stage.store.sessions() == []
        with pytest.raises(SessionLost):
            await worker.beat()
        with pytest.raises(SessionLost):
            await worker.exchange()
        with pytest.raises(SessionLost):
            await stage.store.open_session(worker.session)

    async def test_closing_twice_does_nothing_the_second_time(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await worker.close()
        other = await stage.worker()
        await other.take_one()
        await worker.close()
        assert (await stage.store.get("a")).session == other.id

    async def test_closing_an_unknown_session_does_nothing(self, stage: Harness) -> None:
        await stage.store.close_session("f" * 32)
        assert await stage.store.sessions() == []

    async def test_closing_a_rescued_session_does_nothing(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.lose(worker)
        await worker.close(lease)
        assert await stage.state("a") is State.PENDING
        assert await stage.store.sessions() == []

    async def test_a_cancel_that_was_requested_wins_over_the_release(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await stage.store.cancel("a")
        await worker.close()
        assert await stage.state("a") is State.CANCELLED

    async def test_a_retry_that_was_held_waits_as_a_retry(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, OOPS))
        await worker.take_one()
        await worker.close()
        record = await stage.store.get("a")
        assert (record.state, record.failures, record.lost) == (State.RETRYING, 1, 0)

    async def test_what_still_runs_stays_leased_and_the_session_has_left(
        self, stage: Harness
    ) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        first, _ = [delivery.lease for delivery in await worker.take(2)]
        await worker.close(first)
        assert [await stage.state(job_id) for job_id in ("a", "b")] == ["processing", "pending"]
        (info,) = await stage.store.sessions()
        assert (info.id, info.left, info.running) == (worker.id, True, 1)

    async def test_naming_nothing_that_is_held_closes_the_session(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Released(lease))
        await worker.close(lease)
        assert await stage.store.sessions() == []

    async def test_a_session_that_left_says_no_more(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await worker.close(lease)
        with pytest.raises(SessionLost):
            await worker.beat()
        with pytest.raises(SessionLost):
            await worker.settle(Completed(lease))
        assert await stage.state("a") is State.PROCESSING

    async def test_the_expiry_of_a_session_that_left_counts_no_loss(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.close((await worker.take_one()).lease)
        assert (await stage.lose(worker, max_lost=1)).returned == ["a"]
        record = await stage.store.get("a")
        assert (record.state, record.lost, record.history) == (State.PENDING, 0, [])
        assert await stage.store.sessions() == []

    async def test_a_session_that_left_is_not_rescued_before_it_expires(
        self, stage: Harness
    ) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.close((await worker.take_one()).lease)
        stage.clock.advance(TTL - 1.0)
        assert (await stage.store.rescue(10, max_lost=3)).returned == []
        assert await stage.state("a") is State.PROCESSING

    async def test_closing_again_releases_what_is_not_named_any_more(self, stage: Harness) -> None:
        """A `def` handler that ended after all: its worker's last act gives the job back."""
        await stage.add("a")
        worker = await stage.worker()
        await worker.close((await worker.take_one()).lease)
        await worker.close()
        assert await stage.state("a") is State.PENDING
        assert await stage.store.sessions() == []

    async def test_leaving_with_a_lease_that_is_not_held_is_closing(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await worker.close(replace(lease, token=replace(lease.token, nonce=bytes(16))))
        assert await stage.state("a") is State.PENDING
        assert await stage.store.sessions() == []

    async def test_what_a_session_left_may_be_cancelled(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.close((await worker.take_one()).lease)
        assert await stage.store.cancel("a") == "requested"
        rescued = await stage.lose(worker)
        assert (rescued.returned, rescued.cancelled) == ([], ["a"])
        assert await stage.state("a") is State.CANCELLED

    async def test_two_sessions_of_one_host_and_process_are_two(self, stage: Harness) -> None:
        """Identity is the id; host and process repeat."""
        await stage.add("a", "b")
        first, second = await stage.worker(), await stage.worker()
        await first.take_one()
        other = (await second.take_one()).lease
        await first.close()
        assert await second.settle(Released(other)) == ["done"]
        assert len(await stage.store.sessions()) == 1
