"""Commands that show what happens: why, workers, top, stats, limits, audit, groups, searches."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.cli.output import format_table
from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import AttemptError, JobOptions, NewJob
from nimburion.core.limits import LimitRule
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import Session, Vitals, WorkerCommand
from nimburion.core.settlement import Failed
from nimburion.testing.contract.harness import make_limits
from tests.cli.conftest import CommandLine

WORKER = "feed" * 8
"""The id of a session."""
FAILURE = AttemptError(1, "failure", "ValueError", "no route", fingerprint="00000000000000aa")


async def open_worker(backend: Backend, **fields: object) -> None:
    """Open a session that serves `mail` and knows `send`."""
    await backend.consuming.open_session(
        Session(id=WORKER, host="web-1", pid=77, queues=("mail",), names=("send",), **fields)  # type: ignore[arg-type]
    )
    await backend.consuming.heartbeat(
        WORKER, Vitals(slots=10, busy=3, loop_lag=0.002, rss=50 * 2**20)
    )


async def reserve(backend: Backend, count: int) -> list[object]:
    request = ReserveRequest(count, (Lane("mail", "send"),), nonce=bytes(range(16)))
    return list((await backend.consuming.exchange(WORKER, 1, [], request)).deliveries)


def test_why_names_the_cause(nimburion: CommandLine) -> None:
    nimburion.enqueue("job-0001", queue="mail")
    call = nimburion("why", "job-0001")
    assert call.code == 0
    assert call.out.splitlines()[-1] == "why    No worker is live."
    data = nimburion("why", "0001", "--json").data
    assert (data["id"], data["state"]) == ("job-0001", "pending")
    assert [cause["kind"] for cause in data["causes"]] == ["no_worker"]


def test_why_of_no_job(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    assert nimburion("why", "nothing").code == 4


def test_an_id_may_be_shortened_where_it_is_unique(nimburion: CommandLine) -> None:
    nimburion.enqueue("first-aaaa", "first-bbbb")
    assert nimburion("status", "aaaa", "--json").data["id"] == "first-aaaa"
    assert nimburion("jobs", "show", "first-b", "--json").data["id"] == "first-bbbb"
    several = nimburion("status", "first")
    assert several.code == 2
    assert "matches 2 jobs: first-bbbb, first-aaaa" in several.err
    assert nimburion("status", "fir").code == 4


def test_a_pause_is_shown_with_its_reason_and_recorded(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", queue="mail")
    paused = nimburion("queues", "pause", "mail", "--reason", "disk full", "--for", "30m")
    assert paused.code == 0
    assert paused.out.startswith("mail is paused until 2")
    (queue,) = nimburion("queues", "list", "--json").data
    assert queue["pause"]["reason"] == "disk full"
    assert "@" in queue["pause"]["by"]
    assert 1799 < queue["pause"]["until"] - queue["pause"]["since"] <= 1800
    assert "disk full" in nimburion("queues", "list").out
    assert "paused by" in nimburion("why", "a").out
    nimburion("queues", "resume", "mail")
    resume, pause = nimburion("audit", "--json").data["records"]
    assert (resume["action"], resume["target"], resume["outcome"]) == (
        *("queue.resume", "mail"),
        "done",
    )
    assert (pause["action"], pause["origin"]) == ("queue.pause", "cli")
    assert pause["details"]["reason"] == "disk full"
    table = nimburion("audit", "--limit", "1").out
    assert "queue.resume" in table
    assert "more: add --after " in table


@pytest.mark.parametrize("wrong", ["soon", "-5", ""])
def test_a_pause_for_no_duration_is_refused(nimburion: CommandLine, wrong: str) -> None:
    nimburion.enqueue("a")
    call = nimburion("queues", "pause", "default", "--for", wrong)
    assert (call.code, call.out) == (2, "")


def test_changes_of_jobs_are_recorded_with_their_number(nimburion: CommandLine) -> None:
    nimburion.fail("f1", "f2")
    nimburion.enqueue("a", "b")
    nimburion("dead", "replay", "--all", "--yes")
    nimburion("jobs", "cancel", "--all", "--yes")
    nimburion("jobs", "cancel", "x")
    records = nimburion("audit", "--json").data["records"]
    assert [(r["action"], r["changed"]) for r in records] == [
        ("jobs.cancel", 0),
        ("jobs.cancel", 4),
        ("dead.replay", 2),
    ]


def test_an_enqueued_job_is_recorded_without_its_arguments(nimburion: CommandLine) -> None:
    nimburion("enqueue", "send", "--queue", "mail", "--args", '{"secret": "hush"}', "--id", "a")
    (record,) = nimburion("audit", "--json").data["records"]
    assert (record["action"], record["target"], record["changed"]) == ("jobs.enqueue", "a", 1)
    assert record["details"] == {"name": "send", "queue": "mail"}


def test_workers_are_listed_and_get_commands(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    nimburion.call_backend(open_worker)
    (worker,) = nimburion("workers", "list", "--json").data
    assert (worker["id"], worker["vitals"]["busy"]) == (WORKER, 3)
    line = nimburion("workers", "list").out.splitlines()[1]
    assert line.split()[:5] == [WORKER, "web-1", "77", "live", "3/10"]
    assert "50 MiB" in line
    assert nimburion("workers", "quiet", "feedfeed").code == 0
    reply = nimburion.call_backend(lambda backend: backend.consuming.heartbeat(WORKER))
    assert reply.command is WorkerCommand.QUIET
    assert " quiet " in nimburion("workers", "list").out
    assert nimburion("workers", "resume", WORKER).code == 0
    assert nimburion("workers", "stop", WORKER, "--json").data == {
        "session": WORKER,
        "command": "stop",
    }
    actions = [record["action"] for record in nimburion("audit", "--json").data["records"]]
    assert actions == ["worker.stop", "worker.resume", "worker.quiet"]
    missing = nimburion("workers", "stop", "beef")
    assert missing.code == 4
    assert "nimburion workers list" in missing.err


def test_limits_show_who_holds_them(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", queue="mail")

    async def run(backend: Backend) -> None:
        await open_worker(backend, limits=make_limits({"send": 1}))
        await reserve(backend, 2)

    nimburion.call_backend(run)
    assert nimburion("limits").out.splitlines()[1].split() == [
        *("job:send", "1", "-", "send", "-", "1", "-", "-", "a")
    ]
    assert "limit of 'send' is reached: 1 of 1 in use, by a" in nimburion("why", "b").out


def test_limits_by_key_show_their_fullest_keys(nimburion: CommandLine) -> None:
    limits = {"send": {"send:customer": LimitRule(1, RateLimit("5/s", 200_000, burst=1))}}

    async def run(backend: Backend) -> None:
        await open_worker(backend, limits=limits)
        for number, customer in enumerate("aab"):
            options = JobOptions(limit_keys={"send:customer": customer})
            await backend.producing.enqueue(
                [NewJob(f"{number}", "send", "mail", b"{}", options=options)]
            )
        await reserve(backend, 3)

    nimburion.call_backend(run)
    shown = nimburion("limits", "list").out.splitlines()[1].split("  ")
    assert [part.strip() for part in shown if part] == [
        *("send:customer", "1", "5/s burst 1", "send", "2", "2", "1", "-", "a 1+1, b 1+0")
    ]
    keys = nimburion("limits", "show", "send:customer").out.splitlines()[3:]
    assert [line.split()[:3] for line in keys] == [["a", "1", "1"], ["b", "1", "0"]]
    assert nimburion("limits", "show", "other").code == 4


def test_limits_are_changed_and_reset(nimburion: CommandLine) -> None:
    nimburion.call_backend(lambda backend: open_worker(backend, limits=make_limits({"send": 1})))
    changed = nimburion("limits", "set", "job:send", "3", "--rate", "5/s", "--reason", "sale")
    assert changed.out == (
        "job:send: at most 3 at once, 5/s with a burst of 1; "
        "`nimburion limits reset job:send` ends the change\n"
    )
    out = nimburion("limits").out
    assert out.splitlines()[-1].split()[:5] == ["job:send", "-", "3", "5/s", "1"]
    assert nimburion("limits", "--json").data[0]["rules"]["send"]["concurrency"] == 3
    assert nimburion("limits", "reset", "job:send").code == 0
    assert nimburion("limits", "--json").data[0]["rules"]["send"]["concurrency"] == 1
    again = nimburion("limits", "reset", "job:send")
    assert again.code == 4
    assert "the limit 'job:send' was not changed at run time; `nimburion limits` lists" in again.err
    records = nimburion("audit", "--json").data["records"]
    assert [record["action"] for record in records] == ["limit.reset"] * 2 + ["limit.change"]
    assert records[-1]["details"]["reason"] == "sale"


def test_one_key_of_a_limit_is_changed_and_reset(nimburion: CommandLine) -> None:
    limits = {"send": {"send:customer": LimitRule(1)}}
    nimburion.call_backend(lambda backend: open_worker(backend, limits=limits))
    five = ("5", "--key", "a b", "--reason", "sale")
    by_job = nimburion("limits", "set", "job:send", *five)
    assert (by_job.code, "name its limit: send:customer" in by_job.err) == (2, True)
    changed = nimburion("limits", "set", "send:customer", *five)
    assert "`nimburion limits reset send:customer --key 'a b'` ends the change" in changed.out
    whole = nimburion("limits", "reset", "send:customer")
    assert (whole.code, "reset with the key 'a b'" in whole.err) == (4, True), whole.err
    assert nimburion("limits", "reset", "send:customer", "--key", "a b").code == 0


def test_the_limit_of_a_queue_is_set_and_reset(nimburion: CommandLine) -> None:
    """No worker declares one. It applies to the names that a worker knows."""
    nimburion.call_backend(open_worker)
    changed = nimburion("limits", "set", "queue:mail", "1", "--reason", "sale")
    assert changed.out == (
        "queue:mail: at most 1 at once; `nimburion limits reset queue:mail` ends the change\n"
    )
    nimburion.enqueue("a", "b", queue="mail")
    assert len(nimburion.call_backend(lambda backend: reserve(backend, 2))) == 1
    shown = nimburion("limits", "show", "queue:mail", "--json").data
    assert (shown["in_use"], shown["parked"]) == (1, 0)
    reason = "The concurrency limit of queue 'mail' is reached: 1 of 1 in use."
    assert reason in nimburion("why", "b").out
    assert nimburion("limits", "reset", "queue:mail").code == 0
    assert nimburion("limits", "--json").data == []


def test_a_job_and_a_limit_may_have_one_name(nimburion: CommandLine) -> None:
    async def run(backend: Backend) -> None:
        await open_worker(backend, limits={"send": {"export": LimitRule(2)}})
        await backend.producing.enqueue([NewJob("1", "export", "mail", b"{}")])

    nimburion.call_backend(run)
    for name, most in (("export", "3"), ("job:export", "4")):
        assert nimburion("limits", "set", name, most, "--reason", "x").code == 0
    listed = nimburion("limits", "--json").data
    assert [(one["name"], one["rules"]) for one in listed] == [
        ("export", {"send": {"concurrency": 3, "rate": None}}),
        ("job:export", {"export": {"concurrency": 4, "rate": None}}),
    ]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (
            ["send", "3", "--reason", "x"],
            4,
            "'send' is a job, not a limit; did you mean 'job:send'?",
        ),
        (
            ["mail", "3", "--reason", "x"],
            4,
            "'mail' is a queue, not a limit; did you mean 'queue:mail'",
        ),
        (["job:sned", "3", "--reason", "x"], 4, "did you mean 'send'?"),
        (["job:sen:", "3", "--reason", "x"], 4, "did you mean 'send'?"),
        (["job:send", "--reason", "x"], 2, "give a MAXIMUM or --rate"),
        (["job:send", "3", "--key", "a", "--reason", "x"], 2, "have no keys"),
        (["job:send", "--rate", "fast", "--reason", "x"], 2, "like '100/min'"),
        (["job:send", "3", "--burst", "2", "--reason", "x"], 2, "--burst needs --rate"),
        (["queue:mial", "3", "--reason", "x"], 4, "no queue 'mial'; did you mean 'mail'?"),
        (["queue:mail", "3", "--key", "a", "--reason", "x"], 2, "has no keys"),
        (["job:send", "3"], 2, "--reason"),
    ],
)
def test_wrong_changes_of_limits_are_refused(
    nimburion: CommandLine, words: list[str], code: int, error: str
) -> None:
    nimburion.call_backend(lambda backend: open_worker(backend, limits=make_limits({"send": 1})))
    refused = nimburion("limits", "set", *words)
    assert (refused.code, error in refused.err) == (code, True), refused.err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("send", "did you mean 'job:send'?"),
        ("job:sned", "did you mean 'job:send'?"),
        ("zzzz", "`nimburion limits` lists all limits"),
    ],
)
def test_an_unknown_limit_is_shown_with_the_nearest(
    nimburion: CommandLine, name: str, hint: str
) -> None:
    nimburion.call_backend(lambda backend: open_worker(backend, limits=make_limits({"send": 1})))
    refused = nimburion("limits", "show", name)
    assert (refused.code, f"knows no limit {name!r}; {hint}" in refused.err) == (4, True)


def test_stats_add_up_counters(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")

    async def store(backend: Backend) -> None:
        now = int(await backend.now())
        counters = Counters(enqueued=4, started=3, completed=2, retried=1)
        for seconds in (0.02, 0.02, 0.02):
            counters.wait.observe(seconds)
            counters.run.observe(5.0)
        rows = [
            Statistics(
                step=60, start=start // 60 * 60, queue="mail", name="send", counters=counters
            )
            for start in (now - 120, now)
        ]
        await backend.consuming.put_statistics("test", rows)

    nimburion.call_backend(store)
    line = nimburion("stats").out.splitlines()[1].split()
    assert line[:6] == ["mail", "send", "8", "4", "2", "0"]
    assert nimburion("stats").out.endswith("\nCounts of the last 11 s may be missing.\n")
    data = nimburion("stats", "--last", "2h", "--queue", "mail", "--json").data
    assert data["missing_seconds"] == 11
    assert (data["step"], len(data["intervals"])) == (60, 2)
    assert nimburion("stats", "--last", "5d", "--json").data["step"] == 3600
    assert nimburion("stats", "--last", "60d").code == 2
    assert nimburion("stats", "--name", "other").out == (
        "no job was counted in the last 1h. Counts of the last 11 s may be missing: each process "
        "stores its own about every 10 s\n"
    )


def test_top_is_printed_once_without_a_terminal(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", queue="mail")
    nimburion.enqueue("c", name="unknown", queue="mail")
    nimburion.call_backend(open_worker)
    view = nimburion("top").out
    assert "1 worker, 3 due, 0 processing, 0.0 completed/s" in view
    assert "! 1 job 'unknown' waits in queue 'mail'" in view
    assert "web-1" in view
    data = nimburion("top", "--json").data
    assert [queue["size"] for queue in data["queues"]] == [3]


def test_dead_letters_are_grouped_by_error(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", "c", queue="mail")

    async def fail(backend: Backend) -> None:
        await open_worker(backend)
        request = ReserveRequest(3, (Lane("mail", "send"),), nonce=bytes(16))
        deliveries = (await backend.consuming.exchange(WORKER, 1, [], request)).deliveries
        errors = [
            FAILURE,
            replace(FAILURE, message="other", fingerprint="00000000000000bb"),
            FAILURE,
        ]
        failed = [Failed(d.lease, "permanent", e) for d, e in zip(deliveries, errors, strict=True)]
        await backend.consuming.exchange(WORKER, 2, failed, ReserveRequest(0))

    nimburion.call_backend(fail)
    first, second = nimburion("dead", "groups", "--json").data["groups"]
    assert (first["fingerprint"], first["count"]) == ("00000000000000aa", 2)
    assert second["message"] == "other"
    assert "ValueError: no route" in nimburion("dead", "groups").out.splitlines()[1]
    found = nimburion("jobs", "list", "--fingerprint", "00000000000000aa", "--json").data
    assert [job["id"] for job in found["jobs"]] == ["c", "a"]
    shown = nimburion("jobs", "show", "a").out
    assert "attempts:" in shown


def test_jobs_are_searched_by_tenant_time_and_failures(nimburion: CommandLine) -> None:
    async def store(backend: Backend) -> None:
        jobs = [
            NewJob("a", "send", "mail", b"{}", options=JobOptions(tenant="x", correlation_id="1")),
            NewJob("b", "send", "mail", b"{}", options=JobOptions(tenant="y", tags=("eu", "web"))),
        ]
        await backend.producing.enqueue(jobs)

    nimburion.enqueue("other")
    nimburion.call_backend(store)

    def ids(*options: str) -> list[str]:
        found = nimburion("jobs", "list", "--json", *options).data
        return [job["id"] for job in found["jobs"]]

    assert ids("--tenant", "x") == ["a"]
    assert ids("--correlation-id", "1") == ["a"]
    assert ids("--tag", "web") == ["b"]
    assert ids("--since", "1h") == ["b", "a", "other"]
    assert ids("--until", "1h") == []
    assert ids("--since", "2020-01-01T00:00Z", "--min-failures", "1") == []
    assert ids("--finished-since", "1h") == []
    assert nimburion("jobs", "list", "--since", "yesterday").code == 2


@pytest.mark.parametrize("option", ["--tenant", "--correlation-id"])
def test_jobs_are_searched_by_any_text(nimburion: CommandLine, option: str) -> None:
    text = 'Müller & Söhne: "x", *? 🚂'

    async def store(backend: Backend) -> None:
        options = JobOptions(tenant=text, correlation_id=text)
        await backend.producing.enqueue([NewJob("a", "send", "mail", b"{}", options=options)])

    nimburion.enqueue("other")
    nimburion.call_backend(store)
    found = nimburion("jobs", "list", "--json", option, text).data
    assert [job["id"] for job in found["jobs"]] == ["a"]
    assert text in nimburion("jobs", "show", "a").out


@pytest.mark.parametrize("option", ["--tenant", "--correlation-id"])
@pytest.mark.parametrize("text", ["", "a\nb", "\udcff", "x" * 513], ids=ascii)
def test_a_search_for_a_text_that_no_job_can_have_is_bad_input(
    nimburion: CommandLine, option: str, text: str
) -> None:
    ended = nimburion("jobs", "list", option, text)
    assert (ended.code, ended.out) == (2, "")
    assert f"{option} must " in ended.err


def test_tags_of_the_command_line_are_stored_and_shown(nimburion: CommandLine) -> None:
    nimburion("enqueue", "send", "--id", "a", "--tag", "web", "--tag", "eu")
    shown = nimburion("jobs", "show", "a").out.splitlines()
    assert [line.split() for line in shown if line.startswith("tags")] == [["tags", "web,", "eu"]]
    assert nimburion("jobs", "show", "a", "--json").data["options"]["tags"] == ["web", "eu"]
    assert nimburion("jobs", "list", "--tag", "two words").code == 2
    assert nimburion("enqueue", "send", "--tag", "two words").code == 2


def test_a_table_fits_the_terminal() -> None:
    rows = [("0192f0c1-1111-7abc-8def-001122334455", "send_email", 12, "x" * 50)]
    headers = ("id", "name", "due", "error")
    table = format_table(headers, rows, "none", width=60)
    assert all(len(line) <= 60 for line in table.splitlines())
    line = table.splitlines()[1]
    assert line.split()[0].endswith("4455")
    assert "…" in line
    assert format_table(headers, rows, "none", width=200).splitlines()[1].endswith("x" * 50)
