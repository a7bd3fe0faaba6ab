"""Everything that is done with a backend, step by step, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import redis

from nimburion.backends import open_backend
from nimburion.backends.redis.connection.connect import connect
from nimburion.backends.redis.url import parse_url
from nimburion.core.audit import AuditRecord, list_audit, put_audit
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkState,
    BulkStep,
    NewBulkOperation,
    cancel_bulk_operation,
    claim_bulk_operation,
    end_bulk_operation,
    get_bulk_operation,
    list_bulk_operations,
    run_bulk_step,
    start_bulk_operation,
)
from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.errors import PermanentError
from nimburion.core.flows import FlowState, Growth, NewFlow, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import JobOptions, State
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.maintenance import Cancellation, Retention
from nimburion.core.metrics.statistics import STEPS as INTERVALS
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import CANCEL_SIGNAL, NewSignal, SignalOutcome, make_signal_source
from nimburion.core.schedules import (
    Overlap,
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
)
from nimburion.core.session import Vitals, WorkerCommand
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Recorded,
    Released,
    Suspended,
)
from nimburion.jobs import Context, Processor, job
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import delete
from nimburion.testing.contract.harness import FAILURE, Harness, list_uses
from tests.servers import Server
from tests.waiting import wait_until

TIMEOUT = 20.0


class Environment:
    """A backend as the user sees it, and what only an operator with all rights sees."""

    def __init__(self, url: str, servers: Sequence[Server], timeout: float) -> None:
        self.backend: Backend = open_backend(url)
        self.settings = parse_url(url)
        self.servers = servers
        """Those that hold data."""
        self.timeout = timeout
        self.harness = Harness(FakeClock(), [self.backend])
        """Its workers and jobs; the time is the server's."""


@job(queue="greetings", max_retries=1, retry_backoff=0)
async def greet(ctx: Context, name: str) -> str:
    ctx.progress(0.5, "half")
    if name == "nobody":
        raise PermanentError("nobody to greet")
    if name == "Bob" and ctx.attempt == 1:
        raise OSError("Bob is out")
    return f"Hello {name}"


async def check_processor(environment: Environment) -> None:
    """Enqueue, run, retry, fail; then replay and purge the dead letters."""
    processor = Processor(environment.backend.new_handle())
    processor.register(greet)
    async with processor:
        for name in ("Ann", "Bob", "nobody"):
            await processor.enqueue(greet.job(name), id=name)
        assert await processor.queue_size("greetings") == 3
        assert await processor.drain() == 4
        assert await processor.wait("Bob", timeout=TIMEOUT) == "Hello Bob"
        assert (await processor.get_status("Bob")).failures == 1
        assert [one.id async for one in processor.dead.list()] == ["nobody"]
        assert await processor.dead.replay("nobody") == ["nobody"]
        await processor.drain()
        assert len(await processor.dead.purge_all()) == 1


async def check_enqueue(environment: Environment) -> None:
    """One, large, later; the same again; with unique keys."""
    harness = environment.harness
    await harness.add("plain")
    await harness.put(harness.job("large", payload=b"1" * 100_000))
    await harness.put(harness.job("later", after=3600.0))
    key = JobOptions(unique_key="once", unique_for=0.001)
    (first,) = await harness.enqueue(harness.job("keyed", options=key))
    (again,) = await harness.enqueue(harness.job("keyed", options=key))
    assert (first.outcome, again.outcome) == ("created", "exists")
    await harness.put(harness.job("held", options=JobOptions(unique_key="held")))
    (taken,) = await harness.enqueue(harness.job("other", options=JobOptions(unique_key="held")))
    assert (taken.outcome, taken.id) == ("taken", "held")


async def check_replacement(environment: Environment) -> None:
    """A job takes the place of the waiting job that holds its key."""
    harness = environment.harness
    options = JobOptions(unique_key="draft", on_duplicate="replace")
    await harness.enqueue(harness.job("draft", after=3600.0, options=options))
    (replaced,) = await harness.enqueue(harness.job("second", after=3600.0, options=options))
    assert (replaced.outcome, replaced.id) == ("replaced", "draft")


async def check_limits(environment: Environment) -> None:
    """Jobs over a rate, and jobs whose key has no room or is over its rate."""
    harness = environment.harness
    hourly = RateLimit("1/h", interval=3_600_000_000, burst=1)
    await harness.add("in-rate", "over-rate", name="rated", queue="rated")
    worker = await harness.worker(names=("rated",), queues=("rated",), rates={"rated": hourly})
    (started,) = await worker.take(9)
    await worker.exchange(Completed(started.lease))
    assert [limit.name for limit in await environment.backend.reads.list_limits()] == ["job:rated"]
    await environment.backend.consuming.close_session(worker.id)
    limits = {"customer": LimitRule(concurrency=1), "region": LimitRule(rate=hourly)}
    for key in ("customer", "region"):
        options = JobOptions(limit_keys={key: "a"})
        for number in (1, 2):
            job = harness.job(f"{key}-{number}", name="keyed", queue="keyed", options=options)
            await harness.enqueue(job)
    worker = await harness.worker(names=("keyed",), queues=("keyed",), keyed={"keyed": limits})
    assert len(await worker.take(9)) == len(limits)
    assert {use.parked for use in await list_uses(environment.backend)} == {1}
    await environment.backend.maintenance.change_limit(
        LimitChange(name="customer", key="a", concurrency=0)
    )
    listed = await environment.backend.reads.list_limits()
    changes = {limit.name: [change.key for change in limit.changes] for limit in listed}
    assert changes == {"customer": ["a"], "job:rated": [], "region": []}
    await worker.take(9)
    assert await environment.backend.maintenance.reset_limit("customer", "a")
    await environment.backend.consuming.close_session(worker.id)


async def check_turns(environment: Environment) -> None:
    """Jobs of two tenants take turns: due ones, a later one, a cancelled one and a replayed one."""
    harness, backend = environment.harness, environment.backend
    await backend.maintenance.set_tenant_weight("a", 2.0)
    await backend.maintenance.set_tenant_weight("b", 3.0)
    await backend.maintenance.set_tenant_weight("b", None)
    for tenant in ("a", "b"):
        for number, after in ((1, 0.0), (2, 0.0), (3, 3600.0)):
            options = JobOptions(tenant=tenant)
            job = harness.job(
                f"{tenant}{number}", name="fair", queue="fair", after=after, options=options
            )
            await harness.enqueue(job)
    await backend.producing.cancel("a2")
    assert (await backend.reads.explain_job("b2")).turn is not None
    worker = await harness.worker(names=("fair",), queues=("fair",))
    assert len(await worker.take(1)) == 1
    assert len((await backend.reads.list_tenants()).tenants) == len({"a", "b"})
    await backend.consuming.close_session(worker.id)


async def check_bulk(environment: Environment) -> None:
    """More jobs than one script stores, runs or looks at."""
    ids = await environment.harness.add(
        *(f"many-{n}" for n in range(600)), name="many", queue="many"
    )
    worker = await environment.harness.worker(names=("many",), queues=("many",))
    taken = await worker.take(500)
    more = await worker.exchange(*(Completed(one.lease) for one in taken), want=worker.want(500))
    await worker.exchange(*(Completed(one.lease) for one in more.deliveries))
    completed, backend = frozenset({State.COMPLETED}), environment.backend
    assert await delete(backend, JobFilter(states=completed, name="nobody's"), 500) == []
    deleted = await delete(backend, JobFilter(states=completed, name="many"), 1000)
    assert len(deleted) == len(ids)


async def check_bulk_operations(environment: Environment) -> None:
    """Each action, one step; what is read of them; a cancelled one."""
    backend = environment.backend
    await environment.harness.add("in-bulk", name="in-bulk", queue="in-bulk")
    for action in (BulkAction.CANCEL, BulkAction.REPLAY, BulkAction.DELETE):
        new = NewBulkOperation(id=f"bulk-{action}", action=action)
        await start_bulk_operation(backend, new)
        claimed = await claim_bulk_operation(backend, TIMEOUT)
        step = BulkStep(ids=("in-bulk",), cursor="1", exhausted=True)
        await run_bulk_step(backend, claimed, step)
        claimed = await claim_bulk_operation(backend, TIMEOUT)
        done = await end_bulk_operation(backend, claimed, BulkState.DONE)
        assert done == await get_bulk_operation(backend, done.id)
        assert done.done == (action is not BulkAction.REPLAY)
    await start_bulk_operation(backend, NewBulkOperation(id="no", action=BulkAction.DELETE))
    assert (await list_bulk_operations(backend, limit=2)).next is not None
    assert (await cancel_bulk_operation(backend, "no")).state is BulkState.CANCELLED


async def check_settlements(environment: Environment) -> None:
    """Take, under a limit, and settle in every way; what is asked again answers the same."""
    harness = environment.harness
    ids = await harness.add("done", "dead", "back", "away", name="settle", queue="settle")
    worker = await harness.worker(names=("settle",), queues=("settle",), limits={"settle": 4})
    taken = await worker.take(10)
    assert [one.lease.job_id for one in taken] == ids
    leases = [one.lease for one in taken]
    again = await environment.backend.consuming.exchange(
        worker.id, worker.number, [], worker.want(0)
    )
    assert len(again.deliveries) == len(leases)
    await worker.exchange(
        Completed(leases[0], b"1"),
        Failed(leases[1], "permanent", FAILURE),
        Released(leases[2], 0.001),
        Cancelled(leases[3], "no more"),
    )
    await wait_until(lambda: is_promoted(environment, "back"), "it is promoted", TIMEOUT)
    (lease,) = [one.lease for one in await worker.take(10)]
    await environment.backend.producing.cancel("back")
    assert [
        one.job_id for one in (await environment.backend.consuming.heartbeat(worker.id)).cancel
    ] == ["back"]
    await environment.backend.consuming.close_session(worker.id, [lease])
    await environment.backend.consuming.close_session(worker.id)


async def is_promoted(environment: Environment, job_id: str) -> bool:
    await environment.backend.consuming.promote(500)
    return await environment.harness.state(job_id) is State.PENDING


async def check_rescue(environment: Environment) -> None:
    """A worker that does not come back loses its job; the last loss makes a dead letter."""
    await environment.harness.add("lost", name="lost", queue="lost")
    for max_lost in (2, 2):
        worker = await environment.harness.worker(names=("lost",), queues=("lost",), ttl=0.001)
        await worker.take(1)

        async def rescued(max_lost: int = max_lost) -> bool:
            found = await environment.backend.consuming.rescue(500, max_lost=max_lost)
            return bool(found.returned or found.failed)

        await wait_until(rescued, "it is rescued", TIMEOUT)
    assert await environment.harness.state("lost") is State.FAILED


async def check_cancel_and_pause(environment: Environment) -> None:
    """Waiting jobs, a queue, and what counts and lists say."""
    backend = environment.backend
    await environment.harness.add("to-cancel", "to-wait", name="quiet", queue="quiet")
    await backend.producing.cancel("to-cancel")
    worker = await environment.harness.worker(names=("quiet",), queues=("quiet",))
    await backend.maintenance.pause_queue("quiet", paused=True)
    assert await worker.take(1) == []
    assert [queue.name for queue in await backend.reads.list_queues() if queue.paused] == ["quiet"]
    await backend.maintenance.pause_queue("quiet", paused=False)
    assert (await backend.reads.count_jobs("quiet"))[State.CANCELLED] == 1
    assert worker.id in {session.id for session in await backend.reads.list_sessions()}
    assert (await backend.reads.list_jobs(limit=5)).jobs
    for states in ({State.CANCELLED}, {State.FAILED}, {State.PENDING}):
        await backend.reads.list_jobs(JobFilter(states=frozenset(states)), payloads=True)


async def check_readings(environment: Environment) -> None:
    """What operators read, and what is written for them."""
    backend, harness = environment.backend, environment.harness
    await harness.add("explained", name="read", queue="read")
    worker = await harness.worker(names=("read",), queues=("read",), limits={"read": 1})
    await worker.take(1)
    await backend.consuming.heartbeat(worker.id, Vitals(slots=1, busy=1))
    assert await backend.maintenance.send_command(worker.id, WorkerCommand.QUIET)
    assert (await backend.consuming.heartbeat(worker.id)).command is WorkerCommand.QUIET
    facts = await backend.reads.explain_job("explained")
    assert find_causes(facts)[0].kind is CauseKind.RUNNING
    (limit,) = [one for one in await backend.reads.list_limits() if one.name == "job:read"]
    assert [holder.job_id for holder in limit.holders] == ["explained"]
    await put_audit(backend, AuditRecord(id="one", action="worker.quiet"))
    await put_audit(backend, AuditRecord(id="one", action="worker.quiet", outcome="done"))
    records = [record for record in (await list_audit(backend)).records if record.id == "one"]
    assert [record.outcome for record in records] == ["done"]
    now = await backend.now()
    for step in INTERVALS:
        start = int(now) // step * step
        row = Statistics(step=step, start=start, queue="read", name="read", counters=Counters())
        await backend.consuming.put_statistics(worker.id, [row])
        assert await backend.reads.list_statistics(start, start + 1, step, queue="read") == [row]
    assert (await backend.reads.list_jobs(JobFilter(min_failures=1, created_to=now))).examined
    assert (await backend.reads.group_failures()).groups
    await backend.consuming.close_session(worker.id)


async def check_schedules(environment: Environment) -> None:
    """Schedules, with each rule for a tick whose forerunner still waits or runs."""
    backend = environment.backend
    await put_schedule(backend, ScheduleRecord(name="hourly", spec=b"{}"))
    last: float | None = None
    rules: tuple[Overlap, ...] = ("allow", "skip", "queue_one", "cancel_previous")
    for tick, rule in enumerate(rules):
        job = environment.harness.job(f"tick-{tick}", name="tick", queue="tick")
        assert (await backend.producing.fire("hourly", last, float(tick), job, rule)).outcome in {
            "fired",
            "skipped",
        }
        last = float(tick)
    assert await pause_schedule(backend, "hourly", paused=True)
    assert len(await list_schedules(backend)) == 1
    assert await delete_schedule(backend, "hourly")


async def check_flows(environment: Environment) -> None:
    """A chain in a group: a member fails and is replayed, another one is cancelled."""
    backend, harness = environment.backend, environment.harness
    flows = [
        NewFlow(id="import", name="import", members=2),
        NewFlow(id="parts", name="parts", members=2, parent="import"),
    ]
    report = (WaitCondition(WaitSource(SourceKind.FLOW, "parts")),)
    second = (WaitCondition(WaitSource(SourceKind.JOB, "part-1")),)
    jobs = [
        harness.job(job_id, name="flow", queue="flow", options=options)
        for job_id, options in (
            ("part-1", JobOptions(flow="import", group="parts")),
            ("part-2", JobOptions(flow="import", group="parts", conditions=second)),
            ("report", JobOptions(flow="import", conditions=report)),
        )
    ]
    assert {one.outcome for one in await backend.producing.enqueue(jobs, flows)} == {"created"}
    assert (await backend.reads.explain_job("report")).unmet_count == 1
    worker = await harness.worker(names=("flow",), queues=("flow",))
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
    assert await harness.state("report") is State.CANCELLED
    await backend.maintenance.change_jobs(BulkAction.REPLAY, ["part-1"])
    assert await harness.state("report") is State.SUSPENDED
    await worker.settle(Completed((await worker.take_one()).lease, b"1"))
    assert [flow.id for flow in (await backend.reads.list_flows(running=True)).flows] == ["import"]
    await backend.producing.cancel("part-2")
    await backend.consuming.promote(500)
    counts = {flow.id: flow.state for flow in await backend.reads.get_flow("import")}
    assert counts == {"import": FlowState.CANCELLED, "parts": FlowState.CANCELLED}
    await backend.consuming.close_session(worker.id)


async def check_opening(environment: Environment) -> None:
    """A flow that is open waits for members."""
    await environment.backend.producing.enqueue([], [NewFlow(id="open", growth=Growth.OPEN)])
    (flow,) = await environment.backend.reads.get_flow("open")
    assert flow.is_open


async def check_closing(environment: Environment) -> None:
    """It ends when it is closed."""
    await environment.backend.producing.enqueue([], [NewFlow(id="open", growth=Growth.CLOSE)])
    (flow,) = await environment.backend.reads.get_flow("open")
    assert flow.state is FlowState.COMPLETED


async def check_runs(environment: Environment) -> None:
    """A durable run waits for each thing, is asked to end, and leaves much to remove."""
    backend, harness = environment.backend, environment.harness
    await harness.add("run", name="run", queue="run")
    worker = await harness.worker(names=("run",), queues=("run",))
    held = await worker.take_one()
    steps = [Recorded(held.lease, number, b"1") for number in range(1_001)]
    await worker.exchange(*steps[:501])
    await worker.exchange(*steps[501:])
    paid = make_signal_source("run", "paid")
    waits = Suspended(held.lease, (paid, WaitSource(SourceKind.FLOW, "import")), 3_600.0)
    reply = await worker.exchange(waits, want=worker.want(1))
    (held,) = reply.deliveries  # the flow has ended
    await worker.exchange(Suspended(held.lease, (paid,), 3_600.0))
    assert (await backend.reads.explain_job("run")).unmet_count == 2
    signals = [NewSignal("run", "paid", "s1", b"1"), NewSignal("nobody", "paid", "s1", b"1")]
    outcomes = await backend.producing.send_signals(signals)
    assert outcomes == [SignalOutcome.STORED, SignalOutcome.UNKNOWN]
    held = await worker.take_one()
    await worker.exchange(Suspended(held.lease, (), 0.001))
    await wait_until(lambda: is_promoted(environment, "run"), "its time comes", TIMEOUT)
    held = await worker.take_one()
    await worker.exchange(Suspended(held.lease))
    assert await backend.producing.cancel("run") is Cancellation.REQUESTED
    page = await backend.reads.read_run("run", limit=2_000)
    assert [signal.name for signal in page.signals] == ["paid", CANCEL_SIGNAL]
    await worker.settle(Cancelled((await worker.take_one()).lease))
    await backend.consuming.close_session(worker.id)
    assert await delete(backend, JobFilter(ids=("run",)), 1) == ["run"]


async def check_prune(environment: Environment) -> None:
    """Everything that is finished, with its results."""
    await environment.backend.maintenance.prune(
        Retention(completed=None, completed_max=1, results=0.0), 500
    )
    keep = Retention(completed=0.0, failed=0.0, results=0.0)
    await wait_until(lambda: has_nothing_finished(environment, keep), "all is pruned", TIMEOUT)
    await delete(environment.backend, JobFilter(ids=("to-wait",)), 1)


async def has_nothing_finished(environment: Environment, keep: Retention) -> bool:
    await environment.backend.maintenance.prune(keep, 500)
    counts = await environment.backend.reads.count_jobs(budget=None)
    return not counts[State.COMPLETED] + counts[State.FAILED] + counts[State.CANCELLED]


async def check_notifications(environment: Environment) -> None:
    """A worker with nothing to do hears of a new job at once."""
    notified = asyncio.create_task(environment.backend.consuming.wait(["notified"], 3 * TIMEOUT))
    try:
        async with asyncio.timeout(environment.timeout):
            while not notified.done():
                await environment.harness.add(name="notified", queue="notified")
    finally:
        notified.cancel()


async def check_health_checks(environment: Environment) -> None:
    """The doctor can tell everything."""
    await environment.backend.ping()
    found = {one.subject: one for one in await environment.backend.check()}
    assert [one for one in found.values() if one.verdict == "error"] == []
    assert "may not" not in found["durability"].text


async def check_client_list(environment: Environment) -> None:
    """Operators see who we are, and we see whether a server takes writes."""
    found = [
        one for server in environment.servers for one in read_from(server, redis.Redis.client_list)
    ]
    user = environment.settings.credentials.username or "default"
    assert "nimburion" in {client["name"] for client in found if client["user"] == user}
    server = parse_url(environment.servers[0].address)
    call = await connect(server.endpoints[0], environment.settings, timeout=TIMEOUT)
    await call.close()
    assert call.role == "primary"


def read_from(server: Server, question: Callable[[redis.Redis], Any]) -> list[dict[str, str]]:
    """What an operator with all rights sees."""
    with server.client(decode_responses=True) as client:
        return list(question(client))


STEPS = (
    check_processor,
    check_enqueue,
    check_replacement,
    check_limits,
    check_turns,
    check_bulk,
    check_bulk_operations,
    check_settlements,
    check_rescue,
    check_cancel_and_pause,
    check_readings,
    check_schedules,
    check_flows,
    check_opening,
    check_closing,
    check_runs,
    check_health_checks,
    check_client_list,
    check_prune,
    check_notifications,
)


async def run_everything(
    url: str,
    servers: Sequence[Server],
    timeout: float = TIMEOUT,
    *,
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Do it all; at the end a notification must come within `long poll` seconds."""
    environment = Environment(url, servers, timeout)
    try:
        await environment.backend.open()
        for step in STEPS:
            await step(environment)
            after_each()
    finally:
        await environment.backend.close()
