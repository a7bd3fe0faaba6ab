"""Finds changed source files, for `nimburion worker --reload`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator

_SUFFIX = ".py"
_IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
_ENVIRONMENT_MARK = "pyvenv.cfg"
"""The file that a virtual environment has in its folder."""


class FileWatch:
    """Compares the modification times of all Python files below a folder, and of further files.

    Hidden folders, virtual environments and installed packages are left out.
    """

    def __init__(self, folder: str, files: Iterable[str] = (), interval: float = 0.5) -> None:
        self._folder = folder
        self._files = tuple(files)
        self._interval = interval
        self._times = self._read_times()

    async def wait_for_change(self) -> str:
        """Return the path of a file that was changed, added or removed since the last call."""
        while True:
            await asyncio.sleep(self._interval)
            times = await asyncio.to_thread(self._read_times)
            before, self._times = self._times, times
            if times != before:
                changed = {*times.items()} ^ {*before.items()}
                return min(path for path, _ in changed)

    def _read_times(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path in (*self._files, *_find_sources(self._folder)):
            try:
                found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116 (many files)
            except OSError:
                continue  # removed meanwhile
        return found


def _find_sources(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listed = [*entries]
    except OSError:
        return
    if any(entry.name == _ENVIRONMENT_MARK for entry in listed):
        return
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith(".") and entry.name not in _IGNORED_FOLDERS:
                yield from _find_sources(entry.path)
        elif entry.name.endswith(_SUFFIX):
            yield entry.path
