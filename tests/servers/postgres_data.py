"""The data folder of a new PostgreSQL server: made once a run for each program, and copied.

`initdb` takes half a second of CPU time, a copy a tenth of that.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.leftovers import KEPT, RUN_MARK
from tests.servers.binaries import Binary


def make_data(binary: Binary, target: Path, run_initdb: Callable[[], object]) -> None:
    """Make `target` with `run_initdb`, or copy what it made for another server of this program."""
    folder = find_kept_folder()
    if folder is None:
        run_initdb()
        return
    folder.mkdir(exist_ok=True)
    kept = folder / binary.name.replace(" ", "-")
    with (folder / "lock").open("w") as lock:  # the other processes of the run do the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            run_initdb()
            copy_folder(target, folder / "unfinished")
            (folder / "unfinished").rename(kept)
            return
    copy_folder(kept, target)


def find_kept_folder() -> Path | None:
    """Return the folder of what this run of the tests keeps; None outside of one."""
    temporary = Path(tempfile.gettempdir())
    return temporary / KEPT if temporary.name == os.environ.get(RUN_MARK) else None


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder with the owners and modes of its files."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
