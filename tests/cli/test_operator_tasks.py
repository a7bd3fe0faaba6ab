"""Five tasks of an operator, each with at most two commands."""

from __future__ import annotations

from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import AttemptError, JobOptions, NewJob
from nimburion.core.limits import LimitRule
from nimburion.core.session import Session, Vitals, WorkerCommand
from nimburion.core.settlement import Failed
from tests.cli.conftest import CommandLine

WORKER = "f95d" * 8
LIMIT = "export:customer"


async def open_worker(backend: Backend, queue: str, name: str, **fields: object) -> None:
    await backend.consuming.open_session(
        Session(id=WORKER, host="web-1", pid=77, queues=(queue,), names=(name,), **fields)  # type: ignore[arg-type]
    )


async def reserve(backend: Backend, queue: str, name: str, count: int) -> ReserveRequest:
    request = ReserveRequest(count, (Lane(queue, name),), nonce=bytes(range(16)))
    await backend.consuming.exchange(WORKER, 1, [], request)
    return request


def test_why_does_this_job_not_run(nimburion: CommandLine) -> None:
    nimburion.enqueue("order-0017", queue="mail")
    nimburion("queues", "pause", "mail", "--reason", "provider down")
    answer = nimburion("why", "0017").out
    assert "Queue 'mail' is paused by " in answer
    assert "provider down" in answer


def test_the_worst_error_of_the_last_hour_is_replayed_at_10_per_second(
    nimburion: CommandLine,
) -> None:
    worst = AttemptError(1, "failure", "ConnectError", "no route", fingerprint="00000000000000aa")
    other = AttemptError(1, "failure", "ValueError", "bad", fingerprint="00000000000000bb")

    async def fail(backend: Backend) -> None:
        await backend.producing.enqueue([NewJob(one, "send", "mail", b"{}") for one in "abc"])
        await open_worker(backend, "mail", "send")
        request = ReserveRequest(3, (Lane("mail", "send"),), nonce=bytes(16))
        reply = await backend.consuming.exchange(WORKER, 1, [], request)
        errors = zip(reply.deliveries, (worst, other, worst), strict=True)
        failed = [Failed(one.lease, "exhausted", error) for one, error in errors]
        await backend.consuming.exchange(WORKER, 2, failed, ReserveRequest(0))

    nimburion.call_backend(fail)
    first = nimburion("dead", "groups", "--since", "1h").out.splitlines()[1].split()
    assert first[1] == "2"
    replay = ("dead", "replay", "--fingerprint", first[0], "--rate", "10/s", "--yes", "--json")
    started = nimburion(*replay).data
    assert (started["rate"], started["which"]["fingerprint"]) == (10.0, worst.fingerprint)


def test_the_flood_of_one_customer_is_found_and_limited(nimburion: CommandLine) -> None:
    async def flood(backend: Backend) -> None:
        options = JobOptions(limit_keys={LIMIT: "megacorp"})
        jobs = [NewJob(f"m{n}", "export", "exports", b"{}", options=options) for n in range(6)]
        await backend.producing.enqueue(jobs)
        rules = {"export": {LIMIT: LimitRule(concurrency=3)}}
        await open_worker(backend, "exports", "export", limits=rules)
        await reserve(backend, "exports", "export", 6)

    nimburion.call_backend(flood)
    assert "megacorp 3+3" in nimburion("limits").out
    change = ("limits", "set", LIMIT, "1", "--key", "megacorp", "--reason", "flood")
    assert "for the key megacorp: at most 1 at once" in nimburion(*change).out


def test_a_stuck_worker_is_found_and_stopped(nimburion: CommandLine) -> None:
    async def run(backend: Backend) -> None:
        await backend.producing.enqueue([NewJob("stuck", "geocode", "geo", b"{}")])
        await open_worker(backend, "geo", "geocode")
        await backend.consuming.heartbeat(WORKER, Vitals(slots=1, busy=1))
        await reserve(backend, "geo", "geocode", 1)

    nimburion.call_backend(run)
    shown = nimburion("jobs", "running").out.splitlines()[1].split()
    assert shown[0] == "stuck"
    worker = next(word for word in shown if WORKER.startswith(word))
    assert nimburion("workers", "stop", worker).code == 0
    reply = nimburion.call_backend(lambda backend: backend.consuming.heartbeat(WORKER))
    assert reply.command is WorkerCommand.STOP


def test_a_queue_is_drained_before_a_deploy(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", queue="mail")
    drained = nimburion("queues", "pause", "mail", "--reason", "deploy", "--wait")
    assert (drained.code, drained.out) == (0, "mail is paused; none of its jobs runs\n")
