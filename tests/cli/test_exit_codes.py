"""Exit codes: 0 done, 1 failed, 2 bad input, 3 no backend, 4 no such job; one line says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.cli.exit_codes import report_error
from tests.cli.conftest import CommandLine

BAD_INPUT = [
    (("xyz",), "there is no command 'xyz'; known: audit, config, "),
    (("wroker",), "there is no command 'wroker'; did you mean 'worker'?"),
    (("--backend", "app:jobs", "status", "x"), "--backend takes the URL of a backend, like "),
    (("status",), "Missing argument 'ID'."),
    (("jobs", "list", "--limit", "0"), "Invalid value for '--limit'"),
    (("jobs", "list", "--state", "done"), "Invalid value for '--state': 'done' is not one of"),
    (("enqueue", "a b"), "job name must be 1-128 characters of A-Z a-z 0-9 _ . : -, not 'a b'"),
    (("enqueue", "x", "--queue", "a b"), "queue must be 1-128 characters"),
    (("enqueue", "x", "--args", "{"), "--args is not JSON: "),
    (("enqueue", "x", "--args", "[1]"), "--args must be a JSON object, like "),
    (("enqueue", "x", "--args", "\udcff"), "--args is not JSON: "),
    (("enqueue", "x", "--priority", "10"), "Invalid value for '--priority': '10' is neither"),
    (("enqueue", "x", "--at", "2030-01-01"), "Invalid value for '--at': '2030-01-01' has no time"),
    (("enqueue", "x", "--at", "soon"), "Invalid value for '--at': 'soon' is not a time; write it"),
    (("enqueue", "x", "--in", "-1"), "Invalid value for '--in': '-1' is not a duration; write 30s"),
    (("enqueue", "x", "--in", "1y"), "Invalid value for '--in': '1y' is not a duration; write 30s"),
    (("enqueue", "x", "--in", "1", "--at", "2030-01-01T00Z"), "give --at or --in, not both"),
    (("enqueue", "x", "--args", '{"a":"' + "x" * 2**20 + '"}'), "job 'x': "),
    (("dead", "purge"), "give ids, a filter, or --all"),
    (("dead", "replay", "a", "--queue", "b"), "give either ids or filters, not both"),
    (("dead", "replay", "a", "--all"), "give either ids or --all, not both"),
    (("jobs", "cancel", "a", "--queue", "b"), "give either ids or filters, not both"),
    (("jobs", "cancel", "a", "--state", "pending"), "give either ids or --state, not both"),
    (("dead", "list", "--reason", "bad"), "Invalid value for '--reason'"),
    (("jobs", "cancel"), "give ids, a filter, or --all"),
    (("queues", "pause", "a b"), "queue must be 1-128 characters"),
    (("queues", "pause", "a", "--for", "0"), "--for 0 pauses nothing; give a longer time"),
    (("--backend", "postgres://h:x", "status", "x"), "postgres://…: a port must be a whole number"),
    (("--backend", "redis://", "status", "x"), "redis://…: a host is missing"),
    (("--backend", "sqllite:///x", "status", "x"), "no backend 'sqllite'; did you mean sqlite?"),
    (("--backend", "x.db", "status", "x"), "--backend: expected the URL of a backend, like "),
    (("server", "--host", "0.0.0.0"), "--host: 0.0.0.0 can be reached from other hosts"),
    (("--backend", "memory://", "status", "x"), "memory:// exists only inside one process"),
    (("--config", "no.yaml", "status", "x"), "no.yaml: cannot be read: No such file"),
    (("config", "check", "--config", "no.yaml"), "no.yaml: cannot be read: No such file"),
    (("worker", "app"), "'app' is not of the form MODULE:NAME, like myapp.jobs:processor"),
    (("worker", "-A", "shop"), "there is no option -A; write MODULE:NAME, like `nimburion worker"),
    (("worker", "no_such_app:x"), "there is no module 'no_such_app' here or on the path"),
    (("worker", "app.py:processor"), "there is no module 'app.py' here or on the path; write app"),
    (("worker", "json:decodr"), "json has no 'decodr'; did you mean decoder?"),
    (("worker", "json:decoder"), "json:decoder is a module; a Processor is needed"),
    (("worker", "json:dumps", "--concurrency", "0"), "Invalid value for '--concurrency'"),
    (("demo", "--backend", "memory://"), "the demo has its own configuration and backend"),
    (("demo", "--keep", "full"), "full is not an empty folder"),
]  # fmt: skip


def test_standard_input_that_is_not_utf_8_is_bad_input(nimburion: CommandLine) -> None:
    call = nimburion("enqueue", "x", "--args", "-", stdin=b'{"to": "\xff"}')
    assert (call.code, call.err.partition(": ")[2][:21]) == (2, "--args is not JSON: '")


@pytest.mark.parametrize(("arguments", "line"), BAD_INPUT, ids=lambda value: str(value)[:60])
def test_bad_input_is_code_2_and_one_line(
    arguments: tuple[str, ...], line: str, nimburion: CommandLine
) -> None:
    (nimburion.folder / "full").mkdir()
    (nimburion.folder / "full" / "file").touch()
    before = set(nimburion.folder.rglob("*"))
    ended = nimburion(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"nimburion: {line}")
    assert ended.err.count("\n") == 1
    assert {path for path in nimburion.folder.rglob("*") if path.name[:9] != "nimburion"} == before


def test_a_wrong_setting_is_reported_with_its_line(nimburion: CommandLine) -> None:
    (nimburion.folder / "config.yaml").write_text("jobs:\n  concurency: 3\n")
    for command in (["config", "check"], ["status", "x"], ["enqueue", "x"]):
        ended = nimburion(*command)
        assert ended.code == 2
        assert ended.err == (
            "nimburion: config.yaml:2: jobs.concurency: no such setting; "
            "did you mean concurrency?\n"
        )


@pytest.mark.parametrize("command", [("status",), ("jobs", "show"), ("dead", "show")])
def test_no_such_job_is_code_4(command: tuple[str, ...], nimburion: CommandLine) -> None:
    nimburion.enqueue("pending")
    ended = nimburion(*command, "nowhere")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == (
        "nimburion: no job 'nowhere' in this backend: never enqueued here, pruned since, or "
        "enqueued in a transaction that is not committed\n"
    )


def test_a_job_that_is_not_dead_is_no_dead_letter(nimburion: CommandLine) -> None:
    nimburion.enqueue("pending")
    ended = nimburion("dead", "show", "pending")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == (
        "nimburion: job 'pending' is pending, not failed, so it is no dead letter; "
        "`nimburion jobs show` shows it\n"
    )


@pytest.mark.parametrize(
    "command", [("status", "x"), ("jobs", "list"), ("queues", "list"), ("dead", "list")]
)
def test_reading_a_missing_database_makes_none(
    command: tuple[str, ...], nimburion: CommandLine
) -> None:
    ended = nimburion(*command)
    assert ended.code == 3
    assert ended.err == (
        f"nimburion: SQLite {nimburion.folder}/nimburion.db does not exist; "
        "enqueue a job first, or pass the URL that your code uses, with --backend or as "
        "NIMBURION_JOBS__URL\n"
    )
    assert list(nimburion.folder.iterdir()) == []


def test_a_backend_that_cannot_be_used_is_code_3(nimburion: CommandLine) -> None:
    Path("nimburion.db").write_bytes(b"this is no database at all, only a long enough text" * 99)
    ended = nimburion("jobs", "list")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("nimburion: ")
    assert ended.err.count("\n") == 1


def test_an_interrupt_is_code_130() -> None:
    assert report_error(KeyboardInterrupt()) == 130


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        report_error(ZeroDivisionError())


def test_control_characters_in_a_message_are_written_out(nimburion: CommandLine) -> None:
    ended = nimburion("\x1b[31mred")
    assert ended.code == 2
    assert "\x1b" not in ended.err
