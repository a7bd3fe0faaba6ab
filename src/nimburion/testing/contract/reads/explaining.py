"""`explain_job`: why a job is not running."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.errors import JobNotFound
from nimburion.core.exchange import Lane
from nimburion.core.flows import On
from nimburion.core.job import JobOptions
from nimburion.core.limits import LimitRule
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import make_signal_source, make_time_source
from nimburion.core.session import Vitals, WorkerCommand
from nimburion.core.settlement import Cancelled, Completed, Failed, Retried
from nimburion.core.timing.clock import MICRO
from nimburion.testing.contract.flows.graphs import (
    FLOW,
    after,
    after_flow,
    finish,
    make_flow,
    make_group,
    member,
    store,
)
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    flow_source,
    send,
    start,
    start_suspended,
    suspend,
)


async def _complete(harness: Harness) -> str:
    """A worker completed it."""
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Completed((await worker.take_one()).lease))
    return "a"


async def _cancel_in_worker(harness: Harness) -> str:
    """Its handler cancelled it."""
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Cancelled((await worker.take_one()).lease, "not needed"))
    return "a"


async def _fail(harness: Harness) -> str:
    """It failed for good."""
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "exhausted", FAILURE))
    return "a"


async def _fail_and_lose_key(harness: Harness) -> str:
    """It failed, and a newer job took its unique key."""
    key = JobOptions(unique_key="k")
    await harness.put(harness.job("a", options=key))
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "exhausted", FAILURE))
    await harness.put(harness.job("b", options=key))
    return "a"


async def _run(harness: Harness) -> str:
    """A live worker holds it."""
    await harness.add("a")
    await (await harness.worker()).take_one()
    return "a"


async def _request_cancel(harness: Harness) -> str:
    """A live worker holds it, and was asked to cancel it."""
    job_id = await _run(harness)
    await harness.backend.producing.cancel(job_id)
    return job_id


async def _run_on_expired_session(harness: Harness) -> str:
    """The session of its worker has expired, and no rescue has run yet."""
    await harness.add("a")
    worker = await harness.worker()
    await worker.take_one()
    harness.clock.advance(worker.session.ttl + 1.0)
    return "a"


async def _wait_for_member(harness: Harness) -> str:
    """A job of its flow, which it waits for, has failed and is retried."""
    await store(harness, [member("source"), member("a", after("source"))])
    worker = await harness.worker()
    await worker.settle(Retried((await worker.take_one()).lease, 40.0, FAILURE))
    return "a"


async def _wait_for_group(harness: Harness) -> str:
    """Members of a group of its flow, which it waits for, have not ended."""
    jobs = [member(f"part.{number}", group="part") for number in range(3)]
    group = make_group("part", 3)
    await store(harness, [*jobs, member("a", after_flow("part"))], make_flow(2), group)
    await finish(await harness.worker(), "part.1")
    return "a"


async def _wait_for_signal(harness: Harness) -> str:
    """A durable run waits for a flow, a signal and a time."""
    worker = await harness.worker()
    held = await start(harness, worker)
    await store(harness, [member("one"), member("two")])
    await suspend(worker, held, flow_source(FLOW), PAID, delay=3_600.0)
    await finish(worker, "one")
    return RUN


async def _wait_without_end(harness: Harness) -> str:
    """A durable run waits for nothing."""
    await start_suspended(harness, await harness.worker())
    return RUN


async def _schedule(harness: Harness) -> str:
    """It was enqueued for later."""
    await harness.worker()
    return await harness.put(harness.job("a", after=600.0))


async def _retry(harness: Harness) -> str:
    """It failed and waits for its next attempt."""
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Retried((await worker.take_one()).lease, 60.0, FAILURE))
    return "a"


async def _pause(harness: Harness) -> str:
    """Its queue is paused."""
    await harness.add("a")
    await harness.worker()
    await harness.backend.maintenance.pause_queue(
        "default", paused=True, by="ops", reason="maintenance"
    )
    return "a"


async def _fill_limit(harness: Harness) -> str:
    """As many jobs of its name run as its concurrency limit allows."""
    await harness.add("holder", "a")
    worker = await harness.worker(limits={"mail": 1})
    await worker.take_one()
    return "a"


async def _use_up_rate(harness: Harness) -> str:
    """The rate limit of its name allows no job now."""
    await harness.add("first", "a")
    limit = RateLimit("2/min", interval=30_000_000, burst=1)
    await (await harness.worker(rates={"mail": limit})).take_one()
    return "a"


async def _fill_key(harness: Harness) -> str:
    """Another job of its key runs, and a limit by key allows no more."""
    options = JobOptions(limit_keys={"customer": "acme"})
    await harness.enqueue(harness.job("first", options=options), harness.job("a", options=options))
    worker = await harness.worker(keyed={"mail": {"customer": LimitRule(concurrency=1)}})
    await worker.take(2)
    return "a"


async def _have_no_worker(harness: Harness) -> str:
    """No worker is live."""
    await harness.add("a")
    return "a"


async def _have_no_worker_of_queue(harness: Harness) -> str:
    """No live worker serves its queue."""
    await harness.add("a")
    await harness.worker(queues=("other",))
    return "a"


async def _have_no_worker_of_name(harness: Harness) -> str:
    """No live worker has a handler of its name."""
    await harness.add("a")
    await harness.worker(names=("post",))
    return "a"


async def _have_quiet_workers(harness: Harness) -> str:
    """Its only worker was told to start no further job."""
    await harness.add("a")
    worker = await harness.worker()
    assert await harness.backend.maintenance.send_command(worker.id, WorkerCommand.QUIET)
    return "a"


async def _have_busy_workers(harness: Harness) -> str:
    """Every slot of its only worker is taken."""
    await harness.add("a")
    worker = await harness.worker()
    await harness.backend.consuming.heartbeat(worker.id, Vitals(slots=2, busy=2))
    return "a"


async def _wait_for_turn(harness: Harness) -> str:
    """Other tenants have used less than its tenant, or earlier jobs of its tenant come first."""
    worker = await harness.worker()
    options = {tenant: JobOptions(tenant=tenant) for tenant in ("acme", "initech")}
    jobs = [harness.job(job_id, options=options["acme"]) for job_id in ("first", "second", "a")]
    await harness.enqueue(*jobs, harness.job("b", options=options["initech"]))
    lease = (await worker.take_one()).lease
    harness.clock.advance(5.0)
    await worker.settle(Completed(lease))
    return "a"


async def _be_ready(harness: Harness) -> str:
    """It is due, and a worker with free slots can run it."""
    await harness.add("a")
    worker = await harness.worker()
    await harness.backend.consuming.heartbeat(worker.id, Vitals(slots=2, busy=1))
    return "a"


Situation = Callable[[Harness], Awaitable[str]]

SITUATIONS: list[tuple[CauseKind, Situation]] = [
    (CauseKind.FINISHED, _complete),
    (CauseKind.FINISHED, _cancel_in_worker),
    (CauseKind.DEAD, _fail),
    (CauseKind.RUNNING, _run),
    (CauseKind.RUNNING, _request_cancel),
    (CauseKind.SESSION_EXPIRED, _run_on_expired_session),
    (CauseKind.SUSPENDED, _wait_for_member),
    (CauseKind.SUSPENDED, _wait_for_group),
    (CauseKind.SUSPENDED, _wait_for_signal),
    (CauseKind.SUSPENDED, _wait_without_end),
    (CauseKind.NOT_DUE, _schedule),
    (CauseKind.RETRY_LATER, _retry),
    (CauseKind.PAUSED, _pause),
    (CauseKind.AT_LIMIT, _fill_limit),
    (CauseKind.OVER_RATE, _use_up_rate),
    (CauseKind.KEY_FULL, _fill_key),
    (CauseKind.NO_WORKER, _have_no_worker),
    (CauseKind.NO_WORKER, _have_no_worker_of_queue),
    (CauseKind.NO_WORKER, _have_no_worker_of_name),
    (CauseKind.WORKERS_QUIET, _have_quiet_workers),
    (CauseKind.WORKERS_BUSY, _have_busy_workers),
    (CauseKind.TENANT_TURN, _wait_for_turn),
    (CauseKind.READY, _be_ready),
]
"""Each situation with the cause that `why` must name first."""


class Explaining:
    """`explain_job` and `find_causes`."""

    @pytest.mark.parametrize(
        ("kind", "situation"), SITUATIONS, ids=[s.__name__.strip("_") for _, s in SITUATIONS]
    )
    async def test_the_first_cause_is_the_decisive_one(
        self, harness: Harness, kind: CauseKind, situation: Situation
    ) -> None:
        job_id = await situation(harness)
        facts = await harness.backend.reads.explain_job(job_id)
        assert facts.job == (await harness.backend.reads.list_jobs(_only(job_id))).jobs[0]
        assert facts.now == await harness.backend.now()
        assert find_causes(facts)[0].kind is kind

    async def test_a_dead_letter_names_the_holder_of_its_key(self, harness: Harness) -> None:
        facts = await harness.backend.reads.explain_job(await _fail_and_lose_key(harness))
        assert facts.key_holder == "b"
        assert [cause.kind for cause in find_causes(facts)] == [CauseKind.DEAD, CauseKind.KEY_HELD]

    async def test_a_job_does_not_hold_its_own_key_against_itself(self, harness: Harness) -> None:
        await harness.put(harness.job("a", options=JobOptions(unique_key="k")))
        assert (await harness.backend.reads.explain_job("a")).key_holder is None

    async def test_all_that_a_durable_run_waits_for_is_named(self, harness: Harness) -> None:
        job_id = await _wait_for_signal(harness)
        facts = await harness.backend.reads.explain_job(job_id)
        ends = make_time_source(round((facts.now + 3_600.0) * MICRO))
        sources = {flow_source(FLOW), PAID, ends}
        assert {one.condition.source for one in facts.unmet} == sources
        assert {one.condition.on for one in facts.unmet} == {On.ANY}
        assert facts.unmet_count == 3
        (flow,) = [one.flow for one in facts.unmet if one.flow is not None]
        assert (flow.id, flow.unfinished) == (FLOW, 1)
        (cause,) = find_causes(facts)
        for text in (
            "for the end of flow import (1 of 2 members has not ended)",
            "for the signal 'paid'",
            "until ",
        ):
            assert text in cause.text
        await send(harness)
        assert (await harness.backend.reads.explain_job(job_id)).unmet == []

    async def test_a_job_of_many_waits_says_how_many_there_are(self, harness: Harness) -> None:
        names = [make_signal_source(RUN, f"n{number}") for number in range(12)]
        await start_suspended(harness, await harness.worker(), *names)
        facts = await harness.backend.reads.explain_job(RUN)
        assert (len(facts.unmet), facts.unmet_count) == (10, 12)
        assert "or for 9 others" in find_causes(facts)[0].text

    async def test_several_causes_are_named(self, harness: Harness) -> None:
        job_id = await _pause(harness)
        await harness.backend.maintenance.pause_queue(
            "default", paused=True, by="ops", reason="a ✓ reason"
        )
        for session in await harness.backend.reads.list_sessions():
            await harness.backend.consuming.close_session(session.id)
        facts = await harness.backend.reads.explain_job(job_id)
        causes = find_causes(facts)
        assert [cause.kind for cause in causes] == [CauseKind.PAUSED, CauseKind.NO_WORKER]
        assert "by ops" in causes[0].text
        assert "a ✓ reason" in causes[0].text

    async def test_the_facts_have_limit_and_sessions(self, harness: Harness) -> None:
        job_id = await _fill_limit(harness)
        facts = await harness.backend.reads.explain_job(job_id)
        assert facts.limits == await harness.backend.reads.list_limits()
        assert facts.sessions == await harness.backend.reads.list_sessions()

    async def test_an_unknown_job_is_not_explained(self, harness: Harness) -> None:
        with pytest.raises(JobNotFound):
            await harness.backend.reads.explain_job("unknown")


class LimitReading:
    """`list_limits`."""

    async def test_limits_name_their_holders_longest_first(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        await harness.add("p", name="post")
        first = await harness.worker(names=("mail", "post"), limits={"mail": 2, "post": 5})
        second = await harness.worker(names=("mail", "post"), limits={"mail": 2, "post": 5})
        started = [await _take_mail(harness, first), await _take_mail(harness, second)]
        mail, post = await harness.backend.reads.list_limits()
        assert (mail.name, mail.concurrency, mail.in_use) == ("job:mail", 2, 2)
        assert [holder.job_id for holder in mail.holders] == ["a", "b"]
        assert [holder.session for holder in mail.holders] == [first.id, second.id]
        assert [holder.host for holder in mail.holders] == ["here", "here"]
        assert [holder.started_at for holder in mail.holders] == started
        assert (post.name, post.concurrency, post.in_use, post.holders) == ("job:post", 5, 0, [])

    async def test_at_most_20_holders_are_named(self, harness: Harness) -> None:
        await harness.add(*(f"job-{n:02}" for n in range(25)))
        worker = await harness.worker(limits={"mail": 25})
        await worker.take(25)
        (mail,) = await harness.backend.reads.list_limits()
        assert (mail.in_use, len(mail.holders)) == (25, 20)
        (mail,) = await harness.backend.reads.list_limits(holders=3)
        assert [holder.job_id for holder in mail.holders] == ["job-00", "job-01", "job-02"]

    async def test_without_limits_there_is_nothing_to_list(self, harness: Harness) -> None:
        await harness.add("a")
        await (await harness.worker()).take_one()
        assert await harness.backend.reads.list_limits() == []


class VitalsAndCommands:
    """Vitals in heartbeats, and commands to workers."""

    async def test_vitals_are_listed_with_the_session(self, harness: Harness) -> None:
        worker = await harness.worker()
        (before,) = await harness.backend.reads.list_sessions()
        assert before.vitals is None
        vitals = Vitals(
            slots=10,
            busy=3,
            loop_lag=0.25,
            rss=123_456_789,
            lease_margin=19.5,
            version="1.2.3",
            python="3.14.0",
            code_version="deploy ✓ 7",
        )
        await harness.backend.consuming.heartbeat(worker.id, vitals)
        (after,) = await harness.backend.reads.list_sessions()
        assert after.vitals == vitals
        await harness.backend.consuming.heartbeat(worker.id)
        assert (await harness.backend.reads.list_sessions())[0].vitals == vitals
        await harness.backend.consuming.heartbeat(worker.id, Vitals(busy=1))
        assert (await harness.backend.reads.list_sessions())[0].vitals == Vitals(busy=1)

    async def test_a_command_comes_with_every_heartbeat(self, harness: Harness) -> None:
        worker = await harness.worker()
        other = await harness.worker()
        assert (await worker.heartbeat()).command is None
        assert await harness.backend.maintenance.send_command(worker.id, WorkerCommand.QUIET)
        for _ in range(2):
            assert (await worker.heartbeat()).command is WorkerCommand.QUIET
        assert (await other.heartbeat()).command is None
        commands = [session.command for session in await harness.backend.reads.list_sessions()]
        assert commands == [WorkerCommand.QUIET, None]

    async def test_a_later_command_replaces_the_first(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.backend.maintenance.send_command(worker.id, WorkerCommand.QUIET)
        await harness.backend.maintenance.send_command(worker.id, WorkerCommand.STOP)
        assert (await worker.heartbeat()).command is WorkerCommand.STOP
        await harness.backend.maintenance.send_command(worker.id, None)
        assert (await worker.heartbeat()).command is None

    async def test_a_request_for_stacks_leaves_the_last_command(self, harness: Harness) -> None:
        worker, maintenance = await harness.worker(), harness.backend.maintenance
        assert await maintenance.send_command(worker.id, WorkerCommand.SHOW_STACKS)
        assert (await worker.heartbeat()).command is None
        await maintenance.send_command(worker.id, WorkerCommand.QUIET)
        assert await maintenance.send_command(worker.id, WorkerCommand.SHOW_STACKS)
        assert (await worker.heartbeat()).command is WorkerCommand.QUIET

    async def test_a_session_that_ended_takes_no_command(self, harness: Harness) -> None:
        worker = await harness.worker()
        await worker.close()
        assert not await harness.backend.maintenance.send_command(worker.id, WorkerCommand.STOP)
        assert not await harness.backend.maintenance.send_command("0" * 32, WorkerCommand.STOP)
        command = WorkerCommand.SHOW_STACKS
        assert not await harness.backend.maintenance.send_command(worker.id, command)


def _only(job_id: str) -> JobFilter:
    return JobFilter(ids=(job_id,))


async def _take_mail(harness: Harness, worker: HandDrivenWorker) -> float:
    """Let the worker take the next mail one second later; return the time when it started."""
    harness.clock.advance(1.0)
    await worker.take(1, lanes=(Lane("default", "mail"),))
    return harness.clock.now()
