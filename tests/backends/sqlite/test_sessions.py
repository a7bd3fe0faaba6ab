"""Which clock decides what: the boot clock sessions, the wall clock due times."""

from __future__ import annotations

from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection.path import read_boot_id
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.testing.clock import FakeClock

LANES = (Lane("q", "n"),)


async def reserve_one(backend: SQLiteBackend) -> None:
    """One job in the hands of a session."""
    await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
    await backend.consuming.open_session(Session(id="s", ttl=30.0, names=("n",)))
    assert (
        len((await backend.consuming.exchange("s", 1, [], ReserveRequest(1, LANES))).deliveries)
        == 1
    )


async def test_a_wall_clock_step_expires_no_session(
    backend: SQLiteBackend, clock: FakeClock
) -> None:
    await reserve_one(backend)
    clock.step_wall(86_400.0)
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == []
    clock.step_wall(-2 * 86_400.0)
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == []
    clock.advance(30.0)
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == ["a"]


async def test_sessions_of_another_boot_are_expired(backend: SQLiteBackend) -> None:
    await reserve_one(backend)
    await backend._file.write(
        lambda db: db.connection.execute("UPDATE session SET boot_id = 'before'")
    )
    (session,) = await backend.reads.list_sessions()
    assert session.expires_in < 0
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == ["a"]


async def test_without_boot_ids_sessions_expire_by_their_clock(path: Path) -> None:
    clock = FakeClock()
    clock.advance(1e6)
    backend = SQLiteBackend(path, clock=clock)
    await backend.open()
    await reserve_one(backend)
    await backend.close()
    booted = SQLiteBackend(path, clock=FakeClock())
    await booted.open()
    assert (await booted.consuming.rescue(10, max_lost=3)).returned == ["a"]
    await booted.close()


async def test_a_job_is_not_handed_out_early_whatever_the_clock_does(
    backend: SQLiteBackend, clock: FakeClock
) -> None:
    await backend.producing.enqueue([NewJob("a", "n", "q", b"", after=10.0)])
    await backend.consuming.open_session(Session(id="s", ttl=1e9, names=("n",)))
    for number, step in enumerate((-5.0, 5.0, 9.999_999), 1):
        clock.step_wall(step)
        assert (
            await backend.consuming.exchange("s", number, [], ReserveRequest(1, LANES))
        ).deliveries == []
    clock.step_wall(0.000_001)
    assert await backend.reads.count_jobs(budget=None) | {
        State.PENDING: 1
    } == await backend.reads.count_jobs(budget=None)
    assert (
        len((await backend.consuming.exchange("s", 4, [], ReserveRequest(1, LANES))).deliveries)
        == 1
    )


def test_a_system_without_boot_ids_has_none(tmp_path: Path) -> None:
    assert read_boot_id(tmp_path / "missing") == ""
    (tmp_path / "id").write_text("abc\n")
    assert read_boot_id(tmp_path / "id") == "abc"
