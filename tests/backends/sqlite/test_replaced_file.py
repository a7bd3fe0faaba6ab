"""Files that are deleted or replaced while processes have them open: noticed, and refused."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection import opening
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.connection.disk import OpenFiles
from nimburion.core.errors import BackendReplaced
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.core.transactions import CallerConnection
from nimburion.jobs import Processor
from tests.backends.sqlite.conftest import Start, read_line, read_output

ReplaceFile = Callable[[Path], object]


def delete(path: Path) -> None:
    """As `rm jobs.db*` does."""
    for file in sorted(path.parent.glob(f"{path.name}*")):  # the database first
        if file.is_file():
            file.unlink()


def delete_alone(path: Path) -> None:
    """As `rm jobs.db` does."""
    path.unlink()


def rename_over(path: Path) -> None:
    """As an unannounced restore from a backup does."""
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(backup)) as target, closing(sqlite3.connect(path)) as source:
        source.backup(target)
    backup.rename(path)


def delete_log(path: Path) -> None:
    """As those do who take the log for a leftover."""
    path.with_name(f"{path.name}-wal").unlink()


def delete_index(path: Path) -> None:
    path.with_name(f"{path.name}-shm").unlink()


EVERY_WAY = pytest.mark.parametrize(
    ("replace_file", "message"),
    [
        (delete, "jobs.db was deleted"),
        (delete_alone, "jobs.db was deleted"),
        (rename_over, "jobs.db was replaced by another file"),
        (delete_log, "jobs.db-wal was deleted"),
        (delete_index, "jobs.db-shm was deleted"),
    ],
)


def let_time_pass(backend: SQLiteBackend) -> None:
    """As much as passes until all files are looked at again."""
    assert backend._file.open_files is not None
    backend._file.open_files._next_check = 0.0


@EVERY_WAY
async def test_every_call_is_refused(path: Path, replace_file: ReplaceFile, message: str) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue([NewJob("before", "n", "q", b"{}")])
    await backend.consuming.open_session(Session(id="s", names=("n",)))
    replace_file(path)
    let_time_pass(backend)
    for call in (
        backend.producing.enqueue([NewJob("after", "n", "q", b"{}")]),
        backend.consuming.heartbeat("s"),
        backend.reads.count_jobs(budget=None),
        backend.ping(),
    ):
        with pytest.raises(BackendReplaced, match=message) as caught:
            await call
        assert "End every process that uses" in str(caught.value)
    await backend.close()
    if path.exists():  # noqa: ASYNC240
        assert await ids_in(path) <= {"before"}


async def ids_in(path: Path) -> set[str]:
    """The jobs of a file, as a process sees them that opens it now."""
    backend = SQLiteBackend(path)
    await backend.open()
    found = {job.id for job in (await backend.reads.list_jobs()).jobs}
    await backend.close()
    return found


@pytest.mark.parametrize("replace_file", [delete, delete_alone, rename_over])
async def test_the_very_next_enqueue_is_refused(path: Path, replace_file: ReplaceFile) -> None:
    """However short ago the last look was: no acknowledgement for what is lost."""
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue([NewJob("before", "n", "q", b"{}")])
    replace_file(path)
    calls = [backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"{}")]) for n in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in results] == [BackendReplaced] * 5
    await backend.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_an_error_of_the_driver_says_that_the_file_is_gone(path: Path, reads: bool) -> None:
    """Also if the file was deleted since the last look: the driver cannot open its log then."""
    backend = SQLiteBackend(path)
    await backend.open()

    def fail(_: Database) -> None:
        delete(path)
        sqlite3.connect(f"file:{path}?mode=rw", uri=True).execute("SELECT 1")

    with pytest.raises(BackendReplaced, match=r"jobs\.db was deleted") as caught:
        await (backend._file.read(fail) if reads else backend._file.write(fail))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    await backend.close()


async def test_an_error_of_one_call_among_several_says_that_the_file_is_gone(path: Path) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    moved = path.with_name("aside.db")

    def fail(_: Database) -> None:
        path.rename(moved)
        sqlite3.connect(f"file:{path}?mode=rw", uri=True)

    def put_back(_: Database) -> None:
        moved.rename(path)

    results = await asyncio.gather(
        backend._file.write(fail), backend._file.write(put_back), return_exceptions=True
    )
    assert [type(one) for one in results] == [BackendReplaced, type(None)]
    await backend.close()


async def test_it_goes_on_when_the_same_file_is_back(path: Path) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    moved = path.rename(path.with_name("aside.db"))  # noqa: ASYNC240
    with pytest.raises(BackendReplaced):
        await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    moved.rename(path)
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1
    await backend.close()


async def test_closed_and_opened_again_it_uses_the_new_file(path: Path) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    delete(path)
    with pytest.raises(BackendReplaced):
        await backend.producing.enqueue([NewJob("b", "n", "q", b"{}")])
    await backend.close()
    await backend.open()
    await backend.producing.enqueue([NewJob("b", "n", "q", b"{}")])
    await backend.close()
    assert await ids_in(path) == {"b"}


async def test_a_new_handle_opens_no_other_file(path: Path) -> None:
    """A worker's heartbeat thread has a handle of its own, which must not make a new file."""
    backend = SQLiteBackend(path)
    await backend.open()
    delete(path)
    with pytest.raises(BackendReplaced):
        await backend.new_handle().open()
    assert not path.exists()  # noqa: ASYNC240
    await backend.close()


async def test_a_new_handle_creates_no_file_if_it_is_deleted_while_the_handle_opens_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    handle, connect = backend.new_handle(), opening.connect

    def delete_and_connect(opened: Path) -> sqlite3.Connection:
        delete(path)
        return connect(opened)

    monkeypatch.setattr(opening, "connect", delete_and_connect)
    with pytest.raises(BackendReplaced, match=r"jobs\.db was deleted") as caught:
        await handle.open()
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert not path.exists()  # noqa: ASYNC240
    await backend.close()


async def test_no_transaction_begins_on_another_file(path: Path) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    rename_over(path)
    with pytest.raises(BackendReplaced):
        await backend.producing.transaction(None).begin()
    with closing(sqlite3.connect(path)) as connection, pytest.raises(BackendReplaced):
        await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "n", "q", b"{}")]
        )
    await backend.close()


async def test_another_working_directory_is_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = SQLiteBackend("jobs.db")
    await backend.open()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    let_time_pass(backend)
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    handle = backend.new_handle()
    await handle.open()
    assert (await handle.reads.count_jobs(budget=None))[State.PENDING] == 1
    await handle.close()
    await backend.close()


def test_all_files_are_looked_at_every_ten_milliseconds_and_after_a_refusal(path: Path) -> None:
    now = 0.0
    path.touch()
    log = path.with_name("jobs.db-wal")
    log.touch()
    files = OpenFiles(path, monotonic=lambda: now)
    files.note_file()
    files.note_log()
    files.check()
    log.rename(path.with_name("aside"))
    files.check()
    files.check_file()
    now = 0.011
    for _ in range(2):
        with pytest.raises(BackendReplaced):
            files.check()
    path.with_name("aside").rename(log)
    files.check()


class RecordedLog(logging.Handler):
    """Tells when a message with these words has been logged, from whichever thread."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        if self.message in record.getMessage():
            self._loop.call_soon_threadsafe(self.event.set)


async def test_a_worker_reports_it_within_a_heartbeat_and_takes_no_job_of_the_new_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noticed, gave_up = RecordedLog("backend unreachable"), RecordedLog(" ends: ")
    log = logging.getLogger("nimburion.worker")
    for one in (noticed, gave_up):
        log.addHandler(one)
    processor = Processor(SQLiteBackend(path), session_ttl=3.0)
    ran: list[str] = []

    async def note(_: object, data: bytes) -> None:
        ran.append(data.decode())

    processor.register("note", note)
    async with processor, asyncio.timeout(30):
        await processor.start()
        delete(path)
        other = SQLiteBackend(path)
        await other.open()
        await other.producing.enqueue([NewJob("a", "note", "default", b"{}")])
        await noticed.event.wait()
        await gave_up.event.wait()
        assert processor.health().state != "ready"
        assert (await other.reads.count_jobs(budget=None))[State.PENDING] == 1
        await other.close()
    for one in (noticed, gave_up):
        log.removeHandler(one)
    assert ran == []
    (message,) = [one for one in caplog.messages if "backend unreachable" in one]
    assert "jobs.db was replaced by another file" in message or "jobs.db was deleted" in message
    assert not [one for one in caplog.records if one.exc_info]


def test_a_producer_of_another_process_is_refused(path: Path, start: Start) -> None:
    """It acknowledges no more than what was under way."""
    producer = start("enqueue", path, "j", 1_000_000, 1)
    for _ in range(20):
        read_line(producer)
    path.rename(path.with_name("old.db"))
    *_, last = read_output(producer)
    assert last.startswith("BackendReplaced")
    assert "was deleted while this process had it open" in last
