"""Commands that look: for people as tables, for machines as JSON."""

from __future__ import annotations

import pytest

from nimburion.config import Config
from tests.cli.conftest import CommandLine


def test_enqueue_prints_the_id_and_status_shows_the_job(nimburion: CommandLine) -> None:
    stored = nimburion("enqueue", "send", "--args", '{"to": "a"}', "--queue", "mail")
    assert (stored.code, stored.err) == (0, "")
    job_id = stored.out.strip()
    status = nimburion("status", job_id)
    assert status.code == 0
    printed = dict(line.split(maxsplit=1) for line in status.out.splitlines())
    assert (printed["id"], printed["name"], printed["queue"]) == (job_id, "send", "mail")
    assert (printed["state"], printed["attempt"], printed["priority"]) == ("pending", "1", "5")


def test_enqueue_applies_the_options(nimburion: CommandLine) -> None:
    call = nimburion(
        "enqueue", "send", "--args", "-", "--priority", "high", "--in", "1h30m", "--id", "a1",
        "--json", stdin='{"to": "ü"}',
    )  # fmt: skip
    assert call.data == {"id": "a1", "name": "send", "outcome": "created"}
    job = nimburion("jobs", "show", "a1", "--json").data
    assert (job["state"], job["priority"], job["queue"]) == ("scheduled", 7, "default")
    assert job["payload"] == {"to": "ü"}
    assert 5399 < job["due"] - job["created_at"] < 5401


def test_enqueue_debounces_by_a_unique_key(nimburion: CommandLine) -> None:
    call = ("enqueue", "send", "--unique-key", "k", "--debounce", "5m", "--json")
    first = nimburion(*call, "--args", '{"to": 1}').data
    again = nimburion(*call, "--args", '{"to": 2}', "--max-wait", "1h").data
    assert (first["outcome"], again) == ("created", {**first, "outcome": "replaced"})
    assert nimburion("jobs", "show", first["id"], "--json").data["payload"] == {"to": 2}
    shown = "k (replace, while pending or scheduled or retrying, due at most 3600 s after the first"
    assert shown in nimburion("jobs", "show", first["id"]).out
    assert shown in nimburion("why", first["id"]).out


def test_enqueue_keeps_the_bytes_of_the_arguments(nimburion: CommandLine) -> None:
    nimburion("enqueue", "send", "--args", '{ "to" :  1.0 }', "--id", "a1")
    record = nimburion.call_backend(lambda backend: backend.reads.get_job("a1"))
    assert record.payload == b'{ "to" :  1.0 }'


def test_enqueue_at_a_time(nimburion: CommandLine) -> None:
    nimburion("enqueue", "send", "--id", "a1", "--at", "2100-01-31T09:00+01:00")
    assert nimburion("status", "a1", "--json").data["due"] == 4_105_065_600


def test_the_same_id_twice_is_the_same_job_and_another_body_is_refused(
    nimburion: CommandLine,
) -> None:
    first = nimburion("enqueue", "send", "--id", "a1", "--args", '{"to": 1}')
    again = nimburion("enqueue", "send", "--id", "a1", "--args", '{"to": 1}')
    other = nimburion("enqueue", "send", "--id", "a1", "--args", '{"to": 2}')
    assert (first, again) == ((0, "a1\n", ""), (0, "a1\n", ""))
    assert other.code == 1
    assert other.err.startswith("nimburion: job id 'a1' already belongs to a job")
    assert len(nimburion("jobs", "list", "--json").data["jobs"]) == 1


def test_jobs_are_listed_newest_first_page_by_page(nimburion: CommandLine) -> None:
    for number in range(5):
        nimburion.enqueue(f"job-{number}")
    first = nimburion("jobs", "list", "--limit", "3", "--json").data
    assert [job["id"] for job in first["jobs"]] == ["job-4", "job-3", "job-2"]
    rest = nimburion("jobs", "list", "--after", first["next"], "--json").data
    assert [job["id"] for job in rest["jobs"]] == ["job-1", "job-0"]
    assert rest["next"] is None
    assert "more: add --after" in nimburion("jobs", "list", "--limit", "3").out


def test_jobs_are_filtered(nimburion: CommandLine) -> None:
    nimburion.fail("f1")
    nimburion.enqueue("p1")
    nimburion.enqueue("p2", name="other", queue="slow")

    def ids(*arguments: str) -> set[str]:
        return {job["id"] for job in nimburion("jobs", "list", *arguments, "--json").data["jobs"]}

    assert ids() == {"f1", "p1", "p2"}
    assert ids("--state", "pending") == {"p1", "p2"}
    assert ids("--state", "pending", "--state", "failed") == {"f1", "p1", "p2"}
    assert ids("--queue", "slow") == ids("--name", "other") == {"p2"}
    assert ids("--queue", "slow", "--name", "send") == set()


def test_an_empty_list_says_so(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    assert nimburion("dead", "list").out == "no such jobs\n"


def test_show_writes_payload_and_history(nimburion: CommandLine) -> None:
    nimburion.fail("f1")
    shown = nimburion("dead", "show", "f1").out
    assert "payload, 10 bytes:\n" + '{"to":"a"}\n' in shown
    assert "\nTraceback\n  line 1\n" in shown
    data = nimburion("dead", "show", "f1", "--json").data
    assert (data["reason"], data["attempt"]) == ("permanent", 1)
    assert data["history"][0]["traceback"] == "Traceback\n  line 1"


def test_a_payload_that_is_no_json_is_shown_as_base64(nimburion: CommandLine) -> None:
    from nimburion.core.job import NewJob

    jobs = [NewJob("raw", "send", "default", b"\xff\x00")]
    nimburion.call_backend(lambda backend: backend.producing.enqueue(jobs))
    assert nimburion("jobs", "show", "raw", "--json").data["payload"] == {"base64": "/wA="}
    assert "\\xff\\x00" in nimburion("jobs", "show", "raw").out


@pytest.mark.parametrize("command", [("jobs", "list"), ("jobs", "show", "f1"), ("status", "f1")])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_nothing_stored_can_steer_the_terminal(
    command: tuple[str, ...], form: tuple[str, ...], nimburion: CommandLine
) -> None:
    nimburion.fail("f1")
    shown = nimburion(*command, *form)
    assert shown.code == 0
    assert not [one for one in shown.out if one != "\n" and not one.isprintable()]
    assert "Broken" in shown.out


def test_queues_are_listed_paused_and_resumed(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", queue="mail")
    assert nimburion("queues", "pause", "mail").out == "mail is paused\n"
    (queue,) = nimburion("queues", "list", "--json").data
    assert (queue["name"], queue["size"], queue["paused"]) == ("mail", 2, True)
    assert queue["names"] == {"send": 2}
    assert queue["unserved"] == {"send": "no worker is live"}
    header, line, unserved = nimburion("queues", "list").out.splitlines()
    assert unserved == "2 jobs 'send' wait in queue 'mail': no worker is live"
    assert header.split() == ["QUEUE", "DUE", "SCHEDULED", "PROCESSING", "OLDEST", "PAUSED"]
    assert line.split()[:2] == ["mail", "2"]
    assert nimburion("queues", "resume", "mail", "--json").data["paused"] is False
    assert nimburion("queues", "list", "--json").data[0]["paused"] is False


def test_config_shows_everything_but_passwords(nimburion: CommandLine) -> None:
    (nimburion.folder / "config.yaml").write_text(
        "jobs: {redis: {addr: h, username: u, password: hunter2}, grace: 1m}"
    )
    for form in (), ("--json",):
        shown = nimburion("config", "show", *form)
        assert shown.code == 0
        assert "hunter2" not in shown.out
        assert "redis://u:***@h:6379/0" in shown.out
    url = "redis+sentinel://u:hunter2@h/s?sentinel_password=hunter2&db=1"
    shown = nimburion("--backend", url, "config", "show")
    assert "redis+sentinel://u:***@h/s?sentinel_password=***&db=1" in shown.out
    assert "hunter2" not in shown.out
    shown = nimburion("--backend", "redis://h?pasword=hunter2&db=1", "config", "show")
    assert "redis://h?pasword=***&db=1" in shown.out
    data = nimburion("config", "show", "--json").data
    assert (data["source"], data["jobs"]["grace"]) == (f"{nimburion.folder}/config.yaml", 60.0)
    assert set(data) == set(Config.__struct_fields__)


def test_config_check_names_file_and_backend(nimburion: CommandLine) -> None:
    (nimburion.folder / "c.yaml").write_text("jobs: {sqlite: {path: x.db}}")
    printed = nimburion("config", "check", "--config", "c.yaml", "--json").data
    assert printed == {
        "ok": True,
        "source": f"{nimburion.folder}/c.yaml",
        "backend": f"SQLite {nimburion.folder}/x.db",
    }
    assert "the configuration is valid" in nimburion("--config", "c.yaml", "config", "check").out
    assert not (nimburion.folder / "x.db").exists()
