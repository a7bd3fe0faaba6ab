"""The metrics of a backend, from two reads."""

from __future__ import annotations

import logging

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import BackendUnavailable
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.flows import FlowPage, NewFlow, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import AttemptError, JobOptions, NewJob
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.metrics.counters import OTHER
from nimburion.core.queries import (
    EVERY_JOB,
    SCAN_BUDGET,
    WHOLE_PAYLOAD,
    JobCounts,
    JobFilter,
    Page,
    QueueInfo,
)
from nimburion.core.session import Session, SessionInfo
from nimburion.core.settlement import Failed
from nimburion.telemetry import backend_metrics
from nimburion.telemetry.backend_metrics import MAX_NAMES, MAX_QUEUES, BackendMetrics
from nimburion.telemetry.registry import MetricsRegistry
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import make_limits
from tests.overridden import OverridableBackend


class CountingBackend(OverridableBackend):
    """A memory backend that counts reads, and fails them when told to."""

    def __init__(self, *, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.names: list[str] = []
        self.down = False
        self.flows_down = False

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:
        self._read("list_queues")
        return await super().list_queues(budget=budget)

    async def list_sessions(self) -> list[SessionInfo]:
        self._read("list_sessions")
        return await super().list_sessions()

    async def count_jobs(self, queue: str | None = None, *, budget: int | None = None) -> JobCounts:
        self._read("count_jobs")
        return await super().count_jobs(queue, budget=budget)

    async def list_flows(
        self, *, running: bool = False, limit: int = 100, after: str | None = None
    ) -> FlowPage:
        if self.flows_down:
            raise BackendUnavailable("the flows cannot be read")
        return await super().list_flows(running=running, limit=limit, after=after)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        self._read("list_jobs")
        return await super().list_jobs(
            which, limit=limit, after=after, payloads=payloads, budget=budget
        )

    def _read(self, name: str) -> None:
        self.names.append(name)
        if self.down:
            raise BackendUnavailable("it is down")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> CountingBackend:
    return CountingBackend(clock=clock)


def read(metrics: BackendMetrics, name: str) -> dict[str, float]:
    return {
        "".join(sample.labels.values.values()): sample.value
        for family in metrics.collect()
        if family.name == name
        for sample in family.samples
    }


async def test_queues_sessions_and_limits(clock: FakeClock, backend: CountingBackend) -> None:
    await backend.producing.enqueue(
        [
            NewJob("a", "send", "mail", b"{}"),
            NewJob("b", "send", "mail", b"{}", after=60.0),
            NewJob("c", "unknown", "mail", b"{}"),
            NewJob("d", "send", "nowhere", b"{}"),
        ]
    )
    await backend.consuming.open_session(
        Session(
            id="0" * 32,
            queues=("mail",),
            names=("send",),
            limits=make_limits({"send": 2}, keyed={"send": {"customer": LimitRule(concurrency=1)}}),
        )
    )
    await backend.maintenance.change_limit(LimitChange(name="job:send", concurrency=3))
    await backend.maintenance.pause_queue("nowhere", paused=True)
    clock.advance(5.0)
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    await metrics.refresh_slow_readings()
    assert read(metrics, "backend_up") == {"": 1}
    assert read(metrics, "jobs_queue_size") == {"mail": 2, "nowhere": 1}
    assert read(metrics, "jobs_scheduled") == {"mail": 1, "nowhere": 0}
    assert read(metrics, "jobs_oldest_ready_seconds") == {"mail": 5.0, "nowhere": 5.0}
    assert read(metrics, "queue_paused") == {"mail": 0, "nowhere": 1}
    assert read(metrics, "queue_servers") == {"mail": 1, "nowhere": 0}
    assert read(metrics, "jobs_unserved") == {"mail": 1, "nowhere": 1}
    assert read(metrics, "jobs_waiting") == {"send": 3, "unknown": 1}
    assert read(metrics, "sessions") == {"live": 1, "expired": 0, "left": 0}
    assert read(metrics, "limit_in_use") == {"send": 0}
    assert read(metrics, "limit_max") == {"send": 3}
    assert read(metrics, "limit_keys") == {"customer": 0}
    assert read(metrics, "limit_key_fullest") == {"customer": 0}
    assert read(metrics, "limit_changes") == {"": 1}
    assert read(metrics, "jobs_dead") == {"": 0}
    assert read(metrics, "backend_durable") == {"": 0}


async def test_the_flows_that_have_not_ended(backend: CountingBackend, clock: FakeClock) -> None:
    metrics = BackendMetrics(backend)
    await metrics.refresh_slow_readings()
    assert read(metrics, "flows_running") == {}
    assert read(metrics, "oldest_flow_seconds") == {"": 0}
    for number, (name, members) in enumerate([("import", 2), ("import", 2), ("other", 1)]):
        flow = NewFlow(id=f"f{number}", name=name, members=members)
        options = JobOptions(flow=flow.id)
        job = NewJob(f"f{number}.a", "send", "mail", b"{}", options=options)
        await backend.producing.enqueue([job], [flow])
        clock.advance(10)
    await backend.maintenance.change_jobs(BulkAction.CANCEL, ["f0.a", "f2.a"])
    await metrics.refresh_slow_readings()
    assert read(metrics, "flows_running") == {"import": 2}
    assert read(metrics, "flows_failing") == {"import": 1}
    assert read(metrics, "oldest_flow_seconds") == {"": 30}
    backend.down = True
    await metrics.refresh()
    assert [family.name for family in metrics.collect()][:2] == ["backend_up", "backend_durable"]
    assert read(metrics, "flows_running") == {}


async def test_suspended_jobs_by_name(
    backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = BackendMetrics(backend)
    await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_suspended") == {}
    assert "list_jobs" not in backend.names
    first = WaitCondition(WaitSource(SourceKind.JOB, "f.first"))
    waits = JobOptions(flow="f", conditions=(first,))
    jobs = [
        NewJob("f.first", "send", "mail", b"{}", options=JobOptions(flow="f")),
        *(NewJob(f"f.a{number}", "add", "mail", b"{}", options=waits) for number in range(3)),
        NewJob("f.b", "report", "mail", b"{}", options=waits),
    ]
    await backend.producing.enqueue(jobs, [NewFlow(id="f", members=5)])
    await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_suspended") == {"add": 3, "report": 1}
    monkeypatch.setattr(backend_metrics, "MAX_SUSPENDED", 2)
    await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_suspended") == {"report": 1, "add": 1, "other": 2}


async def test_failed_flows_count_until_they_are_replayed(backend: CountingBackend) -> None:
    metrics = BackendMetrics(backend)
    for name in ("a", "b"):
        job = NewJob(f"{name}.job", "send", "mail", b"{}", options=JobOptions(flow=name))
        await backend.producing.enqueue([job], [NewFlow(id=name, name="import", members=1)])
    worker = Session(id="a" * 32, queues=("mail",), names=("send",))
    await backend.consuming.open_session(worker)
    request = ReserveRequest(total=1, lanes=(Lane("mail", "send"),))
    reply = await backend.consuming.exchange(worker.id, 1, [], request)
    error = AttemptError(1, "failure", "Broken")
    settled = [Failed(one.lease, "permanent", error) for one in reply.deliveries]
    await backend.consuming.exchange(worker.id, 2, settled, ReserveRequest(total=0))
    await metrics.refresh_slow_readings()
    assert read(metrics, "flows_failed") == {"import": 1}
    assert read(metrics, "flows_running") == {"import": 1}
    await backend.maintenance.change_jobs(BulkAction.REPLAY, ["a.job"])
    await metrics.refresh_slow_readings()
    assert read(metrics, "flows_failed") == {"import": 0}


async def test_a_refresh_makes_two_reads(backend: CountingBackend) -> None:
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    metrics.collect()
    assert backend.names == ["list_queues", "list_sessions"]


async def test_the_page_shows_that_the_backend_is_down(backend: CountingBackend) -> None:
    await backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_dead") == {"": 0}
    backend.down = True
    await metrics.refresh()
    assert read(metrics, "backend_up") == {"": 0}
    assert read(metrics, "jobs_queue_size") == {}
    assert read(metrics, "jobs_dead") == {}


async def test_an_old_number_of_dead_letters_is_not_shown(
    backend: CountingBackend, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    await metrics.refresh_slow_readings()
    backend.down = True
    with caplog.at_level(logging.WARNING):
        await metrics.refresh_slow_readings()
        await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_dead") == {}
    assert caplog.text.count("the metrics of limits, flows and dead letters are incomplete") == 1
    backend.down = False
    await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_dead") == {"": 0}


async def test_an_error_of_the_flows_leaves_the_number_of_dead_letters(
    backend: CountingBackend, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = BackendMetrics(backend)
    backend.flows_down = True
    with caplog.at_level(logging.WARNING):
        await metrics.refresh_slow_readings()
        await metrics.refresh_slow_readings()
    assert read(metrics, "jobs_dead") == {"": 0}
    assert read(metrics, "oldest_flow_seconds") == {}
    assert caplog.text.count("are incomplete") == 1


async def test_queues_are_bounded(backend: CountingBackend) -> None:
    extra = 7
    await backend.producing.enqueue(
        [NewJob(f"j{n}", "send", f"q{n:05}", b"{}") for n in range(MAX_QUEUES + extra)]
    )
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    sizes = read(metrics, "jobs_queue_size")
    assert len(sizes) == MAX_QUEUES + 1
    assert sizes[OTHER] == extra


async def test_queues_without_series_of_their_own_keep_their_workers(
    backend: CountingBackend,
) -> None:
    await backend.producing.enqueue(
        [NewJob(f"j{n}", "send", f"q{n:05}", b"{}") for n in range(MAX_QUEUES + 2)]
    )
    await backend.consuming.open_session(
        Session(id="0" * 32, queues=(f"q{MAX_QUEUES:05}", "idle"), names=("send",))
    )
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    servers = read(metrics, "queue_servers")
    assert servers[OTHER] == 1
    assert len(servers) == MAX_QUEUES + 1
    assert read(metrics, "jobs_unserved")[OTHER] == 1


async def test_a_family_of_two_sources_does_not_grow(backend: CountingBackend) -> None:
    registry = MetricsRegistry()
    for _ in range(2):
        metrics = BackendMetrics(backend)
        await metrics.refresh()
        registry.add_source(metrics)
    for _ in range(2):
        (up,) = [family for family in registry.collect() if family.name == "backend_up"]
        assert len(up.samples) == 2


async def test_names_are_bounded(backend: CountingBackend) -> None:
    extra = 3
    await backend.producing.enqueue(
        [NewJob(f"j{n}", f"name{n:05}", "mail", b"{}") for n in range(MAX_NAMES + extra)]
    )
    metrics = BackendMetrics(backend)
    await metrics.refresh()
    waiting = read(metrics, "jobs_waiting")
    assert len(waiting) == MAX_NAMES + 1
    assert waiting[OTHER] == extra
