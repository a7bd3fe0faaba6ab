"""Files and disks that do not do what they should: a clear error, nothing lost, nothing deleted."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.backends.sql_files import read_migrations
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection import opening
from nimburion.core.errors import (
    BackendCorrupt,
    BackendFull,
    BackendUnavailable,
    ConfigurationError,
    FormatMismatch,
    NotOpen,
    Unstorable,
)
from nimburion.core.job import NewJob
from nimburion.testing.clock import FakeClock
from tests.backends.sqlite.conftest import Start, assert_sound, let_others_in, read_output
from tests.waiting import read_busy_time

UNPRIVILEGED_UID = 65534

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/export /srv/shared nfs4 rw 0 0
//server/share /srv/with\\040blank cifs rw 0 0
/dev/vdb /srv/shared/local xfs rw 0 0
"""


# Read-only


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder; the actor acts as nobody when the tests run as root, whom no mode stops."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    let_others_in(tmp_path)
    yield folder
    folder.chmod(0o755)


def actor_uid() -> int:
    """Who the actor is."""
    return UNPRIVILEGED_UID if os.geteuid() == 0 else os.geteuid()


async def make_file(path: Path) -> None:
    """A backend with one job, closed."""
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    await backend.close()


def test_a_read_only_folder(start: Start, foreign_folder: Path) -> None:
    foreign_folder.chmod(0o555)
    (line,) = read_output(start("open_as", foreign_folder / "jobs.db", actor_uid()))
    assert line.startswith("BackendReadOnly")
    assert "is not writable for this user" in line
    assert list(foreign_folder.iterdir()) == []


@pytest.mark.parametrize("inside", ["jobs.db", "deep/jobs.db"])
def test_a_folder_that_may_not_be_entered(start: Start, foreign_folder: Path, inside: str) -> None:
    (foreign_folder / inside).parent.mkdir(exist_ok=True)
    foreign_folder.chmod(0o000)
    (line,) = read_output(start("open_as", foreign_folder / inside, actor_uid()))
    assert line.startswith("BackendReadOnly")


def test_a_read_only_file(start: Start, foreign_folder: Path) -> None:
    asyncio.run(make_file(foreign_folder / "jobs.db"))
    (foreign_folder / "jobs.db").chmod(0o444)
    foreign_folder.chmod(0o777)
    (line,) = read_output(start("open_as", foreign_folder / "jobs.db", actor_uid()))
    assert line.startswith("BackendReadOnly")
    assert "change the owner or mode" in line


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="does not exist; make it first"):
        await SQLiteBackend(tmp_path / "no" / "jobs.db").open()
    assert not (tmp_path / "no").exists()


async def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        await SQLiteBackend(tmp_path).open()


# Full


async def test_a_full_file_refuses_whole_calls_and_recovers(path: Path, clock: FakeClock) -> None:
    free_bytes = 10 << 20
    backend = SQLiteBackend(path, clock=clock, measure=lambda _: free_bytes)
    await backend.open()
    await backend.producing.enqueue([NewJob("kept", "n", "q", b"{}")])
    free_bytes = 0
    jobs = [NewJob(f"j-{n}", "n", "q", b"x" * 1000) for n in range(500)]
    with pytest.raises(BackendFull, match="workers then continue"):
        await backend.producing.enqueue(jobs)
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 1
    free_bytes = 10 << 20
    await backend.producing.enqueue(jobs)
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 501
    await backend.close()


def test_a_file_size_limit_is_backend_full_until_it_is_lifted(path: Path, start: Start) -> None:
    refused, recovered = read_output(start("fill", path, 1 << 20))
    name, stored = refused.split()
    assert name == "BackendFull"
    assert int(stored) > 10
    assert recovered == f"recovered {int(stored) + 1}"
    assert_sound(path)


# Corrupt


async def test_a_file_that_is_no_database(path: Path) -> None:
    write_text(path)
    with pytest.raises(BackendCorrupt, match="restore a backup"):
        await SQLiteBackend(path).open()
    assert is_text(path)


def write_text(path: Path) -> None:
    path.write_bytes(b"not a database, but somebody's text\n" * 200)


def is_text(path: Path) -> bool:
    return path.read_bytes() == b"not a database, but somebody's text\n" * 200


async def test_a_damaged_page_is_reported_and_nothing_is_deleted(path: Path) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"x" * 900) for n in range(500)])
    await backend.close()
    damaged = damage(path)
    backend = SQLiteBackend(path)
    with pytest.raises(BackendCorrupt):
        await use(backend)
    await backend.close()
    assert damaged <= path.stat().st_size  # noqa: ASYNC240


def damage(path: Path) -> int:
    """Overwrite the head of every page but the first; the size of the file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(1, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 64)
    return size


async def use(backend: SQLiteBackend) -> None:
    await backend.open()
    await backend.reads.list_jobs(payloads=True, limit=500)


# Formats


async def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    await make_file(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 99")
    with pytest.raises(FormatMismatch, match=r"has format 99.*upgrade nimburion"):
        await SQLiteBackend(path).open()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (1,)


async def test_a_database_whose_names_are_taken_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE job (title TEXT)")
    with pytest.raises(FormatMismatch, match=r"not one of nimburion.*\(job\)"):
        await SQLiteBackend(path).open()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("job",)]


async def test_a_database_of_the_application_gets_our_tables_beside_its_own(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE person (name TEXT)")
        connection.execute("INSERT INTO person VALUES ('Ada')")
    await make_file(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM person").fetchall() == [("Ada",)]
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (1,)


async def test_migrate_reports_what_opening_a_new_file_did(path: Path) -> None:
    backend = SQLiteBackend(path)
    assert await backend.migrate() == ["format 1: tables"]
    await backend.close()
    assert await backend.migrate() == []
    await backend.close()


async def test_an_older_format_is_migrated_once_and_whole(path: Path) -> None:
    await make_file(path)
    first = read_migrations(opening.PACKAGE, opening.MIGRATIONS)
    newer = [*first, (2, "colour", "ALTER TABLE job ADD COLUMN colour TEXT;\nCREATE TABLE b (x);")]
    connection = opening.connect(path)
    assert opening.prepare_file(connection, path, newer) == ["format 2: colour"]
    assert opening.prepare_file(connection, path, newer) == []
    assert connection.execute("SELECT id, colour FROM job").fetchall() == [("a", None)]
    broken = [*newer, (3, "broken", "CREATE TABLE c (x);\nCREATE TABLE c (x);")]
    with pytest.raises(sqlite3.OperationalError):
        opening.prepare_file(connection, path, broken)
    assert opening.prepare_file(connection, path, newer) == []
    assert "c" not in {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    connection.close()


# Network file systems


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/srv/shared/jobs.db", "nfs4"), ("/srv/with blank/a/jobs.db", "cifs")],
)
async def test_a_network_file_system_is_refused(tmp_path: Path, place: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    with pytest.raises(ConfigurationError, match=rf"network file system \({kind}\)"):
        await SQLiteBackend(place, mounts=mounts).open()


@pytest.mark.parametrize("table", [MOUNTS, "", None])
async def test_a_local_one_is_not(path: Path, tmp_path: Path, table: str | None) -> None:
    mounts = tmp_path / "mounts"
    if table is not None:
        mounts.write_text(table)
    backend = SQLiteBackend(path, mounts=mounts)
    await backend.open()
    assert await backend.exists()
    await backend.close()


# Handles


async def test_a_handle_that_is_not_open_is_rejected(path: Path) -> None:
    backend = SQLiteBackend(path)
    for call in (
        backend.reads.count_jobs(budget=None),
        backend.ping(),
        backend.consuming.wait(["q"], 1.0),
    ):
        with pytest.raises(NotOpen, match=r"call open\(\) first"):
            await call
    await backend.open()
    await backend.open()
    await backend.close()
    await backend.close()
    with pytest.raises(NotOpen):
        await backend.producing.enqueue([NewJob("a", "n", "q", b"")])


async def test_a_lock_held_too_long_is_unavailable_and_writes_nothing(
    backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimburion.backends.sqlite.connection.threads.BUSY_TIMEOUT", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            BackendUnavailable,
            match=r"or an open transaction of this one, kept .* locked.* pass `connection=…`",
        ) as caught:
            await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
        assert caught.value.outcome == "not applied"
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        other.execute("ROLLBACK")
    assert (await backend.producing.enqueue([NewJob("a", "n", "q", b"")]))[0].outcome == "created"


async def test_under_a_lock_each_call_has_a_time_of_its_own(
    backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one time after the other, whether they share a transaction or wait behind another."""
    monkeypatch.setattr("nimburion.backends.sqlite.connection.threads.BUSY_TIMEOUT", 0.5)
    loop = asyncio.get_running_loop()

    async def refused(number: int) -> float:
        began, busy = loop.time(), read_busy_time(os.getpid())
        with pytest.raises(BackendUnavailable, match=r"kept .* locked"):
            await backend.producing.enqueue([NewJob(f"{number}", "n", "q", b"")])
        passed, busy = loop.time() - began, read_busy_time(os.getpid()) - busy
        assert passed >= 0.4
        return passed - busy

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        took = await asyncio.gather(*map(refused, range(20)))
        other.execute("ROLLBACK")
    assert max(took) <= 0.5 * 1.5 + 2.0  # a busy machine; one after the other takes ten seconds
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 0


@pytest.mark.parametrize(
    "job", [NewJob("\ud800", "n", "q", b""), NewJob("a", "n", "q", b"", 1 << 70)]
)
async def test_what_sqlite_cannot_hold_is_unstorable(backend: SQLiteBackend, job: NewJob) -> None:
    with pytest.raises(Unstorable):
        await backend.producing.enqueue([NewJob("good", "n", "q", b""), job])
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 0
