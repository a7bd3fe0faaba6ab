"""`nimburion doctor`: results as text, and an exit code for scripts."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from nimburion.backends.memory import MemoryBackend
from nimburion.cli.commands import doctor
from nimburion.cli.root import root
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.errors import BackendFull
from nimburion.core.session import Session
from tests.cli.conftest import CommandLine
from tests.cli.test_processes import imported_by


def read_checks(nimburion: CommandLine, *arguments: str) -> dict[str, tuple[str, str]]:
    """Verdict and text, by subject."""
    found = nimburion("doctor", "--json", *arguments).data["checks"]
    return {one["subject"]: (one["verdict"], one["text"]) for one in found}


def test_it_shows_versions_and_the_backend(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    (nimburion.folder / "config.yaml").write_text("jobs: {concurrency: 3}")
    found = read_checks(nimburion)
    assert found["configuration"] == ("good", f"{nimburion.folder}/config.yaml")
    assert found["backend"] == ("good", f"SQLite {nimburion.folder}/nimburion.db")
    assert found["nimburion"][1].startswith("0.")
    assert found["durability"][0] == found["write lock"][0] == found["local clock"][0] == "good"
    assert "answer" not in found


def test_waiting_jobs_that_no_worker_would_run_are_a_warning(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", name="send")
    nimburion.enqueue("b", "c", name="snd")
    warning = "1 job 'send' waits in queue 'default': no worker is live"
    assert warning in nimburion("doctor").out
    assert nimburion("doctor", "--strict").code == 1
    session = Session(id="s", queues=("default",), names=("send",))
    nimburion.call_backend(lambda backend: backend.consuming.open_session(session))
    assert read_checks(nimburion)["workers"] == (
        "warning",
        "2 jobs 'snd' wait in queue 'default': no live worker has a handler of this name",
    )
    nimburion("jobs", "cancel", "--name", "snd", "--yes")
    assert read_checks(nimburion)["workers"] == (
        "good",
        "1 live worker; each waiting job has a live worker",
    )
    nimburion.call_backend(lambda backend: backend.consuming.close_session("s"))
    nimburion("jobs", "cancel", "a")
    assert read_checks(nimburion)["workers"] == ("good", "0 live workers; no job waits")


def test_only_some_of_many_jobs_without_a_worker_are_shown(nimburion: CommandLine) -> None:
    for number in range(8):
        nimburion.enqueue(f"a{number}", name=f"send{number}")
    lines = [line for line in nimburion("doctor").out.splitlines() if " workers  " in line]
    assert len(lines) == 6
    assert lines[-1].endswith("3 more like this; nimburion queues list shows them")


def test_it_prints_a_line_for_each_check_and_what_to_do_below(nimburion: CommandLine) -> None:
    ended = nimburion("doctor", "--backend", "memory://")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("warning  durability"))
    column = lines[at].index("not durable")
    assert lines[at + 1] == " " * (column + 2) + (
        "outside of tests, use a durable backend, like sqlite:///jobs.db"
    )
    assert lines[-1] == "0 errors, 1 warning"
    assert "\x1b" not in ended.out


def test_a_warning_is_enough_for_code_1_when_strict(nimburion: CommandLine) -> None:
    memory = "doctor", "--backend", "memory://"
    assert [nimburion(*memory).code, nimburion(*memory, "--strict").code] == [0, 1]
    assert nimburion(*memory, "--strict", "--json").data["verdict"] == "warning"


def test_a_missing_database_is_an_error_and_is_not_made(nimburion: CommandLine) -> None:
    ended = nimburion("doctor")
    assert (ended.code, ended.err) == (1, "")
    assert f"SQLite {nimburion.folder}/nimburion.db does not exist\n" in ended.out
    assert list(nimburion.folder.iterdir()) == []


def test_a_database_that_cannot_be_read_is_an_error_in_one_line(nimburion: CommandLine) -> None:
    Path("nimburion.db").write_bytes(b"this is no database at all, only a long enough text" * 99)
    ended = nimburion("doctor")
    assert (ended.code, ended.err) == (1, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("error")]
    assert "nimburion.db cannot be read" in line
    assert nimburion("doctor", "--json").data["verdict"] == "error"


def test_a_damaged_database_is_an_error(nimburion: CommandLine) -> None:
    """A page of a table that no check but the one of the integrity reads."""
    nimburion.enqueue("a")
    with closing(sqlite3.connect("nimburion.db")) as database:
        (page,) = database.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'attempt_error'"
        ).fetchone()
    with Path("nimburion.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 64)
    ended = nimburion("doctor")
    assert (ended.code, ended.err) == (1, "")
    assert [line.split()[1] for line in ended.out.splitlines() if line.startswith("error")] == [
        "integrity"
    ]


def test_a_wrong_setting_is_bad_input_as_everywhere(nimburion: CommandLine) -> None:
    (nimburion.folder / "config.yaml").write_text("jobs:\n  concurency: 3\n")
    ended = nimburion("doctor")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_what_would_steer_a_terminal_is_written_out(nimburion: CommandLine) -> None:
    ended = nimburion("doctor", "--backend", "sqlite:///a%1b[31m.db")
    assert "a\\x1b[31m.db" in ended.out
    assert "\x1b" not in ended.out


def test_colours_are_for_terminals_that_want_them(
    nimburion: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> str:
        arguments = ["doctor", "--backend", "memory://"]
        return CliRunner().invoke(root, arguments, color=True).output

    assert "\x1b[33mwarning" in seen()
    monkeypatch.setenv("NO_COLOR", "1")
    assert nimburion.folder.exists()
    assert "\x1b" not in seen()


class Silent(MemoryBackend):
    """Opens never."""

    async def open(self) -> None:
        await asyncio.Event().wait()


class Full(MemoryBackend):
    """Refuses even the check."""

    async def check(self) -> list[CheckResult]:
        raise BackendFull("no room")


async def test_a_backend_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 0.0)
    (found,) = await doctor.check_backend(Silent())
    assert (found.subject, found.verdict, found.text) == ("answer", "error", "none within 0 s")
    assert found.advice


async def test_a_backend_that_raises_fails_its_check() -> None:
    (found,) = await doctor.check_backend(Full())
    assert (found.subject, found.verdict, found.text) == ("answer", "error", "no room")
    assert "free some space" in found.advice


def test_it_imports_the_backend_and_nothing_to_run_jobs(tmp_path: Path) -> None:
    modules = imported_by(tmp_path, "doctor", "--backend", "memory://")
    heavy = {"yaml", "rich", "sqlite3", "nimburion.jobs", "nimburion.scheduler", "uvloop"}
    assert "nimburion.backends.memory" in modules
    assert modules & heavy == set()


def test_the_lag_of_a_configured_outbox_is_shown(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    (nimburion.folder / "config.yaml").write_text("jobs: {outbox_url: 'sqlite:///shop.db'}")
    verdict, text = read_checks(nimburion)["outbox"]
    assert verdict == "error"
    assert "no table nimburion_outbox" in text
    assert nimburion("migrate", "check").code == 1
    assert nimburion("migrate", "up").out.startswith("done table nimburion_outbox in sqlite:///")
    assert nimburion("migrate", "check").code == 0
    assert read_checks(nimburion)["outbox"] == ("good", "no job waits for its relay")
    with closing(sqlite3.connect(nimburion.folder / "shop.db")) as connection, connection:
        connection.execute(
            "INSERT INTO nimburion_outbox (job_id, name, created_at, job) "
            "VALUES ('waiting-1', 'send', 1.0, x'7b7d')"
        )
    verdict, text = read_checks(nimburion)["outbox"]
    assert (verdict, text[:27]) == ("warning", "1 job waits, the oldest for")
    assert "has not relayed it from the outbox" in nimburion("why", "waiting-1").out
    assert nimburion("why", "waiting-2").code == 4


def test_an_outbox_that_cannot_be_used_is_one_line_of_error(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    text = "jobs: {outbox_url: 'sqlite:///missing/shop.db'}"
    (nimburion.folder / "config.yaml").write_text(text)
    for command in (("migrate", "up"), ("migrate", "check"), ("why", "waiting-2")):
        failed = nimburion(*command)
        assert (failed.code, failed.out) == (3, ""), command
        assert "shop.db cannot be used: unable to open database file; " in failed.err
        assert failed.err.count("\n") == 1


def test_a_backend_is_not_migrated_if_its_outbox_cannot_be_used(nimburion: CommandLine) -> None:
    (nimburion.folder / "nimburion.db").touch()
    text = "jobs: {outbox_url: 'sqlite:///missing/shop.db'}"
    (nimburion.folder / "config.yaml").write_text(text)
    assert nimburion("migrate", "up").code == 3
    assert (nimburion.folder / "nimburion.db").stat().st_size == 0


@pytest.mark.parametrize(
    ("setting", "is_warned"),
    [
        ("keep_completed: 0", True),
        ("keep_completed_max: 1000", True),
        ("keep_completed: none", False),
        ("keep_completed_max: 1001", False),
    ],
)
def test_records_that_are_kept_too_briefly_for_an_outbox_are_a_warning(
    nimburion: CommandLine, setting: str, is_warned: bool
) -> None:
    nimburion.enqueue("a")
    text = f"jobs: {{outbox_url: 'sqlite:///shop.db', {setting}}}"
    (nimburion.folder / "config.yaml").write_text(text)
    name = setting.partition(":")[0]
    assert (f"set {name} to more than" in nimburion("doctor").out) is is_warned
