"""Which files `--reload` watches."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nimburion.cli.supervisor.file_watch import FileWatch
from tests.waiting import DEADLINE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("app.py", "package/jobs.py", "config.yaml", "notes.txt", ".hidden/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("pyvenv.cfg", "lib.py"):
        (tmp_path / "env").mkdir(exist_ok=True)
        (tmp_path / "env" / name).write_text("")
    return tmp_path


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("name", ["app.py", "package/jobs.py", "config.yaml", "new.py"])
async def test_a_change_is_found(name: str, folder: Path) -> None:
    watch = FileWatch(str(folder), [str(folder / "config.yaml")], interval=0.01)
    (folder / name).touch()
    touch(folder / name)
    async with asyncio.timeout(DEADLINE):
        assert await watch.wait_for_change() == str(folder / name)


async def test_a_removed_file_is_found(folder: Path) -> None:
    watch = FileWatch(str(folder), interval=0.01)
    (folder / "app.py").unlink()
    async with asyncio.timeout(DEADLINE):
        assert await watch.wait_for_change() == str(folder / "app.py")


async def test_other_files_are_not_watched(folder: Path) -> None:
    watch = FileWatch(str(folder), interval=0.01)
    for name in ("config.yaml", "notes.txt", ".hidden/a.py", "env/lib.py"):
        touch(folder / name)
    touch(folder / "app.py")
    async with asyncio.timeout(DEADLINE):
        assert await watch.wait_for_change() == str(folder / "app.py")
