"""Each alert rule fires on the pages of a system in trouble, and resolves when the trouble is over.

`python3 dev.py alerts` runs these. Each scene brings a processor on a fake clock into trouble, and
out of it again. Its metrics page is read once a minute, and promtool evaluates the rules on what
was read. So a rule that names a metric or a label which no page has cannot pass.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec
import pytest
import yaml

from nimburion import Flow, job
from nimburion.core.errors import BackendUnavailable
from nimburion.core.events import StaleSettlement, TickDecided
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.lease import Delivery
from nimburion.core.limits import LimitRule
from nimburion.core.queries import QueueInfo
from nimburion.core.session import Session, Vitals
from nimburion.core.settlement import Completed
from nimburion.jobs import Processor
from nimburion.telemetry.backend_metrics import BackendMetrics
from nimburion.telemetry.worker_metrics import WorkerMetrics
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import make_limits
from tests.overridden import OverridableBackend
from tests.telemetry.promtool_cases import FILES, find_complaints

WORKER = "a" * 32
OTHER_WORKER = "b" * 32


class TroubledBackend(OverridableBackend):
    """A memory backend that does not answer while it is down."""

    down = False

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:
        if self.down:
            raise BackendUnavailable("it is down")
        return await super().list_queues(budget=budget)


@job(name="send", queue="mail", max_retries=0)
def send(fails: bool) -> None:
    if fails:
        raise ConnectionError("no route")


class System:
    """A processor on a fake clock, and its metrics page of each minute so far."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = TroubledBackend(clock=self.clock)
        self.processor = Processor(self.backend, clock=self.clock)
        self.processor.register(send)
        self.vitals: Vitals | None = None
        self._exchanges: dict[str, int] = {}
        self._backend_metrics = BackendMetrics(self.backend)
        self.processor.metrics.add_source(self._backend_metrics)
        self.processor.metrics.add_source(WorkerMetrics(lambda: self.vitals))
        self._pages: list[dict[str, str]] = []

    @property
    def minute(self) -> int:
        """The minute of the last page."""
        return len(self._pages) - 1

    async def pass_time(self, minutes: int = 1) -> None:
        """Let minutes pass, and read the page in each."""
        for _ in range(minutes):
            self.clock.advance(60.0)
            await self._backend_metrics.refresh()
            await self._backend_metrics.refresh_slow_readings()
            page, _ = self.processor.metrics.render("text/plain")
            lines = (line for line in page.splitlines() if line and not line.startswith("#"))
            parts = (line.rpartition(" ") for line in lines)
            self._pages.append({series: value for series, _, value in parts})

    def list_series(self) -> Iterable[dict[str, str]]:
        """Return the input of promtool: each series with its values, minute by minute."""
        names = dict.fromkeys(name for page in self._pages for name in page)
        for name in names:
            if not re.match(r"nimburion_.*_(bucket|created)\b", name):
                # `stale` is what a scrape notes for a series that the page does not have any more.
                values = (page.get(name, "stale") for page in self._pages)
                yield {"series": name, "values": " ".join(values)}

    async def open_worker(self, worker: str = WORKER, name: str = "send", **fields: object) -> None:
        """Open the session of a worker that serves the queue `mail`."""
        session = Session(id=worker, ttl=1e6, queues=("mail",), names=(name,))
        await self.backend.consuming.open_session(msgspec.structs.replace(session, **fields))

    async def reserve(self, total: int) -> list[Delivery]:
        """Let the worker reserve jobs."""
        return await self._exchange((), ReserveRequest(total=total, lanes=(Lane("mail", "send"),)))

    async def complete(self, deliveries: Iterable[Delivery]) -> None:
        """Let the worker complete jobs."""
        await self._exchange([Completed(one.lease) for one in deliveries], ReserveRequest(0))

    async def _exchange(
        self, settlements: Iterable[Completed], request: ReserveRequest
    ) -> list[Delivery]:
        number = self._exchanges[WORKER] = self._exchanges.get(WORKER, 0) + 1
        done = await self.backend.consuming.exchange(WORKER, number, list(settlements), request)
        return list(done.deliveries)

    async def run(self, good: int, bad: int = 0) -> None:
        """Run jobs, some of which fail for good."""
        await self.processor.enqueue_many(
            [send.job(fails=False)] * good + [send.job(fails=True)] * bad
        )
        await self.processor.drain()

    async def enqueue(self, count: int) -> None:
        """Enqueue jobs that nothing runs yet."""
        await self.processor.enqueue_many([send.job(fails=False)] * count)


Scene = Callable[[System], AsyncIterator[None]]
"""Yields when the alert must fire; its end is when it must have resolved."""


async def backend_unreachable(system: System) -> AsyncIterator[None]:
    system.backend.down = True
    await system.pass_time(3)
    yield
    system.backend.down = False


async def queue_too_old(system: System) -> AsyncIterator[None]:
    await system.open_worker()
    await system.enqueue(1)
    await system.pass_time(12)
    yield
    await system.complete(await system.reserve(1))


async def queue_has_no_worker(system: System) -> AsyncIterator[None]:
    await system.enqueue(1)
    await system.pass_time(4)
    yield
    await system.open_worker()


async def jobs_unserved(system: System) -> AsyncIterator[None]:
    await system.open_worker(name="other")
    await system.enqueue(1)
    await system.pass_time(17)
    yield
    await system.open_worker(OTHER_WORKER)


async def queue_paused_long(system: System) -> AsyncIterator[None]:
    await system.backend.maintenance.pause_queue("mail", paused=True)
    await system.pass_time(62)
    yield
    await system.backend.maintenance.pause_queue("mail", paused=False)


async def dead_letters_grow(system: System) -> AsyncIterator[None]:
    await system.run(1)
    await system.pass_time()
    await system.run(0, bad=15)
    await system.pass_time(2)
    yield
    await system.pass_time(11)


async def flow_failed(system: System) -> AsyncIterator[None]:
    flow = Flow("import")
    flow.add(send.job(fails=True))
    flow_id = await system.processor.enqueue_flow(flow)
    await system.processor.drain()
    await system.pass_time(3)
    yield
    await system.processor.flows.replay(flow_id)


async def failure_ratio(system: System) -> AsyncIterator[None]:
    for _ in range(22):
        await system.run(3, bad=3)
        await system.pass_time()
    yield
    for _ in range(12):
        await system.run(6)
        await system.pass_time()


async def rescues_high(system: System) -> AsyncIterator[None]:
    rescued = system.processor._statistics.jobs.get_lane("mail", "send")
    rescued.rescued += 1
    await system.pass_time()
    rescued.rescued += 30
    await system.pass_time(2)
    yield
    await system.pass_time(11)


async def stale_settlements(system: System) -> AsyncIterator[None]:
    system.processor.events.emit(StaleSettlement("one"))
    await system.pass_time()
    yield
    await system.pass_time(11)


async def lease_margin_low(system: System) -> AsyncIterator[None]:
    system.vitals = Vitals(slots=4, lease_margin=5.0)
    await system.pass_time(4)
    yield
    system.vitals = Vitals(slots=4, lease_margin=25.0)


async def loop_blocked(system: System) -> AsyncIterator[None]:
    system.vitals = Vitals(slots=4, loop_lag=2.0)
    await system.pass_time(4)
    yield
    system.vitals = Vitals(slots=4, loop_lag=0.01)


async def schedule_late(system: System) -> AsyncIterator[None]:
    system.processor.events.emit(TickDecided("nightly", 0.0, "fired", "a", 90.0))
    await system.pass_time()
    yield
    system.processor.events.emit(TickDecided("nightly", 0.0, "fired", "b", 0.5))


async def limit_full_long(system: System) -> AsyncIterator[None]:
    await system.open_worker(limits=make_limits({"send": 1}))
    await system.enqueue(2)
    held = await system.reserve(1)
    await system.pass_time(32)
    yield
    await system.complete(held)


async def keys_full_long(system: System) -> AsyncIterator[None]:
    limit = "send:customer"
    await system.open_worker(limits={"send": {limit: LimitRule(concurrency=1)}})
    options = JobOptions(limit_keys={limit: "megacorp"})
    jobs = [NewJob(f"job-{n}", "send", "mail", b"{}", options=options) for n in range(3)]
    await system.backend.producing.enqueue(jobs)
    held = await system.reserve(3)
    await system.pass_time(7)
    yield
    for _ in range(3):
        await system.complete(held)
        held = await system.reserve(3)


async def throughput_dropped(system: System) -> AsyncIterator[None]:
    await system.open_worker()
    for _ in range(75):
        await system.run(5)
        await system.pass_time()
    await system.enqueue(3)
    await system.pass_time(22)
    yield
    for _ in range(12):
        await system.run(5)
        await system.pass_time()


SCENES: dict[str, Scene] = {
    "NimburionBackendUnreachable": backend_unreachable,
    "NimburionQueueTooOld": queue_too_old,
    "NimburionQueueHasNoWorker": queue_has_no_worker,
    "NimburionJobsUnserved": jobs_unserved,
    "NimburionQueuePausedLong": queue_paused_long,
    "NimburionDeadLettersGrow": dead_letters_grow,
    "NimburionFlowFailed": flow_failed,
    "NimburionFailureRatio": failure_ratio,
    "NimburionRescuesHigh": rescues_high,
    "NimburionStaleSettlements": stale_settlements,
    "NimburionLeaseMarginLow": lease_margin_low,
    "NimburionLoopBlocked": loop_blocked,
    "NimburionScheduleLate": schedule_late,
    "NimburionLimitFullLong": limit_full_long,
    "NimburionKeysFullLong": keys_full_long,
    "NimburionThroughputDropped": throughput_dropped,
}


def test_each_rule_has_a_scene() -> None:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    assert [rule["alert"] for rule in group["rules"]] == list(SCENES)


@pytest.mark.parametrize("alert", SCENES)
async def test_the_alert_fires_and_resolves(alert: str, tmp_path: Path) -> None:
    system = System()
    async with system.processor:
        await system.pass_time(2)
        scene = SCENES[alert](system)
        await anext(scene)
        fires_at = system.minute
        with pytest.raises(StopAsyncIteration):
            await anext(scene)
        await system.pass_time(2)
    query = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    checks = [
        {"expr": query, "eval_time": "1m", "exp_samples": []},
        {"expr": query, "eval_time": f"{fires_at}m", "exp_samples": [{"labels": "{}", "value": 1}]},
        {"expr": query, "eval_time": f"{system.minute}m", "exp_samples": []},
    ]
    test = {"interval": "1m", "input_series": [*system.list_series()], "promql_expr_test": checks}
    rules = {"rule_files": [str(FILES / "alerts.yaml")], "evaluation_interval": "1m"}
    file = tmp_path / "scene.json"
    file.write_bytes(msgspec.json.encode({**rules, "tests": [test]}))
    assert find_complaints("test", "rules", str(file)) == ""
