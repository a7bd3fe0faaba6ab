"""The numbers of lanes and tenants: their bounds, and that they are freed and used again."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection import database
from nimburion.core.errors import BackendFull
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Failed
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, ids

LAST = (1 << 20) - 1
"""The last number of a lane."""
AT_ONCE = Retention(completed=0.0, failed=None)


@pytest.fixture
async def other(
    backend: SQLiteBackend, path: Path, clock: FakeClock
) -> AsyncIterator[SQLiteBackend]:
    """Another process that uses the same file, as far as this backend can tell."""
    del backend  # it has made the file
    made = SQLiteBackend(path, clock=clock)
    await made.open()
    yield made
    await made.close()


def make(job_id: str, queue: str = "q", name: str = "n", tenant: str | None = None) -> NewJob:
    options = JobOptions() if tenant is None else JobOptions(tenant=tenant)
    return NewJob(job_id, name, queue, b"{}", options=options)


async def open_worker(
    backend: SQLiteBackend, *lanes: tuple[str, str], keyed: dict[str, LimitRule] | None = None
) -> HandDrivenWorker:
    """Open a session that serves these queues and names."""
    queues, names = (tuple(dict.fromkeys(column)) for column in zip(*lanes, strict=True))
    session = Session(
        id=f"{len(await backend.reads.list_sessions()) + 1:032x}",
        ttl=1e6,
        queues=queues,
        names=names,
        limits={names[0]: keyed} if keyed else {},
    )
    await backend.consuming.open_session(session)
    return HandDrivenWorker(backend, session)


async def finish_all(worker: HandDrivenWorker) -> None:
    """Complete all jobs that can be reserved, and let the clock advance."""
    deliveries = await worker.take(100)
    await worker.settle(*(Completed(delivery.lease) for delivery in deliveries))


async def prune(backend: SQLiteBackend, clock: FakeClock) -> None:
    clock.advance(1.0)
    await backend.maintenance.prune(AT_ONCE, 1_000)


def ask(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on the file."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


class TestBounds:
    async def test_no_job_is_delivered_under_another_name_after_the_last_number(
        self, backend: SQLiteBackend, path: Path
    ) -> None:
        """Numbers that nothing uses are used again, the lowest first."""
        await backend.producing.enqueue([make("first", "q1", "mail")])
        ask(path, "INSERT INTO lane (id, queue, name) VALUES (?, 'q', 'far')", LAST - 1)
        lanes = [(f"late{n}", "delete_user") for n in range(4)]
        await backend.producing.enqueue([make(f"{n}", *lane) for n, lane in enumerate(lanes)])
        assert ask(path, "SELECT id FROM lane ORDER BY id") == [
            (1,), (2,), (3,), (4,), (LAST - 1,), (LAST,),
        ]  # fmt: skip
        worker = await open_worker(backend, ("q1", "mail"), *lanes)
        deliveries = {
            delivery.lease.job_id: (delivery.queue, delivery.name)
            for delivery in await worker.take(9)
        }
        assert deliveries == {"first": ("q1", "mail")} | {
            f"{n}": lane for n, lane in enumerate(lanes)
        }

    async def test_a_lane_without_a_number_is_refused(
        self, backend: SQLiteBackend, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "MAX_LANE", 2)
        await backend.producing.enqueue([make("a", "q1"), make("b", "q2")])
        with pytest.raises(BackendFull, match=r"all 2 numbers of lanes are used, and queue .q3. "):
            await backend.producing.enqueue([make("c", "q1"), make("d", "q3")])
        worker = await open_worker(backend, ("q1", "n"))
        assert ids(await worker.take(9)) == ["a"]
        await backend.producing.enqueue([make("e", "q1")])
        leases = [delivery.lease for delivery in await worker.take(9)]
        await worker.settle(*(Completed(lease) for lease in leases))
        await finish_all(await open_worker(backend, ("q2", "n")))
        await prune(backend, clock)
        await backend.producing.enqueue([make("d", "q3")])
        assert ids(await (await open_worker(backend, ("q3", "n"))).take(9)) == ["d"]

    async def test_a_tenant_without_a_number_is_refused(
        self, backend: SQLiteBackend, path: Path
    ) -> None:
        ask(path, "INSERT INTO tenant (id, name) VALUES (?, 'last')", (1 << 43) - 1)
        await backend.producing.enqueue([make("a", tenant="last")])
        with pytest.raises(BackendFull, match="numbers of tenants are used"):
            await backend.producing.enqueue([make("b", tenant="new")])
        worker = await open_worker(backend, ("q", "n"))
        assert ids(await worker.take(9)) == ["a"]


class TestFreeing:
    async def test_lanes_and_tenants_without_jobs_are_deleted(
        self, backend: SQLiteBackend, path: Path, clock: FakeClock
    ) -> None:
        await backend.producing.enqueue([make(f"{n}", tenant=f"t{n}") for n in range(20)])
        await backend.producing.enqueue([make("plain", "q2")])
        await finish_all(await open_worker(backend, ("q", "n"), ("q2", "n")))
        await prune(backend, clock)
        for table in ("tenant", "lane", "tenant_share", "finished_count"):
            assert ask(path, f"SELECT * FROM {table}") == [], table

    async def test_a_number_that_means_another_lane_now_is_not_remembered(
        self, backend: SQLiteBackend, other: SQLiteBackend, clock: FakeClock
    ) -> None:
        await backend.producing.enqueue([make("a", "q1", "mail")])
        worker = await open_worker(backend, ("q1", "mail"), ("q2", "report"))
        await finish_all(worker)
        await prune(other, clock)
        await other.producing.enqueue(
            [make("b", "q2", "report")]
        )  # it gets the number of the other lane
        await backend.producing.enqueue([make("c", "q1", "mail")])
        deliveries = await worker.take(9)
        assert {(one.lease.job_id, one.queue, one.name) for one in deliveries} == {
            ("b", "q2", "report"),
            ("c", "q1", "mail"),
        }
        assert (await backend.reads.get_job("b")).name == "report"

    async def test_a_number_that_means_another_tenant_now_is_not_remembered(
        self, backend: SQLiteBackend, other: SQLiteBackend, clock: FakeClock
    ) -> None:
        await backend.producing.enqueue([make("a", tenant="old")])
        worker = await open_worker(backend, ("q", "n"))
        await finish_all(worker)
        await prune(other, clock)
        await other.producing.enqueue([make("b", tenant="new")])
        await backend.producing.enqueue([make("c", tenant="old")])
        uses = await backend.reads.list_tenants()
        assert {(use.tenant, use.waiting) for use in uses.tenants} == {("new", 1), ("old", 1)}

    async def test_what_is_used_stays(
        self, backend: SQLiteBackend, path: Path, clock: FakeClock
    ) -> None:
        """Waiting, scheduled, parked, leased and kept jobs use the numbers of their lanes."""
        one = {"customer": LimitRule(concurrency=1)}
        await backend.producing.enqueue(
            [
                make("waiting", "waiting", tenant="waiting"),
                NewJob(
                    "later", "n", "later", b"{}", after=60.0, options=JobOptions(tenant="later")
                ),
                NewJob("dead", "n", "dead", b"{}", options=JobOptions(tenant="dead")),
            ]
            + [
                NewJob(
                    job_id,
                    "n",
                    "keyed",
                    b"{}",
                    options=JobOptions(limit_keys={"customer": "c"}, tenant=job_id),
                )
                for job_id in ("leased", "parked")
            ]
        )
        worker = await open_worker(backend, ("keyed", "n"), keyed=one)
        assert ids(await worker.take(9)) == ["leased"]
        killer = await open_worker(backend, ("dead", "n"), keyed=one)
        await killer.settle(Failed((await killer.take_one()).lease, "permanent", FAILURE))
        for _ in range(3):
            await prune(backend, clock)
        kept = {queue for (queue,) in ask(path, "SELECT queue FROM lane")}
        assert kept == {"waiting", "later", "keyed", "dead"}
        tenants = {name for (name,) in ask(path, "SELECT name FROM tenant")}
        assert tenants == {"waiting", "later", "leased", "parked"}

    async def test_a_replayed_job_waits_for_the_turn_of_its_own_tenant(
        self, backend: SQLiteBackend, clock: FakeClock
    ) -> None:
        await backend.producing.enqueue([make("dead", tenant="old")])
        worker = await open_worker(backend, ("q", "n"))
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        await prune(backend, clock)
        await backend.producing.enqueue([make("other", tenant="new")])
        assert (await replay(backend, JobFilter(ids=("dead",)), 9)).ids == ["dead"]
        uses = await backend.reads.list_tenants()
        assert {(use.tenant, use.waiting) for use in uses.tenants} == {("new", 1), ("old", 1)}
        assert sorted(ids(await worker.take(9))) == ["dead", "other"]
        assert (await backend.reads.get_job("dead")).state is State.PROCESSING

    async def test_numbers_are_given_back_in_steps(
        self,
        backend: SQLiteBackend,
        path: Path,
        clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("nimburion.backends.sqlite.maintenance.MAX_CHECKED", 2)
        await backend.producing.enqueue([make(f"{n}", f"q{n}") for n in range(5)])
        await finish_all(await open_worker(backend, *((f"q{n}", "n") for n in range(1, 5))))
        counts = []
        for _ in range(4):
            await prune(backend, clock)
            counts.append(len(ask(path, "SELECT id FROM lane")))
        assert counts == [4, 2, 1, 1]
        assert ids(await (await open_worker(backend, ("q0", "n"))).take(9)) == ["0"]
