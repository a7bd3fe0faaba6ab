"""Handles: open, close, ping, migrate, and new handles."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.backend import Backend, Capabilities
from nimburion.core.errors import ConfigurationError, NotSupported
from nimburion.core.job import Enqueued, State
from nimburion.testing.contract.harness import Harness, ids


class Handles:
    """Handles."""

    async def test_it_reports_its_capabilities(self, harness: Harness) -> None:
        can = harness.backend.capabilities
        assert isinstance(can, Capabilities)
        assert can.atomic_batch is None or can.atomic_batch >= 1

    async def test_it_describes_itself_in_one_line(self, harness: Harness) -> None:
        line = harness.backend.describe()
        assert line == line.strip() != ""
        assert len(line.splitlines()) == 1

    async def test_it_answers(self, harness: Harness) -> None:
        await harness.backend.ping()
        assert await harness.backend.exists()

    async def test_the_backend_returns_the_time_of_its_clock(self, harness: Harness) -> None:
        for passed in (0.0, 0.25, 3_600.0):
            harness.clock.advance(passed)
            assert abs(await harness.backend.now() - harness.clock.now()) < 0.000_01
        await harness.put(harness.job("a"))
        assert (await harness.backend.reads.get_job("a")).created_at == await harness.backend.now()

    async def test_reading_the_time_changes_nothing(self, harness: Harness) -> None:
        """An overdue session stays overdue, and due jobs are not promoted."""
        await harness.put(harness.job("later", after=5.0))
        worker = await harness.worker()
        harness.clock.advance(worker.session.ttl + 1.0)
        before = (
            await harness.backend.reads.list_sessions(),
            (await harness.backend.reads.list_jobs()).jobs,
        )
        await harness.backend.now()
        assert (
            await harness.backend.reads.list_sessions(),
            (await harness.backend.reads.list_jobs()).jobs,
        ) == before

    async def test_a_backend_that_was_opened_exists(self, harness: Harness) -> None:
        assert await harness.backend.exists()
        handle = harness.backend.new_handle()
        assert await handle.exists()
        await handle.close()

    async def test_a_backend_without_roles_grants_nothing(self, harness: Harness) -> None:
        """A backend with roles refuses a role that does not exist."""
        knows_roles = harness.backend.capabilities.roles
        with pytest.raises(ConfigurationError if knows_roles else NotSupported):
            await harness.backend.grant("unknown_role")

    async def test_checks_are_readable_for_an_operator(self, harness: Harness) -> None:
        found = await harness.backend.check()
        assert found
        for check in found:
            assert 1 <= len(check.subject.split()) <= 2
            assert check.verdict in {"good", "warning", "error"}
            assert check.text == check.text.strip() != ""
            assert len(check.text.splitlines()) == 1
            assert (check.advice == "") == (check.verdict == "good")
            assert len(check.advice.splitlines()) <= 1

    async def test_a_check_reports_the_durability(self, harness: Harness) -> None:
        (durability,) = [
            check for check in await harness.backend.check() if check.subject == "durability"
        ]
        assert harness.backend.capabilities.durable or durability.verdict != "good"

    async def test_a_check_changes_nothing(self, harness: Harness) -> None:
        """Jobs and running workers are not affected."""
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("b")
        await harness.backend.maintenance.pause_queue("other", paused=True)

        async def everything() -> tuple[object, ...]:
            backend = harness.backend
            jobs = (await backend.reads.list_jobs(payloads=True)).jobs
            return (
                jobs,
                await backend.reads.count_jobs(),
                await backend.reads.list_queues(),
                await backend.reads.list_sessions(),
            )

        before = await everything()
        await harness.backend.check()
        assert await everything() == before
        again = await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(1))
        assert [delivery.lease for delivery in again.deliveries] == [lease]
        assert ids(await worker.take()) == ["c"]

    async def test_a_second_check_looks_at_the_same(self, harness: Harness) -> None:
        first = [check.subject for check in await harness.backend.check()]
        await harness.add("a")
        assert [check.subject for check in await harness.backend.check()] == first
        assert len(first) == len(set(first))

    async def test_opening_again_does_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.backend.open()
        assert await harness.state("a") is State.PENDING

    async def test_migrating_an_up_to_date_backend_changes_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        before = (await harness.backend.reads.list_jobs(payloads=True)).jobs
        assert await harness.backend.migrate(dry_run=True) == []
        for line in await harness.backend.migrate():
            assert isinstance(line, str)
        assert (await harness.backend.reads.list_jobs(payloads=True)).jobs == before

    async def test_a_handle_may_be_closed_twice_and_opened_again(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.close()
        await harness.backend.close()
        await harness.backend.open()
        assert (await harness.backend.reads.get_job("a")).session == worker.id
        assert [info.id for info in await harness.backend.reads.list_sessions()] == [worker.id]
        again = await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(1))
        assert [delivery.lease for delivery in again.deliveries] == [lease]

    async def test_handles_see_the_same_data(self, fleet: Harness) -> None:
        await fleet.add("a")
        for handle in fleet.handles:
            assert (await handle.reads.get_job("a")).state is State.PENDING
            assert await handle.producing.enqueue([fleet.job("a")]) == [Enqueued("a", "exists")]

    async def test_closing_one_handle_leaves_the_others(self, fleet: Harness) -> None:
        await fleet.handles[1].close()
        await fleet.add("a")
        assert ids(await (await fleet.worker(backend=fleet.handles[2])).take()) == ["a"]

    async def test_a_session_may_speak_through_any_handle(self, fleet: Harness) -> None:
        """A worker sends heartbeats through a handle of its own, on another thread."""
        await fleet.add("a")
        worker = await fleet.worker()
        await worker.take_one()
        await fleet.backend.producing.cancel("a")
        reply = await fleet.handles[1].consuming.heartbeat(worker.id)
        assert [lease.job_id for lease in reply.cancel] == ["a"]

    async def test_a_new_handle_opens_the_same_data(self, harness: Harness) -> None:
        await harness.add("a")
        handle = harness.backend.new_handle()
        await handle.open()
        try:
            assert [job.id for job in (await handle.reads.list_jobs()).jobs] == ["a"]
            await handle.producing.enqueue([harness.job("b")])
        finally:
            await handle.close()
        assert await harness.state("b") is State.PENDING

    async def test_a_new_handle_works_on_a_loop_and_thread_of_its_own(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        harness.clock.advance(worker.session.ttl + 1.0)

        async def heartbeat(handle: Backend) -> None:
            await handle.open()
            try:
                await handle.consuming.heartbeat(worker.id)
            finally:
                await handle.close()

        handle = harness.backend.new_handle()
        await asyncio.to_thread(lambda: asyncio.run(heartbeat(handle)))
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        await worker.heartbeat()

    async def test_a_handle_that_was_never_opened_can_be_closed(self, harness: Harness) -> None:
        await harness.backend.new_handle().close()
        assert await harness.backend.exists()

    async def test_a_session_outlives_the_handle_that_opened_it(self, harness: Harness) -> None:
        handle = harness.backend.new_handle()
        await handle.open()
        worker = await harness.worker(backend=handle)
        await handle.close()
        worker.backend = harness.backend
        assert (await worker.heartbeat()).cancel == []
