"""What an examination says of a file that is not as it should be."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from nimburion.backends.sql_files import Statements
from nimburion.backends.sqlite import SQLiteBackend, checks
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.connection.opening import open_reader
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.errors import BackendUnavailable, NotOpen
from nimburion.core.job import NewJob
from nimburion.testing import FakeClock
from tests.waiting import block_until

MIB = 1 << 20


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def backend(tmp_path: Path, clock: FakeClock) -> AsyncIterator[SQLiteBackend]:
    """A backend in a file of its own."""
    backend = SQLiteBackend(tmp_path / "jobs.db", clock=clock)
    await backend.open()
    yield backend
    await backend.close()


async def find_check(backend: SQLiteBackend, subject: str) -> CheckResult:
    """The one result on this subject."""
    (found,) = [one for one in await backend.check() if one.subject == subject]
    return found


async def test_a_healthy_file_has_no_error(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000 * MIB))
    found = await backend.check()
    assert {one.subject for one in found if one.verdict != "good"} <= {"version"}
    assert [one.subject for one in found] == [
        "file", "version", "format", "durability", "folder", "access", "disk", "log", "clock",
        "integrity", "reading", "write lock",
    ]  # fmt: skip
    assert (await find_check(backend, "format")).text.startswith("1,")
    assert str(backend.path) in (await find_check(backend, "file")).text


async def test_check_requires_an_open_backend(tmp_path: Path) -> None:
    with pytest.raises(NotOpen):
        await SQLiteBackend(tmp_path / "jobs.db").check()


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(1024 * MIB, "good"), (1023 * MIB, "warning"), (16 * MIB, "warning"), (15 * MIB, "error")],
)
async def test_free_disk_space(
    free: int, verdict: str, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert (await find_check(backend, "disk")).verdict == verdict


def test_a_file_without_a_write_ahead_log() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        db = Database(connection, Statements("nimburion.backends.sqlite", "sql"), FakeClock(), "")
        found = checks.check_durability(db)
    assert (found.verdict, "journal mode is memory" in found.text) == ("warning", True)


async def test_a_damaged_file(backend: SQLiteBackend) -> None:
    assert await find_check(backend, "integrity") == CheckResult(
        "integrity", "good", "the whole file was checked"
    )
    await backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"x" * 900) for n in range(500)])
    await backend.close()
    damage_a_page(backend.path)
    await backend.open()
    found = await find_check(backend, "integrity")
    assert found.verdict == "error"
    assert "damaged" in found.text or "cannot be read" in found.text


def damage_a_page(path: Path) -> None:
    """Overwrite the head of a page in the middle: one that nothing but a check reads here."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(b"\xff" * 64)


async def test_a_check_is_bounded_in_time(backend: SQLiteBackend) -> None:
    await backend.producing.enqueue([NewJob(f"j-{n}", "n", "q", b"x" * 900) for n in range(2000)])
    with closing(open_reader(backend.path)) as connection:
        found = checks.check_integrity(connection, backend.path, seconds=-1.0)
    assert (found.verdict, found.text.split(";")[0]) == ("good", "no fault found in -1 s")
    assert "PRAGMA quick_check" in found.text
    assert (await find_check(backend, "integrity")).text == "the whole file was checked"


async def test_a_check_that_cannot_be_interrupted_reads_no_large_file(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 41, 0))
    assert (await find_check(backend, "integrity")).text == "the whole file was checked"
    monkeypatch.setattr(checks, "_SMALL", 1)
    assert (await find_check(backend, "integrity")).text.startswith(
        "not checked, as the file is large"
    )


async def test_a_long_log(backend: SQLiteBackend) -> None:
    assert (await find_check(backend, "log")).verdict == "good"
    log = backend.path.with_name("jobs.db-wal")
    grown = log.with_name("grown.db-wal")
    with grown.open("wb") as file:
        file.truncate(257 * MIB)
    found = checks.check_log(grown.with_name("grown.db"))
    assert (found.verdict, found.text) == (
        "warning",
        "the write-ahead log has 257.0 MiB, 62.5 MiB are usual",
    )


async def test_a_clock_that_was_set_back(backend: SQLiteBackend, clock: FakeClock) -> None:
    await backend.producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    assert (await find_check(backend, "clock")).verdict == "good"
    clock.step_wall(-3600)
    found = await find_check(backend, "clock")
    assert (found.verdict, found.text.split(":")[0]) == (
        "warning",
        "the latest job was stored 3600 s in the future",
    )
    clock.step_wall(-clock.now())
    assert (await find_check(backend, "clock")).verdict == "error"


async def test_a_file_that_this_user_must_not_write(backend: SQLiteBackend) -> None:
    assert (await find_check(backend, "folder")).verdict == "good"
    missing = checks.check_folder(backend.path.parent / "gone" / "jobs.db", Path("/nowhere"))
    assert (missing.verdict, "not writable" in missing.text) == ("error", True)


async def test_a_network_file_system(backend: SQLiteBackend, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {tmp_path} nfs4 rw 0 0\n")
    assert checks.check_folder(backend.path, mounts).verdict == "error"


async def test_a_file_error_becomes_a_failed_check(backend: SQLiteBackend) -> None:
    with closing(sqlite3.connect(backend.path)) as other:
        other.execute("DROP TABLE meta")
    found = {one.subject: one for one in await backend.check()}
    assert (found["format"].verdict, found["file"].verdict) == ("error", "good")
    assert "no such table" in found["format"].text


async def test_a_lock_that_is_never_released() -> None:
    async def refuse() -> None:
        raise BackendUnavailable("another process kept it locked")

    found = await checks.check_write_lock(refuse, FakeClock())
    assert (found.verdict, found.text) == ("error", "another process kept it locked")


@pytest.mark.parametrize(("seconds", "verdict"), [(0.01, "good"), (0.6, "warning")])
async def test_slow_answers(seconds: float, verdict: str) -> None:
    clock = FakeClock()

    async def step() -> None:
        clock.advance(seconds)

    assert (await checks.check_write_lock(step, clock)).verdict == verdict
    assert (await checks.check_read_latency(step, clock)).verdict == verdict


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 37, 0), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 1), False),
        ((3, 50, 6), False), ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True),
        ((3, 53, 0), True),
    ],
)  # fmt: skip
def test_which_versions_reset_their_log_safely(version: tuple[int, int, int], safe: bool) -> None:
    assert checks.has_wal_reset_fix(version) is safe


async def test_other_reads_do_not_wait_for_the_check_of_a_large_file(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def check_slowly(*_: object) -> CheckResult:
        loop.call_soon_threadsafe(started.set)
        assert may_end.wait(20.0)
        return CheckResult("integrity", "good", "checked slowly")

    monkeypatch.setattr(checks, "check_integrity", check_slowly)
    checking = asyncio.create_task(backend.check())
    async with asyncio.timeout(20.0):
        await started.wait()
        assert await backend.reads.list_queues() == []
        assert not checking.done()
        may_end.set()
        assert "checked slowly" in {one.text for one in await checking}


async def test_a_cancelled_check_stops_reading_the_file(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, is_cancelled = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def check_until_cancelled(
        _: sqlite3.Connection, __: Path, asks: Callable[[], bool]
    ) -> CheckResult:
        assert not asks()
        loop.call_soon_threadsafe(started.set)
        block_until(asks, "the check is cancelled")
        loop.call_soon_threadsafe(is_cancelled.set)
        return CheckResult("integrity", "good", "cancelled")

    monkeypatch.setattr(checks, "check_integrity", check_until_cancelled)
    checking = asyncio.create_task(backend.check())
    async with asyncio.timeout(20.0):
        await started.wait()
        checking.cancel()
        await is_cancelled.wait()


async def test_a_long_check_without_a_fault_is_not_repeated_soon(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seconds, found = 0.0, 3.1, CheckResult("integrity", "good", "no fault")
    count = 0

    def check(*_: object) -> CheckResult:
        nonlocal now, count
        now, count = now + seconds, count + 1
        return found

    monkeypatch.setattr(checks, "check_integrity", check)
    integrity = checks.IntegrityChecks(backend.path, lambda: now)
    assert [await integrity.run(), await integrity.run(), count] == [found, found, 1]
    now += 301.0
    assert (await integrity.run(), count) == (found, 2)
    now, seconds = now + 301.0, 0.01
    assert (await integrity.run(), await integrity.run(), count) == (found, found, 4)
    found, seconds = CheckResult("integrity", "error", "damaged", "restore it"), 3.1
    assert (await integrity.run(), await integrity.run(), count) == (found, found, 6)
