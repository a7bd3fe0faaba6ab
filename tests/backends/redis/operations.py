"""Everything that is done with a backend, step by step, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis

from nimburion.backends import open_backend
from nimburion.backends.redis.connection.connect import connect
from nimburion.backends.redis.url import parse_url
from nimburion.core.backend import Backend
from nimburion.core.job import JobOptions, State
from nimburion.core.operations import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.schedules import Overlap, ScheduleRecord
from nimburion.core.settlement import Cancelled, Completed, Failed, Released
from nimburion.jobs import Context, PermanentError, Processor, job
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import OOPS, Harness
from tests.servers import Server

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


async def check_processor(live: Environment) -> None:
    """Enqueue, run, retry, fail; then replay and purge the dead letters."""
    processor = Processor(live.backend.new_handle())
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
        assert await processor.dead.purge() == 1


async def check_enqueue(live: Environment) -> None:
    """One, large, later; the same again; with unique keys."""
    stage = live.harness
    await stage.add("plain")
    await stage.put(stage.job("large", payload=b"1" * 100_000))
    await stage.put(stage.job("later", after=3600.0))
    key = JobOptions(unique_key="once", unique_for=0.001)
    (first,) = await stage.enqueue(stage.job("keyed", options=key))
    (again,) = await stage.enqueue(stage.job("keyed", options=key))
    assert (first.outcome, again.outcome) == ("created", "exists")
    await stage.put(stage.job("held", options=JobOptions(unique_key="held")))
    (taken,) = await stage.enqueue(stage.job("other", options=JobOptions(unique_key="held")))
    assert (taken.outcome, taken.id) == ("taken", "held")


async def check_bulk(live: Environment) -> None:
    """More jobs than one script stores, runs or looks at."""
    ids = await live.harness.add(*(f"many-{n}" for n in range(600)), name="many", queue="many")
    worker = await live.harness.worker(names=("many",), queues=("many",))
    taken = await worker.take(500)
    more = await worker.exchange(*(Completed(one.lease) for one in taken), want=worker.want(500))
    await worker.exchange(*(Completed(one.lease) for one in more.deliveries))
    completed = frozenset({State.COMPLETED})
    assert await live.backend.delete(JobFilter(states=completed, name="nobody's"), 500) == []
    assert len(await live.backend.delete(JobFilter(states=completed, name="many"), 1000)) == len(
        ids
    )


async def check_settlements(live: Environment) -> None:
    """Take, under a limit, and settle in every way; what is asked again answers the same."""
    stage = live.harness
    ids = await stage.add("done", "dead", "back", "away", name="settle", queue="settle")
    worker = await stage.worker(names=("settle",), queues=("settle",), limits={"settle": 4})
    taken = await worker.take(10)
    assert [one.lease.job_id for one in taken] == ids
    leases = [one.lease for one in taken]
    again = await live.backend.exchange(worker.id, worker.number, [], worker.want(0))
    assert len(again.deliveries) == len(leases)
    await worker.exchange(
        Completed(leases[0], b"1"),
        Failed(leases[1], "permanent", OOPS),
        Released(leases[2], 0.001),
        Cancelled(leases[3], "no more"),
    )
    await wait_until(lambda: is_promoted(live, "back"))
    (lease,) = [one.lease for one in await worker.take(10)]
    await live.backend.cancel("back")
    assert [one.job_id for one in (await live.backend.heartbeat(worker.id)).cancel] == ["back"]
    await live.backend.close_session(worker.id, [lease])
    await live.backend.close_session(worker.id)


async def is_promoted(live: Environment, job_id: str) -> bool:
    await live.backend.promote(500)
    return await live.harness.state(job_id) is State.PENDING


async def check_rescue(live: Environment) -> None:
    """A worker that does not come back loses its job; the last loss makes a dead letter."""
    await live.harness.add("lost", name="lost", queue="lost")
    for max_lost in (2, 2):
        worker = await live.harness.worker(names=("lost",), queues=("lost",), ttl=0.001)
        await worker.take(1)

        async def rescued(max_lost: int = max_lost) -> bool:
            found = await live.backend.rescue(500, max_lost=max_lost)
            return bool(found.returned or found.failed)

        await wait_until(rescued)
    assert await live.harness.state("lost") is State.FAILED


async def check_cancel_and_pause(live: Environment) -> None:
    """Waiting jobs, a queue, and what counts and lists say."""
    store = live.backend
    await live.harness.add("to-cancel", "to-wait", name="quiet", queue="quiet")
    await store.cancel("to-cancel")
    worker = await live.harness.worker(names=("quiet",), queues=("quiet",))
    await store.pause("quiet", paused=True)
    assert await worker.take(1) == []
    assert [queue.name for queue in await store.queues() if queue.paused] == ["quiet"]
    await store.pause("quiet", paused=False)
    assert (await store.counts("quiet"))[State.CANCELLED] == 1
    assert worker.id in {session.id for session in await store.sessions()}
    assert (await store.list_jobs(limit=5)).jobs
    for states in ({State.CANCELLED}, {State.FAILED}, {State.PENDING}):
        await store.list_jobs(JobFilter(states=frozenset(states)), payloads=True)


async def check_schedules(live: Environment) -> None:
    """Schedules, with each rule for a tick whose forerunner still waits or runs."""
    store = live.backend
    await store.put_schedule(ScheduleRecord(name="hourly", spec=b"{}"))
    last: float | None = None
    rules: tuple[Overlap, ...] = ("allow", "skip", "queue_one", "cancel_previous")
    for tick, rule in enumerate(rules):
        job = live.harness.job(f"tick-{tick}", name="tick", queue="tick")
        assert (await store.fire("hourly", last, float(tick), job, rule)).outcome in {
            "fired",
            "skipped",
        }
        last = float(tick)
    assert await store.pause_schedule("hourly", paused=True)
    assert len(await store.list_schedules()) == 1
    assert await store.delete_schedule("hourly")


async def check_prune(live: Environment) -> None:
    """Everything that is finished, with its results."""
    await live.backend.prune(Retention(completed=None, completed_max=1, results=0.0), 500)
    keep = Retention(completed=0.0, failed=0.0, results=0.0)
    await wait_until(lambda: has_nothing_finished(live, keep))
    await live.backend.delete(JobFilter(ids=("to-wait",)), 1)


async def has_nothing_finished(live: Environment, keep: Retention) -> bool:
    await live.backend.prune(keep, 500)
    counts = await live.backend.counts()
    return not counts[State.COMPLETED] + counts[State.FAILED] + counts[State.CANCELLED]


async def check_notifications(live: Environment) -> None:
    """A worker with nothing to do hears of a new job at once."""
    rung = asyncio.create_task(live.backend.wait(["bell"], 3 * TIMEOUT))
    try:
        async with asyncio.timeout(live.timeout):
            while not rung.done():
                await live.harness.add(name="bell", queue="bell")
    finally:
        rung.cancel()


async def check_health_checks(live: Environment) -> None:
    """The doctor can tell everything."""
    await live.backend.ping()
    found = {one.subject: one for one in await live.backend.check()}
    assert [one for one in found.values() if one.verdict == "error"] == []
    assert "may not" not in found["durability"].text


async def check_client_list(live: Environment) -> None:
    """Operators see who we are, and we see whether a server takes writes."""
    found = [one for server in live.servers for one in read_from(server, redis.Redis.client_list)]
    user = live.settings.credentials.username or "default"
    assert "nimburion" in {client["name"] for client in found if client["user"] == user}
    server = parse_url(live.servers[0].address)
    call = await connect(server.endpoints[0], live.settings, timeout=TIMEOUT)
    await call.close()
    assert call.role == "primary"


def read_from(server: Server, question: Callable[[redis.Redis], Any]) -> list[dict[str, str]]:
    """What an operator with all rights is told."""
    with server.client(decode_responses=True) as client:
        return list(question(client))


async def wait_until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until it holds."""
    async with asyncio.timeout(TIMEOUT):
        while not await holds():
            await asyncio.sleep(0)


STEPS = (
    check_processor,
    check_enqueue,
    check_bulk,
    check_settlements,
    check_rescue,
    check_cancel_and_pause,
    check_schedules,
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
    """Do it all; at the end a ring must come within `long poll` seconds."""
    live = Environment(url, servers, timeout)
    try:
        await live.backend.open()
        for step in STEPS:
            await step(live)
            after_each()
    finally:
        await live.backend.close()
