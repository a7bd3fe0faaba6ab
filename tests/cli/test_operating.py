"""What an operator does: find what runs and what failed, pause, replay, enqueue by hand."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.cli.commands.queues import wait_until_idle
from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.lease import Lease
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Progressed
from tests.cli.conftest import CommandLine

WORKER = "feed" * 8
APPLICATION = """
from nimburion.jobs import Processor, job

processor = Processor("sqlite:///nimburion.db")

@job(name="welcome", queue="mail", unique=True, priority=7)
async def welcome(address: str) -> None: ...

processor.register(welcome)
processor.register("raw", lambda ctx, payload: None)
in_memory = Processor("memory://")
"""


async def reserve(backend: Backend, count: int) -> list[Lease]:
    """Open the session of a worker, and reserve jobs of `send` in `mail`."""
    await backend.consuming.open_session(
        Session(id=WORKER, host="web-1", pid=77, queues=("mail",), names=("send",))
    )
    request = ReserveRequest(count, (Lane("mail", "send"),), nonce=bytes(range(16)))
    reply = await backend.consuming.exchange(WORKER, 1, [], request)
    return [delivery.lease for delivery in reply.deliveries]


async def add_usual_time(backend: Backend) -> None:
    """Store that attempts of `send` took 0.2 s."""
    now = int(await backend.now())
    counters = Counters(completed=100)
    for _ in range(100):
        counters.run.observe(0.2)
    row = Statistics(
        step=3600, start=now // 3600 * 3600, queue="mail", name="send", counters=counters
    )
    await backend.consuming.put_statistics("source", [row])


@pytest.fixture
def application(nimburion: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line beside an application."""
    (nimburion.folder / "ops_shop.py").write_text(APPLICATION)
    monkeypatch.delitem(sys.modules, "ops_shop", raising=False)
    monkeypatch.syspath_prepend(str(nimburion.folder))
    return nimburion


def test_a_group_without_a_command_lists(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", after=600)
    groups = (
        "jobs",
        "queues",
        "workers",
        "limits",
        "tenants",
        "schedules",
        "dead",
        "operations",
        "flows",
    )
    for group in groups:
        assert nimburion(group) == nimburion(group, "list")
        assert nimburion(group, "--json") == nimburion(group, "list", "--json")
    assert nimburion("queues", "lst").code == 2


def test_running_jobs_are_listed_with_duration_usual_time_host_and_progress(
    nimburion: CommandLine,
) -> None:
    nimburion.enqueue("a", "b", "c", queue="mail")
    assert nimburion("jobs", "running").out == "no job is running\n"

    async def run(backend: Backend) -> None:
        first, _ = await reserve(backend, 2)
        await backend.consuming.exchange(
            WORKER, 2, [Progressed(first, 0.4, "page 4")], ReserveRequest(0)
        )
        await add_usual_time(backend)

    nimburion.call_backend(run)
    nimburion("jobs", "cancel", "b")
    first, second = sorted(
        nimburion("jobs", "running", "--json").data, key=lambda one: str(one["id"])
    )
    assert (first["id"], first["host"], first["pid"]) == ("a", "web-1", 77)
    assert first["seconds"] >= 0
    assert 0.19 < first["usual"] < 0.23
    assert second["cancel_requested"]
    lines = {line.split()[0]: line for line in nimburion("jobs", "running").out.splitlines()}
    assert lines["ID"].split() == [
        *("ID", "NAME", "FOR", "USUALLY", "PROGRESS", "HOST", "PROCESS", "WORKER", "NOTE")
    ]
    assert "40% page 4" in lines["a"]
    assert lines["b"].split()[-5:-2] == ["web-1", "77", WORKER[:8]]
    assert lines["b"].endswith("cancel requested")
    assert nimburion("jobs", "running", "--queue", "other").out == "no job is running\n"


def test_a_list_of_running_jobs_that_is_cut_has_the_longest_and_says_so(
    nimburion: CommandLine,
) -> None:
    nimburion.enqueue("a", "b", "c", queue="mail")

    async def run(backend: Backend) -> None:
        await reserve(backend, 1)
        await backend.consuming.exchange(WORKER, 2, [], ReserveRequest(2, (Lane("mail", "send"),)))

    nimburion.call_backend(run)
    (longest,) = nimburion("jobs", "running", "--limit", "1", "--json").data
    assert longest["id"] == "a"
    more = "more jobs run: add --queue or --name, or raise --limit"
    assert nimburion("jobs", "running", "--limit", "2").out.splitlines()[-1] == more
    assert more not in nimburion("jobs", "running", "--limit", "3").out


def test_why_of_a_running_job_says_what_is_usual_and_who_can_be_stopped(
    nimburion: CommandLine,
) -> None:
    nimburion.enqueue("job-a", queue="mail")

    async def run(backend: Backend) -> None:
        await reserve(backend, 1)
        await add_usual_time(backend)

    nimburion.call_backend(run)
    before = nimburion("why", "job-a").out.splitlines()[-1]
    assert before.startswith("why    A worker has held it for ")
    assert "(usually at most 2" in before
    assert "cancel" not in before
    nimburion("jobs", "cancel", "job-a")
    after = nimburion("why", "job-a").out.splitlines()[-1]
    assert " A cancel was requested " in after
    assert after.endswith(
        " ago. If its handler runs in a thread, it cannot be interrupted: "
        f"`nimburion workers stop {WORKER}` ends its process."
    )
    data = nimburion("why", "job-a", "--json").data
    assert 0 <= data["now"] - data["cancel_requested_at"] < 60


def test_groups_of_dead_letters_are_those_that_failed_lately(nimburion: CommandLine) -> None:
    nimburion.fail("a", "b")
    (group,) = nimburion("dead", "groups", "--since", "1h", "--json").data["groups"]
    assert group["count"] == 2
    later = nimburion("dead", "groups", "--since", "2100-01-01T00:00Z")
    assert later.out == "no such dead letters\n"
    assert nimburion("dead", "groups", "--since", "yesterday").code == 2


def test_a_rate_or_a_search_starts_a_bulk_operation(nimburion: CommandLine) -> None:
    nimburion.fail("a", "b")
    nimburion.enqueue("c", "d", after=600)
    preview = nimburion("dead", "replay", "--all", "--rate", "10/s")
    assert preview.code == 2
    assert "2 jobs would be replayed; nothing was started. Add --yes" in preview.err
    started = nimburion("dead", "replay", "--all", "--rate", "10/s", "--yes", "--json").data
    assert (started["action"], started["rate"]) == ("replay", 10.0)
    assert nimburion("dead", "replay", "a", "--rate", "10/s").code == 0
    assert nimburion("jobs", "cancel", "--since", "1h", "--yes").code == 0
    assert nimburion("jobs", "run-now", "c", "d", "--rate", "1/s").code == 0
    assert len(nimburion("operations", "--json").data["operations"]) == 4


def test_a_paused_queue_is_shown_with_its_end(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", queue="mail")
    nimburion("queues", "pause", "mail", "--for", "30m", "--reason", "disk full")
    (line,) = nimburion("queues").out.splitlines()[1:2]
    assert " until 2" in line
    assert line.endswith(": disk full")


def test_a_pause_waits_until_no_job_runs(
    nimburion: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    nimburion.enqueue("a", queue="mail")
    paused = nimburion("queues", "pause", "mail", "--wait")
    assert paused.out == "mail is paused; none of its jobs runs\n"

    async def drain() -> int:
        backend, pauses = MemoryBackend(), 0
        await backend.open()
        await backend.producing.enqueue([NewJob(one, "send", "mail", b"{}") for one in "ab"])
        leases = await reserve(backend, 2)

        async def complete_one(_: float) -> None:
            nonlocal pauses
            pauses += 1
            done = [Completed(leases.pop())] if pauses > 1 else []
            await backend.consuming.exchange(WORKER, 1 + pauses, done, ReserveRequest(0))

        await wait_until_idle(backend, "mail", sleep=complete_one)
        return pauses

    assert asyncio.run(drain()) == 3
    assert capsys.readouterr().err == "waiting for 2 jobs to end\nwaiting for 1 job to end\n"


def test_a_message_is_printed_once(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", queue="mail")
    assert nimburion("jobs", "cancel", "a").out == "a  cancelled\n"
    nimburion.call_backend(lambda backend: reserve(backend, 1))
    assert nimburion("workers", "stop", "feed").out == (
        f"{WORKER}: stop is sent; the worker gets it with its next heartbeat\n"
    )
    assert " stop was sent before; " in nimburion("workers", "stop", "feed").out


def test_enqueue_checks_the_job_against_the_application(application: CommandLine) -> None:
    app = ("--app", "ops_shop:processor")
    unknown = application("enqueue", "welcom", *app)
    assert (unknown.code, unknown.out) == (2, "")
    assert unknown.err == "nimburion: there is no job 'welcom'; did you mean 'welcome'?\n"
    wrong = application("enqueue", "welcome", "--args", '{"address": 5}', *app)
    assert (wrong.code, wrong.out) == (2, "")
    assert "address" in wrong.err
    assert not Path("nimburion.db").exists()
    ended = application("enqueue", "welcome", "--args", '{"address": "a"}', *app)
    assert ended.code == 0, ended.err
    assert ended.err == "1 job 'welcome' waits in queue 'mail': no worker is live\n"
    stored = application("jobs", "show", ended.out.strip(), "--json").data
    assert (stored["queue"], stored["priority"]) == ("mail", 7)
    assert stored["options"]["unique_key"]
    again = application("enqueue", "welcome", "--args", '{"address": "a"}', *app)
    assert (again.code, again.out) == (1, "")
    assert application("enqueue", "raw", "--args", '{"x":1}', *app).code == 0
    assert application("enqueue", "raw", "--app", "ops_shop:in_memory").code == 2
    assert application("enqueue", "raw", "--app", "ops_shop").code == 2


def test_enqueue_says_who_serves_the_job(application: CommandLine) -> None:
    async def serve(backend: Backend) -> None:
        await backend.consuming.open_session(
            Session(id=WORKER, queues=("mail", "default"), names=("welcome",))
        )

    application.enqueue("a")
    application.call_backend(serve)
    app = ("--args", '{"address": "a"}', "--app", "ops_shop:processor")
    served = application("enqueue", "welcome", "--id", "b", *app)
    assert (served.out, served.err) == ("b\n", "queue 'mail': 1 worker can run it\n")
    assert application("enqueue", "raw", "--id", "c", *app).err == (
        "1 job 'raw' waits in queue 'default': no live worker has a handler of this name\n"
    )
    other = application("enqueue", "raw", "--queue", "x", "--json", *app).data
    assert other["workers"].startswith("1 job 'raw' waits in queue 'x': no live worker ")
    assert application("enqueue", "anything", "--id", "d").err == ""


def test_a_burst_says_what_nobody_takes(
    application: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    application.enqueue("a", "b", name="welcom", queue="mail")
    application.enqueue("c", name="welcome", queue="other")
    ended = application("worker", "ops_shop:processor", "--burst")
    assert ended.code == 0, ended.err
    assert [line for line in caplog.messages if "no live worker" in line] == [
        "2 jobs 'welcom' wait in queue 'mail': no live worker has a handler of this name",
        "1 job 'welcome' waits in queue 'other': no live worker serves this queue",
    ]
