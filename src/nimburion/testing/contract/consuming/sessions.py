"""Sessions of a worker: open, heartbeat, close."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.errors import SessionLost
from nimburion.core.exchange import RESERVE_NOTHING
from nimburion.core.job import State
from nimburion.core.session import ConcurrencyLimit, HeartbeatReply
from nimburion.core.settlement import Completed, Released, Retried, Settled
from nimburion.testing.contract.harness import FAILURE, TTL, Harness, ids


class Sessions:
    """Sessions."""

    async def test_an_open_session_is_listed_with_its_description(self, harness: Harness) -> None:
        worker = await harness.worker(names=("mail", "post"), queues=("red", "blue"), ttl=12.0)
        opened = harness.clock.now()
        harness.clock.advance(2.0)
        (info,) = await harness.backend.reads.list_sessions()
        assert (info.id, info.host, info.pid, info.owner) == (worker.id, "here", 7, "cases")
        assert (info.queues, info.names) == (("red", "blue"), ("mail", "post"))
        assert info.opened_at == opened
        assert info.expires_in == pytest.approx(10.0)
        assert (info.left, info.running) == (False, 0)

    async def test_sessions_are_listed_oldest_first(self, harness: Harness) -> None:
        workers = []
        for _ in range(3):
            workers.append(await harness.worker())
            harness.clock.advance(1.0)
        assert [info.id for info in await harness.backend.reads.list_sessions()] == [
            w.id for w in workers
        ]

    async def test_running_counts_the_leases(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        leases = [delivery.lease for delivery in await worker.take(3)]
        await worker.settle(Completed(leases[0]))
        (info,) = await harness.backend.reads.list_sessions()
        assert info.running == 2

    async def test_an_overdue_session_is_still_listed(self, harness: Harness) -> None:
        await harness.worker()
        harness.clock.advance(TTL + 5.0)
        (info,) = await harness.backend.reads.list_sessions()
        assert info.expires_in == pytest.approx(-5.0)

    async def test_a_heartbeat_moves_the_expiry(self, harness: Harness) -> None:
        worker = await harness.worker()
        for _ in range(10):
            harness.clock.advance(TTL - 1.0)
            await worker.heartbeat()
            assert (await harness.backend.reads.list_sessions())[0].expires_in == pytest.approx(TTL)

    async def test_a_heartbeat_keeps_every_lease_however_long(self, harness: Harness) -> None:
        """Promise 5: a long job is never taken from a live worker."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        for _ in range(20):
            harness.clock.advance(TTL - 0.5)
            await worker.heartbeat()
            assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_a_heartbeat_revives_an_overdue_session(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(10 * TTL)
        await worker.heartbeat()
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_a_heartbeat_of_an_unknown_session_is_rejected(self, harness: Harness) -> None:
        with pytest.raises(SessionLost):
            await harness.backend.consuming.heartbeat("f" * 32)

    async def test_a_rescued_session_never_lives_again(self, harness: Harness) -> None:
        """A heartbeat, an exchange and a second `open_session` of its id all fail."""
        worker = await harness.worker()
        await harness.lose(worker)
        for _ in range(2):
            with pytest.raises(SessionLost):
                await worker.heartbeat()
            with pytest.raises(SessionLost):
                await worker.exchange()
            with pytest.raises(SessionLost):
                await harness.backend.consuming.open_session(worker.session)
        assert await harness.backend.reads.list_sessions() == []

    async def test_a_session_without_leases_dies_of_its_expiry_too(self, harness: Harness) -> None:
        worker = await harness.worker()
        rescued = await harness.lose(worker)
        assert (rescued.returned, rescued.failed, rescued.more) == ([], [], False)
        with pytest.raises(SessionLost):
            await worker.heartbeat()

    async def test_opening_the_same_session_again_is_a_heartbeat(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(TTL - 1.0)
        await harness.backend.consuming.open_session(worker.session)
        harness.clock.advance(2.0)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        assert len(await harness.backend.reads.list_sessions()) == 1
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_opening_again_does_not_start_the_numbers_anew(self, harness: Harness) -> None:
        worker = await harness.worker()
        await worker.exchange()
        await worker.exchange()
        await harness.backend.consuming.open_session(worker.session)
        assert (
            await harness.backend.consuming.exchange(worker.id, 3, [], RESERVE_NOTHING)
        ).results == []

    async def test_a_heartbeat_without_news_returns_an_empty_reply(self, harness: Harness) -> None:
        worker = await harness.worker()
        assert await worker.heartbeat() == HeartbeatReply([], [], {}, next_expiry=TTL)

    async def test_a_heartbeat_counts_the_sessions_that_were_renewed_lately(
        self, harness: Harness
    ) -> None:
        first, second, third = [await harness.worker() for _ in range(3)]
        assert (await first.heartbeat()).fleet_size == 3
        await third.close()
        assert (await first.heartbeat()).fleet_size == 2
        harness.clock.advance(TTL / 2 + 1.0)
        assert (await first.heartbeat()).fleet_size == 1
        assert (await second.heartbeat()).fleet_size == 2

    async def test_a_heartbeat_says_when_the_next_session_expires(self, harness: Harness) -> None:
        """Until then no worker needs to look for jobs of dead workers."""
        await harness.worker()
        harness.clock.advance(10.0)
        worker = await harness.worker()
        assert (await worker.heartbeat()).next_expiry == pytest.approx(TTL - 10.0)
        harness.clock.advance(15.0)
        assert (await worker.heartbeat()).next_expiry == pytest.approx(TTL - 25.0)
        harness.clock.advance(10.0)
        assert (await worker.heartbeat()).next_expiry <= 0
        await harness.backend.consuming.rescue(10, max_lost=3)
        assert (await worker.heartbeat()).next_expiry == pytest.approx(TTL)

    async def test_a_heartbeat_says_that_a_rescue_has_left_jobs(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        dead = await harness.worker()
        await dead.take(3)
        harness.clock.advance(TTL)
        worker = await harness.worker()
        for left in (2, 1):
            await harness.backend.consuming.rescue(1, max_lost=3)
            assert (await worker.heartbeat()).next_expiry <= 0, left
        await harness.backend.consuming.rescue(1, max_lost=3)
        assert (await worker.heartbeat()).next_expiry == pytest.approx(TTL)

    async def test_a_session_that_left_expires_too(self, harness: Harness) -> None:
        await harness.add("a")
        leaving = await harness.worker()
        lease = (await leaving.take_one()).lease
        await leaving.close(lease)
        harness.clock.advance(10.0)
        worker = await harness.worker()
        assert (await worker.heartbeat()).next_expiry == pytest.approx(TTL - 10.0)

    async def test_a_heartbeat_returns_every_paused_queue(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.backend.maintenance.pause_queue("red", paused=True)
        await harness.backend.maintenance.pause_queue("blue", paused=True)
        assert sorted((await worker.heartbeat()).paused) == ["blue", "red"]

    async def test_a_heartbeat_returns_the_limits_of_its_own_names(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.worker(names=("post",), limits={"post": 9})
        worker = await harness.worker(names=("mail", "scan"), limits={"mail": 3})
        await worker.take_one()
        assert (await worker.heartbeat()).limits == {"mail": ConcurrencyLimit(3, 1)}

    async def test_a_wall_clock_that_steps_expires_no_session(self, harness: Harness) -> None:
        """An operator or NTP sets the clock; the sessions of live workers continue."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        for step in (86_400.0, -2 * 86_400.0, 86_400.0):
            harness.clock.step_wall(step)
            assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        assert await worker.settle(Completed(lease)) == [Settled.DONE]


class Closing:
    """Ending a session."""

    async def test_closing_releases_what_was_held(self, harness: Harness) -> None:
        """Promise 9: a restart counts nothing, and the jobs keep their place."""
        await harness.add("a", "b", "c")
        before = [await harness.backend.reads.get_job(job_id) for job_id in ("a", "b")]
        worker = await harness.worker()
        await worker.take(2)
        reserved = harness.clock.now()
        harness.clock.advance(1.0)
        await worker.close()
        after = [await harness.backend.reads.get_job(job_id) for job_id in ("a", "b")]
        assert after == [replace(record, started_at=reserved) for record in before]
        assert ids(await (await harness.worker()).take(5)) == ["a", "b", "c"]

    async def test_a_closed_session_is_gone(self, harness: Harness) -> None:
        worker = await harness.worker()
        await worker.close()
        assert await harness.backend.reads.list_sessions() == []
        with pytest.raises(SessionLost):
            await worker.heartbeat()
        with pytest.raises(SessionLost):
            await worker.exchange()
        with pytest.raises(SessionLost):
            await harness.backend.consuming.open_session(worker.session)

    async def test_closing_twice_does_nothing_the_second_time(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await worker.close()
        other = await harness.worker()
        await other.take_one()
        await worker.close()
        assert (await harness.backend.reads.get_job("a")).session == other.id

    async def test_closing_an_unknown_session_does_nothing(self, harness: Harness) -> None:
        await harness.backend.consuming.close_session("f" * 32)
        assert await harness.backend.reads.list_sessions() == []

    async def test_closing_a_rescued_session_does_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.lose(worker)
        await worker.close(lease)
        assert await harness.state("a") is State.PENDING
        assert await harness.backend.reads.list_sessions() == []

    async def test_a_cancel_that_was_requested_wins_over_the_release(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.backend.producing.cancel("a")
        await worker.close()
        assert await harness.state("a") is State.CANCELLED

    async def test_a_retry_that_was_held_waits_as_a_retry(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        await worker.take_one()
        await worker.close()
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.failures, record.lost) == (State.RETRYING, 1, 0)

    async def test_what_still_runs_stays_leased_and_the_session_has_left(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        first, _ = [delivery.lease for delivery in await worker.take(2)]
        await worker.close(first)
        assert [await harness.state(job_id) for job_id in ("a", "b")] == ["processing", "pending"]
        (info,) = await harness.backend.reads.list_sessions()
        assert (info.id, info.left, info.running) == (worker.id, True, 1)

    async def test_naming_nothing_that_is_held_closes_the_session(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Released(lease))
        await worker.close(lease)
        assert await harness.backend.reads.list_sessions() == []

    async def test_a_session_that_left_cannot_write(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.close(lease)
        with pytest.raises(SessionLost):
            await worker.heartbeat()
        with pytest.raises(SessionLost):
            await worker.settle(Completed(lease))
        assert await harness.state("a") is State.PROCESSING

    async def test_the_expiry_of_a_session_that_left_counts_no_loss(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.close((await worker.take_one()).lease)
        assert (await harness.lose(worker, max_lost=1)).returned == ["a"]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.lost, record.history) == (State.PENDING, 0, [])
        assert await harness.backend.reads.list_sessions() == []

    async def test_a_session_that_left_is_not_rescued_before_it_expires(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.close((await worker.take_one()).lease)
        harness.clock.advance(TTL - 1.0)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        assert await harness.state("a") is State.PROCESSING

    async def test_closing_again_releases_what_is_not_named_any_more(
        self, harness: Harness
    ) -> None:
        """A `def` handler ended after its worker had left: the worker closes again and releases the
        job."""
        await harness.add("a")
        worker = await harness.worker()
        await worker.close((await worker.take_one()).lease)
        await worker.close()
        assert await harness.state("a") is State.PENDING
        assert await harness.backend.reads.list_sessions() == []

    async def test_leaving_with_a_lease_that_is_not_held_is_closing(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.close(replace(lease, token=replace(lease.token, nonce=bytes(16))))
        assert await harness.state("a") is State.PENDING
        assert await harness.backend.reads.list_sessions() == []

    async def test_what_a_session_left_may_be_cancelled(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.close((await worker.take_one()).lease)
        assert await harness.backend.producing.cancel("a") == "requested"
        rescued = await harness.lose(worker)
        assert (rescued.returned, rescued.cancelled) == ([], ["a"])
        assert await harness.state("a") is State.CANCELLED

    async def test_two_sessions_of_one_host_and_process_are_two(self, harness: Harness) -> None:
        """The id identifies a session; host and process id may be the same."""
        await harness.add("a", "b")
        first, second = await harness.worker(), await harness.worker()
        await first.take_one()
        other = (await second.take_one()).lease
        await first.close()
        assert await second.settle(Released(other)) == ["done"]
        assert len(await harness.backend.reads.list_sessions()) == 1
