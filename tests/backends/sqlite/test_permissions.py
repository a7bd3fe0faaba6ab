"""Who may read and write the file, its log and its index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.job import NewJob
from tests.backends.sqlite.conftest import Start, let_others_in, read_output

NOBODY = 65534


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """What the process takes away from the modes of new files."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(path: Path) -> list[int]:
    """Those of the file, its log and its index."""
    return [
        path.with_name(f"{path.name}{suffix}").stat().st_mode & 0o777
        for suffix in ("", "-wal", "-shm")
    ]


async def open_new(path: Path) -> SQLiteBackend:
    """A backend with a job."""
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    return backend


def touch(path: Path, mode: int) -> Path:
    """An empty file of this mode."""
    path.touch()
    path.chmod(mode)
    return path


def make_link(path: Path, target: Path) -> Path:
    """A link to where nothing is yet."""
    path.symlink_to(target)
    return path


@pytest.mark.usefixtures("umask")
async def test_a_new_file_is_for_its_owner(path: Path) -> None:
    backend = await open_new(path)
    assert modes(path) == [0o600, 0o600, 0o600]
    await backend.close()


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o644])
async def test_an_existing_file_keeps_its_mode_and_gives_it_to_the_others(
    path: Path, mode: int
) -> None:
    backend = await open_new(touch(path, mode))
    assert modes(path) == [mode, mode, mode]
    await backend.close()
    backend = await open_new(path)
    assert modes(path) == [mode, mode, mode]
    await backend.close()


async def test_a_new_file_behind_a_link_is_for_its_owner_too(path: Path, tmp_path: Path) -> None:
    backend = await open_new(make_link(path, tmp_path / "real.db"))
    assert modes(tmp_path / "real.db") == [0o600, 0o600, 0o600]
    await backend.close()


def test_a_group_shares_a_file_that_is_open_to_it(path: Path, tmp_path: Path, start: Start) -> None:
    """As the page says. Run as root: two users, of whom the second is only in the group."""
    folder = tmp_path / "shared"
    folder.mkdir()
    shared = folder / "jobs.db"
    shared.touch()
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    group = NOBODY if os.geteuid() == 0 else os.getegid()
    let_others_in(tmp_path)
    for what, mode in ((folder, 0o2770), (shared, 0o660)):
        os.chown(what, os.geteuid(), group)
        what.chmod(mode)
    assert read_output(start("share", shared, user, group)) == ["ours 1", "theirs 2", "ours 3"]


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o600, "good"), (0o660, "good"), (0o644, "warning"), (0o602, "warning")]
)
async def test_the_doctor_warns_of_a_file_that_everybody_can_use(
    path: Path, mode: int, verdict: str
) -> None:
    backend = await open_new(touch(path, mode))
    (found,) = [one for one in await backend.check() if one.subject == "access"]
    assert found.verdict == verdict
    if verdict == "warning":
        assert found == CheckResult(
            "access",
            "warning",
            f"other users of this host can use the file (mode {mode:04o}): payloads, results, "
            "errors",
            "while no process runs: chmod o= the file and its -wal and -shm files",
        )
    await backend.close()
