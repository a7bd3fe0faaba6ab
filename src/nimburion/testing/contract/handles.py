"""Handles: open, close, ping, migrate, and sibling handles."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.backend import Backend, Capabilities
from nimburion.core.errors import ConfigurationError, NotSupported
from nimburion.core.job import Enqueued, State
from nimburion.testing.contract.harness import Harness, ids


class Handles:
    """Handles."""

    async def test_it_says_what_it_can_do(self, stage: Harness) -> None:
        can = stage.store.capabilities
        assert isinstance(can, Capabilities)
        assert can.atomic_batch is None or can.atomic_batch >= 1

    async def test_it_describes_itself_in_one_line(self, stage: Harness) -> None:
        line = stage.store.describe()
        assert line == line.strip() != ""
        assert len(line.splitlines()) == 1

    async def test_it_answers(self, stage: Harness) -> None:
        await stage.store.ping()

    async def test_it_tells_the_time_of_its_clock(self, stage: Harness) -> None:
        for passed in (0.0, 0.25, 3_600.0):
            stage.clock.advance(passed)
            assert abs(await stage.store.now() - stage.clock.now()) < 0.000_01
        await stage.put(stage.job("a"))
        assert (await stage.store.get("a")).created_at == await stage.store.now()

    async def test_asking_for_the_time_changes_nothing(self, stage: Harness) -> None:
        """An overdue session is not revived, and what became due is not promoted."""
        await stage.put(stage.job("later", after=5.0))
        worker = await stage.worker()
        stage.clock.advance(worker.session.ttl + 1.0)
        before = await stage.store.sessions(), (await stage.store.list_jobs()).jobs
        await stage.store.now()
        assert (await stage.store.sessions(), (await stage.store.list_jobs()).jobs) == before

    async def test_a_backend_that_was_opened_exists(self, stage: Harness) -> None:
        assert await stage.store.exists()
        sibling = stage.store.new_handle()
        assert await sibling.exists()
        await sibling.close()

    async def test_a_backend_without_roles_grants_nothing(self, stage: Harness) -> None:
        """A backend that knows roles refuses one that does not exist."""
        knows_roles = stage.store.capabilities.roles
        with pytest.raises(ConfigurationError if knows_roles else NotSupported):
            await stage.store.grant("nobody_of_this_name")

    async def test_it_says_in_words_what_an_operator_should_know(self, stage: Harness) -> None:
        found = await stage.store.check()
        assert found
        for one in found:
            assert 1 <= len(one.subject.split()) <= 2
            assert one.verdict in {"good", "warning", "error"}
            assert one.text == one.text.strip() != ""
            assert len(one.text.splitlines()) == 1
            assert (one.advice == "") == (one.verdict == "good")
            assert len(one.advice.splitlines()) <= 1

    async def test_it_says_how_durable_it_is(self, stage: Harness) -> None:
        (said,) = [one for one in await stage.store.check() if one.subject == "durability"]
        assert stage.store.capabilities.durable or said.verdict != "good"

    async def test_examining_changes_nothing(self, stage: Harness) -> None:
        """Not for jobs, nor for a worker in the middle of its work."""
        await stage.add("a", "b", "c")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.cancel("b")
        await stage.store.pause("other", paused=True)

        async def everything() -> tuple[object, ...]:
            store = stage.store
            jobs = (await store.list_jobs(payloads=True)).jobs
            return jobs, await store.counts(), await store.queues(), await store.sessions()

        before = await everything()
        await stage.store.check()
        assert await everything() == before
        again = await stage.store.exchange(worker.id, 1, [], worker.want(1))
        assert [one.lease for one in again.deliveries] == [lease]
        assert ids(await worker.take()) == ["c"]

    async def test_examining_again_looks_at_the_same(self, stage: Harness) -> None:
        first = [one.subject for one in await stage.store.check()]
        await stage.add("a")
        assert [one.subject for one in await stage.store.check()] == first
        assert len(first) == len(set(first))

    async def test_opening_again_does_nothing(self, stage: Harness) -> None:
        await stage.add("a")
        await stage.store.open()
        assert await stage.state("a") is State.PENDING

    async def test_migrating_an_up_to_date_store_changes_nothing(self, stage: Harness) -> None:
        await stage.add("a")
        before = (await stage.store.list_jobs(payloads=True)).jobs
        assert await stage.store.plan() == []
        for line in await stage.store.migrate():
            assert isinstance(line, str)
        assert (await stage.store.list_jobs(payloads=True)).jobs == before

    async def test_a_handle_may_be_closed_twice_and_opened_again(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.close()
        await stage.store.close()
        await stage.store.open()
        assert (await stage.store.get("a")).session == worker.id
        assert [info.id for info in await stage.store.sessions()] == [worker.id]
        again = await stage.store.exchange(worker.id, 1, [], worker.want(1))
        assert [one.lease for one in again.deliveries] == [lease]

    async def test_handles_see_the_same_data(self, fleet: Harness) -> None:
        await fleet.add("a")
        for handle in fleet.handles:
            assert (await handle.get("a")).state is State.PENDING
            assert await handle.enqueue([fleet.job("a")]) == [Enqueued("a", "exists")]

    async def test_closing_one_handle_leaves_the_others(self, fleet: Harness) -> None:
        await fleet.handles[1].close()
        await fleet.add("a")
        assert ids(await (await fleet.worker(store=fleet.handles[2])).take()) == ["a"]

    async def test_a_session_may_speak_through_any_handle(self, fleet: Harness) -> None:
        """A worker beats through one of its own, on another thread."""
        await fleet.add("a")
        worker = await fleet.worker()
        await worker.take_one()
        await fleet.store.cancel("a")
        orders = await fleet.handles[1].heartbeat(worker.id)
        assert [lease.job_id for lease in orders.cancel] == ["a"]

    async def test_a_sibling_is_another_handle_on_the_same_data(self, stage: Harness) -> None:
        await stage.add("a")
        sibling = stage.store.new_handle()
        await sibling.open()
        try:
            assert [job.id for job in (await sibling.list_jobs()).jobs] == ["a"]
            await sibling.enqueue([stage.job("b")])
        finally:
            await sibling.close()
        assert await stage.state("b") is State.PENDING

    async def test_a_sibling_lives_on_a_loop_and_thread_of_its_own(self, stage: Harness) -> None:
        worker = await stage.worker()
        stage.clock.advance(worker.session.ttl + 1.0)

        async def beat(sibling: Backend) -> None:
            await sibling.open()
            try:
                await sibling.heartbeat(worker.id)
            finally:
                await sibling.close()

        sibling = stage.store.new_handle()
        await asyncio.to_thread(lambda: asyncio.run(beat(sibling)))
        assert (await stage.store.rescue(10, max_lost=3)).returned == []
        await worker.beat()

    async def test_a_handle_that_was_never_opened_can_be_closed(self, stage: Harness) -> None:
        await stage.store.new_handle().close()

    async def test_a_session_outlives_the_handle_that_opened_it(self, stage: Harness) -> None:
        sibling = stage.store.new_handle()
        await sibling.open()
        worker = await stage.worker(store=sibling)
        await sibling.close()
        worker.store = stage.store
        await worker.beat()
